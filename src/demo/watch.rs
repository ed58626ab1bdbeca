//! From what the flow, the engines and Ringway's board say to a [`View`]: differences since the second before.

use super::flow::Facts;
use super::histogram::Reading;
use super::table::{ArmRow, SHARE_WINDOW_S, View};
use crate::control::board::Board;
use crate::event::Arm;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is known of one arm at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ArmFacts {
    /// Promised share of new sessions, in percent.
    pub(super) wanted_percent: f64,
    /// Sessions open now.
    pub(super) open: u64,
    /// Sessions opened since the start.
    pub(super) opened: u64,
    /// Requests its engine has handled since the start.
    pub(super) orders: u64,
}

/// All that is known at one moment, arms in the order of [`Arm::ALL`].
#[derive(Debug, Clone, Default)]
pub(super) struct Moment {
    pub(super) flow: Facts,
    pub(super) arms: [ArmFacts; 2],
    pub(super) path: Option<(&'static str, String)>,
}

/// Remembers what differences need.
#[derive(Debug)]
pub(super) struct Watch {
    started: Instant,
    last: Instant,
    answered: u64,
    turn: Reading,
    orders: [u64; 2],
    /// Sessions opened, by arm, at the last few moments; the oldest first.
    opened: VecDeque<[u64; 2]>,
}

impl Watch {
    /// Begins now, with nothing seen.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            last: now,
            answered: 0,
            turn: Reading::default(),
            orders: [0; 2],
            opened: VecDeque::from([[0; 2]]),
        }
    }

    /// What is to be shown at `now`.
    pub(super) fn look(&mut self, now: Instant, moment: &Moment) -> View {
        let passed = now.duration_since(self.last);
        let turn = moment.flow.turn.since(&self.turn);
        let quantile_us = |q| turn.quantile_ns(q).map(|ns| ns / 1000.0);
        let oldest = self.opened.front().copied().unwrap_or_default();
        let opened = moment.arms.map(|arm| arm.opened);
        let lately = [0, 1].map(|arm| opened[arm].saturating_sub(oldest[arm]));
        let row = |(at, arm): (usize, &Arm)| {
            let facts = &moment.arms[at];
            ArmRow {
                label: arm.label(),
                wanted_percent: facts.wanted_percent,
                share_percent: share_percent(lately[at], lately[0] + lately[1]),
                open: facts.open,
                opened: facts.opened,
                orders_per_s: per_second(facts.orders.saturating_sub(self.orders[at]), passed),
            }
        };
        let view = View {
            elapsed_s: (now.duration_since(self.started) + Duration::from_millis(500)).as_secs(),
            orders_per_s: per_second(moment.flow.answered.saturating_sub(self.answered), passed),
            p50_us: quantile_us(0.5),
            p99_us: quantile_us(0.99),
            answered: moment.flow.answered,
            rejected: moment.flow.rejected,
            errors: moment.flow.errors,
            last_error: moment.flow.last_error.clone(),
            arms: Arm::ALL.iter().enumerate().map(row).collect(),
            path: moment.path.clone(),
        };
        self.last = now;
        self.answered = moment.flow.answered;
        self.turn.clone_from(&moment.flow.turn);
        self.orders = moment.arms.map(|arm| arm.orders);
        self.opened.push_back(opened);
        if self.opened.len() > SHARE_WINDOW_S {
            self.opened.pop_front();
        }
        view
    }
}

/// What Ringway's board says of the arms of `listener`; `orders` is what their engines have handled.
pub(super) fn arms(board: &Board, listener: &str, orders: [u64; 2]) -> [ArmFacts; 2] {
    let snapshot = board.snapshot.load();
    let canary = snapshot.listener(listener).map_or(0.0, |(_, l)| l.canary_percent.as_f64());
    let wanted = [100.0 - canary, canary];
    let mut arms = [0, 1].map(|at| ArmFacts {
        wanted_percent: wanted[at],
        orders: orders[at],
        ..ArmFacts::default()
    });
    for route in board.shards().iter().flat_map(|shard| shard.tally.routes()) {
        if *route.name.listener == *listener {
            let arm = &mut arms[usize::from(route.name.arm == Arm::Canary)];
            arm.open += route.open.get();
            arm.opened += route.opened.get();
        }
    }
    arms
}

fn share_percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

fn per_second(count: u64, passed: Duration) -> u64 {
    let ns = u128::from(count) * 1_000_000_000 / passed.as_nanos().max(1);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::board::ShardEntry;
    use crate::demo::clock::now;
    use crate::driver::Kind;
    use crate::policy::snapshot::Snapshot;
    use crate::tally::{RouteName, Tally};
    use std::sync::Arc;

    fn moment(answered: u64, opened: [u64; 2]) -> Moment {
        let arm = |opened| ArmFacts { opened, ..ArmFacts::default() };
        let flow = Facts { answered, ..Facts::default() };
        Moment { flow, arms: opened.map(arm), path: None }
    }

    #[test]
    fn rates_are_of_the_time_that_passed() {
        let start = now();
        let mut watch = Watch::new(start);
        let first = watch.look(start + Duration::from_secs(1), &moment(1000, [0; 2]));
        let late = watch.look(start + Duration::from_secs(3), &moment(2000, [0; 2]));
        assert_eq!((first.orders_per_s, late.orders_per_s), (1000, 500));
        assert_eq!((late.elapsed_s, late.answered), (3, 2000));
    }

    #[test]
    fn a_share_forgets_what_was_opened_before_its_window() {
        let start = now();
        let mut watch = Watch::new(start);
        let mut opened = [0, 0];
        let mut share = |watch: &mut Watch, second: u64, add: [u64; 2]| {
            opened = [opened[0] + add[0], opened[1] + add[1]];
            let view = watch.look(start + Duration::from_secs(second), &moment(0, opened));
            view.arms[1].share_percent
        };
        assert_eq!(share(&mut watch, 1, [0, 0]), None);
        assert_eq!(share(&mut watch, 2, [9, 1]), Some(10.0));
        for second in 3..=11 {
            share(&mut watch, second, [1, 1]);
        }
        assert_eq!(share(&mut watch, 12, [1, 1]), Some(50.0), "after a change of the percent");
    }

    #[test]
    fn arms_are_added_up_over_shards_and_backends_of_the_listener_alone() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = crate::demo::config([listen, listen]);
        let board = Board::new(Snapshot::new(config, None));
        for id in 0..2 {
            let tally = Arc::new(Tally::default());
            for (listener, arm, opened) in
                [("orders", Arm::Stable, 9), ("orders", Arm::Canary, 1), ("else", Arm::Canary, 5)]
            {
                let (pool, backend) = ("p".into(), "b".into());
                let name = RouteName { listener: listener.into(), arm, pool, backend };
                tally.route(&name).opened.add(opened);
                tally.route(&name).open.add(1);
            }
            board.add_shard(Arc::new(ShardEntry::new(id, Kind::Epoll, None, tally)));
        }
        let expected = [(90.0, 18, 7), (10.0, 2, 3)].map(|(wanted_percent, opened, orders)| {
            ArmFacts { wanted_percent, open: 2, opened, orders }
        });
        assert_eq!(arms(&board, "orders", [7, 3]), expected);
    }
}
