//! Time, readiness and waking.

use super::Harness;
use super::stage::{Stage, bytes, key};
use crate::driver::{Arm, Completion, Driver, Interest};
use std::time::Duration;

pub(super) fn a_turn_ends_in_time<H: Harness>(stage: &mut Stage<H>) {
    let (near, _far) = stage.client(key(1, 0));
    stage.arm(&near, Arm::Once);
    stage.silence();
    for ms in [0, 1, 20] {
        let until = stage.driver().now().plus_ms(ms);
        stage.driver().turn(Some(until)).unwrap();
        let now = stage.driver().now();
        assert!(stage.driver().next().is_none());
        assert!(now >= until, "nothing came, and {} ns are left", until.since_ns(now));
        let late_ms = now.since_ns(until) / 1_000_000;
        assert!(late_ms < 100, "{late_ms} ms late");
    }
    stage.driver().abort(&near.socket);
    stage.received(&near);
    stage.close(near);
}

pub(super) fn a_poll_tells_what_came<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.backend(key(1, 0));
    let poll = |stage: &mut Stage<H>, interest| {
        stage.driver().arm_poll(near.key, near.side, &near.socket, interest);
    };
    poll(stage, Interest::Writable);
    assert_eq!(stage.polled(&near), Ok(()));
    poll(stage, Interest::Readable);
    stage.silence();
    stage.far_writes(&mut *far, &bytes(10));
    assert_eq!(stage.polled(&near), Ok(()));
    // Readiness takes nothing, and is told again.
    poll(stage, Interest::Readable);
    assert_eq!(stage.polled(&near), Ok(()));
    assert_eq!(stage.receive(&near, Arm::Once, 10), (bytes(10), None));
    let (buffer, _) = stage.fill(&near, &bytes(8 << 20));
    far.finish();
    poll(stage, Interest::Gone);
    stage.silence();
    far.reset();
    assert_eq!(stage.polled(&near), Ok(()));
    assert_ne!(stage.sent(&near, buffer), Ok(super::stage::BUFFER_BYTES));
    for interest in [Interest::Readable, Interest::Gone] {
        poll(stage, interest);
        assert_eq!(stage.polled(&near), Ok(()));
    }
    stage.close(near);
}

pub(super) fn the_waker_ends_a_turn<H: Harness>(stage: &mut Stage<H>) {
    let waker = stage.driver().waker();
    stage.silence();
    waker.wake();
    waker.wake();
    let woken = |c: &Completion| matches!(c, Completion::Woken).then_some(());
    let start = stage.driver().now();
    let until = start.plus_ms(5000);
    stage.driver().turn(Some(until)).unwrap();
    assert!(stage.driver().now() < until, "the waker was not heard");
    stage.turn(0);
    stage.hear("the waker", woken);
    stage.silence();
    if !H::REAL {
        return;
    }
    // And from another thread, in the middle of a turn.
    let thread = std::thread::spawn(move || {
        std::thread::park_timeout(Duration::from_millis(30));
        waker.wake();
    });
    let until = stage.driver().now().plus_ms(5000);
    stage.driver().turn(Some(until)).unwrap();
    assert!(stage.driver().now() < until, "the waker was not heard");
    stage.turn(0);
    stage.hear("the waker", woken);
    thread.join().unwrap();
}
