//! Live sessions carried to and fro: the program's own ways to ask for it, and shows that take minutes.

#![allow(clippy::disallowed_methods, reason = "a test waits for real time to pass")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod world;

#[path = "carry/load.rs"]
mod load;

use load::Mixed;
use ringway::config::DataPath;
use ringway::control::order::{Answer, Order};
use ringway::event::EndReason;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use world::net::{Backend, connect, echo, listen, try_echo};
use world::program::{Program, RINGWAY, resident_kib, ringway, run};
use world::proxy::{Proxy, Recipe};
use world::{has_program, has_uring, pause, until};

/// Sessions of the program that are open on a path.
fn open_on(program: &Program, path: &str) -> f64 {
    program.metric("ringway_shard_sessions", &format!("path=\"{path}\""))
}

fn datapath(program: &Program, arguments: &[&str]) -> Command {
    let mut command = ringway(&["datapath"]);
    command.args(arguments).arg("--config").arg(&program.file);
    command
}

#[test]
fn a_command_and_a_signal_change_the_data_path_of_the_running_process() {
    if !has_uring() {
        return;
    }
    let backend = Backend::echo();
    let program = Program::start(Recipe::new(DataPath::Uring, &[backend.at]).shards(2));
    let clients: Vec<TcpStream> = (0..20).map(|_| connect(program.at)).collect();
    let all_echo = || clients.iter().for_each(|client| echo(client, b"hello"));
    all_echo();
    assert_eq!(open_on(&program, "uring"), 20.0);
    let ran = run(datapath(&program, &["epoll", "--percent", "25", "--live"]), 10_000);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("25.00 %"), "{ran:?}");
    until(3000, "a quarter has moved", || open_on(&program, "epoll") == 5.0);
    let (status, text) = program.get("/api/v1/status");
    assert!(status == 200 && text.contains("\"live_percent\":25.0"), "{text}");
    program.process.signal("USR1");
    until(3000, "all are on epoll", || open_on(&program, "epoll") == 20.0);
    program.process.until_said("rolled back");
    all_echo();
    let ran = run(datapath(&program, &["auto", "--new"]), 10_000);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    pause(300);
    assert_eq!(open_on(&program, "epoll"), 20.0, "the live ones stay");
    let ran = run(datapath(&program, &["tcp"]), 10_000);
    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{ran:?}");
    assert!(ran.err.contains("uring"), "{ran:?}");
    let ran = run(datapath(&program, &["uring", "--percent", "nan"]), 10_000);
    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{ran:?}");
    let (status, text) = program.get("/api/v1/sessions?slots=5");
    assert!(
        status == 200 && text.contains("\"next\":5") && text.contains("\"path\":\"epoll\""),
        "{text}"
    );
}

/// A program of one shard on io_uring whose calls into the ring fail as `when` says, counted by each thread.
fn failing(when: &str, at: SocketAddr) -> Program {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_enter", "-e"]);
    strace.arg(format!("inject=io_uring_enter:error=ENXIO:when={when}")).args(["--", RINGWAY]);
    let (program, _) = Program::start_with(Recipe::new(DataPath::Uring, &[at]), strace);
    program
}

#[test]
fn a_ring_that_cannot_be_entered_for_a_moment_loses_its_live_sessions_to_epoll() {
    if !has_uring() || !has_program("strace") {
        return;
    }
    let backend = Backend::echo();
    let program = failing("300..320", backend.at);
    let client = connect(program.at);
    let mut echoes = 0;
    until(10_000, "it has gone over to epoll", || {
        echo(&client, b"again");
        echoes += 1;
        echoes % 50 == 0 && open_on(&program, "epoll") == 1.0
    });
    echo(&client, b"and on");
    assert_eq!(open_on(&program, "uring"), 0.0);
    assert_eq!(program.metric("ringway_enter_failed_total", "uring"), 21.0);
    assert_eq!(program.metric("ringway_ring_rollbacks_total", "reason=\"enter_failed\""), 1.0);
    let new = connect(program.at);
    echo(&new, b"new ones go there as well");
    until(3000, "they do", || open_on(&program, "epoll") == 2.0);
}

#[test]
fn a_ring_that_is_gone_for_good_costs_its_sessions_and_its_lane_goes_on_on_epoll() {
    if !has_uring() || !has_program("strace") {
        return;
    }
    let backend = Backend::echo();
    let program = failing("300+", backend.at);
    let client = connect(program.at);
    until(10_000, "its shard gives up", || try_echo(&client, b"again").is_err());
    until(5000, "epoll takes its place", || {
        let failed = "reason=\"shard_failed\"";
        program.metric("ringway_ring_rollbacks_total", failed) == 1.0
    });
    for _ in 0..5 {
        echo(&connect(program.at), b"served");
    }
    assert_eq!(program.metric("ringway_begun_total", "path=\"epoll\""), 5.0);
    program.process.until_said("RING ROLLBACK");
}

/// For how many seconds a show lasts.
fn seconds() -> u64 {
    std::env::var("RINGWAY_SHOW_S").ok().and_then(|text| text.parse().ok()).unwrap_or(120)
}

/// Sessions of mixed messages, and whether they move bulk without a pause.
type Load = (u64, bool);

const MIXED: Load = (200, false);
/// Each keeps several megabytes on their way all the time.
const BULK: Load = (16, true);

/// Load for as long as a show lasts, during which something happens each second.
fn show(
    what: &str,
    load: Load,
    proxy: &Proxy,
    backend: &load::Far,
    mut each_second: impl FnMut(u64),
) {
    let sessions = load.0;
    let load = Mixed::start(proxy.at, load, backend);
    let began = Instant::now();
    for second in 1..=seconds() {
        each_second(second);
        let next = Duration::from_secs(second);
        std::thread::sleep(next.saturating_sub(began.elapsed()));
        assert_eq!(proxy.running().board().sessions(), sessions, "{:?}", proxy.reasons());
    }
    let (messages, bytes) = load.stop();
    let board = proxy.running().board();
    let sum = |of: fn(&ringway::tally::ShardTally) -> u64| -> u64 {
        board.shards().iter().map(|s| of(&s.tally.shard)).sum()
    };
    let (moved, failed) = (sum(|t| t.moves_in.get()), sum(|t| t.moves_failed.get()));
    println!(
        "{what}: {} s, {sessions} sessions, {messages} messages, {} MB, {moved} moves, {failed} given up, pause p50 \
         <= {:?}, p99 <= {:?}",
        began.elapsed().as_secs(),
        bytes / 1_000_000,
        pause_at(proxy, 0.5),
        pause_at(proxy, 0.99)
    );
    assert!(moved > sessions * seconds() / 2, "{moved} moves");
    proxy.expect_empty();
    assert_eq!(proxy.ended(EndReason::Finished), sessions, "{:?}", proxy.reasons());
}

/// Two shards, and sessions that may be half-closed for as long as they like.
fn proxy_of(path: DataPath, backend: &load::Far, hop: &str) -> Proxy {
    let recipe = Recipe::new(path, &[backend.at]).shards(2);
    let recipe = recipe.listener(&format!("hop = \"{hop}\""));
    recipe.more("[timeouts]\nhalf_closed_ms = 0").start()
}

/// The upper bound of the bucket this part of all pauses lies in.
fn pause_at(proxy: &Proxy, part: f64) -> Option<Duration> {
    let mut all: Vec<(u64, u64)> = vec![];
    for shard in proxy.running().board().shards() {
        let (buckets, above, _) = shard.tally.shard.pause.read();
        all.extend(buckets.chain([(u64::MAX, above)]));
    }
    all.sort_unstable();
    let total: u64 = all.iter().map(|(_, n)| n).sum();
    let mut below = 0;
    for (bound, n) in all {
        below += n;
        if below as f64 >= total as f64 * part {
            return (bound < u64::MAX).then(|| Duration::from_nanos(bound));
        }
    }
    None
}

#[test]
#[ignore = "takes two minutes: cargo test --test carry -- --ignored --nocapture --test-threads 1"]
fn the_data_path_flips_each_second_and_nobody_notices() {
    flips("flips of the data path", MIXED, "auto");
}

#[test]
#[ignore = "takes two minutes: cargo test --test carry -- --ignored --nocapture --test-threads 1"]
fn the_data_path_flips_each_second_under_spliced_bulk_and_nobody_notices() {
    flips("flips of the data path under spliced bulk", BULK, "splice");
}

fn flips(what: &str, load: Load, hop: &str) {
    if !has_uring() {
        return;
    }
    let backend = load::Far::start();
    let proxy = proxy_of(DataPath::Uring, &backend, hop);
    show(what, load, &proxy, &backend, |second| {
        let path = [DataPath::Uring, DataPath::Epoll][(second % 2) as usize];
        loop {
            match proxy.order(Order::whole_path(path, Some(true))) {
                Answer::Done { .. } => break,
                Answer::Refused(why) if why[0].contains("under way") => pause(5),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
#[ignore = "takes two minutes: cargo test --test carry -- --ignored --nocapture --test-threads 1"]
fn all_sessions_change_their_shard_each_second_and_nobody_notices() {
    moves("moves between shards", MIXED, "auto");
}

#[test]
#[ignore = "takes two minutes: cargo test --test carry -- --ignored --nocapture --test-threads 1"]
fn all_spliced_bulk_changes_its_shard_each_second_and_nobody_notices() {
    moves("moves of spliced bulk between shards", BULK, "splice");
}

fn moves(what: &str, load: Load, hop: &str) {
    let path = if has_uring() { DataPath::Uring } else { DataPath::Epoll };
    let backend = load::Far::start();
    let proxy = proxy_of(path, &backend, hop);
    show(what, load, &proxy, &backend, |_| {
        let listed = proxy.order(Order::Sessions { shard: None, from: 0, slots: 1000 });
        let Answer::Sessions { shards, next: None } = listed else { panic!("{listed:?}") };
        for shard in shards {
            for session in shard.sessions {
                let there = Order::Move { session: session.id, shard: 1 - shard.shard };
                let answer = proxy.order(there);
                // One that a move of the second before holds up is on its way.
                let ok = matches!(answer, Answer::Done { .. } | Answer::Unknown(_));
                assert!(ok, "{answer:?}");
            }
        }
    });
}

/// A backend that only listens and holds what comes.
struct Silent {
    at: SocketAddr,
    held: Arc<Mutex<Vec<TcpStream>>>,
}

impl Silent {
    fn start() -> Self {
        let listener = listen(4096);
        let at = listener.local_addr().unwrap();
        let held = Arc::new(Mutex::new(vec![]));
        let keep = Arc::clone(&held);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                keep.lock().unwrap().push(stream);
            }
        });
        Self { at, held }
    }
}

/// Resident KiB, CPU milliseconds.
fn used(program: &Program) -> (u64, u64) {
    let stat = std::fs::read_to_string(program.proc("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().unwrap()).sum();
    (resident_kib(program.process.id()), ticks * 10)
}

#[test]
#[ignore = "takes a minute and 10,000 descriptors: cargo test --test carry -- --ignored --nocapture --test-threads 1"]
fn five_thousand_idle_sessions_go_to_epoll_and_back() {
    const SESSIONS: usize = 5000;
    if !has_uring() {
        return;
    }
    assert!(ringway::driver::sys::raise_descriptor_limit() > 2 * SESSIONS as u64 + 100);
    let backend = Silent::start();
    let more = "[limits]\nsessions_max = 6000\n[log]\nlevel = \"warn\"\nsession_every = 0";
    let recipe = Recipe::new(DataPath::Uring, &[backend.at]).shards(2).more(more);
    let program = Program::start(recipe);
    let opened = AtomicUsize::new(0);
    let open = |_| {
        let mut client = connect(program.at);
        client.write_all(b"logon").unwrap();
        opened.fetch_add(1, SeqCst);
        client
    };
    let clients: Vec<TcpStream> = (0..SESSIONS).map(open).collect();
    let there = || backend.held.lock().unwrap().len();
    let began = Instant::now();
    while there() < SESSIONS && began.elapsed() < Duration::from_secs(20) {
        pause(50);
    }
    assert_eq!(there(), SESSIONS, "{}", program.get("/metrics").1);
    pause(3000);
    let (before, _) = used(&program);
    let mut first = None;
    for trip in 1..=3 {
        for path in ["epoll", "uring"] {
            let (_, cpu) = used(&program);
            let began = Instant::now();
            let ran = run(datapath(&program, &[path, "--live"]), 10_000);
            assert_eq!(ran.code, Some(0), "{ran:?}");
            until(20_000, "all have moved", || open_on(&program, path) == SESSIONS as f64);
            let took = began.elapsed();
            println!(
                "trip {trip}, {SESSIONS} sessions to {path}: {took:?}, {} ms of CPU with the asking for it",
                used(&program).1 - cpu
            );
        }
        pause(8000);
        let after = used(&program).0;
        println!("trip {trip}: {before} KiB before, {after} KiB after");
        // Of the first, most is what shards of epoll are, which had not run before; the others may add little to it.
        let bound = first.map_or(before + 2048, |first| first + 1024);
        assert!(after < bound, "{before} KiB before, {after} KiB after, {bound} are allowed");
        first.get_or_insert(after);
    }
    let paused = |label: &str| program.metric("ringway_pause_seconds_bucket", label);
    let (of, at_most) = (paused("le=\"+Inf\""), |le| paused(&format!("le=\"{le}\"")));
    println!(
        "{of} moves of a session at rest: {} paused for at most 0.1 ms, {} for 1 ms",
        at_most("0.0001"),
        at_most("0.001")
    );
    assert_eq!(of, 6.0 * SESSIONS as f64);
    assert_eq!(program.metric("ringway_moves_total", "failed"), 0.0);
    assert_eq!(clients.len(), opened.load(SeqCst));
}
