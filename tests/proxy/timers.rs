//! Sessions end by themselves when they were told to, and not otherwise.

use crate::world::net::{Backend, End, Stage, connect, echo, finish, read_all, try_echo};
use crate::world::proxy::Recipe;
use crate::world::{assert_took, pause};
use ringway::config::DataPath;
use ringway::event::EndReason;
use std::time::{Duration, Instant};

crate::on_each_path!(
    a_quiet_session_ends_when_asked_to,
    a_quiet_session_lives_by_default,
    half_a_session_ends,
    an_old_session_ends_however_busy,
    a_listener_has_its_own_timers,
);

fn a_quiet_session_ends_when_asked_to(path: DataPath) {
    let backend = Backend::echo();
    let proxy = Recipe::new(path, &[backend.at]).more("[timeouts]\nidle_ms = 600").start();
    let client = connect(proxy.at);
    for _ in 0..10 {
        echo(&client, b"busy");
        pause(100);
    }
    let began = Instant::now();
    echo(&client, b"the last");
    assert_eq!(read_all(&client), (vec![], End::Eof));
    assert_took(began, 590, 1500);
    proxy.expect_ended(EndReason::Idle, 1);
}

fn a_quiet_session_lives_by_default(path: DataPath) {
    let backend = Backend::echo();
    let proxy = Recipe::new(path, &[backend.at]).start();
    let client = connect(proxy.at);
    echo(&client, b"before");
    pause(1500);
    echo(&client, b"after");
}

fn half_a_session_ends(path: DataPath) {
    let stage = Stage::new();
    let recipe = Recipe::new(path, &[stage.at()]).more("[timeouts]\nhalf_closed_ms = 300");
    let proxy = recipe.start();
    let whole = stage.open(proxy.at);
    for side in 0..2 {
        let pair = stage.open(proxy.at);
        let (ends_first, other) =
            if side == 0 { (&pair.client, &pair.backend) } else { (&pair.backend, &pair.client) };
        let began = Instant::now();
        finish(ends_first);
        assert_eq!(read_all(other), (vec![], End::Eof));
        assert_eq!(read_all(ends_first), (vec![], End::Eof));
        assert_took(began, 290, 1200);
    }
    proxy.expect_ended(EndReason::HalfClosed, 2);
    assert_eq!(proxy.sum(|route| route.finished_by_backend.get()), 1);
    finish(&whole.client);
    assert_eq!(read_all(&whole.backend), (vec![], End::Eof), "that one was whole so far");
}

fn an_old_session_ends_however_busy(path: DataPath) {
    let backend = Backend::echo();
    let proxy = Recipe::new(path, &[backend.at]).more("[timeouts]\nage_ms = 500").start();
    let began = Instant::now();
    let client = connect(proxy.at);
    while try_echo(&client, b"young").is_ok() {
        assert!(began.elapsed() < Duration::from_secs(3), "it grows old");
        pause(10);
    }
    assert_took(began, 490, 1400);
    proxy.expect_ended(EndReason::Age, 1);
}

fn a_listener_has_its_own_timers(path: DataPath) {
    let backend = Backend::echo();
    let recipe = Recipe::new(path, &[backend.at]).more(
        "[timeouts]\nidle_ms = 300\n\
         [listeners.patient]\nbind = \"127.0.0.1:0\"\nstable = \"v1\"\ntimeouts = { idle_ms = 0 }",
    );
    let proxy = recipe.start();
    let patient = connect(proxy.running().listener_address("patient").unwrap());
    echo(&patient, b"before");
    let client = connect(proxy.at);
    assert_eq!(read_all(&client), (vec![], End::Eof));
    pause(300);
    echo(&patient, b"after");
}
