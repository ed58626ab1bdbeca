//! What shards are asked about their sessions, and single sessions that are carried.

use super::{Fleet, Member};
use crate::control::Cause;
use crate::control::board::ShardEntry;
use crate::driver::Kind;
use crate::shard::inquiry::{Inquiry, Listed, MoveSaid};
use crate::shard::mailbox::Order;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

impl Fleet {
    /// Asks all shards, or one, for the sessions in their slots. Whether there is such a shard.
    pub(in crate::control) fn list(
        &self,
        shard: Option<usize>,
        (from, slots): (u32, u32),
        to: &Arc<Inquiry<Listed>>,
    ) -> bool {
        let asked = self.members().filter(|m| shard.is_none_or(|shard| m.entry.id == shard));
        let mut found = shard.is_none();
        for member in asked {
            found = true;
            // A shard that is gone has no sessions.
            let _ = member.mail.send(Order::List { from, slots, to: Arc::clone(to) });
        }
        found
    }

    /// Carries a live session to a shard, wherever it is. Whether there is such a shard, in a lane.
    pub(in crate::control) fn move_session(
        &self,
        session: u64,
        shard: usize,
        told: Option<&Arc<Inquiry<MoveSaid>>>,
    ) -> bool {
        let mut staying = self.lanes.iter().flat_map(|lane| &lane.shards);
        let to = staying.find(|m| m.entry.id == shard).map(Member::as_neighbour);
        let Some(to) = to else { return false };
        self.tell_all(|| Order::Move { session, to: to.clone(), told: told.cloned() });
        true
    }

    /// Asks a shard what its sessions did since it was asked last; the answer comes as [`Cause::Weighed`] where
    /// `tell` says so.
    pub(in crate::control) fn weigh(&self, shard: usize, tell: bool) {
        let causes = self.causes.clone();
        let asked = Inquiry::new(move |said| {
            for weighed in said.into_iter().filter(|_| tell) {
                // Control that has gone does not want to know.
                let _ = causes.send(Cause::Weighed(weighed));
            }
        });
        if let Some(member) = self.members().find(|m| m.entry.id == shard) {
            let _ = member.mail.send(Order::Weigh(asked));
        }
    }

    /// The load of each lane in thousandths of a core.
    pub(in crate::control) fn lane_loads(&self) -> Vec<u64> {
        let busy = |member: &Member| member.entry.busy.load(Relaxed);
        self.lanes.iter().map(|lane| lane.shards.iter().map(busy).sum()).collect()
    }

    /// The shard of lane `from` that does most, and the shard of lane `to` that its sessions may go to.
    pub(in crate::control) fn pair(&self, from: usize, to: usize) -> Option<(usize, usize)> {
        let busiest = self.lanes[from].shards.iter().max_by_key(|m| m.entry.busy.load(Relaxed))?;
        let kind = busiest.entry.kind;
        let is_held = self.lanes[to].held.is_some() && kind == Kind::Uring;
        let to = self.member_of(to, kind).filter(|_| !is_held)?;
        Some((busiest.entry.id, to.entry.id))
    }

    /// All shards that run.
    pub(in crate::control) fn entries(&self) -> impl Iterator<Item = &Arc<ShardEntry>> {
        self.members().map(|member| &member.entry)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.lanes.iter().flat_map(|lane| &lane.shards).chain(&self.leaving)
    }
}
