//! The admin endpoint: what operators ask and order over HTTP, and what Ringway writes down.
//!
//! Its thread has the only tokio runtime in the process. It reads the [`Board`] and gives [`Orders`]; no shard waits
//! for it, and nothing of it can end the process: a panic costs one answer.

#![forbid(unsafe_code)]

pub mod ask;
mod endpoints;
mod fault;
#[cfg(test)]
mod harness;
pub mod log;
mod metrics;
mod serve;
mod sessions;
mod trust;

use crate::control::board::Board;
use crate::control::order::{Order, Orders};
use hyper::Method;
use serve::{Bounds, Window};
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// The admin endpoint while it runs. It stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The order in a request that has been allowed, as the endpoint reads it; it is not given to anybody.
///
/// # Errors
/// What whoever asked would be told: there is no such path, it takes no orders, or the body is wrong.
pub fn order_of(method: &str, path: &str, body: &[u8]) -> Result<Order, Vec<String>> {
    let method = Method::from_bytes(method.as_bytes()).map_err(|error| vec![error.to_string()])?;
    endpoints::order_of(&method, path, body).map_err(|fault| fault.sentences())
}

/// Answers on `bound`, on a thread of its own. With a `token`, all but the health checks must carry it; without one
/// whoever can connect is believed, so `bound` must be a loopback address (which config sees to).
///
/// # Errors
/// Where the system gives no thread, or no event descriptor for its runtime.
pub fn start(
    bound: TcpListener,
    token: Option<Arc<str>>,
    board: Arc<Board>,
    orders: Orders,
) -> io::Result<Running> {
    start_with(bound, Window { token, board, orders }, Bounds::default())
}

fn start_with(bound: TcpListener, window: Window, bounds: Bounds) -> io::Result<Running> {
    bound.set_nonblocking(true)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = {
        let _entered = runtime.enter();
        tokio::net::TcpListener::from_std(bound)?
    };
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("ringway-admin".into()).spawn(move || {
        let window = Rc::new(window);
        LocalSet::new().block_on(&runtime, serve::serve(listener, window, bounds, stopped));
    })?;
    Ok(Running { stop: Some(stop), thread: Some(thread) })
}

impl Running {
    /// Accepts nobody any more, lets answers that are under way end for a moment, and waits for the thread.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A dropped sender says the same as a sent word.
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the admin thread panicked, which is a bug; see what it said before");
        }
    }
}
