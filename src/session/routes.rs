//! The counters of the routes that one shard's sessions take, found without a lock.

use crate::event::Arm;
use crate::policy::snapshot::{BackendIndex, Snapshot};
use crate::tally::{RouteName, RouteTally, Tally};
use std::collections::HashMap;
use std::sync::Arc;

/// What names a route within a snapshot.
type Place = (u16, Arm, Option<BackendIndex>);

/// Looks routes up, and remembers them for as long as the snapshot stays the same.
pub struct Routes {
    tally: Arc<Tally>,
    snapshot: u64,
    known: HashMap<Place, Arc<RouteTally>>,
}

impl Routes {
    /// Routes of this shard.
    #[must_use]
    pub fn new(tally: Arc<Tally>) -> Self {
        Self { tally, snapshot: 0, known: HashMap::new() }
    }

    /// The counters of a route. Without a backend: of the sessions that never came to choose one.
    pub fn of(
        &mut self,
        snapshot: &Snapshot,
        listener: u16,
        arm: Arm,
        backend: Option<BackendIndex>,
    ) -> Arc<RouteTally> {
        if snapshot.number > self.snapshot {
            self.snapshot = snapshot.number;
            self.known.clear();
        }
        if snapshot.number < self.snapshot {
            return self.tally.route(&name(snapshot, listener, arm, backend));
        }
        let place = (listener, arm, backend);
        let route = self
            .known
            .entry(place)
            .or_insert_with(|| self.tally.route(&name(snapshot, listener, arm, backend)));
        Arc::clone(route)
    }
}

fn name(snapshot: &Snapshot, listener: u16, arm: Arm, backend: Option<BackendIndex>) -> RouteName {
    let l = &snapshot.config.listeners[usize::from(listener)];
    let pool = match arm {
        Arm::Stable => l.stable,
        Arm::Canary => l.canary.unwrap_or(l.stable),
    };
    let pool = snapshot.pool(backend.map_or(pool, |at| usize::from(at.pool)));
    RouteName {
        listener: Arc::clone(&l.name),
        arm,
        pool: Arc::clone(&pool.name),
        backend: backend.map_or_else(
            || "".into(),
            |at| Arc::clone(&pool.backends[usize::from(at.backend)].name),
        ),
    }
}
