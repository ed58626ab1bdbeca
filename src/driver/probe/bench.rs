//! A ring to try things on: every wait is bounded, and its memory outlives whatever the kernel may still do with it.

use super::refusal::Failure;
use crate::config::limits::{CQ_ENTRIES, PROBE_WAIT_MS, SQ_ENTRIES, SQ_ENTRIES_MIN};
use crate::driver::ring::ring_of;
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use std::{io, ptr, slice};

/// Buffers to receive into; a power of two, as a buffer ring asks.
const BUFFERS: u16 = 8;
/// Bytes of one of them: small, so that few bytes fill several.
pub(super) const BUFFER_BYTES: u32 = 64;
/// The group the buffers are in.
const GROUP: u16 = 0;
/// Most bytes of one send.
pub(super) const SEND_BYTES: u32 = 512 * 1024;
/// Where in the memory the buffers begin, behind their ring. The largest page there is keeps the two apart.
const BUFFERS_AT: usize = 64 * 1024;
/// Where the bytes to send begin.
const SEND_AT: usize = BUFFERS_AT + BUFFERS as usize * BUFFER_BYTES as usize;
const MEMORY_BYTES: usize = SEND_AT + SEND_BYTES as usize;
/// What every byte to send is.
const SENT_BYTE: u8 = b'r';

/// Entries into the kernel for one wait, of which signals and a busy kernel may spoil some.
const ENTERS_PER_WAIT_MAX: u32 = 8;

/// What an operation of the bench is, as its completion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    Accept = 1,
    Recv = 2,
    Send = 3,
    Cancel = 4,
}

/// A completion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    kind: u64,
    /// What the operation returned: a count or a descriptor, or the negative of an error number.
    pub(super) result: i32,
    flags: u32,
}

impl Done {
    /// Whether it is the completion of a `kind`.
    pub(super) fn is(self, kind: Kind) -> bool {
        self.kind == kind as u64
    }

    /// Whether the operation is still armed.
    pub(super) fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// Its result, or the error number in it.
    pub(super) fn value(self, what: &str) -> Result<u32, Failure> {
        u32::try_from(self.result)
            .map_err(|_| Failure { what: what.to_owned(), errno: Some(-self.result) })
    }
}

/// Makes a ring as a shard does, with or without the array of indices, and falls back to a small one where locked
/// memory is short.
pub(super) fn ring(no_sqarray: bool) -> io::Result<IoUring> {
    let build = |entries| ring_of(entries, CQ_ENTRIES / SQ_ENTRIES, no_sqarray);
    match build(SQ_ENTRIES) {
        Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => build(SQ_ENTRIES_MIN),
        made => made,
    }
}

/// The ring, its memory, and how much of what was asked for is not over.
pub(super) struct Bench {
    ring: IoUring,
    memory: ManuallyDrop<Memory>,
    in_flight: u32,
}

impl Bench {
    pub(super) fn new(ring: IoUring) -> io::Result<Self> {
        Ok(Self { ring, memory: ManuallyDrop::new(Memory::new()?), in_flight: 0 })
    }

    pub(super) const fn ring(&self) -> &IoUring {
        &self.ring
    }

    pub(super) const fn ring_mut(&mut self) -> &mut IoUring {
        &mut self.ring
    }

    /// Registers the ring of buffers and fills it.
    pub(super) fn provide_buffers(&mut self) -> io::Result<()> {
        let address = self.memory.start.as_ptr() as u64;
        // SAFETY: the first BUFFERS_AT bytes of the mapping hold 8 entries of 16 bytes and nothing else; the mapping
        // begins on a page, and is unmapped after the ring is closed.
        unsafe {
            self.ring.submitter().register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)?;
        }
        (0..BUFFERS).for_each(|id| self.memory.publish(id));
        Ok(())
    }

    /// Accepts clients until told otherwise.
    pub(super) fn accept_multi(&mut self, listener: impl AsFd) {
        let fd = Fd(listener.as_fd().as_raw_fd());
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        self.push(opcode::AcceptMulti::new(fd).flags(flags).build(), Kind::Accept);
    }

    /// Receives into buffers until told otherwise, or for `credit` bytes where it is not 0.
    pub(super) fn recv_multi(&mut self, socket: impl AsFd, credit: u32) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_fd().as_raw_fd()), GROUP).build();
        self.push(with_credit(entry, credit), Kind::Recv);
    }

    /// Sends `bytes` bytes to `socket`, all of them.
    pub(super) fn send(&mut self, socket: impl AsFd, bytes: u32) {
        let entry = self.send_entry(&socket, bytes);
        self.push(entry, Kind::Send);
    }

    /// Sends `bytes` bytes to `socket`, and then receives once from `source`.
    pub(super) fn send_then_recv(&mut self, socket: impl AsFd, bytes: u32, source: impl AsFd) {
        let send = self.send_entry(&socket, bytes).flags(squeue::Flags::IO_LINK);
        let fd = Fd(source.as_fd().as_raw_fd());
        let recv = opcode::Recv::new(fd, ptr::null_mut(), 0).buf_group(GROUP).build();
        self.push(send, Kind::Send);
        self.push(recv.flags(squeue::Flags::BUFFER_SELECT), Kind::Recv);
    }

    fn send_entry(&self, socket: &impl AsFd, bytes: u32) -> squeue::Entry {
        let fd = Fd(socket.as_fd().as_raw_fd());
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        opcode::Send::new(fd, self.memory.to_send(), bytes.min(SEND_BYTES)).flags(flags).build()
    }

    fn push(&mut self, entry: squeue::Entry, kind: Kind) {
        let entry = entry.user_data(kind as u64);
        // SAFETY: the memory an entry names is this bench's own, which is not unmapped while something is in flight.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("a trial queues a handful of entries and the smallest ring takes 128");
        self.in_flight += 1;
    }

    /// Submits what was asked for and does not wait.
    pub(super) fn submit(&self) -> Result<(), Failure> {
        match self.ring.submitter().submit_with_args(0, &SubmitArgs::new()) {
            Ok(_) => Ok(()),
            Err(e) if may_try_again(&e) => Ok(()), // the entries stay queued for the next wait
            Err(e) => Err(Failure::at("io_uring_enter")(e)),
        }
    }

    /// The next completion, for which the kernel has [`PROBE_WAIT_MS`]; a failure of `what` where none comes.
    pub(super) fn wait(&mut self, what: &str) -> Result<Done, Failure> {
        self.wait_for(Duration::from_millis(PROBE_WAIT_MS))?
            .ok_or_else(|| Failure::saw(format!("{what} gave no completion in time")))
    }

    /// Waits with nothing in flight. Fails unless the kernel says that the time is over.
    pub(super) fn wait_in_vain(&self, longest: Duration) -> Result<(), Failure> {
        let patience = Timespec::from(longest);
        let args = SubmitArgs::new().timespec(&patience);
        for _ in 0..ENTERS_PER_WAIT_MAX {
            match self.ring.submitter().submit_with_args(1, &args) {
                Err(e) if e.raw_os_error() == Some(libc::ETIME) => return Ok(()),
                Err(e) if may_try_again(&e) => {}
                Err(e) => return Err(Failure::at("io_uring_enter")(e)),
                Ok(_) => return Err(Failure::saw("a wait for nothing ended as if something came")),
            }
        }
        Err(Failure::saw("a wait of a moment was interrupted again and again"))
    }

    /// Submits what was asked for and returns the next completion, or `None` when `longest` is over.
    pub(super) fn wait_for(&mut self, longest: Duration) -> Result<Option<Done>, Failure> {
        let patience = Timespec::from(longest);
        let args = SubmitArgs::new().timespec(&patience);
        for _ in 0..ENTERS_PER_WAIT_MAX {
            if self.ring.submission().is_empty()
                && let Some(done) = self.take()
            {
                return Ok(Some(done));
            }
            match self.ring.submitter().submit_with_args(1, &args) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ETIME) => break,
                Err(e) if may_try_again(&e) => {}
                Err(e) => return Err(Failure::at("io_uring_enter")(e)),
            }
        }
        Ok(self.take())
    }

    fn take(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        let done = Done { kind: entry.user_data(), result: entry.result(), flags: entry.flags() };
        if !done.more() {
            self.in_flight -= 1;
        }
        Some(done)
    }

    /// How many bytes a receive brought. Its buffer is published again.
    ///
    /// Fails where the kernel says that the receive failed, or the bytes are others than those sent.
    pub(super) fn received(&mut self, done: Done) -> Result<u32, Failure> {
        let bytes = done.value("a receive into a provided buffer")?;
        let Some(id) = cqueue::buffer_select(done.flags) else {
            return Ok(bytes); // the end of the stream takes no buffer
        };
        if id >= BUFFERS || bytes > BUFFER_BYTES {
            return Err(Failure::saw(format!(
                "{bytes} bytes in buffer {id}, which is out of bounds"
            )));
        }
        let sound = self.memory.buffer(id, bytes).iter().all(|&byte| byte == SENT_BYTE);
        self.memory.publish(id);
        if sound { Ok(bytes) } else { Err(Failure::saw("other bytes arrived than were sent")) }
    }

    /// Cancels whatever a trial left in flight and takes its completions. Where that fails, nothing more can be tried.
    ///
    /// A client accepted meanwhile stays open: the number may be no descriptor of ours on a kernel that got it wrong.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        if self.in_flight == 0 {
            return Ok(());
        }
        self.push(opcode::AsyncCancel2::new(CancelBuilder::any()).build(), Kind::Cancel);
        while self.in_flight > 0 {
            let done = self.wait("what was cancelled")?;
            if done.is(Kind::Recv)
                && let Some(id) = cqueue::buffer_select(done.flags).filter(|&id| id < BUFFERS)
            {
                self.memory.publish(id);
            }
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.in_flight == 0 {
            // SAFETY: it is dropped here alone, and nobody uses it afterwards. Were something in flight, the kernel
            // might write to it after the ring is closed, so it is kept for ever: once, of a process whose kernel is
            // broken.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// Bytes of the trial's messages, as [`Bench::received`] expects them.
pub(super) const fn message<const N: usize>() -> [u8; N] {
    [SENT_BYTE; N]
}

/// Whether entering failed for a moment only: a signal, or completions to be taken first.
fn may_try_again(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// The entry of a multishot receive with a limit to its bytes in all (`optlen`), which the crate has no setter for.
fn with_credit(mut entry: squeue::Entry, credit: u32) -> squeue::Entry {
    const { assert!(size_of::<squeue::Entry>() == 64, "an entry is the kernel's 64 bytes") };
    // SAFETY: `Entry` is `repr(C)` around the kernel's structure of 64 bytes, all plain integers, and bytes need no
    // alignment; the borrow ends before `entry` is returned.
    let bytes = unsafe { &mut *(&raw mut entry).cast::<[u8; 64]>() };
    bytes[44..48].copy_from_slice(&credit.to_ne_bytes());
    entry
}

/// One mapping: the ring of buffers, the buffers, the bytes to send.
struct Memory {
    start: NonNull<u8>,
    published: u16,
}

impl Memory {
    fn new() -> io::Result<Self> {
        // SAFETY: a new private anonymous mapping touches no memory that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MEMORY_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: SEND_AT + SEND_BYTES is the length of the mapping, and nobody else knows of it yet.
        unsafe { start.add(SEND_AT).write_bytes(SENT_BYTE, SEND_BYTES as usize) };
        Ok(Self { start, published: 0 })
    }

    fn to_send(&self) -> *const u8 {
        // SAFETY: SEND_AT lies in the mapping.
        unsafe { self.start.add(SEND_AT) }.as_ptr()
    }

    fn buffer_start(&self, id: u16) -> NonNull<u8> {
        assert!(id < BUFFERS, "there is no buffer {id}");
        // SAFETY: the buffers end where the bytes to send begin, inside the mapping.
        unsafe { self.start.add(BUFFERS_AT + usize::from(id) * BUFFER_BYTES as usize) }
    }

    /// The first `bytes` bytes of a buffer the kernel has given up.
    fn buffer(&self, id: u16, bytes: u32) -> &[u8] {
        assert!(bytes <= BUFFER_BYTES, "{bytes} bytes are more than a buffer holds");
        // SAFETY: the part lies in the mapping, whose bytes were zeroed by the kernel; a buffer that was completed is
        // not written again before it is published, which needs `&mut self`.
        unsafe { slice::from_raw_parts(self.buffer_start(id).as_ptr(), bytes as usize) }
    }

    /// Gives a buffer to the kernel.
    fn publish(&mut self, id: u16) {
        let address = self.buffer_start(id).as_ptr() as u64;
        let base = self.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index is below BUFFERS, for which the mapping begins with room; the kernel does not look at an
        // entry before the tail below says so. The mapping begins on a page, which is more than an entry's alignment.
        unsafe {
            let entry = &mut *base.add(usize::from(self.published % BUFFERS));
            entry.set_addr(address);
            entry.set_len(BUFFER_BYTES);
            entry.set_bid(id);
        }
        self.published = self.published.wrapping_add(1);
        // SAFETY: `base` is the first entry of the ring, whose last two bytes are the tail; they are aligned, and both
        // this and the kernel use them as one atomic number.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.published, Ordering::Release);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` and MEMORY_BYTES are the mapping this made, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), MEMORY_BYTES) };
    }
}
