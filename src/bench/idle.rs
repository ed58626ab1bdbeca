//! The idle case: sessions that say nothing for a while, what that costs, and how long the first turn after it takes.
//!
//! Both together, because each is easy alone: who never sleeps answers at once, and who sleeps costs nothing.

use super::cases::{IDLE_SESSIONS, Plan};
use super::clock::pause;
use super::contender::Contender;
use super::load::{Crew, Load};
use super::shift::{Work, work};
use crate::driver::sys;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Rounds at most, however many the other cases have: each is as long as several of theirs.
const ROUNDS: usize = 12;
/// Nothing moves for so many turns' time: a second, where a turn is 200 ms.
const SILENCE_SLICES: u32 = 5;
/// And before that, once, for so many, so that what is done once for a new session is over.
const SETTLE_SLICES: u32 = 8;
/// The silence after each first turn: far longer than the window of low-latency mode, so that nobody's turn meets
/// another's spinning on their CPU, and no spinning for a turn is counted as spent on silence.
const GAP: Duration = Duration::from_millis(30);
/// Descriptors the load needs for other things than sessions.
const OTHER_DESCRIPTORS: u64 = 100;

/// What the idle case showed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Idle {
    /// Sessions of each contender.
    pub(super) sessions: usize,
    /// How long nothing moved in each round, in nanoseconds.
    pub(super) silence_ns: u64,
    /// By contender.
    pub(super) rows: Vec<Sleeper>,
}

/// What it showed of one contender.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sleeper {
    /// Whose.
    pub(super) name: String,
    /// Whether it is in low-latency mode.
    pub(super) low_latency: bool,
    /// The part of one CPU that was spent while nothing moved, over all rounds.
    pub(super) cpu: f64,
    /// The first turn after the silence, round by round, in microseconds.
    pub(super) first_us: Vec<f64>,
}

/// Measures it, `eager` being those in low-latency mode. `None`: it was stopped.
///
/// # Errors
/// A session broke, or no connection could be made: whose, and why.
pub(super) fn measure(
    load: &mut Load,
    plain: &[Contender],
    eager: &[Contender],
    plan: Plan,
    stop: &AtomicBool,
) -> Result<Option<Idle>, String> {
    let contenders: Vec<&Contender> = plain.iter().chain(eager).collect();
    let sessions = sessions(sys::raise_descriptor_limit(), contenders.len());
    let crews = contenders.iter().map(|c| settle(load, c, sessions));
    let crews: Vec<Crew> = crews.collect::<Result<_, String>>()?;
    let slice = Duration::from_nanos(plan.slice_ns);
    pause(slice * SETTLE_SLICES);
    let silence = slice * SILENCE_SLICES;
    let rounds = plan.rounds.min(ROUNDS);
    let mut spent_ns = vec![0; contenders.len()];
    let mut first_us = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        let before: Vec<u64> = contenders.iter().map(|c| c.cpu_ns()).collect();
        pause(silence);
        for (at, contender) in contenders.iter().enumerate() {
            spent_ns[at] += contender.cpu_ns().saturating_sub(before[at]);
        }
        // Each round another one begins: the first finds its CPU deeper asleep than those after it do.
        for turn in 0..contenders.len() {
            if stop.load(Relaxed) {
                return Ok(None);
            }
            let at = (turn + round) % contenders.len();
            // Each round another session: one that was idle all the time.
            let session = crews[at].member(round % sessions);
            let done = work(load, &session, Work::Turns { spin: true }, 0)?;
            first_us[at].push(done.quantile_us(1.0).unwrap_or(f64::NAN));
            pause(GAP);
        }
    }
    for crew in &crews {
        load.dismiss(crew)?;
    }
    let silence_ns = u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX).max(1);
    let all_ns = silence_ns as f64 * rounds as f64;
    let rows = contenders.iter().zip(spent_ns).zip(first_us).enumerate();
    let row =
        |(at, ((contender, ns), first_us)): (usize, ((&&Contender, u64), Vec<f64>))| Sleeper {
            name: contender.name.clone(),
            low_latency: at >= plain.len(),
            cpu: ns as f64 / all_ns,
            first_us,
        };
    Ok(Some(Idle { sessions, silence_ns, rows: rows.map(row).collect() }))
}

/// Sessions of a contender, each of which has said something once: one that never did might be kept in a cheaper way.
fn settle(load: &mut Load, contender: &Contender, sessions: usize) -> Result<Crew, String> {
    let crew = load.hire(&contender.name, contender.at, sessions);
    load.connect_all(&crew)?;
    work(load, &crew, Work::Turns { spin: false }, 0)?;
    Ok(crew)
}

/// How many sessions each of so many contenders gets where the load may have so many descriptors: it holds both ends
/// of what each proxy stands between.
fn sessions(descriptors: u64, contenders: usize) -> usize {
    let room = usize::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX);
    IDLE_SESSIONS.min(room / 2 / contenders.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_fit_into_the_descriptors() {
        assert_eq!(sessions(1 << 20, 4), IDLE_SESSIONS);
        assert_eq!(sessions(4_100, 4), 500);
        assert_eq!(sessions(8_100, 4), IDLE_SESSIONS);
        assert_eq!(sessions(10, 4), 1, "and what is refused then is said");
    }
}
