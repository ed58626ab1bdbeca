//! A reload changes what it says and nothing else.

use crate::world::net::{Backend, connect, echo, free_address};
use crate::world::proxy::Recipe;
use crate::world::until;
use ringway::config::DataPath;
use ringway::control::order::{Answer, Order};
use serde_json::json;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering::Relaxed;

crate::on_each_path!(
    listeners_come_and_go,
    a_bad_file_changes_nothing_and_says_all_that_is_wrong,
    a_port_in_use_changes_nothing,
    a_port_that_another_listener_has_is_told_with_its_name,
    the_same_file_changes_nothing,
    new_sessions_go_to_the_new_backends,
);

fn extra(at: SocketAddr) -> String {
    format!("[listeners.extra]\nbind = \"{at}\"\nstable = \"v1\"")
}

fn done(answer: Answer) -> (u64, String) {
    match answer {
        Answer::Done { generation, what } => (generation, what),
        other => panic!("{other:?}"),
    }
}

fn listeners_come_and_go(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]).shards(2);
    let proxy = recipe.start();
    let at = free_address();
    assert!(TcpStream::connect(at).is_err(), "nobody listens yet");
    for _ in 0..3 {
        let (_, what) = done(proxy.reload(&recipe.clone().more(&extra(at)).text()));
        assert!(what.contains(&format!("opened: [\"extra on {at}\"]")), "{what}");
        let clients: Vec<_> = (0..10).map(|_| connect(at)).collect();
        clients.iter().for_each(|client| echo(client, b"new"));

        let (_, what) = done(proxy.reload(&recipe.text()));
        assert!(what.contains(&format!("closed: [\"extra on {at}\"]")), "{what}");
        until(1000, "it is refused", || TcpStream::connect(at).is_err());
        clients.iter().for_each(|client| echo(client, b"alive"));
        echo(&connect(proxy.at), b"the other listener is as it was");
    }
    proxy.expect_empty();
}

fn a_bad_file_changes_nothing_and_says_all_that_is_wrong(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]);
    let proxy = recipe.start();
    let live = connect(proxy.at);
    let bad = recipe
        .clone()
        .listener("canary_percent = 101\nbackloq = 3")
        .more(&format!("[timeouts]\nidle_ms = -1\n{}", extra(free_address())));
    let Answer::Refused(faults) = proxy.reload(&bad.text()) else { panic!("it is bad") };
    assert_eq!(faults.len(), 3, "{faults:#?}");
    for words in ["canary_percent", "backlog", "timeouts.idle_ms"] {
        assert!(faults.iter().any(|fault| fault.contains(words)), "{words}: {faults:#?}");
    }
    assert_eq!(proxy.generation(), 1);
    echo(&live, b"alive");
    echo(&connect(proxy.at), b"served");
    done(proxy.reload(&recipe.more("[timeouts]\nidle_ms = 60_000").text()));
    assert_eq!(proxy.generation(), 2, "and the next good one is taken");
}

fn a_port_in_use_changes_nothing(path: DataPath) {
    let (backend, other) = (Backend::echo(), Backend::echo());
    let recipe = Recipe::new(path, &[backend.at]);
    let proxy = recipe.start();
    let changed = recipe.more(&extra(other.at)).more("[timeouts]\nidle_ms = 60_000");
    let Answer::Refused(faults) = proxy.reload(&changed.text()) else { panic!("it is in use") };
    assert!(faults[0].contains(&other.at.to_string()), "{faults:?}");
    assert_eq!(proxy.generation(), 1);
    echo(&connect(proxy.at), b"served");
}

fn a_port_that_another_listener_has_is_told_with_its_name(path: DataPath) {
    let backend = Backend::echo();
    let mut recipe = Recipe::new(path, &[backend.at]);
    recipe.bind = free_address();
    let proxy = recipe.start();
    let renamed = recipe.text().replace("listeners.orders", "listeners.renamed");
    let wide = SocketAddr::from(([0, 0, 0, 0], recipe.bind.port()));
    let wider = Recipe { bind: wide, ..recipe.clone() }.text();
    for (name, text) in [("renamed", renamed), ("orders", wider)] {
        let Answer::Refused(faults) = proxy.reload(&text) else { panic!("it is in use") };
        let expected =
            format!("listeners.{name}.bind: listener 'orders' of this Ringway has {}", recipe.bind);
        assert!(faults.len() == 1 && faults[0].starts_with(&expected), "{faults:?}");
    }
    assert_eq!(proxy.generation(), 1);
    echo(&connect(proxy.at), b"served");
}

fn the_same_file_changes_nothing(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]);
    let proxy = recipe.start();
    let live = connect(proxy.at);
    let (generation, what) = done(proxy.reload(&recipe.text()));
    assert_eq!((generation, what.as_str()), (1, "nothing changed"));
    let reformatted = format!("# a comment\n\n{}", recipe.text());
    assert_eq!(done(proxy.reload(&reformatted)).0, 1);
    let changes = || proxy.running().board().path_changes.load(Relaxed);
    let before = changes();
    let what = format!("data path of new sessions is {} already", path.label());
    assert_eq!(done(proxy.order(Order::whole_path(path, Some(false)))), (1, what));
    assert_eq!(changes(), before);
    echo(&live, b"alive");
}

fn new_sessions_go_to_the_new_backends(path: DataPath) {
    let (old, new) = (Backend::echo(), Backend::echo());
    let proxy = Recipe::new(path, &[old.at]).shards(2).start();
    let live: Vec<_> = (0..20).map(|_| connect(proxy.at)).collect();
    live.iter().for_each(|client| echo(client, b"before"));
    let swapped = Recipe::new(path, &[new.at]).shards(2);
    let told = format!("for new sessions: pools.v1.backends: -{} +{}", old.at, new.at);
    let live_on = format!("sessions that live on: 20 at {} of pool v1", old.at);
    assert_eq!(done(proxy.reload(&swapped.text())), (2, format!("{told}; {live_on}")));
    let backends = || {
        let status = serde_json::to_value(proxy.running().board().status()).unwrap();
        status["pools"][0]["backends"].clone()
    };
    let row = |at: SocketAddr, weight: u16, sessions: u32, leaving: bool| {
        let (name, address) = (at.to_string(), at.to_string());
        json!({ "name": name, "address": address, "weight": weight, "sessions": sessions, "leaving": leaving })
    };
    assert_eq!(backends(), json!([row(new.at, 1, 0, false), row(old.at, 0, 20, true)]));
    let waits =
        done(proxy.reload(&swapped.clone().each_shard("fifo_priority = 9\npin = false").text()));
    let told = "nothing changed; waits for a restart: shards.fifo_priority: 0 -> 9";
    assert_eq!(waits, (2, told.to_owned()), "and it is in force nowhere");
    let again =
        done(proxy.reload(&swapped.clone().each_shard("fifo_priority = 9\npin = false").text()));
    assert_eq!(again, waits, "until it is restarted or taken back");
    assert_eq!(done(proxy.reload(&swapped.text())), (2, "nothing changed".to_owned()));
    let unused = swapped.clone().listener("[listeners.orders.timeouts]\nidle_ms = 60_000");
    assert_eq!(done(proxy.reload(&unused.clone().text())).0, 3);
    let (generation, what) = done(proxy.reload(&unused.more("[timeouts]\nidle_ms = 5").text()));
    let told = "nothing changed in effect; for new sessions: timeouts.idle_ms: 0 -> 5";
    assert_eq!((generation, what.as_str()), (3, told));
    for _ in 0..20 {
        echo(&connect(proxy.at), b"new");
    }
    live.iter().for_each(|client| echo(client, b"after"));
    assert_eq!((old.accepted(), new.accepted()), (20, 20));
    drop(live);
    until(5000, "nobody is left at the old one", || {
        backends() == json!([row(new.at, 1, 0, false)])
    });
}
