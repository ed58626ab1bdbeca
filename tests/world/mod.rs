//! What the tests over real sockets share: clients and backends, a Ringway in this process, and one of its own.
//!
//! All traffic stays on 127.0.0.1, every wait is bounded, and nothing is shared between tests, so they run side
//! by side.

#![allow(dead_code, reason = "each test program uses its part of it")]
#![allow(clippy::disallowed_methods, reason = "a test waits for real time to pass")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(unreachable_pub, reason = "test programs have no public side")]

pub mod net;
pub mod program;
pub mod proxy;

use ringway::config::DataPath;
use ringway::driver::{pick, probe};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Runs each named test, a `fn(DataPath)`, once on each data path.
#[macro_export]
macro_rules! on_each_path {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test]
            fn $name() {
                if $crate::world::has_uring() {
                    super::$name(ringway::config::DataPath::Uring);
                }
            })*
        }
        mod epoll {
            $(#[test]
            fn $name() {
                super::$name(ringway::config::DataPath::Epoll);
            })*
        }
    };
}

/// Whether this kernel allows io_uring; says so on stderr where it does not.
pub fn has_uring() -> bool {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    let refused = REFUSED.get_or_init(|| pick::pick(DataPath::Uring, &probe::probe()).err());
    if let Some(why) = refused {
        skipped(&format!("a test on io_uring: {why}"));
    }
    refused.is_none()
}

/// Says that something was not tested. Past the test harness, which keeps what passing tests print to itself.
pub fn skipped(what: &str) {
    use std::io::Write as _;
    std::io::stderr().write_all(format!("SKIPPED: {what}\n").as_bytes()).unwrap();
}

/// Whether a program is installed; says so on stderr where it is not.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if !found {
        skipped(&format!("what needs {name}, which is not installed"));
    }
    found
}

/// Waits until `holds`. Panics with `what` after `ms`.
pub fn until(ms: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_millis(ms), "not within {ms} ms: {what}");
        pause(5);
    }
}

/// Lets time pass.
pub fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Whether `since` is `low..=high` milliseconds ago.
pub fn assert_took(since: Instant, low: u64, high: u64) {
    let ms = since.elapsed().as_millis();
    assert!((u128::from(low)..=u128::from(high)).contains(&ms), "{ms} ms, not {low}..={high}");
}
