//! Clients, backends, and the bytes between them.

use socket2::{Domain, SockRef, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long any one read or write may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A port nobody has, below those the kernel gives out, so that no other test is given it meanwhile.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 190) * 100;
    loop {
        let offset = u32::from(NEXT.fetch_add(1, SeqCst));
        let port = u16::try_from(11_000 + (first + offset) % 19_000).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// `len` bytes that follow from `seed` and look like nothing else.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| step()).collect();
    bytes.truncate(len);
    bytes
}

/// Fails where two streams differ, without printing them.
pub fn assert_same(got: &[u8], sent: &[u8]) {
    let differs = got.iter().zip(sent).position(|(g, s)| g != s);
    assert_eq!((got.len(), differs), (sent.len(), None), "(bytes, first that differs)");
}

/// Gives a stream the time limits and TCP_NODELAY that all tests use.
pub fn ready(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A client.
pub fn connect(to: SocketAddr) -> TcpStream {
    ready(TcpStream::connect_timeout(&to, PATIENCE).expect("somebody listens"))
}

/// Resets a connection.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What a reader finds at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An orderly end of stream.
    Eof,
    /// A reset.
    Reset,
}

/// Reads to the end: the bytes, and how it ended.
pub fn read_all(mut stream: &TcpStream) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, End::Eof),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => (bytes, End::Reset),
        Err(e) => panic!("after {} bytes: {e}", bytes.len()),
    }
}

/// Connects where nothing but the end is expected: a reset may come before the kernel has told of the connection.
pub fn connect_to_its_end(to: SocketAddr) -> (Vec<u8>, End) {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(stream) => read_all(&ready(stream)),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => (vec![], End::Reset),
        Err(e) => panic!("{e}"),
    }
}

/// Sends `message` and reads as many bytes back. An error, or bytes that differ, as text.
pub fn try_echo(mut stream: &TcpStream, message: &[u8]) -> Result<(), String> {
    let failed = |doing: &'static str| move |e: std::io::Error| format!("{doing}: {e}");
    stream.write_all(message).map_err(failed("write"))?;
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back).map_err(failed("read"))?;
    if back == message { Ok(()) } else { Err("bytes differ".to_owned()) }
}

/// [`try_echo`], which must not fail.
pub fn echo(stream: &TcpStream, message: &[u8]) {
    try_echo(stream, message).expect("an echo");
}

/// A backend: one thread a connection.
pub struct Backend {
    pub at: SocketAddr,
    accepted: Arc<AtomicUsize>,
    leaving: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Serves each connection with `serve`.
    pub fn serving(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = listen(1024);
        let at = listener.local_addr().unwrap();
        let (accepted, leaving) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, left, serve) = (Arc::clone(&accepted), Arc::clone(&leaving), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if left.load(SeqCst) {
                    return;
                }
                count.fetch_add(1, SeqCst);
                let serve = Arc::clone(&serve);
                let worker = std::thread::Builder::new().stack_size(128 << 10);
                worker.spawn(move || serve(ready(stream))).expect("a thread");
            }
        });
        Self { at, accepted, leaving, thread: Some(thread) }
    }

    /// Sends back what it gets, and finishes when its client has.
    pub fn echo() -> Self {
        Self::serving(|stream| {
            stream.set_read_timeout(None).unwrap();
            let mut buffer = vec![0; 32 << 10];
            loop {
                match (&stream).read(&mut buffer) {
                    Ok(n) if n > 0 && (&stream).write_all(&buffer[..n]).is_ok() => {}
                    _ => return,
                }
            }
        })
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.leaving.store(true, SeqCst);
        let _ = TcpStream::connect(self.at);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listening socket on a port of the kernel's choice.
pub fn listen(backlog: i32) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(backlog).unwrap();
    socket.into()
}

/// A session seen from both ends, without a thread: the test plays client and backend.
pub struct Pair {
    pub client: TcpStream,
    pub backend: TcpStream,
}

/// Where a test plays the backend itself.
pub struct Stage(TcpListener);

impl Stage {
    pub fn new() -> Self {
        Self(listen(1024))
    }

    pub fn at(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next session that Ringway opens.
    pub fn accept(&self) -> TcpStream {
        self.0.set_nonblocking(true).unwrap();
        let mut got = None;
        super::until(10_000, "Ringway connects to the backend", || {
            got = self.0.accept().ok();
            got.is_some()
        });
        let (stream, _) = got.expect("just seen");
        stream.set_nonblocking(false).unwrap();
        ready(stream)
    }

    /// Opens a session through Ringway at `through`. One at a time, so that the ends belong together.
    pub fn open(&self, through: SocketAddr) -> Pair {
        let client = connect(through);
        Pair { client, backend: self.accept() }
    }

    /// The same, when a byte has crossed: the proxy knows that the backend is there.
    pub fn open_and_greet(&self, through: SocketAddr) -> Pair {
        let mut pair = self.open(through);
        pair.client.write_all(b"!").unwrap();
        pair.backend.read_exact(&mut [0]).unwrap();
        pair
    }
}

/// A backend that takes no more connections and does not refuse them either: its queue is full.
pub struct BlackHole {
    pub listener: TcpListener,
    fill: Vec<TcpStream>,
}

impl BlackHole {
    pub fn new() -> Self {
        let listener = listen(0);
        let at = listener.local_addr().unwrap();
        let mut fill = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(150)) {
            fill.push(stream);
            assert!(fill.len() < 64, "the queue never fills");
        }
        Self { listener, fill }
    }

    pub fn at(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Takes what fills the queue, so that the next attempt gets through; it comes by itself when the kernel tries
    /// again.
    pub fn let_in(&mut self) -> TcpStream {
        for _ in self.fill.drain(..) {
            drop(self.listener.accept().unwrap());
        }
        let (stream, _) = self.listener.accept().unwrap();
        ready(stream)
    }
}

/// Says nothing more.
pub fn finish(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Sessions that echo all the time, on threads of their own, until told to stop.
pub struct Live {
    stop: Arc<AtomicBool>,
    faults: Arc<Mutex<Vec<String>>>,
    echoes: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Live {
    /// `count` sessions, each with a message every few milliseconds.
    pub fn start(through: SocketAddr, count: u64, pause_ms: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let faults = Arc::new(Mutex::new(Vec::new()));
        let echoes = Arc::new(AtomicUsize::new(0));
        let one = |seed: u64| {
            let (stop, faults, echoes) =
                (Arc::clone(&stop), Arc::clone(&faults), Arc::clone(&echoes));
            let client = connect(through);
            echo(&client, &noise(seed, 64));
            std::thread::spawn(move || {
                let mut turn = 0;
                while !stop.load(SeqCst) {
                    turn += 1;
                    let len = 1 + usize::try_from((seed * 31 + turn * 7) % 3000).unwrap();
                    if let Err(why) = try_echo(&client, &noise(seed << 32 | turn, len)) {
                        faults.lock().unwrap().push(format!("session {seed}, turn {turn}: {why}"));
                        return;
                    }
                    echoes.fetch_add(1, SeqCst);
                    super::pause(pause_ms);
                }
            })
        };
        let threads = (1..=count).map(one).collect();
        Self { stop, faults, echoes, threads }
    }

    /// Ends them. How many echoes there were; none may have failed.
    pub fn stop(self) -> usize {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        assert_eq!(*self.faults.lock().unwrap(), Vec::<String>::new());
        self.echoes.load(SeqCst)
    }
}
