//! What can be seen of a session from outside, and how much it did.

use super::{Session, Stage};
use crate::config::Name;
use crate::driver::{Driver, Side};
use crate::event::Arm;
use crate::time::Time;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where a session stands, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It looks for its backend.
    Opening,
    /// Bytes may move both ways.
    Open,
    /// One end has finished.
    HalfClosed,
    /// It comes to rest, to be carried elsewhere.
    Moving,
    /// Both ends were told that it is over.
    Ending,
}

impl State {
    /// Whether a session in this state can be carried elsewhere.
    #[must_use]
    pub const fn can_move(self) -> bool {
        matches!(self, Self::Open | Self::HalfClosed | Self::Moving)
    }

    /// The word used in answers.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::HalfClosed => "half_closed",
            Self::Moving => "moving",
            Self::Ending => "ending",
        }
    }
}

impl Serialize for State {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.label())
    }
}

/// What can be seen of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Glance {
    /// Unique in the process.
    pub id: u64,
    /// Number of the snapshot it lives by.
    pub generation: u64,
    /// The listener it came in by.
    pub listener: Name,
    /// Which side of its split.
    #[serde(serialize_with = "arm_label")]
    pub arm: Arm,
    /// The pool of that side and the backend's name, where one was chosen.
    pub pool: Option<Name>,
    /// See `pool`.
    pub backend: Option<Name>,
    /// Where its connection to the backend begins on this machine; `None` while there is none.
    pub backend_local: Option<SocketAddr>,
    /// The client's address, unless it has left.
    pub client: Option<SocketAddr>,
    /// Since accept.
    pub age_ms: u64,
    /// Bytes the backend took.
    pub up_bytes: u64,
    /// Bytes the client took.
    pub down_bytes: u64,
    /// Where it stands.
    pub state: State,
}

fn arm_label<S: serde::Serializer>(arm: &Arm, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(arm.label())
}

impl Session {
    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        match self.stage {
            Stage::Opening(_) => State::Opening,
            Stage::Relaying if self.is_half_closed() => State::HalfClosed,
            Stage::Relaying => State::Open,
            Stage::Settling { .. } => State::Moving,
            Stage::Ending { .. } => State::Ending,
        }
    }

    /// What can be seen of it. Asks the driver for the addresses that are not known.
    pub fn glance<D: Driver>(&self, now: Time, driver: &D) -> Glance {
        let chosen = self.backend.map(|at| {
            let (pool, backend) = self.snapshot.backend(at);
            (Arc::clone(&pool.name), Arc::clone(&backend.name))
        });
        let (pool, backend) = chosen.unzip();
        let ask = || driver.client_address(self.ends[Side::Client as usize].as_ref()?).ok();
        Glance {
            id: self.id,
            generation: self.snapshot.number,
            listener: Arc::clone(&self.listener().name),
            arm: self.arm,
            pool,
            backend,
            backend_local: self.local(driver),
            client: self.client.as_deref().copied().or_else(ask),
            age_ms: now.since_ns(self.accepted) / 1_000_000,
            up_bytes: self.dirs[0].bytes,
            down_bytes: self.dirs[1].bytes,
            state: self.state(),
        }
    }

    /// What it did since this was asked last: one for each message and one for each 8 KiB.
    pub const fn weigh(&mut self) -> u32 {
        let done = self.work.wrapping_sub(self.weighed);
        self.weighed = self.work;
        done
    }
}
