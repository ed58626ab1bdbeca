//! Which shard a new session goes to: the one that accepted it, unless another has clearly less to do.

#![forbid(unsafe_code)]

use super::mailbox::Mail;
use crate::config::limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many sessions a shard has or was promised. Whoever places a session promises it; the shard that ends it takes
/// away.
#[derive(Debug)]
pub struct Load {
    sessions: AtomicU32,
    /// Those at rest that neighbours have sent and it has not taken in.
    coming: AtomicU32,
    coming_max: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self::taking(limits::COMING_MAX)
    }
}

/// The load of a shard that has left, and can be promised nothing.
const LEFT: u32 = u32::MAX;

impl Load {
    /// The load of somebody who wants no more than so many sessions to be on their way there at once.
    #[must_use]
    pub const fn taking(coming_max: u32) -> Self {
        Self { sessions: AtomicU32::new(0), coming: AtomicU32::new(0), coming_max }
    }

    /// Whether it is wanted that a session comes to rest to be sent there.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.coming.load(Relaxed) < self.coming_max
    }

    /// Whether the shard has left, and can be promised nothing.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.get() == LEFT
    }

    /// A neighbour's session is on its way there.
    pub(super) fn sent(&self) {
        self.coming.fetch_add(1, Relaxed);
    }

    /// A neighbour's session is on its way no more.
    pub fn came(&self) {
        self.coming.fetch_sub(1, Relaxed);
    }

    /// One more of its own, which has not left.
    pub fn add(&self) {
        self.sessions.fetch_add(1, Relaxed);
    }

    /// One more for another shard, before it is sent there. Whether that shard is still there to take it.
    #[must_use]
    pub fn promise(&self) -> bool {
        let one_more = |load| (load != LEFT).then(|| load + 1);
        self.sessions.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// Leaves, unless it has sessions or was promised some. Whether it did.
    #[must_use]
    pub fn leave(&self) -> bool {
        self.sessions.compare_exchange(0, LEFT, Relaxed, Relaxed).is_ok()
    }

    /// Leaves, whatever it has or was promised: the shard has failed.
    pub fn fail(&self) {
        self.sessions.store(LEFT, Relaxed);
    }

    /// One less. A shard that has left keeps none.
    pub fn sub(&self) {
        let _ =
            self.sessions.fetch_update(Relaxed, Relaxed, |load| (load != LEFT).then(|| load - 1));
    }

    /// How many now; of a shard that has left, more than any other's.
    #[must_use]
    pub fn get(&self) -> u32 {
        self.sessions.load(Relaxed)
    }
}

/// A shard that new sessions can be handed to.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// Its load.
    pub load: Arc<Load>,
    /// Its mailbox.
    pub mail: Mail,
}

/// The neighbour a new session should go to. `None`: it stays with the shard that has `own` sessions.
///
/// A hop costs a wake-up of the other shard, so the difference must be worth it: two sessions, or a sixteenth.
pub fn elsewhere(own: u32, neighbours: &[Neighbour]) -> Option<&Neighbour> {
    let least = neighbours.iter().min_by_key(|n| n.load.get())?;
    let worth = 2.max(own / 16);
    (least.load.get().saturating_add(worth) <= own).then_some(least)
}
