//! Says which backends cannot be reached, and which can again: once each, from here alone. Shards only count.

use super::board::Board;
use super::supervisor::Supervisor;
use crate::config::{Backend, Name, Pool, limits};
use crate::event::EndReason;
use crate::policy::reach::{News, Reach, Totals};
use crate::time::Time;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What is known of the backends that sessions tried, by pool and name: as many as there are routes, which stay.
#[derive(Debug, Default)]
pub(super) struct Backends {
    known: BTreeMap<(Name, Name), Known>,
}

#[derive(Debug)]
struct Known {
    reach: Reach,
    address: SocketAddr,
}

/// What all shards met at one backend, and how the last attempt that failed ended.
type Met = (Totals, Option<EndReason>);

/// What is said of one backend.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    pool: Name,
    backend: Name,
    address: SocketAddr,
    news: News,
    why: Option<EndReason>,
    /// Whether sessions that do not reach it try others.
    others: bool,
}

impl Backends {
    /// Looks at what was counted, and finds what is to be said.
    fn look(&mut self, board: &Board, now: Time) -> Vec<Word> {
        let snapshot = board.snapshot.load();
        let mut met = met(board);
        let mut words = vec![];
        for pool in &snapshot.config.pools {
            for backend in &pool.backends {
                let name = (pool.name.clone(), backend.name.clone());
                let Some((totals, why)) = met.remove(&name) else { continue };
                let known = self.known.entry(name);
                let known = known
                    .or_insert_with(|| Known { reach: Reach::default(), address: backend.address });
                if known.address != backend.address {
                    // Another one by the same name; what the one before met is no fault of its.
                    *known = Known { reach: Reach::since(totals), address: backend.address };
                }
                known.reach.look(totals);
                if words.len() < limits::REACH_LINES_PER_LOOK
                    && let Some(news) = known.reach.news(now)
                {
                    words.push(Word::new(pool, backend, news, why));
                }
            }
        }
        words
    }
}

impl Word {
    fn new(pool: &Pool, backend: &Backend, news: News, why: Option<EndReason>) -> Self {
        let is_other = |other: &&Backend| other.weight > 0 && other.name != backend.name;
        Self {
            pool: pool.name.clone(),
            backend: backend.name.clone(),
            address: backend.address,
            news,
            why,
            others: pool.retries > 0 && pool.backends.iter().any(|other| is_other(&other)),
        }
    }

    fn say(&self) {
        let (pool, backend, address) = (&*self.pool, &*self.backend, self.address);
        let why = self.why.map(EndReason::label);
        match self.news {
            News::Lost(failed) if self.others => tracing::warn!(
                pool, backend, %address, failed, why,
                "backend cannot be reached: its sessions try others"
            ),
            News::Lost(failed) => tracing::warn!(
                pool, backend, %address, failed, why,
                "backend cannot be reached: its sessions end, for they try no other"
            ),
            News::Found => tracing::info!(pool, backend, %address, "backend reached again"),
        }
    }
}

/// What all shards met, by pool and backend.
fn met(board: &Board) -> BTreeMap<(Name, Name), Met> {
    let mut met: BTreeMap<(Name, Name), Met> = BTreeMap::new();
    for shard in board.shards() {
        for route in shard.tally.routes() {
            if route.name.backend.is_empty() {
                continue;
            }
            let name = (route.name.pool.clone(), route.name.backend.clone());
            let (totals, why) = met.entry(name).or_default();
            let (buckets, above, _) = route.connect.read();
            totals.reached += above + buckets.map(|(_, n)| n).sum::<u64>();
            totals.failed += route.connect_failed.get();
            let number = usize::try_from(route.unreached.get()).unwrap_or(0);
            *why = number.checked_sub(1).and_then(|n| EndReason::ALL.get(n).copied()).or(*why);
        }
    }
    met
}

impl Supervisor {
    /// Looks at all backends once.
    pub(super) fn watch_backends(&mut self, now: Time) {
        self.backends.look(&self.board, now).iter().for_each(Word::say);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;
    use crate::control::board::ShardEntry;
    use crate::driver::Kind;
    use crate::event::Arm;
    use crate::policy::snapshot::Snapshot;
    use crate::tally::{RouteName, RouteTally};
    use std::sync::Arc;

    fn snapshot(a: &str, before: Option<&Snapshot>) -> Snapshot {
        let config = parse(&format!(
            "[listeners.l]\nbind = \"127.0.0.1:0\"\nstable = \"p\"\n[pools.p]\nbackends = [\n\
             {{ address = \"{a}\", name = \"a\" }}, {{ address = \"127.0.0.1:2\", name = \"b\" }}]\n"
        ));
        Snapshot::new(config.unwrap(), before)
    }

    fn route(board: &Board, shard: usize, backend: &str) -> Arc<RouteTally> {
        let name = RouteName {
            listener: "l".into(),
            arm: Arm::Stable,
            pool: "p".into(),
            backend: backend.into(),
        };
        board.shards()[shard].tally.route(&name)
    }

    #[test]
    fn a_backend_is_lost_only_where_no_shard_reaches_it_and_a_reload_that_moves_it_begins_anew() {
        let board = Board::new(snapshot("127.0.0.1:1", None));
        for id in 0..2 {
            board.add_shard(Arc::new(ShardEntry::new(id, Kind::Epoll, None, Arc::default())));
        }
        let (mut backends, mut second) = (Backends::default(), 0);
        let mut look = |board: &Board| {
            second += 11;
            backends.look(board, Time(second * 1_000_000_000))
        };
        let fail = |shard| {
            let route = route(&board, shard, "a");
            route.connect_failed.add(1);
            route.unreached.set(EndReason::ConnectTimeout as u64 + 1);
        };
        fail(0);
        route(&board, 1, "a").connect.record(1000);
        route(&board, 0, "b").connect.record(1000);
        assert_eq!(look(&board), [], "the other shard reached it");
        fail(0);
        fail(1);
        let words = look(&board);
        let [word] = words.as_slice() else { panic!("{words:?}") };
        assert_eq!((&*word.pool, &*word.backend, word.news), ("p", "a", News::Lost(2)));
        assert_eq!((word.why, word.others), (Some(EndReason::ConnectTimeout), true));
        assert_eq!(look(&board), [], "that was said");
        route(&board, 0, "a").connect.record(1000);
        assert_eq!(look(&board)[0].news, News::Found);
        fail(0);
        assert_eq!(look(&board)[0].news, News::Lost(1));
        let moved = snapshot("127.0.0.1:9", Some(&board.snapshot.load()));
        board.snapshot.store(Arc::new(moved));
        assert_eq!(look(&board), [], "this one was tried by nobody");
        fail(1);
        assert_eq!(look(&board)[0].address, "127.0.0.1:9".parse().unwrap());
    }
}
