//! Where sessions come in and go, as the status lists it: what the config has, and what it had for as long as sessions
//! live on there.

use super::board::{Board, ShardEntry};
use crate::config::{Backend, Config, Listener, Name, Pool, limits};
use crate::event::Arm;
use crate::policy::snapshot::Snapshot;
use crate::tally::RouteName;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One listener.
#[derive(Debug, Serialize)]
pub struct ListenerStatus {
    name: Name,
    bind: String,
    stable: Name,
    canary: Option<Name>,
    canary_percent: f64,
    sessions: u64,
    sessions_canary: u64,
    /// Whether the config has it no more, and its sessions live on.
    leaving: bool,
}

/// One pool.
#[derive(Debug, Serialize)]
pub struct PoolStatus {
    name: Name,
    backends: Vec<BackendStatus>,
    /// Whether the config has it no more, and sessions live on at its backends.
    leaving: bool,
}

/// One backend.
#[derive(Debug, Serialize)]
pub struct BackendStatus {
    name: Name,
    address: String,
    weight: u16,
    sessions: u64,
    /// Whether its pool has it no more, and its sessions live on.
    leaving: bool,
}

/// Where sessions are open, and what says more of those places.
pub(super) struct Places {
    now: Arc<Snapshot>,
    /// What sessions live by that began before, the newest first.
    before: Vec<Arc<Snapshot>>,
    /// Sessions that are open now, where there are any.
    open: BTreeMap<RouteName, u64>,
}

impl Places {
    pub(super) fn of(board: &Board, shards: &[Arc<ShardEntry>]) -> Self {
        let mut open = BTreeMap::<RouteName, u64>::new();
        // Before the tallies are read: a snapshot goes with its last session.
        let (now, before) = (board.snapshot.load_full(), board.lived_by());
        for route in shards.iter().flat_map(|shard| shard.tally.routes()) {
            let sum = open.entry(route.name.clone()).or_default();
            *sum = sum.wrapping_add(route.open.get());
        }
        open.retain(|_, n| *n > 0);
        Self { now, before, open }
    }

    fn sum(&self, is_meant: impl Fn(&RouteName) -> bool) -> u64 {
        self.open.iter().filter(|(name, _)| is_meant(name)).map(|(_, n)| *n).sum()
    }

    /// Those of the config, and then those that leave.
    pub(super) fn listeners(&self) -> Vec<ListenerStatus> {
        let config = &self.now.config;
        let staying = config.listeners.iter().map(|l| self.listener(&self.now, l, false));
        let has = |name: &Name| config.listeners.iter().any(|l| l.name == *name);
        let names: BTreeSet<&Name> = self.open.keys().map(|route| &route.listener).collect();
        let gone = names.into_iter().filter(|name| !has(name)).filter_map(|name| {
            self.before.iter().find_map(|old| Some((old, old.listener(name)?.1)))
        });
        staying.chain(gone.map(|(old, l)| self.listener(old, l, true))).collect()
    }

    fn listener(&self, of: &Snapshot, l: &Listener, leaving: bool) -> ListenerStatus {
        let pool = |index: usize| Arc::clone(&of.pool(index).name);
        ListenerStatus {
            name: Arc::clone(&l.name),
            bind: l.bind.to_string(),
            stable: pool(l.stable),
            canary: l.canary.map(pool),
            canary_percent: if leaving { 0.0 } else { l.canary_percent.as_f64() },
            sessions: self.sum(|r| r.listener == l.name),
            sessions_canary: self.sum(|r| r.listener == l.name && r.arm == Arm::Canary),
            leaving,
        }
    }

    /// Those of the config, each with the backends that leave it, and then those that leave.
    pub(super) fn pools(&self) -> Vec<PoolStatus> {
        let config = &self.now.config;
        let staying = config.pools.iter().map(|pool| self.pool(&pool.name, Some(pool)));
        let has = |name: &Name| config.pools.iter().any(|pool| pool.name == *name);
        let names: BTreeSet<&Name> = self.open.keys().map(|route| &route.pool).collect();
        let gone = names.into_iter().filter(|name| !has(name)).map(|name| self.pool(name, None));
        staying.chain(gone.filter(|pool| !pool.backends.is_empty())).collect()
    }

    fn pool(&self, name: &Name, now: Option<&Pool>) -> PoolStatus {
        let here: &[Backend] = now.map_or(&[], |pool| &pool.backends);
        let staying = here.iter().map(|b| self.backend(name, b, false));
        let routes = self.open.keys().filter(|route| route.pool == *name);
        let names: BTreeSet<&Name> = routes.map(|route| &route.backend).collect();
        let gone = names.into_iter().filter(|of| !here.iter().any(|b| b.name == **of));
        let gone = gone
            .filter_map(|of| self.before.iter().find_map(|old| backend_of(&old.config, name, of)));
        PoolStatus {
            name: Arc::clone(name),
            backends: staying.chain(gone.map(|b| self.backend(name, b, true))).collect(),
            leaving: now.is_none(),
        }
    }

    fn backend(&self, pool: &Name, b: &Backend, leaving: bool) -> BackendStatus {
        BackendStatus {
            name: Arc::clone(&b.name),
            address: b.address.to_string(),
            weight: if leaving { 0 } else { b.weight },
            sessions: self.sum(|r| r.pool == *pool && r.backend == b.name),
            leaving,
        }
    }

    /// What is told of the sessions that live on where `before` had something and the config in force has nothing.
    /// `None`: there are none.
    pub(super) fn told(&self, before: &Config) -> Option<String> {
        let mut left = Vec::new();
        for l in self.listeners().iter().filter(|l| l.leaving) {
            if before.listeners.iter().any(|was| was.name == l.name) {
                left.push(format!("{} of listener {}", l.sessions, l.name));
            }
        }
        for pool in self.pools() {
            for b in pool.backends.iter().filter(|b| b.leaving) {
                if backend_of(before, &pool.name, &b.name).is_some() {
                    left.push(format!("{} at {} of pool {}", b.sessions, b.address, pool.name));
                }
            }
        }
        let more = left.len().saturating_sub(limits::CHANGES_SHOWN);
        left.truncate(limits::CHANGES_SHOWN);
        let rest = if more > 0 { format!(", and at {more} more places") } else { String::new() };
        (!left.is_empty()).then(|| format!("sessions that live on: {}{rest}", left.join(", ")))
    }
}

fn backend_of<'c>(config: &'c Config, pool: &str, backend: &str) -> Option<&'c Backend> {
    let pool = config.pools.iter().find(|of| *of.name == *pool)?;
    pool.backends.iter().find(|of| *of.name == *backend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;
    use crate::driver::Kind;
    use serde_json::{Value, json};

    fn config(listener: &str, pools: &[(&str, &str)]) -> Config {
        let first = pools[0].0;
        let pools: String = pools
            .iter()
            .map(|(name, backends)| format!("[pools.{name}]\nbackends = [{backends}]\n"))
            .collect();
        parse(&format!(
            "[listeners.{listener}]\nbind = \"127.0.0.1:7000\"\nstable = \"{first}\"\n{pools}"
        ))
        .unwrap()
    }

    fn open(board: &Board, (listener, pool, backend): (&str, &str, &str), n: u64) {
        let (listener, pool, backend) = (listener.into(), pool.into(), backend.into());
        let name = RouteName { listener, arm: Arm::Canary, pool, backend };
        board.shards()[0].tally.route(&name).open.set(n);
    }

    fn status(board: &Board) -> Value {
        serde_json::to_value(board.status()).unwrap()
    }

    #[test]
    fn what_the_config_has_no_more_is_listed_until_its_last_session_has_ended() {
        let two = "\"10.0.0.1:9\", { address = \"10.0.0.2:9\", name = \"b\" }";
        let first = config("l", &[("p", two), ("q", "\"10.0.0.3:9\"")]);
        let board = Board::new(Snapshot::new(first.clone(), None));
        board.add_shard(Arc::new(ShardEntry::new(0, Kind::Epoll, None, Arc::default())));
        open(&board, ("l", "p", "b"), 3);
        open(&board, ("l", "p", "10.0.0.1:9"), 1);
        open(&board, ("l", "q", "10.0.0.3:9"), 2);
        // As its sessions do.
        let lived_by = board.snapshot.load_full();
        let next = Snapshot::new(config("m", &[("p", "\"10.0.0.1:9\"")]), Some(&lived_by));
        board.put_in_force(Arc::new(next));

        let said = status(&board);
        let row = |name: &str, address: &str, weight, sessions, leaving| {
            json!({ "name": name, "address": address, "weight": weight, "sessions": sessions,
                    "leaving": leaving })
        };
        let p = [row("10.0.0.1:9", "10.0.0.1:9", 1, 1, false), row("b", "10.0.0.2:9", 0, 3, true)];
        let q = [row("10.0.0.3:9", "10.0.0.3:9", 0, 2, true)];
        let pools = json!([
            { "name": "p", "backends": p, "leaving": false },
            { "name": "q", "backends": q, "leaving": true },
        ]);
        assert_eq!(said["pools"], pools);
        let [m, l] = &said["listeners"].as_array().unwrap()[..] else { panic!("{said}") };
        assert_eq!(
            (&m["name"], &m["leaving"], &m["sessions"]),
            (&json!("m"), &json!(false), &json!(0))
        );
        let gone = json!({ "name": "l", "bind": "127.0.0.1:7000", "stable": "p", "canary": null,
                           "canary_percent": 0.0, "sessions": 6, "sessions_canary": 6, "leaving": true });
        assert_eq!(l, &gone);
        let told = "sessions that live on: 6 of listener l, 3 at 10.0.0.2:9 of pool p, 2 at 10.0.0.3:9 of pool q";
        assert_eq!(Places::of(&board, &board.shards()).told(&first).as_deref(), Some(told));

        for (pool, backend) in [("p", "b"), ("p", "10.0.0.1:9"), ("q", "10.0.0.3:9")] {
            open(&board, ("l", pool, backend), 0);
        }
        drop(lived_by);
        let said = status(&board);
        let of = |list: &str| said[list].as_array().unwrap().len();
        assert_eq!((of("listeners"), of("pools")), (1, 1), "{said}");
        assert_eq!(said["pools"][0]["backends"].as_array().unwrap().len(), 1, "{said}");
        assert_eq!(Places::of(&board, &board.shards()).told(&first), None);
        assert!(board.lived_by().is_empty());
    }
}
