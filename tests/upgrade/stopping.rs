//! Stops in the middle of an upgrade: whichever process hears of it, both come to their end as one would.

use crate::line::{Line, kill};
use crate::on_each_path;
use crate::world::net::{Backend, BlackHole, Live, connect, echo, free_address, read_all};
use crate::world::proxy::Recipe;
use crate::world::{assert_took, pause, until};
use ringway::config::DataPath;
use std::net::TcpStream;
use std::time::Instant;

on_each_path!(
    a_stop_before_the_new_process_is_the_main_one_drains_both,
    what_does_not_end_is_cut_in_both_when_the_drain_is_over,
    a_second_stop_cuts_both_at_once,
    a_stop_of_the_new_process_takes_the_one_before_along,
    a_second_stop_of_the_new_process_cuts_both_at_once,
    a_stop_that_both_hear_of_is_one,
    a_stop_before_the_new_process_accepts_ends_that_one_alone,
);

/// A process and the next, which has all sessions but one: that one still waits for its backend to answer.
struct Upgrade {
    line: Line,
    old: u32,
    new: u32,
    opening: Option<TcpStream>,
    carried: Vec<TcpStream>,
    _backends: (Backend, BlackHole),
}

impl Upgrade {
    fn start(path: DataPath, drain_ms: u64) -> Self {
        let (backend, hole, late) = (Backend::echo(), BlackHole::new(), free_address());
        let recipe = Recipe::new(path, &[backend.at]).shards(2).more(&format!(
            "[listeners.late]\nbind = \"{late}\"\nstable = \"late\"\n\
             [pools.late]\nbackends = [\"{}\"]\n\
             [timeouts]\nconnect_ms = 60000\n[stop]\ngrace_ms = 50\ndrain_ms = {drain_ms}",
            hole.at()
        ));
        let line = Line::start(recipe);
        let old = line.process.id();
        let carried: Vec<TcpStream> = (0..20).map(|_| connect(line.at)).collect();
        carried.iter().for_each(|client| echo(client, b"before"));
        let opening = Some(connect(late));
        until(5000, "all are there", || line.metric("ringway_shard_sessions", "") == 21.0);
        assert_eq!(line.ask().code, Some(0));
        until(5000, "all have come that can", || {
            line.metric("ringway_predecessor_sessions", "") == 1.0
        });
        let new = line.pid();
        assert_ne!(old, new);
        Self { line, old, new, opening, carried, _backends: (backend, hole) }
    }

    /// The same when the new process is the main one.
    fn start_main(path: DataPath, drain_ms: u64) -> Self {
        let upgrade = Self::start(path, drain_ms);
        until(10_000, "the new process is the main one", || upgrade.said("is the main one") > 0);
        pause(50);
        upgrade
    }

    fn said(&self, what: &str) -> usize {
        self.line.process.said().matches(what).count()
    }

    fn expect_alive(&self) {
        self.carried.iter().for_each(|client| echo(client, b"carried"));
    }

    /// Both end by themselves, within `low..=high` milliseconds since then; the old one last, if `old_last`.
    fn expect_end(&mut self, since: Instant, (low, high): (u64, u64), old_last: bool) {
        let is_there = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
        };
        if old_last {
            until(high + 5000, "the old one ends", || !is_there(self.old));
            assert!(!is_there(self.new), "a manager would have ended the new one");
        }
        until(high + 5000, "both end", || !is_there(self.old) && !is_there(self.new));
        assert_took(since, low, high);
        assert!(self.line.process.wait(1000).success());
        for sign in ["lost", "accepts again", "a bug", "ERROR"] {
            assert_eq!(self.said(sign), 0, "{sign}: {}", self.line.process.said());
        }
        assert!(TcpStream::connect(self.line.at).is_err(), "nobody listens");
    }

    fn expect_cut(self) {
        for client in self.carried.iter().chain(&self.opening) {
            assert_eq!(read_all(client).0, b"");
        }
    }
}

fn a_stop_before_the_new_process_is_the_main_one_drains_both(path: DataPath) {
    let mut upgrade = Upgrade::start(path, 20_000);
    let live = Live::start(upgrade.line.at, 10, 5);
    let began = Instant::now();
    kill(upgrade.old, "TERM");
    until(5000, "both drain", || upgrade.said("waiting for sessions to end") == 2);
    assert_eq!(upgrade.said("asked to stop again"), 0);
    pause(500);
    upgrade.expect_alive();
    assert!(live.stop() > 100);
    upgrade.carried.clear();
    pause(200);
    upgrade.opening = None;
    upgrade.expect_end(began, (700, 10_000), true);
    assert_eq!(upgrade.said("cut=0"), 2, "{}", upgrade.line.process.said());
}

fn what_does_not_end_is_cut_in_both_when_the_drain_is_over(path: DataPath) {
    let mut upgrade = Upgrade::start(path, 1000);
    let began = Instant::now();
    kill(upgrade.old, "TERM");
    pause(500);
    upgrade.expect_alive();
    upgrade.expect_end(began, (1000, 3000), true);
    let said = upgrade.line.process.said();
    assert!(said.contains("cut=20") && said.contains("cut=1"), "{said}");
    upgrade.expect_cut();
}

fn a_second_stop_cuts_both_at_once(path: DataPath) {
    let mut upgrade = Upgrade::start(path, 60_000);
    kill(upgrade.old, "TERM");
    pause(500);
    upgrade.expect_alive();
    let began = Instant::now();
    kill(upgrade.old, "TERM");
    upgrade.expect_end(began, (0, 2000), true);
    assert_eq!(upgrade.said("asked to stop again"), 2);
    upgrade.expect_cut();
}

fn a_stop_of_the_new_process_takes_the_one_before_along(path: DataPath) {
    let mut upgrade = Upgrade::start_main(path, 1000);
    let began = Instant::now();
    kill(upgrade.new, "TERM");
    pause(500);
    upgrade.expect_alive();
    assert!(TcpStream::connect(upgrade.line.at).is_err(), "nobody is left waiting in a queue");
    upgrade.expect_end(began, (1000, 3000), false);
    let said = upgrade.line.process.said();
    assert!(said.contains("cut=20") && said.contains("cut=1"), "{said}");
    assert_eq!(upgrade.said("asked to stop again"), 0);
    upgrade.expect_cut();
}

fn a_second_stop_of_the_new_process_cuts_both_at_once(path: DataPath) {
    let mut upgrade = Upgrade::start_main(path, 60_000);
    kill(upgrade.new, "TERM");
    pause(500);
    upgrade.expect_alive();
    let began = Instant::now();
    kill(upgrade.new, "TERM");
    upgrade.expect_end(began, (0, 2000), false);
    assert_eq!(upgrade.said("asked to stop again"), 2);
    upgrade.expect_cut();
}

/// As Ctrl-C at a terminal has it, or a manager that signals whole groups.
fn a_stop_that_both_hear_of_is_one(path: DataPath) {
    let mut upgrade = Upgrade::start(path, 60_000);
    kill(upgrade.new, "INT");
    kill(upgrade.old, "INT");
    until(5000, "both drain", || upgrade.said("waiting for sessions to end") == 2);
    pause(200);
    upgrade.expect_alive();
    assert_eq!(upgrade.said("asked to stop again"), 0);
    let began = Instant::now();
    kill(upgrade.old, "INT");
    kill(upgrade.new, "INT");
    upgrade.expect_end(began, (0, 2000), true);
    upgrade.expect_cut();
}

fn a_stop_before_the_new_process_accepts_ends_that_one_alone(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]).more("[stop]\ngrace_ms = 0\ndrain_ms = 20000");
    let mut line = Line::start(recipe);
    let client = connect(line.at);
    echo(&client, b"before");
    line.install("exec sleep 20");
    kill(line.process.id(), "USR2");
    line.process.until_said("the new process was started");
    line.process.signal("TERM");
    line.process.until_said("nothing was changed");
    until(2000, "the new one is gone", || line.process.children().is_empty());
    line.process.until_said("waiting for sessions to end");
    echo(&client, b"and on");
    drop(client);
    assert!(line.process.wait(5000).success());
}
