//! Ringway: a TCP reverse proxy for order entry. Bytes enter at a [`shard`], live in a [`session`], leave through a
//! [`driver`].

#![deny(unsafe_code)]

// 1: plain data; no I/O, no clock, no threads
pub mod config;
pub mod event;
pub mod tally;
pub mod time;
// 2: decisions: pure, time is an argument
pub mod policy;
// 3: the kernel: all I/O, all `unsafe`
#[expect(unsafe_code, reason = "the one place for it; each block says why it is sound")]
pub mod driver;
// 4: one connection, from its dial to its last byte
pub mod session;
// 5: one core
pub mod shard;
// 6: slow and careful, on its own thread
pub mod control;
// 7: windows
pub mod admin;
// 8: the whole
pub mod demo;
pub mod run;
