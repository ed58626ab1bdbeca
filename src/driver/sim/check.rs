//! What the simulated driver checks of its caller, and what it finds left over.

use super::op::{Op, Verb};
use super::trace::Note;
use super::{Completion, Sim};
use crate::driver::pool::BufferId;
use crate::driver::{Key, Received, Side, Socket};

impl Sim {
    /// What was not given back, one line each: sockets that are open and not another shard's, operations in flight,
    /// accepts, buffers.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        let world = self.world.borrow();
        let mut left = Vec::new();
        for number in world.open_sockets().into_iter().filter(|it| !self.closing.contains(it)) {
            let end = world.end(number);
            match end.owner {
                Some(owner) if owner.shard != self.shard => continue,
                Some(owner) => left.push(format!("socket {number} is open: {owner:?}")),
                None => left.push(format!("socket {number} is open and not attached")),
            }
            left.extend(end.in_flight().map(|verb| format!("socket {number}: {verb:?} in flight")));
        }
        left.extend(self.accepting.keys().map(|listener| format!("{listener:?} is armed")));
        let out = self.pool.count() - self.pool.free();
        if out > 0 {
            left.push(format!("{out} buffers are out"));
        }
        if self.pool.spilled_bytes() > 0 {
            left.push(format!("{} spilled bytes are out", self.pool.spilled_bytes()));
        }
        left
    }

    /// Notes that something is asked about an open socket; returns its number.
    pub(super) fn asked(&self, what: &'static str, socket: &Socket) -> usize {
        let mut world = self.world.borrow_mut();
        world.running = self.shard;
        let number = usize::try_from(socket.0).unwrap_or(usize::MAX);
        world.note(Note::Asked(what, number));
        world.end(number);
        number
    }

    /// The same, of a socket that has to be `side` of `key`.
    pub(super) fn owned(&self, what: &'static str, key: Key, side: Side, socket: &Socket) -> usize {
        let number = self.asked(what, socket);
        let world = self.world.borrow();
        let owner = world.end(number).owner;
        if owner.is_none_or(|it| it.shard != self.shard || it.key != key || it.side != side) {
            world.broken(&format!("{what} of {key:?} {side:?} on socket {number}, of {owner:?}"));
        }
        number
    }

    pub(super) fn check_attach(&self, key: Key, side: Side, number: usize) {
        let world = self.world.borrow();
        if let Some(owner) = world.end(number).owner {
            world.broken(&format!("socket {number} is attached twice, it is {owner:?}"));
        }
        if self.attached.contains_key(&(key.slot, side as u8)) {
            world.broken(&format!("{key:?} {side:?} has a socket already"));
        }
        let other = self.attached.get(&(key.slot, side.other() as u8));
        let other = other.and_then(|number| world.end(*number).owner);
        if other.is_some_and(|other| other.key != key) {
            world.broken(&format!("{key:?} is attached beside {other:?}"));
        }
    }

    /// Nothing may be in flight on a socket that is given up, as its caller sees it.
    pub(super) fn check_at_rest(&self, what: &str, number: usize) {
        let world = self.world.borrow();
        let in_flight: Vec<Verb> = world.end(number).in_flight().collect();
        if !in_flight.is_empty() {
            world.broken(&format!("socket {number} is {what} with {in_flight:?} in flight"));
        }
    }

    /// A buffer that a send reads may not be given back.
    pub(super) fn check_buffers(&self) {
        for number in &self.lent {
            if !self.pool.is_out(BufferId(*number)) {
                let world = self.world.borrow();
                world.broken(&format!("buffer {number} was given back during its send"));
            }
        }
    }

    /// Begins a send, after a look at its buffer.
    pub(super) fn begin_send(&mut self, number: usize, buffer: BufferId, then: Option<usize>) {
        let mut world = self.world.borrow_mut();
        if !self.pool.is_out(buffer) || self.pool.filled(buffer) == 0 {
            world.broken(&format!("buffer {} is sent, empty or nobody's", buffer.number()));
        }
        if !self.lent.insert(buffer.number()) {
            world.broken(&format!("buffer {} is sent twice at once", buffer.number()));
        }
        if world.conn_at(number).is_some_and(|conn| conn.near.finished) {
            world.broken(&format!("a send to socket {number}, which was finished"));
        }
        let total = self.pool.filled(buffer);
        let op = Op::Send { buffer, total, taken: 0, then, blocked: false };
        world.begin(self.shard, number, Verb::Send, op);
    }

    /// Closes a socket of a shard that has failed.
    pub(super) fn close_failed(&mut self, socket: &Socket) {
        let number = self.asked("close, having failed", socket);
        self.attached.retain(|_, attached| *attached != number);
        self.said.retain(|(_, last)| last.is_none_or(|(said, _)| said != number));
        self.world.borrow_mut().close_socket(number);
    }

    /// A side of a session is this driver's no more.
    pub(super) fn forget(&mut self, key: Key, side: Side, number: usize) {
        self.attached.remove(&(key.slot, side as u8));
        self.world.borrow_mut().end_mut(number).owner = None;
        if !self.attached.contains_key(&(key.slot, side.other() as u8)) {
            self.over.insert(key.slot, key);
        }
    }

    /// Two connections that are the sides of one session are partners: what one far end writes the other may read.
    pub(super) fn pair(&self, key: Key) {
        let mut world = self.world.borrow_mut();
        let conn = |side: Side| {
            let number = self.attached.get(&(key.slot, side as u8))?;
            world.end(*number).conn
        };
        if let (Some(client), Some(backend)) = (conn(Side::Client), conn(Side::Backend)) {
            world.conns[client.index()].partner = Some(backend);
            world.conns[backend.index()].partner = Some(client);
        }
    }
}

/// What the trace says of a completion.
pub(super) fn note(completion: &Completion) -> Note {
    match completion {
        Completion::Accepted { result: Ok(socket), .. } => {
            Note::Said("accepted socket", None, i64::from(socket.number()))
        }
        Completion::Accepted { result: Err(error), .. } => {
            Note::Said("accept failed", None, i64::from(error.0))
        }
        Completion::Woken => Note::Said("woken", None, 0),
        Completion::Connected { key, result } => {
            Note::Said("connected", Some(*key), result.map_or_else(|e| i64::from(e.0), |()| 0))
        }
        Completion::Received { key, side, what, .. } => match (what, side) {
            (Received::Bytes(buffer), Side::Client) => {
                Note::Said("client's bytes in buffer", Some(*key), i64::from(buffer.number()))
            }
            (Received::Bytes(buffer), Side::Backend) => {
                Note::Said("backend's bytes in buffer", Some(*key), i64::from(buffer.number()))
            }
            (Received::End, Side::Client) => Note::Said("client's end", Some(*key), 0),
            (Received::End, Side::Backend) => Note::Said("backend's end", Some(*key), 0),
            (Received::Failed(error), Side::Client) => {
                Note::Said("client's receive failed", Some(*key), i64::from(error.0))
            }
            (Received::Failed(error), Side::Backend) => {
                Note::Said("backend's receive failed", Some(*key), i64::from(error.0))
            }
        },
        Completion::Sent { key, side, result } => {
            let what = if *side == Side::Client { "sent to client" } else { "sent to backend" };
            Note::Said(what, Some(*key), result.map_or_else(|e| -i64::from(e.0), i64::from))
        }
        Completion::Polled { key, result, .. } => {
            Note::Said("polled", Some(*key), result.map_or_else(|e| i64::from(e.0), |()| 0))
        }
    }
}
