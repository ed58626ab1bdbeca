//! New sessions that are begun on the other driver's shards: an exact share, counted over all shards together.

use super::Shard;
use super::mailbox::Order;
use super::placement::Neighbour;
use crate::config::Percent;
use crate::driver::{Driver, Socket};
use crate::event::Arm;
use crate::policy::seat::Seat;
use crate::policy::split::Split;
use crate::session::glance::State;
use std::sync::Arc;

/// Which new sessions go to other shards, whatever there is to do here.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// Where they go: to the one with the least load.
    pub guests: Arc<[Neighbour]>,
    /// The running sum, shared by all shards that accept.
    pub split: Arc<Split>,
    /// How many of all.
    pub percent: Percent,
}

impl<D: Driver> Shard<D> {
    /// Hands a client that falls into the share over. Gives it back where it does not.
    pub(super) fn hand_over(&self, client: Socket, seat: Seat) -> Result<(), (Socket, Seat)> {
        let share = &self.share;
        let least = share.guests.iter().min_by_key(|guest| guest.load.get());
        let goes = |_: &&Neighbour| share.split.assign(share.percent) == Arm::Canary;
        let Some(guest) = least.filter(goes).filter(|guest| guest.load.promise()) else {
            return Err((client, seat));
        };
        match guest.mail.send(Order::Adopt { client, seat: Some(seat) }) {
            // It has just gone, and gives the order back.
            Err(Order::Adopt { client, seat: Some(seat) }) => {
                guest.load.sub();
                Err((client, seat))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Keeps this many live sessions, and sends the others away. Takes the place of all that was to go before.
    pub(super) fn keep_only(&mut self, keep: u32, to: &Neighbour) {
        self.moves.stay();
        let staying = self.sessions.count().saturating_sub(self.moves.settling());
        let surplus = staying.saturating_sub(keep as usize);
        let mut going = vec![];
        for key in self.sessions.keys().into_iter().rev() {
            if going.len() == surplus {
                break;
            }
            let state = self.sessions.session(key).map(|session| session.state());
            if matches!(state, Some(State::Open | State::HalfClosed)) {
                going.push(key);
            }
        }
        for key in going {
            self.queue_move(key, to.clone());
        }
    }
}
