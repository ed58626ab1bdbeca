//! What shards ask of the kernel beyond what they need: what it gives is in force, and what it refuses does not matter.

use crate::world::net::{Backend, connect, echo};
use crate::world::proxy::{Proxy, Recipe};
use crate::world::{skipped, until};
use ringway::config::{DataPath, Steer, file};
use ringway::control::order::Answer;
use ringway::driver::probe::kernels::{STEERS_FROM, Version, running_release};
use ringway::driver::{Errno, favours, sys};
use ringway::run::Running;
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;

crate::on_each_path!(
    steered_clients_come_to_the_shard_of_their_cpu,
    clients_by_hash_are_evened_out,
    a_shard_is_scheduled_first_and_its_sessions_live,
    a_shard_asks_the_card_and_its_sessions_live,
);

const CLIENTS: u64 = 50;
/// Operation not permitted (errno(3)).
const EPERM: i32 = 1;
/// SCHED_FIFO, as sched(7) numbers it.
const FIFO: u32 = 1;

/// Two CPUs, if clients of one can be told from those of another here.
fn two_cpus() -> Option<[usize; 2]> {
    let cpus: Vec<usize> = sys::affinity().into_iter().take(2).collect();
    if Version::parse(&running_release()).is_some_and(|version| version < STEERS_FROM) {
        skipped("steering by CPU, which needs Linux 6.2");
        return None;
    }
    let two = <[usize; 2]>::try_from(cpus).ok();
    if two.is_none() {
        skipped("steering by CPU, which needs two CPUs");
    }
    two
}

/// A Ringway with a shard on each of two CPUs.
fn on_two_cpus(path: DataPath, backend: &Backend, [a, b]: [usize; 2], steer: Steer) -> Proxy {
    let keys =
        format!("pin = true\ncpus = \"{a},{b}\"\nrebalance = false\nsteer = \"{}\"", steer.label());
    Recipe::new(path, &[backend.at]).shards(2).each_shard(&keys).start()
}

/// Clients whose packets arrive on `cpu`: over loopback that is where they are sent.
fn clients_of(cpu: usize, proxy: &Proxy) -> Vec<TcpStream> {
    let at = proxy.at;
    let connects = move || {
        sys::pin(cpu).expect("it is one of ours");
        let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect(at)).collect();
        clients.iter().for_each(|client| echo(client, b"D 1 BUY 100"));
        clients
    };
    std::thread::spawn(connects).join().expect("they connect")
}

/// How many sessions the shards on each of these CPUs have.
fn sessions_on(proxy: &Proxy, cpus: [usize; 2]) -> [u64; 2] {
    let shards = proxy.running().board().shards();
    cpus.map(|cpu| {
        let here = shards.iter().filter(|shard| shard.cpu == Some(cpu));
        here.map(|shard| shard.tally.shard.sessions.get()).sum()
    })
}

fn steered_clients_come_to_the_shard_of_their_cpu(path: DataPath) {
    let Some(cpus) = two_cpus() else { return };
    let backend = Backend::echo();
    let proxy = on_two_cpus(path, &backend, cpus, Steer::Cpu);
    assert_eq!(proxy.running().board().status().steer, "cpu");
    // The second CPU's first: by numbers alone the first shard would get them.
    let second = clients_of(cpus[1], &proxy);
    assert_eq!(sessions_on(&proxy, cpus), [0, CLIENTS]);
    let first = clients_of(cpus[0], &proxy);
    assert_eq!(sessions_on(&proxy, cpus), [CLIENTS, CLIENTS]);
    drop(second);
    until(3000, "one CPU's sessions end", || sessions_on(&proxy, cpus) == [CLIENTS, 0]);
    drop(first);
    proxy.expect_empty();
}

/// The other half of the proof: without steering the same clients do not all come to one shard.
fn clients_by_hash_are_evened_out(path: DataPath) {
    let Some(cpus) = two_cpus() else { return };
    let backend = Backend::echo();
    let proxy = on_two_cpus(path, &backend, cpus, Steer::Hash);
    let clients = clients_of(cpus[1], &proxy);
    let [first, second] = sessions_on(&proxy, cpus);
    assert_eq!(first + second, CLIENTS);
    assert!(first.abs_diff(second) <= CLIENTS / 4, "{first} and {second}");
    drop(clients);
    proxy.expect_empty();
}

/// The shards' scheduling policy and real-time priority, as /proc has them, by the ids of this process's threads.
fn scheduled(name: &str) -> Vec<(u32, u32)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let of = stats.filter_map(|stat| {
        let (before, fields) = stat.rsplit_once(") ")?;
        // Fields 40 and 41 of proc_pid_stat(5); the first here is the third.
        let fields: Vec<&str> = fields.split(' ').collect();
        before.contains(name).then(|| (fields[38].parse().unwrap(), fields[37].parse().unwrap()))
    });
    of.collect()
}

/// Whether this process may schedule a thread so.
fn may_schedule(priority: u8) -> bool {
    let tried = std::thread::spawn(move || favours::schedule_first(priority)).join().unwrap();
    tried.map_err(|e| assert_eq!(e, Errno(EPERM))).is_ok()
}

fn a_shard_is_scheduled_first_and_its_sessions_live(path: DataPath) {
    // A priority of this path's own, for other tests' shards are threads of this process as well.
    let priority = if path == DataPath::Uring { 3 } else { 4 };
    let backend = Backend::echo();
    let keys = format!("pin = false\nfifo_priority = {priority}\nbusy_poll_us = 200");
    let proxy = Recipe::new(path, &[backend.at]).each_shard(&keys).start();
    let client = connect(proxy.at);
    echo(&client, b"D 1 BUY 100");
    let granted = may_schedule(priority);
    let shown: Vec<u8> = proxy.running().board().shards().iter().map(|s| s.priority).collect();
    assert_eq!(shown, [if granted { priority } else { 0 }]);
    let is_ours = |of: &(u32, u32)| of.1 == u32::from(priority);
    let ours: Vec<_> = scheduled(path.label()).into_iter().filter(is_ours).collect();
    let expected = if granted { vec![(FIFO, u32::from(priority))] } else { vec![] };
    assert_eq!(ours, expected);
    assert!(scheduled("control").iter().all(|of| *of == (0, 0)), "control inherits none of it");
    if !granted {
        skipped("real-time priority, which this process may not have");
    }
    drop(client);
    proxy.expect_empty();
}

fn a_shard_asks_the_card_and_its_sessions_live(path: DataPath) {
    let backend = Backend::echo();
    for keys in ["napi_busy_poll_us = 50", "napi_busy_poll_us = 50\nbusy_poll_us = 2000"] {
        let keys = format!("pin = false\n{keys}");
        let proxy = Recipe::new(path, &[backend.at]).each_shard(&keys).start();
        let shards = proxy.running().board().shards();
        if !shards[0].polls_card {
            skipped("NAPI busy polling, which this kernel refuses");
        }
        let client = connect(proxy.at);
        (0..20).for_each(|_| echo(&client, b"D 1 BUY 100"));
        assert!(shards[0].serving.load(Relaxed));
        drop(client);
        proxy.expect_empty();
    }
}

#[test]
fn what_shards_ask_for_waits_for_a_restart() {
    let backend = Backend::echo();
    let recipe = Recipe::new(DataPath::Epoll, &[backend.at]);
    let proxy = recipe.clone().start();
    for keys in ["napi_busy_poll_us = 50", "fifo_priority = 5", "pin = true\nsteer = \"cpu\""] {
        let pin = if keys.contains("pin") { "" } else { "pin = false\n" };
        let new = recipe.clone().each_shard(&format!("{pin}{keys}"));
        let Answer::Done { what, .. } = proxy.reload(&new.text()) else { panic!("it is good") };
        assert!(what.contains("restart") && what.contains("shards"), "{keys}: {what}");
    }
    assert_eq!(proxy.running().board().status().steer, "hash");
    let client = connect(proxy.at);
    echo(&client, b"D 1 BUY 100");
}

#[test]
fn a_congestion_control_this_kernel_has_not_is_named() {
    let recipe = Recipe::new(DataPath::Epoll, &[]).listener("tcp.congestion = \"nosuch\"");
    let text = recipe.text().replace("backends = []", "backends = [\"127.0.0.1:9\"]");
    let started = Running::start(file::parse(&text).expect("it is good"), None);
    let said = started.err().expect("it is refused").to_string();
    assert!(said.contains("listeners.orders") && said.contains("tcp.congestion"), "{said}");
}

#[test]
fn a_reload_with_such_a_one_changes_nothing() {
    let backend = Backend::echo();
    let recipe = Recipe::new(DataPath::Epoll, &[backend.at]);
    let proxy = recipe.clone().start();
    let bad = recipe.listener("tcp.congestion = \"nosuch\"").text();
    let Answer::Refused(why) = proxy.reload(&bad) else { panic!("no session could begin") };
    assert!(why[0].contains("listeners.orders") && why[0].contains("tcp.congestion"), "{why:?}");
    echo(&connect(proxy.at), b"as before");
}
