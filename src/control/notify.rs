//! Tells the service manager how Ringway is doing (sd_notify(3)): a datagram to the socket in `$NOTIFY_SOCKET`.

use crate::driver::{handoff, sys};
use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The way to the service manager, or to nobody where none asked to be told.
///
/// Telling is a courtesy: a manager that cannot be reached is no reason to stop serving, so failures are logged.
#[derive(Debug)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    stores: bool,
}

impl Notify {
    /// To the socket in `$NOTIFY_SOCKET`: a path, or an abstract name behind `@`; to nobody where it is unset.
    #[must_use]
    pub fn from_env() -> Self {
        let nobody = Self { to: None, stores: false };
        let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse::<u32>().ok());
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(name) if !name.is_empty() => match Self::to(&name) {
                Ok(notify) => Self { stores: most.is_some_and(|most| most > 0), ..notify },
                Err(error) => {
                    tracing::warn!(socket = ?name, %error,
                        "NOTIFY_SOCKET cannot be used: the manager is told nothing");
                    nobody
                }
            },
            _ => nobody,
        }
    }

    /// To the socket `name`: a path, or an abstract name behind `@`.
    ///
    /// # Errors
    /// Where `name` is no name of a socket, or no descriptor is left.
    pub fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?; // a manager that does not read must not stop us
        Ok(Self { to: Some((socket, address)), stores: false })
    }

    /// Clients are served, after the start or after [`reloading`](Self::reloading).
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// A new config is being read; [`ready`](Self::ready) is to follow, whether it was taken or not.
    pub fn reloading(&self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", sys::now().0 / 1000));
    }

    /// No more clients are taken, and the last sessions come to their end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Says in a line what is going on.
    pub fn status(&self, text: &str) {
        self.tell(&format!("STATUS={}", one_line(text)));
    }

    /// Another process is the service's main one from now on.
    pub fn main_process(&self, pid: u32) {
        self.tell(&format!("MAINPID={pid}"));
    }

    /// The manager is to keep sockets under a name, and pass them to the next process it starts (FDSTORE).
    pub fn keep(&self, name: &str, sockets: &[RawFd]) {
        for some in sockets.chunks(handoff::DESCRIPTORS_MAX) {
            self.tell_with(&format!("FDSTORE=1\nFDNAME={}", one_line(name)), some);
        }
    }

    /// Whether the manager says that it has room for sockets (`$FDSTORE`), so that what it keeps outlives this process.
    #[must_use]
    pub const fn stores(&self) -> bool {
        self.stores
    }

    /// The manager is to keep the sockets of this name no more.
    pub fn forget(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={}", one_line(name)));
    }

    fn tell(&self, message: &str) {
        let Some((socket, address)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }

    fn tell_with(&self, message: &str, descriptors: &[RawFd]) {
        let Some((_, address)) = &self.to else { return };
        // A connected socket of its own: one that descriptors are sent by names no address.
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect_addr(address)?;
            handoff::send(&socket, message.as_bytes(), descriptors)
        });
        if let Err(error) = sent {
            tracing::warn!(%error, "the service manager could not be given the listening sockets");
        }
    }
}

/// `text` without line ends, which would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    /// A manager that listens at an abstract name of its own, and what it hears.
    struct Manager(UnixDatagram);

    impl Manager {
        fn named(name: &str) -> (Self, Notify) {
            let name = format!("ringway-test-{name}-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(&name).expect("a short name");
            let manager = Self(UnixDatagram::bind_addr(&address).expect("the name is ours"));
            (manager, Notify::to(OsStr::new(&format!("@{name}"))).expect("the same name"))
        }

        fn heard(&self) -> String {
            let mut message = [0; 1024];
            self.0.set_nonblocking(true).expect("a socket");
            let bytes = self.0.recv(&mut message).expect("a message was sent before");
            String::from_utf8_lossy(&message[..bytes]).into_owned()
        }
    }

    #[test]
    fn each_state_is_told_in_the_managers_words() {
        let (manager, notify) = Manager::named("states");
        notify.ready("2 listeners");
        assert_eq!(manager.heard(), "READY=1\nSTATUS=2 listeners");
        notify.status("draining\nREADY=0");
        assert_eq!(manager.heard(), "STATUS=draining READY=0");
        notify.stopping();
        assert_eq!(manager.heard(), "STOPPING=1");
    }

    #[test]
    fn a_reload_carries_the_time_the_manager_compares() {
        let (manager, notify) = Manager::named("reload");
        let before = sys::now().0 / 1000;
        notify.reloading();
        let heard = manager.heard();
        let since = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("both assignments");
        let since: u64 = since.parse().expect("a number");
        assert!((before..=sys::now().0 / 1000).contains(&since), "{since}");
    }

    #[test]
    fn sockets_are_kept_under_a_name_until_it_is_forgotten() {
        let (manager, notify) = Manager::named("store");
        let kept = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        notify.keep("orders", &[kept.as_raw_fd(), kept.as_raw_fd()]);
        let mut message = [0; 64];
        let (n, came) = handoff::receive(&manager.0, &mut message).expect("it was sent");
        assert_eq!(&message[..n], b"FDSTORE=1\nFDNAME=orders");
        let same = came.into_iter().map(|fd| std::net::TcpListener::from(fd).local_addr().ok());
        let at = kept.local_addr().ok();
        assert_eq!(same.collect::<Vec<_>>(), [at, at]);
        notify.forget("orders");
        assert_eq!(manager.heard(), "FDSTOREREMOVE=1\nFDNAME=orders");
        notify.main_process(42);
        assert_eq!(manager.heard(), "MAINPID=42");
    }

    #[test]
    fn a_path_works_like_a_name() {
        let path = std::env::temp_dir().join(format!("ringway-notify-{}", std::process::id()));
        let manager = Manager(UnixDatagram::bind(&path).expect("a path of our own"));
        Notify::to(path.as_os_str()).expect("a path").stopping();
        assert_eq!(manager.heard(), "STOPPING=1");
        std::fs::remove_file(&path).expect("the socket is there");
    }

    #[test]
    fn nobody_and_a_manager_that_left_are_no_trouble() {
        Notify { to: None, stores: false }.ready("unheard");
        let (manager, notify) = Manager::named("gone");
        drop(manager);
        notify.ready("unheard");
        assert!(Notify::to(OsStr::new(&"x".repeat(200))).is_err(), "longer than a path may be");
    }
}
