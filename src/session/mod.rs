//! One connection, from its first attempt to reach a backend to its last byte; written once, generic over [`Driver`].
//!
//! A session is [opening] while it looks for a backend: straight-line async code that asks one question at a time and
//! is gone when it has its answer. Then it [relays](relay): two [`Dir`]s moved by completions, no future, nothing on
//! the heap. It can be brought to rest and [carried](parcel) to another driver, shard or process. Then it is ending:
//! told to both ends, it waits until nothing is in flight, and only then are its sockets closed.
//!
//! A session never waits for itself: the shard hands it completions and deadlines and looks afterwards whether it
//! [is at rest](Session::rest).

#![forbid(unsafe_code)]

pub mod dir;
pub mod glance;
pub mod opening;
pub mod parcel;
pub mod relay;
pub mod routes;
pub(crate) mod sabotage;
pub mod spare;
mod story;

use crate::config::{Hop, Listener, OnBackendFail, limits};
use crate::driver::{Completion, Driver, Errno, Key, Op, Side, Socket};
use crate::event::{Arm, EndReason, Ended};
use crate::policy::snapshot::{BackendIndex, Snapshot};
use crate::tally::{RouteTally, ShardTally};
use crate::time::Time;
use dir::{Dir, Watch};
use opening::{Opening, Question, Reply};
use relay::Shape;
use routes::Routes;
use sabotage::Mutation;
use spare::{Reached, Shelf};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use story::Story;

/// What a session needs of its shard to take one step.
pub struct Step<'a, D> {
    /// The session's name to the driver.
    pub key: Key,
    /// The shard's clock: it stands still while the thread is stopped.
    pub now: Time,
    /// The kernel.
    pub driver: &'a mut D,
    /// The shard's counters.
    pub tally: &'a ShardTally,
    /// The counters of the routes its sessions take.
    pub routes: &'a mut Routes,
    /// Directions that wait for a buffer, in the order they began to.
    pub starved: &'a mut VecDeque<(Key, Side)>,
    /// Connections to backends that stand ready.
    pub spares: &'a mut Shelf,
}

/// One client with its backend.
pub struct Session {
    ends: [Option<Socket>; 2],
    /// By the side whose bytes they carry.
    dirs: [Dir; 2],
    stage: Stage,
    snapshot: Arc<Snapshot>,
    route: Option<Arc<RouteTally>>,
    /// Known where sessions are logged, unless it had left before its session began.
    client: Option<Box<SocketAddr>>,
    /// Where its connection to the backend began on this machine: known once it ends, where sessions are logged.
    backend_local: Option<Box<SocketAddr>>,
    id: u64,
    accepted: Time,
    /// When something moved last.
    moved: Time,
    /// When the client's bytes that have no answer yet went to the backend.
    asked: Option<Time>,
    story: Story,
    /// What it did so far, and how much of that was weighed.
    work: u32,
    weighed: u32,
    backend: Option<BackendIndex>,
    /// Index into the snapshot's listeners.
    listener: u16,
    arm: Arm,
    hop: Hop,
    shape: Shape,
    /// While its shard spins, its sockets are read straight: no receive is armed.
    hot: bool,
    /// Its sockets have the options that find a vanished end.
    guarded: bool,
    /// Its deadline may have come nearer: the shard looks, and clears this.
    pub retime: bool,
}

/// Where a session stands.
enum Stage {
    /// It looks for a backend.
    Opening(Box<Opening>),
    /// Bytes move.
    Relaying,
    /// It comes to rest, to be carried elsewhere: what is in flight is finished or cut short, and nothing new begins.
    Settling { since: Time },
    /// Both ends were told; what is in flight is waited for.
    Ending { why: EndReason, since: Time },
}

/// Whether a session is at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Something is in flight, or it has no reason to rest.
    None,
    /// It has ended: it can be [buried](Session::bury).
    Ended,
    /// It is to be carried elsewhere: it can be [packed](Session::pack).
    Settled,
}

/// What a session is born with.
pub struct Birth {
    /// The client's socket.
    pub client: Socket,
    /// The config it lives by.
    pub snapshot: Arc<Snapshot>,
    /// Index into the snapshot's listeners.
    pub listener: u16,
    /// Unique in the process.
    pub id: u64,
}

impl Session {
    /// A session that begins to look for its backend, or one that is `over` before it began.
    pub fn begin<D: Driver>(step: &mut Step<'_, D>, birth: Birth, over: Option<EndReason>) -> Self {
        let (arm, pool) = birth.snapshot.assign(usize::from(birth.listener));
        let over = over.or_else(|| {
            let attached = step.driver.attach(step.key, Side::Client, &birth.client);
            attached.err().map(|_| EndReason::NoDescriptors)
        });
        let logged = birth.snapshot.config.log.session_every > 0;
        let address = logged.then(|| step.driver.client_address(&birth.client).ok().map(Box::new));
        let mut session = Self::unborn(step, birth, arm);
        session.client = address.flatten();
        session.stage = Stage::Opening(Box::new(Opening::new(Arc::clone(&session.snapshot), pool)));
        let Some(why) = over else {
            session.go_on_opening(step, None);
            return session;
        };
        session.end(step, why);
        if let Some(client) = session.ends[Side::Client as usize].take() {
            // The driver does not know it as this session's.
            step.driver.close(None, client);
        }
        session
    }

    /// A session of which nothing is known yet but its birth.
    fn unborn<D: Driver>(step: &Step<'_, D>, birth: Birth, arm: Arm) -> Self {
        let Birth { client, snapshot, listener, id } = birth;
        let hop = snapshot.config.listeners[usize::from(listener)].hop;
        Self {
            ends: [Some(client), None],
            dirs: [Dir::default(), Dir::default()],
            stage: Stage::Relaying,
            snapshot,
            route: None,
            client: None,
            backend_local: None,
            id,
            accepted: step.now,
            moved: step.now,
            asked: None,
            story: Story::default(),
            work: 0,
            weighed: 0,
            backend: None,
            listener,
            arm,
            hop,
            shape: Shape::of(hop, step.driver.counts_credit()),
            guarded: false,
            hot: false,
            retime: true,
        }
    }

    /// Takes a completion that names this session.
    pub fn on<D: Driver>(&mut self, step: &mut Step<'_, D>, completion: &Completion) {
        match *completion {
            Completion::Received { side, what, more, .. } => {
                self.on_received(step, side, what, more)
            }
            Completion::Sent { side, result, .. } => self.on_sent(step, side, result),
            Completion::Connected { result, .. } => self.on_connected(step, result),
            Completion::Polled { side, result, .. } => self.on_polled(step, side, result),
            Completion::Accepted { .. } | Completion::Woken => {}
        }
    }

    /// When it wants to be looked at next. `None`: it has no deadline.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let timeouts = &self.listener().timeouts;
        match &self.stage {
            Stage::Opening(opening) => Some(opening.deadline(timeouts.connect_ms)),
            Stage::Settling { since } => Some(since.plus_ms(limits::SETTLE_MS_MAX)),
            Stage::Ending { since, .. } => Some(since.plus_ms(limits::ENDING_MS_MAX)),
            Stage::Relaying => {
                let after = |from: Time, ms: Option<u32>| ms.map(|ms| from.plus_ms(u64::from(ms)));
                let half = timeouts.half_closed_ms.filter(|_| self.is_half_closed());
                let deaf = self.is_deaf();
                [
                    after(self.accepted, (!self.guarded).then_some(limits::GUARD_AFTER_MS)),
                    after(self.moved, timeouts.idle_ms),
                    after(self.moved, half),
                    after(self.accepted, timeouts.age_ms),
                    after(self.moved, deaf.then_some(limits::WATCH_PAUSED_AFTER_MS)),
                ]
                .into_iter()
                .flatten()
                .min()
            }
        }
    }

    /// Does what is due. May be called early, and does nothing then.
    pub fn on_deadline<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        if self.deadline().is_none_or(|deadline| step.now < deadline) {
            return;
        }
        match &mut self.stage {
            Stage::Opening(opening) => {
                let timeouts = &self.snapshot.config.listeners[usize::from(self.listener)].timeouts;
                if let Some((why, _)) = opening.refused {
                    return self.end(step, why);
                }
                if opening.connect_is_due(step.now, timeouts.connect_ms) {
                    opening.gave_up = Some(step.now);
                    step.driver.cancel(step.key, Op::Connect);
                } else {
                    opening.watched = true;
                    self.listen_early(step);
                }
                self.retime = true;
            }
            Stage::Relaying => self.look(step),
            Stage::Settling { .. } if sabotage::is(Mutation::SettlesForever) => {}
            Stage::Settling { .. } => self.unsettle(step),
            Stage::Ending { since, .. } => {
                *since = step.now;
                self.retime = true;
                step.tally.watchdog.add(1);
                self.cancel_all(step);
            }
        }
    }

    /// Begins to end, unless it is ending already: the first reason holds.
    pub fn end<D: Driver>(&mut self, step: &mut Step<'_, D>, why: EndReason) {
        let opening =
            match std::mem::replace(&mut self.stage, Stage::Ending { why, since: step.now }) {
                Stage::Ending { why, since } => {
                    self.stage = Stage::Ending { why, since };
                    return;
                }
                Stage::Opening(opening) => Some(opening),
                Stage::Relaying | Stage::Settling { .. } => None,
            };
        self.retime = true;
        self.note_local(step);
        if let Some(opening) = opening {
            self.dirs[Side::Backend as usize].connecting = opening.connecting;
        }
        for side in Side::BOTH {
            self.tell(step, side, why);
        }
        self.drop_queues(step);
    }

    /// Whether nothing of it is in flight, and what that means for it.
    #[must_use]
    pub fn rest(&self) -> Rest {
        let rest = match self.stage {
            Stage::Opening(_) | Stage::Relaying => return Rest::None,
            Stage::Settling { .. } => Rest::Settled,
            Stage::Ending { .. } => Rest::Ended,
        };
        let in_flight = !self.dirs.iter().all(Dir::at_rest);
        if in_flight && !sabotage::is(Mutation::ClosedInFlight) { Rest::None } else { rest }
    }

    /// Whether it comes to rest, to be carried elsewhere.
    #[must_use]
    pub const fn is_settling(&self) -> bool {
        matches!(self.stage, Stage::Settling { .. })
    }

    /// Unique in the process.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Closes its sockets and counts it. The journal's record of it, where sessions are logged.
    pub fn bury<D: Driver>(&mut self, step: &mut Step<'_, D>) -> Option<Ended> {
        for side in Side::BOTH {
            if let Some(socket) = self.ends[side as usize].take() {
                step.driver.close(Some((step.key, side)), socket);
            }
        }
        let Stage::Ending { why, .. } = &self.stage else { return None };
        let why = *why;
        let duration_ns = step.now.since_ns(self.accepted);
        let route = self.route.take().unwrap_or_else(|| {
            let route = step.routes.of(&self.snapshot, self.listener, self.arm, self.backend);
            route.opened.add(1);
            route.open.add(1);
            route
        });
        route.open.sub(1);
        route.finished_by_backend.add(u64::from(self.story.is_by_backend(why)));
        route.ended[why as usize].add(1);
        route.duration.record(duration_ns);
        self.line(why, duration_ns)
    }

    /// Resets both ends at once, whatever is in flight, and counts it: it has no driver, or that is about to go. One
    /// that was ending keeps its reason.
    pub fn abandon<D: Driver>(&mut self, step: &mut Step<'_, D>, why: EndReason) -> Option<Ended> {
        self.note_local(step);
        for socket in self.ends.iter_mut().filter_map(Option::take) {
            step.driver.abort(&socket);
            step.driver.close(None, socket);
        }
        self.stage = match self.stage {
            // Its ends were told of that.
            Stage::Ending { why, since } => Stage::Ending { why, since },
            _ => Stage::Ending { why, since: step.now },
        };
        self.bury(step)
    }

    /// The config it lives by.
    #[must_use]
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// How many bytes each direction holds, by its own count and by its buffers.
    #[cfg(test)]
    pub(crate) fn held(&self, pool: &crate::driver::pool::Pool) -> [(u64, u64); 2] {
        self.dirs.each_ref().map(|dir| dir.held(pool))
    }

    /// Index into its snapshot's listeners.
    #[must_use]
    pub const fn listener_index(&self) -> u16 {
        self.listener
    }

    fn listener(&self) -> &Listener {
        &self.snapshot.config.listeners[usize::from(self.listener)]
    }

    fn is_deaf(&self) -> bool {
        Side::BOTH.into_iter().any(|side| self.is_deaf_to(side))
            && !sabotage::is(Mutation::DeafWhilePaused)
    }

    /// Whether nothing would hear that the connection of `side` has gone.
    fn is_deaf_to(&self, side: Side) -> bool {
        self.dirs[side as usize].is_deaf(self.shape == Shape::Linked)
    }

    /// Does what is due while it relays.
    fn look<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        self.retime = true;
        if let Some(why) = self.why_due(step.now) {
            return self.end(step, why);
        }
        if !self.guarded && step.now >= self.accepted.plus_ms(limits::GUARD_AFTER_MS.into()) {
            self.guard(step);
        }
        for side in Side::BOTH {
            if self.is_deaf_to(side) {
                self.watch(step, side);
            }
        }
    }

    /// Sets the options of the sockets that a short session has no use for. The client's has them from its listening
    /// socket, but for when it begins to probe.
    fn guard<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        self.guarded = true;
        for socket in self.ends.iter().flatten() {
            // It fails where the connection is gone, which a receive is about to say.
            let _ = step.driver.guard(socket, &self.listener().tcp);
        }
    }

    /// Which of the relay's limits has run out, if any.
    fn why_due(&self, now: Time) -> Option<EndReason> {
        let timeouts = &self.listener().timeouts;
        let due =
            |from: Time, ms: Option<u32>| ms.is_some_and(|ms| now >= from.plus_ms(u64::from(ms)));
        let half = timeouts.half_closed_ms.filter(|_| self.is_half_closed());
        if due(self.accepted, timeouts.age_ms) {
            Some(EndReason::Age)
        } else if due(self.moved, timeouts.idle_ms) {
            Some(EndReason::Idle)
        } else {
            due(self.moved, half).then_some(EndReason::HalfClosed)
        }
    }

    /// Polls the opening, and does what it asks for.
    fn go_on_opening<D: Driver>(&mut self, step: &mut Step<'_, D>, reply: Option<Reply>) {
        let mut reply = reply;
        loop {
            let Stage::Opening(opening) = &mut self.stage else { return };
            match opening.poll(reply.take()) {
                Question::Connect(backend) => match self.connect(step, backend) {
                    Ok(Reached::Soon) => return,
                    Ok(Reached::Now) => reply = Some(Reply::Connected),
                    Err(e) => reply = Some(Reply::Failed(e)),
                },
                Question::Opened => return self.relay(step),
                Question::Failed(why) => {
                    let at = self.accepted.plus_ms(limits::REFUSE_AFTER_MS);
                    opening.refused = Some((why, at));
                    self.retime = true;
                    return;
                }
            }
        }
    }

    fn on_connected<D: Driver>(&mut self, step: &mut Step<'_, D>, result: Result<(), Errno>) {
        let Stage::Opening(opening) = &mut self.stage else {
            self.dirs[Side::Backend as usize].connecting = false;
            return self.give_up_backend(step);
        };
        opening.connecting = false;
        let took_ns = step.now.since_ns(opening.began);
        let result = match result {
            _ if opening.gave_up.is_some() => Err(Errno::TIMED_OUT),
            // Nobody listens there.
            Ok(()) if self.is_with_itself(step) => Err(Errno::REFUSED),
            result => result,
        };
        let route = step.routes.of(&self.snapshot, self.listener, self.arm, self.backend);
        match result {
            Ok(()) => {
                route.connect.record(took_ns);
                self.story.connect_ns = took_ns.max(1);
                self.go_on_opening(step, Some(Reply::Connected));
            }
            Err(e) => {
                route.connect_failed.add(1);
                route.unreached.set(opening::why(e) as u64 + 1);
                self.give_up_backend(step);
                if let Some(socket) = self.ends[Side::Backend as usize].take() {
                    step.driver.close(Some((step.key, Side::Backend)), socket);
                }
                if matches!(&self.stage, Stage::Opening(o) if o.attempts_left()) {
                    step.tally.connect_retries.add(1);
                }
                self.go_on_opening(step, Some(Reply::Failed(e)));
            }
        }
    }

    /// Whether what should be the connection to its backend has only reached itself.
    fn is_with_itself<D: Driver>(&self, step: &Step<'_, D>) -> bool {
        let (Some(socket), Some(at)) = (&self.ends[Side::Backend as usize], self.backend) else {
            return false;
        };
        step.driver.is_its_own_end(socket, self.snapshot.backend(at).1.address)
    }

    /// Resets a connection that nobody waits for any more. A cancelled connect may have succeeded all the same, and
    /// closed in order it would look to the backend like a client that came and had nothing to say.
    fn give_up_backend<D: Driver>(&self, step: &mut Step<'_, D>) {
        if let Some(socket) = &self.ends[Side::Backend as usize] {
            step.driver.abort(socket);
        }
    }

    fn on_polled<D: Driver>(
        &mut self,
        step: &mut Step<'_, D>,
        side: Side,
        result: Result<(), Errno>,
    ) {
        if self.dirs[side as usize].polling {
            return self.carry(step, side);
        }
        self.dirs[side as usize].watch = Watch::Off;
        self.retime = true;
        match self.stage {
            Stage::Opening(_) if result.is_ok() => self.end(step, EndReason::ClientLeft),
            // What is received from is heard by that.
            Stage::Relaying if result.is_ok() && self.is_deaf_to(side) => self.on_gone(step, side),
            Stage::Relaying => self.arm(step, side),
            Stage::Opening(_) | Stage::Settling { .. } | Stage::Ending { .. } => {}
        }
    }

    fn relay<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        self.stage = Stage::Relaying;
        self.moved = step.now;
        self.retime = true;
        self.story.opened_ns = step.now.since_ns(self.accepted).max(1);
        let route = step.routes.of(&self.snapshot, self.listener, self.arm, self.backend);
        route.opened.add(1);
        route.open.add(1);
        self.route = Some(route);
        self.start(step);
    }

    /// Tells one end that the session is over: by a reset where bytes for it are lost or it must not mistake this for
    /// an orderly end, else by the end of its stream.
    fn tell<D: Driver>(&self, step: &mut Step<'_, D>, side: Side, why: EndReason) {
        let Some(socket) = &self.ends[side as usize] else { return };
        let undelivered = !self.dirs[side.other() as usize].is_empty();
        let connecting = side == Side::Backend && self.dirs[side as usize].connecting;
        if connecting {
            step.driver.cancel(step.key, Op::Connect);
        } else if undelivered || is_reset(why, self.listener().on_backend_fail) {
            step.driver.abort(socket);
        } else {
            if !self.dirs[side.other() as usize].finished {
                // It fails where the connection is gone already, and then there is nobody to tell.
                let _ = step.driver.finish(socket);
            }
            if self.dirs[side as usize].armed {
                step.driver.cancel(step.key, Op::Recv(side));
            }
            let dir = &self.dirs[side as usize];
            if dir.polling || dir.watch == Watch::On {
                step.driver.cancel(step.key, Op::Poll(side));
            }
        }
    }

    /// Cancels whatever is in flight, once more.
    fn cancel_all<D: Driver>(&self, step: &mut Step<'_, D>) {
        for side in Side::BOTH {
            let dir = &self.dirs[side as usize];
            if let Some(socket) = &self.ends[side as usize] {
                step.driver.abort(socket);
            }
            let in_flight = [
                (dir.armed, Op::Recv(side)),
                (dir.sending, Op::Send(side.other())),
                (dir.connecting, Op::Connect),
                (dir.polling || dir.watch == Watch::On, Op::Poll(side)),
            ];
            for (_, op) in in_flight.into_iter().filter(|(is, _)| *is) {
                step.driver.cancel(step.key, op);
            }
        }
    }
}

/// Whether an end for this reason is shown as a reset.
fn is_reset(why: EndReason, on_backend_fail: OnBackendFail) -> bool {
    use EndReason as E;
    match why {
        _ if sabotage::is(Mutation::ResetAsEnd) => false,
        E::Finished | E::Idle | E::HalfClosed | E::Age | E::Drained | E::Stopped => false,
        E::ClientReset | E::BackendReset | E::ClientVanished | E::BackendVanished => true,
        E::ClientLeft | E::Full | E::ShardFailed => true,
        E::ConnectRefused | E::ConnectTimeout | E::ConnectUnreachable => {
            matches!(on_backend_fail, OnBackendFail::Reset)
        }
        E::NoPorts | E::NoDescriptors | E::NoBackend => {
            matches!(on_backend_fail, OnBackendFail::Reset)
        }
    }
}
