//! Admission: a client that came in gets a place and a shard, waits for its turn, and begins its session.

use super::Shard;
use super::mailbox::Order;
use super::placement;
use crate::config::limits;
use crate::driver::{Driver, Socket};
use crate::event::{EndReason, session_id};
use crate::policy::seat::Seat;
use crate::policy::snapshot::Snapshot;
use crate::session::{Birth, Session};
use std::collections::VecDeque;
use std::sync::Arc;

/// The config a client lives by, and the index there of the listener it came in at.
pub(super) struct CameIn {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) listener: u16,
}

/// Clients that have come and wait for their sessions to begin, few in a turn, so that those who have sessions do not
/// wait for all of them.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Those that have a place. There are no more than `sessions_max`, and so no more descriptors than were reckoned
    /// with.
    seated: VecDeque<(Socket, Seat)>,
    /// Those that came when all places were taken, some by clients that wait and may have left long ago. They stand
    /// until it is known, never more than are seated: each has the descriptor that a seated one's backend will need.
    standing: VecDeque<(Socket, CameIn)>,
    /// How many were looked at in this turn.
    looked: u32,
    /// More waited than may begin in a turn, and some of them still do.
    crowded: bool,
}

impl Arrivals {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.seated.is_empty()
    }

    /// Whether anybody waits without a place.
    pub(super) fn stand(&self) -> bool {
        !self.standing.is_empty()
    }

    /// Who has waited longest, if one more may be looked at in this turn.
    fn look(&mut self) -> Option<&(Socket, Seat)> {
        let first = self.seated.front().filter(|_| self.looked < limits::ARRIVALS_PER_TURN_MAX)?;
        self.looked += 1;
        Some(first)
    }
}

impl<D: Driver> Shard<D> {
    /// Finds a place for a new client, or lets it stand until one may come free.
    pub(super) fn place(&mut self, client: Socket, came_in: Option<CameIn>) {
        let Some(came_in) = came_in else { return self.refuse(client) };
        match Seat::take(&came_in.snapshot, came_in.listener) {
            Ok(seat) => self.seat(client, seat),
            Err(_) => {
                self.arrivals.standing.push_back((client, came_in));
                self.seat_standing();
            }
        }
    }

    /// Gives places that came free to those that have stood longest, and turns the last away where more stand than are
    /// seated, unless its own listener has a place.
    fn seat_standing(&mut self) {
        while let Some((client, came_in)) = self.arrivals.standing.pop_front() {
            match Seat::take(&came_in.snapshot, came_in.listener) {
                Ok(seat) => self.seat(client, seat),
                Err(_) => {
                    self.arrivals.standing.push_front((client, came_in));
                    break;
                }
            }
        }
        while self.arrivals.standing.len() > self.arrivals.seated.len() {
            let Some((client, came_in)) = self.arrivals.standing.pop_back() else { break };
            match Seat::take(&came_in.snapshot, came_in.listener) {
                Ok(seat) => self.seat(client, seat),
                Err(limit) => {
                    came_in.snapshot.count_no_place(usize::from(came_in.listener), limit);
                    self.refuse(client);
                }
            }
        }
    }

    /// Gives a client that has a place to the shard that has least to do.
    fn seat(&mut self, client: Socket, seat: Seat) {
        let Err((client, seat)) = self.hand_over(client, seat) else { return };
        let own = self.parts.load.get();
        let neighbours = Arc::clone(&self.neighbours);
        let other = placement::elsewhere(own, &neighbours).filter(|other| other.load.promise());
        let Some(other) = other else {
            self.parts.load.add();
            return self.adopt(client, Some(seat));
        };
        match other.mail.send(Order::Adopt { client, seat: Some(seat) }) {
            Ok(()) => self.parts.tally.shard.placed_elsewhere.add(1),
            // It has just gone, and gives the order back.
            Err(Order::Adopt { client, seat }) => {
                other.load.sub();
                self.parts.load.add();
                self.adopt(client, seat);
            }
            Err(_) => {}
        }
    }

    /// Turns a client away: by a reset, so that nobody takes it for a session.
    pub(super) fn refuse(&mut self, client: Socket) {
        self.parts.tally.shard.refused_full.add(1);
        self.refused_at = Some(self.now);
        self.driver.abort(&client);
        self.driver.close(None, client);
    }

    /// Takes a client in that counts as this shard's load already: at the end of the turn, or of a later one where
    /// many come. Without a place it is turned away.
    pub(super) fn adopt(&mut self, client: Socket, seat: Option<Seat>) {
        if let Some(seat) = seat {
            return self.arrivals.seated.push_back((client, seat));
        }
        self.parts.load.sub();
        self.refuse(client);
    }

    /// Begins sessions of clients that have come. In a crowd those that have left already cost no backend; else nobody
    /// is asked, for that is a call into the kernel, and a receive says it soon enough.
    pub(super) fn admit(&mut self) {
        let waiting = self.arrivals.seated.len();
        let goes_on = self.arrivals.crowded && waiting > 0;
        let crowded = goes_on || waiting > limits::BEGINNINGS_PER_TURN_MAX as usize;
        self.arrivals.crowded = crowded;
        let mut begun = 0;
        while begun < limits::BEGINNINGS_PER_TURN_MAX {
            let Some((first, _)) = self.arrivals.look() else { break };
            let left = crowded && self.driver.take_error(first).is_err();
            let Some((client, seat)) = self.arrivals.seated.pop_front() else { break };
            self.seat_standing();
            begun += u32::from(!left);
            self.begin(client, seat, left.then_some(EndReason::ClientLeft));
        }
        self.seat_standing();
        self.arrivals.looked = 0;
    }

    /// Turns away who waits for a turn that will not come.
    pub(super) fn refuse_waiting(&mut self) {
        for (client, _) in std::mem::take(&mut self.arrivals.seated) {
            self.parts.load.sub();
            self.refuse(client);
        }
        for (client, _) in std::mem::take(&mut self.arrivals.standing) {
            self.refuse(client);
        }
    }

    /// Begins the session of a client, which ends at once where there is a reason.
    fn begin(&mut self, client: Socket, seat: Seat, over: Option<EndReason>) {
        let Some(key) = self.sessions.reserve() else {
            self.parts.load.sub();
            return self.refuse(client);
        };
        let (snapshot, listener) = seat.into_session();
        let next_id = &self.parts.tally.shard.next_id;
        let id = session_id(self.parts.id, next_id.get());
        next_id.add(1);
        self.parts.tally.shard.sessions.add(1);
        self.parts.tally.shard.begun.add(1);
        let birth = Birth { client, snapshot, listener, id };
        let session = Session::begin(&mut self.step_of(key), birth, over);
        self.sessions.put(key, session);
        self.settle_in(key);
    }
}
