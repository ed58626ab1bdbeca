//! Backends are reached, or not.

use super::Harness;
use super::stage::{Stage, bytes, key};
use crate::driver::{Driver, Errno, Op};

pub(super) fn a_backend_is_reached<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.backend(key(1, 0));
    stage.send_all(&near, &bytes(100));
    assert_eq!(stage.far_reads(&mut *far, 100), bytes(100));
    stage.close(near);
}

pub(super) fn a_refusal_is_told<H: Harness>(stage: &mut Stage<H>) {
    let address = stage.h.refusing();
    let near = stage.dial(key(1, 4), address);
    assert_eq!(stage.connected(key(1, 4)), Err(Errno::REFUSED));
    stage.silence();
    stage.close(near);
}

pub(super) fn a_connect_is_cancelled<H: Harness>(stage: &mut Stage<H>) {
    let address = stage.h.hanging();
    let near = stage.dial(key(1, 0), address);
    stage.silence();
    stage.driver().cancel(key(1, 0), Op::Connect);
    assert_eq!(stage.connected(key(1, 0)), Err(Errno::CANCELED));
    stage.silence();
    stage.close(near);
    // One that is aborted instead ends too.
    let near = stage.dial(key(1, 1), address);
    stage.turn(5);
    stage.driver().abort(&near.socket);
    stage.driver().cancel(key(1, 1), Op::Connect);
    assert!(stage.connected(key(1, 1)).is_err());
    stage.close(near);
}
