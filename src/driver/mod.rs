//! The kernel: all I/O and all `unsafe` of Ringway, behind one contract with three drivers.
//!
//! [`uring`] and [`epoll`] speak to the kernel, [`sim`] to a seeded network that lies, delays and breaks within the
//! rules. `contract` is this page as tests, run on each. Session logic is generic over [`Driver`] and is written
//! once.
//!
//! ## The rules
//! 1. **One of each.** A side of a session has at most one receive, one send and one poll in flight; a session has at
//!    most one connect. Asking for a second one is a bug of the caller (a debug assertion says so).
//! 2. **One last word.** Every operation that was asked for gives exactly one last completion (`more == false`),
//!    whatever happens to its socket. Only accepts and [`Arm::Multi`] receives may give others before it.
//! 3. **Who owns a buffer.** [`Completion::Received`] hands one over. Lent to [`Driver::send`], the driver may read it
//!    until [`Completion::Sent`]. Then, or without a send, its owner returns it with [`Pool::give_back`], once.
//! 4. **Order.** Bytes arrive in order, the end of a stream after all of them, and nothing after it. What one side
//!    receives is reported in the order it was received; nothing is said of the order between sides.
//! 5. **Whole or broken.** A send takes all its bytes, waiting as long as it must. Fewer are reported only when the
//!    connection is broken or the send was cancelled; then the number says how many the kernel took.
//! 6. **Cancelling asks.** [`Driver::cancel`] makes the operation end soon. Its own last completion still comes: with
//!    [`Errno::CANCELED`], or with the result that was faster.
//! 7. **Ending.** [`Driver::abort`] tells the other end by a reset at once and makes everything in flight on that
//!    socket end soon. A socket is closed only when nothing of it is in flight: a receive that outlives its descriptor
//!    would swallow the bytes of the next connection to get that number.
//! 8. **Nothing left to time.** Drivers set no timers. [`Driver::turn`] returns at `until` at the latest.

pub mod contract;
mod direct;
pub mod epoll;
pub mod favours;
pub mod handoff;
pub mod listening;
pub mod pick;
mod pipe;
pub mod pool;
pub mod probe;
mod ring;
pub mod signal;
pub mod sim;
pub mod sys;
pub mod uring;
mod wide;

use crate::config::Tcp;
use crate::time::Time;
use favours::CardPolling;
use pool::{BufferId, Pool};
use std::io;
use std::net::SocketAddr;

/// Which driver this is: the data path, as logs and metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
    /// The simulated network of the tests.
    Sim,
}

impl Kind {
    /// The word used in config, logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
            Self::Sim => "sim",
        }
    }
}

/// One end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// Who connected to a listener.
    Client = 0,
    /// The engine Ringway connected to.
    Backend = 1,
}

impl Side {
    /// Both, in the order of their numbers.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Backend];

    /// The opposite end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

/// Names a session to its driver: a slot of the shard's table and how often that slot has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Which slot; below [`crate::config::limits::SESSIONS_PER_SHARD_MAX`].
    pub slot: u32,
    /// 24 bits; a completion that names another generation of the slot is stale.
    pub generation: u32,
}

/// Names a listener to its driver; numbers are given by control and not used twice while a socket of it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u16);

/// A socket of a driver. On uring and epoll it is a descriptor, so it can be carried from one to the other.
///
/// It is closed by [`Driver::close`], never by being dropped: nothing may be in flight then, which only its session
/// knows.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "a socket that is forgotten is a leaked descriptor"]
pub struct Socket(pub(in crate::driver) i32);

impl Socket {
    /// A descriptor that a kernel driver is to work with.
    pub fn of(descriptor: &impl std::os::fd::AsRawFd) -> Self {
        Self(descriptor.as_raw_fd())
    }

    /// A descriptor that a kernel driver is to own from now on.
    pub fn owned(descriptor: impl std::os::fd::IntoRawFd) -> Self {
        Self(descriptor.into_raw_fd())
    }

    /// The descriptor's number, to be shown.
    #[must_use]
    pub const fn number(&self) -> i32 {
        self.0
    }
}

/// An error number of the kernel (errno(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// The operation was cancelled.
    pub const CANCELED: Self = Self(libc::ECANCELED);
    /// Not without a capability (EPERM). bind(2) to a port below 1024 says EACCES.
    pub const NOT_PERMITTED: Self = Self(libc::EPERM);
    /// No receive buffer was free.
    pub const NO_BUFFERS: Self = Self(libc::ENOBUFS);
    /// The other end reset the connection.
    pub const RESET: Self = Self(libc::ECONNRESET);
    /// The connection is gone, this end had been told.
    pub const BROKEN_PIPE: Self = Self(libc::EPIPE);
    /// Nobody answered in time.
    pub const TIMED_OUT: Self = Self(libc::ETIMEDOUT);
    /// Nobody listens there.
    pub const REFUSED: Self = Self(libc::ECONNREFUSED);
    /// No local port is left.
    pub const NO_PORTS: Self = Self(libc::EADDRNOTAVAIL);

    /// Whether descriptors, memory or room to watch a socket (fs.epoll.max_user_watches: ENOSPC) ran out on this
    /// machine, which says nothing of the other end.
    #[must_use]
    pub const fn is_exhaustion(self) -> bool {
        matches!(self.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC)
    }

    /// Whether an accept that failed so says something of one client only, and the next is worth asking for at once:
    /// Linux hands errors of the new connection on (accept(2)).
    #[must_use]
    pub const fn is_of_one_client(self) -> bool {
        matches!(
            self.0,
            libc::ECONNABORTED
                | libc::EAGAIN
                | libc::EINTR
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    }

    /// Whether the other end stopped answering, rather than saying that it leaves.
    #[must_use]
    pub const fn is_vanished(self) -> bool {
        matches!(self.0, libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl From<io::Error> for Errno {
    /// The number in `e`, or EIO where it has none.
    fn from(e: io::Error) -> Self {
        Self(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Errno> for io::Error {
    fn from(e: Errno) -> Self {
        Self::from_raw_os_error(e.0)
    }
}

/// How long a receive stays armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// For one receive.
    Once,
    /// Until this many bytes have arrived (the last receive may bring up to one buffer more), the stream ends, or no
    /// buffer is free. A driver that cannot count may stop earlier; it says so by `more == false`.
    Multi(u32),
}

/// What a receive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Bytes: the buffer's [`Pool::filled`] part. The caller owns the buffer now.
    Bytes(BufferId),
    /// The other end has finished sending. The receive is over.
    End,
    /// The receive is over for another reason; [`Errno::NO_BUFFERS`] and [`Errno::CANCELED`] leave the socket sound.
    Failed(Errno),
}

/// What the kernel says.
#[derive(Debug, PartialEq, Eq)]
pub enum Completion {
    /// A client came in, or could not. `more`: the listener still accepts; else it must be armed again.
    Accepted {
        /// Where.
        listener: ListenerId,
        /// Its socket, non-blocking and close-on-exec.
        result: Result<Socket, Errno>,
        /// Whether the accept is still armed.
        more: bool,
    },
    /// Somebody used the [`Waker`].
    Woken,
    /// A connect is over.
    Connected {
        /// Whose.
        key: Key,
        /// Whether the backend is there.
        result: Result<(), Errno>,
    },
    /// A receive brought something.
    Received {
        /// Whose.
        key: Key,
        /// Which end's socket was read.
        side: Side,
        /// What came.
        what: Received,
        /// Whether the receive is still armed.
        more: bool,
    },
    /// A send is over; the buffer is its owner's again.
    Sent {
        /// Whose.
        key: Key,
        /// Which end's socket was written.
        side: Side,
        /// How many bytes the kernel took: all, unless the connection is broken or the send was cancelled.
        result: Result<u32, Errno>,
    },
    /// A poll is over.
    Polled {
        /// Whose.
        key: Key,
        /// Which end's socket was watched.
        side: Side,
        /// `Ok`: what was waited for, or a hang-up or error, has come.
        result: Result<(), Errno>,
    },
}

/// An operation in flight, to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// [`Driver::connect`].
    Connect,
    /// [`Driver::arm_recv`] of this side's socket.
    Recv(Side),
    /// [`Driver::send`] to this side's socket.
    Send(Side),
    /// [`Driver::arm_poll`] of this side's socket.
    Poll(Side),
}

/// What a poll waits for. A hang-up or an error of the socket ends any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Bytes or the end of the stream.
    Readable,
    /// Room.
    Writable,
    /// Only a reset, or both directions closed.
    Gone,
}

/// Wakes a shard from another thread: the next [`Driver::turn`] returns at once with [`Completion::Woken`].
pub trait Wake: Send + Sync {
    /// Wakes it; many calls before it looks are one.
    fn wake(&self);
}

/// A shared [`Wake`].
pub type Waker = std::sync::Arc<dyn Wake>;

/// What a driver counts of itself, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls into the kernel to submit and wait.
    pub enters: u64,
    /// Such calls that failed for no reason that passes by itself.
    pub enter_failed: u64,
    /// Completions or readiness reports those calls brought.
    pub completions: u64,
    /// Submissions that found the queue full and had to enter first.
    pub sq_full: u64,
    /// Turns that found the completion queue overflown.
    pub cq_overflow: u64,
    /// Receives that found no buffer.
    pub no_buffers: u64,
    /// Sends that had to wait for the destination, as far as the driver can see.
    pub sends_blocked: u64,
    /// Bytes that wide steps moved through the buffer.
    pub copied_bytes: u64,
    /// Bytes that wide steps moved through the pipe.
    pub spliced_bytes: u64,
    /// CPU time of the thread that asks, in nanoseconds; 0 where there is no such thing.
    pub cpu_ns: u64,
}

/// How a [wide](Driver::carry_wide) step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// Most bytes that come back as a tail.
    pub tail_max: u32,
    /// By which way.
    pub by: Way,
}

/// What bytes of a wide step go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One large buffer, by recv(2) and send(2).
    Buffer,
    /// A pipe, by splice(2): no byte is copied, and a step is no longer than its tail may be. Where no pipe is to be
    /// had it is the buffer.
    Pipe,
}

/// What a [wide](Driver::carry_wide) step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Bytes the destination took.
    pub taken: u32,
    /// First and last of the chained buffers that hold what it did not take; the caller owns them now.
    pub tail: Option<(BufferId, BufferId)>,
    /// What of the source is known: `None`, it may have more.
    pub source: Option<Received>,
    /// Where the destination is broken.
    pub failed: Option<Errno>,
}

/// The contract: see the rules at the top of this page.
pub trait Driver {
    /// Which one this is.
    fn kind(&self) -> Kind;

    /// Whether [`Arm::Multi`] receives stop at their credit by themselves. Where not, [`Arm::Once`] is to be used.
    fn counts_credit(&self) -> bool;

    /// The clock, read at the end of the last [`turn`](Self::turn).
    fn now(&self) -> Time;

    /// Its receive buffers.
    fn pool(&mut self) -> &mut Pool;

    /// Gives memory back that it does not need while it is calm, and begins to give that of its buffers back; to be
    /// called now and then.
    fn trim(&mut self) {
        self.pool().trim();
    }

    /// Goes on to give the memory of buffers back, as much as one turn has time for. Whether more is to be done.
    fn trim_on(&mut self) -> bool {
        let pool = self.pool();
        pool.trim_on(&mut pool.trim_room())
    }

    /// What it counted so far.
    fn counters(&self) -> Counters;

    /// Wakes this driver from other threads.
    fn waker(&self) -> Waker;

    /// Accepts clients of a listening socket until told otherwise. `socket` stays open until the last completion.
    fn accept(&mut self, listener: ListenerId, socket: &Socket);

    /// Stops accepting; the last [`Completion::Accepted`] follows, with [`Errno::CANCELED`] or a client.
    fn stop_accepting(&mut self, listener: ListenerId);

    /// A new socket towards `address`, non-blocking and close-on-exec, with `tcp`'s options, but for those that find a
    /// vanished end: see [`guard`](Self::guard).
    ///
    /// # Errors
    /// What socket(2) or setsockopt(2) says; descriptors may have run out.
    fn socket(&mut self, address: SocketAddr, tcp: &Tcp) -> Result<Socket, Errno>;

    /// Sets the options that find a vanished end, on a socket of [`socket`](Self::socket) whose session has outlived
    /// its first second. A driver without a kernel has nothing to set.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    fn guard(&mut self, _socket: &Socket, _tcp: &Tcp) -> Result<(), Errno> {
        Ok(())
    }

    /// Has the kernel ask the network card itself (NAPI busy polling), for up to `us` microseconds of each wait and at
    /// plain reads of sockets this driver makes from now on. epoll polls before it looks at its timeout, so a turn may
    /// be as much longer. A driver without a kernel has no card.
    fn poll_card(&mut self, _us: u32) -> CardPolling {
        CardPolling::NONE
    }

    /// Tells the driver that `socket` is `side` of the session `key`, before anything else is asked of it.
    ///
    /// # Errors
    /// Where the kernel has no room to watch one more socket.
    fn attach(&mut self, key: Key, side: Side, socket: &Socket) -> Result<(), Errno>;

    /// Forgets the socket without closing it, when nothing of it is in flight.
    fn detach(&mut self, key: Key, side: Side, socket: &Socket);

    /// Connects the backend's socket; [`Completion::Connected`] follows.
    fn connect(&mut self, key: Key, socket: &Socket, address: SocketAddr);

    /// Receives from `side`'s socket into buffers of the pool; [`Completion::Received`] follows.
    fn arm_recv(&mut self, key: Key, side: Side, socket: &Socket, arm: Arm);

    /// Sends `buffer`'s filled part to `side`'s socket; [`Completion::Sent`] follows.
    fn send(&mut self, key: Key, side: Side, socket: &Socket, buffer: BufferId);

    /// [`send`](Self::send) to `side`, and when it has taken all its bytes a receive of [`Arm::Once`] from the other
    /// side. Both give their completion; the receive's is [`Errno::CANCELED`] where the send failed or fell short.
    fn send_then_recv(
        &mut self,
        key: Key,
        side: Side,
        socket: &Socket,
        buffer: BufferId,
        source: &Socket,
    );

    /// Waits for readiness of `side`'s socket; [`Completion::Polled`] follows.
    fn arm_poll(&mut self, key: Key, side: Side, socket: &Socket, interest: Interest);

    /// Reads `side`'s socket at once, by a plain call, while no receive of it is in flight. `None`: nothing is there.
    fn recv_now(&mut self, _key: Key, _side: Side, _socket: &Socket) -> Option<Received> {
        None
    }

    /// Sends a buffer's filled part to a socket at once, by a plain call, while no send to it is in flight: as much as
    /// there is room for. The buffer stays its owner's.
    ///
    /// # Errors
    /// The connection is broken.
    fn send_now(&mut self, _socket: &Socket, _buffer: BufferId) -> Result<u32, Errno> {
        Ok(0)
    }

    /// Whether a send of this turn is better made by [`send_now`](Self::send_now): where the turn brought little, an
    /// operation shares its call into the kernel with few, waits for them, and its completion ends the wait at once.
    fn sends_at_once(&mut self) -> bool {
        false
    }

    /// The clock, read now.
    fn read_clock(&mut self) -> Time {
        self.now()
    }

    /// Whether [`recv_now`](Self::recv_now), [`send_now`](Self::send_now) and [`carry_wide`](Self::carry_wide) work.
    fn has_plain_calls(&self) -> bool {
        false
    }

    /// Moves up to [`WIDE_BYTES`](crate::config::limits::WIDE_BYTES) from `source`'s socket to the other side's at
    /// once, by plain calls through what stays in the cache. Nothing may be in flight between them in this direction.
    /// Not more is received than the destination is thought to have room for; what it does not take all the same comes
    /// back as a tail of pool buffers, and what is too long for that stays with the source.
    fn carry_wide(
        &mut self,
        _key: Key,
        _source: Side,
        _from: &Socket,
        _to: &Socket,
        _stride: Stride,
    ) -> Carried {
        Carried { taken: 0, tail: None, source: None, failed: None }
    }

    /// Makes an operation in flight end soon (rule 6).
    fn cancel(&mut self, key: Key, op: Op);

    /// Tells the other end that nothing more will be sent (shutdown(2) with SHUT_WR).
    ///
    /// # Errors
    /// Where the connection is already gone.
    fn finish(&mut self, socket: &Socket) -> Result<(), Errno>;

    /// Resets the connection at once; everything in flight on the socket ends soon (rule 7).
    fn abort(&mut self, socket: &Socket);

    /// The error that ended the connection, taken from the socket (SO_ERROR, socket(7)): whatever asks next finds none.
    ///
    /// # Errors
    /// That error.
    fn take_error(&mut self, socket: &Socket) -> Result<(), Errno>;

    /// Whether a connection of which nothing is in flight still stands: the other end neither finished nor reset it.
    /// Bytes that wait are no end, and stay where they are.
    fn stands(&mut self, socket: &Socket) -> bool;

    /// Closes a socket of which nothing is in flight, at once or with the next [`turn`](Self::turn). One that was
    /// attached is named by `key` and `side`.
    fn close(&mut self, attached: Option<(Key, Side)>, socket: Socket);

    /// The client's address.
    ///
    /// # Errors
    /// Where the connection is already gone.
    fn client_address(&self, socket: &Socket) -> Result<SocketAddr, Errno>;

    /// Where a connection to a backend begins on this machine. After [`abort`](Self::abort) it may be known no more.
    ///
    /// # Errors
    /// Where the kernel does not say.
    fn local_address(&self, socket: &Socket) -> Result<SocketAddr, Errno>;

    /// Whether a connection that was made to `address` has reached itself: where nobody listens at a port that the
    /// kernel also gives out to connections, one that begins at that very port succeeds (RFC 9293 3.5, a simultaneous
    /// open), says back what it is told, and keeps the port from whoever would listen there.
    fn is_its_own_end(&self, socket: &Socket, address: SocketAddr) -> bool;

    /// Submits what was asked for and waits for the kernel until something is there, or until `until` (`None`: for
    /// ever).
    ///
    /// # Errors
    /// The driver is broken and its shard cannot go on.
    fn turn(&mut self, until: Option<Time>) -> io::Result<()>;

    /// The next thing the kernel said. `None`: time for another turn.
    fn next(&mut self) -> Option<Completion>;
}
