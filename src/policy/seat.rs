//! A place under `sessions_max`, held by a client from when it comes in.

use super::snapshot::{Limit, Snapshot};
use std::sync::Arc;

/// A place for one session of a listener, by the config that session is to live by. Dropped, it is given back: on its
/// way to another shard too, where that is gone.
#[derive(Debug)]
pub struct Seat {
    /// `None`: a session has it.
    snapshot: Option<Arc<Snapshot>>,
    listener: u16,
}

impl Seat {
    /// Takes a place for one more session of the listener at this index.
    ///
    /// # Errors
    /// The limit that has none.
    pub fn take(snapshot: &Arc<Snapshot>, listener: u16) -> Result<Self, Limit> {
        snapshot.enter(usize::from(listener))?;
        Ok(Self { snapshot: Some(Arc::clone(snapshot)), listener })
    }

    /// Leaves the place to a session, at whose end [`Snapshot::leave`] gives it back. Its config, and the listener's
    /// index there.
    #[must_use]
    pub fn into_session(mut self) -> (Arc<Snapshot>, u16) {
        let snapshot = self.snapshot.take().expect("only this takes it, and it takes all");
        (snapshot, self.listener)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(snapshot) = &self.snapshot {
            snapshot.leave(usize::from(self.listener));
        }
    }
}
