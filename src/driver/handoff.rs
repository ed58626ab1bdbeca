//! Descriptors that go to another process or come from one: over a Unix socket (SCM_RIGHTS, unix(7)), by inheritance
//! from a service manager (sd_listen_fds(3)), or as the standard input of a process that was started for that.

use super::Socket;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Descriptors that go with one message at most (SCM_MAX_FD).
pub const DESCRIPTORS_MAX: usize = 253;
/// The first descriptor a service manager passes (SD_LISTEN_FDS_START).
const LISTEN_FDS_START: RawFd = 3;

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Socket {
    /// Its descriptor, for an owner who knows that nothing of it is in flight. Only for sockets of the kernel's.
    #[must_use]
    pub fn into_owned(self) -> OwnedFd {
        // SAFETY: a socket is the only owner of its descriptor, and is gone after this.
        unsafe { OwnedFd::from_raw_fd(self.0) }
    }
}

/// Room for the control message of [`DESCRIPTORS_MAX`] descriptors, aligned as its header must be.
#[repr(C, align(8))]
struct Control([u8; 1040]);

#[expect(clippy::cast_possible_truncation, reason = "at most 253 descriptors of 4 bytes")]
const fn rights_bytes(count: usize) -> u32 {
    (count * size_of::<RawFd>()) as u32
}

/// Sends `bytes`, and `descriptors` with the first of them; how many bytes were taken.
///
/// # Errors
/// What sendmsg(2) says; `InvalidInput` for more than [`DESCRIPTORS_MAX`].
pub fn send(to: &impl AsRawFd, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut control = Control([0; 1040]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain numbers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let length = rights_bytes(descriptors.len());
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
        // SAFETY: the control buffer is aligned and, with 253 descriptors at most, larger than msg_controllen, so
        // its first header and the descriptors behind it are within.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
            let to = libc::CMSG_DATA(header).cast::<RawFd>();
            std::ptr::copy_nonoverlapping(descriptors.as_ptr(), to, descriptors.len());
        }
    }
    loop {
        // SAFETY: `message` and all it points to outlive the call, which only reads them.
        let n = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) if interrupted() => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

/// Receives into `bytes`, with the descriptors that came along, close-on-exec; how many bytes there were, 0 at the end.
/// Where this process may not open as many descriptors as came, none is received.
///
/// # Errors
/// What recvmsg(2) says.
pub fn receive(from: &impl AsRawFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; 1040]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain numbers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    let n = loop {
        let flags = libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `message` and all it points to outlive the call, and their sizes are given.
        let n = unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, flags) };
        match usize::try_from(n) {
            Ok(n) => break n,
            Err(_) if interrupted() => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    };
    let mut descriptors = rights(&message);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        descriptors.clear();
    }
    Ok((n, descriptors))
}

/// The descriptors in a message that was just received.
fn rights(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: the kernel wrote msg_controllen bytes of whole headers to the control buffer, and the macros stay within.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    // The kernel opened it for this process, and nobody else knows of it.
                    descriptors.push(OwnedFd::from_raw_fd(first.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    descriptors
}

fn interrupted() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
}

/// Process and user id of the other end of a Unix stream, as they were when it was made (SO_PEERCRED).
///
/// # Errors
/// What getsockopt(2) says.
pub fn other_end(stream: &impl AsRawFd) -> io::Result<(i32, u32)> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    #[expect(clippy::cast_possible_truncation, reason = "the size of a small struct")]
    let mut length = size_of_val(&who) as libc::socklen_t;
    // SAFETY: both out-parameters outlive the call and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok((who.pid, who.uid)) } else { Err(io::Error::last_os_error()) }
}

/// The user this process acts as.
#[must_use]
pub fn own_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Takes what stands at standard input, and leaves `/dev/null` there.
///
/// # Errors
/// Where there is nothing, or no descriptor is left.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = std::fs::File::open("/dev/null")?;
    // SAFETY: takes numbers; 0 is open and stays so, only what it leads to changes.
    let result = unsafe { libc::dup2(nothing.as_raw_fd(), libc::STDIN_FILENO) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(taken) }
}

/// The first `count` descriptors that a service manager passed, close-on-exec from now on. None the second time.
#[must_use]
pub fn take_passed(count: usize) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let numbers = (LISTEN_FDS_START..).take(count.min(DESCRIPTORS_MAX * 1024));
    // SAFETY: fcntl takes numbers, and fails for what is not open.
    let open = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: the manager opened them for this process, which has opened nothing before it asks for them here, once.
    numbers.take_while(open).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_in_order_and_work() {
        let (here, there) = UnixStream::pair().unwrap();
        let pairs: Vec<_> = (0..DESCRIPTORS_MAX / 2).map(|_| UnixStream::pair().unwrap()).collect();
        let numbers: Vec<RawFd> = pairs.iter().map(|(a, _)| a.as_raw_fd()).collect();
        assert_eq!(send(&here, b"head", &numbers).unwrap(), 4);
        (&here).write_all(b"body").unwrap();
        let mut bytes = [0; 8];
        let (n, came) = receive(&there, &mut bytes[..4]).unwrap();
        assert_eq!((n, &bytes[..4], came.len()), (4, &b"head"[..], pairs.len()));
        (&there).read_exact(&mut bytes[..4]).unwrap();
        assert_eq!(&bytes[..4], b"body");
        for (i, (came, (_, far))) in came.into_iter().zip(&pairs).enumerate() {
            let word = format!("{i:04}");
            UnixStream::from(came).write_all(word.as_bytes()).unwrap();
            let mut heard = [0; 4];
            let mut far = far;
            far.read_exact(&mut heard).unwrap();
            assert_eq!(heard, word.as_bytes());
        }
    }

    #[test]
    fn too_many_descriptors_are_refused_and_the_end_is_told() {
        let (here, there) = UnixStream::pair().unwrap();
        let numbers = vec![here.as_raw_fd(); DESCRIPTORS_MAX + 1];
        assert_eq!(send(&here, b"x", &numbers).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        drop(here);
        let (n, came) = receive(&there, &mut [0; 4]).unwrap();
        assert_eq!((n, came.len()), (0, 0));
    }

    #[test]
    fn the_other_end_is_this_process_and_user() {
        let (here, _there) = UnixStream::pair().unwrap();
        let (pid, user) = other_end(&here).unwrap();
        assert_eq!((u32::try_from(pid).unwrap(), user), (std::process::id(), own_user()));
    }
}
