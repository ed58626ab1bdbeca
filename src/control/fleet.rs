//! The shards: started once and used again, one a lane and driver; which of them accept clients, and who does next.
//!
//! A lane is a place where a shard runs, usually one CPU. Changing the data path hands each lane's listening sockets
//! from the shard of one driver to that of the other: the old one lets go, says so, and only then the new one accepts.
//! Clients that come in between wait in the socket's queue.

use super::board::{Board, ShardEntry};
use super::ports::Port;
use super::{Cause, worker};
use crate::config::Config;
use crate::driver::{Kind, ListenerId, Socket, sys};
use crate::event::{EndReason, Ended};
use crate::policy::snapshot::Snapshot;
use crate::session::parcel::Parcel;
use crate::shard::mailbox::{Mail, Order};
use crate::shard::placement::{Load, Neighbour};
use crate::tally::Tally;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// The shards.
pub(super) struct Fleet {
    board: Arc<Board>,
    causes: mpsc::Sender<Cause>,
    journal: mpsc::SyncSender<Ended>,
    lanes: Vec<Lane>,
    /// What the uring driver may rely on here.
    credit: bool,
    /// Which driver's shards accept clients.
    serving: Kind,
    /// Sockets that a shard was told to let go, and what is to become of them.
    moving: HashMap<(usize, ListenerId), Next>,
    next_shard: usize,
    /// The lower 48 bits of the first session's id.
    first_id: u64,
}

/// A place where a shard runs.
struct Lane {
    cpu: Option<usize>,
    shards: Vec<Member>,
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
    /// The lane's shard of the serving driver takes it.
    Served,
    /// Nobody: its listener is gone.
    Closed,
}

impl Fleet {
    /// A fleet without shards. Its lanes follow from the config and the CPUs this process may use. `credit`: what the
    /// uring driver may rely on; `first_id`: the lower 48 bits of the first session's id.
    pub(super) fn new(
        board: Arc<Board>,
        config: &Config,
        (credit, first_id): (bool, u64),
        causes: mpsc::Sender<Cause>,
        journal: mpsc::SyncSender<Ended>,
    ) -> io::Result<Self> {
        let lanes = lanes(config)?;
        Ok(Self {
            board,
            causes,
            journal,
            lanes,
            credit,
            serving: Kind::Epoll,
            moving: HashMap::new(),
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

    /// Lets the shards of `kind` accept clients of `ports`, and starts them if need be. `carry`: live sessions follow.
    pub(super) fn serve_with(&mut self, kind: Kind, ports: &[Port], carry: bool) -> io::Result<()> {
        for lane in 0..self.lanes.len() {
            self.member(lane, kind)?;
        }
        let before = std::mem::replace(&mut self.serving, kind);
        for port in ports {
            if before == kind {
                self.serve(port);
            } else {
                self.release(port, before, Next::Served, ports);
            }
        }
        self.introduce();
        if carry {
            self.carry();
        } else {
            self.tell_all(|| Order::Evict(None));
        }
        Ok(())
    }

    /// Carries the live sessions of all lanes to the shards that accept clients.
    pub(super) fn carry(&self) {
        for lane in &self.lanes {
            let heir = lane.shards.iter().find(|m| m.entry.kind == self.serving);
            for member in &lane.shards {
                let goes = member.entry.kind != self.serving;
                let to = heir.filter(|_| goes).map(Member::as_neighbour);
                // A shard that is gone has no sessions.
                let _ = member.mail.send(Order::Evict(to));
            }
        }
    }

    /// Carries a live session to a shard, wherever it is. Whether there is such a shard.
    pub(super) fn move_session(&self, session: u64, shard: usize) -> bool {
        let mut members = self.lanes.iter().flat_map(|lane| &lane.shards);
        let Some(to) = members.find(|m| m.entry.id == shard).map(Member::as_neighbour) else {
            return false;
        };
        self.tell_all(|| Order::Move { session, to: to.clone() });
        true
    }

    /// Lets the serving shards accept clients of one more port.
    pub(super) fn serve(&self, port: &Port) {
        for lane in 0..self.lanes.len() {
            self.serve_lane(lane, port);
        }
    }

    /// Tells all shards to let go of a port that is to be closed. Whether some must still say that they have.
    pub(super) fn close(&mut self, port: &Port) -> bool {
        let (serving, id) = (self.serving, port.id);
        self.release(port, serving, Next::Closed, &[]);
        // A hand-over under way ends in a close as well.
        for (_, next) in self.moving.iter_mut().filter(|((_, of), _)| *of == id) {
            *next = Next::Closed;
        }
        self.is_held(id)
    }

    /// Whether a shard must still say that it has let go of a listener.
    pub(super) fn is_held(&self, id: ListenerId) -> bool {
        self.moving.keys().any(|(_, of)| *of == id)
    }

    /// Whether sockets are being handed over.
    pub(super) fn is_moving(&self) -> bool {
        !self.moving.is_empty()
    }

    /// A shard has let go of a listener's socket.
    pub(super) fn released(&mut self, shard: usize, id: ListenerId, ports: &[Port]) {
        let next = self.moving.remove(&(shard, id));
        let lane = self.lane_of(shard);
        let port = ports.iter().find(|port| port.id == id);
        if let (Some(Next::Served), Some(lane), Some(port)) = (next, lane, port) {
            self.serve_lane(lane, port);
        }
    }

    /// Gives a client that control accepted to the shard with the least load. It lives by `snapshot`, which has its
    /// listener at this index.
    pub(super) fn adopt(&self, client: socket2::Socket, snapshot: &Arc<Snapshot>, listener: u16) {
        let serving = self.serving_members();
        let Some(member) = serving.into_iter().min_by_key(|m| m.load.get()) else { return };
        if !member.load.promise() {
            return;
        }
        let (client, snapshot) = (Socket::owned(client), Arc::clone(snapshot));
        if member.mail.send(Order::Adopt { client, snapshot, listener }).is_err() {
            member.load.sub();
        }
    }

    /// Takes in a session of another process, on the serving shard with the least load.
    ///
    /// # Errors
    /// The session, where no shard is left.
    pub(super) fn take_in(&self, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        let member = self.serving_members().into_iter().min_by_key(|m| m.load.get());
        let Some(member) = member.filter(|m| m.load.promise()) else { return Err(parcel) };
        member.mail.send(Order::Attach(parcel, None)).map_err(|unsent| match unsent {
            Order::Attach(parcel, _) => parcel,
            _ => unreachable!("what was sent comes back"),
        })
    }

    /// Whether no shard has or was promised a session, and none has a socket to let go of.
    pub(super) fn is_quiet(&self) -> bool {
        let mut members = self.lanes.iter().flat_map(|lane| &lane.shards);
        self.moving.is_empty() && members.all(|m| m.load.get() == 0)
    }

    /// Wakes every shard, as it is to be once a second.
    pub(super) fn tick(&self) {
        for member in self.lanes.iter().flat_map(|lane| &lane.shards) {
            member.mail.tick();
        }
    }

    /// Sends an order to every shard.
    pub(super) fn tell_all(&self, order: impl Fn() -> Order) {
        for member in self.lanes.iter().flat_map(|lane| &lane.shards) {
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
        for lane in &mut self.lanes {
            if let Some(at) = lane.shards.iter().position(|m| m.entry.id == shard) {
                let member = lane.shards.swap_remove(at);
                member.entry.serving.store(false, Relaxed);
                let _ = member.thread.join();
                self.moving.retain(|(of, _), _| *of != shard);
                return true;
            }
        }
        false
    }

    /// Starts a shard again that panicked, in its lane, with the sockets it served.
    pub(super) fn restart(&mut self, shard: usize, ports: &[Port]) -> io::Result<()> {
        let lane = self.lane_of(shard);
        let moving: Vec<ListenerId> = self
            .moving
            .iter()
            .filter(|((of, _), next)| *of == shard && **next == Next::Served)
            .map(|((_, id), _)| *id)
            .collect();
        let kind = lane.and_then(|lane| {
            self.lanes[lane].shards.iter().find(|m| m.entry.id == shard).map(|m| m.entry.kind)
        });
        self.forget(shard);
        let (Some(lane), Some(kind)) = (lane, kind) else { return Ok(()) };
        if kind == self.serving {
            self.member(lane, kind)?;
            for port in ports.iter().filter(|port| !self.is_held(port.id)) {
                self.serve_lane(lane, port);
            }
        } else {
            for port in ports.iter().filter(|port| moving.contains(&port.id)) {
                self.serve_lane(lane, port);
            }
        }
        self.introduce();
        Ok(())
    }

    /// Whether no shard is left.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.shards.is_empty())
    }

    /// Lets go of `port` on the shards of `kind`.
    fn release(&mut self, port: &Port, kind: Kind, next: Next, ports: &[Port]) {
        for lane in 0..self.lanes.len() {
            let Some(member) = self.lanes[lane].shards.iter().find(|m| m.entry.kind == kind) else {
                continue;
            };
            let id = member.entry.id;
            if self.moving.contains_key(&(id, port.id)) {
                continue;
            }
            if member.mail.send(Order::Release(port.id)).is_ok() {
                self.moving.insert((id, port.id), next);
            } else if next == Next::Served && ports.iter().any(|p| p.id == port.id) {
                self.serve_lane(lane, port);
            }
        }
    }

    fn serve_lane(&self, lane: usize, port: &Port) {
        let of_kind = |m: &&Member| m.entry.kind == self.serving;
        let Some(member) = self.lanes[lane].shards.iter().find(of_kind) else { return };
        let Some(socket) = port.sockets.get(lane).map(Socket::of) else { return };
        let order = Order::Serve { listener: port.id, name: Arc::clone(&port.name), socket };
        // A shard that is gone has reported so, and its successor will be told.
        let _ = member.mail.send(order);
    }

    /// The lane's shard of a driver, started if need be.
    fn member(&mut self, lane: usize, kind: Kind) -> io::Result<()> {
        if self.lanes[lane].shards.iter().any(|m| m.entry.kind == kind) {
            return Ok(());
        }
        let tally = Arc::new(Tally::default());
        tally.shard.next_id.set(self.first_id);
        let load = Arc::new(Load::default());
        let (id, cpu) = (self.next_shard, self.lanes[lane].cpu);
        let snapshot = self.board.snapshot.load();
        let order = worker::Order {
            id,
            kind,
            cpu,
            credit: self.credit,
            busy_poll_us: snapshot.config.shards.busy_poll_us,
            buffers: snapshot.config.limits.buffers_per_shard,
            buffer_bytes: snapshot.config.limits.buffer_bytes,
            snapshot: Arc::clone(&self.board.snapshot),
            tally: Arc::clone(&tally),
            load: Arc::clone(&load),
            journal: self.journal.clone(),
            causes: self.causes.clone(),
        };
        let (mail, thread) = worker::start(order)?;
        self.next_shard += 1;
        let entry = Arc::new(ShardEntry { id, kind, cpu, serving: false.into(), tally });
        self.board.add_shard(Arc::clone(&entry));
        self.lanes[lane].shards.push(Member { entry, load, mail, thread });
        Ok(())
    }

    /// Tells each serving shard of the others, and shows who serves.
    fn introduce(&self) {
        let serving = self.serving_members();
        for member in self.lanes.iter().flat_map(|lane| &lane.shards) {
            member.entry.serving.store(member.entry.kind == self.serving, Relaxed);
            let others = serving.iter().filter(|other| other.entry.id != member.entry.id);
            let neighbours: Arc<[Neighbour]> = others.map(|other| other.as_neighbour()).collect();
            let _ = member.mail.send(Order::Neighbours(neighbours));
        }
    }

    fn serving_members(&self) -> Vec<&Member> {
        let members = self.lanes.iter().flat_map(|lane| &lane.shards);
        members.filter(|m| m.entry.kind == self.serving).collect()
    }

    fn lane_of(&self, shard: usize) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.shards.iter().any(|m| m.entry.id == shard))
    }
}

/// Where shards run: the CPUs of the config, within the process's affinity.
fn lanes(config: &Config) -> io::Result<Vec<Lane>> {
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
    let lane = |i: usize| Lane {
        cpu: config.shards.pin.then(|| cpus.get(i % cpus.len().max(1)).copied()).flatten(),
        shards: Vec::new(),
    };
    Ok((0..count).map(lane).collect())
}
