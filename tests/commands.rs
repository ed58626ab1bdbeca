//! The program as its operators meet it: exit codes, what it prints, signals, and what a tracer sees.

#![allow(clippy::disallowed_methods, reason = "a test waits for real time to pass")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod world;

use ringway::config::DataPath;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use world::net::{Backend, Stage, connect, echo, finish, free_address, read_all, reset};
use world::program::{Process, Program, RINGWAY, Ran, ringway, run};
use world::proxy::{Recipe, scratch};
use world::{has_program, has_uring, pause, until};

/// Writes a config to a file, and runs `ringway` on it.
fn with_config(command: Command, arguments: &[&str], text: &str) -> Ran {
    let file = scratch("toml");
    std::fs::write(&file, text).unwrap();
    let mut command = command;
    command.args(arguments).arg(&file);
    let ran = run(command, 10_000);
    std::fs::remove_file(file).unwrap();
    ran
}

fn check(text: &str) -> Ran {
    with_config(ringway(&[]), &["check"], text)
}

fn start(text: &str) -> Ran {
    with_config(ringway(&[]), &["run", "--config"], text)
}

#[test]
fn check_prints_every_fault_with_its_key() {
    let good = Recipe::new(DataPath::Auto, &[free_address()]);
    let ran = check(&good.text());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let bad = good
        .listener("canary_percent = 120\nbackloq = 10")
        .pool("retries = 17")
        .more("[timeouts]\nconnect_ms = 0\n[log]\nlevel = \"loud\"");
    let ran = check(&bad.text());
    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{ran:?}");
    let faults: Vec<&str> = ran.err.lines().collect();
    assert_eq!(faults.len(), 6, "five, and how many: {faults:#?}");
    let keys = [
        ("listeners.orders.canary_percent", "120"),
        ("listeners.orders.backloq", "backlog"),
        ("pools.v1.retries", "17"),
        ("timeouts.connect_ms", "0"),
        ("log.level", "loud"),
    ];
    for (key, also) in keys {
        assert!(faults.iter().any(|f| f.contains(key) && f.contains(also)), "{key}: {faults:#?}");
    }
    assert!(faults[5].ends_with("5 faults"), "{faults:#?}");
    assert_eq!(start(&bad.text()).code, Some(64), "and it does not start with it");
}

#[test]
fn each_way_not_to_start_has_its_line_and_its_code() {
    let ran = run(ringway(&["run", "--config", "/nowhere/at/all.toml"]), 5000);
    assert_eq!((ran.code, ran.err.lines().count()), (Some(66), 1), "{ran:?}");
    assert!(ran.err.contains("/nowhere/at/all.toml"), "{ran:?}");
    let ran = run(ringway(&["check", "/nowhere/at/all.toml"]), 5000);
    assert_eq!(ran.code, Some(66), "{ran:?}");
    let both = ["check", "a.toml", "--config", "b.toml"];
    assert_eq!(run(ringway(&both), 5000).code, Some(64), "which of them?");
    // Every command that wants a config takes it with the option and without, and looks at the same place by default.
    for command in ["run", "check", "reload", "status", "upgrade"] {
        for named in [&["/nowhere/at/all.toml"][..], &["--config", "/nowhere/at/all.toml"]] {
            let ran = run(ringway(&[&[command], named].concat()), 5000);
            assert_eq!((ran.code, ran.err.lines().count()), (Some(66), 1), "{ran:?}");
        }
        let help = run(ringway(&[command, "--help"]), 5000);
        assert!(help.out.contains("[default: /etc/ringway/ringway.toml]"), "{help:?}");
        assert!(help.out.lines().all(|line| line.chars().count() <= 100), "{}", help.out);
    }
    let help = run(ringway(&["help"]), 5000);
    assert!(help.out.lines().all(|line| line.chars().count() <= 120), "{}", help.out);
    assert_eq!(run(ringway(&["walk"]), 5000).code, Some(64));
    assert_eq!(run(ringway(&["--version"]), 5000).code, Some(0));

    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let at = taken.local_addr().unwrap();
    let mut recipe =
        Recipe::new(DataPath::Epoll, &[free_address()]).more("[log]\nlevel = \"error\"");
    recipe.bind = at;
    let ran = start(&recipe.text());
    assert_eq!((ran.code, ran.err.lines().count()), (Some(71), 1), "{ran:?}");
    assert!(ran.err.contains("listeners.orders") && ran.err.contains(&at.to_string()), "{ran:?}");
    recipe.bind = free_address();
    let ran = start(&recipe.clone().more(&format!("[admin]\nbind = \"{at}\"")).text());
    assert_eq!((ran.code, ran.err.lines().count()), (Some(71), 1), "{ran:?}");
    assert!(ran.err.contains("admin.bind") && ran.err.contains(&at.to_string()), "{ran:?}");
    if has_program("prlimit") {
        recipe.bind = free_address();
        let mut few = Command::new("prlimit");
        few.args(["--nofile=64:64", RINGWAY]);
        let ran = with_config(few, &["run", "--config"], &recipe.text());
        assert_eq!((ran.code, ran.err.lines().count()), (Some(71), 1), "{ran:?}");
        assert!(ran.err.contains("64 descriptors none is left for sessions"), "{ran:?}");
    }
}

/// `ringway` on a kernel that refuses io_uring, as far as it can tell.
fn refused_uring() -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qqq", "-o", "/dev/null", "-e", "trace=io_uring_setup"]);
    command.args(["-e", "inject=io_uring_setup:error=EPERM", RINGWAY]);
    command
}

#[test]
fn a_refused_io_uring_is_said_and_never_papered_over() {
    if !has_program("strace") {
        return;
    }
    let recipe = |path| Recipe::new(path, &[free_address()]).more("[log]\nlevel = \"error\"");
    let ran = with_config(refused_uring(), &["run", "--config"], &recipe(DataPath::Uring).text());
    assert_eq!((ran.code, ran.err.lines().count()), (Some(69), 1), "{ran:?}");
    assert!(ran.err.contains("data_path") && ran.err.contains("io_uring"), "{ran:?}");

    let backend = Backend::echo();
    let (mut program, _) =
        Program::start_with(Recipe::new(DataPath::Auto, &[backend.at]), refused_uring());
    echo(&connect(program.at), b"on epoll");
    let said = program.process.said();
    let loud = said.lines().find(|l| l.contains("DATA PATH")).unwrap();
    assert!(loud.contains("WARN") && loud.contains("path=\"epoll\""), "{loud}");
    assert_eq!(program.metric("ringway_data_path_info", "path=\"epoll\""), 1.0);
    // The tracer ends with its program.
    let stop = format!("kill -TERM {}", program.process.children().trim());
    assert!(Command::new("sh").args(["-c", &stop]).status().unwrap().success());
    assert_eq!(program.process.wait(3000).code(), Some(0));
}

#[test]
fn the_probe_speaks_to_people_and_to_programs() {
    let ran = run(ringway(&["probe"]), 10_000);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("multishot accept"), "{ran:?}");
    let ran = run(ringway(&["probe", "--json"]), 10_000);
    let report: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert!(report.is_object() && ran.code == Some(0), "{report}");
}

#[test]
fn the_demo_shows_orders_and_ends_by_itself() {
    let ran = run(ringway(&["demo", "--for", "3s"]), 15_000);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("orders/s") && ran.out.contains("127.0.0.1:"), "{}", ran.out);
    let rows = ran.out.lines().filter(|l| l.split_whitespace().next().is_some_and(is_number));
    assert!(rows.count() >= 1, "{}", ran.out);
}

fn is_number(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_digit() || c == '.' || c == ',')
}

#[test]
fn the_order_engine_runs_alone() {
    let at = free_address();
    let mut engine = Process::start(ringway(&["order-engine", "--listen", &at.to_string()]));
    until(5000, "it listens", || TcpStream::connect(at).is_ok());
    let mut client = connect(at);
    client.write_all(b"this is no order\n").unwrap();
    let mut answer = [0; 512];
    let bytes = client.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..bytes]).into_owned();
    let said: serde_json::Value =
        serde_json::from_str(answer.lines().next().unwrap()).expect("JSON");
    assert!(said.to_string().contains("reject"), "{said}");
    engine.signal("TERM");
    assert_eq!(engine.wait(5000).code(), Some(0));
}

#[test]
fn a_hang_up_reloads_and_a_bad_file_is_logged_and_left() {
    let (stable, canary) = (Backend::echo(), Backend::echo());
    let recipe = Recipe::new(DataPath::Auto, &[stable.at]).canary(canary.at, "0");
    let (program, mut recipe) = Program::start_with(recipe, ringway(&[]));
    let live = connect(program.at);
    echo(&live, b"before");
    std::fs::write(&program.file, recipe.text().replace("retries", "x") + "\n[loq]\n").unwrap();
    program.process.signal("HUP");
    program.process.until_said("config refused, nothing was changed");
    program.process.until_said("loq");
    echo(&live, b"alive");
    echo(&connect(program.at), b"served");
    assert_eq!((stable.accepted(), canary.accepted()), (2, 0));

    recipe.listener = recipe.listener.replace("percent = 0", "percent = 100");
    std::fs::write(&program.file, recipe.text()).unwrap();
    program.process.signal("HUP");
    program.process.until_said("config reloaded");
    echo(&connect(program.at), b"served");
    assert_eq!((stable.accepted(), canary.accepted()), (2, 1));
    echo(&live, b"alive");
    assert_eq!(program.metric("ringway_reloads_total", "outcome=\"refused\""), 1.0);
    assert_eq!(program.metric("ringway_reloads_total", "outcome=\"applied\""), 1.0);
}

#[test]
fn a_shell_can_ask_for_a_reload_and_for_the_status() {
    let (one, other) = (Backend::echo(), Backend::echo());
    let (program, mut recipe) =
        Program::start_with(Recipe::new(DataPath::Epoll, &[one.at]), ringway(&[]));
    let file = program.file.to_str().unwrap();
    let ask = |command| run(ringway(&[command, "--config", file]), 10_000);
    let ran = ask("status");
    let status: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!((ran.code, &status["process"]["pid"]), (Some(0), &program.process.id().into()));
    assert!(ran.out.lines().count() > 20, "for people, too: {ran:?}");

    recipe.backends = vec![format!("\"{}\"", other.at)];
    std::fs::write(&program.file, recipe.text() + "[log]\nlevel = \"debug\"\n").unwrap();
    let ran = ask("reload");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let told = format!(
        "{file}: for new sessions: pools.v1.backends: -{} +{}; waits for a restart: log.level: \"info\" -> \"debug\"\n",
        one.at, other.at
    );
    assert_eq!(ran.out, told);
    // Another file only tells where to ask, and by which token.
    let another = recipe.clone().more("[timeouts]\nidle_ms = 1");
    let ran = with_config(ringway(&[]), &["reload", "--config"], &another.text());
    assert!(
        ran.code == Some(0) && ran.out.starts_with(&format!("{file}: nothing changed")),
        "{ran:?}"
    );
    program.process.until_said(&format!("pools.v1.backends: -{} +{}", one.at, other.at));
    program.process.until_said("these changes wait for a restart");
    std::fs::write(&program.file, recipe.text().replace("retries", "x") + "\n[loq]\n").unwrap();
    let ran = ask("reload");
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.err.contains("loq: unknown key"), "who asks reads the file, too: {ran:?}");
}

/// What a session's line must say, beside the numbers that are checked by themselves.
const FIELDS: [&str; 13] = [
    "session",
    "client",
    "listener",
    "pool",
    "backend",
    "backend_address",
    "backend_local",
    "arm",
    "up_bytes",
    "down_bytes",
    "attempts",
    "duration_ms",
    "why",
];

#[test]
fn each_session_leaves_a_line_for_people() {
    let backend = Backend::echo();
    let program = Program::start(Recipe::new(DataPath::Auto, &[backend.at]));
    let client = connect(program.at);
    let address = client.local_addr().unwrap();
    echo(&client, b"12345");
    finish(&client);
    read_all(&client);
    reset(connect(program.at));
    until(3000, "both are there", || program.process.said().matches("session ended").count() == 2);
    let said = program.process.said();
    let line = said.lines().find(|l| l.contains(&format!("client={address}"))).expect("its line");
    for field in FIELDS.iter().chain(&["connect_us", "opened_us", "first"]) {
        assert!(line.contains(&format!(" {field}=")), "{field}: {line}");
    }
    let at = backend.at;
    for value in
        ["up_bytes=5", "down_bytes=5", "why=\"finished\"", &format!("backend_address={at}")]
    {
        assert!(line.contains(value), "{value}: {line}");
    }
    assert!(
        said.contains("why=\"client_reset\"") || said.contains("why=\"client_left\""),
        "{said}"
    );
}

#[test]
fn each_session_leaves_a_line_for_machines() {
    let backend = Backend::echo();
    let recipe = Recipe::new(DataPath::Auto, &[backend.at]).more("[log]\nformat = \"json\"");
    let program = Program::start(recipe);
    let client = connect(program.at);
    echo(&client, b"12345");
    drop(client);
    program.process.until_said("session ended");
    let said = program.process.said();
    let lines: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("JSON, all of it")).collect();
    let line = lines.iter().find(|l| l["message"] == "session ended").expect("its line");
    for field in FIELDS.iter().chain(&["connect_us", "opened_us", "first"]) {
        assert!(!line[field].is_null(), "{field}: {line}");
    }
    assert_eq!(line["up_bytes"], 5);
    assert_eq!(line["down_bytes"], 5);
    assert_eq!(line["arm"], "stable");
    assert_eq!(line["why"], "finished");
    assert_eq!(line["backend_address"], backend.at.to_string());
}

#[test]
fn the_log_tells_what_runs_who_finished_first_and_from_where_a_session_went_to_its_backend() {
    let stage = Stage::new();
    let program = Program::start(Recipe::new(DataPath::Auto, &[stage.at()]));
    program.process.until_said("Ringway starts");
    let said = program.process.said();
    let starts = said.lines().find(|line| line.contains("Ringway starts")).unwrap();
    let (pid, file) = (program.process.id(), program.file.display());
    for fact in
        [&format!(" pid={pid} "), &format!(" config={file} "), " shards=1 ", " sessions_max="]
    {
        assert!(starts.contains(fact), "{fact}: {starts}");
    }

    let pair = stage.open_and_greet(program.at);
    finish(&pair.backend);
    read_all(&pair.client);
    let here = pair.backend.peer_addr().unwrap();
    let (_, listed) = program.get("/api/v1/sessions");
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["sessions"][0]["backend_local"], here.to_string(), "{listed}");
    // It is carried to another driver, where there are two.
    program.process.signal("USR1");
    program.process.until_said("rolled back by=\"SIGUSR1\"");
    pause(300);
    finish(&pair.client);
    read_all(&pair.backend);
    program.process.until_said("session ended");

    let pair = stage.open_and_greet(program.at);
    let there = pair.backend.peer_addr().unwrap();
    finish(&pair.client);
    read_all(&pair.backend);
    reset(pair.backend);
    program.process.until_said("backend_reset");
    let said = program.process.said();
    let line = |at: std::net::SocketAddr| {
        let is_its = |line: &&str| line.contains(&format!("backend_local={at}"));
        said.lines().find(is_its).unwrap_or_else(|| panic!("{at}: {said}"))
    };
    assert!(line(here).contains("first=\"backend\" why=\"finished\""), "{}", line(here));
    assert!(line(there).contains("first=\"client\" why=\"backend_reset\""), "{}", line(there));
    assert!(line(here).contains(" INFO ") && line(there).contains(" WARN "), "{said}");
}

#[test]
fn a_dead_backend_is_said_once_and_shows_in_the_lines_of_those_who_waited_for_it() {
    let (dead, backend) = (free_address(), Backend::echo());
    let program = Program::start(Recipe::new(DataPath::Auto, &[dead, backend.at]));
    for _ in 0..4 {
        let client = connect(program.at);
        echo(&client, b"anybody there?");
        finish(&client);
        read_all(&client);
    }
    program.process.until_said("backend cannot be reached: its sessions try others");
    pause(2500);
    let said = program.process.said();
    let lost: Vec<&str> = said.lines().filter(|line| line.contains("cannot be reached")).collect();
    assert_eq!(lost.len(), 1, "{said}");
    assert!(lost[0].contains(" WARN ") && lost[0].contains(&format!("address={dead}")), "{said}");
    assert!(lost[0].contains("why=\"connect_refused\""), "{said}");
    let lines = said.lines().filter(|line| line.contains("session ended"));
    let late = lines.filter(|line| line.contains("attempts=2") && line.contains("opened_us="));
    assert_eq!(late.count(), 2, "every other session began at it: {said}");
}

#[test]
fn a_pool_without_weight_is_a_caution_and_no_fault() {
    let recipe = Recipe::new(DataPath::Auto, &[]);
    let idle = format!("{{ address = \"{}\", weight = 0 }}", free_address());
    let ran = check(&Recipe { backends: vec![idle], ..recipe }.text());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("caution: pools.v1: all its backends have weight 0"), "{ran:?}");
    assert!(check(&Recipe::new(DataPath::Auto, &[free_address()]).text()).err.is_empty());
}

#[test]
fn a_busy_uring_shard_does_little_but_enter_its_ring() {
    if !has_uring() || !has_program("strace") {
        return;
    }
    let backend = Backend::echo();
    let program = Program::start(Recipe::new(DataPath::Uring, &[backend.at]));
    let stop = AtomicBool::new(false);
    let table = std::thread::scope(|s| {
        for _ in 0..16 {
            s.spawn(|| {
                let client = connect(program.at);
                while !stop.load(Relaxed) {
                    echo(&client, b"ping");
                }
            });
        }
        pause(200);
        let threads = program.threads();
        let (shard, _) = threads.iter().find(|(_, n)| n.starts_with("uring")).expect("a shard");
        let mut strace = Command::new("strace");
        strace.args(["-c", "-p", &shard.to_string()]);
        let mut strace = Process::start(strace);
        strace.until_said("attached");
        pause(1000);
        strace.signal("INT");
        strace.wait(5000);
        stop.store(true, Relaxed);
        strace.said()
    });
    // Columns: % time, seconds, usecs/call, calls, [errors,] syscall.
    let mut calls: Vec<(f64, &str)> = Vec::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = words.get(3).and_then(|word| word.parse().ok());
        if let (Some(number), Some(name)) = (number, words.last()) {
            calls.push((number, name));
        }
    }
    let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
        calls.iter().filter(|(_, name)| wanted(name)).map(|(n, _)| n).sum()
    };
    let (all, enters) = (sum(&|name| name != "total"), sum(&|name| name == "io_uring_enter"));
    assert!(enters > 100.0 && enters >= all * 0.95, "{table}");
    let worker = |(_, name): &(u32, String)| name.starts_with("iou-wrk");
    assert!(!program.threads().iter().any(worker), "{:?}", program.threads());
    // Where nothing moves, nothing is done: a turn a second for upkeep.
    pause(300);
    let before = program.metric("ringway_shard_turns_total", "");
    pause(2000);
    let turns = program.metric("ringway_shard_turns_total", "") - before;
    assert!(turns < 20.0, "{turns} turns in two idle seconds");
}

/// What a bench printed below a heading, up to the next.
fn section<'t>(out: &'t str, heading: &str) -> &'t str {
    let rest = out.split("== ").find(|part| part.starts_with(heading));
    rest.unwrap_or_else(|| panic!("no {heading} in\n{out}"))
}

#[test]
fn the_bench_compares_the_data_paths_and_judges() {
    let ran = run(ringway(&["bench", "--secs", "0.05", "--rounds", "1"]), 60_000);
    if !has_uring() {
        assert_eq!(ran.code, Some(71), "{ran:?}");
        assert!(ran.err.contains("there is nothing to compare"), "{ran:?}");
        return;
    }
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let out = &ran.out;
    for words in ["proxies, by turns", "congestion control", "fewer than 6 rounds"] {
        assert!(out.contains(words), "{words}: {out}");
    }
    for (case, rows, contender) in [
        ("ping-pong of 64 B, 1 session; ", 8, "uring "),
        ("turns of 64 B, 16 sessions; ", 10, "uring "),
        ("turns of 64 B, 64 sessions; ", 10, "uring "),
        ("messages of 64 B", 4, "uring "),
        ("connections", 10, "uring "),
        ("bulk", 4, "uring "),
        ("open loop: 5,000", 10, "uring "),
        ("open loop: 20,000", 10, "uring "),
        ("ping-pong of 64 B, 1 session, in low-latency mode", 8, "uring busy "),
    ] {
        let table = section(out, case);
        let (own, other) = (contender, contender.replace("uring", "epoll"));
        assert!(table.contains("1 x 50 ms each"), "{table}");
        let measured: Vec<&str> =
            table.lines().filter(|l| l.contains(own) || l.contains(&other)).collect();
        assert_eq!(measured.len(), rows + 1, "{rows} rows and how busy they were: {table}");
        // On a machine that is busy with others a round may come to nothing: then there is nothing to compare.
        let came_to_nothing = |l: &str| l.contains("  0.0000  ") || l.contains(" -");
        for pair in measured[..rows].chunks(2) {
            let compared = pair[1].contains(own) && pair[1].contains("..");
            assert!(compared || pair.iter().any(|l| came_to_nothing(l)), "{table}");
        }
    }
    let idle = section(out, "idle: 1000 sessions");
    assert!(idle.contains("for 250 ms, then one turn on one of them; 1 x"), "{idle}");
    let count = |words: &str| idle.lines().filter(|line| line.contains(words)).count();
    assert_eq!((count("under 1 %: "), count("(to epoll)")), (2, 1), "low-latency ones: {idle}");
    // Two heads; time and CPU of each of four; and each of two in low-latency mode beside each of two that sleep.
    assert_eq!(idle.lines().filter(|line| !line.is_empty()).count(), 2 + 4 + 4 + 4, "{idle}");
    assert_eq!(count("no slower: no"), 4, "one round proves nothing: {idle}");
    let gates = section(out, "gates: io_uring against epoll");
    for gate in ["latency", "throughput", "p95", "messages", "CPU"] {
        let line = gates.lines().find(|l| l.starts_with(&format!("{gate} "))).expect(gate);
        gate_is_judged_rightly(line);
    }
    assert!(gates.contains("0 of 5 gates hold; io_uring is worth it where any 2 do: "), "{gates}");
    let unmeasured = gates.matches("no (not measured)").count();
    let advice = if unmeasured < 2 { "data_path = \"epoll\"" } else { "nothing yet" };
    assert!(gates.contains(&format!("recommended here: {advice}")), "{gates}");
    assert!(gates.contains("other programs took "), "{gates}");
}

/// One round proves nothing for a gate, and much against it.
fn gate_is_judged_rightly(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let sign = words.iter().position(|w| ["<=", ">="].contains(w)).expect("what is wanted");
    if words[sign + 2] == "-" {
        assert!(line.ends_with("no (not measured)"), "{line}");
        return;
    }
    let number = |at: usize| words[sign + at].parse::<f64>().unwrap();
    let (wanted, ratio) = (number(1), number(2));
    let (low, high) = words[sign + 3].split_once("..").expect("an interval");
    assert_eq!((low, high), (words[sign + 2], words[sign + 2]), "one round: {line}");
    let verdict = words[sign + 4..].join(" ");
    // Printed with three digits, so that what is on the edge may go either way.
    if (ratio - wanted).abs() > 0.001 {
        let beyond = if words[sign] == "<=" { ratio < wanted } else { ratio > wanted };
        assert_eq!(verdict, if beyond { "no (too few rounds)" } else { "no" }, "{line}");
    }
}

#[test]
fn the_bench_says_which_proxies_are_missing() {
    let mut command = ringway(&["bench", "--against", "envoy", "--secs", "0.01", "--rounds", "1"]);
    let ran = run(
        {
            command.env("PATH", "/nowhere");
            command
        },
        30_000,
    );
    assert_eq!(ran.code, Some(71), "{ran:?}");
    assert!(ran.out.contains("envoy was NOT FOUND") && ran.out.contains("pip install"), "{ran:?}");
    assert!(ran.err.contains("none of the other proxies"), "{ran:?}");
    for wrong in [["--against", "squid"], ["--cases", "pong"], ["--cpus", "1"], ["--secs", "0"]] {
        assert_eq!(
            run(ringway(&[&["bench"], &wrong[..]].concat()), 5000).code,
            Some(64),
            "{wrong:?}"
        );
    }
}

#[test]
fn the_bench_runs_beside_another_proxy() {
    if !has_program("haproxy") {
        return;
    }
    let arguments = ["--against", "haproxy", "--cases", "ping,bulk,idle", "--secs", "0.01"];
    let ran = run(ringway(&[&["bench", "--rounds", "2"], &arguments[..]].concat()), 30_000);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("\nhaproxy ") && !ran.out.contains("ATTENTION: haproxy"), "{ran:?}");
    for case in ["ping-pong", "bulk"] {
        let table = section(&ran.out, case);
        assert!(table.contains("(to ringway)"), "{table}");
        assert!(table.lines().any(|l| l.contains(" haproxy ") && l.contains("..")), "{table}");
    }
    assert!(!ran.out.contains("in low-latency mode"), "it would compare nothing: {}", ran.out);
    let idle = section(&ran.out, "idle: ");
    assert!(idle.contains("(to ringway)") && idle.contains("; 2 x"), "{idle}");
    for words in ["ringway busy  to ringway ", "ringway busy  to haproxy "] {
        assert!(idle.lines().any(|l| l.contains(words) && l.contains("no slower: ")), "{idle}");
    }
    assert_eq!(idle.matches("under 1 %: ").count(), 1, "{idle}");
    assert!(!ran.out.contains("gates"), "they are for the data paths: {}", ran.out);
}
