//! Sockets that the ring closes with what else it submits: a call less for each.

use crate::config::limits;
use crate::driver::sys;
use io_uring::types::Fd;
use io_uring::{opcode, squeue};

/// What was told to be closed, and may not have been submitted yet.
#[derive(Default)]
pub(super) struct Closing {
    /// The descriptor, and how many entries the queue had taken with this one.
    asked: Vec<(u64, i32)>,
}

impl Closing {
    /// Whether one more may wait for the next turn: until then its descriptor is taken.
    pub(super) fn has_room(&self) -> bool {
        self.asked.len() < limits::CLOSES_PER_TURN_MAX
    }

    /// A close that only says something where it fails.
    pub(super) fn entry(fd: i32) -> squeue::Entry {
        opcode::Close::new(Fd(fd)).build().flags(squeue::Flags::SKIP_SUCCESS)
    }

    /// A close was put into the queue, as entry `number`.
    pub(super) fn add(&mut self, number: u64, fd: i32) {
        self.asked.push((number, fd));
    }

    /// The kernel has taken all entries up to `number`, and closes are over when they are taken.
    pub(super) fn taken(&mut self, number: u64) {
        self.asked.retain(|(asked, _)| *asked > number);
    }

    /// Closes what the ring will not.
    pub(super) fn finish(&mut self) {
        self.asked.drain(..).for_each(|(_, fd)| sys::close(fd));
    }
}
