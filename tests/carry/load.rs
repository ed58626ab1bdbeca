//! Sessions of many kinds, each byte of which is checked: echoes, and those of which one end has long finished.

#![allow(unreachable_pub, reason = "test programs have no public side")]

use crate::world::net::{Backend, finish, noise};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a session is for; the first byte of its client says so.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// The backend sends back what it gets.
    Echo,
    /// The client has finished, the backend goes on.
    Down,
    /// The backend has finished, the client goes on.
    Up,
}

/// A pause between two messages of a session.
const PAUSE_MS: u64 = 250;
/// How long an end waits for the other: longer than any pause of a move.
const PATIENCE: Duration = Duration::from_secs(30);

/// Set in the seed of a session that has no pauses and says messages of 1 MiB alone.
const BULKY: u64 = 1 << 20;

/// How long the message of this session and turn is: 1 B to 1 MiB, each magnitude as often as the others.
fn len_of(seed: u64, turn: u64) -> usize {
    if seed & BULKY != 0 {
        return 1 << 20;
    }
    let bits = noise(seed << 32 | turn | 1 << 31, 16);
    let magnitude = u32::from(bits[0]) % 21;
    let within = u64::from_le_bytes(bits[8..].try_into().unwrap());
    let len = (1 << magnitude) + within % (1 << magnitude);
    usize::try_from(len).unwrap().min(1 << 20)
}

fn message(seed: u64, turn: u64) -> Vec<u8> {
    noise(seed << 32 | turn, len_of(seed, turn))
}

fn rest(seed: u64) {
    if seed & BULKY == 0 {
        std::thread::sleep(Duration::from_millis(PAUSE_MS));
    }
}

/// The backend of all kinds.
pub struct Far {
    pub at: SocketAddr,
    stop: Arc<AtomicBool>,
    faults: Arc<AtomicU64>,
    /// Messages a backend got of a client to which it had finished.
    got: Arc<AtomicU64>,
    _backend: Backend,
}

impl Far {
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (faults, got) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (stopped, failed, counted) = (Arc::clone(&stop), Arc::clone(&faults), Arc::clone(&got));
        let backend = Backend::serving(move |stream| {
            if let Err(why) = serve(&stream, &stopped, &counted) {
                eprintln!("backend: {why}");
                failed.fetch_add(1, SeqCst);
            }
        });
        Self { at: backend.at, stop, faults, got, _backend: backend }
    }
}

fn serve(mut stream: &TcpStream, stop: &AtomicBool, got: &AtomicU64) -> Result<(), String> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).map_err(|e| format!("head: {e}"))?;
    let seed = u64::from_le_bytes(head[1..].try_into().unwrap());
    match head[0] {
        b'e' => {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let n = stream.read(&mut buffer).map_err(|e| format!("echo {seed} read: {e}"))?;
                if n == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..n]).map_err(|e| format!("echo {seed} write: {e}"))?;
            }
        }
        b'd' => say_all(stream, seed, stop).map(drop),
        _ => {
            finish(stream);
            got.fetch_add(hear_all(stream, seed)?, SeqCst);
            Ok(())
        }
    }
}

/// Says messages until told to stop, and finishes.
fn say_all(mut stream: &TcpStream, seed: u64, stop: &AtomicBool) -> Result<(u64, u64), String> {
    let (mut turn, mut bytes) = (0, 0);
    while !stop.load(SeqCst) {
        let message = message(seed, turn);
        stream.write_all(&message).map_err(|e| format!("{seed} says {turn}: {e}"))?;
        turn += 1;
        bytes += message.len() as u64;
        rest(seed);
    }
    finish(stream);
    Ok((turn, bytes))
}

/// Hears messages to their end. How many.
fn hear_all(mut stream: &TcpStream, seed: u64) -> Result<u64, String> {
    for turn in 0.. {
        let message = message(seed, turn);
        let mut heard = vec![0; message.len()];
        let mut at = 0;
        while at < heard.len() {
            match stream.read(&mut heard[at..]) {
                Ok(0) if at == 0 => return Ok(turn),
                Ok(0) => return Err(format!("{seed} ended in the middle of {turn}")),
                Ok(n) => at += n,
                Err(e) => return Err(format!("{seed} hears {turn}: {e}")),
            }
        }
        if heard != message {
            return Err(format!("{seed}: message {turn} differs"));
        }
    }
    unreachable!("a stream ends")
}

/// What a client did: messages and bytes that came through.
type Did = (Kind, u64, u64);

/// Clients of all kinds, on threads of their own.
pub struct Mixed {
    stop: Arc<AtomicBool>,
    far: (Arc<AtomicU64>, Arc<AtomicU64>),
    clients: Vec<JoinHandle<Result<Did, String>>>,
}

impl Mixed {
    /// `count` sessions, a quarter of them finished by one end. `bulky`: they move bytes without a pause.
    pub fn start(through: SocketAddr, (count, bulky): (u64, bool), far: &Far) -> Self {
        let open = |number: u64| {
            let kind = match number % 8 {
                3 => Kind::Down,
                7 => Kind::Up,
                _ => Kind::Echo,
            };
            let stop = Arc::clone(&far.stop);
            let stream = TcpStream::connect(through).expect("somebody listens");
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let client = std::thread::Builder::new().stack_size(128 << 10);
            let seed = number + 1 + if bulky { BULKY } else { 0 };
            client.spawn(move || run(stream, kind, seed, &stop)).expect("a thread")
        };
        let clients = (0..count).map(open).collect();
        let started = Self {
            stop: Arc::clone(&far.stop),
            far: (Arc::clone(&far.faults), Arc::clone(&far.got)),
            clients,
        };
        std::thread::sleep(Duration::from_millis(500));
        started
    }

    /// Lets all sessions end in order. Messages and bytes that came through; none was lost, doubled or changed.
    pub fn stop(self) -> (u64, u64) {
        self.stop.store(true, SeqCst);
        let (mut messages, mut bytes, mut said) = (0, 0, 0);
        for client in self.clients {
            match client.join().unwrap() {
                Ok((kind, turns, moved)) => {
                    messages += turns;
                    bytes += moved;
                    said += if matches!(kind, Kind::Up) { turns } else { 0 };
                }
                Err(why) => panic!("{why}"),
            }
        }
        let (faults, got) = self.far;
        let began = std::time::Instant::now();
        while got.load(SeqCst) < said && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!((faults.load(SeqCst), got.load(SeqCst)), (0, said), "(faults, messages up)");
        (messages, bytes)
    }
}

fn run(stream: TcpStream, kind: Kind, seed: u64, stop: &AtomicBool) -> Result<Did, String> {
    let letter = match kind {
        Kind::Echo => b'e',
        Kind::Down => b'd',
        Kind::Up => b'u',
    };
    let head = [&[letter][..], &seed.to_le_bytes()].concat();
    (&stream).write_all(&head).map_err(|e| format!("head: {e}"))?;
    match kind {
        Kind::Echo => echo_all(&stream, seed, stop).map(|(turns, bytes)| (kind, turns, bytes)),
        Kind::Down => {
            finish(&stream);
            let turns = hear_all(&stream, seed)?;
            let bytes = (0..turns).map(|turn| len_of(seed, turn) as u64).sum();
            Ok((kind, turns, bytes))
        }
        Kind::Up => say_all(&stream, seed, stop).map(|(turns, bytes)| (kind, turns, bytes)),
    }
}

/// Each message is written while its echo is read: it may be larger than all buffers on its way.
fn echo_all(stream: &TcpStream, seed: u64, stop: &AtomicBool) -> Result<(u64, u64), String> {
    let (mut turn, mut bytes) = (0, 0);
    while !stop.load(SeqCst) {
        let sent = message(seed, turn);
        let mut back = vec![0; sent.len()];
        std::thread::scope(|s| {
            let writes = s.spawn(|| (&*stream).write_all(&sent));
            let mut from = stream;
            from.read_exact(&mut back).map_err(|e| format!("{seed} reads {turn}: {e}"))?;
            let written = writes.join().expect("it does not panic");
            written.map_err(|e| format!("{seed} writes {turn}: {e}"))
        })?;
        if back != sent {
            return Err(format!("{seed}: echo {turn} differs"));
        }
        turn += 1;
        bytes += 2 * sent.len() as u64;
        rest(seed);
    }
    finish(stream);
    let mut from = stream;
    match from.read(&mut [0]) {
        Ok(0) => Ok((turn, bytes)),
        other => Err(format!("{seed}: {other:?} after the last echo")),
    }
}
