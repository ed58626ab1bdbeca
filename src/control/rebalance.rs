//! Live sessions change their shard where the load of shards differs for long.
//!
//! The decision is [`balance`]'s. A shard is asked twice what its sessions do, a second apart:
//! the first time only so that it begins to count.

use super::supervisor::Supervisor;
use crate::policy::balance::{self, Balance, Wish};
use crate::shard::inquiry::Weighed;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

/// What is known of the shards' loads.
#[derive(Debug, Default)]
pub(super) struct Evening {
    balance: Balance,
    /// CPU time of a shard and when it was read, as they were at the last look, in nanoseconds.
    seen: HashMap<usize, (u64, u64)>,
    /// What was asked of whom.
    asked: Option<Asked>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    /// The lanes, and the shards there.
    wish: Wish,
    from: usize,
    to: usize,
}

impl Supervisor {
    /// Reads how much of a core each shard used.
    pub(super) fn read_loads(&mut self) {
        let running: Vec<usize> = self.fleet.entries().map(|entry| entry.id).collect();
        let seen = &mut self.evening.seen;
        seen.retain(|shard, _| running.contains(shard));
        for entry in self.fleet.entries() {
            let now = (entry.tally.shard.cpu_ns.get(), entry.tally.shard.looked_ns.get());
            let (cpu_ns, looked_ns) = *seen.entry(entry.id).or_insert(now);
            let passed_ns = now.1.saturating_sub(looked_ns);
            // A shard that sleeps looks at its clock a little later than control.
            let used_ns = now.0.saturating_sub(cpu_ns);
            if let Some(busy) = used_ns.saturating_mul(1000).checked_div(passed_ns) {
                entry.busy.store(busy, Relaxed);
                seen.insert(entry.id, now);
            }
        }
    }

    /// Looks at the loads once, and asks the busiest shard for its heaviest sessions where it is time.
    pub(super) fn look_at_loads(&mut self) {
        let asked = self.evening.asked.take();
        if !self.board.snapshot.load().config.shards.rebalance || self.fleet.is_moving() {
            return;
        }
        let Some(wish) = self.evening.balance.look(&self.fleet.lane_loads()) else { return };
        let Some((from, to)) = self.fleet.pair(wish.from, wish.to) else { return };
        let counts = asked.is_some_and(|asked| asked.from == from);
        self.evening.asked = Some(Asked { wish, from, to });
        self.fleet.weigh(from, counts);
    }

    /// Lets some of a shard's heaviest sessions go to the shard that does least.
    pub(super) fn even_out(&mut self, weighed: &Weighed) {
        let Some(asked) = self.evening.asked.take() else { return };
        if asked.from != weighed.shard {
            return;
        }
        let Asked { wish, from, to } = asked;
        let busy = |entry: &std::sync::Arc<super::board::ShardEntry>| entry.busy.load(Relaxed);
        let load = self.fleet.entries().find(|entry| entry.id == from).map_or(0, busy);
        let chosen = balance::choose(wish.gap, load, weighed.total, &weighed.heaviest);
        self.evening.balance.stepped();
        if chosen.is_empty() {
            return;
        }
        for session in &chosen {
            self.fleet.move_session(*session, to, None);
        }
        self.board.rebalanced.fetch_add(chosen.len() as u64, Relaxed);
        let sessions = chosen.len();
        tracing::info!(
            from,
            to,
            gap_permille = wish.gap,
            sessions,
            "live sessions even the load out"
        );
    }
}
