//! One direction of a simulated connection: bounded, in order, with an end after all bytes.

use std::collections::VecDeque;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// From the far end to Ringway.
    In,
    /// From Ringway to the far end.
    Out,
}

/// How far the end of a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Open,
    Sent,
    Arrived,
}

/// Bytes under way.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Sent, and not yet read.
    bytes: VecDeque<u8>,
    /// How many of those have arrived.
    arrived: usize,
    /// How many there may be.
    capacity: usize,
    ending: Ending,
    /// A reset went through: what is still under way does not arrive.
    cut: bool,
    /// When the last bytes sent arrive; what is sent later may not overtake them.
    pub(super) last_arrival: u64,
    /// No room is shown before this time.
    pub(super) stalled_until: u64,
}

impl Pipe {
    pub(super) const fn new(capacity: usize) -> Self {
        let bytes = VecDeque::new();
        let ending = Ending::Open;
        Self { bytes, arrived: 0, capacity, ending, cut: false, last_arrival: 0, stalled_until: 0 }
    }

    /// How many bytes may be sent.
    pub(super) fn room(&self, clock: u64) -> usize {
        if clock < self.stalled_until { 0 } else { self.capacity - self.bytes.len() }
    }

    /// How many bytes may be read.
    pub(super) const fn readable(&self) -> usize {
        self.arrived
    }

    /// Whether its end was read or can be.
    pub(super) fn ended(&self) -> bool {
        self.ending == Ending::Arrived && self.bytes.is_empty()
    }

    /// Whether its end is there, behind what is not read yet.
    pub(super) fn end_arrived(&self) -> bool {
        self.ending == Ending::Arrived
    }

    /// Whether its end was sent.
    pub(super) fn finished(&self) -> bool {
        self.ending != Ending::Open
    }

    pub(super) fn send(&mut self, bytes: impl Iterator<Item = u8>) {
        self.bytes.extend(bytes);
        debug_assert!(self.bytes.len() <= self.capacity);
    }

    pub(super) fn finish(&mut self) {
        self.ending = Ending::Sent;
    }

    /// `n` more bytes are there, unless a reset took them. Says whether they are.
    pub(super) const fn arrive(&mut self, n: usize) -> bool {
        if !self.cut {
            self.arrived += n;
        }
        !self.cut
    }

    /// The end is there, unless a reset was faster. Says whether it is.
    pub(super) fn arrive_end(&mut self) -> bool {
        if !self.cut {
            self.ending = Ending::Arrived;
        }
        !self.cut
    }

    /// A reset: what is under way is lost, and with `all` what had arrived.
    pub(super) fn cut(&mut self, all: bool) {
        self.cut = true;
        if all && self.arrived > 0 {
            self.arrived = 0;
            // An end that had arrived behind them would now hide that they are lost.
            self.ending = Ending::Open;
        }
        self.bytes.truncate(self.arrived);
    }

    /// Looks at the first `n` bytes, of those that have arrived.
    pub(super) fn peek(&self, n: usize) -> impl Iterator<Item = u8> {
        self.bytes.iter().take(n.min(self.arrived)).copied()
    }

    /// Reads `n` bytes, of those that have arrived.
    pub(super) fn read(&mut self, n: usize) -> impl Iterator<Item = u8> {
        self.arrived -= n;
        self.bytes.drain(..n)
    }
}
