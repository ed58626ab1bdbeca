//! Chance, from a seed: the same seed gives the same run.

/// A probability, in parts of 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rate(u64);

impl Rate {
    /// It does not happen.
    pub const NEVER: Self = Self(0);
    /// It happens every time.
    pub const ALWAYS: Self = Self(1 << 32);
    /// As often as not.
    pub const HALF: Self = Self(1 << 31);

    /// Once in `n` times; `n` is at least 1.
    #[must_use]
    pub const fn one_in(n: u64) -> Self {
        Self((1 << 32) / n)
    }
}

/// Where chance comes from (splitmix64): small, fast, and good enough to choose faults.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// All that follows is decided by `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Below `n`, which is at least 1.
    pub const fn below(&mut self, n: u64) -> u64 {
        ((self.draw() as u128 * n as u128) >> 64) as u64
    }

    /// An index below `n`, which is at least 1.
    pub fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).expect("it is below a usize")
    }

    /// From `low` to `high`, both included.
    pub const fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// From `low` (at least 1) to `high`, both included, each doubling as likely as the next: 1 to 2 as 1000 to 2000.
    pub fn log_within(&mut self, low: u64, high: u64) -> u64 {
        let doublings = self.within(u64::from(low.ilog2()), u64::from(high.ilog2()));
        let least = 1 << doublings;
        self.within(least, least * 2 - 1).clamp(low, high)
    }

    /// Whether something happens that happens at `rate`.
    pub fn chance(&mut self, rate: Rate) -> bool {
        rate != Rate::NEVER && self.draw() >> 32 < rate.0
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// What was drawn so far, as a number: two runs that drew the same have the same.
    #[must_use]
    pub const fn state(&self) -> u64 {
        self.0
    }
}

/// Scatters a number over all 64 bits.
#[must_use]
pub(super) const fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept() {
        let mut rng = Rng::new(1);
        let hits = (0..100_000).filter(|_| rng.chance(Rate::one_in(10))).count();
        assert!((9_500..10_500).contains(&hits), "{hits} of 100000 at one in ten");
        assert!((0..1000).all(|_| rng.chance(Rate::ALWAYS) && !rng.chance(Rate::NEVER)));
    }

    #[test]
    fn ranges_are_kept_and_reached() {
        let mut rng = Rng::new(2);
        let drawn: Vec<u64> = (0..10_000).map(|_| rng.log_within(3, 1000)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&3), Some(&1000)));
        assert!(drawn.iter().filter(|n| **n < 60).count() > 3000, "small numbers are as likely");
    }
}
