//! What a submission is, in the 64 bits its completion brings back: kind, generation and slot.

use super::super::{Key, ListenerId, Side};
use io_uring::squeue;

/// What was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Wake,
    Accept(ListenerId),
    Connect(Key),
    Recv(Key, Side),
    Send(Key, Side),
    Poll(Key, Side),
}

const WAKE: u64 = 1;
const ACCEPT: u64 = 2;
const CONNECT: u64 = 3;
const RECV: u64 = 4;
const SEND: u64 = 6;
const POLL: u64 = 8;

impl Token {
    /// Of what gives no word of its own: a cancellation, for what it ends does, and a close.
    pub(super) const UNHEARD: u64 = 0;

    pub(super) fn encode(self) -> u64 {
        let of = |kind: u64, key: Key| {
            kind << 56 | u64::from(key.generation & 0xff_ffff) << 32 | u64::from(key.slot)
        };
        match self {
            Self::Wake => WAKE << 56,
            Self::Accept(listener) => ACCEPT << 56 | u64::from(listener.0),
            Self::Connect(key) => of(CONNECT, key),
            Self::Recv(key, side) => of(RECV + side as u64, key),
            Self::Send(key, side) => of(SEND + side as u64, key),
            Self::Poll(key, side) => of(POLL + side as u64, key),
        }
    }

    /// `None`: nobody waits to hear of it.
    #[expect(clippy::cast_possible_truncation, reason = "the fields were put there")]
    pub(super) const fn decode(data: u64) -> Option<Self> {
        let key = Key { slot: data as u32, generation: (data >> 32) as u32 & 0xff_ffff };
        let kind = data >> 56;
        let side = if kind & 1 == 0 { Side::Client } else { Side::Backend };
        Some(match kind {
            WAKE => Self::Wake,
            ACCEPT => Self::Accept(ListenerId(data as u16)),
            CONNECT => Self::Connect(key),
            4 | 5 => Self::Recv(key, side),
            6 | 7 => Self::Send(key, side),
            8 | 9 => Self::Poll(key, side),
            _ => return None,
        })
    }
}

/// Has a multishot receive wait for readiness first, and end after this many bytes (`optlen`: io_uring_prep_recv(3),
/// Linux 6.17; older kernels do not look at it). The crate reaches neither.
///
/// A ring works off a few dozen wake-ups a turn. Without the first a receive that is armed again would take what is
/// there at once, before the sessions whose wake-ups wait, and these would get their turn after nearly all that others
/// have queued.
pub(super) fn wait_and_limit(entry: &mut squeue::Entry, bytes: u32) {
    const { assert!(size_of::<squeue::Entry>() == 64) };
    // SAFETY: the crate's entry is `repr(C)` around the kernel's 64-byte io_uring_sqe, plain numbers of which bytes 2
    // and 3 are `ioprio` and bytes 44 to 47 `optlen` for a receive.
    let raw = unsafe { &mut *std::ptr::from_mut(entry).cast::<[u8; 64]>() };
    let ioprio = u16::from_ne_bytes([raw[2], raw[3]]) | super::POLL_FIRST;
    raw[2..4].copy_from_slice(&ioprio.to_ne_bytes());
    raw[44..48].copy_from_slice(&bytes.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let key = Key { slot: 0xf_ffff, generation: 0xff_fffe };
        let mut all = vec![Token::Wake, Token::Accept(ListenerId(7)), Token::Connect(key)];
        for side in Side::BOTH {
            all.extend([Token::Recv(key, side), Token::Send(key, side), Token::Poll(key, side)]);
        }
        for token in all {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(Token::UNHEARD), None);
    }
}
