//! One core: a pinned thread's loop over one driver.
//!
//! [`Shard::step`] is one turn of that loop. It is called from outside, by the thread that owns the shard or by a test
//! that owns a simulated network, so both run the same loop. A shard shares nothing with others but counters that have
//! one writer, its mailbox, and the snapshot.

#![forbid(unsafe_code)]

mod abandon;
pub mod accept;
mod admission;
pub mod inquiry;
pub mod mailbox;
mod moves;
pub mod placement;
pub mod share;
#[cfg(test)]
mod simulation;
mod spare;
pub mod spin;
pub mod table;
pub mod timers;

use crate::config::limits;
use crate::driver::{Completion, Driver, Key, Received, Side};
use crate::event::{EndReason, Ended};
use crate::policy::snapshot::Snapshot;
use crate::session::routes::Routes;
use crate::session::sabotage::{self, Mutation};
use crate::session::{Rest, Session, Step};
use crate::tally::Tally;
use crate::time::Time;
use accept::Gate;
use admission::Arrivals;
use arc_swap::ArcSwap;
use mailbox::{Order, Report};
use moves::Moves;
use placement::{Load, Neighbour};
use share::Share;
use spare::Stock;
use spin::{Awake, Few, Heat, Spin};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, mpsc};
use table::Table;
use timers::Timers;

/// What a shard is made of beside its driver.
pub struct Parts {
    /// Its number; unique in the process.
    pub id: usize,
    /// The snapshot in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Whether somebody wakes it once a second. Then it sets no timer of its own for what lies farther ahead:
    /// arming one costs each sleep a twentieth of a message.
    pub ticked: bool,
    /// How long it looks for work without sleeping, until [`Order::StayAwake`] says otherwise.
    pub awake: Awake,
    /// Its counters.
    pub tally: Arc<Tally>,
    /// Its sessions, as placement counts them.
    pub load: Arc<Load>,
    /// Itself, as others send to it.
    pub home: Neighbour,
    /// Its mailbox.
    pub orders: mpsc::Receiver<Order>,
    /// Where it reports to. Called on its thread; must not wait.
    pub report: Box<dyn FnMut(Report) + Send>,
    /// Where records of ended sessions go; full is counted, not waited for.
    pub journal: Option<mpsc::SyncSender<Ended>>,
}

/// One core.
pub struct Shard<D> {
    driver: D,
    parts: Parts,
    routes: Routes,
    sessions: Table,
    timers: Timers,
    gates: Vec<Gate>,
    arrivals: Arrivals,
    /// When a client was last turned away.
    refused_at: Option<Time>,
    moves: Moves,
    neighbours: Arc<[Neighbour]>,
    share: Share,
    stock: Stock,
    starved: VecDeque<(Key, Side)>,
    relief: Relief,
    spin: Spin,
    heat: Heat,
    /// Sessions that are read straight.
    hot: Vec<Key>,
    now: Time,
    /// How long the thread was stopped so far: the shard's clock does not count it.
    frozen_ns: u64,
    upkeep_at: Time,
    /// When to give more memory back. `None`: not before the next upkeep.
    trim_at: Option<Time>,
    leaving: bool,
    /// Why all sessions end, those included that are still on their way here.
    ending: Option<EndReason>,
}

/// Where the shard stands in having its sessions [spill](Session::spill).
#[derive(Debug, Default)]
struct Relief {
    /// When to look at sessions next. `None`: the pool is not low.
    at: Option<Time>,
    /// From which slot.
    slot: u32,
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    GoOn,
    /// The shard has left: it accepts nobody and has no session.
    Left,
}

impl<D: Driver> Shard<D> {
    /// A shard that accepts nobody yet.
    pub fn new(driver: D, parts: Parts) -> Self {
        let now = driver.now();
        let next_id = &parts.tally.shard.next_id;
        next_id.set(next_id.get().max(1));
        Self {
            routes: Routes::new(Arc::clone(&parts.tally)),
            sessions: Table::default(),
            timers: Timers::new(now),
            gates: Vec::new(),
            arrivals: Arrivals::default(),
            refused_at: None,
            moves: Moves::default(),
            neighbours: Arc::from([]),
            share: Share::default(),
            stock: Stock::default(),
            starved: VecDeque::new(),
            relief: Relief::default(),
            spin: Spin::new(parts.awake, now),
            heat: Heat::default(),
            hot: Vec::new(),
            now,
            frozen_ns: 0,
            upkeep_at: now,
            trim_at: None,
            leaving: false,
            ending: None,
            driver,
            parts,
        }
    }

    /// One turn: wait for the kernel, pass on what it said, fire what is due.
    ///
    /// # Errors
    /// The driver is broken and the shard cannot go on.
    pub fn step(&mut self) -> io::Result<Flow> {
        let spins = self.spin.wants(self.now);
        let mut found = spins && self.look_again()?;
        if !spins {
            self.cool_all();
            let (until, alarm) = self.wake_at();
            self.driver.turn(alarm)?;
            self.look_at_clock(until);
            self.spin.slept(self.now);
        }
        let woke = self.driver.now();
        for _ in 0..limits::COMPLETIONS_PER_TURN_MAX {
            let Some(completion) = self.driver.next() else { break };
            found = true;
            self.take(completion);
        }
        if spins {
            self.spin.looked(self.now, found);
        }
        self.admit();
        self.make_room();
        self.feed_starved();
        self.fire_timers();
        self.keep_moving();
        self.retry_parked();
        if self.now >= self.upkeep_at {
            self.keep_up();
        }
        self.give_memory_back();
        self.restock();
        self.count_turn(woke);
        // What was promised to it counts as its load until it has ended, so that nothing is lost in its mailbox.
        let is_bare = self.gates.is_empty() && self.stock.is_empty();
        if self.leaving && is_bare && self.parts.load.leave() {
            (self.parts.report)(Report::Gone);
            return Ok(Flow::Left);
        }
        Ok(Flow::GoOn)
    }

    /// Its driver, for tests that own the world behind it.
    pub const fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// How many sessions it has.
    #[must_use]
    pub const fn sessions(&self) -> usize {
        self.sessions.count()
    }

    /// Looks for work without sleeping: at the hot sessions a few times, then at the driver. Whether the former had
    /// something.
    fn look_again(&mut self) -> io::Result<bool> {
        let mut found = false;
        if !self.hot.is_empty() {
            for _ in 0..(limits::HOT_READS / (2 * self.hot.len())).max(1) {
                found |= self.read_hot();
            }
        }
        let at_once = self.driver.read_clock();
        self.driver.turn(Some(at_once))?;
        // Since its last look, for the thread may have been stopped before this turn too.
        self.look_at_clock(self.now + self.frozen_ns);
        Ok(found)
    }

    /// Reads the hot sessions. Whether any had something.
    fn read_hot(&mut self) -> bool {
        let (mut found, mut at) = (false, 0);
        while let Some(&key) = self.hot.get(at) {
            let mut moved = false;
            if !self.with_session(key, |session, step| moved = session.read_now(step)) {
                // It has ended, and leaves its room among the hot to another.
                self.hot.swap_remove(at);
                continue;
            }
            at += 1;
            if moved {
                found = true;
                let last = self.now + self.frozen_ns;
                self.driver.read_clock();
                self.look_at_clock(last);
                self.note_movement(key, Side::Client);
            }
        }
        found
    }

    /// A session's bytes moved: the shard stays awake, and sees whether a few sessions carry all the traffic.
    fn note_movement(&mut self, key: Key, from: Side) {
        self.spin.moved(self.now, from);
        if !self.spin.is_busy() {
            return;
        }
        if self.sessions.session(key).is_some_and(|session| session.wants_heat()) {
            self.heat_up(key);
        }
        match self.heat.note(key) {
            Few::Same => {}
            Few::TooMany => self.cool_chosen(),
            Few::Are(keys) => {
                for key in
                    keys.into_iter().filter(|key| !self.hot.contains(key)).collect::<Vec<_>>()
                {
                    self.heat_up(key);
                }
            }
        }
    }

    /// Has a session read straight from now on, if there is room among those.
    fn heat_up(&mut self, key: Key) {
        if self.hot.len() < limits::HOT_FORCED_MAX {
            let mut is_hot = false;
            self.with_session(key, |session, step| {
                session.heat(step);
                is_hot = session.is_hot();
            });
            if is_hot {
                self.hot.push(key);
            }
        }
    }

    fn cool_all(&mut self) {
        self.heat.clear();
        for key in std::mem::take(&mut self.hot) {
            self.with_session(key, |session, step| session.cool(step));
        }
    }

    /// Has those read as others are again that were hot because few sessions carried the traffic.
    fn cool_chosen(&mut self) {
        let hot = std::mem::take(&mut self.hot);
        let is_forced = |key: &Key| self.sessions.session(*key).is_some_and(|s| s.forces_heat());
        let (forced, chosen): (Vec<Key>, Vec<Key>) = hot.into_iter().partition(is_forced);
        self.hot = forced;
        for key in chosen {
            self.with_session(key, |session, step| session.cool(step));
        }
    }

    /// The latest moment to wake, on the driver's clock, and the timer that is needed for it.
    fn wake_at(&self) -> (Time, Option<Time>) {
        let latest = self.now.plus_ms(limits::SLEEP_MS_MAX);
        let upkeep = Some(self.upkeep_at).filter(|_| !self.parts.ticked);
        let own = [self.timers.next(), self.next_gate(), self.next_move(), self.relief.at, upkeep];
        let more = [self.stock.next(self.now), self.trim_at];
        let due = own.into_iter().chain(more).flatten().min();
        let due = if self.arrivals.is_empty() { due } else { Some(self.now) };
        let until = due.unwrap_or(latest).min(latest) + self.frozen_ns;
        let is_near = due.is_some_and(|due| due < latest) || !self.parts.ticked;
        (until, is_near.then_some(until))
    }

    /// Reads the clock. A turn that ends long after it should have was stopped: it does not count at all, so that no
    /// deadline comes due because of it, not even one it was to end at: its answer may be waiting to be read.
    fn look_at_clock(&mut self, until: Time) {
        let wall = self.driver.now();
        let late_ns = wall.since_ns(until);
        if late_ns > limits::FREEZE_MS * 1_000_000 {
            self.frozen_ns = wall.since_ns(self.now);
            self.parts.tally.shard.freezes.add(1);
        }
        self.now = self.now.max(Time(wall.0.saturating_sub(self.frozen_ns)));
    }

    fn take(&mut self, completion: Completion) {
        let key = match completion {
            Completion::Woken => return self.read_mail(),
            Completion::Accepted { listener, result, more } => {
                return self.on_accepted(listener, result, more);
            }
            Completion::Connected { key, .. }
            | Completion::Received { key, .. }
            | Completion::Sent { key, .. }
            | Completion::Polled { key, .. } => key,
        };
        if !self.with_session(key, |session, step| session.on(step, &completion)) {
            let is_stale = !self.on_spare(&completion);
            self.parts.tally.shard.stale.add(u64::from(is_stale));
        } else if self.spin.is_on()
            && let Completion::Received { what: Received::Bytes(_), side, .. } = completion
        {
            self.note_movement(key, side);
        }
    }

    /// Lets a session take a step, and sees to what follows from it. Whether there is such a session.
    fn with_session(&mut self, key: Key, act: impl FnOnce(&mut Session, &mut Step<'_, D>)) -> bool {
        let Some(session) = self.sessions.session(key) else { return false };
        let mut step = Step {
            key,
            now: self.now,
            driver: &mut self.driver,
            tally: &self.parts.tally.shard,
            routes: &mut self.routes,
            starved: &mut self.starved,
            spares: &mut self.stock.shelf,
        };
        act(session, &mut step);
        match session.rest() {
            Rest::Ended => self.bury(key),
            Rest::Settled => self.depart(key),
            Rest::None => {
                if std::mem::take(&mut session.retime) && !sabotage::is(Mutation::TimerNeverSet) {
                    match session.deadline() {
                        Some(at) => self.timers.set(key.slot, at),
                        None => self.timers.clear(key.slot),
                    }
                }
            }
        }
        true
    }

    fn bury(&mut self, key: Key) {
        let Some(mut session) = self.sessions.take(key) else { return };
        self.timers.clear(key.slot);
        let ended = session.bury(&mut self.step_of(key));
        self.account(&session, ended);
    }

    /// While the pool is low, has sessions move what waits for slow destinations out of it, some at a time.
    fn make_room(&mut self) {
        if !self.driver.pool().is_low() {
            self.relief.at = None;
            return;
        }
        let next = Some(self.now.plus_ms(limits::SPILL_LOOK_MS));
        if *self.relief.at.get_or_insert(self.now) > self.now {
            return;
        }
        self.relief.at = next;
        let from = self.relief.slot;
        let (keys, more) = self.sessions.keys_in(from, limits::SPILL_LOOKS_MAX);
        self.relief.slot = if more { from + limits::SPILL_LOOKS_MAX } else { 0 };
        for key in keys {
            self.with_session(key, |session, step| session.spill(step));
        }
    }

    /// Arms receives again that found no buffer, in the order they waited, as far as buffers have come back.
    fn feed_starved(&mut self) {
        let mut free = self.driver.pool().unused();
        for _ in 0..self.starved.len() {
            if free == 0 {
                break;
            }
            let Some((key, side)) = self.starved.pop_front() else { break };
            let mut fed = false;
            self.with_session(key, |session, step| fed = session.feed(step, side));
            free -= usize::from(fed);
        }
    }

    fn fire_timers(&mut self) {
        while let Some(slot) = self.timers.expire(self.now) {
            let key = self.sessions.key(slot);
            self.with_session(key, |session, step| {
                session.on_deadline(step);
                session.retime = true;
            });
        }
        self.open_rested_gates();
    }

    /// Counts a turn, and now and then measures how long it took since the kernel had answered.
    fn count_turn(&mut self, woke: Time) {
        let shard = &self.parts.tally.shard;
        shard.turns.add(1);
        if shard.turns.get().is_multiple_of(limits::WORK_SAMPLE) {
            shard.work.record(self.driver.read_clock().since_ns(woke));
        }
    }

    /// What need not be done each turn: reports gauges, begins to give memory back.
    fn keep_up(&mut self) {
        self.upkeep_at = self.now.plus_ms(limits::UPKEEP_MS);
        self.stock.look(self.now);
        let seen = self.driver.counters();
        let shard = &self.parts.tally.shard;
        shard.enters.set(seen.enters);
        shard.enter_failed.set(seen.enter_failed);
        shard.completions.set(seen.completions);
        shard.sq_full.set(seen.sq_full);
        shard.cq_overflow.set(seen.cq_overflow);
        shard.no_buffers.set(seen.no_buffers);
        shard.sends_blocked.set(seen.sends_blocked);
        shard.copied_bytes.set(seen.copied_bytes);
        shard.spliced_bytes.set(seen.spliced_bytes);
        shard.spun_in_vain_ns.set(self.spin.vain_ns());
        shard.cpu_ns.set(seen.cpu_ns);
        shard.looked_ns.set(self.now.0);
        shard.starved.set(self.starved.len() as u64);
        self.driver.trim();
        self.trim_at = Some(self.now);
        let pool = self.driver.pool();
        shard.buffers.set(pool.count() as u64);
        shard.spilled_bytes.set(pool.spilled_bytes() as u64);
        shard.buffers_free.set(pool.unused() as u64);
        self.sessions.trim();
        self.evict_rest();
    }

    /// Gives memory of buffers back, some at a time: meanwhile all sessions wait.
    fn give_memory_back(&mut self) {
        if self.trim_at.is_some_and(|at| at <= self.now) {
            let more = self.driver.trim_on();
            self.trim_at = more.then(|| self.now.plus_ms(limits::TRIM_PAUSE_MS));
        }
    }

    fn read_mail(&mut self) {
        while let Ok(order) = self.parts.orders.try_recv() {
            self.stock.look(self.now);
            match order {
                Order::Serve { listener, name, socket } => self.serve(listener, name, socket),
                Order::Release(listener) => self.release(listener),
                Order::Adopt { client, seat } => self.adopt(client, seat),
                Order::Neighbours(neighbours) => self.neighbours = neighbours,
                Order::Evict(to) => self.evict(to.into_iter().collect()),
                Order::Scatter(to) => self.evict(to),
                Order::StayAwake(awake) => self.spin.set(awake),
                Order::Move { session, to, told } => self.move_one(session, to, told.as_deref()),
                Order::Share(share) => self.share = share,
                Order::Keep { sessions, to } => self.keep_only(sessions, &to),
                Order::List { from, slots, to } => self.list(from, slots, &to),
                Order::Weigh(to) => self.weigh(&to),
                Order::Attach(parcel, home) => self.attach(parcel, home),
                Order::EndAll(why) => self.end_all(why),
                Order::Leave => self.leaving = true,
            }
        }
    }

    /// Sees to what follows from a session's first step here.
    fn settle_in(&mut self, key: Key) {
        let ending = self.ending;
        self.with_session(key, |session, step| {
            if let Some(why) = ending {
                session.end(step, why);
            }
        });
    }

    /// Counts and logs a session that has ended.
    fn account(&self, session: &Session, ended: Option<Ended>) {
        session.snapshot().leave(usize::from(session.listener_index()));
        self.parts.load.sub();
        self.parts.tally.shard.sessions.sub(1);
        if let (Some(ended), Some(journal)) = (ended, &self.parts.journal)
            && journal.try_send(ended).is_err()
        {
            self.parts.tally.shard.journal_dropped.add(1);
        }
    }

    fn end_all(&mut self, why: EndReason) {
        self.ending = Some(why);
        self.lose_parked(why);
        for key in self.sessions.keys() {
            self.with_session(key, |session, step| session.end(step, why));
        }
    }
}
