//! Bytes on their way: two [`Dir`](super::dir::Dir)s, one text for both directions, moved by completions.
//!
//! ```text
//! Dir:  idle -arm-> receiving -bytes-> sent at once, in order, one send in flight
//!         all sent        -> the buffer goes back, the receive stays armed or is armed again
//!         send in flight  -> what arrives meanwhile queues; receive no more than the credit left
//!         end of stream   -> when the queue is empty: tell the destination; this Dir is done
//!         error           -> the session ends; a reset on one side becomes a reset on the other
//! ```
//! One receive is one send, never held back to be joined with the next: venues penalise a message that spans two
//! packets. Only where the destination does not take bytes as fast as they come are queued ones packed together, so
//! that a queue of small messages does not hold a buffer for each.

use super::dir::Watch;
use super::sabotage::{self, Mutation};
use super::{Session, Stage, Step};
use crate::config::{Hop, limits};
use crate::driver::pool::BufferId;
use crate::driver::{self, Driver, Errno, Interest, Received, Side};
use crate::event::EndReason;
use crate::time::Time;

/// How receives are armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Multishot,
    Linked,
    Oneshot,
}

impl Shape {
    /// The shape that a hop takes on a driver, where it is neither wide nor hot.
    pub(super) const fn of(wanted: Hop, counts_credit: bool) -> Self {
        match wanted {
            Hop::Linked => Self::Linked,
            Hop::Oneshot => Self::Oneshot,
            _ if counts_credit => Self::Multishot,
            _ => Self::Oneshot,
        }
    }
}

impl Session {
    /// Whether bytes pass: its backend answers, it is not ending, and it is not on its way elsewhere.
    #[must_use]
    pub const fn is_relaying(&self) -> bool {
        matches!(self.stage, Stage::Relaying)
    }

    pub(super) fn is_half_closed(&self) -> bool {
        self.dirs.iter().any(|dir| dir.eof)
    }

    /// Takes what a receive from `side` brought.
    pub(super) fn on_received<D: Driver>(
        &mut self,
        step: &mut Step<'_, D>,
        side: Side,
        what: Received,
        more: bool,
    ) {
        self.dirs[side as usize].armed = more;
        match (&self.stage, what) {
            (Stage::Ending { .. }, Received::Bytes(buffer)) => {
                return step.driver.pool().give_back(buffer);
            }
            (Stage::Ending { .. }, _) => return,
            (Stage::Opening(_), _) => return self.on_early(step, what),
            (Stage::Relaying | Stage::Settling { .. }, _) => {}
        }
        match what {
            Received::Bytes(buffer) => self.forward(step, side, buffer),
            Received::End => {
                self.dirs[side as usize].eof = true;
                self.story.note_end(side);
                self.moved = step.now;
                self.retime = true;
                self.finish_if_drained(step, side);
            }
            Received::Failed(Errno::NO_BUFFERS) if self.is_relaying() => {
                self.dirs[side as usize].starved = true;
                if !sabotage::is(Mutation::StarvedForgotten) {
                    step.starved.push_back((step.key, side));
                }
            }
            // Of a linked pair whose send says why; of a move, or of one that was given up.
            Received::Failed(Errno::NO_BUFFERS | Errno::CANCELED) => self.arm(step, side),
            Received::Failed(e) => self.failed(step, side, e),
        }
    }

    /// Listens to a client whose backend takes its time.
    pub(super) fn listen_early<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        let dir = &mut self.dirs[Side::Client as usize];
        let (false, Some(client)) = (dir.armed, &self.ends[Side::Client as usize]) else { return };
        dir.armed = true;
        step.driver.arm_recv(step.key, Side::Client, client, driver::Arm::Once);
    }

    /// Takes what came from a client that has no backend yet: one that finishes without a word has left. What it said
    /// is kept for the backend, and then only a poll listens.
    fn on_early<D: Driver>(&mut self, step: &mut Step<'_, D>, what: Received) {
        let dir = &mut self.dirs[Side::Client as usize];
        if what == Received::End {
            self.story.note_end(Side::Client);
        }
        match what {
            Received::Bytes(buffer) => dir.push(step.driver.pool(), buffer),
            Received::End if dir.is_empty() => return self.end(step, EndReason::ClientLeft),
            Received::End => dir.eof = true,
            Received::Failed(Errno::NO_BUFFERS | Errno::CANCELED) => {}
            Received::Failed(_) => return self.end(step, EndReason::ClientLeft),
        }
        self.watch(step, Side::Client);
    }

    /// Takes the end of a send to `side`.
    pub(super) fn on_sent<D: Driver>(
        &mut self,
        step: &mut Step<'_, D>,
        side: Side,
        result: Result<u32, Errno>,
    ) {
        let source = side.other();
        let dir = &mut self.dirs[source as usize];
        dir.sending = false;
        let taken = result.unwrap_or(0);
        if matches!(self.stage, Stage::Ending { .. }) {
            dir.discard(step.driver.pool());
            return self.note_taken(step.now, source, taken);
        }
        let (cut, spills) = (std::mem::take(&mut dir.cut), std::mem::take(&mut dir.spills));
        dir.lingers = false;
        let is_short = dir.queue.is_some_and(|(first, _)| taken < step.driver.pool().filled(first));
        dir.took(step.driver.pool(), taken);
        self.note_taken(step.now, source, taken);
        match result {
            // It was not asked to end, so the connection is broken. The kernel may have spent the error on this send: a
            // receive would find an orderly end now.
            Ok(_) if is_short && !cut => return self.failed(step, side, Errno::RESET),
            Ok(_) | Err(Errno::CANCELED) => {}
            Err(e) => return self.failed(step, side, e),
        }
        if !self.is_relaying() {
            return self.settle_rest(step);
        }
        if spills {
            self.dirs[source as usize].spill(step.driver.pool());
        }
        self.send_next(step, source);
        self.finish_if_drained(step, source);
        if !sabotage::is(Mutation::LostWakeUp) {
            self.arm(step, source);
        }
    }

    /// Moves what waits for a slow destination out of the pool, so that others find buffers. To be called now and then
    /// while the pool is low: a send that was in flight at the last call and still is does not end soon.
    pub fn spill<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        for side in Side::BOTH.into_iter().filter(|_| !sabotage::is(Mutation::NeverSpills)) {
            let dir = &mut self.dirs[side as usize];
            let Some((first, _)) = dir.queue else { continue };
            if !dir.sending {
                // What a client said early: its backend takes its time.
                dir.spill(step.driver.pool());
                continue;
            }
            let lingered = std::mem::replace(&mut dir.lingers, true);
            if !lingered || !matches!(self.stage, Stage::Relaying) {
                continue;
            }
            let pool = step.driver.pool();
            dir.spill(pool);
            if !pool.is_spilled(first) && !dir.cut {
                (dir.cut, dir.spills) = (true, true);
                step.driver.cancel(step.key, driver::Op::Send(side.other()));
            }
        }
    }

    /// Takes note that the connection of `side`, of which nothing receives, is gone.
    pub(super) fn on_gone<D: Driver>(&mut self, step: &mut Step<'_, D>, side: Side) {
        let Some(socket) = &self.ends[side as usize] else { return };
        match step.driver.take_error(socket) {
            Err(e) => self.failed(step, side, e),
            Ok(()) => self.dirs[side as usize].watch = Watch::Over,
        }
    }

    /// Begins to listen for the end of `side`'s connection, where that is not heard already.
    pub(super) fn watch<D: Driver>(&mut self, step: &mut Step<'_, D>, side: Side) {
        let dir = &mut self.dirs[side as usize];
        let (Watch::Off, Some(socket)) = (dir.watch, &self.ends[side as usize]) else { return };
        dir.watch = Watch::On;
        step.driver.arm_poll(step.key, side, socket, Interest::Gone);
    }

    /// Arms a receive from `side` again that found no buffer. Whether it still wanted to.
    pub fn feed<D: Driver>(&mut self, step: &mut Step<'_, D>, side: Side) -> bool {
        let was = std::mem::take(&mut self.dirs[side as usize].starved);
        if was {
            self.arm(step, side);
        }
        was
    }

    /// Arms a receive from `side` if there is room for what it may bring: the one place where this is decided.
    pub(super) fn arm<D: Driver>(&mut self, step: &mut Step<'_, D>, side: Side) {
        let dir = &mut self.dirs[side as usize];
        let in_flight = dir.armed || dir.polling || dir.starved;
        if in_flight || dir.eof || !matches!(self.stage, Stage::Relaying) {
            return;
        }
        // A hot session is read by `read_now`, unless it has become bulky.
        if self.hot && !dir.wide {
            self.retime |= dir.sending;
            return;
        }
        let Some(socket) = &self.ends[side as usize] else { return };
        if dir.wide {
            match dir.watch {
                _ if !dir.is_empty() => self.retime = true,
                // One poll of a side at a time: its end arms again.
                Watch::On => step.driver.cancel(step.key, driver::Op::Poll(side)),
                Watch::Off | Watch::Over => {
                    dir.polling = true;
                    step.driver.arm_poll(step.key, side, socket, Interest::Readable);
                }
            }
            return;
        }
        let high_water = self.snapshot.config.limits.high_water_bytes;
        let pool = step.driver.pool();
        let (low, buffer_bytes) = (pool.is_low(), pool.buffer_bytes());
        let arm = match self.shape {
            Shape::Multishot if sabotage::is(Mutation::CreditIgnored) => {
                driver::Arm::Multi(u32::MAX)
            }
            // Half of the room must be free again, so that a slow destination does not cost an arming for each send.
            Shape::Multishot if low && dir.queued == 0 => driver::Arm::Multi(buffer_bytes),
            Shape::Multishot if !low && dir.queued <= high_water / 2 => {
                driver::Arm::Multi(high_water - dir.queued)
            }
            Shape::Linked | Shape::Oneshot if dir.queued == 0 => driver::Arm::Once,
            _ => {
                self.retime = true;
                return;
            }
        };
        dir.armed = true;
        step.driver.arm_recv(step.key, side, socket, arm);
    }

    /// Carries a wide step: the source has something.
    pub(super) fn carry<D: Driver>(&mut self, step: &mut Step<'_, D>, source: Side) {
        let dir = &mut self.dirs[source as usize];
        dir.polling = false;
        if !matches!(self.stage, Stage::Relaying) {
            return;
        }
        let (Some(from), Some(to)) =
            (&self.ends[source as usize], &self.ends[source.other() as usize])
        else {
            return;
        };
        let high_water = self.snapshot.config.limits.high_water_bytes;
        let by = if self.hop == Hop::Wide { driver::Way::Buffer } else { driver::Way::Pipe };
        let stride = driver::Stride { tail_max: high_water, by };
        let carried = step.driver.carry_wide(step.key, source, from, to, stride);
        if let Some((first, last)) = carried.tail {
            dir.adopt(step.driver.pool(), first, last);
            if sabotage::is(Mutation::WideTailLost) {
                dir.discard(step.driver.pool());
            }
        }
        let moved = carried.taken + dir.queued;
        let small = moved < step.driver.pool().buffer_bytes();
        // Where every direction is wide, nothing ends the streak.
        dir.streak = if small { dir.streak.saturating_add(1) } else { 0 };
        // Where a wide step finds no buffers for a tail, a receive of the usual size may still find one.
        let bare = carried.source == Some(Received::Failed(Errno::NO_BUFFERS));
        if bare || dir.streak >= limits::WIDE_UNTIL && self.hop == Hop::Auto {
            (dir.wide, dir.streak) = (false, 0);
        }
        if moved > 0 {
            self.note_arrival(step.now, source);
        }
        self.note_taken(step.now, source, carried.taken);
        if let Some(e) = carried.failed {
            return self.failed(step, source.other(), e);
        }
        self.send_next(step, source);
        match carried.source {
            Some(what) => self.on_received(step, source, what, false),
            None => self.arm(step, source),
        }
    }

    /// Gives back what will not be sent. A buffer that is being sent stays until its completion.
    pub(super) fn drop_queues<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        for dir in &mut self.dirs {
            let pool = step.driver.pool();
            let Some((first, _)) = dir.queue else { continue };
            let rest = pool.next(first);
            let sent_now = if dir.sending { pool.filled(first) } else { 0 };
            let mut next = if dir.sending { rest } else { Some(first) };
            while let Some(buffer) = next {
                next = pool.next(buffer);
                pool.give_back(buffer);
            }
            dir.queue = dir.sending.then_some((first, first));
            dir.queued = sent_now;
        }
    }

    /// Passes received bytes on.
    fn forward<D: Driver>(&mut self, step: &mut Step<'_, D>, side: Side, buffer: BufferId) {
        self.note_arrival(step.now, side);
        let wide = step.driver.has_plain_calls() && self.hop == Hop::Auto;
        let always = self.is_always_wide(step);
        let dir = &mut self.dirs[side as usize];
        let pool = step.driver.pool();
        let full = wide && pool.filled(buffer) == pool.buffer_bytes();
        dir.wide |= always;
        if !dir.wide {
            dir.streak = if full { dir.streak + 1 } else { 0 };
            if dir.streak >= limits::WIDE_AFTER {
                (dir.wide, dir.streak) = (true, 0);
            }
        }
        dir.push(pool, buffer);
        if !matches!(self.stage, Stage::Relaying) {
            return;
        }
        let at_once = self.hot || (self.shape != Shape::Linked && step.driver.sends_at_once());
        if at_once && !dir.sending && !self.send_now(step, side) {
            return;
        }
        let dir = &mut self.dirs[side as usize];
        let ends = (&self.ends[side as usize], &self.ends[side.other() as usize]);
        if let (Shape::Linked, false, false, (Some(source), Some(to))) =
            (self.shape, dir.armed, dir.sending, ends)
            && !dir.wide
            && !self.hot
        {
            (dir.sending, dir.armed) = (true, true);
            self.retime = true;
            step.driver.send_then_recv(step.key, side.other(), to, buffer, source);
            return;
        }
        self.send_next(step, side);
        self.arm(step, side);
    }

    /// Sends the first buffer of the queue at once, as far as there is room. Whether the session goes on.
    fn send_now<D: Driver>(&mut self, step: &mut Step<'_, D>, source: Side) -> bool {
        let side = source.other();
        let dir = &mut self.dirs[source as usize];
        let (Some((first, _)), Some(to)) = (dir.queue, &self.ends[side as usize]) else {
            return true;
        };
        match step.driver.send_now(to, first) {
            Ok(taken) => {
                if !sabotage::is(Mutation::HotSentTwice) {
                    dir.took(step.driver.pool(), taken);
                }
                self.note_taken(step.now, source, taken);
                true
            }
            Err(e) => {
                self.failed(step, side, e);
                false
            }
        }
    }

    /// Whether its directions are carried in wide steps whatever they carry.
    fn is_always_wide<D: Driver>(&self, step: &Step<'_, D>) -> bool {
        matches!(self.hop, Hop::Wide | Hop::Splice) && step.driver.has_plain_calls()
    }

    /// Arms both directions for the first time on this driver, and sends what waits.
    pub(super) fn start<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        let always = self.is_always_wide(step);
        for side in Side::BOTH {
            self.dirs[side as usize].wide |= always;
            self.send_next(step, side);
            self.finish_if_drained(step, side);
            self.arm(step, side);
        }
    }

    /// Whether its shard reads it straight whenever it spins, and does not yet.
    #[must_use]
    pub fn wants_heat(&self) -> bool {
        self.forces_heat() && !self.hot
    }

    /// Whether its shard is to read it straight however many others carry traffic.
    #[must_use]
    pub fn forces_heat(&self) -> bool {
        self.hop == Hop::Hot
    }

    /// Whether its shard reads it straight.
    #[must_use]
    pub const fn is_hot(&self) -> bool {
        self.hot
    }

    /// Withdraws its receives, so that its shard can read it straight while it spins.
    pub fn heat<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        let may = matches!(self.hop, Hop::Auto | Hop::Hot) && step.driver.has_plain_calls();
        if self.hot || !self.is_relaying() || !may {
            return;
        }
        self.hot = true;
        for side in Side::BOTH.into_iter().filter(|side| self.dirs[*side as usize].armed) {
            step.driver.cancel(step.key, driver::Op::Recv(side));
        }
    }

    /// Arms its receives again.
    pub fn cool<D: Driver>(&mut self, step: &mut Step<'_, D>) {
        if std::mem::take(&mut self.hot) {
            for side in Side::BOTH {
                self.arm(step, side);
            }
        }
    }

    /// Reads a hot session straight. Whether anything was there.
    pub fn read_now<D: Driver>(&mut self, step: &mut Step<'_, D>) -> bool {
        let mut found = false;
        for side in Side::BOTH {
            let dir = &self.dirs[side as usize];
            let armed = dir.armed && !sabotage::is(Mutation::ReadWhileArmed);
            let busy = armed || dir.polling || dir.starved || dir.eof || !dir.is_empty();
            let Some(socket) = &self.ends[side as usize] else { continue };
            if !self.hot || busy || !self.is_relaying() {
                continue;
            }
            if let Some(what) = step.driver.recv_now(step.key, side, socket) {
                // Without a buffer nothing was seen: who called that movement would stay awake for it.
                found |= what != Received::Failed(Errno::NO_BUFFERS);
                self.on_received(step, side, what, false);
            }
        }
        found
    }

    /// Bytes came from `source`.
    fn note_arrival(&mut self, now: Time, source: Side) {
        self.moved = now;
        if source == Side::Backend
            && let Some(asked) = self.asked.take()
            && let Some(route) = &self.route
        {
            route.turn.record(now.since_ns(asked));
        }
    }

    /// The other side took bytes of `source`.
    fn note_taken(&mut self, now: Time, source: Side, taken: u32) {
        if taken == 0 {
            return;
        }
        self.dirs[source as usize].bytes += u64::from(taken);
        self.work = self.work.wrapping_add(1 + (taken >> 13));
        if let Some(route) = &self.route {
            let bytes = if source == Side::Client { &route.up_bytes } else { &route.down_bytes };
            bytes.add(u64::from(taken) << u32::from(sabotage::is(Mutation::CountedTwice)));
        }
        self.moved = now;
        if source == Side::Client && self.asked.is_none() {
            self.asked = Some(now);
        }
    }

    /// Sends the first buffer of the queue, unless one is being sent.
    pub(super) fn send_next<D: Driver>(&mut self, step: &mut Step<'_, D>, source: Side) {
        let dir = &mut self.dirs[source as usize];
        let (false, Some((first, _))) = (dir.sending, dir.queue) else { return };
        let Some(to) = &self.ends[source.other() as usize] else { return };
        dir.sending = true;
        step.driver.send(step.key, source.other(), to, first);
    }

    /// Tells the destination that the source has finished, once it has all the bytes.
    pub(super) fn finish_if_drained<D: Driver>(&mut self, step: &mut Step<'_, D>, source: Side) {
        let dir = &mut self.dirs[source as usize];
        let relaying = matches!(self.stage, Stage::Relaying);
        let drained = !dir.sending && dir.is_empty() || sabotage::is(Mutation::EndBeforeBytes);
        if !relaying || !dir.eof || dir.finished || !drained {
            return;
        }
        dir.finished = true;
        if self.dirs.iter().all(|dir| dir.finished) {
            // Closing the sockets tells the destination: nothing of it is unread.
            return self.end(step, EndReason::Finished);
        }
        let Some(to) = &self.ends[source.other() as usize] else { return };
        if let Err(e) = step.driver.finish(to) {
            self.failed(step, source.other(), e);
        }
    }

    /// Ends the session because the connection to `side` is broken.
    fn failed<D: Driver>(&mut self, step: &mut Step<'_, D>, side: Side, e: Errno) {
        let why = match (side, e.is_vanished()) {
            (Side::Client, false) => EndReason::ClientReset,
            (Side::Backend, false) => EndReason::BackendReset,
            (Side::Client, true) => EndReason::ClientVanished,
            (Side::Backend, true) => EndReason::BackendVanished,
        };
        self.end(step, why);
    }
}
