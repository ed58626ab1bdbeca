//! A timing wheel: one deadline a session, set and cleared without search or allocation; pure.
//!
//! Three levels of 256 places: ticks of 10 ms, of 2.56 s and of 11 minutes; what lies beyond stands in the last place
//! it can reach and moves on from there. The sessions of one place are a list through their own nodes. A deadline fires
//! up to one tick late, never early. Where a session's deadline has moved later, it is left alone: when it fires, the
//! session looks, finds that it is not due, and is set again.

#![forbid(unsafe_code)]

use crate::time::Time;

/// Nanoseconds of the shortest tick.
const TICK_NS: u64 = 10_000_000;
const LEVELS: u32 = 3;
const PLACES: u32 = 256;
/// Ticks from now to the last place of the last level.
const REACH: u64 = (1 << (8 * LEVELS)) - (1 << (8 * (LEVELS - 1)));
/// Ticks a deadline can lie ahead: a node keeps the lower half of its tick's bits.
const AHEAD_MAX: u64 = u32::MAX as u64;
const NONE: u32 = u32::MAX;
const NOWHERE: u16 = u16::MAX;

/// Deadlines of sessions, by slot.
#[derive(Debug)]
pub struct Timers {
    began: Time,
    /// The tick that is over, since `began`.
    now: u64,
    /// First slot of each place's list, level by level.
    places: Vec<u32>,
    /// How many slots stand in each level.
    standing: [u32; LEVELS as usize],
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    next: u32,
    previous: u32,
    /// The lower half of its tick: 32 bits of ticks last 497 days, and the wheel lasts longer.
    tick: u32,
    /// Index into `places`; `NOWHERE`: it has no deadline.
    place: u16,
}

const IDLE: Node = Node { next: NONE, previous: NONE, tick: 0, place: NOWHERE };

impl Timers {
    /// No deadlines; time begins at `now`.
    #[must_use]
    pub fn new(now: Time) -> Self {
        let places = vec![NONE; (LEVELS * PLACES) as usize];
        Self { began: now, now: 0, places, standing: [0; LEVELS as usize], nodes: Vec::new() }
    }

    /// Sets a slot's deadline, in place of the one it had.
    pub fn set(&mut self, slot: u32, at: Time) {
        self.clear(slot);
        if self.nodes.len() <= slot as usize {
            self.nodes.resize(slot as usize + 1, IDLE);
        }
        let tick = at.since_ns(self.began).div_ceil(TICK_NS);
        self.insert(slot, tick.clamp(self.now + 1, self.now + AHEAD_MAX));
    }

    /// Forgets a slot's deadline.
    pub fn clear(&mut self, slot: u32) {
        let Some(node) = self.nodes.get_mut(slot as usize) else { return };
        let Node { next, previous, place, .. } = std::mem::replace(node, IDLE);
        if place == NOWHERE {
            return;
        }
        if previous == NONE {
            self.places[usize::from(place)] = next;
        } else {
            self.nodes[previous as usize].next = next;
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        self.standing[usize::from(place) / PLACES as usize] -= 1;
    }

    /// The next moment at which [`expire`](Self::expire) has something to do. `None`: no deadline is set.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        let of_level = |level: u32| {
            let current = self.now >> (8 * level);
            let standing = self.standing[level as usize] > 0;
            let is_taken = |ahead: &u64| self.places[index(level, current + ahead)] != NONE;
            // What stands in an upper level's current place is a whole round ahead: the rest has moved down.
            let nearest = u64::from(level > 0);
            let round = nearest..nearest + u64::from(PLACES);
            let ahead = standing.then(|| round.clone().find(is_taken)).flatten()?;
            Some(((current + ahead) << (8 * level)).max(self.now))
        };
        let tick = (0..LEVELS).filter_map(of_level).min()?;
        Some(self.began + tick * TICK_NS)
    }

    /// Takes a slot whose deadline has come. Call until `None`.
    pub fn expire(&mut self, now: Time) -> Option<u32> {
        let target = now.since_ns(self.began) / TICK_NS;
        loop {
            let first = self.places[index(0, self.now)];
            if first != NONE {
                self.clear(first);
                return Some(first);
            }
            if self.now >= target {
                return None;
            }
            if self.standing == [0; LEVELS as usize] {
                self.now = target;
                return None;
            }
            self.now += 1;
            self.cascade();
        }
    }

    /// Moves what stands in the upper levels' current places down, where a lower level has turned.
    fn cascade(&mut self) {
        for level in (1..LEVELS).rev() {
            if self.now.trailing_zeros() < 8 * level {
                continue;
            }
            let place = index(level, self.now >> (8 * level));
            let mut slot = std::mem::replace(&mut self.places[place], NONE);
            while slot != NONE {
                let Node { next, tick, .. } = self.nodes[slot as usize];
                self.standing[level as usize] -= 1;
                // It is not over yet: what is over has fired.
                let ahead = tick.wrapping_sub(lower_half(self.now));
                self.insert(slot, self.now + u64::from(ahead));
                slot = next;
            }
        }
    }

    fn insert(&mut self, slot: u32, tick: u64) {
        let stand = tick.min(self.now + REACH);
        let ahead = stand - self.now;
        let level = (0..LEVELS - 1).find(|l| ahead < 1 << (8 * (l + 1))).unwrap_or(LEVELS - 1);
        let place = index(level, stand >> (8 * level));
        let next = std::mem::replace(&mut self.places[place], slot);
        if next != NONE {
            self.nodes[next as usize].previous = slot;
        }
        self.standing[level as usize] += 1;
        let place = u16::try_from(place).expect("there are 768 places");
        self.nodes[slot as usize] = Node { next, previous: NONE, tick: lower_half(tick), place };
    }
}

#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
const fn lower_half(tick: u64) -> u32 {
    tick as u32
}

const fn index(level: u32, tick: u64) -> usize {
    (level * PLACES + lower_half(tick) % PLACES) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_deadline_fires_within_a_tick_and_never_early() {
        let mut timers = Timers::new(Time(0));
        timers.set(3, Time(25_000_000));
        assert_eq!(timers.expire(Time(24_999_999)), None);
        assert_eq!(timers.expire(Time(30_000_000)), Some(3));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_shard_may_run_for_years() {
        const DAY: u64 = 86_400 * 1_000_000_000;
        // 2^32 ticks are 497.1 days.
        for days in [497, 994, 10_000] {
            let mut timers = Timers::new(Time(0));
            let start = Time(days * DAY);
            assert_eq!(timers.expire(start), None);
            for (slot, ahead) in [(1, DAY / 200), (2, DAY / 3), (3, 20 * DAY)] {
                timers.set(slot, start + ahead);
                assert!(timers.next().is_some_and(|next| next > start));
                assert_eq!(timers.expire(Time(start.0 + ahead - TICK_NS)), None, "day {days}");
                assert_eq!(timers.expire(start + ahead), Some(slot), "day {days}");
                timers.set(slot, start);
                assert_eq!(timers.expire(start + ahead), None, "one that is late waits for a tick");
                assert_eq!(timers.expire(Time(start.0 + ahead + TICK_NS)), Some(slot));
                assert_eq!(timers.next(), None);
            }
        }
    }

    #[test]
    fn a_deadline_beyond_the_last_level_still_comes() {
        let mut timers = Timers::new(Time(0));
        let far = Time(60 * 86_400 * 1_000_000_000);
        timers.set(1, far);
        assert_eq!(timers.expire(Time(far.0 - TICK_NS)), None);
        assert_eq!(timers.expire(far), Some(1));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Set(u32, u64),
        Clear(u32),
        Pass(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let ms = prop_oneof![0_u64..50, 0_u64..6_000, 0_u64..4_000_000];
        let act = prop_oneof![
            (0_u32..20, ms.clone()).prop_map(|(slot, ms)| Act::Set(slot, ms)),
            (0_u32..20).prop_map(Act::Clear),
            ms.prop_map(Act::Pass),
        ];
        prop::collection::vec(act, 1..80)
    }

    proptest! {
        /// Against a map: what fires is exactly what is due, and `next` is never later than the first deadline's tick.
        #[test]
        fn it_does_what_a_map_does(acts in acts()) {
            let (mut timers, mut model, mut now) =
                (Timers::new(Time(0)), BTreeMap::new(), Time(0));
            for act in acts {
                match act {
                    Act::Set(slot, ms) => {
                        timers.set(slot, now.plus_ms(ms));
                        model.insert(slot, now.plus_ms(ms).0.div_ceil(TICK_NS).max(now.0 / TICK_NS + 1));
                    }
                    Act::Clear(slot) => {
                        timers.clear(slot);
                        model.remove(&slot);
                    }
                    Act::Pass(ms) => {
                        now = now.plus_ms(ms);
                        let mut fired = Vec::new();
                        while let Some(slot) = timers.expire(now) {
                            fired.push(slot);
                        }
                        fired.sort_unstable();
                        let due: Vec<u32> = model
                            .iter()
                            .filter(|(_, tick)| **tick <= now.0 / TICK_NS)
                            .map(|(slot, _)| *slot)
                            .collect();
                        prop_assert_eq!(&fired, &due);
                        model.retain(|slot, _| !due.contains(slot));
                    }
                }
                let first = model.values().min().map(|tick| Time(tick * TICK_NS));
                prop_assert_eq!(timers.next().is_some(), first.is_some());
                prop_assert!(timers.next() <= first, "{:?} after {:?}", timers.next(), first);
                prop_assert!(timers.next().is_none_or(|at| at > now), "it would wake for nothing");
            }
        }
    }
}
