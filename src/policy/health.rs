//! Whether a shard's ring still deserves its sessions: totals in, a verdict out.
//!
//! One bad second is weather. What counts is what the last [`limits::RING_LOOKS`] looks (a second each) saw together:
//! an overflow that comes back look after look, calls into the kernel that fail, endings that had to be forced. The
//! verdict falls once; afterwards the shard stays on epoll until somebody asks for io_uring or the hold is over.

use crate::config::limits;

/// What is wrong with a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its completion queue keeps overflowing.
    CqOverflow,
    /// The kernel refuses to be entered.
    EnterFailed,
    /// Ending sessions do not get their completions.
    Watchdog,
    /// Its shard failed.
    ShardFailed,
}

impl Fault {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] =
        [Self::CqOverflow, Self::EnterFailed, Self::Watchdog, Self::ShardFailed];

    /// The word used in logs, metrics and status.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::CqOverflow => "cq_overflow",
            Self::EnterFailed => "enter_failed",
            Self::Watchdog => "watchdog",
            Self::ShardFailed => "shard_failed",
        }
    }
}

/// Totals of one ring, since its shard began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Turns that found the completion queue overflown.
    pub cq_overflow: u64,
    /// Calls into the kernel that failed for no reason that passes by itself.
    pub enter_failed: u64,
    /// Ending sessions whose operations had to be cancelled by the watchdog.
    pub watchdog: u64,
}

/// What is remembered of one ring.
#[derive(Debug)]
pub struct Ring {
    /// The totals at the last looks; the oldest is overwritten.
    looks: [Totals; limits::RING_LOOKS],
    /// Whether the look that ended there saw an overflow.
    overflown: [bool; limits::RING_LOOKS],
    at: usize,
}

impl Ring {
    /// A ring that was never looked at. Whatever happened before `now` is forgiven.
    #[must_use]
    pub const fn new(now: Totals) -> Self {
        Self { looks: [now; limits::RING_LOOKS], overflown: [false; limits::RING_LOOKS], at: 0 }
    }

    /// Takes the totals of one more second. What is wrong, if anything.
    pub fn look(&mut self, now: Totals) -> Option<Fault> {
        let before = self.looks[(self.at + limits::RING_LOOKS - 1) % limits::RING_LOOKS];
        let oldest = std::mem::replace(&mut self.looks[self.at], now);
        self.overflown[self.at] = now.cq_overflow > before.cq_overflow;
        self.at = (self.at + 1) % limits::RING_LOOKS;
        let overflown = self.overflown.iter().filter(|overflown| **overflown).count();
        if now.enter_failed.saturating_sub(oldest.enter_failed) >= limits::RING_ENTER_FAILED {
            Some(Fault::EnterFailed)
        } else if now.watchdog.saturating_sub(oldest.watchdog) >= limits::RING_WATCHDOG {
            Some(Fault::Watchdog)
        } else {
            (overflown >= limits::RING_OVERFLOWN_LOOKS).then_some(Fault::CqOverflow)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found after each of these looks.
    fn found(looks: impl IntoIterator<Item = Totals>) -> Vec<Option<Fault>> {
        let mut ring = Ring::new(Totals::default());
        looks.into_iter().map(|totals| ring.look(totals)).collect()
    }

    fn overflows(cq_overflow: u64) -> Totals {
        Totals { cq_overflow, ..Totals::default() }
    }

    #[test]
    fn a_burst_of_overflows_is_weather_and_five_seconds_of_them_are_not() {
        let burst = found((0..30).map(|second| overflows(if second < 3 { 0 } else { 100_000 })));
        assert!(burst.iter().all(Option::is_none), "{burst:?}");
        let lasting = found((1..=10).map(overflows));
        let first = lasting.iter().position(Option::is_some);
        assert_eq!(first, Some(limits::RING_OVERFLOWN_LOOKS - 1));
        assert_eq!(lasting[limits::RING_OVERFLOWN_LOOKS - 1], Some(Fault::CqOverflow));
    }

    #[test]
    fn overflows_that_are_rare_are_forgiven() {
        let one_in_three = found((0..60).map(|second| overflows(second / 3)));
        assert!(one_in_three.iter().all(Option::is_none), "{one_in_three:?}");
    }

    #[test]
    fn failures_count_together_within_the_window_only() {
        let failed = |enter_failed| Totals { enter_failed, ..Totals::default() };
        let at_once = limits::RING_ENTER_FAILED;
        assert_eq!(found([failed(at_once)]), [Some(Fault::EnterFailed)]);
        let spread = limits::RING_LOOKS as u64;
        let slow = found((0..10 * spread).map(|second| failed(second / spread)));
        assert!(slow.iter().all(Option::is_none), "one in a window: {slow:?}");
    }

    #[test]
    fn the_watchdog_alone_is_enough() {
        let hit = |watchdog| Totals { watchdog, ..Totals::default() };
        let each_second = found((1..=limits::RING_WATCHDOG).map(hit));
        assert_eq!(each_second.last(), Some(&Some(Fault::Watchdog)));
        assert!(each_second.iter().rev().skip(1).all(Option::is_none), "{each_second:?}");
    }

    #[test]
    fn what_was_before_is_forgiven() {
        let bad = Totals { cq_overflow: 50, enter_failed: 50, watchdog: 50 };
        let mut ring = Ring::new(bad);
        assert!((0..100).all(|_| ring.look(bad).is_none()));
    }
}
