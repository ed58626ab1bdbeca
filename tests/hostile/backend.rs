//! A backend in a thread of this process that behaves as it is told to.

use socket2::{Domain, SockRef, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What it does with connections from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Manner {
    /// Gives back what it gets.
    Echo,
    /// Reads, and says nothing.
    Silent,
    /// Sends as fast as it can, and reads nothing.
    Flood,
    /// Neither reads nor sends.
    Deaf,
    /// Leaves them to whoever asks for them: see [`Backend::lent`].
    Lent,
}

enum Order {
    /// Resets all connections and stops listening, as a killed process does; tells when done.
    Die(std_mpsc::Sender<()>),
    /// Listens again.
    Rise(std_mpsc::Sender<()>),
    /// Does nothing at all for so long.
    Freeze(Duration),
    Quit,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    manner: Arc<AtomicU8>,
    open: Arc<AtomicUsize>,
    orders: mpsc::UnboundedSender<Order>,
    lent: Mutex<std_mpsc::Receiver<std::net::TcpStream>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// `address`: where it listens; port 0 for any.
    pub(crate) fn start(address: SocketAddr, manner: Manner) -> Self {
        let listener = listen(address, 4096).expect("a backend can listen");
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let manner = Arc::new(AtomicU8::new(manner as u8));
        let open = Arc::new(AtomicUsize::new(0));
        let (orders, inbox) = mpsc::unbounded_channel();
        let (lend, lent) = std_mpsc::channel();
        let hall = Hall { manner: Arc::clone(&manner), open: Arc::clone(&open), lend };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(hall.run(address, listener, inbox));
        });
        Self { address, manner, open, orders, lent: Mutex::new(lent), thread: Some(thread) }
    }

    /// For connections that come from now on.
    pub(crate) fn behave(&self, manner: Manner) {
        self.manner.store(manner as u8, Relaxed);
    }

    /// Connections it has now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// A connection that came while it was to lend them; blocks until one does.
    pub(crate) fn lent(&self) -> std::net::TcpStream {
        self.lent.lock().unwrap().recv().expect("the backend lives")
    }

    pub(crate) fn die(&self) {
        self.ask(Order::Die);
    }

    pub(crate) fn rise(&self) {
        self.ask(Order::Rise);
    }

    pub(crate) fn freeze(&self, time: Duration) {
        self.orders.send(Order::Freeze(time)).expect("the backend lives");
    }

    fn ask(&self, order: impl FnOnce(std_mpsc::Sender<()>) -> Order) {
        let (done, wait) = std_mpsc::channel();
        self.orders.send(order(done)).expect("the backend lives");
        wait.recv().expect("the backend does as told");
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket that listens there.
pub(crate) fn listen(address: SocketAddr, waiting: i32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(waiting)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

struct Hall {
    manner: Arc<AtomicU8>,
    open: Arc<AtomicUsize>,
    lend: std_mpsc::Sender<std::net::TcpStream>,
}

impl Hall {
    async fn run(
        self,
        address: SocketAddr,
        listener: Socket,
        mut inbox: mpsc::UnboundedReceiver<Order>,
    ) {
        let mut listener = Some(TcpListener::from_std(listener.into()).unwrap());
        let mut guests = JoinSet::new();
        loop {
            let accept = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(Order::Die(done)) => {
                        listener = None;
                        guests.shutdown().await;
                        let _ = done.send(());
                    }
                    Some(Order::Rise(done)) => {
                        let socket = listen(address, 4096).expect("it can listen again");
                        listener = Some(TcpListener::from_std(socket.into()).unwrap());
                        let _ = done.send(());
                    }
                    Some(Order::Freeze(time)) => std::thread::sleep(time),
                    Some(Order::Quit) | None => return,
                },
                Ok((stream, _)) = accept => {
                    if self.manner.load(Relaxed) == Manner::Lent as u8 {
                        let stream = stream.into_std().unwrap();
                        stream.set_nonblocking(false).unwrap();
                        let _ = self.lend.send(stream);
                        continue;
                    }
                    let guest = Guest::new(stream, Arc::clone(&self.open));
                    guests.spawn(guest.serve(self.manner.load(Relaxed)));
                },
                Some(_) = guests.join_next(), if !guests.is_empty() => {}
            }
        }
    }
}

/// A connection; cut off, it is reset.
struct Guest {
    stream: TcpStream,
    open: Arc<AtomicUsize>,
}

impl Guest {
    fn new(stream: TcpStream, open: Arc<AtomicUsize>) -> Self {
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        open.fetch_add(1, Relaxed);
        Self { stream, open }
    }

    async fn serve(self, manner: u8) {
        let done = match manner {
            m if m == Manner::Echo as u8 => self.echo().await,
            m if m == Manner::Flood as u8 => self.flood().await,
            m if m == Manner::Deaf as u8 => self.hold().await,
            _ => self.swallow().await,
        };
        if done.is_ok() {
            // An orderly end: a FIN, not a reset.
            let _ = SockRef::from(&self.stream).set_linger(None);
        }
    }

    async fn echo(&self) -> io::Result<()> {
        let mut bytes = vec![0; 16 * 1024];
        loop {
            match read(&self.stream, &mut bytes).await? {
                0 => return Ok(()),
                n => write(&self.stream, &bytes[..n]).await?,
            }
        }
    }

    async fn flood(&self) -> io::Result<()> {
        let bytes = vec![7; 64 * 1024];
        loop {
            write(&self.stream, &bytes).await?;
        }
    }

    async fn swallow(&self) -> io::Result<()> {
        let mut bytes = vec![0; 16 * 1024];
        while read(&self.stream, &mut bytes).await? > 0 {}
        Ok(())
    }

    /// Reads nothing, and sees all the same when the other end is gone.
    async fn hold(&self) -> io::Result<()> {
        loop {
            sleep(Duration::from_millis(20)).await;
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            let ready = self.stream.ready(tokio::io::Interest::READABLE);
            if let Ok(ready) = tokio::time::timeout(Duration::from_millis(1), ready).await
                && ready?.is_read_closed()
            {
                return Ok(());
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

/// Some bytes, or none at the end.
pub(crate) async fn read(stream: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// All of the bytes.
pub(crate) async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
