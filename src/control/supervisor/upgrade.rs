//! Upgrades, as the supervisor sees them: of this process by the next, and of the one before by this.

use super::{Stage, Supervisor};
use crate::config::limits;
use crate::control::Outcome;
use crate::control::closing::Closing;
use crate::control::handover::give::{self, Estate, Giving, Invocation, Said, Shared};
use crate::control::order::Answer;
use crate::control::ports::{Port, Seat};
use crate::driver::{signal, sys};
use crate::session::parcel::Parcel;
use crate::shard::mailbox;
use crate::time::Time;
use crate::wire::handover::{ADMIN, Hello};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The windows of a process, such as its admin endpoint: one process at a time has them open.
pub trait Windows: Send {
    /// Opens them.
    fn open(&mut self);
    /// Closes them when what is being said has been said. Who comes meanwhile waits.
    fn close(&mut self);
    /// The listening socket of the admin endpoint.
    fn socket(&self) -> Option<&std::net::TcpListener>;
}

/// Who is to be told what becomes of an order.
pub(super) type Teller = Box<dyn FnOnce(Answer) + Send>;

/// An upgrade that is under way, on the side of the old process.
pub(super) struct Upgrade {
    giving: Giving,
    teller: Option<Teller>,
    pid: u32,
    phase: Phase,
    /// Ports where the new process accepts in place of this one; kept until this one ends, or accepts again.
    kept: Vec<Port>,
    /// Whether this was the service's main process when it was asked to stop: then the new one stops with it.
    passes_on: bool,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The new process is not ready. All goes on.
    Starting,
    /// It accepts; sessions go. Since when.
    Giving(Time),
    /// It is the main process. What is left here follows or ends.
    Left,
    /// Nothing is left; shards end.
    Ending,
    /// Nothing is left, and the new process is told so.
    Told,
}

impl Supervisor {
    /// Starts the program again to take this process's place. `teller` hears whether it could.
    pub(super) fn upgrade(&mut self, teller: Teller) {
        match self.begin_upgrade() {
            Ok(giving) => {
                tracing::info!("upgrade: the new process was started");
                self.notify.status("a new process is being started");
                let (pid, phase, teller) = (0, Phase::Starting, Some(teller));
                let (kept, passes_on) = (Vec::new(), false);
                self.upgrade = Some(Upgrade { giving, teller, pid, phase, kept, passes_on });
            }
            Err(why) => {
                self.board.upgrades_failed.fetch_add(1, Relaxed);
                tracing::error!(why, "upgrade refused, nothing was changed");
                teller(Answer::Refused(vec![why]));
            }
        }
    }

    fn begin_upgrade(&mut self) -> Result<Giving, String> {
        if self.stage != Stage::Running {
            return Err("Ringway is stopping".to_owned());
        }
        if self.file.is_none() {
            return Err("Ringway was started without a config file".to_owned());
        }
        if self.upgrade.is_some() {
            return Err("an upgrade is under way: wait for its end".to_owned());
        }
        if self.taking {
            let before = "the process before this one still hands its sessions over";
            return Err(format!("{before}: try again in a moment"));
        }
        if std::process::id() == 1 {
            return Err("this is process 1, and a container ends with that: replace the container"
                .to_owned());
        }
        if self.fleet.is_moving() {
            return Err("a change of the data path is under way: try again".to_owned());
        }
        let sockets = self
            .shared_sockets()
            .map_err(|e| format!("the listening sockets cannot be shared: {e}"))?;
        let invocation = Invocation::of_this_process();
        let (hello, board) = (self.hello(), Arc::clone(&self.board));
        give::start(Estate { invocation, hello, sockets, board }, self.causes.clone())
    }

    fn shared_sockets(&self) -> io::Result<Vec<Shared>> {
        let mut shared = Vec::new();
        for port in &self.ports {
            let clones = port.seats.iter().map(|seat| seat.socket.try_clone().map(Into::into));
            let sockets = clones.collect::<io::Result<_>>()?;
            shared.push(Shared { name: port.name.to_string(), wanted: port.wanted, sockets });
        }
        if let Some(socket) = self.windows.as_ref().and_then(|windows| windows.socket()) {
            let config = &self.board.snapshot.load().config;
            let own = config.admin.as_ref().map(|admin| admin.bind);
            let wanted = own.map_or_else(|| socket.local_addr(), Ok)?;
            let sockets = vec![socket.try_clone()?.into()];
            shared.push(Shared { name: ADMIN.to_owned(), wanted, sockets });
        }
        Ok(shared)
    }

    fn hello(&mut self) -> Hello {
        let snapshot = self.board.snapshot.load();
        let shards = self.board.shards();
        let highest = shards.iter().map(|shard| shard.tally.shard.next_id.get()).max();
        self.ids_left =
            self.ids_left.max(highest.unwrap_or(1)).saturating_add(limits::HANDOVER_IDS);
        let listeners = snapshot.config.listeners.iter();
        let (data_path, percent) = self.rollout.ordered();
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.board.process.load(Relaxed),
            pid: std::process::id(),
            snapshot: snapshot.number,
            first_id: self.ids_left,
            text: self.as_read.source.0.to_string(),
            percents: listeners
                .map(|l| (l.name.to_string(), l.canary_percent.hundredths()))
                .collect(),
            data_path: data_path.label().to_owned(),
            data_path_percent: percent.hundredths(),
            held: self.fleet.held(),
        }
    }

    /// What the thread that gives has to say.
    pub(super) fn on_upgrade(&mut self, said: Said) -> Option<Outcome> {
        match said {
            Said::Accepting { pid, version, edits, taken } => {
                self.let_go(pid, (&version, &edits), &taken);
            }
            Said::Failed(why, lost) => return self.upgrade_failed(&why, &lost),
            Said::Over => {
                if let Stage::Waiting(_, outcome) = self.stage {
                    return Some(outcome);
                }
                let pid = self.upgrade.as_ref().map_or(0, |upgrade| upgrade.pid);
                tracing::info!(pid, "everything was handed over to the new process");
                return Some(Outcome::Replaced);
            }
        }
        None
    }

    /// The new process accepts: this one stops to, and its sessions go.
    fn let_go(&mut self, pid: u32, (version, edits): (&str, &str), taken: &[String]) {
        if self.stage != Stage::Running {
            // The upgrade was cancelled meanwhile.
            return;
        }
        let open = self.open_sessions();
        let generation = self.board.snapshot.load().number;
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.pid = pid;
        tracing::info!(
            pid,
            version,
            open,
            "upgrade: the new process accepts clients; sessions follow"
        );
        if let Some(teller) = upgrade.teller.take() {
            let mut what = format!(
                "process {pid}, ringway {version}, accepts clients; {open} live sessions follow"
            );
            if !edits.is_empty() {
                what = format!("{what}; the config file was edited: {edits}");
            }
            teller(Answer::Done { generation, what });
        }
        if let Some(windows) = &mut self.windows {
            windows.close();
        }
        let is_taken = |port: &mut Port| taken.iter().any(|name| **name == *port.name);
        let kept: Vec<Port> = self.ports.extract_if(.., is_taken).collect();
        for port in &kept {
            self.fleet.close(port);
        }
        upgrade.kept = kept;
        upgrade.phase = Phase::Giving(sys::now());
        upgrade.giving.go();
        self.send_sessions();
    }

    /// Has all shards send their sessions to the new process, where there is one that takes them.
    pub(super) fn send_sessions(&self) {
        let Some(upgrade) = self.upgrade.as_ref().filter(|u| u.phase != Phase::Starting) else {
            return;
        };
        self.fleet.tell_all(|| mailbox::Order::Evict(Some(upgrade.giving.to.clone())));
    }

    /// The new process is no more: this one goes on with all it has.
    fn upgrade_failed(&mut self, why: &str, lost: &[u64]) -> Option<Outcome> {
        let mut upgrade = self.upgrade.take()?;
        self.board.upgrades_failed.fetch_add(1, Relaxed);
        if upgrade.phase == Phase::Starting {
            tracing::error!(why, "upgrade failed, nothing was changed");
        } else if self.stage != Stage::Running {
            tracing::warn!(why, given = ?lost, "the new process is gone: this one stops with what it has left");
        } else if matches!(upgrade.phase, Phase::Ending | Phase::Told) {
            tracing::error!(
                why,
                ?lost,
                "the new process failed when it had everything: this one ends as well"
            );
            return Some(Outcome::Failed);
        } else {
            tracing::error!(
                why,
                ?lost,
                "upgrade failed: this process accepts again and keeps its \
                sessions; those that had been handed over went with the new process"
            );
            // They go on where they are, or on their way from before the upgrade: off a ring that misbehaves, or to
            // another data path.
            self.fleet.direct_again();
            self.returning.append(&mut upgrade.kept);
            self.notify.main_process(std::process::id());
            if let Some(windows) = &mut self.windows {
                windows.open();
            }
        }
        if self.stage == Stage::Running {
            self.notify.ready("accepting clients; an upgrade failed");
        }
        if let Some(teller) = upgrade.teller {
            teller(Answer::Refused(vec![why.to_owned()]));
        }
        self.take_ports_back();
        self.let_shards_leave();
        None
    }

    /// Accepts at ports again that were the new process's, when all shards have let go of them.
    pub(super) fn take_ports_back(&mut self) {
        let fleet = &self.fleet;
        let is_free = |port: &mut Port| !fleet.is_held(port);
        let free: Vec<Port> = self.returning.extract_if(.., is_free).collect();
        for port in free {
            if matches!(self.stage, Stage::Running | Stage::Grace(_)) {
                tracing::info!(listener = %port.name, address = %port.bound, "accepting clients again");
                self.fleet.serve(&port);
                self.ports.push(port);
            } else {
                self.close(port);
            }
        }
    }

    /// Takes an upgrade as far as it can go now.
    pub(super) fn go_on_upgrading(&mut self) {
        self.take_ports_back();
        let Some(upgrade) = &mut self.upgrade else { return };
        let is_quiet = self.fleet.is_quiet() && upgrade.giving.to.load.get() == 0;
        if matches!(upgrade.phase, Phase::Giving(_)) {
            // Shards whose sessions waited for room look again.
            self.fleet.tick();
        }
        match upgrade.phase {
            Phase::Starting | Phase::Told => {}
            Phase::Giving(since) => {
                let is_due = sys::now() >= since.plus_ms(limits::HANDOVER_MAIN_MS);
                if is_due || (is_quiet && self.closing.is_empty()) {
                    upgrade.phase = Phase::Left;
                    self.step_back();
                }
            }
            Phase::Left => {
                if is_quiet && self.closing.is_empty() && self.ports.is_empty() {
                    upgrade.phase = Phase::Ending;
                    self.fleet.tell_all(|| mailbox::Order::Leave);
                }
            }
            Phase::Ending => {
                if self.fleet.is_empty() {
                    upgrade.phase = Phase::Told;
                    upgrade.giving.finish();
                }
            }
        }
    }

    /// The new process becomes the main one. Listeners it does not have are closed.
    fn step_back(&mut self) {
        self.close_all();
        let Some(upgrade) = &self.upgrade else { return };
        let (pid, left) = (upgrade.pid, self.open_sessions());
        tracing::info!(pid, left, "the new process is the main one");
        // A manager that waits for this process's end is not to end the new one with it.
        if !upgrade.passes_on {
            self.notify.main_process(pid);
        }
        upgrade.giving.main();
    }

    /// Whether this process is being replaced, or still takes over from the one before.
    pub(in crate::control) fn is_replacing(&self) -> bool {
        self.upgrade.is_some() || self.taking
    }

    /// Whether the supervisor has to look by itself.
    pub(super) fn is_upgrading(&self) -> bool {
        self.upgrade.is_some() || !self.returning.is_empty()
    }

    /// Has the other process of an upgrade stop with this one, if this one is the main one. A new process that has
    /// nothing yet is ended instead.
    pub(super) fn pass_stop_on(&mut self) {
        let stops = self.stops[0];
        if let Some(upgrade) = &mut self.upgrade {
            match upgrade.phase {
                Phase::Starting => upgrade.giving.cancel(),
                Phase::Giving(_) => {
                    (upgrade.phase, upgrade.passes_on) = (Phase::Left, true);
                    upgrade.giving.stop(stops);
                    tracing::info!(pid = upgrade.pid, "the new process is to stop as well");
                    self.step_back();
                }
                _ if upgrade.passes_on => upgrade.giving.stop(stops),
                _ => {}
            }
        }
        self.pass_stop_back(stops);
    }

    /// Has the process before this one stop as well, if this one is the main one. Its id is known as long as its end of
    /// the channel is open, and so is nobody else's.
    pub(super) fn pass_stop_back(&mut self, stops: u32) {
        let pid = self.board.predecessor.load(Relaxed);
        if !self.is_main || pid == 0 || self.stops_passed_back >= stops {
            return;
        }
        self.stops_passed_back += 1;
        tracing::info!(pid, "the process before is to stop as well");
        if let Err(error) = signal::stop(pid) {
            tracing::warn!(pid, %error, "the process before cannot be asked to stop");
        }
    }

    /// Whether this is the next process or the one before: what that asks for, it was asked for itself.
    pub(super) fn is_other_process(&self, pid: Option<u32>) -> bool {
        let next = self.upgrade.as_ref().map(|upgrade| upgrade.pid);
        pid.is_some() && (pid == next || pid == self.before)
    }

    /// Whether the new process stops because this one does.
    pub(super) fn passes_on(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.passes_on)
    }

    /// Whether the other process of an upgrade is to end, or to be told that all is over, before this one ends. A
    /// service manager ends all that is left when the main one has ended.
    pub(super) fn awaits_other_process(&self) -> bool {
        self.upgrade.is_some() || (self.taking && self.is_main)
    }

    /// Closes what the new process serves: this one, which stops, will not want it back.
    pub(super) fn give_kept_up(&mut self) {
        let kept = self.upgrade.as_mut().map(|upgrade| std::mem::take(&mut upgrade.kept));
        self.closing.extend(kept.into_iter().flatten().map(Closing::left_open));
    }

    /// Whether the drain may begin: no session is on its way back, and none may have to come back.
    pub(super) fn may_drain(&self) -> bool {
        let phase = self.upgrade.as_ref().map(|upgrade| upgrade.phase);
        let on_the_way = matches!(phase, Some(Phase::Starting | Phase::Giving(_)));
        self.returning.is_empty() && !on_the_way
    }

    /// Lets shards end with their last session while they drain, unless an upgrade needs them until its own end: for
    /// sessions that come from the process before, or back from the next.
    pub(super) fn let_shards_leave(&self) {
        if matches!(self.stage, Stage::Draining(..)) && !self.is_replacing() {
            self.fleet.tell_all(|| mailbox::Order::Leave);
        }
    }

    /// Lets sessions of the process before go on here.
    pub(super) fn take_in(&self, parcels: Vec<Parcel>) {
        for parcel in parcels {
            let id = parcel.id();
            if let Err(parcel) = self.fleet.take_in(Box::new(parcel)) {
                tracing::error!(session = id, "no shard is left to take the session: it is lost");
                parcel.release();
            }
        }
    }

    /// This process is the service's main one.
    pub(super) fn become_main(&mut self) {
        if std::mem::replace(&mut self.is_main, true) {
            return;
        }
        if self.stage == Stage::Running {
            self.notify.ready("accepting clients");
        }
        // First, for a name may be one of those below as well.
        for name in std::mem::take(&mut self.stale) {
            self.notify.forget(&name);
        }
        for port in &self.ports {
            self.keep_open(port);
        }
        if let Some(socket) = self.windows.as_ref().and_then(|windows| windows.socket()) {
            self.notify.keep(ADMIN, &[socket.as_raw_fd()]);
        }
        // A stop that came before that is for the process before as well.
        self.pass_stop_back(self.stops[0]);
    }

    /// The process before this one has gone.
    pub(super) fn stand_alone(&mut self) {
        self.taking = false;
        self.become_main();
        self.let_shards_leave();
    }

    /// Has the service manager keep a port's sockets, for a process that is started after this one has ended.
    pub(super) fn keep_open(&self, port: &Port) {
        self.keep(&port.name, &port.seats);
    }

    /// The same for some of its sockets.
    pub(in crate::control) fn keep(&self, name: &str, seats: &[Seat]) {
        if self.is_main {
            let sockets: Vec<RawFd> = seats.iter().map(|seat| seat.socket.as_raw_fd()).collect();
            self.notify.keep(name, &sockets);
        }
    }

    /// Whether ports are on their way back from an upgrade that failed.
    pub(in crate::control) fn is_taking_back(&self) -> bool {
        !self.returning.is_empty()
    }

    /// All ports whose sockets are open.
    pub(in crate::control) fn all_ports(&self) -> impl Iterator<Item = &Port> {
        let closing = self.closing.iter().map(|closing| &closing.port);
        let kept = self.upgrade.iter().flat_map(|upgrade| &upgrade.kept);
        self.ports.iter().chain(closing).chain(&self.returning).chain(kept)
    }
}
