//! Listeners on their way out. New connections are held off, those that were being made are finished and served, and
//! only then the sockets are closed: that resets whoever is in their queues.

use super::ports::Port;
use super::supervisor::Supervisor;
use crate::config::{limits, overlap};
use crate::driver::sys;
use crate::policy::snapshot::Snapshot;
use crate::time::Time;
use std::net::SocketAddr;
use std::sync::Arc;

/// A port on its way out.
pub(super) struct Closing {
    pub(super) port: Port,
    /// Connections that were being made are made by then.
    until: Time,
    /// The last config that had its listener, and the listener's index in it.
    came_in: Option<(Arc<Snapshot>, u16)>,
    /// Whether new connections are still to be held off, when no shard accepts any more.
    lets_in: bool,
}

impl Closing {
    /// One whose sockets stay open elsewhere, and whose clients wait there.
    pub(super) fn left_open(port: Port) -> Self {
        Self { port, until: sys::now(), came_in: None, lets_in: false }
    }

    /// Holds new connections off by what takes no privilege.
    fn shut(&mut self, now: Time) {
        self.lets_in = false;
        self.until = now.plus_ms(limits::CLOSE_AFTER_MS);
        if let Err(error) = self.port.turn_away_by_ttl() {
            tracing::warn!(listener = %self.port.name, %error,
                "new connections cannot be held off: some may be reset while the listener closes");
        }
    }
}

impl Supervisor {
    /// Lets go of a port, and closes it when that harms nobody.
    pub(super) fn close(&mut self, port: Port) {
        tracing::info!(listener = %port.name, address = %port.bound, "closing");
        let held_off = port.turn_away();
        if let Err(error) = &held_off {
            tracing::info!(listener = %port.name, %error,
                "no CAP_NET_ADMIN: new connections are held off by their TTL while the listener closes, and who comes \
                 with a TTL of 255 may be reset");
        }
        // Nobody is to find it again.
        self.notify.forget(&port.name);
        self.fleet.close(&port);
        let snapshot = self.board.snapshot.load_full();
        let index = snapshot.listener(&port.name).and_then(|(at, _)| u16::try_from(at).ok());
        let came_in = index.map(|index| (snapshot, index));
        let until = sys::now().plus_ms(limits::CLOSE_AFTER_MS);
        self.closing.push(Closing { port, until, came_in, lets_in: held_off.is_err() });
    }

    /// Closes the ports nobody serves any more. Clients that came in before are still served.
    pub(super) fn close_idle_ports(&mut self) {
        let now = sys::now();
        let fleet = &self.fleet;
        for closing in self.closing.iter_mut().filter(|c| !fleet.is_held(&c.port)) {
            if closing.lets_in {
                closing.shut(now);
            }
            let Some((snapshot, listener)) = &closing.came_in else { continue };
            for client in closing.port.waiting() {
                fleet.adopt(client, snapshot, *listener);
            }
        }
        self.closing.retain(|c| now < c.until || fleet.is_held(&c.port));
    }

    /// Which listener of Ringway's own is in the way of another at this address, where one is, and what to do.
    pub(super) fn held_by(&self, bind: SocketAddr) -> Option<String> {
        if let Some(Port { name, bound, .. }) = self.ports.iter().find(|p| overlap(p.bound, bind)) {
            return Some(format!(
                "listener '{name}' of this Ringway has {bound}: remove it by a reload of its own before, or restart \
                 Ringway"
            ));
        }
        // On whatever address.
        let mut closing = self.closing.iter().map(|closing| closing.port.bound.port());
        let is_closing = closing.any(|port| port == bind.port());
        is_closing.then(|| format!("Ringway is still closing a listener on {bind}: try again"))
    }
}
