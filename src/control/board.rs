//! What everybody may look at: the snapshot in force, the shards' tallies, whether Ringway is ready. Control writes it,
//! the admin endpoint and tests read it; nobody waits for anybody.

use super::favours::Granted;
use super::places::{ListenerStatus, Places, PoolStatus};
use super::totals::Totals;
use crate::config::{DataPath, Percent, Steer, limits};
use crate::driver::Kind;
use crate::policy::health::Fault;
use crate::policy::snapshot::Snapshot;
use crate::tally::{Count, Tally};
use arc_swap::{ArcSwap, ArcSwapOption};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

/// What everybody may look at.
#[derive(Debug)]
pub struct Board {
    /// The snapshot in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Others that sessions may live by: those that were in force, and those of the process before.
    before: Mutex<Vec<Weak<Snapshot>>>,
    /// All shards that run, and what those counted that have ended.
    shards: Mutex<Vec<Arc<ShardEntry>>>,
    /// Which data path new sessions take, and why.
    pub path: ArcSwapOption<PathChoice>,
    /// Whether Ringway wants new clients: listeners are bound and no stop was asked for.
    pub ready: AtomicBool,
    /// Reloads that were applied.
    pub reloads_applied: AtomicU64,
    /// Reloads that were refused.
    pub reloads_refused: AtomicU64,
    /// Whether the last reload was applied, and when a config was last taken up, in seconds since 1970.
    config_taken: (AtomicBool, AtomicU64),
    /// Changes of the data path, whoever asked for them.
    pub path_changes: AtomicU64,
    /// Shards that went back to epoll because their ring misbehaved, by the number of the [`Fault`].
    pub rollbacks: [AtomicU64; Fault::ALL.len()],
    /// The last of them.
    rolled_back: Mutex<VecDeque<RollBack>>,
    /// Live sessions that were told to change their shard because its load was above that of others.
    pub rebalanced: AtomicU64,
    /// Shards that panicked and were started again.
    pub shard_panics: AtomicU64,
    /// Lines of ended sessions that were written.
    pub journal_written: AtomicU64,
    /// Which of a line of processes this is, each started by the one before to replace it; from 1.
    pub process: AtomicU64,
    /// Upgrades that put this process in the place of another.
    pub upgrades_done: AtomicU64,
    /// Upgrades that failed; this process went on.
    pub upgrades_failed: AtomicU64,
    /// Process id of the one before, while it has sessions to hand over; else 0.
    pub predecessor: AtomicU32,
    /// Whether the kernel refuses to steer clients to the CPU their packets arrive on.
    pub unsteered: AtomicBool,
    /// What the processes before this one counted.
    pub inherited: ArcSwapOption<Totals>,
}

/// Which data path new sessions take, and why.
#[derive(Debug, Clone, Serialize)]
pub struct PathChoice {
    /// What was asked for, by config or by an order.
    #[serde(serialize_with = "wanted_label")]
    pub wanted: DataPath,
    /// What runs.
    #[serde(serialize_with = "kind_label")]
    pub kind: Kind,
    /// A sentence.
    pub why: String,
    /// How much of the new sessions `kind` is to get.
    #[serde(serialize_with = "percent")]
    pub percent: Percent,
    /// Sessions that had begun on `kind`, and on either path, when this was chosen.
    #[serde(skip)]
    pub begun: [u64; 2],
}

/// A shard that went back to epoll because its ring misbehaved.
#[derive(Debug, Clone, Serialize)]
pub struct RollBack {
    /// Its number.
    pub shard: usize,
    /// What was wrong: a [`Fault`]'s word.
    pub reason: &'static str,
    /// Number of the snapshot in force.
    pub generation: u64,
}

/// One shard, as others see it.
#[derive(Debug)]
pub struct ShardEntry {
    /// Its number; unique in the process.
    pub id: usize,
    /// Its driver.
    pub kind: Kind,
    /// The CPU it is bound to.
    pub cpu: Option<usize>,
    /// Whether it is the one that accepts clients on its CPU.
    pub serving: AtomicBool,
    /// Its counters.
    pub tally: Arc<Tally>,
    /// How much of a core it used of late, in thousandths.
    pub busy: AtomicU64,
    /// Its real-time priority (SCHED_FIFO); 0: it has none.
    pub priority: u8,
    /// Whether the kernel asks the network card itself while it waits.
    pub polls_card: bool,
    /// Which lane it runs in; [`NO_LANE`]: none, for its lane is no more, and it ends when its sessions have gone.
    lane: AtomicUsize,
    /// Whether its thread has ended.
    pub ended: AtomicBool,
}

const NO_LANE: usize = usize::MAX;

impl ShardEntry {
    /// A shard that does nothing yet.
    #[must_use]
    pub const fn new(id: usize, kind: Kind, cpu: Option<usize>, tally: Arc<Tally>) -> Self {
        let (serving, busy) = (AtomicBool::new(false), AtomicU64::new(0));
        let (lane, ended) = (AtomicUsize::new(NO_LANE), AtomicBool::new(false));
        let (priority, polls_card) = (0, false);
        Self { id, kind, cpu, serving, tally, busy, priority, polls_card, lane, ended }
    }

    /// The same with what it was granted beyond what it needs.
    #[must_use]
    pub(super) fn with(self, granted: Granted) -> Self {
        Self { priority: granted.priority(), polls_card: granted.polls_card(), ..self }
    }

    /// Says which lane it runs in.
    pub(crate) fn place(&self, lane: Option<usize>) {
        self.lane.store(lane.unwrap_or(NO_LANE), Relaxed);
    }

    /// Which lane it runs in, from 0. `None`: its lane is no more.
    #[must_use]
    pub fn lane(&self) -> Option<usize> {
        Some(self.lane.load(Relaxed)).filter(|lane| *lane != NO_LANE)
    }
}

impl Board {
    /// A board with nothing but its first snapshot.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            before: Mutex::default(),
            shards: Mutex::default(),
            path: ArcSwapOption::empty(),
            ready: AtomicBool::new(false),
            reloads_applied: AtomicU64::new(0),
            reloads_refused: AtomicU64::new(0),
            config_taken: (AtomicBool::new(true), AtomicU64::new(calendar_s())),
            path_changes: AtomicU64::new(0),
            rollbacks: Default::default(),
            rolled_back: Mutex::default(),
            rebalanced: AtomicU64::new(0),
            shard_panics: AtomicU64::new(0),
            journal_written: AtomicU64::new(0),
            process: AtomicU64::new(1),
            upgrades_done: AtomicU64::new(0),
            upgrades_failed: AtomicU64::new(0),
            predecessor: AtomicU32::new(0),
            inherited: ArcSwapOption::empty(),
            unsteered: AtomicBool::new(false),
        }
    }

    /// Puts a snapshot in force. Sessions that began before live on by theirs.
    pub fn put_in_force(&self, next: Arc<Snapshot>) {
        self.keep_in_sight(&self.snapshot.load());
        self.snapshot.store(next);
    }

    /// Keeps a snapshot in sight for as long as sessions live by it.
    pub(super) fn keep_in_sight(&self, snapshot: &Arc<Snapshot>) {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        before.retain(|old| old.strong_count() > 0);
        before.push(Arc::downgrade(snapshot));
    }

    /// The snapshots that sessions live by beside the one in force, the newest first.
    pub(super) fn lived_by(&self) -> Vec<Arc<Snapshot>> {
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        before.iter().rev().filter_map(Weak::upgrade).collect()
    }

    /// Adds a shard. Where many have ended before, what the oldest of them counted is kept as that of one, so that
    /// totals never fall, and changes without end need no memory without end.
    pub fn add_shard(&self, shard: Arc<ShardEntry>) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.push(shard);
        let is_ended = |shard: &Arc<ShardEntry>| shard.ended.load(Relaxed);
        while shards.iter().filter(|shard| is_ended(shard)).count() > limits::ENDED_SHARDS_MAX {
            let pair =
                shards.iter().enumerate().filter(|(_, one)| is_ended(one)).find_map(|(i, one)| {
                    let is_alike =
                        |other: &Arc<ShardEntry>| is_ended(other) && other.kind == one.kind;
                    shards[i + 1..].iter().position(is_alike).map(|more| (i, i + 1 + more))
                });
            let Some((first, second)) = pair else { break };
            // Made anew, for a reader who has the old ones must not see one of them grow.
            let sum = ShardEntry::new(shards[first].id, shards[first].kind, None, Arc::default());
            sum.ended.store(true, Relaxed);
            sum.tally.merge(&shards[first].tally);
            sum.tally.merge(&shards[second].tally);
            shards[first] = Arc::new(sum);
            shards.remove(second);
        }
    }

    /// A shard's thread is at its end.
    pub(crate) fn end_shard(&self, shard: &ShardEntry) {
        // Its thread is gone, so control is the one that writes.
        shard.tally.shard.close();
        shard.busy.store(0, Relaxed);
        shard.serving.store(false, Relaxed);
        shard.place(None);
        shard.ended.store(true, Relaxed);
    }

    /// All shards that run, and those that have ended: the oldest of those of one driver stands for some more.
    #[must_use]
    pub fn shards(&self) -> Vec<Arc<ShardEntry>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sessions that are open now, on all shards.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.shards().iter().map(|s| s.tally.shard.sessions.get()).sum()
    }

    /// Sessions that are open in the process before this one and still to come.
    #[must_use]
    pub fn sessions_to_come(&self) -> u64 {
        let inherited = self.inherited.load();
        let shards = inherited.iter().flat_map(|totals| &totals.shards);
        shards.map(|shard| shard.tally.sessions.get()).sum()
    }

    /// A reload came to its end.
    pub(crate) fn reloaded(&self, applied: bool) {
        let count = if applied { &self.reloads_applied } else { &self.reloads_refused };
        count.fetch_add(1, Relaxed);
        self.config_taken.0.store(applied, Relaxed);
        if applied {
            self.config_taken.1.store(calendar_s(), Relaxed);
        }
    }

    /// Whether the last reload was applied (yes before the first), and when a config was last taken up, in seconds
    /// since 1970.
    #[must_use]
    pub fn config_taken(&self) -> (bool, u64) {
        (self.config_taken.0.load(Relaxed), self.config_taken.1.load(Relaxed))
    }

    /// Adds a shard that went back to epoll.
    pub fn add_rollback(&self, fault: Fault, shard: usize) {
        self.rollbacks[fault as usize].fetch_add(1, Relaxed);
        let generation = self.snapshot.load().number;
        let mut last = self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == limits::ROLLBACKS_SHOWN {
            last.pop_front();
        }
        last.push_back(RollBack { shard, reason: fault.label(), generation });
    }

    /// Sessions that have begun on `kind`, and on either path.
    #[must_use]
    pub fn begun(&self, kind: Kind) -> [u64; 2] {
        self.on_path(kind, |shard| &shard.tally.shard.begun)
    }

    /// Sums over the shards of `kind`, and over all.
    fn on_path(&self, kind: Kind, count: impl Fn(&ShardEntry) -> &Count) -> [u64; 2] {
        let mut sums = [0, 0];
        for shard in self.shards() {
            let n = count(&shard).get();
            sums[0] += if shard.kind == kind { n } else { 0 };
            sums[1] += n;
        }
        sums
    }

    /// How much of the live sessions, and of those begun since it was chosen, the data path has, in percent.
    #[must_use]
    pub fn seen(&self, path: &PathChoice) -> [Option<f64>; 2] {
        let percent = |[part, all]: [u64; 2]| (all > 0).then(|| part as f64 * 100.0 / all as f64);
        let begun = self.begun(path.kind);
        let since = [0, 1].map(|i| begun[i].saturating_sub(path.begun[i]));
        [percent(self.on_path(path.kind, |shard| &shard.tally.shard.sessions)), percent(since)]
    }

    /// Which shard new clients come to: as the config says, unless that was refused.
    #[must_use]
    pub fn steers(&self) -> Steer {
        let wanted = self.snapshot.load().config.shards.steer;
        if self.unsteered.load(Relaxed) { Steer::Hash } else { wanted }
    }

    /// Everything an operator asks first.
    #[must_use]
    pub fn status(&self) -> Status {
        let snapshot = self.snapshot.load();
        let shards = self.shards();
        let places = Places::of(self, &shards);
        Status {
            version: env!("CARGO_PKG_VERSION"),
            ready: self.ready.load(Relaxed),
            generation: snapshot.number,
            process: ProcessStatus::of(self),
            data_path: self.path.load_full().map(|path| {
                let [live_percent, new_percent] = self.seen(&path);
                PathStatus { choice: (*path).clone(), live_percent, new_percent }
            }),
            rollbacks: {
                let last = self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner);
                last.iter().cloned().collect()
            },
            steer: self.steers().label(),
            sessions: self.sessions(),
            shards: shards.iter().map(|s| ShardStatus::of(s)).collect(),
            listeners: places.listeners(),
            pools: places.pools(),
        }
    }
}

/// Seconds since 1970.
fn calendar_s() -> u64 {
    // A clock before 1970 is set wrong, and 0 says so.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The answer to `GET /api/v1/status`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: &'static str,
    /// Whether Ringway wants new clients.
    pub ready: bool,
    /// Number of the snapshot in force.
    pub generation: u64,
    /// Which process this is.
    pub process: ProcessStatus,
    /// Which data path new sessions take, and why.
    pub data_path: Option<PathStatus>,
    /// Shards that went back to epoll because their ring misbehaved: the last of them.
    pub rollbacks: Vec<RollBack>,
    /// Which shard new clients come to: as the config says, unless that was refused.
    pub steer: &'static str,
    /// Sessions open now.
    pub sessions: u64,
    /// All shards that run and the last that have ended; the oldest of those stand for all before.
    pub shards: Vec<ShardStatus>,
    /// Where clients come in.
    pub listeners: Vec<ListenerStatus>,
    /// Where they go.
    pub pools: Vec<PoolStatus>,
}

/// Which process this is.
#[derive(Debug, Serialize)]
pub struct ProcessStatus {
    /// Which of a line of processes, each started by the one before to replace it; from 1.
    generation: u64,
    pid: u32,
    /// Process id of the one before, while it has sessions to hand over.
    predecessor: Option<u32>,
    /// Sessions that are open there.
    predecessor_sessions: u64,
}

/// The data path, and how much it has of what it is to have.
#[derive(Debug, Serialize)]
pub struct PathStatus {
    #[serde(flatten)]
    choice: PathChoice,
    /// How much of the live sessions it has.
    live_percent: Option<f64>,
    /// How much it got of the sessions that began since it was chosen.
    new_percent: Option<f64>,
}

/// One shard.
#[derive(Debug, Serialize)]
pub struct ShardStatus {
    id: usize,
    /// Where it runs; none where its lane is no more.
    lane: Option<usize>,
    path: &'static str,
    cpu: Option<usize>,
    /// Whether its thread has ended.
    ended: bool,
    serving: bool,
    sessions: u64,
    /// How much of a core it used of late, in percent.
    load_percent: f64,
    /// Its real-time priority (SCHED_FIFO); 0: it has none.
    fifo_priority: u8,
    /// Whether the kernel asks the network card itself while it waits.
    napi_busy_poll: bool,
}

impl ProcessStatus {
    fn of(board: &Board) -> Self {
        Self {
            generation: board.process.load(Relaxed),
            pid: std::process::id(),
            predecessor: Some(board.predecessor.load(Relaxed)).filter(|pid| *pid != 0),
            predecessor_sessions: board.sessions_to_come(),
        }
    }
}

impl ShardStatus {
    fn of(shard: &ShardEntry) -> Self {
        Self {
            id: shard.id,
            lane: shard.lane(),
            path: shard.kind.label(),
            cpu: shard.cpu,
            ended: shard.ended.load(Relaxed),
            serving: shard.serving.load(Relaxed),
            sessions: shard.tally.shard.sessions.get(),
            load_percent: shard.busy.load(Relaxed) as f64 / 10.0,
            fifo_priority: shard.priority,
            napi_busy_poll: shard.polls_card,
        }
    }
}

fn wanted_label<S: serde::Serializer>(wanted: &DataPath, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(wanted.label())
}

fn percent<S: serde::Serializer>(percent: &Percent, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(percent.as_f64())
}

fn kind_label<S: serde::Serializer>(kind: &Kind, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(kind.label())
}
