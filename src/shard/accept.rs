//! How clients come in: listening sockets, admission, and the first step of a session.

use super::Shard;
use super::mailbox::{Order, Report};
use super::placement;
use crate::config::{Name, limits};
use crate::driver::{Driver, Errno, ListenerId, Socket};
use crate::policy::snapshot::Snapshot;
use crate::session::{Birth, Session};
use crate::time::Time;
use std::sync::Arc;

/// A listening socket that this shard serves.
pub(super) struct Gate {
    listener: ListenerId,
    name: Name,
    socket: Socket,
    state: State,
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

impl<D: Driver> Shard<D> {
    pub(super) fn serve(&mut self, listener: ListenerId, name: Name, socket: Socket) {
        self.driver.accept(listener, &socket);
        self.gates.push(Gate { listener, name, socket, state: State::Open });
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
        let name = Arc::clone(&self.gates[at].name);
        if !more {
            self.accept_ended(at, result.as_ref().err().copied());
        }
        match result {
            Ok(client) => {
                self.parts.tally.shard.accepted.add(1);
                self.place(client, &name);
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
            // Asking again at once would fail again at once, unless the descriptors are those of clients just refused.
            Some(e) if e.is_exhaustion() => {
                let just_refused = self.refused_at == Some(self.now);
                let rest_ms =
                    if just_refused { limits::REFUSED_REST_MS } else { limits::ACCEPT_REST_MS };
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

    /// Gives a new client to the shard that has least to do.
    fn place(&mut self, client: Socket, name: &Name) {
        let own = self.parts.load.get();
        let neighbours = Arc::clone(&self.neighbours);
        let Some(other) = placement::elsewhere(own, &neighbours) else {
            self.parts.load.add();
            return self.adopt(client, name);
        };
        other.load.add();
        let adopt = Order::Adopt { client, name: Arc::clone(name) };
        match other.mail.send(adopt) {
            Ok(()) => self.parts.tally.shard.placed_elsewhere.add(1),
            // It has just gone, and gives the order back.
            Err(Order::Adopt { client, name }) => {
                other.load.sub();
                self.parts.load.add();
                self.adopt(client, &name);
            }
            Err(_) => {}
        }
    }

    /// Begins the session of a client that counts as this shard's load already.
    pub(super) fn adopt(&mut self, client: Socket, name: &str) {
        let snapshot: Arc<Snapshot> = self.parts.snapshot.load_full();
        let admitted = snapshot.listener(name).map(|(at, _)| at).filter(|&at| snapshot.enter(at));
        let key = admitted.and_then(|at| Some((at, self.sessions.reserve()?)));
        let Some((at, key)) = key else {
            // Refused: by a reset, so that nobody takes it for a session.
            self.parts.tally.shard.refused_full.add(1);
            self.refused_at = Some(self.now);
            self.parts.load.sub();
            self.driver.abort(&client);
            self.driver.close(None, client);
            return;
        };
        let id = self.next_id;
        self.next_id += 1;
        self.parts.tally.shard.sessions.add(1);
        let listener = u16::try_from(at).expect("a config has at most 256 listeners");
        let session =
            Session::begin(&mut self.step_of(key), Birth { client, snapshot, listener, id });
        self.sessions.put(key, session);
        self.with_session(key, |_, _| {});
    }
}
