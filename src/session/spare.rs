//! Connections to backends that stand ready, so that a client's first byte waits for no handshake.
//!
//! Nothing of a ready connection is in flight and it is attached to no session: it can be taken or closed at once, and
//! what its backend says early waits in the kernel for whoever takes it. Nobody is told when its backend leaves, so it
//! is asked: once a second, and when it is taken. A backend that leaves after that, or whose end is still on its way,
//! is its session's to hear: it ends as one whose backend has just left does, for the same reason.
//!
//! Nothing is sent on one before it has a session: what a session has to say first goes out when it takes it.
//!
//! The shard keeps the shelf full; sessions take from it. A spare is closed by a reset, as a connect that came too late
//! is: its backend does not take it for a client that had nothing to say.

use super::{Session, Stage, Step};
use crate::config::{Tcp, limits};
use crate::driver::{Driver, Errno, Side, Socket};
use crate::policy::snapshot::BackendIndex;
use crate::tally::ShardTally;
use crate::time::Time;
use std::net::SocketAddr;

/// What one place of the shelf is for: connections that sessions may exchange for their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The backend.
    pub address: SocketAddr,
    /// The socket options that its sessions' listeners ask for.
    pub tcp: Tcp,
    /// How many are to be ready.
    pub count: usize,
    /// How long one may be ready, in milliseconds.
    pub idle_ms: u32,
    /// How long one attempt may take, in milliseconds.
    pub connect_ms: u32,
}

impl Wish {
    /// Whether connections of both can be exchanged.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.leads_to(other.address, &other.tcp)
    }

    fn leads_to(&self, address: SocketAddr, tcp: &Tcp) -> bool {
        self.address == address && self.tcp == *tcp
    }
}

/// Why a ready connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its backend has ended it.
    Ended,
    /// It was ready for too long: what lies on the way may have forgotten it.
    Aged,
    /// Nobody wants it any more.
    Unwanted,
    /// Descriptors or memory ran out.
    Short,
}

/// The ready connections of one shard, by backend. A few places: each is looked at in turn.
#[derive(Debug, Default)]
pub struct Shelf {
    places: Vec<Place>,
    /// Something was taken or closed since the shard looked.
    pub touched: bool,
    /// Descriptors or memory ran out since the shard looked.
    pub short: bool,
}

/// Ready connections to one backend, and how it has behaved.
#[derive(Debug)]
pub struct Place {
    /// What it is for.
    pub wish: Wish,
    /// The one made last stands last.
    ready: Vec<Ready>,
    /// Attempts that failed, and looks that found connections ended, since one was last found to stand.
    failures: u32,
    /// The backend is left alone until then.
    rest_until: Time,
}

#[derive(Debug)]
struct Ready {
    socket: Socket,
    /// On the driver's clock: what forgets a connection does not stop when this thread is stopped.
    since: Time,
}

impl Ready {
    /// Why nobody is to take it. `None`: it stands, and is not too old.
    fn unfit<D: Driver>(&self, driver: &mut D, idle_ms: u32) -> Option<Why> {
        if !driver.stands(&self.socket) {
            return Some(Why::Ended);
        }
        let is_old = driver.now() >= self.since.plus_ms(u64::from(idle_ms));
        is_old.then_some(Why::Aged)
    }
}

impl Place {
    /// How many attempts may begin beside those under way. A backend that failed last gets one at a time, and no second
    /// while the first has not been found to stand.
    #[must_use]
    pub fn missing(&self, under_way: usize) -> usize {
        let there = self.ready.len() + under_way;
        let most = if self.failures > 0 { self.wish.count.min(1) } else { self.wish.count };
        most.saturating_sub(there)
    }

    /// Until when its backend is left alone.
    #[must_use]
    pub const fn rest_until(&self) -> Time {
        self.rest_until
    }

    /// The backend could not be reached, or ended what was ready.
    pub fn failed(&mut self, now: Time) {
        let longer = limits::SPARE_REST_MS << self.failures.min(16);
        self.rest_until = now.plus_ms(longer.min(limits::SPARE_REST_MS_MAX));
        self.failures = self.failures.saturating_add(1);
    }

    /// Closes what has ended, is too old, or is beyond what is wished for.
    fn look<D: Driver>(&mut self, driver: &mut D, tally: &ShardTally, now: Time) {
        let mut ended = false;
        for one in std::mem::take(&mut self.ready) {
            let Some(why) = one.unfit(driver, self.wish.idle_ms) else {
                self.ready.push(one);
                continue;
            };
            ended |= why == Why::Ended;
            discard(driver, tally, one.socket, why);
        }
        if ended {
            self.failed(now);
        } else if !self.ready.is_empty() {
            self.failures = 0;
        }
        let surplus = self.ready.len().saturating_sub(self.wish.count);
        for Ready { socket, .. } in self.ready.drain(..surplus) {
            discard(driver, tally, socket, Why::Unwanted);
        }
    }
}

impl Shelf {
    /// Its places.
    pub fn places(&mut self) -> &mut [Place] {
        &mut self.places
    }

    /// The place whose connections can be exchanged for those of `wish`.
    pub fn place(&mut self, wish: &Wish) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.wish.is_like(wish))
    }

    /// Whether nothing is wished for.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many connections are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.places.iter().map(|place| place.ready.len()).sum()
    }

    /// Goes over to other wishes. What is ready stays where it is still wished for.
    pub fn wish<D: Driver>(&mut self, driver: &mut D, tally: &ShardTally, wishes: Vec<Wish>) {
        let before = std::mem::take(&mut self.places);
        let empty = |wish| Place { wish, ready: Vec::new(), failures: 0, rest_until: Time(0) };
        self.places = wishes.into_iter().map(empty).collect();
        for mut old in before {
            if let Some(place) = self.place(&old.wish) {
                old.wish = place.wish.clone();
                *place = old;
            } else {
                for Ready { socket, .. } in old.ready {
                    discard(driver, tally, socket, Why::Unwanted);
                }
            }
        }
    }

    /// Looks at all that is ready, and closes what nobody is to take.
    pub fn look<D: Driver>(&mut self, driver: &mut D, tally: &ShardTally, now: Time) {
        for place in &mut self.places {
            place.look(driver, tally, now);
        }
    }

    /// Puts a connection there that has just come to stand. It is attached to nobody.
    pub fn put<D: Driver>(
        &mut self,
        driver: &mut D,
        tally: &ShardTally,
        wish: &Wish,
        socket: Socket,
    ) {
        let since = driver.now();
        tally.spares_made.add(1);
        tally.spares.add(1);
        match self.place(wish) {
            Some(place) => place.ready.push(Ready { socket, since }),
            None => discard(driver, tally, socket, Why::Unwanted),
        }
    }

    /// Takes a connection that stands: the one made last, for nothing on the way has had as little time to forget it.
    /// The others age and are replaced.
    pub fn take<D: Driver>(
        &mut self,
        driver: &mut D,
        tally: &ShardTally,
        now: Time,
        (address, tcp): (SocketAddr, &Tcp),
    ) -> Option<Socket> {
        let place = self.places.iter_mut().find(|place| place.wish.leads_to(address, tcp))?;
        self.touched |= !place.ready.is_empty();
        let mut ended = false;
        while let Some(one) = place.ready.pop() {
            let Some(why) = one.unfit(driver, place.wish.idle_ms) else {
                place.failures = 0;
                tally.spares.sub(1);
                tally.spares_taken.add(1);
                return Some(one.socket);
            };
            ended |= why == Why::Ended;
            discard(driver, tally, one.socket, why);
        }
        if ended {
            place.failed(now);
        }
        None
    }

    /// A new socket towards a backend. Where descriptors or memory have run out, ready connections go first.
    ///
    /// # Errors
    /// As [`Driver::socket`].
    pub fn socket<D: Driver>(
        &mut self,
        driver: &mut D,
        tally: &ShardTally,
        (address, tcp): (SocketAddr, &Tcp),
    ) -> Result<Socket, Errno> {
        match driver.socket(address, tcp) {
            Err(e) if e.is_exhaustion() && self.give_up(driver, tally, Why::Short) => {
                driver.socket(address, tcp)
            }
            made => made,
        }
    }

    /// Closes all that is ready. Whether anything was.
    pub fn give_up<D: Driver>(&mut self, driver: &mut D, tally: &ShardTally, why: Why) -> bool {
        self.short |= why == Why::Short;
        let mut any = false;
        for Ready { socket, .. } in self.places.iter_mut().flat_map(|place| place.ready.drain(..)) {
            any = true;
            discard(driver, tally, socket, why);
        }
        self.touched |= any;
        any
    }
}

/// When a backend is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// It is: a connection stood ready.
    Now,
    /// When the driver says so.
    Soon,
}

impl Session {
    /// Takes a connection that stands ready, or begins to make one.
    pub(super) fn connect<D: Driver>(
        &mut self,
        step: &mut Step<'_, D>,
        at: BackendIndex,
    ) -> Result<Reached, Errno> {
        self.backend = Some(at);
        self.story.attempts = self.story.attempts.saturating_add(1);
        let (pool, backend) = self.snapshot.backend(at);
        let address = backend.address;
        let to = (address, &self.listener().tcp);
        let Step { key, now, driver, tally, spares, .. } = step;
        let spare = if pool.spare > 0 { spares.take(*driver, tally, *now, to) } else { None };
        let reached = if spare.is_some() { Reached::Now } else { Reached::Soon };
        let socket = spare.map_or_else(|| spares.socket(*driver, tally, to), Ok)?;
        if let Err(e) = driver.attach(*key, Side::Backend, &socket) {
            driver.abort(&socket);
            driver.close(None, socket);
            return Err(e);
        }
        if reached == Reached::Soon {
            driver.connect(*key, &socket, address);
            if let Stage::Opening(opening) = &mut self.stage {
                opening.attempt(*now);
            }
        }
        self.ends[Side::Backend as usize] = Some(socket);
        self.retime = true;
        Ok(reached)
    }
}

fn discard<D: Driver>(driver: &mut D, tally: &ShardTally, socket: Socket, why: Why) {
    driver.abort(&socket);
    driver.close(None, socket);
    tally.spares.sub(1);
    let count = match why {
        Why::Ended => &tally.spares_ended,
        Why::Aged => &tally.spares_aged,
        Why::Unwanted => &tally.spares_unwanted,
        Why::Short => &tally.spares_short,
    };
    count.add(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    #[test]
    fn a_backend_that_fails_is_left_alone_longer_each_time_and_gets_one_attempt() {
        let config = "[listeners.l]\nbind = \"127.0.0.1:0\"\nstable = \"p\"\n\
                      [pools.p]\nbackends = [\"127.0.0.1:1\"]";
        let tcp = parse(config).unwrap().listeners[0].tcp.clone();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let wish = Wish { address, tcp, count: 3, idle_ms: 1000, connect_ms: 1000 };
        let mut place = Place { wish, ready: vec![], failures: 0, rest_until: Time(0) };
        assert_eq!((place.missing(0), place.missing(2), place.missing(4)), (3, 1, 0));
        let mut rests = vec![];
        for _ in 0..40 {
            place.failed(Time(0));
            rests.push(place.rest_until().0 / 1_000_000);
        }
        assert_eq!(rests[..7], [250, 500, 1000, 2000, 4000, 8000, 8000]);
        assert_eq!(rests[39], limits::SPARE_REST_MS_MAX);
        assert_eq!((place.missing(0), place.missing(1)), (1, 0));
    }
}
