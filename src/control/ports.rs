//! Listening sockets: one for each lane of the fleet, in one SO_REUSEPORT group a listener. Control owns them, so a
//! shard that dies or hands over takes none with it. Closing one would reset the clients in its queue, so where lanes
//! have become fewer than sockets, lanes serve several.

use crate::config::{Listener, Name, Tcp, limits};
use crate::driver::listening::{self, Hears};
use crate::driver::{Errno, ListenerId, sys};
use crate::time::Time;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// One listener's sockets, bound and listening.
pub(super) struct Port {
    /// The listener's name in the config.
    pub(super) name: Name,
    /// What the config asks for; its port may be 0.
    pub(super) wanted: SocketAddr,
    /// Where it really listens.
    pub(super) bound: SocketAddr,
    /// At least one; the fleet says which lane serves which.
    pub(super) seats: Vec<Seat>,
}

/// One listening socket.
pub(super) struct Seat {
    /// Names it to the shards.
    pub(super) id: ListenerId,
    pub(super) socket: Socket,
}

/// Names no socket has yet.
pub(super) trait Ids: FnMut() -> Option<ListenerId> {}

impl<F: FnMut() -> Option<ListenerId>> Ids for F {}

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
            _ if error.raw_os_error() == Some(Errno::NOT_PERMITTED.0) => {
                "tcp.congestion: net.ipv4.tcp_allowed_congestion_control lists those that need no CAP_NET_ADMIN"
            }
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

    /// Whether somebody listens there.
    pub(super) fn is_in_use(&self) -> bool {
        self.error.kind() == io::ErrorKind::AddrInUse
    }
}

/// Tries the options of a listener on a socket that is closed again: whether clients that come in from now on can have
/// them.
pub(super) fn try_options(listener: &Listener) -> Result<(), PortError> {
    let domain = Domain::for_address(listener.bind);
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
        .and_then(|fresh| set_options(&fresh, &listener.tcp))
        .map_err(|error| PortError::of(listener, error))
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
    /// Opens a socket of a listener for each of `lanes`, and has it listen. The `inherited` ones are among them, all of
    /// them: none may be closed.
    pub(super) fn open(
        listener: &Listener,
        lanes: usize,
        inherited: Vec<Socket>,
        next_id: &mut impl Ids,
    ) -> Result<Self, PortError> {
        let port = Self::bind(listener, lanes, inherited, next_id)?;
        port.update(listener)?;
        Ok(port)
    }

    /// The same, but new ones do not listen until they are [updated](Self::update): nobody came in by them where they
    /// are closed instead.
    pub(super) fn bind(
        listener: &Listener,
        lanes: usize,
        inherited: Vec<Socket>,
        next_id: &mut impl Ids,
    ) -> Result<Self, PortError> {
        let failed = |error| PortError::of(listener, error);
        let mut bound = listener.bind;
        if let Some(first) = inherited.first() {
            bound = first.local_addr().map_err(failed)?.as_socket().unwrap_or(bound);
        } else if bound.port() != 0 {
            // Members of a reuseport group may be of any program of this user: without this look, a second Ringway
            // would silently share the port with the first.
            exclusive(bound).map_err(failed)?;
        }
        let seat = |socket: Socket| {
            socket.set_nonblocking(true).map_err(failed)?;
            Ok(Seat { id: next_id().ok_or_else(|| failed(too_many()))?, socket })
        };
        let seats = inherited.into_iter().map(seat).collect::<Result<_, PortError>>()?;
        let (name, wanted) = (listener.name.clone(), listener.bind);
        let mut port = Self { name, wanted, bound, seats };
        let more = port.more(listener, lanes, next_id)?;
        if let Some(first) = more.first().filter(|_| port.seats.is_empty()) {
            let address = first.socket.local_addr().map_err(failed)?;
            port.bound = address.as_socket().unwrap_or(bound);
        }
        port.seats.extend(more);
        Ok(port)
    }

    /// Binds as many sockets as are missing for each of `lanes` to have one. Until [`add`](Self::add) they do not
    /// listen, so that nobody came in by them where they are closed instead.
    pub(super) fn more(
        &self,
        listener: &Listener,
        lanes: usize,
        next_id: &mut impl Ids,
    ) -> Result<Vec<Seat>, PortError> {
        let failed = |error| PortError::of(listener, error);
        // One that is alone at its address has no group that others could join: its lanes share it.
        let is_alone = |seat: &Seat| !seat.socket.reuse_port().unwrap_or(true);
        let mut is_shared = self.seats.first().is_some_and(is_alone);
        let shared = |lane: usize| self.seats[lane % self.seats.len()].socket.try_clone();
        let mut bound = self.bound;
        let mut seats = Vec::new();
        for lane in self.seats.len()..lanes {
            let opened = if is_shared { shared(lane) } else { bound_to(bound, &listener.tcp) };
            let socket = match opened {
                Err(error) if !is_shared && !self.seats.is_empty() && is_denied(&error) => {
                    tracing::warn!(listener = %self.name, %error, "{NOT_JOINED}");
                    is_shared = true;
                    shared(lane)
                }
                opened => opened,
            };
            let socket = socket.map_err(failed)?;
            let address = socket.local_addr().map_err(failed)?;
            bound = address.as_socket().unwrap_or(bound);
            seats.push(Seat { id: next_id().ok_or_else(|| failed(too_many()))?, socket });
        }
        Ok(seats)
    }

    /// Adds what [`more`](Self::more) bound, and has it listen. One that cannot is closed again: its lane gets clients
    /// from the others.
    pub(super) fn add(&mut self, seats: Vec<Seat>, waiting_max: u32) {
        for seat in seats {
            match seat.socket.listen(backlog(waiting_max)) {
                Ok(()) => self.seats.push(seat),
                Err(error) => tracing::error!(listener = %self.name, %error,
                    "one of its sockets cannot listen, which is a bug: a shard goes without"),
            }
        }
    }

    /// Whether it is where this listener is to be.
    pub(super) fn is_of(&self, listener: &Listener) -> bool {
        self.name == listener.name && self.wanted == listener.bind
    }

    /// The place of a socket among the seats.
    pub(super) fn seat(&self, id: ListenerId) -> Option<usize> {
        self.seats.iter().position(|seat| seat.id == id)
    }

    /// Has it listen, and sets what may change while it does, for clients that come in from now on.
    pub(super) fn update(&self, listener: &Listener) -> Result<(), PortError> {
        let failed = |error| PortError::of(listener, error);
        for Seat { socket, .. } in &self.seats {
            socket.listen(backlog(listener.backlog)).map_err(failed)?;
            set_options(socket, &listener.tcp).map_err(failed)?;
        }
        Ok(())
    }

    /// Has the kernel leave new connections unanswered, while those that are being made are finished: closing the
    /// sockets would reset whoever came in a moment before. Who was not answered asks again, and then nobody listens.
    ///
    /// # Errors
    /// The kernel wants CAP_NET_ADMIN for a filter: [`turn_away_by_ttl`](Self::turn_away_by_ttl) does without.
    pub(super) fn turn_away(&self) -> io::Result<()> {
        // Classic BPF (linux/filter.h) over the TCP header: a packet with SYN is dropped, any other is taken.
        // It reads the byte of the flags.
        let drop_syn = [
            SockFilter::new(0x30, 0, 0, 13),
            SockFilter::new(0x45, 0, 1, 0x02),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        self.seats.iter().try_for_each(|seat| seat.socket.attach_filter(&drop_syn))
    }

    /// The same by the TTL of packets, which takes no privilege: who does not come with the highest is held off. Only
    /// for when no shard accepts here any more: who is accepted is not heard until [`waiting`](Self::waiting) takes it.
    pub(super) fn turn_away_by_ttl(&self) -> io::Result<()> {
        let hold_off = |seat: &Seat| listening::hear(&seat.socket, self.bound, Hears::TtlMax);
        self.seats.iter().try_for_each(hold_off).map_err(io::Error::from)
    }

    /// Takes the clients that wait in the kernel's queues, which closing the sockets would reset.
    pub(super) fn waiting(&self) -> Vec<Socket> {
        let mut clients = Vec::new();
        for Seat { socket, .. } in &self.seats {
            while let Ok((client, _)) = socket.accept() {
                let heard = listening::hear(&client, self.bound, Hears::All);
                if heard.is_ok() && client.set_nonblocking(true).is_ok() {
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

/// Waits until an address is free, but not beyond `until`: what was closed here may be open for a moment elsewhere.
pub(super) fn wait_until_free(address: SocketAddr, until: Time) {
    let is_in_use = |e: io::Error| e.kind() == io::ErrorKind::AddrInUse;
    while exclusive(address).is_err_and(is_in_use) && sys::now() < until {
        std::thread::park_timeout(Duration::from_millis(limits::LET_GO_LOOK_MS));
    }
}

/// What is told where shards share a socket that should have been the first of a group.
const NOT_JOINED: &str = "the socket that was passed in was opened by another user, or at a port that Ringway may not \
     bind, and its group takes none of Ringway's own: shards share it, and shards.steer = \"cpu\" cannot be had; let \
     its .socket unit name the address once for each shard (ListenStream=)";

/// Whether a socket may not be where others of its group are: they are another user's, or its port is a privileged one.
/// EPERM is of one of its options.
fn is_denied(error: &io::Error) -> bool {
    let is_of_option = error.raw_os_error() == Some(Errno::NOT_PERMITTED.0);
    let kinds = [io::ErrorKind::AddrInUse, io::ErrorKind::PermissionDenied];
    !is_of_option && kinds.contains(&error.kind())
}

fn too_many() -> io::Error {
    io::Error::other(
        "there are 65536 listening sockets, one for each shard and listener: use fewer",
    )
}

/// A socket of the group at an address, which does not listen yet.
fn bound_to(address: SocketAddr, tcp: &Tcp) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    only_v6(&socket, address)?;
    set_options(&socket, tcp)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
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
    listening::set_options(socket, tcp).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Duration;

    const SOON: Duration = Duration::from_millis(200);

    fn listener(bind: &str) -> Listener {
        let text = format!(
            "[listeners.l]\nbind = \"{bind}\"\nstable = \"a\"\n[pools.a]\nbackends = [\"127.0.0.1:1\"]\n"
        );
        crate::config::file::parse(&text).unwrap().listeners.remove(0)
    }

    fn ids() -> impl Ids {
        let mut ids = (0..).map(ListenerId);
        move || ids.next()
    }

    /// Clients in its queues, when they are there.
    fn waiting(port: &Port) -> Vec<Socket> {
        let mut clients = vec![];
        for _ in 0..100 {
            clients.append(&mut port.waiting());
            if !clients.is_empty() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        clients
    }

    #[test]
    fn nobody_comes_in_before_all_that_can_fail_has_been_done() {
        let listener = listener("127.0.0.1:0");
        let port = Port::bind(&listener, 2, vec![], &mut ids()).unwrap();
        TcpStream::connect(port.bound).expect_err("it is bound, and nobody listens");
        port.update(&listener).unwrap();
        TcpStream::connect(port.bound).expect("it listens");
    }

    #[test]
    fn who_was_there_is_taken_and_who_comes_is_not_answered_without_a_privilege() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let port = match Port::open(&listener(bind), 2, vec![], &mut ids()) {
                Ok(port) => port,
                Err(e) if e.error.kind() == io::ErrorKind::AddrNotAvailable => {
                    eprintln!("SKIPPED: {e}");
                    continue;
                }
                Err(e) => panic!("{e}"),
            };
            let mut before = TcpStream::connect(port.bound).unwrap();
            port.turn_away_by_ttl().unwrap();
            let late = TcpStream::connect_timeout(&port.bound, SOON).unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut, "{bind}");
            let clients = waiting(&port);
            assert_eq!(clients.len(), 1, "{bind}");
            drop(port);
            (&clients[0]).write_all(b"served").unwrap();
            before.read_exact(&mut [0; 6]).unwrap();
        }
    }

    /// Such as the last packet of a connection that was being made: what is accepted inherits who is heard.
    #[test]
    fn who_came_in_while_others_were_held_off_is_heard() {
        let port = Port::open(&listener("127.0.0.1:0"), 1, vec![], &mut ids()).unwrap();
        port.turn_away_by_ttl().unwrap();
        let near = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        near.set_ttl_v4(255).unwrap();
        near.connect(&port.bound.into()).unwrap();
        near.set_ttl_v4(64).unwrap();
        let clients = waiting(&port);
        let client = clients.first().expect("it came");
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        (&near).write_all(b"order").unwrap();
        (&*client).read_exact(&mut [0; 5]).expect("it is heard");
    }
}
