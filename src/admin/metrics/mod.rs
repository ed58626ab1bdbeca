//! Tallies as Prometheus text.
//!
//! [`DEFINITIONS`](table::DEFINITIONS) names every metric once; `deploy/metrics.md` is that table for readers, and a
//! test holds the two together. Numbers are read while shards go on counting, so two of them may be a moment apart; a
//! histogram's count is the sum of its own buckets, so it never disagrees with itself.

mod facts;
mod process;
mod table;

use crate::control::board::Board;
use crate::tally::{self, Count, ShardTally};
use facts::{Facts, Route, Spread};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily};
use prometheus::{Encoder as _, TextEncoder, proto::MetricType};

/// The content type of [`text`].
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// One metric: what it is called and where its numbers come from.
struct Definition {
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Facts, &mut Samples),
}

/// The numbers of one metric.
struct Samples {
    kind: MetricType,
    names: &'static [&'static str],
    metrics: Vec<Metric>,
}

impl Samples {
    /// One number; `labels` are the values of the definition's labels, in their order.
    fn put(&mut self, labels: &[&str], value: f64) {
        let mut metric = self.labelled(labels);
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    fn put_spread(&mut self, labels: &[&str], spread: &Spread) {
        let mut below = 0;
        let buckets = spread.buckets.iter().map(|&(bound_ns, n)| {
            below += n;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(bound_ns));
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(below + spread.above);
        histogram.set_sample_sum(seconds(spread.sum_ns));
        let mut metric = self.labelled(labels);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn labelled(&self, labels: &[&str]) -> Metric {
        debug_assert_eq!(labels.len(), self.names.len(), "{:?}", self.names);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        Metric::from_label(self.names.iter().zip(labels).map(pair).collect())
    }

    /// One number a route.
    fn routes(&mut self, facts: &Facts, value: impl Fn(&Route) -> u64) {
        for route in &facts.routes {
            self.put(&route.labels(), value(route) as f64);
        }
    }

    /// One histogram a route.
    fn spreads(&mut self, facts: &Facts, spread: impl Fn(&Route) -> &Spread) {
        for route in facts.routes.iter().filter(|route| route.met) {
            self.put_spread(&route.labels(), spread(route));
        }
    }

    /// One number a shard.
    fn shards(&mut self, facts: &Facts, count: impl Fn(&ShardTally) -> &Count) {
        for shard in &facts.shards {
            let number = shard.id.to_string();
            let value = count(&shard.tally).get() as f64;
            self.put(&[&number, &shard.path], value);
        }
    }

    /// One time a shard, counted in nanoseconds.
    fn shard_seconds(&mut self, facts: &Facts, ns: impl Fn(&ShardTally) -> &Count) {
        for shard in &facts.shards {
            let number = shard.id.to_string();
            self.put(&[&number, &shard.path], seconds(ns(&shard.tally).get()));
        }
    }

    /// One histogram a shard.
    fn shard_spreads<const N: usize>(
        &mut self,
        facts: &Facts,
        spread: impl Fn(&ShardTally) -> &tally::Histogram<N>,
    ) {
        for shard in &facts.shards {
            let number = shard.id.to_string();
            let spread = Spread::of(spread(&shard.tally));
            self.put_spread(&[&number, &shard.path], &spread);
        }
    }

    /// One number a shard and case.
    fn shard_cases(&mut self, facts: &Facts, case: &str, count: impl Fn(&ShardTally) -> &Count) {
        for shard in &facts.shards {
            let number = shard.id.to_string();
            let value = count(&shard.tally).get() as f64;
            self.put(&[&number, &shard.path, case], value);
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Everything there is to scrape.
///
/// # Errors
/// What the encoder says, which would be a bug here: names are constants and the text goes to memory.
pub(super) fn text(board: &Board) -> Result<Vec<u8>, prometheus::Error> {
    let facts = Facts::read(board);
    let families: Vec<MetricFamily> =
        table::DEFINITIONS.iter().filter_map(|d| family(d, &facts)).collect();
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}

/// `None` where there is no number: a family without one is not valid text.
fn family(definition: &Definition, facts: &Facts) -> Option<MetricFamily> {
    let Definition { name, kind, labels, help, read } = *definition;
    let mut samples = Samples { kind, names: labels, metrics: Vec::new() };
    read(facts, &mut samples);
    if samples.metrics.is_empty() {
        return None;
    }
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(samples.metrics);
    Some(family)
}

#[cfg(test)]
mod tests;
