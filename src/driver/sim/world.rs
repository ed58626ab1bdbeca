//! The network: a clock that jumps, what happens when, sockets, connections, and who lives where.

use super::conn::{Conn, ConnId, Fate, Record, Role};
use super::faults::{Fault, Faults};
use super::op::{Attempt, End, Op, Verb};
use super::pipe::Way;
use super::plain::Plain;
use super::rng::{Rng, mix};
use super::script::{Answer, Backend, Reading, Script, Step};
use super::trace::{Note, Trace};
use crate::driver::{Errno, ListenerId, Socket};
use crate::time::Time;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A world that drivers share: one clock, one seed.
pub type Shared = Rc<RefCell<World>>;

/// How long a SYN that found a full queue waits before it comes again.
const SYN_AGAIN_NS: u64 = 1_000_000_000;
/// When a kernel gives up a connect that nobody answers (tcp_syn_retries at its default).
const CONNECT_GIVEN_UP_NS: u64 = 127_000_000_000;

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// Bytes arrive.
    Arrive(ConnId, Way, usize),
    /// The end of a stream arrives.
    ArriveEnd(ConnId, Way),
    /// A reset arrives.
    ArriveReset(ConnId, Way),
    /// A far end has waited.
    Far(ConnId),
    /// A slow far end reads again.
    FarRested(ConnId),
    /// A client connects.
    ClientComes(ConnId),
    /// A backend answers a connect: which socket, which operation, and 0 or an error number.
    Answered(ConnId, usize, u64, i32),
    /// An operation may end now.
    Try(usize, Verb, u64),
    /// There is room again.
    Room(ConnId),
}

/// What a world knows of one of its drivers.
#[derive(Debug)]
pub(super) struct Shard {
    /// Until when it sleeps: the clock does not go further without it.
    pub(super) sleeps_until: Option<u64>,
    /// Operations that may end at its next turn.
    pub(super) due: VecDeque<Attempt>,
    /// Whether it was woken.
    pub(super) woken: Arc<AtomicBool>,
}

/// A simulated network.
#[derive(Debug)]
pub struct World {
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) clock: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    pub(super) ends: Vec<Option<End>>,
    pub(super) conns: Vec<Conn>,
    backends: BTreeMap<SocketAddr, (Backend, usize)>,
    pub(super) shards: Vec<Option<Shard>>,
    /// The shard whose turn it is, for the trace.
    pub(super) running: usize,
    /// How long shards were stopped so far.
    stopped_ns: u64,
    trace: Trace,
    digest: u64,
    /// Completions of an earlier generation that were handed out.
    pub(super) stale: u64,
    /// Clients whose address could not be told.
    pub(super) addresses_gone: u64,
    /// What plain calls did.
    pub(super) plain: Plain,
}

impl World {
    /// An empty one; all that chance decides is decided by `seed`.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Shared {
        Rc::new(RefCell::new(Self {
            rng: Rng::new(seed),
            faults,
            clock: SYN_AGAIN_NS,
            events: BinaryHeap::new(),
            serial: 0,
            ends: Vec::new(),
            conns: Vec::new(),
            backends: BTreeMap::new(),
            shards: Vec::new(),
            running: 0,
            stopped_ns: 0,
            trace: Trace::default(),
            digest: seed,
            stale: 0,
            addresses_gone: 0,
            plain: Plain::default(),
        }))
    }

    /// One whose faults are drawn from the seed too.
    #[must_use]
    pub fn drawn_from(seed: u64) -> Shared {
        let faults = Faults::drawn_from(&mut Rng::new(mix(seed)));
        Self::new(seed, faults)
    }

    /// Where scripts and times are drawn from.
    pub const fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// What goes wrong.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The clock. A world begins a second after 0.
    #[must_use]
    pub const fn now(&self) -> Time {
        Time(self.clock)
    }

    /// The clock, less what shards were stopped for.
    #[must_use]
    pub const fn awake(&self) -> Time {
        Time(self.clock - self.stopped_ns)
    }

    /// A socket that listens. It belongs to whoever accepts on it; several may listen for one listener.
    pub fn listen(&mut self, listener: ListenerId, backlog: usize) -> Socket {
        let number = self.open(End::listening(listener, backlog));
        self.note(Note::Net("listens on socket", i64::try_from(number).unwrap_or(-1)));
        socket(number)
    }

    /// A client that connects at `at` and then does what `script` says.
    pub fn client(&mut self, at: Time, listener: ListenerId, script: Script) -> ConnId {
        let id = self.connection(Role::Client(listener), script);
        self.schedule(at.since_ns(self.now()), Event::ClientComes(id));
        id
    }

    /// Puts a backend at its address, in place of who was there.
    pub fn backend(&mut self, backend: Backend) {
        self.backends.insert(backend.address, (backend, 0));
    }

    /// Nothing goes wrong any more: no faults, every backend accepts, every far end reads. What happened stays.
    pub fn heal(&mut self) {
        self.faults = Faults::none();
        for (backend, _) in self.backends.values_mut() {
            backend.answers = vec![(Time(0), Answer::Accept { after_ns: 0 })];
            backend.scripts.iter_mut().for_each(|script| heal(&mut script.0));
        }
        for id in self.ids() {
            heal(&mut self.conns[id.index()].far.script);
            self.conns[id.index()].far.reading = Reading::Eager;
            self.far_read_as_it_does(id);
            self.far_run(id);
        }
    }

    /// What is known of each connection, in the order they were made.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.conns.iter().map(Conn::record)
    }

    /// What is known of one connection.
    #[must_use]
    pub fn record(&self, id: ConnId) -> Record {
        self.conns[id.index()].record()
    }

    /// What no relay may do, in words, for each far end it was done to: a wrong byte, bytes nobody wrote, an end of
    /// stream that hides lost bytes.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for record in self.records() {
            let Record { id, seen, .. } = record;
            let wrote = record.partner.map_or(0, |partner| self.record(partner).sent.bytes);
            if let Some(at) = seen.wrong_at {
                found.push(format!("connection {}: byte {at} is not what was written", id.0));
            }
            if seen.bytes > wrote + seen.unpaired {
                found.push(format!("connection {}: read {}, {wrote} written", id.0, seen.bytes));
            }
            if let Some(at) = seen.end_at.filter(|at| *at < wrote) {
                found.push(format!("connection {}: the end after {at} of {wrote} bytes", id.0));
            }
        }
        found
    }

    /// How many completions of an earlier generation of a slot were handed out ([`Fault::Stale`]).
    #[must_use]
    pub const fn stale(&self) -> u64 {
        self.stale
    }

    /// How many clients were asked for their address and had gone.
    #[must_use]
    pub const fn addresses_gone(&self) -> u64 {
        self.addresses_gone
    }

    /// Numbers of the sockets that are open.
    #[must_use]
    pub fn open_sockets(&self) -> Vec<usize> {
        (0..self.ends.len()).filter(|number| self.ends[*number].is_some()).collect()
    }

    /// Whether nothing will happen any more unless a driver is asked for something.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.events.is_empty() && self.shards.iter().flatten().all(|shard| shard.due.is_empty())
    }

    /// The last things that happened, a line each.
    #[must_use]
    pub fn trace(&self) -> String {
        self.trace.to_string()
    }

    /// A number that two runs share if they did the same.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn note(&mut self, note: Note) {
        self.digest = mix(self.digest ^ self.clock ^ self.rng.state().rotate_left(17));
        self.trace.add(self.clock, self.running, note);
    }

    /// Ends the test: its subject broke the contract.
    pub(super) fn broken(&self, what: &str) -> ! {
        panic!("the driver's caller broke the contract: {what}\n{}", self.trace);
    }

    pub(super) fn happens(&mut self, fault: Fault) -> bool {
        self.rng.chance(self.faults.rate(fault))
    }

    /// The thread of the shard whose turn it is may be stopped for a while.
    pub(super) fn freeze(&mut self) {
        if self.happens(Fault::Freeze) {
            let ns = self.rng.log_within(10_000_000, 5_000_000_000);
            self.note(Note::Net("stops the shard for ns", i64::try_from(ns).unwrap_or(0)));
            self.stopped_ns += ns;
            self.pass_until(self.clock + ns);
        }
    }

    pub(super) fn schedule(&mut self, delay_ns: u64, event: Event) {
        let serial = self.next_serial();
        self.events.push(Reverse((self.clock + delay_ns, serial, event)));
    }

    pub(super) const fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn ids(&self) -> impl Iterator<Item = ConnId> + use<> {
        (0..u32::try_from(self.conns.len()).unwrap_or(u32::MAX)).map(ConnId)
    }

    /// The lowest number that is free, as the kernel has it.
    pub(super) fn open(&mut self, end: End) -> usize {
        let free = self.ends.iter().position(Option::is_none);
        let number = free.unwrap_or(self.ends.len());
        if free.is_none() {
            self.ends.push(None);
        }
        self.ends[number] = Some(end);
        number
    }

    pub(super) fn has_descriptors(&self) -> bool {
        self.ends.iter().flatten().count() < self.faults.sockets_max
    }

    pub(super) fn connection(&mut self, role: Role, script: Script) -> ConnId {
        let id = ConnId(u32::try_from(self.conns.len()).expect("a run has few connections"));
        let (least, most) = self.faults.room_bytes;
        let room = usize::try_from(self.rng.within(least, most)).expect("rooms are small");
        self.conns.push(Conn::new(id, role, room, script.0));
        id
    }

    /// A connect begins: makes the connection, and decides when and how it is answered.
    pub(super) fn dial(&mut self, number: usize, serial: u64, address: SocketAddr) -> ConnId {
        let (answer, script) = self.answer_of(address);
        let id = self.connection(Role::Backend(address), script);
        let (error, after_ns) = match answer {
            Answer::Accept { .. } if self.happens(Fault::ConnectRefused) => (libc::ECONNREFUSED, 0),
            Answer::Accept { .. } if self.happens(Fault::ConnectHangs) => {
                (libc::ETIMEDOUT, CONNECT_GIVEN_UP_NS)
            }
            Answer::Accept { after_ns } if self.happens(Fault::ConnectLate) => {
                (0, after_ns + self.rng.log_within(1000, 3_000_000_000))
            }
            Answer::Accept { after_ns } => (0, after_ns),
            Answer::Refuse => (libc::ECONNREFUSED, 0),
            Answer::Unreachable => (libc::EHOSTUNREACH, 0),
            Answer::Hang => (libc::ETIMEDOUT, CONNECT_GIVEN_UP_NS),
        };
        let delay = self.faults.latency_ns * 2 + after_ns;
        self.schedule(delay, Event::Answered(id, number, serial, error));
        id
    }

    /// What the backend at `address` says now, and what it would do.
    fn answer_of(&mut self, address: SocketAddr) -> (Answer, Script) {
        let clock = self.clock;
        let Some((backend, times)) = self.backends.get_mut(&address) else {
            return (Answer::Refuse, Script::default());
        };
        let reached = backend.answers.iter().rev().find(|(from, _)| from.0 <= clock);
        let answer = reached.map_or(Answer::Refuse, |(_, answer)| *answer);
        let turn = *times % backend.scripts.len().max(1);
        *times += 1;
        (answer, backend.scripts.get(turn).cloned().unwrap_or_default())
    }

    /// When the next event is due.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Sets the clock and lets happen what is due by then.
    pub(super) fn pass_until(&mut self, clock: u64) {
        while let Some(Reverse((at, _, event))) = self.events.peek().copied() {
            if at > clock {
                break;
            }
            self.events.pop();
            self.clock = self.clock.max(at);
            self.happen(event);
        }
        self.clock = self.clock.max(clock);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(id, Way::In, n) => {
                if self.conns[id.index()].pipe_mut(Way::In).arrive(n) {
                    self.arrived_here(id);
                }
            }
            Event::Arrive(id, Way::Out, n) => {
                if self.conns[id.index()].pipe_mut(Way::Out).arrive(n) {
                    self.arrived_at_far(id);
                }
            }
            Event::ArriveEnd(id, way) => {
                if self.conns[id.index()].pipe_mut(way).arrive_end() {
                    match way {
                        Way::In => self.kick_conn(id),
                        Way::Out => {
                            self.far_read_as_it_does(id);
                            self.far_run(id);
                        }
                    }
                }
            }
            Event::ArriveReset(id, Way::In) => self.lose(id, Errno::RESET),
            Event::ArriveReset(id, Way::Out) => self.reset_at_far(id),
            Event::Far(id) => self.far_run(id),
            Event::FarRested(id) => {
                self.conns[id.index()].far.resting = false;
                self.far_read_as_it_does(id);
                self.far_run(id);
            }
            Event::ClientComes(id) => self.client_comes(id),
            Event::Answered(id, number, serial, error) => self.answered(id, number, serial, error),
            Event::Try(number, verb, serial) => self.try_soon(number, verb, serial),
            Event::Room(id) => self.kick_conn(id),
        }
    }

    /// Bytes reached Ringway's kernel.
    fn arrived_here(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.index()];
        if conn.near.closed {
            conn.pipe_mut(Way::In).cut(true);
            self.schedule(self.faults.latency_ns, Event::ArriveReset(id, Way::Out));
        } else {
            self.kick_conn(id);
        }
    }

    /// The connection is gone for Ringway, with `error`.
    pub(super) fn lose(&mut self, id: ConnId, error: Errno) {
        let drops = self.happens(Fault::ResetDropsUnread);
        let conn = &mut self.conns[id.index()];
        if conn.dead {
            return;
        }
        (conn.dead, conn.error) = (true, Some(error));
        conn.pipe_mut(Way::In).cut(drops);
        conn.pipe_mut(Way::Out).cut(false);
        self.note(Note::Net("lost connection", i64::from(id.0)));
        self.kick_conn(id);
    }

    fn client_comes(&mut self, id: ConnId) {
        let Role::Client(listener) = self.conns[id.index()].role else { return };
        let listens = |end: &End| end.listener().is_some_and(|it| it == listener);
        let open = self.ends.iter().enumerate();
        let sockets: Vec<usize> = open
            .filter(|(_, end)| end.as_ref().is_some_and(listens))
            .map(|(number, _)| number)
            .collect();
        if sockets.is_empty() {
            self.conns[id.index()].fate = Fate::Refused;
            return self.note(Note::Far("was refused", id.0, 0));
        }
        let number = self.rng.pick(&sockets);
        if !self.end_mut(number).enqueue(id) {
            return self.schedule(SYN_AGAIN_NS, Event::ClientComes(id));
        }
        self.conns[id.index()].fate = Fate::Queued;
        self.note(Note::Far("waits to be accepted at socket", id.0, number as u64));
        self.kick(number);
        self.far_run(id);
    }

    fn answered(&mut self, id: ConnId, number: usize, serial: u64, error: i32) {
        if self.conns[id.index()].fate != Fate::Coming {
            return;
        }
        let outcome = if error == 0 { Ok(()) } else { Err(Errno(error)) };
        let conn = &mut self.conns[id.index()];
        conn.fate = if outcome.is_ok() { Fate::Established } else { Fate::Refused };
        conn.dead = outcome.is_err();
        self.note(Note::Far("answered with", id.0, u64::from(error.unsigned_abs())));
        if let Some(Op::Connect { outcome: slot }) = self.op_mut(number, Verb::Connect, serial) {
            *slot = Some(outcome);
        }
        self.kick(number);
        self.far_run(id);
    }

    /// What `kick` meant for a connection's socket.
    pub(super) fn kick_conn(&mut self, id: ConnId) {
        if let Some(number) = self.conns[id.index()].socket {
            self.kick(number);
        }
    }
}

/// Lets a far end read whatever comes.
fn heal(script: &mut [Step]) {
    for step in script {
        if let Step::Reading(reading) = step {
            *reading = Reading::Eager;
        }
    }
}

pub(super) fn socket(number: usize) -> Socket {
    Socket(i32::try_from(number).expect("a run has few sockets"))
}
