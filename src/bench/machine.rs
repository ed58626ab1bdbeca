//! What is measured on, as far as it bears on the figures, and which CPUs are taken.

use crate::driver::sys;
use std::collections::BTreeSet;
use std::fs;

/// CPUs of a bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    /// Of the proxies, by turns.
    pub proxy: usize,
    /// Of load and backend.
    pub load: usize,
}

impl std::str::FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cpus = text.split_once(',').map(|(a, b)| (a.trim().parse(), b.trim().parse()));
        match cpus {
            Some((Ok(proxy), Ok(load))) => Ok(Self { proxy, load }),
            _ => Err("must be two CPU numbers, such as 2,3: the proxies' and the load's".into()),
        }
    }
}

impl Cpus {
    /// The first CPU this process may use, and the next that is no sibling of it: two threads of one core would slow
    /// each other down.
    pub(super) fn choose() -> Self {
        let allowed = sys::affinity();
        let proxy = allowed.first().copied().unwrap_or(0);
        let siblings = siblings(proxy);
        let mut others = allowed.iter().copied().filter(|cpu| *cpu != proxy);
        let second = others.clone().next();
        let load = others.find(|cpu| !siblings.contains(cpu)).or(second).unwrap_or(proxy);
        Self { proxy, load }
    }

    /// What is wrong with them, if something is.
    pub(super) fn warning(self) -> Option<String> {
        let Self { proxy, load } = self;
        if proxy == load {
            return Some(
                "proxies and load share a CPU: times and rates mean little, CPU a little more"
                    .into(),
            );
        }
        let shared = siblings(proxy).contains(&load);
        shared.then(|| format!("CPUs {proxy} and {load} are one core: each slows the other down"))
    }
}

/// The CPUs of this one's core, itself among them; none where the kernel does not say.
fn siblings(cpu: usize) -> BTreeSet<usize> {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    listed(&fs::read_to_string(file).unwrap_or_default())
}

/// The numbers of a list as the kernel writes it, such as `0-1,4`.
fn listed(text: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.parse().ok()?..=to.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// What a CPU did since the machine was started, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// In programs and for them; interrupts aside.
    pub(super) busy_ns: u64,
    /// Nothing, because the host gave it to another guest.
    pub(super) stolen_ns: u64,
}

/// What `cpu` did so far.
pub(super) fn spent(cpu: usize) -> Spent {
    spent_in(&fs::read_to_string("/proc/stat").unwrap_or_default(), cpu)
}

/// The same of the text of `/proc/stat` (proc_stat(5)), whose ticks are hundredths of a second.
fn spent_in(stat: &str, cpu: usize) -> Spent {
    let name = format!("cpu{cpu} ");
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix(&name)) else {
        return Spent::default();
    };
    let fields: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or(0) * 10_000_000;
    // user, nice, system, idle, iowait, irq, softirq, steal
    Spent { busy_ns: field(0) + field(1) + field(2), stolen_ns: field(7) }
}

/// A line about the machine; `kernel` as `uname -r`, `cpus` as many as this process may use.
pub(super) fn describe(kernel: &str, cpus: usize) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
    let guest = if field(&cpuinfo, "flags").is_some_and(|flags| flags.contains(" hypervisor")) {
        ", a virtual machine"
    } else {
        ""
    };
    format!("Linux {kernel} on {model}{guest}, CPUs to choose from: {cpus}")
}

fn field<'t>(cpuinfo: &'t str, name: &str) -> Option<&'t str> {
    let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// The congestion control of new sockets, and a warning about those that pace.
pub(super) fn congestion() -> (String, Option<&'static str>) {
    let read = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    let name = read.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned());
    let paces = name.starts_with("bbr").then_some(
        "bbr paces what is sent, on loopback too, and so hides what proxies cost in bulk; \
         `sysctl -w net.ipv4.tcp_congestion_control=cubic` while this runs shows it",
    );
    (name, paces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_read_and_chosen() {
        assert_eq!("4, 7".parse(), Ok(Cpus { proxy: 4, load: 7 }));
        for wrong in ["4", "4,", "a,b", "1,2,3", ""] {
            assert!(wrong.parse::<Cpus>().is_err(), "{wrong}");
        }
        let allowed = sys::affinity();
        let chosen = Cpus::choose();
        assert!(allowed.contains(&chosen.proxy) && allowed.contains(&chosen.load));
        assert_eq!(chosen.proxy == chosen.load, allowed.len() == 1);
        assert!(Cpus { proxy: 0, load: 0 }.warning().is_some());
    }

    #[test]
    fn lists_of_the_kernel_are_read() {
        assert_eq!(listed("0-2,7\n"), BTreeSet::from([0, 1, 2, 7]));
        assert_eq!(listed(""), BTreeSet::new());
    }

    #[test]
    fn what_a_cpu_did_is_read() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu10 5 0 0 0 0 0 0 0 0 0\n";
        let of = |busy: u64, stolen: u64| Spent {
            busy_ns: busy * 10_000_000,
            stolen_ns: stolen * 10_000_000,
        };
        assert_eq!(spent_in(stat, 0), of(6, 8));
        assert_eq!(spent_in(stat, 10), of(5, 0));
        assert_eq!(spent_in(stat, 1), Spent::default());
        assert!(spent(*sys::affinity().first().unwrap()).busy_ns > 0);
    }

    #[test]
    fn the_machine_is_described() {
        let text = describe("6.18.1", 7);
        assert!(text.contains("6.18.1") && text.ends_with("CPUs to choose from: 7"), "{text}");
        assert_eq!(field("a\t: b\nmodel name\t: X 1\n", "model name"), Some("X 1"));
    }
}
