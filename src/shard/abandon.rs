//! The end of a shard that has failed: nothing it has, and nothing on its way to it, is left without an owner.

use super::Shard;
use super::mailbox::Order;
use crate::config::limits;
use crate::driver::{Completion, Driver};
use crate::event::EndReason;
use crate::session::sabotage::{self, Mutation};
use std::time::Duration;

impl<D: Driver> Shard<D> {
    /// Resets all sessions and counts them, with those that are on their way here: the shard has failed, and only its
    /// driver is still to go. Waits a moment for what others promised and have not sent.
    pub fn abandon(&mut self) {
        self.ending = Some(EndReason::ShardFailed);
        for key in self.sessions.keys() {
            let Some(mut session) = self.sessions.take(key) else { continue };
            let ended = session.abandon(&mut self.step_of(key), EndReason::ShardFailed);
            self.account(&session, ended);
        }
        self.abandon_spares();
        self.lose_parked(EndReason::ShardFailed);
        self.refuse_accepted();
        self.refuse_waiting();
        self.lose_mail();
    }

    /// Turns away who was accepted and is not a session yet. What else the driver has to say is nobody's any more.
    fn refuse_accepted(&mut self) {
        if sabotage::is(Mutation::AcceptedForgotten) {
            return;
        }
        while let Some(completion) = self.driver.next() {
            if let Completion::Accepted { result: Ok(client), .. } = completion {
                self.parts.tally.shard.accepted.add(1);
                self.refuse(client);
            }
        }
    }

    /// Empties the mailbox, until all that was promised has come: afterwards nobody can promise, so nobody sends what
    /// would be lost with the mailbox.
    fn lose_mail(&mut self) {
        if sabotage::is(Mutation::MailForgotten) {
            return self.parts.load.fail();
        }
        while let Ok(order) = self.parts.orders.try_recv() {
            self.lose_order(order);
        }
        let patience = Duration::from_millis(limits::ABANDON_MS_MAX);
        while !self.parts.load.leave() {
            // A step that panicked may have left the count wrong: then nothing comes.
            match self.parts.orders.recv_timeout(patience) {
                Ok(order) => self.lose_order(order),
                Err(_) => return self.parts.load.fail(),
            }
        }
    }

    fn lose_order(&mut self, order: Order) {
        match order {
            Order::Adopt { client, .. } => {
                self.parts.load.sub();
                self.refuse(client);
            }
            Order::Attach(parcel, _) => {
                self.parts.tally.shard.moves_failed.add(1);
                self.park(parcel);
            }
            // They bring no socket but control's.
            Order::Serve { .. }
            | Order::Release(_)
            | Order::Neighbours(_)
            | Order::Evict(_)
            | Order::Scatter(_)
            | Order::StayAwake(_)
            | Order::Move { .. }
            | Order::Share(_)
            | Order::Keep { .. }
            | Order::List { .. }
            | Order::Weigh(_)
            | Order::EndAll(_)
            | Order::Leave => {}
        }
    }
}
