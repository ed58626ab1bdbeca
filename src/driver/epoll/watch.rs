//! What is known of one watched socket, and what was asked of it.

use super::super::pool::BufferId;
use super::super::{Interest, Key, Side};

/// One side of one session. The flags hold what the kernel reported and no call has since disproved.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) fd: i32,
    /// Of the slot, when this side was attached.
    pub(super) generation: u32,
    /// Credit of the armed receive; 0 arms it once.
    pub(super) recv: Option<u32>,
    /// The send that waits, and how many of its bytes are gone.
    pub(super) send: Option<(BufferId, u32)>,
    pub(super) poll: Option<Interest>,
    pub(super) connecting: bool,
    /// A receive of the other side follows the send.
    pub(super) then_recv: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The end of the stream, a hang-up or an error was reported: reading goes on until it is seen.
    pub(super) ended: bool,
    /// A hang-up of both directions or an error was reported.
    pub(super) gone: bool,
    /// The other end has sent urgent data. A receive stops short at its mark whatever is behind it, and splice(2) does
    /// not pass it.
    pub(super) urgent: bool,
    /// It is in the driver's queue.
    pub(super) queued: bool,
}

/// What a side does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Connect,
    Send,
    Recv,
    Poll,
}

impl Default for Watch {
    fn default() -> Self {
        // No key has this generation: nothing reported for an empty slot is believed.
        Self::new(Key { slot: 0, generation: u32::MAX }, -1)
    }
}

impl Watch {
    /// A socket of which nothing is known and nothing was asked.
    pub(super) const fn new(key: Key, fd: i32) -> Self {
        Self {
            fd,
            generation: key.generation,
            recv: None,
            send: None,
            poll: None,
            connecting: false,
            then_recv: false,
            readable: false,
            writable: false,
            ended: false,
            gone: false,
            urgent: false,
            queued: false,
        }
    }

    /// Begins anew, with its place in the driver's queue.
    pub(super) fn become_new(&mut self, new: Self) {
        *self = Self { queued: self.queued, ..new };
    }

    pub(super) const fn is_of(&self, key: Key) -> bool {
        self.generation == key.generation
    }

    /// Whether anything was asked for that has not given its last completion.
    pub(super) const fn in_flight(&self) -> bool {
        self.recv.is_some() || self.send.is_some() || self.poll.is_some() || self.connecting
    }

    /// Notes what epoll reported (epoll_ctl(2)).
    #[expect(clippy::cast_sign_loss, reason = "event masks are bits")]
    pub(super) fn heard(&mut self, events: u32) {
        let has = |mask: i32| events & mask as u32 != 0;
        let gone = has(libc::EPOLLHUP | libc::EPOLLERR);
        self.gone |= gone;
        self.urgent |= has(libc::EPOLLPRI);
        self.ended |= gone || has(libc::EPOLLRDHUP);
        self.readable |= self.ended || has(libc::EPOLLIN);
        self.writable |= gone || has(libc::EPOLLOUT);
    }

    /// Notes a receive: credit used, and whether the kernel's queue is known to be empty. Whether it is still armed.
    ///
    /// A receive that did not fill its buffer has emptied the queue (epoll(7), Q9), unless the stream's end or urgent
    /// data is behind it.
    pub(super) const fn received(&mut self, bytes: u32, short: bool) -> bool {
        self.readable = !short || self.ended || self.urgent;
        self.recv = match self.recv {
            Some(credit) if credit > bytes => Some(credit - bytes),
            _ => None,
        };
        self.recv.is_some()
    }

    /// Whether something was asked for that can be done now.
    pub(super) const fn can_move(&self) -> bool {
        self.next_move().is_some()
    }

    /// What was asked for that can be done now.
    pub(super) const fn next_move(&self) -> Option<Want> {
        if self.connecting && self.writable {
            return Some(Want::Connect);
        }
        if self.send.is_some() && self.writable {
            return Some(Want::Send);
        }
        if self.recv.is_some() && self.readable {
            return Some(Want::Recv);
        }
        let polled = match self.poll {
            Some(Interest::Readable) => self.readable,
            Some(Interest::Writable) => self.writable,
            Some(Interest::Gone) => self.gone,
            None => false,
        };
        if polled { Some(Want::Poll) } else { None }
    }
}

/// A side's name in `epoll_event.data`. The upper bit stays free: it marks listeners.
pub(super) fn encode(key: Key, side: Side) -> u64 {
    let generation = u64::from(key.generation & 0xff_ffff);
    (side as u64) << 56 | generation << 32 | u64::from(key.slot)
}

/// Slot, side and generation of a name.
#[expect(clippy::cast_possible_truncation, reason = "the fields were put there")]
pub(super) const fn decode(data: u64) -> (u32, Side, u32) {
    let side = if data >> 56 & 1 == 0 { Side::Client } else { Side::Backend };
    (data as u32, side, (data >> 32) as u32 & 0xff_ffff)
}
