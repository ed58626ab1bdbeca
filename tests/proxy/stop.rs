//! The end: clients are told, sessions are let end, and nothing hangs.

use crate::world::net::{Backend, End, Live, connect, echo, read_all, ready, try_echo};
use crate::world::program::Program;
use crate::world::proxy::Recipe;
use crate::world::{assert_took, pause, until};
use ringway::config::DataPath;
use ringway::control::Outcome;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

crate::on_each_path!(
    clients_are_accepted_while_grace_lasts_and_sessions_end_by_themselves,
    the_drain_deadline_ends_the_rest,
    a_second_signal_ends_everything_now,
    a_client_is_served_or_refused_never_reset,
);

fn start(path: DataPath, backend: &Backend, stop: &str) -> Program {
    Program::start(Recipe::new(path, &[backend.at]).shards(2).more(&format!("[stop]\n{stop}")))
}

fn clients_are_accepted_while_grace_lasts_and_sessions_end_by_themselves(path: DataPath) {
    let backend = Backend::echo();
    let mut program = start(path, &backend, "grace_ms = 800");
    let old = connect(program.at);
    echo(&old, b"before");
    let began = Instant::now();
    program.process.signal("TERM");
    until(500, "it is not ready", || program.get("/readyz").0 == 503);
    assert_eq!(program.get("/healthz").0, 200);
    let late = connect(program.at);
    echo(&late, b"accepted during grace");
    until(2000, "it is refused", || TcpStream::connect(program.at).is_err());
    assert_took(began, 790, 2000);
    pause(100);
    echo(&old, b"still served");
    drop(late);
    pause(100);
    echo(&old, b"the last");
    let began = Instant::now();
    drop(old);
    assert_eq!(program.process.wait(2000).code(), Some(0));
    assert_took(began, 0, 300);
    let said = program.process.said();
    assert!(said.contains("sessions=2 ended_by_themselves=2 cut=0"), "{said}");
}

fn the_drain_deadline_ends_the_rest(path: DataPath) {
    let backend = Backend::echo();
    let mut program = start(path, &backend, "drain_ms = 500");
    let sessions: Vec<_> = (0..5).map(|_| connect(program.at)).collect();
    sessions.iter().for_each(|client| echo(client, b"before"));
    let began = Instant::now();
    program.process.signal("TERM");
    until(400, "it is not ready", || program.get("/readyz").0 == 503);
    program.process.signal("HUP");
    for client in &sessions {
        assert_eq!(read_all(client), (vec![], End::Eof));
    }
    assert_took(began, 490, 1500);
    assert_eq!(program.process.wait(1000).code(), Some(0));
    let said = program.process.said();
    assert_eq!(said.matches("why=\"drained\"").count(), 5, "{said}");
    assert!(said.contains("sessions=5 ended_by_themselves=0 cut=5"), "{said}");
    let warned = |of: &str| said.lines().any(|line| line.contains("WARN") && line.contains(of));
    assert!(warned("cut=5") && warned("Ringway is stopping: the order is refused"), "{said}");
}

fn a_second_signal_ends_everything_now(path: DataPath) {
    let backend = Backend::echo();
    for stop in ["drain_ms = 60_000", "grace_ms = 60_000"] {
        let mut program = start(path, &backend, stop);
        let client = connect(program.at);
        echo(&client, b"before");
        program.process.signal("TERM");
        until(1000, "it is not ready", || program.get("/readyz").0 != 200);
        pause(100);
        echo(&client, b"one signal is patient");
        let began = Instant::now();
        program.process.signal("TERM");
        assert_eq!(read_all(&client), (vec![], End::Eof));
        assert_eq!(program.process.wait(1000).code(), Some(0));
        assert_took(began, 0, 600);
        let said = program.process.said();
        assert!(said.contains("why=\"stopped\""), "{said}");
    }
}

fn a_client_is_served_or_refused_never_reset(path: DataPath) {
    let backend = Backend::echo();
    for _ in 0..3 {
        let proxy = Recipe::new(path, &[backend.at]).shards(2).start();
        let (at, stopped) = (proxy.at, AtomicBool::new(false));
        let live = Live::start(at, 5, 5);
        // One that connects gets its echo; once one was refused, all are.
        let come = || {
            let (mut served, mut refused) = (0, false);
            while !stopped.load(Relaxed) {
                match TcpStream::connect(at) {
                    Ok(client) => {
                        assert!(!refused, "it listens again");
                        try_echo(&ready(client), b"served").expect("accepted, so served");
                        served += 1;
                    }
                    Err(_) => refused = true,
                }
                pause(5);
            }
            assert!(refused && served > 10, "{served} served, then refused: {refused}");
        };
        std::thread::scope(|s| {
            s.spawn(come);
            pause(200);
            proxy.running().stop();
            pause(200);
            stopped.store(true, Relaxed);
        });
        live.stop();
        let began = Instant::now();
        let outcome = proxy.wait();
        assert!(began.elapsed() < Duration::from_millis(1000));
        assert!(matches!(outcome, Outcome::Stopped { open: 5.., cut: 0 }), "{outcome:?}");
    }
}
