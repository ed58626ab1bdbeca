//! The way back to one client of the order engine: answers in the order of the book, written by whoever is free to.
//!
//! Lines are added while the book is locked and sent after it is free again, so a client that does not read slows down
//! nobody: another session's thread hands the kernel what it takes at once and leaves the rest to the client's own
//! thread, which alone may wait. A client that leaves more than a bound unread is cut off.

use super::protocol::{Answer, write_line};
use crate::config::limits;
use socket2::SockRef;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// MSG_DONTWAIT of send(2), the same number on every Linux.
const DONT_WAIT: i32 = 0x40;

/// How long a flush may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Only what the kernel takes at once.
    None,
    /// Until the client has read enough, or the socket's write timeout ends it.
    Own,
}

/// The way back to one client.
#[derive(Debug)]
pub(super) struct Outbox {
    stream: TcpStream,
    waiting: Mutex<Waiting>,
    /// Another session's thread has stopped writing here.
    free: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Somebody sends earlier lines now, and will take these after them.
    writing: bool,
}

impl Outbox {
    /// The way back over `stream`.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, waiting: Mutex::default(), free: Condvar::new() }
    }

    /// The client's socket.
    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Adds a line behind all that were added before.
    pub(super) fn add(&self, answer: &Answer) {
        let mut waiting = self.lock();
        let room = limits::ENGINE_OUTBOX_BYTES_MAX - waiting.lines.len();
        if room < limits::ENGINE_ANSWER_BYTES_MAX {
            self.cut();
        } else {
            write_line(answer, &mut waiting.lines);
        }
    }

    /// Sends what waits. Where somebody does so already, others leave it to him; the client's own thread waits for him,
    /// so that it never goes on, or ends the connection, while answers of its own are on the way.
    pub(super) fn flush(&self, patience: Patience) {
        let mut waiting = self.lock();
        while waiting.writing {
            if patience == Patience::None {
                return;
            }
            waiting = self.free.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.writing = true;
        while !waiting.lines.is_empty() {
            let batch = std::mem::take(&mut waiting.lines);
            drop(waiting);
            let sent = self.send(&batch, patience);
            waiting = self.lock();
            match sent {
                Ok(sent) if sent == batch.len() => {}
                Ok(sent) => {
                    let later = std::mem::take(&mut waiting.lines);
                    waiting.lines = [&batch[sent..], &later].concat();
                    if patience == Patience::None {
                        break;
                    }
                }
                Err(_) => {
                    self.cut();
                    waiting.lines.clear();
                }
            }
        }
        waiting.writing = false;
        // Nobody waits for the client's own thread, and a wake-up nobody needs is still a call into the kernel.
        if patience == Patience::None {
            self.free.notify_all();
        }
    }

    /// Ends the connection in both directions; its own thread sees it and cleans up.
    pub(super) fn cut(&self) {
        // It fails where the client has cut it before, which is what was wanted.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn send(&self, bytes: &[u8], patience: Patience) -> io::Result<usize> {
        match patience {
            Patience::Own => (&self.stream).write(bytes),
            Patience::None => match SockRef::from(&self.stream).send_with_flags(bytes, DONT_WAIT) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
                sent => sent,
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn pair() -> (Outbox, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Outbox::new(listener.accept().unwrap().0), client)
    }

    /// Adds and flushes answers until the kernel takes no more; says how many there were.
    fn fill(outbox: &Outbox) -> u64 {
        let mut id = 0;
        while outbox.lock().lines.is_empty() {
            for _ in 0..1000 {
                outbox.add(&Answer::Accepted { id });
                id += 1;
            }
            outbox.flush(Patience::None);
        }
        id
    }

    #[test]
    fn what_the_kernel_did_not_take_at_once_follows_in_order() {
        let (outbox, mut client) = pair();
        let sent = fill(&outbox);
        let reader = std::thread::spawn(move || {
            let mut all = String::new();
            client.read_to_string(&mut all).unwrap();
            all
        });
        outbox.flush(Patience::Own);
        outbox.stream().shutdown(Shutdown::Write).unwrap();
        let all = reader.join().unwrap();
        assert_eq!(all.lines().count() as u64, sent);
        for (line, id) in all.lines().zip(0..) {
            assert_eq!(line, format!("{{\"type\":\"accepted\",\"id\":{id}}}"));
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_and_takes_bounded_memory() {
        let (outbox, _client) = pair();
        fill(&outbox);
        for id in 0..400_000 {
            outbox.add(&Answer::Accepted { id });
        }
        assert!(outbox.lock().lines.len() <= limits::ENGINE_OUTBOX_BYTES_MAX);
        let mut own = outbox.stream();
        assert_eq!(own.read(&mut [0]).unwrap(), 0, "its own thread is told");
    }
}
