//! The clock and the sleep of the windows, each in one place: nothing here is on the data path.

use std::time::{Duration, Instant};

/// Now.
#[expect(clippy::disallowed_methods, reason = "a window's clock: it measures from outside")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Lets this thread rest.
#[expect(clippy::disallowed_methods, reason = "a window's own thread, which serves nobody else")]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Waits until something is so, for a test that goes on then.
#[cfg(test)]
pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = now() + Duration::from_secs(10);
    while !is_so() {
        assert!(now() < until, "{what} did not come");
        pause(Duration::from_millis(2));
    }
}
