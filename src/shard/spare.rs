//! Who keeps the shelf of [ready connections](crate::session::spare) full: a shard that begins sessions, for the
//! backends that the snapshot in force sends them to.
//!
//! A connection is made ready as a session's is, under a slot of the table that no session gets meanwhile. All that is
//! decided here is decided when it is time to look: a shard without wishes has a comparison a turn for it.

use super::Shard;
use crate::config::{Config, Percent, limits};
use crate::driver::{Completion, Driver, Errno, Key, Op, Side, Socket};
use crate::session::sabotage::{self, Mutation};
use crate::session::spare::{Shelf, Why, Wish};
use crate::time::Time;
use std::sync::Arc;

/// The shelf, and what is on its way there.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pub(super) shelf: Shelf,
    connecting: Vec<Attempt>,
    /// When to look next. `None`: when something happens.
    look_at: Option<Time>,
    /// When to look at what is ready next.
    sweep_at: Time,
    /// Descriptors or memory ran out: nothing is made until then.
    rest_until: Time,
    /// The number of the snapshot that wishes were read from, and whether there were to be any.
    read: (u64, bool),
    /// Shortages of all shards that this one knows of.
    shortages: u32,
}

/// A connection that is being made.
#[derive(Debug)]
struct Attempt {
    key: Key,
    socket: Socket,
    wish: Wish,
    /// When it is given up; of one that was, when it is cancelled again.
    due: Time,
    gave_up: Option<Cause>,
}

/// Why an attempt was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// It took too long.
    Late,
    /// What it is for is not wished for any more.
    Unwanted,
}

impl Attempt {
    fn give_up<D: Driver>(&mut self, driver: &mut D, now: Time, cause: Cause) {
        self.gave_up.get_or_insert(cause);
        self.due = now.plus_ms(limits::ENDING_MS_MAX);
        driver.cancel(self.key, Op::Connect);
    }
}

/// How many attempts are to fulfil a wish.
fn under_way(connecting: &[Attempt], wish: &Wish) -> usize {
    let is_for = |at: &&Attempt| at.gave_up.is_none() && at.wish.is_like(wish);
    connecting.iter().filter(is_for).count()
}

impl Stock {
    /// When to look next.
    pub(super) fn next(&self, now: Time) -> Option<Time> {
        if self.shelf.touched || self.shelf.short { Some(now) } else { self.look_at }
    }

    /// Has the shard look at the end of this turn: what wishes hang on may have changed.
    pub(super) const fn look(&mut self, now: Time) {
        self.look_at = Some(now);
    }

    /// Whether nothing is ready and nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.connecting.is_empty() && self.shelf.ready() == 0
    }

    /// When there is something to do that nobody will tell of.
    fn plan(&mut self, now: Time) {
        let Self { shelf, connecting, rest_until, .. } = self;
        let due = connecting.iter().map(|attempt| attempt.due).min();
        let wants = shelf.places().iter().filter_map(|place| {
            let missing = place.missing(under_way(connecting, &place.wish)) > 0;
            missing.then(|| place.rest_until().max(*rest_until).max(now))
        });
        self.look_at = due.into_iter().chain(wants.min()).min();
    }
}

impl<D: Driver> Shard<D> {
    /// Sees to the shelf, where it is time.
    pub(super) fn restock(&mut self) {
        if self.stock.next(self.now).is_none_or(|at| self.now < at) {
            return;
        }
        self.stock.shelf.touched = false;
        self.read_wishes();
        self.heed_shortages();
        let (now, tally) = (self.now, &self.parts.tally.shard);
        if now >= self.stock.sweep_at {
            self.stock.sweep_at = now.plus_ms(limits::UPKEEP_MS);
            self.stock.shelf.look(&mut self.driver, tally, now);
        }
        for attempt in self.stock.connecting.iter_mut().filter(|attempt| now >= attempt.due) {
            attempt.give_up(&mut self.driver, now, Cause::Late);
        }
        self.fill_up();
        self.stock.plan(now);
    }

    /// Takes the end of an attempt. Whether it is one.
    pub(super) fn on_spare(&mut self, completion: &Completion) -> bool {
        let Completion::Connected { key, result } = *completion else { return false };
        let of = |attempt: &Attempt| attempt.key == key;
        let Some(at) = self.stock.connecting.iter().position(of) else { return false };
        let Attempt { socket, wish, gave_up, .. } = self.stock.connecting.swap_remove(at);
        let tally = &self.parts.tally.shard;
        let is_reached = result.is_ok() && !self.driver.is_its_own_end(&socket, wish.address);
        if is_reached && gave_up.is_none() {
            self.driver.detach(key, Side::Backend, &socket);
            self.stock.shelf.put(&mut self.driver, tally, &wish, socket);
        } else {
            self.driver.abort(&socket);
            self.driver.close(Some((key, Side::Backend)), socket);
            if gave_up != Some(Cause::Unwanted) {
                self.spare_failed(&wish);
            }
        }
        self.sessions.unreserve(key);
        self.stock.look(self.now);
        true
    }

    /// Closes all that is ready, for clients need what it takes.
    pub(super) fn give_up_spares(&mut self) -> bool {
        let tally = &self.parts.tally.shard;
        self.stock.shelf.give_up(&mut self.driver, tally, Why::Short)
    }

    /// Closes all of it: the shard has failed, and only its driver is still to go.
    pub(super) fn abandon_spares(&mut self) {
        let tally = &self.parts.tally.shard;
        for Attempt { socket, .. } in std::mem::take(&mut self.stock.connecting) {
            self.driver.abort(&socket);
            self.driver.close(None, socket);
        }
        self.stock.shelf.give_up(&mut self.driver, tally, Why::Unwanted);
    }

    /// Whether sessions begin here.
    fn begins_sessions(&self) -> bool {
        let is_self = |guest: &super::Neighbour| Arc::ptr_eq(&guest.load, &self.parts.load);
        let is_guest = self.share.percent > Percent::ZERO && self.share.guests.iter().any(is_self);
        let stays = !self.leaving && self.ending.is_none() && !self.moves.is_evicted();
        stays && (is_guest || self.gates.iter().any(super::accept::Gate::is_served))
    }

    /// Goes over to what the snapshot in force wishes for, where that is another or sessions begin elsewhere now.
    fn read_wishes(&mut self) {
        let snapshot = self.parts.snapshot.load_full();
        let begins = self.begins_sessions() || sabotage::is(Mutation::SparesForgotten);
        if self.stock.read == (snapshot.number, begins) {
            return;
        }
        if self.stock.read.0 == 0 {
            self.stock.shortages = snapshot.shortages();
        }
        self.stock.read = (snapshot.number, begins);
        let wishes = if begins { wishes_of(&snapshot.config) } else { Vec::new() };
        self.unwish(|wish| !wishes.iter().any(|new| new.is_like(wish)));
        self.stock.shelf.wish(&mut self.driver, &self.parts.tally.shard, wishes);
        self.stock.sweep_at = self.now;
    }

    /// Gives attempts up that are not wished for any more.
    fn unwish(&mut self, is_unwanted: impl Fn(&Wish) -> bool) {
        let counts = |at: &&mut Attempt| at.gave_up.is_none() && is_unwanted(&at.wish);
        for attempt in self.stock.connecting.iter_mut().filter(counts) {
            attempt.give_up(&mut self.driver, self.now, Cause::Unwanted);
        }
    }

    /// Leaves descriptors and memory to clients for a while, wherever in the process they ran out.
    fn heed_shortages(&mut self) {
        let snapshot = self.parts.snapshot.load();
        if self.stock.shelf.short {
            snapshot.add_shortage();
        }
        let seen = snapshot.shortages();
        drop(snapshot);
        if self.stock.shortages == seen {
            return;
        }
        self.stock.shortages = seen;
        self.stock.rest_until = self.now.plus_ms(limits::SPARE_SHORT_MS);
        self.unwish(|_| true);
        self.give_up_spares();
        (self.stock.shelf.short, self.stock.shelf.touched) = (false, false);
    }

    /// Begins attempts for what is missing, as far as backends are not left alone.
    fn fill_up(&mut self) {
        let mut begun = 0;
        for at in 0..self.stock.shelf.places().len() {
            while self.now >= self.stock.rest_until {
                let place = &self.stock.shelf.places()[at];
                let missing = place.missing(under_way(&self.stock.connecting, &place.wish));
                let full = begun == limits::SPARE_CONNECTS_PER_TURN_MAX;
                if missing == 0 || full || self.now < place.rest_until() {
                    break;
                }
                begun += 1;
                let wish = place.wish.clone();
                if let Err(e) = self.begin_spare(&wish) {
                    self.spare_failed(&wish);
                    if e.is_exhaustion() {
                        self.stock.shelf.short = true;
                        return self.heed_shortages();
                    }
                }
            }
        }
    }

    fn begin_spare(&mut self, wish: &Wish) -> Result<(), Errno> {
        let socket = self.driver.socket(wish.address, &wish.tcp)?;
        let Some(key) = self.sessions.reserve() else {
            self.driver.close(None, socket);
            return Err(Errno::NO_BUFFERS);
        };
        if let Err(e) = self.driver.attach(key, Side::Backend, &socket) {
            self.sessions.unreserve(key);
            self.driver.close(None, socket);
            return Err(e);
        }
        self.driver.connect(key, &socket, wish.address);
        let due = self.now.plus_ms(u64::from(wish.connect_ms));
        self.stock.connecting.push(Attempt { key, socket, wish: wish.clone(), due, gave_up: None });
        Ok(())
    }

    /// The backend is left alone for a while.
    fn spare_failed(&mut self, wish: &Wish) {
        self.parts.tally.shard.spares_failed.add(1);
        if let Some(place) = self.stock.shelf.place(wish) {
            place.failed(self.now);
        }
    }
}

/// What a config wishes for: connections to each backend that new sessions may go to, with the socket options of each
/// listener they come in by. Not more than a shard keeps, where listeners differ in those.
fn wishes_of(config: &Config) -> Vec<Wish> {
    let mut wishes: Vec<Wish> = Vec::new();
    let mut room = limits::SPARES_PER_SHARD_MAX;
    for listener in &config.listeners {
        let canary = listener.canary.map(|pool| (pool, listener.canary_percent));
        let rest = canary.map_or(Percent::HUNDRED, |(_, percent)| percent.rest());
        let pools = [Some((listener.stable, rest)), canary].into_iter().flatten();
        let used = pools.filter(|(_, percent)| *percent > Percent::ZERO);
        for pool in used.map(|(pool, _)| &config.pools[pool]).filter(|pool| pool.spare > 0) {
            for backend in pool.backends.iter().filter(|backend| backend.weight > 0) {
                let wish = Wish {
                    address: backend.address,
                    tcp: listener.tcp.clone(),
                    count: usize::from(pool.spare).min(room),
                    idle_ms: pool.spare_idle_ms,
                    connect_ms: listener.timeouts.connect_ms,
                };
                let known = wishes.iter_mut().find(|known| known.is_like(&wish));
                match known {
                    Some(known) => {
                        let more = wish.count.saturating_sub(known.count);
                        room -= more;
                        known.count += more;
                        known.idle_ms = known.idle_ms.min(wish.idle_ms);
                        known.connect_ms = known.connect_ms.max(wish.connect_ms);
                    }
                    None if wish.count > 0 => {
                        room -= wish.count;
                        wishes.push(wish);
                    }
                    None => {}
                }
            }
        }
    }
    wishes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    /// The wishes of a config: port, count, age and time to connect.
    fn wishes(listeners: &str, spare: u32) -> Vec<(u16, usize, u32, u32)> {
        let text = format!(
            "{listeners}\n[pools.a]\nspare = {spare}\nspare_idle_ms = 2000\n\
             backends = [\"127.0.0.1:1\", {{ address = \"127.0.0.1:2\", weight = 0 }}]\n\
             [pools.b]\nspare = 1\nbackends = [\"127.0.0.1:3\", \"127.0.0.1:1\"]\n\
             [pools.c]\nspare = 3\nbackends = [\"127.0.0.1:4\"]"
        );
        let wishes = wishes_of(&parse(&text).expect("a good config"));
        wishes.iter().map(|w| (w.address.port(), w.count, w.idle_ms, w.connect_ms)).collect()
    }

    fn listener(name: &str, port: u16, keys: &str) -> String {
        format!("[listeners.{name}]\nbind = \"127.0.0.1:{port}\"\nstable = \"a\"\n{keys}\n")
    }

    #[test]
    fn only_backends_that_sessions_go_to_are_wished_for() {
        let one = listener("one", 1000, "");
        assert_eq!(wishes(&one, 2), [(1, 2, 2000, 1000)]);
        assert_eq!(wishes(&one, 0), []);
        let canary = |percent: u32| format!("canary = \"c\"\ncanary_percent = {percent}");
        assert_eq!(wishes(&listener("one", 1000, &canary(0)), 2), [(1, 2, 2000, 1000)]);
        let both = [(1, 2, 2000, 1000), (4, 3, 30_000, 1000)];
        assert_eq!(wishes(&listener("one", 1000, &canary(1)), 2), both);
        assert_eq!(wishes(&listener("one", 1000, &canary(100)), 2), both[1..]);
    }

    #[test]
    fn listeners_share_what_they_can_exchange() {
        let (one, slow) =
            (listener("one", 1000, ""), "[listeners.two.timeouts]\nconnect_ms = 3000");
        let same = format!("{one}{}", listener("two", 1001, slow));
        assert_eq!(wishes(&same, 2), [(1, 2, 2000, 3000)]);
        let own = format!("{one}{}", listener("two", 1001, "[listeners.two.tcp]\nnodelay = false"));
        assert_eq!(wishes(&own, 2), [(1, 2, 2000, 1000), (1, 2, 2000, 1000)]);
        let canary = listener("two", 1001, "canary = \"b\"\ncanary_percent = 50");
        let most = [(1, 2, 2000, 1000), (3, 1, 30_000, 1000)];
        assert_eq!(wishes(&format!("{one}{canary}"), 2), most);
    }

    #[test]
    fn a_shard_keeps_no_more_than_its_bound() {
        let own = |n: u16| {
            let keys = format!("[listeners.l{n}.tcp]\nsend_buffer_bytes = {n}");
            listener(&format!("l{n}"), 1000 + n, &keys)
        };
        let many: String = (1..=9).map(own).collect();
        let counts: Vec<usize> = wishes(&many, 60).iter().map(|wish| wish.1).collect();
        assert_eq!(counts, [60, 60, 60, 60, 16]);
    }
}
