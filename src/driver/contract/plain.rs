//! Plain calls: what is read, sent and carried at once.

use super::stage::{BUFFER_BYTES, Near, Stage, bytes, key};
use super::{Far, Harness};
use crate::driver::sim::Sight;
use crate::driver::{Arm, Carried, Driver, Errno, Interest, Received, Stride, Way};

/// Most bytes of a tail in these cases: less than a step moves at least, so that bytes stay with the source.
const TAIL_MAX: u32 = 1000;

/// A session that is moved straight, and its ends.
struct Both {
    client: Near,
    backend: Near,
    client_far: Box<dyn Far>,
    backend_far: Box<dyn Far>,
    by: Way,
}

fn both<H: Harness>(stage: &mut Stage<H>, generation: u32, by: Way) -> Both {
    assert!(stage.driver().has_plain_calls());
    let (client, client_far) = stage.client(key(1, generation));
    let (backend, backend_far) = stage.backend(key(1, generation));
    Both { client, backend, client_far, backend_far, by }
}

impl Both {
    fn close<H: Harness>(self, stage: &mut Stage<H>) {
        for near in [self.client, self.backend] {
            stage.driver().abort(&near.socket);
            stage.close(near);
        }
    }

    /// One wide step from the client to the backend.
    fn carry<H: Harness>(&self, stage: &mut Stage<H>, tail_max: u32) -> (Carried, Vec<u8>) {
        let (from, to) = (&self.client, &self.backend);
        let (driver, stride) = (stage.driver(), Stride { tail_max, by: self.by });
        let carried = driver.carry_wide(from.key, from.side, &from.socket, &to.socket, stride);
        let mut tail = Vec::new();
        let mut next = carried.tail.map(|(first, _)| first);
        while let Some(buffer) = next {
            let is_last = carried.tail.is_some_and(|(_, last)| last == buffer);
            next = stage.driver().pool().next(buffer).filter(|_| !is_last);
            assert!(is_last || next.is_some(), "the chain ends before its last buffer");
            tail.extend(stage.empty(buffer));
        }
        (carried, tail)
    }

    /// Polls the client's socket until it has something.
    fn poll<H: Harness>(&self, stage: &mut Stage<H>) {
        let Near { key, side, socket } = &self.client;
        stage.driver().arm_poll(*key, *side, socket, Interest::Readable);
        assert_eq!(stage.polled(&self.client), Ok(()));
    }
}

pub(super) fn what_is_there_is_read_at_once<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    let read = |stage: &mut Stage<H>| {
        let Near { key, side, socket } = &near;
        stage.driver().recv_now(*key, *side, socket)
    };
    assert_eq!(read(stage), None, "nobody wrote");
    let stream = bytes(3 * BUFFER_BYTES as usize);
    stage.far_writes(&mut *far, &stream);
    far.finish();
    stage.silence();
    let mut all = Vec::new();
    let ended = loop {
        match read(stage) {
            Some(Received::Bytes(buffer)) => all.extend(stage.empty(buffer)),
            ended => break ended,
        }
    };
    assert!(all == stream, "{} bytes, of {}", all.len(), stream.len());
    assert_eq!(ended, Some(Received::End));
    stage.silence();
    stage.close(near);
    let (near, far) = stage.client(key(1, 1));
    far.reset();
    stage.silence();
    let Near { key, side, socket } = &near;
    let what = stage.driver().recv_now(*key, *side, socket);
    assert_eq!(what, Some(Received::Failed(Errno::RESET)));
    stage.close(near);
}

pub(super) fn straight_and_armed_receives_take_turns<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    let stream = bytes(40 * 100);
    let mut all = Vec::new();
    for (n, part) in stream.chunks(100).enumerate() {
        stage.far_writes(&mut *far, part);
        stage.silence();
        while all.len() < (n + 1) * 100 {
            let Near { key, side, socket } = &near;
            if n % 2 == 0 {
                match stage.driver().recv_now(*key, *side, socket) {
                    Some(Received::Bytes(buffer)) => all.extend(stage.empty(buffer)),
                    other => panic!("{other:?} after {} bytes", all.len()),
                }
            } else {
                all.extend(stage.receive(&near, Arm::Once, 1).0);
            }
        }
    }
    assert_eq!(all, stream);
    stage.close(near);
}

pub(super) fn what_there_is_room_for_is_sent_at_once<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.backend(key(1, 0));
    let stream = bytes(8 << 20);
    let mut taken = 0;
    let (mut full, mut fell_short) = (false, false);
    while !full {
        // So that what fills the socket is no whole number of buffers.
        let len = if taken == 0 { 1000 } else { BUFFER_BYTES };
        let part = &stream[taken..taken + len as usize];
        let buffer = stage.buffer(part);
        let n = stage.driver().send_now(&near.socket, buffer).unwrap();
        let untouched = stage.driver().pool().bytes(buffer) == part;
        assert!(untouched, "the buffer is still its owner's, as it was");
        stage.driver().pool().give_back(buffer);
        taken += n as usize;
        fell_short |= n < len;
        full = n == 0;
    }
    assert!(fell_short, "a socket that nobody reads fills");
    assert!(stage.far_reads(&mut *far, taken) == stream[..taken], "wrong bytes");
    stage.send_all(&near, &stream[taken..taken + 1000]);
    assert_eq!(stage.far_reads(&mut *far, 1000), stream[taken..taken + 1000]);
    far.reset();
    stage.silence();
    let buffer = stage.buffer(b"too late");
    let error = stage.driver().send_now(&near.socket, buffer).unwrap_err();
    assert!([Errno::RESET, Errno::BROKEN_PIPE].contains(&error), "{error}");
    stage.driver().pool().give_back(buffer);
    stage.close(near);
}

pub(super) fn a_wide_step_keeps_order_and_bounds_its_tail<H: Harness>(stage: &mut Stage<H>) {
    for (generation, by) in [(0, Way::Buffer), (1, Way::Pipe)] {
        let it = both(stage, generation, by);
        keeps_order_and_bounds_its_tail(stage, it);
    }
}

fn keeps_order_and_bounds_its_tail<H: Harness>(stage: &mut Stage<H>, mut it: Both) {
    let stream = bytes(if H::REAL { 8 << 20 } else { 1 << 20 });
    let (mut written, mut left_some) = (0, false);
    let mut all: Vec<u8> = Vec::new();
    // What of the stream was taken or came back as a tail.
    let mut carried = 0;
    while all.len() < stream.len() {
        written += it.client_far.write(&stream[written..]);
        stage.turn(1);
        if carried < written {
            it.poll(stage);
            let (step, tail) = it.carry(stage, TAIL_MAX);
            assert!(tail.len() <= TAIL_MAX as usize, "a tail of {} bytes", tail.len());
            assert_eq!((step.source, step.failed), (None, None));
            carried += step.taken as usize;
            let rest = carried..carried + tail.len();
            assert!(stream[rest] == tail[..], "the tail is not what follows");
            left_some |= tail.len() == TAIL_MAX as usize;
            carried += tail.len();
            // The destination takes the tail before the next step begins.
            for part in tail.chunks(BUFFER_BYTES as usize) {
                let buffer = stage.send(&it.backend, part);
                stage.until("room for the tail", |stage| {
                    read_some(&mut *it.backend_far, &mut all);
                    (!stage.said.is_empty()).then_some(())
                });
                let taken = stage.sent(&it.backend, buffer);
                assert_eq!(taken, Ok(u32::try_from(part.len()).unwrap()));
            }
        } else {
            read_some(&mut *it.backend_far, &mut all);
        }
    }
    assert!(all == stream, "bytes were lost or changed places");
    assert!(left_some || it.by == Way::Pipe, "no step was bound by its tail");
    it.close(stage);
}

fn read_some(far: &mut dyn Far, all: &mut Vec<u8>) {
    match far.read(200_000) {
        Sight::Bytes(part) => all.extend(part),
        Sight::Nothing => {}
        other => panic!("{other:?} after {} bytes", all.len()),
    }
}

pub(super) fn a_wide_step_says_the_end_after_all_bytes<H: Harness>(stage: &mut Stage<H>) {
    for (generation, by) in [(0, Way::Buffer), (1, Way::Pipe)] {
        let it = both(stage, generation, by);
        says_the_end_after_all_bytes(stage, it);
    }
}

fn says_the_end_after_all_bytes<H: Harness>(stage: &mut Stage<H>, mut it: Both) {
    let (step, tail) = it.carry(stage, TAIL_MAX);
    assert_eq!((step.taken, tail.len(), step.source), (0, 0, None), "nobody wrote");
    let stream = bytes(10_000);
    stage.far_writes(&mut *it.client_far, &stream);
    it.client_far.finish();
    stage.silence();
    let mut all = 0;
    loop {
        it.poll(stage);
        let (step, tail) = it.carry(stage, TAIL_MAX);
        stage.send_all(&it.backend, &tail);
        all += step.taken as usize + tail.len();
        if let Some(what) = step.source {
            assert_eq!((what, all), (Received::End, stream.len()));
            break;
        }
    }
    assert_eq!(stage.far_reads(&mut *it.backend_far, all), stream);
    it.close(stage);
}

pub(super) fn a_wide_step_without_a_buffer_leaves_all<H: Harness>(stage: &mut Stage<H>) {
    for (generation, by) in [(0, Way::Buffer), (1, Way::Pipe)] {
        let it = both(stage, generation, by);
        without_a_buffer_leaves_all(stage, it);
    }
}

fn without_a_buffer_leaves_all<H: Harness>(stage: &mut Stage<H>, mut it: Both) {
    stage.far_writes(&mut *it.client_far, &bytes(5000));
    stage.silence();
    let mut held = Vec::new();
    while let Some(buffer) = stage.driver().pool().take() {
        held.push(buffer);
    }
    let (step, _) = it.carry(stage, TAIL_MAX);
    assert_eq!((step.taken, step.tail), (0, None));
    assert_eq!(step.source, Some(Received::Failed(Errno::NO_BUFFERS)));
    // One is enough.
    stage.driver().pool().give_back(held.pop().unwrap());
    it.poll(stage);
    let (step, tail) = it.carry(stage, TAIL_MAX);
    assert!(step.taken as usize + tail.len() > 0 && step.source.is_none(), "{step:?}");
    for buffer in held {
        stage.driver().pool().give_back(buffer);
    }
    it.close(stage);
}

pub(super) fn a_wide_step_tells_which_end_is_broken<H: Harness>(stage: &mut Stage<H>) {
    for (generation, by) in [(0, Way::Buffer), (2, Way::Pipe)] {
        tells_which_end_is_broken(stage, generation, by);
    }
}

fn tells_which_end_is_broken<H: Harness>(stage: &mut Stage<H>, generation: u32, by: Way) {
    let it = both(stage, generation, by);
    let Both { client, backend, client_far, backend_far, by } = it;
    client_far.reset();
    stage.silence();
    let it = Both { client, backend, client_far: Box::new(Nobody), backend_far, by };
    let (step, _) = it.carry(stage, TAIL_MAX);
    assert_eq!((step.source, step.failed), (Some(Received::Failed(Errno::RESET)), None));
    it.close(stage);
    let mut it = both(stage, generation + 1, by);
    stage.far_writes(&mut *it.client_far, &bytes(100));
    let Both { client, backend, client_far, backend_far, by } = it;
    backend_far.reset();
    stage.silence();
    let it = Both { client, backend, client_far, backend_far: Box::new(Nobody), by };
    let (step, tail) = it.carry(stage, TAIL_MAX);
    let error = step.failed.expect("the destination is gone");
    assert!([Errno::RESET, Errno::BROKEN_PIPE].contains(&error), "{error}");
    assert_eq!((step.taken, tail.len()), (0, 0));
    it.close(stage);
}

/// The far end of a connection that is gone.
struct Nobody;

impl Far for Nobody {
    fn write(&mut self, _: &[u8]) -> usize {
        0
    }

    fn read(&mut self, _: usize) -> Sight {
        Sight::Nothing
    }

    fn finish(&mut self) {}

    fn reset(self: Box<Self>) {}
}
