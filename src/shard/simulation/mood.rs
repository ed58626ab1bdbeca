//! What all ends of a run have in common, so that what needs many messages or many bytes comes about.

use super::plan::Plan;
use crate::driver::sim::{Rate, Rng, Script, Step};

/// Bytes a bulky end writes at once, at most.
const BULK_BYTES: u64 = 256 * 1024;

/// How the ends of a run behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Each as its script was drawn.
    Free,
    /// Few sessions ask and answer, quickly and often: those a spinning shard reads straight.
    Chatty,
    /// Some write much, through small buffers: what is carried in wide steps.
    Bulky,
}

impl Plan {
    /// Draws a mood, and changes the plan to it.
    pub(super) fn with_mood(mut self, rng: &mut Rng) -> Self {
        match rng.pick(&[Mood::Free, Mood::Free, Mood::Free, Mood::Chatty, Mood::Bulky]) {
            Mood::Free => {}
            Mood::Chatty => self.chat(rng),
            Mood::Bulky => self.swell(rng),
        }
        self
    }

    fn chat(&mut self, rng: &mut Rng) {
        self.awake.busy_poll_us = rng.pick(&[0, 60, 800]);
        self.faults.latency_ns = rng.log_within(1, 4000);
        self.clients.truncate(1 + rng.index(5));
        let count = u32::try_from(rng.log_within(40, 150)).expect("it is small");
        let bytes = u32::try_from(rng.log_within(1, 300)).expect("it is small");
        for client in &mut self.clients {
            client.script = cut_short(rng, Script::asks(count, bytes), self.all_leave);
        }
        for backend in &mut self.backends {
            backend.scripts = vec![cut_short(rng, Script::answers(count, bytes), self.all_leave)];
        }
    }

    fn swell(&mut self, rng: &mut Rng) {
        let limits = &mut self.config.limits;
        limits.buffer_bytes = limits.buffer_bytes.min(1024);
        if rng.chance(Rate::HALF) {
            limits.high_water_bytes = limits.buffer_bytes * (1 + u32::from(rng.chance(Rate::HALF)));
        }
        let least = rng.log_within(4096, 64 * 1024);
        self.faults.room_bytes = (least, rng.log_within(least, 128 * 1024));
        self.clients.truncate(1 + rng.index(6));
        let clients = self.clients.iter_mut().map(|client| &mut client.script);
        let backends = self.backends.iter_mut().flat_map(|backend| &mut backend.scripts);
        for script in clients.chain(backends) {
            if rng.chance(Rate::HALF) {
                let bytes = rng.log_within(16 * 1024, BULK_BYTES);
                let bytes = u32::try_from(bytes).expect("it is small");
                script.0.insert(0, Step::Write(bytes));
            }
        }
    }
}

/// A script that may end before its end: by a reset, in order, or with `leaves` not given, in silence.
fn cut_short(rng: &mut Rng, mut script: Script, leaves: bool) -> Script {
    if rng.chance(Rate::one_in(3)) {
        script.0.truncate(rng.index(script.0.len()));
        match rng.below(3) {
            0 => script.0.push(Step::Reset),
            1 if !leaves => {}
            _ => script.0.extend([Step::Finish, Step::Close]),
        }
    }
    script
}
