//! The TOML as written: every setting, once, with its key, its default, its rule and its meaning.
//!
//! `config/reference.toml` shows the same to operators; a test holds it against this page.

pub use super::fault::{Fault, ReadError};
pub use super::section::Setting;

use super::inherited::{TIMEOUTS, WrittenTcp, read_timeouts};
use super::section::{NAME_DOMAIN, Report, Section, is_name, read_root};
use super::{Config, DataPath, Hop, Limits, Log, LogFormat, LogLevel, Name, OnBackendFail};
use super::{Percent, Shards, Source, Steer, Stop, Tcp, Timeouts, check, limits};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

/// Reads and checks a config file. A relative `admin.token_file` is looked for beside it.
///
/// # Errors
/// [`ReadError::Unreadable`] where the file cannot be read, is longer than [`limits::CONFIG_BYTES_MAX`] or is not
/// UTF-8; [`ReadError::Faults`] with everything that is wrong in it.
pub fn read(path: &Path) -> Result<Config, ReadError> {
    let unreadable = |why: &dyn std::fmt::Display| {
        ReadError::Unreadable(format!("cannot read config {}: {why}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(|error| unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(limits::CONFIG_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > limits::CONFIG_BYTES_MAX {
        return Err(unreadable(&too_long()));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| unreadable(&format!("not UTF-8: {}", error.utf8_error())))?;
    parse_beside(&text, path.parent().unwrap_or_else(|| Path::new(""))).map_err(ReadError::Faults)
}

/// Reads and checks the text of a config. A relative `admin.token_file` is looked for in the working directory.
///
/// # Errors
/// Everything that is wrong with it, at least one fault, in the order of keys. A text that is not TOML is one fault.
pub fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    parse_beside(text, Path::new(""))
}

/// Every setting that is asked for when this text is read, with its default. Nothing if it is not TOML.
#[must_use]
pub fn settings(text: &str) -> Vec<Setting> {
    let mut report = Report::default();
    if let Ok(table) = text.parse() {
        read_root(table, &mut report, Written::read);
    }
    report.settings
}

fn parse_beside(text: &str, directory: &Path) -> Result<Config, Vec<Fault>> {
    if text.len() as u64 > limits::CONFIG_BYTES_MAX {
        return Err(vec![Fault::of_key("config".into(), too_long())]);
    }
    let table = text.parse().map_err(|error| vec![Fault::of_syntax(text, &error)])?;
    check_table(table, text, directory)
}

/// Reads and checks the text of a config that another process read before, as far as its sessions live by it: without
/// the admin endpoint, whose token may be in a file that is gone.
///
/// # Errors
/// As [`parse`].
pub fn parse_carried(text: &str) -> Result<Config, Vec<Fault>> {
    let parsed: Result<toml::Table, _> = text.parse();
    let mut table = parsed.map_err(|error| vec![Fault::of_syntax(text, &error)])?;
    table.remove("admin");
    check_table(table, text, Path::new(""))
}

fn check_table(table: toml::Table, text: &str, directory: &Path) -> Result<Config, Vec<Fault>> {
    let mut report = Report::default();
    let written = read_root(table, &mut report, Written::read);
    let mut config = check::check(written, directory, report)?;
    config.source = Source(text.into());
    Ok(config)
}

fn too_long() -> String {
    format!("must be at most {} bytes", limits::CONFIG_BYTES_MAX)
}

/// The file, before its settings are held against each other. What is `None` though required was reported as a fault.
pub(super) struct Written {
    pub(super) data_path: DataPath,
    pub(super) data_path_percent: Percent,
    pub(super) carry_sessions: bool,
    pub(super) shards: Shards,
    pub(super) limits: Limits,
    pub(super) listeners: Vec<(Name, Option<WrittenListener>)>,
    pub(super) pools: Vec<(Name, Option<WrittenPool>)>,
    pub(super) admin: Option<WrittenAdmin>,
    pub(super) stop: Stop,
    pub(super) log: Log,
}

pub(super) struct WrittenListener {
    pub(super) bind: Option<SocketAddr>,
    pub(super) backlog: u32,
    pub(super) stable: Option<String>,
    /// Empty: no canary.
    pub(super) canary: String,
    pub(super) canary_percent: Percent,
    pub(super) on_backend_fail: OnBackendFail,
    pub(super) hop: Hop,
    pub(super) sessions_max: u32,
    pub(super) timeouts: Timeouts,
    pub(super) tcp: Tcp,
}

pub(super) struct WrittenPool {
    pub(super) backends: Vec<WrittenBackend>,
    pub(super) retries: u32,
    pub(super) spare: u16,
    pub(super) spare_idle_ms: u32,
}

pub(super) struct WrittenBackend {
    /// Its place in the list, from 0.
    pub(super) at: usize,
    pub(super) address: Option<SocketAddr>,
    /// `None`: its address is its name.
    pub(super) name: Option<Name>,
    pub(super) weight: u16,
}

pub(super) struct WrittenAdmin {
    pub(super) bind: Option<SocketAddr>,
    /// Empty: none.
    pub(super) token: String,
    /// Empty: none.
    pub(super) token_file: String,
}

impl Written {
    fn read(file: &mut Section<'_>) -> Self {
        let data_path = file.choice(
            "data_path",
            DataPath::Auto,
            &DataPath::ALL.map(|path| (path.label(), path)),
            "how bytes move; auto is io_uring where this kernel allows it, else epoll",
        );
        let data_path_percent = file.percent(
            "data_path_percent",
            Percent::HUNDRED,
            "the share of sessions on data_path; the others take the other path",
        );
        let carry_sessions = file.flag(
            "carry_sessions",
            true,
            "a change of the data path takes the live sessions along, instead of leaving them to end where they began",
        );
        let limits = file.table("limits", read_limits);
        let timeouts = file.table("timeouts", |s| read_timeouts(s, TIMEOUTS));
        let tcp = file.table("tcp", |s| WrittenTcp::read(s, &WrittenTcp::default()));
        let has_admin = file.has("admin");
        Self {
            data_path,
            data_path_percent,
            carry_sessions,
            shards: file.table("shards", read_shards),
            listeners: file.named("listeners", limits::LISTENERS_MAX, |s| {
                WrittenListener::read(s, &limits, timeouts, &tcp)
            }),
            pools: file.named("pools", limits::POOLS_MAX, WrittenPool::read),
            // Read where it is absent, too: its settings are then all defaults, and known.
            admin: Some(file.table("admin", WrittenAdmin::read)).filter(|_| has_admin),
            stop: file.table("stop", read_stop),
            log: file.table("log", read_log),
            limits,
        }
    }
}

fn read_shards(s: &mut Section<'_>) -> Shards {
    let count = s.number("count", 0, 0..=limits::SHARDS_MAX, "threads; 0: one for each CPU");
    let domain = format!("CPU numbers below {} as \"2-5,8\", or \"\"", limits::CPUS_MAX);
    let meaning = "where shards run; \"\": every CPU this process may use";
    let cpus = s.text("cpus", "", &domain, meaning, |text| {
        if text.is_empty() { Some(None) } else { parse_cpus(text).map(Some) }
    });
    Shards {
        count: Some(count).filter(|&count| count > 0),
        cpus: cpus.flatten(),
        rebalance: s.flag(
            "rebalance",
            true,
            "live sessions change their shard where the load of shards differs for long",
        ),
        pin: s.flag("pin", true, "whether each shard stays on one CPU"),
        busy_poll_us: s.number(
            "busy_poll_us",
            0,
            0..=limits::BUSY_POLL_US_MAX,
            "how long a shard looks for work without sleeping after something moved; 0: it sleeps at once",
        ),
        answer_poll_us: s.number(
            "answer_poll_us",
            0,
            0..=limits::ANSWER_POLL_US_MAX,
            "how long it does so for an answer to a client, where answers come that soon; 0: it sleeps at once",
        ),
        napi_busy_poll_us: s.number(
            "napi_busy_poll_us",
            0,
            0..=limits::NAPI_BUSY_POLL_US_MAX,
            "how long the kernel asks the network card itself while a shard waits; 0: it does not",
        ),
        fifo_priority: s.number(
            "fifo_priority",
            0,
            0..=limits::FIFO_PRIORITY_MAX,
            "real-time priority of shards (SCHED_FIFO); 0: the ordinary scheduler",
        ),
        steer: s.choice(
            "steer",
            Steer::Hash,
            &[("hash", Steer::Hash), ("cpu", Steer::Cpu)],
            "which shard a new client comes to: any, evened out; or the one on the CPU its packets arrive on",
        ),
    }
}

/// CPU numbers from `2-5,8`. `None` where it is no such list, runs backwards or names a CPU twice.
fn parse_cpus(text: &str) -> Option<BTreeSet<usize>> {
    let number = |text: &str| -> Option<usize> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|&cpu| digits && cpu < limits::CPUS_MAX)
    };
    let mut cpus = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        if first > last || !(first..=last).all(|cpu| cpus.insert(cpu)) {
            return None;
        }
    }
    Some(cpus)
}

fn read_limits(s: &mut Section<'_>) -> Limits {
    Limits {
        sessions_max: s.number(
            "sessions_max",
            limits::SESSIONS_DEFAULT,
            1..=limits::SESSIONS_MAX,
            "sessions at once, of all listeners together",
        ),
        high_water_bytes: s.number(
            "high_water_bytes",
            limits::HIGH_WATER_DEFAULT,
            limits::BUFFER_BYTES_MIN..=limits::HIGH_WATER_MAX,
            "what one direction of a session may hold before it stops receiving; at least buffer_bytes",
        ),
        buffer_bytes: s.number(
            "buffer_bytes",
            limits::BUFFER_BYTES_DEFAULT,
            limits::BUFFER_BYTES_MIN..=limits::BUFFER_BYTES_MAX,
            "size of one receive buffer",
        ),
        buffers_per_shard: s.number(
            "buffers_per_shard",
            limits::BUFFERS_DEFAULT,
            limits::BUFFERS_MIN..=limits::BUFFERS_MAX,
            "receive buffers of one shard, shared by its sessions; address space: \
             one takes memory when it is first used",
        ),
    }
}

impl WrittenListener {
    fn read(s: &mut Section<'_>, limits: &Limits, timeouts: Timeouts, tcp: &WrittenTcp) -> Self {
        const POOL: &str = "the name of a pool";
        Self {
            bind: s.address("bind", None, 0, "where clients connect; port 0: any free one"),
            backlog: s.number(
                "backlog",
                4096,
                1..=limits::BACKLOG_MAX,
                "how many clients may wait to be accepted",
            ),
            stable: s.name("stable", None, POOL, "where sessions go"),
            canary: s
                .name("canary", Some(""), POOL, "where the canary's share goes; \"\": no canary")
                .unwrap_or_default(),
            canary_percent: s.percent(
                "canary_percent",
                Percent::ZERO,
                "the canary's share of new sessions",
            ),
            on_backend_fail: s.choice(
                "on_backend_fail",
                OnBackendFail::Reset,
                &[("reset", OnBackendFail::Reset), ("close", OnBackendFail::Close)],
                "what a client sees when no backend could be reached; nobody takes a reset for a logout",
            ),
            hop: s.choice(
                "hop",
                Hop::Auto,
                &[
                    ("auto", Hop::Auto),
                    ("multishot", Hop::Multishot),
                    ("linked", Hop::Linked),
                    ("oneshot", Hop::Oneshot),
                    ("wide", Hop::Wide),
                    ("splice", Hop::Splice),
                    ("hot", Hop::Hot),
                ],
                "how bytes are taken across; auto is what measures best on this kernel",
            ),
            sessions_max: s.number(
                "sessions_max",
                limits.sessions_max,
                1..=limits::SESSIONS_MAX,
                "sessions of this listener at once; by default and at most limits.sessions_max",
            ),
            timeouts: s.table("timeouts", |s| read_timeouts(s, timeouts)),
            tcp: s.table("tcp", |s| WrittenTcp::read(s, tcp)).options(),
        }
    }
}

impl WrittenPool {
    fn read(s: &mut Section<'_>) -> Self {
        Self {
            retries: s.number(
                "retries",
                2,
                0..=limits::RETRIES_MAX,
                "further attempts after one failed, at backends not tried yet; where all were, at any, so a pool of \
                 one is asked again; a client waits for up to 1 + retries times connect_ms",
            ),
            spare: s.number(
                "spare",
                0,
                0..=limits::SPARES_PER_BACKEND_MAX,
                "connections each shard keeps ready to each backend, so that a client waits for no handshake; 0: none",
            ),
            spare_idle_ms: s.number(
                "spare_idle_ms",
                limits::SPARE_IDLE_MS_DEFAULT,
                limits::SPARE_IDLE_MS_MIN..=limits::DURATION_MS_MAX,
                "how long one may be ready before another takes its place; \
                 less than what firewalls and backends let be idle",
            ),
            backends: s.list(
                "backends",
                limits::BACKENDS_PER_POOL_MAX,
                "address",
                WrittenBackend::read,
            ),
        }
    }
}

impl WrittenBackend {
    fn read(at: usize, s: &mut Section<'_>) -> Self {
        let domain = format!("{NAME_DOMAIN}, or \"\"");
        let meaning = "what it is called in logs and metrics; \"\": by its address";
        Self {
            at,
            address: s.address("address", None, 1, "where the backend listens"),
            name: s
                .text("name", "", &domain, meaning, |word| {
                    (word.is_empty() || is_name(word)).then(|| word.to_owned())
                })
                .filter(|name| !name.is_empty())
                .map(Name::from),
            weight: s.number(
                "weight",
                1,
                0..=limits::WEIGHT_MAX,
                "its share of the pool's sessions, beside the others' weights; 0: no new sessions",
            ),
        }
    }
}

impl WrittenAdmin {
    fn read(s: &mut Section<'_>) -> Self {
        let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, 9900));
        Self {
            bind: s.address(
                "bind",
                Some(bind),
                0,
                "where operators and scrapers ask; without a token a loopback address",
            ),
            token: s.secret(
                "token",
                &format!("{}, or \"\"", super::token::domain()),
                "what Authorization: Bearer must carry; \"\": none",
                super::token::fits,
            ),
            token_file: s
                .name("token_file", Some(""), "a path", "a file with only the token; \"\": none")
                .unwrap_or_default(),
        }
    }
}

fn read_stop(s: &mut Section<'_>) -> Stop {
    const MAX: u32 = limits::DURATION_MS_MAX;
    Stop {
        grace_ms: s.number(
            "grace_ms",
            0,
            0..=MAX,
            "after SIGTERM /readyz says no for this long while clients are still accepted",
        ),
        drain_ms: s.number(
            "drain_ms",
            30_000,
            0..=MAX,
            "then no client is accepted, and sessions may end by themselves for this long",
        ),
    }
}

fn read_log(s: &mut Section<'_>) -> Log {
    Log {
        format: s.choice(
            "format",
            LogFormat::Human,
            &[("human", LogFormat::Human), ("json", LogFormat::Json)],
            "lines for people or for machines",
        ),
        level: s.choice(
            "level",
            LogLevel::Info,
            &[
                ("error", LogLevel::Error),
                ("warn", LogLevel::Warn),
                ("info", LogLevel::Info),
                ("debug", LogLevel::Debug),
            ],
            "the least important that is written",
        ),
        session_every: s.number(
            "session_every",
            1,
            0..=limits::SESSION_EVERY_MAX,
            "one line for every so many ended sessions, and for those a backend or Ringway failed; 0: none",
        ),
    }
}
