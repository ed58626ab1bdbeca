//! Connections that stand ready: taken by sessions, replaced, and gone without a trace when nobody wants them.

use crate::world::net::{
    Backend, End, Stage, connect, connect_to_its_end, echo, free_address, read_all,
};
use crate::world::program::Program;
use crate::world::proxy::{Proxy, Recipe};
use crate::world::{has_program, has_uring, pause, until};
use ringway::config::DataPath;
use ringway::control::order::{Answer, Order};
use ringway::driver::Kind;
use ringway::event::EndReason;
use ringway::tally::{Count, ShardTally};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

crate::on_each_path!(
    they_are_there_before_any_client_and_a_session_takes_one,
    a_banner_is_kept_for_the_client,
    a_backend_that_closes_them_harms_no_client,
    a_backend_that_comes_late_gets_them,
    an_old_one_is_replaced,
    a_reload_makes_them_and_takes_them_away,
    a_drain_closes_them_and_lets_sessions_live,
    they_go_first_when_descriptors_run_out,
);

fn sum(proxy: &Proxy, of: impl Fn(&ShardTally) -> &Count) -> u64 {
    proxy.running().board().shards().iter().map(|shard| of(&shard.tally.shard).get()).sum()
}

/// Waits until so many are ready.
fn expect_ready(proxy: &Proxy, count: u64) {
    until(10_000, &format!("{count} are ready"), || sum(proxy, |s| &s.spares) == count);
}

fn with_spares(path: DataPath, stage: &Stage, count: u32) -> Recipe {
    Recipe::new(path, &[stage.at()]).pool(&format!("spare = {count}"))
}

/// That these connections are over, whichever way the kernel tells it.
fn expect_closed(streams: &[TcpStream]) {
    for stream in streams {
        assert_eq!(read_all(stream), (vec![], End::Reset));
    }
}

/// The one of these that a client speaks on, and the others.
fn taken(mut ends: Vec<TcpStream>) -> (TcpStream, Vec<TcpStream>) {
    let mut found = None;
    until(5000, "a client speaks on one of them", || {
        let speaks = |end: &TcpStream| {
            end.set_nonblocking(true).unwrap();
            let speaks = end.peek(&mut [0]).is_ok();
            end.set_nonblocking(false).unwrap();
            speaks
        };
        found = ends.iter().position(speaks);
        found.is_some()
    });
    (ends.remove(found.expect("just seen")), ends)
}

fn they_are_there_before_any_client_and_a_session_takes_one(path: DataPath) {
    let stage = Stage::new();
    let proxy = with_spares(path, &stage, 2).start();
    let ends = (0..2).map(|_| stage.accept()).collect();
    expect_ready(&proxy, 2);
    let mut client = connect(proxy.at);
    client.write_all(b"an order").unwrap();
    let (mut backend, mut others) = taken(ends);
    let mut order = [0; 8];
    backend.read_exact(&mut order).unwrap();
    assert_eq!(&order, b"an order");
    backend.write_all(b"answered").unwrap();
    client.read_exact(&mut order).unwrap();
    assert_eq!(&order, b"answered");
    others.push(stage.accept());
    expect_ready(&proxy, 2);
    assert_eq!((sum(&proxy, |s| &s.spares_made), sum(&proxy, |s| &s.spares_taken)), (3, 1));
    assert_eq!(proxy.running().board().sessions(), 1, "spares are no sessions");
    drop(backend);
    assert_eq!(read_all(&client), (vec![], End::Eof));
    drop(client);
    proxy.expect_ended(EndReason::Finished, 1);
    proxy.expect_empty();
    drop(proxy);
    expect_closed(&others);
}

fn a_banner_is_kept_for_the_client(path: DataPath) {
    let stage = Stage::new();
    let proxy = with_spares(path, &stage, 1).start();
    let mut greeting = stage.accept();
    greeting.write_all(b"hello").unwrap();
    // It is looked at once a second.
    pause(1500);
    expect_ready(&proxy, 1);
    let mut client = connect(proxy.at);
    let mut hello = [0; 5];
    client.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    assert_eq!((sum(&proxy, |s| &s.spares_taken), sum(&proxy, |s| &s.spares_ended)), (1, 0));
}

fn a_backend_that_closes_them_harms_no_client(path: DataPath) {
    let (closes, closed) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (may_close, count) = (Arc::clone(&closes), Arc::clone(&closed));
    let backend = Backend::serving(move |stream| {
        let mut buffer = [0; 1024];
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        loop {
            match (&stream).read(&mut buffer) {
                Ok(n) if n > 0 && (&stream).write_all(&buffer[..n]).is_ok() => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && !may_close.load(SeqCst) => {}
                _ => break,
            }
        }
        drop(stream);
        count.fetch_add(1, SeqCst);
    });
    let proxy = Recipe::new(path, &[backend.at]).pool("spare = 3").start();
    until(5000, "spares are made and closed", || closed.load(SeqCst) >= 3);
    for round in 0..5 {
        closes.store(true, SeqCst);
        pause(120);
        closes.store(false, SeqCst);
        pause(60);
        for _ in 0..4 {
            echo(&connect(proxy.at), format!("round {round}").as_bytes());
        }
    }
    assert!(sum(&proxy, |s| &s.spares_ended) >= 3);
    proxy.expect_ended(EndReason::Finished, 20);
    let made = backend.accepted();
    assert!(made < 60, "{made} connections: a backend that closes them is left alone");
    expect_ready(&proxy, 3);
    proxy.expect_empty();
}

fn a_backend_that_comes_late_gets_them(path: DataPath) {
    let at = free_address();
    let proxy = Recipe::new(path, &[at]).pool("spare = 2").start();
    assert_eq!(connect_to_its_end(proxy.at), (vec![], End::Reset), "as without spares");
    pause(600);
    let failed = sum(&proxy, |s| &s.spares_failed);
    assert!((1..=4).contains(&failed), "{failed} attempts in 600 ms");
    let backend = TcpListener::bind(at).unwrap();
    let ends: Vec<TcpStream> = (0..2).map(|_| backend.accept().unwrap().0).collect();
    expect_ready(&proxy, 2);
    let mut client = connect(proxy.at);
    client.write_all(b"!").unwrap();
    until(2000, "a session takes one", || sum(&proxy, |s| &s.spares_taken) == 1);
    drop(ends);
    assert_ne!(read_all(&client).0, b"!", "nothing is made up");
}

fn an_old_one_is_replaced(path: DataPath) {
    let stage = Stage::new();
    let proxy = with_spares(path, &stage, 1).pool("spare_idle_ms = 1000").start();
    let old = stage.accept();
    let _new = stage.accept();
    expect_closed(&[old]);
    assert!(sum(&proxy, |s| &s.spares_aged) >= 1);
    assert_eq!(sum(&proxy, |s| &s.spares_failed), 0);
}

fn a_reload_makes_them_and_takes_them_away(path: DataPath) {
    let stage = Stage::new();
    let recipe = Recipe::new(path, &[stage.at()]);
    let proxy = recipe.start();
    for _ in 0..2 {
        proxy.reload(&recipe.clone().pool("spare = 2").text());
        let ends: Vec<_> = (0..2).map(|_| stage.accept()).collect();
        expect_ready(&proxy, 2);
        proxy.reload(&recipe.text());
        expect_closed(&ends);
        expect_ready(&proxy, 0);
    }
    let pair = stage.open_and_greet(proxy.at);
    assert_eq!((sum(&proxy, |s| &s.spares_made), sum(&proxy, |s| &s.spares_taken)), (4, 0));
    drop(pair);
}

fn a_drain_closes_them_and_lets_sessions_live(path: DataPath) {
    let stage = Stage::new();
    let recipe = with_spares(path, &stage, 2).more("[stop]\ndrain_ms = 60_000");
    let mut program = Program::start(recipe);
    let ends = (0..2).map(|_| stage.accept()).collect();
    let ready = "ringway_spare_connections{";
    until(5000, "both are ready", || {
        let metrics = program.get("/metrics").1;
        metrics.lines().any(|line| line.starts_with(ready) && line.ends_with(" 2"))
    });
    let mut client = connect(program.at);
    client.write_all(b"!").unwrap();
    let (mut backend, mut others) = taken(ends);
    others.push(stage.accept());
    program.process.signal("TERM");
    expect_closed(&others);
    backend.write_all(b"still here").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    drop((client, backend));
    assert_eq!(program.process.wait(2000).code(), Some(0));
}

fn they_go_first_when_descriptors_run_out(path: DataPath) {
    const READY: usize = 64;
    if !has_program("prlimit") {
        return;
    }
    let backend = Backend::echo();
    let program = Program::start(Recipe::new(path, &[backend.at]).pool("spare = 64"));
    until(5000, "all are made", || backend.accepted() >= READY);
    pause(200);
    let id = program.process.id();
    let allow = |most: usize| {
        let limits = [format!("--pid={id}"), format!("--nofile={most}:")];
        assert!(Command::new("prlimit").args(limits).status().unwrap().success());
    };
    // No number is free below the first that is free now. All fit nevertheless, for each takes one that stands ready.
    let is_used = |number: &usize| std::fs::exists(format!("/proc/{id}/fd/{number}")).unwrap();
    allow((0..).find(|number| !is_used(number)).expect("not all"));
    let clients: Vec<_> = (0..READY / 4).map(|_| connect(program.at)).collect();
    clients.iter().for_each(|client| echo(client, b"served all the same"));
    // The admin endpoint needs descriptors as well.
    allow(512);
    let metrics = program.get("/metrics").1;
    let mut short = metrics.lines().filter(|line| line.contains("why=\"short\""));
    assert!(short.any(|line| !line.ends_with(" 0")), "{metrics}");
    clients.iter().for_each(|client| echo(client, b"and still there"));
}

#[test]
fn they_are_kept_where_sessions_begin() {
    if !has_uring() {
        return;
    }
    let backend = Backend::echo();
    let proxy = Recipe::new(DataPath::Uring, &[backend.at]).shards(2).pool("spare = 2").start();
    let on = |kind: Kind| -> u64 {
        let shards = proxy.running().board().shards();
        shards.iter().filter(|s| s.kind == kind).map(|s| s.tally.shard.spares.get()).sum()
    };
    expect_ready(&proxy, 4);
    for (path, kind) in [(DataPath::Epoll, Kind::Epoll), (DataPath::Uring, Kind::Uring)] {
        let answer = proxy.order(Order::whole_path(path, Some(true)));
        assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        until(5000, "they are on the other shards", || on(kind) == 4);
        expect_ready(&proxy, 4);
        echo(&connect(proxy.at), b"taken over there");
    }
    proxy.expect_empty();
    assert_eq!(sum(&proxy, |s| &s.spares_taken), 2);
}
