//! The third driver: a network made of a seed, which lies, delays and breaks within the rules.
//!
//! A [`World`] has one clock and one source of chance; each [`Sim`] is the driver of one shard in it. At the far ends
//! live clients and backends that do what their [`Script`] says, and note what they see. Nothing happens but in
//! [`Driver::turn`], where the clock jumps to the next event; so a run is over in microseconds, and its seed replays
//! it.
//!
//! A `Sim` also checks its caller: what breaks the contract panics, and the message ends with what happened before.
//! Turn all drivers of a world in turn, each with its own `until`: no clock passes the sleep of another, and a driver
//! that nobody turns any more has to be dropped.
//!
//! ```text
//! let world = World::drawn_from(seed);
//! let mut driver = Sim::new(&world, 16, 512);
//! let listens = world.borrow_mut().listen(ListenerId(0), 8);
//! world.borrow_mut().backend(Backend::accepting(address, vec![Script::answers(3, 100)]));
//! world.borrow_mut().client(Time(0), ListenerId(0), Script::asks(3, 100));
//! // ... a shard accepts on `listens` and relays ...
//! assert_eq!(world.borrow().violations(), [""; 0]);
//! ```

mod attempt;
mod check;
mod conn;
mod far;
mod faults;
mod hand;
mod op;
mod pipe;
mod plain;
mod rng;
mod script;
mod socket;
#[cfg(test)]
mod tests;
mod trace;
mod world;

pub use conn::{ConnId, Fate, Near, Record, Role, Seen, Sent};
pub use faults::{Fault, Faults};
pub use hand::{Hand, Sight};
pub use plain::Plain;
pub use rng::{Rate, Rng};
pub use script::{Answer, Backend, Reading, Script, Step, content};
pub use world::{Shared, World};

use super::pool::{BufferId, Pool};
use super::{
    Arm, Carried, Completion, Counters, Driver, Errno, Interest, Key, Kind, ListenerId,
    Op as Asked, Received, Side, Socket, Stride, Wake, Waker,
};
use crate::config::{Tcp, limits};
use crate::time::Time;
use op::{Op, Owner, Verb};
use pipe::Way;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use trace::Note;
use world::Shard;

/// How long a turn takes at least: who never sleeps cannot stop the clock.
const TURN_NS: u64 = 1000;

/// A completion, and what has its last word by it: socket and operation.
type Said = (Completion, Option<(usize, Verb)>);

/// The driver of one shard in a simulated network.
#[derive(Debug)]
pub struct Sim {
    world: Shared,
    shard: usize,
    pool: Pool,
    now: Time,
    said: VecDeque<Said>,
    counters: Counters,
    counts_credit: bool,
    plain_calls: bool,
    /// Its shard has failed: sockets are closed whatever is in flight.
    fails: bool,
    /// The socket of each side of each slot, by slot and side.
    attached: BTreeMap<(u32, u8), usize>,
    /// The socket each listener accepts on.
    accepting: BTreeMap<ListenerId, usize>,
    /// Sockets that the next turn closes.
    closing: Vec<usize>,
    /// Buffers that a send reads.
    lent: BTreeSet<u32>,
    /// The last generation of each slot that is over: what is said of it is stale.
    over: BTreeMap<u32, Key>,
    woken: Arc<Woken>,
}

/// Whether somebody used the waker.
#[derive(Debug)]
struct Woken(Arc<AtomicBool>);

impl Wake for Woken {
    fn wake(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Sim {
    /// A driver in `world` with its own pool. Whether it counts credit and has plain calls is drawn.
    #[must_use]
    pub fn new(world: &Shared, buffers: u16, buffer_bytes: u32) -> Self {
        let flag = Arc::new(AtomicBool::new(false));
        let mut its = world.borrow_mut();
        let shard = its.shards.len();
        let woken = Arc::clone(&flag);
        its.shards.push(Some(Shard { sleeps_until: Some(0), due: VecDeque::new(), woken }));
        let counts_credit = its.rng.chance(Rate::HALF);
        let plain_calls = its.rng.chance(Rate::HALF);
        Self {
            world: Rc::clone(world),
            shard,
            pool: Pool::new(buffers, buffer_bytes).expect("a test's pool is small"),
            now: its.now(),
            said: VecDeque::new(),
            counters: Counters::default(),
            counts_credit,
            plain_calls,
            fails: false,
            attached: BTreeMap::new(),
            accepting: BTreeMap::new(),
            closing: Vec::new(),
            lent: BTreeSet::new(),
            over: BTreeMap::new(),
            woken: Arc::new(Woken(flag)),
        }
    }

    /// Decides whether multishot receives stop at their credit by themselves.
    pub const fn set_counts_credit(&mut self, counts: bool) {
        self.counts_credit = counts;
    }

    /// Decides whether it can be read, sent to and carried straight.
    pub const fn set_plain_calls(&mut self, has: bool) {
        self.plain_calls = has;
    }

    /// Its shard has failed: what is in flight goes with the driver, and sockets may be closed before.
    pub const fn fail(&mut self) {
        self.fails = true;
    }

    /// The last things that happened in its world, a line each.
    #[must_use]
    pub fn trace(&self) -> String {
        self.world.borrow().trace()
    }

    /// Lets the world go on until something is there for this shard, or `until`, or another shard is to move.
    fn wait(&mut self, until: Option<u64>) {
        loop {
            self.attempt_what_is_due();
            let mut world = self.world.borrow_mut();
            let woken = self.woken.0.load(Ordering::Acquire);
            if !self.said.is_empty() || woken || world.others_move(self.shard) {
                return;
            }
            let limit = world.limit(self.shard, until);
            let Some(next) = [world.next_at(), limit].into_iter().flatten().min() else {
                world.broken("it sleeps for ever in a world where nothing will happen");
            };
            world.pass_until(next);
            if limit.is_some_and(|limit| next >= limit) && world.is_idle_for(self.shard) {
                return;
            }
        }
    }

    /// Tries what can end at this moment of the clock, and what that makes possible.
    fn attempt_what_is_due(&mut self) {
        loop {
            let mut world = self.world.borrow_mut();
            let clock = world.clock;
            world.pass_until(clock);
            let Some(shard) = &mut world.shards[self.shard] else { return };
            let due = std::mem::take(&mut shard.due);
            drop(world);
            if due.is_empty() {
                return;
            }
            for attempt in due {
                self.attempt(attempt);
            }
        }
    }

    /// What chance adds to a turn.
    fn disturb(&mut self) {
        let mut world = self.world.borrow_mut();
        world.freeze();
        if !self.over.is_empty() && world.happens(Fault::Stale) {
            let slots: Vec<Key> = self.over.values().copied().collect();
            let key = world.rng.pick(&slots);
            let side = world.rng.pick(&Side::BOTH);
            let stale = match world.rng.below(3) {
                0 => Completion::Polled { key, side, result: Ok(()) },
                1 => Completion::Sent { key, side, result: Err(Errno::CANCELED) },
                _ => Completion::Connected { key, result: Err(Errno::CANCELED) },
            };
            self.said.push_back((stale, None));
        }
    }
}

impl Driver for Sim {
    fn kind(&self) -> Kind {
        Kind::Sim
    }

    fn counts_credit(&self) -> bool {
        self.counts_credit
    }

    fn now(&self) -> Time {
        self.now
    }

    fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.woken) as Waker
    }

    fn accept(&mut self, listener: ListenerId, socket: &Socket) {
        let number = self.asked("accept", socket);
        let mut world = self.world.borrow_mut();
        if world.end(number).listener().is_none() || self.accepting.contains_key(&listener) {
            world.broken(&format!("accept of {listener:?} on socket {number}: it cannot be armed"));
        }
        self.accepting.insert(listener, number);
        world.begin(self.shard, number, Verb::Accept, Op::Accept(listener));
    }

    fn stop_accepting(&mut self, listener: ListenerId) {
        if let Some(number) = self.accepting.get(&listener) {
            self.world.borrow_mut().cancel_flight(*number, Verb::Accept);
        }
    }

    fn socket(&mut self, _address: SocketAddr, _tcp: &Tcp) -> Result<Socket, Errno> {
        let mut world = self.world.borrow_mut();
        world.running = self.shard;
        if !world.has_descriptors() || world.happens(Fault::SocketFails) {
            return Err(Errno(libc::EMFILE));
        }
        let number = world.open(op::End::default());
        world.note(Note::Asked("open", number));
        Ok(world::socket(number))
    }

    fn attach(&mut self, key: Key, side: Side, socket: &Socket) -> Result<(), Errno> {
        let number = self.asked("attach", socket);
        self.check_attach(key, side, number);
        let mut world = self.world.borrow_mut();
        if world.happens(Fault::AttachFails) {
            return Err(Errno(libc::ENOSPC));
        }
        world.end_mut(number).owner = Some(Owner { shard: self.shard, key, side });
        drop(world);
        self.attached.insert((key.slot, side as u8), number);
        self.pair(key);
        Ok(())
    }

    fn detach(&mut self, key: Key, side: Side, socket: &Socket) {
        let number = self.owned("detach", key, side, socket);
        self.check_at_rest("detached", number);
        self.forget(key, side, number);
    }

    fn connect(&mut self, key: Key, socket: &Socket, address: SocketAddr) {
        let number = self.owned("connect", key, Side::Backend, socket);
        let mut world = self.world.borrow_mut();
        if world.end(number).conn.is_some() {
            world.broken(&format!("socket {number} is connected a second time"));
        }
        let op = Op::Connect { outcome: None };
        let serial = world.begin(self.shard, number, Verb::Connect, op);
        let id = world.dial(number, serial, address);
        world.conns[id.index()].socket = Some(number);
        world.end_mut(number).conn = Some(id);
        drop(world);
        self.pair(key);
    }

    fn arm_recv(&mut self, key: Key, side: Side, socket: &Socket, arm: Arm) {
        let number = self.owned("receive", key, side, socket);
        let mut world = self.world.borrow_mut();
        let starved = self.pool.free() == 0 && world.happens(Fault::NoBuffers);
        let op = Op::Recv { arm, brought: 0, waits: false, starved };
        world.begin(self.shard, number, Verb::Recv, op);
    }

    fn send(&mut self, key: Key, side: Side, socket: &Socket, buffer: BufferId) {
        let number = self.owned("send", key, side, socket);
        self.begin_send(number, buffer, None);
    }

    fn send_then_recv(
        &mut self,
        key: Key,
        side: Side,
        socket: &Socket,
        buffer: BufferId,
        source: &Socket,
    ) {
        let number = self.owned("send, then receive", key, side, socket);
        let source = self.owned("receive after a send", key, side.other(), source);
        let op = Op::Recv { arm: Arm::Once, brought: 0, waits: true, starved: false };
        self.world.borrow_mut().begin(self.shard, source, Verb::Recv, op);
        self.begin_send(number, buffer, Some(source));
    }

    fn arm_poll(&mut self, key: Key, side: Side, socket: &Socket, interest: Interest) {
        let number = self.owned("poll", key, side, socket);
        self.world.borrow_mut().begin(self.shard, number, Verb::Poll, Op::Poll(interest));
    }

    fn recv_now(&mut self, key: Key, side: Side, socket: &Socket) -> Option<Received> {
        let number = self.owned("read straight", key, side, socket);
        self.read_straight(number)
    }

    fn send_now(&mut self, socket: &Socket, buffer: BufferId) -> Result<u32, Errno> {
        let number = self.asked("send straight", socket);
        self.send_straight(number, buffer)
    }

    fn read_clock(&mut self) -> Time {
        let mut world = self.world.borrow_mut();
        world.running = self.shard;
        let later = world.clock + world.rng.log_within(50, TURN_NS);
        world.pass_until(later);
        world.freeze();
        self.now = world.now();
        self.now
    }

    fn sends_at_once(&mut self) -> bool {
        self.plain_calls && self.world.borrow_mut().happens(Fault::SparseTurn)
    }

    fn has_plain_calls(&self) -> bool {
        self.plain_calls
    }

    fn carry_wide(
        &mut self,
        key: Key,
        source: Side,
        from: &Socket,
        to: &Socket,
        stride: Stride,
    ) -> Carried {
        let from = self.owned("carry from", key, source, from);
        let to = self.owned("carry to", key, source.other(), to);
        self.carry_straight(from, to, stride.tail_max)
    }

    fn cancel(&mut self, key: Key, op: Asked) {
        let (side, verb) = match op {
            Asked::Connect => (Side::Backend, Verb::Connect),
            Asked::Recv(side) => (side, Verb::Recv),
            Asked::Send(side) => (side, Verb::Send),
            Asked::Poll(side) => (side, Verb::Poll),
        };
        let Some(number) = self.attached.get(&(key.slot, side as u8)).copied() else {
            self.world.borrow().broken(&format!("{op:?} of {key:?} is cancelled: not attached"));
        };
        let socket = world::socket(number);
        self.owned("cancel", key, side, &socket);
        self.world.borrow_mut().cancel_flight(number, verb);
    }

    fn finish(&mut self, socket: &Socket) -> Result<(), Errno> {
        let number = self.asked("finish", socket);
        let mut world = self.world.borrow_mut();
        if world.end(number).asked[Verb::Send as usize] {
            world.broken(&format!("socket {number} is finished before its send is over"));
        }
        world.finish_socket(number)
    }

    fn take_error(&mut self, socket: &Socket) -> Result<(), Errno> {
        let number = self.asked("take_error", socket);
        let mut world = self.world.borrow_mut();
        let gone = world.conn_at(number).is_some_and(|conn| conn.dead);
        if gone { Err(world.error_of(number)) } else { Ok(()) }
    }

    fn stands(&mut self, socket: &Socket) -> bool {
        let number = self.asked("stands", socket);
        let world = self.world.borrow();
        world.conn_at(number).is_some_and(|conn| !conn.dead && !conn.pipe(Way::In).end_arrived())
    }

    fn abort(&mut self, socket: &Socket) {
        let number = self.asked("abort", socket);
        self.world.borrow_mut().abort_socket(number);
    }

    fn close(&mut self, attached: Option<(Key, Side)>, socket: Socket) {
        let number = match attached {
            _ if self.fails => return self.close_failed(&socket),
            Some((key, side)) => self.owned("close", key, side, &socket),
            None => self.asked("close", &socket),
        };
        self.check_at_rest("closed", number);
        if let Some((key, side)) = attached {
            self.forget(key, side, number);
        } else if self.world.borrow().end(number).owner.is_some() {
            self.world.borrow().broken(&format!("socket {number} is attached, and closed as not"));
        }
        let mut world = self.world.borrow_mut();
        if self.closing.len() < limits::CLOSES_PER_TURN_MAX && world.happens(Fault::LateClose) {
            self.closing.push(number);
        } else {
            world.close_socket(number);
        }
    }

    fn client_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        let number = self.asked("tell the address", socket);
        let mut world = self.world.borrow_mut();
        let gone = world.happens(Fault::AddressGone);
        let conn = world.conn_at(number).filter(|conn| !conn.dead && !gone);
        let address = conn.map(conn::Conn::address).ok_or(Errno(libc::ENOTCONN));
        world.addresses_gone += u64::from(address.is_err());
        address
    }

    fn local_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        let number = self.asked("tell the local address", socket);
        let world = self.world.borrow();
        let conn = world.conn_at(number).filter(|conn| !conn.dead);
        conn.map(conn::Conn::local).ok_or(Errno(libc::ENOTCONN))
    }

    fn is_its_own_end(&self, socket: &Socket, _: SocketAddr) -> bool {
        self.asked("tell whether it is its own end", socket);
        self.world.borrow_mut().happens(Fault::OwnEnd)
    }

    fn turn(&mut self, until: Option<Time>) -> io::Result<()> {
        self.counters.enters += 1;
        self.check_buffers();
        let mut world = self.world.borrow_mut();
        world.running = self.shard;
        self.closing.drain(..).for_each(|number| world.close_socket(number));
        let early = world.happens(Fault::EarlyTurn);
        let until = if early { Some(world.clock) } else { until.map(|until| until.0) };
        // Who only looks takes a while for it too.
        let looks = until.is_some_and(|until| until <= world.clock);
        let turn_ns = if looks { world.rng.log_within(TURN_NS, 16 * TURN_NS) } else { TURN_NS };
        if let Some(shard) = &mut world.shards[self.shard] {
            shard.sleeps_until = until;
        }
        drop(world);
        let before = self.said.len();
        self.wait(until);
        self.disturb();
        if self.woken.0.swap(false, Ordering::AcqRel) {
            self.said.push_back((Completion::Woken, None));
        }
        self.counters.completions += (self.said.len() - before) as u64;
        let mut world = self.world.borrow_mut();
        let later = world.clock + turn_ns;
        world.pass_until(later);
        self.now = world.now();
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        let (completion, last) = self.said.pop_front()?;
        let mut world = self.world.borrow_mut();
        world.running = self.shard;
        world.note(check::note(&completion));
        if let Some((number, verb)) = last {
            world.end_mut(number).asked[verb as usize] = false;
            if let (Verb::Accept, Completion::Accepted { listener, .. }) = (verb, &completion) {
                self.accepting.remove(listener);
            }
        } else if let Completion::Polled { .. }
        | Completion::Sent { .. }
        | Completion::Connected { .. } = completion
        {
            world.stale += 1;
        }
        Some(completion)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // A panic may have left the world borrowed; it is over then.
        if let Ok(mut world) = self.world.try_borrow_mut() {
            self.closing.drain(..).for_each(|number| world.close_socket(number));
            world.shards[self.shard] = None;
            world.end_flights_of(self.shard);
            for (number, verb) in self.said.drain(..).filter_map(|(_, last)| last) {
                if let Some(Some(end)) = world.ends.get_mut(number) {
                    end.asked[verb as usize] = false;
                }
            }
        }
    }
}
