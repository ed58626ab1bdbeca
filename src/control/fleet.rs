//! The shards: started once and used again, one a lane and driver; which of them accept clients, and who does next.
//!
//! A lane is a place where a shard runs, usually one CPU. Changing the data path hands each lane's listening sockets
//! from the shard of one driver to that of the other: the old one lets go, says so, and only then the new one accepts.
//! Clients that come in between wait in the socket's queue. The same is done where lanes come and go.

mod arrange;
mod ask;
mod resize;
#[cfg(test)]
mod tests;

pub(super) use arrange::other;
pub(super) use resize::Shape;

use super::board::{Board, ShardEntry};
use super::favours::{Favours, Wishes};
use super::ports::Port;
use super::{Cause, worker};
use crate::config::{Config, Percent, limits};
use crate::driver::{Kind, ListenerId, Socket, sys};
use crate::event::{Arm, EndReason, Ended};
use crate::policy::seat::Seat;
use crate::policy::snapshot::{Limit, Snapshot};
use crate::policy::split::Split;
use crate::session::parcel::Parcel;
use crate::shard::mailbox::{Mail, Order};
use crate::shard::placement::{Load, Neighbour};
use crate::shard::spin::Awake;
use crate::tally::Tally;
use crate::time::Time;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// The shards.
pub(super) struct Fleet {
    board: Arc<Board>,
    causes: mpsc::Sender<Cause>,
    journal: mpsc::SyncSender<Ended>,
    lanes: Vec<Lane>,
    favours: Favours,
    /// Shards of lanes that are no more: they end when their sessions have gone to other lanes.
    leaving: Vec<Member>,
    /// What the uring driver may rely on here.
    credit: bool,
    /// Which driver's shards accept clients.
    serving: Kind,
    /// Sockets that a shard was told to let go, and what is to become of them.
    moving: HashMap<(usize, ListenerId), Next>,
    /// How much of the new sessions the shards of the other driver begin.
    share: Percent,
    split: Arc<Split>,
    /// The same for live sessions of another process: the share of new ones stays exact.
    split_inherited: Split,
    next_shard: usize,
    /// The lower 40 bits of the first session's id.
    first_id: u64,
}

/// A place where a shard runs.
struct Lane {
    cpu: Option<usize>,
    /// Its ring misbehaved: until then it stays on epoll.
    held: Option<Time>,
    /// Whether live sessions were told to follow the new ones, when they were told last.
    carries: bool,
    shards: Vec<Member>,
}

impl Lane {
    const fn new(cpu: Option<usize>) -> Self {
        Self { cpu, held: None, carries: false, shards: Vec::new() }
    }
}

/// A running shard.
struct Member {
    entry: Arc<ShardEntry>,
    load: Arc<Load>,
    mail: Mail,
    thread: JoinHandle<()>,
}

impl Member {
    fn as_neighbour(&self) -> Neighbour {
        Neighbour { load: Arc::clone(&self.load), mail: self.mail.clone() }
    }
}

/// What becomes of a socket that is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The shard takes it that accepts in the lane it belongs to.
    Served,
    /// Nobody: its listener is gone.
    Closed,
}

impl Fleet {
    /// A fleet without shards. Its lanes follow from the config and the CPUs this process may use. `credit`: what the
    /// uring driver may rely on; `first_id`: the lower 40 bits of the first session's id.
    pub(super) fn new(
        board: Arc<Board>,
        config: &Config,
        (credit, first_id): (bool, u64),
        causes: mpsc::Sender<Cause>,
        journal: mpsc::SyncSender<Ended>,
    ) -> io::Result<Self> {
        let lanes = places(config)?.into_iter().map(Lane::new).collect();
        Ok(Self {
            favours: Favours::of(config, &sys::affinity(), &board),
            board,
            causes,
            journal,
            lanes,
            leaving: Vec::new(),
            credit,
            serving: Kind::Epoll,
            moving: HashMap::new(),
            share: Percent::ZERO,
            split: Arc::default(),
            split_inherited: Split::default(),
            next_shard: 0,
            first_id,
        })
    }

    /// How many lanes there are.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Which driver's shards accept clients.
    pub(super) fn serving(&self) -> Kind {
        self.serving
    }

    /// Lets the serving shards accept clients of one more port.
    pub(super) fn serve(&self, port: &Port) {
        for at in 0..port.seats.len() {
            self.serve_seat(port, at);
        }
    }

    /// Tells all shards to let go of a port that is to be closed. Whether some must still say that they have.
    pub(super) fn close(&mut self, port: &Port) -> bool {
        for at in 0..port.seats.len() {
            self.release(port, at, self.owner(at), Next::Closed);
        }
        // A hand-over under way ends in a close as well.
        for (_, next) in self.moving.iter_mut().filter(|((_, of), _)| port.seat(*of).is_some()) {
            *next = Next::Closed;
        }
        self.is_held(port)
    }

    /// Whether a shard must still say that it has let go of a port.
    pub(super) fn is_held(&self, port: &Port) -> bool {
        self.moving.keys().any(|(_, of)| port.seat(*of).is_some())
    }

    /// Whether sockets are being handed over.
    pub(super) fn is_moving(&self) -> bool {
        !self.moving.is_empty()
    }

    /// A shard has let go of a listener's socket.
    pub(super) fn released(&mut self, shard: usize, id: ListenerId, ports: &[Port]) {
        let next = self.moving.remove(&(shard, id));
        let found = ports.iter().find_map(|port| Some((port, port.seat(id)?)));
        if let (Some(Next::Served), Some((port, at))) = (next, found) {
            self.serve_seat(port, at);
        }
    }

    /// Gives a client that control accepted to the shard with the least load. It lives by `snapshot`, which has its
    /// listener at this index.
    pub(super) fn adopt(&self, client: socket2::Socket, snapshot: &Arc<Snapshot>, listener: u16) {
        let serving = self.accepting_members();
        let Some(member) = serving.into_iter().min_by_key(|m| m.load.get()) else { return };
        if !member.load.promise() {
            return;
        }
        // Without a place it is still a shard's to turn away, which counts it.
        let no_place = |limit: &Limit| snapshot.count_no_place(usize::from(listener), *limit);
        let seat = Seat::take(snapshot, listener).inspect_err(no_place).ok();
        let client = Socket::owned(client);
        if let Err(unsent) = member.mail.send(Order::Adopt { client, seat }) {
            member.load.sub();
            if let Order::Adopt { client, .. } = unsent {
                drop(client.into_owned());
            }
        }
    }

    /// Takes in a session of another process, on the shard with the least load of those that are its data path's:
    /// they are shared out as new ones are.
    ///
    /// # Errors
    /// The session, where no shard is left.
    pub(super) fn take_in(&self, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        let is_guests = self.split_inherited.assign(self.share) == Arm::Canary;
        let guests = if is_guests { self.guest_members() } else { vec![] };
        let members = if guests.is_empty() { self.accepting_members() } else { guests };
        let member = members.into_iter().min_by_key(|m| m.load.get());
        let Some(member) = member.filter(|m| m.load.promise()) else { return Err(parcel) };
        member.mail.send(Order::Attach(parcel, None)).map_err(|unsent| match unsent {
            Order::Attach(parcel, _) => parcel,
            _ => unreachable!("what was sent comes back"),
        })
    }

    /// Whether no shard has or was promised a session, and none has a socket to let go of.
    pub(super) fn is_quiet(&self) -> bool {
        self.moving.is_empty() && self.members().all(|m| m.load.get() == 0)
    }

    /// Wakes every shard, as it is to be once a second.
    pub(super) fn tick(&self) {
        for member in self.members() {
            member.mail.tick();
        }
    }

    /// Sends an order to every shard.
    pub(super) fn tell_all(&self, order: impl Fn() -> Order) {
        for member in self.members() {
            // A shard that is gone has nothing left to be told.
            let _ = member.mail.send(order());
        }
    }

    /// Ends all sessions.
    pub(super) fn end_all(&self, why: EndReason) {
        self.tell_all(|| Order::EndAll(why));
    }

    /// Forgets a shard whose thread is at its end. Whether it was known.
    pub(super) fn forget(&mut self, shard: usize) -> bool {
        let lanes = self.lanes.iter_mut().map(|lane| &mut lane.shards);
        for members in lanes.chain([&mut self.leaving]) {
            if let Some(at) = members.iter().position(|m| m.entry.id == shard) {
                let member = members.swap_remove(at);
                let _ = member.thread.join();
                self.moving.retain(|(of, _), _| *of != shard);
                self.board.end_shard(&member.entry);
                return true;
            }
        }
        false
    }

    /// Whether no shard is left.
    pub(super) fn is_empty(&self) -> bool {
        self.members().next().is_none()
    }

    /// The lane's shard of a driver, started if need be.
    fn member(&mut self, lane: usize, kind: Kind) -> io::Result<()> {
        if self.lanes[lane].shards.iter().any(|m| m.entry.kind == kind) {
            return Ok(());
        }
        let member = self.start(kind, self.lanes[lane].cpu)?;
        self.board.add_shard(Arc::clone(&member.entry));
        self.lanes[lane].shards.push(member);
        Ok(())
    }

    /// Starts a shard that is in no lane yet.
    fn start(&mut self, kind: Kind, cpu: Option<usize>) -> io::Result<Member> {
        let id = self.next_shard;
        if id >= limits::SHARDS_STARTED_MAX {
            return Err(io::Error::other(
                "this process has started 8192 shards, and has no number for another: upgrade or restart it",
            ));
        }
        let tally = Arc::new(Tally::default());
        tally.shard.next_id.set(self.first_id);
        let load = Arc::new(Load::default());
        let snapshot = self.board.snapshot.load();
        let order = worker::Order {
            id,
            kind,
            cpu,
            credit: self.credit,
            awake: Awake::of(&snapshot.config.shards),
            wishes: Wishes::of(&snapshot.config.shards),
            buffers: snapshot.config.limits.buffers_per_shard,
            buffer_bytes: snapshot.config.limits.buffer_bytes,
            snapshot: Arc::clone(&self.board.snapshot),
            tally: Arc::clone(&tally),
            load: Arc::clone(&load),
            journal: self.journal.clone(),
            causes: self.causes.clone(),
        };
        let (mail, thread, granted) = worker::start(order)?;
        self.favours.judge(kind, granted);
        self.next_shard += 1;
        let entry = Arc::new(ShardEntry::new(id, kind, cpu, tally).with(granted));
        Ok(Member { entry, load, mail, thread })
    }

    fn lane_of(&self, shard: usize) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.shards.iter().any(|m| m.entry.id == shard))
    }
}

/// The CPU of each lane, `None` where it is bound to none: those of the config, within the process's affinity.
pub(super) fn places(config: &Config) -> io::Result<Vec<Option<usize>>> {
    let allowed = sys::affinity();
    let wanted = config.shards.cpus.as_ref().unwrap_or(&allowed);
    let cpus: Vec<usize> = wanted.intersection(&allowed).copied().collect();
    let missing: BTreeSet<&usize> = wanted.difference(&allowed).collect();
    if !missing.is_empty() {
        return Err(io::Error::other(format!(
            "shards.cpus names CPUs this process may not use: {missing:?} of {allowed:?}"
        )));
    }
    let count = config.shards.count.unwrap_or(cpus.len()).max(1);
    let place = |i: usize| cpus.get(i % cpus.len().max(1)).copied().filter(|_| config.shards.pin);
    Ok((0..count).map(place).collect())
}
