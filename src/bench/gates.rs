//! From rounds to verdicts: medians, ratios with their interval, and whether a gate holds. Pure.
//!
//! Rounds are compared in pairs, one contender's with the other's of the same round, for what a neighbour on the
//! machine takes away lasts longer than a round and falls on both. The interval is where the median of those ratios
//! lies with 95 % confidence, by their order alone: no shape of the noise is assumed, and nothing is drawn by chance.

/// Fewest rounds of which least and most hold the median with 95 % confidence (1 - 2 / 2^6 = 0.97): with fewer, no gate
/// is said to hold.
pub(super) const ROUNDS_SURE: usize = 6;
/// How often the median may lie beyond one end of the interval.
const BEYOND: f64 = 0.025;
/// Gates of which so many must hold for io_uring to be worth it.
pub(super) const GATES_WANTED: usize = 2;

/// How one contender compares to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    /// Median of the rounds' ratios.
    pub(super) median: f64,
    /// The interval's ends.
    pub(super) low: f64,
    /// The interval's ends.
    pub(super) high: f64,
    /// Pairs of rounds.
    pub(super) rounds: usize,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    /// Time and CPU.
    Less,
    /// Work in a second.
    More,
}

/// What became of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The whole interval is beyond it.
    Yes,
    /// The whole interval falls short of it.
    No,
    /// The interval overlaps it: a no, for want of proof.
    Noise,
    /// The rounds there were are beyond it, but too few to prove it: a no.
    Few,
    /// It was not measured: a no.
    Unmeasured,
}

impl Verdict {
    /// As the report says it.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Noise => "no (undecided by noise)",
            Self::Few => "no (too few rounds)",
            Self::Unmeasured => "no (not measured)",
        }
    }
}

/// Whether `ratio` is better than 1 by `percent`.
pub(super) fn judge(ratio: Option<Ratio>, better: Better, percent: f64) -> Verdict {
    let Some(ratio) = ratio else { return Verdict::Unmeasured };
    let passes = |x: f64| match better {
        Better::Less => x <= bound(better, percent),
        Better::More => x >= bound(better, percent),
    };
    match (passes(ratio.low), passes(ratio.high)) {
        (true, true) if ratio.rounds < ROUNDS_SURE => Verdict::Few,
        (true, true) => Verdict::Yes,
        (false, false) => Verdict::No,
        _ => Verdict::Noise,
    }
}

/// Whether `ratio` is one of times that are no longer than the other's: its interval is not wholly above 1. There is
/// nothing to win here, only something not to lose, so that noise is no reason for a no.
pub(super) fn no_slower(ratio: Option<Ratio>) -> Verdict {
    match ratio {
        None => Verdict::Unmeasured,
        Some(ratio) if ratio.low > 1.0 => Verdict::No,
        Some(ratio) if ratio.rounds < ROUNDS_SURE => Verdict::Few,
        Some(_) => Verdict::Yes,
    }
}

/// The ratio that is better than 1 by `percent`.
pub(super) fn bound(better: Better, percent: f64) -> f64 {
    match better {
        Better::Less => 1.0 - percent / 100.0,
        Better::More => 1.0 + percent / 100.0,
    }
}

/// The middle of some values. `None` where there is none.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// How far the middle half of some values spreads, as a part of their median. `None` where there is no median above 0.
pub(super) fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values).filter(|median| *median > 0.0)?;
    Some((quantile(values, 0.75)? - quantile(values, 0.25)?) / middle)
}

/// The value a share of `q` does not exceed, between two values in proportion. `None` where there is none.
fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = q * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to `last`")]
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64))
}

/// How `ours` compares to `theirs`, round by round. `None` where no round of both has a value above 0.
pub(super) fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    let sound = |x: f64| x.is_finite() && x > 0.0;
    let pairs = ours.iter().zip(theirs).filter(|(a, b)| sound(**a) && sound(**b));
    let mut ratios: Vec<f64> = pairs.map(|(a, b)| a / b).collect();
    ratios.sort_by(f64::total_cmp);
    let skip = beyond(ratios.len());
    let (low, high) = (*ratios.get(skip)?, *ratios.get(ratios.len() - 1 - skip)?);
    Some(Ratio { median: median(&ratios)?, low, high, rounds: ratios.len() })
}

/// How many of `rounds` sorted values may be left out at each end, so that the rest still holds the median with 95 %
/// confidence: each value is below the median with a chance of a half, so their number is binomial.
fn beyond(rounds: usize) -> usize {
    let (mut chance, mut sum, mut skip) = (0.5_f64.powf(rounds as f64), 0.0, 0);
    for k in 0..rounds / 2 {
        sum += chance;
        if sum > BEYOND {
            break;
        }
        skip = k;
        chance *= (rounds - k) as f64 / (k + 1) as f64;
    }
    skip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(spread(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(2.0 / 3.0));
        assert_eq!(spread(&[0.0, 0.0]), None);
    }

    /// From tables of the sign test: the ranks of a 95 % interval of the median.
    #[test]
    fn as_many_are_left_out_as_the_binomial_allows() {
        for (rounds, skip) in
            [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5), (30, 9), (100, 39)]
        {
            assert_eq!(beyond(rounds), skip, "{rounds} rounds");
        }
    }

    #[test]
    fn rounds_are_compared_in_pairs() {
        // A neighbour halves what both do in half of the rounds: the ratio does not feel it.
        let theirs = [100.0, 50.0, 100.0, 50.0, 100.0, 50.0];
        let ours = theirs.map(|x| x * 1.25);
        let found = ratio(&ours, &theirs).unwrap();
        assert_eq!(found, Ratio { median: 1.25, low: 1.25, high: 1.25, rounds: 6 });
        assert_eq!(ratio(&[1.0, 0.0], &[2.0, 1.0]).unwrap().rounds, 1, "0 is no measurement");
        assert_eq!(ratio(&[], &[]), None);
        assert_eq!(ratio(&[1.0], &[f64::NAN]), None);
    }

    #[test]
    fn the_interval_leaves_out_the_outliers() {
        let theirs = [1.0; 12];
        let ours = [9.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 0.1, 1.0, 8.0];
        let found = ratio(&ours, &theirs).unwrap();
        assert_eq!((found.low, found.high), (1.1, 1.8));
        assert!((found.median - 1.45).abs() < 1e-12);
    }

    #[test]
    fn a_gate_holds_only_where_the_whole_interval_does() {
        let of = |low, high, rounds| Some(Ratio { median: (low + high) / 2.0, low, high, rounds });
        for (ratio, better, percent, verdict) in [
            (of(0.80, 0.90, 20), Better::Less, 10.0, Verdict::Yes),
            (of(0.80, 0.91, 20), Better::Less, 10.0, Verdict::Noise),
            (of(0.91, 1.10, 20), Better::Less, 10.0, Verdict::No),
            (of(1.25, 1.40, 20), Better::More, 25.0, Verdict::Yes),
            (of(1.20, 1.40, 20), Better::More, 25.0, Verdict::Noise),
            (of(0.70, 1.24, 20), Better::More, 25.0, Verdict::No),
            (of(0.50, 0.60, 5), Better::Less, 10.0, Verdict::Few),
            (of(0.95, 0.99, 1), Better::Less, 10.0, Verdict::No),
            (None, Better::More, 20.0, Verdict::Unmeasured),
        ] {
            assert_eq!(judge(ratio, better, percent), verdict, "{ratio:?} {better:?} {percent}");
        }
    }

    #[test]
    fn only_who_is_shown_to_be_slower_is() {
        let of = |low, high, rounds| no_slower(Some(Ratio { median: 1.05, low, high, rounds }));
        assert_eq!(of(1.001, 1.1, 12), Verdict::No);
        assert_eq!([of(1.0, 1.1, 12), of(0.5, 2.0, 6)], [Verdict::Yes; 2]);
        assert_eq!(of(0.9, 1.1, ROUNDS_SURE - 1), Verdict::Few);
        assert_eq!(no_slower(None), Verdict::Unmeasured);
    }
}
