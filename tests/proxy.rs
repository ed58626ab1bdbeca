//! How Ringway behaves over real sockets, on each data path: one module a behaviour.

#![allow(clippy::disallowed_methods, reason = "a test waits for real time to pass")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod world;

#[path = "proxy/canary.rs"]
mod canary;
#[path = "proxy/carry.rs"]
mod carry;
#[path = "proxy/closing.rs"]
mod closing;
#[path = "proxy/deaf.rs"]
mod deaf;
#[path = "proxy/dialing.rs"]
mod dialing;
#[path = "proxy/favours.rs"]
mod favours;
#[path = "proxy/flips.rs"]
mod flips;
#[path = "proxy/hygiene.rs"]
mod hygiene;
#[path = "proxy/relay.rs"]
mod relay;
#[path = "proxy/reload.rs"]
mod reload;
#[path = "proxy/resize.rs"]
mod resize;
#[path = "proxy/spare.rs"]
mod spare;
#[path = "proxy/stop.rs"]
mod stop;
#[path = "proxy/timers.rs"]
mod timers;
