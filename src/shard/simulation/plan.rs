//! What a run consists of, drawn from its seed: as plain data, so that it can be shown, and made smaller.

use crate::config::{
    Backend as BackendConfig, Config, DataPath, Hop, Limits, Listener, Log, LogFormat, LogLevel,
    Name, OnBackendFail, Percent, Pool, Shards, Source, Stop, Tcp, Timeouts,
};
use crate::driver::Errno;
use crate::driver::sim::{Answer, Backend, Fault, Faults, Rate, Reading, Rng, Script, Step, World};
use crate::shard::spin::Awake;
use crate::time::Time;
use std::fmt;
use std::net::SocketAddr;

/// Bytes one end writes at most.
const BYTES_MAX: u64 = 200 * 1024;
/// Names of the listeners; their numbers are their places.
const LISTENERS: [&str; 2] = ["orders", "quotes"];
/// Backends of each of the two pools.
const BACKENDS: u16 = 2;

/// All that is drawn for one run.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) faults: Faults,
    /// What each shard's driver can do; as many shards.
    pub(super) shards: Vec<Kernel>,
    /// How long shards look for work without sleeping.
    pub(super) awake: Awake,
    pub(super) config: Config,
    pub(super) clients: Vec<Client>,
    pub(super) backends: Vec<Backend>,
    pub(super) orders: Vec<(When, Told)>,
    /// When the faults are over.
    pub(super) heals_ms: u64,
    /// Whether the far ends all leave by themselves.
    pub(super) all_leave: bool,
    /// Whether shards hand clients to each other.
    pub(super) places: bool,
}

/// What a shard's driver can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) counts_credit: bool,
    pub(super) plain_calls: bool,
}

/// A client.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) at: Time,
    pub(super) listener: u16,
    pub(super) script: Script,
}

/// When an order is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    /// Before this round of turns.
    Round(u64),
    /// At this time.
    Ms(u64),
}

/// What control orders.
#[derive(Debug, Clone)]
pub(super) enum Told {
    /// Another config is in force.
    Reload(Box<Config>),
    /// A listening socket is handed to another shard, or back to the same.
    HandOver { port: usize, to: usize },
    /// All sessions of a shard are carried to another; `None`: no more.
    Evict { from: usize, to: Option<usize> },
    /// The n-th session that began on a shard is carried to another, wherever it is.
    Move { born: usize, nth: u64, to: usize },
    /// A shard keeps so many sessions, the others are carried to another.
    Keep { from: usize, sessions: u32, to: usize },
    /// A shard's sockets and sessions go to another, and it leaves.
    Retire { shard: usize, heir: usize },
    /// A shard fails; with `unheard`, after a turn of its driver of which it hears nothing.
    Fail { shard: usize, unheard: bool },
    /// All shards leave, and end their sessions, as by a second signal.
    Stop,
}

impl Client {
    /// Has it read nothing for a long while, and then wait for the end.
    fn stall(&mut self) {
        let patience_ns = 40_000_000_000;
        let stall = [
            Step::Reading(Reading::Stopped),
            Step::Wait(20_000_000_000),
            Step::Reading(Reading::Eager),
            Step::AwaitEnd { patience_ns },
        ];
        self.script.0.splice(0..0, stall);
    }
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn drawn_from(seed: u64) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(0x9E37_79B9) ^ 0x51B0_1A7E);
        let rng = &mut rng;
        let mut faults = World::drawn_from(seed).borrow().faults().clone();
        if rng.chance(Rate::one_in(8)) {
            faults.sockets_max = rng.index(24) + 8;
        }
        let shards = (0..=rng.index(3)).map(|_| Kernel {
            counts_credit: rng.chance(Rate::HALF),
            plain_calls: rng.chance(Rate::HALF),
        });
        let shards: Vec<Kernel> = shards.collect();
        let awake = Awake {
            busy_poll_us: rng.pick(&[0, 0, 4, 60, 800]),
            answer_poll_us: rng.pick(&[0, 4, 60, 800]),
        };
        let percents = [(); 2].map(|()| rng.pick(&[0, 500, 3333, 5000, 10_000]));
        let mut limits = drawn_limits(rng);
        // Clients that never read, and too few buffers for all of them.
        let stalls = rng.chance(Rate::one_in(16));
        if stalls {
            limits.buffers_per_shard = rng.pick(&[2, 3, 4]);
        }
        let config = drawn_config(rng, limits.clone(), percents);
        // A connection that holds 16 bytes needs an event for each 16.
        let bytes_max = rng.log_within(1, BYTES_MAX.min(faults.room_bytes.0 * 256));
        let bytes_max = u32::try_from(bytes_max).expect("it is at most 200 KiB");
        let all_leave = rng.chance(Rate::HALF);
        // All at once, or in five seconds.
        let comes_ns = rng.pick(&[1, 5_000_000, 5_000_000_000]);
        let clients = (0..=rng.index(12)).map(|_| Client {
            at: Time(1_000_000_000 + rng.below(comes_ns)),
            listener: u16::from(rng.chance(Rate::one_in(4))),
            script: Script::drawn_from(rng, bytes_max, all_leave),
        });
        let mut clients: Vec<Client> = clients.collect();
        if stalls {
            clients.iter_mut().skip(1).for_each(Client::stall);
        }
        let backends = drawn_backends(rng, bytes_max, all_leave, stalls);
        let mut orders = drawn_orders(rng, shards.len(), &limits, percents);
        if stalls {
            orders.extend(drawn_moves(rng, shards.len()));
        }
        let heals_ms = if stalls { 20_000 } else { rng.log_within(100, 20_000) };
        let places = rng.chance(Rate::HALF);
        Self {
            seed,
            faults,
            shards,
            awake,
            config,
            clients,
            backends,
            orders,
            heals_ms,
            all_leave,
            places,
        }
        .with_mood(rng)
        .with_spares()
        .with_failing_accepts()
    }

    /// Has all accepts of some runs fail until the world heals. Drawn apart, as ready connections are.
    fn with_failing_accepts(mut self) -> Self {
        let rng = &mut Rng::new(self.seed.wrapping_mul(0x1B87_3593) ^ 0x0ACC_E970);
        if rng.chance(Rate::one_in(32)) {
            // EPERM, ENOSPC.
            let error = rng.pick(&[Errno(1), Errno(28)]);
            self.faults.accepts_fail = Some((error, rng.chance(Rate::HALF)));
        }
        self
    }

    /// Has every other run keep connections ready. Drawn apart, so that all else is as it is without.
    fn with_spares(mut self) -> Self {
        let rng = &mut Rng::new(self.seed.wrapping_mul(0x2545_F491) ^ 0x5BA4_E000);
        if rng.chance(Rate::HALF) {
            return self;
        }
        let reloaded = self.orders.iter_mut().filter_map(|(_, told)| match told {
            Told::Reload(config) => Some(&mut **config),
            _ => None,
        });
        for config in std::iter::once(&mut self.config).chain(reloaded) {
            for pool in &mut config.pools {
                pool.spare = rng.pick(&[0, 1, 2, 4]);
                let ms = rng.log_within(1000, 60_000);
                pool.spare_idle_ms = u32::try_from(ms).expect("it is a minute at most");
            }
        }
        self
    }

    /// Plans with one thing less each.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut found = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            found.push(plan);
        };
        for at in 0..self.orders.len() {
            add(&|plan| drop(plan.orders.remove(at)));
        }
        for at in 0..self.clients.len() {
            add(&|plan| drop(plan.clients.remove(at)));
        }
        for fault in Fault::ALL.iter().filter(|fault| self.faults.rate(**fault) != Rate::NEVER) {
            add(&|plan| plan.faults = plan.faults.clone().with(*fault, Rate::NEVER));
        }
        if self.config.pools.iter().any(|pool| pool.spare > 0) {
            add(&|plan| plan.config.pools.iter_mut().for_each(|pool| pool.spare = 0));
        }
        if self.awake != Awake::default() {
            add(&|plan| plan.awake = Awake::default());
        }
        if self.shards.iter().any(|kernel| kernel.plain_calls) {
            add(&|plan| plan.shards.iter_mut().for_each(|kernel| kernel.plain_calls = false));
        }
        for at in 0..self.clients.len() {
            for step in 0..self.clients[at].script.0.len() {
                add(&|plan| {
                    plan.clients[at].script.0.remove(step);
                });
            }
        }
        found
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, shards, awake, config, heals_ms, all_leave, places, .. } = self;
        writeln!(f, "  by shard: {shards:?}; {awake:?}, place clients: {places}")?;
        writeln!(f, "  heals after {heals_ms} ms; ends all leave: {all_leave}")?;
        let (room, latency_ns) = (faults.room_bytes, faults.latency_ns);
        write!(
            f,
            "  room {room:?} bytes, latency {latency_ns} ns, {} sockets;",
            faults.sockets_max
        )?;
        for fault in Fault::ALL.iter().filter(|fault| faults.rate(**fault) != Rate::NEVER) {
            write!(f, " {fault:?}")?;
        }
        writeln!(f, " accepts fail: {:?}", faults.accepts_fail)?;
        writeln!(f, "  {:?}", config.limits)?;
        for listener in &config.listeners {
            let Listener { hop, timeouts, on_backend_fail, sessions_max, .. } = listener;
            writeln!(f, "  {hop:?} {timeouts:?} {on_backend_fail:?} sessions_max {sessions_max}")?;
        }
        config.pools.iter().try_for_each(|pool| writeln!(f, "  {pool:?}"))?;
        self.backends.iter().try_for_each(|backend| writeln!(f, "  {backend:?}"))?;
        self.clients.iter().try_for_each(|client| writeln!(f, "  {client:?}"))?;
        self.orders.iter().try_for_each(|order| writeln!(f, "  {order:?}"))
    }
}

/// Where backend `n` listens.
fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 200, 0, 1], 7000 + n))
}

fn drawn_limits(rng: &mut Rng) -> Limits {
    let bytes =
        |rng: &mut Rng, low, high| u32::try_from(rng.log_within(low, high)).expect("it is small");
    let buffer_bytes = bytes(rng, 64, 16 * 1024);
    let high_water_bytes = bytes(rng, u64::from(buffer_bytes), 128 * 1024);
    let buffers = rng.log_within(2, 256);
    Limits {
        sessions_max: if rng.chance(Rate::one_in(8)) { bytes(rng, 1, 8) } else { 1000 },
        high_water_bytes,
        buffer_bytes,
        buffers_per_shard: u16::try_from(buffers).expect("it is at most 256"),
    }
}

/// A config; listeners, pools, backends and percents are the same in all of a run.
fn drawn_config(rng: &mut Rng, limits: Limits, percents: [u16; 2]) -> Config {
    let listeners = LISTENERS.iter().zip(percents).map(|(name, percent)| Listener {
        name: Name::from(*name),
        bind: SocketAddr::from(([10, 100, 0, 1], 4000)),
        backlog: 16,
        stable: 0,
        canary: (percent > 0).then_some(1),
        canary_percent: Percent::from_hundredths(percent).expect("it is at most a whole"),
        on_backend_fail: rng.pick(&[OnBackendFail::Reset, OnBackendFail::Close]),
        hop: rng.pick(&[
            Hop::Auto,
            Hop::Auto,
            Hop::Multishot,
            Hop::Linked,
            Hop::Oneshot,
            Hop::Wide,
            Hop::Splice,
            Hop::Hot,
        ]),
        sessions_max: if rng.chance(Rate::one_in(8)) { rng.pick(&[1, 2, 4, 6]) } else { 1000 },
        timeouts: drawn_timeouts(rng),
        tcp: Tcp::PLAIN,
    });
    let listeners = listeners.collect();
    let pools = (0..2)
        .map(|pool| Pool {
            name: Name::from(["a", "b"][usize::from(pool)]),
            backends: (0..BACKENDS)
                .map(|n| BackendConfig {
                    name: Name::from(["one", "two"][usize::from(n)]),
                    address: address(pool * BACKENDS + n),
                    weight: rng.pick(&[0, 1, 1, 1, 3]),
                })
                .collect(),
            retries: rng.pick(&[0, 0, 1, 3]),
            spare: 0,
            spare_idle_ms: 1000,
        })
        .collect();
    Config {
        data_path: DataPath::Auto,
        data_path_percent: Percent::HUNDRED,
        carry_sessions: true,
        shards: Shards { pin: false, ..Shards::default() },
        limits,
        listeners,
        pools,
        admin: None,
        stop: Stop { grace_ms: 0, drain_ms: 0 },
        log: Log { format: LogFormat::Human, level: LogLevel::Info, session_every: 1 },
        source: Source::default(),
    }
}

fn drawn_timeouts(rng: &mut Rng) -> Timeouts {
    let ms = |rng: &mut Rng| u32::try_from(rng.log_within(20, 20_000)).expect("it is 20 s at most");
    let some = |rng: &mut Rng| rng.chance(Rate::one_in(4)).then(|| ms(rng));
    Timeouts {
        connect_ms: ms(rng),
        half_closed_ms: some(rng),
        idle_ms: some(rng),
        age_ms: some(rng),
    }
}

fn drawn_answers(rng: &mut Rng) -> Vec<(Time, Answer)> {
    let accept = (Time(0), Answer::Accept { after_ns: rng.pick(&[0, 0, 100_000, 150_000_000]) });
    if rng.chance(Rate::one_in(3)) {
        let bad = rng.pick(&[Answer::Refuse, Answer::Hang, Answer::Unreachable]);
        return vec![accept, (Time(rng.below(3_000_000_000)), bad)];
    }
    vec![accept]
}

/// What lives behind the proxy. Where clients `stall`, half of it says all it has and finishes.
fn drawn_backends(rng: &mut Rng, bytes_max: u32, all_leave: bool, stall: bool) -> Vec<Backend> {
    let finishes = Script(vec![Step::Write(bytes_max), Step::Finish]);
    let drawn = |n| Backend {
        address: address(n),
        answers: drawn_answers(rng),
        scripts: (0..=rng.index(4))
            .map(|_| match stall && rng.chance(Rate::HALF) {
                true => finishes.clone(),
                false => Script::drawn_from(rng, bytes_max, all_leave),
            })
            .collect(),
    };
    (0..2 * BACKENDS).map(drawn).collect()
}

fn drawn_orders(
    rng: &mut Rng,
    shards: usize,
    limits: &Limits,
    percents: [u16; 2],
) -> Vec<(When, Told)> {
    let most = rng.pick(&[1, 4, 12, 40]);
    let count = rng.index(most);
    let drawn = |_| {
        let when = if rng.chance(Rate::HALF) {
            When::Round(rng.log_within(1, 1000))
        } else {
            When::Ms(rng.log_within(1, 20_000))
        };
        (when, drawn_order(rng, shards, limits, percents))
    };
    (0..count).map(drawn).collect()
}

/// Orders that carry blocked sessions, some of them half-closed, all to one shard.
fn drawn_moves(rng: &mut Rng, shards: usize) -> Vec<(When, Told)> {
    if shards < 2 {
        return Vec::new();
    }
    let to = rng.index(shards);
    let others = (0..shards).filter(|from| *from != to);
    let drawn = |from| (When::Ms(rng.log_within(10, 15_000)), Told::Evict { from, to: Some(to) });
    others.map(drawn).collect()
}

fn drawn_order(rng: &mut Rng, shards: usize, limits: &Limits, percents: [u16; 2]) -> Told {
    let to = rng.index(shards);
    match rng.below(17) {
        0..3 => {
            let sessions_max = if rng.chance(Rate::one_in(4)) { 3 } else { 1000 };
            let high_water_bytes = limits.buffer_bytes + rng.pick(&[0, 100, 4000, 32_000]);
            let limits = Limits { sessions_max, high_water_bytes, ..limits.clone() };
            Told::Reload(Box::new(drawn_config(rng, limits, percents)))
        }
        3..5 => Told::HandOver { port: rng.index(shards * LISTENERS.len()), to },
        5..9 => {
            let (from, stops) = (rng.index(shards), rng.chance(Rate::one_in(4)));
            Told::Evict { from, to: (from != to && !stops).then_some(to) }
        }
        13 if shards > 1 => {
            let (from, sessions) = ((to + 1) % shards, rng.pick(&[0, 1, 2, 3]));
            Told::Keep { from, sessions, to }
        }
        9..14 => Told::Move { born: rng.index(shards), nth: 1 + rng.below(6), to },
        14 if shards > 1 => {
            let shard = rng.index(shards);
            Told::Retire { shard, heir: (shard + 1 + rng.index(shards - 1)) % shards }
        }
        15 => Told::Fail { shard: to, unheard: rng.chance(Rate::HALF) },
        _ => Told::Stop,
    }
}
