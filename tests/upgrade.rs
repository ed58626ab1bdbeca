//! A process is replaced by one of a new binary, and started again by a service manager, under live sessions.

#![allow(clippy::disallowed_methods, reason = "a test waits for real time to pass")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(unreachable_pub, reason = "test programs have no public side")]

mod world;

#[path = "upgrade/failing.rs"]
mod failing;
#[path = "upgrade/line.rs"]
mod line;
#[path = "upgrade/manager.rs"]
mod manager;
#[path = "upgrade/replacing.rs"]
mod replacing;
#[path = "upgrade/show.rs"]
mod show;
#[path = "upgrade/stopping.rs"]
mod stopping;
#[path = "upgrade/taking.rs"]
mod taking;
