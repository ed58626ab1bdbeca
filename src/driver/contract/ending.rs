//! How connections end, and what of them may be heard afterwards.

use super::Harness;
use super::stage::{BUFFER_BYTES, Near, Stage, bytes, key};
use crate::driver::sim::Sight;
use crate::driver::{Arm, Completion, Driver, Errno, Interest, Received, Side};

pub(super) fn finish_is_told_after_all_bytes<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.backend(key(1, 0));
    let stream = bytes(10_000);
    stage.send_all(&near, &stream);
    stage.driver().finish(&near.socket).unwrap();
    assert_eq!(stage.far_sees(&mut *far), (10_000, Sight::End));
    // The other way is still open.
    stage.far_writes(&mut *far, &bytes(100));
    assert_eq!(stage.receive(&near, Arm::Once, 100), (bytes(100), None));
    far.finish();
    assert_eq!(stage.receive(&near, Arm::Once, 1), (vec![], Some(Received::End)));
    stage.close(near);
}

pub(super) fn one_side_finishes_the_other_goes_on<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    far.finish();
    assert_eq!(stage.receive(&near, Arm::Multi(1000), 1), (vec![], Some(Received::End)));
    stage.send_all(&near, &bytes(20_000));
    assert_eq!(stage.far_reads(&mut *far, 20_000), bytes(20_000));
    stage.driver().finish(&near.socket).unwrap();
    assert_eq!(stage.far_sees(&mut *far), (0, Sight::End));
    stage.close(near);
}

pub(super) fn abort_is_a_reset_and_ends_what_is_in_flight<H: Harness>(stage: &mut Stage<H>) {
    for (generation, arm) in [(0, Arm::Once), (1, Arm::Multi(1 << 16))] {
        let (near, mut far) = stage.backend(key(1, generation));
        stage.arm(&near, arm);
        stage.driver().arm_poll(near.key, near.side, &near.socket, Interest::Gone);
        let (buffer, _) = stage.fill(&near, &bytes(8 << 20));
        stage.driver().abort(&near.socket);
        let (what, more) = stage.received(&near);
        assert!(!matches!(what, Received::Bytes(_)) && !more, "{what:?}");
        assert_ne!(stage.sent(&near, buffer), Ok(BUFFER_BYTES));
        let _ = stage.polled(&near);
        assert_eq!(stage.far_sees(&mut *far).1, Sight::Reset);
        stage.silence();
        stage.close(near);
    }
}

pub(super) fn abort_at_rest_is_a_reset<H: Harness>(stage: &mut Stage<H>) {
    for finished in [false, true] {
        let (near, mut far) = stage.client(key(1, u32::from(finished)));
        stage.send_all(&near, &bytes(10));
        assert_eq!(stage.far_reads(&mut *far, 10), bytes(10));
        if finished {
            far.finish();
            assert_eq!(stage.receive(&near, Arm::Once, 1).1, Some(Received::End));
        }
        stage.driver().abort(&near.socket);
        stage.close(near);
        assert_eq!(stage.far_sees(&mut *far), (0, Sight::Reset), "finished: {finished}");
    }
}

pub(super) fn a_socket_moves_to_another_key<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.client(key(1, 0));
    stage.far_writes(&mut *far, &bytes(10));
    stage.silence();
    let Near { key: old, side, socket } = near;
    stage.driver().detach(old, side, &socket);
    // While it is nobody's, bytes and the end may come; none of it is lost, or heard twice.
    stage.far_writes(&mut *far, &bytes(20)[10..]);
    far.finish();
    stage.silence();
    let new = key(9, 3);
    stage.driver().attach(new, Side::Backend, &socket).unwrap();
    let near = Near { key: new, side: Side::Backend, socket };
    let (all, ended) = stage.receive(&near, Arm::Once, usize::MAX);
    assert_eq!((all, ended), (bytes(20), Some(Received::End)));
    stage.close(near);
}

pub(super) fn a_connection_nobody_has_stands_until_it_ends<H: Harness>(stage: &mut Stage<H>) {
    for (generation, is_reset) in [(0, false), (1, true)] {
        let (near, mut far) = stage.backend(key(1, generation));
        let Near { key: old, side, socket } = near;
        stage.driver().detach(old, side, &socket);
        stage.silence();
        assert!(stage.driver().stands(&socket), "nothing happened");
        stage.far_writes(&mut *far, &bytes(10));
        stage.silence();
        assert!(stage.driver().stands(&socket), "bytes are no end");
        if is_reset {
            far.reset();
        } else {
            far.finish();
        }
        stage.until("its end", |stage| (!stage.driver().stands(&socket)).then_some(()));
        stage.silence();
        stage.driver().abort(&socket);
        stage.driver().close(None, socket);
    }
    // What it said meanwhile is whoever takes it's.
    let (near, mut far) = stage.backend(key(1, 2));
    let Near { key: old, side, socket } = near;
    stage.driver().detach(old, side, &socket);
    stage.far_writes(&mut *far, &bytes(10));
    stage.silence();
    assert!(stage.driver().stands(&socket));
    stage.driver().attach(key(2, 0), Side::Backend, &socket).unwrap();
    let near = Near { key: key(2, 0), side: Side::Backend, socket };
    assert_eq!(stage.receive(&near, Arm::Once, 10), (bytes(10), None));
    stage.close(near);
}

pub(super) fn a_slot_used_again_hears_nothing_of_before<H: Harness>(stage: &mut Stage<H>) {
    let mut number = None;
    for generation in [0, 1, 2, (1 << 24) - 1] {
        let (near, mut far) = stage.client(key(5, generation));
        // The descriptor's number is used again at once; bytes on their way to its last owner may not come here.
        if let Some(number) = number {
            assert_eq!(near.socket.number(), number, "descriptors are not used again");
        }
        number = Some(near.socket.number());
        let mine = vec![u8::try_from(generation & 0xFF).unwrap(); 100];
        stage.arm(&near, Arm::Multi(1000));
        stage.far_writes(&mut *far, &mine);
        let mut all = Vec::new();
        let mut armed = true;
        while all.len() < 100 {
            if !armed {
                stage.arm(&near, Arm::Multi(1000));
            }
            let (what, more) = stage.received(&near);
            let Received::Bytes(buffer) = what else { panic!("{what:?}") };
            all.extend(stage.empty(buffer));
            armed = more;
        }
        assert_eq!(all, mine);
        stage.driver().abort(&near.socket);
        if armed {
            let last = stage.hear("the last word", |completion| match completion {
                Completion::Received { key, what, more: false, .. } => Some((*key, *what)),
                _ => None,
            });
            assert_eq!(last.0, near.key);
            assert_ne!(last.1, Received::Failed(Errno::NO_BUFFERS));
        }
        let _ = far.write(b"for who was here before");
        stage.close(near);
    }
}
