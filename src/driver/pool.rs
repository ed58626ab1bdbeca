//! Receive buffers of one driver: one mapping, cut into equal parts, lent and given back.
//!
//! A buffer is free, published (the kernel may fill it), or owned by a session that holds its bytes. The free ones are
//! a stack: the one given back last is still in the cache and is used first. Buffers of one direction are chained
//! through [`Pool::set_next`], so that a queue of them costs its session two numbers.
//!
//! Bytes that wait for a slow reader can be [spilled](Pool::spill): they move to memory of their own, and the buffer
//! comes back. What was spilled is named, sent and given back like any buffer.

use crate::config::limits;
use std::io;
use std::ptr::NonNull;

/// Names a buffer of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferId(pub(in crate::driver) u32);

impl BufferId {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What is known of one buffer beside its bytes.
#[derive(Debug, Clone, Copy)]
struct Meta {
    /// Where its bytes begin.
    start: u32,
    /// How many bytes it holds from there.
    filled: u32,
    /// The buffer that follows in its queue.
    next: u32,
    /// Whether a session or the kernel has it.
    out: bool,
    /// Whether it has been used since its memory was last given back to the kernel.
    warm: bool,
}

/// The receive buffers of one driver.
#[derive(Debug)]
pub struct Pool {
    memory: NonNull<u8>,
    buffer_bytes: u32,
    page_bytes: usize,
    /// How many buffers the mapping has.
    count: usize,
    /// Of the mapping's buffers, and behind them of what was spilled.
    meta: Vec<Meta>,
    free: Vec<u32>,
    /// What was spilled: the memory of the numbers from `count` on. Empty where nothing is.
    spilled: Vec<Box<[u8]>>,
    /// Numbers from `count` on that name nothing now.
    spilled_free: Vec<u32>,
    spilled_bytes: usize,
    /// Of those that are out, how many the kernel may fill.
    published: usize,
    /// How many at the bottom of the stack of free buffers have no memory.
    cold: usize,
    /// Memory is being given back, some at a time.
    trims: bool,
}

const NONE: u32 = u32::MAX;

impl Pool {
    /// `count` buffers of `buffer_bytes`, all free. Memory is taken from the kernel as buffers are first used.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(count: u16, buffer_bytes: u32) -> io::Result<Self> {
        let bytes = usize::from(count) * buffer_bytes as usize;
        // SAFETY: a new private anonymous mapping touches no memory that exists.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        let meta = vec![
            Meta { start: 0, filled: 0, next: NONE, out: false, warm: false };
            usize::from(count)
        ];
        let page_bytes = page_bytes();
        Ok(Self {
            memory,
            buffer_bytes,
            page_bytes,
            count: usize::from(count),
            meta,
            free: (0..u32::from(count)).rev().collect(),
            spilled: Vec::new(),
            spilled_free: Vec::new(),
            spilled_bytes: 0,
            published: 0,
            cold: usize::from(count),
            trims: false,
        })
    }

    /// Bytes of one buffer.
    #[must_use]
    pub const fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// How many buffers there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// How many buffers nobody has.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Whether sessions have so many buffers that each direction should do with one.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.unused() <= self.count / 4
    }

    /// Bytes that were spilled and not given back.
    #[must_use]
    pub const fn spilled_bytes(&self) -> usize {
        self.spilled_bytes
    }

    /// Whether these bytes were spilled.
    #[must_use]
    pub const fn is_spilled(&self, buffer: BufferId) -> bool {
        buffer.0 as usize >= self.count
    }

    /// Moves an owned buffer's bytes to memory of their own, as long as they are, and gives the buffer back. The new
    /// name stands at the same place of its queue, but whoever pointed to the old one must point to it. Nothing may be
    /// in flight for the buffer.
    pub fn spill(&mut self, buffer: BufferId) -> BufferId {
        if self.is_spilled(buffer) {
            return buffer;
        }
        let spilled = self.hold(self.bytes(buffer).into());
        self.meta[spilled.0 as usize].next = self.meta[buffer.0 as usize].next;
        self.give_back(buffer);
        spilled
    }

    /// Takes bytes that are in memory of their own, at least one, as if they had been spilled.
    pub fn hold(&mut self, bytes: Box<[u8]>) -> BufferId {
        debug_assert!(!bytes.is_empty(), "what holds nothing has no name");
        let filled = u32::try_from(bytes.len()).expect("a queue is shorter than 16 MiB");
        let meta = Meta { start: 0, filled, next: NONE, out: true, warm: true };
        self.spilled_bytes += bytes.len();
        BufferId(if let Some(name) = self.spilled_free.pop() {
            self.spilled[name as usize - self.count] = bytes;
            self.meta[name as usize] = meta;
            name
        } else {
            self.spilled.push(bytes);
            self.meta.push(meta);
            u32::try_from(self.meta.len() - 1).expect("two directions a session are far fewer")
        })
    }

    /// Begins to give the memory of free buffers back to the kernel, but for those that will be used next; see
    /// `trim_on`.
    pub fn trim(&mut self) {
        self.trims = true;
        if self.spilled_bytes == 0 {
            self.meta.truncate(self.count);
            (self.spilled, self.spilled_free) = (Vec::new(), Vec::new());
        }
    }

    /// Goes on with that until there is no `room`. Whether more is to be done: not where a buffer whose memory went
    /// back is needed again, until the next time it begins. Buffers that are no whole pages keep theirs: the kernel
    /// takes whole pages, and with them what the next buffers hold.
    pub(in crate::driver) fn trim_on(&mut self, room: &mut usize) -> bool {
        let until = self.free.len().saturating_sub(limits::BUFFERS_WARM);
        while self.trims && self.cold < until {
            if *room == 0 {
                return true;
            }
            *room -= usize::from(self.chill(BufferId(self.free[self.cold])));
            self.cold += 1;
        }
        self.trims = false;
        false
    }

    /// How many buffers may be [chilled](Self::chill) in one turn.
    pub(in crate::driver) fn trim_room(&self) -> usize {
        let fit = limits::TRIM_BYTES_MAX / self.buffer_bytes as usize;
        fit.clamp(1, limits::TRIM_BUFFERS_MAX)
    }

    /// Gives the memory of a buffer that holds nobody's bytes back to the kernel, unless that has it already. Whether
    /// it did.
    pub(in crate::driver) fn chill(&mut self, buffer: BufferId) -> bool {
        let len = self.buffer_bytes as usize;
        let is_whole = len.is_multiple_of(self.page_bytes);
        if !is_whole || !std::mem::take(&mut self.meta[buffer.0 as usize].warm) {
            return false;
        }
        let start = self.at(buffer).as_ptr();
        // SAFETY: the range is a buffer's own part of the mapping, and whole pages (checked above, and a mapping
        // begins with a page): nobody's bytes are there.
        unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
        true
    }

    /// Whether a buffer's memory was not given back since it was last used.
    #[cfg(test)]
    pub(in crate::driver) fn is_warm(&self, buffer: BufferId) -> bool {
        self.meta[buffer.0 as usize].warm
    }

    /// Returns a buffer that a session owned.
    pub fn give_back(&mut self, buffer: BufferId) {
        let meta = &mut self.meta[buffer.0 as usize];
        debug_assert!(meta.out, "buffer {} was given back twice", buffer.0);
        *meta = Meta { start: 0, filled: 0, next: NONE, out: false, warm: true };
        if buffer.0 as usize >= self.count {
            let bytes = std::mem::take(&mut self.spilled[buffer.0 as usize - self.count]);
            self.spilled_bytes -= bytes.len();
            return self.spilled_free.push(buffer.0);
        }
        self.free.push(buffer.0);
    }

    /// Whether somebody has this buffer: a session, or the kernel.
    pub(in crate::driver) fn is_out(&self, buffer: BufferId) -> bool {
        self.meta.get(buffer.0 as usize).is_some_and(|meta| meta.out)
    }

    /// How many bytes an owned buffer holds.
    #[must_use]
    pub fn filled(&self, buffer: BufferId) -> u32 {
        self.meta[buffer.0 as usize].filled
    }

    /// The bytes an owned buffer holds.
    #[must_use]
    pub fn bytes(&self, buffer: BufferId) -> &[u8] {
        let meta = self.meta[buffer.0 as usize];
        debug_assert!(meta.out, "buffer {} is nobody's", buffer.0);
        // SAFETY: `start + filled` never exceeds `buffer_bytes`, so the slice lies in this buffer's part of the
        // mapping (of what was spilled: its length, so it lies in the box); no one writes there while its session,
        // which must go through this pool, owns it.
        unsafe {
            std::slice::from_raw_parts(
                self.at(buffer).as_ptr().add(meta.start as usize),
                meta.filled as usize,
            )
        }
    }

    /// Drops the first `n` bytes: they were sent.
    pub fn consume(&mut self, buffer: BufferId, n: u32) {
        let meta = &mut self.meta[buffer.0 as usize];
        debug_assert!(n <= meta.filled, "{n} bytes of {} were sent", meta.filled);
        meta.start += n;
        meta.filled -= n;
    }

    /// Moves the bytes of `from` behind those of `to` where there is room for all, and gives `from` back.
    /// Nothing may be in flight for either.
    pub fn merge(&mut self, to: BufferId, from: BufferId) -> bool {
        let (into, source) = (self.meta[to.0 as usize], self.meta[from.0 as usize]);
        let end = into.start + into.filled;
        if to == from || self.is_spilled(to) || source.filled > self.buffer_bytes - end {
            return false;
        }
        // SAFETY: both ranges lie in their own buffers (checked above for `to`, `filled`'s invariant for `from`), which
        // do not overlap, and both are owned by the caller's session.
        unsafe {
            let source_bytes = self.at(from).as_ptr().add(source.start as usize);
            let into_bytes = self.at(to).as_ptr().add(end as usize);
            std::ptr::copy_nonoverlapping(source_bytes, into_bytes, source.filled as usize);
        }
        self.meta[to.0 as usize].filled += source.filled;
        self.give_back(from);
        true
    }

    /// The buffer that follows this one in its queue.
    #[must_use]
    pub fn next(&self, buffer: BufferId) -> Option<BufferId> {
        let next = self.meta[buffer.0 as usize].next;
        (next != NONE).then_some(BufferId(next))
    }

    /// Puts `next` behind `buffer`.
    pub fn set_next(&mut self, buffer: BufferId, next: BufferId) {
        self.meta[buffer.0 as usize].next = next.0;
    }

    /// A free buffer, now the caller's and empty.
    pub fn take(&mut self) -> Option<BufferId> {
        let buffer = self.free.pop()?;
        self.meta[buffer as usize].out = true;
        if self.free.len() < self.cold {
            self.cold = self.free.len();
            self.trims = false;
        }
        Some(BufferId(buffer))
    }

    /// A free buffer for the kernel to fill: it is out, but holds nobody's bytes before [`withdraw`](Self::withdraw).
    pub fn publish(&mut self) -> Option<BufferId> {
        let buffer = self.take()?;
        self.published += 1;
        Some(buffer)
    }

    /// The kernel has filled one of the published buffers.
    pub const fn withdraw(&mut self) {
        self.published -= 1;
    }

    /// How many buffers hold nobody's bytes: the free and the published ones.
    #[must_use]
    pub fn unused(&self) -> usize {
        self.free.len() + self.published
    }

    /// Fills an owned, empty buffer with as much of `bytes` as it holds; returns how much that was.
    pub fn fill(&mut self, buffer: BufferId, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.buffer_bytes as usize);
        self.spare_mut(buffer)[..n].copy_from_slice(&bytes[..n]);
        self.set_filled(buffer, u32::try_from(n).unwrap_or(self.buffer_bytes));
        n
    }

    /// All of an owned, empty buffer, to be written to.
    pub(in crate::driver) fn spare_mut(&mut self, buffer: BufferId) -> &mut [u8] {
        debug_assert!(self.meta[buffer.0 as usize].out, "buffer {} is nobody's", buffer.0);
        // SAFETY: the range is exactly this buffer's part of the mapping, and `&mut self` keeps others from it.
        unsafe {
            std::slice::from_raw_parts_mut(self.at(buffer).as_ptr(), self.buffer_bytes as usize)
        }
    }

    /// Says how many bytes were written to the beginning of an owned buffer.
    pub(in crate::driver) fn set_filled(&mut self, buffer: BufferId, filled: u32) {
        debug_assert!(filled <= self.buffer_bytes);
        let meta = &mut self.meta[buffer.0 as usize];
        (meta.start, meta.filled) = (0, filled);
    }

    /// Where a buffer begins, for the kernel.
    pub(in crate::driver) fn at(&self, buffer: BufferId) -> NonNull<u8> {
        let at = buffer.0 as usize;
        if at >= self.count {
            return NonNull::from(&*self.spilled[at - self.count]).cast();
        }
        // SAFETY: its number is below `count`, so this stays inside the mapping.
        unsafe { self.memory.add(at * self.buffer_bytes as usize) }
    }

    /// Where a buffer's bytes begin, for the kernel, and how many there are.
    pub(in crate::driver) fn filled_at(&self, buffer: BufferId) -> (*const u8, u32) {
        let bytes = self.bytes(buffer);
        (bytes.as_ptr(), self.filled(buffer))
    }
}

/// Bytes of one page of memory.
fn page_bytes() -> usize {
    // SAFETY: takes a number and returns one.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(usize::MAX)
}

impl Drop for Pool {
    fn drop(&mut self) {
        let bytes = self.count * self.buffer_bytes as usize;
        // SAFETY: this is the mapping `new` made; whoever lent its buffers to the kernel drops its ring first.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_given_back_last_is_lent_first() {
        let mut pool = Pool::new(4, 512).unwrap();
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        pool.give_back(a);
        assert_eq!(pool.take(), Some(a));
        pool.give_back(b);
        assert_eq!(pool.free(), 3);
    }

    #[test]
    fn merging_keeps_order_and_needs_room_for_all() {
        let mut pool = Pool::new(4, 8).unwrap();
        let (a, b, c) = (pool.take().unwrap(), pool.take().unwrap(), pool.take().unwrap());
        for (buffer, bytes) in [(a, b"abc".as_slice()), (b, b"de"), (c, b"wxyz")] {
            pool.spare_mut(buffer)[..bytes.len()].copy_from_slice(bytes);
            pool.set_filled(buffer, u32::try_from(bytes.len()).unwrap());
        }
        pool.consume(a, 1);
        assert!(pool.merge(a, b));
        assert_eq!(pool.bytes(a), b"bcde");
        assert!(!pool.merge(a, c), "3 bytes are left behind the fifth");
        assert_eq!((pool.bytes(c), pool.free()), (b"wxyz".as_slice(), 2));
    }

    #[test]
    fn trimming_leaves_the_bytes_of_buffers_that_share_a_page() {
        for buffer_bytes in [106, 512, 4096, 6144, 16_384] {
            let count = u16::try_from(limits::BUFFERS_WARM * 3).unwrap();
            let mut pool = Pool::new(count, buffer_bytes).unwrap();
            let all: Vec<BufferId> = (0..count).map(|_| pool.take().unwrap()).collect();
            for buffer in &all {
                pool.fill(*buffer, &vec![7; buffer_bytes as usize]);
            }
            let (kept, free): (Vec<&BufferId>, Vec<&BufferId>) =
                all.iter().partition(|it| it.0 % 2 == 1);
            free.into_iter().for_each(|buffer| pool.give_back(*buffer));
            pool.trim();
            while pool.trim_on(&mut pool.trim_room()) {}
            for buffer in kept {
                assert!(pool.bytes(*buffer).iter().all(|byte| *byte == 7), "{buffer:?}");
            }
        }
    }

    /// Uses this many buffers, and gives them back.
    fn burst(pool: &mut Pool, many: usize) {
        let used: Vec<BufferId> = (0..many).map(|_| pool.take().unwrap()).collect();
        for buffer in used {
            pool.fill(buffer, b"used");
            pool.give_back(buffer);
        }
    }

    /// How many free buffers hold what was once written to them: memory that went back comes back as zeros.
    fn warm(pool: &mut Pool) -> usize {
        let all: Vec<BufferId> = std::iter::from_fn(|| pool.take()).collect();
        let warm = all.iter().filter(|buffer| pool.spare_mut(**buffer)[0] != 0).count();
        all.into_iter().rev().for_each(|buffer| pool.give_back(buffer));
        warm
    }

    #[test]
    fn a_turn_gives_back_no_more_than_its_part_and_all_have_gone_after_enough_of_them() {
        const BURST: usize = 1000;
        for (buffer_bytes, part) in
            [(4096, limits::TRIM_BUFFERS_MAX), (16_384, 64), (65_536, 16), (1 << 21, 1)]
        {
            let mut pool = Pool::new(1100, buffer_bytes).unwrap();
            assert_eq!(pool.trim_room(), part);
            burst(&mut pool, BURST);
            pool.trim();
            let mut turns = 1;
            loop {
                let mut room = part;
                let more = pool.trim_on(&mut room);
                let gone = pool.meta.iter().take(BURST).filter(|meta| !meta.warm).count();
                assert_eq!(gone, (turns * part).min(BURST - limits::BUFFERS_WARM));
                if !more {
                    break;
                }
                turns += 1;
            }
            assert_eq!(warm(&mut pool), limits::BUFFERS_WARM);
        }
    }

    #[test]
    fn memory_that_is_needed_again_while_it_goes_back_is_left_until_the_next_time() {
        let mut pool = Pool::new(1000, 4096).unwrap();
        burst(&mut pool, 1000);
        pool.trim();
        assert!(pool.trim_on(&mut 10));
        burst(&mut pool, 990);
        assert!(pool.trim_on(&mut 10), "those that went back were not used");
        burst(&mut pool, 1000);
        let mut room = 10;
        assert_eq!((pool.trim_on(&mut room), room), (false, 10));
        pool.trim();
        assert!(!pool.trim_on(&mut 1000));
        assert_eq!(warm(&mut pool), limits::BUFFERS_WARM);
    }

    #[test]
    fn buffers_that_come_back_a_few_at_a_time_keep_no_more_memory() {
        let mut pool = Pool::new(1000, 4096).unwrap();
        let mut used: Vec<BufferId> = (0..1000).map(|_| pool.take().unwrap()).collect();
        while let Some(buffer) = used.pop() {
            pool.fill(buffer, b"used");
            pool.give_back(buffer);
            pool.trim();
            pool.trim_on(&mut 1000);
        }
        assert_eq!(warm(&mut pool), limits::BUFFERS_WARM);
    }

    #[test]
    fn what_is_spilled_keeps_its_bytes_and_its_place_and_frees_its_buffer() {
        let mut pool = Pool::new(2, 8).unwrap();
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        pool.fill(a, b"abcd");
        pool.fill(b, b"xy");
        pool.consume(a, 1);
        pool.set_next(a, b);
        let spilled = pool.spill(a);
        assert!(pool.is_spilled(spilled) && pool.next(spilled) == Some(b));
        assert_eq!((pool.bytes(spilled), pool.free()), (b"bcd".as_slice(), 1));
        assert!(!pool.merge(spilled, b), "it is as long as its bytes were");
        let again = pool.take().unwrap();
        pool.fill(again, b"other");
        pool.consume(spilled, 2);
        assert_eq!((pool.bytes(spilled), pool.spilled_bytes()), (b"d".as_slice(), 3));
        pool.give_back(spilled);
        assert_eq!((pool.spilled_bytes(), pool.free()), (0, 0));
        assert_eq!(pool.spill(b), spilled, "numbers are used again");
    }

    #[test]
    fn an_empty_pool_lends_nothing() {
        let mut pool = Pool::new(1, 512).unwrap();
        assert!(pool.take().is_some());
        assert_eq!(pool.take(), None);
    }
}
