//! io_uring: one ring for each shard, entered once a turn.
//!
//! DEFER_TASKRUN and SINGLE_ISSUER (Linux 6.1): completions are worked off in the shard's own thread, when it enters,
//! which is the largest single saving there is. Receives take their buffers from a provided-buffer ring, so an idle
//! receive holds none. Descriptors are ordinary ones, for shutdown(2), close(2) and handing over need them. A FIN is
//! sent by shutdown(2), since the ring's own operation for it always goes to a worker thread.

mod token;
mod window;

use super::direct;
use super::favours::{CardPolling, Reads};
use super::pool::{BufferId, Pool};
use super::sys::{self, EventFd, RawAddress};
use super::wide::Wide;
use super::{
    Arm, Carried, Completion, Counters, Driver, Errno, Interest, Key, Kind, ListenerId, Op,
    Received, Side, Socket, Stride, Waker,
};
use crate::config::{Tcp, limits};
use crate::time::Time;
use io_uring::types::{Fd, Napi, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter};
use io_uring::{cqueue, opcode, squeue};
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::sync::Arc;
use token::Token;
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
    /// Polls for [`Interest::Gone`] that have seen it and are being taken back: their last completion says so.
    gone: Vec<u64>,
    credit: bool,
    now: Time,
    /// Whether the last turn brought one completion at most.
    sparse: bool,
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
        let built = build_ring()?;
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
            gone: Vec::new(),
            credit,
            now: sys::now(),
            sparse: false,
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
        if self.sq.is_full() {
            self.make_room();
        }
        // SAFETY: what the entry points to outlives it: buffers are the pool's and stay lent until their completion,
        // addresses keep their place until the queue they stand in was submitted, the waker's count is freed after the
        // ring.
        let pushed = unsafe { self.sq.push(&entry) };
        debug_assert!(pushed.is_ok(), "there was room");
    }

    /// Submits what stands in the queue, without waiting.
    #[expect(clippy::cast_possible_truncation, reason = "the queue has at most 32768 places")]
    fn make_room(&mut self) {
        self.counters.sq_full += 1;
        while self.sq.is_full() {
            self.sq.sync();
            let waiting = self.sq.len() as u32;
            self.counters.enters += 1;
            // SAFETY: no argument is passed, so none can dangle.
            let entered = unsafe { self.submitter.enter::<libc::sigset_t>(waiting, 0, 0, None) };
            self.sq.sync();
            if entered.is_err() && self.sq.is_full() {
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
    ///
    /// The kernel adds POLLRDHUP to every poll, so one for [`Interest::Gone`] also hears that the other end has merely
    /// finished sending. It is therefore a multishot poll, which does not hear the same thing twice, and is cancelled
    /// when it has heard what it waits for.
    fn polled(
        &mut self,
        token: u64,
        result: Result<u32, Errno>,
        more: bool,
    ) -> Option<Result<(), Errno>> {
        let known = self.gone.iter().position(|gone| *gone == token);
        if !more {
            let seen = known.map(|at| self.gone.swap_remove(at)).is_some();
            return Some(if seen { Ok(()) } else { result.map(drop) });
        }
        let is_gone =
            result.is_ok_and(|events| events & (libc::POLLHUP | libc::POLLERR) as u32 != 0);
        if is_gone && known.is_none() {
            self.gone.push(token);
            self.push(opcode::AsyncCancel::new(token).build(), Token::CANCEL);
        }
        None
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
                token::set_receive_limit(&mut entry, credit);
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
        self.window.trim(&mut self.pool);
        self.wide.trim();
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
        self.push(opcode::AsyncCancel::new(target).build(), Token::CANCEL);
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
        if self.sq.is_full() {
            self.make_room();
        }
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
        if self.sq.capacity() - self.sq.len() < 2 {
            self.make_room();
        }
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
        self.push(entry, Token::Poll(key, side).encode());
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
        let (carried, _) = self.wide.carry(from.0, to.0, &mut self.pool, stride);
        carried
    }

    fn cancel(&mut self, key: Key, op: Op) {
        let target = match op {
            Op::Connect => Token::Connect(key),
            Op::Recv(side) => Token::Recv(key, side),
            Op::Send(side) => Token::Send(key, side),
            Op::Poll(side) => Token::Poll(key, side),
        };
        self.push(opcode::AsyncCancel::new(target.encode()).build(), Token::CANCEL);
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
        sys::close(socket.0);
    }

    fn client_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        sys::far_address(socket.0)
    }

    fn local_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        sys::near_address(socket.0)
    }

    fn turn(&mut self, until: Option<Time>) -> io::Result<()> {
        self.window.refill(&mut self.pool);
        let unread = !self.cq.is_empty();
        self.cq.sync();
        self.sq.sync();
        let sleep_ns = until.map(|until| until.since_ns(self.now));
        let result = if unread || sleep_ns == Some(0) {
            let (waiting, flags) = (self.sq.len(), EnterFlags::GETEVENTS.bits());
            let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
            // SAFETY: no argument is passed, so none can dangle.
            unsafe { self.submitter.enter::<libc::sigset_t>(waiting, 0, flags, None) }
        } else if let Some(ns) = sleep_ns {
            let limit = Timespec::from(std::time::Duration::from_nanos(ns));
            self.submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
        } else {
            self.submitter.submit_and_wait(1)
        };
        self.now = sys::now();
        self.counters.enters += 1;
        self.sq.sync();
        self.cq.sync();
        self.sparse = self.cq.len() <= 1;
        self.counters.completions += self.cq.len() as u64;
        self.counters.cq_overflow += u64::from(self.sq.cq_overflow());
        self.judge(result)
    }

    fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.cq.next()?;
            if let Some(completion) = self.decode(&entry) {
                return Some(completion);
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
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

/// A ring, as large as locked memory allows.
fn build_ring() -> io::Result<IoUring> {
    let mut entries = limits::SQ_ENTRIES;
    let mut no_array = true;
    loop {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(entries * (limits::CQ_ENTRIES / limits::SQ_ENTRIES))
            .dontfork();
        if no_array {
            builder.setup_no_sqarray();
        }
        match builder.build(entries) {
            // NO_SQARRAY is of Linux 6.6.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && no_array => no_array = false,
            Err(e)
                if e.raw_os_error() == Some(libc::ENOMEM) && entries > limits::SQ_ENTRIES_MIN =>
            {
                entries /= 2;
            }
            built => return built,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::contract::contract_tests;
    use crate::driver::contract::loopback::{Fresh, Loopback};

    impl Fresh for Uring {
        fn fresh(buffers: u16, buffer_bytes: u32) -> Option<Self> {
            let credit = true;
            Self::new(buffers, buffer_bytes, credit).ok()
        }

        fn published(&self) -> usize {
            usize::from(self.window.published())
        }
    }

    contract_tests!(Loopback<Uring>);

    #[test]
    fn what_a_cancel_interrupted_was_cancelled() {
        assert_eq!(number_of(-libc::EINTR), Err(Errno::CANCELED));
        assert_eq!(number_of(-libc::ECONNRESET), Err(Errno::RESET));
        assert_eq!(number_of(7), Ok(7));
    }

    #[test]
    fn sends_are_made_at_once_where_nothing_else_goes_to_the_kernel() {
        let Some(mut uring) = Uring::fresh(128, 4096) else { return };
        for (completions, at_once) in [(0, true), (1, true), (2, false), (40, false), (1, true)] {
            (0..completions).for_each(|_| uring.push(opcode::Nop::new().build(), Token::CANCEL));
            let now = uring.read_clock();
            uring.turn(Some(now)).unwrap();
            assert_eq!(uring.sends_at_once(), at_once, "{completions} completions");
            assert!(uring.next().is_none(), "nobody waits for these");
        }
    }

    /// The ring's descriptor is made to name something that is no ring, as far as the kernel can tell.
    #[test]
    fn a_ring_that_cannot_be_entered_is_counted_and_then_given_up() {
        use std::os::fd::AsRawFd as _;
        let Some(mut uring) = Uring::fresh(128, 4096) else { return };
        let at_once = uring.read_clock();
        uring.turn(Some(at_once)).expect("it is a ring");
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: the ring lives until `uring` is dropped, which is the last thing here.
        let fd = unsafe { &*uring.ring }.as_raw_fd();
        // SAFETY: takes and returns numbers; both descriptors are open.
        assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), fd) }, fd);
        for failure in 1..=u64::from(limits::ENTER_FAILURES_MAX) {
            uring.turn(Some(at_once)).expect("it may still mend");
            assert_eq!(uring.counters().enter_failed, failure);
        }
        uring.turn(Some(at_once)).expect_err("it did not");
    }
}
