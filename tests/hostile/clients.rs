//! Hostile clients.

use super::backend::Manner;
use super::process;
use super::stage::{DIRECTION_BYTES, SESSION_BYTES, Scale, Stage, client, reset, until};
use super::target::Kind;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

super::stage::cases!(
    slow_writers_and_readers,
    connect_and_vanish,
    reset_flood,
    one_byte_writes,
    clients_that_never_read,
);

/// Slowloris: some send a byte now and then, others take the flood sent to them a byte now and then.
fn slow_writers_and_readers(kind: Kind, scale: Scale) {
    let stage = Stage::new("slow_writers_readers", kind, Manner::Echo);
    let (each, time) = scale.of((50, 500), (500, 10_000));
    let connect = |_| client(stage.target.other, PATIENCE).expect("a slow client comes in");
    let mut writers: Vec<TcpStream> = (0..each).map(connect).collect();
    assert!(until(PATIENCE, || stage.other.open() == each), "all reach the backend");
    stage.other.behave(Manner::Flood);
    let mut readers: Vec<TcpStream> = (0..each).map(connect).collect();
    let began = Instant::now();
    let mut turns = 0_u8;
    while began.elapsed() < Duration::from_millis(time) {
        for slow in &mut writers {
            slow.write_all(&[turns]).expect("a slow writer is not cut off");
        }
        for slow in &mut readers {
            let mut byte = [0];
            slow.read_exact(&mut byte).expect("a slow reader is not cut off");
            assert_eq!(byte, [7]);
        }
        turns += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    for slow in &mut writers {
        let mut back = vec![0; usize::from(turns)];
        slow.read_exact(&mut back).expect("what was written slowly comes back");
        assert!(back.iter().copied().eq(0..turns), "in order");
    }
    drop((writers, readers));
    let held = each as u64 * (DIRECTION_BYTES + 2 * SESSION_BYTES);
    stage.finish(2 * each, held, "");
}

/// Clients that connect and go at once, half of them by a reset.
fn connect_and_vanish(kind: Kind, scale: Scale) {
    let stage = Stage::new("connect_and_vanish", kind, Manner::Echo);
    let offered = scale.of(600, 10_000);
    let began = Instant::now();
    for number in 0..offered {
        let stream = TcpStream::connect(stage.target.other).expect("a client comes in");
        if number % 2 == 0 {
            reset(stream);
        }
    }
    let took = began.elapsed();
    let full = stage.target.metric("ringway_refused_total", "full");
    assert_eq!(full, 0, "{took:.1?}: a client was turned away for the place of one that had gone");
    stage.finish(offered, 1000 * SESSION_BYTES, &format!("in {took:.1?}"));
}

/// Clients that send something and reset, several at once.
fn reset_flood(kind: Kind, scale: Scale) {
    let stage = Stage::new("reset_flood", kind, Manner::Echo);
    let offered: usize = scale.of(400, 5000);
    let to = stage.target.other;
    let began = Instant::now();
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(move || {
                for number in 0..offered / 4 {
                    let mut stream = client(to, PATIENCE).expect("a client comes in");
                    let _ = stream.write_all(&vec![1; 1 + number % 4096]);
                    reset(stream);
                }
            });
        }
    });
    let took = began.elapsed();
    stage.finish(offered, 1000 * (SESSION_BYTES + 4096), &format!("in {took:.1?}"));
}

/// Clients that flood with writes of one byte.
fn one_byte_writes(kind: Kind, scale: Scale) {
    let stage = Stage::new("one_byte_writes", kind, Manner::Echo);
    let (clients, each) = scale.of((8, 500), (40, 20_000));
    let to = stage.target.other;
    let began = Instant::now();
    std::thread::scope(|threads| {
        for _ in 0..clients {
            threads.spawn(move || {
                let mut stream = client(to, PATIENCE).expect("a client comes in");
                let mut reader = stream.try_clone().unwrap();
                let back = std::thread::spawn(move || {
                    let mut bytes = vec![0; each];
                    reader.read_exact(&mut bytes).map(|()| bytes)
                });
                for number in 0..each {
                    stream.write_all(&[number as u8]).expect("the flood is not cut off");
                }
                let bytes = back.join().unwrap().expect("every byte comes back");
                assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == i as u8), "in order");
            });
        }
    });
    let rate = (clients * each) as f64 / began.elapsed().as_secs_f64();
    stage.finish(clients, clients as u64 * 2 * DIRECTION_BYTES, &format!("{rate:.0} writes/s"));
}

/// Clients that never read, while the backend floods.
fn clients_that_never_read(kind: Kind, scale: Scale) {
    for clients in scale.of(vec![20], vec![40, 200]) {
        let stage = Stage::new("never_read", kind, Manner::Flood);
        let before = process::status_bytes(stage.target.pid(), "RssAnon");
        let deaf: Vec<TcpStream> = (0..clients)
            .map(|_| {
                let stream = client(stage.target.other, PATIENCE).expect("a client comes in");
                // Small, so that what is held is held by the proxy.
                let _ = SockRef::from(&stream).set_recv_buffer_size(4096);
                stream
            })
            .collect();
        assert!(until(PATIENCE, || stage.other.open() == clients), "all reach the backend");
        std::thread::sleep(Duration::from_millis(scale.of(300, 5000)));
        let after = process::status_bytes(stage.target.pid(), "RssAnon");
        let user = after.saturating_sub(before) / clients as u64;
        let (near, far) = (stage.target.other.port(), stage.other.address.port());
        let kernel = process::kernel_bytes(&format!("( sport = :{near} or dport = :{far} )"))
            / clients as u64;
        drop(deaf);
        let note = format!("{} KiB user, {} KiB kernel a session", user / 1024, kernel / 1024);
        stage.finish(clients, clients as u64 * (DIRECTION_BYTES + SESSION_BYTES), &note);
    }
}
