//! Why io_uring is refused, told from an error number and what the machine says of itself, and what to change.

use super::Feature;
use serde::Serialize;
use std::{fmt, fs, io};

/// A trial that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted, or what was seen instead of what should be.
    pub what: String,
    /// The kernel's error number (errno(3)); `None` where it did something else than it should.
    pub errno: Option<i32>,
}

impl Failure {
    /// `what` failed with `error`.
    pub(super) fn at(what: &str) -> impl Fn(io::Error) -> Self + '_ {
        move |error| Self { what: what.to_owned(), errno: error.raw_os_error() }
    }

    /// `what` was seen instead of what should be.
    pub(super) fn saw(what: impl Into<String>) -> Self {
        Self { what: what.into(), errno: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "{}: {}", self.what, io::Error::from_raw_os_error(errno)),
            None => f.write_str(&self.what),
        }
    }
}

/// What bears on a refusal; `None` where this machine does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Circumstances {
    /// `kernel.io_uring_disabled`: 0 allows io_uring, 1 allows it to a group and the privileged, 2 forbids it. Kernels
    /// before 6.6 have no such switch.
    pub io_uring_disabled: Option<u8>,
    /// Whether a filter of system calls (seccomp) is on this thread.
    pub filtered: Option<bool>,
    /// Bytes this process may lock in memory (RLIMIT_MEMLOCK); `u64::MAX` is no limit.
    pub memlock_bytes: Option<u64>,
}

impl Circumstances {
    /// As they are for this thread.
    #[must_use]
    pub fn read() -> Self {
        let file = |path| fs::read_to_string(path).ok();
        Self {
            io_uring_disabled: file("/proc/sys/kernel/io_uring_disabled")
                .and_then(|text| text.trim().parse().ok()),
            filtered: file("/proc/thread-self/status").and_then(|text| filtered(&text)),
            memlock_bytes: memlock_bytes(),
        }
    }
}

impl fmt::Display for Circumstances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.io_uring_disabled {
            Some(value) => write!(f, "kernel.io_uring_disabled = {value}")?,
            None => write!(f, "kernel.io_uring_disabled unknown")?,
        }
        match self.filtered {
            Some(true) => write!(f, "; system calls are filtered (seccomp)")?,
            Some(false) => write!(f, "; system calls are not filtered")?,
            None => {}
        }
        write!(f, "; RLIMIT_MEMLOCK {}", in_kib(self.memlock_bytes))
    }
}

/// Whether a `/proc/.../status` speaks of a filter: mode 2. (1 is strict mode, in which nothing could read this.)
fn filtered(status: &str) -> Option<bool> {
    let value = status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?;
    Some(value.trim() != "0")
}

fn memlock_bytes() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) fills the structure it is given and keeps no pointer to it.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (asked == 0).then_some(limit.rlim_cur)
}

fn in_kib(bytes: Option<u64>) -> String {
    match bytes {
        None => "unknown".to_owned(),
        Some(libc::RLIM_INFINITY) => "unlimited".to_owned(),
        Some(bytes) => format!("{} KiB", bytes / 1024),
    }
}

/// A feature that was refused: why, and what to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Which.
    pub feature: Feature,
    /// The kernel's error number, if it gave one.
    pub errno: Option<i32>,
    /// Why, in a sentence.
    pub why: String,
    /// What to change, in a sentence.
    pub change: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is refused: {}. {}.", self.feature.label(), self.why, self.change)
    }
}

/// All refusals as one sentence for one log line; the first, for the others mostly follow from it, and how many follow.
pub(in crate::driver) fn sentence(refusals: &[Refusal]) -> String {
    match refusals {
        [] => "io_uring could not be tried".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more: see `ringway probe`)", rest.len()),
    }
}

const ALLOW_BY_SYSCTL: &str =
    "Run `sysctl -w kernel.io_uring_disabled=0` and write it to /etc/sysctl.d";
const ALLOW_BY_FILTER: &str = "Allow io_uring_setup, io_uring_enter and io_uring_register in the sandbox's filter \
     (deploy/README.md shows how for Docker, Kubernetes and systemd)";
const NEWER_KERNEL: &str = "Run kernel 6.12 or later, or stay on epoll";
const NOTHING: &str = "Nothing has to change: Ringway does without it";

/// Why `feature` failed, as far as the error number and the machine's own words tell.
#[must_use]
pub fn explain(feature: Feature, failure: &Failure, here: &Circumstances) -> Refusal {
    let say = |why: String, change: &str| Refusal {
        feature,
        errno: failure.errno,
        why,
        change: change.to_owned(),
    };
    let newer = if feature.needed() { NEWER_KERNEL } else { NOTHING };
    match failure.errno {
        Some(libc::ENOSYS) if here.filtered == Some(true) => say(
            format!("{failure}; a filter of system calls hides io_uring, or the kernel has none"),
            ALLOW_BY_FILTER,
        ),
        Some(libc::ENOSYS) => say(
            format!("{failure}; this kernel was built without io_uring, or is older than it"),
            newer,
        ),
        Some(libc::EPERM) => forbidden(failure, here, say),
        Some(libc::EACCES) => say(
            format!("{failure}; a security module such as SELinux denies it"),
            "Look for io_uring in `ausearch -m avc` and allow it to Ringway's domain",
        ),
        Some(libc::ENOMEM) => say(
            format!(
                "{failure}; rings count as locked memory, of which this user may have {} for all its rings",
                in_kib(here.memlock_bytes)
            ),
            "Raise the limit: LimitMEMLOCK= in systemd, --ulimit memlock= in Docker, `ulimit -l` in a shell",
        ),
        Some(libc::EMFILE | libc::ENFILE) => say(
            format!("{failure}; no descriptor is left"),
            "Raise the limit: LimitNOFILE= in systemd, `ulimit -n` in a shell, or fs.file-max",
        ),
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            say(format!("{failure}; this kernel does not know it"), newer)
        }
        _ => say(failure.to_string(), newer),
    }
}

/// EPERM: the sysctl, where it is set, else a filter.
fn forbidden(
    failure: &Failure,
    here: &Circumstances,
    say: impl Fn(String, &str) -> Refusal,
) -> Refusal {
    match here.io_uring_disabled {
        Some(2) => say(
            format!("{failure}; kernel.io_uring_disabled = 2 forbids io_uring to everybody"),
            ALLOW_BY_SYSCTL,
        ),
        Some(1) => say(
            format!(
                "{failure}; kernel.io_uring_disabled = 1 allows io_uring only to CAP_SYS_ADMIN and the group in \
                 kernel.io_uring_group"
            ),
            "Put Ringway's user into that group (`sysctl -w kernel.io_uring_group=<gid>`), or set \
             kernel.io_uring_disabled to 0",
        ),
        _ if here.filtered == Some(false) => say(
            format!("{failure}; no filter of system calls is set, so a security module denies it"),
            "Look for a denial in `journalctl -k` and allow io_uring to Ringway there",
        ),
        _ => say(
            format!("{failure}; a filter of system calls forbids it, as Docker's default one does"),
            ALLOW_BY_FILTER,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(errno: i32, here: Circumstances) -> String {
        let failure = Failure { what: "io_uring_setup".into(), errno: Some(errno) };
        explain(Feature::Ring, &failure, &here).to_string()
    }

    #[test]
    fn a_sysctl_that_forbids_is_named_with_its_remedy() {
        let disabled =
            |value| Circumstances { io_uring_disabled: Some(value), ..Circumstances::default() };
        let two = explained(libc::EPERM, disabled(2));
        assert!(
            two.contains("io_uring_disabled = 2") && two.contains("io_uring_disabled=0"),
            "{two}"
        );
        let one = explained(libc::EPERM, disabled(1));
        assert!(one.contains("io_uring_disabled = 1") && one.contains("io_uring_group"), "{one}");
        let zero = explained(libc::EPERM, disabled(0));
        assert!(!zero.contains("sysctl") && zero.contains("filter"), "{zero}");
    }

    #[test]
    fn each_error_names_its_own_remedy() {
        let here = Circumstances {
            io_uring_disabled: Some(0),
            filtered: Some(true),
            memlock_bytes: Some(64 * 1024),
        };
        for (errno, words) in [
            (libc::ENOSYS, ["filter", "io_uring_setup, io_uring_enter and io_uring_register"]),
            (libc::EPERM, ["filter", "deploy/README.md"]),
            (libc::EACCES, ["SELinux", "ausearch"]),
            (libc::ENOMEM, ["64 KiB", "LimitMEMLOCK"]),
            (libc::EMFILE, ["descriptor", "LimitNOFILE"]),
            (libc::EINVAL, ["does not know", "6.12"]),
        ] {
            let text = explained(errno, here);
            assert!(words.iter().all(|word| text.contains(word)), "{errno}: {text}");
        }
    }

    #[test]
    fn nobody_changes_a_kernel_for_what_is_not_needed() {
        let failure = Failure { what: "IORING_REGISTER_NAPI".into(), errno: Some(libc::EINVAL) };
        let text = explain(Feature::BusyPoll, &failure, &Circumstances::default()).to_string();
        assert!(text.contains("does without it"), "{text}");
    }

    #[test]
    fn without_a_filter_nobody_is_told_to_change_one() {
        let here = Circumstances { filtered: Some(false), ..Circumstances::default() };
        assert!(explained(libc::ENOSYS, here).contains("built without"));
        assert!(explained(libc::EPERM, here).contains("security module"));
    }

    #[test]
    fn the_status_of_a_thread_tells_of_its_filter() {
        assert_eq!(filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"), Some(true));
        assert_eq!(filtered("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n"), Some(false));
        assert_eq!(filtered("Name:\tx\n"), None);
    }
}
