//! A service manager, as systemd is one with `FileDescriptorStoreMax=`: it keeps the listening sockets it is given, and
//! passes them to the process it starts when the one before has died.

use ringway::driver::handoff;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// What Ringway says after all listeners' sockets: the admin endpoint's.
const LAST: &str = "[admin]";

pub(crate) struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// By name.
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    pub(crate) fn new(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { socket, path, kept: Vec::new() }
    }

    pub(crate) fn is_told_by(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", "512");
    }

    /// Keeps the sockets of a process that has become ready.
    pub(crate) fn keep(&mut self) {
        let mut message = [0; 4096];
        while self.kept.last().is_none_or(|(name, _)| name != LAST) {
            let (n, sockets) = handoff::receive(&self.socket, &mut message).expect("it is told");
            let said = String::from_utf8_lossy(&message[..n]).into_owned();
            let name = said.strip_prefix("FDSTORE=1\nFDNAME=").unwrap_or_default();
            self.kept.extend(sockets.into_iter().map(|socket| (name.to_owned(), socket)));
        }
    }

    /// Starts a program that finds the sockets where sd_listen_fds(3) says. They go through the three descriptors that
    /// a child gets anyway, so there are to be three: one each of two listeners and of the admin endpoint.
    pub(crate) fn start(&self, words: &[String], log: &Path) -> Child {
        let names: Vec<&str> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        let sockets = self.kept.iter().map(|(_, socket)| socket.try_clone().unwrap());
        let [a, b, c] = <[OwnedFd; 3]>::try_from(sockets.collect::<Vec<_>>()).unwrap();
        let script =
            "exec 3<&0 4<&1 5<&2 </dev/null >>\"$0\" 2>&1; export LISTEN_PID=$$; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(log).args(words);
        command.env("LISTEN_FDS", "3").env("LISTEN_FDNAMES", names.join(":"));
        self.is_told_by(&mut command);
        command.stdin(a).stdout(b).stderr(c).spawn().expect("there is a shell")
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
