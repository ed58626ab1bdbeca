//! Who accepts clients, who begins a share of the sessions, and where live sessions belong.
//!
//! A lane accepts on the serving driver, but on epoll while it is held because its ring misbehaved. Where the other
//! driver has a share of the new sessions, its shards are *guests*: they accept nobody, and are handed clients.

use super::{Fleet, Member, Next};
use crate::config::Percent;
use crate::control::ports::Port;
use crate::driver::{Kind, ListenerId, Socket};
use crate::shard::mailbox::Order;
use crate::shard::placement::Neighbour;
use crate::shard::share::Share;
use crate::time::Time;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The other of the two drivers.
pub(in crate::control) fn other(kind: Kind) -> Kind {
    match kind {
        Kind::Epoll => Kind::Uring,
        Kind::Uring | Kind::Sim => Kind::Epoll,
    }
}

impl Fleet {
    /// Lets the shards of `kind` accept clients of `ports`, and those of the other driver begin a share of the new
    /// sessions; both are started if need be. Lanes that were held are forgiven where io_uring gets a part of it.
    pub(in crate::control) fn serve_with(
        &mut self,
        kind: Kind,
        share: Percent,
        ports: &[Port],
    ) -> io::Result<()> {
        for lane in 0..self.lanes.len() {
            self.member(lane, kind)?;
            if share > Percent::ZERO {
                self.member(lane, other(kind))?;
            }
        }
        self.arrange(ports, |fleet| {
            (fleet.serving, fleet.share) = (kind, share);
            if kind == Kind::Uring || share > Percent::ZERO {
                fleet.lanes.iter_mut().for_each(|lane| lane.held = None);
            }
        });
        Ok(())
    }

    /// How much of the new sessions the shards of the other driver begin.
    pub(in crate::control) fn share(&self) -> Percent {
        self.share
    }

    /// Whether a lane stays on epoll because its ring misbehaved.
    pub(in crate::control) fn has_held(&self) -> bool {
        self.lanes.iter().any(|lane| lane.held.is_some())
    }

    /// Keeps the lane of a shard on epoll until then: its clients, its new sessions and its live ones. Whether that is
    /// a change.
    pub(in crate::control) fn hold(
        &mut self,
        shard: usize,
        until: Time,
        ports: &[Port],
    ) -> io::Result<bool> {
        let Some(lane) = self.lane_of(shard).filter(|lane| self.lanes[*lane].held.is_none()) else {
            return Ok(false);
        };
        self.member(lane, Kind::Epoll)?;
        self.arrange(ports, |fleet| fleet.lanes[lane].held = Some(until));
        self.direct_lane(lane, false);
        Ok(true)
    }

    /// Which lanes stay on epoll, and until when in nanoseconds of the system's monotonic clock.
    pub(in crate::control) fn held(&self) -> BTreeMap<usize, u64> {
        let lanes = self.lanes.iter().enumerate();
        lanes.filter_map(|(at, lane)| Some((at, lane.held?.0))).collect()
    }

    /// Keeps lanes on epoll that another process held there. Nobody accepts clients yet.
    pub(in crate::control) fn hold_lanes(&mut self, held: &[(usize, Time)]) -> io::Result<()> {
        let lanes = self.lanes.len();
        for &(lane, until) in held.iter().filter(|(lane, _)| *lane < lanes) {
            self.member(lane, Kind::Epoll)?;
            self.arrange(&[], |fleet| fleet.lanes[lane].held = Some(until));
        }
        Ok(())
    }

    /// Gives lanes whose hold is over their ring back, for new sessions. How many.
    pub(in crate::control) fn forgive(&mut self, now: Time, ports: &[Port]) -> io::Result<usize> {
        let over = |lane: &usize| self.lanes[*lane].held.is_some_and(|until| until <= now);
        let lanes: Vec<usize> = (0..self.lanes.len()).filter(over).collect();
        for &lane in &lanes {
            if self.serving == Kind::Uring || self.share > Percent::ZERO {
                self.member(lane, Kind::Uring)?;
            }
            self.arrange(ports, |fleet| fleet.lanes[lane].held = None);
            self.direct_lane(lane, false);
        }
        Ok(lanes.len())
    }

    /// Tells all shards where their live sessions belong: `carry` takes them to the shards that new ones go to, else
    /// they stay.
    pub(in crate::control) fn direct(&self, carry: bool) {
        for lane in 0..self.lanes.len() {
            self.direct_lane(lane, carry);
        }
        if carry {
            self.spread();
        }
    }

    fn direct_lane(&self, lane: usize, carry: bool) {
        let heir = self.member_of(lane, self.accepting(lane));
        for member in &self.lanes[lane].shards {
            let kind = member.entry.kind;
            let is_held = kind == Kind::Uring && self.lanes[lane].held.is_some();
            let is_stray = kind != self.accepting(lane) && !self.is_guest(lane, kind);
            let goes = is_held || carry && is_stray;
            let to = heir.filter(|_| goes).map(Member::as_neighbour);
            // A shard that is gone has no sessions.
            let _ = member.mail.send(Order::Evict(to));
        }
    }

    /// Shares the live sessions out as the new ones are. Whether they were.
    pub(in crate::control) fn spread(&self) -> bool {
        if self.share == Percent::ZERO {
            return true;
        }
        let (whole, share) = (u64::from(Percent::WHOLE), u64::from(self.share.hundredths()));
        let (mut all, mut given, mut even) = (0_u64, 0_u64, true);
        for lane in 0..self.lanes.len() {
            let host = self.member_of(lane, self.accepting(lane));
            let guest = self.member_of(lane, other(self.serving));
            let guest = guest.filter(|guest| self.is_guest(lane, guest.entry.kind));
            let (Some(host), Some(guest)) = (host, guest) else { continue };
            let (hosts, guests) = (host.load.get(), guest.load.get());
            let lane_has = u64::from(hosts) + u64::from(guests);
            all += lane_has;
            let due = (all * share + whole / 2) / whole;
            let wanted = due.saturating_sub(given).min(lane_has);
            given = due;
            let (from, sessions, to) = match u64::from(guests) {
                now if now > wanted => (guest, wanted, host),
                now if now < wanted => (host, lane_has - wanted, guest),
                _ => continue,
            };
            even = false;
            let sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
            // A shard that is gone has no sessions.
            let _ = from.mail.send(Order::Keep { sessions, to: to.as_neighbour() });
        }
        even
    }

    /// Starts what is needed of a shard that failed, in its lane, with the sockets it served. `hold`: its lane stays on
    /// epoll until then.
    pub(in crate::control) fn restart(
        &mut self,
        shard: usize,
        hold: Option<Time>,
        ports: &[Port],
    ) -> io::Result<()> {
        let Some(lane) = self.lane_of(shard) else { return Ok(()) };
        let of_shard = |((of, id), next): (&(usize, ListenerId), &Next)| {
            (*of == shard && *next == Next::Served).then_some(*id)
        };
        let moving: Vec<ListenerId> = self.moving.iter().filter_map(of_shard).collect();
        let member = self.lanes[lane].shards.iter().find(|m| m.entry.id == shard);
        let Some(kind) = member.map(|m| m.entry.kind) else { return Ok(()) };
        let accepted = kind == self.accepting(lane);
        self.forget(shard);
        if hold.is_some() {
            self.lanes[lane].held = hold;
        }
        self.member(lane, self.accepting(lane))?;
        if self.is_guest(lane, other(self.serving)) {
            self.member(lane, other(self.serving))?;
        }
        for port in ports {
            let in_hand =
                |(of, id): &(usize, ListenerId)| *id == port.id && self.lane_of(*of) == Some(lane);
            let is_free = accepted && !self.moving.keys().any(in_hand);
            if moving.contains(&port.id) || is_free {
                self.serve_lane(lane, port);
            }
        }
        self.introduce();
        Ok(())
    }

    /// Which driver's shard accepts clients in a lane.
    pub(super) fn accepting(&self, lane: usize) -> Kind {
        if self.lanes[lane].held.is_some() { Kind::Epoll } else { self.serving }
    }

    /// Whether the shard of `kind` begins a share of the new sessions, though it accepts nobody.
    fn is_guest(&self, lane: usize, kind: Kind) -> bool {
        let has_share = self.share > Percent::ZERO && kind == other(self.serving);
        has_share && kind != self.accepting(lane) && self.lanes[lane].held.is_none()
    }

    pub(super) fn member_of(&self, lane: usize, kind: Kind) -> Option<&Member> {
        self.lanes[lane].shards.iter().find(|member| member.entry.kind == kind)
    }

    /// Changes who accepts, and hands the sockets over where that is somebody else now.
    fn arrange(&mut self, ports: &[Port], change: impl FnOnce(&mut Self)) {
        let lanes = 0..self.lanes.len();
        let before: Vec<Kind> = lanes.map(|lane| self.accepting(lane)).collect();
        change(self);
        for (lane, before) in before.into_iter().enumerate() {
            if before != self.accepting(lane) {
                for port in ports {
                    self.release(lane, port, before, Next::Served);
                }
            }
        }
        self.introduce();
    }

    /// Lets go of `port` on the lane's shard of `kind`.
    pub(super) fn release(&mut self, lane: usize, port: &Port, kind: Kind, next: Next) {
        let member = self.member_of(lane, kind);
        let id = member.map(|member| member.entry.id);
        if id.is_some_and(|id| self.moving.contains_key(&(id, port.id))) {
            return;
        }
        let told = member.is_some_and(|m| m.mail.send(Order::Release(port.id)).is_ok());
        match id.filter(|_| told) {
            Some(id) => drop(self.moving.insert((id, port.id), next)),
            // Nobody has it, so nobody needs to let it go.
            None if next == Next::Served => self.serve_lane(lane, port),
            None => {}
        }
    }

    pub(super) fn serve_lane(&self, lane: usize, port: &Port) {
        let Some(member) = self.member_of(lane, self.accepting(lane)) else { return };
        let Some(socket) = port.sockets.get(lane).map(Socket::of) else { return };
        self.favours.mark(port, lane, self.lanes[lane].cpu);
        let order = Order::Serve { listener: port.id, name: Arc::clone(&port.name), socket };
        // A shard that is gone has reported so, and its successor will be told.
        let _ = member.mail.send(order);
    }

    /// Tells each shard whom it may hand clients to, and shows who accepts.
    fn introduce(&self) {
        let accepting = self.accepting_members();
        let guests: Arc<[Neighbour]> =
            self.guest_members().into_iter().map(Member::as_neighbour).collect();
        for (lane, shards) in self.lanes.iter().map(|lane| &lane.shards).enumerate() {
            for member in shards {
                let accepts = member.entry.kind == self.accepting(lane);
                member.entry.serving.store(accepts, Relaxed);
                let others = accepting.iter().filter(|other| other.entry.id != member.entry.id);
                // Steered clients are where they are wanted.
                let others = others.filter(|_| self.favours.evens_out());
                let neighbours: Arc<[Neighbour]> = others.map(|o| o.as_neighbour()).collect();
                let _ = member.mail.send(Order::Neighbours(neighbours));
                let (guests, split) = (Arc::clone(&guests), Arc::clone(&self.split));
                let _ =
                    member.mail.send(Order::Share(Share { guests, split, percent: self.share }));
            }
        }
    }

    /// The shards that begin a share of the new sessions, and accept nobody.
    pub(super) fn guest_members(&self) -> Vec<&Member> {
        let lanes = 0..self.lanes.len();
        let guests = lanes.filter(|lane| self.is_guest(*lane, other(self.serving)));
        guests.filter_map(|lane| self.member_of(lane, other(self.serving))).collect()
    }

    pub(super) fn accepting_members(&self) -> Vec<&Member> {
        let lanes = 0..self.lanes.len();
        lanes.filter_map(|lane| self.member_of(lane, self.accepting(lane))).collect()
    }
}
