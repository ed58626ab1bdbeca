//! What is measured: the cases, and the rounds in which contenders take turns.

use super::contender::{Contender, own_cpu_ns};
use super::gates::Better;
use super::load::{Crew, Load};
use super::shift::{Done, Work, work};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Kinds of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Case {
    /// What `--cases` calls it.
    pub(super) key: &'static str,
    /// What it is.
    pub(super) title: &'static str,
    pub(super) work: Work,
    pub(super) sessions: usize,
    /// What is counted by the second, and how many pieces of work make one.
    pub(super) rate: (&'static str, f64),
    /// What CPU is counted for, and how many pieces of work make one.
    pub(super) piece: (&'static str, f64),
    /// What is shown, in this order.
    pub(super) shows: &'static [Measure],
    /// Whether Ringway is in low-latency mode.
    pub(super) low_latency: bool,
}

/// What a round shows of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// Work in a second.
    Rate,
    /// Half took no longer.
    P50,
    /// 95 of 100 took no longer.
    P95,
    /// 99 of 100 took no longer.
    P99,
    /// The proxy's CPU time for a piece of work.
    Cpu,
}

impl Measure {
    /// What it is called, in this case.
    pub(super) fn label(self, case: &Case) -> String {
        match self {
            Self::Rate => case.rate.0.to_owned(),
            Self::P50 => "p50 us".to_owned(),
            Self::P95 => "p95 us".to_owned(),
            Self::P99 => "p99 us".to_owned(),
            Self::Cpu => format!("CPU us/{}", case.piece.0),
        }
    }

    /// Which way is better.
    pub(super) const fn better(self) -> Better {
        match self {
            Self::Rate => Better::More,
            Self::P50 | Self::P95 | Self::P99 | Self::Cpu => Better::Less,
        }
    }
}

const TURNS: &[Measure] = &[Measure::Rate, Measure::P50, Measure::P95, Measure::P99, Measure::Cpu];
const TIMES: &[Measure] = &[Measure::P50, Measure::P95, Measure::P99, Measure::Cpu];
const RATES: &[Measure] = &[Measure::Rate, Measure::Cpu];

/// A case of turns, from which the others differ.
const TURN: Case = Case {
    key: "turns64",
    title: "turns of 64 B, 64 sessions",
    work: Work::Turns { spin: false },
    sessions: 64,
    rate: ("turns/s", 1.0),
    piece: ("turn", 1.0),
    shows: TURNS,
    low_latency: false,
};

/// All cases but the idle one, in the order in which they are measured.
pub(super) const CASES: [Case; 9] = [
    Case {
        key: "ping",
        title: "ping-pong of 64 B, 1 session",
        work: Work::Turns { spin: true },
        sessions: 1,
        shows: TIMES,
        ..TURN
    },
    Case { key: "turns16", title: "turns of 64 B, 16 sessions", sessions: 16, ..TURN },
    TURN,
    Case {
        key: "messages",
        title: "messages of 64 B, 16 sessions with 16 each under way",
        work: Work::Messages { under_way: 16 },
        sessions: 16,
        rate: ("messages/s", 1.0),
        piece: ("message", 1.0),
        shows: RATES,
        ..TURN
    },
    Case {
        key: "connections",
        title: "connections: connect, one turn of 64 B, close; 16 at once",
        work: Work::Connections,
        sessions: 16,
        rate: ("connections/s", 1.0),
        piece: ("connection", 1.0),
        ..TURN
    },
    Case {
        key: "bulk",
        title: "bulk, 1 session, one way",
        work: Work::Bulk,
        sessions: 1,
        rate: ("GB/s", 1e9),
        piece: ("KiB", 1024.0),
        shows: RATES,
        ..TURN
    },
    Case {
        key: "open5k",
        title: "open loop: 5,000 turns/s due over 64 sessions, timed from when they were due",
        work: Work::Open { per_s: 5_000.0 },
        ..TURN
    },
    Case {
        key: "open20k",
        title: "open loop: 20,000 turns/s due over 64 sessions, timed from when they were due",
        work: Work::Open { per_s: 20_000.0 },
        ..TURN
    },
    Case {
        key: "lowlatency",
        title: "ping-pong of 64 B, 1 session, in low-latency mode (busy_poll_us = 2000)",
        work: Work::Turns { spin: true },
        sessions: 1,
        shows: TIMES,
        low_latency: true,
        ..TURN
    },
];

/// What `--cases` calls the idle case.
pub(super) const IDLE: &str = "idle";
/// Sessions of the idle case, of each contender.
pub(super) const IDLE_SESSIONS: usize = 1_000;

/// How long and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// One turn of one contender.
    pub(super) slice_ns: u64,
    /// Turns of each that count.
    pub(super) rounds: usize,
}

/// One contender's round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    rate: f64,
    p50_us: Option<f64>,
    p95_us: Option<f64>,
    p99_us: Option<f64>,
    cpu_us: Option<f64>,
    /// Parts of the round during which the proxy's and the load's thread ran.
    pub(super) proxy_busy: f64,
    pub(super) load_busy: f64,
}

impl Sample {
    fn new(case: &Case, done: &Done, proxy_ns: u64, load_ns: u64) -> Self {
        let whole_ns = done.whole_ns.max(1) as f64;
        Self {
            rate: done.inside as f64 / case.rate.1 / (done.slice_ns.max(1) as f64 / 1e9),
            p50_us: done.quantile_us(0.50),
            p95_us: done.quantile_us(0.95),
            p99_us: done.quantile_us(0.99),
            cpu_us: (done.all > 0)
                .then(|| proxy_ns as f64 / 1e3 / (done.all as f64 / case.piece.1)),
            proxy_busy: proxy_ns as f64 / whole_ns,
            load_busy: load_ns as f64 / whole_ns,
        }
    }

    /// A round of which everything took `x`, in any unit: rates are 1000 / x.
    #[cfg(test)]
    pub(super) const fn of(x: f64) -> Self {
        let time = Some(x);
        Self {
            rate: 1000.0 / x,
            p50_us: time,
            p95_us: time,
            p99_us: time,
            cpu_us: time,
            proxy_busy: 0.5,
            load_busy: 0.25,
        }
    }

    /// NaN where it has none.
    pub(super) fn get(&self, measure: Measure) -> f64 {
        let known = match measure {
            Measure::Rate => Some(self.rate),
            Measure::P50 => self.p50_us,
            Measure::P95 => self.p95_us,
            Measure::P99 => self.p99_us,
            Measure::Cpu => self.cpu_us,
        };
        known.unwrap_or(f64::NAN)
    }
}

/// What a contender's rounds showed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// Whose.
    pub(super) name: String,
    /// Round by round.
    pub(super) samples: Vec<Sample>,
}

impl Row {
    /// One measure, round by round.
    pub(super) fn get(&self, measure: Measure) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.get(measure)).collect()
    }
}

/// Measures a case. `None`: it was stopped.
///
/// # Errors
/// A session broke, or no connection could be made: whose, and why.
pub(super) fn measure(
    load: &mut Load,
    contenders: &[&Contender],
    case: &Case,
    plan: Plan,
    stop: &AtomicBool,
) -> Result<Option<Vec<Row>>, String> {
    let crews: Vec<Crew> =
        contenders.iter().map(|c| load.hire(&c.name, c.at, case.sessions)).collect();
    if case.work != Work::Connections {
        for crew in &crews {
            load.connect_all(crew)?;
            work(load, crew, Work::Turns { spin: false }, 0)?;
        }
    }
    let mut rows: Vec<Row> =
        contenders.iter().map(|c| Row { name: c.name.clone(), samples: Vec::new() }).collect();
    // Each round another one begins, so that nobody always comes after the same other; the first round warms up.
    for round in 0..=plan.rounds {
        for turn in 0..contenders.len() {
            if stop.load(Relaxed) {
                return Ok(None);
            }
            let at = (turn + round) % contenders.len();
            let (proxy_ns, load_ns) = (contenders[at].cpu_ns(), own_cpu_ns());
            let done = work(load, &crews[at], case.work, plan.slice_ns)?;
            let load_ns = own_cpu_ns().saturating_sub(load_ns);
            let proxy_ns = contenders[at].cpu_ns().saturating_sub(proxy_ns);
            if round > 0 {
                rows[at].samples.push(Sample::new(case, &done, proxy_ns, load_ns));
            }
        }
    }
    for crew in crews.iter().filter(|_| case.work != Work::Connections) {
        load.dismiss(crew)?;
    }
    Ok(Some(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_counted_in_the_units_of_its_case() {
        let bulk = CASES.iter().find(|case| case.key == "bulk").unwrap();
        let done = Done {
            inside: 1_000_000_000,
            all: 1_024_000_000,
            slice_ns: 500_000_000,
            whole_ns: 600_000_000,
            took_ns: vec![],
        };
        let sample = Sample::new(bulk, &done, 300_000_000, 60_000_000);
        assert_eq!(sample.get(Measure::Rate), 2.0, "GB/s");
        assert_eq!(sample.get(Measure::Cpu), 0.3, "us for a KiB");
        assert!(sample.get(Measure::P50).is_nan());
        assert_eq!((sample.proxy_busy, sample.load_busy), (0.5, 0.1));
        let nothing = Sample::new(bulk, &Done::default(), 1, 1);
        assert!(nothing.get(Measure::Cpu).is_nan(), "CPU for nothing is no figure");
    }

    #[test]
    fn quantiles_are_ranks() {
        let done = Done { took_ns: (1..=200).map(|us| us * 1000).collect(), ..Done::default() };
        let found = [0.5, 0.95, 0.99, 1.0].map(|q| done.quantile_us(q));
        assert_eq!(found, [100.0, 190.0, 198.0, 200.0].map(Some));
        assert_eq!(Done::default().quantile_us(0.5), None);
    }

    #[test]
    fn each_case_has_its_own_key() {
        let keys: std::collections::BTreeSet<&str> = CASES.iter().map(|case| case.key).collect();
        assert_eq!(keys.len(), CASES.len());
        assert!(!keys.contains(IDLE));
    }
}
