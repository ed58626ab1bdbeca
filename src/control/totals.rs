//! All that was counted in a line of processes: by this one, and by those it took the place of, so that totals never
//! fall when a process is replaced.

use super::board::Board;
use crate::event::{Arm, EndReason};
use crate::policy::health::Fault;
use crate::policy::snapshot::Limit;
use crate::tally::{Histogram, LOG_LOST, Named, RouteName, RouteTally, ShardTally};
use crate::wire::handover::{self as wire, RouteTotals, ShardTotals, Spread};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// All that was counted.
#[derive(Debug, Default)]
pub struct Totals {
    /// Of the processes, by name.
    pub counts: BTreeMap<String, u64>,
    /// Of their shards.
    pub shards: Vec<ShardTotal>,
    /// Of their routes.
    pub routes: Vec<RouteTally>,
}

/// What the shards of one number and data path counted, one after the other.
#[derive(Debug)]
pub struct ShardTotal {
    /// The shard's number.
    pub id: usize,
    /// Its data path.
    pub path: String,
    /// Its counters.
    pub tally: ShardTally,
}

impl Totals {
    /// What a process has counted, and what it inherited.
    #[must_use]
    pub fn of(board: &Board) -> Self {
        let mut totals = Self::default();
        let own: [(&str, &AtomicU64); 10] = [
            ("reloads_applied", &board.reloads_applied),
            ("reloads_refused", &board.reloads_refused),
            ("path_changes", &board.path_changes),
            ("rebalanced", &board.rebalanced),
            ("shard_panics", &board.shard_panics),
            ("journal_written", &board.journal_written),
            ("log_lost_full", &LOG_LOST.full),
            ("log_lost_failed", &LOG_LOST.failed),
            ("upgrades_done", &board.upgrades_done),
            ("upgrades_failed", &board.upgrades_failed),
        ];
        for (name, count) in own {
            totals.counts.insert(name.to_owned(), count.load(Relaxed));
        }
        for (fault, count) in Fault::ALL.into_iter().zip(&board.rollbacks) {
            totals.counts.insert(rollbacks_name(fault), count.load(Relaxed));
        }
        for (name, limit, count) in board.snapshot.load().no_place() {
            totals.counts.insert(no_place_name(name, limit), count);
        }
        for shard in board.shards() {
            totals.add_shard(shard.id, shard.kind.label(), &shard.tally.shard);
            shard.tally.routes().iter().for_each(|route| totals.add_route(route));
        }
        if let Some(inherited) = board.inherited.load_full() {
            for (name, n) in &inherited.counts {
                *totals.counts.entry(name.clone()).or_default() += n;
            }
            for shard in &inherited.shards {
                totals.add_shard(shard.id, &shard.path, &shard.tally);
            }
            inherited.routes.iter().for_each(|route| totals.add_route(route));
        }
        totals.shards.sort_by(|a, b| (a.id, &a.path).cmp(&(b.id, &b.path)));
        totals.routes.sort_by(|a, b| a.name.cmp(&b.name));
        totals
    }

    /// One of the process's counts.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// The same when nobody counts there any more: what is open now is nothing.
    #[must_use]
    pub fn closed(&self) -> Self {
        let closed = Self::of_record(self.record());
        let shards = closed.shards.iter().flat_map(|shard| shard.tally.counts());
        let routes = closed.routes.iter().flat_map(RouteTally::counts);
        for (_, is_total, count) in shards.chain(routes) {
            if !is_total {
                count.set(0);
            }
        }
        closed
    }

    /// What another process is told.
    #[must_use]
    pub fn record(&self) -> wire::Totals {
        let shards = self.shards.iter().map(|shard| ShardTotals {
            id: shard.id,
            path: shard.path.clone(),
            counts: named(&shard.tally.counts()),
            pause: spread(&shard.tally.pause),
            work: spread(&shard.tally.work),
        });
        let routes = self.routes.iter().map(|route| RouteTotals {
            listener: route.name.listener.to_string(),
            canary: route.name.arm == Arm::Canary,
            pool: route.name.pool.to_string(),
            backend: route.name.backend.to_string(),
            counts: named(&route.counts()),
            ended: reasons(route),
            connect: spread(&route.connect),
            turn: spread(&route.turn),
            duration: spread(&route.duration),
        });
        wire::Totals {
            counts: self.counts.clone(),
            shards: shards.collect(),
            routes: routes.collect(),
        }
    }

    /// What another process told. Names nobody knows here are passed over.
    #[must_use]
    pub fn of_record(record: wire::Totals) -> Self {
        let shards = record.shards.into_iter().map(|of| {
            let tally = ShardTally::default();
            fill(&tally.counts(), &of.counts);
            refill(&tally.pause, &of.pause);
            refill(&tally.work, &of.work);
            ShardTotal { id: of.id, path: of.path, tally }
        });
        let routes = record.routes.into_iter().map(|of| {
            let route = RouteTally::new(RouteName {
                listener: of.listener.into(),
                arm: if of.canary { Arm::Canary } else { Arm::Stable },
                pool: of.pool.into(),
                backend: of.backend.into(),
            });
            fill(&route.counts(), &of.counts);
            for (reason, count) in EndReason::ALL.iter().zip(&route.ended) {
                count.set(of.ended.get(reason.label()).copied().unwrap_or(0));
            }
            refill(&route.connect, &of.connect);
            refill(&route.turn, &of.turn);
            refill(&route.duration, &of.duration);
            route
        });
        Self { counts: record.counts, shards: shards.collect(), routes: routes.collect() }
    }

    fn add_shard(&mut self, id: usize, path: &str, tally: &ShardTally) {
        let known = self.shards.iter().position(|shard| shard.id == id && shard.path == path);
        let at = known.unwrap_or_else(|| {
            let (path, tally) = (path.to_owned(), ShardTally::default());
            self.shards.push(ShardTotal { id, path, tally });
            self.shards.len() - 1
        });
        self.shards[at].tally.merge(tally);
    }

    fn add_route(&mut self, route: &RouteTally) {
        let known = self.routes.iter().position(|known| known.name == route.name);
        let at = known.unwrap_or_else(|| {
            self.routes.push(RouteTally::new(route.name.clone()));
            self.routes.len() - 1
        });
        self.routes[at].merge(route);
    }
}

/// The name of the count of shards that went back to epoll for this.
#[must_use]
pub fn rollbacks_name(fault: Fault) -> String {
    format!("rollbacks_{}", fault.label())
}

/// The name of the count of clients that this limit had no place for at a listener.
#[must_use]
pub fn no_place_name(listener: &str, limit: Limit) -> String {
    format!("no_place_{}:{listener}", limit.label())
}

fn named(counts: &[Named<'_>]) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, _, count)| ((*name).to_owned(), count.get())).collect()
}

fn fill(counts: &[Named<'_>], from: &BTreeMap<String, u64>) {
    for (name, _, count) in counts {
        count.set(from.get(*name).copied().unwrap_or(0));
    }
}

fn reasons(route: &RouteTally) -> BTreeMap<String, u64> {
    let counts = EndReason::ALL.iter().zip(&route.ended);
    let seen = counts.filter(|(_, count)| count.get() > 0);
    seen.map(|(reason, count)| (reason.label().to_owned(), count.get())).collect()
}

fn spread<const N: usize>(of: &Histogram<N>) -> Spread {
    let (buckets, above, sum_ns) = of.read();
    Spread { buckets: buckets.filter(|(_, n)| *n > 0).collect(), above, sum_ns }
}

fn refill<const N: usize>(histogram: &Histogram<N>, from: &Spread) {
    from.buckets.iter().for_each(|(bound, n)| histogram.put(Some(*bound), *n, 0));
    histogram.put(None, from.above, from.sum_ns);
}

impl Board {
    /// Takes over what the process before this one has counted so far.
    pub(crate) fn inherit(&self, record: wire::Totals) {
        self.inherited.store(Some(Arc::new(Totals::of_record(record))));
    }

    /// The process before this one has gone.
    pub(crate) fn stand_alone(&self) {
        self.predecessor.store(0, Relaxed);
        if let Some(inherited) = self.inherited.load_full() {
            self.inherited.store(Some(Arc::new(inherited.closed())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;
    use crate::config::limits;
    use crate::control::board::ShardEntry;
    use crate::driver::Kind;
    use crate::policy::snapshot::Snapshot;

    fn board() -> Board {
        let config = parse(
            "[listeners.l]\nbind = \"127.0.0.1:0\"\nstable = \"p\"\n\
             [pools.p]\nbackends = [\"127.0.0.1:1\"]",
        );
        let board = Board::new(Snapshot::new(config.unwrap(), None));
        let tally = Arc::default();
        board.add_shard(Arc::new(ShardEntry::new(0, Kind::Epoll, None, tally)));
        board
    }

    fn count(board: &Board) {
        let tally = Arc::clone(&board.shards()[0].tally);
        tally.shard.accepted.add(10);
        tally.shard.sessions.add(2);
        tally.shard.pause.record(30_000);
        let name = RouteName {
            listener: "l".into(),
            arm: Arm::Canary,
            pool: "p".into(),
            backend: "b".into(),
        };
        let route = tally.route(&name);
        route.up_bytes.add(100);
        route.open.add(2);
        route.ended[EndReason::Idle as usize].add(3);
        route.finished_by_backend.add(7);
        route.turn.record(1_000);
        tally.shard.begun.add(5);
        tally.shard.spilled_bytes.add(8);
        board.reloads_applied.fetch_add(1, Relaxed);
        board.add_rollback(Fault::Watchdog, 0);
        board.rebalanced.fetch_add(3, Relaxed);
    }

    #[test]
    fn shards_that_ended_long_ago_are_one_and_totals_stay() {
        let board = board();
        for id in 1..5 {
            let entry = ShardEntry::new(id, Kind::Epoll, Some(id), Arc::default());
            board.add_shard(Arc::new(entry));
        }
        for (id, shard) in board.shards().iter().enumerate() {
            shard.tally.shard.accepted.add(10);
            shard.tally.shard.buffers.set(7);
            shard.tally.shard.next_id.set(100 + id as u64);
            let name = RouteName {
                listener: "l".into(),
                arm: Arm::Stable,
                pool: "p".into(),
                backend: "b".into(),
            };
            let route = shard.tally.route(&name);
            // Opened on one shard, carried, and ended on another.
            route.opened.add(u64::from(id == 0));
            if id == 0 {
                route.open.add(1);
            } else if id == 3 {
                route.open.sub(1);
            }
        }
        let (before, first) = (board.shards(), board.shards()[0].clone());
        before.iter().for_each(|shard| board.end_shard(shard));
        for id in 100..100 + 2 * limits::ENDED_SHARDS_MAX {
            let next = Arc::new(ShardEntry::new(id, Kind::Epoll, None, Arc::default()));
            next.tally.shard.accepted.add(1);
            board.add_shard(Arc::clone(&next));
            board.end_shard(&next);
            let totals = Totals::of(&board);
            let sum = |of: fn(&ShardTally) -> u64| -> u64 {
                totals.shards.iter().map(|shard| of(&shard.tally)).sum()
            };
            assert_eq!(sum(|t| t.accepted.get()), 50 + id as u64 - 99);
            assert_eq!(sum(|t| t.buffers.get()), 0, "what is now is not kept");
            assert_eq!((totals.routes[0].opened.get(), totals.routes[0].open.get()), (1, 0));
        }
        assert_eq!(
            board.shards().len(),
            limits::ENDED_SHARDS_MAX + 1,
            "the oldest stands for all before"
        );
        let next = board.shards().iter().map(|shard| shard.tally.shard.next_id.get()).max();
        assert_eq!(next, Some(104), "ids of sessions go on");
        assert_eq!(first.tally.shard.accepted.get(), 10, "who reads meanwhile sees no change");
    }

    #[test]
    fn totals_go_through_three_processes_and_never_fall() {
        let first = board();
        count(&first);
        let second = board();
        second.inherit(Totals::of(&first).record());
        count(&second);
        assert_eq!(second.sessions_to_come(), 2);
        let third = board();
        let told = Totals::of(&second).record();
        third.inherit(told.clone());
        let all = Totals::of(&third);
        assert_eq!(all.record(), wire::Totals { counts: all.counts.clone(), ..told });
        assert_eq!((all.count("reloads_applied"), all.shards.len(), all.routes.len()), (2, 1, 1));
        let (shard, route) = (&all.shards[0].tally, &all.routes[0]);
        assert_eq!((shard.accepted.get(), shard.sessions.get(), shard.begun.get()), (20, 4, 10));
        assert_eq!((all.count(&rollbacks_name(Fault::Watchdog)), all.count("rebalanced")), (2, 6));
        assert_eq!((route.up_bytes.get(), route.ended[EndReason::Idle as usize].get()), (200, 6));
        assert_eq!(route.finished_by_backend.get(), 14);
        let (_, above, sum_ns) = route.turn.read();
        assert_eq!((above, sum_ns), (0, 2_000));

        third.stand_alone();
        let all = Totals::of(&third);
        let shard = &all.shards[0].tally;
        assert_eq!((shard.accepted.get(), shard.sessions.get(), shard.begun.get()), (20, 0, 10));
        assert_eq!(shard.spilled_bytes.get(), 0, "what is held now goes with its process");
        assert_eq!((all.routes[0].up_bytes.get(), all.routes[0].open.get()), (200, 0));
    }
}
