//! The embedded default.

pub mod book;
mod client;
mod clock;
pub mod engine;
pub mod flow;
pub mod histogram;
mod outbox;
pub mod protocol;
