//! One process takes the place of another: a binary upgrade.
//!
//! The old process starts the new one and gives it one end of a [`Channel`] as its standard input. Nobody else can come
//! by that end, and the new one checks who made it. They speak in this order:
//!
//! ```text
//!   old                                                new
//!   Hello (how it stands)                 ──▶          checks its own config against this machine
//!                                         ◀──          Ready, or Failed and why: nothing has happened
//!   Sockets ... AllSockets                ──▶          starts shards on the same open sockets
//!                                         ◀──          Accepting: both accept now
//!   lets go of its sockets, keeps them open; closes its windows
//!   Totals (what it counted)              ──▶          opens its windows
//!   Snapshot, Sessions (at rest)          ──▶          makes them its own
//!     keeps its descriptors until         ◀──          Taken; only then it lets them go on
//!   ... and again; Totals once a second; Main when all that can go has gone
//!   Totals, Done                          ──▶
//!   ends                                  ◀──          Done
//! ```
//!
//! Where the new process fails, is late or dies, the old one kills it, accepts again, and goes on with every session
//! that was not answered by `Taken`. Where the old process dies after `Accepting`, the new one goes on alone; where it
//! says that it gave up, the new one ends.
//!
//! A stop that the main one of the two is asked for is for both: it sends the other SIGTERM, as often as it got one
//! itself. What comes from the other is never sent back, and of a stop that both heard of one is counted. The old one
//! gives what it can until it ends. Whichever was the main one ends last, for a service manager ends what is left then.
//!
//! `give` is the old side, [`take`] the new one. `ports.rs` and [`take`] also see to sockets that a service
//! manager kept over a restart: to a new process they are the same.

pub(super) mod give;
pub mod take;

use crate::config::limits;
use crate::driver::handoff;
use crate::wire::handover::{Fault, HEAD_BYTES, Head, Message};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Set for a new process that is to take over; says where it finds its end of the channel.
pub const ENVIRONMENT: &str = "RINGWAY_HANDOVER";

/// What an old process and the new one speak through.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// Why a channel leads nowhere any more.
#[derive(Debug)]
pub enum Lost {
    /// The other end is gone.
    Gone,
    /// It did not answer in time.
    Late(u64),
    /// The system refused to send or receive.
    Broken(io::Error),
    /// It said what nobody understands here.
    Foreign(Fault),
    /// It gave up, and said why.
    Failed(String),
    /// It said something else than was due.
    OutOfTurn,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => write!(f, "it gave no reason over the channel; its own output may"),
            Self::Late(ms) => write!(f, "it did not answer within {ms} ms"),
            Self::Broken(e) => write!(f, "the system refused to reach it: {e}"),
            Self::Foreign(fault) => fault.fmt(f),
            Self::Failed(why) => f.write_str(why),
            Self::OutOfTurn => write!(f, "it said something out of turn, which is a bug"),
        }
    }
}

impl From<Fault> for Lost {
    fn from(fault: Fault) -> Self {
        Self::Foreign(fault)
    }
}

impl Channel {
    /// Both ends of a new one: this side's, and what the other process gets.
    ///
    /// # Errors
    /// Where no descriptor is left.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (here, there) = UnixStream::pair()?;
        Ok((Self(here), there.into()))
    }

    /// The end that another process of this user made and put at standard input; its process id.
    ///
    /// # Errors
    /// Where there is no such thing, or another user made it.
    pub fn at_stdin() -> io::Result<(Self, u32)> {
        let stream = UnixStream::from(handoff::take_stdin()?);
        let (pid, user) = handoff::other_end(&stream)?;
        let own = handoff::own_user();
        if user != own {
            let why = format!("it was made by user {user}, and this process acts as {own}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok((Self(stream), u32::try_from(pid).unwrap_or(0)))
    }

    /// The same channel, for another thread that may want to end it.
    ///
    /// # Errors
    /// Where no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Ends it for both sides, whoever waits; what was sent can still be received.
    pub fn end(&self) {
        // It fails where the other end is gone, which is as good.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Says something, with `descriptors` beside it.
    ///
    /// # Errors
    /// Where it cannot be said within [`limits::HANDOVER_STEP_MS_MAX`].
    pub fn say(&self, message: &Message, descriptors: &[RawFd]) -> Result<(), Lost> {
        let bytes = message.encode()?;
        let ms = limits::HANDOVER_STEP_MS_MAX;
        let broken = |e: io::Error| lost(e, ms);
        self.0.set_write_timeout(Some(Duration::from_millis(ms))).map_err(broken)?;
        // Descriptors go with the head, which is taken whole.
        let sent = handoff::send(&self.0, &bytes[..HEAD_BYTES], descriptors).map_err(broken)?;
        (&self.0).write_all(&bytes[sent..]).map_err(broken)
    }

    /// Hears what is said next, and the descriptors that came with it; waits for `ms`, or for ever.
    ///
    /// # Errors
    /// Where nothing comes, nothing that is understood, or word that the other side gives up.
    pub fn hear(&self, ms: Option<u64>) -> Result<(Message, Vec<OwnedFd>), Lost> {
        let broken = |e: io::Error| lost(e, ms.unwrap_or(limits::HANDOVER_STEP_MS_MAX));
        self.0.set_read_timeout(ms.map(Duration::from_millis)).map_err(broken)?;
        let mut head = [0; HEAD_BYTES];
        let (n, descriptors) = handoff::receive(&self.0, &mut head).map_err(broken)?;
        if n == 0 {
            return Err(Lost::Gone);
        }
        // Only somebody else would send a part of a head.
        let step = Duration::from_millis(limits::HANDOVER_STEP_MS_MAX);
        self.0.set_read_timeout(Some(step)).map_err(broken)?;
        (&self.0).read_exact(&mut head[n..]).map_err(broken)?;
        let head = Head::decode(&head)?;
        let mut body = vec![0; head.body_bytes()];
        (&self.0).read_exact(&mut body).map_err(broken)?;
        match Message::decode(head, &body)? {
            Message::Failed(why) => Err(Lost::Failed(why)),
            message => Ok((message, descriptors)),
        }
    }
}

fn lost(e: io::Error, ms: u64) -> Lost {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Lost::Late(ms),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => Lost::Gone,
        _ => Lost::Broken(e),
    }
}
