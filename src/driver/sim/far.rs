//! What far ends do: their scripts, their reading, and how they leave.

use super::conn::{ConnId, Fate};
use super::faults::Fault;
use super::pipe::Way;
use super::script::{Reading, Step, content};
use super::trace::Note;
use super::world::{Event, World};

impl World {
    /// Moves a far end on through its script, as far as it gets now.
    pub(super) fn far_run(&mut self, id: ConnId) {
        loop {
            let conn = &self.conns[id.index()];
            if conn.far.over || !matches!(conn.fate, Fate::Queued | Fate::Established) {
                return;
            }
            let Some(step) = conn.far.script.get(conn.far.at).copied() else { return };
            if !self.far_step(id, step) {
                return;
            }
            let far = &mut self.conns[id.index()].far;
            far.at += 1;
            (far.written, far.deadline) = (0, None);
        }
    }

    /// Works on one step. Says whether it is done.
    fn far_step(&mut self, id: ConnId, step: Step) -> bool {
        let seen = self.conns[id.index()].seen;
        match step {
            Step::Write(bytes) => {
                let written = self.conns[id.index()].far.written;
                let n = self.far_write_content(id, bytes - written);
                self.conns[id.index()].far.written = written + n;
                written + n == bytes
            }
            Step::Wait(ns) => self.far_waited(id, ns),
            Step::Await { bytes, patience_ns } => {
                seen.bytes >= bytes || self.far_waited(id, patience_ns)
            }
            Step::AwaitEnd { patience_ns } => {
                seen.end_at.is_some() || self.far_waited(id, patience_ns)
            }
            Step::Reading(reading) => {
                self.conns[id.index()].far.reading = reading;
                self.far_read_as_it_does(id);
                true
            }
            Step::Finish => {
                self.far_finish(id);
                true
            }
            Step::Reset => {
                self.far_reset(id);
                true
            }
            Step::Close => {
                self.far_close(id);
                true
            }
        }
    }

    /// Whether a wait that began when this was first asked is over.
    fn far_waited(&mut self, id: ConnId, ns: u64) -> bool {
        let clock = self.clock;
        let far = &mut self.conns[id.index()].far;
        if let Some(deadline) = far.deadline {
            return clock >= deadline;
        }
        far.deadline = Some(clock + ns);
        self.schedule(ns, Event::Far(id));
        false
    }

    /// Writes up to `most` bytes of the far end's own stream; returns how many there was room for.
    fn far_write_content(&mut self, id: ConnId, most: u32) -> u32 {
        let offset = self.conns[id.index()].sent.bytes;
        let room = self.conns[id.index()].pipe(Way::In).room(self.clock);
        let n = most.min(u32::try_from(room).unwrap_or(most));
        self.far_write(id, content(id.0, offset).take(n as usize), n as usize);
        n
    }

    /// Puts `n` bytes, for which there is room, on their way.
    pub(super) fn far_write(&mut self, id: ConnId, bytes: impl Iterator<Item = u8>, n: usize) {
        if n == 0 {
            return;
        }
        let conn = &mut self.conns[id.index()];
        debug_assert!(!conn.sent.finished, "a script writes after it finished");
        conn.pipe_mut(Way::In).send(bytes);
        conn.sent.bytes += n as u64;
        self.note(Note::Far("wrote", id.0, n as u64));
        self.under_way(id, Way::In, n);
    }

    /// `n` bytes were sent one way: they arrive, perhaps late and in pieces, never overtaking others.
    pub(super) fn under_way(&mut self, id: ConnId, way: Way, mut n: usize) {
        while n > 0 {
            let piece = if self.happens(Fault::SplitArrival) { 1 + self.rng.index(n) } else { n };
            let delay = self.arrival_delay(id, way);
            self.schedule(delay, Event::Arrive(id, way, piece));
            n -= piece;
        }
    }

    /// How long what is sent now takes, so that it stays in order.
    pub(super) fn arrival_delay(&mut self, id: ConnId, way: Way) -> u64 {
        let mut at = self.clock + self.faults.latency_ns;
        if self.happens(Fault::LateArrival) {
            at += self.rng.log_within(1000, 50_000_000);
        }
        let pipe = self.conns[id.index()].pipe_mut(way);
        pipe.last_arrival = pipe.last_arrival.max(at);
        pipe.last_arrival - self.clock
    }

    /// Reads what there is and what its manner of reading allows.
    pub(super) fn far_read_as_it_does(&mut self, id: ConnId) {
        let far = &mut self.conns[id.index()].far;
        if far.over || far.manual {
            return;
        }
        match far.reading {
            Reading::Stopped => {}
            Reading::Eager => {
                self.far_read(id, usize::MAX, None);
            }
            Reading::Slow { .. } if far.resting => {}
            Reading::Slow { bytes, every_ns } => {
                if self.far_read(id, bytes as usize, None) > 0 {
                    self.conns[id.index()].far.resting = true;
                    self.schedule(every_ns.max(1), Event::FarRested(id));
                }
            }
        }
    }

    /// Reads up to `most` bytes and compares them with what its partner wrote; `into` gets them too. Returns how many.
    pub(super) fn far_read(
        &mut self,
        id: ConnId,
        most: usize,
        mut into: Option<&mut Vec<u8>>,
    ) -> usize {
        let conn = &mut self.conns[id.index()];
        let n = conn.pipe(Way::Out).readable().min(most);
        let seen = &mut conn.seen;
        let mut expected = conn.partner.map(|partner| content(partner.0, seen.bytes));
        for byte in conn.pipes[Way::Out as usize].read(n) {
            if let Some(expected) = &mut expected {
                if expected.next() != Some(byte) && seen.wrong_at.is_none() {
                    seen.wrong_at = Some(seen.bytes);
                }
            } else {
                seen.unpaired += 1;
            }
            seen.bytes += 1;
            if let Some(into) = &mut into {
                into.push(byte);
            }
        }
        if conn.pipe(Way::Out).ended() && conn.seen.end_at.is_none() {
            conn.seen.end_at = Some(conn.seen.bytes);
            let bytes = conn.seen.bytes;
            self.note(Note::Far("read the end after", id.0, bytes));
        }
        if n > 0 {
            self.note(Note::Far("read", id.0, n as u64));
            self.kick_conn(id);
        }
        n
    }

    /// The far end has nothing more to send.
    pub(super) fn far_finish(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.index()];
        if conn.far.over || conn.sent.finished {
            return;
        }
        conn.sent.finished = true;
        conn.pipe_mut(Way::In).finish();
        self.note(Note::Far("finished", id.0, 0));
        let delay = self.arrival_delay(id, Way::In);
        self.schedule(delay, Event::ArriveEnd(id, Way::In));
    }

    /// The far end resets the connection; that overtakes what it sent before.
    pub(super) fn far_reset(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.index()];
        if conn.far.over {
            return;
        }
        conn.far.over = true;
        conn.sent.reset = true;
        self.note(Note::Far("reset", id.0, 0));
        self.schedule(self.faults.latency_ns, Event::ArriveReset(id, Way::In));
    }

    /// The far end leaves. As in the kernel, bytes it left unread make that a reset.
    pub(super) fn far_close(&mut self, id: ConnId) {
        if self.conns[id.index()].pipe(Way::Out).readable() > 0 {
            return self.far_reset(id);
        }
        self.far_finish(id);
        self.conns[id.index()].far.over = true;
        self.note(Note::Far("left", id.0, 0));
    }

    /// Bytes reached the far end.
    pub(super) fn arrived_at_far(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.index()];
        if conn.far.over {
            if !conn.seen.reset && !conn.sent.reset {
                conn.sent.reset = true;
                self.note(Note::Far("was gone, answers by a reset", id.0, 0));
                self.schedule(self.faults.latency_ns, Event::ArriveReset(id, Way::In));
            }
            return;
        }
        self.far_read_as_it_does(id);
        self.far_run(id);
    }

    /// A reset reached the far end.
    pub(super) fn reset_at_far(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.index()];
        if conn.far.over {
            return;
        }
        conn.pipe_mut(Way::Out).cut(true);
        conn.far.over = true;
        conn.seen.reset = true;
        self.note(Note::Far("was reset", id.0, 0));
    }
}
