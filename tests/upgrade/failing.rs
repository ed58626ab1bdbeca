//! New processes that fail, each at another step: the old one goes on, and says why.

use crate::line::{Line, Stream};
use crate::on_each_path;
use crate::world::net::{Backend, Live, connect, echo, noise, try_echo};
use crate::world::program::Ran;
use crate::world::proxy::Recipe;
use crate::world::{pause, until};
use ringway::config::DataPath;
use ringway::control::handover::{Channel, Lost};
use ringway::wire::handover::Message;
use std::net::TcpStream;
use std::process::Command;

on_each_path!(
    who_fails_before_it_is_ready_changes_nothing,
    who_dies_with_an_unanswered_batch_takes_nothing_along,
    who_dies_after_a_batch_takes_only_that_along_and_the_log_names_it,
    a_second_upgrade_at_the_same_time_is_refused,
);

/// Names what the stand-in does, in its environment.
const STAND_IN: &str = "RINGWAY_TEST_STAND_IN";

fn line(path: DataPath, backend: &Backend) -> Line {
    Line::start(Recipe::new(path, &[backend.at]).shards(2).more("[log]\nsession_every = 0"))
}

/// Puts this test program in the new binary's place, as [`stand_in`].
fn install(line: &Line, what: &str) {
    let this = std::env::current_exe().unwrap();
    let run = "--exact failing::stand_in --ignored --nocapture";
    line.install(&format!("{STAND_IN}={what} exec {} {run}", this.display()));
}

fn refused(ran: &Ran, why: &str) {
    assert_eq!(ran.code, Some(71), "{ran:?}");
    assert!(ran.err.starts_with("ringway: not upgraded: ") && ran.err.contains(why), "{ran:?}");
}

/// The first process serves, and a good binary takes its place.
fn expect_unharmed(line: Line, failures: f64) {
    assert_eq!((line.pid(), line.generation()), (line.process.id(), 1));
    assert_eq!(line.metric("ringway_upgrades_total", "failed"), failures);
    let session = connect(line.at);
    echo(&session, b"still there");
    line.reinstall();
    line.upgrade();
    echo(&session, b"carried");
    assert_eq!(line.metric("ringway_upgrades_total", "failed"), failures);
    assert_eq!(line.metric("ringway_upgrades_total", "done"), 1.0);
}

fn who_fails_before_it_is_ready_changes_nothing(path: DataPath) {
    let backend = Backend::echo();
    let line = line(path, &backend);
    let live = Live::start(line.at, 20, 3);
    let stream = Stream::start(line.at, 50);

    let good = std::fs::read_to_string(&line.config).unwrap();
    let bad = good.replace("stable = \"v1\"", "stable = \"v9\"\ncanary_percent = 101");
    std::fs::write(&line.config, bad).unwrap();
    crate::line::kill(line.process.id(), "USR2");
    line.process.until_said("upgrade failed, nothing was changed");
    for key in ["listeners.orders.stable", "listeners.orders.canary_percent", "2 faults"] {
        let said = line.process.said();
        let told = said.lines().any(|l| l.contains("upgrade failed") && l.contains(key));
        assert!(told, "{key}: {said}");
    }
    std::fs::write(&line.config, good).unwrap();

    line.install("exit 3");
    refused(&line.ask(), "exit status: 3");
    line.install("exec no-such-program-anywhere");
    refused(&line.ask(), "exit status: 127");
    std::fs::remove_file(&line.program).unwrap();
    refused(&line.ask(), "cannot be started");
    let head = r"RWHO\007\000\000\000\002\000\000\000\000\000\000\000{}";
    line.install(&format!("printf '{head}' >&0; exec sleep 20"));
    refused(&line.ask(), "version 7 of the hand-over, this process version 1");
    line.install("echo 'Ringway is ready, honestly' >&0; exec sleep 20");
    refused(&line.ask(), "does not speak Ringway's hand-over");
    line.install("exec sleep 20");
    refused(&line.ask(), "did not answer within 5000 ms");
    // A script that stays around the new process, and ends before it.
    let run = "\"$@\" <&0 & sleep 0.05; exit 5";
    line.install(&format!("set -- {} \"$@\"; {run}", crate::world::program::RINGWAY));
    refused(&line.ask(), "exit status: 5");
    install(&line, "silent_after_ready");
    refused(&line.ask(), "did not answer within 3000 ms");

    assert!(live.stop() > 200);
    assert!(stream.stop() > 50);
    expect_unharmed(line, 9.0);
}

fn who_dies_with_an_unanswered_batch_takes_nothing_along(path: DataPath) {
    let backend = Backend::echo();
    let line = line(path, &backend);
    let live = Live::start(line.at, 100, 5);
    let stream = Stream::start(line.at, 50);
    for what in ["killed_with_a_batch", "killed_with_a_batch", "silent_with_a_batch"] {
        install(&line, what);
        let ran = line.ask();
        assert_eq!(ran.code, Some(0), "it failed after the answer: {ran:?}");
        until(10_000, "the first answers again", || line.status().is_some());
        let said = line.process.said();
        assert!(said.contains("lost=[]"), "{said}");
        pause(100);
    }
    assert!(live.stop() > 200);
    // One of them waited in the queue for as long as the last was given.
    assert!(stream.stop() > 10);
    expect_unharmed(line, 3.0);
}

fn who_dies_after_a_batch_takes_only_that_along_and_the_log_names_it(path: DataPath) {
    let backend = Backend::echo();
    let line = line(path, &backend);
    let clients: Vec<TcpStream> = (0..150).map(|_| connect(line.at)).collect();
    clients.iter().enumerate().for_each(|(i, client)| echo(client, &noise(i as u64, 100)));
    install(&line, "killed_after_a_batch");
    assert_eq!(line.ask().code, Some(0));
    until(10_000, "the first answers again", || line.status().is_some());
    line.process.until_said("those that had been handed over went with the new process");
    let said = line.process.said();
    let (_, lost) = said.split_once("lost=[").expect("the log names them");
    let lost: Vec<&str> = lost.split(']').next().unwrap().split(", ").collect();
    let ended = clients
        .iter()
        .enumerate()
        .filter(|(i, client)| try_echo(client, &noise(*i as u64, 2000)).is_err());
    assert_eq!(ended.count(), lost.len(), "{lost:?}");
    assert!((1..=64).contains(&lost.len()), "one batch: {lost:?}");
    expect_unharmed(line, 1.0);
}

fn a_second_upgrade_at_the_same_time_is_refused(path: DataPath) {
    let backend = Backend::echo();
    let line = line(path, &backend);
    line.install("sleep 1; exit 4");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| line.ask());
        line.process.until_said("the new process was started");
        refused(&line.ask(), "an upgrade is under way");
        refused(&first.join().unwrap(), "exit status: 4");
    });
    expect_unharmed(line, 2.0);
}

/// Ten of each kind in a row, under load.
fn ten_of_each(path: DataPath) {
    let backend = Backend::echo();
    let line = line(path, &backend);
    let live = Live::start(line.at, 100, 5);
    let stream = Stream::start(line.at, 200);
    let good = std::fs::read_to_string(&line.config).unwrap();
    let bad = good.replace("stable = \"v1\"", "stable = \"v9\"");
    let is_told = |l: &&str| l.contains("upgrade failed") && l.contains("orders.stable");
    let told = || line.process.said().lines().filter(is_told).count();
    for _ in 0..10 {
        line.reinstall();
        std::fs::write(&line.config, &bad).unwrap();
        let before = told();
        // By the signal: the command reads the config itself, and asks nobody then.
        crate::line::kill(line.process.id(), "USR2");
        until(5000, "the fault is told", || told() > before);
        std::fs::write(&line.config, &good).unwrap();

        line.install("exit 3");
        refused(&line.ask(), "exit status: 3");

        install(&line, "killed_with_a_batch");
        let ran = line.ask();
        assert_eq!(ran.code, Some(0), "it failed after the answer: {ran:?}");
        until(10_000, "the first answers again", || line.status().is_some());

        let head = r"RWHO\007\000\000\000\002\000\000\000\000\000\000\000{}";
        line.install(&format!("printf '{head}' >&0; exec sleep 20"));
        refused(&line.ask(), "version 7 of the hand-over, this process version 1");
    }
    let said = line.process.said();
    assert_eq!(said.matches("lost=[").count(), said.matches("lost=[]").count(), "{said}");
    let (echoes, new) = (live.stop(), stream.stop());
    println!(
        "{}: forty failed upgrades: {echoes} messages of 100 sessions checked, none lost; {new} new connections, none \
         refused",
        path.label()
    );
    expect_unharmed(line, 40.0);
}

#[test]
#[ignore = "a minute: cargo test --release --test upgrade -- --ignored --nocapture --test-threads 1 ten_failing"]
fn ten_failing_upgrades_of_each_kind_on_uring() {
    if crate::world::has_uring() {
        ten_of_each(DataPath::Uring);
    }
}

#[test]
#[ignore = "a minute: cargo test --release --test upgrade -- --ignored --nocapture --test-threads 1 ten_failing"]
fn ten_failing_upgrades_of_each_kind_on_epoll() {
    ten_of_each(DataPath::Epoll);
}

/// What a new binary that is broken does.
#[test]
#[ignore = "no test: it stands in for a new binary, in a process that other tests start"]
fn stand_in() {
    let Ok(what) = std::env::var(STAND_IN) else { return };
    let (channel, _) = Channel::at_stdin().unwrap();
    let hear = || channel.hear(Some(5000)).unwrap();
    let (Message::Hello(_), _) = hear() else { panic!("no hello") };
    channel.say(&Message::Ready { version: "broken".into(), edits: String::new() }, &[]).unwrap();
    let mut names = Vec::new();
    let mut sockets = Vec::new();
    while let (Message::Sockets { name, .. }, more) = hear() {
        names.push(name);
        sockets.extend(more);
    }
    let forever = || -> ! {
        pause(30_000);
        panic!("nobody ended it");
    };
    if what == "silent_after_ready" {
        forever();
    }
    channel.say(&Message::Accepting(names), &[]).unwrap();
    loop {
        let (message, ends) = match channel.hear(Some(5000)) {
            Ok(heard) => heard,
            Err(Lost::Gone) => return,
            Err(why) => panic!("{why}"),
        };
        let Message::Sessions(sessions) = message else { continue };
        assert_eq!(ends.len(), 2 * sessions.len());
        match what.as_str() {
            "silent_with_a_batch" => forever(),
            "killed_after_a_batch" => {
                channel.say(&Message::Taken { refused: vec![], why: String::new() }, &[]).unwrap();
            }
            _ => {}
        }
        let this = std::process::id().to_string();
        Command::new("kill").args(["-KILL", &this]).status().unwrap();
    }
}
