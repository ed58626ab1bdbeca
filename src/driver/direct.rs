//! Plain calls on sockets of which nothing is in flight, the same for both kernel drivers.

use super::pool::{BufferId, Pool};
use super::{Errno, Received, sys};

/// Receives into a buffer of the pool. `None`: nothing is there.
pub(in crate::driver) fn recv(fd: i32, pool: &mut Pool) -> Option<Received> {
    let Some(buffer) = pool.take() else { return Some(Received::Failed(Errno::NO_BUFFERS)) };
    let what = match sys::recv(fd, pool.spare_mut(buffer)) {
        Ok(Some(n)) if n > 0 => {
            pool.set_filled(buffer, u32::try_from(n).unwrap_or(u32::MAX));
            return Some(Received::Bytes(buffer));
        }
        Ok(Some(_)) => Some(Received::End),
        Ok(None) => None,
        Err(e) => Some(Received::Failed(e)),
    };
    pool.give_back(buffer);
    what
}

/// Sends what there is room for of a buffer.
pub(in crate::driver) fn send(fd: i32, pool: &Pool, buffer: BufferId) -> Result<u32, Errno> {
    sys::send(fd, pool.bytes(buffer)).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
}
