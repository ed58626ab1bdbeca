//! What a service manager sees and keeps. systemd is not there to be asked, so a stand-in listens at $NOTIFY_SOCKET.

use crate::line::Line;
use crate::world::net::{Backend, PATIENCE, connect, echo, free_address, listen, try_echo};
use crate::world::program::{Process, RINGWAY};
use crate::world::proxy::{Recipe, scratch};
use crate::world::until;
use ringway::config::DataPath;
use ringway::driver::handoff;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

/// A service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new() -> Self {
        let path = scratch("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// The next message, and what came with it.
    fn hears(&self) -> (String, Vec<OwnedFd>) {
        let mut message = [0; 4096];
        let (n, sockets) = handoff::receive(&self.socket, &mut message).expect("a message");
        (String::from_utf8(message[..n].to_vec()).unwrap(), sockets)
    }

    /// Hears until a message begins with this; gives what was stored up to then, by name.
    fn until(&self, begins: &str) -> (String, Vec<(String, OwnedFd)>) {
        let mut stored = Vec::new();
        loop {
            let (message, sockets) = self.hears();
            let name = message.strip_prefix("FDSTORE=1\nFDNAME=").unwrap_or("?").to_owned();
            stored.extend(sockets.into_iter().map(|socket| (name.clone(), socket)));
            if message.starts_with(begins) {
                return (message, stored);
            }
        }
    }

    fn is_told_by(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", "512");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn recipe(backend: &Backend) -> Recipe {
    Recipe::new(DataPath::Auto, &[backend.at]).more("[stop]\ngrace_ms = 0\ndrain_ms = 5000")
}

/// Starts Ringway with one socket that was opened before it, as a manager does.
fn start_with_socket(config: &PathBuf, name: &str, socket: OwnedFd) -> Process {
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" run --config \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, RINGWAY]).arg(config);
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
    Process::start_fed(command, socket)
}

#[test]
fn the_manager_is_told_which_process_is_the_main_one() {
    let (manager, backend) = (Manager::new(), Backend::echo());
    let line = Line::start_with(recipe(&backend), |command| manager.is_told_by(command));
    let (said, _) = manager.until("READY=1");
    assert!(said.contains("accepting clients"), "{said}");
    let session = connect(line.at);
    echo(&session, b"one");
    for _ in 0..2 {
        line.upgrade();
        let pid = line.pid();
        // The old one says who follows, and only then is the new one heard.
        assert_eq!(manager.until("MAINPID=").0, format!("MAINPID={pid}"));
        manager.until("READY=1");
        let (_, stored) = manager.until("FDSTORE=1\nFDNAME=[admin]");
        assert!(stored.iter().any(|(name, _)| name == "orders"), "{stored:?}");
        echo(&session, b"and on");
    }
}

#[test]
fn nobody_is_refused_while_a_process_is_started_again() {
    let (manager, backend) = (Manager::new(), Backend::echo());
    let mut line = Line::start_with(recipe(&backend), |command| manager.is_told_by(command));
    let (_, stored) = manager.until("FDSTORE=1\nFDNAME=[admin]");
    let (_, kept) = stored.into_iter().find(|(name, _)| name == "orders").unwrap();
    let bound = TcpListener::from(kept.try_clone().unwrap()).local_addr().unwrap();
    assert_eq!(bound, line.at);
    drop(manager.socket.set_read_timeout(Some(std::time::Duration::from_millis(300))));
    line.process.signal("TERM");
    assert!(line.process.wait(5000).success());
    // Who comes now waits in the queue of the socket that the manager keeps.
    let waiting = connect(line.at);
    std::io::Write::write_all(&mut &waiting, b"hello").unwrap();
    let mut heard = Vec::new();
    let mut message = [0; 4096];
    while let Ok((n, _)) = handoff::receive(&manager.socket, &mut message) {
        heard.push(String::from_utf8_lossy(&message[..n]).into_owned());
    }
    assert!(heard.contains(&"STOPPING=1".to_owned()), "{heard:?}");
    assert!(!heard.iter().any(|m| m.contains("FDSTOREREMOVE")), "{heard:?}");

    let again = start_with_socket(&line.config, "orders", kept);
    let mut back = [0; 5];
    std::io::Read::read_exact(&mut &waiting, &mut back).unwrap();
    assert_eq!(&back, b"hello");
    until(5000, "it is ready", || line.get("/readyz").is_some_and(|said| said.0 == 200));
    assert_eq!(line.pid(), again.id());
    echo(&connect(line.at), b"and a new one");
}

#[test]
fn a_listener_that_a_reload_takes_away_is_kept_no_more() {
    let (manager, backend) = (Manager::new(), Backend::echo());
    let more = format!("[listeners.fix]\nbind = \"{}\"\nstable = \"v1\"", free_address());
    let line = Line::start_with(recipe(&backend).more(&more), |c| manager.is_told_by(c));
    let (_, stored) = manager.until("FDSTORE=1\nFDNAME=[admin]");
    assert!(["fix", "orders"].iter().all(|of| stored.iter().any(|(name, _)| name == of)));
    let text = std::fs::read_to_string(&line.config).unwrap();
    std::fs::write(&line.config, text.replace(&more, "")).unwrap();
    line.process.signal("HUP");
    assert_eq!(manager.until("FDSTOREREMOVE").0, "FDSTOREREMOVE=1\nFDNAME=fix");
}

/// A Ringway on two shards, to which a manager passes a socket of this name and address.
fn activated(name: &str, socket: TcpListener, at: SocketAddr) -> (Process, Backend, PathBuf) {
    let backend = Backend::echo();
    let mut recipe = Recipe::new(DataPath::Auto, &[backend.at]).shards(2);
    recipe.bind = at;
    let config = scratch("toml");
    std::fs::write(&config, recipe.text()).unwrap();
    let process = start_with_socket(&config, name, socket.into());
    (process, backend, config)
}

#[test]
fn a_socket_of_plain_activation_serves_on_all_shards() {
    let socket = listen(64);
    let at = socket.local_addr().unwrap();
    let waiting = connect(at);
    let (process, _backend, config) = activated("orders", socket, at);
    echo(&waiting, b"who came before the start");
    for _ in 0..20 {
        echo(&connect(at), b"and after");
    }
    assert!(!process.said().contains("WARN ringway::control::handover"), "{}", process.said());
    std::fs::remove_file(config).unwrap();
}

#[test]
fn a_socket_at_another_address_or_of_no_listener_is_named_and_not_served() {
    for name in ["orders", "others"] {
        let (socket, at) = (listen(64), free_address());
        let elsewhere = socket.local_addr().unwrap();
        let (process, _backend, config) = activated(name, socket, at);
        process.until_said("accepting clients");
        until(5000, "it serves its own", || {
            TcpStream::connect(at).is_ok_and(|client| try_echo(&client, b"x").is_ok())
        });
        let said = process.said();
        assert!(said.contains("LISTEN_FDS") && said.contains(&elsewhere.to_string()), "{said}");
        assert!(TcpStream::connect(elsewhere).is_err(), "it was closed");
        std::fs::remove_file(config).unwrap();
    }
}
