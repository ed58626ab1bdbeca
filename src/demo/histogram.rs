//! Turn times, to be asked for quantiles: log-linear buckets, each about 3 % wide.
//!
//! Prometheus has its own, coarser buckets in [`crate::tally`]; a quantile read from 1-2-5 bounds may be off by half.

use crate::tally::Count;

/// Steps of one octave, as a power of two: a bucket is 1/32 of its lower bound wide.
const STEP_BITS: u32 = 5;
const STEPS: u64 = 1 << STEP_BITS;
/// Values from here on, 68 seconds in nanoseconds, share the last bucket.
const TOP_BITS: u32 = 36;
const BUCKETS: usize = ((TOP_BITS - STEP_BITS + 1) << STEP_BITS) as usize;

/// A histogram of nanoseconds with one writer and any number of readers.
#[derive(Debug)]
pub struct Histogram(Box<[Count]>);

/// What some histograms held together at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading(Vec<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| Count::default()).collect())
    }
}

impl Histogram {
    /// Takes one value, as the only writer.
    pub fn record(&self, ns: u64) {
        self.0[bucket(ns)].add(1);
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self(vec![0; BUCKETS])
    }
}

impl Reading {
    /// Adds what `histogram` holds now.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, count) in self.0.iter_mut().zip(&histogram.0) {
            *sum += count.get();
        }
    }

    /// What came since an earlier reading of the same histograms.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().zip(&earlier.0).map(|(now, then)| now.saturating_sub(*then)).collect())
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The value, in nanoseconds, that a share of `q` (0 to 1) of all values does not exceed; within a bucket values
    /// are taken to be spread evenly. `None` where there is no value.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let wanted = (q.clamp(0.0, 1.0) * count as f64).max(1.0);
        let mut below = 0;
        for (at, &here) in self.0.iter().enumerate().filter(|&(_, &here)| here > 0) {
            if (below + here) as f64 >= wanted {
                let (from, to) = (lower(at) as f64, lower(at + 1) as f64);
                return Some(from + (to - from) * (wanted - below as f64) / here as f64);
            }
            below += here;
        }
        None
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.min((1 << TOP_BITS) - 1);
    let octave = (ns | STEPS).ilog2() - STEP_BITS;
    // Below one full octave of steps values are their own bucket; each octave above adds as many steps.
    let at = (u64::from(octave) << STEP_BITS) + (ns >> octave);
    usize::try_from(at).expect("less than BUCKETS")
}

const fn lower(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let octave = (bucket >> STEP_BITS).saturating_sub(1);
    (bucket - (octave << STEP_BITS)) << octave
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_right_within_a_few_percent() {
        let histogram = Histogram::default();
        for us in 1..=10_000 {
            histogram.record(us * 1000);
        }
        let mut reading = Reading::default();
        reading.add(&histogram);
        assert_eq!(reading.count(), 10_000);
        for (q, exact_us) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.001, 10.0), (1.0, 10_000.0)] {
            let us = reading.quantile_ns(q).unwrap() / 1000.0;
            assert!((us / exact_us - 1.0).abs() < 0.03, "{q}: {us} against {exact_us}");
        }
    }

    #[test]
    fn a_reading_since_another_holds_only_what_came_between() {
        let histogram = Histogram::default();
        histogram.record(1_000);
        let mut before = Reading::default();
        before.add(&histogram);
        histogram.record(1_000_000);
        let mut after = Reading::default();
        after.add(&histogram);
        let between = after.since(&before);
        assert_eq!(between.count(), 1);
        assert!(between.quantile_ns(0.5).unwrap() > 900_000.0);
        assert_eq!(before.since(&before).quantile_ns(0.5), None);
    }

    #[test]
    fn what_is_off_the_scale_is_counted_at_its_end() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket(0), 0);
    }

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket_and_buckets_are_narrow(ns in 0_u64..1 << TOP_BITS) {
            let at = bucket(ns);
            prop_assert!(lower(at) <= ns && ns < lower(at + 1), "{} in {}", ns, at);
            prop_assert!(lower(at + 1) - lower(at) <= 1 + lower(at) / STEPS);
        }
    }
}
