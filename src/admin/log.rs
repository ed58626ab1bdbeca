//! What Ringway writes down: how lines look, and the line of each session.

pub mod outlet;

use crate::config::{Log, LogFormat, LogLevel, limits};
use crate::control::board::Board;
use crate::driver::sys;
use crate::event::{Ended, First};
use crate::time::Time;
use outlet::{Outlet, QUEUE, Queue};
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Lets all lines from now on go to stderr, as `log` says, and panics with them. Once in a process: a reload does not
/// change it. No thread but one writes there, and nobody waits for it.
///
/// # Errors
/// Where the system gives no thread, or somebody has set how lines are written before.
pub fn init(log: &Log) -> io::Result<Outlet> {
    let colours = io::stderr().is_terminal();
    let queue = Queue::start(io::stderr(), log, colours)?;
    lines(log, colours, queue.clone()).try_init().map_err(io::Error::other)?;
    queue.follow_panics();
    Ok(Outlet(QUEUE.get_or_init(|| queue).clone()))
}

/// The same for a process that does not get as far as its config, and has but last words.
///
/// # Errors
/// Where the system gives no thread.
pub fn plain() -> io::Result<Outlet> {
    let log = Log { format: LogFormat::Human, level: LogLevel::Warn, session_every: 0 };
    Queue::start(io::stderr(), &log, false).map(Outlet)
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
    // What it says of a line that cannot be written it prints, and panics where that fails too.
    let lines =
        tracing_subscriber::fmt().with_max_level(level).log_internal_errors(false).with_writer(to);
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
    /// Writes what comes by `journal`, every N-th as `log.session_every` of the config in force says; and at level warn
    /// what ended by the fault of a backend or of Ringway, at most [`limits::FAULT_LINES_PER_S_MAX`] a second.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(journal: Receiver<Ended>, board: Arc<Board>) -> io::Result<Self> {
        let mut writer = Writer { journal, board, seen: 0, faults: Faults::default() };
        let thread = std::thread::Builder::new().name("ringway-log".into()).spawn(move || {
            while let Some(first) = writer.wait() {
                // A shard that ends a session while this waits has to wake it, by a system call on the data path. While
                // it sleeps here none has to, so a burst costs one. Looking by itself all the time instead would
                // interrupt a shard on the same CPU as often as it looks.
                #[expect(clippy::disallowed_methods, reason = "its own thread; see above")]
                std::thread::sleep(Duration::from_millis(limits::JOURNAL_PAUSE_MS));
                writer.write(&first);
            }
            writer.faults.close();
        })?;
        Ok(Self { thread })
    }

    /// Waits until all senders have gone and all they sent is left to be written: the process is at its end, so for
    /// [`limits::LOG_LAST_MS_MAX`] at most.
    pub fn join(self) {
        if let Some(queue) = QUEUE.get() {
            queue.end();
        }
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
    faults: Faults,
}

/// How many lines at level warn were written in the second that began last.
#[derive(Debug, Default)]
struct Faults {
    began: Time,
    written: u32,
    left_out: u64,
}

impl Faults {
    /// Says how many were left out in a second that is over.
    fn look(&mut self, now: Time) {
        if now >= self.began.plus_ms(1000) {
            self.close();
            (self.began, self.written) = (now, 0);
        }
    }

    /// Says how many were left out.
    fn close(&mut self) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            tracing::warn!(
                sessions = left_out,
                "more sessions ended by the fault of a backend or of Ringway: their lines are at level info, and \
                 ringway_sessions_ended_total counts them by reason"
            );
        }
    }

    /// Whether one more may be written.
    const fn take(&mut self) -> bool {
        let fits = self.written < limits::FAULT_LINES_PER_S_MAX;
        if fits {
            self.written += 1;
        } else {
            self.left_out += 1;
        }
        fits
    }
}

impl Writer {
    /// Waits for a record. `None`: no more will come.
    fn wait(&mut self) -> Option<Ended> {
        while self.faults.left_out > 0 {
            match self.journal.recv_timeout(Duration::from_secs(1)) {
                Ok(ended) => return Some(ended),
                Err(RecvTimeoutError::Timeout) => self.faults.look(sys::now()),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        self.journal.recv().ok()
    }

    /// Writes a record and those that wait behind it.
    fn write(&mut self, first: &Ended) {
        let every = u64::from(self.board.snapshot.load().config.log.session_every);
        self.faults.look(sys::now());
        self.take(first, every);
        while let Ok(ended) = self.journal.try_recv() {
            self.take(&ended, every);
        }
    }

    fn take(&mut self, ended: &Ended, every: u64) {
        self.seen += 1;
        if every == 0 {
            return;
        }
        let warns = ended.why.whose().is_ours() && self.faults.take();
        if warns || self.seen.is_multiple_of(every) {
            if let Some(queue) = QUEUE.get() {
                queue.wait_for_room();
            }
            write(ended, warns);
            self.board.journal_written.fetch_add(1, Relaxed);
        }
    }
}

/// A session's line. Its fields stand once, for the level of an event is known when this is compiled.
macro_rules! session_line {
    ($level:ident, $ended:ident) => {{
        let backend = $ended.backend.as_ref();
        let us = |ns: u64| ns / 1000;
        tracing::$level!(
            session = $ended.session,
            client = $ended.client.map(tracing::field::display),
            listener = &*$ended.listener,
            pool = backend.map(|(pool, _, _)| &**pool),
            backend = backend.map(|(_, name, _)| &**name),
            backend_address = backend.map(|(_, _, address)| tracing::field::display(address)),
            backend_local = $ended.backend_local.map(tracing::field::display),
            arm = $ended.arm.label(),
            up_bytes = $ended.up_bytes,
            down_bytes = $ended.down_bytes,
            attempts = $ended.attempts,
            connect_us = $ended.connect_ns.map(us),
            opened_us = $ended.opened_ns.map(us),
            // Whole microseconds, so that three decimals are all there are.
            duration_ms = us($ended.duration_ns) as f64 / 1000.0,
            first = $ended.first.map(First::label),
            why = $ended.why.label(),
            "session ended"
        );
    }};
}

fn write(ended: &Ended, warns: bool) {
    if warns { session_line!(warn, ended) } else { session_line!(info, ended) }
}

#[cfg(test)]
mod tests;
