//! The embedded default: what Ringway does when it is given nothing to do.
//!
//! [`run`] starts two order engines, Ringway in front of them with a tenth of the sessions on the canary, and an order
//! flow through it, and shows what happens once a second. Everything listens on loopback, on ports the kernel chooses.
//! [`order_engine`] is one engine alone, to put a Ringway of one's own in front of.
//!
//! ```text
//! flow ── orders ──▶ Ringway ──▶ engine "stable"
//!                       └──────▶ engine "canary"
//! ```

#![forbid(unsafe_code)]

pub mod book;
mod client;
mod clock;
pub mod engine;
pub mod flow;
pub mod histogram;
mod outbox;
pub mod protocol;
pub mod table;
mod venue;
mod watch;

use crate::config::{
    Admin, Backend, Config, DataPath, Hop, Limits, Listener, Log, LogFormat, LogLevel,
    OnBackendFail, Percent, Pool, Shards, Source, Stop, Tcp, Timeouts, limits,
};
use crate::run::Running;
use clock::{now, pause};
use engine::OrderEngine;
use flow::{Facts, Flow, Shape};
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use watch::{Moment, Watch};

/// The name of the one listener.
const LISTENER: &str = "orders";
/// The canary's share of new sessions at the start, in hundredths of a percent.
const CANARY_HUNDREDTHS: u16 = 1_000;
/// How soon a stop is noticed.
const STOP_LOOK: Duration = Duration::from_millis(50);
/// How often the table is shown.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Shows Ringway at work until `duration` is over, `stop` is set or nobody reads what is printed.
///
/// # Errors
/// Something could not be started, or no order ever came through: a sentence that says what and why.
pub fn run(duration: Option<Duration>, stop: Arc<AtomicBool>) -> Result<(), String> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let engines = [start_engine(loopback)?, start_engine(loopback)?];
    let addresses = [engines[0].address(), engines[1].address()];
    let ringway = Running::start(config(addresses), None)
        .map_err(|e| format!("the demo's Ringway could not start: {e}"))?;
    let shown = listening(&ringway).and_then(|(orders, admin)| {
        let flow = Flow::start(Shape::towards(orders))
            .map_err(|e| format!("no thread for the demo's order flow: {e}"))?;
        // Who reads has gone, as `head` does after some lines: no fault, and no reason to go on.
        let _ = greet(orders, admin, addresses)
            .and_then(|()| show(duration, &stop, || observe(&flow, &ringway, &engines)));
        Ok(flow.stop())
    });
    ringway.stop();
    // How it ended is in its log; here it ends because the demo does.
    let _ = ringway.wait();
    engines.into_iter().for_each(OrderEngine::stop);
    conclude(&shown?)
}

/// Runs one order engine on `listen` until `stop` is set.
///
/// # Errors
/// It could not start: a sentence that says why.
#[expect(clippy::needless_pass_by_value, reason = "the caller gives its share away, as for `run`")]
pub fn order_engine(listen: SocketAddr, stop: Arc<AtomicBool>) -> Result<(), String> {
    let engine = start_engine(listen)?;
    // Printing may fail where nobody reads; the engine serves its clients all the same.
    let _ = say(&format!("order engine on {}, one JSON object a line\n", engine.address()));
    while !stop.load(Relaxed) {
        pause(STOP_LOOK);
    }
    let (orders, sessions) = (engine.orders(), engine.sessions());
    engine.stop();
    let _ = say(&format!("stopped with {sessions} sessions open, {orders} orders handled\n"));
    Ok(())
}

fn start_engine(listen: SocketAddr) -> Result<OrderEngine, String> {
    OrderEngine::start(listen)
        .map_err(|e| format!("the order engine could not start on {listen}: {e}"))
}

fn listening(ringway: &Running) -> Result<(SocketAddr, SocketAddr), String> {
    let orders = ringway.listener_address(LISTENER);
    let both = orders.zip(ringway.admin_address());
    both.ok_or_else(|| "Ringway started but does not say where it listens: a bug of ours".into())
}

fn greet(orders: SocketAddr, admin: SocketAddr, engines: [SocketAddr; 2]) -> io::Result<()> {
    say(&format!(
        "Ringway takes orders on {orders}, stable engine on {}, canary engine on {}\n\
         admin endpoint: http://{admin}\n",
        engines[0], engines[1]
    ))
}

/// Shows a table a second: in place on a terminal, else as lines.
fn show(
    duration: Option<Duration>,
    stop: &AtomicBool,
    observe: impl Fn() -> Moment,
) -> io::Result<()> {
    let started = now();
    let terminal = io::stdout().is_terminal();
    let (mut watch, mut lines, mut next) = (Watch::new(started), 0, started + SHOW_EVERY);
    while rest_until(next, started, duration, stop) {
        let view = watch.look(now(), &observe());
        if terminal {
            let table = table::table(&view);
            say(&table::in_place(&table, lines))?;
            lines = table.lines().count();
        } else {
            say(&format!("{}\n", table::line(&view)))?;
        }
        // After a pause of the whole machine the next table is due now, not all that were missed.
        next = now().max(next + SHOW_EVERY);
    }
    Ok(())
}

/// Waits until `next`; says whether to go on then. A last table that is due at the very end is still shown.
fn rest_until(
    next: Instant,
    started: Instant,
    duration: Option<Duration>,
    stop: &AtomicBool,
) -> bool {
    let end = duration.and_then(|duration| started.checked_add(duration));
    loop {
        let now = now();
        if stop.load(Relaxed) || end.is_some_and(|end| end < next && end <= now) {
            return false;
        }
        if now >= next {
            return true;
        }
        pause((next - now).min(STOP_LOOK));
    }
}

fn observe(flow: &Flow, ringway: &Running, engines: &[OrderEngine; 2]) -> Moment {
    let board = ringway.board();
    Moment {
        flow: flow.facts(),
        arms: watch::arms(board, LISTENER, [engines[0].orders(), engines[1].orders()]),
        path: board.path.load_full().map(|path| (path.kind.label(), path.why.clone())),
    }
}

fn conclude(facts: &Facts) -> Result<(), String> {
    if facts.answered == 0 {
        let why = facts.last_error.as_deref().unwrap_or("it ended before the first answer");
        return Err(format!("no order came through Ringway: {why}"));
    }
    // As in `run`: nobody may be reading any more.
    let _ = say(&format!(
        "{} orders answered over {} sessions, {} rejected, {} errors\n",
        facts.answered, facts.connects, facts.rejected, facts.errors
    ));
    Ok(())
}

/// Prints at once. Not `println`, which panics where nobody reads.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Ringway in front of these engines, the stable one first.
fn config(engines: [SocketAddr; 2]) -> Config {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let pool = |name: &str, address| Pool {
        name: name.into(),
        backends: vec![Backend { name: "engine".into(), address, weight: 1 }],
        retries: 1,
        spare: 0,
        spare_idle_ms: limits::SPARE_IDLE_MS_DEFAULT,
    };
    Config {
        data_path: DataPath::Auto,
        data_path_percent: Percent::HUNDRED,
        carry_sessions: true,
        // Flow, engines and shards share the machine here: a pinned shard would wait behind them.
        shards: Shards { pin: false, ..Shards::default() },
        limits: Limits {
            sessions_max: limits::SESSIONS_DEFAULT,
            high_water_bytes: limits::HIGH_WATER_DEFAULT,
            buffer_bytes: limits::BUFFER_BYTES_DEFAULT,
            buffers_per_shard: limits::BUFFERS_DEFAULT,
        },
        listeners: vec![listener(loopback)],
        // In the order of their names, as a Config wants it.
        pools: vec![pool("canary", engines[1]), pool("stable", engines[0])],
        admin: Some(Admin { bind: loopback, token: None }),
        stop: Stop { grace_ms: 0, drain_ms: 1_000 },
        // The table is the log: only what is wrong may tear it.
        log: Log { format: LogFormat::Human, level: LogLevel::Warn, session_every: 0 },
        source: Source::default(),
    }
}

fn listener(bind: SocketAddr) -> Listener {
    Listener {
        name: LISTENER.into(),
        bind,
        backlog: 1024,
        stable: 1,
        canary: Some(0),
        canary_percent: Percent::from_hundredths(CANARY_HUNDREDTHS).expect("less than a whole"),
        on_backend_fail: OnBackendFail::Reset,
        hop: Hop::Auto,
        sessions_max: limits::SESSIONS_DEFAULT,
        timeouts: Timeouts {
            connect_ms: 1_000,
            half_closed_ms: Some(10_000),
            idle_ms: None,
            age_ms: None,
        },
        tcp: Tcp::PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_holds_what_a_config_promises() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|a| a.parse().unwrap());
        let config = config(addresses);
        let of =
            |index: usize| (&*config.pools[index].name, config.pools[index].backends[0].address);
        let listener = &config.listeners[0];
        assert_eq!(of(listener.stable), ("stable", addresses[0]));
        assert_eq!(listener.canary.map(of), Some(("canary", addresses[1])));
        assert!(config.pools.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(listener.canary_percent.as_f64(), 10.0);
        assert!(config.admin.unwrap().bind.ip().is_loopback());
    }

    #[test]
    fn a_table_is_due_each_second_and_the_one_at_the_very_end_is_shown() {
        let start = now();
        let stop = AtomicBool::new(false);
        let due = |next, duration| rest_until(next, start, duration, &stop);
        assert!(due(start, None));
        assert!(due(start, Some(Duration::ZERO)), "due at the very end");
        let later = start + Duration::from_secs(3600);
        assert!(!due(later, Some(Duration::from_millis(1))));
        stop.store(true, Relaxed);
        assert!(!rest_until(start, start, None, &stop));
    }

    #[test]
    fn an_engine_alone_runs_until_it_is_told_to_stop() {
        let stop = Arc::new(AtomicBool::new(false));
        let handle = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || order_engine("127.0.0.1:0".parse().unwrap(), stop))
        };
        pause(STOP_LOOK);
        assert!(!handle.is_finished());
        stop.store(true, Relaxed);
        assert_eq!(handle.join().unwrap(), Ok(()));
    }

    #[test]
    fn an_address_in_use_is_an_error_that_says_so() {
        let first = OrderEngine::start("127.0.0.1:0".parse().unwrap()).unwrap();
        let stop = Arc::new(AtomicBool::new(true));
        let error = order_engine(first.address(), stop).unwrap_err();
        assert!(error.contains(&first.address().to_string()), "{error}");
        assert!(error.contains("could not start") && error.contains("in use"), "{error}");
    }
}
