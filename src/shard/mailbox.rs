//! Orders to a shard: how control and other shards speak to it, without a lock and without waiting.

#![forbid(unsafe_code)]

use super::inquiry::{Inquiry, Listed, MoveSaid, Weighed};
use crate::driver::{ListenerId, Socket, Waker};
use crate::event::EndReason;
use std::sync::{Arc, mpsc};

/// What a shard is told to do. Orders are followed in the order they were sent.
#[derive(Debug)]
pub enum Order {
    /// Accept clients of this socket for the listener of this name. The socket stays control's.
    Serve {
        /// Names it from now on.
        listener: ListenerId,
        /// Name in the config.
        name: crate::config::Name,
        /// Its listening socket, kept open by control until [`Report::Released`].
        socket: Socket,
    },
    /// Stop accepting clients of this listener, and report when it is so.
    Release(ListenerId),
    /// A client that another shard accepted, or control: begin its session here.
    Adopt {
        /// Its socket.
        client: Socket,
        /// Its place. `None`: there was none, and the client is to be turned away.
        seat: Option<crate::policy::seat::Seat>,
    },
    /// Placement may hand clients to these shards.
    Neighbours(Arc<[super::placement::Neighbour]>),
    /// Carry all sessions to this shard, those that are still opening when they are open; `None`: no more of that.
    Evict(Option<super::placement::Neighbour>),
    /// The same to several shards, in turn.
    Scatter(Arc<[super::placement::Neighbour]>),
    /// Look for work without sleeping for so long.
    StayAwake(super::spin::Awake),
    /// Carry one session to this shard, if it is here.
    Move {
        /// Its id.
        session: u64,
        /// Where it goes.
        to: super::placement::Neighbour,
        /// Who wants to know whether it does.
        told: Option<Arc<Inquiry<MoveSaid>>>,
    },
    /// Begin this share of the new sessions elsewhere.
    Share(super::share::Share),
    /// Keep this many live sessions and carry the others to this shard, instead of all that was to go before.
    Keep {
        /// How many stay.
        sessions: u32,
        /// Where the others go.
        to: super::placement::Neighbour,
    },
    /// Say what sessions there are, in so many slots from `from` on.
    List {
        /// The first slot.
        from: u32,
        /// How many.
        slots: u32,
        /// Who wants to know.
        to: Arc<Inquiry<Listed>>,
    },
    /// Say what sessions did since this was asked last.
    Weigh(Arc<Inquiry<Weighed>>),
    /// Take over a session, or send it back to its home where there is no room for it.
    Attach(Box<crate::session::parcel::Parcel>, Option<super::placement::Neighbour>),
    /// End all sessions for this reason, and those that come from now on.
    EndAll(EndReason),
    /// Report when no session is left, and be gone.
    Leave,
}

/// What a shard tells control.
#[derive(Debug)]
pub enum Report {
    /// It no longer accepts clients of this listener.
    Released(ListenerId),
    /// It could not accept. Said of a listener once in [`ACCEPT_SAID_MS`](crate::config::limits::ACCEPT_SAID_MS).
    AcceptFailed {
        /// Where.
        listener: ListenerId,
        /// Why.
        error: crate::driver::Errno,
        /// How long it rests, in milliseconds.
        rest_ms: u64,
        /// How often it has rested since this was said last.
        unsaid: u64,
    },
    /// All its sessions have ended, and it is about to end its thread.
    Gone,
}

/// Sends orders to one shard.
#[derive(Clone)]
pub struct Mail {
    orders: mpsc::Sender<Order>,
    waker: Waker,
}

impl Mail {
    /// Mail to the shard behind `waker`, and what it reads.
    #[must_use]
    pub fn new(waker: Waker) -> (Self, mpsc::Receiver<Order>) {
        let (orders, read) = mpsc::channel();
        (Self { orders, waker }, read)
    }

    /// Wakes the shard without an order, for what it does once a second.
    pub fn tick(&self) {
        self.waker.wake();
    }

    /// Sends an order.
    ///
    /// # Errors
    /// The order, where the shard is no more.
    pub fn send(&self, order: Order) -> Result<(), Order> {
        self.orders.send(order).map_err(|e| e.0)?;
        self.waker.wake();
        Ok(())
    }
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mail")
    }
}
