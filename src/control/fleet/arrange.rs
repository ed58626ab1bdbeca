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
    /// Starts what is missing for the shards of `kind` to accept clients, and for those of the other driver to begin a
    /// share of the new sessions.
    ///
    /// # Errors
    /// A shard cannot start; nothing has changed.
    pub(in crate::control) fn provide(&mut self, kind: Kind, share: Percent) -> io::Result<()> {
        for lane in 0..self.lanes.len() {
            self.member(lane, kind)?;
            if share > Percent::ZERO {
                self.member(lane, other(kind))?;
            }
        }
        Ok(())
    }

    /// Lets the shards of `kind`, which are [there](Self::provide), accept clients of `ports`, and those of the other
    /// driver begin a share of the new sessions. Lanes that were held are forgiven where io_uring gets a part of it.
    pub(in crate::control) fn serve_with(&mut self, kind: Kind, share: Percent, ports: &[Port]) {
        self.arrange(ports, |fleet| {
            (fleet.serving, fleet.share) = (kind, share);
            if kind == Kind::Uring || share > Percent::ZERO {
                fleet.lanes.iter_mut().for_each(|lane| lane.held = None);
            }
        });
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
    pub(in crate::control) fn direct(&mut self, carry: bool) {
        for lane in 0..self.lanes.len() {
            self.direct_lane(lane, carry);
        }
        if carry {
            self.spread();
        }
    }

    fn direct_lane(&mut self, lane: usize, carry: bool) {
        self.lanes[lane].carries = carry;
        self.repeat(lane);
    }

    /// Tells all shards once more where their live sessions belong, for something else was said meanwhile.
    pub(in crate::control) fn direct_again(&self) {
        (0..self.lanes.len()).for_each(|lane| self.repeat(lane));
    }

    fn repeat(&self, lane: usize) {
        let carry = self.lanes[lane].carries;
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
        let of_shard = |((of, id), next): (&(usize, ListenerId), &Next)| {
            (*of == shard && *next == Next::Served).then_some(*id)
        };
        let moving: Vec<ListenerId> = self.moving.iter().filter_map(of_shard).collect();
        let lane = self.lane_of(shard);
        let accepted = lane.is_some_and(|lane| {
            self.member_of(lane, self.accepting(lane)).is_some_and(|m| m.entry.id == shard)
        });
        self.forget(shard);
        // One of a lane that is no more has no successor.
        if let Some(lane) = lane {
            if hold.is_some() {
                self.lanes[lane].held = hold;
            }
            self.member(lane, self.accepting(lane))?;
            if self.is_guest(lane, other(self.serving)) {
                self.member(lane, other(self.serving))?;
            }
        }
        for port in ports {
            for (at, seat) in port.seats.iter().enumerate() {
                let was_its =
                    accepted && lane == Some(self.lane_for(at)) && !self.is_moving_seat(seat.id);
                if moving.contains(&seat.id) || was_its {
                    self.serve_seat(port, at);
                }
            }
        }
        self.introduce();
        if let Some(lane) = lane {
            // Whoever was to take sessions in is another now, and so is whoever failed before all were gone.
            self.repeat(lane);
        }
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
    pub(super) fn arrange(&mut self, ports: &[Port], change: impl FnOnce(&mut Self)) {
        let most = ports.iter().map(|port| port.seats.len()).max().unwrap_or(0);
        let before: Vec<Option<usize>> = (0..most).map(|at| self.owner(at)).collect();
        change(self);
        for port in ports {
            for (at, before) in before.iter().enumerate().take(port.seats.len()) {
                if *before != self.owner(at) {
                    self.release(port, at, *before, Next::Served);
                }
            }
        }
        self.introduce();
    }

    /// The lane that a seat belongs to: where there are more seats than lanes, some have several.
    fn lane_for(&self, at: usize) -> usize {
        at % self.lanes.len()
    }

    /// The shard that serves a seat, unless the seat is on its way there.
    pub(super) fn owner(&self, at: usize) -> Option<usize> {
        let lane = self.lane_for(at);
        self.member_of(lane, self.accepting(lane)).map(|member| member.entry.id)
    }

    /// Whether a shard was told to let go of this socket, and has not said yet that it has.
    fn is_moving_seat(&self, id: ListenerId) -> bool {
        self.moving.keys().any(|(_, of)| *of == id)
    }

    /// Lets go of a seat on this shard. One that is being let go finds its way from there.
    pub(super) fn release(&mut self, port: &Port, at: usize, shard: Option<usize>, next: Next) {
        let id = port.seats[at].id;
        if self.is_moving_seat(id) {
            return;
        }
        let member = self.members().find(|member| Some(member.entry.id) == shard);
        let told = member.filter(|m| m.mail.send(Order::Release(id)).is_ok());
        match told.map(|member| member.entry.id) {
            Some(shard) => drop(self.moving.insert((shard, id), next)),
            // Nobody has it, so nobody needs to let it go.
            None if next == Next::Served => self.serve_seat(port, at),
            None => {}
        }
    }

    /// Has a seat served in the lane it belongs to.
    pub(in crate::control) fn serve_seat(&self, port: &Port, at: usize) {
        let lane = self.lane_for(at);
        let Some(member) = self.member_of(lane, self.accepting(lane)) else { return };
        let seat = &port.seats[at];
        self.favours.mark(&port.name, &seat.socket, self.lanes[lane].cpu);
        let (name, socket) = (Arc::clone(&port.name), Socket::of(&seat.socket));
        let order = Order::Serve { listener: seat.id, name, socket };
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
                member.entry.place(Some(lane));
            }
        }
        for member in &self.leaving {
            member.entry.serving.store(false, Relaxed);
            member.entry.place(None);
        }
        for member in self.members() {
            let others = accepting.iter().filter(|other| other.entry.id != member.entry.id);
            // Steered clients are where they are wanted.
            let others = others.filter(|_| self.favours.evens_out());
            let neighbours: Arc<[Neighbour]> = others.map(|o| o.as_neighbour()).collect();
            let _ = member.mail.send(Order::Neighbours(neighbours));
            let (guests, split) = (Arc::clone(&guests), Arc::clone(&self.split));
            let _ = member.mail.send(Order::Share(Share { guests, split, percent: self.share }));
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
