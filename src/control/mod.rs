//! Control: slow and careful, on its own thread. One loop over a closed list of causes.
//!
//! It owns the listening sockets, starts shards and hands sockets between them, reads the config file again, follows
//! operators' orders, and brings everything to its end. It never calls into a shard: it writes to mailboxes and reads
//! reports and tallies.

#![forbid(unsafe_code)]

pub mod board;
mod changes;
mod closing;
pub mod favours;
mod fleet;
pub mod handover;
pub mod notify;
pub mod order;
pub mod places;
mod ports;
mod reach;
mod rebalance;
mod reload;
mod resize;
mod rollback;
mod rollout;
mod supervisor;
pub mod totals;
mod worker;

use crate::config::{Config, Listener, Pool, limits};
use crate::driver::probe::{Feature, Report, probe};
use crate::driver::{ListenerId, sys};
use crate::event::Ended;
use crate::policy::snapshot::Snapshot;
use crate::session::parcel::Parcel;
use crate::shard::inquiry::Weighed;
use crate::shard::mailbox;
use crate::time::Time;
use board::Board;
use fleet::Fleet;
use handover::give::Said;
use handover::take::Legacy;
use order::{Answer, Order, Orders};
use ports::Port;
pub use ports::{PortError, open_admin};
use rollout::Choice;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use supervisor::Supervisor;
pub use supervisor::Windows;

/// What wakes the supervisor.
pub(crate) enum Cause {
    /// An operator gave an order.
    Ordered(Order, Box<dyn FnOnce(Answer) + Send>),
    /// Ringway is to end: the first time with patience, the second time at once. Which process asks, where one does.
    Stop(Option<u32>),
    /// A shard says what its sessions did.
    Weighed(Weighed),
    /// A shard reports.
    ShardSaid(usize, mailbox::Report),
    /// A shard's thread is at its end, and why if that was not wanted.
    ShardEnded(usize, Option<String>),
    /// An upgrade of this process has come further, or to its end.
    Upgrade(Said),
    /// The process before this one handed sessions over.
    Carried(Vec<Parcel>),
    /// This is the service's main process now.
    Main,
    /// The process before this one has gone.
    Alone,
    /// The process before this one gave the upgrade up, and why: this one is to end.
    Dismissed(String),
    /// There are windows, and they are open.
    Windows(Box<dyn Windows>),
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
    /// The limit of open descriptors leaves none for sessions: what to do.
    Descriptors(String),
    /// The process that was to hand over does not: why.
    HandOver(String),
}

impl StartError {
    /// What the process exits with: 69 where io_uring is refused, 71 where the system is to blame (sysexits.h).
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::DataPath(_) => 69,
            Self::Port(_) | Self::System(..) | Self::HandOver(_) | Self::Descriptors(_) => 71,
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(e) => e.fmt(f),
            Self::DataPath(why) => write!(f, "data_path: {why}"),
            Self::System(what, e) => write!(f, "{what}: {e}"),
            Self::Descriptors(why) => f.write_str(why),
            Self::HandOver(why) => write!(f, "the process to take over from: {why}"),
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
    /// A new process has all it had.
    Replaced,
    /// Shards panicked again and again: a bug of ours.
    Failed,
}

/// A config that was held against this machine, before anything is opened.
pub struct Prepared {
    /// As it was read.
    as_read: Config,
    /// As it is to be in force.
    config: Config,
    report: Report,
    choice: Choice,
    /// Lanes whose ring misbehaved in the process before, and until when they stay on epoll.
    held: Vec<(usize, Time)>,
}

/// Holds a config against this machine; opens nothing.
///
/// # Errors
/// It asks for a data path that is refused here.
pub fn prepare(config: Config, legacy: &mut Legacy) -> Result<Prepared, StartError> {
    let as_read = config;
    let (config, held) = legacy.with_orders(&as_read);
    // Here too, so that a process that cannot serve takes no sockets of the one before.
    affordable(&config, |_| 0).map_err(StartError::Descriptors)?;
    let report = probe();
    let wanted = (config.data_path, config.data_path_percent);
    let choice = rollout::choose(wanted, None, &report).map_err(StartError::DataPath)?;
    Ok(Prepared { as_read, config, report, choice, held })
}

/// Ringway's control while it runs, without its windows.
pub struct Control {
    board: Arc<Board>,
    causes: mpsc::Sender<Cause>,
    bound: Vec<(crate::config::Name, SocketAddr)>,
    thread: JoinHandle<Outcome>,
}

impl Control {
    /// Opens listeners, starts shards and lets them accept. `file`: what a reload reads again. `legacy`: listening
    /// sockets that were open before. The receiver gets a record of each session that ended.
    ///
    /// # Errors
    /// Something that is needed could not be had; nothing is left behind.
    pub fn start(
        prepared: Prepared,
        file: Option<PathBuf>,
        legacy: &mut Legacy,
    ) -> Result<(Self, mpsc::Receiver<Ended>), StartError> {
        let Prepared { as_read, config, report, choice, held } = prepared;
        let inherited = |listener: &Listener| legacy.count_of(&listener.name);
        let config =
            within_descriptors(config, None, inherited).map_err(StartError::Descriptors)?;
        let (causes, read) = mpsc::channel();
        let (journal, ended) = mpsc::sync_channel(limits::JOURNAL_RECORDS_MAX);
        let (number, first_id, process) = legacy.firsts();
        let wanted = (config.data_path, config.data_path_percent);
        let board = Arc::new(Board::new(Snapshot::new(config, None).numbered(number)));
        board.process.store(process, Relaxed);
        let firsts = (report.has(Feature::RecvCredit), first_id);
        let mut fleet = new_fleet(&board, firsts, causes.clone(), journal)?;
        let ports = open_ports(&board, fleet.lanes(), legacy)?;
        fleet
            .provide(choice.serving, choice.share)
            .and_then(|()| {
                fleet.serve_with(choice.serving, choice.share, &[]);
                fleet.hold_lanes(&held)
            })
            .map_err(|e| system("a shard could not start", e))?;
        rollout::announce(&board, choice, "start");
        tell_start(&board, file.as_deref());
        legacy.tell_edits();
        let bound = ports.iter().map(|p| (p.name.clone(), p.bound)).collect();
        for port in &ports {
            tracing::info!(listener = %port.name, address = %port.bound, "accepting clients");
            fleet.serve(port);
        }
        board.ready.store(true, Relaxed);
        let supervisor = Supervisor::new(supervisor::Parts {
            board: Arc::clone(&board),
            fleet,
            ports,
            report,
            wanted,
            as_read,
            file,
            causes: causes.clone(),
            before: legacy.predecessor(),
            stale: legacy.stale(),
        });
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || supervisor.run(&read))
            .map_err(|e| system("control could not start", e))?;
        Ok((Self { board, causes, bound, thread }, ended))
    }

    /// Takes over what the process before this one has, where there is one: what it counted at once, its sessions as
    /// they come.
    ///
    /// # Errors
    /// It went silent, and goes on alone.
    pub fn follow(&self, legacy: Legacy) -> Result<(), StartError> {
        let followed = legacy.follow(&self.board, self.causes.clone());
        followed.map_err(|why| StartError::HandOver(why.to_string()))
    }

    /// Has windows, which are open already.
    pub fn show(&self, windows: Box<dyn Windows>) {
        // Control that has gone needs none.
        let _ = self.causes.send(Cause::Windows(windows));
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

    /// Begins the graceful stop; the second time it ends everything at once. It takes the id of the process that asks,
    /// where one does.
    pub fn stopper(&self) -> impl Fn(Option<u32>) + Send + use<> {
        let causes = self.causes.clone();
        move |from| {
            // Control that has gone is what was wanted.
            let _ = causes.send(Cause::Stop(from));
        }
    }

    /// Waits until Ringway has stopped.
    #[must_use]
    pub fn wait(self) -> Outcome {
        self.thread.join().unwrap_or(Outcome::Failed)
    }
}

/// Says once what runs here, and within which limits.
fn tell_start(board: &Board, file: Option<&Path>) {
    let snapshot = board.snapshot.load();
    let config = &snapshot.config;
    let path = board.path.load();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        config = file.map(|file| tracing::field::display(file.display())),
        shards = board.shards().iter().filter(|shard| shard.serving.load(Relaxed)).count(),
        path = path.as_ref().map(|path| path.kind.label()),
        sessions_max = config.limits.sessions_max,
        descriptors = sys::raise_descriptor_limit(),
        buffers_per_shard = config.limits.buffers_per_shard,
        buffer_bytes = config.limits.buffer_bytes,
        "Ringway starts"
    );
}

fn system(what: &str, e: io::Error) -> StartError {
    StartError::System(what.to_owned(), e)
}

fn new_fleet(
    board: &Arc<Board>,
    firsts: (bool, u64),
    causes: mpsc::Sender<Cause>,
    journal: mpsc::SyncSender<Ended>,
) -> Result<Fleet, StartError> {
    let snapshot = board.snapshot.load();
    Fleet::new(Arc::clone(board), &snapshot.config, firsts, causes, journal)
        .map_err(|e| system("shards", e))
}

fn open_ports(board: &Board, lanes: usize, legacy: &mut Legacy) -> Result<Vec<Port>, StartError> {
    let snapshot = board.snapshot.load();
    let mut ids = 0_u32..;
    let mut next_id = || ids.next().and_then(|id| u16::try_from(id).ok()).map(ListenerId);
    let mut ports = Vec::new();
    for listener in &snapshot.config.listeners {
        let inherited = legacy.sockets_of(&listener.name);
        let opened = Port::open(listener, lanes, inherited, &mut next_id);
        ports.push(opened.map_err(StartError::Port)?);
    }
    Ok(ports)
}

/// What the limit of open descriptors allows.
struct Affordable {
    descriptors: u64,
    /// Descriptors for other things than sessions.
    spare: u64,
    /// At least one.
    sessions: u32,
}

/// Counts what sessions may have of the descriptors, and raises their limit as far as it goes. `open`: how many sockets
/// of a listener there are already.
///
/// # Errors
/// None would be left for sessions.
fn affordable(config: &Config, open: impl Fn(&Listener) -> usize) -> Result<Affordable, String> {
    let descriptors = sys::raise_descriptor_limit();
    // CPUs that cannot be had are told where shards are to start there.
    let shards = fleet::places(config).map_or(1, |places| places.len()) as u64;
    // Each shard has its own socket of each listener, and those of shards that are no more stay open.
    let sockets = config.listeners.iter().map(|listener| shards.max(open(listener) as u64)).sum();
    let spare = kept_free(config, shards, sockets, descriptors);
    let sessions = u32::try_from(descriptors.saturating_sub(spare) / 2).unwrap_or(u32::MAX);
    if sessions == 0 {
        return Err(format!(
            "limits.sessions_max: of {descriptors} descriptors none is left for sessions: {shards} shards with {} \
             listeners may need {spare} themselves; raise the limit of open files (ulimit -n, LimitNOFILE)",
            config.listeners.len()
        ));
    }
    Ok(Affordable { descriptors, spare, sessions })
}

/// How many of so many descriptors are for other things than sessions.
fn kept_free(config: &Config, shards: u64, sockets: u64, descriptors: u64) -> u64 {
    // Where ready connections would take more than their part they are given up first.
    let ready = config.pools.iter().map(Pool::spares).sum::<u64>() * shards;
    let ready = ready.min(descriptors / limits::SPARE_DESCRIPTORS_PART);
    let of_shard = limits::DESCRIPTORS_OF_SHARD + limits::CLOSES_PER_TURN_MAX as u64;
    // An upgrade hands over copies of the sockets.
    limits::DESCRIPTORS_SPARE + shards * of_shard + 2 * sockets + ready
}

/// Lowers the session limits to what the limit of open descriptors allows: running out of descriptors in the middle
/// of a session's opening is worse than turning a client away. Says so, unless that limit is `in_force` already. And
/// has the kernel's table hold them all, so that no shard waits for it to grow. `open`: how many sockets of a listener
/// there are already.
///
/// # Errors
/// None would be left for sessions.
fn within_descriptors(
    mut config: Config,
    in_force: Option<u32>,
    open: impl Fn(&Listener) -> usize,
) -> Result<Config, String> {
    let Affordable { descriptors, spare, sessions: affordable } = affordable(&config, open)?;
    let wanted = config.limits.sessions_max;
    if wanted > affordable {
        if in_force != Some(affordable) {
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
    let needed = (u64::from(config.limits.sessions_max) * 2 + spare).min(descriptors);
    if let Err(error) = sys::size_descriptor_table(needed) {
        tracing::debug!(%error, needed, "the table of descriptors grows as it is used");
    }
    Ok(config)
}
