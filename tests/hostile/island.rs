//! A network of its own for the proxy: a namespace that a pair of virtual interfaces joins to this one.

use super::process::run;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The namespace has .2, this side has .1 and .5; nobody has .9.
pub(crate) struct Island {
    name: String,
    near: String,
    link: String,
    octet: u8,
}

impl Island {
    /// `None`, with a loud line, where there is no right to make one.
    pub(crate) fn make() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() * 16 + NUMBER.fetch_add(1, Relaxed);
        let name = format!("ringway-{number}");
        let (near, link) = (format!("rwa{number}"), format!("rwb{number}"));
        let octet = (number % 250) as u8 + 1;
        if !run(&["ip", "netns", "add", &name]) {
            eprintln!("SKIPPED: `ip netns add` is refused: this needs root and iproute2");
            return None;
        }
        let island = Self { name, near, link, octet };
        let (name, near, link) = (island.name.as_str(), island.near.as_str(), island.link.as_str());
        let address = |last| format!("10.213.{octet}.{last}/24");
        let made = run(&["ip", "link", "add", near, "type", "veth", "peer", "name", link])
            && run(&["ip", "link", "set", link, "netns", name])
            && run(&["ip", "addr", "add", &address(1), "dev", near])
            && run(&["ip", "addr", "add", &address(5), "dev", near])
            && run(&["ip", "link", "set", near, "up"])
            && island.inside(&["ip", "addr", "add", &address(2), "dev", link])
            && island.inside(&["ip", "link", "set", link, "up"])
            && island.inside(&["ip", "link", "set", "lo", "up"]);
        if !made {
            eprintln!("SKIPPED: no virtual interfaces can be made here");
            return None;
        }
        island.swallow(9);
        Some(island)
    }

    /// Where the proxy is to listen.
    pub(crate) const fn proxy(&self) -> IpAddr {
        self.ip(2)
    }

    /// Where backends on this side are to listen.
    pub(crate) const fn near(&self) -> [SocketAddr; 2] {
        [SocketAddr::new(self.ip(1), 0), SocketAddr::new(self.ip(5), 0)]
    }

    /// An address from which nothing ever comes back.
    pub(crate) const fn black_hole(&self) -> SocketAddr {
        SocketAddr::new(self.ip(9), 9)
    }

    const fn ip(&self, last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 213, self.octet, last))
    }

    /// From now on what the proxy sends to the other backend is delivered to nobody.
    pub(crate) fn lose_other(&self) {
        self.swallow(5);
    }

    fn swallow(&self, last: u8) {
        let ip = self.ip(last).to_string();
        let nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", &self.link];
        let words: Vec<&str> = ["ip", "neigh", "replace", &ip].into_iter().chain(nobody).collect();
        assert!(self.inside(&words), "{words:?}");
    }

    /// Gives the proxy so few local ports.
    pub(crate) fn local_ports(&self, first: u16, last: u16) {
        let range = format!("net.ipv4.ip_local_port_range={first} {last}");
        assert!(self.inside(&["sysctl", "-q", "-w", &range]));
    }

    fn inside(&self, words: &[&str]) -> bool {
        let all: Vec<&str> =
            ["ip", "netns", "exec", &self.name].into_iter().chain(words.iter().copied()).collect();
        run(&all)
    }

    /// What has a program run inside.
    pub(crate) fn by(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).into()
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // The namespace lives on while sockets in it wait for an answer; the interfaces must not, for their addresses
        // are used again.
        run(&["ip", "link", "del", &self.near]);
        run(&["ip", "netns", "del", &self.name]);
    }
}
