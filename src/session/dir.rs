//! One direction of a session: what is in flight of it, and its queue of buffers.

use super::sabotage::{self, Mutation};
use crate::driver::pool::{BufferId, Pool};

/// One direction of a session: the bytes of one side on their way to the other.
#[derive(Debug, Default)]
pub struct Dir {
    /// First and last buffer of the queue. The first is the one being sent, while `sending`.
    pub(super) queue: Option<(BufferId, BufferId)>,
    /// Bytes in the queue.
    pub(super) queued: u32,
    /// Bytes the destination took.
    pub(super) bytes: u64,
    /// True exactly while a receive is in flight.
    pub(super) armed: bool,
    /// True exactly while a send is in flight.
    pub(super) sending: bool,
    /// The send in flight was asked to end before it has taken all.
    pub(super) cut: bool,
    /// True exactly while a connect of this side's socket is in flight though the session is ending.
    pub(super) connecting: bool,
    /// True exactly while a poll of the source is in flight, to carry what comes in wide steps.
    pub(super) polling: bool,
    /// Whether a poll of the source hears that it has gone, for nothing receives from it.
    pub(super) watch: Watch,
    /// The send in flight was there already when the shard looked for sends that do not end.
    pub(super) lingers: bool,
    /// The send in flight was cut so that what it left can be spilled.
    pub(super) spills: bool,
    /// It proved bulky: it is carried in wide steps.
    pub(super) wide: bool,
    /// Receives in a row that prove the opposite of what `wide` says.
    pub(super) streak: u8,
    /// It waits for a buffer, in the shard's queue of such.
    pub(super) starved: bool,
    /// The source has finished.
    pub(super) eof: bool,
    /// The destination was told so.
    pub(super) finished: bool,
}

/// What hears that a source has gone while nothing receives from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Watch {
    /// Nothing.
    #[default]
    Off,
    /// A poll, in flight.
    On,
    /// Both directions of its connection have ended in order: it cannot go any more.
    Over,
}

impl Dir {
    /// Whether nothing of it is in flight.
    pub(super) fn at_rest(&self) -> bool {
        let polled = self.polling || self.watch == Watch::On;
        !self.armed && !self.sending && !self.connecting && !polled
    }

    /// Whether nothing would hear that its source has gone: that has finished, or the destination keeps it waiting, and
    /// with it a receive that is `linked` to its send.
    pub(super) fn is_deaf(&self, linked: bool) -> bool {
        let receives = self.armed && !(linked && self.sending);
        let hears = receives || self.polling || self.starved || self.watch != Watch::Off;
        (self.sending || self.eof) && !hears
    }

    /// Whether the destination has taken all that was received.
    pub(super) const fn is_empty(&self) -> bool {
        self.queue.is_none()
    }

    /// Appends a buffer, or moves its bytes into the last one where that is not being sent and has room.
    pub(super) fn push(&mut self, pool: &mut Pool, buffer: BufferId) {
        self.queued += pool.filled(buffer);
        let Some((first, last)) = self.queue else {
            self.queue = Some((buffer, buffer));
            return;
        };
        let being_sent = self.sending && first == last;
        if being_sent || !pool.merge(last, buffer) {
            if sabotage::is(Mutation::WrongOrder) && first != last {
                return self.push_behind_first(pool, buffer);
            }
            pool.set_next(last, buffer);
            self.queue = Some((first, buffer));
        }
    }

    /// How many bytes it holds, by its own count and by its buffers.
    #[cfg(test)]
    pub(super) fn held(&self, pool: &Pool) -> (u64, u64) {
        let mut bytes = 0;
        let mut next = self.queue.map(|(first, _)| first);
        while let Some(buffer) = next {
            bytes += u64::from(pool.filled(buffer));
            next = pool.next(buffer).filter(|_| Some(buffer) != self.queue.map(|(_, last)| last));
        }
        (u64::from(self.queued), bytes)
    }

    /// Queues a buffer too early: what [`Mutation::WrongOrder`] does.
    pub(super) fn push_behind_first(&self, pool: &mut Pool, buffer: BufferId) {
        let Some((first, _)) = self.queue else { return };
        if let Some(second) = pool.next(first) {
            pool.set_next(buffer, second);
        }
        pool.set_next(first, buffer);
    }

    /// Removes the first `n` bytes of the first buffer, and the buffer where those are all.
    pub(super) fn took(&mut self, pool: &mut Pool, n: u32) {
        let Some((first, last)) = self.queue else { return };
        self.queued -= n;
        if n < pool.filled(first) {
            return pool.consume(first, n);
        }
        self.queue = if first == last { None } else { pool.next(first).map(|next| (next, last)) };
        pool.give_back(first);
        if sabotage::is(Mutation::DoubleGiveBack) {
            pool.give_back(first);
        }
    }

    /// Appends a chain of buffers to an empty queue.
    pub(super) fn adopt(&mut self, pool: &Pool, first: BufferId, last: BufferId) {
        debug_assert!(self.is_empty(), "a wide step begins when all before it was taken");
        self.queue = Some((first, last));
        let mut next = Some(first);
        while let Some(buffer) = next {
            self.queued += pool.filled(buffer);
            next = if buffer == last { None } else { pool.next(buffer) };
        }
    }

    /// Moves the queue to memory of its own, but for its first buffer where that is being sent.
    pub(super) fn spill(&mut self, pool: &mut Pool) {
        let Some((mut at, last)) = self.queue else { return };
        let first = if self.sending { at } else { pool.spill(at) };
        let mut end = first;
        while at != last
            && let Some(next) = pool.next(end)
        {
            at = next;
            let spilled = pool.spill(next);
            pool.set_next(end, spilled);
            end = spilled;
            if sabotage::is(Mutation::SpillLosesByte) && pool.filled(end) > 1 {
                pool.consume(end, 1);
            }
        }
        self.queue = Some((first, end));
    }

    /// Gives the whole queue back.
    pub(super) fn discard(&mut self, pool: &mut Pool) {
        while let Some((first, _)) = self.queue {
            self.took(pool, pool.filled(first));
        }
    }

    /// Gives the whole queue back and returns its bytes.
    pub(super) fn empty(&mut self, pool: &mut Pool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.queued as usize);
        while let Some((first, _)) = self.queue {
            bytes.extend_from_slice(pool.bytes(first));
            self.took(pool, pool.filled(first));
        }
        bytes
    }

    /// Fills an empty queue.
    pub(super) fn refill(&mut self, pool: &mut Pool, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            let buffer = pool.hold(bytes.into());
            self.push(pool, buffer);
        }
    }
}
