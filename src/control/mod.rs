//! Control: slow and careful, on its own thread.

pub mod board;
pub mod notify;
pub mod order;

use order::{Answer, Order};

/// What wakes the supervisor.
pub(crate) enum Cause {
    /// An operator gave an order.
    Ordered(Order, Box<dyn FnOnce(Answer) + Send>),
}
