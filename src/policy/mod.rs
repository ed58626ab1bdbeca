//! Decisions as pure functions of facts: no clock, no socket, no thread.
//!
//! [`split`] sends a session to its listener's stable or canary pool, [`rotation`] to a backend of that pool, and
//! [`snapshot`] is the config made ready for both. A [`seat`] is a place under its limits. [`balance`] evens the loads
//! of shards, [`health`] judges a ring, [`reach`] says when a backend cannot be reached.

#![forbid(unsafe_code)]

pub mod balance;
pub mod health;
pub mod reach;
pub mod rotation;
pub mod seat;
pub mod snapshot;
pub mod split;
