//! The canary's share is exact, across shards and reloads.

use crate::world::net::{Backend, Live, connect, echo};
use crate::world::proxy::{Proxy, Recipe};
use ringway::config::{DataPath, Percent};
use ringway::control::order::{Answer, Order};

crate::on_each_path!(
    the_share_is_exact_over_two_shards_and_a_reload,
    an_operators_percent_outlives_a_reload_of_something_else,
    weights_are_exact,
);

/// Opens sessions from two threads, each ended before that thread's next.
fn open_sessions(proxy: &Proxy, count: usize) {
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| (0..count / 2).for_each(|_| echo(&connect(proxy.at), b"hi")));
        }
    });
}

fn the_share_is_exact_over_two_shards_and_a_reload(path: DataPath) {
    let (stable, canary) = (Backend::echo(), Backend::echo());
    let recipe = |percent| Recipe::new(path, &[stable.at]).shards(2).canary(canary.at, percent);
    let proxy = recipe("5").start();
    open_sessions(&proxy, 1000);
    assert_eq!((stable.accepted(), canary.accepted()), (950, 50));
    let served = |id: usize| proxy.running().board().shards()[id].tally.shard.accepted.get();
    assert!(served(0) > 100 && served(1) > 100, "both shards took part");

    let live = Live::start(proxy.at, 40, 5);
    let before = canary.accepted();
    assert_eq!(before, 52, "5 % of 40 more");
    let answer = proxy.reload(&recipe("25").text());
    assert!(matches!(answer, Answer::Done { generation: 2, .. }), "{answer:?}");
    open_sessions(&proxy, 1000);
    assert_eq!(canary.accepted() - before, 250);
    assert!(live.stop() > 0, "they echoed all the time");
    proxy.expect_empty();
}

fn an_operators_percent_outlives_a_reload_of_something_else(path: DataPath) {
    let (stable, canary) = (Backend::echo(), Backend::echo());
    let recipe = |percent| Recipe::new(path, &[stable.at]).canary(canary.at, percent);
    let proxy = recipe("5").start();
    let percent = || proxy.running().board().snapshot.load().config.listeners[0].canary_percent;
    let order =
        Order::Canary { listener: "orders".into(), percent: Percent::from_f64(50.0).unwrap() };
    let Answer::Done { generation, .. } = proxy.order(order.clone()) else { panic!("it is done") };
    let what = "canary of `orders` is 50.00 % already".to_owned();
    assert_eq!(proxy.order(order), Answer::Done { generation, what });
    let answer = proxy.reload(&recipe("5").more("[timeouts]\nidle_ms = 60_000").text());
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
    assert_eq!(percent().as_f64(), 50.0);
    open_sessions(&proxy, 20);
    assert_eq!((stable.accepted(), canary.accepted()), (10, 10));
    proxy.reload(&recipe("0").text());
    assert_eq!(percent(), Percent::ZERO);
    open_sessions(&proxy, 20);
    assert_eq!((stable.accepted(), canary.accepted()), (30, 10));

    let order = Order::Canary { listener: "nobody".into(), percent: Percent::ZERO };
    assert!(matches!(proxy.order(order), Answer::Unknown(_)));
}

fn weights_are_exact(path: DataPath) {
    let (light, heavy, none) = (Backend::echo(), Backend::echo(), Backend::echo());
    let mut recipe = Recipe::new(path, &[]).shards(2);
    recipe.backends = [(&light, 1), (&heavy, 2), (&none, 0)]
        .map(|(backend, weight)| format!("{{ address = \"{}\", weight = {weight} }}", backend.at))
        .to_vec();
    let proxy = recipe.start();
    open_sessions(&proxy, 30);
    assert_eq!((light.accepted(), heavy.accepted(), none.accepted()), (10, 20, 0));
}
