//! A session taken off its driver at a quiet moment: two sockets, unsent bytes, counters, deadlines.
//!
//! To be carried, a session [settles](Session::settle): its receives are cancelled and waited for, a send in flight is
//! finished or cut short and its unsent tail kept. Then nothing of it is in flight, and it can be
//! [packed](Session::pack) and [unpacked](Session::unpack) on any driver of any shard. What cannot be unpacked comes
//! back as it was.

mod record;

use super::dir::Watch;
use super::sabotage::{self, Mutation};
use super::story::Story;
use super::{Birth, Rest, Session, Stage, Step};
use crate::driver::{Driver, Op, Side, Socket};
use crate::event::{Arm, EndReason, Ended};
use crate::policy::snapshot::{BackendIndex, Snapshot};
use crate::time::Time;
use std::net::SocketAddr;
use std::sync::Arc;

/// A session at rest, without a driver. It is unpacked or its sockets are closed, never just dropped.
#[derive(Debug)]
#[must_use = "a parcel that is forgotten leaks two sockets and somebody's orders"]
pub struct Parcel {
    ends: [Socket; 2],
    dirs: [Half; 2],
    snapshot: Arc<Snapshot>,
    client: Option<Box<SocketAddr>>,
    id: u64,
    /// On the system's monotonic clock, as all times of a parcel.
    accepted: Time,
    moved: Time,
    asked: Option<Time>,
    /// When it began to come to rest.
    settled_since: Time,
    story: Story,
    backend: Option<BackendIndex>,
    listener: u16,
    arm: Arm,
    /// Another process had it before.
    upgraded: bool,
}

/// One direction of a parcel.
#[derive(Debug)]
struct Half {
    /// Bytes that were received and not sent.
    tail: Vec<u8>,
    bytes: u64,
    eof: bool,
    finished: bool,
}

impl Parcel {
    /// The session's id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// When its session began to come to rest, on the system's monotonic clock.
    #[must_use]
    pub const fn settled_since(&self) -> Time {
        self.settled_since
    }
}

impl Session {
    /// Begins to come to rest. Whether it does: one that looks for its backend or is ending stays where it is.
    pub fn settle<D: Driver>(&mut self, step: &mut Step<'_, D>) -> bool {
        if !self.is_relaying() {
            return false;
        }
        self.stage = Stage::Settling { since: step.now };
        self.retime = true;
        self.hot = false;
        self.settle_rest(step);
        true
    }

    /// Cancels what is still in flight. A receive that is linked to a send can be cancelled only after it, so this is
    /// called again when a send is over.
    pub(super) fn settle_rest<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        for side in Side::BOTH {
            let dir = &mut self.dirs[side as usize];
            if dir.sending {
                dir.cut = true;
                step.driver.cancel(step.key, Op::Send(side.other()));
            }
            if dir.armed {
                step.driver.cancel(step.key, Op::Recv(side));
            }
            if dir.polling || dir.watch == Watch::On {
                step.driver.cancel(step.key, Op::Poll(side));
            }
        }
    }

    /// Goes on where it is, whatever is still in flight.
    pub fn unsettle<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        if !matches!(self.stage, Stage::Settling { .. }) {
            return;
        }
        self.stage = Stage::Relaying;
        self.retime = true;
        self.start(step);
    }

    /// Takes it off its driver. `frozen_ns`: how far the shard's clock lags behind the system's.
    ///
    /// # Panics
    /// Where it is not settled.
    pub fn pack<D: Driver>(&mut self, step: &mut Step<'_, D>, frozen_ns: u64) -> Box<Parcel> {
        assert!(self.rest() == Rest::Settled, "a session is packed when it has come to rest");
        let ends = Side::BOTH.map(|side| {
            let socket = self.ends[side as usize].take().expect("a relaying session has both");
            step.driver.detach(step.key, side, &socket);
            socket
        });
        if let Some(route) = self.route.take() {
            route.open.sub(1);
        }
        let pool = step.driver.pool();
        let dirs = Side::BOTH.map(|side| {
            let dir = &mut self.dirs[side as usize];
            let mut tail = dir.empty(pool);
            match () {
                () if sabotage::is(Mutation::TailLost) => tail.clear(),
                () if sabotage::is(Mutation::TailDoubled) => tail.extend_from_within(..),
                () => {}
            }
            let finished = dir.finished || dir.eof && sabotage::is(Mutation::EndForgotten);
            Half { tail, bytes: dir.bytes, eof: dir.eof, finished }
        });
        let since = match self.stage {
            Stage::Settling { since } => since,
            _ => step.now,
        };
        Box::new(Parcel {
            ends,
            dirs,
            snapshot: Arc::clone(&self.snapshot),
            client: self.client.take(),
            id: self.id,
            accepted: self.accepted + frozen_ns,
            moved: self.moved + frozen_ns,
            asked: self.asked.map(|at| at + frozen_ns),
            settled_since: since + frozen_ns,
            story: self.story,
            backend: self.backend,
            listener: self.listener,
            arm: self.arm,
            upgraded: false,
        })
    }

    /// Puts a parcel onto a driver, and lets it go on.
    ///
    /// # Errors
    /// The parcel as it was, where the driver has no room for it.
    pub fn unpack<D: Driver>(
        step: &mut Step<'_, D>,
        parcel: Box<Parcel>,
        frozen_ns: u64,
    ) -> Result<Self, Box<Parcel>> {
        for side in Side::BOTH {
            if step.driver.attach(step.key, side, &parcel.ends[side as usize]).is_err() {
                if side == Side::Backend {
                    step.driver.detach(step.key, Side::Client, &parcel.ends[0]);
                }
                return Err(parcel);
            }
        }
        Ok(Self::reborn(step, *parcel, frozen_ns))
    }

    fn reborn<D: Driver>(step: &mut Step<'_, D>, parcel: Parcel, frozen_ns: u64) -> Self {
        let mut parcel = parcel;
        let tails = parcel.dirs.each_mut().map(|half| std::mem::take(&mut half.tail));
        let mut session = Self::without_tails(step, parcel, frozen_ns);
        for (dir, tail) in session.dirs.iter_mut().zip(tails) {
            dir.refill(step.driver.pool(), tail);
        }
        session.unsettle(step);
        session
    }

    /// Resets both ends of a parcel that will not go on, and counts its session.
    pub fn lose<D: Driver>(
        step: &mut Step<'_, D>,
        parcel: Parcel,
        frozen_ns: u64,
        why: EndReason,
    ) -> (Self, Option<Ended>) {
        let mut session = Self::without_tails(step, parcel, frozen_ns);
        let ended = session.abandon(step, why);
        (session, ended)
    }

    fn without_tails<D: Driver>(step: &mut Step<'_, D>, parcel: Parcel, frozen_ns: u64) -> Self {
        let on_this_clock = |at: Time| Time(at.0.saturating_sub(frozen_ns));
        let [client, backend] = parcel.ends;
        let (snapshot, listener, id) = (parcel.snapshot, parcel.listener, parcel.id);
        let mut session = Self::unborn(step, Birth { client, snapshot, listener, id }, parcel.arm);
        session.stage = Stage::Settling { since: step.now };
        session.ends[Side::Backend as usize] = Some(backend);
        session.client = parcel.client;
        session.accepted = on_this_clock(parcel.accepted);
        session.moved = on_this_clock(parcel.moved);
        session.asked = parcel.asked.map(on_this_clock);
        session.story = parcel.story;
        session.backend = parcel.backend;
        let route = step.routes.of(&session.snapshot, listener, session.arm, session.backend);
        route.open.add(1);
        session.route = Some(route);
        for (dir, half) in session.dirs.iter_mut().zip(parcel.dirs) {
            (dir.bytes, dir.eof, dir.finished) = (half.bytes, half.eof, half.finished);
        }
        session
    }
}
