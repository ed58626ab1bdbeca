//! The closed vocabulary of what happens: why sessions end, which arm they belong to, what the journal says of them.
//!
//! An [`EndReason`] is the word in the log, the label in the metrics and what tests assert.

#![forbid(unsafe_code)]

use crate::config::{Name, limits};
use std::net::SocketAddr;

/// Which pool of a listener's split a session went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arm {
    /// The build that is trusted.
    Stable,
    /// The build on trial.
    Canary,
}

impl Arm {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Stable, Self::Canary];

    /// The word used in logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

/// Declares [`EndReason`]: each reason once, with its word and its meaning.
macro_rules! end_reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a session ended. Every session ends with exactly one, the first that held.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum EndReason { $($(#[$doc])* $name,)* }

        impl EndReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word used in logs and metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

end_reasons! {
    /// Both ends finished, and each was told.
    Finished = "finished",
    /// The client reset the connection.
    ClientReset = "client_reset",
    /// The backend reset the connection.
    BackendReset = "backend_reset",
    /// The client stopped answering: keepalive or TCP_USER_TIMEOUT ran out, or no route.
    ClientVanished = "client_vanished",
    /// The backend stopped answering: keepalive or TCP_USER_TIMEOUT ran out, or no route.
    BackendVanished = "backend_vanished",
    /// The client left before a backend was reached.
    ClientLeft = "client_left",
    /// No backend accepted: the last one refused.
    ConnectRefused = "connect_refused",
    /// No backend accepted: the last one did not answer in `timeouts.connect_ms`.
    ConnectTimeout = "connect_timeout",
    /// No backend accepted: the last one has no route or is forbidden.
    ConnectUnreachable = "connect_unreachable",
    /// No local port is left towards the backend (EADDRNOTAVAIL): ours to mend, not the backend's.
    NoPorts = "no_ports",
    /// No descriptor or memory is left for the backend's socket: ours to mend, not the backend's.
    NoDescriptors = "no_descriptors",
    /// No backend of the pool has weight.
    NoBackend = "no_backend",
    /// The listener or the process is at its `sessions_max`.
    Full = "full",
    /// Nothing moved for `timeouts.idle_ms`.
    Idle = "idle",
    /// One end finished and the rest did not move for `timeouts.half_closed_ms`.
    HalfClosed = "half_closed",
    /// The session reached `timeouts.age_ms`.
    Age = "age",
    /// The drain deadline came.
    Drained = "drained",
    /// A second signal asked to stop at once.
    Stopped = "stopped",
    /// Its shard failed: a bug of ours, counted and logged with what it said.
    ShardFailed = "shard_failed",
}

/// Which of a session's ends finished first, by the end of its stream. Where both ends came in one turn of the shard
/// it is the one that was read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum First {
    /// The client.
    Client,
    /// The backend.
    Backend,
}

impl First {
    /// The word used in logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
        }
    }
}

/// The id of a shard's `nth` session. Below 2^53, for a shard's number is below [`limits::SHARDS_STARTED_MAX`]; unique
/// as long as no shard begins 2^40 sessions, and as no session lives while that many begin.
#[must_use]
pub const fn session_id(shard: usize, nth: u64) -> u64 {
    let bits = limits::SESSION_COUNT_BITS;
    (shard as u64) << bits | nth & ((1 << bits) - 1)
}

/// Whose fault an end is, or whose wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Both ends were done, or a limit or an operator asked for it.
    Nobody,
    /// The client's, or of what lies between it and Ringway.
    Client,
    /// The backend's, or of what lies between it and Ringway.
    Backend,
    /// Ringway's, or of its config or its machine.
    Ringway,
}

impl Whose {
    /// The word used in the table of end reasons.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Ringway => "Ringway",
        }
    }

    /// Whether somebody on this side of the clients has something to mend.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Backend | Self::Ringway)
    }
}

impl EndReason {
    /// Whose fault it is. `deploy/sessions.md` says the same to operators, and what to do.
    #[must_use]
    pub const fn whose(self) -> Whose {
        match self {
            Self::Finished | Self::Idle | Self::HalfClosed | Self::Age => Whose::Nobody,
            Self::Drained | Self::Stopped => Whose::Nobody,
            Self::ClientReset | Self::ClientVanished | Self::ClientLeft => Whose::Client,
            Self::BackendReset | Self::BackendVanished => Whose::Backend,
            Self::ConnectRefused | Self::ConnectTimeout => Whose::Backend,
            Self::ConnectUnreachable => Whose::Backend,
            Self::NoPorts | Self::NoDescriptors | Self::NoBackend => Whose::Ringway,
            Self::Full | Self::ShardFailed => Whose::Ringway,
        }
    }
}

/// What is known of one session when it has ended: a line of the log.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Unique in the process.
    pub session: u64,
    /// The client's address; `None` where it had left before that was asked for.
    pub client: Option<SocketAddr>,
    /// The listener it came in by.
    pub listener: Name,
    /// Pool, backend and its address; `None` where no backend was chosen.
    pub backend: Option<(Name, Name, SocketAddr)>,
    /// Where the connection to the backend began on this machine; `None` where there was none.
    pub backend_local: Option<SocketAddr>,
    /// Which arm it was assigned to.
    pub arm: Arm,
    /// Bytes the backend's socket took.
    pub up_bytes: u64,
    /// Bytes the client's socket took.
    pub down_bytes: u64,
    /// Backends that were tried.
    pub attempts: u8,
    /// From the last attempt to connect until the backend accepted; `None` where a connection stood ready as well.
    pub connect_ns: Option<u64>,
    /// From accept until there was a backend; `None` where there was none.
    pub opened_ns: Option<u64>,
    /// From accept to the last byte.
    pub duration_ns: u64,
    /// Which end finished first; `None` where neither did.
    pub first: Option<First>,
    /// Why it ended.
    pub why: EndReason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_are_unique_and_survive_a_program_that_keeps_numbers_as_floating_point() {
        let shards = [0, 1, 31, 32, 255, limits::SHARDS_STARTED_MAX - 1];
        let nths = [1, 2, limits::HANDOVER_IDS, (1 << limits::SESSION_COUNT_BITS) - 1];
        let ids: Vec<u64> =
            shards.iter().flat_map(|s| nths.map(|nth| session_id(*s, nth))).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        for id in ids {
            let json: f64 = serde_json::from_str(&id.to_string()).unwrap();
            assert_eq!(format!("{json:.0}"), id.to_string(), "as jq and JavaScript read it");
            assert!(json < 2_f64.powi(53), "{id}");
        }
    }
}
