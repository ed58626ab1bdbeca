//! Arguments, config, run, exit code.

#![forbid(unsafe_code)]

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, value_parser};
use ringway::config::{Config, DataPath, Percent, file};
use ringway::control::handover::take::Legacy;
use ringway::control::order::{Answer, Order};
use ringway::control::{Outcome, favours};
use ringway::run::Running;
use ringway::{admin, bench, demo, driver};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::exfiltrator::WithRawSiginfo;
use signal_hook::iterator::{Signals, SignalsInfo};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// A TCP reverse proxy for order entry.
///
/// Exit codes: 0 stopped as asked; 64 the config or the arguments are wrong; 66 the config cannot
/// be read; 69 io_uring was asked for and is refused; 70 a bug of Ringway's; 71 the system refused
/// something, such as a port.
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Proxies clients to backends, as the config says.
    ///
    /// SIGHUP has it read the config again; SIGTERM or SIGINT has it stop, and a second one stop at
    /// once. SIGUSR1 takes all sessions back to epoll, SIGUSR2 upgrades to the program that is at its
    /// path now. What came of it is in the log.
    #[command(verbatim_doc_comment)]
    Run(Which),
    /// Says everything that is wrong with a config, or that it is good.
    Check(Which),
    /// Has a running Ringway read its config again, and says what changed.
    ///
    /// It reads the file it was started with, and says which. It is asked by the admin endpoint of the
    /// config named here. Without one, send it SIGHUP: what came of it is in the log.
    #[command(verbatim_doc_comment)]
    Reload(Which),
    /// Shows what a running Ringway does, as JSON: its process, data path, shards, listeners and pools.
    ///
    /// It is asked by the admin endpoint of the config.
    Status(Which),
    /// Has a running Ringway hand sockets and live sessions over to the program that is at its path now.
    ///
    /// It is asked by the admin endpoint of the config. Without one, send it SIGUSR2: what came of it
    /// is in the log.
    #[command(verbatim_doc_comment)]
    Upgrade(Which),
    /// Tries what this kernel and sandbox allow, and says what to change.
    Probe {
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Two order engines, Ringway in front of them and an order flow through it; needs nothing else.
    Demo {
        /// How long, such as 10s, 2m or 500ms; without it until Ctrl-C.
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        duration: Option<Duration>,
    },
    /// Tells a running Ringway which data path its sessions are to take.
    Datapath {
        /// The data path.
        #[arg(value_parser = PossibleValuesParser::new(DataPath::ALL.map(DataPath::label)))]
        path: String,
        /// The live sessions go along.
        #[arg(long, conflicts_with = "new")]
        live: bool,
        /// The live sessions stay where they are. Without either it is as the config says (carry_sessions).
        #[arg(long)]
        new: bool,
        /// Its share of the sessions; the others take the other path.
        #[arg(long, value_name = "N", default_value = "100", value_parser = percent)]
        percent: Percent,
        /// The config of the running Ringway: its [admin] says where and how to ask.
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// The demo's order engine alone: a backend to try a Ringway of your own with.
    OrderEngine {
        /// Where it takes orders.
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
    },
    /// Measures io_uring against epoll on this machine, and says which data path to take.
    ///
    /// Latency, turns, messages, connections, bulk and open loop, each with CPU; and idle sessions:
    /// what they cost, and how long the first turn after a second of silence takes. In rounds, by
    /// turns. It takes a minute and a half, two CPUs, and nothing but loopback.
    #[command(verbatim_doc_comment)]
    Bench(Measure),
}

/// Which config, with the option or without.
#[derive(Args)]
struct Which {
    /// The config; `ringway check` says what is wrong with it.
    ///
    /// Of a running Ringway: its [admin] says where and how to ask.
    #[arg(long, value_name = "FILE", default_value = CONFIG, conflicts_with = "file")]
    config: PathBuf,
    /// The same without the option.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Which {
    fn path(self) -> PathBuf {
        self.file.unwrap_or(self.config)
    }
}

#[derive(Args)]
struct Measure {
    /// Compare Ringway with these proxies instead, where they are installed: haproxy,nginx,envoy.
    #[arg(long, value_name = "PROXIES", value_delimiter = ',')]
    against: Vec<bench::Other>,
    /// How long each contender's turn is in each round, in seconds, 0.001 to 60.
    #[arg(long, value_name = "N", default_value = "0.2", value_parser = seconds)]
    secs: Duration,
    /// Rounds of each case, 1 to 1000; with fewer than 6 no gate is said to hold.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Two CPUs, such as 2,3: the proxies' and the load's; without it the first two that are no siblings.
    #[arg(long, value_name = "A,B")]
    cpus: Option<bench::Cpus>,
    /// Only these cases.
    #[arg(long, value_name = "CASES", value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(bench::case_names()))]
    cases: Vec<String>,
}

/// Where the config is unless somebody says otherwise.
const CONFIG: &str = "/etc/ringway/ringway.toml";
/// sysexits.h: the config or the arguments are wrong.
const USAGE: u8 = 64;
/// sysexits.h: the config cannot be read.
const NO_INPUT: u8 = 66;
/// sysexits.h: a bug of ours.
const SOFTWARE: u8 = 70;
/// sysexits.h: the system refused something.
const SYSTEM: u8 = 71;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Where nobody reads there is nobody to tell.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match arguments.command {
        Command::Run(which) => run(&which.path()),
        Command::Check(which) => check(&which.path()),
        Command::Reload(which) => give(&which.path(), &Errand::RELOAD),
        Command::Status(which) => give(&which.path(), &Errand::STATUS),
        Command::Upgrade(which) => give(&which.path(), &Errand::UPGRADE),
        Command::Probe { json } => probe(json),
        Command::Datapath { path, live, new, percent, config } => {
            let live = (live || new).then_some(live);
            give(&config, &Errand::data_path(&path, live, percent))
        }
        Command::Demo { duration } => until_stopped(|stop| demo::run(duration, stop)),
        Command::OrderEngine { listen } => until_stopped(|stop| demo::order_engine(listen, stop)),
        Command::Bench(Measure { against, secs, rounds, cpus, cases }) => {
            let options =
                bench::Options { slice: secs, rounds: rounds.into(), cpus, cases, against };
            until_stopped(|stop| bench::run(options, stop))
        }
    }
}

fn run(path: &Path) -> ExitCode {
    // First of all, for it may have open descriptors.
    let mut legacy = match Legacy::find() {
        Ok(legacy) => legacy,
        Err(why) => return give_up(SYSTEM, &[format!("ringway: {why}")]),
    };
    let config = match read_option(path, ", `ringway demo` needs none") {
        Ok(config) => config,
        Err((code, why)) => {
            legacy.refuse(&why.join("; "));
            return give_up(code, &why);
        }
    };
    let log = match admin::log::init(&config.log) {
        Ok(log) => log,
        Err(e) => {
            let why = format!("the log cannot be set up: {e}");
            legacy.refuse(&why);
            return fail(SYSTEM, &why);
        }
    };
    let fail = |code: u8, why: &str| {
        log.last_words(&[format!("ringway: {why}")]);
        ExitCode::from(code)
    };
    let signals = match Followed::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2]) {
        Ok(signals) => signals,
        Err(e) => return fail(SYSTEM, &format!("signals cannot be received: {e}")),
    };
    let running = match Running::start_with(config, Some(path.to_owned()), legacy) {
        Ok(running) => running,
        Err(e) => return fail(e.exit_code(), &e.to_string()),
    };
    follow(signals, &running);
    match running.wait() {
        Outcome::Stopped { .. } | Outcome::Replaced => ExitCode::SUCCESS,
        Outcome::Failed => fail(SOFTWARE, "ended because of a bug; the log says more"),
    }
}

/// Signals, and who sent them: of a stop that is asked for during an upgrade both processes may hear twice.
type Followed = SignalsInfo<WithRawSiginfo>;

/// Passes signals on, on a thread of its own: SIGHUP reloads, SIGUSR1 takes all sessions back to epoll, SIGUSR2
/// upgrades, SIGTERM and SIGINT stop.
fn follow(mut signals: Followed, running: &Running) {
    let (orders, stop) = (running.orders(), running.stopper());
    let follower = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal.si_signo {
                // What became of it is in the log.
                SIGHUP => orders.give(Order::Reload, |_: Answer| {}),
                SIGUSR1 => orders.give(Order::RollBack, |_: Answer| {}),
                SIGUSR2 => orders.give(Order::Upgrade, |_: Answer| {}),
                SIGINT | SIGTERM => stop(driver::signal::sender(&signal)),
                _ => {}
            }
        }
    });
    if let Err(error) = follower {
        tracing::error!(%error, "signals are not followed");
    }
}

/// Says why it does not start, to whoever reads soon enough.
fn give_up(code: u8, why: &[String]) -> ExitCode {
    match admin::log::plain() {
        Ok(log) => log.last_words(why),
        Err(_) => why.iter().for_each(|line| complain(line)),
    }
    ExitCode::from(code)
}

fn check(path: &Path) -> ExitCode {
    match read_option(path, "") {
        Ok(config) => {
            let count =
                |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
            let listeners = count(config.listeners.len(), "listener");
            let pools = count(config.pools.len(), "pool");
            print(&format!("{}: good, {listeners}, {pools}\n", path.display()));
            if let Some(why) = favours::caution(&config.shards, &driver::sys::affinity()) {
                complain(&format!("{}: caution: {why}", path.display()));
            }
            for pool in config.pools.iter().filter(|pool| pool.is_idle()) {
                let why =
                    "all its backends have weight 0: its new sessions end at once (no_backend)";
                complain(&format!("{}: caution: pools.{}: {why}", path.display(), pool.name));
            }
            ExitCode::SUCCESS
        }
        Err((code, why)) => tell(code, &why),
    }
}

/// What the Ringway that runs with a config is to do, asked for by its admin endpoint.
struct Errand {
    method: &'static str,
    endpoint: &'static str,
    body: String,
    /// What is said before the reason where it was not done, and the exit code where Ringway itself refused.
    not_done: (&'static str, u8),
    /// What can be done without an admin endpoint.
    instead: &'static str,
}

impl Errand {
    const UPGRADE: Self = Self {
        method: "POST",
        endpoint: "/api/v1/upgrade",
        body: String::new(),
        not_done: ("not upgraded", SYSTEM),
        instead: "send it SIGUSR2 instead",
    };

    const RELOAD: Self = Self {
        method: "POST",
        endpoint: "/api/v1/reload",
        body: String::new(),
        not_done: ("not reloaded", USAGE),
        instead: "send it SIGHUP instead",
    };

    const STATUS: Self = Self {
        method: "GET",
        endpoint: "/api/v1/status",
        body: String::new(),
        not_done: ("no status", SYSTEM),
        instead: "its log is all there is to see",
    };

    /// `live`: whether the live sessions go along; `None`: as the config says.
    fn data_path(path: &str, live: Option<bool>, percent: Percent) -> Self {
        let percent = percent.as_f64();
        Self {
            method: "PUT",
            endpoint: "/api/v1/datapath",
            body: serde_json::json!({ "path": path, "live": live, "percent": percent }).to_string(),
            not_done: ("the data path was not changed", USAGE),
            instead: "SIGUSR1 takes all sessions to epoll; else change data_path and send it SIGHUP",
        }
    }
}

/// Has the Ringway that runs with this config do something, and prints what it says.
fn give(path: &Path, errand: &Errand) -> ExitCode {
    let config = match read_option(path, "") {
        Ok(config) => config,
        Err((code, why)) => return tell(code, &why),
    };
    let &Errand { method, endpoint, ref body, not_done: (not_done, code), instead } = errand;
    let file = path.display();
    let Some(admin) = &config.admin else {
        let why = format!("{file} has no [admin], by which a running Ringway is asked: {instead}");
        return fail(USAGE, &why);
    };
    match admin::ask::ask(admin, method, endpoint, body) {
        Ok((200, said)) => {
            print(&format!("{}\n", admin::ask::sentences(&said)));
            ExitCode::SUCCESS
        }
        Ok((401, _)) => {
            let why = "has not the token that the running Ringway was started with; where it was changed since";
            fail(USAGE, &format!("{not_done}: {file} {why}: {instead}"))
        }
        // It may still be done: what is said tells where to look.
        Ok((504, said)) => fail(SYSTEM, &admin::ask::sentences(&said)),
        Ok((_, said)) => fail(code, &format!("{not_done}: {}", admin::ask::sentences(&said))),
        Err(why) => {
            let changed = "where [admin] was changed since it was started";
            fail(SYSTEM, &format!("{why}; {changed}: {instead}"))
        }
    }
}

fn probe(json: bool) -> ExitCode {
    let report = driver::probe::probe();
    let text = if json { report.to_json() } else { report.to_string() };
    print(&format!("{}\n", text.trim_end()));
    ExitCode::SUCCESS
}

/// Runs something that ends when a signal asks it to.
fn until_stopped(run: impl FnOnce(Arc<AtomicBool>) -> Result<(), String>) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    // A hang-up is how a proxy is told to reload; here it means nothing.
    let mut signals = match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => signals,
        Err(e) => return fail(SYSTEM, &format!("signals cannot be received: {e}")),
    };
    let asked = Arc::clone(&stop);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            asked.fetch_or(signal != SIGHUP, Relaxed);
        }
    });
    match run(stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(SYSTEM, &why),
    }
}

/// The config; or an exit code and what is to be said, a line each.
fn read(path: &Path) -> Result<Config, (u8, Vec<String>)> {
    file::read(path).map_err(|e| match e {
        file::ReadError::Unreadable(why) => (NO_INPUT, vec![format!("ringway: {why}")]),
        file::ReadError::Faults(faults) => {
            let s = if faults.len() == 1 { "" } else { "s" };
            let last = format!("ringway: {}: {} fault{s}", path.display(), faults.len());
            let lines = faults.iter().map(|fault| format!("{}: {fault}", path.display()));
            (USAGE, lines.chain([last]).collect())
        }
    })
}

/// The same of a config that is an option: who did not name one is told how to, and `more`.
fn read_option(path: &Path, more: &str) -> Result<Config, (u8, Vec<String>)> {
    read(path).map_err(|(code, mut why)| {
        if code == NO_INPUT && path == Path::new(CONFIG) {
            why.push(format!("ringway: `--config FILE` names another{more}"));
        }
        (code, why)
    })
}

fn tell(code: u8, lines: &[String]) -> ExitCode {
    lines.iter().for_each(|line| complain(line));
    ExitCode::from(code)
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| "must be a number and a unit, such as 10s".to_owned())?;
    let ms = match &text[digits.len()..] {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    ms.map(Duration::from_millis)
        .ok_or_else(|| "the unit must be ms, s, m or h, such as 10s".to_owned())
}

fn percent(text: &str) -> Result<Percent, String> {
    let percent = text.parse().ok().and_then(Percent::from_f64);
    percent.ok_or_else(|| "must be 0 to 100 with at most two decimals".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text.parse().ok();
    let sound = number.filter(|secs| (0.001..=60.0).contains(secs));
    sound.map(Duration::from_secs_f64).ok_or_else(|| "must be 0.001 to 60 seconds".to_owned())
}

fn fail(code: u8, why: &str) -> ExitCode {
    complain(&format!("ringway: {why}"));
    ExitCode::from(code)
}

/// A line to stderr. Where nobody reads there is nobody to tell.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// To stdout, as `complain`.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
