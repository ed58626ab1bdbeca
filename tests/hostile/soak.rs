//! Mixed traffic with faults that a seed draws, for as long as is asked; at its end nothing may be left.

use super::backend::{Backend, Manner};
use super::healthy::Healthy;
use super::process;
use super::stage::{LOOPBACK, client, reset, until};
use super::target::{Kind, Setup, Target};
use std::io::{Error, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
/// What resident memory may differ by from its level after the first round.
const DRIFT_BYTES: u64 = 4 << 20;

/// splitmix64.
struct Dice(u64);

impl Dice {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    sessions: AtomicU64,
    bytes: AtomicU64,
    /// Sessions that were cut off though nothing was done to their backend.
    unexplained: AtomicU64,
    corrupt: AtomicU64,
}

#[test]
#[ignore = "takes a minute a data path: cargo test --release --test hostile -- --ignored --nocapture soak::soak"]
fn soak() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = variable("RINGWAY_SOAK_SECS").unwrap_or(60);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = variable("RINGWAY_SOAK_SEED").unwrap_or(now % 1_000_000);
    for kind in Kind::OURS {
        if kind.is_installed() {
            println!("soak on {} for {seconds} s: RINGWAY_SOAK_SEED={seed}", kind.label());
            soak_on(kind, Duration::from_secs(seconds), seed);
        } else {
            eprintln!("SKIPPED: this machine forbids io_uring");
        }
    }
}

fn soak_on(kind: Kind, time: Duration, seed: u64) {
    let echo = Backend::start(LOOPBACK, Manner::Echo);
    let other = Backend::start(LOOPBACK, Manner::Echo);
    let target = Target::start(&Setup::new(kind, echo.address, other.address));
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    // A first round on both data paths takes what is taken once: code, stacks, pools, and a shard of either path.
    let half_up = Duration::from_secs(2);
    traffic(&target, &seen, &stop, seed, || {
        flip(&target, Kind::Uring);
        std::thread::sleep(half_up);
        flip(&target, Kind::Epoll);
        std::thread::sleep(half_up);
        flip(&target, kind);
        stop.store(true, Relaxed);
    });
    await_calm(&target);
    let warm = process::status_bytes(target.pid(), "VmRSS");
    let kinds = process::descriptor_kinds(target.pid());
    let descriptors = process::descriptors(target.pid());
    let buffers = target.metric("ringway_buffers_free", "");
    stop.store(false, Relaxed);
    let healthy = Healthy::start(target.orders, 50);
    let mut faults = [0; 5];
    traffic(&target, &seen, &stop, seed ^ 1, || {
        let (mut dice, began) = (Dice(seed ^ 2), Instant::now());
        while began.elapsed() < time {
            std::thread::sleep(Duration::from_millis(200 + dice.below(800)));
            let fault = dice.below(5) as usize;
            faults[fault] += 1;
            one_fault(fault, &target, &other);
        }
        flip(&target, kind);
        stop.store(true, Relaxed);
    });
    let (gap, fault) = (healthy.gap(), healthy.fault());
    let figures = healthy.stop();
    let mut left = left_over(&target, descriptors, buffers, warm);
    until(PATIENCE, || {
        left = left_over(&target, descriptors, buffers, warm);
        left.iter().all(|l| l.1 == 0)
    });
    let now = process::descriptor_kinds(target.pid());
    let [flips, reloads, restarts, pauses, path_reloads] = faults;
    println!(
        "soak {} sessions {} bytes {} corrupt {} unexplained {}; healthy {} harmed {} lost {} B gap {gap:.1?}; {flips} \
         flips, {reloads} reloads, {restarts} backend restarts, {pauses} pauses, {path_reloads} flips without the \
         live; {left:?}",
        kind.label(),
        seen.sessions.load(Relaxed),
        seen.bytes.load(Relaxed),
        seen.corrupt.load(Relaxed),
        seen.unexplained.load(Relaxed),
        figures.sessions,
        figures.harmed,
        figures.lost,
    );
    let log = target.log();
    assert_eq!((figures.harmed, figures.lost), (0, 0), "{fault}\n{log}");
    assert_eq!((seen.corrupt.load(Relaxed), seen.unexplained.load(Relaxed)), (0, 0), "{log}");
    assert!(
        left.iter().all(|l| l.1 == 0),
        "left over: {left:?}, {kinds:?} became {now:?}, seed {seed}\n{log}"
    );
}

/// What should be gone and is not.
fn left_over(
    target: &Target,
    descriptors: u64,
    buffers: u64,
    warm: u64,
) -> [(&'static str, u64); 8] {
    let pid = target.pid();
    let now = process::descriptors(pid);
    let [free, sessions, open, starved, watchdog, stale] = target.metrics([
        "ringway_buffers_free",
        "ringway_shard_sessions",
        "ringway_sessions",
        "ringway_starved_directions",
        "ringway_watchdog_total",
        "ringway_stale_completions_total",
    ]);
    let memory = process::status_bytes(pid, "VmRSS");
    [
        ("descriptors", now.saturating_sub(descriptors)),
        ("buffers", buffers.abs_diff(free)),
        ("sessions of shards", sessions),
        ("sessions of routes", open),
        ("starved", starved),
        ("watchdog", watchdog),
        ("stale", stale),
        ("bytes of memory", memory.saturating_sub(warm + DRIFT_BYTES)),
    ]
}

fn flip(target: &Target, kind: Kind) {
    flip_with(target, kind.label(), true);
}

fn flip_with(target: &Target, path: &str, live: bool) {
    let body = format!("{{\"path\": \"{path}\", \"live\": {live}}}");
    let answer = target.ask("PUT", "/api/v1/datapath", &body).unwrap_or_default();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Sessions leave, and gauges are set once a second.
fn await_calm(target: &Target) {
    until(Duration::from_secs(20), || target.metric("ringway_shard_sessions", "") == 0);
    // The last look at the metrics was a connection too.
    std::thread::sleep(Duration::from_millis(2200));
}

fn one_fault(fault: usize, target: &Target, other: &Backend) {
    let is_uring = target
        .ask("GET", "/metrics", "")
        .is_some_and(|text| text.contains("ringway_data_path_info{path=\"uring\""));
    let opposite = if is_uring { "epoll" } else { "uring" };
    match fault {
        0 => flip_with(target, opposite, true),
        1 => target.reload(),
        2 => {
            other.die();
            std::thread::sleep(Duration::from_millis(100));
            other.rise();
        }
        3 => {
            process::signal(target.pid(), "STOP");
            std::thread::sleep(Duration::from_millis(500));
            process::signal(target.pid(), "CONT");
        }
        _ => flip_with(target, opposite, false),
    }
}

/// Threads that make sessions of all kinds until `stop`, while something is done.
fn traffic(target: &Target, seen: &Seen, stop: &AtomicBool, seed: u64, act: impl FnOnce()) {
    let (steady, shaky) = (target.orders, target.other);
    std::thread::scope(|threads| {
        for number in 0..6 {
            threads.spawn(move || {
                let mut dice = Dice(seed.wrapping_mul(31) + number);
                // Half of them use the backend that is restarted: those may be cut off, but never get wrong bytes.
                let (to, explained) = if number % 2 == 0 { (steady, false) } else { (shaky, true) };
                while !stop.load(Relaxed) {
                    let result = one_session(to, &mut dice, seen);
                    seen.sessions.fetch_add(1, Relaxed);
                    if let Err(e) = result
                        && !explained
                    {
                        eprintln!("unexplained: {e}");
                        seen.unexplained.fetch_add(1, Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(dice.below(10)));
                }
            });
        }
        act();
    });
}

fn one_session(to: SocketAddr, dice: &mut Dice, seen: &Seen) -> Result<()> {
    let mut stream = client(to, PATIENCE)?;
    match dice.below(6) {
        0 => {
            for _ in 0..1 + dice.below(50) {
                let size = 1 + dice.below(2000) as usize;
                round_trip(&mut stream, size, dice, seen, Duration::ZERO)?;
            }
        }
        1 => round_trip(&mut stream, 4 << 20, dice, seen, Duration::ZERO)?,
        // Slow readers.
        2 => round_trip(&mut stream, 512 << 10, dice, seen, Duration::from_millis(2))?,
        3 => {
            // A half-close: all bytes come back, then the end.
            let size = 1 + dice.below(100_000) as usize;
            let sent = bytes_of(dice, size);
            stream.write_all(&sent)?;
            stream.shutdown(Shutdown::Write)?;
            let mut back = Vec::new();
            stream.read_to_end(&mut back)?;
            compare(&sent, &back, seen)?;
        }
        4 => {
            stream.write_all(&[1; 100])?;
            reset(stream);
        }
        _ => drop(stream),
    }
    Ok(())
}

fn bytes_of(dice: &mut Dice, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&dice.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn compare(sent: &[u8], back: &[u8], seen: &Seen) -> Result<()> {
    seen.bytes.fetch_add(back.len() as u64, Relaxed);
    if !sent.starts_with(back) {
        seen.corrupt.fetch_add(1, Relaxed);
    }
    if sent.len() == back.len() { Ok(()) } else { Err(Error::other("an orderly end too early")) }
}

/// Sends so many bytes and wants them back; `pause` before each read.
fn round_trip(
    stream: &mut TcpStream,
    size: usize,
    dice: &mut Dice,
    seen: &Seen,
    pause: Duration,
) -> Result<()> {
    let sent = bytes_of(dice, size);
    let mut reader = stream.try_clone()?;
    let back = std::thread::scope(|threads| {
        let back = threads.spawn(move || {
            let mut back = vec![0; size];
            let mut filled = 0;
            while filled < size {
                std::thread::sleep(pause);
                let until = (filled + 16_384).min(size);
                match reader.read(&mut back[filled..until])? {
                    0 => break,
                    n => filled += n,
                }
            }
            back.truncate(filled);
            Result::Ok(back)
        });
        let wrote = stream.write_all(&sent);
        let back = back.join().expect("the reader does not panic");
        wrote.and(back)
    })?;
    compare(&sent, &back, seen)
}
