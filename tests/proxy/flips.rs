//! The data path changes under load, and nobody notices.

use crate::world::net::{Backend, Live, noise, ready, try_echo};
use crate::world::proxy::Recipe;
use crate::world::{has_uring, pause};
use ringway::config::DataPath;
use ringway::control::order::{Answer, Order};
use ringway::driver::Kind;
use std::net::TcpStream;
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
