//! What goes wrong in a simulated network, and how often: swarm-style, so that each run has its own climate.

use super::rng::{Rate, Rng};
use crate::driver::Errno;

/// Declares [`Fault`]: each class once, with its meaning.
macro_rules! fault_classes {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One class of faults.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

fault_classes! {
    /// A receive brings fewer bytes than are there.
    ShortReceive,
    /// Bytes written at once arrive in pieces.
    SplitArrival,
    /// Bytes take up to 50 ms.
    LateArrival,
    /// An operation that could end ends up to 5 ms later, so after others.
    LateCompletion,
    /// A receive finds no buffer although the pool has some.
    NoBuffers,
    /// A multishot receive ends without reason.
    ReceiveEnds,
    /// The connection breaks when an operation is asked for: a reset, a time-out, no route.
    Break,
    /// A reset takes away bytes that had arrived and were not received.
    ResetDropsUnread,
    /// An error that was told once reads as an end of stream afterwards, as Linux has it.
    ErrorSpent,
    /// What an abort interrupts ends as if the other end had finished, or was cancelled.
    AbortReadsOtherwise,
    /// A cancelled operation ends with its own result where it can.
    CancelLoses,
    /// A send finds no room for up to 2 s.
    SendStall,
    /// A plain send takes fewer bytes than there is room for, or none.
    ShortSend,
    /// What was cancelled ends up to 3 s later.
    LateCancel,
    /// No descriptor for an accepted client, who stays in the queue; the accept ends.
    AcceptExhausted,
    /// A client left before it was accepted; the accept ends.
    AcceptAborted,
    /// An accept ends with a client.
    AcceptEnds,
    /// No descriptor for a new socket.
    SocketFails,
    /// No room to watch one more socket.
    AttachFails,
    /// A backend that would accept refuses.
    ConnectRefused,
    /// A backend that would accept does not answer.
    ConnectHangs,
    /// A backend that would accept takes up to 3 s.
    ConnectLate,
    /// A connection to a backend has reached itself.
    OwnEnd,
    /// A client's address cannot be told.
    AddressGone,
    /// A completion of an earlier generation of a slot.
    Stale,
    /// The thread is stopped: a turn returns up to 5 s late.
    Freeze,
    /// A socket is closed by the next turn, and takes a descriptor until then.
    LateClose,
    /// A turn returns early, with nothing.
    EarlyTurn,
    /// A turn is taken for one that brought little: sends are better made at once.
    SparseTurn,
}

/// How often each class of faults happens, and the shape of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    rates: [Rate; Fault::ALL.len()],
    /// Least and most bytes a connection holds in one direction; each draws its own.
    pub room_bytes: (u64, u64),
    /// Nanoseconds a byte needs where nothing delays it.
    pub latency_ns: u64,
    /// Most sockets at once: beyond, there are no descriptors.
    pub sockets_max: usize,
    /// What every accept fails with, and whether it stays armed; `None`: they do not all fail.
    pub accepts_fail: Option<(Errno, bool)>,
    /// Whether a multishot receive's last buffer is cut to its credit; else it may pass it by less than a buffer.
    pub cuts_to_credit: bool,
}

impl Faults {
    /// Nothing goes wrong.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            rates: [Rate::NEVER; Fault::ALL.len()],
            room_bytes: (64 * 1024, 64 * 1024),
            latency_ns: 20_000,
            sockets_max: usize::MAX,
            accepts_fail: None,
            cuts_to_credit: true,
        }
    }

    /// Each class is on in half of the runs, then once in 2 to once in 4096 times; connections hold 16 B to 64 KiB.
    #[must_use]
    pub fn drawn_from(rng: &mut Rng) -> Self {
        let mut faults = Self::none();
        for rate in &mut faults.rates {
            if rng.chance(Rate::HALF) {
                *rate = Rate::one_in(rng.log_within(2, 4096));
            }
        }
        let least = rng.log_within(16, 16 * 1024);
        faults.room_bytes = (least, rng.log_within(least, 64 * 1024));
        faults.latency_ns = rng.log_within(1, 1_000_000);
        faults.cuts_to_credit = rng.chance(Rate::HALF);
        faults
    }

    /// The same with one class at another rate.
    #[must_use]
    pub const fn with(mut self, fault: Fault, rate: Rate) -> Self {
        self.rates[fault as usize] = rate;
        self
    }

    /// How often `fault` happens.
    #[must_use]
    pub const fn rate(&self, fault: Fault) -> Rate {
        self.rates[fault as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_on_in_half_of_the_runs() {
        let runs: Vec<Faults> = (0..400).map(|n| Faults::drawn_from(&mut Rng::new(n))).collect();
        for fault in Fault::ALL {
            let on = runs.iter().filter(|run| run.rate(*fault) != Rate::NEVER).count();
            assert!((140..260).contains(&on), "{fault:?} is on in {on} of 400 runs");
        }
    }
}
