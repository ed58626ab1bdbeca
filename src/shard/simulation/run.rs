//! One run: shards in a world, moved turn by turn, given orders as control would, and brought to an end.

use super::check::{self, Failure, Property, Watch};
use super::plan::{Plan, Told, When};
use crate::config::Name;
use crate::driver::sim::{Shared, Sim, World};
use crate::driver::{Driver, ListenerId, Socket};
use crate::event::{EndReason, Ended, session_id};
use crate::policy::snapshot::Snapshot;
use crate::shard::mailbox::{Mail, Order, Report};
use crate::shard::placement::{Load, Neighbour};
use crate::shard::{Flow, Parts, Shard};
use crate::tally::Tally;
use crate::time::Time;
use arc_swap::ArcSwap;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, mpsc};

/// Rounds of turns a run may take: one that takes more spins.
const ROUNDS_MAX: u64 = 400_000;
/// How long healed sessions may go on: their ends wait 20 s at most at each step, and a connect hangs for 127 s.
const HEALED_MS: u64 = 400_000;
/// How long shards may take to end all sessions.
const STOP_MS: u64 = 10_000;

/// A run under way.
pub(super) struct Run {
    pub(super) plan: Plan,
    pub(super) world: Shared,
    pub(super) members: Vec<Member>,
    pub(super) snapshots: Vec<Arc<Snapshot>>,
    pub(super) journal: Vec<Ended>,
    /// What was said of accepts that failed: when, how long the rest, how many were not told.
    pub(super) rests: Vec<(Time, u64, u64)>,
    in_force: Arc<ArcSwap<Snapshot>>,
    records: mpsc::Receiver<Ended>,
    reports: mpsc::Receiver<(usize, Report)>,
    ports: Vec<Port>,
    watch: Watch,
    rounds: u64,
    stopping: bool,
    failed: bool,
}

/// A shard, and what stays of it.
pub(super) struct Member {
    /// `None`: it has left.
    pub(super) shard: Option<Shard<Sim>>,
    pub(super) home: Neighbour,
    pub(super) tally: Arc<Tally>,
    leaving: bool,
}

/// A listening socket.
struct Port {
    listener: ListenerId,
    name: Name,
    socket: Socket,
    /// The shard that has it, or had it last.
    at: usize,
    /// Where it goes once it is released; `None`: nowhere.
    next: Option<usize>,
    released: bool,
}

/// A descriptor by its number.
struct Number(RawFd);

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Port {
    fn socket(&self) -> Socket {
        Socket::of(&Number(self.socket.number()))
    }
}

impl Run {
    /// Everything as it is before the first turn.
    pub(super) fn new(plan: Plan) -> Self {
        let world = World::new(plan.seed, plan.faults.clone());
        let snapshot = Arc::new(Snapshot::new(plan.config.clone(), None));
        let in_force = Arc::new(ArcSwap::new(Arc::clone(&snapshot)));
        let (journal, records) = mpsc::sync_channel(1024);
        let (told, reports) = mpsc::channel();
        let limits = &plan.config.limits;
        let members = plan.shards.iter().enumerate().map(|(id, kernel)| {
            let mut driver = Sim::new(&world, limits.buffers_per_shard, limits.buffer_bytes);
            driver.set_counts_credit(kernel.counts_credit);
            driver.set_plain_calls(kernel.plain_calls);
            let (mail, orders) = Mail::new(driver.waker());
            let (tally, load) = (Arc::new(Tally::default()), Arc::new(Load::default()));
            let told = told.clone();
            let home = Neighbour { load: Arc::clone(&load), mail };
            let parts = Parts {
                id,
                ticked: false,
                awake: plan.awake,
                snapshot: Arc::clone(&in_force),
                tally: Arc::clone(&tally),
                load,
                home: home.clone(),
                orders,
                report: Box::new(move |report| {
                    told.send((id, report)).expect("the run reads it to its end");
                }),
                journal: Some(journal.clone()),
            };
            Member { shard: Some(Shard::new(driver, parts)), home, tally, leaving: false }
        });
        let members = members.collect();
        let mut run = Self {
            world,
            members,
            snapshots: vec![snapshot],
            journal: Vec::new(),
            rests: Vec::new(),
            in_force,
            records,
            reports,
            ports: Vec::new(),
            watch: Watch::default(),
            rounds: 0,
            stopping: false,
            failed: false,
            plan,
        };
        run.open();
        run
    }

    /// Clients, backends, and who listens.
    fn open(&mut self) {
        for backend in &self.plan.backends {
            self.world.borrow_mut().backend(backend.clone());
        }
        for client in &self.plan.clients {
            let listener = ListenerId(client.listener);
            self.world.borrow_mut().client(client.at, listener, client.script.clone());
        }
        for at in 0..self.members.len() {
            for (n, listener) in self.plan.config.listeners.iter().enumerate() {
                let id = ListenerId(u16::try_from(n).expect("there are two"));
                let backlog = listener.backlog as usize;
                let socket = self.world.borrow_mut().listen(id, backlog);
                let name = Arc::clone(&listener.name);
                self.ports.push(Port {
                    listener: id,
                    name,
                    socket,
                    at,
                    next: None,
                    released: false,
                });
            }
        }
        for port in 0..self.ports.len() {
            self.serve(port, self.ports[port].at);
        }
        self.introduce();
    }

    /// The whole run.
    pub(super) fn through(&mut self) -> Result<(), Failure> {
        let heals = Time(1_000_000_000).plus_ms(self.plan.heals_ms);
        while self.now() < heals && !self.all_left() {
            self.round()?;
        }
        self.world.borrow_mut().heal();
        self.watch.healed();
        let patience = self.now().plus_ms(HEALED_MS);
        while self.now() < patience && !self.is_calm() {
            self.round()?;
        }
        check::calm(self)?;
        self.stop();
        let patience = self.now().plus_ms(STOP_MS);
        while !self.all_left() {
            self.round()?;
            if self.now() > patience {
                return Err(self.failure(Property::Liveness, "shards do not leave"));
            }
        }
        self.close_ports();
        self.journal.extend(self.records.try_iter());
        check::over(self)
    }

    pub(super) fn now(&self) -> Time {
        self.world.borrow().now()
    }

    pub(super) fn failure(&self, property: Property, what: impl Into<String>) -> Failure {
        Failure { property, what: what.into(), trace: self.world.borrow().trace() }
    }

    pub(super) fn sessions(&self) -> usize {
        self.members.iter().filter_map(|m| m.shard.as_ref()).map(Shard::sessions).sum()
    }

    /// Whether sessions were told to end.
    pub(super) const fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether a shard has failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether nothing is left to wait for: all orders given, all who leave have left.
    fn is_calm(&self) -> bool {
        let (all_leave, now) = (self.plan.all_leave, self.now());
        let come = self.plan.clients.iter().all(|client| client.at < now);
        let patient = now > Time(60_000_000_000) && come && self.plan.orders.is_empty();
        self.all_left() || patient && (!all_leave || self.sessions() == 0 && self.load() == 0)
    }

    fn load(&self) -> u32 {
        self.members.iter().filter(|m| m.shard.is_some()).map(|m| m.home.load.get()).sum()
    }

    fn all_left(&self) -> bool {
        self.members.iter().all(|m| m.shard.is_none())
    }

    /// A turn of each shard, and what follows.
    pub(super) fn round(&mut self) -> Result<(), Failure> {
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX {
            return Err(self.failure(Property::Liveness, "the shards spin"));
        }
        self.give_orders();
        for at in 0..self.members.len() {
            let Some(shard) = &mut self.members[at].shard else { continue };
            let flow = shard.step().expect("the simulated driver does not fail");
            self.watch
                .look(&self.plan, at, shard)
                .map_err(|(property, what)| self.failure(property, what))?;
            if flow == Flow::Left {
                self.left(at)?;
            }
        }
        self.hear();
        check::places(self).map_err(|(property, what)| self.failure(property, what))?;
        self.journal.extend(self.records.try_iter());
        if self.rounds.is_multiple_of(16) {
            self.watch
                .progress(&self.world.borrow())
                .map_err(|(property, what)| self.failure(property, what))?;
        }
        Ok(())
    }

    /// A shard is gone, and may leave nothing.
    fn left(&mut self, at: usize) -> Result<(), Failure> {
        let Some(shard) = self.members[at].shard.take() else { return Ok(()) };
        let leaks = check::leaks_of(&shard);
        drop(shard);
        if leaks.is_empty() {
            return Ok(());
        }
        Err(self.failure(Property::Leak, format!("shard {at} left behind: {}", leaks.join("; "))))
    }

    fn give_orders(&mut self) {
        let (rounds, now) = (self.rounds, self.now());
        let is_due = |when: &When| match *when {
            When::Round(at) => rounds >= at || now > Time(60_000_000_000),
            When::Ms(at) => now >= Time(1_000_000_000).plus_ms(at),
        };
        while let Some(at) = self.plan.orders.iter().position(|(when, _)| is_due(when)) {
            let (_, told) = self.plan.orders.remove(at);
            self.give(told);
        }
    }

    fn give(&mut self, told: Told) {
        match told {
            Told::Reload(config) => {
                let last = self.snapshots.last().expect("there is a first one");
                let snapshot = Arc::new(Snapshot::new(*config, Some(last)));
                self.snapshots.push(Arc::clone(&snapshot));
                self.in_force.store(snapshot);
            }
            Told::HandOver { port, to } => self.hand_over(port, to),
            Told::Evict { from, to } => {
                let to = to.filter(|to| !self.members[*to].leaving);
                let to = to.map(|to| self.members[to].home.clone());
                self.send(from, Order::Evict(to));
            }
            Told::Move { born, nth, to } => {
                let session = session_id(born, nth);
                for at in 0..self.members.len() {
                    let to = self.members[to].home.clone();
                    self.send(at, Order::Move { session, to, told: None });
                }
            }
            Told::Keep { from, sessions, to } if !self.members[to].leaving => {
                let to = self.members[to].home.clone();
                self.send(from, Order::Keep { sessions, to });
            }
            Told::Keep { .. } => {}
            Told::Retire { shard, heir } => self.retire(shard, heir),
            Told::Fail { shard, unheard } => self.fail(shard, unheard),
            Told::Stop => self.stop(),
        }
    }

    /// Orders to a shard that is gone are lost, as control's are.
    fn send(&self, at: usize, order: Order) {
        let _ = self.members[at].home.mail.send(order);
    }

    fn serve(&mut self, port: usize, at: usize) {
        let port = &mut self.ports[port];
        (port.at, port.next, port.released) = (at, None, false);
        let (listener, name, socket) = (port.listener, Arc::clone(&port.name), port.socket());
        self.send(at, Order::Serve { listener, name, socket });
    }

    fn hand_over(&mut self, port: usize, to: usize) {
        let Port { listener, at, next, released, .. } = self.ports[port];
        let taken = self.ports.iter().enumerate().any(|(n, other)| {
            n != port && other.listener == listener && (other.at == to || other.next == Some(to))
        });
        if next.is_some() || released || taken || self.members[to].leaving {
            return;
        }
        self.ports[port].next = Some(to);
        self.send(at, Order::Release(listener));
    }

    /// What happens to a shard whose CPU is taken away.
    fn retire(&mut self, shard: usize, heir: usize) {
        if self.members[shard].leaving || self.members[heir].leaving {
            return;
        }
        self.members[shard].leaving = true;
        for port in 0..self.ports.len() {
            let Port { listener, at, .. } = self.ports[port];
            if self.ports[port].next == Some(shard) {
                self.ports[port].next = None;
            }
            if at == shard && !self.ports[port].released {
                self.send(shard, Order::Release(listener));
            }
        }
        self.introduce();
        self.send(shard, Order::Evict(Some(self.members[heir].home.clone())));
        self.send(shard, Order::Leave);
    }

    /// A shard panicked: it is abandoned, and others serve where it did.
    fn fail(&mut self, at: usize, unheard: bool) {
        let Some(mut shard) = self.members[at].shard.take() else { return };
        if unheard {
            let now = self.now();
            shard.driver().turn(Some(now)).expect("the simulated driver does not fail");
        }
        shard.driver().fail();
        shard.abandon();
        drop(shard);
        (self.failed, self.members[at].leaving) = (true, true);
        for port in 0..self.ports.len() {
            let Port { listener, at: of, next, released, .. } = self.ports[port];
            if next == Some(at) {
                self.ports[port].next = None;
            }
            if of != at || released {
                continue;
            }
            let serves = |heir: &usize| {
                let takes = |it: &Port| it.at == *heir && !it.released || it.next == Some(*heir);
                let taken = |it: &Port| it.listener == listener && takes(it);
                !self.members[*heir].leaving && !self.ports.iter().any(taken)
            };
            match (0..self.members.len()).find(serves) {
                Some(heir) => self.serve(port, heir),
                None => (self.ports[port].next, self.ports[port].released) = (None, true),
            }
        }
        self.introduce();
    }

    /// The second signal: nobody listens any more, sessions end, shards leave.
    fn stop(&mut self) {
        self.stopping = true;
        self.plan.orders.clear();
        for port in 0..self.ports.len() {
            self.ports[port].next = None;
            if !self.ports[port].released {
                self.send(self.ports[port].at, Order::Release(self.ports[port].listener));
            }
        }
        for at in 0..self.members.len() {
            self.members[at].leaving = true;
            self.send(at, Order::EndAll(EndReason::Stopped));
            self.send(at, Order::Leave);
        }
    }

    /// What shards report.
    fn hear(&mut self) {
        let reports: Vec<(usize, Report)> = self.reports.try_iter().collect();
        for (at, report) in reports {
            let listener = match report {
                Report::Released(listener) => listener,
                Report::AcceptFailed { rest_ms, unsaid, .. } => {
                    self.rests.push((self.now(), rest_ms, unsaid));
                    continue;
                }
                Report::Gone => continue,
            };
            let is_it = |port: &Port| port.at == at && port.listener == listener && !port.released;
            let Some(port) = self.ports.iter().position(is_it) else { continue };
            self.ports[port].released = true;
            if let Some(to) = self.ports[port].next.take() {
                self.serve(port, to);
            }
        }
    }

    /// Who may be handed clients.
    fn introduce(&self) {
        for at in (0..self.members.len()).filter(|_| self.plan.places) {
            let stays = |(n, member): &(usize, &Member)| *n != at && !member.leaving;
            let others = self.members.iter().enumerate().filter(stays);
            let others: Arc<[Neighbour]> = others.map(|(_, member)| member.home.clone()).collect();
            self.send(at, Order::Neighbours(others));
        }
    }

    /// Control closes what it listened on.
    fn close_ports(&mut self) {
        let mut driver = Sim::new(&Rc::clone(&self.world), 1, 64);
        for port in self.ports.drain(..) {
            driver.close(None, port.socket);
        }
    }
}
