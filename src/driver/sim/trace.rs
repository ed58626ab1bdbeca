//! The last things that happened in a world, kept as numbers and put into words only when somebody asks.

use crate::driver::Key;
use std::collections::VecDeque;
use std::fmt;

/// Events kept.
const EVENTS_MAX: usize = 200;

/// One thing that happened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Note {
    /// A driver was asked for something that concerns a socket.
    Asked(&'static str, usize),
    /// A driver said something.
    Said(&'static str, Option<Key>, i64),
    /// A far end did or saw something.
    Far(&'static str, u32, u64),
    /// The network did something to a socket.
    Net(&'static str, i64),
}

/// The last events.
#[derive(Debug, Default)]
pub(super) struct Trace {
    events: VecDeque<(u64, usize, Note)>,
}

impl Trace {
    /// Adds one: when, at which shard.
    pub(super) fn add(&mut self, clock: u64, shard: usize, note: Note) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back((clock, shard, note));
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (clock, shard, note) in &self.events {
            let ms = clock / 1_000_000;
            write!(f, "{ms:>7}.{:06} ms  ", clock % 1_000_000)?;
            match note {
                Note::Asked(what, socket) => {
                    writeln!(f, "shard {shard} asks: {what}, socket {socket}")?;
                }
                Note::Said(what, Some(key), n) => {
                    writeln!(
                        f,
                        "shard {shard} hears: {what} {n}, {}.{}",
                        key.slot, key.generation
                    )?;
                }
                Note::Said(what, None, n) => writeln!(f, "shard {shard} hears: {what} {n}")?,
                Note::Far(what, connection, n) => {
                    writeln!(f, "connection {connection}: {what} {n}")?;
                }
                Note::Net(what, n) => writeln!(f, "network: {what} {n}")?,
            }
        }
        Ok(())
    }
}
