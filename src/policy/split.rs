//! Stable or canary: exact by counting, not by chance.
//!
//! A listener's [`Split`] adds the canary's percent to one running sum for each session, whichever shard it came to;
//! the session during which the sum passes a whole goes to the canary. So over any run of sessions the canary's count
//! is off from its share by less than one, also where the percent changed on the way. The sum outlives the snapshots.

use crate::config::Percent;
use crate::event::Arm;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One listener's running sum, in hundredths of a percent. Shared by all shards.
#[derive(Debug, Default)]
pub struct Split(AtomicU64);

impl Split {
    /// The arm of the next session.
    pub fn assign(&self, canary: Percent) -> Arm {
        if canary == Percent::ZERO {
            return Arm::Stable;
        }
        let share = u64::from(canary.hundredths());
        let before = self.0.fetch_add(share, Relaxed);
        let whole = u64::from(Percent::WHOLE);
        if before % whole + share >= whole { Arm::Canary } else { Arm::Stable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canaries(split: &Split, percent: f64, sessions: usize) -> usize {
        let percent = Percent::from_f64(percent).unwrap();
        (0..sessions).filter(|_| split.assign(percent) == Arm::Canary).count()
    }

    #[test]
    fn five_percent_of_a_thousand_is_fifty_and_then_a_quarter_is_250() {
        let split = Split::default();
        assert_eq!(canaries(&split, 5.0, 1000), 50);
        assert_eq!(canaries(&split, 25.0, 1000), 250);
        assert_eq!(canaries(&split, 0.0, 1000), 0);
        assert_eq!(canaries(&split, 100.0, 1000), 1000);
    }

    #[test]
    fn canaries_are_spread_not_bunched() {
        let split = Split::default();
        let percent = Percent::from_f64(1.0).unwrap();
        let hits: Vec<usize> =
            (0..10_000).filter(|_| split.assign(percent) == Arm::Canary).collect();
        assert!(hits.windows(2).all(|w| w[1] - w[0] == 100), "{hits:?}");
    }

    proptest! {
        #[test]
        fn any_run_is_off_by_less_than_one(
            before in 0_usize..500,
            run in 1_usize..2000,
            hundredths in 0_u16..=10_000,
        ) {
            let split = Split::default();
            let percent = Percent::from_hundredths(hundredths).unwrap();
            for _ in 0..before {
                split.assign(percent);
            }
            let got = (0..run).filter(|_| split.assign(percent) == Arm::Canary).count();
            let exact = run as f64 * f64::from(hundredths) / 10_000.0;
            prop_assert!((got as f64 - exact).abs() < 1.0, "{got} against {exact}");
        }
    }
}
