//! What a full completion queue costs: time, and nothing else. On real rings that are very small.

#![allow(clippy::unwrap_used, reason = "a case that cannot go on has failed")]

use super::*;
use crate::policy::health::{Fault, Ring, Totals};
use socket2::SockRef;
use std::io::Write as _;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::IntoRawFd as _;
use std::time::Duration;

/// Submissions and completions of these rings.
const ENTRIES: u32 = 8;
const COMPLETIONS: usize = 16;
/// Many more than completions find room for.
const PAIRS: u32 = 96;
const BUFFERS: u16 = 512;
/// Bytes of a message, and of a buffer: each message is a completion of its own.
const MESSAGE: usize = 64;
const MESSAGES: usize = 12;

/// A driver with a very small ring, and what it is to have counted.
struct Small {
    uring: Uring,
    overflown: u64,
    taken: u64,
}

/// Ringway's end of a connection and the other.
struct Pair {
    near: Socket,
    far: Option<TcpStream>,
}

fn key(slot: u32) -> Key {
    Key { slot, generation: 5 }
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// So many connections.
fn pairs(count: u32) -> Vec<Pair> {
    let listener = listener();
    let at = listener.local_addr().unwrap();
    let pair = |_| {
        let far = TcpStream::connect(at).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        Pair { near: Socket(near.into_raw_fd()), far: Some(far) }
    };
    (0..count).map(pair).collect()
}

/// The `n`th message of a connection.
fn message(slot: u32, n: usize) -> Vec<u8> {
    let text = format!("message {n} of connection {slot}");
    format!("{text:.>MESSAGE$}").into_bytes()
}

impl Pair {
    fn writes(&mut self, bytes: &[u8]) {
        self.far.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn resets(&mut self) {
        let far = self.far.take().unwrap();
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

impl Small {
    /// `None`: this kernel does not offer the driver.
    fn new() -> Option<Self> {
        let credit = true;
        let ring = build_ring(ENTRIES, u32::try_from(COMPLETIONS).unwrap() / ENTRIES).ok()?;
        let mut uring =
            Uring::with_ring(ring, BUFFERS, MESSAGE.try_into().unwrap(), credit).unwrap();
        assert_eq!(uring.cq.capacity(), COMPLETIONS);
        let at_once = uring.read_clock();
        uring.turn(Some(at_once)).unwrap();
        Some(Self { uring, overflown: 0, taken: 0 })
    }

    /// One turn, which must find something unless it ends `at_once`: at most so many completions of it.
    fn turn(&mut self, at_most: usize, at_once: bool) -> Vec<Completion> {
        const PATIENCE_MS: u64 = 5000;
        self.overflown += u64::from(self.uring.sq.cq_overflow());
        let now = self.uring.read_clock();
        self.uring.turn(Some(if at_once { now } else { now.plus_ms(PATIENCE_MS) })).unwrap();
        let waited = self.uring.now().since_ns(now);
        assert!(waited < PATIENCE_MS * 1_000_000, "a turn slept though something was there");
        let said: Vec<_> = std::iter::from_fn(|| self.uring.next()).take(at_most).collect();
        self.taken += said.len() as u64;
        said
    }

    fn arm(&mut self, slot: u32, pair: &Pair) {
        self.uring.arm_recv(key(slot), Side::Client, &pair.near, Arm::Multi(1 << 20));
    }

    fn watch(&mut self, slot: u32, pair: &Pair) {
        self.uring.arm_poll(key(slot), Side::Client, &pair.near, Interest::Gone);
    }

    /// Everything was given back, nothing more is said, and what was counted is what was.
    fn end(mut self, pairs: Vec<Pair>) {
        assert_eq!(self.turn(usize::MAX, true), []);
        let at_rest = self.uring.pool().free() + usize::from(self.uring.window.published());
        assert_eq!(at_rest, usize::from(BUFFERS), "buffers are missing");
        assert_eq!(self.uring.counters().cq_overflow, self.overflown);
        assert_eq!(self.uring.cq.overflow(), 0, "completions that the kernel threw away");
        for (slot, pair) in (0..).zip(pairs) {
            self.uring.close(Some((key(slot), Side::Client)), pair.near);
        }
    }
}

/// Receives of many connections at once, by someone who takes at most so many completions a turn.
fn receive_all(small: &mut Small, pairs: &mut [Pair], at_most: usize) {
    for (slot, pair) in (0..).zip(&mut *pairs) {
        pair.writes(&(0..MESSAGES).flat_map(|n| message(slot, n)).collect::<Vec<_>>());
        small.arm(slot, pair);
    }
    let mut got = vec![0; pairs.len()];
    let mut armed = vec![true; pairs.len()];
    while armed.contains(&true) {
        for completion in small.turn(at_most, false) {
            let Completion::Received { key, side: Side::Client, what, more } = completion else {
                panic!("nobody asked for {completion:?}");
            };
            let at = key.slot as usize;
            assert!(armed[at], "something came after the last word");
            armed[at] = more;
            match what {
                Received::Bytes(buffer) => {
                    let pool = small.uring.pool();
                    assert_eq!(pool.bytes(buffer), message(key.slot, got[at]), "in order");
                    pool.give_back(buffer);
                    got[at] += 1;
                }
                Received::End => {
                    assert!(!more && got[at] == MESSAGES, "an end after {} messages", got[at]);
                    continue;
                }
                Received::Failed(e) => assert_eq!((e, more), (Errno::NO_BUFFERS, false)),
            }
            if got[at] == MESSAGES && pairs[at].far.is_some() {
                pairs[at].far.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
            }
            if !more {
                armed[at] = true;
                small.arm(key.slot, &pairs[at]);
            }
        }
    }
    assert_eq!(got, vec![MESSAGES; pairs.len()]);
}

#[test]
fn receives_come_once_each_and_in_order() {
    for at_most in [usize::MAX, 3] {
        let Some(mut small) = Small::new() else { return };
        let mut all = pairs(PAIRS);
        receive_all(&mut small, &mut all, at_most);
        let overflown = small.uring.counters().cq_overflow;
        assert!(overflown > 0, "the queue never was full");
        assert_eq!(small.uring.counters().completions, small.taken, "none is counted twice");
        // And where there is room again, it is as if nothing had been.
        let mut calm = pairs(3);
        receive_all(&mut small, &mut calm[..1], at_most);
        assert_eq!(small.uring.counters().cq_overflow, overflown);
        all.extend(calm);
        small.end(all);
    }
}

/// A shard's counters are looked at once a second.
#[test]
fn a_queue_that_is_full_look_after_look_condemns_its_ring() {
    let Some(mut small) = Small::new() else { return };
    let mut verdicts = vec![];
    let mut ring = Ring::new(Totals::default());
    for _ in 0..limits::RING_OVERFLOWN_LOOKS {
        let mut all = pairs(PAIRS / 2);
        receive_all(&mut small, &mut all, usize::MAX);
        all.into_iter().for_each(|pair| small.uring.close(None, pair.near));
        let cq_overflow = small.uring.counters().cq_overflow;
        verdicts.push(ring.look(Totals { cq_overflow, ..Totals::default() }));
    }
    assert_eq!(verdicts.pop(), Some(Some(Fault::CqOverflow)));
    assert!(verdicts.iter().all(Option::is_none), "{verdicts:?}");
    small.end(vec![]);
}

#[test]
fn clients_come_in_once_each() {
    let Some(mut small) = Small::new() else { return };
    let listens = listener();
    let at = listens.local_addr().unwrap();
    listens.set_nonblocking(true).unwrap();
    let listens = Socket(listens.into_raw_fd());
    let clients: Vec<_> = (0..PAIRS).map(|_| TcpStream::connect(at).unwrap()).collect();
    let mut came = std::collections::BTreeSet::new();
    let mut accepts = true;
    small.uring.accept(ListenerId(1), &listens);
    while came.len() < clients.len() {
        for completion in small.turn(usize::MAX, false) {
            let Completion::Accepted { result: Ok(client), more, .. } = completion else {
                panic!("nobody asked for {completion:?}");
            };
            assert!(came.insert(small.uring.client_address(&client).unwrap()), "twice");
            small.uring.close(None, client);
            accepts = more;
            if !more && came.len() < clients.len() {
                small.uring.accept(ListenerId(1), &listens);
                accepts = true;
            }
        }
    }
    assert!(small.overflown > 0, "the queue never was full");
    while accepts {
        small.uring.stop_accepting(ListenerId(1));
        for completion in small.turn(usize::MAX, false) {
            let Completion::Accepted { result: Err(Errno::CANCELED), more, .. } = completion else {
                panic!("nobody asked for {completion:?}");
            };
            accepts = more;
        }
    }
    small.uring.close(None, listens);
    small.end(vec![]);
}

/// An end of sending for which there was no room is no end of the connection.
#[test]
fn who_has_only_finished_sending_is_not_gone() {
    let Some(mut small) = Small::new() else { return };
    let mut all = pairs(PAIRS);
    for (slot, pair) in (0..).zip(&all) {
        pair.far.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        small.watch(slot, pair);
    }
    for _ in 0..2 * PAIRS {
        assert_eq!(small.turn(usize::MAX, true), []);
    }
    assert!(small.overflown > 0, "the queue never was full");
    assert!(!small.uring.watches.wait(), "some are never armed again");
    for slot in (0..PAIRS).step_by(2) {
        small.uring.cancel(key(slot), Op::Poll(Side::Client));
    }
    for pair in all.iter_mut().skip(1).step_by(2) {
        pair.resets();
    }
    let mut heard = vec![None; all.len()];
    while heard.contains(&None) {
        for completion in small.turn(usize::MAX, false) {
            let Completion::Polled { key, side: Side::Client, result } = completion else {
                panic!("nobody asked for {completion:?}");
            };
            assert_eq!(heard[key.slot as usize].replace(result), None, "two last words");
        }
    }
    for (slot, result) in heard.into_iter().enumerate() {
        let cancelled = slot % 2 == 0;
        assert_eq!(result, Some(if cancelled { Err(Errno::CANCELED) } else { Ok(()) }));
    }
    small.end(all);
}

/// Cancelled while the word that cut it short is still on its way.
#[test]
fn a_poll_cut_short_can_be_cancelled() {
    let Some(mut small) = Small::new() else { return };
    let all = pairs(PAIRS);
    for (slot, pair) in (0..).zip(&all) {
        pair.far.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        small.watch(slot, pair);
    }
    assert_eq!(small.turn(0, true), []);
    for slot in 0..PAIRS {
        small.uring.cancel(key(slot), Op::Poll(Side::Client));
    }
    let mut left = PAIRS;
    while left > 0 {
        for completion in small.turn(usize::MAX, false) {
            let Completion::Polled { result: Err(Errno::CANCELED), .. } = completion else {
                panic!("nobody asked for {completion:?}");
            };
            left -= 1;
        }
    }
    small.end(all);
}

/// Places of completions that were taken are free at once, not only after the next turn.
#[test]
fn who_takes_what_is_said_has_room_for_more() {
    let Some(mut small) = Small::new() else { return };
    let count = u32::try_from(COMPLETIONS - 4).unwrap();
    let all = pairs(count);
    let buffers: Vec<_> = all.iter().map(|_| small.uring.pool().take().unwrap()).collect();
    let send = |small: &mut Small, slot: u32| {
        let at = slot as usize;
        small.uring.send(key(slot), Side::Client, &all[at].near, buffers[at]);
    };
    for (slot, buffer) in (0..).zip(&buffers) {
        small.uring.pool().fill(*buffer, &message(slot, 0));
        send(&mut small, slot);
    }
    let mut left = 100 * count;
    while left > 0 {
        for completion in small.turn(usize::MAX, false) {
            let Completion::Sent { key, result, .. } = completion else {
                panic!("nobody asked for {completion:?}");
            };
            assert_eq!(result.map(|n| n as usize), Ok(MESSAGE));
            left -= 1;
            if left >= count {
                send(&mut small, key.slot);
            }
        }
    }
    assert_eq!(small.uring.counters().cq_overflow, 0);
    buffers.into_iter().for_each(|buffer| small.uring.pool().give_back(buffer));
    small.end(all);
}

/// Whatever stands before it in the queue.
#[test]
fn a_receive_waits_for_its_send_where_one_place_was_left() {
    let Some(mut small) = Small::new() else { return };
    let mut all = pairs(2);
    all[1].writes(&message(1, 0));
    let buffer = small.uring.pool().take().unwrap();
    small.uring.pool().fill(buffer, &message(0, 0));
    // The send fails, so the receive must not begin.
    small.uring.finish(&all[0].near).unwrap();
    for _ in 1..ENTRIES {
        small.uring.cancel(key(9), Op::Connect);
    }
    assert_eq!(small.uring.room(), 1);
    small.uring.send_then_recv(key(0), Side::Client, &all[0].near, buffer, &all[1].near);
    let mut said = vec![];
    while said.len() < 2 {
        said.extend(small.turn(usize::MAX, false));
    }
    let failed = Received::Failed(Errno::CANCELED);
    for completion in said {
        match completion {
            Completion::Sent { result, .. } => assert_eq!(result, Err(Errno::BROKEN_PIPE)),
            Completion::Received { what, more, .. } => assert_eq!((what, more), (failed, false)),
            other => panic!("nobody asked for {other:?}"),
        }
    }
    small.uring.pool().give_back(buffer);
    small.end(all);
}
