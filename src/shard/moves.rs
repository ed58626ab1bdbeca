//! Sessions that are carried from this shard to another, and those that come.
//!
//! A session that is to go settles first; a few settle at once, so that each pause stays short. What the other shard has
//! no room for comes back and goes on here.

use super::Shard;
use super::mailbox::Order;
use super::placement::Neighbour;
use crate::config::limits;
use crate::driver::{Driver, Key};
use crate::session::parcel::Parcel;
use crate::session::{Session, Step};
use std::collections::VecDeque;
use std::sync::Arc;

/// Which sessions are on their way out.
#[derive(Default)]
pub(super) struct Moves {
    /// Where all sessions are to go, those that are still opening included.
    evict_to: Option<Neighbour>,
    /// Those whose turn comes later.
    waiting: VecDeque<(Key, Neighbour)>,
    /// Those that come to rest.
    settling: Vec<(Key, Neighbour)>,
}

impl<D: Driver> Shard<D> {
    /// Sends all sessions to another shard, from now on until told otherwise.
    pub(super) fn evict(&mut self, to: Option<Neighbour>) {
        self.moves.evict_to = to;
        self.moves.waiting.clear();
        self.evict_rest();
    }

    /// Queues the sessions that are to go and have not been asked yet.
    pub(super) fn evict_rest(&mut self) {
        let Some(to) = self.moves.evict_to.clone() else { return };
        if self.moves.waiting.is_empty() {
            let keys = self.sessions.keys().into_iter();
            self.moves.waiting = keys.map(|key| (key, to.clone())).collect();
        }
    }

    /// Sends one session to another shard.
    pub(super) fn move_one(&mut self, id: u64, to: Neighbour) {
        let found = self
            .sessions
            .keys()
            .into_iter()
            .find(|key| self.sessions.session(*key).is_some_and(|session| session.id() == id));
        if let Some(key) = found {
            self.moves.waiting.push_back((key, to));
        }
    }

    /// Lets the next sessions settle, and forgets those that will not.
    pub(super) fn keep_moving(&mut self) {
        if self.moves.waiting.is_empty() && self.moves.settling.is_empty() {
            return;
        }
        let settling = std::mem::take(&mut self.moves.settling);
        for (key, to) in settling {
            if self.sessions.session(key).is_some_and(|session| session.is_settling()) {
                self.moves.settling.push((key, to));
            } else {
                self.parts.tally.shard.moves_failed.add(1);
            }
        }
        while self.moves.settling.len() < limits::SETTLING_MAX {
            let Some((key, to)) = self.moves.waiting.pop_front() else { break };
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
        self.parts.load.sub();
        self.parts.tally.shard.sessions.sub(1);
        to.load.add();
        match to.mail.send(Order::Attach(parcel, Some(self.parts.home.clone()))) {
            Ok(()) => self.parts.tally.shard.moves_out.add(1),
            // It has just gone, and gives the order back.
            Err(Order::Attach(parcel, _)) => {
                to.load.sub();
                self.parts.load.add();
                self.parts.tally.shard.moves_failed.add(1);
                self.moves.evict_to.take_if(|evict_to| Arc::ptr_eq(&evict_to.load, &to.load));
                self.attach(parcel, None);
            }
            Err(_) => {}
        }
    }

    /// Takes a session over that counts as this shard's load already. Without room it goes back to its `home`.
    pub(super) fn attach(&mut self, parcel: Box<Parcel>, home: Option<Neighbour>) {
        let (frozen_ns, since) = (self.frozen_ns, parcel.settled_since());
        let Some(key) = self.sessions.reserve() else { return self.send_back(parcel, home) };
        match Session::unpack(&mut self.step_of(key), parcel, frozen_ns) {
            Ok(session) => {
                let shard = &self.parts.tally.shard;
                shard.sessions.add(1);
                // One without a home has come home.
                shard.moves_in.add(u64::from(home.is_some()));
                shard.pause.record((self.now + frozen_ns).since_ns(since));
                self.sessions.put(key, session);
                self.settle_in(key);
            }
            Err(parcel) => {
                self.sessions.unreserve(key);
                self.send_back(parcel, home);
            }
        }
    }

    fn send_back(&mut self, parcel: Box<Parcel>, home: Option<Neighbour>) {
        self.parts.tally.shard.moves_failed.add(1);
        self.parts.load.sub();
        let parcel = match home {
            None => parcel,
            Some(home) => {
                home.load.add();
                match home.mail.send(Order::Attach(parcel, None)) {
                    Ok(()) => return,
                    Err(Order::Attach(parcel, _)) => {
                        home.load.sub();
                        parcel
                    }
                    Err(_) => return,
                }
            }
        };
        // Nobody has room for it: its ends are told by a reset.
        let Some(key) = self.sessions.reserve() else { return };
        self.parts.load.add();
        self.parts.tally.shard.sessions.add(1);
        let frozen_ns = self.frozen_ns;
        let (session, ended) = Session::lose(&mut self.step_of(key), *parcel, frozen_ns);
        self.sessions.unreserve(key);
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
        }
    }
}
