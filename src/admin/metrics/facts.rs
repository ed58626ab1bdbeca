//! What one scrape reads: taken once, so that each lock is held once and each number is read once.

use super::process::Process;
use crate::control::board::{Board, PathChoice, ShardEntry};
use crate::event::EndReason;
use crate::policy::health::Fault;
use crate::policy::snapshot::Snapshot;
use crate::tally::{Histogram, RouteName, RouteTally};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What one scrape reads.
pub(super) struct Facts {
    pub(super) ready: bool,
    pub(super) path: Option<Arc<PathChoice>>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) reloads_applied: u64,
    pub(super) reloads_refused: u64,
    pub(super) path_seen: [Option<f64>; 2],
    pub(super) path_changes: u64,
    pub(super) rollbacks: [u64; Fault::ALL.len()],
    pub(super) rebalanced: u64,
    pub(super) shard_panics: u64,
    pub(super) journal_written: u64,
    pub(super) shards: Vec<Arc<ShardEntry>>,
    pub(super) routes: Vec<Route>,
    pub(super) process: Process,
}

impl Facts {
    /// Reads them.
    pub(super) fn read(board: &Board) -> Self {
        let number = |count: &AtomicU64| count.load(Relaxed);
        let shards = board.shards();
        let path = board.path.load_full();
        Self {
            ready: board.ready.load(Relaxed),
            path_seen: path.as_ref().map_or([None; 2], |path| board.seen(path)),
            path,
            rollbacks: board.rollbacks.each_ref().map(number),
            rebalanced: number(&board.rebalanced),
            snapshot: board.snapshot.load_full(),
            reloads_applied: number(&board.reloads_applied),
            reloads_refused: number(&board.reloads_refused),
            path_changes: number(&board.path_changes),
            shard_panics: number(&board.shard_panics),
            journal_written: number(&board.journal_written),
            routes: routes_of(&shards),
            shards,
            process: Process::read(),
        }
    }

    /// Which reasons any session has ended with: the others would be 19 rows of 0 for each route.
    pub(super) fn reasons_seen(&self) -> impl Iterator<Item = (usize, &'static str)> + '_ {
        let all = EndReason::ALL.iter().map(|reason| reason.label()).enumerate();
        all.filter(|&(at, _)| self.routes.iter().any(|route| route.ended[at] > 0))
    }
}

/// One route, all shards together.
pub(super) struct Route {
    pub(super) name: RouteName,
    pub(super) opened: u64,
    pub(super) open: u64,
    pub(super) ended: [u64; EndReason::ALL.len()],
    pub(super) up_bytes: u64,
    pub(super) down_bytes: u64,
    pub(super) connect_failed: u64,
    pub(super) connect: Spread,
    pub(super) turn: Spread,
    pub(super) duration: Spread,
}

/// A histogram, all shards together.
#[derive(Default)]
pub(super) struct Spread {
    /// Upper bound in nanoseconds and count of each bucket, not cumulative.
    pub(super) buckets: Vec<(u64, u64)>,
    pub(super) above: u64,
    pub(super) sum_ns: u64,
}

impl Spread {
    /// What one histogram holds.
    pub(super) fn of<const N: usize>(one: &Histogram<N>) -> Self {
        let mut spread = Self::default();
        spread.add(one);
        spread
    }

    fn add<const N: usize>(&mut self, one: &Histogram<N>) {
        let (buckets, above, sum_ns) = one.read();
        if self.buckets.is_empty() {
            self.buckets.extend(buckets);
        } else {
            self.buckets.iter_mut().zip(buckets).for_each(|(all, (_, n))| all.1 += n);
        }
        self.above += above;
        self.sum_ns = self.sum_ns.wrapping_add(sum_ns);
    }
}

impl Route {
    fn new(name: RouteName) -> Self {
        Self {
            name,
            opened: 0,
            open: 0,
            ended: [0; EndReason::ALL.len()],
            up_bytes: 0,
            down_bytes: 0,
            connect_failed: 0,
            connect: Spread::default(),
            turn: Spread::default(),
            duration: Spread::default(),
        }
    }

    fn add(&mut self, one: &RouteTally) {
        self.opened += one.opened.get();
        // A session that opened on one shard and ended on another leaves +1 here and -1 there.
        self.open = self.open.wrapping_add(one.open.get());
        self.ended.iter_mut().zip(&one.ended).for_each(|(all, n)| *all += n.get());
        self.up_bytes += one.up_bytes.get();
        self.down_bytes += one.down_bytes.get();
        self.connect_failed += one.connect_failed.get();
        self.connect.add(&one.connect);
        self.turn.add(&one.turn);
        self.duration.add(&one.duration);
    }

    /// The values of the labels listener, arm, pool, backend.
    pub(super) fn labels(&self) -> [&str; 4] {
        [&self.name.listener, self.name.arm.label(), &self.name.pool, &self.name.backend]
    }
}

fn routes_of(shards: &[Arc<ShardEntry>]) -> Vec<Route> {
    let mut routes: BTreeMap<RouteName, Route> = BTreeMap::new();
    for tally in shards.iter().flat_map(|shard| shard.tally.routes()) {
        let route =
            routes.entry(tally.name.clone()).or_insert_with_key(|name| Route::new(name.clone()));
        route.add(&tally);
    }
    routes.into_values().collect()
}
