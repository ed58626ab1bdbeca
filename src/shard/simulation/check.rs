//! What has to hold: of each turn, of a world that has healed, and when all is over.

use super::plan::Plan;
use super::run::Run;
use crate::config::{OnBackendFail, limits};
use crate::driver::sim::{ConnId, Fate, Fault, Rate, Record, Role, Sim, World};
use crate::driver::{Driver, Side};
use crate::event::{Arm, EndReason, Ended, First};
use crate::shard::Shard;
use crate::tally::ShardTally;
use crate::time::Time;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// What holds for every seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Property {
    /// Nobody panics, and drivers are asked only for what their contract allows.
    Contract,
    /// Bytes arrive in order and once, and an end of stream hides none that are missing.
    Bytes,
    /// An end of stream is shown only where there was one, or where a rule of the config says so.
    CleanEnd,
    /// Sessions and shards come to their end.
    Liveness,
    /// In a world that has healed, what was written arrives, and so does its end.
    Starvation,
    /// A reset is heard, whatever the session is waiting for.
    Reset,
    /// A direction holds no more than its bound, and knows how much that is; who has come in has a place.
    Bound,
    /// Deadlines are kept.
    Deadline,
    /// Sockets, buffers, operations, timers, slots and places all come home.
    Leak,
    /// Every session has one record in the journal, which says what happened.
    Journal,
    /// Counters add up to what the ends saw.
    Tally,
    /// The canary has its exact share.
    Canary,
    /// No session that was carried is lost.
    Carried,
    /// The same seed does the same.
    Replay,
}

/// A property that does not hold.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) property: Property,
    pub(super) what: String,
    pub(super) trace: String,
}

type Broken = (Property, String);

/// How late a deadline may be kept: the wheel's tick, and a turn that was not yet called a freeze.
const LATE_MS: u64 = 300;
/// How much older sessions may get in one turn: a sleep, and stops too short to be told from work.
const TURN_MS: u64 = 3 * (limits::SLEEP_MS_MAX + limits::FREEZE_MS);
/// How long bytes may lie in a world that has healed.
const STARVED_MS: u64 = 20_000;
/// How long a shard may be without a buffer while directions wait for one: a cancelled send may take three seconds to
/// end.
const NO_BUFFERS_MS: u64 = 5000;
/// How long a reset may go unheard by shards that are not stopped.
const UNHEARD_MS: u64 = 10_000;

/// What is remembered from turn to turn.
#[derive(Default)]
pub(super) struct Watch {
    healed: bool,
    /// By connection: what its far end had to wait for, and since when.
    waits: BTreeMap<ConnId, ((u64, bool), Time)>,
    /// By shard, slot and generation: since when its deadline has passed.
    past: BTreeMap<(usize, u32, u32), Time>,
    /// By shard: since when it has had no buffer for directions that wait for one.
    bare: BTreeMap<usize, Time>,
    /// By connection: since when its far end's reset has not been heard.
    unheard: BTreeMap<ConnId, Time>,
    /// By shard: its clock after its last turn.
    clocks: BTreeMap<usize, Time>,
}

impl Watch {
    /// From now on nothing may be late for the network's sake.
    pub(super) const fn healed(&mut self) {
        self.healed = true;
    }

    /// Looks at a shard after its turn.
    pub(super) fn look(
        &mut self,
        plan: &Plan,
        at: usize,
        shard: &mut Shard<Sim>,
    ) -> Result<(), Broken> {
        let buffer_bytes = u64::from(plan.config.limits.buffer_bytes);
        let now = shard.now;
        let before = self.clocks.insert(at, now).unwrap_or(now);
        if now > before.plus_ms(TURN_MS) {
            let ms = now.since_ns(before) / 1_000_000;
            return Err((Property::Deadline, format!("shard {at}: a turn aged sessions {ms} ms")));
        }
        for key in shard.sessions.keys() {
            let Some(session) = shard.sessions.session(key) else { continue };
            let high_water = u64::from(session.snapshot().config.limits.high_water_bytes);
            // One that lay in the past when it was set is kept at the next tick.
            let name = (at, key.slot, key.generation);
            if session.deadline().is_none_or(|due| now <= due) {
                self.past.remove(&name);
            } else if now > self.past.entry(name).or_insert(now).plus_ms(LATE_MS) {
                let late = format!("shard {at}, {key:?}: a deadline passed unnoticed");
                return Err((Property::Deadline, late));
            }
            for (counted, held) in session.held(shard.driver.pool()) {
                if counted != held || held > high_water + buffer_bytes {
                    let what = format!("shard {at}, {key:?}: {held} held, {counted} by its count");
                    return Err((Property::Bound, format!("{what}, high water {high_water}")));
                }
            }
        }
        if shard.starved.is_empty() || shard.driver.pool().unused() > 0 {
            self.bare.remove(&at);
        } else if now > self.bare.entry(at).or_insert(now).plus_ms(NO_BUFFERS_MS) {
            let what = format!("shard {at} has no buffer, and {} wait", shard.starved.len());
            return Err((Property::Starvation, what));
        }
        Ok(())
    }

    /// Looks whether resets are heard.
    fn resets(&mut self, world: &World) -> Result<(), Broken> {
        let now = world.awake();
        for record in world.records() {
            let near = record.near;
            // Once both directions have ended in order the kernel says so again and again, and nothing more is heard.
            let ended = near.closed || near.aborted || record.sent.finished && near.finished;
            if !record.gone || ended || record.fate != Fate::Established {
                self.unheard.remove(&record.id);
            } else if now > self.unheard.entry(record.id).or_insert(now).plus_ms(UNHEARD_MS) {
                let what = format!("connection {} is gone, and nobody cares", record.id.0);
                return Err((Property::Reset, what));
            }
        }
        Ok(())
    }

    /// Looks whether what was written arrives.
    pub(super) fn progress(&mut self, world: &World) -> Result<(), Broken> {
        self.resets(world)?;
        if !self.healed {
            return Ok(());
        }
        let now = world.now();
        for seer in world.records() {
            let writer = seer.partner.map(|partner| world.record(partner));
            let waits = writer.map_or((0, false), |writer| waits_for(&writer, &seer));
            if waits == (0, false) {
                self.waits.remove(&seer.id);
                continue;
            }
            let (before, since) = self.waits.entry(seer.id).or_insert((waits, now));
            if *before != waits {
                (*before, *since) = (waits, now);
            } else if now > since.plus_ms(STARVED_MS) {
                let what = format!("connection {} waits for (bytes, end) {waits:?}", seer.id.0);
                return Err((Property::Starvation, what));
            }
        }
        Ok(())
    }
}

/// How many bytes of `writer`'s its partner has not read yet, and whether it has not read the end, of a session that
/// lives.
fn waits_for(writer: &Record, seer: &Record) -> (u64, bool) {
    let lives = |record: &Record| {
        let near = record.near;
        let broken = near.closed || near.aborted || near.broken.is_some();
        record.fate == Fate::Established && !broken && !record.seen.reset && !record.sent.reset
    };
    if !lives(writer) || !lives(seer) || seer.over {
        return (0, false);
    }
    let bytes = writer.sent.bytes.saturating_sub(seer.seen.bytes);
    (bytes, writer.sent.finished && seer.seen.end_at.is_none())
}

/// Whether each client that waits for its turn, each session, and each of both on its way between shards has its place.
pub(super) fn places(run: &Run) -> Result<(), Broken> {
    let loads = run.members.iter().map(|member| member.home.load.get());
    let here: u32 = loads.filter(|load| *load != u32::MAX).sum();
    let taken = run.snapshots.last().map_or(0, |snapshot| snapshot.taken()[0]);
    if here == taken {
        return Ok(());
    }
    Err((Property::Bound, format!("{here} have come in, and {taken} places are taken")))
}

/// What a shard that leaves has not given back.
pub(super) fn leaks_of(shard: &Shard<Sim>) -> Vec<String> {
    // Sockets of nobody may be control's, or on their way to another shard; they are counted at the end.
    let mut left = shard.driver.leaks();
    left.retain(|leak| !leak.ends_with("not attached") && !leak.ends_with("Accept in flight"));
    if shard.timers.next().is_some() {
        left.push("a timer".to_owned());
    }
    if !shard.stock.is_empty() {
        left.push(format!("{:?}", shard.stock));
    }
    if shard.sessions.count() > 0 {
        left.push(format!("{} sessions", shard.sessions.count()));
    }
    left
}

/// A world that has healed: who leaves has left.
pub(super) fn calm(run: &Run) -> Result<(), Failure> {
    let hang = run.sessions();
    if run.plan.all_leave && !run.is_stopping() && hang > 0 {
        return Err(run.failure(Property::Liveness, format!("{hang} sessions hang")));
    }
    Ok(())
}

/// All is over.
pub(super) fn over(run: &Run) -> Result<(), Failure> {
    let reasons = journal(run).map_err(|(property, what)| run.failure(property, what))?;
    let checks = [bytes(run, &reasons), leaks(run), tallies(run), canary(run)];
    match checks.into_iter().find_map(Result::err) {
        Some((property, what)) => Err(run.failure(property, what)),
        None => Ok(()),
    }
}

/// Each session's one record, by the client's connection.
fn journal(run: &Run) -> Result<BTreeMap<ConnId, &Ended>, Broken> {
    let mut of = BTreeMap::new();
    let world = run.world.borrow();
    for ended in &run.journal {
        // Whoever left before its session began has no address any more; the tallies count it all the same.
        let Some(client) = ended.client else { continue };
        let Some(id) = connection(client) else {
            return Err((Property::Journal, format!("nobody's: {ended:?}")));
        };
        if of.insert(id, ended).is_some() {
            return Err((Property::Journal, format!("a second record: {ended:?}")));
        }
        let client = world.record(id);
        let backend = client.partner.map(|partner| world.record(partner));
        let taken = (backend.map_or(0, |it| it.near.taken), client.near.taken);
        // What a send took that was in flight when its shard failed nobody knows.
        let failed = run.has_failed();
        let (up, down) = (ended.up_bytes, ended.down_bytes);
        if taken != (up, down) && !(failed && taken.0 >= up && taken.1 >= down) {
            return Err((Property::Journal, format!("{taken:?} were taken: {ended:?}")));
        }
        let was_read = match ended.first {
            Some(First::Client) => client.near.end_seen,
            Some(First::Backend) => backend.is_some_and(|it| it.near.end_seen),
            None => ended.why != EndReason::Finished,
        };
        if !was_read {
            return Err((Property::Journal, format!("it is not so who finished first: {ended:?}")));
        }
        if ended.why == EndReason::ShardFailed && !failed {
            return Err((Property::Carried, format!("lost on its way: {ended:?}")));
        }
    }
    Ok(of)
}

/// A client's connection, by its address.
fn connection(client: SocketAddr) -> Option<ConnId> {
    let IpAddr::V4(ip) = client.ip() else { return None };
    let [ten, a, b, c] = ip.octets();
    (ten == 10).then(|| ConnId(u32::from_be_bytes([0, a, b, c])))
}

/// Why the session of a connection ended, where the journal has it.
fn why(reasons: &BTreeMap<ConnId, &Ended>, record: &Record) -> Option<EndReason> {
    let client = match record.role {
        Role::Client(_) => Some(record.id),
        Role::Backend(_) => record.partner,
    };
    client.and_then(|id| reasons.get(&id)).map(|ended| ended.why)
}

/// What the far ends saw.
fn bytes(run: &Run, reasons: &BTreeMap<ConnId, &Ended>) -> Result<(), Broken> {
    let world = run.world.borrow();
    let unlogged = world.addresses_gone() > 0;
    for seer in world.records() {
        let (id, seen) = (seer.id.0, seer.seen);
        let writer = seer.partner.map(|partner| world.record(partner));
        let wrote = writer.map_or(0, |writer| writer.sent.bytes);
        if let Some(at) = seen.wrong_at {
            return Err((Property::Bytes, format!("connection {id}: byte {at} is wrong")));
        }
        if seen.unpaired > 0 || seen.bytes > wrote {
            let what = format!("connection {id}: read {}, {wrote} written", seen.bytes);
            return Err((Property::Bytes, what));
        }
        let Some(end_at) = seen.end_at else { continue };
        let reason = why(reasons, &seer);
        if reason.is_none() && unlogged || ends_in_order(run, reason, &seer) {
            continue;
        }
        if end_at < wrote {
            let what = format!("connection {id}: the end after {end_at} of {wrote}, {reason:?}");
            return Err((Property::Bytes, what));
        }
        if !writer.is_some_and(|writer| writer.sent.finished) {
            let what = format!("connection {id}: an end that nobody sent, {reason:?}");
            return Err((Property::CleanEnd, what));
        }
    }
    Ok(())
}

/// Whether a session that ended for this reason is shown to this end as one that ended in order.
fn ends_in_order(run: &Run, reason: Option<EndReason>, seer: &Record) -> bool {
    use EndReason as E;
    match reason {
        Some(E::Idle | E::HalfClosed | E::Age | E::Drained | E::Stopped) => true,
        Some(
            E::ConnectRefused
            | E::ConnectTimeout
            | E::ConnectUnreachable
            | E::NoPorts
            | E::NoDescriptors
            | E::NoBackend,
        ) => {
            let Role::Client(listener) = seer.role else { return false };
            run.snapshots.iter().any(|snapshot| {
                let listener = &snapshot.config.listeners[usize::from(listener.0)];
                listener.on_backend_fail == OnBackendFail::Close
            })
        }
        _ => false,
    }
}

/// What is left when everybody has left.
fn leaks(run: &Run) -> Result<(), Broken> {
    let open = run.world.borrow().open_sockets();
    if !open.is_empty() {
        return Err((Property::Leak, format!("sockets {open:?} are open")));
    }
    for snapshot in &run.snapshots {
        if snapshot.taken().iter().any(|places| *places > 0) {
            return Err((Property::Leak, format!("places are taken: {:?}", snapshot.taken())));
        }
    }
    match run.members.iter().position(|member| member.home.load.get() != u32::MAX) {
        Some(at) => Err((Property::Leak, format!("shard {at} is owed sessions"))),
        None => Ok(()),
    }
}

/// What becomes of connections that were ready.
pub(super) const fn spares_gone(of: &ShardTally) -> [&crate::tally::Count; 5] {
    [&of.spares_taken, &of.spares_ended, &of.spares_aged, &of.spares_unwanted, &of.spares_short]
}

/// Whether counters add up.
fn tallies(run: &Run) -> Result<(), Broken> {
    let world = run.world.borrow();
    let shards = || run.members.iter().map(|member| &member.tally.shard);
    let routes = || run.members.iter().flat_map(|member| member.tally.routes());
    let sum = |of: &dyn Fn(&crate::tally::RouteTally) -> u64| routes().map(|r| of(&r)).sum::<u64>();
    let ended = sum(&|r| r.ended.iter().map(crate::tally::Count::get).sum());
    let taken = |side: Side| -> u64 {
        let of =
            world.records().filter(|r| matches!(r.role, Role::Client(_)) == (side == Side::Client));
        of.map(|record| record.near.taken).sum()
    };
    let may = |fault| run.plan.faults.rate(fault) != Rate::NEVER;
    let impatient = may(Fault::Freeze) || may(Fault::LateCancel);
    // What was in flight when a shard failed is not counted.
    let heard = |far: u64, near: u64| if run.has_failed() { near } else { far };
    let counted = (
        sum(&|r| r.up_bytes.get()),
        sum(&|r| r.down_bytes.get()),
        shards().map(|s| s.stale.get()).sum(),
    );
    let pairs = [
        ("opened and ended", sum(&|r| r.opened.get()), ended),
        ("open", sum(&|r| r.open.get()), 0),
        ("ended and logged", ended, run.journal.len() as u64),
        ("up bytes", counted.0, heard(taken(Side::Backend), counted.0)),
        ("down bytes", counted.1, heard(taken(Side::Client), counted.1)),
        ("sessions", shards().map(|s| s.sessions.get()).sum(), 0),
        (
            "accepted, and ended or refused",
            shards().map(|s| s.accepted.get()).sum(),
            ended + shards().map(|s| s.refused_full.get()).sum::<u64>(),
        ),
        // A thread that was stopped for less than counts as a freeze may find its patience over before it reads the
        // answer, and some answers are that late.
        ("watchdog", if impatient { 0 } else { shards().map(|s| s.watchdog.get()).sum() }, 0),
        ("stale", counted.2, heard(world.stale(), counted.2)),
        (
            "spares made, and taken or closed",
            shards().map(|s| s.spares_made.get()).sum(),
            shards().flat_map(spares_gone).map(crate::tally::Count::get).sum(),
        ),
        ("spares", shards().map(|s| s.spares.get()).sum(), 0),
        ("journal dropped", shards().map(|s| s.journal_dropped.get()).sum(), 0),
    ];
    let moves = |of: &dyn Fn(&ShardTally) -> u64| shards().map(of).sum::<u64>();
    let (out, came) = (moves(&|s| s.moves_out.get()), moves(&|s| s.moves_in.get()));
    if came > out || out > came + moves(&|s| s.moves_failed.get()) {
        return Err((Property::Tally, format!("{out} moved out, {came} in")));
    }
    match pairs.into_iter().find(|(_, one, other)| one != other) {
        Some((what, one, other)) => Err((Property::Tally, format!("{what}: {one} and {other}"))),
        None => Ok(()),
    }
}

/// Whether each listener's canary has its share, exact to less than one.
fn canary(run: &Run) -> Result<(), Broken> {
    for listener in &run.plan.config.listeners {
        let count = |arm: Option<Arm>| -> u64 {
            let routes = run.members.iter().flat_map(|member| member.tally.routes());
            let of = routes.filter(|r| r.name.listener == listener.name);
            let of = of.filter(|r| arm.is_none_or(|arm| r.name.arm == arm));
            of.map(|r| r.ended.iter().map(crate::tally::Count::get).sum::<u64>()).sum()
        };
        let share = count(None) * u64::from(listener.canary_percent.hundredths());
        let got = count(Some(Arm::Canary)) * 10_000;
        if got.abs_diff(share) >= 10_000 {
            let what = format!("{}: {got} of {share} hundredths", listener.name);
            return Err((Property::Canary, what));
        }
    }
    Ok(())
}
