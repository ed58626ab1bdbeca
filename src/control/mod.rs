//! Control: slow and careful, on its own thread.

pub mod board;
pub mod order;

use order::{Answer, Order};

/// What wakes the supervisor.
pub(crate) enum Cause {
    /// An operator gave an order.
    Ordered(Order, Box<dyn FnOnce(Answer) + Send>),
}

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// A Ringway in this process.
pub struct Running(Arc<board::Board>);

/// Why Ringway could not start.
#[derive(Debug)]
pub struct StartError(String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How Ringway ended.
#[derive(Debug)]
pub struct Ended;

impl Running {
    /// Starts.
    ///
    /// # Errors
    /// Always, here.
    pub fn start(
        _config: crate::config::Config,
        _file: Option<PathBuf>,
    ) -> Result<Self, StartError> {
        Err(StartError("control is written on another branch".into()))
    }
    /// The board.
    #[must_use]
    pub const fn board(&self) -> &Arc<board::Board> {
        &self.0
    }
    /// The bound one.
    #[must_use]
    pub fn listener_address(&self, _name: &str) -> Option<SocketAddr> {
        None
    }
    /// The bound one.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        None
    }
    /// Begins the graceful stop.
    pub fn stop(&self) {}
    /// Until stopped.
    #[must_use]
    pub fn wait(self) -> Ended {
        Ended
    }
}
