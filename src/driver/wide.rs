//! Bulk: one large buffer, reused while it is hot, between two plain calls.
//!
//! What decides the cost of bulk is the size and the heat of the buffer, not the interface: a buffer near the size of
//! the second-level cache costs less a byte than splice(2), and needs no pipe. A step is over when it returns, so one
//! buffer serves all directions of a shard.

use super::pool::{BufferId, Pool};
use super::{Carried, Errno, Received, sys};
use crate::config::limits;

/// The large buffer of one driver. It takes memory when it is first used.
#[derive(Debug, Default)]
pub(in crate::driver) struct Wide {
    buffer: Vec<u8>,
}

/// What a step found out about the source's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::driver) struct Seen {
    /// Its receive queue was empty at the end.
    pub(in crate::driver) dry: bool,
}

impl Wide {
    /// Receives from one socket and sends to the other. Of what that does not take at most `tail_max` bytes are kept:
    /// where more could be left, the bytes are only looked at first, and the rest stays in the source's socket.
    pub(in crate::driver) fn carry(
        &mut self,
        from: i32,
        to: i32,
        pool: &mut Pool,
        tail_max: u32,
    ) -> (Carried, Seen) {
        if self.buffer.is_empty() {
            self.buffer.resize(limits::WIDE_BYTES as usize, 0);
        }
        // A tail must find buffers.
        let least = pool.buffer_bytes() as usize;
        let tail_max = (pool.free().div_ceil(2) * least).min(tail_max as usize);
        let mut carried = Carried { taken: 0, tail: None, source: None, failed: None };
        if tail_max == 0 {
            carried.source = Some(Received::Failed(Errno::NO_BUFFERS));
            return (carried, Seen { dry: false });
        }
        let most = self.buffer.len().min(sys::send_room(to).max(least));
        let look = if most > tail_max { sys::peek } else { sys::recv };
        let seen = match look(from, &mut self.buffer[..most]) {
            Ok(Some(n)) if n > 0 => n,
            Ok(Some(_)) => {
                carried.source = Some(Received::End);
                return (carried, Seen { dry: false });
            }
            Ok(None) => return (carried, Seen { dry: true }),
            Err(e) => {
                carried.source = Some(Received::Failed(e));
                return (carried, Seen { dry: false });
            }
        };
        let taken = match sys::send(to, &self.buffer[..seen]) {
            Ok(taken) => taken,
            Err(e) => {
                carried.failed = Some(e);
                return (carried, Seen { dry: false });
            }
        };
        carried.taken = u32::try_from(taken).unwrap_or(u32::MAX);
        let kept = seen.min(taken + tail_max);
        carried.tail = chain(pool, &self.buffer[taken..kept]);
        if most > tail_max
            && let Err(e) = sys::discard(from, &mut self.buffer[..kept])
        {
            carried.source = Some(Received::Failed(e));
        }
        (carried, Seen { dry: seen < most && kept == seen })
    }
}

/// Copies bytes into chained buffers, of which there are enough.
pub(in crate::driver) fn chain(pool: &mut Pool, mut bytes: &[u8]) -> Option<(BufferId, BufferId)> {
    let mut ends: Option<(BufferId, BufferId)> = None;
    while !bytes.is_empty() {
        let buffer = pool.take().expect("half of the free buffers hold what is kept");
        let n = pool.fill(buffer, bytes);
        bytes = &bytes[n..];
        ends = Some(match ends {
            None => (buffer, buffer),
            Some((first, last)) => {
                pool.set_next(last, buffer);
                (first, buffer)
            }
        });
    }
    ends
}
