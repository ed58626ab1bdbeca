use super::*;
use crate::config::LogFormat;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender};

const LOOK: Log = Log { format: LogFormat::Human, level: LogLevel::Error, session_every: 1 };

/// A reader that stalls until nobody holds it any more.
struct Slow {
    held: Receiver<()>,
    page: Page,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.held.recv();
        self.page.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that takes so many bytes of each write, or none (0); in the end all of them.
struct Disk {
    takes: VecDeque<usize>,
    page: Page,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.takes.pop_front() {
            Some(0) => Err(ErrorKind::StorageFull.into()),
            Some(n) => self.page.write(&bytes[..n]),
            None => self.page.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn slow(log: &Log) -> (Queue, Sender<()>, Page) {
    let (hold, held) = mpsc::channel();
    let page = Page::default();
    let queue = Queue::start(Slow { held, page: page.clone() }, log, false).unwrap();
    (queue, hold, page)
}

fn say(mut queue: &Queue, line: &str) {
    queue.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn text(page: &Page) -> String {
    String::from_utf8(page.take()).unwrap()
}

#[test]
fn a_reader_that_stalls_costs_lines_and_is_told_how_many() {
    let (queue, hold, page) = slow(&LOOK);
    say(&queue, "first");
    let more = limits::LOG_LINES_MAX + 10;
    let began = sys::now();
    (0..more).for_each(|line| say(&queue, &line.to_string()));
    assert!(sys::now() < began.plus_ms(1000), "nobody waits");
    let kept = usize::try_from(queue.waiting()).unwrap() - 1;
    // The writer may have taken the first line already.
    assert!((limits::LOG_LINES_MAX - 1..=limits::LOG_LINES_MAX).contains(&kept), "{kept}");
    // From here on it reads again.
    drop(hold);
    queue.wait(sys::now().plus_ms(5000));
    say(&queue, "last");
    drop(Outlet(queue));
    let text = text(&page);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[kept]), (kept + 3, "first", &*(kept - 1).to_string()));
    let lost = format!("lines={}", more - kept);
    assert!(lines[kept + 1].contains("WARN") && lines[kept + 1].ends_with(&lost), "{lines:?}");
    assert_eq!(lines[kept + 2], "last");
}

#[test]
fn what_waits_is_bounded_in_bytes_too_and_the_end_tells_of_the_rest() {
    let log = Log { format: LogFormat::Json, ..LOOK };
    let (queue, hold, page) = slow(&log);
    let long = "x".repeat(limits::LOG_BYTES_MAX / 2);
    (0..3).for_each(|_| say(&queue, &long));
    drop(hold);
    drop(Outlet(queue));
    let text = text(&page);
    let last = text.lines().last().unwrap();
    let line: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!((text.lines().count(), &line["lines"]), (2, &2.into()), "{last}");
}

#[test]
fn a_write_that_fails_costs_its_line_and_tears_no_other() {
    let page = Page::default();
    let disk = Disk { takes: [0, 0, 0].into(), page: page.clone() };
    let queue = Queue::start(disk, &LOOK, false).unwrap();
    (0..4).for_each(|line| say(&queue, &line.to_string()));
    drop(Outlet(queue));
    let all = text(&page);
    let lines: Vec<&str> = all.lines().collect();
    assert!(lines.len() == 2 && lines[0].ends_with("lines=3") && lines[1] == "3", "{all}");

    let disk = Disk { takes: [4, 0].into(), page: page.clone() };
    let queue = Queue::start(disk, &LOOK, false).unwrap();
    ["half a line", "whole"].iter().for_each(|line| say(&queue, line));
    drop(Outlet(queue));
    let all = text(&page);
    let lines: Vec<&str> = all.lines().collect();
    assert!(lines[0] == "half" && lines[1].ends_with("lines=1") && lines[2] == "whole", "{all}");
}

#[test]
fn a_panic_is_a_line_as_others_are() {
    let page = Page::default();
    let disk = Disk { takes: VecDeque::new(), page: page.clone() };
    let queue = Queue::start(disk, &Log { format: LogFormat::Json, ..LOOK }, false).unwrap();
    let panic = Panic {
        thread: Some("uring-0".into()),
        at: Some("src/a.rs:1:2".into()),
        why: "no such slot".into(),
        backtrace: None,
    };
    queue.leave(What::Panic(Box::new(panic)));
    drop(Outlet(queue));
    let line: serde_json::Value = serde_json::from_str(&text(&page)).unwrap();
    let said = ["level", "thread", "at", "why"].map(|field| line[field].as_str().unwrap_or(""));
    assert_eq!(said, ["ERROR", "uring-0", "src/a.rs:1:2", "no such slot"], "{line}");
}

#[test]
fn a_reader_that_is_gone_for_good_holds_up_the_end_for_no_longer_than_its_bound() {
    let (queue, hold, page) = slow(&LOOK);
    say(&queue, "never read");
    let began = sys::now();
    (0..limits::LOG_LINES_MAX).for_each(|line| say(&queue, &line.to_string()));
    let outlet = Outlet(queue);
    outlet.last_words(&["in vain".into(), "as well".into()]);
    drop(outlet);
    let took_ms = sys::now().since_ns(began) / 1_000_000;
    assert!((limits::LOG_LAST_MS_MAX..limits::LOG_LAST_MS_MAX + 500).contains(&took_ms));
    assert_eq!(text(&page), "");
    drop(hold);
}
