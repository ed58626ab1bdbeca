//! The sleep of a bench, in one place: nothing here is on the data path.

use std::time::Duration;

/// Lets this thread rest.
#[expect(clippy::disallowed_methods, reason = "a bench waits for other programs")]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}
