//! How a ring is set up.

use crate::config::limits;
use io_uring::IoUring;
use std::io;

/// A ring of this size, as shards have them, with or without the array of indices, which Linux 6.6 can do without.
///
/// # Errors
/// Where the kernel or the sandbox refuses it, or locked memory ran out.
pub(super) fn ring_of(entries: u32, completions_each: u32, no_array: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(entries * completions_each)
        .dontfork();
    if no_array {
        builder.setup_no_sqarray();
    }
    builder.build(entries)
}

/// A ring, as large as locked memory allows: at most so many submissions, and so many completions for each of them.
pub(super) fn build_ring(mut entries: u32, completions_each: u32) -> io::Result<IoUring> {
    let mut no_array = true;
    loop {
        match ring_of(entries, completions_each, no_array) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && no_array => no_array = false,
            Err(e)
                if e.raw_os_error() == Some(libc::ENOMEM) && entries > limits::SQ_ENTRIES_MIN =>
            {
                entries /= 2;
            }
            built => return built,
        }
    }
}
