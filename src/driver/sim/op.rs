//! Ringway's sockets in the simulated network, and what is in flight on them.

use super::conn::{Conn, ConnId};
use super::faults::Fault;
use super::pipe::Way;
use super::world::{Event, World};
use crate::driver::pool::BufferId;
use crate::driver::{Arm, Errno, Interest, Key, ListenerId, Side};
use std::collections::VecDeque;

/// What an operation does. A socket has at most one in flight of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Recv,
    Send,
    Poll,
    Connect,
    Accept,
}

impl Verb {
    pub(super) const ALL: [Self; 5] =
        [Self::Recv, Self::Send, Self::Poll, Self::Connect, Self::Accept];
}

/// An operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Recv {
        arm: Arm,
        /// Bytes it has brought so far.
        brought: u32,
        /// It begins when the other side's send has taken all its bytes.
        waits: bool,
        /// It was asked for when no buffer was free, and is told so at once.
        starved: bool,
    },
    Send {
        buffer: BufferId,
        total: u32,
        taken: u32,
        /// The socket whose receive waits for this.
        then: Option<usize>,
        blocked: bool,
    },
    Poll(Interest),
    Connect {
        /// What the other end said, when it has.
        outcome: Option<Result<(), Errno>>,
    },
    Accept(ListenerId),
}

/// An operation in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    /// Tells it from those that had its place before.
    pub(super) serial: u64,
    /// Whose turn ends it.
    pub(super) shard: usize,
    /// It is on its way to be tried.
    pub(super) scheduled: bool,
    pub(super) cancelled: bool,
    pub(super) op: Op,
}

/// An operation that may end now: socket, kind, serial.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) number: usize,
    pub(super) verb: Verb,
    pub(super) serial: u64,
}

/// Whose socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) shard: usize,
    pub(super) key: Key,
    pub(super) side: Side,
}

/// Clients that wait to be accepted.
#[derive(Debug)]
struct Queue {
    listener: ListenerId,
    backlog: usize,
    waiting: VecDeque<ConnId>,
}

/// A socket of Ringway's.
#[derive(Debug, Default)]
pub(super) struct End {
    queue: Option<Queue>,
    pub(super) conn: Option<ConnId>,
    pub(super) owner: Option<Owner>,
    pub(super) flights: [Option<Flight>; 5],
    /// What is in flight as its caller sees it: until the last completion was handed out.
    pub(super) asked: [bool; 5],
    pub(super) aborted: bool,
}

impl End {
    pub(super) fn listening(listener: ListenerId, backlog: usize) -> Self {
        let queue = Queue { listener, backlog: backlog.max(1), waiting: VecDeque::new() };
        Self { queue: Some(queue), ..Self::default() }
    }

    pub(super) fn of(conn: ConnId) -> Self {
        Self { conn: Some(conn), ..Self::default() }
    }

    pub(super) fn listener(&self) -> Option<ListenerId> {
        self.queue.as_ref().map(|queue| queue.listener)
    }

    /// A client joins the queue, if there is room.
    pub(super) fn enqueue(&mut self, id: ConnId) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let fits = queue.waiting.len() < queue.backlog;
        if fits {
            queue.waiting.push_back(id);
        }
        fits
    }

    /// The client that waits longest.
    pub(super) fn dequeue(&mut self) -> Option<ConnId> {
        self.queue.as_mut()?.waiting.pop_front()
    }

    pub(super) fn has_clients(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.waiting.is_empty())
    }

    /// What of it is in flight as its caller sees it.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = Verb> {
        Verb::ALL.into_iter().filter(|verb| self.asked[*verb as usize])
    }
}

impl World {
    /// A socket that is open; a caller that names another broke the contract.
    pub(super) fn end_mut(&mut self, number: usize) -> &mut End {
        if self.ends.get(number).is_none_or(Option::is_none) {
            self.broken(&format!("socket {number} is not open"));
        }
        self.ends[number].as_mut().expect("it was looked at above")
    }

    /// The same, to look at.
    pub(super) fn end(&self, number: usize) -> &End {
        match self.ends.get(number) {
            Some(Some(end)) => end,
            _ => self.broken(&format!("socket {number} is not open")),
        }
    }

    /// A socket's connection.
    pub(super) fn conn_at(&self, number: usize) -> Option<&Conn> {
        self.end(number).conn.map(|id| &self.conns[id.index()])
    }

    /// An operation, if it is still the one with this serial.
    pub(super) fn op_mut(&mut self, number: usize, verb: Verb, serial: u64) -> Option<&mut Op> {
        let end = self.ends.get_mut(number)?.as_mut()?;
        let flight = end.flights[verb as usize].as_mut()?;
        (flight.serial == serial).then_some(&mut flight.op)
    }

    /// Puts an operation in flight. One of its kind that is in flight already breaks the contract.
    pub(super) fn begin(&mut self, shard: usize, number: usize, verb: Verb, op: Op) -> u64 {
        if self.end(number).asked[verb as usize] {
            self.broken(&format!("a second {verb:?} is asked of socket {number}"));
        }
        let serial = self.next_serial();
        let end = self.end_mut(number);
        end.asked[verb as usize] = true;
        let flight = Flight { serial, shard, scheduled: false, cancelled: false, op };
        end.flights[verb as usize] = Some(flight);
        if !matches!(verb, Verb::Connect | Verb::Accept) && self.happens(Fault::Break) {
            self.break_off(number);
        }
        self.kick(number);
        serial
    }

    /// The connection breaks by itself. The far end is told by a reset, at once or when it is missed.
    pub(super) fn break_off(&mut self, number: usize) {
        let Some(id) = self.end(number).conn.filter(|id| !self.conns[id.index()].dead) else {
            return;
        };
        let error = self.rng.pick(&[
            Errno::RESET,
            Errno::RESET,
            Errno::BROKEN_PIPE,
            Errno::TIMED_OUT,
            Errno(libc::EHOSTUNREACH),
        ]);
        let told_after_ns = if error.is_vanished() {
            self.rng.log_within(1_000_000_000, 60_000_000_000)
        } else {
            self.faults.latency_ns
        };
        self.conns[id.index()].near.broken = Some(error);
        self.schedule(told_after_ns, Event::ArriveReset(id, Way::Out));
        self.lose(id, error);
    }

    /// Asks an operation to end. One that is not in flight any more needs no asking.
    pub(super) fn cancel_flight(&mut self, number: usize, verb: Verb) {
        if let Some(flight) = &mut self.end_mut(number).flights[verb as usize] {
            flight.cancelled = true;
        }
        self.kick(number);
    }

    /// A shard's driver is gone, and with it what it had in flight.
    pub(super) fn end_flights_of(&mut self, shard: usize) {
        for end in self.ends.iter_mut().flatten() {
            for verb in Verb::ALL {
                if end.flights[verb as usize].take_if(|flight| flight.shard == shard).is_some() {
                    end.asked[verb as usize] = false;
                }
            }
        }
    }

    /// Something about a socket changed: what can end now will be tried.
    pub(super) fn kick(&mut self, number: usize) {
        for verb in Verb::ALL {
            let Some(flight) = self.end(number).flights[verb as usize] else { continue };
            if flight.scheduled || !self.can_end(number, &flight) {
                continue;
            }
            let delay = if flight.cancelled && self.happens(Fault::LateCancel) {
                self.rng.log_within(100_000, 3_000_000_000)
            } else if self.happens(Fault::LateCompletion) {
                self.rng.log_within(100, 5_000_000)
            } else {
                0
            };
            self.schedule(delay, Event::Try(number, verb, flight.serial));
            if let Some(flight) = &mut self.end_mut(number).flights[verb as usize] {
                flight.scheduled = true;
            }
        }
    }

    /// Tries an operation again a moment later, not before.
    pub(super) fn try_later(&mut self, number: usize, verb: Verb) {
        let Some(flight) = &mut self.end_mut(number).flights[verb as usize] else { return };
        flight.scheduled = true;
        let serial = flight.serial;
        self.schedule(10_000, Event::Try(number, verb, serial));
    }

    /// Whether an operation has something to report.
    pub(super) fn can_end(&self, number: usize, flight: &Flight) -> bool {
        let end = self.end(number);
        if flight.cancelled || end.aborted {
            return true;
        }
        let conn = self.conn_at(number);
        let gone = conn.is_some_and(|conn| conn.dead);
        let input = conn.map(|conn| conn.pipe(Way::In));
        let output = conn.map(|conn| conn.pipe(Way::Out));
        let readable = input.is_some_and(|pipe| pipe.readable() > 0 || pipe.ended());
        let writable = output.is_some_and(|pipe| pipe.room(self.clock) > 0);
        match flight.op {
            Op::Recv { waits, starved, .. } => !waits && (readable || gone || starved),
            Op::Send { .. } | Op::Poll(Interest::Writable) => writable || gone,
            Op::Poll(Interest::Readable) => readable || gone,
            Op::Poll(Interest::Gone) => {
                let ended = input.is_some_and(super::pipe::Pipe::end_arrived);
                gone || ended && output.is_some_and(super::pipe::Pipe::finished)
            }
            Op::Connect { outcome } => outcome.is_some(),
            Op::Accept(_) => end.has_clients(),
        }
    }

    /// The time has come to try an operation: its shard does so at its next turn.
    pub(super) fn try_soon(&mut self, number: usize, verb: Verb, serial: u64) {
        let flight = self.ends.get(number).and_then(Option::as_ref);
        let flight = flight.and_then(|end| end.flights[verb as usize]);
        if let Some(flight) = flight.filter(|flight| flight.serial == serial)
            && let Some(shard) = &mut self.shards[flight.shard]
        {
            shard.due.push_back(Attempt { number, verb, serial });
        }
    }

    /// Takes up an attempt, if its operation is still in flight.
    pub(super) fn take_up(&mut self, attempt: Attempt) -> Option<Flight> {
        let end = self.ends.get_mut(attempt.number)?.as_mut()?;
        let flight = end.flights[attempt.verb as usize].as_mut()?;
        if flight.serial != attempt.serial {
            return None;
        }
        flight.scheduled = false;
        Some(*flight)
    }

    /// What the next operation on a connection that is gone is told.
    pub(super) fn error_of(&mut self, number: usize) -> Errno {
        let id = self.end(number).conn;
        id.and_then(|id| self.conns[id.index()].error.take()).unwrap_or(Errno::RESET)
    }
}
