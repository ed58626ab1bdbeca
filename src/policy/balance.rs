//! Which live sessions change their shard so that no core carries the day alone: loads in, moves out.
//!
//! A few heavy sessions that live for a day may have come to one shard by chance, and placement counts sessions, not
//! their work. A [`Balance`] looks once a second. A difference must last, be worth it, and be made smaller by what is
//! moved: sessions that move together carry at most five eighths of it, so that it never turns round, and every step
//! leaves less of it than there was. On steady load it therefore comes to rest, and moves nothing from then on.

use crate::config::limits;

/// From where to where, and how much of a core lies between them, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Place of the shard that does most.
    pub from: usize,
    /// Place of the shard that does least.
    pub to: usize,
    /// The difference between the two.
    pub gap: u64,
}

/// What is remembered between looks.
#[derive(Debug, Default)]
pub struct Balance {
    /// Looks in a row that saw the same shard ahead, and which.
    streak: u32,
    from: usize,
    /// Looks until the next step may begin.
    rest: u32,
}

impl Balance {
    /// Takes each shard's load of the last second, in thousandths of a core. A wish where sessions should move.
    pub fn look(&mut self, loads: &[u64]) -> Option<Wish> {
        self.rest = self.rest.saturating_sub(1);
        let places = || loads.iter().copied().enumerate();
        let (from, most) = places().max_by_key(|(_, load)| *load)?;
        let (to, least) = places().min_by_key(|(_, load)| *load)?;
        let gap = most - least;
        let is_worth_it = gap >= limits::BALANCE_GAP && gap * limits::BALANCE_PART >= most;
        if !is_worth_it || from != self.from {
            self.streak = 0;
        }
        self.from = from;
        self.streak += u32::from(is_worth_it);
        let lasts = self.streak >= limits::BALANCE_LOOKS && self.rest == 0;
        lasts.then_some(Wish { from, to, gap })
    }

    /// A step was taken: its effect is waited for.
    pub const fn stepped(&mut self) {
        self.streak = 0;
        self.rest = limits::BALANCE_REST_LOOKS;
    }
}

/// Which of the heaviest sessions of a shard, by id and work, are to go over to one that does `gap` less. All sessions
/// of the shard did `total` work, and that is what it used of its core, `load`.
#[must_use]
pub fn choose(gap: u64, load: u64, total: u64, heaviest: &[(u64, u64)]) -> Vec<u64> {
    let most = gap * 5 / 8;
    let mut moved = 0;
    let mut chosen = vec![];
    let mut sessions = heaviest.to_vec();
    sessions.sort_unstable_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
    for (id, work) in sessions {
        let carries = u128::from(work) * u128::from(load) / u128::from(total.max(1));
        let carries = u64::try_from(carries).unwrap_or(u64::MAX);
        // What makes no difference is not worth a pause.
        let is_worth_it = carries > 0 && carries >= gap / limits::BALANCE_WORTH_PART;
        let is_nearer = gap.abs_diff(2 * (moved + carries)) < gap.abs_diff(2 * moved);
        let fits = moved + carries <= most && chosen.len() < limits::BALANCE_MOVES_MAX;
        if is_worth_it && is_nearer && fits {
            moved += carries;
            chosen.push(id);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Shards and the steady work of their sessions: a thousand is a core.
    struct World {
        shards: Vec<Vec<(u64, u64)>>,
        balance: Balance,
    }

    impl World {
        fn new(shards: Vec<Vec<(u64, u64)>>) -> Self {
            Self { shards, balance: Balance::default() }
        }

        fn loads(&self) -> Vec<u64> {
            self.shards.iter().map(|s| s.iter().map(|(_, work)| work).sum()).collect()
        }

        fn spread(&self) -> u64 {
            let loads = self.loads();
            loads.iter().max().unwrap() - loads.iter().min().unwrap()
        }

        /// One second. How many sessions moved.
        fn look(&mut self) -> usize {
            let loads = self.loads();
            let Some(wish) = self.balance.look(&loads) else { return 0 };
            let load = loads[wish.from];
            let chosen = choose(wish.gap, load, load, &self.shards[wish.from]);
            self.balance.stepped();
            for id in &chosen {
                let at = self.shards[wish.from].iter().position(|(of, _)| of == id).unwrap();
                let session = self.shards[wish.from].swap_remove(at);
                self.shards[wish.to].push(session);
            }
            chosen.len()
        }
    }

    fn heavy(count: u64, work: u64) -> Vec<(u64, u64)> {
        (0..count).map(|id| (id, work)).collect()
    }

    #[test]
    fn eight_heavy_sessions_on_one_of_two_shards_become_four_and_four() {
        let mut world = World::new(vec![heavy(8, 100), vec![]]);
        let moved: Vec<usize> = (0..100).map(|_| world.look()).collect();
        assert_eq!(moved.iter().sum::<usize>(), 4, "{moved:?}");
        assert_eq!(world.loads(), [400, 400]);
        let first = moved.iter().position(|n| *n > 0).unwrap();
        assert_eq!(first, limits::BALANCE_LOOKS as usize - 1, "not before the difference lasted");
    }

    #[test]
    fn one_session_that_is_the_whole_difference_stays() {
        assert_eq!(choose(900, 900, 900, &[(1, 900)]), Vec::<u64>::new());
        assert_eq!(choose(500, 900, 900, &[(1, 500), (2, 400)]), Vec::<u64>::new());
        assert_eq!(choose(900, 900, 900, &[(1, 450), (2, 450)]), [1], "half of it goes");
    }

    #[test]
    fn a_short_difference_moves_nothing() {
        let mut balance = Balance::default();
        for _ in 0..50 {
            assert_eq!(balance.look(&[900, 100]), None);
            assert_eq!(balance.look(&[100, 900]), None);
            assert_eq!(balance.look(&[500, 500]), None);
        }
        let mut balance = Balance::default();
        let small = [limits::BALANCE_GAP - 1, 0];
        assert!((0..50).all(|_| balance.look(&small).is_none()), "too small to be worth it");
    }

    #[test]
    fn nothing_and_one_shard_are_balanced() {
        assert_eq!(Balance::default().look(&[]), None);
        assert!((0..20).all(|_| Balance::default().look(&[1000]).is_none()));
        assert_eq!(choose(0, 0, 0, &[]), Vec::<u64>::new());
        assert_eq!(choose(500, 500, 0, &[(1, 0)]), Vec::<u64>::new());
    }

    proptest! {
        #[test]
        fn steady_load_comes_to_rest(
            shards in prop::collection::vec(prop::collection::vec(0_u64..400, 0..40), 2..5),
        ) {
            let numbered = |(shard, works): (usize, Vec<u64>)| {
                works.into_iter().zip(0..).map(|(work, n)| (shard as u64 * 1000 + n, work)).collect()
            };
            let mut world = World::new(shards.into_iter().enumerate().map(numbered).collect());
            let total: u64 = world.loads().iter().sum();
            let mut squares: u64 = world.loads().iter().map(|load| load * load).sum();
            for _ in 0..2000 {
                let before = world.spread();
                let moved = world.look();
                prop_assert!(moved <= limits::BALANCE_MOVES_MAX);
                let now: u64 = world.loads().iter().map(|load| load * load).sum();
                if moved > 0 {
                    prop_assert!(now < squares, "every step evens the loads: {squares} to {now}");
                    prop_assert!(world.spread() <= before);
                }
                squares = now;
            }
            prop_assert_eq!(world.loads().iter().sum::<u64>(), total);
            let later: usize = (0..200).map(|_| world.look()).sum();
            prop_assert_eq!(later, 0, "after half an hour it rests");
        }

        #[test]
        fn what_is_chosen_never_turns_the_difference_round(
            gap in 1_u64..2000,
            works in prop::collection::vec(0_u64..500, 0..60),
        ) {
            let heaviest: Vec<(u64, u64)> = works.iter().copied().zip(0..).map(|(w, id)| (id, w)).collect();
            let total: u64 = works.iter().sum();
            let chosen = choose(gap, total, total, &heaviest);
            let work = |id: &u64| heaviest[usize::try_from(*id).unwrap()].1;
            let moved: u64 = chosen.iter().map(work).sum();
            prop_assert!(chosen.len() <= limits::BALANCE_MOVES_MAX);
            prop_assert!(gap.abs_diff(2 * moved) <= gap);
            prop_assert!(chosen.iter().all(|id| work(id) < gap));
            prop_assert!(chosen.is_empty() || gap.abs_diff(2 * moved) < gap, "{moved} of {gap}");
        }
    }
}
