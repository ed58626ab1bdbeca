//! Plain calls: bytes that are read, sent and carried at once, while nothing of them is in flight.

use super::Sim;
use super::attempt::Found;
use super::faults::Fault;
use super::op::{Op, Verb};
use super::pipe::Way;
use super::world::World;
use crate::config::limits;
use crate::driver::pool::BufferId;
use crate::driver::wide::chain;
use crate::driver::{Carried, Errno, Interest, Received};

/// What plain calls did in a world, counted: who draws worlds sees whether they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plain {
    /// Straight reads that brought bytes.
    pub reads: u64,
    /// Straight sends.
    pub sends: u64,
    /// Wide steps that found bytes.
    pub steps: u64,
    /// Of those, which came back with a tail.
    pub tails: u64,
    /// Of those, which left bytes with the source.
    pub left: u64,
}

impl Sim {
    /// Reads a socket at once.
    pub(super) fn read_straight(&mut self, number: usize) -> Option<Received> {
        self.check_idle("is read straight", number, Verb::Recv);
        let mut world = self.world.borrow_mut();
        let starved = world.happens(Fault::NoBuffers);
        let Some(buffer) = (if starved { None } else { self.pool.take() }) else {
            return Some(Received::Failed(Errno::NO_BUFFERS));
        };
        if let Some(there) = world.there(number)
            && there > 0
            && world.happens(Fault::Break)
        {
            world.break_off(number);
        }
        let what = match world.found(number) {
            Found::Bytes(there) => {
                let n = world.of_what_is_there(there, self.pool.buffer_bytes() as usize);
                let bytes = world.read(number, n);
                self.pool.fill(buffer, &bytes);
                world.plain.reads += 1;
                return Some(Received::Bytes(buffer));
            }
            Found::Nothing => None,
            Found::End => Some(world.end_seen(number)),
            Found::Failed(error) => Some(Received::Failed(error)),
        };
        self.pool.give_back(buffer);
        what
    }

    /// Sends a buffer's bytes at once, as far as there is room.
    pub(super) fn send_straight(&self, number: usize, buffer: BufferId) -> Result<u32, Errno> {
        self.check_idle("is sent to straight", number, Verb::Send);
        let mut world = self.world.borrow_mut();
        if !self.pool.is_out(buffer) || self.pool.filled(buffer) == 0 {
            world.broken(&format!("buffer {} is sent, empty or nobody's", buffer.number()));
        }
        world.plain.sends += 1;
        if world.happens(Fault::Break) {
            world.break_off(number);
        }
        world.take(number, self.pool.bytes(buffer))
    }

    /// A wide step, as the drivers of the kernel make it.
    pub(super) fn carry_straight(&mut self, from: usize, to: usize, tail_max: u32) -> Carried {
        self.check_idle("is carried from", from, Verb::Recv);
        self.check_idle("is carried to", to, Verb::Send);
        let mut carried = Carried { taken: 0, tail: None, source: None, failed: None };
        let mut world = self.world.borrow_mut();
        let least = self.pool.buffer_bytes() as usize;
        let tail_max = (self.pool.free().div_ceil(2) * least).min(tail_max as usize);
        if tail_max == 0 || world.happens(Fault::NoBuffers) {
            carried.source = Some(Received::Failed(Errno::NO_BUFFERS));
            return carried;
        }
        let there = match world.found(from) {
            Found::Bytes(there) => there,
            found => {
                carried.source = match found {
                    Found::End => Some(world.end_seen(from)),
                    Found::Failed(error) => Some(Received::Failed(error)),
                    Found::Nothing | Found::Bytes(_) => None,
                };
                return carried;
            }
        };
        let most = world.room(to).max(least).min(limits::WIDE_BYTES as usize);
        let looks_first = most > tail_max;
        let n = world.of_what_is_there(there, most);
        let bytes = if looks_first { world.peek(from, n) } else { world.read(from, n) };
        world.plain.steps += 1;
        if world.happens(Fault::Break) {
            let broken = world.rng.pick(&[from, to]);
            world.break_off(broken);
        }
        let taken = match world.take(to, &bytes) {
            Ok(taken) => taken,
            Err(error) => {
                carried.failed = Some(error);
                return carried;
            }
        };
        carried.taken = taken;
        let kept = n.min(taken as usize + tail_max);
        carried.tail = chain(&mut self.pool, &bytes[taken as usize..kept]);
        world.plain.tails += u64::from(carried.tail.is_some());
        world.plain.left += u64::from(kept < n);
        if looks_first {
            carried.source = world.discard(from, kept).err().map(Received::Failed);
        }
        carried
    }

    /// Nothing of this kind may be in flight on a socket that is moved straight, as its caller sees it.
    fn check_idle(&self, what: &str, number: usize, verb: Verb) {
        let world = self.world.borrow();
        let end = world.end(number);
        if end.asked[verb as usize] {
            world.broken(&format!("socket {number} {what} with a {verb:?} in flight"));
        }
        if verb == Verb::Send && world.conn_at(number).is_some_and(|conn| conn.near.finished) {
            world.broken(&format!("socket {number} {what}, and was finished"));
        }
        let polled = end.flights[Verb::Poll as usize].map(|flight| flight.op);
        if verb == Verb::Recv && matches!(polled, Some(Op::Poll(Interest::Readable))) {
            world.broken(&format!("socket {number} {what} while it is polled for bytes"));
        }
    }
}

impl World {
    /// What plain calls did so far.
    #[must_use]
    pub const fn plain(&self) -> Plain {
        self.plain
    }

    /// How many bytes a socket's connection has.
    fn there(&self, number: usize) -> Option<usize> {
        self.conn_at(number).map(|conn| conn.pipe(Way::In).readable())
    }

    /// How many bytes a socket's connection has room for.
    fn room(&self, number: usize) -> usize {
        self.conn_at(number).map_or(0, |conn| conn.pipe(Way::Out).room(self.clock))
    }

    /// How much a receive brings that finds so much.
    fn of_what_is_there(&mut self, there: usize, most: usize) -> usize {
        let n = there.min(most);
        if self.happens(Fault::ShortReceive) { 1 + self.rng.index(n) } else { n }
    }

    /// Reads `n` bytes, which are there; the far end may write again.
    pub(super) fn read(&mut self, number: usize, n: usize) -> Vec<u8> {
        let id = self.end(number).conn.expect("bytes came by a connection");
        let conn = &mut self.conns[id.index()];
        conn.near.received += n as u64;
        let bytes = conn.pipe_mut(Way::In).read(n).collect();
        self.far_run(id);
        bytes
    }

    fn peek(&self, number: usize, n: usize) -> Vec<u8> {
        let conn = self.conn_at(number).expect("bytes came by a connection");
        conn.pipe(Way::In).peek(n).collect()
    }

    /// Drops `n` bytes that were looked at. A reset may have taken them meanwhile.
    fn discard(&mut self, number: usize, n: usize) -> Result<(), Errno> {
        if self.there(number).is_some_and(|there| there >= n) {
            self.read(number, n);
            return Ok(());
        }
        match self.found(number) {
            Found::Failed(error) => Err(error),
            _ => Err(Errno(libc::EIO)),
        }
    }

    /// The end of a stream was read.
    pub(super) fn end_seen(&mut self, number: usize) -> Received {
        if let Some(id) = self.end(number).conn {
            self.conns[id.index()].near.end_seen = true;
        }
        Received::End
    }

    /// A connection takes what it has room for, or less.
    fn take(&mut self, number: usize, bytes: &[u8]) -> Result<u32, Errno> {
        let open = self.end(number).conn.filter(|id| !self.conns[id.index()].dead);
        let Some(id) = open else { return Err(self.send_error(number)) };
        let mut n = if self.stalls(number) { 0 } else { self.room(number).min(bytes.len()) };
        if self.happens(Fault::ShortSend) {
            n = self.rng.index(n + 1);
        }
        let conn = &mut self.conns[id.index()];
        conn.pipe_mut(Way::Out).send(bytes[..n].iter().copied());
        conn.near.taken += n as u64;
        self.under_way(id, Way::Out, n);
        Ok(u32::try_from(n).expect("a wide step moves less"))
    }
}
