//! How clients come in: the listening sockets of a shard, which are armed, rest, and are let go.

use super::Shard;
use super::admission::CameIn;
use super::mailbox::Report;
use crate::config::{Name, limits};
use crate::driver::{Driver, Errno, ListenerId, Socket};
use crate::policy::snapshot::Snapshot;
use crate::time::Time;
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
    /// It has a reason to rest until then, and its last completion is waited for.
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
        match result {
            Err(error) => self.accept_failed(at, error, more),
            Ok(client) => {
                self.parts.tally.shard.accepted.add(1);
                self.place(client, came_in);
                self.rest_while_clients_stand(at, more);
            }
        }
        if !more {
            self.accept_ended(at);
        }
    }

    /// Where clients stand already, those who come next wait in the kernel's queue until none does.
    fn rest_while_clients_stand(&mut self, at: usize, more: bool) {
        let gate = &mut self.gates[at];
        if gate.state == State::Open && self.arrivals.stand() {
            gate.state = State::Tired(self.now);
            if more {
                self.driver.stop_accepting(gate.listener);
            }
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
        if self.arrivals.stand() {
            return;
        }
        for gate in &mut self.gates {
            if matches!(gate.state, State::Resting(until) if until <= self.now) {
                gate.state = State::Open;
                self.driver.accept(gate.listener, &gate.socket);
            }
        }
    }

    /// What a client of this gate lives by. `None`: no config ever had it.
    fn config_of(&mut self, at: usize) -> Option<CameIn> {
        let gate = &mut self.gates[at];
        let now = self.parts.snapshot.load();
        let found = now.listener(&gate.name);
        if found.is_some() && now.number != gate.snapshot.number {
            gate.snapshot = Arc::clone(&now);
        }
        let index = found.or_else(|| gate.snapshot.listener(&gate.name))?.0;
        Some(CameIn { snapshot: Arc::clone(&gate.snapshot), listener: u16::try_from(index).ok()? })
    }
}
