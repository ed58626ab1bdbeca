//! Sessions that are carried from this shard to another, and those that come.
//!
//! A session that is to go settles first; a few settle at once, so that each pause stays short. What the other shard
//! has no room for comes back and goes on here, at the latest when buffers have come back.

use super::Shard;
use super::mailbox::Order;
use super::placement::Neighbour;
use crate::config::limits;
use crate::driver::{Driver, Key};
use crate::event::EndReason;
use crate::session::parcel::Parcel;
use crate::session::{Session, Step};
use crate::time::Time;
use std::collections::VecDeque;
use std::sync::Arc;

/// Which sessions are on their way out.
#[derive(Default)]
pub(super) struct Moves {
    /// Where all sessions are to go in turn, those that are still opening included; nowhere: they stay.
    evict_to: Arc<[Neighbour]>,
    /// Those whose turn comes later.
    waiting: VecDeque<(Key, Neighbour)>,
    /// When the next of them is looked at again that could not go.
    look_at: Option<Time>,
    /// Those that come to rest.
    settling: Vec<(Key, Neighbour)>,
    /// Those that came back when there was no room for them here either.
    parked: VecDeque<Box<Parcel>>,
    retry_at: Time,
}

impl Moves {
    /// Lets all stay that are not on their way yet.
    pub(super) fn stay(&mut self) {
        self.evict_to = Arc::default();
        self.waiting.clear();
    }

    /// Lets none go there any more whom nobody sent there by name: it has left.
    fn forget(&mut self, gone: &Neighbour) {
        let heirs = self.evict_to.iter();
        self.evict_to =
            heirs.filter(|heir| !Arc::ptr_eq(&heir.load, &gone.load)).cloned().collect();
    }

    /// Whether all are to go, and those too that begin here.
    pub(super) fn is_evicted(&self) -> bool {
        !self.evict_to.is_empty()
    }

    /// How many come to rest.
    pub(super) fn settling(&self) -> usize {
        self.settling.len()
    }

    /// How many wait for room.
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }
}

/// A key no session has, for steps that name none to the driver.
const NOBODY: Key = Key { slot: u32::MAX, generation: 0 };

/// Sends a session to another shard, or gives it back where that has left.
fn promise(
    to: &Neighbour,
    parcel: Box<Parcel>,
    home: Option<Neighbour>,
) -> Result<(), Box<Parcel>> {
    if !to.load.promise() {
        return Err(parcel);
    }
    if home.is_some() {
        to.load.sent();
    }
    to.mail.send(Order::Attach(parcel, home)).map_err(|unsent| {
        to.load.sub();
        let Order::Attach(parcel, home) = unsent else { unreachable!("what was sent comes back") };
        if home.is_some() {
            to.load.came();
        }
        parcel
    })
}

impl<D: Driver> Shard<D> {
    /// Sends all sessions to other shards, from now on until told otherwise.
    pub(super) fn evict(&mut self, to: Arc<[Neighbour]>) {
        self.moves.evict_to = to;
        self.moves.waiting.clear();
        self.evict_rest();
    }

    /// Queues the sessions that are to go and have not been asked yet.
    pub(super) fn evict_rest(&mut self) {
        let heirs = Arc::clone(&self.moves.evict_to);
        if self.moves.waiting.is_empty() && !heirs.is_empty() {
            let in_turn = heirs.iter().cloned().cycle();
            self.moves.waiting = self.sessions.keys().into_iter().zip(in_turn).collect();
        }
    }

    /// Lets one more session go to another shard.
    pub(super) fn queue_move(&mut self, key: Key, to: Neighbour) {
        self.moves.waiting.push_back((key, to));
    }

    /// Lets the next sessions settle, and forgets those that will not.
    pub(super) fn keep_moving(&mut self) {
        self.moves.look_at = None;
        if self.moves.waiting.is_empty() && self.moves.settling.is_empty() {
            return;
        }
        let settling = std::mem::take(&mut self.moves.settling);
        for (key, to) in settling {
            match self.sessions.session(key) {
                Some(session) if session.is_settling() => self.moves.settling.push((key, to)),
                Some(session) if session.is_relaying() => {
                    self.parts.tally.shard.moves_failed.add(1);
                }
                // It ended, which is no failure of the move.
                _ => {}
            }
        }
        while self.moves.settling.len() < limits::SETTLING_MAX {
            let Some((key, to)) = self.moves.waiting.pop_front() else { break };
            if to.load.has_left() {
                // Who is evicted goes to another; a move by order has come to nothing.
                let failed = !self.moves.is_evicted();
                self.parts.tally.shard.moves_failed.add(u64::from(failed));
                self.moves.forget(&to);
                continue;
            }
            if !to.load.has_room() {
                self.moves.waiting.push_front((key, to));
                self.moves.look_at = Some(self.now.plus_ms(limits::COMING_LOOK_MS));
                break;
            }
            // One that was asked before is on its way already.
            if self.moves.settling.iter().any(|(other, _)| *other == key) {
                continue;
            }
            self.moves.settling.push((key, to));
            let mut settles = false;
            self.with_session(key, |session, step| settles = session.settle(step));
            if !settles {
                self.moves.settling.retain(|(other, _)| *other != key);
            }
        }
    }

    /// Hands over a session that has come to rest.
    pub(super) fn depart(&mut self, key: Key) {
        let to = self.moves.settling.iter().position(|(other, _)| *other == key);
        let Some((_, to)) = to.map(|at| self.moves.settling.swap_remove(at)) else {
            self.with_session(key, Session::unsettle);
            return;
        };
        let Some(mut session) = self.sessions.take(key) else { return };
        self.timers.clear(key.slot);
        let frozen_ns = self.frozen_ns;
        let parcel = session.pack(&mut self.step_of(key), frozen_ns);
        self.parts.tally.shard.sessions.sub(1);
        match promise(&to, parcel, Some(self.parts.home.clone())) {
            Ok(()) => {
                self.parts.load.sub();
                self.parts.tally.shard.moves_out.add(1);
            }
            Err(parcel) => {
                self.parts.tally.shard.moves_failed.add(1);
                self.moves.forget(&to);
                self.attach(parcel, None);
            }
        }
    }

    /// Takes a session over that counts as this shard's load already. Without room it goes back to its `home`.
    pub(super) fn attach(&mut self, parcel: Box<Parcel>, home: Option<Neighbour>) {
        if home.is_some() {
            self.parts.load.came();
        }
        let Err(parcel) = self.take_in(parcel, home.is_some()) else { return };
        let Some(home) = home else { return self.park(parcel) };
        self.parts.tally.shard.moves_failed.add(1);
        match promise(&home, parcel, None) {
            Ok(()) => self.parts.load.sub(),
            Err(parcel) => self.park(parcel),
        }
    }

    /// Puts a session onto this shard's driver, or gives it back where there is no room. `moved`: it is not at home
    /// here.
    fn take_in(&mut self, parcel: Box<Parcel>, moved: bool) -> Result<(), Box<Parcel>> {
        let (frozen_ns, since) = (self.frozen_ns, parcel.settled_since());
        let upgraded = parcel.is_upgraded();
        let Some(key) = self.sessions.reserve() else { return Err(parcel) };
        match Session::unpack(&mut self.step_of(key), parcel, frozen_ns) {
            Ok(session) => {
                let shard = &self.parts.tally.shard;
                shard.sessions.add(1);
                shard.moves_in.add(u64::from(moved));
                shard.moves_upgrade.add(u64::from(upgraded));
                shard.pause.record((self.now + frozen_ns).since_ns(since));
                self.sessions.put(key, session);
                self.settle_in(key);
                Ok(())
            }
            Err(parcel) => {
                self.sessions.unreserve(key);
                Err(parcel)
            }
        }
    }

    /// Keeps a session that nobody has room for: its ends are told nothing, and it goes on when there is.
    pub(super) fn park(&mut self, parcel: Box<Parcel>) {
        self.parts.tally.shard.sessions.add(1);
        match self.ending {
            Some(why) => self.lose(*parcel, why),
            None => {
                self.moves.parked.push_back(parcel);
                self.moves.retry_at = self.now.plus_ms(limits::PARKED_RETRY_MS);
            }
        }
    }

    /// When parked sessions are to be tried again.
    fn next_retry(&self) -> Option<Time> {
        (!self.moves.parked.is_empty()).then_some(self.moves.retry_at)
    }

    /// When sessions that are to go or to come have their next try.
    pub(super) fn next_move(&self) -> Option<Time> {
        self.next_retry().into_iter().chain(self.moves.look_at).min()
    }

    /// Lets parked sessions go on, as far as there is room.
    pub(super) fn retry_parked(&mut self) {
        if self.next_retry().is_none_or(|at| self.now < at) {
            return;
        }
        self.moves.retry_at = self.now.plus_ms(limits::PARKED_RETRY_MS);
        for _ in 0..self.moves.parked.len() {
            let Some(parcel) = self.moves.parked.pop_front() else { return };
            self.parts.tally.shard.sessions.sub(1);
            if let Err(parcel) = self.take_in(parcel, false) {
                self.parts.tally.shard.sessions.add(1);
                self.moves.parked.push_back(parcel);
            }
        }
    }

    /// Ends all sessions that are parked.
    pub(super) fn lose_parked(&mut self, why: EndReason) {
        for parcel in std::mem::take(&mut self.moves.parked) {
            self.lose(*parcel, why);
        }
    }

    /// Ends a session that has no driver, by a reset, for bytes of it may be lost.
    fn lose(&mut self, parcel: Parcel, why: EndReason) {
        let frozen_ns = self.frozen_ns;
        let (session, ended) = Session::lose(&mut self.step_of(NOBODY), parcel, frozen_ns, why);
        self.account(&session, ended);
    }

    pub(super) fn step_of(&mut self, key: Key) -> Step<'_, D> {
        Step {
            key,
            now: self.now,
            driver: &mut self.driver,
            tally: &self.parts.tally.shard,
            routes: &mut self.routes,
            starved: &mut self.starved,
            spares: &mut self.stock.shelf,
        }
    }
}
