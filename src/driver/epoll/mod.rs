//! epoll: the same work as [`uring`](super::uring) by readiness, where io_uring is forbidden or rolled back.
//!
//! Every session socket is watched once, edge-triggered, for both directions. What the kernel reports is remembered in
//! the side's `watch`; an operation that was asked for is tried when its side is known to be ready, and gives its
//! completion then. So a message costs one `epoll_wait` (shared by all that are ready), one `recv` and one `send`.

mod watch;

use super::direct;
use super::favours::{self, CardPolling, Reads};
use super::pool::{BufferId, Pool};
use super::sys::{self, EventFd};
use super::wide::Wide;
use super::{
    Arm, Carried, Completion, Counters, Driver, Errno, Interest, Key, Kind, ListenerId, Op,
    Received, Side, Socket, Stride, Waker, Way,
};
use crate::config::{Tcp, limits};
use crate::time::Time;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use watch::{Want, Watch};

/// The epoll driver.
#[derive(Debug)]
pub struct Epoll {
    poller: i32,
    wake: Arc<EventFd>,
    events: Vec<libc::epoll_event>,
    pool: Pool,
    wide: Wide,
    reads: Reads,
    watches: Vec<[Watch; 2]>,
    listeners: Vec<(ListenerId, i32)>,
    /// Sides that may be able to go on, each at most once.
    ready: VecDeque<(u32, Side)>,
    /// How many of them are visited before the kernel is asked again: a side that could go on for ever waits like all.
    visits: usize,
    /// Listeners with clients waiting.
    knocking: VecDeque<ListenerId>,
    /// Completions that need no kernel any more.
    done: VecDeque<Completion>,
    now: Time,
    counters: Counters,
}

/// `epoll_event.data` of the waker and, in the upper half, of listeners; sessions have their slot and generation.
const WAKER: u64 = u64::MAX;
const LISTENER: u64 = 1 << 63;

impl Epoll {
    /// A driver with `buffers` receive buffers of `buffer_bytes`.
    ///
    /// # Errors
    /// Where descriptors or memory ran out.
    pub fn new(buffers: u16, buffer_bytes: u32) -> io::Result<Self> {
        // SAFETY: takes and returns numbers.
        let poller = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if poller < 0 {
            return Err(io::Error::last_os_error());
        }
        let wake = EventFd::new()?;
        let driver = Self {
            poller,
            wake: Arc::new(wake),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; limits::EPOLL_EVENTS_PER_TURN],
            pool: Pool::new(buffers, buffer_bytes)?,
            wide: Wide::default(),
            reads: Reads::default(),
            watches: Vec::new(),
            listeners: Vec::new(),
            ready: VecDeque::new(),
            visits: 0,
            knocking: VecDeque::new(),
            done: VecDeque::new(),
            now: sys::now(),
            counters: Counters::default(),
        };
        driver.control(libc::EPOLL_CTL_ADD, driver.wake.fd(), libc::EPOLLIN, WAKER)?;
        Ok(driver)
    }

    #[expect(clippy::cast_sign_loss, reason = "event masks are bits")]
    fn control(&self, what: i32, fd: i32, events: i32, data: u64) -> Result<(), Errno> {
        let mut event = libc::epoll_event { events: events as u32, u64: data };
        // SAFETY: `event` outlives the call.
        let result = unsafe { libc::epoll_ctl(self.poller, what, fd, &raw mut event) };
        if result < 0 { Err(sys::last_errno()) } else { Ok(()) }
    }

    /// The watch of a side. Its socket must have been attached.
    fn watch(&mut self, key: Key, side: Side) -> &mut Watch {
        let watch = &mut self.watches[key.slot as usize][side as usize];
        debug_assert!(watch.is_of(key), "{side:?} of slot {} is not attached", key.slot);
        watch
    }

    /// Puts a side into the queue if it has something to do that its socket is ready for.
    fn visit_later(&mut self, slot: u32, side: Side) {
        let watch = &mut self.watches[slot as usize][side as usize];
        if !watch.queued && watch.can_move() {
            watch.queued = true;
            self.ready.push_back((slot, side));
        }
    }

    /// Notes what the kernel said of one side.
    fn heard(&mut self, data: u64, events: u32) {
        let (slot, side, generation) = watch::decode(data);
        let Some(watch) = self.watches.get_mut(slot as usize).map(|w| &mut w[side as usize]) else {
            return;
        };
        if watch.generation == generation {
            watch.heard(events);
            self.visit_later(slot, side);
        }
    }

    /// Does the next thing a side can do.
    fn visit(&mut self, slot: u32, side: Side) -> Option<Completion> {
        let watch = &mut self.watches[slot as usize][side as usize];
        watch.queued = false;
        let key = Key { slot, generation: watch.generation };
        let completion = match watch.next_move()? {
            Want::Connect => {
                watch.connecting = false;
                Completion::Connected { key, result: sys::take_error(watch.fd) }
            }
            Want::Send => {
                self.go_on_sending(key, side);
                self.visit_later(slot, side);
                return None;
            }
            Want::Recv => self.receive(key, side)?,
            Want::Poll => {
                watch.poll = None;
                Completion::Polled { key, side, result: Ok(()) }
            }
        };
        self.visit_later(slot, side);
        Some(completion)
    }

    fn receive(&mut self, key: Key, side: Side) -> Option<Completion> {
        let watch = &mut self.watches[key.slot as usize][side as usize];
        let Some(buffer) = self.pool.take() else {
            self.counters.no_buffers += 1;
            watch.recv = None;
            let what = Received::Failed(Errno::NO_BUFFERS);
            return Some(Completion::Received { key, side, what, more: false });
        };
        let what = match sys::recv(watch.fd, self.pool.spare_mut(buffer)) {
            Ok(Some(n)) if n > 0 => {
                let filled = u32::try_from(n).unwrap_or(u32::MAX);
                self.pool.set_filled(buffer, filled);
                let more = watch.received(filled, filled < self.pool.buffer_bytes());
                return Some(Completion::Received {
                    key,
                    side,
                    what: Received::Bytes(buffer),
                    more,
                });
            }
            Ok(Some(_)) => Received::End,
            Err(e) => Received::Failed(e),
            Ok(None) => {
                watch.readable = false;
                self.pool.give_back(buffer);
                self.visit_later(key.slot, side);
                return None;
            }
        };
        watch.recv = None;
        self.pool.give_back(buffer);
        Some(Completion::Received { key, side, what, more: false })
    }

    /// Sends on. Whether the send is over; its completions are in `done` then.
    fn go_on_sending(&mut self, key: Key, side: Side) -> bool {
        let watch = &mut self.watches[key.slot as usize][side as usize];
        let Some((buffer, sent)) = watch.send else { return true };
        let bytes = self.pool.bytes(buffer);
        let result = match sys::send(watch.fd, &bytes[sent as usize..]) {
            Ok(n) => {
                let sent = sent + u32::try_from(n).unwrap_or(u32::MAX);
                if (sent as usize) < bytes.len() {
                    watch.send = Some((buffer, sent));
                    watch.writable = false;
                    return false;
                }
                Ok(sent)
            }
            Err(_) if sent > 0 => Ok(sent),
            Err(e) => Err(e),
        };
        let whole = result.is_ok_and(|sent| sent as usize == bytes.len());
        self.end_send(key, side, result, whole);
        true
    }

    /// Reports a send, and begins the receive that was linked to it or says that it will not come.
    fn end_send(&mut self, key: Key, side: Side, result: Result<u32, Errno>, whole: bool) {
        let watch = self.watch(key, side);
        watch.send = None;
        let linked = std::mem::take(&mut watch.then_recv);
        self.done.push_back(Completion::Sent { key, side, result });
        if linked && whole {
            self.watch(key, side.other()).recv = Some(0);
            self.visit_later(key.slot, side.other());
        } else if linked {
            self.done.push_back(cancelled_receive(key, side.other()));
        }
    }

    fn knock(&mut self, listener: ListenerId) -> Option<Completion> {
        let (_, fd) = *self.listeners.iter().find(|(id, _)| *id == listener)?;
        match sys::accept(fd) {
            Ok(None) => None,
            Ok(Some(client)) => {
                self.knocking.push_back(listener);
                Some(Completion::Accepted { listener, result: Ok(client), more: true })
            }
            Err(e) => {
                let more = !e.is_exhaustion();
                if !more {
                    self.forget_listener(listener);
                }
                Some(Completion::Accepted { listener, result: Err(e), more })
            }
        }
    }

    fn forget_listener(&mut self, listener: ListenerId) -> bool {
        let Some(at) = self.listeners.iter().position(|(id, _)| *id == listener) else {
            return false;
        };
        let (_, fd) = self.listeners.swap_remove(at);
        self.knocking.retain(|id| *id != listener);
        // It fails only where the socket is closed already, and then the kernel has forgotten it.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
        true
    }

    /// Milliseconds epoll_wait may sleep, rounded up so that it does not spin before a deadline.
    fn sleep_ms(&self, until: Option<Time>) -> i32 {
        if !(self.done.is_empty() && self.ready.is_empty() && self.knocking.is_empty()) {
            return 0;
        }
        until.map_or(-1, |until| {
            i32::try_from(until.since_ns(sys::now()).div_ceil(1_000_000)).unwrap_or(i32::MAX)
        })
    }
}

impl Driver for Epoll {
    fn kind(&self) -> Kind {
        Kind::Epoll
    }

    fn counts_credit(&self) -> bool {
        true
    }

    fn now(&self) -> Time {
        self.now
    }

    fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    fn trim(&mut self) {
        self.pool.trim();
        self.wide.trim();
        let in_use = |pair: &[Watch; 2]| pair.iter().any(|watch| watch.fd >= 0 || watch.queued);
        let used = self.watches.iter().rposition(in_use).map_or(0, |last| last + 1);
        self.watches.truncate(used);
        if self.watches.capacity() > 4 * used {
            self.watches.shrink_to(2 * used);
        }
    }

    fn counters(&self) -> Counters {
        self.wide.counted(self.counters)
    }

    fn waker(&self) -> Waker {
        Arc::<EventFd>::clone(&self.wake)
    }

    fn accept(&mut self, listener: ListenerId, socket: &Socket) {
        let data = LISTENER | u64::from(listener.0);
        match self.control(libc::EPOLL_CTL_ADD, socket.0, libc::EPOLLIN, data) {
            Ok(()) => self.listeners.push((listener, socket.0)),
            Err(e) => {
                self.done.push_back(Completion::Accepted { listener, result: Err(e), more: false })
            }
        }
    }

    fn stop_accepting(&mut self, listener: ListenerId) {
        if self.forget_listener(listener) {
            let result = Err(Errno::CANCELED);
            self.done.push_back(Completion::Accepted { listener, result, more: false });
        }
    }

    fn socket(&mut self, address: SocketAddr, tcp: &Tcp) -> Result<Socket, Errno> {
        sys::socket(address, tcp).map(|socket| self.reads.of(socket))
    }

    fn poll_card(&mut self, us: u32) -> CardPolling {
        let reads = Reads::try_for(us).map(|reads| self.reads = reads);
        CardPolling { waits: favours::poll_in_waits(self.poller, us), reads }
    }

    fn guard(&mut self, socket: &Socket, tcp: &Tcp) -> Result<(), Errno> {
        sys::guard(socket.0, tcp)
    }

    fn attach(&mut self, key: Key, side: Side, socket: &Socket) -> Result<(), Errno> {
        let events = libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLOUT | libc::EPOLLRDHUP;
        let events = events | libc::EPOLLET;
        self.control(libc::EPOLL_CTL_ADD, socket.0, events, watch::encode(key, side))?;
        let slot = key.slot as usize;
        if self.watches.len() <= slot {
            self.watches.resize_with(slot + 1, Default::default);
        }
        self.watches[slot][side as usize].become_new(Watch::new(key, socket.0));
        Ok(())
    }

    fn detach(&mut self, key: Key, side: Side, socket: &Socket) {
        debug_assert!(!self.watch(key, side).in_flight(), "{side:?} is detached while in flight");
        self.watch(key, side).become_new(Watch::default());
        // It fails only where the socket is not watched, which is what was wanted.
        let _ = self.control(libc::EPOLL_CTL_DEL, socket.0, 0, 0);
    }

    fn connect(&mut self, key: Key, socket: &Socket, address: SocketAddr) {
        match sys::connect(socket.0, address) {
            Ok(false) => self.watch(key, Side::Backend).connecting = true,
            now => {
                self.done.push_back(Completion::Connected { key, result: now.map(drop) });
            }
        }
    }

    fn arm_recv(&mut self, key: Key, side: Side, _socket: &Socket, arm: Arm) {
        let watch = self.watch(key, side);
        debug_assert!(watch.recv.is_none(), "a second receive of {side:?}");
        watch.recv = Some(match arm {
            Arm::Once => 0,
            Arm::Multi(credit) => credit,
        });
        self.visit_later(key.slot, side);
    }

    fn send(&mut self, key: Key, side: Side, _socket: &Socket, buffer: BufferId) {
        let watch = self.watch(key, side);
        debug_assert!(watch.send.is_none(), "a second send to {side:?}");
        watch.send = Some((buffer, 0));
        if !self.go_on_sending(key, side) {
            self.counters.sends_blocked += 1;
        }
    }

    fn send_then_recv(
        &mut self,
        key: Key,
        side: Side,
        socket: &Socket,
        buffer: BufferId,
        _source: &Socket,
    ) {
        self.watch(key, side).then_recv = true;
        self.send(key, side, socket, buffer);
    }

    fn arm_poll(&mut self, key: Key, side: Side, _socket: &Socket, interest: Interest) {
        let watch = self.watch(key, side);
        debug_assert!(watch.poll.is_none(), "a second poll of {side:?}");
        watch.poll = Some(interest);
        self.visit_later(key.slot, side);
    }

    fn recv_now(&mut self, _key: Key, _side: Side, socket: &Socket) -> Option<Received> {
        direct::recv(socket.0, &mut self.pool)
    }

    fn send_now(&mut self, socket: &Socket, buffer: BufferId) -> Result<u32, Errno> {
        direct::send(socket.0, &self.pool, buffer)
    }

    fn read_clock(&mut self) -> Time {
        self.now = sys::now();
        self.now
    }

    fn has_plain_calls(&self) -> bool {
        true
    }

    fn carry_wide(
        &mut self,
        key: Key,
        source: Side,
        from: &Socket,
        to: &Socket,
        stride: Stride,
    ) -> Carried {
        let by = if self.watch(key, source).urgent { Way::Buffer } else { stride.by };
        let stride = Stride { by, ..stride };
        let (carried, seen) = self.wide.carry(from.0, to.0, &mut self.pool, stride);
        let watch = self.watch(key, source);
        let stopped_short = watch.urgent && carried.taken > 0;
        watch.readable = !seen.dry || watch.ended || stopped_short;
        carried
    }

    fn cancel(&mut self, key: Key, op: Op) {
        let cancelled = match op {
            Op::Connect => {
                let was = std::mem::take(&mut self.watch(key, Side::Backend).connecting);
                was.then_some(Completion::Connected { key, result: Err(Errno::CANCELED) })
            }
            Op::Recv(side) => {
                let was = self.watch(key, side).recv.take();
                was.map(|_| cancelled_receive(key, side))
            }
            Op::Send(side) => {
                if let Some((_, sent)) = self.watch(key, side).send {
                    let result = if sent > 0 { Ok(sent) } else { Err(Errno::CANCELED) };
                    self.end_send(key, side, result, false);
                }
                None
            }
            Op::Poll(side) => self.watch(key, side).poll.take().map(|_| Completion::Polled {
                key,
                side,
                result: Err(Errno::CANCELED),
            }),
        };
        self.done.extend(cancelled);
    }

    fn finish(&mut self, socket: &Socket) -> Result<(), Errno> {
        sys::finish(socket.0)
    }

    fn take_error(&mut self, socket: &Socket) -> Result<(), Errno> {
        sys::take_error(socket.0)
    }

    fn stands(&mut self, socket: &Socket) -> bool {
        sys::stands(socket.0)
    }

    fn abort(&mut self, socket: &Socket) {
        sys::abort(socket.0);
    }

    fn close(&mut self, attached: Option<(Key, Side)>, socket: Socket) {
        if let Some((key, side)) = attached {
            debug_assert!(!self.watch(key, side).in_flight(), "{side:?} is closed while in flight");
            self.watch(key, side).become_new(Watch::default());
        }
        sys::close(socket.0);
    }

    fn client_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        sys::far_address(socket.0)
    }

    fn local_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        sys::near_address(socket.0)
    }

    fn is_its_own_end(&self, socket: &Socket, address: SocketAddr) -> bool {
        sys::is_its_own_end(socket.0, address)
    }

    fn turn(&mut self, until: Option<Time>) -> io::Result<()> {
        let sleep_ms = self.sleep_ms(until);
        let room = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        // SAFETY: the kernel writes at most `room` events to `events`, which outlives the call.
        let n = unsafe { libc::epoll_wait(self.poller, self.events.as_mut_ptr(), room, sleep_ms) };
        self.now = sys::now();
        self.counters.enters += 1;
        self.visits = self.ready.len();
        let Ok(n) = usize::try_from(n) else {
            let e = io::Error::last_os_error();
            return if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) };
        };
        self.counters.completions += n as u64;
        for i in 0..n {
            let libc::epoll_event { events, u64: data } = self.events[i];
            if data == WAKER {
                self.wake.clear();
                self.done.push_back(Completion::Woken);
            } else if data & LISTENER != 0 {
                #[expect(clippy::cast_possible_truncation, reason = "the id was put there")]
                let listener = ListenerId(data as u16);
                if !self.knocking.contains(&listener) {
                    self.knocking.push_back(listener);
                }
            } else {
                self.heard(data, events);
            }
        }
        self.visits = self.ready.len();
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Some(done);
            }
            let completion = if self.visits > 0 {
                self.visits -= 1;
                let (slot, side) = self.ready.pop_front()?;
                self.visit(slot, side)
            } else {
                let listener = self.knocking.pop_front()?;
                self.knock(listener)
            };
            if completion.is_some() {
                return completion;
            }
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        sys::close(self.poller);
    }
}

fn cancelled_receive(key: Key, side: Side) -> Completion {
    Completion::Received { key, side, what: Received::Failed(Errno::CANCELED), more: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::contract::contract_tests;
    use crate::driver::contract::loopback::{Fresh, Loopback};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    impl Fresh for Epoll {
        fn fresh(buffers: u16, buffer_bytes: u32) -> Option<Self> {
            Some(Self::new(buffers, buffer_bytes).expect("epoll is everywhere"))
        }
    }

    contract_tests!(Loopback<Epoll>);

    #[test]
    fn a_side_that_is_gone_keeps_its_one_place_in_the_queue() {
        let mut epoll = Epoll::fresh(128, 4096).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        let socket = Socket(near.as_raw_fd());
        let key = |generation| Key { slot: 7, generation };
        far.write_all(b"something").unwrap();
        epoll.attach(key(0), Side::Client, &socket).unwrap();
        epoll.turn(None).unwrap();
        for generation in 0..2 {
            epoll.arm_recv(key(generation), Side::Client, &socket, Arm::Once);
            epoll.cancel(key(generation), Op::Recv(Side::Client));
            assert!(matches!(epoll.next(), Some(Completion::Received { more: false, .. })));
            epoll.detach(key(generation), Side::Client, &socket);
            if generation == 0 {
                epoll.attach(key(1), Side::Client, &socket).unwrap();
                epoll.heard(watch::encode(key(1), Side::Client), libc::EPOLLIN as u32);
            }
        }
        assert_eq!(epoll.ready.len(), 1, "{:?}", epoll.ready);
        epoll.trim();
        let now = epoll.now();
        epoll.turn(Some(now)).unwrap();
        assert!(epoll.next().is_none(), "nothing was asked for");
        epoll.trim();
        assert!(epoll.watches.is_empty(), "it is forgotten after its turn");
    }
}
