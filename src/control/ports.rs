//! Listening sockets: one for each lane of the fleet, in one SO_REUSEPORT group a listener. Control owns them, so a
//! shard that dies or hands over takes none with it.

use crate::config::{Listener, Name, Tcp, limits};
use crate::driver::{ListenerId, sys};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// One listener's sockets, bound and listening.
pub(super) struct Port {
    /// Names it to the shards.
    pub(super) id: ListenerId,
    /// The listener's name in the config.
    pub(super) name: Name,
    /// What the config asks for; its port may be 0.
    pub(super) wanted: SocketAddr,
    /// Where it really listens.
    pub(super) bound: SocketAddr,
    /// One for each lane, or for the first few.
    pub(super) sockets: Vec<Socket>,
}

/// A socket that could not listen: whose fault it is and what to do.
#[derive(Debug)]
pub struct PortError {
    /// What of the config asks for it.
    key: String,
    bind: SocketAddr,
    error: io::Error,
}

impl std::fmt::Display for PortError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, bind, error } = self;
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "another program listens there: stop it or change bind",
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE: grant it or change bind"
            }
            io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
            // Of all that is asked for only this can be missing.
            io::ErrorKind::NotFound => {
                "this kernel has no such tcp.congestion: net.ipv4.tcp_available_congestion_control lists those it has"
            }
            _ => "the system refused it",
        };
        write!(f, "{key}: cannot listen on {bind}: {error} ({advice})")
    }
}

impl PortError {
    fn of(listener: &Listener, error: io::Error) -> Self {
        Self { key: format!("listeners.{}.bind", listener.name), bind: listener.bind, error }
    }
}

/// A socket for the admin endpoint, which shares its port with nobody.
///
/// # Errors
/// Where the address cannot be had.
pub fn open_admin(bind: SocketAddr) -> Result<TcpListener, PortError> {
    let open = || {
        let socket = exclusive(bind)?;
        socket.listen(backlog(limits::ADMIN_WAITING_MAX))?;
        Ok(socket.into())
    };
    open().map_err(|error| PortError { key: "admin.bind".to_owned(), bind, error })
}

impl Port {
    /// Binds `lanes` sockets for a listener, `inherited` ones among them.
    pub(super) fn open(
        id: ListenerId,
        listener: &Listener,
        lanes: usize,
        inherited: Vec<Socket>,
    ) -> Result<Self, PortError> {
        let failed = |error| PortError::of(listener, error);
        let mut bound = listener.bind;
        // One that is alone at its address has no group that others could join: its lanes share it.
        let mut is_alone = false;
        if let Some(first) = inherited.first() {
            bound = first.local_addr().map_err(failed)?.as_socket().unwrap_or(bound);
            is_alone = !first.reuse_port().map_err(failed)?;
        } else if bound.port() != 0 {
            // Members of a reuseport group may be of any program of this user: without this look, a second Ringway
            // would silently share the port with the first.
            exclusive(bound).map_err(failed)?;
        }
        let mut sockets = inherited;
        let old = sockets.len();
        while sockets.len() < lanes {
            let socket = if is_alone {
                sockets[sockets.len() % old].try_clone().map_err(failed)?
            } else {
                open(bound, listener.backlog, &listener.tcp).map_err(failed)?
            };
            let address = socket.local_addr().map_err(failed)?;
            bound = address.as_socket().unwrap_or(bound);
            sockets.push(socket);
        }
        let (name, wanted) = (listener.name.clone(), listener.bind);
        let port = Self { id, name, wanted, bound, sockets };
        if old > 0 {
            port.sockets.iter().try_for_each(|s| s.set_nonblocking(true)).map_err(failed)?;
            port.update(listener)?;
        }
        Ok(port)
    }

    /// The ports of one listener: more than one where it inherited more sockets than there are lanes, for none of them
    /// may be closed. `next_id` gives each its id.
    pub(super) fn open_all(
        listener: &Listener,
        lanes: usize,
        mut inherited: Vec<Socket>,
        mut next_id: impl FnMut() -> ListenerId,
    ) -> Result<Vec<Self>, PortError> {
        let mut more = inherited.split_off(inherited.len().min(lanes));
        let mut ports = vec![Self::open(next_id(), listener, lanes, inherited)?];
        while !more.is_empty() {
            let rest = more.split_off(more.len().min(lanes));
            let few = std::mem::replace(&mut more, rest);
            ports.push(Self::open(next_id(), listener, few.len(), few)?);
        }
        Ok(ports)
    }

    /// Sets what may change while it listens, for clients that come in from now on.
    pub(super) fn update(&self, listener: &Listener) -> Result<(), PortError> {
        let failed = |error| PortError::of(listener, error);
        for socket in &self.sockets {
            socket.listen(backlog(listener.backlog)).map_err(failed)?;
            set_options(socket, &listener.tcp).map_err(failed)?;
        }
        Ok(())
    }

    /// Has the kernel leave new connections unanswered, while those that are being made are finished: closing the
    /// sockets would reset whoever came in a moment before. Who was not answered asks again, and then nobody listens.
    pub(super) fn turn_away(&self) {
        // Classic BPF (linux/filter.h) over the TCP header: a packet with SYN is dropped, any other is taken.
        // It reads the byte of the flags.
        let drop_syn = [
            SockFilter::new(0x30, 0, 0, 13),
            SockFilter::new(0x45, 0, 1, 0x02),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        for socket in &self.sockets {
            if let Err(error) = socket.attach_filter(&drop_syn) {
                tracing::warn!(listener = %self.name, %error,
                    "new connections cannot be held off: some may be reset while the listener closes");
            }
        }
    }

    /// Takes the clients that wait in the kernel's queues, which closing the sockets would reset.
    pub(super) fn waiting(&self) -> Vec<Socket> {
        let mut clients = Vec::new();
        for socket in &self.sockets {
            while let Ok((client, _)) = socket.accept() {
                if client.set_nonblocking(true).is_ok() {
                    clients.push(client);
                }
            }
        }
        clients
    }
}

/// A socket that holds the address alone. It fails where somebody else does.
fn exclusive(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run that still linger are no reason to fail.
    socket.set_reuse_address(true)?;
    only_v6(&socket, address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn open(address: SocketAddr, waiting_max: u32, tcp: &Tcp) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    only_v6(&socket, address)?;
    set_options(&socket, tcp)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(waiting_max))?;
    Ok(socket)
}

/// An IPv6 listener takes IPv6 alone, whatever the machine's default, so that `[::]` and `0.0.0.0` can stand side by
/// side.
fn only_v6(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() { socket.set_only_v6(true) } else { Ok(()) }
}

fn backlog(waiting_max: u32) -> i32 {
    i32::try_from(waiting_max).unwrap_or(i32::MAX)
}

fn set_options(socket: &Socket, tcp: &Tcp) -> io::Result<()> {
    sys::set_options(socket, tcp).map_err(io::Error::from)
}
