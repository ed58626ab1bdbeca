//! The way to a backend, as straight-line code: choose, connect, try another.
//!
//! The future asks one question at a time and holds no socket and no buffer, so it can be dropped at any moment. Its
//! session does what it asks for and polls it again with the reply; no waker is needed.

use crate::config::limits;
use crate::driver::Errno;
use crate::event::EndReason;
use crate::policy::snapshot::{BackendIndex, Snapshot};
use crate::time::Time;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// What the opening wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Connect to this backend, and tell.
    Connect(BackendIndex),
    /// The backend is connected: relay.
    Opened,
    /// No backend could be reached.
    Failed(EndReason),
}

/// What became of the attempt that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The backend is connected.
    Connected,
    /// It is not.
    Failed(Errno),
}

/// A session that looks for its backend.
pub struct Opening {
    way: Pin<Box<dyn Future<Output = Result<(), EndReason>>>>,
    line: Rc<Line>,
    retries: u32,
    attempts: u32,
    /// When the attempt in flight began.
    pub began: Time,
    /// True exactly while a connect is in flight.
    pub connecting: bool,
    /// The attempt in flight ran out of time, and when it was cancelled last.
    pub gave_up: Option<Time>,
    /// The client is being watched for leaving, or was.
    pub watched: bool,
    /// No backend could be reached, and the client is told at this moment.
    pub refused: Option<(EndReason, Time)>,
}

/// Where question and reply are put down.
#[derive(Default)]
struct Line {
    asked: Cell<Option<BackendIndex>>,
    reply: Cell<Option<Reply>>,
}

impl Opening {
    /// The way to a backend of `pool`.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, pool: usize) -> Self {
        let line = Rc::new(Line::default());
        let retries = snapshot.pool(pool).retries;
        Self {
            way: Box::pin(open(Rc::clone(&line), snapshot, pool)),
            line,
            retries,
            attempts: 0,
            began: Time::default(),
            connecting: false,
            gave_up: None,
            watched: false,
            refused: None,
        }
    }

    /// Goes on with the reply to its last question, and asks the next.
    pub fn poll(&mut self, reply: Option<Reply>) -> Question {
        self.line.reply.set(reply);
        match self.way.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Question::Opened,
            Poll::Ready(Err(why)) => Question::Failed(why),
            Poll::Pending => {
                Question::Connect(self.line.asked.take().expect("it waits for nothing else"))
            }
        }
    }

    /// An attempt begins.
    pub const fn attempt(&mut self, now: Time) {
        self.began = now;
        self.attempts += 1;
        self.connecting = true;
        self.gave_up = None;
    }

    /// Whether a failed attempt will be followed by another.
    #[must_use]
    pub const fn attempts_left(&self) -> bool {
        self.attempts <= self.retries
    }

    /// When it wants to be looked at: when the client is to be watched, then when the attempt has had its time.
    #[must_use]
    pub fn deadline(&self, connect_ms: u32) -> Time {
        if let Some((_, at)) = self.refused {
            return at;
        }
        let connect = self.began.plus_ms(u64::from(connect_ms));
        match (self.gave_up, self.watched) {
            // The cancelled connect has a second to say so; then it is asked again.
            (Some(at), _) => at.plus_ms(limits::ENDING_MS_MAX),
            (None, true) => connect,
            (None, false) => connect.min(self.began.plus_ms(limits::WATCH_CLIENT_AFTER_MS)),
        }
    }

    /// Whether the attempt in flight has had its time.
    #[must_use]
    pub fn connect_is_due(&self, now: Time, connect_ms: u32) -> bool {
        self.connecting && now >= self.began.plus_ms(u64::from(connect_ms))
    }
}

impl Line {
    /// Asks for a connection to `backend`.
    async fn connect(&self, backend: BackendIndex) -> Result<(), Errno> {
        self.asked.set(Some(backend));
        std::future::poll_fn(|_| self.reply.take().map_or(Poll::Pending, Poll::Ready)).await.into()
    }
}

impl From<Reply> for Result<(), Errno> {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Connected => Ok(()),
            Reply::Failed(e) => Err(e),
        }
    }
}

async fn open(line: Rc<Line>, snapshot: Arc<Snapshot>, pool: usize) -> Result<(), EndReason> {
    let mut backend = snapshot.next_backend(pool).ok_or(EndReason::NoBackend)?;
    let pool_number = u16::try_from(pool).expect("a config has at most 1024 pools");
    let mut tried = Vec::new();
    loop {
        let at = BackendIndex { pool: pool_number, backend };
        let Err(failed) = line.connect(at).await else { return Ok(()) };
        tried.push(backend);
        if tried.len() > snapshot.pool(pool).retries as usize {
            return Err(why(failed));
        }
        backend = snapshot.another_backend(pool, &tried).ok_or(EndReason::NoBackend)?;
    }
}

/// How a failed attempt ends a session.
pub(super) const fn why(failed: Errno) -> EndReason {
    match failed {
        Errno::REFUSED | Errno::RESET => EndReason::ConnectRefused,
        Errno::TIMED_OUT => EndReason::ConnectTimeout,
        Errno::NO_PORTS => EndReason::NoPorts,
        e if e.is_exhaustion() => EndReason::NoDescriptors,
        _ => EndReason::ConnectUnreachable,
    }
}
