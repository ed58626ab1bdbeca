//! What operators may ask of control, and what they are told.

use crate::config::{DataPath, Percent};
use crate::shard::inquiry::Listed;
use std::sync::mpsc;

/// An order of an operator, by the admin endpoint or by a signal.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Read the config file again.
    Reload,
    /// Start the program anew, from the file that is at its path now, and hand everything over to it.
    Upgrade,
    /// Change a listener's canary percent.
    Canary {
        /// The listener's name.
        listener: String,
        /// Its canary's share of new sessions from now on.
        percent: Percent,
    },
    /// Change the data path of new sessions.
    DataPath {
        /// To this one.
        path: DataPath,
        /// Whether the live sessions go along; `None`: as the config says.
        live: Option<bool>,
        /// Its share of the sessions; the others take the other path.
        percent: Percent,
    },
    /// Change the data path of all sessions, live ones included, to epoll: now, or as soon as a change under way is
    /// over.
    RollBack,
    /// List sessions.
    Sessions {
        /// Of this shard alone.
        shard: Option<usize>,
        /// From this slot of each shard on.
        from: u32,
        /// So many slots of each shard.
        slots: u32,
    },
    /// Carry one live session to another shard.
    Move {
        /// Its id.
        session: u64,
        /// The shard's number.
        shard: usize,
    },
}

impl Order {
    /// Change the data path of all new sessions.
    #[must_use]
    pub const fn whole_path(path: DataPath, live: Option<bool>) -> Self {
        Self::DataPath { path, live, percent: Percent::HUNDRED }
    }
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done; the number of the snapshot in force and a sentence.
    Done {
        /// Number of the snapshot in force.
        generation: u64,
        /// What changed.
        what: String,
    },
    /// Sessions, shard by shard.
    Sessions {
        /// What each shard said.
        shards: Vec<Listed>,
        /// Where the next page begins; `None`: there is none.
        next: Option<u32>,
    },
    /// Nothing was changed: what was asked for is wrong, in one or more ways.
    Refused(Vec<String>),
    /// Nothing was changed: there is no such thing.
    Unknown(String),
}

/// Gives orders to control; can be cloned and used from any thread.
#[derive(Debug, Clone)]
pub struct Orders(mpsc::Sender<super::Cause>);

impl Orders {
    /// Orders that go to the supervisor behind `causes`.
    #[must_use]
    pub(super) const fn new(causes: mpsc::Sender<super::Cause>) -> Self {
        Self(causes)
    }

    /// Gives an order; `answer` is called once, from control's thread, unless Ringway stops before.
    pub fn give(&self, order: Order, answer: impl FnOnce(Answer) + Send + 'static) {
        // Control that has gone drops `answer`, which its owner sees.
        let _ = self.0.send(super::Cause::Ordered(order, Box::new(answer)));
    }
}

#[cfg(test)]
impl Orders {
    /// Orders that `control` answers on a thread of its own; where it gives `None`, the order is dropped unanswered.
    pub(crate) fn answered_by(
        mut control: impl FnMut(Order) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let (causes, caused) = mpsc::channel();
        std::thread::spawn(move || {
            #[allow(irrefutable_let_patterns, reason = "as long as orders are the only cause")]
            while let Ok(cause) = caused.recv() {
                if let super::Cause::Ordered(order, answer) = cause
                    && let Some(said) = control(order)
                {
                    answer(said);
                }
            }
        });
        Self::new(causes)
    }

    /// Orders nobody receives.
    pub(crate) fn unheard() -> Self {
        Self::new(mpsc::channel().0)
    }
}
