//! Points on a shard's monotonic clock, as plain numbers: time is an argument everywhere above the driver.

#![forbid(unsafe_code)]

use std::ops::Add;

/// Nanoseconds since some moment before the process began. Ordered; only differences mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(pub u64);

impl Time {
    /// Nanoseconds from `earlier` to this; 0 if `earlier` is later.
    #[must_use]
    pub const fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This many milliseconds later.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }
}

impl Add<u64> for Time {
    type Output = Self;
    /// This many nanoseconds later.
    fn add(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}
