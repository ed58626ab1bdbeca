//! How operations in flight end: what each finds when it is tried, and what the caller is told.

use super::faults::Fault;
use super::op::{Attempt, End, Flight, Op, Verb};
use super::pipe::Way;
use super::world::{Event, World, socket};
use super::{Sim, conn::Fate};
use crate::driver::pool::BufferId;
use crate::driver::{Arm, Completion, Errno, Key, ListenerId, Received, Side};

/// What a socket has for a receive.
pub(super) enum Found {
    Nothing,
    Bytes(usize),
    End,
    Failed(Errno),
}

impl Sim {
    /// Tries an operation; it ends, brings something, or stays in flight.
    pub(super) fn attempt(&mut self, attempt: Attempt) {
        let Some(flight) = self.world.borrow_mut().take_up(attempt) else { return };
        let number = attempt.number;
        match flight.op {
            Op::Accept(listener) => self.try_accept(number, flight, listener),
            Op::Connect { outcome } => self.try_connect(number, flight, outcome),
            Op::Recv { .. } => self.try_recv(number, flight),
            Op::Send { .. } => self.try_send(number, flight),
            Op::Poll(_) => self.try_poll(number, flight),
        }
        let mut world = self.world.borrow_mut();
        if world.ends[number].is_some() {
            world.kick(number);
        }
    }

    fn owner(&self, number: usize) -> (Key, Side) {
        let world = self.world.borrow();
        let owner = world.end(number).owner.expect("a socket with an operation is attached");
        (owner.key, owner.side)
    }

    /// Says the last word of an operation.
    fn end(&mut self, number: usize, verb: Verb, completion: Completion) {
        self.world.borrow_mut().end_mut(number).flights[verb as usize] = None;
        self.said.push_back((completion, Some((number, verb))));
    }

    fn try_accept(&mut self, number: usize, flight: Flight, listener: ListenerId) {
        let mut world = self.world.borrow_mut();
        let waits = world.end(number).has_clients();
        if !waits && !flight.cancelled {
            return;
        }
        let (result, more) = if flight.cancelled && !(waits && world.happens(Fault::CancelLoses)) {
            (Err(Errno::CANCELED), false)
        } else if let Some((error, more)) = world.faults.accepts_fail {
            (Err(error), more)
        } else if !world.has_descriptors() || world.happens(Fault::AcceptExhausted) {
            (Err(Errno(libc::EMFILE)), false)
        } else {
            let id = world.end_mut(number).dequeue().expect("a client waits");
            if world.happens(Fault::AcceptAborted) {
                world.conns[id.index()].near.closed = true;
                world.schedule(0, Event::ArriveReset(id, Way::Out));
                (Err(Errno(libc::ECONNABORTED)), false)
            } else {
                let accepted = world.open(End::of(id));
                let conn = &mut world.conns[id.index()];
                (conn.socket, conn.fate) = (Some(accepted), Fate::Established);
                let more = !flight.cancelled && !world.happens(Fault::AcceptEnds);
                (Ok(socket(accepted)), more)
            }
        };
        if more && result.is_err() {
            // Who is armed by level is told again and again, but once a turn.
            world.try_later(number, Verb::Accept);
        }
        drop(world);
        let completion = Completion::Accepted { listener, result, more };
        if more {
            self.said.push_back((completion, None));
        } else {
            self.end(number, Verb::Accept, completion);
        }
    }

    fn try_connect(&mut self, number: usize, flight: Flight, outcome: Option<Result<(), Errno>>) {
        let mut world = self.world.borrow_mut();
        let given_up = flight.cancelled || world.end(number).aborted;
        let result = match outcome {
            Some(outcome) if !given_up || world.happens(Fault::CancelLoses) => outcome,
            _ if given_up => Err(Errno::CANCELED),
            _ => return,
        };
        drop(world);
        let (key, _) = self.owner(number);
        self.end(number, Verb::Connect, Completion::Connected { key, result });
    }

    fn try_poll(&mut self, number: usize, flight: Flight) {
        let mut world = self.world.borrow_mut();
        let mut asked = flight;
        asked.cancelled = false;
        let came = world.can_end(number, &asked);
        let result = if flight.cancelled && !(came && world.happens(Fault::CancelLoses)) {
            Err(Errno::CANCELED)
        } else if came {
            Ok(())
        } else {
            return;
        };
        drop(world);
        let (key, side) = self.owner(number);
        self.end(number, Verb::Poll, Completion::Polled { key, side, result });
    }

    fn try_recv(&mut self, number: usize, flight: Flight) {
        let Op::Recv { arm, brought, waits, starved } = flight.op else { return };
        let mut world = self.world.borrow_mut();
        let useful = !world.end(number).aborted && world.is_readable(number);
        let cancelled =
            flight.cancelled && (waits || !useful || !world.happens(Fault::CancelLoses));
        let what = if cancelled || waits {
            Received::Failed(Errno::CANCELED)
        } else {
            match world.found(number) {
                Found::Nothing if starved => {
                    self.counters.no_buffers += 1;
                    Received::Failed(Errno::NO_BUFFERS)
                }
                Found::Nothing => return,
                Found::End => Received::End,
                Found::Failed(error) => Received::Failed(error),
                Found::Bytes(there) => {
                    drop(world);
                    return self.receive(number, flight, (arm, brought), there);
                }
            }
        };
        if what == Received::End {
            world.end_seen(number);
        }
        drop(world);
        let (key, side) = self.owner(number);
        self.end(number, Verb::Recv, Completion::Received { key, side, what, more: false });
    }

    /// A receive that finds `there` bytes.
    fn receive(&mut self, number: usize, flight: Flight, credit: (Arm, u32), there: usize) {
        let (key, side) = self.owner(number);
        let (arm, brought) = credit;
        let mut world = self.world.borrow_mut();
        let buffer = if world.happens(Fault::NoBuffers) { None } else { self.pool.take() };
        let Some(buffer) = buffer else {
            drop(world);
            self.counters.no_buffers += 1;
            let what = Received::Failed(Errno::NO_BUFFERS);
            let completion = Completion::Received { key, side, what, more: false };
            return self.end(number, Verb::Recv, completion);
        };
        if self.lent.contains(&buffer.number()) {
            world.broken(&format!("buffer {} was given back during its send", buffer.number()));
        }
        let mut n = there.min(self.pool.buffer_bytes() as usize);
        if world.happens(Fault::ShortReceive) {
            n = 1 + world.rng.index(n);
        }
        let left = match arm {
            Arm::Multi(bytes) if self.counts_credit => bytes.saturating_sub(brought),
            _ => 0,
        };
        if left > 0 && world.faults.cuts_to_credit {
            n = n.min(left as usize);
        }
        let bytes = world.read(number, n);
        self.pool.fill(buffer, &bytes);
        let n = u32::try_from(n).expect("it fits a buffer");
        let spent = left.saturating_sub(n) == 0;
        let more = !spent && !flight.cancelled && !world.happens(Fault::ReceiveEnds);
        if let Some(Op::Recv { brought, .. }) = world.op_mut(number, Verb::Recv, flight.serial) {
            *brought += n;
        }
        drop(world);
        let what = Received::Bytes(buffer);
        let completion = Completion::Received { key, side, what, more };
        if more {
            self.said.push_back((completion, None));
        } else {
            self.end(number, Verb::Recv, completion);
        }
    }

    fn try_send(&mut self, number: usize, flight: Flight) {
        let Op::Send { buffer, total, taken, then, blocked } = flight.op else { return };
        let mut world = self.world.borrow_mut();
        if !self.pool.is_out(buffer) || self.pool.filled(buffer) != total {
            world.broken(&format!("buffer {} changed during its send", buffer.number()));
        }
        let conn = world.conn_at(number);
        let gone = conn.is_none_or(|conn| conn.dead);
        let room = conn.map_or(0, |conn| conn.pipe(Way::Out).room(world.clock));
        let left = (total - taken) as usize;
        let loses = flight.cancelled && room >= left && world.happens(Fault::CancelLoses);
        let result = if gone || flight.cancelled && !loses {
            let error = if gone { world.send_error(number) } else { Errno::CANCELED };
            if taken > 0 { Ok(taken) } else { Err(error) }
        } else if room < left || world.stalls(number) {
            // A stall shows no room although there is some, so take no more than what is seen.
            let n = if room < left { room } else { 0 };
            let moved = self.push(&mut world, number, (buffer, taken), n);
            if let Some(Op::Send { taken, blocked, .. }) =
                world.op_mut(number, Verb::Send, flight.serial)
            {
                *taken += moved;
                *blocked = true;
            }
            self.counters.sends_blocked += u64::from(!blocked);
            return;
        } else {
            self.push(&mut world, number, (buffer, taken), left);
            Ok(total)
        };
        drop(world);
        self.sent(number, (buffer, total), result, then);
    }

    /// Moves `n` bytes of a buffer into the connection.
    fn push(
        &self,
        world: &mut World,
        number: usize,
        (buffer, from): (BufferId, u32),
        n: usize,
    ) -> u32 {
        let id = world.end(number).conn.expect("a send goes to a connection");
        let bytes = &self.pool.bytes(buffer)[from as usize..from as usize + n];
        let conn = &mut world.conns[id.index()];
        conn.pipe_mut(Way::Out).send(bytes.iter().copied());
        conn.near.taken += n as u64;
        world.under_way(id, Way::Out, n);
        u32::try_from(n).expect("it is part of a buffer")
    }

    /// The last word of a send, and what that means for the receive that waits for it.
    fn sent(
        &mut self,
        number: usize,
        (buffer, total): (BufferId, u32),
        result: Result<u32, Errno>,
        then: Option<usize>,
    ) {
        self.lent.remove(&buffer.number());
        let (key, side) = self.owner(number);
        self.end(number, Verb::Send, Completion::Sent { key, side, result });
        let Some(source) = then else { return };
        let mut world = self.world.borrow_mut();
        let Some(flight) = &mut world.end_mut(source).flights[Verb::Recv as usize] else { return };
        let Op::Recv { waits, .. } = &mut flight.op else { return };
        // One that was cancelled on its own may have been asked for again since; that one does not wait.
        if !std::mem::take(waits) {
            return;
        }
        if result == Ok(total) {
            return world.kick(source);
        }
        drop(world);
        let what = Received::Failed(Errno::CANCELED);
        let completion = Completion::Received { key, side: side.other(), what, more: false };
        self.end(source, Verb::Recv, completion);
    }
}

impl World {
    /// Whether there are bytes, or the end of the stream.
    fn is_readable(&self, number: usize) -> bool {
        let pipe = self.conn_at(number).map(|conn| conn.pipe(Way::In));
        pipe.is_some_and(|pipe| pipe.readable() > 0 || pipe.ended())
    }

    /// What a receive on this socket would find. An error that is found counts as told.
    pub(super) fn found(&mut self, number: usize) -> Found {
        if self.end(number).aborted {
            let otherwise = self.happens(Fault::AbortReadsOtherwise);
            let choices = [Errno::RESET, Errno::CANCELED, Errno::BROKEN_PIPE];
            return match otherwise.then(|| self.rng.index(4)) {
                None => Found::Failed(Errno::RESET),
                Some(0) => Found::End,
                Some(n) => Found::Failed(choices[n - 1]),
            };
        }
        let Some(conn) = self.conn_at(number) else { return Found::Nothing };
        let pipe = conn.pipe(Way::In);
        if pipe.readable() > 0 {
            return Found::Bytes(pipe.readable());
        }
        if pipe.ended() {
            return Found::End;
        }
        match (conn.dead, conn.error) {
            (false, _) => Found::Nothing,
            (true, None) if self.happens(Fault::ErrorSpent) => Found::End,
            // A send is told that the pipe is broken; a receive never is.
            (true, _) => match self.error_of(number) {
                Errno::BROKEN_PIPE => Found::Failed(Errno::RESET),
                error => Found::Failed(error),
            },
        }
    }

    /// What a send on a connection that is gone is told.
    pub(super) fn send_error(&mut self, number: usize) -> Errno {
        let told = self.conn_at(number).is_none_or(|conn| conn.error.is_none());
        if told { Errno::BROKEN_PIPE } else { self.error_of(number) }
    }

    /// Whether a send finds no room although there would be some; it ends by itself.
    pub(super) fn stalls(&mut self, number: usize) -> bool {
        let Some(id) = self.end(number).conn else { return false };
        if !self.happens(Fault::SendStall) {
            return false;
        }
        let ns = self.rng.log_within(100_000, 2_000_000_000);
        self.conns[id.index()].pipe_mut(Way::Out).stalled_until = self.clock + ns;
        self.schedule(ns, Event::Room(id));
        true
    }
}
