//! Ringway as a process of its own among hostile clients, unlucky backends and exhausted machines, while a steady load
//! of healthy sessions runs through it: those must not be harmed, and everything must come home.
//!
//! All of it wants a machine of its own, so `cargo test` leaves it out.
//! `cargo test --test hostile -- --ignored quick::` runs each case small;
//! `cargo test --release --test hostile -- --ignored --nocapture --test-threads 1 NAME` prints figures, where NAME is
//! `full::` (a line a case), `fault_matrix` (other proxies beside Ringway, where installed) or `soak::soak` (for
//! `RINGWAY_SOAK_SECS` seconds).
//!
//! There is no safe way to have a shard panic from outside, so no case does: `abandon` is tested in src/shard.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a harness on the wall's clock: a fault of its own may end it"
)]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/clients.rs"]
mod clients;
#[path = "hostile/exhaustion.rs"]
mod exhaustion;
#[path = "hostile/healthy.rs"]
mod healthy;
#[path = "hostile/island.rs"]
mod island;
#[path = "hostile/manager.rs"]
mod manager;
#[path = "hostile/matrix.rs"]
mod matrix;
#[path = "hostile/pauses.rs"]
mod pauses;
#[path = "hostile/process.rs"]
mod process;
#[path = "hostile/soak.rs"]
mod soak;
#[path = "hostile/stage.rs"]
mod stage;
#[path = "hostile/target.rs"]
mod target;
#[path = "hostile/vanishing.rs"]
mod vanishing;
