//! Control: slow and careful, on its own thread. One loop over a closed list of causes.
//!
//! It owns the listening sockets, starts shards and hands sockets between them, reads the config file again, follows
//! operators' orders, and brings everything to its end. It never calls into a shard: it writes to mailboxes and reads
//! reports and tallies.

#![forbid(unsafe_code)]

pub mod board;
mod fleet;
pub mod notify;
pub mod order;
mod ports;
mod rebalance;
mod reload;
mod rollback;
mod rollout;
mod supervisor;
mod worker;

use crate::config::{Config, limits};
use crate::driver::probe::{Feature, Report, probe};
use crate::driver::sys;
use crate::event::Ended;
use crate::policy::snapshot::Snapshot;
use crate::shard::inquiry::Weighed;
use crate::shard::mailbox;
use board::Board;
use fleet::Fleet;
use order::{Answer, Order, Orders};
use ports::Port;
pub use ports::{PortError, open_admin};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use supervisor::Supervisor;

/// What wakes the supervisor.
pub(crate) enum Cause {
    /// An operator gave an order.
    Ordered(Order, Box<dyn FnOnce(Answer) + Send>),
    /// Ringway is to end: the first time with patience, the second time at once.
    Stop,
    /// A shard says what its sessions did.
    Weighed(Weighed),
    /// A shard reports.
    ShardSaid(usize, mailbox::Report),
    /// A shard's thread is at its end, and why if that was not wanted.
    ShardEnded(usize, Option<String>),
}

/// Why Ringway could not start. Each names its exit code.
#[derive(Debug)]
pub enum StartError {
    /// A listener could not be opened.
    Port(PortError),
    /// io_uring was asked for and is refused: why and what to do.
    DataPath(String),
    /// The system refused something else that is needed: a thread, a CPU, memory.
    System(String, io::Error),
}

impl StartError {
    /// What the process exits with: 69 where io_uring is refused, 71 where the system is to blame (sysexits.h).
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::DataPath(_) => 69,
            Self::Port(_) | Self::System(..) => 71,
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(e) => e.fmt(f),
            Self::DataPath(why) => write!(f, "data_path: {why}"),
            Self::System(what, e) => write!(f, "{what}: {e}"),
        }
    }
}

impl std::error::Error for StartError {}

/// How Ringway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it was asked to. How many sessions were open when the drain began, and how many of them were ended by it.
    Stopped {
        /// Sessions open when accepting ended.
        open: u64,
        /// Sessions that did not end by themselves in time.
        cut: u64,
    },
    /// Shards panicked again and again: a bug of ours.
    Failed,
}

/// Ringway's control while it runs, without its windows.
pub struct Control {
    board: Arc<Board>,
    causes: mpsc::Sender<Cause>,
    bound: Vec<(crate::config::Name, SocketAddr)>,
    thread: JoinHandle<Outcome>,
}

impl Control {
    /// Opens listeners, starts shards and lets them accept. `file`: what a reload reads again. The receiver gets a
    /// record of each session that ended.
    ///
    /// # Errors
    /// Something that is needed could not be had; nothing is left behind.
    pub fn start(
        config: Config,
        file: Option<PathBuf>,
    ) -> Result<(Self, mpsc::Receiver<Ended>), StartError> {
        let as_read = config.clone();
        let config = within_descriptors(config, 0);
        let report = probe();
        let wanted = (config.data_path, config.data_path_percent);
        let choice = rollout::choose(wanted, None, &report).map_err(StartError::DataPath)?;
        let (causes, read) = mpsc::channel();
        let (journal, ended) = mpsc::sync_channel(limits::JOURNAL_RECORDS_MAX);
        let board = Arc::new(Board::new(Snapshot::new(config, None)));
        let mut fleet = new_fleet(&board, &report, causes.clone(), journal)?;
        let ports = open_ports(&board, fleet.lanes())?;
        fleet
            .serve_with(choice.serving, choice.share, &[])
            .map_err(|e| system("a shard could not start", e))?;
        rollout::announce(&board, choice);
        let bound = ports.iter().map(|p| (p.name.clone(), p.bound)).collect();
        for port in &ports {
            tracing::info!(listener = %port.name, address = %port.bound, "accepting clients");
            fleet.serve(port);
        }
        board.ready.store(true, std::sync::atomic::Ordering::Relaxed);
        let supervisor = Supervisor::new(Arc::clone(&board), fleet, ports, report, as_read, file);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || supervisor.run(&read))
            .map_err(|e| system("control could not start", e))?;
        Ok((Self { board, causes, bound, thread }, ended))
    }

    /// What everybody may look at.
    #[must_use]
    pub const fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Gives orders.
    #[must_use]
    pub fn orders(&self) -> Orders {
        Orders::new(self.causes.clone())
    }

    /// Where a listener was bound at the start.
    #[must_use]
    pub fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.bound.iter().find(|(of, _)| **of == *name).map(|(_, address)| *address)
    }

    /// Begins the graceful stop; the second time it ends everything at once.
    pub fn stopper(&self) -> impl Fn() + Send + use<> {
        let causes = self.causes.clone();
        move || {
            // Control that has gone is what was wanted.
            let _ = causes.send(Cause::Stop);
        }
    }

    /// Waits until Ringway has stopped.
    #[must_use]
    pub fn wait(self) -> Outcome {
        self.thread.join().unwrap_or(Outcome::Failed)
    }
}

fn system(what: &str, e: io::Error) -> StartError {
    StartError::System(what.to_owned(), e)
}

fn new_fleet(
    board: &Arc<Board>,
    report: &Report,
    causes: mpsc::Sender<Cause>,
    journal: mpsc::SyncSender<Ended>,
) -> Result<Fleet, StartError> {
    let credit = report.has(Feature::RecvCredit);
    let snapshot = board.snapshot.load();
    Fleet::new(Arc::clone(board), &snapshot.config, credit, causes, journal)
        .map_err(|e| system("shards", e))
}

fn open_ports(board: &Board, lanes: usize) -> Result<Vec<Port>, StartError> {
    let snapshot = board.snapshot.load();
    let listeners = snapshot.config.listeners.iter().enumerate();
    listeners
        .map(|(i, listener)| {
            let id = u16::try_from(i).expect("a config has at most 256 listeners");
            Port::open(crate::driver::ListenerId(id), listener, lanes).map_err(StartError::Port)
        })
        .collect()
}

/// Lowers the session limits to what the limit of open descriptors allows: running out of descriptors in the middle
/// of a session's opening is worse than turning a client away. Says so, unless that limit is `in_force` already.
fn within_descriptors(mut config: Config, in_force: u32) -> Config {
    let descriptors = sys::raise_descriptor_limit();
    let spare = limits::DESCRIPTORS_SPARE;
    let affordable = u32::try_from(descriptors.saturating_sub(spare) / 2).unwrap_or(u32::MAX);
    let wanted = config.limits.sessions_max;
    if wanted > affordable {
        if in_force != affordable {
            tracing::warn!(
                wanted,
                granted = affordable,
                descriptors,
                "limits.sessions_max is lowered: a session takes two descriptors; raise the limit of open files \
                 (ulimit -n, LimitNOFILE)"
            );
        }
        config.limits.sessions_max = affordable;
        for listener in &mut config.listeners {
            listener.sessions_max = listener.sessions_max.min(affordable);
        }
    }
    config
}
