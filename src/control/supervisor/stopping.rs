//! Stops, as the supervisor takes them: grace, closing, draining, and the end; with the other process of an upgrade.

use super::Supervisor;
use crate::config::limits;
use crate::control::Outcome;
use crate::control::closing::Closing;
use crate::driver::sys;
use crate::event::EndReason;
use crate::shard::mailbox;
use crate::time::Time;
use std::sync::atomic::Ordering::Relaxed;

/// How far the stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody asked for it.
    Running,
    /// Not ready any more, but clients are accepted until then.
    Grace(Time),
    /// Shards let go of their listeners.
    Closing,
    /// Sessions may end by themselves until then. How many there were.
    Draining(Time, u64),
    /// The rest was told to end; by then they are gone. How many there were, and how many were cut.
    Cutting(Time, u64, u64),
    /// This process has nothing left. The other one of an upgrade ends first, but no later than then.
    Waiting(Option<Time>, Outcome),
}

impl Supervisor {
    /// Stops, or ends at once what has stopped. `from`: who asks.
    pub(super) fn stop(&mut self, from: Option<u32>) {
        let is_passed_on = self.is_other_process(from);
        let before = self.stops;
        self.stops[usize::from(is_passed_on)] += 1;
        if self.stops.iter().max() > before.iter().max() {
            self.stop_further();
        }
        if !is_passed_on {
            self.pass_stop_on();
        }
        self.give_kept_up();
    }

    fn stop_further(&mut self) {
        let stop = self.board.snapshot.load().config.stop;
        match self.stage {
            Stage::Running => {
                self.board.ready.store(false, Relaxed);
                self.notify.stopping();
                tracing::info!(grace_ms = stop.grace_ms, drain_ms = stop.drain_ms, "stopping");
                self.stage = Stage::Grace(sys::now().plus_ms(u64::from(stop.grace_ms)));
            }
            Stage::Grace(_) | Stage::Closing | Stage::Draining(..) => {
                tracing::warn!("asked to stop again: ending now");
                self.leave_all();
                let open = self.open_sessions();
                self.cut(EndReason::Stopped, open);
            }
            Stage::Waiting(None, outcome) => {
                tracing::warn!("asked to stop again: ending now");
                self.stage = Stage::Waiting(Some(sys::now().plus_ms(limits::CUT_MS_MAX)), outcome);
            }
            Stage::Cutting(..) | Stage::Waiting(Some(_), _) => {}
        }
    }

    pub(super) fn close_all(&mut self) {
        for port in std::mem::take(&mut self.ports) {
            self.close(port);
        }
    }

    /// Accepts nobody any more. Sockets that the service manager keeps, or that the process before may want back while
    /// it is the main one, stay as they are: who comes now waits in their queues.
    fn leave_all(&mut self) {
        if !self.notify.stores() && self.is_main {
            return self.close_all();
        }
        for port in std::mem::take(&mut self.ports) {
            tracing::info!(listener = %port.name, address = %port.bound, "left open for the next process");
            self.fleet.close(&port);
            self.closing.push(Closing::left_open(port));
        }
    }

    /// Ends what is left, for good.
    fn cut(&mut self, why: EndReason, open: u64) {
        let cut = self.open_sessions();
        self.fleet.end_all(why);
        self.fleet.tell_all(|| mailbox::Order::Leave);
        self.stage = Stage::Cutting(sys::now().plus_ms(limits::CUT_MS_MAX), open, cut);
    }

    pub(super) fn open_sessions(&self) -> u64 {
        self.board.sessions()
    }

    /// Takes the stop as far as it can go now.
    pub(super) fn go_on_stopping(&mut self) -> Option<Outcome> {
        let now = sys::now();
        match self.stage {
            Stage::Running => None,
            Stage::Grace(until) => {
                // Before that, nobody else would accept.
                if now >= until && self.is_main {
                    self.leave_all();
                    self.stage = Stage::Closing;
                    return self.go_on_stopping();
                }
                None
            }
            Stage::Closing => {
                if self.closing.is_empty() && self.may_drain() {
                    let drain_ms = self.board.snapshot.load().config.stop.drain_ms;
                    let open = self.open_sessions();
                    self.stage = Stage::Draining(now.plus_ms(u64::from(drain_ms)), open);
                    self.let_shards_leave();
                    tracing::info!(open, "no more clients: waiting for sessions to end");
                }
                None
            }
            Stage::Draining(until, open) => {
                if self.fleet.is_empty() {
                    return self.ended(open, 0);
                }
                if now >= until {
                    self.cut(EndReason::Drained, open);
                }
                None
            }
            Stage::Cutting(until, open, cut) => {
                if self.fleet.is_empty() || now >= until {
                    return self.ended(open, cut);
                }
                None
            }
            Stage::Waiting(until, outcome) => {
                let is_due = until.is_some_and(|until| now >= until);
                if self.awaits_other_process() && !is_due {
                    return None;
                }
                // One before that is still there has more patience than this one was told to have.
                self.pass_stop_back(2);
                Some(outcome)
            }
        }
    }

    /// This process has nothing left.
    fn ended(&mut self, open: u64, cut: u64) -> Option<Outcome> {
        let by_themselves = open.saturating_sub(cut);
        if cut == 0 {
            tracing::info!(sessions = open, ended_by_themselves = by_themselves, cut, "stopped");
        } else {
            tracing::warn!(sessions = open, ended_by_themselves = by_themselves, cut, "stopped");
        }
        // A new process that was asked to drain does so as long as its own config says.
        let is_patient = self.passes_on() && self.stops.iter().all(|stops| *stops < 2);
        let until = (!is_patient).then(|| sys::now().plus_ms(limits::CUT_MS_MAX));
        self.stage = Stage::Waiting(until, Outcome::Stopped { open, cut });
        self.go_on_stopping()
    }
}
