//! What an old process and the one that replaces it say to each other, as bytes.
//!
//! A message is a head of [`HEAD_BYTES`], a text (JSON) and raw bytes, the unsent tails of sessions. The head carries
//! the version: whoever does not speak it refuses the first message, before anything has moved. Within a version a
//! reader passes over keys it does not know, and a key that was added to it has a default.
//!
//! ```text
//! 0    4         6      8            12          16           16 + text      + raw
//! "RWHO" version  zeros  text bytes   raw bytes   text ...     raw ...
//! ```

use crate::config::limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What both sides must speak.
pub const VERSION: u16 = 1;
/// Bytes of a head.
pub const HEAD_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"RWHO";

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// They do not begin as a message does.
    Foreign,
    /// They are of a version that is not spoken here.
    Version(u16),
    /// They say that they are longer than any message may be.
    TooLong(u64),
    /// Their text cannot be read, and why.
    Text(String),
    /// The raw bytes are not as many as the text says.
    Tails,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Foreign => write!(f, "it does not speak Ringway's hand-over"),
            Self::Version(theirs) => write!(
                f,
                "it speaks version {theirs} of the hand-over, this process version {VERSION}: restart instead"
            ),
            Self::TooLong(bytes) => write!(f, "it sent a message of {bytes} bytes"),
            Self::Text(why) => write!(f, "it sent a message that cannot be read: {why}"),
            Self::Tails => write!(f, "it sent other bytes than it said"),
        }
    }
}

/// The head of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    text_bytes: u32,
    raw_bytes: u32,
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    /// Where it is none, of another version, or announces more than [`limits::HANDOVER_BYTES_MAX`].
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, Fault> {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[..4] != MAGIC {
            return Err(Fault::Foreign);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let head = Self { text_bytes: number(8), raw_bytes: number(12) };
        let body = u64::from(head.text_bytes) + u64::from(head.raw_bytes);
        if body > limits::HANDOVER_BYTES_MAX { Err(Fault::TooLong(body)) } else { Ok(head) }
    }

    /// How many bytes follow it.
    #[must_use]
    pub const fn body_bytes(self) -> usize {
        self.text_bytes as usize + self.raw_bytes as usize
    }
}

/// What is said. Descriptors go beside a message, in the order in which it names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Old to new, first of all: who the old one is, and how it stands.
    Hello(Box<Hello>),
    /// New to old: its config is good, and it can take what there is.
    Ready {
        /// Its version, for people.
        version: String,
        /// What of the config file is another than the old one read, for people; empty: nothing, or it is not known.
        #[serde(default)]
        edits: String,
    },
    /// Either way, instead of all else: whoever says it gives the upgrade up, and why. Then the old one goes on, and
    /// the new one ends.
    Failed(String),
    /// Old to new: a descriptor for each listening socket of a listener; more than one message where there are many.
    Sockets {
        /// The listener's name; the admin endpoint's is [`ADMIN`].
        name: String,
        /// What the old config asked for; its port may be 0.
        wanted: SocketAddr,
        /// How many descriptors there are.
        count: u32,
    },
    /// Old to new: that were all listening sockets.
    AllSockets,
    /// New to old: it accepts clients at these listeners of the old one.
    Accepting(Vec<String>),
    /// Old to new: all it has counted so far, what it took over itself included.
    Totals(Box<Totals>),
    /// Old to new: the text of a config that sessions to come live by.
    Snapshot {
        /// The snapshot's number.
        number: u64,
        /// The file as it was read.
        text: String,
    },
    /// Old to new: sessions at rest; two descriptors for each, its client's and its backend's.
    Sessions(Vec<SessionRecord>),
    /// New to old: the sessions of the last message are its own, but for these.
    Taken {
        /// Ids of those that are given back.
        refused: Vec<u64>,
        /// Why, where there are any.
        why: String,
    },
    /// Old to new: it is the service's main process from now on.
    Main,
    /// Old to new: that was all. New to old: so it was.
    Done,
}

/// The name of the admin endpoint's socket, which no listener can have.
pub const ADMIN: &str = "[admin]";

/// Who hands over, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its version, for people.
    pub version: String,
    /// Which of the line of processes it is, from 1.
    pub generation: u64,
    /// Its process id.
    pub pid: u32,
    /// Number of its snapshot in force.
    pub snapshot: u64,
    /// No session has had an id whose lower 40 bits are as high as this.
    pub first_id: u64,
    /// The config as it was last read.
    pub text: String,
    /// The canary percents in force, in hundredths, by listener.
    pub percents: BTreeMap<String, u16>,
    /// The data path that was asked for last.
    pub data_path: String,
    /// Its share of the sessions, in hundredths of a percent.
    pub data_path_percent: u16,
    /// Lanes that stay on epoll because their ring misbehaved, and until when, as a session's times.
    pub held: BTreeMap<usize, u64>,
}

/// A session at rest. Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a boot share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Unique among all processes of the line.
    pub id: u64,
    /// Number of the snapshot it lives by.
    pub snapshot: u64,
    /// Name of its listener.
    pub listener: String,
    /// Whether it was assigned to the canary.
    pub canary: bool,
    /// Names of its pool and backend.
    pub backend: Option<(String, String)>,
    /// The client's address, where it is known.
    pub client: Option<SocketAddr>,
    /// When it was accepted.
    pub accepted_ns: u64,
    /// When something moved last.
    pub moved_ns: u64,
    /// When the client's bytes that have no answer yet went to the backend.
    pub asked_ns: Option<u64>,
    /// When it began to come to rest.
    pub settled_since_ns: u64,
    /// How long it took to reach the backend.
    pub connect_ns: u64,
    /// From accept until it had a backend; 0: not known.
    #[serde(default)]
    pub opened_ns: u64,
    /// Backends that were tried; 0: not known.
    #[serde(default)]
    pub attempts: u8,
    /// Whether the backend finished first, rather than the client; `None`: neither has finished, or it is not known.
    #[serde(default)]
    pub backend_first: Option<bool>,
    /// From client to backend.
    pub up: HalfRecord,
    /// From backend to client.
    pub down: HalfRecord,
}

/// One direction of a session at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfRecord {
    bytes: u64,
    eof: bool,
    finished: bool,
    tail_bytes: u32,
    #[serde(skip)]
    tail: Vec<u8>,
}

impl HalfRecord {
    /// `bytes` were sent; `tail` was received and not sent; `eof`: nothing more comes; `finished`: the destination
    /// was told so. `None`: the tail is longer than a message.
    #[must_use]
    pub fn new(bytes: u64, eof: bool, finished: bool, tail: Vec<u8>) -> Option<Self> {
        let tail_bytes = u32::try_from(tail.len()).ok()?;
        Some(Self { bytes, eof, finished, tail_bytes, tail })
    }

    /// Whether nothing more comes.
    #[must_use]
    pub const fn eof(&self) -> bool {
        self.eof
    }

    /// Bytes sent, whether the stream has ended, whether the destination was told, and the unsent tail.
    #[must_use]
    pub fn into_parts(self) -> (u64, bool, bool, Vec<u8>) {
        (self.bytes, self.eof, self.finished, self.tail)
    }
}

/// All that was counted, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Of the process.
    pub counts: BTreeMap<String, u64>,
    /// By shard.
    pub shards: Vec<ShardTotals>,
    /// By route.
    pub routes: Vec<RouteTotals>,
}

/// What the shards of one number and data path counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardTotals {
    /// The shard's number.
    pub id: usize,
    /// Its data path.
    pub path: String,
    /// By name.
    pub counts: BTreeMap<String, u64>,
    /// Pauses of sessions that were carried.
    pub pause: Spread,
    /// How long turns took.
    pub work: Spread,
}

/// What one route counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTotals {
    /// Name of the listener.
    pub listener: String,
    /// Whether it is the canary's side.
    pub canary: bool,
    /// Name of the pool.
    pub pool: String,
    /// Name of the backend; empty where none was chosen.
    pub backend: String,
    /// By name.
    pub counts: BTreeMap<String, u64>,
    /// Ended sessions by reason.
    pub ended: BTreeMap<String, u64>,
    /// From an attempt to connect until the backend accepted.
    pub connect: Spread,
    /// From client bytes to the first backend bytes after them.
    pub turn: Spread,
    /// From accept to the last byte.
    pub duration: Spread,
}

/// A histogram.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// Upper bound in nanoseconds and count of each bucket that is not empty.
    pub buckets: Vec<(u64, u64)>,
    /// Values above all bounds.
    pub above: u64,
    /// Sum of all values.
    pub sum_ns: u64,
}

impl Message {
    /// The message as bytes, its head first.
    ///
    /// # Errors
    /// [`Fault::TooLong`] where it is longer than a message may be.
    pub fn encode(&self) -> Result<Vec<u8>, Fault> {
        let text = serde_json::to_vec(self).map_err(|e| Fault::Text(e.to_string()))?;
        let raw: usize = self.tails().map(<[u8]>::len).sum();
        let body = (text.len() + raw) as u64;
        let (Ok(text_bytes), Ok(raw_bytes), true) =
            (u32::try_from(text.len()), u32::try_from(raw), body <= limits::HANDOVER_BYTES_MAX)
        else {
            return Err(Fault::TooLong(body));
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + text.len() + raw);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&text_bytes.to_le_bytes());
        bytes.extend_from_slice(&raw_bytes.to_le_bytes());
        bytes.extend_from_slice(&text);
        self.tails().for_each(|tail| bytes.extend_from_slice(tail));
        Ok(bytes)
    }

    /// The message behind a head. `body` is all that follows it, [`Head::body_bytes`] of it.
    ///
    /// # Errors
    /// Where the text cannot be read, or the tails are not as long as it says.
    pub fn decode(head: Head, body: &[u8]) -> Result<Self, Fault> {
        let text = body.get(..head.text_bytes as usize).ok_or(Fault::Tails)?;
        let mut raw = &body[text.len()..];
        if raw.len() != head.raw_bytes as usize {
            return Err(Fault::Tails);
        }
        let mut message: Self =
            serde_json::from_slice(text).map_err(|e| Fault::Text(e.to_string()))?;
        if let Self::Sessions(sessions) = &mut message {
            for half in sessions.iter_mut().flat_map(|s| [&mut s.up, &mut s.down]) {
                let (tail, rest) =
                    raw.split_at_checked(half.tail_bytes as usize).ok_or(Fault::Tails)?;
                half.tail = tail.to_vec();
                raw = rest;
            }
        }
        if raw.is_empty() { Ok(message) } else { Err(Fault::Tails) }
    }

    fn tails(&self) -> impl Iterator<Item = &[u8]> {
        let sessions = match self {
            Self::Sessions(sessions) => sessions.as_slice(),
            _ => &[],
        };
        sessions.iter().flat_map(|s| [s.up.tail.as_slice(), s.down.tail.as_slice()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Message, Fault> {
        let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(Fault::Foreign)?;
        Message::decode(Head::decode(head)?, body)
    }

    fn half() -> impl Strategy<Value = HalfRecord> {
        let tail = proptest::collection::vec(any::<u8>(), 0..200);
        (any::<u64>(), any::<bool>(), any::<bool>(), tail)
            .prop_map(|(n, eof, finished, tail)| HalfRecord::new(n, eof, finished, tail).unwrap())
    }

    fn session() -> impl Strategy<Value = SessionRecord> {
        let times = (any::<u64>(), any::<u64>(), any::<Option<u64>>(), any::<u64>(), any::<u64>());
        let client = any::<Option<(u32, u16)>>()
            .prop_map(|c| c.map(|(ip, port)| (std::net::Ipv4Addr::from(ip), port).into()));
        let backend = proptest::option::of(("[a-z0-9_.-]{1,9}", ".{0,9}"));
        let names = ("[a-z]{1,9}", any::<bool>(), backend);
        let ids = any::<(u64, u64)>();
        let story = any::<(u64, u8, Option<bool>)>();
        (ids, names, client, times, story, half(), half()).prop_map(
            |((id, snapshot), (listener, canary, backend), client, t, story, up, down)| {
                SessionRecord {
                    id,
                    snapshot,
                    listener,
                    canary,
                    backend,
                    client,
                    accepted_ns: t.0,
                    moved_ns: t.1,
                    asked_ns: t.2,
                    settled_since_ns: t.3,
                    connect_ns: t.4,
                    opened_ns: story.0,
                    attempts: story.1,
                    backend_first: story.2,
                    up,
                    down,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn sessions_are_read_as_they_were_written(
            sessions in proptest::collection::vec(session(), 0..5)
        ) {
            let message = Message::Sessions(sessions);
            prop_assert_eq!(read(&message.encode().unwrap()), Ok(message));
        }

        #[test]
        fn any_bytes_are_a_message_or_a_fault(
            sessions in proptest::collection::vec(session(), 1..3),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Message::Sessions(sessions).encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = read(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(read(&bytes).is_err(), "it was cut");
        }
    }

    #[test]
    fn another_version_is_refused_by_its_head_alone() {
        let mut bytes = Message::Done.encode().unwrap();
        bytes[4] = 7;
        let fault = read(&bytes).unwrap_err();
        assert_eq!(fault, Fault::Version(7));
        assert!(fault.to_string().contains("version 7"), "{fault}");
        bytes[0] = b'X';
        assert_eq!(read(&bytes), Err(Fault::Foreign));
    }

    #[test]
    fn a_length_no_message_has_is_refused_before_it_is_read() {
        let mut bytes = Message::Done.encode().unwrap();
        bytes[8..16].fill(0xff);
        assert!(matches!(read(&bytes), Err(Fault::TooLong(_))));
    }

    #[test]
    fn keys_that_came_later_may_be_missing() {
        let half = r#"{"bytes":1,"eof":true,"finished":true,"tail_bytes":0}"#;
        let text = format!(
            r#"{{"Sessions":[{{"id":7,"snapshot":1,"listener":"l","canary":false,"backend":null,
            "client":null,"accepted_ns":1,"moved_ns":2,"asked_ns":null,"settled_since_ns":3,
            "connect_ns":4,"up":{half},"down":{half}}}]}}"#
        );
        let head = Head { text_bytes: u32::try_from(text.len()).unwrap(), raw_bytes: 0 };
        let Ok(Message::Sessions(sessions)) = Message::decode(head, text.as_bytes()) else {
            panic!("{text}")
        };
        let first = &sessions[0];
        assert_eq!((first.opened_ns, first.attempts, first.backend_first), (0, 0, None));
    }

    #[test]
    fn keys_nobody_knows_yet_are_passed_over() {
        let text = br#"{"Ready":{"version":"9","colour":"red"}}"#;
        let head = Head { text_bytes: u32::try_from(text.len()).unwrap(), raw_bytes: 0 };
        assert_eq!(
            Message::decode(head, text),
            Ok(Message::Ready { version: "9".into(), edits: String::new() })
        );
    }
}
