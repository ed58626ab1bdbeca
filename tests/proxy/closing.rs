//! Listeners come and go while clients do, and whoever was accepted is served.

use crate::world::net::{Backend, PATIENCE, connect, echo, free_address, ready, try_echo};
use crate::world::program::{Program, RINGWAY};
use crate::world::proxy::Recipe;
use crate::world::{has_program, pause, until};
use ringway::config::DataPath;
use ringway::control::order::Answer;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

crate::on_each_path!(
    who_comes_as_soon_as_a_listener_is_there_is_served,
    a_listener_comes_back_while_it_is_being_closed,
    a_listener_is_closed_without_a_privilege_and_harms_nobody,
);

/// Listeners that one reload adds: while it does, clients come to those that are there already.
const ADDED: usize = 40;

fn extra(name: &str, at: SocketAddr) -> String {
    format!("[listeners.{name}]\nbind = \"{at}\"\nstable = \"v1\"")
}

fn who_comes_as_soon_as_a_listener_is_there_is_served(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]).shards(2);
    let proxy = recipe.start();
    for _ in 0..3 {
        let places: Vec<SocketAddr> = (0..ADDED).map(|_| free_address()).collect();
        let named = places.iter().enumerate().map(|(i, at)| extra(&format!("l{i}"), *at));
        let more = named.fold(recipe.clone(), |recipe, listener| recipe.more(&listener));
        std::thread::scope(|s| {
            for at in &places[..2] {
                s.spawn(move || {
                    let mut client = TcpStream::connect(at);
                    while client.is_err() {
                        client = TcpStream::connect(at);
                    }
                    try_echo(&ready(client.unwrap()), b"the first").expect("it was let in");
                });
            }
            pause(5);
            let answer = proxy.reload(&more.text());
            assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        });
        assert!(matches!(proxy.reload(&recipe.text()), Answer::Done { .. }));
    }
    let shards = proxy.running().board().shards();
    assert_eq!(shards.iter().map(|s| s.tally.shard.refused_full.get()).sum::<u64>(), 0);
}

fn a_listener_comes_back_while_it_is_being_closed(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]);
    let proxy = recipe.start();
    let at = free_address();
    let more = recipe.clone().more(&extra("extra", at)).text();
    assert!(matches!(proxy.reload(&more), Answer::Done { .. }));
    assert!(matches!(proxy.reload(&recipe.text()), Answer::Done { .. }));
    until(2000, "it listens again", || match proxy.reload(&more) {
        Answer::Done { .. } => true,
        Answer::Refused(why) => {
            let told = why[0].contains("still closing") && why[0].contains("try again");
            assert!(told && why[0].contains(&at.to_string()), "{why:?}");
            false
        }
        other => panic!("{other:?}"),
    });
    echo(&connect(at), b"served");
}

/// Opens sessions there, one after the other, until nobody listens. How many were served.
fn come_until_it_is_closed(at: SocketAddr, stop: &AtomicBool) -> u64 {
    let mut served = 0;
    while !stop.load(Relaxed) {
        // Who is held off asks again in a second, and finds nobody then.
        if let Ok(client) = TcpStream::connect_timeout(&at, Duration::from_millis(20)) {
            try_echo(&ready(client), b"whoever was let in").expect("is served");
            served += 1;
        }
    }
    served
}

fn a_listener_is_closed_without_a_privilege_and_harms_nobody(path: DataPath) {
    if !has_program("setpriv") {
        return;
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", RINGWAY]);
    let (backend, at) = (Backend::echo(), free_address());
    let recipe = Recipe::new(path, &[backend.at]).shards(2).more("[log]\nsession_every = 0");
    let (program, recipe) = Program::start_with(recipe, command);
    let told = |text: &str| program.process.said().lines().filter(|l| l.contains(text)).count();
    let with = recipe.clone().more(&extra("extra", at));
    let reload = |recipe: &Recipe| {
        let before = told("config reloaded");
        std::fs::write(&program.file, recipe.text()).unwrap();
        program.process.signal("HUP");
        until(5000, "it has reloaded", || told("config reloaded") > before);
    };
    for round in 1..=3 {
        reload(&with);
        drop(connect(at));
        let stop = AtomicBool::new(false);
        let served = std::thread::scope(|s| {
            let came: Vec<_> =
                (0..3).map(|_| s.spawn(|| come_until_it_is_closed(at, &stop))).collect();
            pause(50);
            reload(&recipe);
            until(5000, "it is refused", || {
                let late = TcpStream::connect_timeout(&at, PATIENCE);
                late.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            });
            stop.store(true, Relaxed);
            came.into_iter().map(|client| client.join().unwrap()).sum::<u64>()
        });
        assert!(served > 0, "nobody came");
        assert_eq!((told("CAP_NET_ADMIN"), told("cannot be held off")), (round, 0));
    }
    echo(&connect(program.at), b"the other listener is as it was");
}
