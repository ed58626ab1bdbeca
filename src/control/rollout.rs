//! Which share of the sessions takes which data path, by config or by order; and orders that shards answer.

use super::board::{Board, PathChoice};
use super::fleet::other;
use super::order::{Answer, Order};
use super::supervisor::Supervisor;
use crate::config::{DataPath, Percent, limits};
use crate::driver::pick::pick;
use crate::driver::probe::Report;
use crate::driver::{Kind, sys};
use crate::shard::inquiry::{Inquiry, Listed, MoveSaid};
use crate::time::Time;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What goes on after an order.
#[derive(Debug)]
pub(super) struct Rollout {
    /// The data path that was asked for last, and its share.
    pub(super) wanted: (DataPath, Percent),
    /// For how many more seconds live sessions are shared out again where they are not as they should be.
    sharing: u32,
    /// Everything is to go back to epoll, as soon as a change under way is over and not before then.
    back: Option<Time>,
}

impl Rollout {
    /// Nothing goes on yet.
    pub(super) const fn new(wanted: (DataPath, Percent)) -> Self {
        Self { wanted, sharing: 0, back: None }
    }

    /// The data path that is to be in force when all that was ordered is done, and its share.
    pub(super) fn ordered(&self) -> (DataPath, Percent) {
        self.back.map_or(self.wanted, |_| (DataPath::Epoll, Percent::HUNDRED))
    }
}

/// Who is to accept clients and what the others get of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice {
    pub(super) wanted: DataPath,
    /// The path that was asked for, and its share.
    pub(super) kind: Kind,
    pub(super) percent: Percent,
    pub(super) why: String,
    /// The path whose shards accept, and the other one's share.
    pub(super) serving: Kind,
    pub(super) share: Percent,
}

/// Makes a choice of what is wanted. `serving`: who accepts clients now, and goes on to while both paths have a share;
/// `None`: nobody, and the path with the larger share will.
///
/// # Errors
/// A path with a share is refused by this machine: why, and what to do.
pub(super) fn choose(
    (wanted, percent): (DataPath, Percent),
    serving: Option<Kind>,
    report: &Report,
) -> Result<Choice, String> {
    let (picked, why) = pick(wanted, report)?;
    let fell_back = wanted == DataPath::Auto && picked == Kind::Epoll;
    let (kind, percent, why) = match percent {
        // There is no other path to share with.
        _ if fell_back => (picked, Percent::HUNDRED, why),
        Percent::ZERO => {
            let kind = other(picked);
            (kind, Percent::HUNDRED, format!("0 % of {} was asked for", picked.label()))
        }
        percent => (picked, percent, why),
    };
    if other(kind) == Kind::Uring && percent != Percent::HUNDRED || kind == Kind::Uring {
        pick(DataPath::Uring, report)?;
    }
    let larger = if percent >= percent.rest() { kind } else { other(kind) };
    let serving = match percent {
        Percent::HUNDRED => kind,
        _ => serving.unwrap_or(larger),
    };
    let share = if serving == kind { percent.rest() } else { percent };
    Ok(Choice { wanted, kind, percent, why, serving, share })
}

/// Puts the data path where everybody can see it. `by`: who asked for it.
pub(super) fn announce(board: &Board, choice: Choice, by: &str) {
    let Choice { wanted, kind, percent, why, .. } = choice;
    if wanted != DataPath::Epoll && kind == Kind::Epoll {
        tracing::warn!(path = kind.label(), %percent, wanted = wanted.label(), by, why, "DATA PATH");
    } else {
        tracing::info!(path = kind.label(), %percent, wanted = wanted.label(), by, why, "DATA PATH");
    }
    let begun = board.begun(kind);
    board.path.store(Some(Arc::new(PathChoice { wanted, kind, why, percent, begun })));
}

impl Supervisor {
    /// Changes the data path of new sessions, and where `carry` says so of the live ones. `by`: who asked for it.
    pub(super) fn set_path(
        &mut self,
        wanted: (DataPath, Percent),
        carry: bool,
        by: &str,
    ) -> Result<String, String> {
        let choice = self.prepare_path(wanted)?;
        Ok(self.take_path(choice, wanted, carry, by))
    }

    /// Does what can fail of a change of the data path.
    ///
    /// # Errors
    /// Why it cannot be made; nothing has changed.
    pub(super) fn prepare_path(&mut self, wanted: (DataPath, Percent)) -> Result<Choice, String> {
        let choice = choose(wanted, Some(self.fleet.serving()), &self.report)?;
        if self.hands_over(&choice) && self.fleet.is_moving() {
            return Err("another change of the data path is under way: try again".to_owned());
        }
        self.fleet
            .provide(choice.serving, choice.share)
            .map_err(|e| format!("the {} shards could not start: {e}", choice.kind.label()))?;
        Ok(choice)
    }

    /// Whether sockets go from shard to shard for it.
    fn hands_over(&self, choice: &Choice) -> bool {
        let forgives = choice.serving == Kind::Uring || choice.share > Percent::ZERO;
        choice.serving != self.fleet.serving() || self.fleet.has_held() && forgives
    }

    /// Makes a change of the data path that is [ready](Self::prepare_path). Says which.
    pub(super) fn take_path(
        &mut self,
        choice: Choice,
        wanted: (DataPath, Percent),
        carry: bool,
        by: &str,
    ) -> String {
        let (before, share) = (self.fleet.serving(), self.fleet.share());
        let hands_over = self.hands_over(&choice);
        self.fleet.serve_with(choice.serving, choice.share, &self.ports);
        if hands_over || choice.share != share {
            self.board.path_changes.fetch_add(1, Relaxed);
        }
        self.fleet.direct(carry);
        let was = (std::mem::replace(&mut self.rollout.wanted, wanted), choice.share);
        // The last order wins.
        self.rollout.back = None;
        self.rollout.sharing = if carry { limits::SHARE_LOOKS } else { 0 };
        let which = if carry { "all sessions" } else { "new sessions" };
        let what = match choice.percent {
            // The live ones may still be on their way.
            Percent::HUNDRED if !hands_over && was == (wanted, share) => {
                format!("data path of {which} is {} already", before.label())
            }
            // From a share, or of live sessions that were left where they were.
            Percent::HUNDRED if before == choice.kind => {
                format!("data path of {which}: {}", before.label())
            }
            Percent::HUNDRED => {
                format!("data path of {which}: {} -> {}", before.label(), choice.kind.label())
            }
            percent => format!("data path of {percent} % of {which}: {}", choice.kind.label()),
        };
        announce(&self.board, choice, by);
        what
    }

    /// Takes everything back to epoll, now or as soon as it can be.
    pub(super) fn roll_back(&mut self) -> Answer {
        self.rollout.back = Some(sys::now());
        if let Err(why) = self.go_on_rolling_back() {
            let until =
                "it is tried again every second, until it is done or another data path is ordered";
            return Answer::Refused(vec![format!("not rolled back: {why}; {until}")]);
        }
        let is_due = self.rollout.back.is_some();
        let when = if is_due { "as soon as a change under way is over" } else { "now" };
        self.done(format!("all sessions go back to epoll {when}"))
    }

    /// Does what [`roll_back`](Self::roll_back) could not.
    pub(super) fn go_on_rolling_back(&mut self) -> Result<(), String> {
        let now = sys::now();
        let is_due = self.rollout.back.is_some_and(|at| at <= now);
        if !is_due || self.fleet.is_moving() || self.is_replacing() {
            return Ok(());
        }
        // Nobody else gives that order: over HTTP and by the config the data path is named.
        let by = "SIGUSR1";
        match self.set_path((DataPath::Epoll, Percent::HUNDRED), true, by) {
            Ok(what) => tracing::warn!(by, what, "rolled back"),
            Err(error) => {
                tracing::error!(by, error, "could not roll back: it is tried again in a second");
                self.rollout.back = Some(now.plus_ms(limits::UPKEEP_MS));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Mends what the live sessions' share is off by, for a few seconds after an order: those that were opening can go
    /// by now. Gives memory back at last.
    pub(super) fn keep_sharing(&mut self) {
        let was = self.rollout.sharing;
        self.rollout.sharing = was.saturating_sub(1);
        match was {
            0 => {}
            // Tables that were left behind, and parcels freed by another thread than made them.
            1 => sys::give_back_memory(),
            _ => {
                self.fleet.spread();
            }
        }
    }

    /// Follows an order, or passes it on to those who can answer.
    pub(super) fn ordered(&mut self, order: Order, answer: Box<dyn FnOnce(Answer) + Send>) {
        match order {
            Order::Sessions { shard, from, slots } => self.list(shard, (from, slots), answer),
            Order::Move { .. } if self.is_replacing() => answer(self.follow(order)),
            Order::Move { session, shard } => self.move_session(session, shard, answer),
            order => answer(self.follow(order)),
        }
    }

    fn list(
        &self,
        shard: Option<usize>,
        (from, slots): (u32, u32),
        answer: Box<dyn FnOnce(Answer) + Send>,
    ) {
        let known = shard.is_none_or(|shard| self.fleet.entries().any(|e| e.id == shard));
        if let Some(shard) = shard.filter(|_| !known) {
            return answer(Answer::Unknown(format!("there is no shard {shard}")));
        }
        let asked = Inquiry::new(move |mut shards: Vec<Listed>| {
            shards.sort_by_key(|listed| listed.shard);
            let more = shards.iter().any(|listed| listed.more);
            let next = more.then(|| from.saturating_add(slots));
            answer(Answer::Sessions { shards, next });
        });
        self.fleet.list(shard, (from, slots), &asked);
    }

    fn move_session(&self, session: u64, shard: usize, answer: Box<dyn FnOnce(Answer) + Send>) {
        if !self.fleet.entries().any(|entry| entry.id == shard && entry.lane().is_some()) {
            return answer(Answer::Unknown(format!("there is no shard {shard}")));
        }
        let generation = self.board.snapshot.load().number;
        let asked = Inquiry::new(move |said: Vec<MoveSaid>| {
            answer(match said.first() {
                Some(MoveSaid::Goes) => {
                    let what = format!("session {session} goes to shard {shard}");
                    Answer::Done { generation, what }
                }
                Some(MoveSaid::IsThere) => {
                    let what = format!("session {session} is on shard {shard} already");
                    Answer::Done { generation, what }
                }
                Some(MoveSaid::Cannot(state)) => Answer::Refused(vec![format!(
                    "session {session} cannot move while it is {}",
                    state.label()
                )]),
                None => Answer::Unknown(format!(
                    "no shard has a session {session}: it has ended, or is on its way between two \
                     shards; GET /api/v1/sessions lists those there are"
                )),
            });
        });
        self.fleet.move_session(session, shard, Some(&asked));
    }
}
