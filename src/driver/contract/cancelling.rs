//! What is asked to end, ends, with exactly one last word.

use super::Harness;
use super::stage::{BUFFER_BYTES, Stage, bytes, key};
use crate::driver::{Arm, Driver, Errno, Interest, Op, Received};

pub(super) fn a_cancelled_receive_says_so_and_takes_nothing<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    let stream = bytes(100 * 40);
    let mut all = Vec::new();
    for (n, part) in stream.chunks(100).enumerate() {
        let arm = if n % 2 == 0 { Arm::Once } else { Arm::Multi(1000) };
        stage.arm(&near, arm);
        stage.turn(5);
        // The bytes race the cancel: before, after, or well after it.
        if n % 3 == 0 {
            stage.far_writes(&mut *far, part);
        }
        stage.driver().cancel(near.key, Op::Recv(near.side));
        if n % 3 == 1 {
            stage.far_writes(&mut *far, part);
        }
        loop {
            let (what, more) = stage.received(&near);
            match what {
                Received::Bytes(buffer) => all.extend(stage.empty(buffer)),
                other => assert_eq!(other, Received::Failed(Errno::CANCELED)),
            }
            if !more {
                break;
            }
        }
        stage.silence();
        if n % 3 == 2 {
            stage.far_writes(&mut *far, part);
        }
        let written = (n + 1) * 100;
        while all.len() < written {
            all.extend(stage.receive(&near, Arm::Once, 1).0);
        }
    }
    assert_eq!(all, stream);
    stage.close(near);
}

pub(super) fn a_cancelled_send_says_what_it_took<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.backend(key(1, 0));
    let stream = bytes(8 << 20);
    let (buffer, before) = stage.fill(&near, &stream);
    stage.driver().cancel(near.key, Op::Send(near.side));
    let taken = match stage.sent(&near, buffer) {
        Ok(taken) => {
            assert!((1..=BUFFER_BYTES).contains(&taken), "{taken} bytes");
            taken as usize
        }
        Err(error) => {
            assert_eq!(error, Errno::CANCELED);
            0
        }
    };
    // The connection is sound, and goes on where the send stopped.
    let total = before + taken;
    assert!(stage.far_reads(&mut *far, total) == stream[..total], "wrong bytes");
    stage.send_all(&near, &stream[total..total + 1000]);
    assert_eq!(stage.far_reads(&mut *far, 1000), stream[total..total + 1000]);
    stage.silence();
    stage.close(near);
}

pub(super) fn a_cancelled_poll_says_so<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    for interest in [Interest::Readable, Interest::Gone] {
        stage.driver().arm_poll(near.key, near.side, &near.socket, interest);
        stage.silence();
        stage.driver().cancel(near.key, Op::Poll(near.side));
        assert_eq!(stage.polled(&near), Err(Errno::CANCELED));
        stage.silence();
    }
    stage.far_writes(&mut *far, &bytes(10));
    assert_eq!(stage.receive(&near, Arm::Once, 10), (bytes(10), None));
    stage.close(near);
}

pub(super) fn cancelling_what_is_over_does_nothing<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    stage.far_writes(&mut *far, &bytes(10));
    stage.receive(&near, Arm::Once, 10);
    for op in [Op::Recv(near.side), Op::Send(near.side), Op::Poll(near.side)] {
        stage.driver().cancel(near.key, op);
    }
    stage.silence();
    // Nor does it end what is asked for afterwards.
    stage.arm(&near, Arm::Once);
    stage.silence();
    stage.far_writes(&mut *far, &bytes(10));
    let (what, _) = stage.received(&near);
    let Received::Bytes(buffer) = what else { panic!("{what:?}") };
    assert!(!stage.empty(buffer).is_empty());
    stage.driver().abort(&near.socket);
    stage.close(near);
}
