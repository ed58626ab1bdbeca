//! Bulk: between two plain calls, through a pipe that copies nothing or a large buffer that stays in the cache.
//!
//! Which costs less a byte depends on the machine: the buffer lives by its heat, so it loses where others want the same
//! cache and memory. A step is over when it returns, so one pipe and one buffer serve all directions of a shard.

use super::pipe::Pipe;
use super::pool::{BufferId, Pool};
use super::{Carried, Counters, Errno, Received, Stride, Way, sys};
use crate::config::limits;

/// The large buffer of one driver. It takes memory when it is first used.
#[derive(Debug, Default)]
pub(in crate::driver) struct Wide {
    buffer: Vec<u8>,
    /// Made when a step first goes through it, and empty between steps.
    pipe: Option<Pipe>,
    /// A step went through the pipe since it was last trimmed.
    used: bool,
    /// Bytes that destinations took of the buffer.
    copied_bytes: u64,
    /// Bytes that destinations took of the pipe.
    spliced_bytes: u64,
}

/// A step that moved nothing.
const NOTHING: Carried = Carried { taken: 0, tail: None, source: None, failed: None };

/// What a step found out about the source's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::driver) struct Seen {
    /// Its receive queue was empty at the end.
    pub(in crate::driver) dry: bool,
}

impl Wide {
    /// What was counted, with the bytes it moved and the CPU time of this thread.
    pub(in crate::driver) fn counted(&self, counters: Counters) -> Counters {
        let Self { copied_bytes, spliced_bytes, .. } = *self;
        Counters { cpu_ns: sys::thread_cpu_ns(), copied_bytes, spliced_bytes, ..counters }
    }

    /// Closes the pipe where nothing went through it since the last call.
    pub(in crate::driver) fn trim(&mut self) {
        if !std::mem::take(&mut self.used) {
            self.pipe = None;
        }
    }

    /// Receives from one socket and sends to the other.
    pub(in crate::driver) fn carry(
        &mut self,
        from: i32,
        to: i32,
        pool: &mut Pool,
        stride: Stride,
    ) -> (Carried, Seen) {
        if self.buffer.is_empty() {
            self.buffer.resize(limits::WIDE_BYTES as usize, 0);
        }
        // A tail must find buffers.
        let room = pool.free().div_ceil(2) * pool.buffer_bytes() as usize;
        let tail_max = room.min(stride.tail_max as usize);
        let mut carried = NOTHING;
        if tail_max == 0 {
            carried.source = Some(Received::Failed(Errno::NO_BUFFERS));
            return (carried, Seen { dry: false });
        }
        if stride.by == Way::Pipe && self.pipe.is_none() {
            // Without a descriptor for one, the buffer does.
            self.pipe = Pipe::new().ok();
        }
        let pipe = self.pipe.as_ref().filter(|_| stride.by == Way::Pipe);
        let Some(pipe) = pipe else {
            let (carried, seen) = copy(&mut self.buffer, (from, to), pool, tail_max);
            self.copied_bytes += u64::from(carried.taken);
            return (carried, seen);
        };
        self.used = true;
        let (carried, sound) = splice(pipe, &mut self.buffer, (from, to), pool, tail_max);
        self.spliced_bytes += u64::from(carried.taken);
        if !sound {
            // What is left in it is of a connection that is gone.
            self.pipe = None;
        }
        // A pipe holds as many packets as it has places, each perhaps with few bytes: that little came says nothing.
        let dry = carried == NOTHING;
        (carried, Seen { dry })
    }
}

/// A step through the buffer. Of what the destination does not take at most `tail_max` bytes are kept: where more could
/// be left, the bytes are only looked at first, and the rest stays in the source's socket.
fn copy(
    buffer: &mut [u8],
    (from, to): (i32, i32),
    pool: &mut Pool,
    tail_max: usize,
) -> (Carried, Seen) {
    let mut carried = NOTHING;
    let least = pool.buffer_bytes() as usize;
    let most = buffer.len().min(sys::send_room(to).max(least));
    let look = if most > tail_max { sys::peek } else { sys::recv };
    let seen = match look(from, &mut buffer[..most]) {
        Ok(Some(n)) if n > 0 => n,
        nothing => {
            carried.source = source_of(nothing);
            return (carried, Seen { dry: carried.source.is_none() });
        }
    };
    let taken = match sys::send(to, &buffer[..seen]) {
        Ok(taken) => taken,
        Err(e) => {
            carried.failed = Some(e);
            return (carried, Seen { dry: false });
        }
    };
    carried.taken = u32::try_from(taken).unwrap_or(u32::MAX);
    let kept = seen.min(taken + tail_max);
    carried.tail = chain(pool, &buffer[taken..kept]);
    if most > tail_max
        && let Err(e) = sys::discard(from, &mut buffer[..kept])
    {
        carried.source = Some(Received::Failed(e));
    }
    (carried, Seen { dry: seen < most && kept == seen })
}

/// A step through the pipe, no longer than its tail may be. Whether the pipe is empty afterwards.
fn splice(
    pipe: &Pipe,
    buffer: &mut [u8],
    (from, to): (i32, i32),
    pool: &mut Pool,
    tail_max: usize,
) -> (Carried, bool) {
    let mut carried = NOTHING;
    let seen = match pipe.fill(from, tail_max) {
        Ok(Some(n)) if n > 0 => n,
        nothing => {
            carried.source = source_of(nothing);
            return (carried, true);
        }
    };
    let mut taken = 0;
    while taken < seen {
        match pipe.drain(to, seen - taken) {
            Ok(Some(n)) if n > 0 => taken += n,
            Ok(_) => break,
            Err(e) => {
                carried.failed = Some(e);
                break;
            }
        }
    }
    carried.taken = u32::try_from(taken).unwrap_or(u32::MAX);
    let left = seen - taken;
    if carried.failed.is_none() && left > 0 {
        let read = pipe.read(&mut buffer[..left]);
        debug_assert_eq!(read, left, "what was put into a pipe is there");
        carried.tail = chain(pool, &buffer[..read]);
    }
    (carried, carried.failed.is_none() || left == 0)
}

/// What a read that brought no byte says of its source. `None`: there is nothing yet.
fn source_of(nothing: Result<Option<usize>, Errno>) -> Option<Received> {
    match nothing {
        Ok(Some(_)) => Some(Received::End),
        Ok(None) => None,
        Err(e) => Some(Received::Failed(e)),
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
