//! What one new session costs in decisions: a place, an arm, a backend, a shard, its counters. `cargo bench decisions`.
//!
//! Each is taken once a session and never on the byte path; these benches keep them far below the price of one system
//! call.

use criterion::{Criterion, criterion_group, criterion_main};
use ringway::config::file;
use ringway::driver::Driver;
use ringway::driver::sim::{Faults, Sim, World};
use ringway::event::Arm;
use ringway::policy::snapshot::{BackendIndex, Snapshot};
use ringway::session::routes::Routes;
use ringway::shard::mailbox::Mail;
use ringway::shard::placement::{Load, Neighbour, elsewhere};
use ringway::tally::Tally;
use std::hint::black_box;
use std::sync::Arc;

/// A snapshot with a canary of 5 % and this many backends in the stable pool, of weights 1, 2, 3, 1, 2, 3, ...
fn snapshot(backends: u16) -> Snapshot {
    let backends: Vec<String> = (0..backends)
        .map(|n| {
            let (a, b, weight) = (n / 250, n % 250 + 1, n % 3 + 1);
            format!("{{ address = \"10.0.{a}.{b}:9000\", weight = {weight} }}")
        })
        .collect();
    let text = format!(
        "[listeners.orders]\nbind = \"127.0.0.1:9000\"\nstable = \"v1\"\ncanary = \"v2\"\n\
         canary_percent = 5\n[pools.v1]\nbackends = [{}]\n[pools.v2]\nbackends = [\"10.1.0.1:9000\"]\n",
        backends.join(", ")
    );
    Snapshot::new(file::parse(&text).expect("the bench's own config is good"), None)
}

/// The listener `orders` and the pool `v1`, by their places in the config.
const LISTENER: usize = 0;
const POOL: usize = 0;

fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("decisions");
    let few = snapshot(3);
    group.bench_function("admit: a place taken and given back", |b| {
        b.iter(|| {
            let entered = few.enter(black_box(LISTENER));
            few.leave(black_box(LISTENER));
            entered
        });
    });
    group.bench_function("split: stable or canary", |b| {
        b.iter(|| few.assign(black_box(LISTENER)));
    });
    for backends in [3, 250] {
        let snapshot = snapshot(backends);
        group.bench_function(format!("balance: the next of {backends} backends"), |b| {
            b.iter(|| snapshot.next_backend(black_box(POOL)));
        });
        group.bench_function(format!("balance: another of {backends}, two failed"), |b| {
            b.iter(|| snapshot.another_backend(black_box(POOL), black_box(&[0, 1])));
        });
    }
    group.finish();
}

fn places(c: &mut Criterion) {
    let mut group = c.benchmark_group("decisions");
    let snapshot = snapshot(3);
    let mut routes = Routes::new(Arc::new(Tally::default()));
    let backend = Some(BackendIndex { pool: 0, backend: 1 });
    group.bench_function("route: the counters of a known route", |b| {
        b.iter(|| routes.of(&snapshot, 0, black_box(Arm::Stable), black_box(backend)));
    });
    let world = World::new(1, Faults::none());
    let neighbours: Vec<Neighbour> = (0..15)
        .map(|_| {
            let (mail, _) = Mail::new(Sim::new(&world, 2, 64).waker());
            let load = Arc::new(Load::default());
            (0..100).for_each(|_| load.add());
            Neighbour { load, mail }
        })
        .collect();
    group.bench_function("place: this shard or one of 15 others", |b| {
        b.iter(|| elsewhere(black_box(100), black_box(&neighbours)).is_some());
    });
    group.finish();
}

criterion_group!(benches, policy, places);
criterion_main!(benches);
