//! What the config wishes for shards beyond what they need, and what became of it. A wish that is refused is told once,
//! with what to change, and the shards go on without.

use super::board::Board;
use crate::config::{Config, Shards, Steer};
use crate::driver::favours::{CardPolling, can_steer, poll_in_reads, schedule_first, steer};
use crate::driver::probe::kernels::{STEERS_FROM, Version, running_release};
use crate::driver::{Driver, Errno, Kind};
use socket2::Socket;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

/// What every shard is to ask for; 0 asks for nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wishes {
    card_us: u32,
    priority: u8,
}

/// What became of them, on one shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    card: Option<CardPolling>,
    priority: Option<Result<u8, Errno>>,
}

impl Wishes {
    /// What the config wishes.
    pub(super) fn of(shards: &Shards) -> Self {
        Self { card_us: shards.napi_busy_poll_us, priority: shards.fifo_priority }
    }

    /// Asks for it, in the shard's own thread.
    pub(super) fn ask<D: Driver>(self, driver: &mut D) -> Granted {
        let Self { card_us, priority } = self;
        Granted {
            card: (card_us > 0).then(|| driver.poll_card(card_us)),
            priority: (priority > 0).then(|| schedule_first(priority).map(|()| priority)),
        }
    }
}

impl Granted {
    /// The real-time priority the shard has; 0: none.
    pub(super) fn priority(self) -> u8 {
        self.priority.and_then(Result::ok).unwrap_or(0)
    }

    /// Whether the kernel asks the card while the shard waits.
    pub(super) fn polls_card(self) -> bool {
        self.card.is_some_and(|card| card.waits.is_ok())
    }
}

/// What is asked for where shards are started and sockets given to them.
#[derive(Debug)]
pub(super) struct Favours {
    card_us: u32,
    steer: Steer,
    /// What was told already: it is the same for every shard.
    told: RefCell<BTreeSet<String>>,
}

impl Favours {
    /// As the config wishes and the kernel allows. Says so where that may starve control.
    pub(super) fn of(config: &Config, allowed: &BTreeSet<usize>, board: &Board) -> Self {
        let shards = &config.shards;
        if let Some(why) = caution(shards, allowed) {
            tracing::warn!("{why}");
        }
        let card_us = shards.napi_busy_poll_us;
        let mut favours = Self { card_us, steer: shards.steer, told: RefCell::default() };
        if shards.steer == Steer::Cpu {
            if let Err(e) = can_steer() {
                favours.steer = Steer::Hash;
                favours.tell(refused_steering(e));
            } else if is_before(&running_release(), STEERS_FROM) {
                favours.tell(format!(
                    "shards.steer = \"cpu\": kernels before {STEERS_FROM} may go by hash all the same"
                ));
            }
        }
        board.unsteered.store(favours.steer != shards.steer, Relaxed);
        favours
    }

    /// Whether a shard may hand a new client to one that has less to do.
    pub(super) fn evens_out(&self) -> bool {
        self.steer == Steer::Hash
    }

    /// Tells what a shard was refused.
    pub(super) fn judge(&self, kind: Kind, granted: Granted) {
        if let Some(Err(e)) = granted.priority {
            self.tell(refused_priority(e));
        }
        let Some(CardPolling { waits, reads }) = granted.card else { return };
        if let Err(e) = waits {
            self.tell(refused_waits(kind, e));
        }
        if let Err(e) = reads {
            self.tell(refused_reads(e));
        }
    }

    /// Marks a socket of `listener` that the lane on `cpu` is about to serve.
    pub(super) fn mark(&self, listener: &str, socket: &Socket, cpu: Option<usize>) {
        if self.card_us > 0 {
            // What is refused here was refused to the shards, and told.
            let _ = poll_in_reads(socket, self.card_us);
        }
        if self.steer == Steer::Hash {
            // It may be of a process that steered.
            let _ = steer(socket, None);
            return;
        }
        let marked = steer(socket, cpu);
        if let Err(e) = marked {
            self.tell(refused_steering(e));
        } else if matches!(socket.reuse_port(), Ok(false)) {
            self.tell(format!(
                "shards.steer = \"cpu\" cannot be had at listeners.{listener}: its shards share the one socket that \
                 was passed in, and any may get a client; have its .socket unit set ReusePort=yes and name the address \
                 once for each shard (ListenStream=)"
            ));
        }
    }

    fn tell(&self, why: String) {
        if !self.told.borrow().contains(&why) {
            tracing::warn!("{why}");
            self.told.borrow_mut().insert(why);
        }
    }
}

fn is_before(release: &str, first: Version) -> bool {
    Version::parse(release).is_some_and(|version| version < first)
}

fn refused_steering(e: Errno) -> String {
    format!(
        "shards.steer = \"cpu\" is refused ({e}): clients come by hash; a sandbox must let SO_INCOMING_CPU through"
    )
}

fn refused_priority(e: Errno) -> String {
    format!(
        "shards.fifo_priority is refused ({e}): shards go on with the ordinary scheduler; give Ringway CAP_SYS_NICE, \
         or a limit of real-time priority as high (LimitRTPRIO= with RestrictRealtime=no in the systemd unit)"
    )
}

fn refused_waits(kind: Kind, e: Errno) -> String {
    let path = kind.label();
    format!(
        "shards.napi_busy_poll_us is refused for the waits of {path} ({e}): shards wait for interrupts; it needs Linux \
         6.9, built with CONFIG_NET_RX_BUSY_POLL, and a sandbox that lets it through"
    )
}

fn refused_reads(e: Errno) -> String {
    format!(
        "shards.napi_busy_poll_us is refused for plain reads ({e}): a shard that spins waits for interrupts; some \
         kernels want CAP_NET_ADMIN for it"
    )
}

/// What is dangerous about the real-time priority of these shards where the process may use `allowed`: shards on every
/// CPU leave control, the admin endpoint and whatever else runs there only what shards do not want.
#[must_use]
pub fn caution(shards: &Shards, allowed: &BTreeSet<usize>) -> Option<String> {
    if shards.fifo_priority == 0 {
        return None;
    }
    let wanted = shards.cpus.as_ref().unwrap_or(allowed);
    let count = shards.count.unwrap_or(wanted.len());
    let fills = if shards.pin {
        allowed.is_subset(wanted) && count >= wanted.len()
    } else {
        count >= allowed.len()
    };
    let spins = if shards.busy_poll_us > 0 { " and spin" } else { "" };
    fills.then(|| {
        format!(
            "shards.fifo_priority: shards come first{spins} on every CPU Ringway may use, so control and the admin \
             endpoint wait while all are busy; leave one CPU out of shards.cpus"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operation not permitted, and no such request of this descriptor (errno(3)).
    const EPERM: i32 = 1;
    const ENOTTY: i32 = 25;

    fn shards(cpus: &[usize], count: Option<usize>, pin: bool) -> Shards {
        let cpus =
            Some(cpus.iter().copied().collect()).filter(|cpus: &BTreeSet<_>| !cpus.is_empty());
        Shards { cpus, count, pin, fifo_priority: 10, ..Shards::default() }
    }

    #[test]
    fn shards_that_leave_control_no_cpu_are_cautioned_against() {
        let allowed = BTreeSet::from([2, 3, 4]);
        let is_cautioned = |shards: &Shards| caution(shards, &allowed).is_some();
        assert!(is_cautioned(&shards(&[], None, true)));
        assert!(is_cautioned(&shards(&[2, 3, 4], None, true)));
        assert!(is_cautioned(&shards(&[2, 3], Some(3), false)));
        assert!(!is_cautioned(&shards(&[2, 3], None, true)), "4 is control's");
        assert!(!is_cautioned(&shards(&[], Some(2), true)));
        assert!(!is_cautioned(&shards(&[], Some(2), false)));
        assert!(!is_cautioned(&Shards { fifo_priority: 0, ..shards(&[], None, true) }));
        let spinning = Shards { busy_poll_us: 2000, ..shards(&[], None, true) };
        assert!(caution(&spinning, &allowed).unwrap().contains("and spin"));
    }

    #[test]
    fn a_kernel_that_may_ignore_the_mark_is_told_by_its_release() {
        assert!(is_before("5.19.0-50-generic", STEERS_FROM));
        assert!(!is_before("6.2.0", STEERS_FROM));
        assert!(!is_before("", STEERS_FROM), "nothing is known against it");
    }

    #[test]
    fn a_refusal_says_what_to_do_and_what_goes_on() {
        let said = refused_priority(Errno(EPERM));
        assert!(said.contains("CAP_SYS_NICE") && said.contains("LimitRTPRIO="), "{said}");
        let said = refused_waits(Kind::Epoll, Errno(ENOTTY));
        assert!(said.contains("of epoll") && said.contains("Linux 6.9"), "{said}");
        assert!(refused_reads(Errno(EPERM)).contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn the_same_is_told_once() {
        let favours = Favours { card_us: 0, steer: Steer::Hash, told: RefCell::default() };
        let refused = Granted { card: Some(CardPolling::NONE), priority: Some(Err(Errno(EPERM))) };
        favours.judge(Kind::Epoll, refused);
        favours.judge(Kind::Epoll, refused);
        assert_eq!(favours.told.borrow().len(), 3);
        assert_eq!((refused.priority(), refused.polls_card()), (0, false));
        let granted = Granted {
            card: Some(CardPolling { waits: Ok(()), reads: Ok(()) }),
            priority: Some(Ok(7)),
        };
        favours.judge(Kind::Uring, granted);
        assert_eq!(favours.told.borrow().len(), 3);
        assert_eq!((granted.priority(), granted.polls_card()), (7, true));
    }
}
