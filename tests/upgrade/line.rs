//! A line of processes at one path: the first is this test's child, each other the child of the one before.

use crate::world::net::{PATIENCE, free_address};
use crate::world::program::{Process, RINGWAY, Ran, get, numbers, run, sum_of};
use crate::world::proxy::{Recipe, scratch};
use crate::world::until;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A Ringway that can be upgraded.
pub struct Line {
    pub process: Process,
    /// Where `orders` listens.
    pub at: SocketAddr,
    pub admin: SocketAddr,
    pub config: PathBuf,
    /// Where the program is; a file of this line's own.
    pub program: PathBuf,
}

impl Line {
    pub fn start(recipe: Recipe) -> Self {
        Self::start_with(recipe, |_| {})
    }

    /// The same, with the command changed by `adapt`.
    pub fn start_with(recipe: Recipe, adapt: impl FnOnce(&mut Command)) -> Self {
        let (at, admin) = (free_address(), free_address());
        let mut recipe = recipe.more(&format!("[admin]\nbind = \"{admin}\""));
        recipe.bind = at;
        let (config, program) = (scratch("toml"), scratch("bin"));
        std::fs::write(&config, recipe.text()).unwrap();
        std::os::unix::fs::symlink(RINGWAY, &program).unwrap();
        let mut command = Command::new(&program);
        command.args(["run", "--config"]).arg(&config);
        adapt(&mut command);
        let process = Process::start(command);
        let line = Self { process, at, admin, config, program };
        until(10_000, "it is ready", || line.get("/readyz").is_some_and(|said| said.0 == 200));
        line
    }

    /// Puts another program at the path, as a package would: the file is replaced, not written.
    pub fn install(&self, script: &str) {
        let new = scratch("new");
        std::fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &self.program).unwrap();
    }

    /// Puts the program under test there again.
    pub fn reinstall(&self) {
        let new = scratch("new");
        std::os::unix::fs::symlink(RINGWAY, &new).unwrap();
        std::fs::rename(&new, &self.program).unwrap();
    }

    /// `ringway upgrade`.
    pub fn ask(&self) -> Ran {
        let mut command = Command::new(RINGWAY);
        command.args(["upgrade", "--config"]).arg(&self.config);
        run(command, 20_000)
    }

    /// Upgrades, and waits until the process before has gone.
    pub fn upgrade(&self) {
        let (before, generation) = (self.pid(), self.generation());
        let ran = self.ask();
        assert_eq!(ran.code, Some(0), "{ran:?}\n{}", self.process.said());
        until(10_000, "a new process answers alone", || {
            self.status().is_some_and(|status| {
                status["process"]["generation"] == generation + 1
                    && status["process"]["predecessor"].is_null()
            })
        });
        assert_ne!(self.pid(), before);
    }

    /// Status and body of a GET, where there is an answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.admin, path)
    }

    pub fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&self.get("/api/v1/status")?.1).ok()
    }

    /// The process that answers.
    pub fn pid(&self) -> u32 {
        let status = self.status().expect("somebody answers");
        u32::try_from(status["process"]["pid"].as_u64().unwrap()).unwrap()
    }

    pub fn generation(&self) -> u64 {
        self.status().expect("somebody answers")["process"]["generation"].as_u64().unwrap()
    }

    /// Every number of the metrics, by series.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        let (status, text) = self.get("/metrics").expect("somebody answers");
        assert_eq!(status, 200);
        numbers(&text)
    }

    /// The sum of a metric over the rows whose labels contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        sum_of(&self.metrics(), name, label)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Only the first of the line is a child of this process. The others name this line's config, which nobody else
        // does.
        let config = self.config.as_os_str().as_encoded_bytes();
        for process in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let named = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            if named.split(|byte| *byte == 0).any(|argument| argument == config)
                && let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok())
                && pid != self.process.id()
            {
                kill(pid, "KILL");
            }
        }
        let _ = std::fs::remove_file(&self.config);
        let _ = std::fs::remove_file(&self.program);
    }
}

/// Sends a signal to a process of this test's line, if it is still there.
pub fn kill(pid: u32, signal: &str) {
    let _ = Command::new("sh").args(["-c", &format!("kill -{signal} {pid} 2>&1")]).output();
}

/// Clients that come one after the other, each for one echo, until stopped; the errors they met.
pub struct Stream {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<(usize, Vec<String>)>,
}

impl Stream {
    /// `per_second` of them.
    pub fn start(to: SocketAddr, per_second: u64) -> Self {
        use crate::world::net::{ready, try_echo};
        use std::sync::atomic::Ordering::Relaxed;
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut count, mut faults) = (0, Vec::new());
            let began = Instant::now();
            while !told.load(Relaxed) {
                let one = TcpStream::connect_timeout(&to, PATIENCE)
                    .map_err(|e| format!("connect: {e}"))
                    .and_then(|stream| {
                        try_echo(&ready(stream), format!("hello {count}").as_bytes())
                    });
                count += 1;
                if let Err(why) = one {
                    faults.push(format!("client {count} at {:?}: {why}", began.elapsed()));
                }
                let due = Duration::from_secs(1) * u32::try_from(count).unwrap();
                let due = due / u32::try_from(per_second).unwrap();
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            (count, faults)
        });
        Self { stop, thread }
    }

    /// How many came; none may have failed.
    pub fn stop(self) -> usize {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (count, faults) = self.thread.join().unwrap();
        assert!(
            faults.is_empty(),
            "{} of {count} failed: {:?}",
            faults.len(),
            &faults[..faults.len().min(5)]
        );
        count
    }
}

/// What has come so far and until the other end closes, as text.
pub fn read_some(mut from: &std::os::unix::net::UnixStream) -> String {
    from.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
