//! The whole of it, larger: ten upgrades in a row under sessions of all kinds, with figures.

use crate::line::{Line, Stream};
use crate::world::net::{Backend, connect, finish, noise, try_echo};
use crate::world::program::{descriptors, resident_kib};
use crate::world::proxy::Recipe;
use crate::world::{has_uring, pause};
use ringway::config::DataPath;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

const SESSIONS: u64 = 200;
const UPGRADES: u64 = 10;
/// How long the last process is left alone, and what it may have in memory then: far less than all its buffers.
const CALM_MS: u64 = 3000;
const CALM_KIB_MAX: u64 = 32 << 10;
/// New connections a second, by as many threads.
const NEW: [u64; 20] = [50; 20];

/// From 1 B to 1 MiB, each power of two as often as the others.
fn message(seed: u64, turn: u64) -> Vec<u8> {
    let power = (seed.wrapping_mul(7) + turn.wrapping_mul(5)) % 21;
    let len = (1_usize << power).saturating_sub(usize::from(turn % 3 == 1 && power > 0));
    noise(seed << 32 | turn, len)
}

/// Echoes; a client that begins with `H` says a seed and finishes, and is then sent that seed's messages until `stop`.
fn backend(stop: Arc<AtomicBool>) -> Backend {
    Backend::serving(move |mut stream| {
        stream.set_read_timeout(None).unwrap();
        let mut buffer = vec![0; 64 << 10];
        let mut first = [0; 1];
        if !stream.read(&mut first).is_ok_and(|n| n == 1) {
            return;
        }
        if first == *b"H" {
            let mut seed = Vec::new();
            stream.read_to_end(&mut seed).unwrap();
            let seed = u64::from_le_bytes(seed.try_into().unwrap());
            let mut turn = 0;
            while !stop.load(Relaxed) {
                turn += 1;
                if stream.write_all(&message(seed, turn)).is_err() {
                    return;
                }
                pause(100);
            }
            return;
        }
        let mut n = stream.write(&first).unwrap_or(0);
        while n > 0
            && stream.read(&mut buffer).is_ok_and(|got| {
                n = got;
                got > 0
            })
        {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    })
}

/// A session that is checked byte by byte until `stop`; what went wrong, and how many messages there were.
fn session(
    at: SocketAddr,
    seed: u64,
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
) -> JoinHandle<Result<u64, String>> {
    let client = connect(at);
    let half_closed = seed.is_multiple_of(4);
    if half_closed {
        (&client).write_all(b"H").unwrap();
        (&client).write_all(&seed.to_le_bytes()).unwrap();
        finish(&client);
    } else {
        try_echo(&client, b"E").unwrap();
    }
    std::thread::spawn(move || {
        let mut turn = 0;
        loop {
            let expected = message(seed, turn + 1);
            if half_closed {
                if !received(&client, &expected)? {
                    return Ok(turn);
                }
            } else {
                if stop.load(Relaxed) {
                    return Ok(turn);
                }
                try_echo(&client, &expected).map_err(|why| format!("{seed}, {turn}: {why}"))?;
                pause(100);
            }
            turn += 1;
            bytes.fetch_add(expected.len() as u64, Relaxed);
        }
    })
}

/// Whether these bytes came; not, at an orderly end between messages.
fn received(mut from: &TcpStream, expected: &[u8]) -> Result<bool, String> {
    let mut got = vec![0; expected.len()];
    match from.read(&mut got[..1]).map_err(|e| format!("half-closed: {e}"))? {
        0 => Ok(false),
        _ => {
            from.read_exact(&mut got[1..]).map_err(|e| format!("half-closed: {e}"))?;
            if got == expected { Ok(true) } else { Err("half-closed: bytes differ".to_owned()) }
        }
    }
}

/// Resident memory in KiB, and open descriptors.
fn size_of(pid: u32) -> (u64, usize) {
    (resident_kib(pid), descriptors(pid))
}

/// The bound below which this share of all pauses was, in milliseconds.
fn pause_quantile(line: &Line, share: f64) -> f64 {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (series, n) in line.metrics() {
        let Some((_, bound)) = series.split_once("ringway_pause_seconds_bucket{") else { continue };
        let bound = bound.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
        let bound: f64 = bound.parse().unwrap_or(f64::INFINITY);
        match buckets.iter_mut().find(|(b, _)| *b == bound) {
            Some((_, all)) => *all += n,
            None => buckets.push((bound, n)),
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = buckets.last().unwrap().1;
    buckets.iter().find(|(_, n)| *n >= share * all).unwrap().0 * 1000.0
}

fn show(path: DataPath) {
    let stop = Arc::new(AtomicBool::new(false));
    let bytes = Arc::new(AtomicU64::new(0));
    let backend = backend(Arc::clone(&stop));
    let quiet = "[log]\nsession_every = 0";
    let line = Line::start(Recipe::new(path, &[backend.at]).shards(2).more(quiet));
    let open = |seed| session(line.at, seed, Arc::clone(&stop), Arc::clone(&bytes));
    let sessions: Vec<_> = (0..SESSIONS).map(open).collect();
    let streams: Vec<Stream> = NEW.iter().map(|n| Stream::start(line.at, *n)).collect();
    let began = Instant::now();
    pause(1000);
    let first = size_of(line.pid());
    let mut took_ms = Vec::new();
    for _ in 0..UPGRADES {
        let before = Instant::now();
        line.upgrade();
        took_ms.push(before.elapsed().as_millis());
        pause(500);
    }
    pause(500);
    let last = size_of(line.pid());
    let elapsed = began.elapsed();
    let new: usize = streams.into_iter().map(Stream::stop).sum();
    let carried = line.metric("ringway_moves_total", "outcome=\"upgrade\"");
    let (p50, p99) = (pause_quantile(&line, 0.5), pause_quantile(&line, 0.99));
    stop.store(true, Relaxed);
    let ended: Vec<Result<u64, String>> = sessions.into_iter().map(|s| s.join().unwrap()).collect();
    let faults: Vec<&String> = ended.iter().filter_map(|e| e.as_ref().err()).collect();
    assert!(faults.is_empty(), "{} of {SESSIONS}: {faults:?}", faults.len());
    // Bursts grow the window of buffers that io_uring may fill; a calm shard gives their memory back.
    pause(CALM_MS);
    let calm = size_of(line.pid()).0;
    let turns: u64 = ended.iter().filter_map(|e| e.as_ref().ok()).sum();
    println!(
        "{}: {UPGRADES} upgrades ({took_ms:?} ms each), {SESSIONS} sessions, a quarter half-closed: {turns} messages, \
         {} MiB, none lost; {new} new connections ({:.0} a second), none refused; {carried} sessions carried, pause \
         p50 <= {p50} ms, p99 <= {p99} ms; first process {} KiB and {} descriptors, last {} KiB and {}, \
         {calm} KiB when it was calm for {CALM_MS} ms",
        path.label(),
        bytes.load(Relaxed) >> 20,
        new as f64 / elapsed.as_secs_f64(),
        first.0,
        first.1,
        last.0,
        last.1,
    );
    assert!(carried >= (UPGRADES * SESSIONS) as f64, "{carried} carried");
    assert!(last.1 <= first.1 + 60, "descriptors: {} and {}", first.1, last.1);
    assert!(calm <= CALM_KIB_MAX, "{calm} KiB");
    assert!(p99 <= 1000.0, "p99 {p99} ms");
}

#[test]
#[ignore = "half a minute: cargo test --release --test upgrade -- --ignored --nocapture --test-threads 1 ten_upgrades"]
fn ten_upgrades_in_a_row_on_uring() {
    if has_uring() {
        show(DataPath::Uring);
    }
}

#[test]
#[ignore = "half a minute: cargo test --release --test upgrade -- --ignored --nocapture --test-threads 1 ten_upgrades"]
fn ten_upgrades_in_a_row_on_epoll() {
    show(DataPath::Epoll);
}
