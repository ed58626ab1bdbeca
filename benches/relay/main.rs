//! What a relayed message costs beside the kernel: a shard and its sessions as they ship, in a simulated network.
//! `cargo bench relay`; the throughput criterion prints is in messages, and its inverse is the time for one.
//!
//! The network costs time of its own, far more than the relay: it counts every byte and draws from its seed. So each
//! case runs twice: with the shard, and with a [`wire`](wire::run) that does nothing but pass buffers on. The
//! difference is what sessions, timers, counters and the shard's loop cost, where it is larger than the noise.

mod wire;

use arc_swap::ArcSwap;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringway::config::file;
use ringway::driver::sim::{Backend, Faults, Script, Shared, Sim, World};
use ringway::driver::{Driver, ListenerId};
use ringway::policy::snapshot::Snapshot;
use ringway::shard::mailbox::{Mail, Order};
use ringway::shard::placement::{Load, Neighbour};
use ringway::shard::spin::Awake;
use ringway::shard::{Parts, Shard};
use ringway::tally::Tally;
use ringway::time::Time;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where the one backend is.
pub(crate) const BACKEND: &str = "10.0.0.1:9000";
const BUFFERS: u16 = 512;
const BUFFER_BYTES: u32 = 16 * 1024;
/// Turns of each session: a message up and one down.
const TURNS: u32 = 200;

/// A network in which `sessions` clients make [`TURNS`] turns of `bytes` each, and a driver in it.
fn world(sessions: u32, bytes: u32) -> (Shared, Sim) {
    let address: SocketAddr = BACKEND.parse().expect("an address");
    let world = World::new(1, Faults::none());
    let answers = Script::answers(TURNS, bytes);
    world.borrow_mut().backend(Backend::accepting(address, vec![answers]));
    for _ in 0..sessions {
        world.borrow_mut().client(Time(1_000_000_000), ListenerId(0), Script::asks(TURNS, bytes));
    }
    let mut driver = Sim::new(&world, BUFFERS, BUFFER_BYTES);
    driver.set_counts_credit(true);
    (world, driver)
}

/// A shard that accepts the clients of a [`world`].
fn shard(sessions: u32, bytes: u32) -> Shard<Sim> {
    let (world, driver) = world(sessions, bytes);
    let text = format!(
        "[listeners.orders]\nbind = \"127.0.0.1:9000\"\nstable = \"v1\"\n\
         [pools.v1]\nbackends = [\"{BACKEND}\"]\n"
    );
    let config = file::parse(&text).expect("the bench's own config is good");
    let name = Arc::clone(&config.listeners[0].name);
    let (mail, orders) = Mail::new(driver.waker());
    let socket = world.borrow_mut().listen(ListenerId(0), sessions as usize);
    mail.send(Order::Serve { listener: ListenerId(0), name, socket }).expect("it is read below");
    let load = Arc::new(Load::default());
    Shard::new(
        driver,
        Parts {
            id: 0,
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::new(config, None))),
            ticked: false,
            awake: Awake::default(),
            tally: Arc::new(Tally::default()),
            load: Arc::clone(&load),
            home: Neighbour { load, mail },
            orders,
            report: Box::new(|_| {}),
            journal: None,
        },
    )
}

/// Runs all sessions of a shard to their end. How many turns of its loop that took.
fn serve(mut shard: Shard<Sim>) -> u32 {
    let (mut loops, mut began) = (0, false);
    while !began || shard.sessions() > 0 {
        shard.step().expect("the simulated driver does not fail");
        began |= shard.sessions() > 0;
        loops += 1;
    }
    loops
}

fn relay(c: &mut Criterion) {
    let mut group = c.benchmark_group("relay");
    for (sessions, bytes) in [(1, 64), (64, 64), (1, 4096)] {
        group.throughput(Throughput::Elements(u64::from(sessions * TURNS * 2)));
        let case = format!("{sessions} x {bytes} B");
        group.bench_function(BenchmarkId::new("shard", &case), |b| {
            b.iter_batched(|| shard(sessions, bytes), serve, BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("wire", &case), |b| {
            b.iter_batched(|| world(sessions, bytes), wire::run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
