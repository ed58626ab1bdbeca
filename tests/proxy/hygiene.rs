//! What sessions took is given back when they end.

use crate::world::net::{Backend, Pair, Stage, assert_same, free_address, noise, ready, try_echo};
use crate::world::program::{Program, RINGWAY, descriptors, resident_kib};
use crate::world::proxy::Recipe;
use crate::world::{has_program, has_uring, until};
use ringway::config::DataPath;
use ringway::driver::sys;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

crate::on_each_path!(
    a_thousand_sessions,
    many_listeners_leave_descriptors_for_each_session,
    sockets_of_shards_that_are_gone_leave_descriptors_for_each_session,
);

const MESSAGES: u64 = 100;

fn a_thousand_sessions(path: DataPath) {
    sessions_leave_nothing_behind(path, 1000);
}

/// Each of four shards has a socket of each of forty listeners: more than half of 600 descriptors with what they need.
fn many_listeners_leave_descriptors_for_each_session(path: DataPath) {
    if !has_program("prlimit") {
        return;
    }
    let backend = Backend::echo();
    let (program, _) = with_forty_listeners(path, &backend, 4, 600);
    expect_a_place_or_none(&program, 250);
}

/// Eight shards have 320 sockets, which stay open when one shard is left: more than what is kept free for others.
fn sockets_of_shards_that_are_gone_leave_descriptors_for_each_session(path: DataPath) {
    if !has_program("prlimit") {
        return;
    }
    let backend = Backend::echo();
    let (program, recipe) = with_forty_listeners(path, &backend, 8, 950);
    let granted = || program.metric("ringway_sessions_max", "");
    let before = granted();
    std::fs::write(&program.file, recipe.shards(1).text()).unwrap();
    program.process.signal("HUP");
    until(5000, "one shard is left", || granted() > before);
    expect_a_place_or_none(&program, 400);
}

/// Ringway with so many shards, each of which has a socket of each of forty listeners, and so many descriptors.
fn with_forty_listeners(
    path: DataPath,
    backend: &Backend,
    shards: usize,
    descriptors: u32,
) -> (Program, Recipe) {
    let more = (1..40).fold(String::new(), |tables, at| {
        let bind = free_address();
        tables + &format!("[listeners.more-{at}]\nbind = \"{bind}\"\nstable = \"v1\"\n")
    });
    let mut command = Command::new("prlimit");
    command.args([&format!("--nofile={descriptors}:{descriptors}"), RINGWAY]);
    let recipe = Recipe::new(path, &[backend.at]).shards(shards).more(&more);
    Program::start_with(recipe, command)
}

/// Each of so many clients is served or turned away: none is let in for whom no descriptor is left.
fn expect_a_place_or_none(program: &Program, offered: usize) {
    // Some are turned away before connect(2) looks.
    let came = (0..offered).filter_map(|_| TcpStream::connect(program.at).ok());
    let clients: Vec<_> = came.map(ready).collect();
    let served = clients.iter().filter(|client| try_echo(client, b"a place").is_ok()).count();
    let refused = program.metric("ringway_refused_total", "why=\"full\"");
    assert_eq!((served > 20, served as f64 + refused), (true, offered as f64), "{served} served");
    assert_eq!(program.metric("ringway_sessions_ended_total", "no_descriptors"), 0.0);
}

#[test]
#[ignore = "takes minutes: cargo test --release --test proxy -- --ignored five_thousand_sessions"]
fn five_thousand_sessions() {
    sessions_leave_nothing_behind(DataPath::Epoll, 5000);
    if has_uring() {
        sessions_leave_nothing_behind(DataPath::Uring, 5000);
    }
}

/// Opens them all, moves messages through each, and ends them: every other one from the backend's side.
fn one_round(stage: &Stage, program: &Program, sessions: u64) {
    let mut pairs: Vec<Pair> = (0..sessions).map(|_| stage.open(program.at)).collect();
    for turn in 0..MESSAGES {
        let message = |session: usize| noise(session as u64 * MESSAGES + turn, 60);
        for (session, pair) in pairs.iter_mut().enumerate() {
            pair.client.write_all(&message(session)).unwrap();
        }
        let mut got = [0; 60];
        for pair in &mut pairs {
            pair.backend.read_exact(&mut got).unwrap();
            pair.backend.write_all(&got).unwrap();
        }
        for (session, pair) in pairs.iter_mut().enumerate() {
            pair.client.read_exact(&mut got).unwrap();
            assert_same(&got, &message(session));
        }
    }
    assert_eq!(program.metric("ringway_shard_sessions", ""), sessions as f64);
    for (session, Pair { client, backend }) in pairs.into_iter().enumerate() {
        let (first, second) = if session % 2 == 0 { (client, backend) } else { (backend, client) };
        drop(first);
        drop(second);
    }
    until(5000, "all sessions end", || program.metric("ringway_shard_sessions", "") == 0.0);
}

fn sessions_leave_nothing_behind(path: DataPath, sessions: u64) {
    let limit = sys::raise_descriptor_limit();
    assert!(limit > sessions * 3, "the limit of open files is {limit}");
    let stage = Stage::new();
    let recipe = Recipe::new(path, &[stage.at()]).more("[log]\nsession_every = 0");
    let program = Program::start(recipe);
    let id = program.process.id();
    let idle = descriptors(id);
    one_round(&stage, &program, sessions);
    // Shards look after themselves once a second.
    let settled = || {
        let buffers = program.metric("ringway_buffers", "");
        buffers > 0.0 && program.metric("ringway_buffers_free", "") == buffers
    };
    until(3000, "all buffers are free", settled);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    // Its answers to this test linger for a moment.
    until(3000, "descriptors are as before the first round", || descriptors(id) <= idle);
    let before_kib = resident_kib(id);
    one_round(&stage, &program, sessions);
    until(3000, "all buffers are free", settled);
    until(3000, "memory is as it was", || resident_kib(id) <= before_kib + 2048);
    until(3000, "descriptors are as before the second round", || descriptors(id) <= idle);
    assert_eq!(program.metric("ringway_sessions", ""), 0.0);
    for metric in ["ringway_watchdog_total", "ringway_stale_completions_total"] {
        assert_eq!(program.metric(metric, ""), 0.0, "{metric}");
    }
    let workers: Vec<_> =
        program.threads().into_iter().filter(|(_, name)| name.starts_with("iou-wrk")).collect();
    assert_eq!(workers, []);
}
