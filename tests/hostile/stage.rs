//! What every case has in common: a proxy, two backends, the healthy sessions, and the count of what came home.

use super::backend::{Backend, Manner};
use super::healthy::{Figures, Healthy};
use super::process;
use super::target::{Kind, Setup, Target};
use ringway::config::limits;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How much a case does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Enough to see what is broken, in half a minute for all cases.
    Quick,
    /// As much as the figures are to be worth.
    Full,
}

impl Scale {
    pub(crate) fn of<T>(self, quick: T, full: T) -> T {
        if self == Self::Full { full } else { quick }
    }
}

/// The full cases take turns, so that none disturbs another's figures.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a case on both data paths: small ones at once, full ones after each other.
pub(crate) fn on_both(scale: Scale, case: fn(Kind, Scale)) {
    let kinds = Kind::OURS.into_iter().filter(|kind| {
        let there = kind.is_installed();
        if !there {
            eprintln!("SKIPPED: this machine forbids io_uring");
        }
        there
    });
    if scale == Scale::Full {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kinds.for_each(|kind| case(kind, scale));
    } else {
        std::thread::scope(|threads| {
            let kinds: Vec<Kind> = kinds.collect();
            for kind in kinds {
                threads.spawn(move || case(kind, scale));
            }
        });
    }
}

/// Makes both tests of a case.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod quick {
            $(#[test]
            #[ignore = "needs a machine of its own: cargo test --test hostile -- --ignored quick::"]
            fn $name() {
                crate::stage::on_both(crate::stage::Scale::Quick, super::$name);
            })*
        }
        mod full {
            $(#[test]
            #[ignore = "minutes: cargo test --release --test hostile -- --ignored --nocapture --test-threads 1 full::"]
            fn $name() {
                crate::stage::on_both(crate::stage::Scale::Full, super::$name);
            })*
        }
    };
}
pub(crate) use cases;

pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const MIB: u64 = 1 << 20;
/// Memory that the process may take beyond what sessions hold: first uses of code, tables and stacks.
const SLACK_BYTES: u64 = 12 * MIB;
/// The buffers that io_uring may fill at most, beside those that sessions hold.
const WINDOW_BYTES: u64 = limits::WINDOW_MAX as u64 * limits::BUFFER_BYTES_DEFAULT as u64;
/// Memory of a session beside the bytes it holds.
pub(crate) const SESSION_BYTES: u64 = 4096;
/// How old a gauge of the metrics can be.
const GAUGES_AFTER: Duration = Duration::from_millis(1200);
/// What one direction may hold, by default of `limits.high_water_bytes`.
pub(crate) const DIRECTION_BYTES: u64 = 64 * 1024;

/// A proxy between healthy sessions and their backend, and another backend.
pub(crate) struct Rig {
    pub(crate) target: Target,
    pub(crate) echo: Backend,
    pub(crate) other: Backend,
    pub(crate) healthy: Healthy,
}

impl Rig {
    pub(crate) fn new(kind: Kind, manner: Manner) -> Self {
        Self::with(kind, manner, [LOOPBACK; 2], |_| {})
    }

    /// `near`: where the healthy sessions' backend and the other one are to listen.
    pub(crate) fn with(
        kind: Kind,
        manner: Manner,
        near: [SocketAddr; 2],
        change: impl FnOnce(&mut Setup),
    ) -> Self {
        let echo = Backend::start(near[0], Manner::Echo);
        let other = Backend::start(near[1], manner);
        let mut setup = Setup::new(kind, echo.address, other.address);
        change(&mut setup);
        let target = Target::start(&setup);
        let healthy = Healthy::start(target.orders, 100);
        // Ringway sets its gauges once a second; by then the healthy sessions have their socket options too.
        std::thread::sleep(Duration::from_millis(1200));
        healthy.forget();
        Self { target, echo, other, healthy }
    }
}

/// A [`Rig`] of Ringway whose case must harm nobody and leave nothing behind.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    pub(crate) other: Backend,
    pub(crate) healthy: Healthy,
    _echo: Backend,
    idle: Idle,
}

/// How the process is with the healthy sessions alone.
#[derive(Debug, Clone, Copy)]
struct Idle {
    descriptors: u64,
    buffers_free: u64,
    resident: u64,
}

impl Stage {
    pub(crate) fn new(name: &'static str, kind: Kind, manner: Manner) -> Self {
        Self::with(name, kind, manner, [LOOPBACK; 2], |_| {})
    }

    /// As [`Rig::with`].
    pub(crate) fn with(
        name: &'static str,
        kind: Kind,
        manner: Manner,
        near: [SocketAddr; 2],
        change: impl FnOnce(&mut Setup),
    ) -> Self {
        let Rig { target, echo, other, healthy } = Rig::with(kind, manner, near, change);
        // What they say lies in buffers on its way: nothing is counted while they speak.
        healthy.hush();
        std::thread::sleep(GAUGES_AFTER);
        let pid = target.pid();
        process::forget_peak(pid);
        let idle = Idle {
            descriptors: process::descriptors(pid),
            buffers_free: target.metric("ringway_buffers_free", ""),
            resident: process::status_bytes(pid, "VmRSS"),
        };
        healthy.go_on();
        Self { name, target, other, healthy, _echo: echo, idle }
    }

    /// How long until a new client of the healthy sessions' listener is answered.
    pub(crate) fn served_after(&self) -> Duration {
        let served = served_after(self.target.orders, Duration::from_secs(20));
        served.unwrap_or_else(|| panic!("{}: nobody is served", self.name))
    }

    /// Counts what came home, prints the figures and fails where one is wrong. `held`: bytes sessions may have held.
    pub(crate) fn finish(self, offered: usize, held: u64, note: &str) -> Figures {
        let (name, pid) = (self.name, self.target.pid());
        let recovered = self.served_after();
        let (gap, late) = (self.healthy.gap(), self.healthy.late());
        self.healthy.hush();
        let (home, leaked) = self.come_home();
        let fault = self.healthy.fault();
        let figures = self.healthy.stop();
        let peak = process::status_bytes(pid, "VmHWM");
        // What io_uring receives into is published before it is needed, and comes back when the shard is calm.
        let window = if self.target.kind == Kind::Uring { WINDOW_BYTES } else { 0 };
        let bound = self.idle.resident + held + window + SLACK_BYTES;
        let [watchdog, stale, panics] = self.target.metrics([
            "ringway_watchdog_total",
            "ringway_stale_completions_total",
            "ringway_shard_panics_total",
        ]);
        let [descriptors, buffers] = leaked;
        println!(
            "{name:<22} {path:<5} offered {offered:>6}  harmed {harmed}  lost {lost} B  leaked {descriptors} fds \
             {buffers} buffers  RSS {peak:.1} of {bound:.1} MiB  served after {recovered:.1?}  home after \
             {home:.0?}  gap {gap:.1?} (harness {late:.1?})  p99 {p99:.1?}  watchdog {watchdog}  stale {stale}  {note}",
            path = self.target.kind.label(),
            harmed = figures.harmed,
            lost = figures.lost,
            peak = peak as f64 / MIB as f64,
            bound = bound as f64 / MIB as f64,
            p99 = figures.p99,
        );
        let label = format!("{name} on {}", self.target.kind.label());
        let log = self.target.log();
        assert_eq!(figures.harmed, 0, "{label}: harmed, first {fault}\n{log}");
        assert_eq!(leaked, [0, 0], "{label}: descriptors and buffers leaked\n{log}");
        assert!(peak <= bound, "{label}: {peak} bytes at the peak, {bound} are allowed");
        assert_eq!([watchdog, stale, panics], [0; 3], "{label}: watchdog, stale, panics\n{log}");
        figures
    }

    /// Waits until there is nothing but the healthy sessions: how long, and what did not come home.
    fn come_home(&self) -> (Duration, [i64; 2]) {
        let began = Instant::now();
        let mut home = None;
        loop {
            let descriptors = process::descriptors(self.target.pid());
            if descriptors <= self.idle.descriptors {
                home.get_or_insert_with(|| began.elapsed());
            }
            let [free, sessions] =
                self.target.metrics(["ringway_buffers_free", "ringway_shard_sessions"]);
            let leaked = [
                descriptors as i64 - self.idle.descriptors as i64,
                (self.idle.buffers_free as i64 - free as i64).max(0),
            ];
            let alone = sessions <= 100 - self.healthy.harmed() as u64;
            let settled = alone && leaked[0] <= 0 && leaked[1] == 0;
            if settled || began.elapsed() > Duration::from_secs(15) {
                return (home.unwrap_or_else(|| began.elapsed()), leaked.map(|l| l.max(0)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A client that waits for so long at most when it reads or writes.
pub(crate) fn client(to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// Whether a new client gets back what it says.
pub(crate) fn echoes(to: SocketAddr, patience: Duration) -> bool {
    let exchange = || {
        let mut stream = client(to, patience)?;
        stream.write_all(b"is anybody there")?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer == *b"is anybody there")
    };
    exchange().unwrap_or(false)
}

/// How long until a new client gets back what it says; `None`: not within this patience.
pub(crate) fn served_after(to: SocketAddr, patience: Duration) -> Option<Duration> {
    let began = Instant::now();
    while !echoes(to, Duration::from_millis(500)) {
        if began.elapsed() >= patience {
            return None;
        }
    }
    Some(began.elapsed())
}

/// Has a client's end be a reset.
pub(crate) fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Waits for something. Whether it came.
pub(crate) fn until(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < patience {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    holds()
}
