//! What plain calls on a socket do to its connection, and whose turn it is.

use super::conn::Fate;
use super::pipe::Way;
use super::trace::Note;
use super::world::{Event, World};
use crate::driver::Errno;
use std::sync::atomic::Ordering;

impl World {
    /// The end of what Ringway sends, behind all bytes.
    pub(super) fn finish_socket(&mut self, number: usize) -> Result<(), Errno> {
        let gone =
            self.conn_at(number).is_none_or(|conn| conn.dead || conn.fate != Fate::Established);
        let Some(id) = self.end(number).conn.filter(|_| !gone) else {
            return Err(Errno(libc::ENOTCONN));
        };
        if !std::mem::replace(&mut self.conns[id.index()].near.finished, true) {
            self.conns[id.index()].pipe_mut(Way::Out).finish();
            let delay = self.arrival_delay(id, Way::Out);
            self.schedule(delay, Event::ArriveEnd(id, Way::Out));
            self.kick(number);
        }
        Ok(())
    }

    /// A reset, which overtakes all bytes under way.
    pub(super) fn abort_socket(&mut self, number: usize) {
        self.end_mut(number).aborted = true;
        if let Some(id) = self.end(number).conn {
            let conn = &mut self.conns[id.index()];
            conn.near.aborted = true;
            if conn.fate == Fate::Coming {
                (conn.fate, conn.dead) = (Fate::GivenUp, true);
            } else if !conn.dead {
                conn.dead = true;
                conn.pipe_mut(Way::In).cut(true);
                conn.pipe_mut(Way::Out).cut(false);
                self.schedule(self.faults.latency_ns, Event::ArriveReset(id, Way::Out));
            }
        }
        self.kick(number);
    }

    /// Closes a socket. As in the kernel, bytes that were left unread make that a reset.
    pub(super) fn close_socket(&mut self, number: usize) {
        while let Some(id) = self.end_mut(number).dequeue() {
            self.conns[id.index()].near.closed = true;
            self.schedule(self.faults.latency_ns, Event::ArriveReset(id, Way::Out));
        }
        if let Some(id) = self.end(number).conn {
            let conn = &self.conns[id.index()];
            if !conn.dead && conn.pipe(Way::In).readable() > 0 {
                self.note(Note::Net("unread bytes make the close a reset, socket", number as i64));
                self.abort_socket(number);
            }
            // One that is finished, gone or not yet there needs no end of its stream.
            let _ = self.finish_socket(number);
            let conn = &mut self.conns[id.index()];
            if conn.fate == Fate::Coming {
                conn.fate = Fate::GivenUp;
            }
            (conn.near.closed, conn.socket) = (true, None);
        }
        self.ends[number] = None;
    }

    /// How far the clock may go while `shard` waits until `until`: not past the sleep of another.
    pub(super) fn limit(&self, shard: usize, until: Option<u64>) -> Option<u64> {
        let others = self.shards.iter().enumerate().filter(|(number, _)| *number != shard);
        let sleeps = others.filter_map(|(_, other)| other.as_ref()?.sleeps_until);
        sleeps.chain(until).min().map(|limit| limit.max(self.clock))
    }

    /// Whether another shard has something to do now.
    pub(super) fn others_move(&self, shard: usize) -> bool {
        let others = self.shards.iter().enumerate().filter(|(number, _)| *number != shard);
        others
            .filter_map(|(_, other)| other.as_ref())
            .any(|other| !other.due.is_empty() || other.woken.load(Ordering::Acquire))
    }

    /// Whether a shard has nothing to try.
    pub(super) fn is_idle_for(&self, shard: usize) -> bool {
        self.shards[shard].as_ref().is_none_or(|shard| shard.due.is_empty())
    }
}
