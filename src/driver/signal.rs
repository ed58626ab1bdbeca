//! Signals that ask for a stop: who sent one, and one for another process.

use std::io;

/// The process that sent a signal, where one did: not the kernel, and nobody from outside this namespace.
#[must_use]
pub fn sender(signal: &libc::siginfo_t) -> Option<u32> {
    if !matches!(signal.si_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL) {
        return None;
    }
    // SAFETY: a process sent it, as `si_code` says, and then the kernel wrote its id there (sigaction(2)).
    let pid = unsafe { signal.si_pid() };
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

/// Asks another process to stop (SIGTERM).
///
/// # Errors
/// What kill(2) says; `InvalidInput` for what is no process's id.
pub fn stop(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: takes numbers; a positive one is a single process.
    let result = unsafe { libc::kill(pid, libc::SIGTERM) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::consts::SIGTERM;
    use signal_hook::iterator::SignalsInfo;
    use signal_hook::iterator::exfiltrator::WithRawSiginfo;

    #[test]
    fn who_is_asked_to_stop_hears_by_whom() {
        let mut signals = SignalsInfo::<WithRawSiginfo>::new([SIGTERM]).unwrap();
        stop(std::process::id()).unwrap();
        let came = signals.wait().next().unwrap();
        assert_eq!(sender(&came), Some(std::process::id()));
    }

    #[test]
    fn groups_are_not_asked() {
        for pid in [0, u32::MAX] {
            assert_eq!(stop(pid).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
