//! Backends that are there and say nothing, die, or are lost to the network.

use super::backend::Manner;
use super::exhaustion::cut_off;
use super::island::Island;
use super::stage::{
    DIRECTION_BYTES, LOOPBACK, SESSION_BYTES, Scale, Stage, client, echoes, reset, until,
};
use super::target::Kind;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

super::stage::cases!(
    silent_backend,
    deaf_backend,
    killed_backend,
    lost_backend,
    connects_to_nowhere
);

/// A backend that accepts, reads and says nothing: sessions wait, and leave when their clients do.
fn silent_backend(kind: Kind, scale: Scale) {
    let stage = Stage::new("silent_backend", kind, Manner::Silent);
    let offered = scale.of(100, 1000);
    let mut clients: Vec<TcpStream> = (0..offered)
        .map(|_| client(stage.target.other, PATIENCE).expect("a client comes in"))
        .collect();
    for stream in &mut clients {
        stream.write_all(&[5; 1024]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(scale.of(200, 5000)));
    assert!(until(PATIENCE, || stage.other.open() == offered), "nobody is cut off");
    drop(clients);
    stage.finish(offered, offered as u64 * 2 * SESSION_BYTES, "");
}

/// A backend that does not even read, and clients that send until nothing more goes in.
fn deaf_backend(kind: Kind, scale: Scale) {
    // A reset behind bytes that nobody takes is not heard: the backend's TCP_USER_TIMEOUT ends such a session.
    let stage = Stage::with("deaf_backend", kind, Manner::Deaf, [LOOPBACK; 2], |setup| {
        setup.user_timeout_ms = 3000;
    });
    let offered = scale.of(20, 100);
    let clients: Vec<TcpStream> = (0..offered)
        .map(|_| {
            let mut stream = client(stage.target.other, PATIENCE).expect("a client comes in");
            stream.set_nonblocking(true).unwrap();
            let began = Instant::now();
            let mut pause = 0;
            while pause < 5 && began.elapsed() < PATIENCE {
                match stream.write(&[6; 65_536]) {
                    Ok(_) => pause = 0,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        pause += 1;
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(e) => panic!("a client is cut off: {e}"),
                }
            }
            stream
        })
        .collect();
    assert!(until(PATIENCE, || stage.other.open() == offered), "nobody is cut off");
    for stream in &clients {
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    drop(clients);
    stage.finish(offered, offered as u64 * (DIRECTION_BYTES + SESSION_BYTES), "");
}

/// A backend that is killed in the middle of its streams, and started again.
fn killed_backend(kind: Kind, scale: Scale) {
    let stage = Stage::new("killed_backend", kind, Manner::Flood);
    let offered = scale.of(50, 500);
    let mut clients: Vec<TcpStream> = (0..offered)
        .map(|_| client(stage.target.other, PATIENCE).expect("a client comes in"))
        .collect();
    assert!(until(PATIENCE, || stage.other.open() == offered), "all reach the backend");
    stage.other.die();
    let began = Instant::now();
    let mut resets = 0;
    let mut bytes = vec![0; 1 << 16];
    for stream in &mut clients {
        let end = loop {
            match stream.read(&mut bytes) {
                Ok(0) => break None,
                Ok(_) => {}
                Err(e) => break Some(e.kind()),
            }
        };
        resets += usize::from(end == Some(ErrorKind::ConnectionReset));
    }
    let told = began.elapsed();
    drop(clients);
    std::thread::sleep(Duration::from_millis(scale.of(50, 1000)));
    stage.other.behave(Manner::Echo);
    stage.other.rise();
    let began = Instant::now();
    assert!(until(PATIENCE, || echoes(stage.target.other, PATIENCE)), "it is used again");
    let note = format!(
        "{resets} resets, all told in {told:.1?}; used again after {:.1?}",
        began.elapsed()
    );
    assert_eq!(resets, offered, "{note}");
    stage.finish(offered, offered as u64 * (DIRECTION_BYTES + SESSION_BYTES), &note);
}

/// A backend from which nothing comes back any more: TCP_USER_TIMEOUT ends what sends, keepalive ends what is silent.
fn lost_backend(kind: Kind, scale: Scale) {
    let Some(island) = Island::make() else { return };
    let limit_ms: u32 = scale.of(1500, 3000);
    let name = "lost_backend";
    let stage = Stage::with(name, kind, Manner::Echo, island.near(), |setup| {
        (setup.ip, setup.by) = (island.proxy(), island.by());
        setup.user_timeout_ms = limit_ms;
    });
    let offered = scale.of(20, 100);
    let mut clients: Vec<TcpStream> = (0..offered)
        .map(|_| client(stage.target.other, PATIENCE).expect("a client comes in"))
        .collect();
    let mut byte = [0];
    // A session's backend socket gets these options when the session is a second old.
    std::thread::sleep(Duration::from_millis(1200));
    for stream in &mut clients {
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut byte).expect("it answers still");
    }
    island.lose_other();
    let began = Instant::now();
    for stream in &mut clients[..offered / 2] {
        stream.write_all(b"?").unwrap();
    }
    let (sending, silent) = clients.split_at_mut(offered / 2);
    let ended = cut_off(sending, PATIENCE);
    let after_sending = began.elapsed();
    let ended = ended + cut_off(silent, PATIENCE);
    let after_silence = began.elapsed();
    let counted = stage.target.ended("backend_vanished", ended);
    drop(clients);
    let reasons = stage.target.reasons();
    let note = format!(
        "{ended} ended as {reasons}; limit {limit_ms} ms: sending {after_sending:.2?}, silent {after_silence:.2?}"
    );
    let limit = Duration::from_millis(u64::from(limit_ms));
    assert!(ended == offered && counted == ended as u64, "{note}");
    for after in [after_sending, after_silence] {
        assert!(
            after > limit * 9 / 10 && after < limit * 11 / 10 + Duration::from_secs(1),
            "{note}"
        );
    }
    // The lost backend's side still holds its ends; the proxy does not.
    stage.finish(offered, offered as u64 * 2 * SESSION_BYTES, &note);
}

/// Connects that hang on an address from which nothing comes back; some clients leave before the time is over.
fn connects_to_nowhere(kind: Kind, scale: Scale) {
    let Some(island) = Island::make() else { return };
    let connect_ms: u32 = scale.of(600, 3000);
    let name = "connects_to_nowhere";
    let stage = Stage::with(name, kind, Manner::Echo, [island.near()[0], LOOPBACK], |setup| {
        (setup.ip, setup.by) = (island.proxy(), island.by());
        (setup.other, setup.connect_ms) = (island.black_hole(), connect_ms);
    });
    let offered = 20;
    let began = Instant::now();
    let mut clients: Vec<TcpStream> = (0..offered)
        .map(|_| client(stage.target.other, PATIENCE).expect("a client comes in"))
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let left = clients.split_off(offered / 2);
    // By resets: a client that has merely finished may still want the answer.
    left.into_iter().for_each(reset);
    let cut = cut_off(&mut clients, PATIENCE);
    let took = began.elapsed();
    let counted = stage.target.ended("connect_timeout", cut);
    let gone = stage.target.ended("client_left", offered / 2);
    let note = format!(
        "{cut} ended after {took:.2?} of {connect_ms} ms, {counted} connect_timeout, {gone} client_left"
    );
    assert!(cut == offered / 2 && [counted, gone] == [offered as u64 / 2; 2], "{note}");
    let limit = Duration::from_millis(u64::from(connect_ms));
    assert!(took >= limit && took < limit * 11 / 10 + Duration::from_secs(1), "{note}");
    stage.finish(offered, offered as u64 * SESSION_BYTES, &note);
}
