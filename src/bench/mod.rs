//! `ringway bench`: io_uring against epoll on this machine, or Ringway against other proxies, as a table with verdicts.
//!
//! [`run`] starts proxies as processes of their own, all on one CPU, and drives them from another, by turns, in rounds:
//! a neighbour on a shared machine then takes from all alike, and ratios stand where absolutes do not.
//!
//! ```text
//! load ── sessions ──▶ contender ──▶ echo backend     one CPU: contenders, by turns; the other: load and backend
//! ```

#![forbid(unsafe_code)]

mod cases;
mod clock;
mod contender;
mod gates;
mod idle;
mod load;
mod machine;
mod others;
mod report;
mod shift;

pub use machine::Cpus;
pub use others::Other;

use crate::config::DataPath;
use crate::driver::probe::{Feature, Report, probe};
use crate::driver::{Kind, pick, sys};
use crate::time::Time;
use cases::{CASES, Case, IDLE, Plan};
use contender::{Contender, Folder, Recipe};
use load::Load;
use report::{Result as Measured, Taken};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The window of low-latency mode.
const BUSY_POLL_US: u32 = 2_000;
/// What is said where it was stopped amid a case.
const STOPPED: &str = "\nstopped; what stands above is whole\n";

/// What to measure, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long one contender's turn is.
    pub slice: Duration,
    /// Turns of each that count, 1 to 1000.
    pub rounds: usize,
    /// Which CPUs; `None`: the first two that are no siblings.
    pub cpus: Option<Cpus>,
    /// Which cases, by their names; none: all.
    pub cases: Vec<String>,
    /// Other proxies to compare with; none: io_uring is compared with epoll.
    pub against: Vec<Other>,
}

/// The names of all cases.
#[must_use]
pub fn case_names() -> Vec<&'static str> {
    CASES.iter().map(|case| case.key).chain([IDLE]).collect()
}

/// Measures, and prints what came of it, until all is done or `stop` is set.
///
/// # Errors
/// Something could not be started or broke, or none of the other proxies is there: a sentence that says what and why.
#[expect(clippy::needless_pass_by_value, reason = "the caller gives its share away")]
pub fn run(options: Options, stop: Arc<AtomicBool>) -> Result<(), String> {
    let report = probe();
    let plan = Plan {
        slice_ns: u64::try_from(options.slice.as_nanos()).unwrap_or(u64::MAX),
        rounds: options.rounds.clamp(1, 1000),
    };
    // Idle sessions are descriptors of this process and of the proxies, which inherit the limit.
    let _ = sys::raise_descriptor_limit();
    let kind = if report.usable().is_ok() { Kind::Uring } else { Kind::Epoll };
    let allowed = sys::affinity().len();
    let cpus = options.cpus.unwrap_or_else(Cpus::choose);
    sys::pin(cpus.load).map_err(|e| format!("CPU {} cannot be had: {e}", cpus.load))?;
    let mut bench = Bench {
        load: Load::new(kind, report.has(Feature::RecvCredit))?,
        folder: Folder::new()?,
        cpus,
        plan,
        began: Began {
            at: sys::now(),
            cpus: [cpus.proxy, cpus.load].map(machine::spent),
            load_ns: contender::own_cpu_ns(),
        },
        options: &options,
        stop: &stop,
    };
    bench.introduce(&machine::describe(&report.kernel, allowed), kind);
    if options.against.is_empty() { bench.data_paths(&report) } else { bench.others() }
}

/// What was spent when the bench began: by the CPUs, the proxies' first, and by the load.
struct Began {
    at: Time,
    cpus: [machine::Spent; 2],
    load_ns: u64,
}

struct Bench<'o> {
    load: Load,
    folder: Folder,
    cpus: Cpus,
    plan: Plan,
    began: Began,
    options: &'o Options,
    stop: &'o AtomicBool,
}

impl Bench<'_> {
    fn introduce(&self, machine: &str, load: Kind) {
        let (congestion, paces) = machine::congestion();
        say(&format!(
            "ringway {} bench; {machine}; congestion control {congestion}\n\
             CPU {}: the proxies, by turns; CPU {}: load and echo backend, one thread on {}\n{}",
            env!("CARGO_PKG_VERSION"),
            self.cpus.proxy,
            self.cpus.load,
            load.label(),
            report::legend(self.plan)
        ));
        let debug = cfg!(debug_assertions).then(|| {
            "this is a debug build: measure what `cargo build --release` makes".to_owned()
        });
        let warnings = [debug, self.cpus.warning(), paces.map(str::to_owned)];
        for warning in warnings.into_iter().flatten() {
            say(&format!("ATTENTION: {warning}\n"));
        }
    }

    /// io_uring against epoll, with the gates and what is recommended.
    fn data_paths(&mut self, report: &Report) -> Result<(), String> {
        pick::pick(DataPath::Uring, report)
            .map_err(|why| format!("there is nothing to compare: {why}"))?;
        let recipe = |name, data_path, busy_poll_us| Recipe { name, data_path, busy_poll_us };
        let plain = [recipe("epoll", "epoll", 0), recipe("uring", "uring", 0)];
        let eager = [
            recipe("epoll busy", "epoll", BUSY_POLL_US),
            recipe("uring busy", "uring", BUSY_POLL_US),
        ];
        let (plain, eager) = (self.ringways(&plain)?, self.ringways(&eager)?);
        let Some(results) = self.cases(&plain, &eager)? else { return Ok(()) };
        if !self.idle(&plain, &eager)? {
            return Ok(());
        }
        say(&report::verdicts(&results));
        self.look_around(plain.iter().chain(&eager));
        Ok(())
    }

    /// Says what others took of the CPUs since the bench began. `contenders`: all there were.
    fn look_around<'c>(&self, contenders: impl Iterator<Item = &'c Contender>) {
        let Cpus { proxy, load } = self.cpus;
        let proxies_ns: u64 = contenders.map(Contender::cpu_ns).sum();
        let load_ns = contender::own_cpu_ns().saturating_sub(self.began.load_ns);
        let own = if proxy == load { [proxies_ns + load_ns; 2] } else { [proxies_ns, load_ns] };
        let whole_ns = sys::now().since_ns(self.began.at).max(1) as f64;
        let taken = |at: usize, cpu: usize| {
            let (then, now) = (self.began.cpus[at], machine::spent(cpu));
            let others_ns = now.busy_ns.saturating_sub(then.busy_ns).saturating_sub(own[at]);
            let host_ns = now.stolen_ns.saturating_sub(then.stolen_ns);
            Taken { cpu, others: others_ns as f64 / whole_ns, host: host_ns as f64 / whole_ns }
        };
        say(&report::meanwhile(&[taken(0, proxy), taken(1, load)]));
    }

    /// Ringway against other proxies.
    fn others(&mut self) -> Result<(), String> {
        let recipe = |name, busy_poll_us| Recipe { name, data_path: "auto", busy_poll_us };
        let mut contenders = self.ringways(&[recipe("ringway", 0)])?;
        let backend = self.load.backend()?;
        for &other in &self.options.against {
            let name = other.label();
            let Some(program) = other.find() else {
                say(&format!("ATTENTION: {name} was NOT FOUND; get it by: {}\n", other.source()));
                continue;
            };
            match other.start(&program, backend, self.cpus.proxy, &self.folder) {
                Ok(contender) => {
                    say(&format!("{name} {}, {}\n", other.version(&program), program.display()));
                    contenders.push(contender);
                }
                Err(why) => say(&format!("ATTENTION: {name} is NOT COMPARED: {why}\n")),
            }
        }
        if contenders.len() < 2 {
            return Err("none of the other proxies could be started".into());
        }
        // In low-latency mode only the idle case has somebody to compare with: who sleeps.
        let eager = self.ringways(&[recipe("ringway busy", BUSY_POLL_US)])?;
        if self.cases(&contenders, &[])?.is_some() && self.idle(&contenders, &eager)? {
            self.look_around(contenders.iter().chain(&eager));
        }
        Ok(())
    }

    fn ringways(&self, recipes: &[Recipe]) -> Result<Vec<Contender>, String> {
        let (backend, cpu) = (self.load.backend()?, self.cpus.proxy);
        let start = |recipe| Contender::ringway(recipe, backend, cpu, &self.folder);
        recipes.iter().map(start).collect()
    }

    fn is_wanted(&self, case: &str) -> bool {
        self.options.cases.is_empty() || self.options.cases.iter().any(|wanted| wanted == case)
    }

    /// Measures all cases that are wanted and have contenders, and shows each. `None`: it was stopped.
    fn cases(
        &mut self,
        plain: &[Contender],
        eager: &[Contender],
    ) -> Result<Option<Vec<Measured>>, String> {
        let mut results = Vec::new();
        let wanted: Vec<&Case> = CASES.iter().filter(|case| self.is_wanted(case.key)).collect();
        for case in wanted {
            let contenders: Vec<&Contender> =
                if case.low_latency { eager } else { plain }.iter().collect();
            if contenders.is_empty() {
                continue;
            }
            let measured = cases::measure(&mut self.load, &contenders, case, self.plan, self.stop)?;
            let Some(rows) = measured else {
                say(STOPPED);
                return Ok(None);
            };
            let result = Measured { case: *case, rows };
            say(&result.table(self.plan));
            results.push(result);
        }
        Ok(Some(results))
    }

    /// What sessions cost that say nothing, and how fast they wake, where that is wanted. Whether it was not stopped.
    fn idle(&mut self, plain: &[Contender], eager: &[Contender]) -> Result<bool, String> {
        if !self.is_wanted(IDLE) {
            return Ok(true);
        }
        let found = idle::measure(&mut self.load, plain, eager, self.plan, self.stop)?;
        say(&found.as_ref().map_or_else(|| STOPPED.to_owned(), report::idle));
        Ok(found.is_some())
    }
}

/// Prints at once. Where nobody reads there is nobody to tell.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
