//! Whether a backend can be reached: totals in, and what is to be said of it, on change alone.
//!
//! It cannot where a look finds attempts that failed and none that succeeded since the look before. It can again with
//! the first that succeeds. What was said holds for [`limits::REACH_HOLD_MS`] at least, so that a backend that comes
//! and goes is no line a second.

use crate::config::limits;
use crate::time::Time;

/// What sessions met at one backend, since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts to connect that succeeded.
    pub reached: u64,
    /// Attempts that failed.
    pub failed: u64,
}

/// What is to be said of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It cannot be reached; so many attempts have failed since the look before.
    Lost(u64),
    /// It can be reached again.
    Found,
}

/// What is remembered of one backend.
#[derive(Debug, Default)]
pub struct Reach {
    before: Totals,
    /// What the last look that saw an attempt found; the number of failures where none succeeded.
    lost: Option<u64>,
    /// Whether it was said that it cannot be reached, and when it was last said what it is.
    told: bool,
    told_at: Option<Time>,
}

impl Reach {
    /// Nothing is known yet, and these totals are of before.
    #[must_use]
    pub fn since(before: Totals) -> Self {
        Self { before, ..Self::default() }
    }

    /// Takes the totals of this moment.
    pub const fn look(&mut self, totals: Totals) {
        let reached = totals.reached.saturating_sub(self.before.reached);
        let failed = totals.failed.saturating_sub(self.before.failed);
        self.before = totals;
        if reached > 0 {
            self.lost = None;
        } else if failed > 0 {
            self.lost = Some(failed);
        }
    }

    /// What is to be said now, if anything; it counts as said.
    pub fn news(&mut self, now: Time) -> Option<News> {
        let held = self.told_at.is_some_and(|at| now < at.plus_ms(limits::REACH_HOLD_MS));
        if held || self.lost.is_some() == self.told {
            return None;
        }
        (self.told, self.told_at) = (self.lost.is_some(), Some(now));
        Some(self.lost.map_or(News::Found, News::Lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said over looks a second apart, each with what was reached and what failed in that second.
    fn said(seconds: &[(u64, u64)]) -> Vec<(usize, News)> {
        let (mut reach, mut totals, mut said) = (Reach::default(), Totals::default(), vec![]);
        for (second, (reached, failed)) in seconds.iter().enumerate() {
            totals.reached += reached;
            totals.failed += failed;
            reach.look(totals);
            let news = reach.news(Time(second as u64 * 1_000_000_000));
            said.extend(news.map(|news| (second, news)));
        }
        said
    }

    #[test]
    fn it_is_said_once_that_a_backend_is_lost_and_once_that_it_is_found() {
        assert_eq!(said(&[(0, 0), (5, 0), (0, 0)]), [], "all is well");
        let outage = [[(3, 0), (0, 2)].as_slice(), &[(0, 1); 20], &[(0, 0); 5], &[(1, 0)]].concat();
        assert_eq!(said(&outage), [(1, News::Lost(2)), (27, News::Found)]);
        assert_eq!(said(&[(9, 1), (9, 9)]), [], "it can be reached, though not always");
    }

    #[test]
    fn a_backend_that_comes_and_goes_is_no_line_a_second() {
        let flaps: Vec<_> =
            (0..100).map(|second| if second % 2 == 0 { (0, 1) } else { (1, 0) }).collect();
        let lines = said(&flaps);
        assert!((2..=10).contains(&lines.len()), "{lines:?}");
        assert!(lines.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 10), "{lines:?}");
    }
}
