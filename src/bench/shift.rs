//! One contender's turn: load of some kind for a slice of time, and then the wait for what is under way.

use super::load::{Crew, Event, Load, MESSAGE_BYTES};
use crate::time::Time;
use std::collections::VecDeque;

/// How long after its slice work may still be under way.
const OVERTIME_NS: u64 = 5_000_000_000;

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// Each says its message, waits for the answer, and says it again. `spin`: the load never sleeps, so that its own
    /// wake-ups are not measured.
    Turns {
        /// Whether the load looks for answers without sleeping.
        spin: bool,
    },
    /// So many turns a second are due, and wait for a client who is free; timed from when they were due.
    Open {
        /// Turns a second.
        per_s: f64,
    },
    /// Each has so many messages under way, each sent by itself.
    Messages {
        /// How many.
        under_way: u32,
    },
    /// Each connects, makes one turn and closes, again and again.
    Connections,
    /// Each sends as much as it can; the backend only receives.
    Bulk,
}

/// What came of a slice.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Done {
    /// Pieces of work done within the slice: turns, messages, connections or bytes.
    pub(super) inside: u64,
    /// All that the contender did for it.
    pub(super) all: u64,
    /// The slice's length in nanoseconds.
    pub(super) slice_ns: u64,
    /// From the slice's begin until nothing was under way, in nanoseconds.
    pub(super) whole_ns: u64,
    /// How long each piece took, in nanoseconds, ascending; none for messages and bulk.
    pub(super) took_ns: Vec<u64>,
}

impl Done {
    /// What a share of `q` of the pieces took at most, in microseconds. `None` where nothing was timed.
    pub(super) fn quantile_us(&self, q: f64) -> Option<f64> {
        let count = self.took_ns.len();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to count")]
        let rank = (q * count as f64).ceil().max(1.0) as usize;
        self.took_ns.get(rank.min(count).checked_sub(1)?).map(|ns| *ns as f64 / 1e3)
    }
}

/// One client in a slice.
#[derive(Debug, Clone, Copy, Default)]
struct Client {
    /// Since when its turn was due.
    since: Time,
    /// Bytes of the answer so far.
    got: u32,
}

struct Shift<'l> {
    load: &'l mut Load,
    work: Work,
    /// By their seats, which follow each other from `first`.
    clients: Vec<Client>,
    first: usize,
    until: Time,
    /// Pieces under way.
    out: usize,
    /// Clients who are free, where turns come by themselves; the longest free first, so that all take part.
    idle: VecDeque<usize>,
    /// Turns that are due and not begun.
    waiting: VecDeque<Time>,
    /// When the next one is due.
    due: Time,
    /// Bytes of bulk taken from clients, and those that had arrived before.
    said: u64,
    sunk_before: u64,
    done: Done,
}

/// Lets a crew work for `slice_ns`.
///
/// # Errors
/// A connection broke, or work was still under way long after: what, and whose.
pub(super) fn work(
    load: &mut Load,
    crew: &Crew,
    work: Work,
    slice_ns: u64,
) -> Result<Done, String> {
    load.send_bulk(work == Work::Bulk);
    load.turn(Time(0))?;
    let (start, sunk_before) = (load.now(), load.sunk());
    let shift = Shift {
        load,
        work,
        clients: vec![Client::default(); crew.seats.len()],
        first: crew.seats.start,
        until: start + slice_ns,
        out: 0,
        idle: VecDeque::new(),
        waiting: VecDeque::new(),
        due: start,
        said: 0,
        sunk_before,
        done: Done { slice_ns, ..Done::default() },
    };
    let done = shift.through(crew, start);
    load.send_bulk(false);
    done.map_err(|e| format!("{}: {e}", crew.name))
}

impl Shift<'_> {
    fn through(mut self, crew: &Crew, start: Time) -> Result<Done, String> {
        for seat in crew.seats.clone() {
            match self.work {
                Work::Open { .. } => self.idle.push_back(seat),
                Work::Messages { under_way } => (0..under_way).for_each(|_| self.say(seat)),
                _ => self.begin(seat, start)?,
            }
        }
        let spins = matches!(self.work, Work::Open { .. } | Work::Turns { spin: true });
        let over = self.until + OVERTIME_NS;
        loop {
            self.begin_due()?;
            let now = self.load.now();
            if now >= self.until && self.is_over() {
                break;
            }
            if now > over {
                return Err(format!("{} pieces of work were never done", self.out.max(1)));
            }
            let wake = if now < self.until { self.until } else { over };
            self.load.turn(if spins { Time(0) } else { wake })?;
            while let Some(event) = self.load.next()? {
                self.on(event)?;
            }
            if self.work == Work::Bulk && self.load.now() < self.until {
                // What has arrived counts as done, not what the kernel has taken.
                self.done.inside = self.load.sunk() - self.sunk_before;
            }
        }
        self.done.whole_ns = self.load.now().since_ns(start);
        self.done.took_ns.sort_unstable();
        Ok(self.done)
    }

    fn is_over(&self) -> bool {
        let arrived = self.load.sunk() - self.sunk_before;
        self.out == 0
            && self.waiting.is_empty()
            && (self.work != Work::Bulk || arrived == self.said)
    }

    /// Begins the turns that are due. Those that came due within the slice are made after it, too: were they left out,
    /// the slowest would be.
    fn begin_due(&mut self) -> Result<(), String> {
        let Work::Open { per_s } = self.work else { return Ok(()) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ns of a gap")]
        let gap_ns = (1e9 / per_s) as u64;
        while self.due <= self.load.now() && self.due < self.until {
            self.waiting.push_back(self.due);
            self.due = self.due + gap_ns.max(1);
        }
        while !self.waiting.is_empty() {
            let Some(seat) = self.idle.pop_front() else { break };
            let since = self.waiting.pop_front().expect("it is not empty");
            self.begin(seat, since)?;
        }
        Ok(())
    }

    fn begin(&mut self, seat: usize, since: Time) -> Result<(), String> {
        self.client(seat).since = since;
        if self.work == Work::Connections {
            self.out += 1;
            return self.load.connect(seat, true);
        }
        self.say(seat);
        Ok(())
    }

    fn say(&mut self, seat: usize) {
        self.out += 1;
        self.load.say(seat);
    }

    fn client(&mut self, seat: usize) -> &mut Client {
        &mut self.clients[seat - self.first]
    }

    fn on(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Connected(seat) => {
                self.load.receive(seat);
                self.load.say(seat);
            }
            Event::Answered(seat, bytes) => {
                let client = self.client(seat);
                let got = client.got + bytes;
                client.got = got % MESSAGE_BYTES;
                for _ in 0..got / MESSAGE_BYTES {
                    self.answered(seat)?;
                }
                if self.work == Work::Connections && got < MESSAGE_BYTES {
                    self.load.receive(seat);
                }
            }
            Event::Sent(seat) if self.work == Work::Bulk => self.poured(seat),
            Event::Sent(_) => {}
            Event::Closed(seat) => self.closed(seat)?,
        }
        Ok(())
    }

    /// A message has come back.
    fn answered(&mut self, seat: usize) -> Result<(), String> {
        let now = self.load.now();
        let took_ns = now.since_ns(self.client(seat).since);
        match self.work {
            Work::Connections => {
                self.done.took_ns.push(took_ns);
                if self.load.leave(seat) {
                    self.closed(seat)?;
                }
                return Ok(());
            }
            Work::Messages { .. } => {}
            _ => self.done.took_ns.push(took_ns),
        }
        self.count(1);
        self.out -= 1;
        match self.work {
            Work::Open { .. } => self.idle.push_back(seat),
            _ if now < self.until => self.begin(seat, now)?,
            _ => {}
        }
        Ok(())
    }

    /// A client's connection is over.
    fn closed(&mut self, seat: usize) -> Result<(), String> {
        self.count(1);
        self.out -= 1;
        let now = self.load.now();
        if now < self.until { self.begin(seat, now) } else { Ok(()) }
    }

    /// A client's bulk was taken.
    fn poured(&mut self, seat: usize) {
        let (now, bytes) = (self.load.now(), u64::from(self.load.said_bytes()));
        self.said += bytes;
        self.out -= 1;
        if now < self.until {
            self.say(seat);
        }
        self.done.all = self.said;
    }

    fn count(&mut self, pieces: u64) {
        self.done.all += pieces;
        if self.load.now() < self.until {
            self.done.inside += pieces;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Kind;
    use crate::driver::probe::{Feature, probe};

    const SLICE_NS: u64 = 20_000_000;

    /// The load on each driver this machine has, with a crew of this size that speaks to the echo itself.
    fn each(count: usize, connected: bool, check: impl Fn(&mut Load, &Crew)) {
        let report = probe();
        let kinds = [Kind::Epoll].into_iter().chain(report.usable().is_ok().then_some(Kind::Uring));
        for kind in kinds {
            let mut load = Load::new(kind, report.has(Feature::RecvCredit)).unwrap();
            let crew = load.hire("nobody", load.backend().unwrap(), count);
            if connected {
                load.connect_all(&crew).unwrap();
            }
            check(&mut load, &crew);
            if connected {
                load.dismiss(&crew).unwrap();
            }
        }
    }

    #[test]
    fn each_turn_is_counted_and_timed_once() {
        each(5, true, |load, crew| {
            let warm = work(load, crew, Work::Turns { spin: false }, 0).unwrap();
            assert_eq!((warm.inside, warm.all), (0, 5), "one turn each");
            for spin in [false, true] {
                let done = work(load, crew, Work::Turns { spin }, SLICE_NS).unwrap();
                assert!(done.inside > 10 && done.inside <= done.all, "{done:?}");
                assert_eq!(done.took_ns.len() as u64, done.all);
                assert!(done.took_ns.is_sorted() && done.whole_ns >= SLICE_NS);
            }
        });
    }

    #[test]
    fn every_turn_that_is_due_is_made() {
        each(3, true, |load, crew| {
            let done = work(load, crew, Work::Open { per_s: 1000.0 }, SLICE_NS).unwrap();
            assert_eq!((done.all, done.took_ns.len()), (20, 20));
            // Far more than there are clients to make at once: those that waited are made, and timed from when they
            // were due.
            let done = work(load, crew, Work::Open { per_s: 1_000_000.0 }, SLICE_NS).unwrap();
            assert_eq!(done.all, 20_000);
            let longest_ns = *done.took_ns.last().unwrap();
            assert!(longest_ns > (done.whole_ns - SLICE_NS) / 2, "{longest_ns} {}", done.whole_ns);
        });
    }

    #[test]
    fn messages_under_way_stay_as_many() {
        each(2, true, |load, crew| {
            let done = work(load, crew, Work::Messages { under_way: 16 }, SLICE_NS).unwrap();
            assert!(done.all > done.inside && done.inside > 64, "{done:?}");
            assert!(done.took_ns.is_empty());
        });
    }

    #[test]
    fn connections_are_closed_and_made_again() {
        each(4, false, |load, crew| {
            let done = work(load, crew, Work::Connections, SLICE_NS).unwrap();
            assert!(done.all > 8, "{done:?}");
            assert_eq!(done.took_ns.len() as u64, done.all);
        });
    }

    #[test]
    fn bulk_is_counted_where_it_arrives() {
        each(1, true, |load, crew| {
            for _ in 0..2 {
                let done = work(load, crew, Work::Bulk, SLICE_NS).unwrap();
                assert!(done.inside > 0 && done.inside <= done.all, "{done:?}");
                assert!(done.all.is_multiple_of(64 * 1024), "{done:?}");
            }
            work(load, crew, Work::Turns { spin: false }, 0).expect("and it echoes again");
        });
    }

    #[test]
    fn who_breaks_a_session_is_named() {
        each(1, false, |load, _| {
            let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let crew = load.hire("deaf", deaf.local_addr().unwrap(), 1);
            load.connect_all(&crew).unwrap();
            drop(deaf.accept().unwrap());
            let why = work(load, &crew, Work::Turns { spin: false }, SLICE_NS).unwrap_err();
            assert!(why.starts_with("deaf: a session"), "{why}");
        });
    }
}
