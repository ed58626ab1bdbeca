//! One config made ready for shards: numbered, immutable, shared.
//!
//! What must outlive a snapshot, such as how far a rotation has come, hangs on it by an `Arc` that the next one takes
//! over.

use super::rotation::{Position, Rotation};
use super::split::Split;
use crate::config::{Backend, Config, Listener, Name, Percent, Pool};
use crate::event::Arm;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// One config made ready for shards.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows by one with every change.
    pub number: u64,
    /// The config it was made from, with the canary percents that are in force.
    pub config: Config,
    listeners: Vec<Arc<Entrance>>,
    /// Sessions of all listeners.
    sessions: Arc<AtomicU32>,
    /// How often descriptors or memory ran out.
    shortages: Arc<AtomicU32>,
    pools: Vec<PoolPlan>,
}

/// What of a listener outlives a snapshot.
#[derive(Debug, Default)]
struct Entrance {
    split: Split,
    sessions: AtomicU32,
    /// Clients there was no place for, by [`Limit`].
    no_place: [AtomicU64; Limit::ALL.len()],
}

/// Which limit of sessions had no place for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `limits.sessions_max`.
    Process,
    /// The listener's own `sessions_max`.
    Listener,
}

impl Limit {
    /// Both, in the order of their numbers, which is that in which they are asked.
    pub const ALL: [Self; 2] = [Self::Process, Self::Listener];

    /// The word used in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Listener => "listener",
        }
    }
}

#[derive(Debug)]
struct PoolPlan {
    rotation: Rotation,
    position: Arc<Position>,
}

/// A backend, by its place in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendIndex {
    /// Index into [`Config::pools`].
    pub pool: u16,
    /// Index into [`Pool::backends`].
    pub backend: u16,
}

impl Snapshot {
    /// The first snapshot, or the one after `before`.
    #[must_use]
    pub fn new(config: Config, before: Option<&Self>) -> Self {
        let entrances: BTreeMap<&Name, &Arc<Entrance>> = before.map_or_else(BTreeMap::new, |b| {
            b.config.listeners.iter().map(|l| &l.name).zip(&b.listeners).collect()
        });
        let positions: BTreeMap<&Name, &Arc<Position>> = before.map_or_else(BTreeMap::new, |b| {
            b.config
                .pools
                .iter()
                .map(|p| &p.name)
                .zip(b.pools.iter().map(|p| &p.position))
                .collect()
        });
        Self {
            number: before.map_or(1, |b| b.number.saturating_add(1)),
            listeners: config
                .listeners
                .iter()
                .map(|l| entrances.get(&l.name).map_or_else(Arc::default, |e| Arc::clone(e)))
                .collect(),
            sessions: before.map_or_else(Arc::default, |b| Arc::clone(&b.sessions)),
            shortages: before.map_or_else(Arc::default, |b| Arc::clone(&b.shortages)),
            pools: config
                .pools
                .iter()
                .map(|p| PoolPlan {
                    rotation: Rotation::new(&p.backends),
                    position: positions.get(&p.name).map_or_else(Arc::default, |p| Arc::clone(p)),
                })
                .collect(),
            config,
        }
    }

    /// The same with a number of the caller's choice: where another process had snapshots before this one's.
    #[must_use]
    pub const fn numbered(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    /// Takes a place as [`enter`](Self::enter) does, also where there is none.
    pub fn seat(&self, listener: usize) {
        self.sessions.fetch_add(1, Relaxed);
        self.listeners[listener].sessions.fetch_add(1, Relaxed);
    }

    /// The listener of this name, and its index.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<(usize, &Listener)> {
        self.config.listeners.iter().enumerate().find(|(_, l)| *l.name == *name)
    }

    /// Takes a place for one more session of the listener. Both its own limit and that of the process hold exactly,
    /// across shards. Given back by [`leave`](Self::leave).
    ///
    /// # Errors
    /// The limit that has no place.
    pub fn enter(&self, listener: usize) -> Result<(), Limit> {
        let limits = [
            (&*self.sessions, self.config.limits.sessions_max),
            (&self.listeners[listener].sessions, self.config.listeners[listener].sessions_max),
        ];
        for (taken, (count, max)) in limits.iter().enumerate() {
            if count.fetch_add(1, Relaxed) >= *max {
                for (count, _) in &limits[..=taken] {
                    count.fetch_sub(1, Relaxed);
                }
                return Err(Limit::ALL[taken]);
            }
        }
        Ok(())
    }

    /// Counts a client that is turned away because this limit has no place for it.
    pub fn count_no_place(&self, listener: usize, limit: Limit) {
        self.listeners[listener].no_place[limit as usize].fetch_add(1, Relaxed);
    }

    /// How many clients each listener turned away for want of a place, and which limit said so.
    pub fn no_place(&self) -> impl Iterator<Item = (&Name, Limit, u64)> {
        let listeners = self.config.listeners.iter().zip(&self.listeners);
        listeners.flat_map(|(listener, entrance)| {
            let counts = Limit::ALL.into_iter().zip(&entrance.no_place);
            counts.map(|(limit, count)| (&listener.name, limit, count.load(Relaxed)))
        })
    }

    /// Gives the place of an ended session back.
    pub fn leave(&self, listener: usize) {
        self.sessions.fetch_sub(1, Relaxed);
        self.listeners[listener].sessions.fetch_sub(1, Relaxed);
    }

    /// Descriptors or memory ran out: whoever keeps some ready is to give them up, on all shards.
    pub fn add_shortage(&self) {
        self.shortages.fetch_add(1, Relaxed);
    }

    /// How often they have.
    #[must_use]
    pub fn shortages(&self) -> u32 {
        self.shortages.load(Relaxed)
    }

    /// Places that are taken: of the process, then of each listener.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> Vec<u32> {
        let listeners = self.listeners.iter().map(|entrance| &entrance.sessions);
        std::iter::once(&*self.sessions).chain(listeners).map(|count| count.load(Relaxed)).collect()
    }

    /// The arm of the listener's next session, and its pool.
    #[must_use]
    pub fn assign(&self, listener: usize) -> (Arm, usize) {
        let l = &self.config.listeners[listener];
        let Some(canary) = l.canary else { return (Arm::Stable, l.stable) };
        match self.listeners[listener].split.assign(l.canary_percent) {
            Arm::Stable => (Arm::Stable, l.stable),
            Arm::Canary => (Arm::Canary, canary),
        }
    }

    /// The pool's next backend. `None` where none has weight.
    #[must_use]
    pub fn next_backend(&self, pool: usize) -> Option<u16> {
        let plan = &self.pools[pool];
        plan.rotation.next(&plan.position)
    }

    /// A backend of the pool that was not tried yet; where all were, any.
    #[must_use]
    pub fn another_backend(&self, pool: usize, tried: &[u16]) -> Option<u16> {
        let plan = &self.pools[pool];
        plan.rotation.another(&plan.position, tried).or_else(|| plan.rotation.next(&plan.position))
    }

    /// The pool at this index.
    #[must_use]
    pub fn pool(&self, index: usize) -> &Pool {
        &self.config.pools[index]
    }

    /// A backend, and the pool it is in.
    #[must_use]
    pub fn backend(&self, at: BackendIndex) -> (&Pool, &Backend) {
        let pool = self.pool(usize::from(at.pool));
        (pool, &pool.backends[usize::from(at.backend)])
    }

    /// The same config with another canary percent. `None` where there is no such listener or it has no canary pool.
    #[must_use]
    pub fn with_canary(&self, listener: &str, percent: Percent) -> Option<Self> {
        let (index, found) = self.listener(listener)?;
        found.canary?;
        let mut config = self.config.clone();
        config.listeners[index].canary_percent = percent;
        Some(Self::new(config, Some(self)))
    }
}
