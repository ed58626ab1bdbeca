//! Listeners come and go while clients do, and whoever was accepted is served.

use crate::world::net::{Backend, free_address, ready, try_echo};
use crate::world::proxy::Recipe;
use crate::world::pause;
use ringway::config::DataPath;
use ringway::control::order::Answer;
use std::net::{SocketAddr, TcpStream};

crate::on_each_path!(
    who_comes_as_soon_as_a_listener_is_there_is_served,
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
