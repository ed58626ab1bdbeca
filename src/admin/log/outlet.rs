//! The one thread that writes to stderr: who has a line leaves it in a queue, and waits for nobody who reads.
//!
//! A line that finds no room is lost and counted, and so is one that cannot be written. The next that gets through
//! comes after one that says how many were lost.

use super::lines;
use crate::config::{Log, LogLevel, limits};
use crate::driver::sys;
use crate::tally::LOG_LOST;
use crate::time::Time;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, ErrorKind, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;
use tracing::Dispatch;
use tracing_subscriber::fmt::MakeWriter;

/// The queue of this process, where its lines go to stderr.
pub(super) static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Where lines are left. Clones lead to the same queue.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    entries: SyncSender<Entry>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Entries that were left, and those of them that are dealt with.
    left: AtomicU64,
    done: AtomicU64,
    /// Bytes of those that wait.
    bytes: AtomicUsize,
    /// Lines that found no room, since one that did.
    lost: AtomicU64,
    /// Until when the last lines may be written, once the process is at its end.
    end_by: OnceLock<Time>,
}

#[derive(Debug)]
struct Entry {
    what: What,
    bytes: usize,
    /// Lines before it that found no room.
    lost: u64,
}

#[derive(Debug)]
enum What {
    Line(Vec<u8>),
    /// Becomes a line on the writer's thread: the one that panics may be amid a line of its own.
    Panic(Box<Panic>),
}

#[derive(Debug)]
struct Panic {
    thread: Option<String>,
    at: Option<String>,
    why: String,
    backtrace: Option<String>,
}

impl Queue {
    /// Starts the thread that writes to `to`, and tells of what was lost as `log` says lines look.
    pub(super) fn start(
        to: impl Write + Send + 'static,
        log: &Log,
        colours: bool,
    ) -> io::Result<Self> {
        let (entries, left) = mpsc::sync_channel(limits::LOG_LINES_MAX);
        let state = Arc::<State>::default();
        let page = Page::default();
        // What is lost is told also where warnings are not.
        let log = Log { level: LogLevel::Warn, ..log.clone() };
        let own = Dispatch::new(lines(&log, colours, page.clone()));
        let mut writer =
            Writer { to, state: Arc::clone(&state), own, page, lost: 0, is_torn: false };
        thread::Builder::new()
            .name(WRITER.into())
            .spawn(move || left.into_iter().for_each(|entry| writer.take(entry)))?;
        Ok(Self { entries, state })
    }

    /// Has panics of all threads leave their word here.
    pub(super) fn follow_panics(&self) {
        let queue = self.clone();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some(WRITER) {
                return before(info);
            }
            queue.leave(What::Panic(Box::new(Panic::of(info))));
            queue.wait(sys::now().plus_ms(limits::LOG_PANIC_MS_MAX));
        }));
    }

    /// Leaves something to be written, or counts it as lost.
    fn leave(&self, what: What) {
        let state = &self.state;
        let bytes = what.bytes();
        let waiting = state.bytes.fetch_add(bytes, SeqCst) + bytes;
        state.left.fetch_add(1, SeqCst);
        let lost = state.lost.swap(0, SeqCst);
        let has_room = waiting <= limits::LOG_BYTES_MAX;
        if !(has_room && self.entries.try_send(Entry { what, bytes, lost }).is_ok()) {
            state.bytes.fetch_sub(bytes, SeqCst);
            state.left.fetch_sub(1, SeqCst);
            state.lost.fetch_add(lost + 1, SeqCst);
            LOG_LOST.full.fetch_add(1, Relaxed);
        }
    }

    /// The process is at its end: until when what waits may be written.
    pub(super) fn end(&self) -> Time {
        *self.state.end_by.get_or_init(|| sys::now().plus_ms(limits::LOG_LAST_MS_MAX))
    }

    /// Waits until half of the room is free, so that who has many lines leaves some of it to others; at the end of the
    /// process no longer than that may take.
    pub(super) fn wait_for_room(&self) {
        let State { bytes, end_by, .. } = &*self.state;
        let is_full = || {
            self.waiting() > limits::LOG_LINES_MAX as u64 / 2
                || bytes.load(SeqCst) > limits::LOG_BYTES_MAX / 2
        };
        while is_full() && end_by.get().is_none_or(|by| sys::now() < *by) {
            rest();
        }
    }

    /// Waits until all is written, but no longer than `until`.
    fn wait(&self, until: Time) {
        while self.waiting() > 0 && sys::now() < until {
            rest();
        }
    }

    fn waiting(&self) -> u64 {
        let done = self.state.done.load(SeqCst);
        self.state.left.load(SeqCst).saturating_sub(done)
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

/// Takes a whole line at once, which is how they come.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.leave(What::Line(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What keeps the end of the process until the last lines are written, for [`limits::LOG_LAST_MS_MAX`] at most.
#[derive(Debug)]
pub struct Outlet(pub(super) Queue);

impl Outlet {
    /// The last that is to be said before the process ends, as it is.
    pub fn last_words(&self, lines: &[String]) {
        self.0.end();
        for line in lines {
            self.0.wait_for_room();
            self.0.leave(What::Line(format!("{line}\n").into_bytes()));
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let until = self.0.end();
        self.0.wait(until);
        if self.0.state.lost.load(SeqCst) > 0 {
            // No line of its own, but what comes before the next.
            self.0.leave(What::Line(Vec::new()));
            self.0.wait(until);
        }
    }
}

impl What {
    fn bytes(&self) -> usize {
        match self {
            Self::Line(line) => line.len(),
            Self::Panic(panic) => panic.why.len() + panic.backtrace.as_ref().map_or(0, String::len),
        }
    }
}

impl Panic {
    fn of(info: &PanicHookInfo<'_>) -> Self {
        let backtrace = Backtrace::capture();
        let has_backtrace = backtrace.status() == BacktraceStatus::Captured;
        Self {
            thread: thread::current().name().map(str::to_owned),
            at: info.location().map(ToString::to_string),
            why: info.payload_as_str().unwrap_or("nothing").to_owned(),
            backtrace: has_backtrace.then(|| backtrace.to_string()),
        }
    }

    fn tell(&self) {
        let Self { thread, at, why, backtrace } = self;
        tracing::error!(
            thread,
            at,
            why,
            backtrace = backtrace.as_ref().map(tracing::field::display),
            "a thread panicked, which is a bug"
        );
    }
}

struct Writer<W> {
    to: W,
    state: Arc<State>,
    /// For lines of its own, which go to the page.
    own: Dispatch,
    page: Page,
    /// Lines that were lost since one got through.
    lost: u64,
    /// Whether only a part of the last line could be written.
    is_torn: bool,
}

impl<W: Write> Writer<W> {
    fn take(&mut self, entry: Entry) {
        self.lost += entry.lost;
        let line = match entry.what {
            What::Line(line) => line,
            What::Panic(panic) => self.of_its_own(|| panic.tell()),
        };
        if self.tell_lost().and_then(|()| self.write(&line)).is_err() {
            self.lost += 1;
            LOG_LOST.failed.fetch_add(1, Relaxed);
        }
        self.state.bytes.fetch_sub(entry.bytes, SeqCst);
        self.state.done.fetch_add(1, SeqCst);
    }

    fn tell_lost(&mut self) -> io::Result<()> {
        let lines = self.lost;
        if lines > 0 {
            let said = self.of_its_own(|| {
                tracing::warn!(
                    lines,
                    "lines of the log were lost here: its reader was too slow, or it could not be written"
                );
            });
            self.write(&said)?;
            self.lost = 0;
        }
        Ok(())
    }

    fn of_its_own(&self, tell: impl FnOnce()) -> Vec<u8> {
        tracing::dispatcher::with_default(&self.own, tell);
        self.page.take()
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn && !line.is_empty() {
            self.put(b"\n")?;
        }
        self.put(line)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest_of_it = bytes;
        while !rest_of_it.is_empty() {
            match self.to.write(rest_of_it) {
                Ok(n) if n > 0 => rest_of_it = &rest_of_it[n..],
                Ok(_) => return Err(ErrorKind::WriteZero.into()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Somebody who has the same pipe or terminal made it non-blocking.
                Err(e) if e.kind() == ErrorKind::WouldBlock => rest(),
                Err(e) => {
                    self.is_torn |= rest_of_it.len() < bytes.len();
                    return Err(e);
                }
            }
        }
        self.is_torn = false;
        Ok(())
    }
}

/// Takes the lines of one thread, until they are taken from it.
#[derive(Debug, Clone, Default)]
pub(in crate::admin) struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    pub(in crate::admin) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<'a> MakeWriter<'a> for Page {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "the writer's own thread, or one that is at its end")]
fn rest() {
    thread::sleep(Duration::from_millis(limits::LOG_LOOK_MS));
}

/// The name of the thread that writes.
const WRITER: &str = "ringway-stderr";

#[cfg(test)]
mod tests;
