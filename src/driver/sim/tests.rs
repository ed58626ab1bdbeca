//! The simulator against a small relay that is known to be right, and against callers that are not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;
use crate::driver::{Received, Way};
use std::panic::{AssertUnwindSafe, catch_unwind};

const LISTENER: ListenerId = ListenerId(0);
const MS: u64 = 1_000_000;

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000 + n))
}

/// One session: a receive in each direction, each followed by its send.
struct Session {
    key: Key,
    sockets: [Socket; 2],
    in_flight: u32,
    ended: [bool; 2],
    ending: bool,
}

/// A relay as simple as can be: what the session layer does well, this does plainly.
struct Relay {
    driver: Sim,
    listens: Socket,
    listening: bool,
    sessions: BTreeMap<u32, Session>,
    generations: BTreeMap<u32, u32>,
    starved: Vec<(Key, Side)>,
    /// When those are armed again: who asks at once would ask for as long as no buffer is back.
    again: Time,
    stale: u32,
}

impl Relay {
    fn new(world: &Shared, buffers: u16) -> Self {
        let mut driver = Sim::new(world, buffers, 512);
        let listens = world.borrow_mut().listen(LISTENER, 4);
        driver.accept(LISTENER, &listens);
        let (sessions, generations) = (BTreeMap::new(), BTreeMap::new());
        let (starved, stale) = (Vec::new(), 0);
        let again = Time(0);
        Self { driver, listens, listening: true, sessions, generations, starved, again, stale }
    }

    fn open(&mut self, client: Socket) {
        let slot = (0..).find(|slot| !self.sessions.contains_key(slot)).unwrap();
        let generation = self.generations.entry(slot).and_modify(|n| *n += 1).or_insert(0);
        let key = Key { slot, generation: *generation };
        let address = address(u16::try_from(slot % 3).unwrap());
        let Ok(backend) = self.driver.socket(address, &Tcp::PLAIN) else {
            self.driver.abort(&client);
            return self.driver.close(None, client);
        };
        if self.driver.attach(key, Side::Client, &client).is_err() {
            self.driver.abort(&client);
            self.driver.close(None, client);
            return self.driver.close(None, backend);
        }
        if self.driver.attach(key, Side::Backend, &backend).is_err() {
            self.driver.abort(&client);
            self.driver.close(Some((key, Side::Client)), client);
            return self.driver.close(None, backend);
        }
        self.driver.connect(key, &backend, address);
        let session = Session {
            key,
            sockets: [client, backend],
            in_flight: 1,
            ended: [false; 2],
            ending: false,
        };
        self.sessions.insert(slot, session);
    }

    fn arm(&mut self, key: Key, side: Side) {
        let session = self.sessions.get_mut(&key.slot).unwrap();
        session.in_flight += 1;
        self.driver.arm_recv(key, side, &session.sockets[side as usize], Arm::Once);
    }

    fn end(&mut self, key: Key) {
        let session = self.sessions.get_mut(&key.slot).unwrap();
        if !std::mem::replace(&mut session.ending, true) {
            self.driver.abort(&session.sockets[0]);
            self.driver.abort(&session.sockets[1]);
        }
    }

    /// Whether a completion is of a session that is there, which then has one less in flight.
    fn of(&mut self, key: Key) -> bool {
        let session = self.sessions.get_mut(&key.slot).filter(|session| session.key == key);
        if let Some(session) = session {
            session.in_flight -= 1;
            return true;
        }
        self.stale += 1;
        false
    }

    fn hear(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { result, more, .. } => {
                if let Ok(socket) = result {
                    self.open(socket);
                }
                if !more && self.listening {
                    self.driver.accept(LISTENER, &self.listens);
                } else if !more {
                    self.listening = false;
                }
            }
            Completion::Connected { key, result } if self.of(key) => match result {
                Ok(()) if !self.sessions[&key.slot].ending => {
                    self.arm(key, Side::Client);
                    self.arm(key, Side::Backend);
                }
                _ => self.end(key),
            },
            Completion::Received { key, side, what, more } => {
                assert!(!more && self.of(key));
                self.received(key, side, what);
            }
            Completion::Sent { key, side, result } if self.of(key) => {
                let buffer = self.generations.remove(&sending(key, side)).unwrap();
                let buffer = BufferId(buffer);
                let whole = result == Ok(self.driver.pool().filled(buffer));
                self.driver.pool().give_back(buffer);
                if !whole {
                    self.end(key);
                } else if !self.sessions[&key.slot].ending {
                    self.arm(key, side.other());
                }
            }
            _ => {}
        }
    }

    fn received(&mut self, key: Key, side: Side, what: Received) {
        let session = self.sessions.get_mut(&key.slot).unwrap();
        match what {
            Received::Bytes(buffer) if session.ending => self.driver.pool().give_back(buffer),
            _ if session.ending => {}
            Received::Bytes(buffer) => {
                session.in_flight += 1;
                let to = side.other();
                let number = buffer.number();
                self.generations.insert(sending(key, to), number);
                self.driver.send(key, to, &session.sockets[to as usize], buffer);
            }
            Received::End => {
                session.ended[side as usize] = true;
                if self.driver.finish(&session.sockets[side.other() as usize]).is_err() {
                    self.end(key);
                }
            }
            Received::Failed(Errno::NO_BUFFERS) => self.starved.push((key, side)),
            Received::Failed(_) => self.end(key),
        }
    }

    fn step(&mut self, until: Time) {
        let until = if self.starved.is_empty() { until } else { until.min(self.again) };
        self.driver.turn(Some(until)).unwrap();
        while let Some(completion) = self.driver.next() {
            self.hear(completion);
        }
        let now = self.driver.now();
        let waited = if now >= self.again { std::mem::take(&mut self.starved) } else { vec![] };
        if !waited.is_empty() {
            self.again = now.plus_ms(5);
        }
        for (key, side) in waited {
            let there = self.sessions.get(&key.slot).is_some_and(|it| it.key == key && !it.ending);
            if there {
                self.arm(key, side);
            }
        }
        let over = |session: &Session| {
            session.in_flight == 0 && (session.ending || session.ended == [true; 2])
        };
        let over: Vec<u32> =
            self.sessions.iter().filter(|(_, it)| over(it)).map(|(slot, _)| *slot).collect();
        for slot in over {
            let Session { key, sockets: [client, backend], .. } =
                self.sessions.remove(&slot).unwrap();
            self.driver.close(Some((key, Side::Client)), client);
            self.driver.close(Some((key, Side::Backend)), backend);
        }
    }

    fn stop(&mut self) {
        self.listening = false;
        self.driver.stop_accepting(LISTENER);
        let keys: Vec<Key> = self.sessions.values().map(|session| session.key).collect();
        for key in keys {
            self.end(key);
        }
    }
}

/// Where the relay keeps the buffer of a send: beside the generations, in slots that no session has.
const fn sending(key: Key, side: Side) -> u32 {
    (1 << 30) + key.slot * 2 + side as u32
}

/// Clients and backends drawn from the seed, `shards` relays, two virtual minutes.
fn run(seed: u64, shards: usize) -> (Shared, u32) {
    let world = World::drawn_from(seed);
    for n in 0..3 {
        let mut world = world.borrow_mut();
        let scripts = (0..4).map(|_| Script::drawn_from(world.rng(), 20_000, true)).collect();
        world.backend(Backend::accepting(address(n), scripts));
    }
    for _ in 0..6 {
        let mut world = world.borrow_mut();
        let script = Script::drawn_from(world.rng(), 20_000, true);
        let at = Time(world.rng().within(0, 5000 * MS));
        world.client(at, LISTENER, script);
    }
    let buffers = u16::try_from(world.borrow_mut().rng().log_within(2, 32)).unwrap();
    let mut relays: Vec<Relay> = (0..shards).map(|_| Relay::new(&world, buffers)).collect();
    let deadline = Time(120_000 * MS);
    while world.borrow().now() < deadline {
        for relay in &mut relays {
            relay.step(relay.driver.now().plus_ms(50).min(deadline));
        }
    }
    for relay in &mut relays {
        relay.stop();
    }
    let settled = world.borrow().now().plus_ms(120_000);
    while world.borrow().now() < settled {
        for relay in &mut relays {
            relay.step(relay.driver.now().plus_ms(500));
        }
    }
    let mut stale = 0;
    for relay in relays {
        let Relay { mut driver, listens, sessions, .. } = relay;
        assert!(sessions.is_empty(), "seed {seed}: {} sessions hang", sessions.len());
        driver.close(None, listens);
        stale += relay.stale;
        if shards == 1 {
            assert_eq!(driver.leaks(), Vec::<String>::new(), "seed {seed}\n{}", driver.trace());
        }
    }
    assert_eq!(world.borrow().open_sockets(), Vec::<usize>::new(), "seed {seed}");
    (world, stale)
}

#[test]
fn a_right_relay_passes_every_seed() {
    let (mut whole, mut stale, mut ended, mut reset, mut broken) = (0, 0, 0, 0, 0);
    for seed in 0..400 {
        let (world, unknown) = run(seed, 1 + usize::from(seed % 4 == 0));
        let world = world.borrow();
        assert_eq!(world.violations(), Vec::<String>::new(), "seed {seed}\n{}", world.trace());
        stale += unknown;
        for record in world.records() {
            assert_eq!(record.seen.unpaired, 0, "seed {seed}: {record:?}");
            ended += u32::from(record.seen.end_at.is_some());
            reset += u32::from(record.seen.reset);
            broken += u32::from(record.near.broken.is_some());
            let Some(partner) = record.partner.map(|partner| world.record(partner)) else {
                continue;
            };
            if record.seen.end_at.is_some() && record.seen.end_at == Some(partner.sent.bytes) {
                whole += u32::from(partner.sent.bytes > 0);
            }
        }
    }
    println!("{whole} whole, {ended} ended, {reset} reset, {broken} broken, {stale} stale");
    assert!(whole > 200 && ended > 500 && reset > 500 && broken > 100 && stale > 100);
}

#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        let ((one, _), (other, _)) = (run(seed, 2), run(seed, 2));
        let (one, other) = (one.borrow(), other.borrow());
        assert_eq!((one.digest(), one.trace()), (other.digest(), other.trace()), "seed {seed}");
        assert!(one.records().eq(other.records()), "seed {seed}");
    }
    assert_ne!(run(1, 1).0.borrow().digest(), run(2, 1).0.borrow().digest());
}

#[test]
fn a_world_that_heals_lets_everything_move() {
    let world = World::new(3, Faults::none().with(Fault::SendStall, Rate::ALWAYS));
    let stuck = Script(vec![Step::Reading(Reading::Stopped)]);
    world.borrow_mut().backend(Backend::accepting(address(0), vec![stuck]));
    let wait = Step::AwaitEnd { patience_ns: 60_000 * MS };
    let client = Script(vec![Step::Write(200_000), Step::Finish, wait, Step::Close]);
    world.borrow_mut().client(Time(0), LISTENER, client);
    let mut relay = Relay::new(&world, 8);
    let seen = |relay: &mut Relay| {
        let end = relay.driver.now().plus_ms(5000);
        while relay.driver.now() < end {
            relay.step(end);
        }
        world.borrow().records().last().unwrap().seen
    };
    assert_eq!(seen(&mut relay).bytes, 0, "it reads nothing");
    world.borrow_mut().heal();
    let seen = seen(&mut relay);
    assert_eq!((seen.bytes, seen.end_at, seen.wrong_at), (200_000, Some(200_000), None));
}

/// A driver with one client attached, whose far end is moved by hand.
fn scene(faults: Faults) -> (Shared, Sim, Socket, Hand) {
    let world = World::new(5, faults);
    let mut driver = Sim::new(&world, 4, 512);
    let listens = world.borrow_mut().listen(LISTENER, 4);
    driver.accept(LISTENER, &listens);
    let far = Hand::client(&world, LISTENER);
    let mut client = None;
    driver.stop_accepting(LISTENER);
    for _ in 0..10 {
        driver.turn(Some(driver.now().plus_ms(10))).unwrap();
        while let Some(completion) = driver.next() {
            let Completion::Accepted { result, more, .. } = completion else { continue };
            client = client.or_else(|| result.ok());
            if !more && client.is_none() {
                driver.accept(LISTENER, &listens);
            }
        }
    }
    driver.stop_accepting(LISTENER);
    driver.turn(Some(driver.now().plus_ms(10))).unwrap();
    while driver.next().is_some() {}
    driver.close(None, listens);
    let client = client.unwrap();
    driver.attach(KEY, Side::Client, &client).unwrap();
    (world, driver, client, far)
}

const KEY: Key = Key { slot: 0, generation: 0 };

/// What the driver says of a caller that does `wrong`.
fn complaint(wrong: impl FnOnce(&mut Sim, Socket)) -> String {
    let (_world, mut driver, client, _far) = scene(Faults::none());
    let caught = catch_unwind(AssertUnwindSafe(|| {
        wrong(&mut driver, client);
        let _ = driver.turn(Some(driver.now().plus_ms(10)));
    }));
    let said = caught.expect_err("it was not noticed");
    said.downcast_ref::<String>().cloned().unwrap_or_default()
}

fn filled(driver: &mut Sim) -> BufferId {
    let buffer = driver.pool().take().unwrap();
    driver.pool().fill(buffer, b"hello");
    buffer
}

#[test]
fn a_caller_who_breaks_the_contract_is_told() {
    let said = complaint(|driver, client| {
        driver.arm_recv(KEY, Side::Client, &client, Arm::Once);
        driver.arm_recv(KEY, Side::Client, &client, Arm::Once);
    });
    assert!(said.contains("a second Recv is asked of socket"), "{said}");
    let said = complaint(|driver, client| {
        driver.arm_recv(KEY, Side::Client, &client, Arm::Once);
        driver.close(Some((KEY, Side::Client)), client);
    });
    assert!(said.contains("is closed with [Recv] in flight"), "{said}");
    assert!(said.contains("asks: receive, socket"), "the trace is missing: {said}");
    let said = complaint(|driver, client| {
        driver.detach(KEY, Side::Client, &client);
        driver.arm_recv(KEY, Side::Client, &client, Arm::Once);
    });
    assert!(said.contains("of None"), "{said}");
    let said = complaint(|driver, client| {
        let number = client.number();
        driver.close(Some((KEY, Side::Client)), client);
        driver.abort(&Socket(number));
    });
    assert!(said.contains("is not open"), "{said}");
    let said = complaint(|driver, client| {
        let buffer = driver.pool().take().unwrap();
        driver.send(KEY, Side::Client, &client, buffer);
    });
    assert!(said.contains("empty or nobody's"), "{said}");
    let said = complaint(|driver, client| {
        let buffer = filled(driver);
        driver.send(KEY, Side::Client, &client, buffer);
        driver.pool().give_back(buffer);
    });
    assert!(said.contains("was given back during its send"), "{said}");
    let said = complaint(|driver, client| {
        let buffer = filled(driver);
        driver.send(KEY, Side::Client, &client, buffer);
        let _ = driver.finish(&client);
    });
    assert!(said.contains("finished before its send is over"), "{said}");
    let said = complaint(|driver, client| {
        let _ = driver.finish(&client);
        let buffer = filled(driver);
        driver.send(KEY, Side::Client, &client, buffer);
    });
    assert!(said.contains("which was finished"), "{said}");
    let said = complaint(|driver, client| driver.close(None, client));
    assert!(said.contains("is attached, and closed as not"), "{said}");
    let said = complaint(|driver, _client| {
        let _ = driver.turn(None);
    });
    assert!(said.contains("it sleeps for ever"), "{said}");
}

#[test]
fn a_caller_who_moves_straight_what_is_in_flight_is_told() {
    let said = complaint(|driver, client| {
        driver.arm_recv(KEY, Side::Client, &client, Arm::Once);
        driver.recv_now(KEY, Side::Client, &client);
    });
    assert!(said.contains("is read straight with a Recv in flight"), "{said}");
    let said = complaint(|driver, client| {
        let (one, other) = (filled(driver), filled(driver));
        driver.send(KEY, Side::Client, &client, one);
        let _ = driver.send_now(&client, other);
    });
    assert!(said.contains("is sent to straight with a Send in flight"), "{said}");
    let carried = |wrong: &dyn Fn(&mut Sim, &Socket, &Socket)| {
        complaint(|driver, client| {
            let backend = driver.socket(address(0), &Tcp::PLAIN).unwrap();
            driver.attach(KEY, Side::Backend, &backend).unwrap();
            wrong(driver, &client, &backend);
            let stride = Stride { tail_max: 512, by: Way::Buffer };
            driver.carry_wide(KEY, Side::Client, &client, &backend, stride);
        })
    };
    let said = carried(&|driver, client, _| {
        driver.arm_poll(KEY, Side::Client, client, Interest::Readable);
    });
    assert!(said.contains("is carried from while it is polled"), "{said}");
    let said = carried(&|driver, client, _| {
        driver.arm_recv(KEY, Side::Client, client, Arm::Once);
    });
    assert!(said.contains("is carried from with a Recv in flight"), "{said}");
    let said = carried(&|driver, _, backend| {
        let buffer = filled(driver);
        driver.send(KEY, Side::Backend, backend, buffer);
    });
    assert!(said.contains("is carried to with a Send in flight"), "{said}");
}

#[test]
fn what_is_left_is_listed() {
    let (_world, mut driver, client, _far) = scene(Faults::none());
    driver.arm_recv(KEY, Side::Client, &client, Arm::Once);
    let _ = filled(&mut driver);
    let left = driver.leaks().join("; ");
    for what in ["is open: Owner", "Recv in flight", "1 buffers are out"] {
        assert!(left.contains(what), "{what} is not in {left}");
    }
}

#[test]
fn each_fault_can_happen() {
    let certain = |fault| Faults::none().with(fault, Rate::ALWAYS);
    let said = |fault| {
        let (_world, mut driver, client, far) = scene(certain(fault));
        assert_eq!(far.write(&[7; 100]), 100);
        driver.arm_recv(KEY, Side::Client, &client, Arm::Once);
        loop {
            driver.turn(Some(driver.now().plus_ms(10))).unwrap();
            if let Some(Completion::Received { what, .. }) = driver.next() {
                return what;
            }
        }
    };
    assert_eq!(said(Fault::NoBuffers), Received::Failed(Errno::NO_BUFFERS));
    assert!(matches!(said(Fault::Break), Received::Failed(_)));
    let (_world, mut driver, client, _far) = scene(certain(Fault::SocketFails));
    assert_eq!(driver.socket(address(0), &Tcp::PLAIN), Err(Errno(libc::EMFILE)));
    driver.close(Some((KEY, Side::Client)), client);
    let (_world, mut driver, _client, _far) = scene(certain(Fault::Freeze));
    let until = driver.now().plus_ms(1);
    driver.turn(Some(until)).unwrap();
    assert!(driver.now().since_ns(until) > 8 * MS, "the shard was not stopped");
    let (_world, mut driver, _client, _far) = scene(certain(Fault::EarlyTurn));
    let until = driver.now().plus_ms(1000);
    driver.turn(Some(until)).unwrap();
    assert!(driver.now() < until, "the turn was not early");
}

#[test]
fn far_ends_see_what_was_done_to_them() {
    let (world, mut driver, client, far) = scene(Faults::none());
    // Unread bytes make a close a reset, as in the kernel.
    assert_eq!(far.write(b"unread"), 6);
    driver.turn(Some(driver.now().plus_ms(1))).unwrap();
    driver.close(Some((KEY, Side::Client)), client);
    driver.turn(Some(driver.now().plus_ms(1))).unwrap();
    assert_eq!(far.read(10), Sight::Reset);
    let record = world.borrow().record(far.id());
    assert!(record.near.aborted && record.seen.reset && record.over, "{record:?}");
    let (world, mut driver, client, far) = scene(Faults::none());
    driver.close(Some((KEY, Side::Client)), client);
    driver.turn(Some(driver.now().plus_ms(1))).unwrap();
    assert_eq!(far.read(10), Sight::End);
    assert_eq!(world.borrow().record(far.id()).seen.end_at, Some(0));
}
