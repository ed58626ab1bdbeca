//! What a session's line in the log tells beside its counters: how its backend was reached, and which end finished
//! first.

use super::{Session, Step};
use crate::driver::{Driver, Side};
use crate::event::{EndReason, Ended, First};
use std::sync::Arc;

/// What is kept of a session for its line. It is carried along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Story {
    /// From the last attempt to connect until the backend accepted; 0: it did not, or a connection stood ready.
    pub(super) connect_ns: u64,
    /// From accept until there was a backend, attempts that failed included; 0: there was none.
    pub(super) opened_ns: u64,
    /// Backends that were tried.
    pub(super) attempts: u8,
    /// Which end finished first.
    pub(super) first: Option<First>,
}

impl Story {
    /// A side has finished.
    pub(super) fn note_end(&mut self, side: Side) {
        self.first.get_or_insert(match side {
            Side::Client => First::Client,
            Side::Backend => First::Backend,
        });
    }

    /// Whether the session is over because its backend finished, in order: so does the kernel of one that was killed.
    pub(super) const fn is_by_backend(&self, why: EndReason) -> bool {
        matches!(why, EndReason::Finished | EndReason::HalfClosed)
            && matches!(self.first, Some(First::Backend))
    }
}

impl Session {
    /// Asks where its connection to the backend begins on this machine: a reset is about to make the kernel forget it.
    pub(super) fn note_local<D: Driver>(&mut self, step: &Step<'_, D>) {
        if self.is_logged() && self.backend_local.is_none() {
            self.backend_local = self.local(step.driver).map(Box::new);
        }
    }

    /// Where its connection to the backend begins on this machine. `None`: there is none, or it is not known any more.
    pub(super) fn local<D: Driver>(&self, driver: &D) -> Option<std::net::SocketAddr> {
        let backend = self.ends[Side::Backend as usize].as_ref();
        // Without a route it still looks for a backend.
        driver.local_address(backend.filter(|_| self.route.is_some())?).ok()
    }

    pub(super) fn is_logged(&self) -> bool {
        self.snapshot.config.log.session_every > 0
    }

    /// Its line, where sessions are logged.
    pub(super) fn line(&mut self, why: EndReason, duration_ns: u64) -> Option<Ended> {
        if !self.is_logged() {
            return None;
        }
        let backend = self.backend.map(|at| {
            let (pool, backend) = self.snapshot.backend(at);
            (Arc::clone(&pool.name), Arc::clone(&backend.name), backend.address)
        });
        let Story { connect_ns, opened_ns, attempts, first } = self.story;
        let known = |ns: u64| (ns > 0).then_some(ns);
        Some(Ended {
            session: self.id,
            client: self.client.take().map(|address| *address),
            listener: Arc::clone(&self.listener().name),
            backend,
            backend_local: self.backend_local.take().map(|address| *address),
            arm: self.arm,
            up_bytes: self.dirs[0].bytes,
            down_bytes: self.dirs[1].bytes,
            attempts,
            connect_ns: known(connect_ns),
            opened_ns: known(opened_ns),
            duration_ns,
            first,
            why,
        })
    }
}
