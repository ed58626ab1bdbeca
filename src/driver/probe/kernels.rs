//! Kernels on which io_uring passes every trial and still is not to be trusted: what showed only under load.
//!
//! `auto` asks this table. Somebody who asks for io_uring by name is told, not stopped.

use serde::Serialize;
use std::ffi::CStr;
use std::fmt;

/// A kernel's version. A release candidate counts as the release it became.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16, pub u16, pub u16);

impl Version {
    /// The version in front of a release's name: `6.12.57+deb13-amd64` is 6.12.57, `6.18-rc3` is 6.18.0.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let digits = release.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
        let mut parts = digits.split('.').map(|part| part.parse().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        Some(Self(major, minor, parts.next().flatten().unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        match *patch {
            0 => write!(f, "{major}.{minor}"),
            Self::LAST => write!(f, "{major}.{minor}.*"),
            patch => write!(f, "{major}.{minor}.{patch}"),
        }
    }
}

impl Version {
    /// Stands for the last patch of a version there will ever be.
    const LAST: u16 = u16::MAX;
}

impl Serialize for Version {
    /// As people write it.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What an entry of the table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know; what Ringway uses is not touched, or it copes.
    Note,
    /// `auto` takes epoll.
    Avoid,
}

/// Something known against a range of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KnownBad {
    /// First version it holds for.
    pub from: Version,
    /// Last version it holds for.
    pub to: Version,
    /// What goes wrong there, and where it was reported.
    pub reason: &'static str,
    /// What follows from it.
    pub severity: Severity,
}

impl fmt::Display for KnownBad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: {}", self.from, self.to, self.reason)
    }
}

/// The first kernel `auto` takes io_uring on.
pub const AUTO_FROM: Version = Version(6, 12, 0);
/// The first kernel on which the mark of a listening socket (SO_INCOMING_CPU) counts within its SO_REUSEPORT group.
pub const STEERS_FROM: Version = Version(6, 2, 0);

const fn avoid(from: Version, to: Version, reason: &'static str) -> KnownBad {
    KnownBad { from, to, reason, severity: Severity::Avoid }
}

const fn note(from: Version, to: Version, reason: &'static str) -> KnownBad {
    KnownBad { from, to, reason, severity: Severity::Note }
}

/// All that is known, the narrower before the wider where they overlap: the first to match is what a log line says.
pub const KNOWN_BAD: [KnownBad; 8] = [
    avoid(
        Version(0, 0, 0),
        Version(6, 0, Version::LAST),
        "no DEFER_TASKRUN, so another thread's completion may interrupt a shard at any point",
    ),
    avoid(
        Version(6, 6, 0),
        Version(6, 8, 0),
        "multishot accept may report a descriptor that is none under load (axboe/liburing#1062, until 6.8-rc3)",
    ),
    avoid(
        Version(6, 8, 0),
        Version(6, 8, Version::LAST),
        "received bytes in provided buffers were reported corrupted (axboe/liburing#1538, Ubuntu's 6.8)",
    ),
    avoid(
        Version(6, 1, 0),
        Version(6, 11, Version::LAST),
        "the kernels before 6.12, whose provided buffers and multishot requests had too many faults to take it unasked",
    ),
    avoid(
        Version(6, 14, 0),
        Version(6, 14, Version::LAST),
        "received bytes in provided buffers were reported corrupted (axboe/liburing#1447, open)",
    ),
    note(
        Version(6, 6, 0),
        Version(6, 11, Version::LAST),
        "a linked request whose completion is skipped may stall (axboe/liburing#1235); Ringway skips none",
    ),
    note(
        Version(6, 13, 11),
        Version(6, 14, 8),
        "bundled receives and sends lose count (axboe/liburing#1409, #1423); Ringway does not bundle",
    ),
    note(
        Version(6, 17, 0),
        Version(6, 17, Version::LAST),
        "one report of a multishot accept that fails for ever with ENOTSOCK under load; \
         watch accept errors, and take the epoll path if they rise",
    ),
];

/// What is known against `version`; nothing where it could not be read.
#[must_use]
pub fn known_bad(version: Option<Version>) -> Vec<KnownBad> {
    let Some(version) = version else { return Vec::new() };
    let holds = |bad: &&KnownBad| bad.from <= version && version <= bad.to;
    KNOWN_BAD.iter().filter(holds).copied().collect()
}

/// What the running kernel calls itself, as `uname -r`; empty where it does not say.
#[must_use]
pub fn running_release() -> String {
    // SAFETY: utsname is arrays of bytes, for which zeroes are a value.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: uname(2) fills the structure it is given, whose size both sides take from the same header.
    if unsafe { libc::uname(&raw mut names) } != 0 {
        return String::new();
    }
    // SAFETY: the array is zero-terminated: uname(2) says so, and it was zeroes before.
    let release = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    release.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(release: &str) -> Option<Severity> {
        let known = known_bad(Version::parse(release));
        let avoid = known.iter().any(|bad| bad.severity == Severity::Avoid);
        known.first().map(|_| if avoid { Severity::Avoid } else { Severity::Note })
    }

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        assert_eq!(Version::parse("6.12.57+deb13-amd64"), Some(Version(6, 12, 57)));
        assert_eq!(Version::parse("6.8.0-45-generic"), Some(Version(6, 8, 0)));
        assert_eq!(Version::parse("6.18-rc3"), Some(Version(6, 18, 0)));
        assert_eq!(Version::parse("7.1"), Some(Version(7, 1, 0)));
        assert_eq!(Version::parse("5.14.0-503.el9.x86_64"), Some(Version(5, 14, 0)));
        for nonsense in ["", "linux", "6", "six.one", "99999999.1"] {
            assert_eq!(Version::parse(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn auto_begins_where_the_table_says_it_does() {
        for (release, expected) in [
            ("5.15.0", Some(Severity::Avoid)),
            ("6.1.0-18-amd64", Some(Severity::Avoid)),
            ("6.8.0-45-generic", Some(Severity::Avoid)),
            ("6.11.11", Some(Severity::Avoid)),
            ("6.12.0", None),
            ("6.12.57+deb13-amd64", None),
            ("6.13.10", None),
            ("6.13.11", Some(Severity::Note)),
            ("6.14.0", Some(Severity::Avoid)),
            ("6.14.9", Some(Severity::Avoid)),
            ("6.15.0", None),
            ("6.17.4", Some(Severity::Note)),
            ("6.18.44", None),
        ] {
            assert_eq!(worst(release), expected, "{release}");
        }
    }

    #[test]
    fn every_kernel_before_the_first_of_auto_is_to_be_avoided() {
        for major in 0..=AUTO_FROM.0 {
            for minor in 0..30 {
                let version = Version(major, minor, 3);
                let avoided =
                    known_bad(Some(version)).iter().any(|b| b.severity == Severity::Avoid);
                assert!(avoided || version >= AUTO_FROM, "{version} would be taken");
            }
        }
    }

    #[test]
    fn the_narrower_reason_is_said_first() {
        let first = known_bad(Some(Version(6, 8, 0)))[0];
        assert!(first.reason.contains("1062"), "{first}");
        assert_eq!(first.to_string().split(": ").next(), Some("6.6 to 6.8"));
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        assert!(Version::parse(&running_release()).is_some(), "{}", running_release());
    }
}
