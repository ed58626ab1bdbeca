//! A shard's thread: made here, so that its driver is made in the thread that will use it, and watched to its end.

use super::Cause;
use super::favours::{Granted, Wishes};
use crate::driver::epoll::Epoll;
use crate::driver::uring::Uring;
use crate::driver::{Driver, Kind, sys};
use crate::event::Ended;
use crate::policy::snapshot::Snapshot;
use crate::shard::mailbox::Mail;
use crate::shard::placement::{Load, Neighbour};
use crate::shard::spin::Awake;
use crate::shard::{Flow, Parts, Shard};
use crate::tally::Tally;
use arc_swap::ArcSwap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// What a new shard is to be.
pub(super) struct Order {
    pub(super) id: usize,
    pub(super) kind: Kind,
    pub(super) cpu: Option<usize>,
    pub(super) credit: bool,
    pub(super) awake: Awake,
    pub(super) wishes: Wishes,
    pub(super) buffers: u16,
    pub(super) buffer_bytes: u32,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) tally: Arc<Tally>,
    pub(super) load: Arc<Load>,
    pub(super) journal: mpsc::SyncSender<Ended>,
    pub(super) causes: mpsc::Sender<Cause>,
}

/// How others reach a shard that has started, and what it was granted.
type Started = (Mail, Granted);

/// Starts a shard's thread, and waits until its driver is made.
///
/// # Errors
/// Where the system gives no thread, the CPU cannot be had, or the kernel refuses the driver.
pub(super) fn start(order: Order) -> io::Result<(Mail, JoinHandle<()>, Granted)> {
    let (started, ready) = mpsc::channel();
    let name = format!("{}-{}", order.kind.label(), order.id);
    let thread = std::thread::Builder::new().name(name).spawn(move || live(order, &started))?;
    match ready.recv() {
        Ok(Ok((mail, granted))) => Ok((mail, thread, granted)),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(io::Error::other("the shard's thread ended before it was ready")),
    }
}

/// The life of a shard's thread.
fn live(order: Order, started: &mpsc::Sender<io::Result<Started>>) {
    let (id, causes) = (order.id, order.causes.clone());
    let (buffers, bytes, credit) = (order.buffers, order.buffer_bytes, order.credit);
    let lived = catch_unwind(AssertUnwindSafe(|| match order.kind {
        Kind::Uring => run(|| Uring::new(buffers, bytes, credit), order, started),
        Kind::Epoll | Kind::Sim => run(|| Epoll::new(buffers, bytes), order, started),
    }));
    let why = match lived {
        Ok(Ok(())) => None,
        Ok(Err(e)) => Some(format!("its driver failed: {e}")),
        Err(panic) => Some(format!("it panicked: {}", said(&*panic))),
    };
    // Control that has gone needs no report.
    let _ = causes.send(Cause::ShardEnded(id, why));
}

fn run<D: Driver>(
    make: impl FnOnce() -> io::Result<D>,
    order: Order,
    started: &mpsc::Sender<io::Result<Started>>,
) -> io::Result<()> {
    // Bound to its CPU first: the driver's memory then comes from where the shard runs, for the kernel takes a page
    // from the node of the thread that touches it first, and buffers are touched here alone, as they are used.
    let made = order.cpu.map_or(Ok(()), sys::pin).and_then(|()| make());
    let mut driver = match made {
        Ok(driver) => driver,
        Err(e) => {
            let _ = started.send(Err(e));
            return Ok(());
        }
    };
    let granted = order.wishes.ask(&mut driver);
    let (mail, orders) = Mail::new(driver.waker());
    let (id, causes) = (order.id, order.causes);
    let parts = Parts {
        id,
        ticked: true,
        awake: order.awake,
        snapshot: order.snapshot,
        tally: order.tally,
        home: Neighbour { load: Arc::clone(&order.load), mail: mail.clone() },
        load: order.load,
        orders,
        report: Box::new(move |report| {
            let _ = causes.send(Cause::ShardSaid(id, report));
        }),
        journal: Some(order.journal),
    };
    let mut shard = Shard::new(driver, parts);
    let _ = started.send(Ok((mail, granted)));
    let lived = catch_unwind(AssertUnwindSafe(|| {
        loop {
            match shard.step() {
                Ok(Flow::GoOn) => {}
                Ok(Flow::Left) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }));
    match lived {
        Ok(Ok(())) => Ok(()),
        failed => {
            shard.abandon();
            failed.unwrap_or_else(|panic| resume_unwind(panic))
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("nothing")
}
