//! What the cases have in common: a driver on a stage, turned until something is heard.

use super::{Far, Harness};
use crate::config::Tcp;
use crate::driver::pool::BufferId;
use crate::driver::sim::{Sight, content};
use crate::driver::{Arm, Completion, Driver, Errno, Key, ListenerId, Received, Side, Socket};
use crate::time::Time;

/// More than a window of published buffers: a case takes some for itself.
pub(super) const BUFFERS: u16 = 128;
pub(super) const BUFFER_BYTES: u32 = 4096;
/// How long something may take, in the driver's time.
const PATIENCE_MS: u64 = 10_000;
/// How long a silence has to be to count as one.
const SILENCE_MS: u64 = 60;

/// A case's driver, and what it said that no one has heard yet.
pub(super) struct Stage<H: Harness> {
    pub(super) h: H,
    pub(super) said: Vec<Completion>,
    buffers: usize,
}

/// Ringway's end of a connection.
pub(super) struct Near {
    pub(super) key: Key,
    pub(super) side: Side,
    pub(super) socket: Socket,
}

/// Small kernel buffers, so that a send blocks soon.
pub(super) fn small_buffers() -> Tcp {
    Tcp { send_buffer_bytes: Some(16 * 1024), ..Tcp::PLAIN }
}

pub(super) const fn key(slot: u32, generation: u32) -> Key {
    Key { slot, generation }
}

/// `n` bytes in which a shift or a gap shows.
pub(super) fn bytes(n: usize) -> Vec<u8> {
    content(7, 0).take(n).collect()
}

impl<H: Harness> Stage<H> {
    pub(super) fn open() -> Option<Self> {
        let mut h = H::new(BUFFERS, BUFFER_BYTES)?;
        h.driver().turn(Some(Time(0))).expect("a first turn");
        let buffers = h.buffers_at_rest();
        assert_eq!(buffers, usize::from(BUFFERS), "no buffer is out at first");
        Some(Self { h, said: Vec::new(), buffers })
    }

    /// The case is over: everything was given back, and nothing is said any more.
    pub(super) fn end(mut self) {
        self.silence();
        assert_eq!(self.h.buffers_at_rest(), self.buffers, "buffers are missing");
        assert_eq!(self.h.leftovers(), Vec::<String>::new());
    }

    pub(super) fn driver(&mut self) -> &mut H::D {
        self.h.driver()
    }

    pub(super) fn turn(&mut self, ms: u64) {
        let until = self.driver().now().plus_ms(ms);
        self.driver().turn(Some(until)).expect("a turn");
        while let Some(completion) = self.driver().next() {
            self.said.push(completion);
        }
    }

    /// Turns until `look` finds something.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let start = self.driver().now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let waited = self.driver().now().since_ns(start);
            assert!(waited < PATIENCE_MS * 1_000_000, "{what} did not come; {:?}", self.said);
            self.turn(5);
        }
    }

    /// Turns until something like this is said, and hears it.
    pub(super) fn hear<T>(&mut self, what: &str, is: impl Fn(&Completion) -> Option<T>) -> T {
        self.until(what, |stage| {
            let at = stage.said.iter().position(|completion| is(completion).is_some())?;
            is(&stage.said.remove(at))
        })
    }

    /// Nothing is said for a while, and nothing was left unheard.
    pub(super) fn silence(&mut self) {
        let start = self.driver().now();
        while self.driver().now().since_ns(start) < SILENCE_MS * 1_000_000 {
            self.turn(SILENCE_MS);
        }
        assert!(self.said.is_empty(), "nobody asked for {:?}", self.said);
    }

    /// A client who was accepted, attached as the client of `key`.
    pub(super) fn client(&mut self, key: Key) -> (Near, Box<dyn Far>) {
        let listener = ListenerId(u16::try_from(key.slot).unwrap() + 100);
        let listens = self.h.listen(listener);
        self.driver().accept(listener, &listens);
        let far = self.h.client(listener);
        let socket = self.accepted(listener);
        self.stop_accepting(listener, listens);
        self.driver().attach(key, Side::Client, &socket).unwrap();
        (Near { key, side: Side::Client, socket }, far)
    }

    pub(super) fn accepted(&mut self, listener: ListenerId) -> Socket {
        self.until("a client", |stage| {
            let is = |c: &Completion| {
                matches!(c, Completion::Accepted { result: Ok(_), listener: l, .. } if *l == listener)
            };
            let at = stage.said.iter().position(is)?;
            match stage.said.remove(at) {
                Completion::Accepted { result: Ok(socket), .. } => Some(socket),
                _ => None,
            }
        })
    }

    /// Stops accepting, hears so, and closes the listening socket.
    pub(super) fn stop_accepting(&mut self, listener: ListenerId, listens: Socket) {
        self.driver().stop_accepting(listener);
        self.until("the last word of an accept", |stage| {
            let is = |c: &Completion| {
                matches!(c, Completion::Accepted { more: false, listener: l, .. } if *l == listener)
            };
            let at = stage.said.iter().position(is)?;
            match stage.said.remove(at) {
                Completion::Accepted { result: Ok(socket), .. } => {
                    stage.driver().close(None, socket);
                }
                Completion::Accepted { result: Err(error), .. } => {
                    assert_eq!(error, Errno::CANCELED);
                }
                _ => return None,
            }
            Some(())
        });
        self.driver().close(None, listens);
    }

    /// A connection to a backend, attached as the backend of `key`.
    pub(super) fn backend(&mut self, key: Key) -> (Near, Box<dyn Far>) {
        let address = self.h.backend();
        let near = self.dial(key, address);
        assert_eq!(self.connected(key), Ok(()));
        let far = self.until("the backend's end", |stage| stage.h.reached(address));
        (near, far)
    }

    /// Begins to connect.
    pub(super) fn dial(&mut self, key: Key, address: std::net::SocketAddr) -> Near {
        let socket = self.driver().socket(address, &small_buffers()).unwrap();
        self.driver().attach(key, Side::Backend, &socket).unwrap();
        self.driver().connect(key, &socket, address);
        Near { key, side: Side::Backend, socket }
    }

    pub(super) fn connected(&mut self, key: Key) -> Result<(), Errno> {
        self.hear("the end of a connect", |completion| match completion {
            Completion::Connected { key: its, result } if *its == key => Some(*result),
            _ => None,
        })
    }

    pub(super) fn arm(&mut self, near: &Near, arm: Arm) {
        self.driver().arm_recv(near.key, near.side, &near.socket, arm);
    }

    /// What a receive says next, and whether it goes on.
    pub(super) fn received(&mut self, near: &Near) -> (Received, bool) {
        self.hear("something received", |completion| match completion {
            Completion::Received { key, side, what, more }
                if (*key, *side) == (near.key, near.side) =>
            {
                Some((*what, *more))
            }
            _ => None,
        })
    }

    /// The bytes of a buffer, which is given back.
    pub(super) fn empty(&mut self, buffer: BufferId) -> Vec<u8> {
        let pool = self.driver().pool();
        let bytes = pool.bytes(buffer).to_vec();
        assert!(!bytes.is_empty(), "a receive brought no bytes");
        pool.give_back(buffer);
        bytes
    }

    /// Receives in order, arming as often as it takes, until the stream ends or `most` bytes have come. Bytes, and how
    /// it ended where it did; nothing is armed afterwards.
    pub(super) fn receive(
        &mut self,
        near: &Near,
        arm: Arm,
        most: usize,
    ) -> (Vec<u8>, Option<Received>) {
        let mut all = Vec::new();
        loop {
            self.arm(near, arm);
            loop {
                let (what, more) = self.received(near);
                match what {
                    Received::Bytes(buffer) => all.extend(self.empty(buffer)),
                    ended => {
                        assert!(!more, "{ended:?} is a last word");
                        return (all, Some(ended));
                    }
                }
                if !more {
                    break;
                }
            }
            if all.len() >= most {
                return (all, None);
            }
        }
    }

    /// A buffer with these bytes.
    pub(super) fn buffer(&mut self, bytes: &[u8]) -> BufferId {
        let pool = self.driver().pool();
        let buffer = pool.take().expect("a case needs few buffers");
        assert_eq!(pool.fill(buffer, bytes), bytes.len());
        buffer
    }

    /// Begins to send these bytes.
    pub(super) fn send(&mut self, near: &Near, bytes: &[u8]) -> BufferId {
        let buffer = self.buffer(bytes);
        self.driver().send(near.key, near.side, &near.socket, buffer);
        buffer
    }

    fn sent_of(completion: &Completion, near: &Near) -> Option<Result<u32, Errno>> {
        match completion {
            Completion::Sent { key, side, result } if (*key, *side) == (near.key, near.side) => {
                Some(*result)
            }
            _ => None,
        }
    }

    /// How a send ended; its buffer is given back.
    pub(super) fn sent(&mut self, near: &Near, buffer: BufferId) -> Result<u32, Errno> {
        let result = self.hear("the end of a send", |c| Self::sent_of(c, near));
        self.driver().pool().give_back(buffer);
        result
    }

    /// Sends and waits for it.
    pub(super) fn send_all(&mut self, near: &Near, bytes: &[u8]) {
        for part in bytes.chunks(BUFFER_BYTES as usize) {
            let buffer = self.send(near, part);
            assert_eq!(self.sent(near, buffer), Ok(u32::try_from(part.len()).unwrap()));
        }
    }

    /// Sends `stream` from its beginning until a send has to wait. The buffer in flight, and how many bytes were taken
    /// by those before.
    pub(super) fn fill(&mut self, near: &Near, stream: &[u8]) -> (BufferId, usize) {
        let mut taken = 0;
        for part in stream.chunks(BUFFER_BYTES as usize) {
            let buffer = self.send(near, part);
            let start = self.driver().now();
            while !self.said.iter().any(|c| Self::sent_of(c, near).is_some()) {
                if self.driver().now().since_ns(start) > SILENCE_MS * 1_000_000 {
                    return (buffer, taken);
                }
                self.turn(SILENCE_MS);
            }
            assert_eq!(self.sent(near, buffer), Ok(u32::try_from(part.len()).unwrap()));
            taken += part.len();
        }
        panic!("{} bytes filled no socket", stream.len());
    }

    /// How a poll ended.
    pub(super) fn polled(&mut self, near: &Near) -> Result<(), Errno> {
        self.hear("the end of a poll", |completion| match completion {
            Completion::Polled { key, side, result } if (*key, *side) == (near.key, near.side) => {
                Some(*result)
            }
            _ => None,
        })
    }

    pub(super) fn close(&mut self, near: Near) {
        self.driver().close(Some((near.key, near.side)), near.socket);
    }

    /// The far end writes all of it, while the driver turns.
    pub(super) fn far_writes(&mut self, far: &mut dyn Far, bytes: &[u8]) {
        let mut at = 0;
        self.until("room for the far end", |_| {
            at += far.write(&bytes[at..]);
            (at == bytes.len()).then_some(())
        });
    }

    /// The far end reads until it has `n` bytes, while the driver turns.
    pub(super) fn far_reads(&mut self, far: &mut dyn Far, n: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < n {
            let part = self.until("bytes for the far end", |_| match far.read(n - all.len()) {
                Sight::Bytes(bytes) => Some(bytes),
                Sight::Nothing => None,
                other => panic!("{other:?} after {} of {n} bytes", all.len()),
            });
            all.extend(part);
        }
        all
    }

    /// What the far end sees when it sees something that is not bytes; those are counted.
    pub(super) fn far_sees(&mut self, far: &mut dyn Far) -> (usize, Sight) {
        let mut n = 0;
        loop {
            let seen = self.until("the far end's end", |_| {
                Some(far.read(1 << 16)).filter(|sight| *sight != Sight::Nothing)
            });
            match seen {
                Sight::Bytes(bytes) => n += bytes.len(),
                other => return (n, other),
            }
        }
    }
}
