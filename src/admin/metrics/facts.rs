//! What one scrape reads: taken once, so that each lock is held once and each number is read once.

use super::process::Process;
use crate::control::board::{Board, PathChoice};
use crate::control::totals::{ShardTotal, Totals, rollbacks_name};
use crate::event::EndReason;
use crate::policy::health::Fault;
use crate::policy::snapshot::Snapshot;
use crate::tally::{Histogram, RouteName, RouteTally};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

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
    pub(super) upgrades_done: u64,
    pub(super) upgrades_failed: u64,
    /// Which of a line of processes this is.
    pub(super) generation: u64,
    /// Sessions that are open in the process before this one.
    pub(super) sessions_to_come: u64,
    pub(super) shards: Vec<ShardTotal>,
    pub(super) routes: Vec<Route>,
    pub(super) process: Process,
}

impl Facts {
    /// Reads them.
    pub(super) fn read(board: &Board) -> Self {
        let totals = Totals::of(board);
        let path = board.path.load_full();
        Self {
            ready: board.ready.load(Relaxed),
            path_seen: path.as_ref().map_or([None; 2], |path| board.seen(path)),
            path,
            rollbacks: Fault::ALL.map(|fault| totals.count(&rollbacks_name(fault))),
            rebalanced: totals.count("rebalanced"),
            snapshot: board.snapshot.load_full(),
            reloads_applied: totals.count("reloads_applied"),
            reloads_refused: totals.count("reloads_refused"),
            path_changes: totals.count("path_changes"),
            shard_panics: totals.count("shard_panics"),
            journal_written: totals.count("journal_written"),
            upgrades_done: totals.count("upgrades_done"),
            upgrades_failed: totals.count("upgrades_failed"),
            generation: board.process.load(Relaxed),
            sessions_to_come: board.sessions_to_come(),
            routes: totals.routes.iter().map(Route::of).collect(),
            shards: totals.shards,
            process: Process::read(),
        }
    }

    /// Which reasons any session has ended with: the others would be rows of 0 for each route.
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
pub(super) struct Spread {
    /// Upper bound in nanoseconds and count of each bucket, not cumulative.
    pub(super) buckets: Vec<(u64, u64)>,
    pub(super) above: u64,
    pub(super) sum_ns: u64,
}

impl Spread {
    /// What a histogram holds.
    pub(super) fn of<const N: usize>(one: &Histogram<N>) -> Self {
        let (buckets, above, sum_ns) = one.read();
        Self { buckets: buckets.collect(), above, sum_ns }
    }
}

impl Route {
    fn of(all: &RouteTally) -> Self {
        let mut ended = [0; EndReason::ALL.len()];
        ended.iter_mut().zip(&all.ended).for_each(|(n, count)| *n = count.get());
        Self {
            name: all.name.clone(),
            opened: all.opened.get(),
            open: all.open.get(),
            ended,
            up_bytes: all.up_bytes.get(),
            down_bytes: all.down_bytes.get(),
            connect_failed: all.connect_failed.get(),
            connect: Spread::of(&all.connect),
            turn: Spread::of(&all.turn),
            duration: Spread::of(&all.duration),
        }
    }

    /// The values of the labels listener, arm, pool, backend.
    pub(super) fn labels(&self) -> [&str; 4] {
        [&self.name.listener, self.name.arm.label(), &self.name.pool, &self.name.backend]
    }
}
