//! A parcel as what another process is told of it, and back: names in place of places in a config.

use super::{Half, Parcel, Story};
use crate::driver::Socket;
use crate::event::{Arm, First};
use crate::policy::snapshot::{BackendIndex, Snapshot};
use crate::time::Time;
use crate::wire::handover::{HalfRecord, SessionRecord};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

impl Parcel {
    /// What another process must know of it. `None`: its unsent bytes are more than any message holds.
    #[must_use]
    pub fn record(&self) -> Option<SessionRecord> {
        let config = &self.snapshot.config;
        let backend = self.backend.map(|at| {
            let (pool, backend) = self.snapshot.backend(at);
            (pool.name.to_string(), backend.name.to_string())
        });
        let half =
            |half: &Half| HalfRecord::new(half.bytes, half.eof, half.finished, half.tail.clone());
        let [up, down] = &self.dirs;
        Some(SessionRecord {
            id: self.id,
            snapshot: self.snapshot.number,
            listener: config.listeners[usize::from(self.listener)].name.to_string(),
            canary: self.arm == Arm::Canary,
            backend,
            client: self.client.as_deref().copied(),
            accepted_ns: self.accepted.0,
            moved_ns: self.moved.0,
            asked_ns: self.asked.map(|at| at.0),
            settled_since_ns: self.settled_since.0,
            connect_ns: self.story.connect_ns,
            opened_ns: self.story.opened_ns,
            attempts: self.story.attempts,
            backend_first: self.story.first.map(|first| first == First::Backend),
            up: half(up)?,
            down: half(down)?,
        })
    }

    /// The session another process told of, which lives by `snapshot`. It takes its place there even where the
    /// listener is full: it was let in before.
    ///
    /// # Errors
    /// What `snapshot` does not have of it; its sockets are closed.
    pub fn of_record(
        record: SessionRecord,
        ends: [OwnedFd; 2],
        snapshot: Arc<Snapshot>,
    ) -> Result<Self, String> {
        let (listener, backend) = places(&record, &snapshot)?;
        snapshot.seat(usize::from(listener));
        let story = story(&record);
        let half = |record: HalfRecord| {
            let (bytes, eof, finished, tail) = record.into_parts();
            Half { tail, bytes, eof, finished }
        };
        Ok(Self {
            ends: ends.map(Socket::owned),
            dirs: [half(record.up), half(record.down)],
            client: record.client.map(Box::new),
            id: record.id,
            accepted: Time(record.accepted_ns),
            moved: Time(record.moved_ns),
            asked: record.asked_ns.map(Time),
            settled_since: Time(record.settled_since_ns),
            story,
            backend,
            listener,
            arm: if record.canary { Arm::Canary } else { Arm::Stable },
            upgraded: true,
            snapshot,
        })
    }

    /// The descriptors of its client and its backend, which stay its own.
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; 2] {
        self.ends.each_ref().map(AsRawFd::as_raw_fd)
    }

    /// Unsent bytes of both directions.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.dirs.iter().map(|half| half.tail.len()).sum()
    }

    /// The config it lives by.
    #[must_use]
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Whether another process had it before.
    #[must_use]
    pub const fn is_upgraded(&self) -> bool {
        self.upgraded
    }

    /// Closes this process's descriptors of it and gives its place back: another process has its own.
    pub fn release(self) {
        self.snapshot.leave(usize::from(self.listener));
        drop(self.ends.map(Socket::into_owned));
    }
}

/// What its line will tell. A process that does not say which end finished first says at least which one has.
fn story(record: &SessionRecord) -> Story {
    let seen = match (record.up.eof(), record.down.eof()) {
        (true, false) => Some(false),
        (false, true) => Some(true),
        _ => None,
    };
    let first = |backend| if backend { First::Backend } else { First::Client };
    Story {
        connect_ns: record.connect_ns,
        opened_ns: record.opened_ns,
        attempts: record.attempts,
        first: record.backend_first.or(seen).map(first),
    }
}

/// Where a snapshot has the listener and the backend of a session.
fn places(
    record: &SessionRecord,
    snapshot: &Snapshot,
) -> Result<(u16, Option<BackendIndex>), String> {
    let index = |at: usize| u16::try_from(at).map_err(|_| "a place beyond any config's".to_owned());
    let (listener, _) = snapshot
        .listener(&record.listener)
        .ok_or_else(|| format!("its config has no listener `{}`", record.listener))?;
    let backend = record.backend.as_ref().map(|(pool, backend)| {
        let missing = || format!("its config has no backend `{backend}` in a pool `{pool}`");
        let pools = &snapshot.config.pools;
        let at = pools.iter().position(|p| *p.name == **pool).ok_or_else(missing)?;
        let found = pools[at].backends.iter().position(|b| *b.name == **backend);
        Ok::<_, String>(BackendIndex {
            pool: index(at)?,
            backend: index(found.ok_or_else(missing)?)?,
        })
    });
    Ok((index(listener)?, backend.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    fn snapshot(backend: &str) -> Arc<Snapshot> {
        let config = parse(&format!(
            "[listeners.other]\nbind = \"127.0.0.1:0\"\nstable = \"v1\"\n\
             [listeners.orders]\nbind = \"127.0.0.1:0\"\nstable = \"v1\"\n\
             [pools.v0]\nbackends = [\"127.0.0.1:1\"]\n\
             [pools.v1]\nbackends = [\"127.0.0.1:2\", {{ address = \"127.0.0.1:3\", name = \"{backend}\" }}]\n"
        ));
        Arc::new(Snapshot::new(config.unwrap(), None))
    }

    fn record() -> SessionRecord {
        let half = |n, tail: &[u8]| HalfRecord::new(n, n == 1, false, tail.to_vec()).unwrap();
        SessionRecord {
            id: 77,
            snapshot: 1,
            listener: "orders".into(),
            canary: false,
            backend: Some(("v1".into(), "b".into())),
            client: Some("127.0.0.1:5".parse().unwrap()),
            accepted_ns: 10,
            moved_ns: 20,
            asked_ns: Some(15),
            settled_since_ns: 30,
            connect_ns: 4,
            opened_ns: 1005,
            attempts: 2,
            backend_first: Some(true),
            up: half(1, b"unsent"),
            down: half(2, b""),
        }
    }

    #[test]
    fn a_parcel_is_told_as_it_was_heard_and_its_sockets_are_the_same() {
        let (client, mut far) = UnixStream::pair().unwrap();
        let (backend, _far) = UnixStream::pair().unwrap();
        let snapshot = snapshot("b");
        let parcel =
            Parcel::of_record(record(), [client.into(), backend.into()], Arc::clone(&snapshot));
        let parcel = parcel.unwrap();
        assert_eq!(parcel.record(), Some(record()));
        assert_eq!((parcel.tail_bytes(), parcel.is_upgraded()), (6, true));
        assert_eq!(snapshot.taken(), [1, 1, 0], "it has its place");
        far.write_all(b"x").unwrap();
        parcel.release();
        assert_eq!(snapshot.taken(), [0, 0, 0], "and gives it back");
        assert!(far.read(&mut [0]).is_ok_and(|n| n == 0) || far.write_all(b"y").is_err());
    }

    #[test]
    fn who_finished_first_is_told_also_of_a_process_that_did_not_say_so() {
        let half = |eof| HalfRecord::new(0, eof, eof, vec![]).unwrap();
        let with = |backend_first, up, down| {
            let record =
                SessionRecord { backend_first, up: half(up), down: half(down), ..record() };
            story(&record).first
        };
        assert_eq!(with(Some(true), true, true), Some(First::Backend));
        assert_eq!(with(Some(false), true, true), Some(First::Client));
        assert_eq!(with(None, true, false), Some(First::Client));
        assert_eq!(with(None, false, true), Some(First::Backend));
        assert_eq!((with(None, true, true), with(None, false, false)), (None, None));
    }

    #[test]
    fn what_the_config_does_not_have_is_named() {
        let ends = || [UnixStream::pair().unwrap().0.into(), UnixStream::pair().unwrap().0.into()];
        let snapshot = snapshot("c");
        let why = Parcel::of_record(record(), ends(), Arc::clone(&snapshot)).unwrap_err();
        assert_eq!(why, "its config has no backend `b` in a pool `v1`");
        let elsewhere = SessionRecord { listener: "fix".into(), ..record() };
        let why = Parcel::of_record(elsewhere, ends(), Arc::clone(&snapshot)).unwrap_err();
        assert_eq!(why, "its config has no listener `fix`");
        assert_eq!(snapshot.taken(), [0, 0, 0], "no place is lost");
    }
}
