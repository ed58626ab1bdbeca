//! Small questions to the kernel that std has no words for, made safe.

/// Microseconds on CLOCK_MONOTONIC, the clock that service managers compare theirs with.
#[must_use]
pub fn monotonic_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) fills the structure it is given and keeps no pointer to it.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(read, 0, "CLOCK_MONOTONIC exists on every Linux");
    now.tv_sec.cast_unsigned() * 1_000_000 + now.tv_nsec.cast_unsigned() / 1000
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clock_goes_forward() {
        let first = super::monotonic_us();
        assert!(first > 0 && super::monotonic_us() >= first);
    }
}
