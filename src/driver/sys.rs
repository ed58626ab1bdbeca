//! The system calls both kernel drivers share, safe to call: each takes plain values and answers with an [`Errno`].

use super::{Errno, Socket, Wake};
use crate::config::{Keepalive, Tcp};
use crate::time::Time;
use std::collections::BTreeSet;
use std::io;
use std::mem::{size_of, size_of_val};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::OnceLock;

/// A socket address as the kernel reads it.
#[derive(Clone, Copy)]
pub(in crate::driver) struct RawAddress {
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

impl RawAddress {
    /// An address to be filled in, or overwritten.
    pub(in crate::driver) const fn empty() -> Self {
        // SAFETY: sockaddr_in6 is plain numbers, for which all zeros is a value.
        Self { storage: unsafe { std::mem::zeroed() }, len: 0 }
    }

    /// The kernel's form of `address`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "address families and struct sizes are small"
    )]
    pub(in crate::driver) fn new(address: SocketAddr) -> Self {
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_in is smaller than sockaddr_in6 and no more strictly aligned.
                unsafe {
                    std::ptr::from_mut(&mut raw.storage).cast::<libc::sockaddr_in>().write(sin)
                };
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                raw.storage = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                raw.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }

    /// Where the kernel finds it.
    pub(in crate::driver) const fn as_ptr(&self) -> *const libc::sockaddr {
        std::ptr::from_ref(&self.storage).cast()
    }

    /// How long it is.
    pub(in crate::driver) const fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// The address in std's form. `None` for a family that is not IP.
    fn decode(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.sin6_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the kernel wrote a sockaddr_in here.
                let sin = unsafe { *self.as_ptr().cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(sin.sin_port)).into())
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(self.storage.sin6_addr.s6_addr);
                let port = u16::from_be(self.storage.sin6_port);
                let (flow, scope) = (self.storage.sin6_flowinfo, self.storage.sin6_scope_id);
                Some(SocketAddrV6::new(ip, port, flow, scope).into())
            }
            _ => None,
        }
    }
}

/// What the last call left in errno.
pub(in crate::driver) fn last_errno() -> Errno {
    Errno::from(io::Error::last_os_error())
}

/// `result`, or errno where it is negative.
pub(in crate::driver) fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// The monotonic clock.
#[must_use]
#[expect(clippy::cast_sign_loss, reason = "the monotonic clock is never negative")]
pub fn now() -> Time {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` outlives the call, and CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    Time(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// CPU time of the calling thread, in nanoseconds.
#[expect(clippy::cast_sign_loss, reason = "a thread's time is never negative")]
pub(in crate::driver) fn thread_cpu_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` outlives the call, and the calling thread's clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Lets the calling thread rest.
pub(in crate::driver) fn rest(ms: i32) {
    // SAFETY: no descriptor is passed, so none is looked at.
    unsafe { libc::poll(std::ptr::null_mut(), 0, ms) };
}

/// Gives memory that was freed back to the system, as far as the allocator can. May take milliseconds.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number; the allocator takes its own locks.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// A non-blocking TCP socket towards `address`, with those of `tcp`'s options that matter from the first byte.
pub(in crate::driver) fn socket(address: SocketAddr, tcp: &Tcp) -> Result<Socket, Errno> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes and returns numbers.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    match set_first(fd, tcp) {
        Ok(()) => Ok(Socket(fd)),
        Err(e) => {
            close(fd);
            Err(e)
        }
    }
}

/// The options that matter from the first byte, as far as they are asked for.
pub(in crate::driver) fn set_first(fd: i32, tcp: &Tcp) -> Result<(), Errno> {
    let (ip, socket) = (libc::IPPROTO_TCP, libc::SOL_SOCKET);
    // Urgent data is part of the stream (RFC 6093 6); without this its last byte is kept out of it, and so lost.
    set(fd, socket, libc::SO_OOBINLINE, 1)?;
    if tcp.nodelay {
        set(fd, ip, libc::TCP_NODELAY, 1)?;
    }
    let optional = [
        (socket, libc::SO_SNDBUF, tcp.send_buffer_bytes),
        (socket, libc::SO_RCVBUF, tcp.receive_buffer_bytes),
    ];
    for (level, name, value) in optional {
        if let Some(value) = value {
            set(fd, level, name, value)?;
        }
    }
    let Some(congestion) = &tcp.congestion else { return Ok(()) };
    set_bytes(fd, ip, libc::TCP_CONGESTION, congestion.as_bytes())
}

/// Silence before the first probe of a socket, in seconds.
///
/// Where TCP_USER_TIMEOUT is set, the kernel ends a connection by that as soon as one probe has no answer yet
/// (tcp_keepalive_timer in net/ipv4/tcp_timer.c), so probing begins early enough that all probes fit in. And sockets
/// that fell silent together do not probe together: thousands of probes at once overflow a queue on their way.
fn probes_after(fd: i32, keepalive: Keepalive, user_timeout_ms: Option<u32>) -> u32 {
    let Keepalive { idle_s, interval_s, probes } = keepalive;
    let fits = |ms: u32| (ms / 1000).saturating_sub(interval_s.saturating_mul(probes));
    let latest = user_timeout_ms.map_or(idle_s, |ms| idle_s.min(fits(ms))).max(1);
    latest - fd.unsigned_abs() % (latest / 3 + 1)
}

/// The options that find a vanished end or a stalled one: six calls, which a short session has no use for.
pub(in crate::driver) fn guard(fd: i32, tcp: &Tcp) -> Result<(), Errno> {
    let (ip, socket) = (libc::IPPROTO_TCP, libc::SOL_SOCKET);
    if let Some(keepalive) = tcp.keepalive {
        let Keepalive { interval_s, probes, .. } = keepalive;
        set(fd, socket, libc::SO_KEEPALIVE, 1)?;
        set(fd, ip, libc::TCP_KEEPIDLE, probes_after(fd, keepalive, tcp.user_timeout_ms))?;
        set(fd, ip, libc::TCP_KEEPINTVL, interval_s)?;
        set(fd, ip, libc::TCP_KEEPCNT, probes)?;
    }
    if let Some(bytes) = tcp.notsent_lowat_bytes {
        set(fd, ip, libc::TCP_NOTSENT_LOWAT, bytes)?;
    }
    tcp.user_timeout_ms.map_or(Ok(()), |ms| set(fd, ip, libc::TCP_USER_TIMEOUT, ms))
}

pub(in crate::driver) fn set(fd: i32, level: i32, name: i32, value: u32) -> Result<(), Errno> {
    set_bytes(fd, level, name, &value.to_ne_bytes())
}

#[expect(clippy::cast_possible_truncation, reason = "option values are a few bytes")]
pub(in crate::driver) fn set_bytes(
    fd: i32,
    level: i32,
    name: i32,
    value: &[u8],
) -> Result<(), Errno> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: `value` outlives the call, which reads `len` bytes of it.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) }).map(drop)
}

/// Begins to connect a non-blocking socket. `Ok(true)`: it is connected already.
pub(in crate::driver) fn connect(fd: i32, address: SocketAddr) -> Result<bool, Errno> {
    let raw = RawAddress::new(address);
    // SAFETY: `raw` outlives the call.
    match check(unsafe { libc::connect(fd, raw.as_ptr(), raw.len()) }) {
        Ok(_) => Ok(true),
        Err(Errno(libc::EINPROGRESS)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes the error a socket holds (SO_ERROR).
pub(in crate::driver) fn take_error(fd: i32) -> Result<(), Errno> {
    let mut error: libc::c_int = 0;
    #[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
    let mut len = size_of_val(&error) as libc::socklen_t;
    // SAFETY: both out-parameters outlive the call and `len` is the size of the first.
    check(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &raw mut len,
        )
    })?;
    if error == 0 { Ok(()) } else { Err(Errno(error)) }
}

/// Whether a connection has neither ended nor failed, by a poll(2) that does not wait: it hears an end that stands
/// behind bytes nobody has read yet.
pub(in crate::driver) fn stands(fd: i32) -> bool {
    let mut watched = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: the kernel writes to `watched`, the one entry it is told of, which outlives the call.
    unsafe { libc::poll(&raw mut watched, 1, 0) == 0 }
}

/// The next client of a non-blocking listening socket. `Ok(None)`: nobody waits.
pub(in crate::driver) fn accept(fd: i32) -> Result<Option<Socket>, Errno> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    loop {
        // SAFETY: null addresses are allowed and say that the caller does not want them.
        match check(unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags) })
        {
            Ok(client) => return Ok(Some(Socket(client))),
            Err(Errno(libc::EAGAIN)) => return Ok(None),
            Err(Errno(libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Receives what is there. `Ok(None)`: nothing yet; `Ok(Some(0))`: the end of the stream.
pub(in crate::driver) fn recv(fd: i32, into: &mut [u8]) -> Result<Option<usize>, Errno> {
    recv_as(fd, into, 0)
}

/// Looks at what is there and leaves it there; answers as [`recv`] does.
pub(in crate::driver) fn peek(fd: i32, into: &mut [u8]) -> Result<Option<usize>, Errno> {
    recv_as(fd, into, libc::MSG_PEEK)
}

/// Drops the first `seen.len()` bytes of what was [peeked](peek) at, without copying them (MSG_TRUNC, tcp(7)).
pub(in crate::driver) fn discard(fd: i32, mut seen: &mut [u8]) -> Result<(), Errno> {
    while !seen.is_empty() {
        match recv_as(fd, seen, libc::MSG_TRUNC)? {
            Some(n) if n > 0 => seen = &mut seen[n..],
            // What was seen is still there, unless somebody else read it.
            _ => return Err(Errno(libc::EIO)),
        }
    }
    Ok(())
}

fn recv_as(fd: i32, into: &mut [u8], flags: i32) -> Result<Option<usize>, Errno> {
    let (start, len) = (into.as_mut_ptr().cast(), into.len());
    loop {
        // SAFETY: the kernel writes at most `len` bytes to `into`, which outlives the call.
        let n = unsafe { libc::recv(fd, start, len, flags | libc::MSG_DONTWAIT) };
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

/// Sends as much as there is room for; 0 where there is none.
pub(in crate::driver) fn send(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: the kernel reads `bytes.len()` bytes of `bytes`, which outlives the call.
        let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
        if let Ok(n) = usize::try_from(n) {
            return Ok(n);
        }
        match last_errno() {
            Errno(libc::EAGAIN) => return Ok(0),
            Errno(libc::EINTR) => {}
            e => return Err(e),
        }
    }
}

/// How many bytes a socket's send buffer is thought to have room for: SO_SNDBUF less what is queued (SIOCOUTQ, tcp(7)).
pub(in crate::driver) fn send_room(fd: i32) -> usize {
    let (mut size, mut queued): (libc::c_int, libc::c_int) = (0, 0);
    #[expect(clippy::cast_possible_truncation, reason = "the size of an int")]
    let mut len = size_of_val(&size) as libc::socklen_t;
    // SAFETY: the out-parameters outlive both calls, and both are ints as the kernel expects.
    let results = unsafe {
        let value = (&raw mut size).cast();
        (
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, value, &raw mut len),
            libc::ioctl(fd, libc::TIOCOUTQ, &raw mut queued),
        )
    };
    if results == (0, 0) { usize::try_from(size - queued).unwrap_or(0) } else { 0 }
}

/// Sends a FIN behind all bytes sent so far.
pub(in crate::driver) fn finish(fd: i32) -> Result<(), Errno> {
    // SAFETY: takes and returns numbers.
    check(unsafe { libc::shutdown(fd, libc::SHUT_WR) }).map(drop)
}

/// Resets the connection at once and ends what waits on it: connect(2) to AF_UNSPEC dissolves a TCP association, which
/// sends a reset where one is due (RFC 9293 3.10.5). Unlike a close with SO_LINGER 0 it needs nothing to be at rest.
pub(in crate::driver) fn abort(fd: i32) {
    let mut unspec = RawAddress::empty();
    unspec.storage.sin6_family = libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap_or(0);
    #[expect(clippy::cast_possible_truncation, reason = "the size of a small struct")]
    let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: `unspec` outlives the call and is larger than `len`.
    unsafe { libc::connect(fd, unspec.as_ptr(), len) };
}

/// Closes a descriptor.
pub(in crate::driver) fn close(fd: i32) {
    // SAFETY: takes a number; the contract says that it is open, the caller's, and that nothing of it is in flight.
    unsafe { libc::close(fd) };
}

/// The address of the other end.
pub(in crate::driver) fn far_address(fd: i32) -> Result<SocketAddr, Errno> {
    // SAFETY: `address_by` passes out-parameters that outlive the call, the second being the size of the first.
    address_by(|address, len| unsafe { libc::getpeername(fd, address, len) })
}

/// The address of this end.
pub(in crate::driver) fn near_address(fd: i32) -> Result<SocketAddr, Errno> {
    // SAFETY: as above.
    let near = address_by(|address, len| unsafe { libc::getsockname(fd, address, len) })?;
    // A socket that was taken apart has the port 0.
    if near.port() == 0 { Err(Errno(libc::ENOTCONN)) } else { Ok(near) }
}

/// Whether a connection to `address` has reached itself. Nothing is asked of the kernel where it gives that port to no
/// connection.
pub(in crate::driver) fn is_its_own_end(fd: i32, address: SocketAddr) -> bool {
    given_out().contains(&address.port()) && near_address(fd) == Ok(address)
}

/// The ports that connections begin at (ip(7), ip_local_port_range), as they were when this was asked first; all where
/// the kernel does not say.
fn given_out() -> &'static RangeInclusive<u16> {
    static RANGE: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    RANGE.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let mut ends = text.iter().flat_map(|t| t.split_whitespace()).map_while(|n| n.parse().ok());
        ends.next().zip(ends.next()).map_or(1..=u16::MAX, |(first, last)| first..=last)
    })
}

fn address_by(
    ask: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int,
) -> Result<SocketAddr, Errno> {
    let mut raw = RawAddress::empty();
    #[expect(clippy::cast_possible_truncation, reason = "the size of a small struct")]
    let mut len = size_of_val(&raw.storage) as libc::socklen_t;
    check(ask((&raw mut raw.storage).cast(), &raw mut len))?;
    raw.decode().ok_or(Errno(libc::EAFNOSUPPORT))
}

/// An eventfd: what wakes a driver from another thread. Closed when the last owner drops it.
#[derive(Debug)]
pub(in crate::driver) struct EventFd(i32);

impl EventFd {
    /// A new one, at zero. It blocks, for a ring reads it only so.
    pub(in crate::driver) fn new() -> io::Result<Self> {
        // SAFETY: takes and returns numbers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(fd)) }
    }

    /// Its descriptor.
    pub(in crate::driver) const fn fd(&self) -> i32 {
        self.0
    }

    /// Back to zero.
    pub(in crate::driver) fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: an eventfd gives 8 bytes, and `count` is as large.
        unsafe { libc::read(self.0, (&raw mut count).cast(), 8) };
    }
}

impl Wake for EventFd {
    fn wake(&self) {
        let one = 1_u64;
        // SAFETY: an eventfd takes 8 bytes, and `one` is as large. It fails only at its maximum, which is awake enough.
        unsafe { libc::write(self.0, (&raw const one).cast(), 8) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// The CPUs this thread may run on.
#[must_use]
pub fn affinity() -> BTreeSet<usize> {
    // SAFETY: cpu_set_t is plain bits, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` outlives the call and its size is given.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result != 0 {
        return BTreeSet::from([0]);
    }
    // SAFETY: CPU_ISSET only reads bits below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Binds this thread to one CPU.
///
/// # Errors
/// Where the CPU does not exist or is not allowed.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: cpu_set_t is plain bits, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit is within `set`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` outlives the call and its size is given.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets what `command` starts run on this CPU alone, and end when the thread that starts it does.
pub fn confine(command: &mut Command, cpu: usize) {
    let in_child = move || {
        pin(cpu)?;
        // SAFETY: takes and returns numbers.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and touches nothing but its own stack: it takes
    // no lock and no memory.
    unsafe { command.pre_exec(in_child) };
}

/// Raises the limit of open descriptors as far as it goes; returns it.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives both calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
    }
    limit.rlim_cur
}

/// Has the kernel make its table of this process's descriptors so large at once. It grows by doubling otherwise, and
/// where threads share it, whoever needs the next descriptor waits for an RCU grace period then (Linux, fs/file.c,
/// `expand_fdtable`): 20 to 50 ms in which a shard moves nothing.
///
/// # Errors
/// More than the limit of open descriptors, or no memory for it.
pub fn size_descriptor_table(descriptors: u64) -> io::Result<()> {
    let any = std::fs::File::open("/dev/null")?;
    let last = i32::try_from(descriptors.saturating_sub(1)).unwrap_or(i32::MAX);
    // SAFETY: takes and returns numbers, of which the first names an open descriptor.
    let high = unsafe { libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, last) };
    check(high)?;
    // SAFETY: the descriptor was just made and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(high) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_probes_fit_into_the_user_timeout_and_sockets_do_not_probe_together() {
        let keepalive = Keepalive { idle_s: 30, interval_s: 5, probes: 3 };
        let after = |timeout_ms| (0..100).map(move |fd| probes_after(fd, keepalive, timeout_ms));
        assert_eq!((after(None).min(), after(None).max()), (Some(20), Some(30)));
        assert_eq!((after(Some(30_000)).min(), after(Some(30_000)).max()), (Some(10), Some(15)));
        assert!(after(Some(5000)).all(|s| s == 1), "they cannot fit");
    }

    #[test]
    fn a_connection_that_has_reached_itself_is_known() {
        let alone =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        alone.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let own = alone.local_addr().unwrap();
        alone.connect(&own).expect("nobody listens there, and yet");
        assert!(is_its_own_end(alone.as_raw_fd(), own.as_socket().unwrap()));
        let there = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = there.local_addr().unwrap();
        let near = std::net::TcpStream::connect(at).unwrap();
        assert!(!is_its_own_end(near.as_raw_fd(), at));
        assert!(!given_out().contains(&80), "{:?}", given_out());
    }

    #[test]
    fn the_table_of_descriptors_is_as_large_as_asked_for() {
        size_descriptor_table(700).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(size.trim().parse::<u64>().unwrap() >= 700, "{size}");
        size_descriptor_table(u64::MAX).expect_err("no limit is as high");
    }
}
