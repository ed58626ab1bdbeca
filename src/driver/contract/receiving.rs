//! What is received, and how receives end.

use super::Harness;
use super::stage::{BUFFER_BYTES, Stage, bytes, key};
use crate::driver::{Arm, Driver, Errno, Received};

pub(super) fn once_brings_one_and_is_over<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    stage.far_writes(&mut *far, &bytes(3 * BUFFER_BYTES as usize));
    stage.turn(5);
    stage.arm(&near, Arm::Once);
    let (what, more) = stage.received(&near);
    let Received::Bytes(buffer) = what else { panic!("{what:?}") };
    assert!(!more, "it was for one receive");
    let brought = stage.empty(buffer);
    assert_eq!(brought, bytes(brought.len()));
    stage.silence();
    // The rest is still there, and closing now would be a reset.
    let left = 3 * BUFFER_BYTES as usize - brought.len();
    let (rest, _) = stage.receive(&near, Arm::Once, left);
    assert_eq!([brought, rest].concat(), bytes(3 * BUFFER_BYTES as usize));
    stage.close(near);
}

pub(super) fn multi_stops_at_its_credit<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    let credit = 5 * BUFFER_BYTES / 2;
    let total = 10 * BUFFER_BYTES as usize;
    stage.far_writes(&mut *far, &bytes(total));
    let mut all: Vec<u8> = Vec::new();
    while all.len() < total {
        let before = all.len();
        stage.arm(&near, Arm::Multi(credit));
        loop {
            if all.len() == total {
                // What it may still bring does not come any more.
                stage.driver().cancel(near.key, crate::driver::Op::Recv(near.side));
            }
            match stage.received(&near) {
                (Received::Bytes(buffer), more) => {
                    all.extend(stage.empty(buffer));
                    let brought = all.len() - before;
                    let most = (credit + BUFFER_BYTES) as usize;
                    assert!(brought < most, "{brought} bytes for a credit of {credit}");
                    assert!(!more || brought < credit as usize, "{brought} bytes, and goes on");
                    if !more {
                        break;
                    }
                }
                (Received::Failed(Errno::CANCELED), false) if all.len() == total => break,
                other => panic!("{other:?}"),
            }
        }
        if all.len() < total {
            stage.silence();
        }
    }
    assert_eq!(all, bytes(total));
    stage.close(near);
}

pub(super) fn bytes_come_in_order<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    let sizes: Vec<usize> = (0..60).map(|n| 1 + n * 97 % 5000).collect();
    let total = sizes.iter().sum();
    let stream = bytes(total);
    let (mut written, mut all) = (0, Vec::new());
    let mut armed = false;
    for (n, size) in sizes.into_iter().enumerate() {
        stage.far_writes(&mut *far, &stream[written..written + size]);
        written += size;
        let arm = if n % 2 == 0 { Arm::Once } else { Arm::Multi(10_000) };
        while all.len() < written {
            if !armed {
                stage.arm(&near, arm);
            }
            let (what, more) = stage.received(&near);
            let Received::Bytes(buffer) = what else { panic!("{what:?}") };
            all.extend(stage.empty(buffer));
            armed = more;
        }
    }
    assert!(all == stream, "{} bytes came out of order", all.len());
    far.finish();
    if !armed {
        stage.arm(&near, Arm::Once);
    }
    assert_eq!(stage.received(&near), (Received::End, false));
    stage.close(near);
}

pub(super) fn the_end_comes_after_all_bytes<H: Harness>(stage: &mut Stage<H>) {
    for (slot, arm) in [(1, Arm::Once), (2, Arm::Multi(1 << 20))] {
        let (near, mut far) = stage.client(key(slot, 0));
        stage.far_writes(&mut *far, &bytes(20_000));
        far.finish();
        let (all, ended) = stage.receive(&near, arm, usize::MAX);
        assert_eq!((all, ended), (bytes(20_000), Some(Received::End)));
        stage.silence();
        stage.close(near);
    }
}

pub(super) fn bytes_and_end_at_once<H: Harness>(stage: &mut Stage<H>) {
    // A kernel lost the end that came right behind bytes while a receive was armed (liburing issue 1549).
    for slot in 0..20 {
        let (near, mut far) = stage.client(key(slot, 0));
        let arm = if slot % 2 == 0 { Arm::Multi(1 << 20) } else { Arm::Once };
        stage.arm(&near, arm);
        stage.turn(u64::from(slot % 3));
        assert_eq!(far.write(&bytes(64)), 64);
        far.finish();
        let mut all = Vec::new();
        loop {
            match stage.received(&near) {
                (Received::Bytes(buffer), more) => {
                    all.extend(stage.empty(buffer));
                    if !more {
                        stage.arm(&near, arm);
                    }
                }
                other => {
                    assert_eq!(other, (Received::End, false), "after {} bytes", all.len());
                    break;
                }
            }
        }
        assert_eq!(all, bytes(64));
        stage.close(near);
    }
}

pub(super) fn a_reset_is_not_an_end<H: Harness>(stage: &mut Stage<H>) {
    for (slot, arm) in [(1, Arm::Once), (2, Arm::Multi(1000))] {
        let (near, far) = stage.client(key(slot, 0));
        stage.arm(&near, arm);
        stage.turn(5);
        far.reset();
        assert_eq!(stage.received(&near), (Received::Failed(Errno::RESET), false));
        stage.silence();
        stage.close(near);
        // The same when nobody was listening at the time.
        let (near, far) = stage.client(key(slot, 1));
        far.reset();
        stage.silence();
        stage.arm(&near, arm);
        assert_eq!(stage.received(&near), (Received::Failed(Errno::RESET), false));
        stage.close(near);
    }
}

pub(super) fn without_a_buffer_a_receive_ends_and_loses_nothing<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    let total = (usize::from(super::stage::BUFFERS) + 4) * BUFFER_BYTES as usize;
    let stream = bytes(total);
    let (mut written, mut held, mut all) = (0, std::collections::VecDeque::new(), Vec::new());
    let mut starved = 0;
    stage.arm(&near, Arm::Once);
    while all.len() < total {
        written += far.write(&stream[written..]);
        match stage.received(&near) {
            (Received::Bytes(buffer), _) => held.push_back(buffer),
            (Received::Failed(Errno::NO_BUFFERS), false) => {
                starved += 1;
                assert!(!held.is_empty(), "all buffers are back, and none is found");
                for buffer in held.drain(..) {
                    all.extend(stage.empty(buffer));
                }
            }
            other => panic!("{other:?}"),
        }
        let held_bytes: u32 =
            held.iter().map(|buffer| stage.h.driver().pool().filled(*buffer)).sum();
        if all.len() + held_bytes as usize == total {
            for buffer in held.drain(..) {
                all.extend(stage.empty(buffer));
            }
        } else {
            stage.arm(&near, Arm::Once);
        }
    }
    assert!(all == stream, "bytes were lost when no buffer was free");
    assert!(starved > 0, "{} buffers held more than there are", super::stage::BUFFERS);
    assert!(stage.driver().counters().no_buffers > 0);
    stage.close(near);
}

pub(super) fn what_comes_between_two_receives_stays<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    let stream = bytes(1000);
    let mut all = Vec::new();
    for part in stream.chunks(100) {
        stage.far_writes(&mut *far, part);
        stage.silence();
        all.extend(stage.receive(&near, Arm::Once, 100).0);
    }
    assert_eq!(all, stream);
    stage.close(near);
}
