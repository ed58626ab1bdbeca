//! The new side alone: this test plays the old process, and says what a real one would not.

use crate::world::net::{Backend, connect, echo, finish, free_address, listen, read_all, ready};
use crate::world::program::{Process, RINGWAY};
use crate::world::proxy::{Recipe, scratch};
use crate::world::{has_uring, skipped};
use ringway::config::DataPath;
use ringway::control::handover::{Channel, ENVIRONMENT, Lost};
use ringway::wire::handover::{HalfRecord, Hello, Message, SessionRecord};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

/// A new process, and the old one's end of the channel.
struct New {
    process: Process,
    channel: Channel,
    at: SocketAddr,
    text: String,
    config: PathBuf,
    backend: Backend,
}

impl New {
    fn start() -> Self {
        let (channel, theirs) = Channel::pair().unwrap();
        Self::start_at(channel, theirs)
    }

    fn start_at(channel: Channel, theirs: OwnedFd) -> Self {
        Self::start_with(channel, theirs, "")
    }

    fn start_with(channel: Channel, theirs: OwnedFd, more: &str) -> Self {
        let backend = Backend::echo();
        let mut recipe = Recipe::new(DataPath::Auto, &[backend.at]).shards(1).more(more);
        recipe.bind = free_address();
        let (at, config, text) = (recipe.bind, scratch("toml"), recipe.text());
        std::fs::write(&config, &text).unwrap();
        let mut command = Command::new(RINGWAY);
        command.args(["run", "--config"]).arg(&config).env(ENVIRONMENT, "stdin");
        let process = Process::start_fed(command, theirs);
        Self { process, channel, at, text, config, backend }
    }

    fn hello(&self, pid: u32) {
        self.hello_holding(pid, std::collections::BTreeMap::new());
    }

    fn hello_holding(&self, pid: u32, held: std::collections::BTreeMap<usize, u64>) {
        let hello = Hello {
            version: "0".into(),
            generation: 4,
            pid,
            snapshot: 9,
            first_id: 1000,
            text: self.text.clone(),
            percents: std::collections::BTreeMap::new(),
            data_path: "auto".into(),
            data_path_percent: 10_000,
            held,
        };
        self.channel.say(&Message::Hello(Box::new(hello)), &[]).unwrap();
    }

    fn hears(&self) -> Message {
        self.channel.hear(Some(5000)).unwrap().0
    }

    /// Up to the moment when sessions may go.
    fn accepting(&self) {
        self.hello(std::process::id());
        self.serving();
    }

    fn serving(&self) {
        assert!(matches!(self.hears(), Message::Ready { .. }));
        self.channel.say(&Message::AllSockets, &[]).unwrap();
        assert_eq!(self.hears(), Message::Accepting(vec![]));
        self.channel.say(&Message::Totals(Box::default()), &[]).unwrap();
    }

    /// Gives a session of snapshot 7 whose client sent `unsent` that the backend did not get.
    fn give(&self, id: u64, unsent: &[u8], ends: [&TcpStream; 2]) -> Message {
        let half = |tail: &[u8]| HalfRecord::new(0, false, false, tail.to_vec()).unwrap();
        let record = SessionRecord {
            id,
            snapshot: 7,
            listener: "orders".into(),
            canary: false,
            backend: Some(("v1".into(), self.backend.at.to_string())),
            client: None,
            accepted_ns: 1,
            moved_ns: 1,
            asked_ns: None,
            settled_since_ns: ringway::driver::sys::now().0,
            connect_ns: 1,
            opened_ns: 1,
            attempts: 1,
            backend_first: None,
            up: half(unsent),
            down: half(b""),
        };
        let descriptors = ends.map(std::os::fd::AsRawFd::as_raw_fd);
        self.channel.say(&Message::Sessions(vec![record]), &descriptors).unwrap();
        self.hears()
    }

    fn ends_with(mut self, why: &str) {
        let status = self.process.wait(5000);
        let said = self.process.said();
        assert!(status.code() == Some(71) && said.contains(why), "{status}: {said}");
    }
}

impl Drop for New {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.config);
    }
}

/// Two ends of a connection.
fn tcp() -> (TcpStream, TcpStream) {
    let listener = listen(1);
    let far = connect(listener.local_addr().unwrap());
    (ready(listener.accept().unwrap().0), far)
}

#[test]
fn a_session_goes_on_with_what_was_not_sent_and_the_process_goes_on_alone() {
    let new = New::start();
    new.accepting();
    let ((client, far_client), (backend, far_backend)) = (tcp(), tcp());
    for stream in [&client, &backend] {
        stream.set_nonblocking(true).unwrap();
    }
    // Nobody told of the config that it lives by: it stays where it is.
    let Message::Taken { refused, why } = new.give(5, b"x", [&client, &backend]) else { panic!() };
    assert_eq!(refused, [5], "{why}");
    let snapshot = Message::Snapshot { number: 7, text: new.text.clone() };
    new.channel.say(&snapshot, &[]).unwrap();
    let taken = new.give(5, b"unsent", [&client, &backend]);
    assert_eq!(taken, Message::Taken { refused: vec![], why: String::new() });
    // The old process dies: its descriptors are closed, and the channel with them.
    drop((client, backend));
    new.channel.end();
    finish(&far_client);
    assert_eq!(read_all(&far_backend).0, b"unsent");
    finish(&far_backend);
    assert_eq!(read_all(&far_client).0, b"");
    echo(&connect(new.at), b"a new one");
    new.process.until_said("session=5");
}

#[test]
fn a_lane_whose_ring_misbehaved_stays_on_epoll() {
    if !has_uring() {
        return skipped("io_uring is refused here");
    }
    for (held_ms, path) in [(60_000, "epoll"), (0, "uring")] {
        let (channel, theirs) = Channel::pair().unwrap();
        let admin = free_address();
        let new = New::start_with(channel, theirs, &format!("[admin]\nbind = \"{admin}\""));
        let until = ringway::driver::sys::now().plus_ms(held_ms);
        let held = (held_ms > 0).then_some((0, until.0)).into_iter().chain([(77, until.0)]);
        new.hello_holding(std::process::id(), held.collect());
        new.serving();
        let session = connect(new.at);
        echo(&session, b"begun");
        let (_, text) = crate::world::program::get(admin, "/metrics").unwrap();
        let begun =
            format!("ringway_begun_total{{shard=\"{}\",path=\"{path}\"}} 1", held_ms.min(1));
        assert!(text.contains(&begun), "{begun}: {text}");
    }
}

#[test]
fn who_is_told_that_the_old_process_serves_on_ends() {
    let mut new = New::start();
    new.accepting();
    echo(&connect(new.at), b"it serves");
    new.channel.say(&Message::Failed("it serves on".into()), &[]).unwrap();
    assert_eq!(new.process.wait(5000).code(), Some(70));
    let said = new.process.said();
    assert!(
        said.contains("the process before serves on") && said.contains("it serves on"),
        "{said}"
    );
}

#[test]
fn a_config_that_cannot_be_read_keeps_its_sessions_where_they_are() {
    let new = New::start();
    new.accepting();
    let text = new.text.replace("[shards]", "[from_the_future]\nkey = 1\n[shards]");
    new.channel.say(&Message::Snapshot { number: 7, text }, &[]).unwrap();
    let ((client, _far), (backend, _far_too)) = (tcp(), tcp());
    let Message::Taken { refused, why } = new.give(6, b"", [&client, &backend]) else { panic!() };
    assert_eq!(refused, [6]);
    assert!(why.contains("from_the_future"), "{why}");
}

#[test]
fn who_is_no_old_process_is_refused_before_anything_is_opened() {
    // Another version.
    let (here, there) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &here, b"RWHO\x07\0\0\0\x02\0\0\0\0\0\0\0{}").unwrap();
    let (channel, _) = Channel::pair().unwrap();
    New::start_at(channel, there.into()).ends_with("it speaks version 7 of the hand-over");
    let heard = crate::line::read_some(&here);
    assert!(heard.contains("Failed") && heard.contains("version 7"), "{heard}");

    // Somebody who says to be another process.
    let new = New::start();
    new.hello(1);
    assert!(matches!(new.channel.hear(Some(5000)), Err(Lost::Gone)));
    new.ends_with("nobody hands over at standard input");

    // No Unix socket.
    let (near, _far) = tcp();
    assert!(near.as_raw_fd() > 2);
    let (channel, _) = Channel::pair().unwrap();
    New::start_at(channel, near.into()).ends_with("nobody hands over at standard input");

    // One that leaves.
    let new = New::start();
    new.hello(std::process::id());
    assert!(matches!(new.hears(), Message::Ready { .. }));
    new.channel.end();
    new.ends_with("the process to take over from");
}
