//! Far ends that a test moves by hand.

use super::conn::{ConnId, Fate};
use super::pipe::Way;
use super::script::Script;
use super::world::{Shared, World};
use crate::driver::ListenerId;
use std::rc::Rc;

/// A far end that does what a test tells it. It reads nothing by itself.
#[derive(Debug, Clone)]
pub struct Hand {
    world: Shared,
    id: ConnId,
}

/// What a [`Hand`] finds when it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing, yet.
    Nothing,
    /// Bytes.
    Bytes(Vec<u8>),
    /// The end of the stream, after all bytes.
    End,
    /// A reset.
    Reset,
}

impl Hand {
    /// A client that connects now.
    pub fn client(world: &Shared, listener: ListenerId) -> Self {
        let now = world.borrow().now();
        let id = world.borrow_mut().client(now, listener, Script::default());
        world.borrow_mut().conns[id.index()].far.manual = true;
        Self { world: Rc::clone(world), id }
    }

    /// Takes a far end over from its script.
    #[must_use]
    pub fn take(world: &Shared, id: ConnId) -> Self {
        let far = &mut world.borrow_mut().conns[id.index()].far;
        (far.manual, far.script) = (true, Vec::new());
        Self { world: Rc::clone(world), id }
    }

    /// Which one it is.
    #[must_use]
    pub const fn id(&self) -> ConnId {
        self.id
    }

    /// Writes as much of `bytes` as there is room for; returns how much. 0 once the connection is gone, too.
    #[must_use]
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut world = self.world.borrow_mut();
        let conn = &world.conns[self.id.index()];
        let stands = matches!(conn.fate, Fate::Queued | Fate::Established);
        if conn.far.over || !stands {
            return 0;
        }
        let n = conn.pipe(Way::In).room(world.clock).min(bytes.len());
        world.far_write(self.id, bytes[..n].iter().copied(), n);
        n
    }

    /// Reads at most `most` bytes of what is there.
    #[must_use]
    pub fn read(&self, most: usize) -> Sight {
        let mut world = self.world.borrow_mut();
        let mut bytes = Vec::new();
        world.far_read(self.id, most, Some(&mut bytes));
        let record = world.record(self.id);
        match record {
            _ if !bytes.is_empty() => Sight::Bytes(bytes),
            _ if record.seen.reset => Sight::Reset,
            _ if record.seen.end_at.is_some() => Sight::End,
            _ => Sight::Nothing,
        }
    }

    /// Has nothing more to send.
    pub fn finish(&self) {
        self.act(World::far_finish);
    }

    /// Resets the connection.
    pub fn reset(&self) {
        self.act(World::far_reset);
    }

    /// Leaves.
    pub fn close(&self) {
        self.act(World::far_close);
    }

    fn act(&self, what: impl FnOnce(&mut World, ConnId)) {
        what(&mut self.world.borrow_mut(), self.id);
    }
}
