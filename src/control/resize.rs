//! A reload that changes how many shards there are, and where.
//!
//! A lane that is added gets a socket of each listener: one that was left over from a lane that is no more, or a new
//! one. Sockets of lanes that are no more are not closed, for that would reset who waits in their queues.

use super::fleet::Shape;
use super::ports::{Ids, Seat};
use super::rollout::choose;
use super::supervisor::Supervisor;
use crate::config::{Config, DataPath, Listener, Percent};
use crate::driver::ListenerId;
use crate::shard::mailbox;
use crate::shard::spin::Awake;
use std::collections::HashSet;

/// A change of the lanes that is ready to be made. Where it is dropped instead, nothing has happened.
pub(super) struct Resize {
    pub(super) shape: Shape,
    /// Sockets to be added to each port, bound and not listening.
    seats: Vec<Vec<Seat>>,
}

impl Supervisor {
    /// Does what can fail of a change of the lanes. `path`: the data path the same reload goes over to.
    ///
    /// # Errors
    /// Whose fault it is, and what to do.
    pub(super) fn prepare_resize(
        &mut self,
        config: &Config,
        path: Option<(DataPath, Percent)>,
        ids: &mut impl Ids,
    ) -> Result<Option<Resize>, Vec<String>> {
        let of = |c: &Config| (c.shards.count, c.shards.cpus.clone(), c.shards.pin);
        if of(config) == of(&self.board.snapshot.load().config) {
            return Ok(None);
        }
        let failed = |why: String| vec![format!("shards: {why}")];
        if self.is_taking_back() {
            let why = "listening sockets come back from an upgrade that failed: try again";
            return Err(failed(why.to_owned()));
        }
        let serving = self.fleet.serving();
        let kinds = match path {
            None => (serving, self.fleet.share()),
            Some(wanted) => choose(wanted, Some(serving), &self.report)
                .map(|choice| (choice.serving, choice.share))
                .map_err(|why| vec![format!("data_path: {why}")])?,
        };
        let shape = self.fleet.shape(config, kinds);
        let shape = shape.map_err(|e| failed(format!("the lanes cannot be had: {e}")))?;
        let Some(shape) = shape else { return Ok(None) };
        let mut seats = Vec::new();
        for port in &self.ports {
            let listener = config.listeners.iter().find(|l| port.is_of(l));
            let more = listener.map(|l| port.more(l, shape.lanes(), ids)).transpose();
            seats.push(more.map_err(|e| vec![e.to_string()])?.unwrap_or_default());
        }
        Ok(Some(Resize { shape, seats }))
    }

    /// Changes the lanes. Says how.
    pub(super) fn resize(&mut self, resize: Resize, listeners: &[Listener]) -> String {
        let Resize { shape, seats } = resize;
        let resized = self.fleet.reshape(shape, &self.ports);
        for (at, more) in seats.into_iter().enumerate() {
            let port = &mut self.ports[at];
            let Some(listener) = listeners.iter().find(|l| port.is_of(l)) else { continue };
            let first = port.seats.len();
            port.add(more, listener.backlog);
            let port = &self.ports[at];
            (first..port.seats.len()).for_each(|seat| self.fleet.serve_seat(port, seat));
            self.keep(&port.name, &port.seats[first..]);
        }
        let (before, now) = (resized.before, self.fleet.lanes());
        let mut what = format!("shards: {before} -> {now}");
        if resized.added > 0 && resized.removed > 0 {
            what = format!(
                "{what}, {} begin on other CPUs and {} end",
                resized.added, resized.removed
            );
        }
        if resized.sessions > 0 {
            what = format!("{what}, {} live sessions move", resized.sessions);
        }
        what
    }

    /// Tells shards for how long to look for work without sleeping, where that changes.
    pub(super) fn keep_awake(&self, config: &Config) {
        let before = Awake::of(&self.board.snapshot.load().config.shards);
        let now = Awake::of(&config.shards);
        if before != now {
            self.fleet.tell_all(|| mailbox::Order::StayAwake(now));
        }
    }

    /// Names for sockets that no socket has.
    pub(super) fn new_ids(&self) -> impl Ids + use<> {
        let seats = self.all_ports().flat_map(|port| &port.seats);
        let used: HashSet<ListenerId> = seats.map(|seat| seat.id).collect();
        let mut ids = (0..=u16::MAX).map(ListenerId);
        move || ids.find(|id| !used.contains(id))
    }
}
