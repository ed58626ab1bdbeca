//! The contract on io_uring, and what no other driver has.

use super::*;
use crate::driver::contract::loopback::{Fresh, Loopback};
use crate::driver::contract::{self as cases, contract_tests};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

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

#[test]
fn sends_are_made_at_once_where_few_completions_came() {
    let Some(mut uring) = Uring::fresh(128, 4096) else { return };
    let few = limits::SPARSE_COMPLETIONS_MAX;
    for (completions, at_once) in [(0, true), (few, true), (few + 1, false), (1, true)] {
        (0..completions).for_each(|_| uring.push(opcode::Nop::new().build(), Token::UNHEARD));
        let now = uring.read_clock();
        uring.turn(Some(now)).unwrap();
        assert_eq!(uring.sends_at_once(), at_once, "{completions} completions");
        assert!(uring.next().is_none(), "nobody waits for these");
    }
}

#[test]
fn a_ring_takes_the_largest_pool_there_may_be() {
    let Some(mut uring) = Uring::fresh(limits::BUFFERS_MAX, 512) else { return };
    let now = uring.read_clock();
    uring.turn(Some(now)).unwrap();
    assert_eq!(uring.published(), usize::from(limits::WINDOW_MIN));
}

/// How many of all buffers have memory that was not given back.
fn warm(uring: &Uring) -> usize {
    let all = 0..u32::try_from(uring.pool.count()).unwrap();
    all.filter(|buffer| uring.pool.is_warm(BufferId(*buffer))).count()
}

#[test]
fn a_window_gives_memory_back_some_at_a_time_and_all_of_it_after_enough_turns() {
    let Some(mut uring) = Uring::fresh(2048, 4096) else { return };
    let used: Vec<BufferId> = std::iter::from_fn(|| uring.pool.take()).collect();
    used.into_iter().for_each(|buffer| uring.pool.give_back(buffer));
    // It has grown to half of the pool, and was large enough since.
    (0..4).for_each(|_| uring.window.ran_dry());
    uring.window.refill(&mut uring.pool);
    assert_eq!((uring.window.published(), warm(&uring)), (1024, 2048));
    uring.trim();
    uring.trim();
    let mut before = warm(&uring);
    while uring.trim_on() {
        let now = warm(&uring);
        assert!(before - now <= limits::TRIM_BUFFERS_MAX, "{before} -> {now}");
        before = now;
    }
    assert_eq!(warm(&uring), usize::from(limits::WINDOW_MIN) + limits::BUFFERS_WARM);
}

#[test]
fn a_window_that_runs_dry_keeps_what_memory_it_still_has() {
    let Some(mut uring) = Uring::fresh(2048, 4096) else { return };
    let used: Vec<BufferId> = std::iter::from_fn(|| uring.pool.take()).collect();
    used.into_iter().for_each(|buffer| uring.pool.give_back(buffer));
    (0..4).for_each(|_| uring.window.ran_dry());
    uring.window.refill(&mut uring.pool);
    (0..2).for_each(|_| uring.window.trim());
    uring.window.trim_on(&mut uring.pool, &mut 10);
    assert!(uring.window.trims());
    uring.window.ran_dry();
    uring.window.trim_on(&mut uring.pool, &mut 10);
    assert_eq!((uring.window.trims(), warm(&uring)), (false, 2038));
}

/// Memory is given back between two turns, while much of what the first brought is not read yet.
#[test]
fn what_was_received_and_not_read_is_kept() {
    const MANY: u32 = 200;
    let Some(mut uring) = Uring::fresh(1024, 4096) else { return };
    // All buffers have been used, and the window has grown and was large enough since.
    let used: Vec<BufferId> = std::iter::from_fn(|| uring.pool.take()).collect();
    used.into_iter().for_each(|buffer| uring.pool.give_back(buffer));
    (0..4).for_each(|_| uring.window.ran_dry());
    uring.window.trim();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut far: Vec<TcpStream> = Vec::new();
    let mut near: Vec<TcpStream> = Vec::new();
    for slot in 0..MANY {
        far.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        near.push(listener.accept().unwrap().0);
        let socket = Socket(near[slot as usize].as_raw_fd());
        uring.arm_recv(Key { slot, generation: 0 }, Side::Client, &socket, Arm::Multi(1 << 20));
    }
    for (slot, far) in (0..MANY).zip(&mut far) {
        far.write_all(&slot.to_be_bytes()).unwrap();
    }
    while uring.cq.len() < MANY as usize {
        let soon = uring.read_clock().plus_ms(5);
        uring.turn(Some(soon)).unwrap();
    }
    uring.trim();
    uring.window.trim();
    while uring.pool.trim_on(&mut 1) {}
    assert!(uring.trim_on(), "the window's part is left for when all is read");
    while let Some(completion) = uring.next() {
        let Completion::Received { key, what: Received::Bytes(buffer), .. } = completion else {
            panic!("{completion:?}")
        };
        assert_eq!(uring.pool.bytes(buffer), key.slot.to_be_bytes(), "slot {}", key.slot);
        uring.pool.give_back(buffer);
    }
}

/// Has so many connections closed, and returns their far ends.
fn close_many(uring: &mut Uring, many: usize) -> Vec<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = |_| {
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        far.set_nonblocking(true).unwrap();
        uring.close(None, Socket::owned(listener.accept().unwrap().0));
        far
    };
    (0..many).map(connection).collect()
}

/// Whether the other end of a connection was closed.
fn is_over(mut far: &TcpStream) -> bool {
    far.read(&mut [0]).is_ok_and(|read| read == 0)
}

#[test]
fn a_turn_closes_what_it_was_told_to_and_what_is_too_much_for_it_is_closed_at_once() {
    let Some(mut uring) = Uring::fresh(128, 4096) else { return };
    for _ in 0..3 {
        let far = close_many(&mut uring, limits::CLOSES_PER_TURN_MAX + 1);
        let (last, others) = far.split_last().unwrap();
        assert!(is_over(last) && !others.iter().any(is_over));
        let at_once = uring.read_clock();
        uring.turn(Some(at_once)).unwrap();
        assert!(others.iter().all(is_over));
        assert!(uring.next().is_none(), "nobody is told");
    }
}

#[test]
fn a_ring_that_goes_closes_what_it_was_told_to() {
    let Some(mut uring) = Uring::fresh(128, 4096) else { return };
    let far = close_many(&mut uring, 3);
    uring.make_room(limits::SQ_ENTRIES as usize);
    assert!(far.iter().all(is_over), "a queue that is full is submitted");
    // Whoever gets one of their numbers now keeps it.
    let others = close_many(&mut uring, 2);
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(!others.iter().any(is_over));
    drop(uring);
    assert!(others.iter().all(is_over) && own.local_addr().is_ok());
}

/// The ring's descriptor is made to name something that is no ring, as far as the kernel can tell.
#[test]
fn a_ring_that_cannot_be_entered_is_counted_and_then_given_up() {
    let Some(mut uring) = Uring::fresh(128, 4096) else { return };
    let at_once = uring.read_clock();
    uring.turn(Some(at_once)).expect("it is a ring");
    let null = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: the ring lives until `uring` is dropped, which is the last thing here.
    let fd = unsafe { &*uring.ring }.as_raw_fd();
    // SAFETY: takes and returns numbers; both descriptors are open.
    assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), fd) }, fd);
    let far = close_many(&mut uring, 1);
    for failure in 1..=u64::from(limits::ENTER_FAILURES_MAX) {
        uring.turn(Some(at_once)).expect("it may still mend");
        assert_eq!(uring.counters().enter_failed, failure);
    }
    uring.turn(Some(at_once)).expect_err("it did not");
    while uring.room() > 0 {
        uring.push(opcode::Nop::new().build(), Token::UNHEARD);
    }
    assert!(close_many(&mut uring, 1).iter().all(is_over), "sessions end all the same");
    drop(uring);
    assert!(far.iter().all(is_over), "what it could not close is closed");
}
