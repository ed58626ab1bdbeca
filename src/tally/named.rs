//! Counters by name: how they go to another process, and how those of several add up.

use super::{Count, Histogram, RouteTally, ShardTally, Tally};

impl<const N: usize> Histogram<N> {
    /// Adds another's values, as the only writer.
    pub fn merge(&self, other: &Self) {
        self.buckets.iter().zip(&other.buckets).for_each(|(own, more)| own.add(more.get()));
        self.above.add(other.above.get());
        self.sum_ns.add(other.sum_ns.get());
    }

    /// Adds `n` values up to `bound_ns`, or above all bounds where that is none of them; and `sum_ns` to their sum.
    pub fn put(&self, bound_ns: Option<u64>, n: u64, sum_ns: u64) {
        let at = bound_ns.and_then(|bound| self.bounds_ns.iter().position(|&b| b == bound));
        at.and_then(|at| self.buckets.get(at)).unwrap_or(&self.above).add(n);
        self.sum_ns.add(sum_ns);
    }
}

/// A counter, its name, and whether it is a total rather than a gauge.
pub type Named<'a> = (&'static str, bool, &'a Count);

/// Takes a tally apart in full, so that a new counter is not forgotten here: totals, gauges, and what is neither.
macro_rules! counts {
    ($tally:expr; totals: $($total:ident)*; gauges: $($gauge:ident)*; neither: $($other:ident)*) => {{
        let Self { $($total,)* $($gauge,)* $($other: _,)* } = $tally;
        vec![$((stringify!($total), true, $total),)* $((stringify!($gauge), false, $gauge),)*]
    }};
}

impl ShardTally {
    /// All but the histograms.
    #[must_use]
    pub fn counts(&self) -> Vec<Named<'_>> {
        counts!(self;
            totals: begun cpu_ns accepted placed_elsewhere accept_failed_exhausted accept_failed_other refused_full
                connect_retries spares_made spares_taken spares_ended spares_aged spares_unwanted spares_short
                spares_failed turns enters enter_failed completions sq_full cq_overflow no_buffers sends_blocked
                copied_bytes spliced_bytes spun_in_vain_ns freezes watchdog moves_out moves_in moves_failed
                moves_upgrade moves_opening moves_ending stale journal_dropped;
            gauges: sessions spares starved spilled_bytes buffers buffers_free;
            neither: looked_ns pause work next_id)
    }

    /// Nobody counts here any more: what is there now is nothing.
    pub fn close(&self) {
        self.counts()
            .iter()
            .filter(|(_, is_total, _)| !is_total)
            .for_each(|(.., count)| count.set(0));
    }

    /// Adds another's counts to these, as the only writer.
    pub fn merge(&self, other: &Self) {
        merge(&self.counts(), &other.counts());
        self.pause.merge(&other.pause);
        self.work.merge(&other.work);
    }
}

impl Tally {
    /// Adds another's counts to these, as the only writer.
    pub fn merge(&self, other: &Self) {
        self.shard.merge(&other.shard);
        let next_id = &self.shard.next_id;
        next_id.set(next_id.get().max(other.shard.next_id.get()));
        other.routes().iter().for_each(|route| self.route(&route.name).merge(route));
    }
}

impl RouteTally {
    /// All but the histograms and the reasons.
    #[must_use]
    pub fn counts(&self) -> Vec<Named<'_>> {
        counts!(self;
            totals: opened finished_by_backend up_bytes down_bytes connect_failed;
            gauges: open;
            neither: name unreached ended connect turn duration)
    }

    /// Adds another's counts to these, as the only writer.
    pub fn merge(&self, other: &Self) {
        merge(&self.counts(), &other.counts());
        if other.unreached.get() > 0 {
            self.unreached.set(other.unreached.get());
        }
        self.ended.iter().zip(&other.ended).for_each(|(own, more)| own.add(more.get()));
        self.connect.merge(&other.connect);
        self.turn.merge(&other.turn);
        self.duration.merge(&other.duration);
    }
}

fn merge(own: &[Named<'_>], other: &[Named<'_>]) {
    own.iter().zip(other).for_each(|((.., count), (.., more))| count.add(more.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_merging_adds_all() {
        let (one, two) = (ShardTally::default(), ShardTally::default());
        for (i, (.., count)) in one.counts().into_iter().enumerate() {
            count.add(i as u64 + 1);
        }
        one.pause.record(30_000);
        one.pause.put(Some(50_000), 2, 80_000);
        one.pause.put(None, 1, 1);
        two.merge(&one);
        two.merge(&one);
        for (i, (name, _, count)) in two.counts().into_iter().enumerate() {
            assert_eq!(count.get(), 2 * (i as u64 + 1), "{name}");
        }
        let (buckets, above, sum_ns) = two.pause.read();
        let filled: Vec<_> = buckets.filter(|(_, n)| *n > 0).collect();
        assert_eq!((filled, above, sum_ns), (vec![(50_000, 6)], 2, 220_002));
        let mut names: Vec<&str> = two.counts().into_iter().map(|(name, ..)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), two.counts().len());
    }
}
