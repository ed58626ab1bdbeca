//! Upgrades that succeed.

use crate::line::{Line, Stream, kill};
use crate::on_each_path;
use crate::world::net::{Backend, End, Live, connect, echo, finish, noise, read_all};
use crate::world::proxy::Recipe;
use crate::world::{has_program, has_uring, pause, skipped, until};
use ringway::config::DataPath;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;

on_each_path!(
    an_upgrade_under_load_loses_nothing,
    what_operators_ordered_outlives_an_upgrade,
    a_backend_that_leaves_is_listed_after_an_upgrade,
    a_signal_upgrades_as_the_endpoint_does,
    scraping_has_no_gap_and_totals_never_fall,
    sockets_of_shards_that_are_gone_count_in_the_next_process_too,
);

/// A client that has finished, and a backend that answers it all the same: what comes back is still to come.
fn half_closed(line: &Line, seed: u64) -> (TcpStream, Vec<u8>) {
    let client = connect(line.at);
    let bytes = noise(seed, 3000);
    (&client).write_all(&bytes).unwrap();
    finish(&client);
    (client, bytes)
}

/// Echoes what it got when `release` is there, in two halves with a pause between, so that its sessions stay
/// half-closed for as long as a test wants.
fn late_echo(release: std::path::PathBuf) -> Backend {
    use std::io::Read as _;
    Backend::serving(move |mut stream| {
        stream.set_read_timeout(None).unwrap();
        let mut first = [0; 1];
        if stream.peek(&mut first).is_ok_and(|n| n == 0) {
            return;
        }
        let mut buffer = vec![0; 32 << 10];
        let (mut held, mut is_held) = (Vec::new(), true);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    held.extend_from_slice(&buffer[..n]);
                    // Live sessions are answered at once; those of half-closed ones begin with a length of 3000.
                    is_held = held.len() == 3000;
                    if !is_held && stream.write_all(&held).is_err() {
                        return;
                    }
                    if !is_held {
                        held.clear();
                    }
                }
            }
        }
        if is_held {
            until(60_000, "the test lets the backend answer", || release.exists());
            let _ = stream.write_all(&held);
        }
    })
}

fn an_upgrade_under_load_loses_nothing(path: DataPath) {
    let release = crate::world::proxy::scratch("release");
    let (backend, late) = (Backend::echo(), late_echo(release.clone()));
    let recipe = Recipe::new(path, &[backend.at]).shards(2).more(&format!(
        "[listeners.late]\nbind = \"127.0.0.1:0\"\nstable = \"late\"\n\
         [pools.late]\nbackends = [\"{}\"]",
        late.at
    ));
    let late_at = crate::world::net::free_address();
    let recipe =
        Recipe { more: recipe.more.replace("127.0.0.1:0", &late_at.to_string()), ..recipe };
    let mut line = Line::start(recipe);
    let live = Live::start(line.at, 40, 3);
    let waiting: Vec<_> = (0..10)
        .map(|seed| {
            let at = std::mem::replace(&mut line.at, late_at);
            let waiting = half_closed(&line, seed);
            line.at = at;
            waiting
        })
        .collect();
    let stream = Stream::start(line.at, 100);
    pause(200);
    let before = line.metrics();
    for _ in 0..3 {
        line.upgrade();
        pause(200);
    }
    // Totals never fell, though three processes counted them.
    let after = line.metrics();
    for (series, n) in before.iter().filter(|(s, _)| is_total(s)) {
        let now = after.iter().find(|(s, _)| s == series).map(|(_, n)| *n);
        assert!(now.is_some_and(|now| now >= *n), "{series}: {n}, then {now:?}");
    }
    let carried = line.metric("ringway_moves_total", "outcome=\"upgrade\"");
    assert!(carried >= 3.0 * 50.0, "{carried} were carried");
    let pauses = line.metric("ringway_pause_seconds_count", "");
    assert!(pauses >= carried, "{pauses} pauses of {carried}");
    assert_eq!(line.metric("ringway_upgrades_total", "done"), 3.0);
    std::fs::write(&release, "now").unwrap();
    for (client, bytes) in waiting {
        assert_eq!(read_all(&client), (bytes, End::Eof));
    }
    std::fs::remove_file(release).unwrap();
    assert!(stream.stop() > 50);
    assert!(live.stop() > 1000);
    until(5000, "all sessions end", || line.metric("ringway_shard_sessions", "") == 0.0);
    assert_eq!(line.metric("ringway_sessions", ""), 0.0);
    for metric in ["ringway_watchdog_total", "ringway_stale_completions_total"] {
        assert_eq!(line.metric(metric, ""), 0.0, "{metric}");
    }
    assert!(line.process.ended().is_some_and(|status| status.success()), "the first has ended");
}

fn order(line: &Line, path: &str, body: &str) {
    use std::io::Read as _;
    let mut stream = TcpStream::connect(line.admin).unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
}

/// What has how many live sessions.
fn on_path(line: &Line, path: &str) -> f64 {
    line.metric("ringway_shard_sessions", &format!("path=\"{path}\""))
}

#[test]
fn a_share_of_a_data_path_outlives_an_upgrade() {
    if !has_uring() {
        return skipped("io_uring is refused here");
    }
    let backend = Backend::echo();
    let line = Line::start(Recipe::new(DataPath::Epoll, &[backend.at]).shards(2));
    order(&line, "/api/v1/datapath", r#"{"path": "uring", "percent": 25, "live": false}"#);
    let sessions: Vec<TcpStream> = (0..40).map(|_| connect(line.at)).collect();
    sessions.iter().for_each(|session| echo(session, b"before"));
    assert_eq!((on_path(&line, "uring"), on_path(&line, "epoll")), (10.0, 30.0));
    line.upgrade();
    let path = &line.status().unwrap()["data_path"];
    assert_eq!((&path["kind"], &path["percent"]), (&"uring".into(), &25.0.into()));
    sessions.iter().for_each(|session| echo(session, b"after"));
    assert_eq!(
        (on_path(&line, "uring"), on_path(&line, "epoll")),
        (10.0, 30.0),
        "they are shared out"
    );
    let more: Vec<TcpStream> = (0..40).map(|_| connect(line.at)).collect();
    more.iter().for_each(|session| echo(session, b"new"));
    assert_eq!(
        (on_path(&line, "uring"), on_path(&line, "epoll")),
        (20.0, 60.0),
        "new ones as well"
    );
    // None of io_uring is all of epoll, in the next process as in this one.
    order(&line, "/api/v1/datapath", r#"{"path": "uring", "percent": 0, "live": true}"#);
    for _ in 0..2 {
        let path = &line.status().unwrap()["data_path"];
        assert_eq!((&path["kind"], &path["percent"]), (&"epoll".into(), &100.0.into()));
        line.upgrade();
    }
    sessions.iter().for_each(|session| echo(session, b"and again"));
    assert_eq!((on_path(&line, "uring"), on_path(&line, "epoll")), (0.0, 80.0));
}

fn what_operators_ordered_outlives_an_upgrade(path: DataPath) {
    let (stable, canary) = (Backend::echo(), Backend::echo());
    let recipe = Recipe::new(path, &[stable.at]).canary(canary.at, "5");
    let line = Line::start(recipe);
    order(&line, "/api/v1/listeners/orders/canary", r#"{"percent": 50}"#);
    order(&line, "/api/v1/datapath", r#"{"path": "epoll"}"#);
    let session = connect(line.at);
    echo(&session, b"before");
    let before = line.status().unwrap();
    line.upgrade();
    let after = line.status().unwrap();
    assert_eq!(after["listeners"][0]["canary_percent"], 50.0);
    assert_eq!(after["data_path"]["kind"], "epoll");
    assert!(after["generation"].as_u64() > before["generation"].as_u64());
    echo(&session, b"after");
    // A file that says something new wins.
    let text = std::fs::read_to_string(&line.config).unwrap();
    std::fs::write(&line.config, text.replace("canary_percent = 5", "canary_percent = 7")).unwrap();
    let told = line.upgrade();
    let edits = "the config file was edited: canary of `orders`: 50.00 % -> 7.00 %";
    assert!(told.contains(edits), "{told}");
    let edited = std::fs::read_to_string(&line.config).unwrap() + "[stop]\ndrain_ms = 77\n";
    std::fs::write(&line.config, edited).unwrap();
    order(&line, "/api/v1/listeners/orders/canary", r#"{"percent": 9}"#);
    let told = line.upgrade();
    assert!(told.contains("edited: stop.drain_ms: 30000 -> 77"), "{told}");
    assert!(!told.contains("canary"), "it is as it was ordered: {told}");
    assert_eq!(line.status().unwrap()["listeners"][0]["canary_percent"], 9.0);
    let said = "edited since the process before read it what=\"stop.drain_ms: 30000 -> 77\"";
    assert!(line.process.said().contains(said), "{}", line.process.said());
    std::fs::write(&line.config, text.replace("canary_percent = 5", "canary_percent = 7")).unwrap();
    order(&line, "/api/v1/listeners/orders/canary", r#"{"percent": 7}"#);
    assert!(line.upgrade().contains("edited: stop.drain_ms: 77 -> 30000"));
    assert!(!line.upgrade().contains("edited"), "the file is as it was");
    assert_eq!(line.status().unwrap()["listeners"][0]["canary_percent"], 7.0);
    echo(&session, b"and again");
}

fn a_backend_that_leaves_is_listed_after_an_upgrade(path: DataPath) {
    let (old, new) = (Backend::echo(), Backend::echo());
    let line = Line::start(Recipe::new(path, &[old.at]));
    let session = connect(line.at);
    echo(&session, b"before");
    let text = std::fs::read_to_string(&line.config).unwrap();
    std::fs::write(&line.config, text.replace(&old.at.to_string(), &new.at.to_string())).unwrap();
    kill(line.process.id(), "HUP");
    let lists = |expected: &[(String, u64, bool)]| {
        let status = line.status().expect("somebody answers");
        let backends = status["pools"][0]["backends"].as_array().unwrap().clone();
        let of = |b: &serde_json::Value| {
            let address = b["address"].as_str().unwrap().to_owned();
            (address, b["sessions"].as_u64().unwrap(), b["leaving"].as_bool().unwrap())
        };
        backends.iter().map(of).collect::<Vec<_>>() == expected
    };
    let both = [(new.at.to_string(), 0, false), (old.at.to_string(), 1, true)];
    until(5000, "the old one is listed beside the new one", || lists(&both));
    line.upgrade();
    echo(&session, b"after");
    assert!(lists(&both), "{:?}", line.status());
    drop(session);
    until(5000, "its last session has ended", || lists(&both[..1]));
}

fn a_signal_upgrades_as_the_endpoint_does(path: DataPath) {
    let backend = Backend::echo();
    let line = Line::start(Recipe::new(path, &[backend.at]));
    let session = connect(line.at);
    echo(&session, b"before");
    kill(line.process.id(), "USR2");
    until(10_000, "the next answers alone", || {
        line.status().is_some_and(|s| {
            s["process"]["generation"] == 2 && s["process"]["predecessor"].is_null()
        })
    });
    echo(&session, b"after");
}

fn scraping_has_no_gap_and_totals_never_fall(path: DataPath) {
    let backend = Backend::echo();
    let line = Line::start(Recipe::new(path, &[backend.at]).shards(2));
    let live = Live::start(line.at, 20, 1);
    let (admin, stop) = (line.admin, std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let (mut last, mut count) = (Vec::new(), 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (status, text) =
                    crate::world::program::get(admin, "/metrics").expect("an answer");
                assert_eq!(status, 200);
                let now = crate::world::program::numbers(&text);
                for (series, n) in last.iter().filter(|(s, _): &&(String, f64)| is_total(s)) {
                    let found = now.iter().find(|(s, _)| s == series).map(|(_, n)| *n);
                    assert!(found.is_some_and(|now| now >= *n), "{series}: {n}, then {found:?}");
                }
                (last, count) = (now, count + 1);
            }
            count
        });
        for _ in 0..5 {
            line.upgrade();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(scraper.join().unwrap() > 50);
    });
    live.stop();
}

/// Whether a series only ever grows; what is of one process alone does not.
fn is_total(series: &str) -> bool {
    let name = series.split('{').next().unwrap_or_default();
    let grows = ["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end));
    grows && !name.starts_with("ringway_process_")
}

#[test]
fn listeners_and_shards_may_change_with_the_binary() {
    let backend = Backend::echo();
    let [kept, gone, new] = std::array::from_fn(|_| crate::world::net::free_address());
    let listener =
        |name: &str, at| format!("[listeners.{name}]\nbind = \"{at}\"\nstable = \"v1\"\n");
    let more = listener("kept", kept) + &listener("gone", gone);
    let line = Line::start(Recipe::new(DataPath::Epoll, &[backend.at]).shards(3).more(&more));
    let sessions = [kept, gone].map(connect);
    sessions.iter().for_each(|session| echo(session, b"before"));
    let text = std::fs::read_to_string(&line.config).unwrap();
    // One has another name at the same address, one is gone, one is new; and each lane has more sockets than one.
    let other = listener("renamed", kept) + &listener("new", new);
    let fewer = text.replace(&more, &other).replace("count = 3", "count = 1");
    for (text, shards) in [(&fewer, 1), (&text, 3), (&fewer, 1), (&fewer, 1)] {
        std::fs::write(&line.config, text).unwrap();
        let stream = Stream::start(kept, 200);
        line.upgrade();
        pause(100);
        assert!(stream.stop() > 10);
        assert_eq!(line.status().unwrap()["shards"].as_array().unwrap().len(), shards);
        // Also where nobody is left that asks for their listener.
        sessions.iter().for_each(|session| echo(session, b"after"));
        for (at, listens) in [(gone, shards == 3), (new, shards == 1)] {
            let client = TcpStream::connect_timeout(&at, std::time::Duration::from_millis(300));
            assert_eq!(client.is_ok(), listens, "{at} with {shards} shards");
        }
        for _ in 0..20 {
            echo(&connect(kept), b"new");
        }
    }
}

#[test]
fn shards_change_by_reload_and_by_upgrade_in_turn() {
    let backend = Backend::echo();
    let line = Line::start(Recipe::new(DataPath::Auto, &[backend.at]).shards(3));
    let live = Live::start(line.at, 20, 10);
    let stream = Stream::start(line.at, 100);
    let text = std::fs::read_to_string(&line.config).unwrap();
    let running = |line: &Line| {
        let status = line.status().expect("somebody answers");
        let shards = status["shards"].as_array().unwrap().clone();
        shards.iter().filter(|shard| shard["ended"] == false).count()
    };
    // What a process has of sockets that its lanes do not need, the next one gets as well.
    for (by_reload, by_upgrade) in [(1, 2), (4, 1)] {
        let with = |shards: usize| text.replace("count = 3", &format!("count = {shards}"));
        std::fs::write(&line.config, with(by_reload)).unwrap();
        until(10_000, "the shards are as the file says", || {
            // One that comes while sessions are still on their way is refused.
            kill(line.pid(), "HUP");
            pause(100);
            running(&line) == by_reload
        });
        std::fs::write(&line.config, with(by_upgrade)).unwrap();
        line.upgrade();
        assert_eq!(running(&line), by_upgrade);
    }
    assert!(stream.stop() > 20 && live.stop() > 100);
}

/// What they leave of the descriptors for sessions is as much after an upgrade as before.
fn sockets_of_shards_that_are_gone_count_in_the_next_process_too(path: DataPath) {
    if !has_program("prlimit") {
        return;
    }
    let backend = Backend::echo();
    let more = (1..40).fold(String::new(), |tables, at| {
        tables + &format!("[listeners.more-{at}]\nbind = \"127.0.0.1:0\"\nstable = \"v1\"\n")
    });
    let line = Line::start(Recipe::new(path, &[backend.at]).shards(8).more(&more));
    let granted = || line.metric("ringway_sessions_max", "");
    let before = granted();
    let pid = line.pid().to_string();
    let limited = Command::new("prlimit").args(["--nofile=950:950", "--pid", &pid]).status();
    assert!(limited.unwrap().success());
    let text = std::fs::read_to_string(&line.config).unwrap();
    std::fs::write(&line.config, text.replace("count = 8", "count = 1")).unwrap();
    line.process.signal("HUP");
    until(5000, "one shard is left", || granted() < before);
    let after = granted();
    assert!(after < (950.0 - 320.0) / 2.0, "{after} sessions, and 320 sockets");
    line.upgrade();
    assert_eq!(granted(), after);
}
