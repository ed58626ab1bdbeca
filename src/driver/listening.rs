//! Listening sockets: what those they accept inherit, and how new connections are held off while one is closed.

use super::{Errno, sys};
use crate::config::Tcp;
use std::mem::size_of_val;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

/// Which of a socket's buffer sizes were set by hand (socket(7)); the others follow the kernel.
const SO_BUF_LOCK: i32 = 72;
/// The longest name of a congestion control, with the zero behind it (TCP_CA_NAME_MAX).
const CONGESTION_NAME_MAX: usize = 16;

/// Sets the options of a listening socket, for all it accepts from now on: accepted sockets inherit them. What `tcp`
/// does not ask for goes back to what a new socket has.
///
/// # Errors
/// What setsockopt(2) says, such as ENOENT for a congestion control the kernel does not have.
pub fn set_options(listening: &impl AsRawFd, tcp: &Tcp) -> Result<(), Errno> {
    let fd = listening.as_raw_fd();
    loosen(fd, tcp)?;
    sys::set_first(fd, tcp)?;
    sys::guard(fd, tcp)
}

/// Whose packets reach a socket, by how far they come: each router on the way lowers their TTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hears {
    /// All.
    All,
    /// Those that come with the highest TTL there is, 255, alone: hardly any, for systems begin with 64 or 128.
    TtlMax,
}

/// Says whose packets reach a socket of the family of `address` (IP_MINTTL, ip(7); IPV6_MINHOPCOUNT). A listening
/// socket that hears next to nobody answers no new connection, while those that are being made are finished: their
/// packets reach their own half-open socket (Linux, net/ipv4/tcp_ipv4.c, `tcp_v4_rcv`). Those accepted inherit it.
///
/// # Errors
/// What setsockopt(2) says.
pub fn hear(socket: &impl AsRawFd, address: SocketAddr, hears: Hears) -> Result<(), Errno> {
    let (level, name) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    };
    let least = match hears {
        Hears::All => 0,
        Hears::TtlMax => 255,
    };
    sys::set(socket.as_raw_fd(), level, name, least)
}

/// Takes back what was set before and is not asked for.
fn loosen(fd: i32, tcp: &Tcp) -> Result<(), Errno> {
    let (ip, socket) = (libc::IPPROTO_TCP, libc::SOL_SOCKET);
    let with_off = [
        (ip, libc::TCP_NODELAY, tcp.nodelay),
        (socket, libc::SO_KEEPALIVE, tcp.keepalive.is_some()),
        (ip, libc::TCP_USER_TIMEOUT, tcp.user_timeout_ms.is_some()),
        (ip, libc::TCP_NOTSENT_LOWAT, tcp.notsent_lowat_bytes.is_some()),
    ];
    for (level, name, _) in with_off.iter().filter(|(.., asked)| !asked) {
        sys::set(fd, *level, *name, 0)?;
    }
    // What has no value for off is read from a socket nobody has touched.
    let fresh = sys::socket(([0; 4], 0).into(), &Tcp { nodelay: false, ..Tcp::PLAIN })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let fresh = unsafe { OwnedFd::from_raw_fd(fresh.0) };
    loosen_buffers(fd, fresh.as_raw_fd(), tcp)?;
    if tcp.congestion.is_none() {
        let default = congestion(fresh.as_raw_fd())?;
        if congestion(fd)? != default {
            sys::set_bytes(fd, ip, libc::TCP_CONGESTION, &default)?;
        }
    }
    Ok(())
}

/// Gives buffers that nobody asks a size for the size they have on the socket `fresh`, and lets the kernel fit them
/// again. One before 5.14 cannot be told the latter.
fn loosen_buffers(fd: i32, fresh: i32, tcp: &Tcp) -> Result<(), Errno> {
    let level = libc::SOL_SOCKET;
    let buffers = [
        (libc::SO_SNDBUF, tcp.send_buffer_bytes, 1),
        (libc::SO_RCVBUF, tcp.receive_buffer_bytes, 2),
    ];
    let mut kept = get(fd, level, SO_BUF_LOCK).unwrap_or(0);
    for (name, _, bit) in buffers.iter().filter(|(_, asked, _)| asked.is_none()) {
        let default = get(fresh, level, *name)?;
        if get(fd, level, *name)? != default {
            // The kernel doubles it.
            sys::set(fd, level, *name, default / 2)?;
        }
        kept &= !*bit;
    }
    match get(fd, level, SO_BUF_LOCK) {
        Ok(locked) if locked != kept => sys::set(fd, level, SO_BUF_LOCK, kept),
        _ => Ok(()),
    }
}

/// The name of a socket's congestion control, and zeros behind it.
fn congestion(fd: i32) -> Result<[u8; CONGESTION_NAME_MAX], Errno> {
    let mut name = [0; CONGESTION_NAME_MAX];
    read(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, &mut name)?;
    Ok(name)
}

fn get(fd: i32, level: i32, name: i32) -> Result<u32, Errno> {
    let mut value = [0; 4];
    read(fd, level, name, &mut value)?;
    Ok(u32::from_ne_bytes(value))
}

fn read(fd: i32, level: i32, name: i32, into: &mut [u8]) -> Result<(), Errno> {
    #[expect(clippy::cast_possible_truncation, reason = "option values are a few bytes")]
    let mut len = size_of_val(into) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `into`, which with `len` outlives the call.
    let result =
        unsafe { libc::getsockopt(fd, level, name, into.as_mut_ptr().cast(), &raw mut len) };
    sys::check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Keepalive;
    use socket2::SockRef;
    use std::net::{TcpListener, TcpStream};

    /// The one that every kernel has, whatever its default.
    const RENO: &str = "reno";

    fn nothing() -> Tcp {
        Tcp { nodelay: false, ..Tcp::PLAIN }
    }

    fn everything() -> Tcp {
        Tcp {
            nodelay: true,
            keepalive: Some(Keepalive { idle_s: 30, interval_s: 5, probes: 3 }),
            user_timeout_ms: Some(20_000),
            send_buffer_bytes: Some(50_000),
            receive_buffer_bytes: Some(60_000),
            notsent_lowat_bytes: Some(16_000),
            congestion: Some(RENO.into()),
        }
    }

    /// What a socket shows of all options.
    fn shown(socket: &impl AsRawFd) -> (Vec<u32>, Vec<u8>) {
        let (ip, level, fd) = (libc::IPPROTO_TCP, libc::SOL_SOCKET, socket.as_raw_fd());
        let options = [
            (ip, libc::TCP_NODELAY),
            (level, libc::SO_KEEPALIVE),
            (ip, libc::TCP_USER_TIMEOUT),
            (ip, libc::TCP_NOTSENT_LOWAT),
            (level, SO_BUF_LOCK),
        ];
        let values = options.map(|(level, name)| get(fd, level, name).unwrap());
        (values.to_vec(), congestion(fd).unwrap().to_vec())
    }

    /// Buffer sizes a listening socket shows.
    fn sizes(listening: &TcpListener) -> [u32; 2] {
        let level = libc::SOL_SOCKET;
        [libc::SO_SNDBUF, libc::SO_RCVBUF].map(|n| get(listening.as_raw_fd(), level, n).unwrap())
    }

    fn accepted(listening: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
        (listening.accept().unwrap().0, client)
    }

    #[test]
    fn what_was_turned_on_is_turned_off_for_those_accepted_next() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let (untouched, _far) = accepted(&listening);
        let (defaults, before) = (shown(&untouched), sizes(&listening));
        set_options(&listening, &everything()).unwrap();
        let (changed, _far) = accepted(&listening);
        let (values, name) = shown(&changed);
        assert_eq!(values, [1, 1, 20_000, 16_000, 3]);
        assert!(name.starts_with(RENO.as_bytes()), "{name:?}");
        set_options(&listening, &nothing()).unwrap();
        assert_eq!(sizes(&listening), before);
        let (after, _far) = accepted(&listening);
        assert_eq!(shown(&after), defaults, "nodelay, keepalive, timeout, lowat, buffers fixed");
    }

    #[test]
    fn what_is_asked_for_stays_where_something_else_is_turned_off() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        set_options(&listening, &everything()).unwrap();
        let less = Tcp { send_buffer_bytes: None, user_timeout_ms: None, ..everything() };
        set_options(&listening, &less).unwrap();
        let (after, _far) = accepted(&listening);
        assert_eq!(shown(&after).0, [1, 1, 0, 16_000, 2], "the receive buffer alone is fixed");
        assert_eq!(SockRef::from(&listening).recv_buffer_size().unwrap(), 120_000);
    }

    #[test]
    fn both_ends_of_a_session_get_the_congestion_control() {
        let tcp = Tcp { congestion: Some(RENO.into()), ..Tcp::PLAIN };
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        set_options(&listening, &tcp).unwrap();
        let (accepted, client) = accepted(&listening);
        let towards = sys::socket(client.local_addr().unwrap(), &tcp).unwrap();
        // SAFETY: the descriptor was just made and nobody else has it.
        let towards = unsafe { OwnedFd::from_raw_fd(towards.0) };
        for end in [SockRef::from(&accepted), SockRef::from(&towards)] {
            let shown = end.tcp_congestion().unwrap();
            assert_eq!(shown.split(|b| *b == 0).next(), Some(RENO.as_bytes()));
        }
        let unknown = Tcp { congestion: Some("nosuch".into()), ..tcp };
        assert_eq!(set_options(&listening, &unknown), Err(Errno(libc::ENOENT)));
    }
}
