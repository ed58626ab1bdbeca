//! What one scrape reads: taken once, so that each lock is held once and each number is read once.

use super::process::Process;
use crate::config::Name;
use crate::control::board::{Board, PathChoice};
use crate::control::totals::{ShardTotal, Totals, no_place_name, rollbacks_name};
use crate::event::{Arm, EndReason};
use crate::policy::health::Fault;
use crate::policy::snapshot::{Limit, Snapshot};
use crate::tally::{Histogram, RouteName, RouteTally};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What one scrape reads.
pub(super) struct Facts {
    pub(super) ready: bool,
    pub(super) path: Option<Arc<PathChoice>>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) reloads_applied: u64,
    pub(super) reloads_refused: u64,
    /// Whether the last reload was applied, and when a config was last taken up, in seconds of the calendar.
    pub(super) config_taken: (bool, u64),
    /// Clients that found no place: by listener and which limit said so.
    pub(super) no_place: Vec<(Name, Limit, u64)>,
    pub(super) path_seen: [Option<f64>; 2],
    pub(super) path_changes: u64,
    pub(super) rollbacks: [u64; Fault::ALL.len()],
    pub(super) rebalanced: u64,
    pub(super) shard_panics: u64,
    pub(super) journal_written: u64,
    /// Lines of the log that found no room, and those that could not be written.
    pub(super) log_lost: [u64; 2],
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
        let snapshot = board.snapshot.load_full();
        Self {
            ready: board.ready.load(Relaxed),
            path_seen: path.as_ref().map_or([None; 2], |path| board.seen(path)),
            path,
            rollbacks: Fault::ALL.map(|fault| totals.count(&rollbacks_name(fault))),
            rebalanced: totals.count("rebalanced"),
            reloads_applied: totals.count("reloads_applied"),
            reloads_refused: totals.count("reloads_refused"),
            config_taken: board.config_taken(),
            no_place: no_place(&snapshot, &totals),
            path_changes: totals.count("path_changes"),
            shard_panics: totals.count("shard_panics"),
            journal_written: totals.count("journal_written"),
            log_lost: ["log_lost_full", "log_lost_failed"].map(|name| totals.count(name)),
            upgrades_done: totals.count("upgrades_done"),
            upgrades_failed: totals.count("upgrades_failed"),
            generation: board.process.load(Relaxed),
            sessions_to_come: board.sessions_to_come(),
            routes: routes(&snapshot, &totals),
            snapshot,
            shards: totals.shards,
            process: Process::read(),
        }
    }

    /// Which reasons are shown: faults always, for a growth from nothing is seen only where a 0 was shown before; of
    /// the others those any session has ended with, for the rest would be rows of 0 for each route.
    pub(super) fn reasons_shown(&self) -> impl Iterator<Item = (usize, &'static str)> + '_ {
        let all = EndReason::ALL.iter().enumerate();
        let shown = all.filter(|(at, reason)| {
            reason.whose().is_ours() || self.routes.iter().any(|route| route.ended[*at] > 0)
        });
        shown.map(|(at, reason)| (at, reason.label()))
    }
}

/// All routes sessions have taken, and those of the config in force that none has yet.
fn routes(snapshot: &Snapshot, totals: &Totals) -> Vec<Route> {
    let config = &snapshot.config;
    let mut unmet = BTreeSet::new();
    for listener in &config.listeners {
        let arms = [(Arm::Stable, Some(listener.stable)), (Arm::Canary, listener.canary)];
        for (arm, pool) in arms.into_iter().filter_map(|(arm, pool)| Some((arm, pool?))) {
            let pool = &config.pools[pool];
            // Without a backend: the route of sessions that end before one is chosen.
            let names = pool.backends.iter().map(|backend| Name::clone(&backend.name));
            for backend in names.chain([Name::from("")]) {
                let (listener, pool) = (Name::clone(&listener.name), Name::clone(&pool.name));
                unmet.insert(RouteName { listener, arm, pool, backend });
            }
        }
    }
    for route in &totals.routes {
        unmet.remove(&route.name);
    }
    let unmet =
        unmet.into_iter().map(|name| Route { met: false, ..Route::of(&RouteTally::new(name)) });
    let mut routes: Vec<Route> = totals.routes.iter().map(Route::of).chain(unmet).collect();
    routes.sort_by(|a, b| a.name.cmp(&b.name));
    routes
}

/// Of the listeners there are, in this process and those before it.
fn no_place(snapshot: &Snapshot, totals: &Totals) -> Vec<(Name, Limit, u64)> {
    let own = snapshot.no_place();
    let before = |name: &Name, limit| totals.count(&no_place_name(name, limit));
    own.map(|(name, limit, _)| (Name::clone(name), limit, before(name, limit))).collect()
}

/// One route, all shards together.
pub(super) struct Route {
    /// Whether any session took it. Where none did, its histograms are not shown: they would be most of the page.
    pub(super) met: bool,
    pub(super) name: RouteName,
    pub(super) opened: u64,
    pub(super) open: u64,
    pub(super) ended: [u64; EndReason::ALL.len()],
    pub(super) finished_by_backend: u64,
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
            met: true,
            name: all.name.clone(),
            opened: all.opened.get(),
            open: all.open.get(),
            ended,
            finished_by_backend: all.finished_by_backend.get(),
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
