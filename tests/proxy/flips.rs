//! The data path changes under load, and nobody notices.

use crate::world::net::{Backend, Live, connect, echo, noise, ready, try_echo};
use crate::world::program::Program;
use crate::world::proxy::Recipe;
use crate::world::{has_program, has_uring, pause, until};
use ringway::config::DataPath;
use ringway::control::order::{Answer, Order};
use ringway::driver::Kind;
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

#[test]
fn twenty_changes_of_the_data_path_cost_no_connection_and_no_byte() {
    if !has_uring() {
        return;
    }
    let backend = Backend::echo();
    let proxy = Recipe::new(DataPath::Uring, &[backend.at]).shards(2).start();
    let live = Live::start(proxy.at, 200, 40);
    let (stop, opened) = (AtomicBool::new(false), AtomicU64::new(0));
    let open_all_the_time = || {
        while !stop.load(Relaxed) {
            let number = opened.fetch_add(1, Relaxed);
            let client = ready(TcpStream::connect(proxy.at).expect("somebody listens"));
            try_echo(&client, &noise(number, 200)).expect("whoever was accepted is served");
        }
    };
    let began = Instant::now();
    std::thread::scope(|s| {
        s.spawn(open_all_the_time);
        s.spawn(open_all_the_time);
        for flip in 0..20 {
            let wanted = [DataPath::Epoll, DataPath::Uring][flip % 2];
            let along = flip % 3 > 0;
            flip_to(&proxy, wanted, Some(along));
            pause(if flip % 4 < 2 { 100 } else { 10 });
        }
        stop.store(true, Relaxed);
    });
    let per_second = opened.load(Relaxed) as f64 / began.elapsed().as_secs_f64();
    let echoes = live.stop();
    eprintln!("{per_second:.0} sessions/s, {echoes} echoes of live sessions");
    assert!(per_second > 100.0 && echoes > 500, "{per_second:.0} sessions/s, {echoes} echoes");
    proxy.expect_empty();
    let board = proxy.running().board();
    assert_eq!(board.path_changes.load(Relaxed), 20);
    for kind in [Kind::Uring, Kind::Epoll] {
        let shards = board.shards();
        let of_kind = shards.iter().filter(|s| s.kind == kind);
        let accepted: u64 = of_kind.map(|s| s.tally.shard.accepted.get()).sum();
        assert!(accepted > 50, "{kind:?} accepted {accepted}");
    }
}

/// Changes the path, again while a change before it is still under way.
fn flip_to(proxy: &crate::world::proxy::Proxy, wanted: DataPath, live: Option<bool>) {
    for _ in 0..400 {
        match proxy.order(Order::whole_path(wanted, live)) {
            Answer::Done { .. } => return,
            Answer::Refused(why) if why[0].contains("under way") => pause(5),
            other => panic!("{other:?}"),
        }
    }
    panic!("a change of the data path has been under way for 2 s");
}

#[test]
fn a_roll_back_that_cannot_be_made_is_made_when_it_can() {
    if !has_uring() || !has_program("prlimit") {
        return;
    }
    let backend = Backend::echo();
    let program = Program::start(Recipe::new(DataPath::Uring, &[backend.at]));
    let live = connect(program.at);
    echo(&live, b"on io_uring");
    let limit = |descriptors: u32| {
        let (pid, wanted) = (program.process.id().to_string(), format!("--nofile={descriptors}:"));
        let set = Command::new("prlimit").args(["--pid", &pid, &wanted]).status().unwrap();
        assert!(set.success());
    };
    // No shard can be started that needs one more.
    limit(3);
    program.process.signal("USR1");
    program.process.until_said("could not roll back");
    echo(&live, b"still on io_uring");
    limit(1000);
    until(5000, "nobody asks a second time", || {
        program.metric("ringway_data_path_info", "path=\"epoll\"") == 1.0
    });
    echo(&live, b"on epoll");
    echo(&connect(program.at), b"and new ones");
    // It was not tried all the time.
    let tries = program.process.said().matches("could not roll back").count();
    assert!(tries <= 5, "{tries} times");
}
