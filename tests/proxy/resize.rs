//! A reload changes how many shards there are, and where, under load: nobody is refused, cut off or told a wrong byte.

use crate::world::net::{Backend, Live, connect, echo, try_echo};
use crate::world::program::Program;
use crate::world::proxy::{Proxy, Recipe};
use crate::world::{has_uring, pause, until};
use ringway::config::DataPath;
use ringway::config::limits::RING_WATCHDOG;
use ringway::control::board::ShardEntry;
use ringway::control::order::{Answer, Order};
use ringway::driver::Kind;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

crate::on_each_path!(
    shards_come_and_go_under_load,
    clients_in_a_queue_outlive_the_lane_it_was_of,
    shards_that_cannot_be_had_change_nothing,
    all_shards_move_where_their_cpus_do,
    the_data_path_and_the_shards_change_with_one_reload,
);

fn done(answer: Answer) -> String {
    match answer {
        Answer::Done { what, .. } => what,
        other => panic!("{other:?}"),
    }
}

/// Shards that run.
fn running(proxy: &Proxy) -> Vec<Arc<ShardEntry>> {
    let shards = proxy.running().board().shards();
    shards.into_iter().filter(|shard| !shard.ended.load(Relaxed)).collect()
}

/// Waits until so many shards run, and all in a lane.
fn until_there_are(proxy: &Proxy, shards: usize) {
    until(5000, &format!("{shards} shards run"), || {
        let running = running(proxy);
        running.len() == shards && running.iter().all(|shard| shard.lane().is_some())
    });
}

/// Opens sessions one after the other until told to stop. How many.
fn open_many(at: SocketAddr, stop: &AtomicBool, pause_ms: u64) -> u64 {
    let mut opened = 0;
    while !stop.load(Relaxed) {
        let client = connect(at);
        try_echo(&client, b"whoever comes in is served").expect("an echo");
        opened += 1;
        pause(pause_ms);
    }
    opened
}

fn status(program: &Program) -> serde_json::Value {
    serde_json::from_str(&program.get("/api/v1/status").1).expect("it is JSON")
}

/// Its shards that run, as the status shows them.
fn shards_of(status: &serde_json::Value) -> Vec<serde_json::Value> {
    let shards = status["shards"].as_array().unwrap().iter();
    shards.filter(|shard| shard["ended"] == false).cloned().collect()
}

/// Names of threads that shards run on.
fn threads(program: &Program) -> usize {
    let names = program.threads().into_iter().map(|(_, name)| name);
    names.filter(|name| name.starts_with("uring-") || name.starts_with("epoll-")).count()
}

/// Waits until a reload to so many shards has come to its end; what the status says then.
fn settled(program: &Program, shards: usize) -> serde_json::Value {
    let mut last = serde_json::Value::Null;
    until(10_000, &format!("there are {shards} shards"), || {
        last = status(program);
        let running = shards_of(&last);
        let places = running.iter().all(|shard| shard["lane"].as_u64().is_some());
        running.len() == shards && places && threads(program) == shards
    });
    last
}

fn shards_come_and_go_under_load(path: DataPath) {
    let backend = Backend::echo();
    let (program, recipe) = Program::start_with(
        Recipe::new(path, &[backend.at]).more("[log]\nsession_every = 0"),
        crate::world::program::ringway(&[]),
    );
    let descriptors = || std::fs::read_dir(program.proc("fd")).unwrap().count();
    let (idle, mut accepted) = (descriptors(), 0.0);
    let live = Live::start(program.at, 100, 20);
    let stop = AtomicBool::new(false);
    let opened = std::thread::scope(|s| {
        let openers: Vec<_> = (0..2).map(|_| s.spawn(|| open_many(program.at, &stop, 8))).collect();
        for shards in [3, 2, 1, 4, 2, 3, 1, 2] {
            std::fs::write(&program.file, recipe.clone().shards(shards).text()).unwrap();
            program.process.signal("HUP");
            let now = settled(&program, shards);
            pause(300);
            let lanes = shards_of(&now).iter().map(|s| s["lane"].as_u64().unwrap()).max();
            assert_eq!(lanes, Some(shards as u64 - 1), "{now}");
            assert!(now["sessions"].as_u64().unwrap() >= 100, "{now}");
            let before =
                std::mem::replace(&mut accepted, program.metric("ringway_accepted_total", ""));
            assert!(accepted > before, "totals never fall: {before}, then {accepted}");
        }
        stop.store(true, Relaxed);
        openers.into_iter().map(|opener| opener.join().unwrap()).sum::<u64>()
    });
    assert!(live.stop() > 1000 && opened > 100, "{opened} were opened");
    until(5000, "all sessions end", || status(&program)["sessions"] == 0);
    let now = status(&program);
    assert_eq!(now["listeners"][0]["sessions"], 0, "{now}");
    assert_eq!(program.metric("ringway_accepted_total", ""), (opened + 100) as f64);
    assert_eq!(program.metric("ringway_sessions", ""), 0.0);
    for metric in ["ringway_watchdog_total", "ringway_stale_completions_total"] {
        assert_eq!(program.metric(metric, ""), 0.0, "{metric}");
    }
    // One shard again, with the sockets of four.
    std::fs::write(&program.file, recipe.text()).unwrap();
    program.process.signal("HUP");
    settled(&program, 1);
    until(3000, "descriptors come home, but for three sockets", || descriptors() <= idle + 3);
}

fn clients_in_a_queue_outlive_the_lane_it_was_of(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]);
    let proxy = recipe.clone().shards(4).start();
    for shards in [1, 4, 2, 1, 3] {
        // They come in while the sockets change hands.
        let clients: Vec<TcpStream> = std::thread::scope(|s| {
            let came = s.spawn(|| (0..200).map(|_| connect(proxy.at)).collect());
            pause(2);
            done(proxy.reload(&recipe.clone().shards(shards).text()));
            came.join().unwrap()
        });
        clients.iter().for_each(|client| echo(client, b"who waited is served"));
        until_there_are(&proxy, shards);
        clients.iter().for_each(|client| echo(client, b"and goes on"));
    }
    proxy.expect_empty();
}

fn shards_that_cannot_be_had_change_nothing(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]).shards(2);
    let proxy = recipe.start();
    let before: Vec<usize> = running(&proxy).iter().map(|shard| shard.id).collect();
    let elsewhere = recipe.text().replace("pin = false", "pin = true\ncpus = \"1022-1023\"");
    let Answer::Refused(faults) = proxy.reload(&elsewhere) else { panic!("there is no such CPU") };
    assert!(faults[0].contains("1023") && faults[0].contains("cpus"), "{faults:?}");
    assert_eq!(proxy.generation(), 1);
    // A listener of the same file that cannot be had: the shards it asks for end again.
    let taken = format!("[listeners.taken]\nbind = \"{}\"\nstable = \"v1\"", backend.at);
    let more = recipe.clone().shards(4).more(&taken);
    assert!(matches!(proxy.reload(&more.text()), Answer::Refused(_)), "it is in use");
    let after: Vec<usize> = running(&proxy).iter().map(|shard| shard.id).collect();
    assert_eq!(before, after);
    for _ in 0..20 {
        echo(&connect(proxy.at), b"served");
    }
    let what = done(proxy.reload(&recipe.shards(3).text()));
    assert!(what.contains("shards: 2 -> 3"), "{what}");
    proxy.expect_empty();
}

fn all_shards_move_where_their_cpus_do(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]).shards(2);
    let proxy = recipe.start();
    let live = Live::start(proxy.at, 20, 5);
    let pinned = recipe.text().replace("pin = false", "pin = true");
    for (text, is_pinned) in [(pinned.clone(), true), (recipe.text(), false), (pinned, true)] {
        let before: Vec<usize> = running(&proxy).iter().map(|shard| shard.id).collect();
        let what = done(proxy.reload(&text));
        assert!(
            what.contains("shards: 2 -> 2") && what.contains("20 live sessions move"),
            "{what}"
        );
        until_there_are(&proxy, 2);
        for shard in running(&proxy) {
            assert_eq!(shard.cpu.is_some(), is_pinned);
            assert!(!before.contains(&shard.id), "it is another");
        }
    }
    // The shards that stay are told how long to spin.
    let spins =
        format!("{}\n", recipe.text().replace("pin = false", "pin = true\nbusy_poll_us = 50"));
    let what = done(proxy.reload(&spins));
    assert!(what.contains("busy_poll_us: 0 -> 50"), "{what}");
    pause(500);
    assert!(live.stop() > 100);
    proxy.expect_empty();
}

fn the_data_path_and_the_shards_change_with_one_reload(path: DataPath) {
    if !has_uring() {
        return;
    }
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]).shards(2);
    let proxy = recipe.start();
    let live = Live::start(proxy.at, 30, 5);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let opener = s.spawn(|| open_many(proxy.at, &stop, 3));
        let paths = [DataPath::Epoll, DataPath::Uring];
        for turn in 0..24 {
            let mut next = recipe.clone().shards([1, 3, 2, 4][turn % 4]);
            next.path = paths[turn / 3 % 2];
            let share = ["", "data_path_percent = 40\n"][turn / 2 % 2];
            match proxy.reload(&format!("{share}{}", next.text())) {
                Answer::Done { .. } => {}
                // Sockets still change hands.
                Answer::Refused(why) if why[0].contains("under way") => {}
                other => panic!("{other:?}"),
            }
            pause([0, 20, 150][turn % 3]);
        }
        pause(1000);
        let mut last = recipe.clone().shards(2);
        last.path = DataPath::Epoll;
        done(proxy.reload(&last.text()));
        let left = |kind: Kind| {
            let shards = running(&proxy).into_iter().filter(move |s| s.kind == kind);
            shards.map(|shard| shard.tally.shard.sessions.get()).sum::<u64>()
        };
        until(5000, "all are on epoll", || left(Kind::Uring) == 0 && left(Kind::Epoll) >= 30);
        stop.store(true, Relaxed);
        assert!(opener.join().unwrap() > 20);
    });
    assert!(live.stop() > 100);
    proxy.expect_empty();
}

#[test]
fn a_lane_that_is_held_on_epoll_can_go_and_come_again_on_its_ring() {
    if !has_uring() {
        return;
    }
    let backend = Backend::echo();
    let recipe = Recipe::new(DataPath::Uring, &[backend.at]).shards(2);
    let proxy = recipe.start();
    let live = Live::start(proxy.at, 20, 5);
    let bad = running(&proxy).into_iter().find(|shard| shard.lane() == Some(1)).unwrap();
    bad.tally.shard.watchdog.add(RING_WATCHDOG);
    until(5000, "its sessions are gone", || bad.tally.shard.sessions.get() == 0);
    bad.tally.shard.watchdog.sub(RING_WATCHDOG);
    done(proxy.reload(&recipe.clone().shards(1).text()));
    until_there_are(&proxy, 1);
    done(proxy.reload(&recipe.text()));
    until_there_are(&proxy, 2);
    let path = |shard: &Arc<ShardEntry>| (shard.kind, shard.serving.load(Relaxed));
    assert!(running(&proxy).iter().map(path).all(|path| path == (Kind::Uring, true)));
    assert!(live.stop() > 100);
    proxy.expect_empty();
}

#[test]
fn sessions_are_spread_over_the_lanes_that_stay_and_none_moves_to_one_that_goes() {
    let backend = Backend::echo();
    let recipe = Recipe::new(DataPath::Epoll, &[backend.at]);
    let proxy = recipe.clone().shards(4).more("[log]\nsession_every = 0").start();
    let clients: Vec<TcpStream> = (0..80).map(|_| connect(proxy.at)).collect();
    clients.iter().for_each(|client| echo(client, b"here"));
    let shard = running(&proxy).last().unwrap().id;
    let what = done(proxy.reload(&recipe.shards(2).text()));
    assert!(what.contains("shards: 4 -> 2") && what.contains("live sessions move"), "{what}");
    until_there_are(&proxy, 2);
    let on = || -> Vec<u64> {
        running(&proxy).iter().map(|shard| shard.tally.shard.sessions.get()).collect()
    };
    until(3000, "all have arrived", || on().iter().sum::<u64>() == 80);
    let on = on();
    assert!(on.iter().all(|sessions| (30..=50).contains(sessions)), "{on:?}");
    let answer = proxy.order(Order::Move { session: 1, shard });
    assert!(matches!(&answer, Answer::Unknown(why) if why.contains("no shard")), "{answer:?}");
    clients.iter().for_each(|client| echo(client, b"and there"));
    drop(clients);
    proxy.expect_empty();
}
