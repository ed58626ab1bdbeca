//! When a shard looks for work without sleeping, and which sessions it then reads straight; pure.
//!
//! Waking a core that sleeps costs more than all else on the way of a message. So for a while after something moved
//! the shard does not sleep. A wait that nothing ended is paid from a budget that refills slowly, so a shard whose
//! traffic is too sparse for it sleeps like any other; one that was worth it costs nothing, nor does one that would
//! have been. While it spins and a few sessions carry all the traffic, those are *hot*: read by recv(2), which sees
//! bytes sooner than a completion does.
//!
//! A shard may be told to do so for answers alone: after a client's bytes, where answers came soon enough lately. That
//! costs a fraction of the former, for it sleeps until the next client speaks.

#![forbid(unsafe_code)]

use crate::config::{Shards, limits};
use crate::driver::{Key, Side};
use crate::time::Time;

/// For how long a shard looks for work without sleeping; 0: not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Awake {
    /// After anything moved. Then the other counts for nothing.
    pub busy_poll_us: u32,
    /// After bytes of a client, for the answer.
    pub answer_poll_us: u32,
}

impl Awake {
    /// As the config says.
    #[must_use]
    pub const fn of(shards: &Shards) -> Self {
        Self { busy_poll_us: shards.busy_poll_us, answer_poll_us: shards.answer_poll_us }
    }

    const fn window_ns(self) -> u64 {
        let us = if self.is_busy() { self.busy_poll_us } else { self.answer_poll_us };
        us as u64 * 1000
    }

    /// The most that can be saved up.
    fn budget_ns_max(self) -> i64 {
        i64::try_from(self.window_ns() * limits::SPIN_BUDGET_WINDOWS).unwrap_or(i64::MAX)
    }

    const fn is_busy(self) -> bool {
        self.busy_poll_us > 0
    }
}

/// Whether to sleep.
#[derive(Debug)]
pub(super) struct Spin {
    awake: Awake,
    /// Whether something is near after what moved last.
    near: bool,
    /// When something moved last.
    moved: Time,
    /// What may still be spent on waits in vain; below 0 where the last look of one took longer than that.
    budget_ns: i64,
    /// How long it has looked since something was found.
    waits_ns: i64,
    /// What was spent on waits in vain so far.
    vain_ns: u64,
    /// Until when the budget was refilled, and time spent looking was taken from it.
    settled: Time,
}

impl Spin {
    /// Spins for so long.
    pub(super) fn new(awake: Awake, now: Time) -> Self {
        Self {
            awake,
            near: false,
            moved: Time::default(),
            budget_ns: awake.budget_ns_max(),
            waits_ns: 0,
            vain_ns: 0,
            settled: now,
        }
    }

    /// Spins for so long from now on. What was saved up is kept, as far as it may be.
    pub(super) fn set(&mut self, awake: Awake) {
        self.awake = awake;
        self.budget_ns = self.budget_ns.min(awake.budget_ns_max());
    }

    /// Whether it ever spins.
    pub(super) const fn is_on(&self) -> bool {
        self.awake.window_ns() > 0
    }

    /// Whether it is low-latency mode.
    pub(super) const fn is_busy(&self) -> bool {
        self.awake.is_busy()
    }

    /// Bytes moved, from this side.
    pub(super) fn moved(&mut self, now: Time, from: Side) {
        let gap = now.since_ns(self.moved);
        self.moved = now;
        if gap < self.awake.window_ns() && self.near {
            // A wait for it was worth while, or would have been.
            self.earn(gap);
        }
        self.near = self.is_busy() || from == Side::Client;
    }

    /// Whether to look again at once instead of sleeping.
    pub(super) fn wants(&self, now: Time) -> bool {
        self.near
            && self.budget_ns > self.waits_ns
            && now.since_ns(self.moved) < self.awake.window_ns()
    }

    /// The shard looked, from the last time it settled until `now`, and found something or not.
    pub(super) fn looked(&mut self, now: Time, found: bool) {
        let spent = self.settle(now).min(limits::SPIN_LOOK_NS_MAX);
        self.waits_ns = if found { 0 } else { self.waits_ns.saturating_add_unsigned(spent) };
    }

    /// How long it has waited in vain so far, awake.
    pub(super) const fn vain_ns(&self) -> u64 {
        self.vain_ns
    }

    /// The shard slept until `now`: what it had waited before was in vain.
    pub(super) fn slept(&mut self, now: Time) {
        self.settle(now);
        let waited = std::mem::take(&mut self.waits_ns);
        self.budget_ns = self.budget_ns.saturating_sub(waited);
        self.vain_ns += waited.unsigned_abs();
    }

    /// How long it is since this was called last. A part of that is earned.
    fn settle(&mut self, now: Time) -> u64 {
        let passed = now.since_ns(self.settled);
        self.settled = now;
        let part = if self.is_busy() { limits::SPIN_WASTE_PART } else { limits::ANSWER_WASTE_PART };
        self.earn(passed / part);
        passed
    }

    fn earn(&mut self, ns: u64) {
        self.budget_ns = self.budget_ns.saturating_add_unsigned(ns).min(self.awake.budget_ns_max());
    }
}

/// Which sessions carry the traffic.
#[derive(Debug, Default)]
pub(super) struct Heat {
    keys: Vec<Key>,
    /// Movements since `keys` were last right, of sessions that are among them and of others.
    known: u32,
    others: u32,
}

/// What became of the few.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Few {
    /// Nothing new.
    Same,
    /// These carry all the traffic now.
    Are(Vec<Key>),
    /// Too many sessions share the traffic.
    TooMany,
}

impl Heat {
    /// A session's bytes moved.
    pub(super) fn note(&mut self, key: Key) -> Few {
        if self.keys.contains(&key) {
            self.known += 1;
        } else {
            self.others += 1;
            if self.keys.len() < limits::HOT_SESSIONS_MAX {
                self.keys.push(key);
            }
        }
        if self.known + self.others < limits::HEAT_SAMPLE {
            return Few::Same;
        }
        let few = self.others as usize <= limits::HOT_SESSIONS_MAX;
        (self.known, self.others) = (0, 0);
        if few {
            return Few::Are(self.keys.clone());
        }
        self.keys.clear();
        Few::TooMany
    }

    /// The shard sleeps: what was hot will be found out anew.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;

    const fn busy(busy_poll_us: u32) -> Awake {
        Awake { busy_poll_us, answer_poll_us: 0 }
    }

    #[test]
    fn it_spins_for_its_window_and_then_sleeps() {
        let mut spin = Spin::new(busy(50), Time(0));
        assert!(!spin.wants(Time(1000 * US)), "nothing has moved yet");
        spin.moved(Time(1000 * US), Side::Backend);
        assert!(spin.wants(Time(1049 * US)));
        assert!(!spin.wants(Time(1051 * US)));
    }

    #[test]
    fn without_a_window_it_never_spins() {
        let mut spin = Spin::new(busy(0), Time(0));
        spin.moved(Time(5), Side::Backend);
        assert!(!spin.wants(Time(5)));
    }

    /// The budget is spent on sparse traffic first.
    #[test]
    fn it_stays_awake_while_messages_are_nearer_than_its_window() {
        let mut spin = Spin::new(busy(100), Time(1000 * US));
        let mut now = Time(1000 * US);
        for gap_us in std::iter::repeat_n(150, 1000).chain(std::iter::repeat_n(50, 1000)) {
            spin.moved(now, Side::Backend);
            let next = now + gap_us * US;
            while spin.wants(now) && now < next {
                now = now + US;
                spin.looked(now, now == next);
            }
            if now < next {
                spin.slept(next);
            }
            now = next;
        }
        let budget = 100 * US * limits::SPIN_BUDGET_WINDOWS;
        let earned = 150 * 1000 * US / limits::SPIN_WASTE_PART;
        assert!(
            (budget..budget + earned * 11 / 10).contains(&spin.vain_ns()),
            "{}",
            spin.vain_ns()
        );
        assert!(spin.wants(now), "the last thousand cost nothing");
    }

    /// Turns of a client every 200 us, which are answered after so long: how long was looked in vain, in parts of all
    /// time, and for how many answers in a hundred the shard was awake.
    fn turns(answer_us: impl Fn(u64) -> u64) -> (f64, u64) {
        const TURNS: u64 = 100_000;
        let mut spin = Spin::new(Awake { busy_poll_us: 0, answer_poll_us: 40 }, Time(0));
        let (mut now, mut awake) = (Time(0), 0);
        let mut look = |spin: &mut Spin, until: Time| {
            while spin.wants(now) && now < until {
                now = now + US;
                spin.looked(now, now == until);
            }
            let is_awake = now == until;
            if !is_awake {
                spin.slept(until);
            }
            now = until;
            is_awake
        };
        for turn in 1..=TURNS {
            let asked = Time(turn * 200 * US);
            look(&mut spin, asked);
            spin.moved(asked, Side::Client);
            let answered = asked + answer_us(turn) * US;
            awake += u64::from(look(&mut spin, answered));
            spin.moved(answered, Side::Backend);
            assert!(!spin.wants(answered), "what a client says next is not waited for");
        }
        (spin.vain_ns() as f64 / (TURNS * 200 * US) as f64, awake * 100 / TURNS)
    }

    #[test]
    fn answers_are_waited_for_where_they_come_soon() {
        assert_eq!(turns(|_| 20), (0.0, 100));
        let (vain, awake) = turns(|turn| if turn % 10 == 0 { 150 } else { 20 });
        assert!(vain < 0.021 && awake == 90, "{vain} of the time in vain, {awake} % awake");
    }

    #[test]
    fn answers_are_not_waited_for_where_they_come_late() {
        let (vain, awake) = turns(|_| 60);
        assert!(vain < 1.1 / limits::ANSWER_WASTE_PART as f64 && awake == 0, "{vain}, {awake}");
        let (vain, awake) = turns(|turn| if turn % 10 == 0 { 20 } else { 60 });
        assert!(vain < 0.02 && awake < 10, "{vain}, {awake}");
    }

    #[test]
    fn the_window_can_change() {
        let mut spin = Spin::new(busy(0), Time(0));
        spin.set(busy(50));
        spin.slept(Time(1_000_000 * US));
        spin.moved(Time(1_000_000 * US), Side::Backend);
        assert!(spin.wants(Time(1_000_049 * US)) && !spin.wants(Time(1_000_051 * US)));
        spin.set(busy(0));
        assert!(!spin.wants(Time(1_000_000 * US)));
        spin.set(busy(50));
        assert!(!spin.wants(Time(1_000_000 * US)), "what was saved up is gone");
    }

    /// Messages further apart than the window: a second of them may cost what the budget holds and a part of that
    /// second.
    #[test]
    fn looking_in_vain_is_bounded() {
        let mut spin = Spin::new(busy(100), Time(0));
        let (mut now, mut vain) = (Time(0), 0);
        while now.0 < 1_000_000 * US {
            spin.moved(now, Side::Backend);
            while spin.wants(now) {
                now = now + 5 * US;
                vain += 5 * US;
                spin.looked(now, false);
            }
            now = now + 100 * US;
            spin.slept(now);
        }
        let budget = 100 * US * limits::SPIN_BUDGET_WINDOWS;
        assert!(vain <= budget + 1_000_000 * US / limits::SPIN_WASTE_PART * 11 / 10, "{vain}");
    }

    #[test]
    fn few_sessions_are_hot_and_many_are_not() {
        let key = |slot| Key { slot, generation: 0 };
        let mut heat = Heat::default();
        let few = (0..limits::HEAT_SAMPLE).map(|i| heat.note(key(i % 2))).last();
        assert_eq!(few, Some(Few::Are(vec![key(0), key(1)])));
        let many = (0..limits::HEAT_SAMPLE).map(|i| heat.note(key(i % 20))).last();
        assert_eq!(many, Some(Few::TooMany));
    }
}
