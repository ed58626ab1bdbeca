//! Which shard a new session goes to: the one that accepted it, unless another has clearly less to do.

#![forbid(unsafe_code)]

use super::mailbox::Mail;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many sessions a shard has or was promised. Whoever places a session adds; the shard that ends it takes away.
#[derive(Debug, Default)]
pub struct Load(AtomicU32);

impl Load {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// One less.
    pub fn sub(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// How many now.
    #[must_use]
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
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
    (least.load.get() + worth <= own).then_some(least)
}
