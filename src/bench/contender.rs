//! The proxies that are compared: each a process of its own with one thread for its work, on the same CPU, doing the
//! same job: TCP to the one echo backend, TCP_NODELAY on both sides, no log lines for sessions.

use super::clock::pause;
use crate::driver::sys;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often, and how long, it is looked for whether a proxy listens.
const LOOKS: u32 = 500;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Sessions a proxy must be able to hold; each takes two descriptors.
pub(super) const SESSIONS_MAX: usize = 3_000;

/// A folder for configs and what proxies say, gone when it is dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// A new one, for this user alone.
    ///
    /// # Errors
    /// It cannot be made: a sentence that says why.
    pub(super) fn new() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("ringway-bench-{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| format!("no folder for configs, {}: {e}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file; its path.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is small, and in a folder that is swept.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a Ringway under test is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recipe {
    /// Its name in the report.
    pub(super) name: &'static str,
    /// As in the config.
    pub(super) data_path: &'static str,
    /// As in the config.
    pub(super) busy_poll_us: u32,
}

impl Recipe {
    /// Its config.
    pub(super) fn config(&self, at: SocketAddr, backend: SocketAddr) -> String {
        let Self { data_path, busy_poll_us, .. } = self;
        format!(
            "data_path = \"{data_path}\"\n\
             [shards]\ncount = 1\nbusy_poll_us = {busy_poll_us}\n\
             [limits]\nsessions_max = {SESSIONS_MAX}\n\
             [listeners.bench]\nbind = \"{at}\"\nstable = \"echo\"\n\
             [pools.echo]\nbackends = [\"{backend}\"]\n\
             [log]\nlevel = \"warn\"\nsession_every = 0\n"
        )
    }
}

/// A proxy that runs.
pub(super) struct Contender {
    /// Its name in the report.
    pub(super) name: String,
    /// Where it listens.
    pub(super) at: SocketAddr,
    child: Child,
}

impl Contender {
    /// Starts this very program as a proxy.
    ///
    /// # Errors
    /// It does not start: what it said.
    pub(super) fn ringway(
        recipe: &Recipe,
        backend: SocketAddr,
        cpu: usize,
        folder: &Folder,
    ) -> Result<Self, String> {
        let program = std::env::current_exe()
            .map_err(|e| format!("this program does not know where it is: {e}"))?;
        let command = |at: SocketAddr| {
            let text = recipe.config(at, backend);
            let config = folder.write(&format!("{}.toml", recipe.name), &text)?;
            let mut command = Command::new(&program);
            command.args(["run", "--config"]).arg(config);
            Ok(command)
        };
        Self::start(recipe.name, command, cpu, folder)
    }

    /// Starts a program that is told where to listen, and waits until it does.
    ///
    /// # Errors
    /// It does not start: what it said.
    pub(super) fn start(
        name: &str,
        command: impl Fn(SocketAddr) -> Result<Command, String>,
        cpu: usize,
        folder: &Folder,
    ) -> Result<Self, String> {
        let failed = |e: io::Error| format!("{name} does not start: {e}");
        let at = free_address().map_err(failed)?;
        let mut command = command(at)?;
        let said = folder.path().join(format!("{name}.out"));
        let out = File::create(&said).map_err(failed)?;
        command.stdin(Stdio::null()).stdout(out.try_clone().map_err(failed)?).stderr(out);
        command.current_dir(folder.path());
        sys::confine(&mut command, cpu);
        let mut child = command.spawn().map_err(failed)?;
        let words = || {
            let text = fs::read(&said).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).trim().to_owned();
            if text.is_empty() { "it said nothing".to_owned() } else { text }
        };
        for _ in 0..LOOKS {
            if TcpStream::connect(at).is_ok() {
                return Ok(Self { name: name.to_owned(), at, child });
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("{name} does not start ({status}): {}", words()));
            }
            pause(LOOK_EVERY);
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(format!("{name} does not listen on {at}: {}", words()))
    }

    /// CPU time of all its threads, and of what it started, in nanoseconds.
    pub(super) fn cpu_ns(&self) -> u64 {
        cpu_of(self.child.id())
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It has nobody left to serve; where it has ended already there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of loopback that nobody has now.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn cpu_of(process: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return 0 };
    let of_thread = |thread: fs::DirEntry| {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|id| id.parse().ok());
        running_ns(&thread.path()) + children.map(cpu_of).sum::<u64>()
    };
    threads.flatten().map(of_thread).sum()
}

/// CPU time of this thread, in nanoseconds.
pub(super) fn own_cpu_ns() -> u64 {
    running_ns(Path::new("/proc/thread-self"))
}

/// CPU time of the thread of this folder of /proc: exact where the kernel keeps it (CONFIG_SCHED_INFO), else in the
/// 10 ms steps of its `stat`.
fn running_ns(thread: &Path) -> u64 {
    let exact = fs::read_to_string(thread.join("schedstat")).ok();
    let exact = exact.and_then(|text| text.split_whitespace().next()?.parse().ok());
    exact.unwrap_or_else(|| ticks(&fs::read_to_string(thread.join("stat")).unwrap_or_default()))
}

/// utime and stime of a `stat` (proc_pid_stat(5)), whose ticks are hundredths of a second on every Linux.
fn ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    #[test]
    fn the_configs_are_good() {
        let (at, backend) = ("127.0.0.1:9000".parse().unwrap(), "127.0.0.1:9100".parse().unwrap());
        for (data_path, busy_poll_us) in [("uring", 0), ("epoll", 2000), ("auto", 0)] {
            let recipe = Recipe { name: "x", data_path, busy_poll_us };
            let config = file::parse(&recipe.config(at, backend)).unwrap();
            assert_eq!(config.shards.busy_poll_us, busy_poll_us);
            assert_eq!(config.data_path.label(), data_path);
            assert!(config.listeners[0].tcp.nodelay);
        }
    }

    #[test]
    fn cpu_time_is_read() {
        let stat = "7 (a (b) c) S 1 1 1 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), 420_000_000);
        let before = own_cpu_ns();
        let mut sum = 0_u64;
        while own_cpu_ns() - before < 1_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(cpu_of(std::process::id()) >= 1_000_000, "{sum}");
    }

    #[test]
    fn a_program_that_ends_at_once_is_quoted() {
        let folder = Folder::new().unwrap();
        let command = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo no such luck >&2; exit 3"]);
            Ok(command)
        };
        let cpu = *sys::affinity().first().unwrap();
        let why = Contender::start("luckless", command, cpu, &folder).err().unwrap();
        assert!(why.contains("luckless") && why.contains("no such luck"), "{why}");
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }
}
