//! What the kernel says of another process, and signals to it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// Runs a program of the system. Whether it could be run and was content.
pub(crate) fn run(words: &[&str]) -> bool {
    let output = Command::new(words[0]).args(&words[1..]).output();
    output.is_ok_and(|output| output.status.success())
}

/// Sends a signal by its name, such as "STOP".
pub(crate) fn signal(pid: u32, name: &str) {
    assert!(run(&["kill", "-s", name, &pid.to_string()]), "kill -s {name} {pid}");
}

/// A process and its children.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(below.flat_map(family)).collect()
}

fn of_family(pid: u32, figure: impl Fn(u32) -> u64) -> u64 {
    family(pid).into_iter().map(figure).sum()
}

/// Descriptors a process and its children have open.
pub(crate) fn descriptors(pid: u32) -> u64 {
    of_family(pid, |pid| {
        fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |dir| dir.count() as u64)
    })
}

/// Its sockets, by descriptors: what else is open differs with caches of the proxies.
pub(crate) fn sockets(pid: u32) -> u64 {
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    of_family(pid, |pid| {
        let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
        dir.flatten().filter(is_socket).count() as u64
    })
}

/// What the descriptors of a process are, with how many of each: "socket", "anon_inode" and so on.
pub(crate) fn descriptor_kinds(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return kinds };
    for to in dir.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()) {
        let to = to.to_string_lossy();
        let kind = to.split(":[").next().unwrap_or_default().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// A field of /proc/PID/status in bytes, such as "VmRSS" or "VmHWM", of a process and its children.
pub(crate) fn status_bytes(pid: u32, field: &str) -> u64 {
    of_family(pid, |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    })
}

/// Begins a new peak of "VmHWM".
pub(crate) fn forget_peak(pid: u32) {
    for pid in family(pid) {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}

/// CPU time of a process and its children, to 10 ms.
pub(crate) fn cpu(pid: u32) -> Duration {
    let ticks = of_family(pid, |pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields = fields.split_whitespace().skip(11).take(2);
        fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
    });
    Duration::from_millis(ticks * 10)
}

/// Bytes the kernel holds, received and unsent, in sockets of this machine that match a filter of ss(8).
pub(crate) fn kernel_bytes(filter: &str) -> u64 {
    let output = Command::new("ss").args(["-tnmHO", filter]).output();
    let Ok(output) = output else { return 0 };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let held = |line: &str| {
        let fields = line.split("skmem:(").nth(1)?.split(')').next()?;
        let of = |field: &str| {
            fields.split(',').find_map(|f| f.strip_prefix(field)?.parse::<u64>().ok())
        };
        Some(of("r").unwrap_or(0) + of("w").unwrap_or(0))
    };
    text.lines().filter_map(held).sum()
}
