//! The loop over causes, and what each brings about.

mod stopping;
mod upgrade;

use super::board::Board;
use super::changes::{self, Settings};
use super::closing::Closing;
use super::fleet::Fleet;
use super::notify::Notify;
use super::order::{Answer, Order};
use super::places::Places;
use super::ports::{self, Ids, Port};
use super::reach::Backends;
use super::rebalance::Evening;
use super::reload::{self, Plan};
use super::rollback::Rings;
use super::rollout::Rollout;
use super::{Cause, Outcome, within_descriptors};
use crate::config::{Config, DataPath, Listener, Percent, file, limits};
use crate::driver::probe::Report;
use crate::driver::sys;
use crate::policy::snapshot::Snapshot;
use crate::shard::mailbox::Report as Said;
use crate::time::Time;
use crate::wire::handover::ADMIN;
use std::collections::VecDeque;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use stopping::Stage;
use upgrade::Upgrade;
pub use upgrade::Windows;

/// What control knows.
pub(super) struct Supervisor {
    pub(super) board: Arc<Board>,
    pub(super) fleet: Fleet,
    pub(super) ports: Vec<Port>,
    /// Ports that are to be closed once all shards have let go of them and the last connections were made.
    pub(super) closing: Vec<Closing>,
    pub(super) report: Report,
    /// The config as it was last read: what a reload is compared with.
    as_read: Config,
    /// What is in force of all settings: of those that wait for a restart, what this process began with.
    in_force: Settings,
    file: Option<PathBuf>,
    pub(super) notify: Notify,
    stage: Stage,
    /// When the shards are to be woken next.
    tick_at: Time,
    /// When shards panicked of late.
    panics: VecDeque<Time>,
    causes: mpsc::Sender<Cause>,
    windows: Option<Box<dyn Windows>>,
    /// The upgrade that is under way.
    upgrade: Option<Upgrade>,
    /// Ports on their way back from an upgrade that failed.
    returning: Vec<Port>,
    /// Whether the process before this one still hands over.
    taking: bool,
    /// Which process that is or was.
    before: Option<u32>,
    /// Names that the service manager is to forget when this is the main process.
    stale: Vec<String>,
    /// Whether this is the service's main process.
    is_main: bool,
    /// How often a stop was asked for, and how often the other process of an upgrade passed one on. Both may have been
    /// asked for the same one, so these are not added up.
    stops: [u32; 2],
    /// How often the process before was asked to stop.
    stops_passed_back: u32,
    /// The lower 40 bits of session ids that were left to new processes begin here.
    ids_left: u64,
    /// What goes on beside orders.
    pub(super) rollout: Rollout,
    pub(super) rings: Rings,
    pub(super) evening: Evening,
    pub(super) backends: Backends,
}

/// What a supervisor is made of.
pub(super) struct Parts {
    pub(super) board: Arc<Board>,
    pub(super) fleet: Fleet,
    pub(super) ports: Vec<Port>,
    pub(super) report: Report,
    /// The data path that was asked for, and its share.
    pub(super) wanted: (DataPath, Percent),
    /// The config as it was read.
    pub(super) as_read: Config,
    pub(super) file: Option<PathBuf>,
    pub(super) causes: mpsc::Sender<Cause>,
    /// The process before this one, where it hands over.
    pub(super) before: Option<u32>,
    /// Names under which the service manager keeps what the process before had, and nobody has now.
    pub(super) stale: Vec<String>,
}

impl Supervisor {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { board, fleet, ports, report, wanted, as_read, file, causes, before, stale } =
            parts;
        Self {
            board,
            fleet,
            ports,
            closing: Vec::new(),
            report,
            in_force: Settings::of(&as_read),
            as_read,
            file,
            notify: Notify::from_env(),
            stage: Stage::Running,
            tick_at: Time::default(),
            panics: VecDeque::new(),
            causes,
            windows: None,
            upgrade: None,
            returning: Vec::new(),
            taking: before.is_some(),
            before,
            stale,
            is_main: false,
            stops: [0; 2],
            stops_passed_back: 0,
            ids_left: 0,
            rollout: Rollout::new(wanted),
            rings: Rings::default(),
            evening: Evening::default(),
            backends: Backends::default(),
        }
    }

    /// Until Ringway has stopped.
    pub(super) fn run(mut self, causes: &mpsc::Receiver<Cause>) -> Outcome {
        if !self.taking {
            self.become_main();
        }
        loop {
            match causes.recv_timeout(self.patience()) {
                Ok(cause) => {
                    if let Some(outcome) = self.on(cause) {
                        return outcome;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Outcome::Failed,
            }
            self.close_idle_ports();
            self.tick();
            self.go_on_upgrading();
            if let Some(outcome) = self.go_on_stopping() {
                return outcome;
            }
        }
    }

    fn on(&mut self, cause: Cause) -> Option<Outcome> {
        match cause {
            Cause::Ordered(Order::Upgrade, answer) => self.upgrade(answer),
            Cause::Ordered(order, answer) => self.ordered(order, answer),
            Cause::Weighed(weighed) => self.even_out(&weighed),
            Cause::Upgrade(said) => return self.on_upgrade(said),
            Cause::Carried(parcels) => self.take_in(parcels),
            Cause::Main => self.become_main(),
            Cause::Alone => self.stand_alone(),
            Cause::Dismissed(why) => {
                tracing::error!(why, "the process before serves on: this one ends");
                return Some(Outcome::Failed);
            }
            Cause::Windows(windows) => self.show(windows),
            Cause::Stop(from) => self.stop(from),
            Cause::ShardSaid(shard, said) => self.heard(shard, said),
            Cause::ShardEnded(shard, None) => drop(self.fleet.forget(shard)),
            Cause::ShardEnded(shard, Some(why)) => return self.shard_failed(shard, &why),
        }
        None
    }

    /// Has windows, which are open.
    fn show(&mut self, windows: Box<dyn Windows>) {
        if let Some(socket) = windows.socket().filter(|_| self.is_main) {
            self.notify.keep(ADMIN, &[socket.as_raw_fd()]);
        }
        self.windows = Some(windows);
    }

    /// How long to wait for a cause.
    fn patience(&self) -> Duration {
        let now = sys::now();
        let closing = (!self.closing.is_empty()).then(|| now.plus_ms(limits::CLOSE_AFTER_MS / 5));
        let stage = match self.stage {
            Stage::Running | Stage::Closing => None,
            Stage::Grace(until) => Some(until).filter(|_| self.is_main),
            Stage::Waiting(until, _) => until,
            Stage::Draining(until, _) | Stage::Cutting(until, ..) => Some(until),
        };
        let upgrade = self.is_upgrading().then(|| now.plus_ms(limits::HANDOVER_LOOK_MS));
        let until = [closing, stage, upgrade].into_iter().flatten().fold(self.tick_at, Time::min);
        Duration::from_nanos(until.since_ns(now))
    }

    /// Wakes the shards once a second, so that they need no timers of their own for what is not near.
    fn tick(&mut self) {
        let now = sys::now();
        if now >= self.tick_at {
            self.tick_at = now.plus_ms(limits::UPKEEP_MS);
            self.fleet.tick();
            self.read_loads();
            self.watch_backends(now);
            // While all goes to another process, nothing here is worth a change; and what comes is looked at when it is
            // all there.
            if self.stage == Stage::Running && !self.is_replacing() {
                self.watch_rings(now);
                self.keep_sharing();
                self.fleet.send_away();
                self.look_at_loads();
            }
        }
        if self.stage == Stage::Running {
            // Who ordered it was told, and it is tried again.
            let _ = self.go_on_rolling_back();
        }
    }

    pub(super) fn follow(&mut self, order: Order) -> Answer {
        if self.stage != Stage::Running {
            // Who asked by a signal sees no answer.
            tracing::warn!(?order, "Ringway is stopping: the order is refused");
            return Answer::Refused(vec!["Ringway is stopping".to_owned()]);
        }
        // What changed here now, the new process would not know of; and what the one before may want back must stay.
        // To go back to epoll can wait until all is here.
        if self.is_replacing() && !(self.taking && order == Order::RollBack) {
            tracing::warn!(?order, "an upgrade is under way: the order is refused");
            return Answer::Refused(vec!["an upgrade is under way: try again".to_owned()]);
        }
        match order {
            Order::Upgrade => Answer::Refused(vec!["it is no order to follow at once".to_owned()]),
            Order::Reload => self.reload(),
            Order::Canary { listener, percent } => self.set_canary(&listener, percent),
            Order::DataPath { path, live, percent } => {
                let carry = self.board.snapshot.load().config.carry_sessions;
                match self.set_path((path, percent), live.unwrap_or(carry), "HTTP") {
                    Ok(what) => self.done(what),
                    Err(why) => Answer::Refused(vec![why]),
                }
            }
            Order::RollBack => self.roll_back(),
            Order::Move { .. } | Order::Sessions { .. } => {
                unreachable!("what shards answer is not answered here")
            }
        }
    }

    pub(super) fn done(&self, what: String) -> Answer {
        Answer::Done { generation: self.board.snapshot.load().number, what }
    }

    fn set_canary(&self, listener: &str, percent: Percent) -> Answer {
        let snapshot = self.board.snapshot.load();
        let Some((_, found)) = snapshot.listener(listener) else {
            return Answer::Unknown(format!("there is no listener `{listener}`"));
        };
        let before = found.canary_percent;
        if found.canary.is_some() && before == percent {
            return self.done(format!("canary of `{listener}` is {percent} % already"));
        }
        let Some(next) = snapshot.with_canary(listener, percent) else {
            return Answer::Refused(vec![format!("listener `{listener}` has no canary pool")]);
        };
        self.board.put_in_force(Arc::new(next));
        tracing::info!(listener, from = %before, to = %percent, "canary percent changed");
        self.done(format!("canary of `{listener}`: {before} % -> {percent} %"))
    }

    fn reload(&mut self) -> Answer {
        let Some(path) = self.file.clone() else {
            return Answer::Refused(vec!["Ringway was started without a config file".to_owned()]);
        };
        self.notify.reloading();
        let answer = match file::read(&path) {
            Ok(new) => self.apply(new),
            Err(file::ReadError::Unreadable(why)) => Err(vec![why]),
            Err(file::ReadError::Faults(faults)) => {
                Err(faults.iter().map(ToString::to_string).collect())
            }
        };
        self.notify.ready("accepting clients");
        match answer {
            Ok(what) => {
                self.board.reloaded(true);
                tracing::info!(what, file = %path.display(), "config reloaded");
                // Whoever asked may think of another file.
                self.done(format!("{}: {what}", path.display()))
            }
            Err(faults) => {
                self.board.reloaded(false);
                for fault in &faults {
                    tracing::error!(fault, file = %path.display(), "config refused, nothing was changed");
                }
                Answer::Refused(faults)
            }
        }
    }

    /// Goes over to a new config: all that can fail comes first.
    fn apply(&mut self, new: Config) -> Result<String, Vec<String>> {
        let before = self.board.snapshot.load_full();
        let Plan { config, data_path } = reload::plan(&self.as_read, &before.config, &new);
        let said = Settings::of(&new);
        let changes = changes::of_reload(&self.in_force, &said, &before.config, &new);
        let in_force = before.config.limits.sessions_max;
        let open =
            |l: &Listener| self.all_ports().filter(|p| p.is_of(l)).map(|p| p.seats.len()).sum();
        let config = within_descriptors(config, Some(in_force), open).map_err(|why| vec![why])?;
        if config == before.config && data_path.is_none() {
            self.in_force.go_over(said);
            self.as_read = new;
            return Ok(changes::told_of_nothing(&changes));
        }
        let mut ids = self.new_ids();
        let resize = self.prepare_resize(&config, data_path, &mut ids)?;
        let lanes = resize.as_ref().map_or_else(|| self.fleet.lanes(), |r| r.shape.lanes());
        let opened = self.bind_new(&config, lanes, &mut ids)?;
        let path = data_path.map(|wanted| Ok((self.prepare_path(wanted)?, wanted))).transpose();
        let path = path.map_err(|why: String| vec![format!("data_path: {why}")])?;
        for (port, listener) in &opened {
            port.update(listener).map_err(|e| vec![e.to_string()])?;
        }
        let opened: Vec<Port> = opened.into_iter().map(|(port, _)| port).collect();
        let next = Arc::new(Snapshot::new(config, Some(&before)));
        let config = &next.config;
        let mut what = vec![];
        let carry = config.carry_sessions;
        what.extend(path.map(|(path, wanted)| self.take_path(path, wanted, carry, "config")));
        what.extend(resize.map(|resize| self.resize(resize, &config.listeners)));
        self.keep_awake(config);
        what.extend(self.close_gone(config, &opened));
        what.extend(reload::canaries(&before.config, config));
        self.board.put_in_force(Arc::clone(&next));
        self.serve_new(opened);
        self.in_force.go_over(said);
        self.as_read = new;
        let live_on = Places::of(&self.board, &self.board.shards()).told(&before.config);
        Ok(changes::told(what, &changes, live_on))
    }

    /// Binds what the new config adds or moves; nobody listens yet. Nothing is changed where one of them cannot be had,
    /// or an option of one that stays.
    fn bind_new(
        &self,
        config: &Config,
        lanes: usize,
        ids: &mut impl Ids,
    ) -> Result<Vec<(Port, Listener)>, Vec<String>> {
        let is_new = |l: &&Listener| !self.ports.iter().any(|port| port.is_of(l));
        let new = config.listeners.iter().filter(is_new);
        let (mut bound, mut faults) = (vec![], vec![]);
        for listener in new {
            match Port::bind(listener, lanes, vec![], ids) {
                Ok(port) => bound.push((port, listener.clone())),
                Err(e) => {
                    let why = self.held_by(listener.bind).filter(|_| e.is_in_use());
                    let why = why.map(|why| format!("listeners.{}.bind: {why}", listener.name));
                    faults.push(why.unwrap_or_else(|| e.to_string()));
                }
            }
        }
        let before = self.board.snapshot.load();
        let had = |l: &Listener| {
            before.config.listeners.iter().any(|b| b.name == l.name && b.tcp == l.tcp)
        };
        for listener in config.listeners.iter().filter(|l| !is_new(l) && !had(l)) {
            faults.extend(ports::try_options(listener).err().map(|e| e.to_string()));
        }
        if faults.is_empty() { Ok(bound) } else { Err(faults) }
    }

    /// Lets listeners go, and updates those that stay. Says which go and which of the new ones come, where any do.
    fn close_gone(&mut self, config: &Config, opened: &[Port]) -> Option<String> {
        let stays = |port: &Port| config.listeners.iter().any(|l| port.is_of(l));
        let (kept, gone): (Vec<_>, Vec<_>) = self.ports.drain(..).partition(stays);
        self.ports = kept;
        for port in &self.ports {
            let listener = config.listeners.iter().find(|l| l.name == port.name);
            if let Some(Err(error)) = listener.map(|l| port.update(l)) {
                tracing::error!(%error, "a listener keeps some of its old socket options");
            }
        }
        let names = |ports: &[Port]| -> Vec<String> {
            ports.iter().map(|p| format!("{} on {}", p.name, p.bound)).collect()
        };
        let what = (!opened.is_empty() || !gone.is_empty())
            .then(|| format!("listeners opened: {:?}, closed: {:?}", names(opened), names(&gone)));
        for port in gone {
            self.close(port);
        }
        what
    }

    /// Lets clients in by ports whose listeners the config in force has: who is accepted before would find none.
    fn serve_new(&mut self, opened: Vec<Port>) {
        for port in opened {
            tracing::info!(listener = %port.name, address = %port.bound, "accepting clients");
            self.fleet.serve(&port);
            self.keep_open(&port);
            self.ports.push(port);
        }
    }

    fn heard(&mut self, shard: usize, said: Said) {
        match said {
            Said::Released(id) => {
                self.fleet.released(shard, id, &self.ports);
            }
            Said::AcceptFailed { listener, error, rest_ms, unsaid } => {
                let port = self.ports.iter().find(|p| p.seat(listener).is_some());
                let name = port.map(|p| Arc::clone(&p.name));
                if error.is_exhaustion() {
                    tracing::warn!(shard, listener = ?name, %error, rest_ms, unsaid,
                        "cannot accept for want of descriptors or memory: clients wait; \
                         raise the limit or lower limits.sessions_max");
                } else {
                    tracing::error!(shard, listener = ?name, %error, rest_ms, unsaid,
                        "cannot accept: clients wait, and it is tried again after each rest; \
                         see what this machine's security policy denies");
                }
            }
            Said::Gone => {}
        }
    }

    fn shard_failed(&mut self, shard: usize, why: &str) -> Option<Outcome> {
        let now = sys::now();
        self.board.shard_panics.fetch_add(1, Relaxed);
        tracing::error!(shard, why, "a shard failed, which is a bug: its sessions were reset");
        self.panics.push_back(now);
        while self.panics.front().is_some_and(|at| now.since_ns(*at) > 60_000_000_000) {
            self.panics.pop_front();
        }
        if self.panics.len() >= limits::PANICS_PER_MINUTE_MAX {
            tracing::error!(failures = self.panics.len(), "too many within a minute: giving up");
            return Some(Outcome::Failed);
        }
        if self.stage != Stage::Running {
            self.fleet.forget(shard);
            return None;
        }
        let hold = self.hold_of(shard);
        match self.fleet.restart(shard, hold, &self.ports) {
            Ok(()) => {
                self.send_sessions();
                None
            }
            Err(error) => {
                tracing::error!(%error, "the shard could not be started again: giving up");
                Some(Outcome::Failed)
            }
        }
    }
}
