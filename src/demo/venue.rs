//! What the order engine's one lock guards: the book, and who is to be told of what happens in it.

use super::book::{Book, NewOrder, OrderId, Trade};
use super::outbox::Outbox;
use super::protocol::{Answer, Reason, Request};
use crate::config::limits;
use std::collections::HashMap;
use std::sync::Arc;

/// The book and the sessions that trade in it. Every session with an order in the book is here.
#[derive(Debug, Default)]
pub(super) struct Venue {
    book: Book,
    sessions: HashMap<u64, Arc<Outbox>>,
    /// The number of the session that came last; numbers are not used twice.
    last: u64,
    /// Kept from request to request for its memory alone.
    trades: Vec<Trade>,
}

impl Venue {
    /// The number of a new session. `None`: there is no room.
    pub(super) fn enter(&mut self, outbox: &Arc<Outbox>) -> Option<u64> {
        if self.sessions.len() >= limits::ENGINE_CONNECTIONS_MAX {
            return None;
        }
        self.last += 1;
        self.sessions.insert(self.last, Arc::clone(outbox));
        Some(self.last)
    }

    /// Cancels what rests of a session and ends its connection.
    pub(super) fn leave(&mut self, session: u64) {
        self.book.cancel_session(session);
        if let Some(outbox) = self.sessions.remove(&session) {
            outbox.cut();
        }
    }

    /// Ends all connections; each session leaves when its thread sees it.
    pub(super) fn cut_all(&self) {
        self.sessions.values().for_each(|outbox| outbox.cut());
    }

    /// Sessions that are here now.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Orders that rest now.
    pub(super) fn resting(&self) -> usize {
        self.book.len()
    }

    /// Runs one request and tells everybody whom it concerns; `others` are to be flushed when the lock is free.
    pub(super) fn run(
        &mut self,
        session: u64,
        own: &Outbox,
        request: Request,
        others: &mut Vec<Arc<Outbox>>,
    ) {
        let id = request.id();
        let order = OrderId { session, id };
        let refused = |refusal| Answer::Rejected { id: Some(id), reason: Reason::from(refusal) };
        match request {
            Request::Cancel { .. } => own.add(
                &self
                    .book
                    .cancel(order)
                    .map_or_else(refused, |left| Answer::Cancelled { id, left }),
            ),
            Request::New { side, price, quantity, .. } => {
                self.trades.clear();
                let order = NewOrder { id: order, side, price, quantity };
                let done = self.book.place(order, &mut self.trades);
                own.add(&done.map_or_else(refused, |()| Answer::Accepted { id }));
                for trade in &self.trades {
                    self.tell(trade, id, own, others);
                }
            }
        }
    }

    fn tell(&self, trade: &Trade, taker: u64, own: &Outbox, others: &mut Vec<Arc<Outbox>>) {
        let &Trade { maker, maker_left, taker_left, price, quantity } = trade;
        own.add(&Answer::Fill { id: taker, price, quantity, left: taker_left });
        let maker_outbox = &self.sessions[&maker.session];
        maker_outbox.add(&Answer::Fill { id: maker.id, price, quantity, left: maker_left });
        // Not a full search: a second flush of the same outbox costs little, a long list under the lock costs all.
        if others.last().is_none_or(|last| !Arc::ptr_eq(last, maker_outbox)) {
            others.push(Arc::clone(maker_outbox));
        }
    }
}
