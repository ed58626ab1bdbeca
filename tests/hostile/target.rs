//! A proxy as a process: Ringway on either data path, or another beside it, configured alike.

use super::manager::Manager;
use super::process;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Uring,
    Epoll,
    Haproxy,
    Nginx,
}

impl Kind {
    /// Ringway's data paths.
    pub(crate) const OURS: [Self; 2] = [Self::Uring, Self::Epoll];
    pub(crate) const ALL: [Self; 4] = [Self::Uring, Self::Epoll, Self::Haproxy, Self::Nginx];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Uring | Self::Epoll)
    }

    /// Whether this machine has it.
    pub(crate) fn is_installed(self) -> bool {
        match self {
            Self::Haproxy => process::run(&["haproxy", "-v"]),
            Self::Nginx => process::run(&["nginx", "-v"]) && Path::new(STREAM_MODULE).exists(),
            Self::Uring => {
                // A machine that forbids io_uring is told of once, by the case that is left out.
                let probe = Command::new(env!("CARGO_BIN_EXE_ringway")).arg("probe").output();
                probe.is_ok_and(|out| out.status.success())
            }
            Self::Epoll => true,
        }
    }
}

const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
const TOKEN: &str = "only-for-this-harness";

/// How it is to be set up.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) kind: Kind,
    /// Where clients come in.
    pub(crate) ip: IpAddr,
    /// Backend of the listener `orders`, which healthy sessions use.
    pub(crate) echo: SocketAddr,
    /// Backend of the listener `other`, which everybody else uses.
    pub(crate) other: SocketAddr,
    pub(crate) sessions_max: u32,
    pub(crate) connect_ms: u32,
    pub(crate) user_timeout_ms: u32,
    pub(crate) buffers: u32,
    /// Further lines of Ringway's config.
    pub(crate) lines: String,
    /// A program that starts it, such as `ip netns exec NAME`.
    pub(crate) by: Vec<String>,
    /// A service manager keeps the listening sockets of Ringway, and passes them on when it starts it again.
    pub(crate) is_kept: bool,
}

impl Setup {
    pub(crate) fn new(kind: Kind, echo: SocketAddr, other: SocketAddr) -> Self {
        Self {
            kind,
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            echo,
            other,
            sessions_max: 4000,
            connect_ms: 2000,
            user_timeout_ms: 30_000,
            buffers: 16_384,
            lines: String::new(),
            by: Vec::new(),
            is_kept: false,
        }
    }
}

pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) orders: SocketAddr,
    pub(crate) other: SocketAddr,
    admin: SocketAddr,
    folder: PathBuf,
    words: Vec<String>,
    manager: Option<Manager>,
    child: Child,
}

impl Target {
    pub(crate) fn start(setup: &Setup) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("ringway-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a temporary folder can be made");
        let [orders, other, admin] = [0; 3].map(|_| SocketAddr::new(setup.ip, free_port()));
        let file = folder.join("config");
        let config = match setup.kind {
            Kind::Uring | Kind::Epoll => ringway(setup, orders, other, admin),
            Kind::Haproxy => haproxy(setup, orders, other),
            Kind::Nginx => nginx(setup, orders, other, &folder),
        };
        fs::write(&file, config).unwrap();
        let file = file.to_str().unwrap();
        let own: Vec<&str> = match setup.kind {
            Kind::Uring | Kind::Epoll => {
                vec![env!("CARGO_BIN_EXE_ringway"), "run", "--config", file]
            }
            Kind::Haproxy => vec!["haproxy", "-W", "-db", "-f", file],
            Kind::Nginx => vec!["nginx", "-c", file, "-p", folder.to_str().unwrap()],
        };
        let words: Vec<String> =
            setup.by.iter().cloned().chain(own.into_iter().map(str::to_owned)).collect();
        let manager = setup.is_kept.then(|| Manager::new(&folder));
        let child = spawn(&words, &folder, manager.as_ref());
        let kind = setup.kind;
        let mut target = Self { kind, orders, other, admin, folder, words, manager, child };
        target.await_ready();
        target.manager.iter_mut().for_each(Manager::keep);
        target
    }

    fn await_ready(&mut self) {
        let began = Instant::now();
        loop {
            let ready = if self.kind.is_ours() {
                self.ask("GET", "/readyz", "").is_some_and(|a| a.starts_with("HTTP/1.1 200"))
            } else {
                TcpStream::connect_timeout(&self.orders, Duration::from_secs(1)).is_ok()
            };
            if ready {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            let late = began.elapsed() > Duration::from_secs(10);
            assert!(ended.is_none() && !late, "{:?} did not start:\n{}", self.kind, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The exit code, once it has ended by itself within this time.
    pub(crate) fn await_exit(&mut self, patience: Duration) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Starts it anew, as its service manager does when it has died.
    pub(crate) fn start_again(&mut self) {
        let _ = self.child.wait();
        self.child = match &self.manager {
            Some(manager) => manager.start(&self.words, &self.folder.join("log")),
            None => spawn(&self.words, &self.folder, None),
        };
    }

    /// Has it read its config again, as its own means are.
    pub(crate) fn reload(&self) {
        process::signal(self.pid(), if self.kind == Kind::Haproxy { "USR2" } else { "HUP" });
    }

    /// Asks the admin endpoint; the whole answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let patience = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&self.admin, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        let size = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Length: {size}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The sum of a metric's samples whose labels have this in them.
    pub(crate) fn metric(&self, name: &str, having: &str) -> u64 {
        let text = self.ask("GET", "/metrics", "").unwrap_or_default();
        sum(&text, name, having)
    }

    /// How many sessions ended for this reason, once there are as many as expected: a client may hear of its end before
    /// it is counted.
    pub(crate) fn ended(&self, reason: &str, expected: usize) -> u64 {
        let mut count = 0;
        super::stage::until(Duration::from_secs(2), || {
            count = self.metric("ringway_sessions_ended_total", &format!("\"{reason}\""));
            count >= expected as u64
        });
        count
    }

    /// Why sessions of the listener `other` ended, with how many of each.
    pub(crate) fn reasons(&self) -> String {
        let text = self.ask("GET", "/metrics", "").unwrap_or_default();
        let ended = text.lines().filter(|line| line.starts_with("ringway_sessions_ended_total"));
        let others = ended.filter(|line| line.contains("\"other\"") && !line.ends_with(" 0"));
        let reason = |line: &str| {
            let word = line.split("reason=\"").nth(1)?.split('"').next()?;
            Some(format!("{word} {}", line.rsplit(' ').next()?))
        };
        others.filter_map(reason).collect::<Vec<_>>().join(", ")
    }

    /// Sums of several metrics at one moment.
    pub(crate) fn metrics<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let text = self.ask("GET", "/metrics", "").unwrap_or_default();
        assert!(text.contains("ringway_ready"), "no metrics: {text:?}\n{}", self.log());
        names.map(|name| sum(&text, name, ""))
    }
}

fn sum(text: &str, name: &str, having: &str) -> u64 {
    let samples = text.lines().filter_map(|line| line.strip_prefix(name));
    let own = samples.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(having));
    let values = own.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

impl Drop for Target {
    fn drop(&mut self) {
        // Whoever starts the others anew goes first.
        for pid in process::family(self.pid()) {
            let _ = process::run(&["kill", "-s", "KILL", &pid.to_string()]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn spawn(words: &[String], folder: &Path, manager: Option<&Manager>) -> Child {
    let open = fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let log = open.expect("a log can be written");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    manager.iter().for_each(|manager| manager.is_told_by(&mut command));
    command.spawn().unwrap_or_else(|e| panic!("{}: {e}", words[0]))
}

/// A port nobody listens on, out of the range from which the kernel takes local ports.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Relaxed) + (std::process::id() % 97) as u16 * 103;
        let port = 20_000 + step % 12_000;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

fn ringway(s: &Setup, orders: SocketAddr, other: SocketAddr, admin: SocketAddr) -> String {
    let Setup { echo, other: far, sessions_max, connect_ms, user_timeout_ms, buffers, .. } = s;
    format!(
        "data_path = \"{path}\"\n[shards]\ncount = 1\npin = false\n[limits]\nsessions_max = {sessions_max}\n\
         buffers_per_shard = {buffers}\n[timeouts]\nconnect_ms = {connect_ms}\n\
         [tcp]\nuser_timeout_ms = {user_timeout_ms}\nkeepalive_idle_s = 1\nkeepalive_interval_s = 1\n\
         [listeners.orders]\nbind = \"{orders}\"\nstable = \"echo\"\n\
         [listeners.other]\nbind = \"{other}\"\nstable = \"far\"\n\
         [pools.echo]\nretries = 0\nbackends = [\"{echo}\"]\n[pools.far]\nretries = 0\nbackends = [\"{far}\"]\n\
         [admin]\nbind = \"{admin}\"\ntoken = \"{TOKEN}\"\n[log]\nsession_every = 0\n{lines}\n",
        path = s.kind.label(),
        lines = s.lines,
    )
}

fn haproxy(s: &Setup, orders: SocketAddr, other: SocketAddr) -> String {
    let Setup { echo, other: far, sessions_max, connect_ms, user_timeout_ms, .. } = s;
    format!(
        "global\n  no strict-limits\n  maxconn {sessions_max}\n  nbthread 1\n\
         defaults\n  mode tcp\n  timeout connect {connect_ms}ms\n  timeout client 1h\n  timeout server 1h\n\
         \x20 retries 0\n  option tcpka\n\
         frontend a\n  bind {orders} tcp-ut {user_timeout_ms}ms\n  default_backend a\n\
         frontend b\n  bind {other} tcp-ut {user_timeout_ms}ms\n  default_backend b\n\
         backend a\n  server s {echo} tcp-ut {user_timeout_ms}ms\n\
         backend b\n  server s {far} tcp-ut {user_timeout_ms}ms\n"
    )
}

fn nginx(s: &Setup, orders: SocketAddr, other: SocketAddr, folder: &Path) -> String {
    let Setup { echo, other: far, sessions_max, connect_ms, .. } = s;
    let (folder, connections) = (folder.display(), sessions_max * 2);
    let server = |listen: SocketAddr, to: &SocketAddr| {
        format!(
            "server {{ listen {listen} backlog=4096 so_keepalive=1s:1s:3; proxy_pass {to}; proxy_timeout 1h; \
             proxy_connect_timeout {connect_ms}ms; proxy_socket_keepalive on; tcp_nodelay on; }}\n"
        )
    };
    format!(
        "load_module {STREAM_MODULE};\nworker_processes 1;\ndaemon off;\npid {folder}/pid;\n\
         error_log stderr crit;\nevents {{ worker_connections {connections}; }}\nstream {{\n{}{}}}\n",
        server(orders, echo),
        server(other, far)
    )
}
