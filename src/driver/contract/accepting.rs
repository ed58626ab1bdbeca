//! Clients come in.

use super::stage::{Stage, key};
use super::{Harness, ListenerId};
use crate::driver::{Completion, Driver, Errno, Side};

const LISTENER: ListenerId = ListenerId(3);

pub(super) fn two_clients_come_in_by_one_accept<H: Harness>(stage: &mut Stage<H>) {
    let listens = stage.h.listen(LISTENER);
    stage.driver().accept(LISTENER, &listens);
    let (_one, _two) = (stage.h.client(LISTENER), stage.h.client(LISTENER));
    let sockets = [stage.accepted(LISTENER), stage.accepted(LISTENER)];
    assert_ne!(sockets[0].number(), sockets[1].number());
    stage.stop_accepting(LISTENER, listens);
    for socket in sockets {
        stage.driver().close(None, socket);
    }
}

pub(super) fn stop_accepting_gives_a_last_word<H: Harness>(stage: &mut Stage<H>) {
    let listens = stage.h.listen(LISTENER);
    stage.driver().accept(LISTENER, &listens);
    stage.turn(5);
    stage.driver().stop_accepting(LISTENER);
    let word = stage.hear("the last word", |completion| match completion {
        Completion::Accepted { listener, result: Err(error), more } => {
            Some((*listener, *error, *more))
        }
        _ => None,
    });
    assert_eq!(word, (LISTENER, Errno::CANCELED, false));
    let _waits = stage.h.client(LISTENER);
    stage.silence();
    // A listener that rested is armed again and has lost nobody.
    stage.driver().accept(LISTENER, &listens);
    let socket = stage.accepted(LISTENER);
    stage.driver().close(None, socket);
    stage.stop_accepting(LISTENER, listens);
}

pub(super) fn a_client_has_an_address<H: Harness>(stage: &mut Stage<H>) {
    let (near, _far) = stage.client(key(1, 0));
    let (other, _other_far) = stage.client(key(2, 0));
    let address = stage.driver().client_address(&near.socket).unwrap();
    assert_ne!(address.port(), 0);
    assert_ne!(Ok(address), stage.driver().client_address(&other.socket));
    stage.close(near);
    stage.close(other);
}

pub(super) fn a_connection_to_a_backend_begins_somewhere<H: Harness>(stage: &mut Stage<H>) {
    let (near, mut far) = stage.backend(key(1, 0));
    let (other, _other_far) = stage.backend(key(2, 0));
    let address = stage.driver().local_address(&near.socket).unwrap();
    assert_ne!(address.port(), 0);
    assert_ne!(Ok(address), stage.driver().local_address(&other.socket));
    far.finish();
    stage.turn(5);
    assert_eq!(
        stage.driver().local_address(&near.socket),
        Ok(address),
        "also when it has finished"
    );
    stage.close(near);
    stage.close(other);
}

pub(super) fn a_client_who_left_can_be_closed<H: Harness>(stage: &mut Stage<H>) {
    let listens = stage.h.listen(LISTENER);
    let far = stage.h.client(LISTENER);
    stage.turn(5);
    far.reset();
    stage.turn(5);
    stage.driver().accept(LISTENER, &listens);
    // Linux hands the dead connection out; a driver may also say ECONNABORTED, and then has to be armed again.
    let result = stage.until("an accept", |stage| match stage.said.pop()? {
        Completion::Accepted { result, more, .. } => Some((result, more)),
        other => panic!("{other:?}"),
    });
    match result {
        (Ok(socket), _) => {
            if stage.driver().attach(key(1, 0), Side::Client, &socket).is_ok() {
                stage.driver().close(Some((key(1, 0), Side::Client)), socket);
            }
        }
        (Err(error), more) => {
            assert_eq!(error, Errno(libc::ECONNABORTED));
            if !more {
                stage.driver().accept(LISTENER, &listens);
            }
        }
    }
    stage.stop_accepting(LISTENER, listens);
}
