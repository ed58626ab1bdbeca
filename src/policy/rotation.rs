//! Which backend of a pool: weighted rotation, exact over every cycle and spread within it.
//!
//! The order of a cycle is laid out once, when a snapshot is built, by smooth weighted round robin: each step every
//! backend gains its weight, the richest is taken and pays the sum. Picking is then one shared counter and one look-up.

use crate::config::{Backend, limits};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How far a pool has rotated. Shared by all shards; outlives the snapshots.
#[derive(Debug, Default)]
pub struct Position(AtomicU64);

/// The order in which a pool's backends are taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Rotation(Vec<u16>);

impl Rotation {
    /// The cycle for these backends. Backends of weight 0 are not in it.
    #[must_use]
    pub fn new(backends: &[Backend]) -> Self {
        let common = backends.iter().fold(0, |gcd, b| greatest_common_divisor(gcd, b.weight));
        let weights: Vec<i64> =
            backends.iter().map(|b| i64::from(b.weight / common.max(1))).collect();
        let sum: i64 = weights.iter().sum();
        let mut credit = vec![0_i64; weights.len()];
        let mut cycle = Vec::new();
        for _ in 0..sum.min(i64::try_from(limits::ROTATION_MAX).unwrap_or(i64::MAX)) {
            for (have, gain) in credit.iter_mut().zip(&weights) {
                *have += gain;
            }
            let best = (0..weights.len())
                .filter(|&i| weights[i] > 0)
                .max_by_key(|&i| (credit[i], std::cmp::Reverse(i)));
            let Some(best) = best else { break };
            credit[best] -= sum;
            cycle.push(u16::try_from(best).expect("a pool has at most 256 backends"));
        }
        Self(cycle)
    }

    /// The next backend's index. `None` where no backend has weight.
    #[must_use]
    pub fn next(&self, position: &Position) -> Option<u16> {
        let len = u64::try_from(self.0.len()).unwrap_or(u64::MAX);
        if len == 0 {
            return None;
        }
        let at = position.0.fetch_add(1, Relaxed) % len;
        self.0.get(usize::try_from(at).unwrap_or(0)).copied()
    }

    /// A backend that is not in `tried`, looked for in the order of the cycle from a place of chance. `None`: all were.
    #[must_use]
    pub fn another(&self, position: &Position, tried: &[u16]) -> Option<u16> {
        let from = usize::try_from(position.0.load(Relaxed)).unwrap_or(0);
        (0..self.0.len())
            .map(|i| self.0[(from.wrapping_add(i)) % self.0.len()])
            .find(|backend| !tried.contains(backend))
    }
}

const fn greatest_common_divisor(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(weights: &[u16]) -> Vec<Backend> {
        let address = "127.0.0.1:1".parse().unwrap();
        weights.iter().map(|&weight| Backend { name: "b".into(), address, weight }).collect()
    }

    #[test]
    fn weights_are_exact_over_a_cycle_and_spread_within_it() {
        let rotation = Rotation::new(&backends(&[50, 10, 10]));
        assert_eq!(rotation, Rotation(vec![0, 0, 1, 0, 2, 0, 0]), "5:1:1 after the common factor");
    }

    #[test]
    fn a_backend_without_weight_is_never_taken() {
        let position = Position::default();
        let rotation = Rotation::new(&backends(&[0, 3]));
        assert!((0..10).all(|_| rotation.next(&position) == Some(1)));
        assert_eq!(Rotation::new(&backends(&[0, 0])).next(&position), None);
    }

    #[test]
    fn another_skips_what_was_tried() {
        let position = Position::default();
        let rotation = Rotation::new(&backends(&[1, 1, 1]));
        assert_eq!(rotation.another(&position, &[0, 2]), Some(1));
        assert_eq!(rotation.another(&position, &[0, 1, 2]), None);
    }
}
