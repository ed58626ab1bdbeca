//! A connection of the simulated network, and what is known of it in the end.

use super::pipe::{Pipe, Way};
use super::script::{Reading, Step};
use crate::driver::{Errno, ListenerId};
use std::net::SocketAddr;

/// Names a connection of a world; also the number of the stream its far end writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);

impl ConnId {
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Who the far end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A client of this listener.
    Client(ListenerId),
    /// The backend at this address.
    Backend(SocketAddr),
}

/// How far a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The client is yet to come, or the backend yet to answer.
    Coming,
    /// Nobody listened, or the backend refused.
    Refused,
    /// It was given up before there was an answer.
    GivenUp,
    /// The client waits to be accepted.
    Queued,
    /// It stood.
    Established,
}

/// What a far end sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Bytes of its stream.
    pub bytes: u64,
    /// Whether it finished its stream in order.
    pub finished: bool,
    /// Whether it reset the connection, or answered something by a reset because it had left.
    pub reset: bool,
}

/// What a far end saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Bytes it read.
    pub bytes: u64,
    /// The first of them that is not what its partner wrote.
    pub wrong_at: Option<u64>,
    /// Bytes it read while it had no partner, so that nothing could be compared.
    pub unpaired: u64,
    /// After how many bytes it read the end of the stream.
    pub end_at: Option<u64>,
    /// Whether it was reset.
    pub reset: bool,
}

/// What Ringway, and the network on its side, did with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Near {
    /// Bytes it received.
    pub received: u64,
    /// Bytes its sends were said to have taken, or have taken so far.
    pub taken: u64,
    /// Whether it read the end of the stream.
    pub end_seen: bool,
    /// Whether it finished its own stream.
    pub finished: bool,
    /// Whether it reset the connection.
    pub aborted: bool,
    /// Whether it closed its socket.
    pub closed: bool,
    /// The fault that broke the connection, where one did: bytes may be missing.
    pub broken: Option<Errno>,
}

/// All that is known of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub id: ConnId,
    /// Who the far end is.
    pub role: Role,
    /// How far it came.
    pub fate: Fate,
    /// The connection of the same session's other end, the last where there were several.
    pub partner: Option<ConnId>,
    /// What the far end sent.
    pub sent: Sent,
    /// What the far end saw.
    pub seen: Seen,
    /// What Ringway did with it.
    pub near: Near,
    /// Whether the far end is there no more: it left, reset, or was reset.
    pub over: bool,
    /// Whether Ringway's kernel knows that the connection is gone.
    pub gone: bool,
}

/// The far end of a connection.
#[derive(Debug)]
pub(super) struct Far {
    pub(super) script: Vec<Step>,
    /// The step it is at.
    pub(super) at: usize,
    /// Bytes of that step that were written.
    pub(super) written: u32,
    /// When that step ends by itself.
    pub(super) deadline: Option<u64>,
    pub(super) reading: Reading,
    /// A pause of slow reading has been set.
    pub(super) resting: bool,
    /// It has closed its socket, or a reset did.
    pub(super) over: bool,
    /// A test moves it by hand.
    pub(super) manual: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) role: Role,
    pub(super) fate: Fate,
    pub(super) partner: Option<ConnId>,
    /// The driver's socket while it is open.
    pub(super) socket: Option<usize>,
    pub(super) pipes: [Pipe; 2],
    pub(super) far: Far,
    pub(super) sent: Sent,
    pub(super) seen: Seen,
    pub(super) near: Near,
    /// The connection is gone, as far as Ringway's kernel knows.
    pub(super) dead: bool,
    /// What the next operation is told of that.
    pub(super) error: Option<Errno>,
}

impl Conn {
    pub(super) fn new(id: ConnId, role: Role, room: usize, script: Vec<Step>) -> Self {
        let far = Far {
            script,
            at: 0,
            written: 0,
            deadline: None,
            reading: Reading::Eager,
            resting: false,
            over: false,
            manual: false,
        };
        Self {
            id,
            role,
            fate: Fate::Coming,
            partner: None,
            socket: None,
            pipes: [Pipe::new(room), Pipe::new(room)],
            far,
            sent: Sent::default(),
            seen: Seen::default(),
            near: Near::default(),
            dead: false,
            error: None,
        }
    }

    pub(super) const fn pipe(&self, way: Way) -> &Pipe {
        &self.pipes[way as usize]
    }

    pub(super) const fn pipe_mut(&mut self, way: Way) -> &mut Pipe {
        &mut self.pipes[way as usize]
    }

    /// The far end's address.
    /// Its address on Ringway's side.
    pub(super) fn local(&self) -> SocketAddr {
        let [_, a, b, c] = self.id.0.to_be_bytes();
        SocketAddr::from(([11, a, b, c], 50_000))
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self.role {
            Role::Backend(address) => address,
            Role::Client(_) => {
                let [_, a, b, c] = self.id.0.to_be_bytes();
                SocketAddr::from(([10, a, b, c], 40_000))
            }
        }
    }

    pub(super) const fn record(&self) -> Record {
        Record {
            id: self.id,
            role: self.role,
            fate: self.fate,
            partner: self.partner,
            sent: self.sent,
            seen: self.seen,
            near: self.near,
            over: self.far.over,
            gone: self.dead,
        }
    }
}
