//! io_uring: one ring for each shard, entered once a turn.
//!
//! DEFER_TASKRUN and SINGLE_ISSUER (Linux 6.1): completions are worked off in the shard's own thread, when it enters,
//! which is the largest single saving there is. Receives take their buffers from a provided-buffer ring, so an idle
//! receive holds none. Descriptors are ordinary ones, for shutdown(2) and handing over need them. A FIN is sent by
//! shutdown(2), since the ring's own operation for it always goes to a worker thread.

mod closing;
#[cfg(test)]
mod full;
#[cfg(test)]
mod tests;
mod token;
mod watch;
mod window;

use super::direct;
use super::favours::{CardPolling, Reads};
use super::pool::{BufferId, Pool};
use super::ring::build_ring;
use super::sys::{self, EventFd, RawAddress};
use super::wide::Wide;
use super::{
    Arm, Carried, Completion, Counters, Driver, Errno, Interest, Key, Kind, ListenerId, Op,
    Received, Side, Socket, Stride, Waker, Way,
};
use crate::config::{Tcp, limits};
use crate::time::Time;
use closing::Closing;
use io_uring::types::{Fd, Napi, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter};
use io_uring::{cqueue, opcode, squeue};
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::sync::Arc;
use token::Token;
use watch::{Again, Heard, Watches};
use window::Window;

/// The io_uring driver.
pub struct Uring {
    submitter: Submitter<'static>,
    /// The queues write to the ring's memory when they are dropped, so they are not: the ring is, in `drop`.
    sq: ManuallyDrop<SubmissionQueue<'static>>,
    cq: ManuallyDrop<CompletionQueue<'static>>,
    /// What the three above borrow.
    ring: *mut IoUring,
    window: Window,
    pool: Pool,
    wide: Wide,
    reads: Reads,
    wake: Arc<EventFd>,
    /// Where the kernel writes the waker's count.
    wake_count: Box<u64>,
    /// Addresses of connects that may not have been submitted yet; one for each place in the submission queue.
    addresses: Box<[RawAddress]>,
    address_next: usize,
    watches: Watches,
    /// Completions of the last turn that nobody has taken yet. Those that came since wait for the next one.
    told: usize,
    credit: bool,
    now: Time,
    /// Whether the last turn brought few completions.
    sparse: bool,
    /// Entries that the submission queue has taken.
    entries: u64,
    closing: Closing,
    /// Calls into the kernel that failed, since the last that did not.
    failures: u32,
    counters: Counters,
}

/// IORING_RECVSEND_POLL_FIRST: wait for readiness before the first attempt.
const POLL_FIRST: u16 = 1;

impl Uring {
    /// A ring with `buffers` receive buffers of `buffer_bytes`. `credit`: whether this kernel ends a multishot receive
    /// at a byte limit (6.17), which the probe found out.
    ///
    /// # Errors
    /// Where the kernel or the sandbox refuses io_uring, or locked memory ran out at the smallest size.
    pub fn new(buffers: u16, buffer_bytes: u32, credit: bool) -> io::Result<Self> {
        let completions_each = limits::CQ_ENTRIES / limits::SQ_ENTRIES;
        let ring = build_ring(limits::SQ_ENTRIES, completions_each)?;
        Self::with_ring(ring, buffers, buffer_bytes, credit)
    }

    fn with_ring(
        built: IoUring,
        buffers: u16,
        buffer_bytes: u32,
        credit: bool,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new()?);
        let pool = Pool::new(buffers, buffer_bytes)?;
        let window = Window::new(&built.submitter(), buffers)?;
        let ring = Box::into_raw(Box::new(built));
        // SAFETY: `ring` was just leaked, so it lives until `drop`, where these three are dropped before it is freed.
        let (submitter, sq, cq) = unsafe { &mut *ring }.split();
        let addresses = vec![RawAddress::empty(); sq.capacity()].into_boxed_slice();
        let mut driver = Self {
            submitter,
            sq: ManuallyDrop::new(sq),
            cq: ManuallyDrop::new(cq),
            ring,
            window,
            pool,
            wide: Wide::default(),
            reads: Reads::default(),
            wake,
            wake_count: Box::new(0),
            addresses,
            address_next: 0,
            watches: Watches::default(),
            told: 0,
            credit,
            now: sys::now(),
            sparse: false,
            entries: 0,
            closing: Closing::default(),
            failures: 0,
            counters: Counters::default(),
        };
        driver.arm_wake();
        Ok(driver)
    }

    fn arm_wake(&mut self) {
        let count = std::ptr::from_mut(&mut *self.wake_count).cast();
        let entry = opcode::Read::new(Fd(self.wake.fd()), count, 8).build();
        self.push(entry, Token::Wake.encode());
    }

    fn push(&mut self, entry: squeue::Entry, token: u64) {
        let entry = entry.user_data(token);
        self.make_room(1);
        // SAFETY: what the entry points to outlives it: buffers are the pool's and stay lent until their completion,
        // addresses keep their place until the queue they stand in was submitted, the waker's count is freed after the
        // ring.
        let pushed = unsafe { self.sq.push(&entry) };
        debug_assert!(pushed.is_ok(), "there was room");
        self.entries += 1;
    }

    fn room(&self) -> usize {
        self.sq.capacity() - self.sq.len()
    }

    /// Has the queue hold so many entries more: submits what stands in it, without waiting, where it does not.
    fn make_room(&mut self, entries: usize) {
        if self.room() < entries {
            self.submit_for(entries);
        }
    }

    #[cold]
    #[expect(clippy::cast_possible_truncation, reason = "the queue has at most 32768 places")]
    fn submit_for(&mut self, entries: usize) {
        self.counters.sq_full += 1;
        while self.room() < entries {
            // The places of completions that were taken are free for those that come of this.
            self.cq.sync();
            self.sq.sync();
            let waiting = self.sq.len() as u32;
            self.counters.enters += 1;
            // SAFETY: no argument is passed, so none can dangle.
            let entered = unsafe { self.submitter.enter::<libc::sigset_t>(waiting, 0, 0, None) };
            self.sq.sync();
            if entered.is_err() && self.room() < entries {
                // EBUSY or EAGAIN: the kernel wants completions to be taken first. It keeps those that do not fit.
                let flags = EnterFlags::GETEVENTS.bits();
                // SAFETY: as above.
                let again =
                    unsafe { self.submitter.enter::<libc::sigset_t>(waiting, 0, flags, None) };
                self.sq.sync();
                // There is nowhere to put the entry: the shard fails, rather than look for room for ever.
                self.judge(again).expect("the ring takes entries");
            }
        }
    }

    /// What a call into the kernel means. One that fails for no reason that passes by itself is counted and tried again
    /// a moment later, so that control has time to take the sessions elsewhere; EBADR says that completions were lost.
    fn judge(&mut self, entered: io::Result<usize>) -> io::Result<()> {
        let Err(e) = entered else {
            self.failures = 0;
            return Ok(());
        };
        match e.raw_os_error() {
            // Nothing came in time, a signal came, or completions must be taken before more is submitted, which is
            // next.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => return Ok(()),
            Some(libc::EBADR) => return Err(e),
            _ => {}
        }
        self.counters.enter_failed += 1;
        self.failures += 1;
        if self.failures > limits::ENTER_FAILURES_MAX {
            return Err(e);
        }
        sys::rest(limits::ENTER_REST_MS);
        Ok(())
    }

    fn decode(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (result, flags) = (entry.result(), entry.flags());
        let more = cqueue::more(flags);
        let number = number_of(result);
        Some(match Token::decode(entry.user_data())? {
            Token::Wake => {
                self.arm_wake();
                Completion::Woken
            }
            Token::Accept(listener) => {
                Completion::Accepted { listener, result: number.map(|_| Socket(result)), more }
            }
            Token::Connect(key) => Completion::Connected { key, result: number.map(drop) },
            Token::Recv(key, side) => {
                let buffer = cqueue::buffer_select(flags).map(|buffer| BufferId(buffer.into()));
                Completion::Received { key, side, what: self.received(number, buffer), more }
            }
            Token::Send(key, side) => Completion::Sent { key, side, result: number },
            Token::Poll(key, side) => {
                let result = self.polled(entry.user_data(), number, more)?;
                Completion::Polled { key, side, result }
            }
        })
    }

    /// The end of a poll. `None`: it goes on.
    fn polled(
        &mut self,
        token: u64,
        result: Result<u32, Errno>,
        more: bool,
    ) -> Option<Result<(), Errno>> {
        match self.watches.hear(token, result, more) {
            Some(Heard::GoesOn) => None,
            Some(Heard::Enough) => {
                self.push(opcode::AsyncCancel::new(token).build(), Token::UNHEARD);
                None
            }
            Some(Heard::Over(result)) => Some(result),
            None => Some(result.map(drop)),
        }
    }

    /// Arms polls again that a full queue cut short: not while it is full, and no more at once than it has room for.
    fn watch_again(&mut self) {
        if self.sq.cq_overflow() {
            return;
        }
        for _ in 0..self.cq.capacity() / 4 {
            let Some(Again { token, fd, unwanted }) = self.watches.again() else { break };
            self.push(opcode::PollAdd::new(Fd(fd), 0).multi(true).build(), token);
            if unwanted {
                self.push(opcode::AsyncCancel::new(token).build(), Token::UNHEARD);
            }
        }
    }

    fn received(&mut self, result: Result<u32, Errno>, buffer: Option<BufferId>) -> Received {
        if let Some(buffer) = buffer {
            self.window.taken(&mut self.pool);
            match result {
                Ok(n) if n > 0 => {
                    self.pool.set_filled(buffer, n);
                    return Received::Bytes(buffer);
                }
                _ => self.pool.give_back(buffer),
            }
        }
        match result {
            Ok(_) => Received::End,
            // The kernel could not wait for readiness for want of memory: the receive is to be armed again, later.
            Err(Errno(libc::EAGAIN)) => Received::Failed(Errno::NO_BUFFERS),
            Err(Errno::NO_BUFFERS) => {
                self.counters.no_buffers += 1;
                self.window.ran_dry();
                Received::Failed(Errno::NO_BUFFERS)
            }
            Err(e) => Received::Failed(e),
        }
    }

    /// Whether nothing that was received waits to be read. A buffer counts as published until its completion is read:
    /// while one is unread, some hold what was received.
    fn is_read(&mut self) -> bool {
        self.cq.sync();
        self.cq.is_empty() && !self.sq.cq_overflow()
    }

    /// A receive that takes its buffer from the window.
    fn receive_entry(socket: &Socket, arm: Arm) -> squeue::Entry {
        match arm {
            Arm::Once => opcode::Recv::new(Fd(socket.0), std::ptr::null_mut(), 0)
                .buf_group(window::GROUP)
                .ioprio(POLL_FIRST)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
            Arm::Multi(credit) => {
                let mut entry = opcode::RecvMulti::new(Fd(socket.0), window::GROUP).build();
                token::wait_and_limit(&mut entry, credit);
                entry
            }
        }
    }

    fn send_entry(&self, socket: &Socket, buffer: BufferId) -> squeue::Entry {
        let (bytes, len) = self.pool.filled_at(buffer);
        opcode::Send::new(Fd(socket.0), bytes, len)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
    }
}

impl Driver for Uring {
    fn kind(&self) -> Kind {
        Kind::Uring
    }

    fn counts_credit(&self) -> bool {
        self.credit
    }

    fn now(&self) -> Time {
        self.now
    }

    fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    fn trim(&mut self) {
        self.pool.trim();
        if self.is_read() {
            self.window.trim();
        }
        self.wide.trim();
    }

    fn trim_on(&mut self) -> bool {
        let mut room = self.pool.trim_room();
        let more = self.pool.trim_on(&mut room);
        if self.window.trims() && self.is_read() {
            self.window.trim_on(&mut self.pool, &mut room);
        }
        more || self.window.trims()
    }

    fn counters(&self) -> Counters {
        self.wide.counted(self.counters)
    }

    fn waker(&self) -> Waker {
        Arc::<EventFd>::clone(&self.wake)
    }

    fn accept(&mut self, listener: ListenerId, socket: &Socket) {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let entry = opcode::AcceptMulti::new(Fd(socket.0)).flags(flags).build();
        self.push(entry, Token::Accept(listener).encode());
    }

    fn stop_accepting(&mut self, listener: ListenerId) {
        let target = Token::Accept(listener).encode();
        self.push(opcode::AsyncCancel::new(target).build(), Token::UNHEARD);
    }

    fn socket(&mut self, address: SocketAddr, tcp: &Tcp) -> Result<Socket, Errno> {
        sys::socket(address, tcp).map(|socket| self.reads.of(socket))
    }

    fn poll_card(&mut self, us: u32) -> CardPolling {
        let reads = Reads::try_for(us).map(|reads| self.reads = reads);
        let mut napi = Napi::new().set_busy_poll_timeout(us);
        CardPolling { waits: self.submitter.register_napi(&mut napi).map_err(Errno::from), reads }
    }

    fn guard(&mut self, socket: &Socket, tcp: &Tcp) -> Result<(), Errno> {
        sys::guard(socket.0, tcp)
    }

    fn attach(&mut self, _key: Key, _side: Side, _socket: &Socket) -> Result<(), Errno> {
        Ok(())
    }

    fn detach(&mut self, _key: Key, _side: Side, _socket: &Socket) {}

    fn connect(&mut self, key: Key, socket: &Socket, address: SocketAddr) {
        self.make_room(1);
        // The queue is no longer than this, so the place taken now is free again: its entry was submitted, and the
        // kernel copies an address when it takes the entry (IORING_FEAT_SUBMIT_STABLE, 5.5).
        let at = self.address_next % self.addresses.len();
        self.address_next = at + 1;
        self.addresses[at] = RawAddress::new(address);
        let raw = &self.addresses[at];
        let entry = opcode::Connect::new(Fd(socket.0), raw.as_ptr(), raw.len()).build();
        self.push(entry, Token::Connect(key).encode());
    }

    fn arm_recv(&mut self, key: Key, side: Side, socket: &Socket, arm: Arm) {
        self.push(Self::receive_entry(socket, arm), Token::Recv(key, side).encode());
    }

    fn send(&mut self, key: Key, side: Side, socket: &Socket, buffer: BufferId) {
        self.push(self.send_entry(socket, buffer), Token::Send(key, side).encode());
    }

    fn send_then_recv(
        &mut self,
        key: Key,
        side: Side,
        socket: &Socket,
        buffer: BufferId,
        source: &Socket,
    ) {
        // A chain that is cut by a submission is two chains, so both must find room at once.
        self.make_room(2);
        let send = self.send_entry(socket, buffer).flags(squeue::Flags::IO_LINK);
        self.push(send, Token::Send(key, side).encode());
        let recv = Self::receive_entry(source, Arm::Once);
        self.push(recv, Token::Recv(key, side.other()).encode());
    }

    #[expect(clippy::cast_sign_loss, reason = "event masks are bits")]
    fn arm_poll(&mut self, key: Key, side: Side, socket: &Socket, interest: Interest) {
        let events = match interest {
            Interest::Readable => libc::POLLIN | libc::POLLRDHUP,
            Interest::Writable => libc::POLLOUT,
            Interest::Gone => 0,
        };
        let until_gone = interest == Interest::Gone;
        let entry = opcode::PollAdd::new(Fd(socket.0), events as u32).multi(until_gone).build();
        let token = Token::Poll(key, side).encode();
        if until_gone {
            self.watches.begin(token, socket.0);
        }
        self.push(entry, token);
    }

    fn recv_now(&mut self, _key: Key, _side: Side, socket: &Socket) -> Option<Received> {
        direct::recv(socket.0, &mut self.pool)
    }

    fn send_now(&mut self, socket: &Socket, buffer: BufferId) -> Result<u32, Errno> {
        direct::send(socket.0, &self.pool, buffer)
    }

    fn sends_at_once(&mut self) -> bool {
        self.sparse
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
        _key: Key,
        _source: Side,
        from: &Socket,
        to: &Socket,
        stride: Stride,
    ) -> Carried {
        let (carried, seen) = self.wide.carry(from.0, to.0, &mut self.pool, stride);
        if !seen.dry || stride.by == Way::Buffer {
            return carried;
        }
        // Something is there, or nobody would ask. splice(2) stops at a mark of urgent data, which recv(2) passes.
        let stride = Stride { by: Way::Buffer, ..stride };
        self.wide.carry(from.0, to.0, &mut self.pool, stride).0
    }

    fn cancel(&mut self, key: Key, op: Op) {
        let target = match op {
            Op::Connect => Token::Connect(key),
            Op::Recv(side) => Token::Recv(key, side),
            Op::Send(side) => Token::Send(key, side),
            Op::Poll(side) => Token::Poll(key, side),
        };
        let target = target.encode();
        self.watches.cancelled(target);
        self.push(opcode::AsyncCancel::new(target).build(), Token::UNHEARD);
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

    fn close(&mut self, _attached: Option<(Key, Side)>, socket: Socket) {
        // A queue that is full may belong to a ring that takes no more, and who gives that up closes all it had.
        if !self.closing.has_room() || self.room() == 0 {
            return sys::close(socket.0);
        }
        self.push(Closing::entry(socket.0), Token::UNHEARD);
        self.closing.add(self.entries, socket.0);
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
        self.window.refill(&mut self.pool);
        // Looked at before the kernel is entered, which moves what did not fit to where there is room by now.
        self.counters.cq_overflow += u64::from(self.sq.cq_overflow());
        self.watch_again();
        let unread = !self.cq.is_empty() || self.watches.wait();
        self.cq.sync();
        self.sq.sync();
        let result = if unread || until.is_some_and(|until| until <= self.now) {
            let (waiting, flags) = (self.sq.len(), EnterFlags::GETEVENTS.bits());
            let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
            // SAFETY: no argument is passed, so none can dangle.
            unsafe { self.submitter.enter::<libc::sigset_t>(waiting, 0, flags, None) }
        } else if let Some(until) = until {
            // What was done since the clock was read took its time.
            let ns = until.since_ns(sys::now());
            let limit = Timespec::from(std::time::Duration::from_nanos(ns));
            self.submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
        } else {
            self.submitter.submit_and_wait(1)
        };
        self.now = sys::now();
        self.counters.enters += 1;
        self.sq.sync();
        self.cq.sync();
        self.counters.completions += (self.cq.len() - self.told) as u64;
        self.told = self.cq.len();
        self.sparse = self.told <= limits::SPARSE_COMPLETIONS_MAX;
        self.closing.taken(self.entries - self.sq.len() as u64);
        self.judge(result)
    }

    fn next(&mut self) -> Option<Completion> {
        while self.told > 0 {
            self.told -= 1;
            let entry = self.cq.next()?;
            if let Some(completion) = self.decode(&entry) {
                return Some(completion);
            }
        }
        None
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.sq.sync();
        self.closing.taken(self.entries - self.sq.len() as u64);
        self.closing.finish();
        // SAFETY: `new` leaked this box, and what borrows it is not used or dropped after this. The ring goes before
        // the pool and the window, whose memory the kernel may write to until then.
        drop(unsafe { Box::from_raw(self.ring) });
    }
}

/// What a completion's result says.
///
/// A send for which the kernel says again and again that there is room, and then finds none, goes on in a worker thread
/// of the kernel. Cancelled there it ends with EINTR (io_uring_prep_cancel(3), of EALREADY: "interrupted due to the
/// cancelation"), having sent nothing.
fn number_of(result: i32) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| match -result {
        libc::EINTR => Errno::CANCELED,
        error => Errno(error),
    })
}
