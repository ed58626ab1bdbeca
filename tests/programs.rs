//! Real programs through Ringway, on each data path: what they say of it must be what they say without.

#![allow(clippy::disallowed_methods, reason = "a test waits for real time to pass")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod world;

use ringway::config::DataPath;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use world::net::free_address;
use world::program::{Process, Program, Ran, run};
use world::proxy::{Recipe, scratch};
use world::{has_program, has_uring, skipped, until};

/// How long one of these programs may take.
const PATIENCE_MS: u64 = 60_000;

fn paths() -> Vec<DataPath> {
    let uring = has_uring().then_some(DataPath::Uring);
    uring.into_iter().chain([DataPath::Epoll]).collect()
}

/// A Ringway of its own before `backend`, on two shards.
fn before(backend: SocketAddr, path: DataPath) -> Program {
    Program::start(Recipe::new(path, &[backend]).shards(2).more("[log]\nsession_every = 0"))
}

/// Runs a program, which must succeed.
fn well(program: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(arguments);
    let ran = run(command, PATIENCE_MS);
    assert_eq!(ran.code, Some(0), "{program} {arguments:?}: {ran:?}");
    ran
}

/// Waits until somebody listens, and ends the session this makes.
fn until_listening(at: SocketAddr) {
    until(15_000, "the program listens", || TcpStream::connect(at).is_ok());
}

/// All sessions ended in order, and nothing was left over.
fn expect_clean(program: &Program) {
    until(5000, "all sessions end", || program.metric("ringway_shard_sessions", "") == 0.0);
    for metric in [
        "ringway_connect_failed_total",
        "ringway_watchdog_total",
        "ringway_stale_completions_total",
    ] {
        assert_eq!(program.metric(metric, ""), 0.0, "{metric}");
    }
}

/// A directory that is removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = scratch("d");
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn redis_benchmark_runs_through() {
    if !has_program("redis-server") || !has_program("redis-benchmark") {
        return;
    }
    let (at, directory) = (free_address(), Directory::new());
    let mut server = Command::new("redis-server");
    let port = at.port().to_string();
    server.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir", directory.text()]);
    let server = Process::start(server);
    until_listening(at);
    for path in paths() {
        let program = before(at, path);
        let port = program.at.port().to_string();
        for more in [vec![], vec!["-P", "16"]] {
            let mut arguments = vec!["-h", "127.0.0.1", "-p", &port, "-c", "100", "-n", "20000"];
            arguments.extend(["-t", "ping,set,get", "--csv"]);
            arguments.extend(more);
            let ran = well("redis-benchmark", &arguments);
            for test in ["PING_INLINE", "PING_MBULK", "SET", "GET"] {
                assert!(ran.out.contains(&format!("\"{test}\"")), "{test}: {ran:?}");
            }
            assert!(!(ran.out + &ran.err).to_lowercase().contains("error"));
        }
        expect_clean(&program);
        let ended = |why| program.metric("ringway_sessions_ended_total", why);
        assert!(ended("") >= 800.0, "{} sessions", ended(""));
        assert_eq!(ended("reason=\"backend_reset\""), 0.0);
    }
    drop(server);
}

#[test]
fn iperf3_runs_through_in_both_directions() {
    if !has_program("iperf3") {
        return;
    }
    let at = free_address();
    let mut server = Command::new("iperf3");
    server.args(["-s", "-B", "127.0.0.1", "-p", &at.port().to_string()]);
    let server = Process::start(server);
    until(5000, "iperf3 listens", || listens(at));
    for path in paths() {
        let program = before(at, path);
        let port = program.at.port().to_string();
        for streams in ["1", "8"] {
            for direction in [None, Some("-R")] {
                let mut arguments = vec!["-c", "127.0.0.1", "-p", &port, "-t", "1", "-J"];
                arguments.extend(["-P", streams]);
                arguments.extend(direction);
                let ran = well("iperf3", &arguments);
                let said: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
                assert!(said["error"].is_null(), "{said}");
                let received = said["end"]["sum_received"]["bytes"].as_f64().unwrap();
                assert!(received > 1e6, "{path:?} {streams} {direction:?}: {received} bytes");
            }
        }
        expect_clean(&program);
    }
    drop(server);
}

/// Whether somebody listens, found without a connection: iperf3 takes the first for a test.
fn listens(at: SocketAddr) -> bool {
    let port = format!("0100007F:{:04X}", at.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&port.as_str()) && words.get(3) == Some(&"0A")
    })
}

/// Where PostgreSQL's server programs are, which are not in the path everywhere.
fn postgres_programs() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.map(|v| v.unwrap().path().join("bin")).collect())
        .unwrap_or_default();
    found.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    found.into_iter().find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
}

/// A command as a user who may run PostgreSQL: root may not.
fn as_postgres(program: &Path) -> Option<Command> {
    let is_root = well("id", &["-u"]).out.trim() == "0";
    if !is_root {
        return Some(Command::new(program));
    }
    let mut id = Command::new("id");
    id.arg("postgres");
    if !has_program("runuser") || run(id, 5000).code != Some(0) {
        skipped("pgbench: PostgreSQL does not run as root, and there is no user postgres");
        return None;
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    Some(command)
}

/// A PostgreSQL server with an empty cluster.
fn postgres(at: SocketAddr, directory: &Directory) -> Option<Process> {
    let Some(programs) = postgres_programs() else {
        skipped("pgbench: PostgreSQL's server is not installed");
        return None;
    };
    let mut init = as_postgres(&programs.join("initdb"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&directory.0, mode).unwrap();
    let data = format!("{}/data", directory.text());
    init.args(["-D", &data, "-A", "trust", "-U", "postgres", "--no-sync"]);
    init.current_dir(&directory.0);
    let ran = run(init, PATIENCE_MS);
    assert_eq!(ran.code, Some(0), "initdb: {ran:?}");
    let mut server = as_postgres(&programs.join("postgres"))?;
    server.args(["-D", &data, "-h", "127.0.0.1", "-p", &at.port().to_string()]);
    server.args(["-k", directory.text(), "-F"]).current_dir(&directory.0);
    Some(Process::start(server))
}

#[test]
fn pgbench_runs_through() {
    if !has_program("pgbench") {
        return;
    }
    let (at, directory) = (free_address(), Directory::new());
    let Some(mut server) = postgres(at, &directory) else { return };
    until(20_000, "PostgreSQL is ready", || server.said().contains("ready to accept connections"));
    let common = |port: &str| -> Vec<String> {
        ["-h", "127.0.0.1", "-p", port, "-U", "postgres"].map(str::to_owned).to_vec()
    };
    let pgbench = |port: &str, more: &[&str]| {
        let arguments = common(port);
        let arguments: Vec<&str> = arguments
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .chain(["postgres"])
            .collect();
        well("pgbench", &arguments)
    };
    pgbench(&at.port().to_string(), &["-i", "-s", "1", "-q"]);
    for path in paths() {
        let program = before(at, path);
        let port = program.at.port().to_string();
        let ran = pgbench(&port, &["-n", "-S", "-c", "4", "-j", "2", "-T", "2"]);
        assert!(ran.out.contains("number of failed transactions: 0 "), "{ran:?}");
        assert!(ran.out.contains("tps ="), "{ran:?}");
        expect_clean(&program);
    }
    // Politely, so that nothing of it stays behind.
    let id = std::fs::read_to_string(directory.0.join("data/postmaster.pid")).unwrap();
    let stop = format!("kill -INT {}", id.lines().next().unwrap());
    assert!(Command::new("sh").args(["-c", &stop]).status().unwrap().success());
    server.wait(10_000);
}
