//! The part of the pool that the kernel may fill: a ring of provided buffers.
//!
//! The kernel takes buffers in the order they were published, so a large ring walks through all its memory and a small
//! one stays in the cache. The window begins small, doubles when it runs dry, and is refilled once a turn from the top
//! of the pool's stack, where the buffers that were used last are.

use super::super::pool::{BufferId, Pool};
use crate::config::limits;
use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// The published buffers.
pub(super) struct Window {
    ring: NonNull<BufRingEntry>,
    entries: u16,
    tail: u16,
    published: u16,
    size: u16,
    size_max: u16,
    /// It ran dry since it was last trimmed.
    dry: bool,
    /// Memory is being given back, some at a time.
    trims: bool,
}

impl Window {
    /// An empty window onto a pool of `buffers`, registered with the ring.
    pub(super) fn new(submitter: &Submitter<'_>, buffers: u16) -> io::Result<Self> {
        let fits = buffers.checked_next_power_of_two();
        let entries = fits.map_or(limits::WINDOW_MAX, |fits| fits.min(limits::WINDOW_MAX));
        // SAFETY: a new private anonymous mapping touches no memory that exists.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::bytes(entries),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        let size = limits::WINDOW_MIN.min(buffers.div_ceil(2));
        let window = Self {
            ring,
            entries,
            tail: 0,
            published: 0,
            size,
            // The rest is for what does not receive by the window.
            size_max: entries.min(buffers.div_ceil(2)),
            dry: false,
            trims: false,
        };
        // SAFETY: the mapping is page-aligned, holds `entries` entries and outlives the ring (see `Uring::drop`).
        unsafe { submitter.register_buf_ring_with_flags(memory as u64, entries, GROUP, 0) }?;
        Ok(window)
    }

    const fn bytes(entries: u16) -> usize {
        entries as usize * size_of::<BufRingEntry>()
    }

    /// The kernel has used one of the published buffers.
    pub(super) const fn taken(&mut self, pool: &mut Pool) {
        self.published -= 1;
        pool.withdraw();
    }

    /// How many buffers the kernel may fill.
    #[cfg(test)]
    pub(super) const fn published(&self) -> u16 {
        self.published
    }

    /// A receive found no buffer: the window is too small for what comes in one turn.
    pub(super) fn ran_dry(&mut self) {
        (self.dry, self.trims) = (true, false);
        self.size = self.size.saturating_mul(2).min(self.size_max);
    }

    /// Goes back to the smallest window where it was large enough since the last time, and begins to give the memory of
    /// the other published buffers back to the kernel; see [`trim_on`](Self::trim_on).
    pub(super) fn trim(&mut self) {
        self.trims = !std::mem::take(&mut self.dry);
        if self.trims {
            self.size = limits::WINDOW_MIN.min(self.size_max);
        }
    }

    /// Whether more memory is to be given back.
    pub(super) const fn trims(&self) -> bool {
        self.trims
    }

    /// Goes on to give memory back until there is no `room`; the kernel takes it again when it fills those buffers. To
    /// be called only while nothing that was received waits to be read: what is in a buffer is lost.
    pub(super) fn trim_on(&mut self, pool: &mut Pool, room: &mut usize) {
        if !self.trims {
            return;
        }
        for ahead in self.size..self.published {
            if *room == 0 {
                return;
            }
            let at =
                self.tail.wrapping_sub(self.published).wrapping_add(ahead) & (self.entries - 1);
            // SAFETY: `at` is below `entries`, and only this thread writes entries.
            let buffer = unsafe { &*self.ring.as_ptr().add(usize::from(at)) }.bid();
            *room -= usize::from(pool.chill(BufferId(buffer.into())));
        }
        self.trims = false;
    }

    /// Publishes buffers until the window is full or the pool is empty.
    pub(super) fn refill(&mut self, pool: &mut Pool) {
        if self.published >= self.size {
            return;
        }
        while self.published < self.size {
            let Some(buffer) = pool.publish() else { break };
            self.put(buffer, pool);
        }
        // SAFETY: the tail overlays the first entry's spare field, is aligned for u16 and written by this thread alone.
        let tail = unsafe { &*BufRingEntry::tail(self.ring.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    fn put(&mut self, buffer: BufferId, pool: &Pool) {
        let at = usize::from(self.tail & (self.entries - 1));
        // SAFETY: `at` is below `entries`. The kernel reads an entry only after the tail has passed it, and no
        // more than `entries` buffers are published at once, so it has done with what stood here.
        let entry = unsafe { &mut *self.ring.as_ptr().add(at) };
        entry.set_addr(pool.at(buffer).as_ptr() as u64);
        entry.set_len(pool.buffer_bytes());
        entry.set_bid(u16::try_from(buffer.number()).expect("the mapping has fewer buffers"));
        self.tail = self.tail.wrapping_add(1);
        self.published += 1;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: this is the mapping `new` made; the ring that used it is gone.
        unsafe { libc::munmap(self.ring.as_ptr().cast(), Self::bytes(self.entries)) };
    }
}
