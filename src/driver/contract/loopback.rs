//! The contract on a real kernel: far ends are sockets of the standard library at 127.0.0.1.

use super::{Far, Harness};
use crate::driver::sim::Sight;
use crate::driver::{Driver, ListenerId, Socket};
use socket2::{Domain, SockRef, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::time::Duration;

/// A real driver that can be made for a test.
pub(crate) trait Fresh: Driver + Sized {
    /// A fresh one with its own pool. `None`: this kernel does not offer it.
    fn fresh(buffers: u16, buffer_bytes: u32) -> Option<Self>;

    /// Buffers of its pool that are neither free nor a session's, because the kernel may fill them.
    fn published(&self) -> usize {
        0
    }
}

/// A real driver among local sockets.
pub(crate) struct Loopback<D> {
    driver: D,
    listeners: Vec<(ListenerId, SocketAddr)>,
    backends: Vec<TcpListener>,
    /// Sockets that make an address what it is.
    kept: Vec<socket2::Socket>,
}

struct Wire(TcpStream);

impl Far for Wire {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0.write(bytes).unwrap_or(0)
    }

    fn read(&mut self, most: usize) -> Sight {
        let mut bytes = vec![0; most];
        match self.0.read(&mut bytes) {
            Ok(0) => Sight::End,
            Ok(n) => {
                bytes.truncate(n);
                Sight::Bytes(bytes)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Sight::Nothing,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Sight::Reset,
            Err(e) => panic!("a far end's read: {e}"),
        }
    }

    fn finish(&mut self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }

    fn reset(self: Box<Self>) {
        SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn bound() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(ANY).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

impl<D: Fresh> Harness for Loopback<D> {
    type D = D;
    const REAL: bool = true;

    fn new(buffers: u16, buffer_bytes: u32) -> Option<Self> {
        let driver = D::fresh(buffers, buffer_bytes)?;
        Some(Self { driver, listeners: Vec::new(), backends: Vec::new(), kept: Vec::new() })
    }

    fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    fn driver_ref(&self) -> &D {
        &self.driver
    }

    fn listen(&mut self, listener: ListenerId) -> Socket {
        let socket = TcpListener::bind(ANY).unwrap();
        socket.set_nonblocking(true).unwrap();
        self.listeners.retain(|(id, _)| *id != listener);
        self.listeners.push((listener, socket.local_addr().unwrap()));
        Socket(socket.into_raw_fd())
    }

    fn client(&mut self, listener: ListenerId) -> Box<dyn Far> {
        let (_, address) = self.listeners.iter().find(|(id, _)| *id == listener).unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Box::new(Wire(stream))
    }

    fn backend(&mut self) -> SocketAddr {
        let listener = TcpListener::bind(ANY).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        self.backends.push(listener);
        address
    }

    fn reached(&mut self, address: SocketAddr) -> Option<Box<dyn Far>> {
        let at = |listener: &&TcpListener| listener.local_addr().is_ok_and(|its| its == address);
        let (stream, _) = self.backends.iter().find(at).unwrap().accept().ok()?;
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Some(Box::new(Wire(stream)))
    }

    fn refusing(&mut self) -> SocketAddr {
        // Bound and not listening: nobody else can take the port.
        let (socket, address) = bound();
        self.kept.push(socket);
        address
    }

    fn hanging(&mut self) -> SocketAddr {
        // A full queue: the kernel drops further SYNs.
        let (socket, address) = bound();
        socket.listen(0).unwrap();
        self.kept.push(socket);
        for _ in 0..4 {
            let waits = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            waits.set_nonblocking(true).unwrap();
            let _ = waits.connect(&address.into());
            self.kept.push(waits);
        }
        address
    }

    fn buffers_at_rest(&mut self) -> usize {
        self.driver.pool().free() + self.driver.published()
    }
}
