//! The way to a backend: past those that refuse, not for ever, and not for a client that has left.

use crate::world::net::{
    Backend, BlackHole, End, connect, connect_to_its_end, echo, free_address, read_all, reset,
};
use crate::world::proxy::Recipe;
use crate::world::{assert_took, pause};
use ringway::config::DataPath;
use ringway::event::EndReason;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Instant;

crate::on_each_path!(
    a_backend_that_refuses_is_tried_past,
    where_all_refuse_the_client_is_reset,
    where_all_refuse_the_client_is_closed_on_request,
    a_backend_that_does_not_answer_is_given_up,
    the_next_backend_is_tried_when_one_does_not_answer,
    a_client_that_leaves_meanwhile_is_noticed,
    what_a_client_said_before_its_backend_was_there_arrives,
);

fn a_backend_that_refuses_is_tried_past(path: DataPath) {
    let backend = Backend::echo();
    let proxy = Recipe::new(path, &[free_address(), backend.at]).start();
    for _ in 0..30 {
        echo(&connect(proxy.at), b"anybody there?");
    }
    proxy.expect_ended(EndReason::Finished, 30);
    assert_eq!(backend.accepted(), 30);
    assert_eq!(proxy.sum(|r| r.connect_failed.get()), 15, "every other session began at it");
}

fn where_all_refuse_the_client_is_reset(path: DataPath) {
    for backends in [vec![free_address()], vec![free_address(), free_address()]] {
        let proxy = Recipe::new(path, &backends).start();
        for _ in 0..5 {
            assert_eq!(connect_to_its_end(proxy.at), (vec![], End::Reset));
        }
        proxy.expect_ended(EndReason::ConnectRefused, 5);
        assert_eq!(proxy.sum(|r| r.connect_failed.get()), 15, "two retries each");
        proxy.expect_empty();
    }
}

fn where_all_refuse_the_client_is_closed_on_request(path: DataPath) {
    let recipe = Recipe::new(path, &[free_address()]).listener("on_backend_fail = \"close\"");
    let proxy = recipe.start();
    assert_eq!(connect_to_its_end(proxy.at), (vec![], End::Eof));
    proxy.expect_ended(EndReason::ConnectRefused, 1);
}

fn a_backend_that_does_not_answer_is_given_up(path: DataPath) {
    let hole = BlackHole::new();
    let recipe =
        Recipe::new(path, &[hole.at()]).more("[timeouts]\nconnect_ms = 300").pool("retries = 1");
    let proxy = recipe.start();
    let began = Instant::now();
    assert_eq!(connect_to_its_end(proxy.at), (vec![], End::Reset));
    assert_took(began, 590, 2000);
    proxy.expect_ended(EndReason::ConnectTimeout, 1);
    assert_eq!(proxy.sum(|r| r.connect_failed.get()), 2);
    proxy.expect_empty();
}

fn the_next_backend_is_tried_when_one_does_not_answer(path: DataPath) {
    let (hole, backend) = (BlackHole::new(), Backend::echo());
    let recipe = Recipe::new(path, &[hole.at(), backend.at]).more("[timeouts]\nconnect_ms = 200");
    let proxy = recipe.start();
    let began = Instant::now();
    for _ in 0..2 {
        echo(&connect(proxy.at), b"patience");
    }
    assert_took(began, 190, 2000);
    assert_eq!(proxy.sum(|r| r.connect_failed.get()), 1);
}

fn a_client_that_leaves_meanwhile_is_noticed(path: DataPath) {
    let hole = BlackHole::new();
    let recipe = Recipe::new(path, &[hole.at()]).more("[timeouts]\nconnect_ms = 30_000");
    let proxy = recipe.start();
    for (sessions, before_ms) in [(1, 0), (2, 400)] {
        let client = connect(proxy.at);
        pause(before_ms); // before it is watched, and while it is
        let began = Instant::now();
        reset(client);
        proxy.expect_ended(EndReason::ClientLeft, sessions);
        assert_took(began, 0, 1500);
    }
    drop(connect(proxy.at));
    proxy.expect_ended(EndReason::ClientLeft, 3);
    let mut talker = connect(proxy.at);
    talker.write_all(b"an order").unwrap();
    pause(400);
    let began = Instant::now();
    reset(talker);
    proxy.expect_ended(EndReason::ClientLeft, 4);
    assert_took(began, 0, 1500);
    proxy.expect_empty();
}

fn what_a_client_said_before_its_backend_was_there_arrives(path: DataPath) {
    let (hole, backend) = (BlackHole::new(), Backend::echo());
    let recipe = Recipe::new(path, &[hole.at(), backend.at]).more("[timeouts]\nconnect_ms = 500");
    let proxy = recipe.start();
    for finishes in [false, true] {
        let mut client = connect(proxy.at);
        client.write_all(b"early ").unwrap();
        pause(200);
        client.write_all(b"and late").unwrap();
        if finishes {
            client.shutdown(Shutdown::Write).unwrap();
        }
        let mut answer = [0; 14];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"early and late");
        if finishes {
            assert_eq!(read_all(&client), (vec![], End::Eof));
        }
    }
}
