//! Counters of the data path: one writer each, readers add up.
//!
//! A [`Count`] is written by its shard with a plain load and store (no locked instruction) and may be read by anybody.
//! A [`ShardTally`] is one shard's; a [`RouteTally`] is one shard's share of one (listener, arm, pool, backend).
//! Routes are added as sessions meet them and live as long as the process, so that totals never fall.

#![forbid(unsafe_code)]

mod named;

use crate::config::Name;
use crate::event::{Arm, EndReason};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds, as the only writer.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes away, as the only writer: for gauges.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Replaces, as the only writer.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Lines of the process's log that were lost. Any thread counts here, for the process has but one stderr.
#[derive(Debug)]
pub struct LogLost {
    /// Those that found too many waiting before them.
    pub full: AtomicU64,
    /// Those that could not be written.
    pub failed: AtomicU64,
}

/// See there.
pub static LOG_LOST: LogLost = LogLost { full: AtomicU64::new(0), failed: AtomicU64::new(0) };

/// Upper bounds of the turn-time and connect-time buckets, in nanoseconds: 10 us to 10 s, 1-2-5.
pub const TURN_BOUNDS_NS: [u64; 19] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Upper bounds of the session-duration buckets, in nanoseconds: 1 ms to a day.
pub const SESSION_BOUNDS_NS: [u64; 12] = [
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
    60_000_000_000,
    300_000_000_000,
    1_800_000_000_000,
    3_600_000_000_000,
    14_400_000_000_000,
    28_800_000_000_000,
    86_400_000_000_000,
];

/// A histogram with one writer. `N` upper bounds, inclusive; one bucket more for what lies above them all.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds_ns: &'static [u64; N],
    buckets: [Count; N],
    above: Count,
    sum_ns: Count,
}

impl<const N: usize> Histogram<N> {
    /// An empty one. `bounds_ns` ascend.
    #[must_use]
    pub fn new(bounds_ns: &'static [u64; N]) -> Self {
        Self {
            bounds_ns,
            buckets: std::array::from_fn(|_| Count::default()),
            above: Count::default(),
            sum_ns: Count::default(),
        }
    }

    /// Takes one value, as the only writer.
    pub fn record(&self, ns: u64) {
        let at = self.bounds_ns.partition_point(|&bound| bound < ns);
        self.buckets.get(at).unwrap_or(&self.above).add(1);
        self.sum_ns.add(ns);
    }

    /// Upper bound and count of each bucket (not cumulative), the count above them all, and the sum of all values.
    pub fn read(&self) -> (impl Iterator<Item = (u64, u64)> + '_, u64, u64) {
        let buckets = self.bounds_ns.iter().zip(&self.buckets).map(|(&bound, n)| (bound, n.get()));
        (buckets, self.above.get(), self.sum_ns.get())
    }
}

impl Default for Histogram<19> {
    /// An empty one with the turn-time buckets.
    fn default() -> Self {
        Self::new(&TURN_BOUNDS_NS)
    }
}

pub use named::Named;

/// What one shard counts of itself.
#[derive(Debug, Default)]
pub struct ShardTally {
    /// Sessions that are open now, the opening ones among them (gauge).
    pub sessions: Count,
    /// Sessions begun here, whoever accepted their clients.
    pub begun: Count,
    /// CPU time of the shard's thread, in nanoseconds.
    pub cpu_ns: Count,
    /// When `cpu_ns` was read, on the shard's clock, in nanoseconds.
    pub looked_ns: Count,
    /// Clients accepted.
    pub accepted: Count,
    /// Clients handed to a less loaded shard before their session began.
    pub placed_elsewhere: Count,
    /// Accepts that failed, for want of descriptors or memory.
    pub accept_failed_exhausted: Count,
    /// Accepts that failed because the client had gone, or otherwise.
    pub accept_failed_other: Count,
    /// Clients turned away before a session began: a `sessions_max` was reached, or nobody is left to serve them.
    pub refused_full: Count,
    /// Attempts to reach a backend that failed and were followed by another.
    pub connect_retries: Count,
    /// Connections to backends that stand ready for a session (gauge).
    pub spares: Count,
    /// Connections that came to stand ready.
    pub spares_made: Count,
    /// Of those, which sessions took.
    pub spares_taken: Count,
    /// Of those, which their backends ended before.
    pub spares_ended: Count,
    /// Of those, which were ready for so long that others took their places.
    pub spares_aged: Count,
    /// Of those, which nobody wanted any more: by a reload, another data path or a stop.
    pub spares_unwanted: Count,
    /// Of those, which were closed because descriptors or memory ran out.
    pub spares_short: Count,
    /// Attempts to make one that failed.
    pub spares_failed: Count,
    /// Turns of the loop.
    pub turns: Count,
    /// Calls into the kernel to submit and wait (io_uring_enter or epoll_wait).
    pub enters: Count,
    /// Such calls that failed for no reason that passes by itself. Must stay 0.
    pub enter_failed: Count,
    /// Completions or readiness reports those calls brought.
    pub completions: Count,
    /// Submissions that found the queue full and had to enter first.
    pub sq_full: Count,
    /// Turns that found the completion queue overflown.
    pub cq_overflow: Count,
    /// Receives that found no buffer.
    pub no_buffers: Count,
    /// Directions that wait for a buffer (gauge).
    pub starved: Count,
    /// Bytes for slow readers that are out of the pool because it was low (gauge).
    pub spilled_bytes: Count,
    /// Sends that had to wait for the destination.
    pub sends_blocked: Count,
    /// Buffers of the pool (gauge).
    pub buffers: Count,
    /// Buffers that hold nobody's bytes (gauge).
    pub buffers_free: Count,
    /// Times a thread was found to have been stopped, its deadlines moved.
    pub freezes: Count,
    /// Ending sessions whose operations had to be cancelled by the watchdog. Must stay 0.
    pub watchdog: Count,
    /// Sessions carried to another shard.
    pub moves_out: Count,
    /// Sessions carried here from another shard.
    pub moves_in: Count,
    /// Moves that were given up; their sessions went on where they were.
    pub moves_failed: Count,
    /// Sessions carried here from the process before this one.
    pub moves_upgrade: Count,
    /// Moves that were asked for while their session was still opening.
    pub moves_opening: Count,
    /// Moves that were asked for when their session was ending.
    pub moves_ending: Count,
    /// From the moment a session began to come to rest until it went on here.
    pub pause: Histogram<19>,
    /// From the moment the kernel answered until all it said was done: of one turn in
    /// [`WORK_SAMPLE`](crate::config::limits::WORK_SAMPLE).
    pub work: Histogram<19>,
    /// Bytes that bulky directions moved through the large buffer.
    pub copied_bytes: Count,
    /// Bytes that bulky directions moved through the pipe.
    pub spliced_bytes: Count,
    /// Time spent looking for work where there was none.
    pub spun_in_vain_ns: Count,
    /// Completions for a session that is no more. Must stay 0.
    pub stale: Count,
    /// Records of ended sessions that found the journal full.
    pub journal_dropped: Count,
    /// The lower 40 bits of the next session's id; no counter of events.
    pub next_id: Count,
}

/// Names a route: where a session came in and where it went.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteName {
    /// The listener.
    pub listener: Name,
    /// Which side of its split.
    pub arm: Arm,
    /// The pool of that side.
    pub pool: Name,
    /// The backend; empty while none was chosen.
    pub backend: Name,
}

/// What one shard counts of the sessions of one route.
#[derive(Debug)]
pub struct RouteTally {
    /// Whose sessions these are.
    pub name: RouteName,
    /// Sessions that were assigned here.
    pub opened: Count,
    /// Sessions that are open now (gauge).
    pub open: Count,
    /// Ended sessions by reason, in the order of [`EndReason::ALL`].
    pub ended: [Count; EndReason::ALL.len()],
    /// Of those that ended as finished or half-closed: whose backend had finished first.
    pub finished_by_backend: Count,
    /// Bytes the backend took.
    pub up_bytes: Count,
    /// Bytes the client took.
    pub down_bytes: Count,
    /// Attempts to connect that failed.
    pub connect_failed: Count,
    /// How the last of those ended: the number of its [`EndReason`] and 1; 0: there was none. No counter of events.
    pub unreached: Count,
    /// From an attempt to connect until the backend accepted.
    pub connect: Histogram<19>,
    /// From client bytes forwarded to the first backend bytes after them.
    pub turn: Histogram<19>,
    /// From accept to the last byte.
    pub duration: Histogram<12>,
}

impl RouteTally {
    /// All zero.
    #[must_use]
    pub fn new(name: RouteName) -> Self {
        Self {
            name,
            opened: Count::default(),
            open: Count::default(),
            ended: std::array::from_fn(|_| Count::default()),
            finished_by_backend: Count::default(),
            up_bytes: Count::default(),
            down_bytes: Count::default(),
            connect_failed: Count::default(),
            unreached: Count::default(),
            connect: Histogram::new(&TURN_BOUNDS_NS),
            turn: Histogram::new(&TURN_BOUNDS_NS),
            duration: Histogram::new(&SESSION_BOUNDS_NS),
        }
    }
}

/// One shard's counters, as its readers hold them.
#[derive(Debug, Default)]
pub struct Tally {
    /// The shard's own.
    pub shard: ShardTally,
    /// Its routes; only ever grows. Locked when a session meets a new route and when somebody reads, never per message.
    routes: Mutex<Vec<Arc<RouteTally>>>,
}

impl Tally {
    /// The counters of `name` on this shard, made if need be.
    #[must_use]
    pub fn route(&self, name: &RouteName) -> Arc<RouteTally> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.iter().find(|route| route.name == *name) {
            return Arc::clone(route);
        }
        let route = Arc::new(RouteTally::new(name.clone()));
        routes.push(Arc::clone(&route));
        route
    }

    /// All routes this shard has met.
    #[must_use]
    pub fn routes(&self) -> Vec<Arc<RouteTally>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_puts_a_bound_into_its_own_bucket_and_the_rest_above() {
        let h = Histogram::new(&TURN_BOUNDS_NS);
        for ns in [1, 10_000, 10_001, u64::MAX / 2] {
            h.record(ns);
        }
        let (buckets, above, _) = h.read();
        let counts: Vec<u64> = buckets.map(|(_, n)| n).collect();
        assert_eq!((counts[0], counts[1], above), (2, 1, 1));
    }

    #[test]
    fn a_route_is_made_once() {
        let tally = Tally::default();
        let name = RouteName {
            listener: "l".into(),
            arm: Arm::Stable,
            pool: "p".into(),
            backend: "b".into(),
        };
        tally.route(&name).opened.add(2);
        tally.route(&name).opened.add(1);
        assert_eq!(tally.routes().len(), 1);
        assert_eq!(tally.routes()[0].opened.get(), 3);
    }
}
