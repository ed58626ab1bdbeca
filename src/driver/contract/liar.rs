//! Drivers that break one rule each: the suite has to notice every one, or it proves nothing.

use super::simulated::{CLIMATE, Simulated};
use super::{Far, Harness};
use crate::config::Tcp;
use crate::driver::pool::{BufferId, Pool};
use crate::driver::{
    Arm, Carried, Completion, Counters, Driver, Errno, Interest, Key, Kind, ListenerId, Op,
    Received, Side, Socket, Stride, Waker,
};
use crate::time::Time;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// None; then every case passes.
    Nothing,
    /// A cancelled operation never says so.
    DropsCancelled,
    /// A cancel is not passed on.
    IgnoresCancel,
    /// A cancelled receive loses the bytes that came instead.
    SwallowsOnCancel,
    /// The last word of a send is said twice.
    SaysSentTwice,
    /// A send says one byte less than it took.
    SaysLess,
    /// The end of a stream overtakes the bytes before it.
    EndFirst,
    /// The end of a stream is said twice.
    EndTwice,
    /// A reset reads as an end.
    ResetIsEnd,
    /// Two receives change places.
    Reorders,
    /// A multishot receive takes ten times its credit.
    PassesCredit,
    /// A receive of a slot that is used again names the generation before.
    NamesOldGeneration,
    /// Each send costs a buffer.
    LosesBuffers,
    /// An abort is an orderly end.
    AbortFinishes,
    /// The end is not passed on.
    ForgetsFinish,
    /// A receive does not wait for its send.
    DoesNotLink,
    /// A turn is late.
    IsLate,
    /// Nobody can wake it.
    IsDeaf,
    /// It accepts one client, and says there will be more.
    AcceptsOne,
    /// A connect that was refused is said to stand.
    SaysConnected,
    /// What a wide step's destination does not take is dropped.
    LosesTail,
    /// A tail is longer than was allowed.
    PassesTailMax,
    /// What a wide step left with the source is not told by a poll.
    ForgetsWhatIsLeft,
    /// A straight send says that it took all.
    SaysAllTaken,
    /// A straight read that finds the end says that nothing is there.
    HidesEnd,
    /// A connection that is over is said to stand.
    SaysStands,
}

impl Lie {
    const ALL: [Self; 25] = [
        Self::DropsCancelled,
        Self::IgnoresCancel,
        Self::SwallowsOnCancel,
        Self::SaysSentTwice,
        Self::SaysLess,
        Self::EndFirst,
        Self::EndTwice,
        Self::ResetIsEnd,
        Self::Reorders,
        Self::PassesCredit,
        Self::NamesOldGeneration,
        Self::LosesBuffers,
        Self::AbortFinishes,
        Self::ForgetsFinish,
        Self::DoesNotLink,
        Self::IsLate,
        Self::IsDeaf,
        Self::AcceptsOne,
        Self::SaysConnected,
        Self::LosesTail,
        Self::PassesTailMax,
        Self::ForgetsWhatIsLeft,
        Self::SaysAllTaken,
        Self::HidesEnd,
        Self::SaysStands,
    ];
}

thread_local! {
    /// What the next liar lies about.
    static LIE: Cell<Lie> = const { Cell::new(Lie::Nothing) };
}

/// A driver that lies, over one that does not.
struct Liar<H> {
    h: H,
    lie: Lie,
    /// What it says before it asks again.
    kept: VecDeque<Completion>,
    /// A receive that was held back.
    held: Option<Completion>,
    cancelled: Option<(Key, Side)>,
    accepted: u32,
    /// A wide step came back with a tail.
    tail: bool,
    waker: Waker,
}

struct Deaf;

impl crate::driver::Wake for Deaf {
    fn wake(&self) {}
}

impl<H: Harness> Liar<H> {
    fn inner(&mut self) -> &mut H::D {
        self.h.driver()
    }

    /// What it makes of a true completion; `None`: it keeps quiet.
    fn twist(&mut self, true_one: Completion) -> Option<Completion> {
        match (self.lie, true_one) {
            (
                Lie::DropsCancelled,
                Completion::Received { what: Received::Failed(Errno::CANCELED), .. }
                | Completion::Sent { result: Err(Errno::CANCELED), .. }
                | Completion::Polled { result: Err(Errno::CANCELED), .. },
            ) => None,
            (Lie::SaysSentTwice, Completion::Sent { key, side, result }) => {
                self.kept.push_back(Completion::Sent { key, side, result });
                Some(Completion::Sent { key, side, result })
            }
            (Lie::SaysLess, Completion::Sent { key, side, result: Ok(n) }) => {
                Some(Completion::Sent { key, side, result: Ok(n - 1) })
            }
            (Lie::LosesBuffers, sent @ Completion::Sent { .. }) => {
                let _lost = self.inner().pool().take();
                Some(sent)
            }
            (Lie::SaysConnected, Completion::Connected { key, .. }) => {
                Some(Completion::Connected { key, result: Ok(()) })
            }
            (Lie::AcceptsOne, Completion::Accepted { listener, result: Ok(socket), more }) => {
                self.accepted += 1;
                if self.accepted == 1 {
                    return Some(Completion::Accepted { listener, result: Ok(socket), more });
                }
                self.inner().close(None, socket);
                None
            }
            (_, Completion::Received { key, side, what, more }) => {
                self.twist_received(key, side, what, more)
            }
            (_, other) => Some(other),
        }
    }

    fn twist_received(
        &mut self,
        mut key: Key,
        side: Side,
        mut what: Received,
        more: bool,
    ) -> Option<Completion> {
        match (self.lie, what) {
            (Lie::EndTwice, Received::End) => {
                self.kept.push_back(Completion::Received { key, side, what, more });
            }
            (Lie::ResetIsEnd, Received::Failed(Errno::RESET)) => what = Received::End,
            (Lie::NamesOldGeneration, _) => key.generation = key.generation.saturating_sub(1),
            (Lie::SwallowsOnCancel, Received::Bytes(buffer))
                if self.cancelled == Some((key, side)) =>
            {
                self.inner().pool().give_back(buffer);
                if more {
                    return None;
                }
                what = Received::Failed(Errno::CANCELED);
            }
            (Lie::EndFirst, Received::Bytes(_)) if self.held.is_none() => {
                self.held = Some(Completion::Received { key, side, what, more });
                self.kept.push_back(Completion::Received {
                    key,
                    side,
                    what: Received::End,
                    more: false,
                });
                return None;
            }
            (Lie::Reorders, Received::Bytes(_)) if more && self.held.is_none() => {
                self.held = Some(Completion::Received { key, side, what, more });
                return None;
            }
            _ => {}
        }
        Some(Completion::Received { key, side, what, more })
    }
}

impl<H: Harness> Driver for Liar<H> {
    fn kind(&self) -> Kind {
        self.h.driver_ref().kind()
    }

    fn counts_credit(&self) -> bool {
        self.h.driver_ref().counts_credit()
    }

    fn now(&self) -> Time {
        self.h.driver_ref().now()
    }

    fn pool(&mut self) -> &mut Pool {
        self.inner().pool()
    }

    fn counters(&self) -> Counters {
        self.h.driver_ref().counters()
    }

    fn waker(&self) -> Waker {
        Waker::clone(&self.waker)
    }

    fn accept(&mut self, listener: ListenerId, socket: &Socket) {
        self.inner().accept(listener, socket);
    }

    fn stop_accepting(&mut self, listener: ListenerId) {
        self.inner().stop_accepting(listener);
    }

    fn socket(&mut self, address: SocketAddr, tcp: &Tcp) -> Result<Socket, Errno> {
        self.inner().socket(address, tcp)
    }

    fn attach(&mut self, key: Key, side: Side, socket: &Socket) -> Result<(), Errno> {
        self.inner().attach(key, side, socket)
    }

    fn detach(&mut self, key: Key, side: Side, socket: &Socket) {
        self.inner().detach(key, side, socket);
    }

    fn connect(&mut self, key: Key, socket: &Socket, address: SocketAddr) {
        self.inner().connect(key, socket, address);
    }

    fn arm_recv(&mut self, key: Key, side: Side, socket: &Socket, arm: Arm) {
        self.cancelled = None;
        let arm = match (self.lie, arm) {
            (Lie::PassesCredit, Arm::Multi(credit)) => Arm::Multi(credit * 10),
            (_, arm) => arm,
        };
        self.inner().arm_recv(key, side, socket, arm);
    }

    fn send(&mut self, key: Key, side: Side, socket: &Socket, buffer: BufferId) {
        self.inner().send(key, side, socket, buffer);
    }

    fn send_then_recv(
        &mut self,
        key: Key,
        side: Side,
        socket: &Socket,
        buffer: BufferId,
        source: &Socket,
    ) {
        if self.lie == Lie::DoesNotLink {
            self.inner().arm_recv(key, side.other(), source, Arm::Once);
            return self.inner().send(key, side, socket, buffer);
        }
        self.inner().send_then_recv(key, side, socket, buffer, source);
    }

    fn arm_poll(&mut self, key: Key, side: Side, socket: &Socket, interest: Interest) {
        if self.lie == Lie::ForgetsWhatIsLeft && self.tail {
            return;
        }
        self.inner().arm_poll(key, side, socket, interest);
    }

    fn sends_at_once(&mut self) -> bool {
        self.inner().sends_at_once()
    }

    fn has_plain_calls(&self) -> bool {
        self.h.driver_ref().has_plain_calls()
    }

    fn recv_now(&mut self, key: Key, side: Side, socket: &Socket) -> Option<Received> {
        let what = self.inner().recv_now(key, side, socket);
        what.filter(|what| self.lie != Lie::HidesEnd || *what != Received::End)
    }

    fn send_now(&mut self, socket: &Socket, buffer: BufferId) -> Result<u32, Errno> {
        let taken = self.inner().send_now(socket, buffer)?;
        // It may say none: a case waits for that.
        let all = self.lie == Lie::SaysAllTaken && taken > 0;
        Ok(if all { self.inner().pool().filled(buffer) } else { taken })
    }

    fn carry_wide(
        &mut self,
        key: Key,
        source: Side,
        from: &Socket,
        to: &Socket,
        mut stride: Stride,
    ) -> Carried {
        if self.lie == Lie::PassesTailMax {
            stride.tail_max *= 10;
        }
        let mut carried = self.inner().carry_wide(key, source, from, to, stride);
        self.tail |= carried.tail.is_some();
        if self.lie == Lie::LosesTail
            && let Some((first, last)) = carried.tail.take()
        {
            let mut next = Some(first);
            while let Some(buffer) = next {
                next = self.pool().next(buffer).filter(|_| buffer != last);
                self.pool().give_back(buffer);
            }
        }
        carried
    }

    fn cancel(&mut self, key: Key, op: Op) {
        if let Op::Recv(side) = op {
            self.cancelled = Some((key, side));
        }
        if self.lie != Lie::IgnoresCancel {
            self.inner().cancel(key, op);
        }
    }

    fn finish(&mut self, socket: &Socket) -> Result<(), Errno> {
        if self.lie == Lie::ForgetsFinish { Ok(()) } else { self.inner().finish(socket) }
    }

    fn take_error(&mut self, socket: &Socket) -> Result<(), Errno> {
        self.inner().take_error(socket)
    }

    fn stands(&mut self, socket: &Socket) -> bool {
        self.lie == Lie::SaysStands || self.inner().stands(socket)
    }

    fn abort(&mut self, socket: &Socket) {
        if self.lie == Lie::AbortFinishes {
            let _ = self.inner().finish(socket);
        } else {
            self.inner().abort(socket);
        }
    }

    fn close(&mut self, attached: Option<(Key, Side)>, socket: Socket) {
        self.inner().close(attached, socket);
    }

    fn client_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        self.h.driver_ref().client_address(socket)
    }

    fn local_address(&self, socket: &Socket) -> Result<SocketAddr, Errno> {
        self.h.driver_ref().local_address(socket)
    }

    fn is_its_own_end(&self, socket: &Socket, address: SocketAddr) -> bool {
        self.h.driver_ref().is_its_own_end(socket, address)
    }

    fn turn(&mut self, until: Option<Time>) -> io::Result<()> {
        let late_ms = if self.lie == Lie::IsLate { 300 } else { 0 };
        self.inner().turn(until.map(|until| until.plus_ms(late_ms)))
    }

    fn next(&mut self) -> Option<Completion> {
        loop {
            if let Some(kept) = self.kept.pop_front() {
                return Some(kept);
            }
            let Some(true_one) = self.inner().next() else { return self.held.take() };
            if let Some(said) = self.twist(true_one) {
                if self.lie == Lie::Reorders {
                    self.kept.extend(self.held.take());
                }
                return Some(said);
            }
        }
    }
}

/// The harness of a liar.
struct Lying<H>(Liar<H>);

impl<H: Harness> Harness for Lying<H> {
    type D = Liar<H>;
    const REAL: bool = H::REAL;

    fn new(buffers: u16, buffer_bytes: u32) -> Option<Self> {
        let h = H::new(buffers, buffer_bytes)?;
        let lie = LIE.get();
        let waker: Waker =
            if lie == Lie::IsDeaf { std::sync::Arc::new(Deaf) } else { h.driver_ref().waker() };
        let (kept, held) = (VecDeque::new(), None);
        Some(Self(Liar { h, lie, kept, held, cancelled: None, accepted: 0, tail: false, waker }))
    }

    fn driver(&mut self) -> &mut Liar<H> {
        &mut self.0
    }

    fn driver_ref(&self) -> &Liar<H> {
        &self.0
    }

    fn listen(&mut self, listener: ListenerId) -> Socket {
        self.0.h.listen(listener)
    }

    fn client(&mut self, listener: ListenerId) -> Box<dyn Far> {
        self.0.h.client(listener)
    }

    fn backend(&mut self) -> SocketAddr {
        self.0.h.backend()
    }

    fn reached(&mut self, address: SocketAddr) -> Option<Box<dyn Far>> {
        self.0.h.reached(address)
    }

    fn refusing(&mut self) -> SocketAddr {
        self.0.h.refusing()
    }

    fn hanging(&mut self) -> SocketAddr {
        self.0.h.hanging()
    }

    fn buffers_at_rest(&mut self) -> usize {
        self.0.h.buffers_at_rest()
    }

    fn leftovers(&mut self) -> Vec<String> {
        self.0.h.leftovers()
    }
}

/// The cases that a liar fails.
fn caught(lie: Lie) -> Vec<&'static str> {
    LIE.set(lie);
    // Bytes that are faster than a cancel come in bad weather only.
    CLIMATE.set((0, lie == Lie::SwallowsOnCancel));
    let fails = |name: &str| {
        catch_unwind(AssertUnwindSafe(|| super::run::<Lying<Simulated>>(name))).is_err()
    };
    let names = super::all::<Lying<Simulated>>().into_iter().map(|(name, _)| name);
    names.filter(|name| fails(name)).collect()
}

#[test]
fn who_does_not_lie_is_not_caught() {
    assert_eq!(caught(Lie::Nothing), [""; 0]);
}

#[test]
fn every_liar_is_caught() {
    for lie in Lie::ALL {
        let by = caught(lie);
        println!("{lie:?} is caught by {by:?}");
        assert!(!by.is_empty(), "{lie:?} passes for a driver");
    }
}
