//! For the tests of this module: a board, an endpoint on a loopback port, and plain sockets that talk to it.

use super::log::outlet::Page;
use super::serve::{Bounds, Window};
use super::{Running, start_with};
use crate::config::*;
use crate::control::board::{Board, ShardEntry};
use crate::control::order::Orders;
use crate::driver::Kind;
use crate::policy::snapshot::Snapshot;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A config of one listener `fix` with 5 % for its canary.
pub(super) fn config() -> Config {
    let pool = |name: &str| Pool {
        name: name.into(),
        backends: vec![Backend {
            name: "a".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            weight: 1,
        }],
        retries: 0,
        spare: 0,
        spare_idle_ms: limits::SPARE_IDLE_MS_DEFAULT,
    };
    let listener = Listener {
        name: "fix".into(),
        bind: "127.0.0.1:0".parse().unwrap(),
        backlog: 1,
        stable: 0,
        canary: Some(1),
        canary_percent: Percent::from_f64(5.0).unwrap(),
        on_backend_fail: OnBackendFail::Reset,
        hop: Hop::Auto,
        sessions_max: 10,
        timeouts: Timeouts { connect_ms: 1, half_closed_ms: None, idle_ms: None, age_ms: None },
        tcp: Tcp::PLAIN,
    };
    Config {
        data_path: DataPath::Auto,
        data_path_percent: Percent::HUNDRED,
        carry_sessions: true,
        shards: Shards { count: Some(1), pin: false, ..Shards::default() },
        limits: Limits {
            sessions_max: 10,
            high_water_bytes: 65_536,
            buffer_bytes: 16_384,
            buffers_per_shard: 64,
        },
        listeners: vec![listener],
        pools: vec![pool("stable"), pool("trial")],
        admin: None,
        stop: Stop { grace_ms: 0, drain_ms: 0 },
        log: Log { format: LogFormat::Human, level: LogLevel::Info, session_every: 1 },
        source: Source::default(),
    }
}

/// A board of [`config`] with this many shards.
pub(super) fn board(shards: usize) -> Arc<Board> {
    let board = Arc::new(Board::new(Snapshot::new(config(), None)));
    for id in 0..shards {
        let entry = ShardEntry::new(id, Kind::Epoll, None, Arc::default());
        entry.serving.store(true, Relaxed);
        board.add_shard(Arc::new(entry));
    }
    board
}

/// An endpoint on a loopback port.
pub(super) struct Endpoint {
    pub(super) board: Arc<Board>,
    pub(super) address: SocketAddr,
    pub(super) running: Running,
}

impl Endpoint {
    pub(super) fn new(token: Option<&str>, orders: Orders) -> Self {
        Self::bounded(token, orders, Bounds::default())
    }

    pub(super) fn bounded(token: Option<&str>, orders: Orders, bounds: Bounds) -> Self {
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        let board = board(1);
        let window = Window { token: token.map(Into::into), board: Arc::clone(&board), orders };
        Self { board, address, running: start_with(bound, window, bounds).unwrap() }
    }

    /// A connection; reading from it fails after ten seconds rather than never.
    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Sends these bytes, and reads until the endpoint closes.
    pub(super) fn send(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes.as_ref()).unwrap();
        read_all(&mut stream)
    }

    /// One request on a connection of its own. `head` is the first line without the version, `headers` end with \r\n.
    pub(super) fn ask(&self, head: &str, headers: &str, body: &str) -> Said {
        let host = self.address;
        let length = body.len();
        Said::parse(&self.send(format!(
            "{head} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )))
    }
}

/// Reads until the other end closes.
pub(super) fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// An answer.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Said {
    pub(super) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// The first of its errors.
    pub(super) fn error(&self) -> String {
        let json: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        json["errors"][0].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

/// What `during` writes down, on this thread.
pub(super) fn written(format: LogFormat, level: LogLevel, during: impl FnOnce()) -> String {
    let page = Page::default();
    let log = Log { format, level, session_every: 1 };
    tracing::subscriber::with_default(super::log::lines(&log, false, page.clone()), during);
    String::from_utf8(page.take()).unwrap()
}
