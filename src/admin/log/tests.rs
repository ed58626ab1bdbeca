use super::*;
use crate::admin::harness::{self, written};
use crate::event::{Arm, EndReason, First};
use std::sync::mpsc;

fn ended(session: u64) -> Ended {
    Ended {
        session,
        client: Some("10.0.0.7:4242".parse().unwrap()),
        listener: "fix".into(),
        backend: Some(("stable".into(), "a".into(), "10.0.1.1:9000".parse().unwrap())),
        backend_local: Some("10.0.0.9:50123".parse().unwrap()),
        arm: Arm::Stable,
        up_bytes: 10,
        down_bytes: 20,
        attempts: 2,
        connect_ns: Some(123_456),
        opened_ns: Some(1_000_123_456),
        duration_ns: 1_234_567_890,
        first: Some(First::Backend),
        why: EndReason::Finished,
    }
}

#[test]
fn a_session_is_one_json_object_with_all_its_fields() {
    let text = written(LogFormat::Json, LogLevel::Info, || write(&ended(7), false));
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (field, expected) in [
        ("session", serde_json::json!(7)),
        ("client", "10.0.0.7:4242".into()),
        ("listener", "fix".into()),
        ("pool", "stable".into()),
        ("backend", "a".into()),
        ("backend_address", "10.0.1.1:9000".into()),
        ("backend_local", "10.0.0.9:50123".into()),
        ("arm", "stable".into()),
        ("up_bytes", 10.into()),
        ("down_bytes", 20.into()),
        ("attempts", 2.into()),
        ("connect_us", 123.into()),
        ("opened_us", 1_000_123.into()),
        ("first", "backend".into()),
        ("duration_ms", serde_json::json!(1234.567)),
        ("why", "finished".into()),
        ("level", "INFO".into()),
    ] {
        assert_eq!(line[field], expected, "{field}");
    }
}

#[test]
fn what_a_session_never_had_is_left_out() {
    let early = Ended {
        backend: None,
        backend_local: None,
        connect_ns: None,
        opened_ns: None,
        first: None,
        why: EndReason::ClientLeft,
        ..ended(1)
    };
    let text = written(LogFormat::Human, LogLevel::Info, || write(&early, false));
    assert!(text.contains("session ended session=1 client=10.0.0.7:4242"), "{text}");
    assert!(text.contains("client_left") && !text.contains("pool"), "{text}");
    assert!(!text.contains("backend") && !text.contains("_us="), "{text}");
    assert!(!text.contains("first"), "{text}");
}

#[test]
fn the_level_holds_lines_back() {
    assert_eq!(written(LogFormat::Human, LogLevel::Warn, || write(&ended(1), false)), "");
}

#[test]
fn all_that_was_sent_is_written_before_the_end() {
    let board = harness::board(0);
    let (send, journal) = mpsc::sync_channel(8);
    let log = SessionLog::start(journal, Arc::clone(&board)).unwrap();
    (0..100).for_each(|session| send.send(ended(session)).unwrap());
    drop(send);
    log.join();
    assert_eq!(board.journal_written.load(Relaxed), 100);
}

#[test]
fn every_nth_session_is_written_and_a_reload_changes_n() {
    let board = harness::board(0);
    let (send, journal) = mpsc::sync_channel(100);
    let mut writer =
        Writer { journal, board: Arc::clone(&board), seen: 0, faults: Faults::default() };
    for (every, expected) in [(10, 3), (0, 3), (1, 33)] {
        let mut config = harness::config();
        config.log.session_every = every;
        board.snapshot.store(Arc::new(crate::policy::snapshot::Snapshot::new(config, None)));
        (0..30).for_each(|session| send.try_send(ended(session)).unwrap());
        let first = writer.wait().expect("one was sent");
        writer.write(&first);
        assert_eq!(board.journal_written.load(Relaxed), expected, "1 of {every}");
    }
    drop(send);
    assert!(writer.wait().is_none());
}

#[test]
fn what_was_left_out_is_told_though_nothing_follows() {
    let (send, journal) = mpsc::sync_channel(100);
    let (left_out, began) = (3, sys::now());
    let faults = Faults { began, written: 0, left_out };
    let mut writer = Writer { journal, board: harness::board(0), seen: 0, faults };
    let later = std::thread::spawn(move || {
        std::thread::park_timeout(Duration::from_millis(1500));
        drop(send);
    });
    let text = written(LogFormat::Human, LogLevel::Warn, || assert!(writer.wait().is_none()));
    later.join().unwrap();
    assert!(text.contains("sessions=3"), "{text}");
}

#[test]
fn faults_are_warnings_and_a_flood_of_them_is_bounded() {
    let board = harness::board(0);
    let (send, journal) = mpsc::sync_channel(100);
    let mut writer = Writer { journal, board, seen: 0, faults: Faults::default() };
    let refused = || Ended { why: EndReason::ConnectRefused, ..ended(1) };
    let text = written(LogFormat::Human, LogLevel::Warn, || {
        (0..30).for_each(|_| send.send(refused()).unwrap());
        (0..30).for_each(|session| send.send(ended(session)).unwrap());
        let first = writer.wait().expect("one was sent");
        writer.write(&first);
        assert_eq!(writer.faults.left_out, 10);
        writer.faults.look(writer.faults.began.plus_ms(1000));
        send.send(refused()).unwrap();
        let first = writer.wait().expect("one was sent");
        writer.write(&first);
    });
    let lines: Vec<&str> = text.lines().collect();
    let is_session = |line: &&&str| line.contains("WARN") && line.contains("connect_refused");
    assert_eq!((lines.len(), lines.iter().filter(is_session).count()), (22, 21), "{text}");
    assert!(lines[20].contains("sessions=10"), "{}", lines[20]);
}

#[test]
fn at_level_info_every_session_has_its_line_also_in_a_flood_of_faults() {
    let (send, journal) = mpsc::sync_channel(100);
    let mut writer =
        Writer { journal, board: harness::board(0), seen: 0, faults: Faults::default() };
    let text = written(LogFormat::Human, LogLevel::Info, || {
        let gone = |session| Ended { why: EndReason::BackendVanished, ..ended(session) };
        (0..30).for_each(|session| send.send(gone(session)).unwrap());
        let first = writer.wait().expect("one was sent");
        writer.write(&first);
    });
    assert_eq!(text.lines().filter(|line| line.contains("backend_vanished")).count(), 30, "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("WARN")).count(), 20, "{text}");
}
