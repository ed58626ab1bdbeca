//! What the kernel says of this process, read from /proc. What cannot be read is not shown, rather than shown as 0.

use std::fs;

/// Clock ticks a second in /proc: the kernel's USER_HZ, which is 100 wherever std runs on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the kernel says of this process.
pub(super) struct Process {
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) start_seconds: Option<f64>,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) iou_workers: Option<u64>,
}

impl Process {
    /// Reads them.
    pub(super) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        let stat = text("/proc/self/stat");
        Self {
            resident_bytes: text("/proc/self/status").and_then(|s| resident_bytes(&s)),
            open_fds: open_fds(),
            max_fds: text("/proc/self/limits").and_then(|s| max_fds(&s)),
            start_seconds: stat.as_ref().and_then(|own| start_seconds(own, &text("/proc/stat")?)),
            cpu_seconds: stat.and_then(|s| cpu_seconds(&s)),
            iou_workers: iou_workers(),
        }
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// User and system time: fields 14 and 15, counted from behind the name, which may hold anything but is in brackets.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_ascii_whitespace().skip(11).map(|n| n.parse::<u64>().ok());
    Some((ticks.next()?? + ticks.next()??) as f64 / TICKS_PER_SECOND)
}

/// The soft limit, which is the one that holds.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Ticks from the machine's start to the process's (field 22), and when the machine started.
fn start_seconds(stat: &str, machine: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let booted = machine.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(booted.trim().parse::<u64>().ok()? as f64 + ticks as f64 / TICKS_PER_SECOND)
}

fn open_fds() -> Option<u64> {
    // The directory's size is the number of descriptors since Linux 6.2; counting thousands of entries takes longer.
    let known = fs::metadata("/proc/self/fd").ok()?.len();
    if known > 0 {
        return Some(known);
    }
    let listed = fs::read_dir("/proc/self/fd").ok()?.count();
    // The listing itself had one open.
    u64::try_from(listed.saturating_sub(1)).ok()
}

/// Threads the kernel started for this process's rings: they mean that an operation could not be done without blocking.
fn iou_workers() -> Option<u64> {
    let tasks = fs::read_dir("/proc/self/task").ok()?.flatten();
    // A thread may end between the listing and the reading; then it is not counted.
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    u64::try_from(names.filter(|name| name.starts_with("iou-wrk")).count()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib_and_told_in_bytes() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t   12 kB\nVmData:\t 9 kB\n"), Some(12 * 1024));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_times() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn the_limit_of_descriptors_and_the_start_are_read() {
        let limits =
            "Limit   Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files   unlimited   unlimited   files\n"), None);
        let stat = "7 (a) b) S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 1250 9 9";
        assert_eq!(start_seconds(stat, "cpu 1\nbtime 1700000000\n"), Some(1_700_000_012.5));
        assert_eq!(start_seconds(stat, "cpu 1\n"), None);
        let read = Process::read();
        assert!(read.max_fds.unwrap() >= read.open_fds.unwrap());
        assert!(read.start_seconds.unwrap() > 1e9);
    }

    #[test]
    fn descriptors_are_counted_as_they_come_and_go() {
        let before = open_fds().unwrap();
        let held: Vec<_> = (0..200).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        // Other tests open and close theirs meanwhile.
        assert!(open_fds().unwrap() > before + 100);
        drop(held);
        assert!(Process::read().resident_bytes.unwrap() > 1 << 20);
    }

    #[test]
    fn a_thread_named_like_a_ring_worker_is_counted() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, began) = std::sync::mpsc::channel();
        let worker = std::thread::Builder::new().name("iou-wrk-1".into()).spawn(move || {
            begin.send(()).unwrap();
            let _ = ended.recv();
        });
        began.recv().unwrap();
        assert!(iou_workers().unwrap() >= 1);
        drop(end);
        worker.unwrap().join().unwrap();
    }
}
