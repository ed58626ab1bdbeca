//! The healthy sessions: each sends a numbered 64-byte message every 10 ms and wants it back.

use super::backend::{read, write};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

const MESSAGE: usize = 64;
const EVERY: Duration = Duration::from_millis(10);
/// How long an answer may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) sessions: usize,
    /// Sessions that were refused, cut off, or got wrong bytes.
    pub(crate) harmed: usize,
    /// Bytes sent on harmed sessions that did not come back.
    pub(crate) lost: u64,
    /// How long 99 in 100 answers took at most.
    pub(crate) p99: Duration,
}

struct Shared {
    stop: AtomicBool,
    /// They are to say nothing for a while.
    hushed: AtomicBool,
    /// How many wait for an answer.
    waiting: AtomicU64,
    began: Instant,
    connected: AtomicU64,
    harmed: AtomicU64,
    lost: AtomicU64,
    /// When the last answer came, and the longest time without any, in microseconds.
    last: AtomicU64,
    gap: AtomicU64,
    /// How late this thread itself was at worst: the machine's doing, not the proxy's.
    late: AtomicU64,
    first_fault: Mutex<Option<String>>,
    /// Counts of answers by the time they took: eight steps for each power of two of microseconds.
    spread: Vec<AtomicU64>,
}

pub(crate) struct Healthy {
    shared: Arc<Shared>,
    sessions: usize,
    thread: Option<JoinHandle<()>>,
}

impl Healthy {
    /// Returns when all are connected and have had an answer, or have failed.
    pub(crate) fn start(to: SocketAddr, sessions: usize) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            hushed: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            began: Instant::now(),
            connected: AtomicU64::new(0),
            harmed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            last: AtomicU64::new(0),
            gap: AtomicU64::new(0),
            late: AtomicU64::new(0),
            first_fault: Mutex::new(None),
            spread: (0..256).map(|_| AtomicU64::new(0)).collect(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(all(to, sessions, own));
        });
        let healthy = Self { shared, sessions, thread: Some(thread) };
        while healthy.shared.connected.load(Relaxed) < sessions as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        healthy.forget();
        healthy
    }

    /// Begins all times anew.
    pub(crate) fn forget(&self) {
        self.shared.gap.store(0, Relaxed);
        self.shared.late.store(0, Relaxed);
        for count in &self.shared.spread {
            count.store(0, Relaxed);
        }
    }

    /// Has them say nothing until further notice, and waits for the answers that are due: nothing of theirs is on its
    /// way then.
    pub(crate) fn hush(&self) {
        self.shared.hushed.store(true, SeqCst);
        while self.shared.waiting.load(SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has them go on, and begins all times anew.
    pub(crate) fn go_on(&self) {
        self.shared.last.store(self.shared.began.elapsed().as_micros() as u64, Relaxed);
        self.forget();
        self.shared.hushed.store(false, SeqCst);
    }

    /// The longest time without any answer since the times were begun.
    pub(crate) fn gap(&self) -> Duration {
        let now = self.shared.began.elapsed().as_micros() as u64;
        let running = now.saturating_sub(self.shared.last.load(Relaxed));
        Duration::from_micros(self.shared.gap.load(Relaxed).max(running))
    }

    /// How late this load's own thread was at worst since then.
    pub(crate) fn late(&self) -> Duration {
        Duration::from_micros(self.shared.late.load(Relaxed))
    }

    pub(crate) fn harmed(&self) -> usize {
        self.shared.harmed.load(Relaxed) as usize
    }

    /// What befell the first harmed session.
    pub(crate) fn fault(&self) -> String {
        self.shared.first_fault.lock().unwrap().clone().unwrap_or_default()
    }

    pub(crate) fn figures(&self) -> Figures {
        let counts: Vec<u64> = self.shared.spread.iter().map(|c| c.load(Relaxed)).collect();
        let echoes: u64 = counts.iter().sum();
        let wanted = (echoes * 99).div_ceil(100);
        let mut seen = 0;
        let step = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Figures {
            sessions: self.sessions,
            harmed: self.harmed(),
            lost: self.shared.lost.load(Relaxed),
            p99: bound_of(step.unwrap_or(0)),
        }
    }

    /// Ends them in good order, and says what became of them.
    pub(crate) fn stop(mut self) -> Figures {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load does not panic");
        }
        self.figures()
    }
}

impl Drop for Healthy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

fn step_of(time: Duration) -> usize {
    let us = (time.as_micros() as u64).max(1);
    let power = us.ilog2();
    let eighth = if power >= 3 { (us >> (power - 3)) & 7 } else { 0 };
    (power as usize * 8 + eighth as usize).min(255)
}

fn bound_of(step: usize) -> Duration {
    let (power, eighth) = (step / 8, step as u64 % 8);
    let us = if power >= 3 { (8 + eighth + 1) << (power - 3) } else { 1 << (power + 1) };
    Duration::from_micros(us)
}

async fn all(to: SocketAddr, sessions: usize, shared: Arc<Shared>) {
    let mut set = JoinSet::new();
    for number in 0..sessions {
        let shared = Arc::clone(&shared);
        set.spawn(async move {
            // Spread over a period, so that they do not all speak at once.
            sleep(EVERY * number as u32 / sessions as u32).await;
            let mut alive = Alive { told: false, unanswered: 0 };
            if let Err(e) = one(to, number as u64, &shared, &mut alive).await {
                shared.harmed.fetch_add(1, Relaxed);
                shared.lost.fetch_add(alive.unanswered, Relaxed);
                let now = shared.began.elapsed();
                let said = format!("session {number} after {now:?}: {e}");
                shared.first_fault.lock().unwrap().get_or_insert(said);
            }
            if !alive.told {
                shared.connected.fetch_add(1, Relaxed);
            }
        });
    }
    let watch = async {
        loop {
            let before = Instant::now();
            sleep(Duration::from_millis(1)).await;
            let late = before.elapsed().saturating_sub(Duration::from_millis(2));
            shared.late.fetch_max(late.as_micros() as u64, Relaxed);
        }
    };
    tokio::select! {
        () = watch => {}
        () = async { while set.join_next().await.is_some() {} } => {}
    }
}

struct Alive {
    told: bool,
    unanswered: u64,
}

async fn one(to: SocketAddr, number: u64, shared: &Shared, alive: &mut Alive) -> io::Result<()> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut message = [0_u8; MESSAGE];
    let mut answer = [0_u8; MESSAGE];
    for turn in 0_u64.. {
        ticks.tick().await;
        let _waiting = Waiting::new(&shared.waiting);
        if shared.stop.load(Relaxed) {
            return Ok(());
        }
        if shared.hushed.load(SeqCst) {
            continue;
        }
        for (i, word) in message.chunks_exact_mut(8).enumerate() {
            let value = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (turn << 8) ^ i as u64;
            word.copy_from_slice(&value.to_le_bytes());
        }
        let began = Instant::now();
        alive.unanswered = MESSAGE as u64;
        let exchange = exchange(&stream, &message, &mut answer);
        timeout(PATIENCE, exchange).await.map_err(|_| io::Error::other("no answer"))??;
        if answer != message {
            return Err(io::Error::other("wrong bytes"));
        }
        alive.unanswered = 0;
        shared.spread[step_of(began.elapsed())].fetch_add(1, Relaxed);
        let now = shared.began.elapsed().as_micros() as u64;
        let last = shared.last.swap(now, Relaxed);
        shared.gap.fetch_max(now.saturating_sub(last), Relaxed);
        if !alive.told {
            alive.told = true;
            shared.connected.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}

/// One more that waits for an answer, until it is dropped.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(all: &'a AtomicU64) -> Self {
        all.fetch_add(1, SeqCst);
        Self(all)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

async fn exchange(stream: &TcpStream, message: &[u8], answer: &mut [u8]) -> io::Result<()> {
    write(stream, message).await?;
    let mut filled = 0;
    while filled < answer.len() {
        match read(stream, &mut answer[filled..]).await? {
            0 => return Err(io::Error::other("cut off by an orderly end")),
            n => filled += n,
        }
    }
    Ok(())
}
