//! Bytes, ends of streams and resets get across as they were sent.

use crate::world::net::{
    Backend, BlackHole, End, Pair, Stage, assert_same, connect, echo, finish, noise, read_all,
    reset,
};
use crate::world::pause;
use crate::world::proxy::Recipe;
use ringway::config::DataPath;
use ringway::event::EndReason;
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

crate::on_each_path!(
    bytes_of_every_size_cross_both_ways_at_once,
    a_client_that_has_finished_still_hears_the_backend,
    a_backend_that_has_finished_still_hears_the_client,
    a_reset_is_passed_on_both_ways,
    last_words_arrive_before_the_close,
    a_client_may_finish_before_the_backend_is_there,
    a_client_that_does_not_read_stops_its_backend_alone,
    small_messages_are_not_held_back,
    urgent_data_is_part_of_the_stream,
);

const HOPS: [&str; 6] = ["multishot", "linked", "oneshot", "wide", "splice", "hot"];

fn bytes_of_every_size_cross_both_ways_at_once(path: DataPath) {
    let stage = Stage::new();
    for hop in HOPS {
        let recipe = Recipe::new(path, &[stage.at()]).listener(&format!("hop = \"{hop}\""));
        let proxy = recipe.start();
        for (seed, len) in
            [1, 2, 100, 16_383, 16_384, 16_385, 65_536, 100_000, 1 << 20].into_iter().enumerate()
        {
            let pair = stage.open(proxy.at);
            let seed = seed as u64 * 2;
            let (up, down) = (noise(seed + 1, len), noise(seed + 2, len));
            let both = |mine: &TcpStream, sends: &[u8], gets: &[u8]| {
                let (got, end) = std::thread::scope(|s| {
                    s.spawn(|| {
                        (&*mine).write_all(sends).unwrap();
                        finish(mine);
                    });
                    read_all(mine)
                });
                assert_eq!(end, End::Eof);
                assert_same(&got, gets);
            };
            std::thread::scope(|s| {
                s.spawn(|| both(&pair.client, &up, &down));
                both(&pair.backend, &down, &up);
            });
        }
        proxy.expect_ended(EndReason::Finished, 9);
        proxy.expect_empty();
    }
}

fn a_client_that_has_finished_still_hears_the_backend(path: DataPath) {
    let stage = Stage::new();
    let proxy = Recipe::new(path, &[stage.at()]).start();
    let mut pair = stage.open(proxy.at);
    pair.client.write_all(b"the last of me").unwrap();
    finish(&pair.client);
    assert_eq!(read_all(&pair.backend), (b"the last of me".to_vec(), End::Eof));
    pause(50);
    let answer = noise(1, 300_000);
    std::thread::scope(|s| {
        s.spawn(|| assert_eq!(read_all(&pair.client), (answer.clone(), End::Eof)));
        pair.backend.write_all(&answer).unwrap();
        finish(&pair.backend);
    });
    proxy.expect_ended(EndReason::Finished, 1);
    assert_eq!(proxy.sum(|route| route.finished_by_backend.get()), 0);
}

fn a_backend_that_has_finished_still_hears_the_client(path: DataPath) {
    let stage = Stage::new();
    let proxy = Recipe::new(path, &[stage.at()]).start();
    let mut pair = stage.open(proxy.at);
    pair.backend.write_all(b"the last of me").unwrap();
    finish(&pair.backend);
    assert_eq!(read_all(&pair.client), (b"the last of me".to_vec(), End::Eof));
    pause(50);
    let answer = noise(1, 300_000);
    std::thread::scope(|s| {
        s.spawn(|| assert_eq!(read_all(&pair.backend), (answer.clone(), End::Eof)));
        pair.client.write_all(&answer).unwrap();
        finish(&pair.client);
    });
    proxy.expect_ended(EndReason::Finished, 1);
    assert_eq!(proxy.sum(|route| route.finished_by_backend.get()), 1);
}

fn a_reset_is_passed_on_both_ways(path: DataPath) {
    let stage = Stage::new();
    for hop in HOPS {
        let recipe = Recipe::new(path, &[stage.at()]).listener(&format!("hop = \"{hop}\""));
        let proxy = recipe.start();
        let pair = stage.open_and_greet(proxy.at);
        reset(pair.client);
        assert_eq!(read_all(&pair.backend), (vec![], End::Reset), "{hop}");
        proxy.expect_ended(EndReason::ClientReset, 1);

        let pair = stage.open_and_greet(proxy.at);
        reset(pair.backend);
        assert_eq!(read_all(&pair.client), (vec![], End::Reset), "{hop}");
        proxy.expect_ended(EndReason::BackendReset, 1);

        // Also by one that had finished before.
        let pair = stage.open_and_greet(proxy.at);
        finish(&pair.client);
        assert_eq!(read_all(&pair.backend), (vec![], End::Eof));
        reset(pair.backend);
        assert_eq!(read_all(&pair.client), (vec![], End::Reset), "{hop}");
        proxy.expect_ended(EndReason::BackendReset, 2);
        proxy.expect_empty();
    }
}

fn last_words_arrive_before_the_close(path: DataPath) {
    let stage = Stage::new();
    let proxy = Recipe::new(path, &[stage.at()]).start();
    for len in [0, 1, 10_000, 1 << 20] {
        let Pair { client, mut backend } = stage.open(proxy.at);
        let words = noise(7, len);
        std::thread::scope(|s| {
            let words = &words;
            s.spawn(move || {
                backend.write_all(words).unwrap();
                drop(backend);
            });
            pause(20); // a close that overtakes bytes would be here before they are read
            let (got, end) = read_all(&client);
            assert_eq!(end, End::Eof);
            assert_same(&got, words);
        });
    }
}

fn a_client_may_finish_before_the_backend_is_there(path: DataPath) {
    let mut hole = BlackHole::new();
    let recipe = Recipe::new(path, &[hole.at()]).more("[timeouts]\nconnect_ms = 20_000");
    let proxy = recipe.start();
    let mut client = connect(proxy.at);
    client.write_all(b"early").unwrap();
    finish(&client);
    pause(300); // longer than Ringway connects without watching the client
    assert_eq!(proxy.reasons(), [], "a client that has only finished has not left");
    let mut backend = hole.let_in();
    assert_eq!(read_all(&backend), (b"early".to_vec(), End::Eof));
    backend.write_all(b"late").unwrap();
    finish(&backend);
    assert_eq!(read_all(&client), (b"late".to_vec(), End::Eof));
    proxy.expect_ended(EndReason::Finished, 1);
}

/// Writes until the other side takes no more for 400 ms. How many bytes were taken.
fn write_until_stuck(mut stream: &TcpStream, bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut taken, mut moved) = (0, Instant::now());
    while moved.elapsed() < Duration::from_millis(400) && taken < bytes.len() {
        match stream.write(&bytes[taken..]) {
            Ok(n) => (taken, moved) = (taken + n, Instant::now()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => pause(2),
            Err(e) => panic!("{e}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    taken
}

fn a_client_that_does_not_read_stops_its_backend_alone(path: DataPath) {
    const ROOM: usize = 64 << 10;
    let stage = Stage::new();
    for hop in HOPS {
        let recipe = Recipe::new(path, &[stage.at()])
            .listener(&format!("hop = \"{hop}\""))
            .more(&format!("[tcp]\nsend_buffer_bytes = {ROOM}\nreceive_buffer_bytes = {ROOM}"));
        let proxy = recipe.start();
        let mut pair = stage.open(proxy.at);
        SockRef::from(&pair.client).set_recv_buffer_size(ROOM).unwrap();
        SockRef::from(&pair.backend).set_send_buffer_size(ROOM).unwrap();
        let words = noise(3, 16 << 20);
        let taken = write_until_stuck(&pair.backend, &words);
        // Four sockets of twice ROOM each, what Ringway itself may hold, and the kernel's slack.
        assert!(
            taken < 24 * ROOM,
            "{hop}: {taken} bytes were taken for a client that does not read"
        );

        let other = stage.open(proxy.at);
        let mut turns: Vec<Duration> = (0..100).map(|turn| turn_through(&other, turn)).collect();
        turns.sort_unstable();
        assert!(turns[50] < Duration::from_millis(20), "{hop}: {:?}", turns[50]);

        std::thread::scope(|s| {
            s.spawn(|| {
                pair.backend.write_all(&words[taken..]).unwrap();
                finish(&pair.backend);
            });
            let (got, end) = read_all(&pair.client);
            assert_eq!(end, End::Eof, "{hop}");
            assert_same(&got, &words);
        });
    }
}

/// One message there and back, with this thread as client and backend.
fn turn_through(pair: &Pair, turn: u64) -> Duration {
    let (mut client, mut backend) = (&pair.client, &pair.backend);
    let message = noise(turn, 64);
    let began = Instant::now();
    let mut got = [0; 64];
    client.write_all(&message).unwrap();
    backend.read_exact(&mut got).unwrap();
    backend.write_all(&got).unwrap();
    client.read_exact(&mut got).unwrap();
    assert_same(&got, &message);
    began.elapsed()
}

fn small_messages_are_not_held_back(path: DataPath) {
    let stage = Stage::new();
    let proxy = Recipe::new(path, &[stage.at()]).start();
    let pair = stage.open(proxy.at);
    for (from, to) in [(&pair.client, &pair.backend), (&pair.backend, &pair.client)] {
        let together = (0..40).filter(|_| second_is_there_in_time(from, to)).count();
        // A few may be late, where this machine is busy; the first ones the kernel acknowledges at once anyway.
        assert!(together >= 32, "{together} of 40");
    }
    let mut held = Recipe::new(path, &[stage.at()]);
    held.more = "[tcp]\nnodelay = false".into();
    let proxy = held.start();
    let pair = stage.open(proxy.at);
    let together = (0..40).filter(|_| second_is_there_in_time(&pair.client, &pair.backend)).count();
    assert!(together < 32, "without TCP_NODELAY {together} of 40: then this shows nothing");
}

/// Whether the second of two messages is there 12 ms after the first. Nagle's algorithm holds it until the first is
/// acknowledged, which a receiver that has not answered yet puts off for 40 ms.
fn second_is_there_in_time(mut from: &TcpStream, mut to: &TcpStream) -> bool {
    let mut got = [0; 20];
    from.write_all(b"0123456789").unwrap();
    pause(2);
    from.write_all(b"0123456789").unwrap();
    pause(10);
    let there = to.peek(&mut got).unwrap() == 20;
    to.read_exact(&mut got).unwrap();
    to.write_all(b"!").unwrap();
    from.read_exact(&mut got[..1]).unwrap();
    there
}

#[test]
fn auto_takes_a_path_that_works() {
    let backend = Backend::echo();
    let proxy = Recipe::new(DataPath::Auto, &[backend.at]).start();
    echo(&connect(proxy.at), b"auto takes what there is");
}

/// At its mark every receive stops short, whatever is behind it, and splice(2) does not go on.
fn urgent_data_is_part_of_the_stream(path: DataPath) {
    let stage = Stage::new();
    for hop in HOPS.into_iter().chain(["auto"]) {
        let recipe = Recipe::new(path, &[stage.at()]).listener(&format!("hop = \"{hop}\""));
        let proxy = recipe.start();
        let pair = stage.open_and_greet(proxy.at);
        for (mut from, mut to) in
            [(&pair.client, &pair.backend), (&pair.backend, &pair.client)].repeat(10)
        {
            from.write_all(b"a li").unwrap();
            assert_eq!(SockRef::from(from).send_out_of_band(b"m").unwrap(), 1);
            from.write_all(b"it order").unwrap();
            let mut got = [0; 13];
            let read = to.read_exact(&mut got);
            assert!(read.is_ok() && &got == b"a limit order", "{hop}: {got:?}, {read:?}");
        }
        let Pair { client, backend } = pair;
        drop(client);
        assert_eq!(read_all(&backend), (vec![], End::Eof));
        drop(backend);
        proxy.expect_ended(EndReason::Finished, 1);
    }
}
