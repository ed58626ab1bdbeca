//! The contract on io_uring, and what no other driver has.

use super::*;
use crate::driver::contract::loopback::{Fresh, Loopback};
use crate::driver::contract::{self as cases, contract_tests};
use std::cell::Cell;

thread_local! {
    /// How many submissions the rings of this test take, and how many completions for each of them.
    static SIZE: Cell<(u32, u32)> =
        const { Cell::new((limits::SQ_ENTRIES, limits::CQ_ENTRIES / limits::SQ_ENTRIES)) };
}

impl Fresh for Uring {
    fn fresh(buffers: u16, buffer_bytes: u32) -> Option<Self> {
        let credit = true;
        let (submissions, completions_each) = SIZE.get();
        let ring = build_ring(submissions, completions_each).ok()?;
        Some(Self::with_ring(ring, buffers, buffer_bytes, credit).expect("only rings are refused"))
    }

    fn published(&self) -> usize {
        usize::from(self.window.published())
    }
}

contract_tests!(Loopback<Uring>);

/// Most of what they say does not fit.
#[test]
#[ignore = "takes half a minute: cargo test --lib -- --ignored the_smallest_of_rings"]
fn the_contract_holds_on_the_smallest_of_rings() {
    SIZE.set((2, 1));
    cases::run_all::<Loopback<Uring>>();
}

#[test]
fn what_a_cancel_interrupted_was_cancelled() {
    assert_eq!(number_of(-libc::EINTR), Err(Errno::CANCELED));
    assert_eq!(number_of(-libc::ECONNRESET), Err(Errno::RESET));
    assert_eq!(number_of(7), Ok(7));
}

/// The ring's descriptor is made to name something that is no ring, as far as the kernel can tell.
#[test]
fn a_ring_that_cannot_be_entered_is_counted_and_then_given_up() {
    use std::os::fd::AsRawFd as _;
    let Some(mut uring) = Uring::fresh(128, 4096) else { return };
    let at_once = uring.read_clock();
    uring.turn(Some(at_once)).expect("it is a ring");
    let null = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: the ring lives until `uring` is dropped, which is the last thing here.
    let fd = unsafe { &*uring.ring }.as_raw_fd();
    // SAFETY: takes and returns numbers; both descriptors are open.
    assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), fd) }, fd);
    for failure in 1..=u64::from(limits::ENTER_FAILURES_MAX) {
        uring.turn(Some(at_once)).expect("it may still mend");
        assert_eq!(uring.counters().enter_failed, failure);
    }
    uring.turn(Some(at_once)).expect_err("it did not");
}
