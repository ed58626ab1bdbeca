//! What a shard may ask of the kernel beyond what it needs: to poll the network card, to be scheduled before others, to
//! be given the clients of its CPU. Each may be refused, and the shard goes on without.

use super::{Errno, Socket, sys};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

/// What became of a wish that the kernel asks the network card itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardPolling {
    /// While the driver waits.
    pub waits: Result<(), Errno>,
    /// At plain reads of a session's sockets, which is how a shard that spins reads the hot ones.
    pub reads: Result<(), Errno>,
}

impl CardPolling {
    /// What a driver without a network card answers.
    pub const NONE: Self =
        Self { waits: Err(Errno(libc::EOPNOTSUPP)), reads: Err(Errno(libc::EOPNOTSUPP)) };
}

/// `struct epoll_params` of linux/eventpoll.h, which libc does not have for every C library.
#[repr(C)]
struct EpollParams {
    busy_poll_usecs: u32,
    busy_poll_budget: u16,
    prefer_busy_poll: u8,
    pad: u8,
}

/// `_IOW(0x8A, 0x01, struct epoll_params)`, Linux 6.9.
const EPIOCSPARAMS: u32 = 0x4008_8A01;
const _: () = assert!(size_of::<EpollParams>() == 8, "the request's number has its size");
/// Packets a look takes at most: the kernel's own BUSY_POLL_BUDGET.
const BUDGET: u16 = 8;

/// Lets the waits of an epoll instance poll the card for `us`.
///
/// # Errors
/// ENOTTY before Linux 6.9, EOPNOTSUPP or EINVAL from a kernel that was built without it.
pub(in crate::driver) fn poll_in_waits(poller: i32, us: u32) -> Result<(), Errno> {
    let params =
        EpollParams { busy_poll_usecs: us, busy_poll_budget: BUDGET, prefer_busy_poll: 0, pad: 0 };
    // SAFETY: the kernel reads as many bytes of `params`, which outlives the call, as the request's number says.
    sys::check(unsafe { libc::ioctl(poller, EPIOCSPARAMS as _, &raw const params) }).map(drop)
}

/// Lets plain reads of a socket, and of those a listening one accepts from now on, poll the card (SO_BUSY_POLL).
///
/// # Errors
/// EPERM where the kernel wants CAP_NET_ADMIN for it, ENOPROTOOPT where it was built without it.
pub fn poll_in_reads(socket: &impl AsRawFd, us: u32) -> Result<(), Errno> {
    sys::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BUSY_POLL, us)
}

/// How long plain reads of a driver's own sockets poll the card.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::driver) struct Reads(u32);

impl Reads {
    /// For `us`, if the kernel allows it for a socket that is made to ask.
    ///
    /// # Errors
    /// As [`poll_in_reads`], or there is no descriptor left.
    pub(in crate::driver) fn try_for(us: u32) -> Result<Self, Errno> {
        let trial = UnixDatagram::unbound().map_err(Errno::from)?;
        poll_in_reads(&trial, us).map(|()| Self(us))
    }

    /// A socket that was just made, which polls from now on.
    pub(in crate::driver) fn of(self, made: Socket) -> Socket {
        if self.0 > 0 {
            // It was allowed for another, and a read that does not poll reads as well.
            let _ = sys::set(made.0, libc::SOL_SOCKET, libc::SO_BUSY_POLL, self.0);
        }
        made
    }
}

/// Has new clients whose packets arrive on `cpu` come to this listening socket rather than to others of its
/// SO_REUSEPORT group; `None`: clients come by hash. On a CPU that no socket asks for the hash decides. It is the
/// socket's own mark, so it does not matter how many the group has, or in what order (as it would to a BPF program).
///
/// # Errors
/// What setsockopt(2) says. Kernels before 6.2 take it and go by hash all the same.
pub fn steer(listening: &impl AsRawFd, cpu: Option<usize>) -> Result<(), Errno> {
    // -1 is what a socket has that was never asked.
    let mark = cpu.map_or(u32::MAX, |cpu| u32::try_from(cpu).unwrap_or(u32::MAX));
    sys::set(listening.as_raw_fd(), libc::SOL_SOCKET, libc::SO_INCOMING_CPU, mark)
}

/// Puts the calling thread before all that have no real-time priority (SCHED_FIFO), but nothing that it starts.
///
/// # Errors
/// EPERM without CAP_SYS_NICE and beyond RLIMIT_RTPRIO, or from a sandbox.
pub fn schedule_first(priority: u8) -> Result<(), Errno> {
    let params = libc::sched_param { sched_priority: priority.into() };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // Called by its number: one C library has a function of this name that only ever fails.
    // SAFETY: `params` outlives the call, and thread 0 is the calling one.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const params) };
    if result < 0 { Err(sys::last_errno()) } else { Ok(()) }
}

/// Whether sockets can be marked so here.
///
/// # Errors
/// As [`steer`], or there is no descriptor left.
pub fn can_steer() -> Result<(), Errno> {
    let trial = UnixDatagram::unbound().map_err(Errno::from)?;
    steer(&trial, Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real-time priority of the calling thread, as /proc tells it: 0 where it has none.
    fn priority() -> u32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        // Field 40 of proc_pid_stat(5); the first here is the third.
        fields.split(' ').nth(37).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_is_scheduled_first_and_what_it_starts_is_not() {
        let shown = std::thread::spawn(|| {
            schedule_first(3).map(|()| (priority(), std::thread::spawn(priority).join().unwrap()))
        });
        match shown.join().unwrap() {
            Ok(shown) => assert_eq!(shown, (3, 0)),
            Err(e) => assert_eq!(e, Errno(libc::EPERM), "a refusal is one for want of rights"),
        }
        assert_eq!(priority(), 0);
    }

    #[test]
    fn a_priority_there_is_not_is_refused() {
        assert_eq!(schedule_first(100), Err(Errno(libc::EINVAL)));
    }

    #[test]
    fn a_socket_keeps_its_mark_until_it_is_taken_back() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let unmarked = socket.cpu_affinity().unwrap();
        steer(&socket, Some(1)).unwrap();
        assert_eq!(socket.cpu_affinity().unwrap(), 1);
        steer(&socket, None).unwrap();
        assert_eq!(socket.cpu_affinity().unwrap(), unmarked);
    }

    #[test]
    fn an_epoll_instance_has_what_it_was_given() {
        // SAFETY: takes and returns numbers.
        let poller = sys::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).unwrap();
        let given = poll_in_waits(poller, 70);
        let mut has =
            EpollParams { busy_poll_usecs: 0, busy_poll_budget: 0, prefer_busy_poll: 1, pad: 0 };
        // SAFETY: EPIOCGPARAMS, `_IOR(0x8A, 0x02, struct epoll_params)`, writes 8 bytes to `has`, which outlives it.
        unsafe { libc::ioctl(poller, 0x8008_8A02_u32 as _, &raw mut has) };
        sys::close(poller);
        match given {
            Ok(()) => assert_eq!((has.busy_poll_usecs, has.prefer_busy_poll), (70, 0)),
            Err(e) => assert_eq!(has.busy_poll_usecs, 0, "{e}: refused, so it has nothing"),
        }
    }

    #[test]
    fn sockets_made_afterwards_poll_in_reads() {
        let made = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = || Socket::owned(made().unwrap());
        let busy_us = |socket: &Socket| {
            let (mut us, mut len): (u32, libc::socklen_t) = (0, 4);
            // SAFETY: both out-parameters outlive the call, which writes 4 bytes to the first.
            let result = unsafe {
                let value = (&raw mut us).cast();
                libc::getsockopt(
                    socket.0,
                    libc::SOL_SOCKET,
                    libc::SO_BUSY_POLL,
                    value,
                    &raw mut len,
                )
            };
            assert_eq!(result, 0);
            us
        };
        let Ok(reads) = Reads::try_for(70) else { return };
        let (plain, polls) = (Reads::default().of(socket()), reads.of(socket()));
        assert_eq!(busy_us(&polls), 70);
        assert_ne!(busy_us(&plain), 70);
        [plain, polls].iter().for_each(|socket| sys::close(socket.0));
    }

    #[test]
    fn only_an_epoll_instance_takes_its_parameters() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(poll_in_waits(null.as_raw_fd(), 50), Err(Errno(libc::ENOTTY)));
    }
}
