//! Shards whose ring misbehaves go back to epoll by themselves, with their clients and their live sessions.
//!
//! They stay there until an operator asks for io_uring again or [`limits::RING_HOLD_MS`] have passed, so nothing flaps.

use super::supervisor::Supervisor;
use crate::config::limits;
use crate::driver::{Kind, sys};
use crate::policy::health::{Fault, Ring, Totals};
use crate::time::Time;
use std::collections::HashMap;

/// What is known of the rings.
#[derive(Debug, Default)]
pub(super) struct Rings {
    /// By the shard's number.
    seen: HashMap<usize, Ring>,
    /// Shards that are to go back, as soon as a change of the data path under way is over.
    condemned: Vec<(usize, Fault)>,
}

impl Supervisor {
    /// Looks at all rings once, and takes shards whose ring misbehaves back to epoll.
    pub(super) fn watch_rings(&mut self, now: Time) {
        let mut there = vec![];
        for entry in self.fleet.entries().filter(|entry| entry.kind == Kind::Uring) {
            let shard = &entry.tally.shard;
            let totals = Totals {
                cq_overflow: shard.cq_overflow.get(),
                enter_failed: shard.enter_failed.get(),
                watchdog: shard.watchdog.get(),
            };
            there.push(entry.id);
            let ring = self.rings.seen.entry(entry.id).or_insert_with(|| Ring::new(totals));
            let fault = ring.look(totals);
            let known = self.rings.condemned.iter().any(|(id, _)| *id == entry.id);
            if let Some(fault) = fault.filter(|_| !known) {
                self.rings.condemned.push((entry.id, fault));
                // What was held against it is settled with this.
                *ring = Ring::new(totals);
            }
        }
        self.rings.seen.retain(|id, _| there.contains(id));
        self.rings.condemned.retain(|(id, _)| there.contains(id));
        if self.fleet.is_moving() {
            return;
        }
        for (shard, fault) in std::mem::take(&mut self.rings.condemned) {
            match self.fleet.hold(shard, now.plus_ms(limits::RING_HOLD_MS), &self.ports) {
                Ok(true) => self.tell_rollback(shard, fault),
                Ok(false) => {}
                Err(error) => tracing::error!(shard, %error, "a shard cannot go back to epoll"),
            }
        }
        match self.fleet.forgive(now, &self.ports) {
            Ok(0) => {}
            Ok(shards) => tracing::warn!(shards, "a hold is over: io_uring is tried again"),
            Err(error) => tracing::error!(%error, "a ring could not be made again"),
        }
    }

    /// Until when the lane of a shard that failed is to stay on epoll; `None`: it has no ring that could be to blame.
    pub(super) fn hold_of(&self, shard: usize) -> Option<Time> {
        let kind = self.fleet.entries().find(|entry| entry.id == shard).map(|entry| entry.kind);
        let hold = kind == Some(Kind::Uring);
        hold.then(|| {
            self.tell_rollback(shard, Fault::ShardFailed);
            sys::now().plus_ms(limits::RING_HOLD_MS)
        })
    }

    fn tell_rollback(&self, shard: usize, fault: Fault) {
        self.board.add_rollback(fault, shard);
        let hold_ms = limits::RING_HOLD_MS;
        tracing::error!(
            shard,
            reason = fault.label(),
            hold_ms,
            "RING ROLLBACK: a shard's ring misbehaves, its sessions go on on epoll; ask for the data path uring again \
             when the cause is found"
        );
    }
}
