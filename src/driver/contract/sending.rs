//! What is sent, and what follows a send.

use super::Harness;
use super::stage::{BUFFER_BYTES, Near, Stage, bytes, key};
use crate::driver::sim::Sight;
use crate::driver::{Arm, Completion, Driver, Errno, Received};

pub(super) fn a_send_is_whole_however_slow_the_reader<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.backend(key(1, 0));
    let stream = bytes(8 << 20);
    let (mut buffer, mut taken) = stage.fill(&near, &stream);
    let mut read = 0;
    while read < stream.len() {
        match far.read(100_000) {
            Sight::Bytes(part) => {
                assert!(part == stream[read..read + part.len()], "wrong bytes from {read} on");
                read += part.len();
            }
            Sight::Nothing => {}
            other => panic!("{other:?} after {read} bytes"),
        }
        if taken < stream.len() {
            let len = (stream.len() - taken).min(BUFFER_BYTES as usize);
            stage.turn(1);
            if !stage.said.is_empty() {
                assert_eq!(stage.sent(&near, buffer), Ok(u32::try_from(len).unwrap()));
                taken += len;
                let next = taken..stream.len().min(taken + BUFFER_BYTES as usize);
                if !next.is_empty() {
                    buffer = stage.send(&near, &stream[next]);
                }
            }
        } else {
            stage.turn(1);
        }
    }
    assert_eq!(taken, stream.len());
    stage.close(near);
}

pub(super) fn a_send_to_who_reset_fails<H: Harness>(stage: &mut Stage<H>) {
    let (near, far) = stage.backend(key(1, 0));
    far.reset();
    stage.silence();
    let buffer = stage.send(&near, b"too late");
    let error = stage.sent(&near, buffer).unwrap_err();
    assert!([Errno::RESET, Errno::BROKEN_PIPE].contains(&error), "{error}");
    stage.close(near);
    // The same while a send waits for room.
    let (near, far) = stage.backend(key(1, 1));
    let (buffer, _) = stage.fill(&near, &bytes(8 << 20));
    far.reset();
    let result = stage.sent(&near, buffer);
    assert_ne!(result, Ok(BUFFER_BYTES), "nobody took them");
    stage.close(near);
}

/// One side receives, the other sends, of one session.
fn both<H: Harness>(
    stage: &mut Stage<H>,
    generation: u32,
) -> (Near, Box<dyn super::Far>, Near, Box<dyn super::Far>) {
    let (client, client_far) = stage.client(key(1, generation));
    let (backend, backend_far) = stage.backend(key(1, generation));
    (client, client_far, backend, backend_far)
}

pub(super) fn a_receive_follows_its_send<H: Harness>(stage: &mut Stage<H>) {
    let (client, mut client_far, backend, mut backend_far) = both(stage, 0);
    let stream = bytes(50 * 100);
    for (n, part) in stream.chunks(100).enumerate() {
        let buffer = stage.buffer(part);
        let (key, side) = (backend.key, backend.side);
        stage.driver().send_then_recv(key, side, &backend.socket, buffer, &client.socket);
        if n % 2 == 0 {
            assert_eq!(stage.sent(&backend, buffer), Ok(100));
            stage.far_writes(&mut *client_far, part);
        } else {
            stage.far_writes(&mut *client_far, part);
            assert_eq!(stage.sent(&backend, buffer), Ok(100));
        }
        let (what, more) = stage.received(&client);
        let Received::Bytes(buffer) = what else { panic!("{what:?}") };
        assert!(!more, "it was for one receive");
        let mut brought = stage.empty(buffer);
        while brought.len() < part.len() {
            brought.extend(stage.receive(&client, Arm::Once, 1).0);
        }
        assert_eq!(brought, part);
    }
    assert_eq!(stage.far_reads(&mut *backend_far, stream.len()), stream);
    stage.close(client);
    stage.close(backend);
}

pub(super) fn a_receive_does_not_follow_a_failed_send<H: Harness>(stage: &mut Stage<H>) {
    let (client, mut client_far, backend, mut backend_far) = both(stage, 0);
    stage.far_writes(&mut *client_far, &bytes(300));
    stage.silence();
    let (buffer, _) = stage.fill(&backend, &bytes(8 << 20));
    // Room again, then one more that has to wait, with a receive behind it.
    let mut waiting = Some(buffer);
    stage.until("room", |stage| {
        let _ = backend_far.read(100_000);
        let done = stage.said.iter().any(|c| matches!(c, Completion::Sent { .. }));
        done.then(|| stage.sent(&backend, waiting.take().unwrap()).unwrap())
    });
    let big = bytes(BUFFER_BYTES as usize);
    let mut linked = None;
    for _ in 0..10_000 {
        let buffer = stage.buffer(&big);
        let (key, side) = (backend.key, backend.side);
        stage.driver().send_then_recv(key, side, &backend.socket, buffer, &client.socket);
        stage.turn(30);
        stage.turn(30);
        if !stage.said.iter().any(|c| matches!(c, Completion::Sent { .. })) {
            linked = Some(buffer);
            break;
        }
        assert_eq!(stage.sent(&backend, buffer), Ok(BUFFER_BYTES));
        match stage.received(&client) {
            (Received::Bytes(buffer), false) => drop(stage.empty(buffer)),
            other => panic!("{other:?}"),
        }
        // There always is something that a receive could bring.
        stage.far_writes(&mut *client_far, &bytes(300));
    }
    let buffer = linked.expect("a socket that nobody reads fills");
    stage.silence();
    backend_far.reset();
    assert_ne!(stage.sent(&backend, buffer), Ok(BUFFER_BYTES));
    assert_eq!(stage.received(&client), (Received::Failed(Errno::CANCELED), false));
    let (rest, _) = stage.receive(&client, Arm::Once, 1);
    assert!(!rest.is_empty(), "what the client wrote is still there");
    stage.driver().abort(&client.socket);
    stage.close(client);
    stage.close(backend);
}

pub(super) fn sends_of_both_sides_do_not_wait_for_each_other<H: Harness>(stage: &mut Stage<H>) {
    let (client, mut client_far, backend, _backend_far) = both(stage, 0);
    let (waiting, _) = stage.fill(&backend, &bytes(8 << 20));
    stage.send_all(&client, &bytes(500));
    assert_eq!(stage.far_reads(&mut *client_far, 500), bytes(500));
    stage.driver().abort(&backend.socket);
    assert_ne!(stage.sent(&backend, waiting), Ok(BUFFER_BYTES));
    stage.close(client);
    stage.close(backend);
}
