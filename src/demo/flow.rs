//! A modest order flow: sessions that place and cancel orders around a price, wait for each answer, think, and now and
//! then log out and come back, so that new sessions keep being assigned to their arms.
//!
//! It believes nothing: an answer to what it did not ask, a fill of an order it does not have, a close it did not ask
//! for and a silence all count as errors. The orders are the seed's; when they come is the machine's.

use super::book::Side;
use super::client::{Client, Trouble};
use super::clock::{now, pause};
use super::histogram::{Histogram, Reading};
use super::protocol::{Answer, Request};
use crate::config::limits;
use crate::tally::Count;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What flow there is to be.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Where orders go.
    pub address: SocketAddr,
    /// Sessions at once, each with its own connection and thread; at most [`limits::FLOW_SESSIONS_MAX`].
    pub sessions: usize,
    /// Which orders they give.
    pub seed: u64,
    /// The price they give orders around, in ticks; more than [`Self::SPREAD`].
    pub mid: u64,
    /// How long a session thinks between an answer and its next request, in microseconds.
    pub think_us: Range<u64>,
    /// How many requests a session makes before it logs out and comes back.
    pub turns: Range<u64>,
}

impl Shape {
    /// How far from the mid orders are priced, in ticks.
    pub const SPREAD: u64 = 20;

    /// 16 sessions that together give some 7,000 orders a second and come back every two seconds or so.
    #[must_use]
    pub const fn towards(address: SocketAddr) -> Self {
        let (think_us, turns) = (1_000..3_000, 500..1_500);
        Self { address, sessions: 16, seed: 1, mid: 10_000, think_us, turns }
    }
}

/// An order flow that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Flow {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a flow has seen so far.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Requests that got their answer.
    pub answered: u64,
    /// Those of them that were rejected: now and then an order is filled while its cancel is on the way.
    pub rejected: u64,
    /// Connections made.
    pub connects: u64,
    /// Whatever should not have happened.
    pub errors: u64,
    /// The last of it, as a sentence.
    pub last_error: Option<String>,
    /// Time from sending a request until its answer was read.
    pub turn: Reading,
}

#[derive(Debug)]
struct Shared {
    shape: Shape,
    stopping: AtomicBool,
    seats: Vec<Seat>,
    last_error: Mutex<Option<String>>,
}

/// What one session's thread counts.
#[derive(Debug, Default)]
struct Seat {
    answered: Count,
    rejected: Count,
    connects: Count,
    errors: Count,
    turn: Histogram,
}

impl Flow {
    /// Starts a flow.
    ///
    /// # Errors
    /// No thread can be started; those that were are stopped again.
    pub fn start(shape: Shape) -> io::Result<Self> {
        let sessions = shape.sessions.min(limits::FLOW_SESSIONS_MAX);
        let shared = Arc::new(Shared {
            shape,
            stopping: AtomicBool::new(false),
            seats: (0..sessions).map(|_| Seat::default()).collect(),
            last_error: Mutex::default(),
        });
        let mut flow = Self { shared, threads: Vec::with_capacity(sessions) };
        for seat in 0..sessions {
            let shared = Arc::clone(&flow.shared);
            let thread = thread::Builder::new().name(format!("flow-{seat}"));
            flow.threads.push(thread.spawn(move || shared.sit(seat))?);
        }
        Ok(flow)
    }

    /// What it has seen so far.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.shared.facts()
    }

    /// Logs all sessions out, waits for them and says what they have seen.
    #[must_use]
    pub fn stop(mut self) -> Facts {
        self.end();
        self.facts()
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr; there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn facts(&self) -> Facts {
        let mut facts = Facts {
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..Facts::default()
        };
        for seat in &self.seats {
            facts.answered += seat.answered.get();
            facts.rejected += seat.rejected.get();
            facts.connects += seat.connects.get();
            facts.errors += seat.errors.get();
            facts.turn.add(&seat.turn);
        }
        facts
    }

    /// One seat's thread: one session after another.
    fn sit(&self, number: usize) {
        let seat = &self.seats[number];
        let mut dice = Dice::new(self.shape.seed, number as u64);
        while !self.stopping.load(Relaxed) {
            if let Err(trouble) = self.session(seat, &mut dice) {
                seat.errors.add(1);
                *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(trouble.to_string());
                pause(Duration::from_millis(limits::FLOW_REST_MS));
            }
        }
    }

    fn session(&self, seat: &Seat, dice: &mut Dice) -> Result<(), Trouble> {
        let mut client = Client::connect(self.shape.address)?;
        seat.connects.add(1);
        let mut last_id = 0;
        for _ in 0..dice.within(&self.shape.turns) {
            if self.stopping.load(Relaxed) {
                break;
            }
            let request = dice.request(&self.shape, client.resting(), &mut last_id);
            let sent = now();
            let answer = client.ask(request)?;
            seat.turn.record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
            seat.answered.add(1);
            seat.rejected.add(u64::from(matches!(answer, Answer::Rejected { .. })));
            pause(Duration::from_micros(dice.within(&self.shape.think_us)));
        }
        client.log_out()
    }
}

/// A sequence of numbers that look random and are the seed's (splitmix64).
struct Dice(u64);

impl Dice {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    fn new(seed: u64, seat: u64) -> Self {
        let mut of_seed = Self(seed);
        // The seat goes through the mixer too: neighbouring states would give each other's numbers one step later.
        Self(of_seed.next() ^ Self(seat).next())
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of the range; its start where it is empty.
    const fn within(&mut self, range: &Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start);
        range.start + if width == 0 { 0 } else { self.next() % width }
    }

    /// What a session with these resting orders asks next: mostly new orders while it has few, more cancels later.
    fn request(&mut self, shape: &Shape, resting: &[u64], last_id: &mut u64) -> Request {
        let at = usize::try_from(self.next() % limits::FLOW_ORDERS_MAX as u64).unwrap_or(0);
        if let Some(&id) = resting.get(at) {
            return Request::Cancel { id };
        }
        *last_id += 1;
        let side = if self.next() & 1 == 0 { Side::Buy } else { Side::Sell };
        // Sides overlap by a quarter of the spread, so that some orders trade at once and others wait.
        let away = self.within(&(0..Shape::SPREAD));
        let price = match side {
            Side::Buy => shape.mid + Shape::SPREAD / 4 - away,
            Side::Sell => shape.mid - Shape::SPREAD / 4 + away,
        };
        Request::New { id: *last_id, side, price, quantity: self.within(&(1..101)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::clock::wait_until;
    use crate::demo::engine::OrderEngine;
    use std::net::TcpListener;

    fn quick(address: SocketAddr) -> Shape {
        Shape { think_us: 100..300, turns: 40..80, ..Shape::towards(address) }
    }

    #[test]
    fn a_flow_straight_to_an_engine_agrees_with_it_about_everything() {
        let engine = OrderEngine::start("127.0.0.1:0".parse().unwrap()).unwrap();
        let flow = Flow::start(quick(engine.address())).unwrap();
        wait_until("the reconnects", || {
            let facts = flow.facts();
            facts.connects >= 48 && facts.answered >= 2_000
        });
        let facts = flow.stop();
        assert_eq!((facts.errors, facts.last_error), (0, None));
        assert_eq!(facts.turn.count(), facts.answered);
        wait_until("the end of the sessions", || engine.sessions() == 0);
        assert_eq!(engine.orders(), facts.answered);
        assert_eq!(engine.resting(), 0, "whatever rested went with its session");
        assert!(facts.rejected * 10 < facts.answered, "{} rejected", facts.rejected);
        let [p50, p99] = [0.5, 0.99].map(|q| facts.turn.quantile_ns(q).unwrap());
        assert!(1_000.0 < p50 && p50 <= p99, "{p50} ns, {p99} ns");
    }

    #[test]
    fn where_nobody_listens_errors_are_counted_and_the_flow_still_stops() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let flow = Flow::start(Shape { sessions: 2, ..quick(address) }).unwrap();
        wait_until("the errors", || flow.facts().errors >= 2);
        let facts = flow.stop();
        assert_eq!((facts.connects, facts.answered), (0, 0));
        assert!(facts.last_error.unwrap().contains("could not connect"));
    }

    #[test]
    fn a_session_that_is_cut_is_an_error_and_comes_back() {
        let first = OrderEngine::start("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.address();
        let flow = Flow::start(Shape { sessions: 2, ..quick(address) }).unwrap();
        wait_until("the first orders", || flow.facts().answered > 10);
        first.stop();
        wait_until("the errors", || flow.facts().errors >= 2);
        let before = flow.facts().answered;
        let _second = OrderEngine::start(address).unwrap();
        wait_until("the orders after", || flow.facts().answered > before + 10);
        drop(flow);
    }

    #[test]
    fn the_seed_chooses_the_orders_and_they_can_trade() {
        let shape = quick("127.0.0.1:1".parse().unwrap());
        let orders = |seat| {
            let (mut dice, mut id) = (Dice::new(shape.seed, seat), 0);
            (0..200).map(|_| dice.request(&shape, &[], &mut id)).collect::<Vec<_>>()
        };
        assert_eq!(orders(3), orders(3));
        assert_ne!(orders(3), orders(4));
        let prices = |wanted| {
            let of = move |request| match request {
                Request::New { side, price, .. } if side == wanted => Some(price),
                _ => None,
            };
            orders(3).into_iter().filter_map(of)
        };
        assert!(prices(Side::Buy).max() > prices(Side::Sell).min());
        assert!(prices(Side::Buy).min() < prices(Side::Sell).min());
    }
}
