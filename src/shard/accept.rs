//! How clients come in: listening sockets, admission, and the first step of a session.

use super::Shard;
use super::mailbox::{Order, Report};
use super::placement;
use crate::config::{Name, limits};
use crate::driver::{Driver, Errno, ListenerId, Socket};
use crate::event::{EndReason, session_id};
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// An accept is in flight.
    Open,
    /// Accept failed for want of descriptors or memory: clients wait in the kernel's queue until then.
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

/// Clients that have come, with the config they live by and the listener's index in it. Few begin in a turn, so that
/// those who have sessions do not wait for all of them.
pub(super) type Arrivals = VecDeque<(Socket, Arc<Snapshot>, u16)>;

impl<D: Driver> Shard<D> {
    pub(super) fn serve(&mut self, listener: ListenerId, name: Name, socket: Socket) {
        self.driver.accept(listener, &socket);
        let snapshot = self.parts.snapshot.load_full();
        self.gates.push(Gate { listener, name, socket, state: State::Open, snapshot });
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
        if !more {
            self.accept_ended(at, result.as_ref().err().copied());
        }
        match result {
            Ok(client) => {
                self.parts.tally.shard.accepted.add(1);
                self.place(client, came_in);
            }
            Err(Errno::CANCELED) => {}
            Err(e) if e.is_exhaustion() => self.parts.tally.shard.accept_failed_exhausted.add(1),
            Err(_) => self.parts.tally.shard.accept_failed_other.add(1),
        }
    }

    /// Arms an accept again that is over, lets it rest, or lets the listener go.
    fn accept_ended(&mut self, at: usize, error: Option<Errno>) {
        let gate = &mut self.gates[at];
        if gate.state == State::Closing {
            return self.forget_gate(at);
        }
        match error {
            // Asking again at once would fail again at once, unless clients are being refused.
            Some(e) if e.is_exhaustion() => {
                let refuses = self.refused_at == Some(self.now) || !self.arrivals.is_empty();
                let freed = self.give_up_spares() || refuses;
                let gate = &mut self.gates[at];
                let rest_ms = if freed { limits::REFUSED_REST_MS } else { limits::ACCEPT_REST_MS };
                gate.state = State::Resting(self.now.plus_ms(rest_ms));
                (self.parts.report)(Report::AcceptFailed(gate.listener, e));
            }
            _ => self.driver.accept(gate.listener, &gate.socket),
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
            State::Open | State::Closing => None,
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

    /// Gives a new client to the shard that has least to do.
    fn place(&mut self, client: Socket, came_in: Option<(Arc<Snapshot>, u16)>) {
        let Some((snapshot, listener)) = came_in else { return self.refuse(client) };
        let Err((client, snapshot)) = self.hand_over(client, snapshot, listener) else { return };
        let own = self.parts.load.get();
        let neighbours = Arc::clone(&self.neighbours);
        let other = placement::elsewhere(own, &neighbours).filter(|other| other.load.promise());
        let Some(other) = other else {
            self.parts.load.add();
            return self.adopt(client, snapshot, listener);
        };
        match other.mail.send(Order::Adopt { client, snapshot, listener }) {
            Ok(()) => self.parts.tally.shard.placed_elsewhere.add(1),
            // It has just gone, and gives the order back.
            Err(Order::Adopt { client, snapshot, listener }) => {
                other.load.sub();
                self.parts.load.add();
                self.adopt(client, snapshot, listener);
            }
            Err(_) => {}
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
    /// many come.
    pub(super) fn adopt(&mut self, client: Socket, snapshot: Arc<Snapshot>, listener: u16) {
        self.arrivals.push_back((client, snapshot, listener));
    }

    /// Begins sessions of clients that have come. Those that have left already cost no backend.
    pub(super) fn admit(&mut self) {
        let mut begun = 0;
        for _ in 0..limits::ARRIVALS_PER_TURN_MAX {
            if begun == limits::BEGINNINGS_PER_TURN_MAX {
                break;
            }
            let Some((client, snapshot, listener)) = self.arrivals.pop_front() else { break };
            let left = self.driver.take_error(&client).is_err();
            begun += u32::from(!left);
            self.begin(client, snapshot, listener, left.then_some(EndReason::ClientLeft));
        }
    }

    /// Turns away who waits for a turn that will not come.
    pub(super) fn refuse_waiting(&mut self) {
        for (client, ..) in std::mem::take(&mut self.arrivals) {
            self.parts.load.sub();
            self.refuse(client);
        }
    }

    /// Begins the session of a client, which ends at once where there is a reason.
    fn begin(
        &mut self,
        client: Socket,
        snapshot: Arc<Snapshot>,
        listener: u16,
        over: Option<EndReason>,
    ) {
        let key = snapshot.enter(usize::from(listener)).then(|| self.sessions.reserve());
        let Some(Some(key)) = key else {
            if key.is_some() {
                snapshot.leave(usize::from(listener));
            }
            self.parts.load.sub();
            return self.refuse(client);
        };
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
