//! The trials: each does with the bench what a session will do, and looks whether it came out as it must.

use super::bench::{self, BUFFER_BYTES, Bench, Done, Kind, SEND_BYTES};
use super::refusal::Failure;
use super::{Feature, Outcomes};
use crate::config::limits::{PROBE_WAIT_MS, SQ_ENTRIES};
use io_uring::types::Napi;
use io_uring::{IoUring, Probe, opcode};
use socket2::SockRef;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What was seen where a feature works.
type Outcome = Result<String, Failure>;
/// Tries one feature.
type Trial = fn(&mut Bench) -> Outcome;

/// Bytes of one message; less than a buffer.
const MESSAGE_BYTES: u32 = 10;
/// Rounds in which a send that waits is drained.
const DRAINS_MAX: u32 = 400;
/// How long each of those waits for the send.
const DRAIN_MS: u64 = 5;
/// Send buffer asked for where a send is to wait; far below what is sent.
const SMALL_SEND_BUFFER_BYTES: usize = 16 * 1024;
/// How long the trial of the timed wait waits.
const SHORT_WAIT_MS: u64 = 1;
/// Time to poll the card's queues that is asked for and taken back at once.
const BUSY_POLL_US: u32 = 50;

/// Makes all trials it can, in the order of [`Feature::ALL`].
pub(super) fn run() -> Outcomes {
    let mut outcomes = Outcomes::new();
    if let Some(bench) = set_up(&mut outcomes) {
        try_all(bench, &mut outcomes);
    }
    outcomes
}

/// One ring for all trials, for each counts against the limit of locked memory for a moment after it is closed.
fn set_up(outcomes: &mut Outcomes) -> Option<Bench> {
    let (made, no_sqarray) = match bench::ring(true) {
        Ok(ring) => (Ok(ring), Ok("accepted".to_owned())),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            (bench::ring(false), Err(Failure::at("IORING_SETUP_NO_SQARRAY")(e)))
        }
        Err(e) => (Err(e), Ok(String::new())),
    };
    let ring = match made {
        Ok(ring) => ring,
        Err(e) => {
            outcomes.push((Feature::Ring, Err(ring_failure(e))));
            return None;
        }
    };
    let entries = ring.params().sq_entries();
    let sizes = format!(
        "{entries} submissions, {} completions{}; SINGLE_ISSUER, DEFER_TASKRUN, SUBMIT_ALL, CLAMP, CQSIZE",
        ring.params().cq_entries(),
        if entries < SQ_ENTRIES { " (locked memory is too short for more)" } else { "" }
    );
    match Bench::new(ring) {
        Ok(bench) => {
            outcomes.push((Feature::Ring, Ok(sizes)));
            outcomes.push((Feature::NoSqArray, no_sqarray));
            Some(bench)
        }
        Err(e) => {
            outcomes.push((Feature::Ring, Err(Failure::at("mmap of the trial's memory")(e))));
            None
        }
    }
}

/// Tells a kernel that knows no such ring from one that gives none at all.
fn ring_failure(error: io::Error) -> Failure {
    let plain_works = error.raw_os_error() == Some(libc::EINVAL) && IoUring::new(1).is_ok();
    let what = if plain_works {
        "a plain ring is given, but not one with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1)"
    } else {
        "io_uring_setup"
    };
    Failure::at(what)(error)
}

fn try_all(mut bench: Bench, outcomes: &mut Outcomes) {
    let timed = timed_wait(&bench);
    let waits = timed.is_ok();
    outcomes.push((Feature::TimedWait, timed));
    outcomes.push((Feature::Opcodes, opcodes(&bench)));
    let provided = bench.provide_buffers().map_err(Failure::at("IORING_REGISTER_PBUF_RING"));
    let receives = waits && provided.is_ok();
    outcomes.push((Feature::BufferRing, provided.map(|()| "registered".to_owned())));

    let trials: [(Feature, bool, Trial); 7] = [
        (Feature::AcceptMulti, waits, accept_multi),
        (Feature::RecvMulti, receives, |bench| on_pair(bench, recv_multi)),
        (Feature::RecvCredit, receives, |bench| on_pair(bench, recv_credit)),
        (Feature::SendWhole, waits, |bench| on_pair(bench, send_whole)),
        (Feature::SendThenRecv, receives, send_then_recv),
        (Feature::BusyPoll, true, busy_poll),
        (Feature::RegisteredRing, true, registered_ring),
    ];
    for (feature, possible, trial) in trials {
        if possible {
            outcomes.push((feature, trial(&mut bench)));
        }
        if bench.settle().is_err() {
            break; // a completion of this trial would be taken for one of the next
        }
    }
}

/// Runs `trial` on two connected sockets, and closes them when nothing of them is in flight.
fn on_pair(
    bench: &mut Bench,
    trial: fn(&mut Bench, &UnixStream, &mut UnixStream) -> Outcome,
) -> Outcome {
    let (near, mut far) = pair()?;
    let outcome = trial(bench, &near, &mut far);
    settled(bench, outcome) // before the sockets are closed
}

/// `outcome`, when nothing of its trial is in flight any more. What the trial saw first is what counts.
fn settled(bench: &mut Bench, outcome: Outcome) -> Outcome {
    let settled = bench.settle();
    let seen = outcome?;
    settled.map(|()| seen)
}

fn pair() -> Result<(UnixStream, UnixStream), Failure> {
    UnixStream::pair().map_err(Failure::at("socketpair"))
}

fn write(mut to: &UnixStream, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).map_err(Failure::at("write to a socket pair"))
}

fn timed_wait(bench: &Bench) -> Outcome {
    if !bench.ring().params().is_feature_ext_arg() {
        return Err(Failure::saw("the ring does not offer IORING_FEAT_EXT_ARG"));
    }
    bench.wait_in_vain(Duration::from_millis(SHORT_WAIT_MS))?;
    Ok(format!("a wait of {SHORT_WAIT_MS} ms ended by itself"))
}

fn opcodes(bench: &Bench) -> Outcome {
    const USED: [(&str, u8); 7] = [
        ("ACCEPT", opcode::Accept::CODE),
        ("CONNECT", opcode::Connect::CODE),
        ("RECV", opcode::Recv::CODE),
        ("SEND", opcode::Send::CODE),
        ("POLL_ADD", opcode::PollAdd::CODE),
        ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
        ("READ", opcode::Read::CODE),
    ];
    let mut probe = Probe::new();
    bench
        .ring()
        .submitter()
        .register_probe(&mut probe)
        .map_err(Failure::at("IORING_REGISTER_PROBE"))?;
    let names = |known: bool| {
        let wanted = USED.iter().filter(|(_, code)| probe.is_supported(*code) == known);
        wanted.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    match names(false) {
        missing if missing.is_empty() => Ok(names(true)),
        missing => Err(Failure::saw(format!("the kernel has no {missing}"))),
    }
}

fn accept_multi(bench: &mut Bench) -> Outcome {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .map_err(Failure::at("listen on 127.0.0.1"))?;
    let address = listener.local_addr().map_err(Failure::at("getsockname"))?;
    bench.accept_multi(&listener);
    let outcome = accept_two(bench, address);
    settled(bench, outcome) // before the listener is closed
}

fn accept_two(bench: &mut Bench, address: SocketAddr) -> Outcome {
    bench.submit()?;
    for _ in 0..2 {
        let client = TcpStream::connect_timeout(&address, Duration::from_millis(PROBE_WAIT_MS))
            .map_err(Failure::at("connect to 127.0.0.1"))?;
        let local = client.local_addr().map_err(Failure::at("getsockname"))?;
        let done = bench.wait("multishot accept")?;
        let number = done.value("multishot accept")?;
        let accepted = adopt(number.cast_signed(), local)?;
        if !done.more() {
            return Err(Failure::saw("multishot accept ended after a client"));
        }
        drop((accepted, client));
    }
    Ok("two clients from one submission".to_owned())
}

/// The accepted socket, once it has proved to be the one whose client is `client`. A number that is something else is
/// left alone: kernels have reported numbers of nothing, or worse (axboe/liburing#1062).
fn adopt(number: i32, client: SocketAddr) -> Result<TcpStream, Failure> {
    // SAFETY: it is borrowed for one getpeername(2), which fails on what is no socket and does nothing to one; nothing
    // in this thread opens or closes descriptors meanwhile, and -1 cannot be: it was no error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let accepted = SockRef::from(&borrowed)
        .peer_addr()
        .map_err(Failure::at("getpeername of what multishot accept reported"))?;
    if accepted.as_socket() != Some(client) {
        return Err(Failure::saw("multishot accept reported another socket than the client's"));
    }
    // SAFETY: the kernel has just made this descriptor for this accept, as the client's address proves, and told nobody
    // else.
    Ok(unsafe { TcpStream::from_raw_fd(number) })
}

fn recv_multi(bench: &mut Bench, near: &UnixStream, far: &mut UnixStream) -> Outcome {
    bench.recv_multi(near, 0);
    bench.submit()?;
    for _ in 0..2 {
        write(far, &bench::message::<{ MESSAGE_BYTES as usize }>())?;
        let done = bench.wait("multishot receive")?;
        expect_bytes(bench, done, MESSAGE_BYTES)?;
        if !done.more() {
            return Err(Failure::saw("multishot receive ended after a message"));
        }
    }
    far.shutdown(Shutdown::Write).map_err(Failure::at("shutdown"))?;
    let end = bench.wait("multishot receive at the end of the stream")?;
    match (bench.received(end)?, end.more()) {
        (0, false) => Ok("two messages and the end of the stream from one submission".to_owned()),
        _ => Err(Failure::saw(format!("the end of the stream was told as {end:?}"))),
    }
}

fn recv_credit(bench: &mut Bench, near: &UnixStream, far: &mut UnixStream) -> Outcome {
    const CREDIT_BUFFERS: u32 = 2;
    write(far, &bench::message::<{ 2 * (CREDIT_BUFFERS * BUFFER_BYTES) as usize }>())?;
    bench.recv_multi(near, CREDIT_BUFFERS * BUFFER_BYTES);
    for nth in 1..=CREDIT_BUFFERS {
        let done = bench.wait("a receive with a credit")?;
        expect_bytes(bench, done, BUFFER_BYTES)?;
        if done.more() != (nth < CREDIT_BUFFERS) {
            return Err(Failure::saw(format!(
                "a receive with a credit of {} bytes {} after {}",
                CREDIT_BUFFERS * BUFFER_BYTES,
                if done.more() { "went on" } else { "ended" },
                nth * BUFFER_BYTES
            )));
        }
    }
    Ok(format!("stopped by itself after {} of twice as many bytes", CREDIT_BUFFERS * BUFFER_BYTES))
}

fn expect_bytes(bench: &mut Bench, done: Done, expected: u32) -> Result<(), Failure> {
    match bench.received(done)? {
        bytes if done.is(Kind::Recv) && bytes == expected => Ok(()),
        bytes => Err(Failure::saw(format!("{bytes} bytes of {expected} in {done:?}"))),
    }
}

fn send_whole(bench: &mut Bench, near: &UnixStream, far: &mut UnixStream) -> Outcome {
    SockRef::from(near)
        .set_send_buffer_size(SMALL_SEND_BUFFER_BYTES)
        .map_err(Failure::at("SO_SNDBUF"))?;
    far.set_nonblocking(true).map_err(Failure::at("O_NONBLOCK"))?;
    bench.send(near, SEND_BYTES);
    bench.submit()?;
    let mut room = [0; 16 * 1024];
    for round in 0..DRAINS_MAX {
        if let Some(done) = bench.wait_for(Duration::from_millis(DRAIN_MS))? {
            let sent = done.value("send with MSG_WAITALL")?;
            return match (sent == SEND_BYTES, round) {
                (true, 0) => {
                    Err(Failure::saw("a send did not wait for room, so nothing was proved"))
                }
                (true, _) => Ok(format!("{sent} bytes through a socket with less room")),
                (false, _) => {
                    Err(Failure::saw(format!("a send fell short: {sent} of {SEND_BYTES}")))
                }
            };
        }
        while far.read(&mut room).is_ok_and(|read| read > 0) {}
    }
    Err(Failure::saw("send with MSG_WAITALL did not end though all its bytes were read"))
}

fn send_then_recv(bench: &mut Bench) -> Outcome {
    let (source, far_source) = pair()?;
    let (sink, far_sink) = pair()?;
    let outcome = linked(bench, (&source, &far_source), (&sink, far_sink));
    settled(bench, outcome) // before the sockets are closed
}

/// The chain must hold when the send succeeds, and be cut when it fails.
fn linked(
    bench: &mut Bench,
    (source, far_source): (&UnixStream, &UnixStream),
    (sink, far_sink): (&UnixStream, UnixStream),
) -> Outcome {
    let message = bench::message::<{ MESSAGE_BYTES as usize }>();
    write(far_source, &message)?;
    bench.send_then_recv(sink, MESSAGE_BYTES, source);
    let (send, recv) = both(bench)?;
    if send.value("a linked send")? != MESSAGE_BYTES {
        return Err(Failure::saw(format!("a linked send gave {send:?}")));
    }
    expect_bytes(bench, recv, MESSAGE_BYTES)?;

    write(far_source, &message)?;
    drop(far_sink);
    bench.send_then_recv(sink, MESSAGE_BYTES, source);
    let (send, recv) = both(bench)?;
    match (send.result, recv.result) {
        (failed, cut) if failed < 0 && cut == -libc::ECANCELED => {
            Ok("the receive follows a send, and is cancelled with one that fails".to_owned())
        }
        (send, recv) => Err(Failure::saw(format!(
            "a failing send ({send}) did not cancel the receive linked to it ({recv})"
        ))),
    }
}

/// The completions of a linked pair; the send's comes first.
fn both(bench: &mut Bench) -> Result<(Done, Done), Failure> {
    let send = bench.wait("a linked send")?;
    let recv = bench.wait("the receive linked to a send")?;
    if send.is(Kind::Send) && recv.is(Kind::Recv) {
        Ok((send, recv))
    } else {
        Err(Failure::saw(format!("a linked pair completed as {send:?}, {recv:?}")))
    }
}

fn busy_poll(bench: &mut Bench) -> Outcome {
    let submitter = bench.ring().submitter();
    let mut napi = Napi::new().set_busy_poll_timeout(BUSY_POLL_US);
    submitter.register_napi(&mut napi).map_err(Failure::at("IORING_REGISTER_NAPI"))?;
    submitter.unregister_napi(&mut napi).map_err(Failure::at("IORING_UNREGISTER_NAPI"))?;
    Ok("registered and taken back".to_owned())
}

fn registered_ring(bench: &mut Bench) -> Outcome {
    // One submitter for all three: it alone remembers the registration, which otherwise would hold the ring open.
    let (mut submitter, _, _) = bench.ring_mut().split();
    submitter.register_ring_fd().map_err(Failure::at("IORING_REGISTER_RING_FDS"))?;
    let entered = submitter.submit().map_err(Failure::at("entering the registered ring"));
    submitter.unregister_ring_fd().map_err(Failure::at("IORING_UNREGISTER_RING_FDS"))?;
    entered.map(|_| "registered, entered and taken back".to_owned())
}
