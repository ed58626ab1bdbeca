//! The embedded default.

pub mod book;
mod clock;
pub mod engine;
pub mod histogram;
mod outbox;
pub mod protocol;
