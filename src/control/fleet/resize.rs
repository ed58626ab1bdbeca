//! Lanes come and go while Ringway runs, and no client and no session is lost by it.
//!
//! What may fail is done first: the shards of added lanes are started, and a [`Shape`] is what has come of it. It can
//! be dropped, and nothing has happened. Putting it in force cannot fail: sockets are handed over to the lanes they
//! belong to from now on, and the shards of lanes that are no more carry their sessions to the others, and end.

use super::{Fleet, Lane, Member, places};
use crate::config::{Config, Percent};
use crate::control::fleet::other;
use crate::control::ports::Port;
use crate::driver::Kind;
use crate::shard::mailbox::Order;
use crate::shard::placement::Neighbour;
use std::io;
use std::sync::Arc;

/// The lanes as they are to be.
pub(in crate::control) struct Shape {
    spots: Vec<Spot>,
}

enum Spot {
    /// A lane stays: its place so far.
    Stays(usize),
    /// A lane is added; its shards run.
    New(Lane),
}

impl Shape {
    /// How many lanes there are to be.
    pub(in crate::control) fn lanes(&self) -> usize {
        self.spots.len()
    }
}

impl Drop for Shape {
    /// Ends what was started and is not wanted.
    fn drop(&mut self) {
        for spot in self.spots.drain(..) {
            let Spot::New(lane) = spot else { continue };
            for member in lane.shards {
                // One that is gone needs no order to go.
                let _ = member.mail.send(Order::Leave);
                let _ = member.thread.join();
            }
        }
    }
}

/// What became of the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) struct Resized {
    /// How many there were.
    pub(in crate::control) before: usize,
    /// How many were added.
    pub(in crate::control) added: usize,
    /// How many are no more.
    pub(in crate::control) removed: usize,
    /// Live sessions that go to other lanes, the opening ones among them.
    pub(in crate::control) sessions: u64,
}

impl Fleet {
    /// Starts what a config adds to the lanes, for `serving` shards that accept clients and others that begin a
    /// `share`. `None`: the lanes are as it says.
    ///
    /// # Errors
    /// A CPU may not be used, or a shard cannot start; nothing has changed.
    pub(in crate::control) fn shape(
        &mut self,
        config: &Config,
        (serving, share): (Kind, Percent),
    ) -> io::Result<Option<Shape>> {
        let wanted = places(config)?;
        let now: Vec<Option<usize>> = self.lanes.iter().map(|lane| lane.cpu).collect();
        if now == wanted {
            return Ok(None);
        }
        let mut shape = Shape { spots: Vec::new() };
        for (cpu, stays) in wanted.iter().zip(assign(&now, &wanted)) {
            if let Some(lane) = stays {
                shape.spots.push(Spot::Stays(lane));
                continue;
            }
            shape.spots.push(Spot::New(Lane::new(*cpu)));
            let guests = (share > Percent::ZERO).then(|| other(serving));
            for kind in [serving].into_iter().chain(guests) {
                let member = self.start(kind, *cpu)?;
                if let Some(Spot::New(lane)) = shape.spots.last_mut() {
                    lane.shards.push(member);
                }
            }
        }
        Ok(Some(shape))
    }

    /// Puts a shape in force: each socket of `ports` goes to its lane, each session of a lane that is no more to
    /// another.
    pub(in crate::control) fn reshape(&mut self, mut shape: Shape, ports: &[Port]) -> Resized {
        let spots = std::mem::take(&mut shape.spots);
        let before = self.lanes.len();
        let added = spots.iter().filter(|spot| matches!(spot, Spot::New(_))).count();
        let removed = before + added - spots.len();
        let first = self.leaving.len();
        self.arrange(ports, |fleet| fleet.put(spots));
        let gone = &self.leaving[first..];
        let sessions = gone.iter().map(|member| u64::from(member.load.get())).sum();
        self.send_away();
        for member in gone {
            // It holds on to what it has until that has gone: sockets, clients, sessions.
            let _ = member.mail.send(Order::Leave);
        }
        Resized { before, added, removed, sessions }
    }

    fn put(&mut self, spots: Vec<Spot>) {
        let mut old: Vec<Option<Lane>> = self.lanes.drain(..).map(Some).collect();
        for spot in spots {
            let lane = match spot {
                Spot::Stays(at) => old[at].take(),
                Spot::New(lane) => {
                    lane.shards.iter().for_each(|m| self.board.add_shard(Arc::clone(&m.entry)));
                    Some(lane)
                }
            };
            self.lanes.extend(lane);
        }
        self.leaving.extend(old.into_iter().flatten().flat_map(|lane| lane.shards));
    }

    /// Tells the shards of lanes that are no more where their sessions go. To be said again now and then, for shards
    /// it names may have failed since.
    pub(in crate::control) fn send_away(&self) {
        for member in &self.leaving {
            let _ = member.mail.send(Order::Scatter(self.heirs(member.entry.kind)));
        }
    }

    /// Who takes in sessions of a shard of `kind`, those with the least load first: shards of the same driver where
    /// there are any, for to change the driver is another order.
    fn heirs(&self, kind: Kind) -> Arc<[Neighbour]> {
        let is_fit = |lane: &&Lane| kind != Kind::Uring || lane.held.is_none();
        let fit = self.lanes.iter().filter(is_fit).flat_map(|lane| &lane.shards);
        let mut heirs: Vec<&Member> = fit.filter(|member| member.entry.kind == kind).collect();
        if heirs.is_empty() {
            heirs = self.accepting_members();
        }
        heirs.sort_by_key(|member| member.load.get());
        heirs.into_iter().map(Member::as_neighbour).collect()
    }
}

/// Which lane of those there are `now` takes each of the `wanted` places: one on the same CPU, at the same place if it
/// can be, so that little is carried. `None`: a lane has to be added there.
fn assign(now: &[Option<usize>], wanted: &[Option<usize>]) -> Vec<Option<usize>> {
    let is_same = |at: &usize| wanted.get(*at) == now.get(*at);
    let mut rest: Vec<usize> = (0..now.len()).filter(|at| !is_same(at)).collect();
    let assigned = wanted.iter().enumerate().map(|(at, cpu)| {
        if at < now.len() && is_same(&at) {
            return Some(at);
        }
        let fits = rest.iter().position(|lane| now[*lane] == *cpu)?;
        Some(rest.remove(fits))
    });
    assigned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_stay_where_their_cpu_does() {
        let on =
            |cpus: &[usize]| -> Vec<Option<usize>> { cpus.iter().copied().map(Some).collect() };
        assert_eq!(assign(&on(&[0, 1]), &on(&[0, 1, 2])), [Some(0), Some(1), None]);
        assert_eq!(assign(&on(&[0, 1, 2]), &on(&[0])), [Some(0)]);
        assert_eq!(assign(&on(&[0, 1]), &on(&[1, 2])), [Some(1), None]);
        assert_eq!(assign(&on(&[0, 1]), &on(&[1, 0])), [Some(1), Some(0)]);
        assert_eq!(assign(&on(&[0, 1]), &on(&[2, 3])), [None, None]);
        assert_eq!(assign(&on(&[0, 0]), &on(&[1, 0])), [None, Some(1)]);
        assert_eq!(assign(&[None, None], &[None, None, None]), [Some(0), Some(1), None]);
        assert_eq!(assign(&[None, None], &on(&[0, 1])), [None, None], "each is bound to a CPU now");
    }
}
