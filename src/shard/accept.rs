//! How clients come in: listening sockets, admission, and the first step of a session.

use super::Shard;
use super::mailbox::{Order, Report};
use super::placement;
use crate::config::{Name, limits};
use crate::driver::{Driver, Errno, ListenerId, Socket};
use crate::event::{EndReason, session_id};
use crate::policy::seat::Seat;
use crate::policy::snapshot::Snapshot;
use crate::session::{Birth, Session};
use crate::time::Time;
use std::collections::VecDeque;
use std::sync::Arc;

/// A listening socket that this shard serves.
pub(super) struct Gate {
    listener: ListenerId,
    name: Name,
    socket: Socket,
    state: State,
    /// The last config that had this listener: whoever comes in while it is being taken away lives by that.
    snapshot: Arc<Snapshot>,
    /// When it was last said that it cannot accept.
    said: Option<Time>,
    /// How often it has rested since.
    unsaid: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// An accept is in flight.
    Open,
    /// Accept failed for what will last a while, and its last completion is waited for: it rests until then.
    Tired(Time),
    /// The same, and nothing is in flight: clients wait in the kernel's queue until then.
    Resting(Time),
    /// It was released, and its last completion is waited for.
    Closing,
}

impl Gate {
    /// Whether clients are let in here, now or after a rest.
    pub(super) fn is_served(&self) -> bool {
        self.state != State::Closing
    }
}

/// Clients that have come and wait for their sessions to begin, few in a turn, so that those who have sessions do not
/// wait for all of them. Each has its place already: there are no more than `sessions_max`, and so no more descriptors
/// than were reckoned with.
#[derive(Default)]
pub(super) struct Arrivals {
    waiting: VecDeque<(Socket, Seat)>,
    /// How many were looked at in this turn.
    looked: u32,
    /// More waited than may begin in a turn, and some of them still do.
    crowded: bool,
}

impl Arrivals {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Who has waited longest, if one more may be looked at in this turn.
    fn look(&mut self) -> Option<&(Socket, Seat)> {
        let first = self.waiting.front().filter(|_| self.looked < limits::ARRIVALS_PER_TURN_MAX)?;
        self.looked += 1;
        Some(first)
    }
}

impl<D: Driver> Shard<D> {
    pub(super) fn serve(&mut self, listener: ListenerId, name: Name, socket: Socket) {
        self.driver.accept(listener, &socket);
        let snapshot = self.parts.snapshot.load_full();
        let (state, said, unsaid) = (State::Open, None, 0);
        self.gates.push(Gate { listener, name, socket, state, snapshot, said, unsaid });
    }

    pub(super) fn release(&mut self, listener: ListenerId) {
        let Some(at) = self.gates.iter().position(|gate| gate.listener == listener) else {
            (self.parts.report)(Report::Released(listener));
            return;
        };
        match self.gates[at].state {
            State::Open => {
                self.gates[at].state = State::Closing;
                self.driver.stop_accepting(listener);
            }
            State::Tired(_) => self.gates[at].state = State::Closing,
            State::Resting(_) => self.forget_gate(at),
            State::Closing => {}
        }
    }

    pub(super) fn on_accepted(
        &mut self,
        listener: ListenerId,
        result: Result<Socket, Errno>,
        more: bool,
    ) {
        let Some(at) = self.gates.iter().position(|gate| gate.listener == listener) else {
            if let Ok(client) = result {
                self.driver.abort(&client);
                self.driver.close(None, client);
            }
            return;
        };
        let came_in = self.config_of(at);
        if let Err(error) = result {
            self.accept_failed(at, error, more);
        }
        if !more {
            self.accept_ended(at);
        }
        if let Ok(client) = result {
            self.parts.tally.shard.accepted.add(1);
            self.place(client, came_in);
        }
    }

    /// Counts a failure. Where asking again at once would fail again at once, the listener rests.
    fn accept_failed(&mut self, at: usize, error: Errno, more: bool) {
        let shard = &self.parts.tally.shard;
        match error {
            Errno::CANCELED => return,
            e if e.is_exhaustion() => shard.accept_failed_exhausted.add(1),
            e => {
                shard.accept_failed_other.add(1);
                if e.is_of_one_client() {
                    return;
                }
            }
        }
        if self.gates[at].state != State::Open {
            return;
        }
        // Those who are being refused give their descriptors back at once.
        let refuses = self.refused_at == Some(self.now) || !self.arrivals.is_empty();
        let freed = error.is_exhaustion() && (self.give_up_spares() || refuses);
        let rest_ms = if freed { limits::REFUSED_REST_MS } else { limits::ACCEPT_REST_MS };
        let gate = &mut self.gates[at];
        gate.state = State::Tired(self.now.plus_ms(rest_ms));
        if more {
            self.driver.stop_accepting(gate.listener);
        }
        if gate.said.is_some_and(|at| self.now < at.plus_ms(limits::ACCEPT_SAID_MS)) {
            gate.unsaid += 1;
            return;
        }
        gate.said = Some(self.now);
        let (listener, unsaid) = (gate.listener, std::mem::take(&mut gate.unsaid));
        (self.parts.report)(Report::AcceptFailed { listener, error, rest_ms, unsaid });
    }

    /// Arms an accept again that is over, lets it rest, or lets the listener go.
    fn accept_ended(&mut self, at: usize) {
        let gate = &mut self.gates[at];
        match gate.state {
            State::Closing => self.forget_gate(at),
            State::Tired(until) => gate.state = State::Resting(until),
            State::Open | State::Resting(_) => self.driver.accept(gate.listener, &gate.socket),
        }
    }

    fn forget_gate(&mut self, at: usize) {
        let gate = self.gates.swap_remove(at);
        (self.parts.report)(Report::Released(gate.listener));
    }

    /// When the first resting listener is to be tried again.
    pub(super) fn next_gate(&self) -> Option<Time> {
        let rests = |gate: &Gate| match gate.state {
            State::Resting(until) => Some(until),
            State::Open | State::Tired(_) | State::Closing => None,
        };
        self.gates.iter().filter_map(rests).min()
    }

    pub(super) fn open_rested_gates(&mut self) {
        for gate in &mut self.gates {
            if matches!(gate.state, State::Resting(until) if until <= self.now) {
                gate.state = State::Open;
                self.driver.accept(gate.listener, &gate.socket);
            }
        }
    }

    /// The config a client of this gate lives by, and the listener's index in it. `None`: no config ever had it.
    fn config_of(&mut self, at: usize) -> Option<(Arc<Snapshot>, u16)> {
        let gate = &mut self.gates[at];
        let now = self.parts.snapshot.load();
        let found = now.listener(&gate.name);
        if found.is_some() && now.number != gate.snapshot.number {
            gate.snapshot = Arc::clone(&now);
        }
        let index = found.or_else(|| gate.snapshot.listener(&gate.name))?.0;
        Some((Arc::clone(&gate.snapshot), u16::try_from(index).ok()?))
    }

    /// Gives a new client to the shard that has least to do, if there is a place for it.
    fn place(&mut self, client: Socket, came_in: Option<(Arc<Snapshot>, u16)>) {
        let seat = came_in.and_then(|(snapshot, listener)| self.seat(&snapshot, listener));
        let Some(seat) = seat else { return self.refuse(client) };
        let Err((client, seat)) = self.hand_over(client, seat) else { return };
        let own = self.parts.load.get();
        let neighbours = Arc::clone(&self.neighbours);
        let other = placement::elsewhere(own, &neighbours).filter(|other| other.load.promise());
        let Some(other) = other else {
            self.parts.load.add();
            return self.adopt(client, Some(seat));
        };
        match other.mail.send(Order::Adopt { client, seat: Some(seat) }) {
            Ok(()) => self.parts.tally.shard.placed_elsewhere.add(1),
            // It has just gone, and gives the order back.
            Err(Order::Adopt { client, seat }) => {
                other.load.sub();
                self.parts.load.add();
                self.adopt(client, seat);
            }
            Err(_) => {}
        }
    }

    /// A place for one more session: where all are taken, one of a client that has left before its turn came.
    fn seat(&mut self, snapshot: &Arc<Snapshot>, listener: u16) -> Option<Seat> {
        loop {
            let seat = Seat::take(snapshot, listener);
            if seat.is_some() {
                return seat;
            }
            let (first, _) = self.arrivals.look()?;
            if self.driver.take_error(first).is_ok() {
                return None;
            }
            let (client, seat) = self.arrivals.waiting.pop_front()?;
            self.begin(client, seat, Some(EndReason::ClientLeft));
        }
    }

    /// Turns a client away: by a reset, so that nobody takes it for a session.
    pub(super) fn refuse(&mut self, client: Socket) {
        self.parts.tally.shard.refused_full.add(1);
        self.refused_at = Some(self.now);
        self.driver.abort(&client);
        self.driver.close(None, client);
    }

    /// Takes a client in that counts as this shard's load already: at the end of the turn, or of a later one where
    /// many come. Without a place it is turned away.
    pub(super) fn adopt(&mut self, client: Socket, seat: Option<Seat>) {
        if let Some(seat) = seat {
            return self.arrivals.waiting.push_back((client, seat));
        }
        self.parts.load.sub();
        self.refuse(client);
    }

    /// Begins sessions of clients that have come. In a crowd those that have left already cost no backend; else nobody
    /// is asked, for that is a call into the kernel, and a receive says it soon enough.
    pub(super) fn admit(&mut self) {
        let waiting = self.arrivals.waiting.len();
        let goes_on = self.arrivals.crowded && waiting > 0;
        let crowded = goes_on || waiting > limits::BEGINNINGS_PER_TURN_MAX as usize;
        self.arrivals.crowded = crowded;
        let mut begun = 0;
        while begun < limits::BEGINNINGS_PER_TURN_MAX {
            let Some((first, _)) = self.arrivals.look() else { break };
            let left = crowded && self.driver.take_error(first).is_err();
            let Some((client, seat)) = self.arrivals.waiting.pop_front() else { break };
            begun += u32::from(!left);
            self.begin(client, seat, left.then_some(EndReason::ClientLeft));
        }
        self.arrivals.looked = 0;
    }

    /// Turns away who waits for a turn that will not come.
    pub(super) fn refuse_waiting(&mut self) {
        for (client, _) in std::mem::take(&mut self.arrivals.waiting) {
            self.parts.load.sub();
            self.refuse(client);
        }
    }

    /// Begins the session of a client, which ends at once where there is a reason.
    fn begin(&mut self, client: Socket, seat: Seat, over: Option<EndReason>) {
        let Some(key) = self.sessions.reserve() else {
            self.parts.load.sub();
            return self.refuse(client);
        };
        let (snapshot, listener) = seat.into_session();
        let next_id = &self.parts.tally.shard.next_id;
        let id = session_id(self.parts.id, next_id.get());
        next_id.add(1);
        self.parts.tally.shard.sessions.add(1);
        self.parts.tally.shard.begun.add(1);
        let birth = Birth { client, snapshot, listener, id };
        let session = Session::begin(&mut self.step_of(key), birth, over);
        self.sessions.put(key, session);
        self.settle_in(key);
    }
}
