//! What a simulated client or backend does: steps, taken one after the other, while it reads beside them.

use super::rng::{Rate, Rng, mix};
use std::net::SocketAddr;

/// What one end of a connection does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script(pub Vec<Step>);

/// One thing an end does. When there are no more it stays connected, and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Writes so many bytes of its stream ([`content`]), as there is room.
    Write(u32),
    /// Does nothing for so many nanoseconds.
    Wait(u64),
    /// Waits until it has read so many bytes, or for so many nanoseconds.
    Await {
        /// Of the whole stream.
        bytes: u64,
        /// Then it goes on all the same.
        patience_ns: u64,
    },
    /// Waits for the end of the other stream, or for so many nanoseconds.
    AwaitEnd {
        /// Then it goes on all the same.
        patience_ns: u64,
    },
    /// From now on it reads like this.
    Reading(Reading),
    /// It has nothing more to send.
    Finish,
    /// It resets the connection.
    Reset,
    /// It leaves: what comes afterwards is answered by a reset, and so is what it left unread.
    Close,
}

/// How an end reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// All, as it comes.
    Eager,
    /// So much, then a pause.
    Slow {
        /// Most bytes at once.
        bytes: u32,
        /// The pause.
        every_ns: u64,
    },
    /// Not at all.
    Stopped,
}

/// What a backend says to those who connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It accepts, after so many nanoseconds.
    Accept {
        /// How long that takes.
        after_ns: u64,
    },
    /// Nobody listens.
    Refuse,
    /// It does not answer.
    Hang,
    /// No route.
    Unreachable,
}

/// What lives at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Where.
    pub address: SocketAddr,
    /// From when on it says what, in order of time; before the first it refuses.
    pub answers: Vec<(crate::time::Time, Answer)>,
    /// What its connections do, one after the other, then from the first again; none: they only read.
    pub scripts: Vec<Script>,
}

impl Backend {
    /// One that accepts at once, always.
    #[must_use]
    pub fn accepting(address: SocketAddr, scripts: Vec<Script>) -> Self {
        let answer = (crate::time::Time(0), Answer::Accept { after_ns: 0 });
        Self { address, answers: vec![answer], scripts }
    }

    /// One that always says the same.
    #[must_use]
    pub fn always(address: SocketAddr, answer: Answer, scripts: Vec<Script>) -> Self {
        Self { address, answers: vec![(crate::time::Time(0), answer)], scripts }
    }
}

const MS: u64 = 1_000_000;

impl Script {
    /// Asks `count` times with `bytes`, each after the answer to the last, of as many bytes; then finishes and leaves.
    #[must_use]
    pub fn asks(count: u32, bytes: u32) -> Self {
        let turns = (1..=count).flat_map(|n| {
            let all = u64::from(n) * u64::from(bytes);
            [Step::Write(bytes), Step::Await { bytes: all, patience_ns: 60_000 * MS }]
        });
        let end = [Step::Finish, Step::AwaitEnd { patience_ns: 60_000 * MS }, Step::Close];
        Self(turns.chain(end).collect())
    }

    /// Answers [`Self::asks`], and finishes when the other end has.
    #[must_use]
    pub fn answers(count: u32, bytes: u32) -> Self {
        let turns = (1..=count).flat_map(|n| {
            let all = u64::from(n) * u64::from(bytes);
            [Step::Await { bytes: all, patience_ns: 60_000 * MS }, Step::Write(bytes)]
        });
        let end = [Step::AwaitEnd { patience_ns: 60_000 * MS }, Step::Finish, Step::Close];
        Self(turns.chain(end).collect())
    }

    /// Up to eight steps with at most `bytes_max` bytes, and one of the ways a connection can end. With `ends` it does
    /// not wait for ever; else one in eight says nothing any more.
    pub fn drawn_from(rng: &mut Rng, bytes_max: u32, ends: bool) -> Self {
        let mut steps = Vec::new();
        let mut left = u64::from(bytes_max.max(1));
        for _ in 0..rng.below(9) {
            match rng.below(8) {
                0..4 if left > 0 => {
                    let bytes = rng.log_within(1, left);
                    left -= bytes;
                    steps.push(Step::Write(u32::try_from(bytes).expect("bytes_max is a u32")));
                }
                4 => steps.push(Step::Await {
                    bytes: rng.log_within(1, u64::from(bytes_max.max(1))),
                    patience_ns: rng.log_within(MS, 500 * MS),
                }),
                5 => steps.push(Step::Reading(Reading::drawn_from(rng))),
                6 => steps.push(Step::Reading(Reading::Eager)),
                _ => steps.push(Step::Wait(rng.log_within(1000, 2000 * MS))),
            }
        }
        let patience_ns = rng.log_within(MS, 20_000 * MS);
        let end: &[Step] = match rng.below(16) {
            0 => &[Step::Reset],
            1 => &[Step::Close],
            2..4 => &[Step::Finish, Step::AwaitEnd { patience_ns }, Step::Reset],
            4..6 if !ends => &[],
            4..9 => &[Step::AwaitEnd { patience_ns }, Step::Finish, Step::Close],
            _ => &[Step::Finish, Step::AwaitEnd { patience_ns }, Step::Close],
        };
        // Who stopped reading would never see the end it waits for.
        if ends || rng.chance(Rate::HALF) {
            steps.push(Step::Reading(Reading::Eager));
        }
        steps.extend_from_slice(end);
        Self(steps)
    }

    /// How many bytes it writes when nothing stops it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let written = |step: &Step| if let Step::Write(n) = step { u64::from(*n) } else { 0 };
        self.0.iter().map(written).sum()
    }
}

impl Reading {
    /// Not eager.
    fn drawn_from(rng: &mut Rng) -> Self {
        if rng.chance(Rate::one_in(4)) {
            return Self::Stopped;
        }
        let bytes = u32::try_from(rng.log_within(16, 16 * 1024)).expect("it is at most 16 KiB");
        Self::Slow { bytes, every_ns: rng.log_within(1000, 10 * MS) }
    }
}

/// The bytes of stream `stream` from `offset` on, for ever: whoever sees one can tell whether it is right.
pub fn content(stream: u32, offset: u64) -> impl Iterator<Item = u8> {
    (offset..).map(move |at| {
        let word = mix((u64::from(stream) << 40) ^ (at / 8) ^ 0x005E_ED00);
        word.to_le_bytes()[usize::try_from(at % 8).expect("it is below 8")]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_told_from_its_shifts_and_from_other_streams() {
        let stream: Vec<u8> = content(1, 0).take(64).collect();
        assert!(content(1, 16).take(48).eq(stream[16..].iter().copied()));
        assert!(!content(1, 1).take(64).eq(stream.iter().copied()));
        assert!(!content(2, 0).take(64).eq(stream.iter().copied()));
    }

    #[test]
    fn drawn_scripts_keep_to_their_bytes_and_use_every_step() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..2000 {
            let script = Script::drawn_from(&mut Rng::new(seed), 5000, true);
            assert!(script.bytes() <= 5000, "seed {seed}");
            for step in &script.0 {
                let kind = format!("{step:?}");
                kinds.insert(kind.split(['(', ' ']).next().expect("a word").to_owned());
            }
        }
        assert_eq!(kinds.len(), 8, "{kinds:?}");
    }
}
