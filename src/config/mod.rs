//! What Ringway was told to do, checked: a [`Config`] cannot be wrong.
//!
//! [`mod@file`] reads the TOML as written and names each setting once, with its default and its rule; `check` holds the
//! settings against each other. All other code reads the types of this page. Durations are milliseconds (`_ms`), sizes
//! are bytes (`_bytes`), shares of a hundred are [`Percent`]. An absent time limit is `None`, written `0` in the file.

#![forbid(unsafe_code)]

mod check;
pub(crate) mod fault;
pub mod file;
mod inherited;
pub mod limits;
mod section;
#[cfg(test)]
mod tests;
mod token;

pub(crate) use check::overlap;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

/// The name of a listener, pool or backend: 1 to 64 of `a-z A-Z 0-9 _ . -`.
pub type Name = Arc<str>;

/// Everything Ringway was told, checked and immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which data path shards use.
    pub data_path: DataPath,
    /// The share of sessions that take it; the others take the other path.
    pub data_path_percent: Percent,
    /// Whether a change of the data path takes the live sessions along.
    pub carry_sessions: bool,
    /// How many shards there are and where they run.
    pub shards: Shards,
    /// What bounds the whole process.
    pub limits: Limits,
    /// Where clients come in; names are unique, in the order of their names.
    pub listeners: Vec<Listener>,
    /// Sets of backends that run the same build; names are unique, in the order of their names.
    pub pools: Vec<Pool>,
    /// The admin endpoint; without it there is none.
    pub admin: Option<Admin>,
    /// How Ringway ends.
    pub stop: Stop,
    /// What is written down, and how.
    pub log: Log,
    /// The text it was read from.
    pub source: Source,
}

/// The text a config was read from; empty where it was made otherwise. Any two are equal: texts that differ may say
/// the same.
#[derive(Clone, Default)]
pub struct Source(pub Arc<str>);

impl PartialEq for Source {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It may hold the admin token.
        f.write_str("Source")
    }
}

/// Which data path new sessions take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// io_uring where the probe proves it, else epoll; which and why is logged.
    Auto,
    /// io_uring, and an error where the kernel refuses it.
    Uring,
    /// epoll.
    Epoll,
}

impl DataPath {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Uring, Self::Epoll];

    /// The word used in the file, in orders and in logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }

    /// From its word.
    #[must_use]
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|path| path.label() == label)
    }
}

/// How many shards there are and where they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    /// Number of shards, at least 1. `None`: one for each CPU they may run on.
    pub count: Option<usize>,
    /// CPUs to run on, within the process's affinity. `None`: all of the affinity.
    pub cpus: Option<BTreeSet<usize>>,
    /// Whether live sessions change their shard where the load of shards differs for long.
    pub rebalance: bool,
    /// Whether each shard is bound to one CPU.
    pub pin: bool,
    /// How long a shard looks for work without sleeping after something moved; 0: not at all.
    pub busy_poll_us: u32,
    /// How long it does so for an answer after bytes of a client, where answers come within that; 0: not at all.
    pub answer_poll_us: u32,
    /// How long the kernel asks the network card itself while a shard waits (NAPI busy polling); 0: not at all.
    pub napi_busy_poll_us: u32,
    /// Real-time priority of the shards' threads (SCHED_FIFO); 0: the ordinary scheduler.
    pub fifo_priority: u8,
    /// Which shard a new client comes to.
    pub steer: Steer,
}

impl Default for Shards {
    /// As where a file says nothing.
    fn default() -> Self {
        Self {
            count: None,
            cpus: None,
            rebalance: true,
            pin: true,
            busy_poll_us: 0,
            answer_poll_us: 0,
            napi_busy_poll_us: 0,
            fifo_priority: 0,
            steer: Steer::Hash,
        }
    }
}

/// Which shard a new client comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// Any: the kernel spreads clients by a hash, and shards even them out.
    Hash,
    /// The one on the CPU its packets arrive on.
    Cpu,
}

impl Steer {
    /// Its word in the config and in status.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Cpu => "cpu",
        }
    }
}

/// What bounds the whole process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions of all listeners and shards together.
    pub sessions_max: u32,
    /// Bytes one direction of one session may hold in Ringway before it stops receiving.
    pub high_water_bytes: u32,
    /// Size of one receive buffer.
    pub buffer_bytes: u32,
    /// Receive buffers of one shard.
    pub buffers_per_shard: u16,
}

/// Where clients come in, and where they go from there.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// The key of its table.
    pub name: Name,
    /// Address clients connect to.
    pub bind: SocketAddr,
    /// How many clients may wait to be accepted, for each shard.
    pub backlog: u32,
    /// Index into [`Config::pools`]: where sessions go.
    pub stable: usize,
    /// Index into [`Config::pools`]: where the canary's share goes.
    pub canary: Option<usize>,
    /// The canary's share of new sessions; 0 where there is no canary pool.
    pub canary_percent: Percent,
    /// What the client sees when no backend could be reached.
    pub on_backend_fail: OnBackendFail,
    /// How bytes hop from one socket to the other.
    pub hop: Hop,
    /// Sessions of this listener at once.
    pub sessions_max: u32,
    /// When sessions end by themselves.
    pub timeouts: Timeouts,
    /// Socket options of both ends of its sessions.
    pub tcp: Tcp,
}

/// What a client sees when no backend could be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBackendFail {
    /// A reset: nobody mistakes it for a logout.
    Reset,
    /// An orderly end of stream.
    Close,
}

/// The shape of a hop, which is how bytes leave one socket and enter the other. Others than `Auto` are there to
/// compare: they stay what they are. On epoll `Multishot`, `Linked` and `Oneshot` are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// What measures best on this kernel.
    Auto,
    /// Multishot receive with a byte credit (Linux 6.17), each followed by one send.
    Multishot,
    /// A send linked to the next one-shot receive.
    Linked,
    /// A one-shot receive, armed again when its send is done.
    Oneshot,
    /// Every direction in wide steps through one large buffer.
    Wide,
    /// Every direction in steps of splice(2) through a pipe, which `Auto` does with those that prove bulky.
    Splice,
    /// Read straight whenever the shard spins, which `Auto` does where few sessions carry the traffic.
    Hot,
}

/// When sessions end by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// One attempt to connect to a backend.
    pub connect_ms: u32,
    /// One end has finished and nothing moved since. `None`: for ever.
    pub half_closed_ms: Option<u32>,
    /// Nothing moved in either direction. `None`: a quiet session is not a dead one.
    pub idle_ms: Option<u32>,
    /// Since the session was accepted. `None`: for ever.
    pub age_ms: Option<u32>,
}

/// Socket options of both ends of a session. `None` leaves the kernel's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// TCP_NODELAY: a small message leaves at once.
    pub nodelay: bool,
    /// SO_KEEPALIVE and how it probes.
    pub keepalive: Option<Keepalive>,
    /// TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged before the connection is given up.
    pub user_timeout_ms: Option<u32>,
    /// SO_SNDBUF, as asked for (the kernel doubles it).
    pub send_buffer_bytes: Option<u32>,
    /// SO_RCVBUF, as asked for (the kernel doubles it).
    pub receive_buffer_bytes: Option<u32>,
    /// TCP_NOTSENT_LOWAT: unsent bytes the kernel may hold, so that stale orders do not pile up.
    pub notsent_lowat_bytes: Option<u32>,
    /// TCP_CONGESTION, such as `cubic`.
    pub congestion: Option<Name>,
}

impl Tcp {
    /// TCP_NODELAY, and the kernel's defaults for all else.
    pub const PLAIN: Self = Self {
        nodelay: true,
        keepalive: None,
        user_timeout_ms: None,
        send_buffer_bytes: None,
        receive_buffer_bytes: None,
        notsent_lowat_bytes: None,
        congestion: None,
    };
}

/// How the kernel finds out that a silent end has vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// TCP_KEEPIDLE: longest silence before the first probe. A socket begins up to a third earlier, and early enough
    /// that all probes fit into the user timeout.
    pub idle_s: u32,
    /// TCP_KEEPINTVL: time between probes.
    pub interval_s: u32,
    /// TCP_KEEPCNT: unanswered probes that end the connection.
    pub probes: u32,
}

/// A set of backends that run the same build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The key of its table.
    pub name: Name,
    /// At least one; names and addresses are unique within the pool.
    pub backends: Vec<Backend>,
    /// How many other attempts follow a failed one.
    pub retries: u32,
    /// Connections that each shard keeps ready to each backend with weight; 0: none.
    pub spare: u16,
    /// How long one may wait for its session before another takes its place.
    pub spare_idle_ms: u32,
}

impl Pool {
    /// Whether no new session goes to any of its backends.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.backends.iter().all(|backend| backend.weight == 0)
    }

    /// How many connections each shard keeps ready to its backends.
    #[must_use]
    pub fn spares(&self) -> u64 {
        let backends = self.backends.iter().filter(|backend| backend.weight > 0).count();
        backends as u64 * u64::from(self.spare)
    }
}

/// One matching-engine instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Unique in its pool; the address where the file gives no name.
    pub name: Name,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of the pool's sessions, in proportion to the others'. 0: no new sessions.
    pub weight: u16,
}

/// A share of a hundred with two decimals, exact: 0.00 to 100.00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Percent(u16);

impl Percent {
    /// Nobody.
    pub const ZERO: Self = Self(0);
    /// Everybody.
    pub const HUNDRED: Self = Self(Self::WHOLE);
    /// How many hundredths of a percent make a whole.
    pub const WHOLE: u16 = 10_000;

    /// From hundredths of a percent. `None` above [`Self::WHOLE`].
    #[must_use]
    pub const fn from_hundredths(hundredths: u16) -> Option<Self> {
        if hundredths <= Self::WHOLE { Some(Self(hundredths)) } else { None }
    }

    /// From a number such as `5` or `0.25`. `None` outside 0..=100 or with more than two decimals.
    #[must_use]
    pub fn from_f64(percent: f64) -> Option<Self> {
        let hundredths = (percent * 100.0).round();
        let exact = (percent * 100.0 - hundredths).abs() < 1e-6;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0..=10000 was checked, and NaN fails it"
        )]
        (exact && (0.0..=10_000.0).contains(&hundredths)).then_some(Self(hundredths as u16))
    }

    /// What is left of the whole.
    #[must_use]
    pub const fn rest(self) -> Self {
        Self(Self::WHOLE - self.0)
    }

    /// Hundredths of a percent: 525 is 5.25 %.
    #[must_use]
    pub const fn hundredths(self) -> u16 {
        self.0
    }

    /// The number an operator would write: 5.25.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// The admin endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens; without a token a loopback address.
    pub bind: SocketAddr,
    /// What `Authorization: Bearer` must carry. `None`: only loopback may ask, and is believed.
    pub token: Option<Arc<str>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "(hidden)");
        f.debug_struct("Admin").field("bind", &self.bind).field("token", &token).finish()
    }
}

/// How Ringway ends after SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// `/readyz` says no, and clients are still accepted.
    pub grace_ms: u32,
    /// Then sessions may end by themselves for this long.
    pub drain_ms: u32,
}

/// What is written down, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: LogLevel,
    /// One line for every N-th ended session, and for those that ended by the fault of a backend or of Ringway, within
    /// [`limits::FAULT_LINES_PER_S_MAX`]; 0 writes none.
    pub session_every: u32,
}

/// Lines for people or for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line an event.
    Human,
    /// One JSON object an event.
    Json,
}

/// The least important level that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what needs somebody now.
    Error,
    /// And what will need somebody.
    Warn,
    /// And what happened.
    Info,
    /// And why.
    Debug,
}
