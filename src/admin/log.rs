//! What Ringway writes down: how lines look, and the line of each session.

use crate::config::{Log, LogFormat, LogLevel, limits};
use crate::control::board::Board;
use crate::event::Ended;
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Lets all lines from now on go to stderr, as `log` says. Once in a process: a reload does not change it.
///
/// # Errors
/// Where somebody has set how lines are written before.
pub fn init(log: &Log) -> io::Result<()> {
    let colours = io::stderr().is_terminal();
    lines(log, colours, io::stderr).try_init().map_err(io::Error::other)
}

/// Writes lines as `log` says.
pub(super) fn lines<W>(log: &Log, colours: bool, to: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(to);
    match log.format {
        LogFormat::Human => Box::new(lines.with_ansi(colours).finish()),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).finish()),
    }
}

/// The writer of session lines, on a thread of its own: a slow disk or terminal fills the journal and delays nobody.
#[derive(Debug)]
pub struct SessionLog {
    thread: JoinHandle<()>,
}

impl SessionLog {
    /// Writes what comes by `journal`, every N-th as `log.session_every` of the config in force says.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(journal: Receiver<Ended>, board: Arc<Board>) -> io::Result<Self> {
        let mut writer = Writer { journal, board, seen: 0 };
        let thread = std::thread::Builder::new().name("ringway-log".into()).spawn(move || {
            while writer.drain() {
                // Waiting on the channel would have the next shard that ends a session wake this thread: a system
                // call on the data path. So it looks by itself.
                #[expect(clippy::disallowed_methods, reason = "its own thread; see above")]
                std::thread::sleep(Duration::from_millis(limits::JOURNAL_PAUSE_MS));
            }
        })?;
        Ok(Self { thread })
    }

    /// Waits until all senders have gone and all they sent is written.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread of the session log panicked, which is a bug");
        }
    }
}

struct Writer {
    journal: Receiver<Ended>,
    board: Arc<Board>,
    /// Sessions that came by, written or not.
    seen: u64,
}

impl Writer {
    /// Writes what waits. Whether more may come.
    fn drain(&mut self) -> bool {
        let every = u64::from(self.board.snapshot.load().config.log.session_every);
        loop {
            match self.journal.try_recv() {
                Ok(ended) => self.take(&ended, every),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, ended: &Ended, every: u64) {
        self.seen += 1;
        if every > 0 && self.seen.is_multiple_of(every) {
            write(ended);
            self.board.journal_written.fetch_add(1, Relaxed);
        }
    }
}

fn write(ended: &Ended) {
    let backend = ended.backend.as_ref();
    tracing::info!(
        session = ended.session,
        client = ended.client.map(tracing::field::display),
        listener = &*ended.listener,
        pool = backend.map(|(pool, _, _)| &**pool),
        backend = backend.map(|(_, name, _)| &**name),
        backend_address = backend.map(|(_, _, address)| tracing::field::display(address)),
        arm = ended.arm.label(),
        up_bytes = ended.up_bytes,
        down_bytes = ended.down_bytes,
        connect_us = ended.connect_ns.map(|ns| ns / 1000),
        // Whole microseconds, so that three decimals are all there are.
        duration_ms = (ended.duration_ns / 1000) as f64 / 1000.0,
        why = ended.why.label(),
        "session ended"
    );
}

#[cfg(test)]
mod tests;
