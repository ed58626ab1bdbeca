//! An order engine: one [`Book`](super::book::Book), one thread a connection, the protocol of [`super::protocol`].
//!
//! It is what Ringway stands in front of when nobody has a matching engine at hand. Orders that rest are cancelled when
//! their connection ends, as venues do, so a session that a proxy loses is a session that costs its client money.

use super::clock::{now, pause};
use super::outbox::{Outbox, Patience};
use super::protocol::{Answer, Lines, Reason, Request};
use super::venue::Venue;
use crate::config::limits;
use socket2::SockRef;
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes read from a client at once.
const READ_BYTES: usize = 4 * limits::ENGINE_LINE_BYTES_MAX;

/// An order engine that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct OrderEngine {
    address: SocketAddr,
    listener: TcpListener,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    venue: Mutex<Venue>,
    stopping: AtomicBool,
    orders: AtomicU64,
    sessions: AtomicU64,
}

impl OrderEngine {
    /// Starts an engine. Port 0 lets the kernel choose; see [`Self::address`].
    ///
    /// # Errors
    /// The address cannot be listened on, or no thread can be started.
    pub fn start(listen: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let acceptor = {
            let (listener, shared) = (listener.try_clone()?, Arc::clone(&shared));
            let name = format!("engine-{}", address.port());
            thread::Builder::new()
                .name(name.clone())
                .spawn(move || accept_all(&listener, &shared, &name))?
        };
        Ok(Self { address, listener, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests it has handled, the rejected ones among them.
    #[must_use]
    pub fn orders(&self) -> u64 {
        self.shared.orders.load(Relaxed)
    }

    /// Sessions that are open now.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.shared.sessions.load(Relaxed)
    }

    /// Orders that rest in its book now.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.shared.venue().resting()
    }

    /// Stops listening, ends all sessions and waits until every thread is gone.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopping.store(true, SeqCst);
        // On Linux this ends an accept that waits; where it cannot, the acceptor has ended already.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        self.shared.venue().cut_all();
        // A thread that panicked has said so on stderr; there is nothing left to wait for.
        let _ = acceptor.join();
    }
}

impl Drop for OrderEngine {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, name: &str) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stopping.load(SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => {
                threads.retain(|thread| !thread.is_finished());
                // A client that is gone already, or for whom no thread is left, is dropped: it sees the end.
                if let Ok(Some(thread)) = admit(stream, shared, name) {
                    threads.push(thread);
                }
            }
            // For want of descriptors, say: trying again at once would only burn a core.
            Err(_) if !shared.stopping.load(SeqCst) => {
                pause(Duration::from_millis(limits::ACCEPT_REST_MS));
            }
            Err(_) => break,
        }
    }
    for thread in threads {
        // As above: a panic has been reported.
        let _ = thread.join();
    }
}

fn admit(
    stream: TcpStream,
    shared: &Arc<Shared>,
    name: &str,
) -> io::Result<Option<JoinHandle<()>>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(limits::ENGINE_LOOK_MS)))?;
    stream.set_write_timeout(Some(Duration::from_millis(limits::ENGINE_WRITE_MS_MAX)))?;
    let outbox = Arc::new(Outbox::new(stream));
    let Some(session) = shared.enter(&outbox) else {
        outbox.add(&Answer::Rejected { id: None, reason: Reason::EngineFull });
        outbox.flush(Patience::None);
        return Ok(None);
    };
    let spawned = {
        let shared = Arc::clone(shared);
        let thread =
            thread::Builder::new().name(name.into()).stack_size(limits::ENGINE_STACK_BYTES);
        thread.spawn(move || {
            let _leaving = Leaving { shared: &shared, session };
            Serving { shared: &shared, session, outbox: &outbox, others: Vec::new() }.run();
        })
    };
    if spawned.is_err() {
        shared.leave(session);
    }
    spawned.map(Some)
}

/// Makes a session leave whichever way its thread ends: a panic must not leave its orders in the book.
struct Leaving<'a> {
    shared: &'a Shared,
    session: u64,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.session);
    }
}

impl Shared {
    fn venue(&self) -> MutexGuard<'_, Venue> {
        self.venue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a new session. `None`: there is no room, or the engine is stopping.
    fn enter(&self, outbox: &Arc<Outbox>) -> Option<u64> {
        let mut venue = self.venue();
        // Looked at under the lock that `end` takes after setting it: nobody enters unseen by both.
        let session = if self.stopping.load(SeqCst) { None } else { venue.enter(outbox) };
        self.sessions.store(venue.sessions() as u64, Relaxed);
        session
    }

    fn leave(&self, session: u64) {
        let mut venue = self.venue();
        venue.leave(session);
        self.sessions.store(venue.sessions() as u64, Relaxed);
    }
}

/// One session's thread.
struct Serving<'a> {
    shared: &'a Shared,
    session: u64,
    outbox: &'a Outbox,
    /// Who else was told something by the request at hand.
    others: Vec<Arc<Outbox>>,
}

impl Serving<'_> {
    fn run(&mut self) {
        let mut stream = self.outbox.stream();
        let mut bytes = vec![0; READ_BYTES];
        let mut lines = Lines::default();
        loop {
            match stream.read(&mut bytes) {
                // The client has finished. Half a line is no order.
                Ok(0) => break,
                Ok(count) => {
                    if lines.feed(&bytes[..count], |line| self.handle(line)).is_err() {
                        self.reject(None, Reason::LineTooLong);
                        self.linger();
                        break;
                    }
                }
                Err(e) if is_timeout(&e) => self.outbox.flush(Patience::Own),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.outbox.flush(Patience::Own);
    }

    fn handle(&mut self, line: &[u8]) {
        match serde_json::from_slice::<Request>(line) {
            Ok(request) => {
                self.shared.venue().run(self.session, self.outbox, request, &mut self.others);
                self.outbox.flush(Patience::Own);
                for other in self.others.drain(..) {
                    other.flush(Patience::None);
                }
            }
            Err(_) => self.reject(None, Reason::Unreadable),
        }
        self.shared.orders.fetch_add(1, Relaxed);
    }

    fn reject(&self, id: Option<u64>, reason: Reason) {
        self.outbox.add(&Answer::Rejected { id, reason });
        self.outbox.flush(Patience::Own);
    }

    /// Reads on for a while: closing a socket with unread bytes resets it, and the reset overtakes the last answer.
    fn linger(&self) {
        let mut stream = self.outbox.stream();
        // Fails where the client has gone, which the reads see as well.
        let _ = stream.shutdown(Shutdown::Write);
        let until = now() + Duration::from_millis(limits::ENGINE_LINGER_MS_MAX);
        let mut bytes = vec![0; READ_BYTES];
        while now() < until && !self.shared.stopping.load(SeqCst) {
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Err(e) if !is_timeout(&e) => break,
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// Whether a socket's own timeout ended the call, and nothing is wrong.
fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::clock::wait_until;
    use std::io::{BufRead, BufReader, Write};

    struct Client {
        reader: BufReader<TcpStream>,
    }

    impl Client {
        fn of(engine: &OrderEngine) -> Self {
            let stream = TcpStream::connect(engine.address()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            Self { reader: BufReader::new(stream) }
        }

        fn say(&mut self, lines: &str) {
            self.reader.get_mut().write_all(lines.as_bytes()).unwrap();
        }

        fn new_order(&mut self, id: u64, side: &str, price: u64, quantity: u64) {
            self.say(&format!(
                "{{\"type\":\"new\",\"id\":{id},\"side\":\"{side}\",\"price\":{price},\"quantity\":{quantity}}}\n"
            ));
        }

        fn hears(&mut self, wanted: Answer) {
            let mut line = String::new();
            self.reader.read_line(&mut line).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), wanted);
        }

        fn hears_the_end(&mut self) {
            assert_eq!(self.reader.read_line(&mut String::new()).unwrap(), 0);
        }
    }

    fn engine() -> OrderEngine {
        OrderEngine::start("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    fn rejected(id: Option<u64>, reason: Reason) -> Answer {
        Answer::Rejected { id, reason }
    }

    #[test]
    fn both_parties_of_a_trade_are_told_on_their_own_connections() {
        let engine = engine();
        let (mut seller, mut buyer) = (Client::of(&engine), Client::of(&engine));
        seller.new_order(7, "sell", 100, 5);
        seller.hears(Answer::Accepted { id: 7 });
        buyer.new_order(7, "buy", 101, 3);
        buyer.hears(Answer::Accepted { id: 7 });
        buyer.hears(Answer::Fill { id: 7, price: 100, quantity: 3, left: 0 });
        seller.hears(Answer::Fill { id: 7, price: 100, quantity: 3, left: 2 });
        seller.say("{\"type\":\"cancel\",\"id\":7}\n{\"type\":\"cancel\",\"id\":7}\n");
        seller.hears(Answer::Cancelled { id: 7, left: 2 });
        seller.hears(rejected(Some(7), Reason::UnknownOrder));
        wait_until("the count", || engine.orders() == 4);
    }

    #[test]
    fn orders_of_a_session_are_cancelled_when_it_ends_whichever_way() {
        let engine = engine();
        let (mut leaves, mut stays) = (Client::of(&engine), Client::of(&engine));
        leaves.new_order(1, "buy", 100, 5);
        leaves.hears(Answer::Accepted { id: 1 });
        stays.new_order(1, "buy", 99, 5);
        stays.hears(Answer::Accepted { id: 1 });
        SockRef::from(leaves.reader.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(leaves);
        wait_until("the cancel", || engine.resting() == 1 && engine.sessions() == 1);
        stays.new_order(2, "sell", 100, 5);
        stays.hears(Answer::Accepted { id: 2 });
        assert_eq!(engine.resting(), 2, "nothing is left at 100 to trade with");
    }

    #[test]
    fn a_bad_line_costs_a_reject_and_a_long_one_the_connection() {
        let engine = engine();
        let mut client = Client::of(&engine);
        client.say("what?\n");
        client.hears(rejected(None, Reason::Unreadable));
        client.new_order(1, "buy", 0, 5);
        client.hears(rejected(Some(1), Reason::BadPrice));
        client.say(&"x".repeat(10 * READ_BYTES));
        client.hears(rejected(None, Reason::LineTooLong));
        client.hears_the_end();
    }

    #[test]
    fn more_connections_than_the_bound_are_turned_away_with_a_word() {
        let engine = engine();
        let (stream, _other) = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap())
        };
        let outbox = Arc::new(Outbox::new(stream));
        for _ in 0..limits::ENGINE_CONNECTIONS_MAX {
            engine.shared.enter(&outbox).unwrap();
        }
        let mut late = Client::of(&engine);
        late.hears(rejected(None, Reason::EngineFull));
        late.hears_the_end();
        engine.shared.leave(1);
        let mut next = Client::of(&engine);
        next.new_order(1, "buy", 100, 5);
        next.hears(Answer::Accepted { id: 1 });
    }

    #[test]
    fn half_a_line_at_the_end_is_no_order_and_pending_answers_still_come() {
        let engine = engine();
        let mut client = Client::of(&engine);
        client.new_order(1, "buy", 100, 5);
        client.say("{\"type\":\"cancel\",\"id\":1}");
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        client.hears(Answer::Accepted { id: 1 });
        client.hears_the_end();
        wait_until("the cancel", || engine.resting() == 0);
        assert_eq!(engine.orders(), 1);
    }

    #[test]
    fn stopping_ends_the_sessions_and_leaves_no_thread() {
        let engine = engine();
        let name = format!("engine-{}", engine.address().port());
        let mut clients: Vec<Client> = (0..8).map(|_| Client::of(&engine)).collect();
        wait_until("the sessions", || engine.sessions() == 8);
        let threads = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
            names.filter(|n| n.trim() == name).count()
        };
        wait_until("the threads", || threads() == 9);
        let shared = Arc::clone(&engine.shared);
        engine.stop();
        assert_eq!(shared.sessions.load(Relaxed), 0);
        clients.iter_mut().for_each(Client::hears_the_end);
        // The kernel takes a thread off the list a moment after it can be joined.
        wait_until("the end of the threads", || threads() == 0);
    }
}
