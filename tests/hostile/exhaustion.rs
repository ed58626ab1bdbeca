//! Machines that have run out: of descriptors, of buffers, of local ports, of room in a queue.

use super::backend::{Manner, listen};
use super::island::Island;
use super::process;
use super::stage::{DIRECTION_BYTES, LOOPBACK, SESSION_BYTES, Scale, Stage, client, echoes, until};
use super::target::Kind;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

super::stage::cases!(
    few_descriptors,
    descriptors_taken_away,
    few_buffers,
    few_local_ports,
    full_queue_of_a_backend,
);

/// How long until each of these was cut off; those that live on are left out.
pub(crate) fn cut_off(clients: &mut [TcpStream], patience: Duration) -> usize {
    let mut cut = 0;
    let until = Instant::now() + patience;
    for stream in clients {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).unwrap();
        let blocked = |e: &std::io::Error| {
            matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        };
        match stream.read(&mut [0]) {
            Err(e) if blocked(&e) => {}
            _ => cut += 1,
        }
    }
    cut
}

/// A limit of 330 descriptors and 600 idle clients beside the healthy sessions.
fn few_descriptors(kind: Kind, scale: Scale) {
    let name = "few_descriptors";
    let stage = Stage::with(name, kind, Manner::Echo, [LOOPBACK; 2], |setup| {
        setup.by = ["prlimit", "--nofile=330:330"].map(str::to_owned).into();
    });
    let offered = scale.of(200, 600);
    let time = Duration::from_millis(scale.of(300, 2000));
    let before = process::cpu(stage.target.pid());
    std::thread::sleep(time);
    let calm = process::cpu(stage.target.pid()) - before;
    let mut slowest = Duration::ZERO;
    let mut clients = Vec::new();
    for _ in 0..offered {
        let began = Instant::now();
        // One place is left of those for which there are descriptors: it goes to the first.
        match client(stage.target.other, PATIENCE) {
            Ok(stream) if clients.is_empty() => clients.push(stream),
            Ok(mut stream) => assert_eq!(cut_off(std::slice::from_mut(&mut stream), PATIENCE), 1),
            // Turned away before connect(2) looked.
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
        if !clients.is_empty() {
            slowest = slowest.max(began.elapsed());
        }
    }
    let before = process::cpu(stage.target.pid());
    std::thread::sleep(time);
    let short = process::cpu(stage.target.pid()) - before;
    let refused = stage.target.metric("ringway_refused_total", "full");
    drop(clients);
    let began = Instant::now();
    let recovered = until(PATIENCE, || echoes(stage.target.other, PATIENCE));
    let recovery = began.elapsed();
    assert!(recovered, "no client is served after the release");
    assert!(refused >= offered as u64 - 2, "{refused} of {offered} excess clients are counted");
    let percent = |cpu: Duration| 100.0 * cpu.as_secs_f64() / time.as_secs_f64();
    let note = format!(
        "{refused} excess clients counted, cut off within {slowest:.1?}, recovery {recovery:.1?}, CPU {:.0} % \
         (calm {:.0} %)",
        percent(short),
        percent(calm)
    );
    assert!(slowest < Duration::from_millis(scale.of(500, 100)), "{note}");
    stage.finish(offered, 0, &note);
}

/// The limit is lowered while Ringway runs, so that accept(2) itself fails.
fn descriptors_taken_away(kind: Kind, scale: Scale) {
    let stage = Stage::new("no_descriptors", kind, Manner::Echo);
    let pid = stage.target.pid();
    let limit = |descriptors: u64| {
        let wanted = format!("--nofile={descriptors}:");
        assert!(process::run(&["prlimit", "--pid", &pid.to_string(), &wanted]));
    };
    let offered = scale.of(100, 600);
    // Eleven: five sessions, and a client for whose backend there is none.
    limit(process::descriptors(pid) + 11);
    // Some are turned away before connect(2) looks.
    let mut clients: Vec<TcpStream> =
        (0..offered).filter_map(|_| client(stage.target.other, PATIENCE).ok()).collect();
    let time = Duration::from_millis(scale.of(400, 2000));
    let before = process::cpu(pid);
    std::thread::sleep(time);
    let percent = 100.0 * (process::cpu(pid) - before).as_secs_f64() / time.as_secs_f64();
    limit(20_000);
    let failed = stage.target.metric("ringway_accept_failed_total", "exhausted");
    let began = Instant::now();
    let served = clients.iter_mut().filter_map(|stream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut byte = [0];
        stream.write_all(b"?").ok()?;
        stream.read_exact(&mut byte).ok()
    });
    let cut = offered - served.count();
    let after = began.elapsed();
    // io_uring keeps the limit that held when its accept was armed: there the backend's socket is what fails.
    let without = stage.target.ended("no_descriptors", cut);
    let served = offered - cut;
    let note = format!(
        "{cut} cut off, {without} counted as such, {failed} failed accepts, CPU {percent:.0} %; {served} served \
         {after:.0?} after the release"
    );
    drop(clients);
    assert!(failed + without > 0 && cut == without as usize, "{note}");
    stage.finish(offered, offered as u64 * SESSION_BYTES, &note);
}

/// The least buffers a shard may have, and hundreds of directions that hold what nobody takes.
fn few_buffers(kind: Kind, scale: Scale) {
    let name = "few_buffers";
    let stage = Stage::with(name, kind, Manner::Flood, [LOOPBACK; 2], |setup| {
        setup.buffers = 128;
    });
    let clients = scale.of(100, 400);
    let deaf: Vec<TcpStream> = (0..clients)
        .map(|_| client(stage.target.other, PATIENCE).expect("a client comes in"))
        .collect();
    assert!(until(PATIENCE, || stage.other.open() == clients), "all reach the backend");
    std::thread::sleep(Duration::from_millis(scale.of(500, 5000)));
    let [starved, dry] =
        stage.target.metrics(["ringway_starved_directions", "ringway_no_buffers_total"]);
    let served = stage.served_after();
    drop(deaf);
    let note = format!(
        "{starved} starved directions, {dry} dry receives; a new client served in {served:.1?}"
    );
    stage.finish(clients, clients as u64 * (DIRECTION_BYTES + SESSION_BYTES), &note);
}

/// 251 local ports towards a backend, and more sessions than that.
fn few_local_ports(kind: Kind, _: Scale) {
    let Some(island) = Island::make() else { return };
    island.local_ports(40_000, 40_250);
    let name = "few_local_ports";
    let stage = Stage::with(name, kind, Manner::Echo, island.near(), |setup| {
        (setup.ip, setup.by) = (island.proxy(), island.by());
    });
    let offered = 300;
    let mut clients: Vec<TcpStream> = (0..offered)
        .map(|_| client(stage.target.other, PATIENCE).expect("a client comes in"))
        .collect();
    let cut = cut_off(&mut clients, Duration::from_millis(500));
    let counted = stage.target.ended("no_ports", cut);
    for stream in &clients {
        // The clients' ends are resets, so that the ports are free at once.
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    drop(clients);
    let began = Instant::now();
    let again = until(PATIENCE, || echoes(stage.target.other, PATIENCE));
    let note = format!(
        "{cut} ended, {counted} counted as no_ports; again served {:.0?} later",
        began.elapsed()
    );
    // The kernel does not always find the last free ones.
    let excess = offered - 251..=offered - 246;
    assert!(again && excess.contains(&cut) && counted == cut as u64, "{note}");
    stage.finish(offered, offered as u64 * SESSION_BYTES, &note);
}

/// A backend whose queue is full: connects hang, and end in time.
fn full_queue_of_a_backend(kind: Kind, scale: Scale) {
    let full = listen(LOOPBACK, 1).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let name = "full_queue_of_backend";
    let connect_ms = scale.of(500, 2000);
    let stage = Stage::with(name, kind, Manner::Echo, [LOOPBACK; 2], |setup| {
        (setup.other, setup.connect_ms) = (address, connect_ms);
    });
    // What a queue of one takes.
    let _fill: Vec<_> = (0..2).map(|_| client(address, PATIENCE).unwrap()).collect();
    let offered = scale.of(20, 200);
    let began = Instant::now();
    let mut clients: Vec<TcpStream> = (0..offered)
        .map(|_| client(stage.target.other, PATIENCE).expect("a client comes in"))
        .collect();
    let cut = cut_off(&mut clients, PATIENCE);
    let took = began.elapsed();
    let counted = stage.target.ended("connect_timeout", cut);
    let note = format!("{cut} ended after {took:.2?} of {connect_ms} ms, {counted} counted");
    assert!(cut == offered && counted == cut as u64, "{note}");
    let bound = Duration::from_millis(u64::from(connect_ms) * 11 / 10 + 1000);
    assert!(took >= Duration::from_millis(u64::from(connect_ms)) && took < bound, "{note}");
    drop(full);
    stage.finish(offered, offered as u64 * SESSION_BYTES, &note);
}
