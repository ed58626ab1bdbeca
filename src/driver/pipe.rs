//! A pipe between two sockets, for splice(2).

use super::Errno;
use super::sys::last_errno;
use crate::config::limits;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A pipe that bytes go through without being copied (splice(2)).
#[derive(Debug)]
pub(in crate::driver) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    pub(in crate::driver) fn new() -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: `ends` holds two ints and outlives the call.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made both, and nobody else knows them.
        let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        // Each packet takes a place of its own, however few its bytes. Refused, there are 16, which do.
        // SAFETY: takes and returns numbers.
        let _ = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, limits::PIPE_BYTES) };
        Ok(Self { read, write })
    }

    /// Moves up to `most` bytes from a socket into the pipe; `Ok(None)`: nothing yet; `Ok(Some(0))`: the end of
    /// the stream.
    pub(in crate::driver) fn fill(&self, from: i32, most: usize) -> Result<Option<usize>, Errno> {
        splice(from, self.write.as_raw_fd(), most)
    }

    /// Moves up to `most` bytes from the pipe to a socket. `Ok(None)`: there is no room.
    pub(in crate::driver) fn drain(&self, to: i32, most: usize) -> Result<Option<usize>, Errno> {
        splice(self.read.as_raw_fd(), to, most)
    }

    /// Takes bytes out of the pipe; how many there were.
    pub(in crate::driver) fn read(&self, into: &mut [u8]) -> usize {
        let mut count = 0;
        while count < into.len() {
            let rest = &mut into[count..];
            // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`, which outlives the call.
            let n =
                unsafe { libc::read(self.read.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len()) };
            match usize::try_from(n) {
                Ok(n) if n > 0 => count += n,
                Err(_) if last_errno() == Errno(libc::EINTR) => {}
                _ => break,
            }
        }
        count
    }
}

fn splice(from: i32, to: i32, most: usize) -> Result<Option<usize>, Errno> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    loop {
        // SAFETY: takes numbers; the offsets of sockets and pipes are null.
        let n = unsafe {
            libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), most, flags)
        };
        if let Ok(n) = usize::try_from(n) {
            return Ok(Some(n));
        }
        match last_errno() {
            Errno(libc::EAGAIN) => return Ok(None),
            Errno(libc::EINTR) => {}
            e => return Err(e),
        }
    }
}
