//! What a service manager sees and keeps. systemd is not there to be asked, so a stand-in listens at $NOTIFY_SOCKET.

use crate::line::Line;
use crate::world::net::{Backend, PATIENCE, connect, echo, free_address, listen, try_echo};
use crate::world::program::{Process, RINGWAY};
use crate::world::proxy::{Recipe, scratch};
use crate::world::{pause, skipped, until};
use ringway::config::DataPath;
use ringway::driver::handoff;
use socket2::{Domain, Socket, Type};
use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A service manager. It keeps what it is given, when the test has it hear of that.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// By name; each socket once, under the name it had first.
    kept: RefCell<Vec<(String, OwnedFd)>>,
}

/// Names a socket, whichever descriptor leads to it.
fn number_of(socket: &OwnedFd) -> u64 {
    std::fs::File::from(socket.try_clone().unwrap()).metadata().unwrap().ino()
}

fn address_of(socket: &OwnedFd) -> SocketAddr {
    TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap()
}

impl Manager {
    fn new() -> Self {
        let path = scratch("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path, kept: RefCell::default() }
    }

    /// The next message. It does what that asks for.
    fn hears(&self) -> String {
        let mut message = [0; 4096];
        let (n, sockets) = handoff::receive(&self.socket, &mut message).expect("a message");
        let message = String::from_utf8(message[..n].to_vec()).unwrap();
        let kept = &mut *self.kept.borrow_mut();
        if let Some(name) = message.strip_prefix("FDSTORE=1\nFDNAME=") {
            for socket in sockets {
                if kept.iter().all(|(_, other)| number_of(other) != number_of(&socket)) {
                    kept.push((name.to_owned(), socket));
                }
            }
        }
        if let Some(name) = message.strip_prefix("FDSTOREREMOVE=1\nFDNAME=") {
            // A moment later than it was asked to, as systemd.
            pause(20);
            kept.retain(|(of, _)| of != name);
        }
        message
    }

    /// Hears until a message begins with this.
    fn until(&self, begins: &str) -> String {
        loop {
            let message = self.hears();
            if message.starts_with(begins) {
                return message;
            }
        }
    }

    /// Hears until it keeps exactly these, in any order.
    fn until_it_keeps(&self, these: &[(&str, SocketAddr)]) {
        let mut wanted: Vec<_> = these.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        wanted.sort();
        while self.keeps() != wanted {
            self.hears();
        }
    }

    /// Names and addresses.
    fn keeps(&self) -> Vec<(String, SocketAddr)> {
        let kept = self.kept.borrow();
        let mut keeps: Vec<_> =
            kept.iter().map(|(name, socket)| (name.clone(), address_of(socket))).collect();
        keeps.sort();
        keeps
    }

    fn is_told_by(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", "512");
    }

    /// Starts Ringway with what is kept.
    fn start(&self, config: &PathBuf) -> Process {
        let kept = self.kept.borrow();
        let passed = kept.iter().map(|(name, socket)| (&**name, socket.try_clone().unwrap()));
        start_with_sockets(config, passed.collect(), |command| self.is_told_by(command))
    }

    fn stop(&self, mut process: Process) {
        process.signal("TERM");
        self.until("STOPPING=1");
        assert!(process.wait(5000).success());
    }

    /// Stops Ringway, and starts it again with what is kept.
    fn restart(&self, process: Process, config: &PathBuf) -> Process {
        self.stop(process);
        self.start(config)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A further listener, as TOML.
fn listener(name: &str, at: SocketAddr) -> String {
    format!("[listeners.{name}]\nbind = \"{at}\"\nstable = \"v1\"")
}

fn recipe(backend: &Backend) -> Recipe {
    Recipe::new(DataPath::Auto, &[backend.at]).more("[stop]\ngrace_ms = 0\ndrain_ms = 5000")
}

/// Starts Ringway with up to three sockets that were opened before it, as a manager does.
fn start_with_sockets(
    config: &PathBuf,
    sockets: Vec<(&str, OwnedFd)>,
    adapt: impl FnOnce(&mut Command),
) -> Process {
    let script = "exec 3<&0 4<&1 5<&2 </dev/null >\"$2\" 2>&1; export LISTEN_PID=$$; \
                  exec \"$0\" run --config \"$1\"";
    let said = scratch("log");
    std::fs::File::create(&said).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script, RINGWAY]).arg(config).arg(&said);
    let (names, sockets): (Vec<&str>, Vec<OwnedFd>) = sockets.into_iter().unzip();
    command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    adapt(&mut command);
    let mut sockets = sockets.into_iter().map(Stdio::from);
    let stdio = std::array::from_fn(|_| sockets.next().unwrap_or_else(Stdio::null));
    assert!(sockets.next().is_none(), "three are all that can be passed here");
    Process::start_on(command, stdio, said)
}

#[test]
fn the_manager_is_told_which_process_is_the_main_one() {
    let (manager, backend) = (Manager::new(), Backend::echo());
    let line = Line::start_with(recipe(&backend), |command| manager.is_told_by(command));
    let said = manager.until("READY=1");
    assert!(said.contains("accepting clients"), "{said}");
    let session = connect(line.at);
    echo(&session, b"one");
    for _ in 0..2 {
        line.upgrade();
        let pid = line.pid();
        // The old one says who follows, and only then is the new one heard.
        assert_eq!(manager.until("MAINPID="), format!("MAINPID={pid}"));
        manager.until("READY=1");
        manager.until_it_keeps(&[("orders", line.at), ("[admin]", line.admin)]);
        echo(&session, b"and on");
    }
}

#[test]
fn nobody_is_refused_while_a_process_is_started_again() {
    let (manager, backend) = (Manager::new(), Backend::echo());
    let mut line = Line::start_with(recipe(&backend), |command| manager.is_told_by(command));
    manager.until_it_keeps(&[("orders", line.at), ("[admin]", line.admin)]);
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

    let again = manager.start(&line.config);
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
    let fix = free_address();
    let more = listener("fix", fix);
    let line = Line::start_with(recipe(&backend).more(&more), |c| manager.is_told_by(c));
    let rest = [("orders", line.at), ("[admin]", line.admin)];
    manager.until_it_keeps(&[&rest[..], &[("fix", fix)]].concat());
    let text = std::fs::read_to_string(&line.config).unwrap();
    std::fs::write(&line.config, text.replace(&more, "")).unwrap();
    line.process.signal("HUP");
    assert_eq!(manager.until("FDSTOREREMOVE"), "FDSTOREREMOVE=1\nFDNAME=fix");
    manager.until_it_keeps(&rest);
}

/// A Ringway on two shards that is to be at an address, to which a manager passes sockets of this name.
fn activated(name: &str, sockets: Vec<OwnedFd>, at: SocketAddr) -> (Process, Backend, PathBuf) {
    let backend = Backend::echo();
    let mut recipe = Recipe::new(DataPath::Auto, &[backend.at]).shards(2);
    recipe.bind = at;
    let config = scratch("toml");
    std::fs::write(&config, recipe.text()).unwrap();
    let sockets = sockets.into_iter().map(|socket| (name, socket)).collect();
    let process = start_with_sockets(&config, sockets, |_| {});
    (process, backend, config)
}

#[test]
fn a_socket_of_plain_activation_serves_on_all_shards() {
    let socket = listen(64);
    let at = socket.local_addr().unwrap();
    let waiting = connect(at);
    let (process, _backend, config) = activated("orders", vec![socket.into()], at);
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
        let (process, _backend, config) = activated(name, vec![socket.into()], at);
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

/// The config of a Ringway that a manager starts again and again.
struct Service {
    manager: Manager,
    _backend: Backend,
    recipe: Recipe,
    config: PathBuf,
    /// Where `orders` listens.
    at: SocketAddr,
}

impl Service {
    fn new(shards: usize) -> Self {
        let (manager, backend, at) = (Manager::new(), Backend::echo(), free_address());
        let mut recipe = recipe(&backend).shards(shards);
        recipe.bind = at;
        let config = scratch("toml");
        Self { manager, _backend: backend, recipe, config, at }
    }

    /// Changes the config.
    fn says(&self, text: &str) {
        std::fs::write(&self.config, text).unwrap();
    }

    /// Starts it for the first time, until all is kept.
    fn start(&self, with: &Recipe, keeps: &[(&str, SocketAddr)]) -> Process {
        self.says(&with.text());
        let process = self.manager.start(&self.config);
        self.manager.until("READY=1");
        self.manager.until_it_keeps(keeps);
        process
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.config);
    }
}

#[test]
fn a_listener_that_has_another_name_takes_what_was_kept_at_its_address() {
    let service = Service::new(2);
    let process = service.start(&service.recipe, &[("orders", service.at); 2]);
    service.says(&service.recipe.text().replace("listeners.orders", "listeners.renamed"));
    service.manager.stop(process);
    let waiting = connect(service.at);
    let process = service.manager.start(&service.config);
    echo(&waiting, b"who came meanwhile");
    service.manager.until("READY=1");
    service.manager.until_it_keeps(&[("renamed", service.at); 2]);
    (0..10).for_each(|_| echo(&connect(service.at), b"and after"));
    assert!(!process.said().contains("WARN ringway::control::handover"), "{}", process.said());
}

#[test]
fn a_listener_that_becomes_wider_has_its_port() {
    let service = Service::new(2);
    let process = service.start(&service.recipe, &[("orders", service.at); 2]);
    let wide = SocketAddr::from(([0, 0, 0, 0], service.at.port()));
    service.says(&service.recipe.text().replace(&service.at.to_string(), &wide.to_string()));
    let _process = service.manager.restart(process, &service.config);
    service.manager.until("READY=1");
    echo(&connect(service.at), b"here it is");
    service.manager.until_it_keeps(&[("orders", wide); 2]);
}

#[test]
fn what_no_listener_asks_for_any_more_is_kept_no_more() {
    let service = Service::new(1);
    let fix = free_address();
    let with = service.recipe.clone().more(&listener("fix", fix));
    let process = service.start(&with, &[("fix", fix), ("orders", service.at)]);
    service.says(&service.recipe.text());
    let process = service.manager.restart(process, &service.config);
    service.manager.until("READY=1");
    service.manager.until_it_keeps(&[("orders", service.at)]);
    assert!(TcpStream::connect(fix).is_err(), "nobody listens");
    // And who asks for it again has it.
    service.says(&with.text());
    process.signal("HUP");
    until(5000, "it serves there again", || {
        TcpStream::connect(fix).is_ok_and(|client| try_echo(&client, b"x").is_ok())
    });
}

#[test]
fn what_is_kept_under_the_name_of_something_stale_is_not_lost() {
    let service = Service::new(1);
    let (stale, old) = (listen(1), free_address());
    let stale_at = stale.local_addr().unwrap();
    let process = service.start(&service.recipe, &[("orders", service.at)]);
    service.manager.kept.borrow_mut().push(("orders".to_owned(), stale.into()));
    // It is kept again before anything can fail, such as this one's port.
    let _in_the_way = TcpListener::bind(old).unwrap();
    service.says(&service.recipe.clone().more(&listener("fix", old)).text());
    let mut process = service.manager.restart(process, &service.config);
    assert_eq!(process.wait(5000).code(), Some(71));
    service.manager.until("FDSTORE=1\nFDNAME=orders");
    service.manager.until_it_keeps(&[("orders", service.at)]);
    assert!(TcpStream::connect(stale_at).is_err(), "nobody listens");
    service.says(&service.recipe.text());
    let _process = service.manager.start(&service.config);
    service.manager.until("READY=1");
    echo(&connect(service.at), b"served");
}

#[test]
fn what_an_upgrade_renames_is_kept_under_its_new_name() {
    let (manager, backend) = (Manager::new(), Backend::echo());
    let line = Line::start_with(recipe(&backend).shards(2), |command| manager.is_told_by(command));
    let rest = ("[admin]", line.admin);
    manager.until_it_keeps(&[rest, ("orders", line.at), ("orders", line.at)]);
    let text = std::fs::read_to_string(&line.config).unwrap();
    std::fs::write(&line.config, text.replace("listeners.orders", "listeners.renamed")).unwrap();
    line.upgrade();
    manager.until("MAINPID=");
    manager.until_it_keeps(&[rest, ("renamed", line.at), ("renamed", line.at)]);
    echo(&connect(line.at), b"served");
}

/// A socket for a group, opened by a user whom this process is not; none where it may not do that.
fn foreign(at: SocketAddr) -> Option<OwnedFd> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    std::os::unix::fs::fchown(&socket, Some(65_534), None).ok()?;
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(64).unwrap();
    Some(socket.into())
}

/// The kernel lets sockets of one user alone into a group.
#[test]
fn sockets_that_another_user_opened_for_a_group_serve_on_all_shards() {
    for count in [1, 2] {
        let at = free_address();
        let sockets: Vec<OwnedFd> = (0..count).filter_map(|_| foreign(at)).collect();
        if sockets.is_empty() {
            return skipped("sockets of another user, which only root can make");
        }
        let waiting = connect(at);
        let (process, _backend, config) = activated("orders", sockets, at);
        echo(&waiting, b"who came before the start");
        (0..20).for_each(|_| echo(&connect(at), b"and after"));
        assert_eq!(process.said().contains("opened by another user"), count == 1);
        std::fs::remove_file(config).unwrap();
    }
}
