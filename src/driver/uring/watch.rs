//! Polls for [`Interest::Gone`](super::super::Interest::Gone), which the kernel does not offer as such.
//!
//! It adds POLLRDHUP to every poll, so such a poll also hears that the other end has merely finished sending. It is
//! therefore a multishot poll, which does not hear the same thing twice, and is taken back when it has heard what it
//! waits for. Where the completion queue is full the kernel has no place to say that more will follow: it ends the poll
//! with what it heard, be it only the end of a stream, and the poll is armed again when there is room.

use super::super::Errno;
use std::collections::HashMap;

/// The polls for `Gone` that have not had their last word, by their token.
#[derive(Debug, Default)]
pub(super) struct Watches {
    all: HashMap<u64, Watch>,
    /// Those the kernel ended before they heard what they wait for.
    cut: Vec<u64>,
}

/// One of them.
#[derive(Debug)]
struct Watch {
    /// Of the socket, which stays open until the last word.
    fd: i32,
    /// It has heard what it waits for, and is being taken back.
    seen: bool,
    /// Its owner cancelled it.
    unwanted: bool,
}

/// What is to be done about what a poll said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing: it goes on.
    GoesOn,
    /// It is to be taken back, for it has heard what it waits for.
    Enough,
    /// This is its last word.
    Over(Result<(), Errno>),
}

/// A poll that is to be armed again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) token: u64,
    pub(super) fd: i32,
    /// It is to be cancelled at once: when its owner asked for that, nothing was in flight.
    pub(super) unwanted: bool,
}

impl Watches {
    /// A poll is being armed.
    pub(super) fn begin(&mut self, token: u64, fd: i32) {
        self.all.insert(token, Watch { fd, seen: false, unwanted: false });
    }

    /// A poll is being cancelled; it need not be one of these.
    pub(super) fn cancelled(&mut self, token: u64) {
        if let Some(watch) = self.all.get_mut(&token) {
            watch.unwanted = true;
        }
    }

    /// What follows from what a poll said. `None`: it is none of these.
    pub(super) fn hear(
        &mut self,
        token: u64,
        result: Result<u32, Errno>,
        more: bool,
    ) -> Option<Heard> {
        let watch = self.all.get_mut(&token)?;
        let gone = (libc::POLLHUP | libc::POLLERR) as u32;
        let is_gone = result.is_ok_and(|events| events & gone != 0);
        if more {
            let enough = is_gone && !watch.seen;
            watch.seen |= is_gone;
            return Some(if enough { Heard::Enough } else { Heard::GoesOn });
        }
        if result.is_ok() && !is_gone && !watch.seen {
            self.cut.push(token);
            return Some(Heard::GoesOn);
        }
        let seen = watch.seen || is_gone;
        self.all.remove(&token);
        Some(Heard::Over(if seen { Ok(()) } else { result.map(drop) }))
    }

    /// One of those that were cut short.
    pub(super) fn again(&mut self) -> Option<Again> {
        let token = self.cut.pop()?;
        let watch = self.all.get(&token)?;
        Some(Again { token, fd: watch.fd, unwanted: watch.unwanted })
    }

    /// Whether some were cut short.
    pub(super) const fn wait(&self) -> bool {
        !self.cut.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINISHED: Result<u32, Errno> = Ok(libc::POLLRDHUP as u32);
    const GONE: Result<u32, Errno> = Ok((libc::POLLRDHUP | libc::POLLHUP) as u32);
    const CANCELED: Result<u32, Errno> = Err(Errno::CANCELED);

    fn watching() -> Watches {
        let mut watches = Watches::default();
        watches.begin(7, 3);
        watches
    }

    #[test]
    fn an_end_of_sending_is_not_the_end() {
        let mut watches = watching();
        assert_eq!(watches.hear(7, FINISHED, true), Some(Heard::GoesOn));
        assert_eq!(watches.hear(7, GONE, true), Some(Heard::Enough));
        assert_eq!(watches.hear(7, GONE, true), Some(Heard::GoesOn), "it was taken back once");
        assert_eq!(watches.hear(7, CANCELED, false), Some(Heard::Over(Ok(()))));
        assert_eq!(watches.hear(7, CANCELED, false), None);
    }

    #[test]
    fn what_is_cut_short_is_armed_again_unless_it_heard_enough() {
        let mut watches = watching();
        assert_eq!(watches.hear(7, FINISHED, false), Some(Heard::GoesOn));
        assert!(watches.wait());
        assert_eq!(watches.again(), Some(Again { token: 7, fd: 3, unwanted: false }));
        assert!(!watches.wait() && watches.again().is_none());
        assert_eq!(watches.hear(7, GONE, false), Some(Heard::Over(Ok(()))));
    }

    #[test]
    fn what_was_cancelled_while_it_was_cut_short_is_cancelled_again() {
        let mut watches = watching();
        watches.cancelled(7);
        assert_eq!(watches.hear(7, FINISHED, false), Some(Heard::GoesOn));
        assert_eq!(watches.again(), Some(Again { token: 7, fd: 3, unwanted: true }));
        assert_eq!(watches.hear(7, CANCELED, false), Some(Heard::Over(Err(Errno::CANCELED))));
    }

    #[test]
    fn other_polls_are_none_of_its_business() {
        let mut watches = watching();
        watches.cancelled(8);
        assert_eq!(watches.hear(8, GONE, false), None);
    }
}
