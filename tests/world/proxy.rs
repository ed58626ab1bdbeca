//! A Ringway in this process.

use ringway::config::{DataPath, file};
use ringway::control::Outcome;
use ringway::control::order::{Answer, Order};
use ringway::event::EndReason;
use ringway::run::Running;
use ringway::tally::RouteTally;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

/// A config, to be changed and written again.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub path: DataPath,
    pub shards: usize,
    /// Further keys of `[shards]`.
    pub shard: String,
    /// Where `orders` listens; port 0 for any.
    pub bind: SocketAddr,
    /// Further keys of `[listeners.orders]`.
    pub listener: String,
    /// Keys of `[pools.v1]` beside its backends.
    pub pool: String,
    /// Backends of the pool `v1`, as TOML.
    pub backends: Vec<String>,
    /// Further tables.
    pub more: String,
}

impl Recipe {
    /// One shard, one listener, one pool of these backends.
    pub fn new(path: DataPath, backends: &[SocketAddr]) -> Self {
        Self {
            path,
            shards: 1,
            shard: "pin = false".to_owned(),
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            listener: String::new(),
            pool: String::new(),
            backends: backends.iter().map(|at| format!("\"{at}\"")).collect(),
            more: String::new(),
        }
    }

    pub fn shards(mut self, count: usize) -> Self {
        self.shards = count;
        self
    }

    /// Keys of `[shards]` in place of those that leave shards free to move.
    pub fn each_shard(mut self, keys: &str) -> Self {
        keys.clone_into(&mut self.shard);
        self
    }

    pub fn listener(mut self, keys: &str) -> Self {
        writeln!(self.listener, "{keys}").unwrap();
        self
    }

    pub fn pool(mut self, keys: &str) -> Self {
        writeln!(self.pool, "{keys}").unwrap();
        self
    }

    pub fn more(mut self, tables: &str) -> Self {
        writeln!(self.more, "{tables}").unwrap();
        self
    }

    /// A canary pool beside `v1`, and its share.
    pub fn canary(self, at: SocketAddr, percent: &str) -> Self {
        self.listener(&format!("canary = \"v2\"\ncanary_percent = {percent}"))
            .more(&format!("[pools.v2]\nbackends = [\"{at}\"]"))
    }

    pub fn text(&self) -> String {
        format!(
            "data_path = \"{}\"\n\n[shards]\ncount = {}\n{}\n\n\
             [listeners.orders]\nbind = \"{}\"\nstable = \"v1\"\n{}\n\
             [pools.v1]\nbackends = [{}]\n{}\n{}\n",
            self.path.label(),
            self.shards,
            self.shard,
            self.bind,
            self.listener,
            self.backends.join(", "),
            self.pool,
            self.more
        )
    }

    /// Starts it.
    pub fn start(&self) -> Proxy {
        let file = scratch("toml");
        std::fs::write(&file, self.text()).unwrap();
        let config = file::parse(&self.text()).expect("a good config");
        let running = Running::start(config, Some(file.clone())).expect("it starts");
        let at = running.listener_address("orders").expect("it was bound");
        Proxy { at, file, running: Some(running) }
    }
}

/// The name of a file of this test's own.
pub fn scratch(extension: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    let name = format!("ringway-test-{}-{number}.{extension}", std::process::id());
    std::env::temp_dir().join(name)
}

/// A Ringway in this process. Stopped at once when dropped.
pub struct Proxy {
    /// Where `orders` listens.
    pub at: SocketAddr,
    file: PathBuf,
    running: Option<Running>,
}

impl Proxy {
    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs until it is dropped")
    }

    /// Gives an order and waits for the answer.
    pub fn order(&self, order: Order) -> Answer {
        let (answer, answered) = mpsc::channel();
        self.running().orders().give(order, move |said| answer.send(said).unwrap());
        answered.recv_timeout(Duration::from_secs(10)).expect("control answers")
    }

    /// Writes the file again and reloads it.
    pub fn reload(&self, text: &str) -> Answer {
        std::fs::write(&self.file, text).unwrap();
        let named = format!("{}: ", self.file.display());
        match self.order(Order::Reload) {
            Answer::Done { generation, what } => {
                let what = what.strip_prefix(&named).expect("it names the file it read").to_owned();
                Answer::Done { generation, what }
            }
            other => other,
        }
    }

    /// Number of the config in force.
    pub fn generation(&self) -> u64 {
        self.running().board().snapshot.load().number
    }

    fn routes(&self) -> Vec<Arc<RouteTally>> {
        self.running().board().shards().iter().flat_map(|s| s.tally.routes()).collect()
    }

    /// A sum over all routes.
    pub fn sum(&self, of: impl Fn(&RouteTally) -> u64) -> u64 {
        self.routes().iter().map(|route| of(route)).sum()
    }

    /// Sessions that ended for this reason.
    pub fn ended(&self, why: EndReason) -> u64 {
        self.sum(|route| route.ended[why as usize].get())
    }

    /// All reasons for which sessions ended, for messages.
    pub fn reasons(&self) -> Vec<(&'static str, u64)> {
        let counts = EndReason::ALL.iter().map(|&why| (why.label(), self.ended(why)));
        counts.filter(|(_, n)| *n > 0).collect()
    }

    /// Waits until `count` sessions have ended for this reason, and no more.
    pub fn expect_ended(&self, why: EndReason, count: u64) {
        let began = std::time::Instant::now();
        while self.ended(why) < count && began.elapsed() < Duration::from_secs(3) {
            super::pause(5);
        }
        assert_eq!(self.ended(why), count, "{}; ended: {:?}", why.label(), self.reasons());
    }

    /// Waits until no session is open, and checks that all counters agree on that.
    pub fn expect_empty(&self) {
        super::until(5000, "all sessions end", || self.running().board().sessions() == 0);
        assert_eq!(self.routes().iter().fold(0, |n, r| r.open.get().wrapping_add(n)), 0);
        for shard in self.running().board().shards() {
            let tally = &shard.tally.shard;
            assert_eq!((tally.stale.get(), tally.watchdog.get()), (0, 0), "(stale, watchdog)");
        }
    }

    /// Waits for the end of a stop that was asked for.
    pub fn wait(mut self) -> Outcome {
        self.running.take().expect("it runs until it is dropped").wait()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        if let Some(running) = self.running.take() {
            running.stop();
            running.stop();
            let outcome = running.wait();
            if !std::thread::panicking() {
                assert!(matches!(outcome, Outcome::Stopped { .. }), "{outcome:?}");
            }
        }
    }
}
