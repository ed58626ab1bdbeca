//! Shards as they ship in a simulated network whose faults, far ends and orders are the bytes: no byte is lost unseen,
//! nobody hangs once the network is well again, and everything comes home.

#![no_main]

use arc_swap::ArcSwap;
use libfuzzer_sys::fuzz_target;
use ringway::config::*;
use ringway::driver::sim::{Answer, Backend as Far, Fault, Faults, Rate, Reading};
use ringway::driver::sim::{Script, Shared, Sim, Step, World};
use ringway::driver::{Driver, ListenerId, Socket};
use ringway::event::EndReason;
use ringway::policy::snapshot::Snapshot;
use ringway::shard::mailbox::{Mail, Order};
use ringway::shard::placement::{Load, Neighbour};
use ringway::shard::spin::Awake;
use ringway::shard::{Flow, Parts, Shard};
use ringway::tally::Tally;
use ringway::time::Time;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

const LISTENER: ListenerId = ListenerId(0);
const MS: u64 = 1_000_000;
/// Turns of faults, then of a network that is well, then of shards that stop.
const ROUNDS: [u64; 3] = [5_000, 200_000, 50_000];
/// When all clients have come.
const COME: Time = Time(5_200 * MS);
/// How long a far end waits at most at the end of its script.
const PATIENCE_MS: u64 = 5_000;
/// How long sessions may go on in a network that is well: connects hang for 127 s, each step waits its patience.
const WELL_MS: u64 = 400_000;

/// What the fuzzer says, taken from the front; 0 when there is no more.
struct Bytes<'b>(&'b [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    /// 1 to 2^15, as likely small as large.
    fn size(&mut self) -> u32 {
        let byte = u32::from(self.byte());
        (1 << (byte >> 4)) + (byte & 15) * (1 << (byte >> 4)) / 16
    }

    fn ns(&mut self) -> u64 {
        u64::from(self.size()) * MS / 16
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }
}

struct Member {
    shard: Option<Shard<Sim>>,
    home: Neighbour,
    tally: Arc<Tally>,
}

/// A descriptor by its number.
struct Number(RawFd);

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

struct Run {
    world: Shared,
    members: Vec<Member>,
    listens: Vec<Socket>,
    in_force: Arc<ArcSwap<Snapshot>>,
    /// The config has sessions end in order at a time, whatever is still on its way.
    ends_in_order: bool,
    /// Something cancelled may end later than a shard waits for it: threads are stopped at times, or cancels come late.
    impatient: bool,
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Bytes(bytes);
    let mut run = Run::new(&mut bytes);
    let mut orders: Vec<(u64, u8, u8)> = Vec::new();
    for _ in 0..bytes.below(8) {
        orders.push((u64::from(bytes.size()) / 8, bytes.byte(), bytes.byte()));
    }
    for round in 0..ROUNDS[0] {
        for (_, what, how) in orders.extract_if(.., |(at, ..)| *at <= round) {
            run.give(what, how);
        }
        run.turn();
        if orders.is_empty() && run.is_idle() {
            break;
        }
    }
    run.check_bytes();
    run.world.borrow_mut().heal();
    let until = run.now().plus_ms(WELL_MS);
    run.turns_until(ROUNDS[1], "shards spin", |run| run.is_idle() || run.now() >= until);
    assert!(run.is_idle(), "sessions hang\n{}", run.world.borrow().trace());
    run.stop();
});

impl Run {
    fn new(bytes: &mut Bytes<'_>) -> Self {
        let seed = u64::from(bytes.byte()) << 8 | u64::from(bytes.byte());
        let world = World::new(seed, faults(bytes));
        let late = [Fault::Freeze, Fault::LateCancel];
        let impatient = late.iter().any(|f| world.borrow().faults().rate(*f) != Rate::NEVER);
        let config = config(bytes);
        let (buffers, awake) = (config.limits.buffers_per_shard, Awake::of(&config.shards));
        let buffer_bytes = config.limits.buffer_bytes;
        let Timeouts { half_closed_ms, idle_ms, age_ms, .. } = config.listeners[0].timeouts;
        let ends_in_order = [half_closed_ms, idle_ms, age_ms].iter().any(Option::is_some)
            || config.listeners[0].on_backend_fail == OnBackendFail::Close;
        let in_force = Arc::new(ArcSwap::from_pointee(Snapshot::new(config, None)));
        let mut run = Self {
            world,
            members: Vec::new(),
            listens: Vec::new(),
            in_force,
            ends_in_order,
            impatient,
        };
        for id in 0..=usize::from(bytes.below(2)) {
            let mut driver = Sim::new(&run.world, buffers, buffer_bytes);
            driver.set_counts_credit(bytes.flag());
            let (mail, orders) = Mail::new(driver.waker());
            let (tally, load) = (Arc::new(Tally::default()), Arc::new(Load::default()));
            let home = Neighbour { load: Arc::clone(&load), mail };
            let parts = Parts {
                id,
                snapshot: Arc::clone(&run.in_force),
                ticked: false,
                awake,
                tally: Arc::clone(&tally),
                load,
                home: home.clone(),
                orders,
                report: Box::new(|_| ()),
                journal: None,
            };
            run.members.push(Member { shard: Some(Shard::new(driver, parts)), home, tally });
        }
        run.open(bytes);
        run
    }

    /// Who listens, and who lives at the far ends.
    fn open(&mut self, bytes: &mut Bytes<'_>) {
        for at in 0..self.members.len() {
            let listens = self.world.borrow_mut().listen(LISTENER, 4);
            let socket = Socket::of(&Number(listens.number()));
            self.send(at, Order::Serve { listener: LISTENER, name: "orders".into(), socket });
            self.listens.push(listens);
            let others = self.members.iter().enumerate().filter(|(n, _)| *n != at);
            self.send(at, Order::Neighbours(others.map(|(_, it)| it.home.clone()).collect()));
        }
        for n in 0..3 {
            let answer = match bytes.below(8) {
                0 => Answer::Refuse,
                1 => Answer::Hang,
                2 => Answer::Unreachable,
                3 => Answer::Accept { after_ns: bytes.ns() },
                _ => Answer::Accept { after_ns: 0 },
            };
            let scripts = vec![script(bytes), script(bytes)];
            self.world.borrow_mut().backend(Far::always(address(n), answer, scripts));
        }
        for _ in 0..=bytes.below(5) {
            let at = Time(1000 * MS + bytes.ns());
            let script = script(bytes);
            self.world.borrow_mut().client(at, LISTENER, script);
        }
    }

    fn now(&self) -> Time {
        self.world.borrow().now()
    }

    /// Whether all clients have come, and their sessions have ended.
    fn is_idle(&self) -> bool {
        self.now() > COME && self.members.iter().all(|it| it.home.load.get() == 0)
    }

    /// Orders to a shard that is gone are lost, as control's are.
    fn send(&self, at: usize, order: Order) {
        let _ = self.members[at].home.mail.send(order);
    }

    fn give(&self, what: u8, how: u8) {
        let (from, to) = (usize::from(how), usize::from(how >> 1));
        let (from, to) =
            (from % self.members.len(), self.members[to % self.members.len()].home.clone());
        match what % 6 {
            0 => self.send(from, Order::Evict(Some(to))),
            1 => self.send(from, Order::Evict(None)),
            2 | 3 => {
                let session = ((what as u64 & 1) << 48) + u64::from(how >> 2) % 8 + 1;
                self.send(from, Order::Move { session, to, told: None });
            }
            4 => self.send(from, Order::Release(LISTENER)),
            _ => {
                let last = self.in_force.load_full();
                let mut config = last.config.clone();
                let percent = u16::from(how) * 39;
                config.listeners[0].canary_percent = Percent::from_hundredths(percent).unwrap();
                config.limits.high_water_bytes = config.limits.buffer_bytes << (how & 3);
                self.in_force.store(Arc::new(Snapshot::new(config, Some(&last))));
            }
        }
    }

    fn turn(&mut self) {
        for member in &mut self.members {
            let Some(shard) = &mut member.shard else { continue };
            if shard.step().expect("the simulated driver does not fail") == Flow::Left {
                let mut leaks = shard.driver().leaks();
                // The listening sockets are control's, and other shards may still accept on theirs.
                leaks.retain(|leak| !leak.ends_with("not attached"));
                leaks.retain(|leak| !leak.ends_with("Accept in flight"));
                assert_eq!(leaks, Vec::<String>::new(), "{}", self.world.borrow().trace());
                member.shard = None;
            }
        }
    }

    fn check_bytes(&self) {
        let world = self.world.borrow();
        let mut violations = world.violations();
        if self.ends_in_order {
            violations.retain(|what| !what.contains("the end after"));
        }
        assert_eq!(violations, Vec::<String>::new(), "{}", world.trace());
    }

    fn turns_until(&mut self, rounds: u64, what: &str, is_over: impl Fn(&Self) -> bool) {
        let mut rounds = 0..rounds;
        while !is_over(self) {
            assert!(rounds.next().is_some(), "{what}\n{}", self.world.borrow().trace());
            self.turn();
        }
        self.check_bytes();
    }

    /// All leave, and nothing stays.
    fn stop(mut self) {
        for at in 0..self.members.len() {
            self.send(at, Order::Release(LISTENER));
            self.send(at, Order::EndAll(EndReason::Stopped));
            self.send(at, Order::Leave);
        }
        self.turns_until(ROUNDS[2], "shards do not leave", |run| {
            run.members.iter().all(|it| it.shard.is_none())
        });
        let mut control = Sim::new(&self.world, 1, 64);
        self.listens.drain(..).for_each(|socket| control.close(None, socket));
        let world = self.world.borrow();
        assert_eq!(world.open_sockets(), Vec::<usize>::new(), "{}", world.trace());
        for shard in self.members.iter().map(|member| &member.tally.shard) {
            assert_eq!(shard.sessions.get(), 0, "{}", world.trace());
            assert!(shard.watchdog.get() == 0 || self.impatient, "{}", world.trace());
        }
        let routes = self.members.iter().flat_map(|member| member.tally.routes());
        let (mut opened, mut ended, mut open) = (0, 0, 0);
        for route in routes {
            opened += route.opened.get();
            ended += route.ended.iter().map(|count| count.get()).sum::<u64>();
            open = route.open.get().wrapping_add(open);
        }
        assert_eq!((open, opened), (0, ended), "{}", world.trace());
    }
}

/// A class of faults is off, or happens once in 2 to 4096 times.
fn faults(bytes: &mut Bytes<'_>) -> Faults {
    let mut faults = Faults::none();
    for fault in Fault::ALL {
        let byte = bytes.byte();
        if byte >= 128 {
            faults = faults.with(*fault, Rate::one_in(2 << ((byte - 128) / 11)));
        }
    }
    let least = u64::from(bytes.size()) + 64;
    faults.room_bytes = (least, least * 2);
    faults.latency_ns = bytes.ns();
    faults.cuts_to_credit = bytes.flag();
    if bytes.below(8) == 7 {
        faults.sockets_max = usize::from(bytes.below(16)) + 3;
    }
    faults
}

/// Up to seven steps, and an end that waits for nobody for ever.
fn script(bytes: &mut Bytes<'_>) -> Script {
    let patience_ns = PATIENCE_MS * MS;
    let mut steps = Vec::new();
    for _ in 0..bytes.below(8) {
        steps.push(match bytes.below(10) {
            0..4 => Step::Write(bytes.size()),
            4 => Step::Wait(bytes.ns()),
            5 => Step::Await { bytes: u64::from(bytes.size()), patience_ns: bytes.ns() },
            6 => Step::Reading(Reading::Stopped),
            7 => Step::Reading(Reading::Slow { bytes: bytes.size(), every_ns: bytes.ns() }),
            8 => Step::Reading(Reading::Eager),
            _ => match bytes.below(4) {
                0 => Step::Reset,
                1 => Step::Close,
                2 => Step::Finish,
                _ => Step::AwaitEnd { patience_ns: bytes.ns() },
            },
        });
    }
    steps.push(Step::Reading(Reading::Eager));
    steps.extend([Step::Finish, Step::AwaitEnd { patience_ns }, Step::Close]);
    let over = steps.iter().position(|step| matches!(step, Step::Reset | Step::Close));
    // Nothing follows an end, and nothing is written after the last word.
    steps.truncate(over.map_or(steps.len(), |at| at + 1));
    if let Some(at) = steps.iter().position(|step| *step == Step::Finish) {
        let mut n = 0;
        steps.retain(|step| {
            n += 1;
            n <= at + 1 || !matches!(step, Step::Write(_) | Step::Finish)
        });
    }
    Script(steps)
}

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000 + n))
}

fn config(bytes: &mut Bytes<'_>) -> Config {
    let pool = |name: &str, of: &[u16], retries| Pool {
        name: name.into(),
        backends: of
            .iter()
            .map(|n| Backend { name: n.to_string().into(), address: address(*n), weight: 1 })
            .collect(),
        retries,
        spare: 0,
        spare_idle_ms: 1000,
    };
    let time = |bytes: &mut Bytes<'_>| bytes.flag().then(|| bytes.size());
    let timeouts = Timeouts {
        connect_ms: bytes.size(),
        half_closed_ms: time(bytes),
        idle_ms: time(bytes),
        age_ms: time(bytes),
    };
    use Hop::{Auto, Hot, Linked, Multishot, Oneshot, Splice, Wide};
    let hops = [Auto, Multishot, Linked, Oneshot, Wide, Splice, Hot, Auto];
    let listener = Listener {
        name: "orders".into(),
        bind: ([127, 0, 0, 1], 0).into(),
        backlog: 4,
        stable: 0,
        canary: Some(1),
        canary_percent: Percent::from_hundredths(u16::from(bytes.byte()) * 39).unwrap(),
        on_backend_fail: [OnBackendFail::Reset, OnBackendFail::Close][usize::from(bytes.below(2))],
        hop: hops[usize::from(bytes.below(8))],
        sessions_max: u32::from(bytes.byte() | 1),
        timeouts,
        tcp: Tcp::PLAIN,
    };
    let buffer_bytes = 64 << bytes.below(6);
    let limits = Limits {
        sessions_max: listener.sessions_max,
        high_water_bytes: buffer_bytes << bytes.below(4),
        buffer_bytes,
        buffers_per_shard: u16::from(bytes.below(32)) + 2,
    };
    let (busy_poll_us, answer_poll_us) = [(0, 0), (0, 30), (20, 0), (20, 30)][bytes.below(4) as usize];
    Config {
        data_path: DataPath::Auto,
        data_path_percent: Percent::HUNDRED,
        carry_sessions: true,
        shards: Shards { pin: false, busy_poll_us, answer_poll_us, ..Shards::default() },
        limits,
        pools: vec![pool("v1", &[0, 1], u32::from(bytes.below(3))), pool("v2", &[2], 0)],
        listeners: vec![listener],
        admin: None,
        stop: ringway::config::Stop { grace_ms: 0, drain_ms: 0 },
        log: Log { format: LogFormat::Human, level: LogLevel::Info, session_every: 0 },
        source: Source::default(),
    }
}
