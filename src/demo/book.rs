//! A limit-order book with price-time priority: pure, bounded, in whole ticks.
//!
//! Both sides are maps from `Rank` to order, best first: a buyer's rank turns the price around, so one text serves
//! both.
//!
//! **Invariant.** The book is never crossed, and what was accepted is traded, cancelled or resting, to the last unit.
//! (tests: `the_book_does_what_the_model_does`)
//!
//! An order may trade with another of its own session: keeping them apart is the business of a venue's risk gate.

use crate::config::limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which way an order trades.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Trades at its price or below.
    Buy,
    /// Trades at its price or above.
    Sell,
}

/// Names an order: sessions choose their own numbers. Ordered by session first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderId {
    /// Whose it is.
    pub session: u64,
    /// What its session calls it; free again once the order is gone.
    pub id: u64,
}

/// A new limit order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewOrder {
    /// Its name.
    pub id: OrderId,
    /// Which way.
    pub side: Side,
    /// The worst price it takes, in ticks: 1 to [`limits::BOOK_PRICE_MAX`].
    pub price: u64,
    /// 1 to [`limits::BOOK_QUANTITY_MAX`].
    pub quantity: u64,
}

/// Two orders met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trade {
    /// The order that rested.
    pub maker: OrderId,
    /// What is left of it.
    pub maker_left: u64,
    /// What is left of the order that came in.
    pub taker_left: u64,
    /// The maker's price, in ticks.
    pub price: u64,
    /// How much changed hands.
    pub quantity: u64,
}

/// Why the book refused. It is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Outside 1 to [`limits::BOOK_PRICE_MAX`].
    BadPrice,
    /// Outside 1 to [`limits::BOOK_QUANTITY_MAX`].
    BadQuantity,
    /// The session has an order of this number in the book.
    DuplicateId,
    /// The session has no order of this number in the book: it never had, or it was filled.
    UnknownOrder,
    /// The order would rest, and no more may.
    BookFull,
}

/// A limit-order book.
#[derive(Debug)]
pub struct Book {
    bids: BTreeMap<Rank, Resting>,
    asks: BTreeMap<Rank, Resting>,
    places: BTreeMap<OrderId, (Side, Rank)>,
    arrivals: u64,
    orders_max: usize,
}

/// Where an order stands on its side; the least is the next to trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// How far its price is from the best there could be, in ticks.
    distance: u64,
    /// Its number in the order of arrival.
    arrival: u64,
}

#[derive(Debug)]
struct Resting {
    id: OrderId,
    price: u64,
    left: u64,
}

impl Side {
    const fn distance(self, price: u64) -> u64 {
        match self {
            Self::Buy => limits::BOOK_PRICE_MAX - price,
            Self::Sell => price,
        }
    }
}

impl NewOrder {
    const fn takes(&self, price: u64) -> bool {
        match self.side {
            Side::Buy => price <= self.price,
            Side::Sell => price >= self.price,
        }
    }
}

impl Default for Book {
    fn default() -> Self {
        Self::new(limits::BOOK_ORDERS_MAX)
    }
}

impl Book {
    /// An empty book in which at most `orders_max` orders rest.
    #[must_use]
    pub const fn new(orders_max: usize) -> Self {
        Self {
            bids: BTreeMap::new(),
            asks: BTreeMap::new(),
            places: BTreeMap::new(),
            arrivals: 0,
            orders_max,
        }
    }

    /// Orders that rest now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no order rests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Takes a new order: it trades with what it crosses, best price and oldest first, each at the resting order's
    /// price, and what is left of it rests. Trades are added to `trades` in the order they happened.
    ///
    /// # Errors
    /// A price, quantity or id the book does not take, or no room; nothing has happened then.
    pub fn place(&mut self, order: NewOrder, trades: &mut Vec<Trade>) -> Result<(), Refusal> {
        if !(1..=limits::BOOK_PRICE_MAX).contains(&order.price) {
            return Err(Refusal::BadPrice);
        }
        if !(1..=limits::BOOK_QUANTITY_MAX).contains(&order.quantity) {
            return Err(Refusal::BadQuantity);
        }
        if self.places.contains_key(&order.id) {
            return Err(Refusal::DuplicateId);
        }
        // An order that crosses needs no room: it is filled, or it frees the place of one that it filled.
        if self.len() >= self.orders_max && !self.crosses(&order) {
            return Err(Refusal::BookFull);
        }
        let left = self.trade(&order, trades);
        if left > 0 {
            self.rest(&order, left);
        }
        Ok(())
    }

    /// Takes an order out; says how much of it was left.
    ///
    /// # Errors
    /// [`Refusal::UnknownOrder`].
    pub fn cancel(&mut self, id: OrderId) -> Result<u64, Refusal> {
        let (side, rank) = self.places.remove(&id).ok_or(Refusal::UnknownOrder)?;
        let resting = self.side(side).remove(&rank).expect("an order stands where its place says");
        Ok(resting.left)
    }

    /// Takes out all orders of a session; says how many there were.
    pub fn cancel_session(&mut self, session: u64) -> usize {
        let all = OrderId { session, id: 0 }..=OrderId { session, id: u64::MAX };
        let ids: Vec<OrderId> = self.places.range(all).map(|(&id, _)| id).collect();
        for &id in &ids {
            self.cancel(id).expect("its place was just read");
        }
        ids.len()
    }

    const fn side(&mut self, side: Side) -> &mut BTreeMap<Rank, Resting> {
        match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        }
    }

    const fn opposite(&mut self, side: Side) -> &mut BTreeMap<Rank, Resting> {
        match side {
            Side::Buy => &mut self.asks,
            Side::Sell => &mut self.bids,
        }
    }

    fn crosses(&mut self, order: &NewOrder) -> bool {
        let best = self.opposite(order.side).first_key_value();
        best.is_some_and(|(_, resting)| order.takes(resting.price))
    }

    fn trade(&mut self, order: &NewOrder, trades: &mut Vec<Trade>) -> u64 {
        let mut left = order.quantity;
        while left > 0 {
            let Some(mut best) = self.opposite(order.side).first_entry() else { break };
            let maker = best.get_mut();
            if !order.takes(maker.price) {
                break;
            }
            let quantity = left.min(maker.left);
            left -= quantity;
            maker.left -= quantity;
            let (id, price, maker_left) = (maker.id, maker.price, maker.left);
            trades.push(Trade { maker: id, maker_left, taker_left: left, price, quantity });
            if maker_left == 0 {
                best.remove();
                self.places.remove(&id);
            }
        }
        left
    }

    fn rest(&mut self, order: &NewOrder, left: u64) {
        let rank = Rank { distance: order.side.distance(order.price), arrival: self.arrivals };
        self.arrivals += 1;
        self.places.insert(order.id, (order.side, rank));
        let resting = Resting { id: order.id, price: order.price, left };
        self.side(order.side).insert(rank, resting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDERS_MAX: usize = 12;

    fn id(session: u64, id: u64) -> OrderId {
        OrderId { session, id }
    }

    fn order(n: u64, side: Side, price: u64, quantity: u64) -> NewOrder {
        NewOrder { id: id(1, n), side, price, quantity }
    }

    fn place(book: &mut Book, order: NewOrder) -> Vec<Trade> {
        let mut trades = Vec::new();
        book.place(order, &mut trades).unwrap();
        trades
    }

    #[test]
    fn the_best_price_trades_first_then_the_oldest_and_the_rest_rests() {
        let mut book = Book::default();
        place(&mut book, order(1, Side::Sell, 101, 5));
        place(&mut book, order(2, Side::Sell, 100, 5));
        place(&mut book, order(3, Side::Sell, 100, 5));
        let trades = place(&mut book, order(4, Side::Buy, 101, 20));
        let seen: Vec<_> = trades.iter().map(|t| (t.maker.id, t.price, t.taker_left)).collect();
        assert_eq!(seen, [(2, 100, 15), (3, 100, 10), (1, 101, 5)]);
        assert_eq!(book.cancel(id(1, 4)), Ok(5), "what was not filled");
        assert!(book.is_empty());
    }

    #[test]
    fn a_partial_fill_keeps_its_place_in_the_queue() {
        let mut book = Book::default();
        place(&mut book, order(1, Side::Buy, 100, 5));
        place(&mut book, order(2, Side::Buy, 100, 5));
        assert_eq!(place(&mut book, order(3, Side::Sell, 99, 2))[0].maker_left, 3);
        let trades = place(&mut book, order(4, Side::Sell, 100, 4));
        assert_eq!(trades.iter().map(|t| t.maker.id).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_is_wrong_is_refused_and_changes_nothing() {
        let mut book = Book::new(1);
        let mut trades = Vec::new();
        let mut refused = |order| book.place(order, &mut trades).unwrap_err();
        assert_eq!(refused(order(1, Side::Buy, 0, 5)), Refusal::BadPrice);
        assert_eq!(refused(order(1, Side::Buy, u64::MAX, 5)), Refusal::BadPrice);
        assert_eq!(refused(order(1, Side::Buy, 100, 0)), Refusal::BadQuantity);
        assert_eq!(refused(order(1, Side::Buy, 100, u64::MAX)), Refusal::BadQuantity);
        place(&mut book, order(1, Side::Buy, 100, 5));
        let mut refused = |order| book.place(order, &mut trades).unwrap_err();
        assert_eq!(refused(order(1, Side::Sell, 100, 5)), Refusal::DuplicateId);
        assert_eq!(refused(order(2, Side::Buy, 100, 5)), Refusal::BookFull);
        assert_eq!(book.cancel(id(2, 1)), Err(Refusal::UnknownOrder), "another session's");
        assert_eq!((book.len(), trades.len()), (1, 0));
    }

    #[test]
    fn an_order_that_crosses_needs_no_room() {
        let mut book = Book::new(1);
        place(&mut book, order(1, Side::Buy, 100, 5));
        assert_eq!(place(&mut book, order(2, Side::Sell, 100, 8)).len(), 1);
        assert_eq!(book.cancel(id(1, 2)), Ok(3), "it rests in the place it freed");
    }

    /// The book as one would explain it: a list in the order of arrival, searched from its start.
    #[derive(Default)]
    struct Model(Vec<(NewOrder, u64)>);

    impl Model {
        fn place(&mut self, order: NewOrder, trades: &mut Vec<Trade>) -> Result<(), Refusal> {
            let meets = |resting: &NewOrder| match order.side {
                Side::Buy => resting.side == Side::Sell && resting.price <= order.price,
                Side::Sell => resting.side == Side::Buy && resting.price >= order.price,
            };
            if order.price == 0 {
                return Err(Refusal::BadPrice);
            }
            if order.quantity == 0 {
                return Err(Refusal::BadQuantity);
            }
            if self.0.iter().any(|(o, _)| o.id == order.id) {
                return Err(Refusal::DuplicateId);
            }
            if self.0.len() >= ORDERS_MAX && !self.0.iter().any(|(o, _)| meets(o)) {
                return Err(Refusal::BookFull);
            }
            let mut left = order.quantity;
            while left > 0 {
                let mut best: Option<usize> = None;
                for (at, (o, _)) in self.0.iter().enumerate().filter(|(_, (o, _))| meets(o)) {
                    let better = best.is_none_or(|b| match order.side {
                        Side::Buy => o.price < self.0[b].0.price,
                        Side::Sell => o.price > self.0[b].0.price,
                    });
                    if better {
                        best = Some(at);
                    }
                }
                let Some(at) = best else { break };
                let (maker, maker_left) = &mut self.0[at];
                let quantity = left.min(*maker_left);
                left -= quantity;
                *maker_left -= quantity;
                trades.push(Trade {
                    maker: maker.id,
                    maker_left: *maker_left,
                    taker_left: left,
                    price: maker.price,
                    quantity,
                });
                self.0.retain(|&(_, left)| left > 0);
            }
            if left > 0 {
                self.0.push((order, left));
            }
            Ok(())
        }

        fn cancel(&mut self, id: OrderId) -> Result<u64, Refusal> {
            let at = self.0.iter().position(|(o, _)| o.id == id).ok_or(Refusal::UnknownOrder)?;
            Ok(self.0.remove(at).1)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Place(NewOrder),
        Cancel(OrderId),
        Leave(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let ids = || (0_u64..3, 0_u64..9).prop_map(|(s, n)| id(s, n));
        let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
        let orders = (ids(), side, 0_u64..8, 0_u64..20)
            .prop_map(|(id, side, price, quantity)| NewOrder { id, side, price, quantity });
        prop_oneof![
            12 => orders.prop_map(Step::Place),
            4 => ids().prop_map(Step::Cancel),
            1 => (0_u64..3).prop_map(Step::Leave),
        ]
    }

    proptest! {
        #[test]
        fn the_book_does_what_the_model_does(steps in prop::collection::vec(step(), 0..120)) {
            let (mut book, mut model) = (Book::new(ORDERS_MAX), Model::default());
            let (mut accepted, mut traded, mut cancelled) = (0, 0, 0);
            for step in steps {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                match step {
                    Step::Place(order) => {
                        let done = book.place(order, &mut ours);
                        prop_assert_eq!(done, model.place(order, &mut theirs));
                        accepted += done.map_or(0, |()| order.quantity);
                    }
                    Step::Cancel(id) => {
                        let done = book.cancel(id);
                        prop_assert_eq!(done, model.cancel(id));
                        cancelled += done.unwrap_or(0);
                    }
                    Step::Leave(session) => {
                        let of = |o: &NewOrder| o.id.session == session;
                        let here = model.0.iter().filter(|(o, _)| of(o));
                        let (count, left) = here.fold((0, 0), |(n, sum), (_, l)| (n + 1, sum + l));
                        model.0.retain(|(o, _)| !of(o));
                        prop_assert_eq!(book.cancel_session(session), count);
                        cancelled += left;
                    }
                }
                prop_assert_eq!(&ours, &theirs, "which orders traded, in which order");
                traded += ours.iter().map(|t| t.quantity).sum::<u64>();
                let bid = book.bids.first_key_value().map_or(0, |(_, o)| o.price);
                let ask = book.asks.first_key_value().map_or(u64::MAX, |(_, o)| o.price);
                prop_assert!(bid < ask, "crossed: {} against {}", bid, ask);
                let resting: u64 = book.bids.values().chain(book.asks.values()).map(|o| o.left).sum();
                prop_assert_eq!(accepted, resting + cancelled + 2 * traded);
                prop_assert_eq!(book.places.len(), book.bids.len() + book.asks.len());
                prop_assert!(book.len() <= ORDERS_MAX);
            }
        }
    }
}
