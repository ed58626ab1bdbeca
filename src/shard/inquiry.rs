//! Questions to shards: each adds what it knows, and the last one to let go of the question answers it.
//!
//! Nobody waits: a shard that is gone lets go of its copy unread, and one that is slow holds up this answer alone.

use super::Shard;
use super::placement::Neighbour;
use crate::config::limits;
use crate::driver::Driver;
use crate::session::glance::{Glance, State};
use std::sync::{Arc, Mutex, PoisonError};

/// A question that several shards answer. `T` is what one of them says.
pub struct Inquiry<T> {
    said: Mutex<Vec<T>>,
    done: Mutex<Option<Done<T>>>,
}

type Done<T> = Box<dyn FnOnce(Vec<T>) + Send>;

impl<T> Inquiry<T> {
    /// A question. `done` is called once with all that was said, by whoever lets go of it last; it must not wait.
    #[must_use]
    pub fn new(done: impl FnOnce(Vec<T>) + Send + 'static) -> Arc<Self> {
        Arc::new(Self { said: Mutex::default(), done: Mutex::new(Some(Box::new(done))) })
    }

    /// Adds what one shard knows.
    pub fn say(&self, what: T) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

impl<T> Drop for Inquiry<T> {
    fn drop(&mut self) {
        let said = std::mem::take(self.said.get_mut().unwrap_or_else(PoisonError::into_inner));
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = done {
            done(said);
        }
    }
}

impl<T> std::fmt::Debug for Inquiry<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inquiry")
    }
}

/// What a shard says of its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The shard's number.
    pub shard: usize,
    /// Its driver.
    pub path: &'static str,
    /// Its sessions in the slots that were asked for.
    pub sessions: Vec<Glance>,
    /// Sessions that found no room anywhere and wait for it; they are not among `sessions`.
    pub parked: usize,
    /// Whether it has slots beyond those.
    pub more: bool,
}

/// What a shard says of a session it was told to carry elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveSaid {
    /// It goes.
    Goes,
    /// It is where it was to go.
    IsThere,
    /// It cannot, as it stands.
    Cannot(State),
}

/// How much a shard's sessions did since it was asked last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighed {
    /// The shard's number.
    pub shard: usize,
    /// All sessions together.
    pub total: u64,
    /// Id and work of the heaviest, at most [`limits::WEIGHED_MAX`], in no order. Those that cannot move are left out.
    pub heaviest: Vec<(u64, u64)>,
}

impl<D: Driver> Shard<D> {
    /// Says what it has in the slots from `from` on.
    pub(super) fn list(&mut self, from: u32, slots: u32, to: &Inquiry<Listed>) {
        let (keys, more) = self.sessions.keys_in(from, slots.min(limits::LISTED_SLOTS_MAX));
        let now = self.now;
        let glance = |key| {
            let session = self.sessions.session(key)?;
            Some(session.glance(now, &self.driver))
        };
        let sessions = keys.into_iter().filter_map(glance).collect();
        let (shard, path) = (self.parts.id, self.driver.kind().label());
        to.say(Listed { shard, path, sessions, parked: self.moves.parked(), more });
    }

    /// Says what its sessions did since this was asked last, and begins to count anew.
    pub(super) fn weigh(&mut self, to: &Inquiry<Weighed>) {
        let (mut total, mut heaviest) = (0, vec![]);
        for key in self.sessions.keys() {
            let Some(session) = self.sessions.session(key) else { continue };
            let work = u64::from(session.weigh());
            total += work;
            if work > 0 && session.state().can_move() {
                heaviest.push((session.id(), work));
            }
        }
        if heaviest.len() > limits::WEIGHED_MAX {
            let most = limits::WEIGHED_MAX;
            heaviest.select_nth_unstable_by(most, |a, b| b.1.cmp(&a.1));
            heaviest.truncate(most);
        }
        to.say(Weighed { shard: self.parts.id, total, heaviest });
    }

    /// Sends one session to another shard, and says whether it goes. A shard that does not have it says nothing.
    pub(super) fn move_one(&mut self, id: u64, to: Neighbour, told: Option<&Inquiry<MoveSaid>>) {
        let found = self.sessions.keys().into_iter().find_map(|key| {
            let session = self.sessions.session(key).filter(|session| session.id() == id)?;
            Some((key, session.state()))
        });
        let Some((key, state)) = found else { return };
        let said = if Arc::ptr_eq(&to.load, &self.parts.load) {
            MoveSaid::IsThere
        } else if state.can_move() {
            self.queue_move(key, to);
            MoveSaid::Goes
        } else {
            let shard = &self.parts.tally.shard;
            match state {
                State::Opening => shard.moves_opening.add(1),
                _ => shard.moves_ending.add(1),
            }
            MoveSaid::Cannot(state)
        };
        if let Some(told) = told {
            told.say(said);
        }
    }
}
