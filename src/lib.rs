//! Ringway: a TCP reverse proxy for order entry. Bytes enter at a [`shard`], live in a [`session`], leave through a
//! [`driver`].
//!
//! This page is the map: what there is, what the words mean, what always holds, and where a change belongs.
//!
//! # The view
//!
//! ```text
//!                     operators, Prometheus                 signals, config file
//!                              │ HTTP                               │
//!   windows               ┌────▼────┐    orders (a channel)    ┌────▼────┐
//!                         │  admin  ├─────────────────────────▶│ control │   slow and careful: one thread each
//!                         └────▲────┘                          └─┬─────▲─┘
//!                              │ reads             writes, swaps │     │ reports
//!                         ┌────┴─────────────────────────────────▼─┐   │
//!                         │ Board: Snapshot in force, Tallies      │   │
//!                         └────▲──────────────────────────┬────────┘   │
//!                       counts │                  one load│     mailbox│
//!                              │              per session │            │
//!                         ┌────┴──────────────────────────▼────────────▼─┐
//!   clients ── accept ──▶ │ shard: gates, placement, table, timers       │   one pinned thread a shard
//!                         │   session: opening ─▶ relay ─▶ ending        │ ── connect ──▶ backends
//!                         │   driver: uring or epoll, and its buffers    │
//!                         └──────────────────────────────────────────────┘
//! ```
//!
//! A client is accepted by a shard, which may hand it to one with less to do. Its [`session::Session`] takes the
//! snapshot in force, is assigned to an arm (stable or canary) and a backend, connects, and from then on only moves
//! bytes: `up` from client to backend, `down` the other way. When it ends, both ends are told, what is in flight is
//! waited for, and then its sockets are closed. On its way it may be brought to rest, made a
//! [`session::parcel::Parcel`] and carried to another shard, of the same driver or of the other.
//!
//! # Modules, in the order of their layers
//!
//! Imports go down this list only: nothing names what stands below itself here.
//!
//! 1. [`config`]: the TOML as written, checked into a [`config::Config`] that cannot be wrong; [`config::limits`] names
//!    every bound.
//! 2. [`event`]: the closed vocabulary of what happens; [`event::EndReason`] is the word in log, metrics and tests.
//! 3. [`time`]: points on a shard's clock as plain numbers.
//! 4. [`tally`]: counters with one writer and any number of readers.
//! 5. [`policy`]: decisions as plain functions: which arm, which backend; [`policy::snapshot`] makes a config ready for
//!    both.
//! 6. [`wire`]: bytes as values: what one process says to the one that replaces it.
//! 7. [`driver`]: the kernel, behind one contract: [`driver::uring`] and [`driver::epoll`], and [`driver::sim`], a
//!    seeded network for tests; [`driver::probe`] tries what a machine allows, [`driver::pick`] chooses. All `unsafe`
//!    is here.
//! 8. [`session`]: one client with its backend, from its first attempt to connect to its last byte; generic over
//!    [`driver::Driver`].
//! 9. [`shard`]: one core's loop: accept, placement, sessions, timers, mailbox.
//! 10. [`control`]: starts shards, hands listening sockets between them, reloads, follows orders, stops; hands all of
//!     it to the process of a new binary ([`control::handover`]).
//! 11. [`admin`]: status, metrics and orders over HTTP, and what is written to the log.
//! 12. [`run`]: control, admin and the session log, put together: a whole Ringway in a process.
//! 13. [`demo`]: an order engine, an order flow, and Ringway between them.
//! 14. [`mod@bench`]: io_uring against epoll, and Ringway against other proxies, on this machine. `main.rs` turns
//!     arguments into one of these.
//!
//! # Words
//!
//! - A **client** and a **backend** are the two ends of a **session**, [`driver::Side`] for short. No other words are
//!   used for them.
//! - **up** is from client to backend, **down** the reverse; each is a [`session::dir::Dir`].
//! - A **shard** is one thread with one driver. A **lane** is where a shard runs, usually a CPU: it has at most one
//!   shard of each driver, started once and used again. Where both have a share of the new sessions, one accepts them
//!   all and the other's shards are its **guests**.
//! - A **driver** speaks to the kernel; the **data path** is which driver new sessions get.
//! - A **pool** is a set of backends that run the same build; a **listener** is where clients come in; its **split**
//!   sends each session to one of two **arms**, the stable or the canary pool.
//! - A **snapshot** is a config made ready for shards: numbered, immutable, shared.
//! - A **tally** is one shard's counters. A **route** is listener, arm, pool and backend: what sessions are counted by.
//! - A **parcel** is a session taken off its driver at a quiet moment: two sockets, unsent bytes, counters.
//! - An **upgrade** puts the process of a new binary in this one's place; a **generation** is one of such a line.
//! - An **end reason** says why a session ended: exactly one, the first that held.
//! - Units stand last in a name: `idle_ms`, `buffer_bytes`, `sessions_max`.
//!
//! # Tenets, in order
//!
//! 1. Never lose, reorder or invent a byte; never hide a close.
//! 2. Never fall over: every resource has a bound, and the bound has a name.
//! 3. Then be fast: no lock, no allocation and no clock call per message.
//! 4. Then be easy to operate: every state can be seen, every change can be taken back.
//! 5. Then be flexible.
//!
//! # What always holds, and the test that says so
//!
//! 1. Imports go down only. (`tests/tidy.rs`: `layers`)
//! 2. `unsafe` stands under `driver` and nowhere else; every other module forbids it. (`tests/tidy.rs`: `unsafe_code`)
//! 3. Sessions and shards name no concrete driver: one text runs on all. (`tests/tidy.rs`: `concrete_drivers`)
//! 4. `config`, `event`, `time`, `tally`, `policy` and `wire` know no clock, socket, thread or runtime: what they need
//!    of the world is an argument. (`tests/tidy.rs`: `pure_layers`)
//! 5. Over any run of sessions the canary's count is off from its share by less than one, also where the share changed
//!    on the way. (`src/policy/split.rs`: `any_run_is_off_by_less_than_one`)
//! 6. Weights are exact over every cycle of a pool. (`src/policy/rotation.rs`:
//!    `weights_are_exact_over_a_cycle_and_spread_within_it`)
//! 7. A config is taken whole or not at all, and all its faults are told at once. (`src/config/tests.rs`:
//!    `five_mistakes_are_five_faults`; `tests/reference.rs`: `any_change_to_the_reference_is_survived`)
//! 8. A reload takes nothing back that an operator ordered, unless the file itself says something new.
//!    (`src/control/reload.rs`: `the_last_change_of_the_percent_wins`)
//! 9. Who asks for io_uring by name gets it or an error; only `auto` falls back. (`src/driver/pick.rs`:
//!    `every_wish_on_every_machine`)
//! 10. A deadline never fires early, and fires within a tick. (`src/shard/timers.rs`:
//!     `a_deadline_fires_within_a_tick_and_never_early`, `it_does_what_a_map_does`)
//! 11. Whoever is slow, silent or wrong at the admin endpoint costs an answer or a place, never the process.
//!     (`src/admin/serve/tests.rs`: `who_is_slow_or_silent_gives_their_place_to_the_next`,
//!     `a_handler_that_panics_costs_one_answer`)
//! 12. What operators read is held against the code: settings (`tests/reference.rs`:
//!     `the_reference_shows_every_key_with_its_default`), metrics (`src/admin/metrics/tests.rs`:
//!     `the_docs_list_exactly_these_metrics`), and README's commands, configs, metrics and links (`tests/readme.rs`:
//!     `commands_exist`, `configs_parse`, `metrics_exist`, `links_lead_somewhere`).
//! 13. Every driver keeps the contract, and the contract's tests catch who does not.
//!     (`src/driver/contract/simulated.rs`: `the_contract_holds_in_bad_weather`; `src/driver/contract/liar.rs`:
//!     `every_liar_is_caught`)
//! 14. A seed replays a whole simulated world. (`src/driver/sim/tests.rs`: `a_seed_replays`)
//! 15. A session is one process's at a time: the old one keeps it until the new one has said that it took it, and the
//!     new one moves no byte of it before. (`tests/upgrade/failing.rs`:
//!     `who_dies_with_an_unanswered_batch_takes_nothing_along`,
//!     `who_dies_after_a_batch_takes_only_that_along_and_the_log_names_it`)
//! 16. Totals never fall when a process is replaced. (`src/control/totals.rs`:
//!     `totals_go_through_three_processes_and_never_fall`)
//! 17. Any bytes from another process are a message or a fault. (`src/wire/handover.rs`:
//!     `any_bytes_are_a_message_or_a_fault`)
//! 18. Steady loads come to rest: no session is moved to and fro. (`src/policy/balance.rs`:
//!     `steady_load_comes_to_rest`)
//! 19. The data path's share of new sessions is exact, over all shards. (`tests/proxy/carry.rs`:
//!     `a_share_of_new_sessions_takes_the_other_path_and_is_exact`)
//! 20. A ring that misbehaves loses its sessions to epoll, once. (`tests/proxy/carry.rs`:
//!     `a_ring_that_misbehaves_loses_its_sessions_to_epoll_until_somebody_asks_again`)
//! 21. Shards come and go, and nobody is refused, cut off or told a wrong byte. (`tests/proxy/resize.rs`:
//!     `shards_come_and_go_under_load`, `clients_in_a_queue_outlive_the_lane_it_was_of`)
//! 22. Nobody waits for who reads the log, and no line that cannot be written harms anybody. (`tests/proxy/deaf.rs`:
//!     `a_log_that_nobody_reads_harms_nobody`, `a_log_that_cannot_be_written_harms_nobody`)
//!
//! # What is absent, on purpose
//!
//! - **No lock, no allocation and no logging on the byte path.** A slow disk, a scrape or a reload delays no message.
//! - **No second copy of the session logic.** What differs between drivers is behind [`driver::Driver`]; a bug is
//!   mended once.
//! - **No future that owns I/O.** [`session::opening`] is async code that asks questions and holds no socket and no
//!   buffer, so it can be dropped at any moment; its session does what it asks for. There is no `select!` around I/O.
//! - **No session that is ended by dropping it.** Ask, wait, free: closing a descriptor with an operation in flight may
//!   swallow a stranger's bytes.
//! - **No timers in the kernel.** One wheel a shard sets the deadline of the turn.
//! - **No fixed descriptors.** They cost `shutdown(2)` and the hand-over between drivers, and win nothing measurable.
//! - **No parsing of messages.** Ringway moves bytes; what they mean is between client and backend.
//! - **No async runtime but the admin thread's.**
//! - **No thread that writes to stderr while it runs**, but the one of [`admin::log::outlet`]. A print would wait for
//!   who reads, and `eprintln!` panics where nobody does.
//! - **No choice by `cfg`.** Both drivers are in every binary, and which one runs can be changed while it runs.
//!
//! # Where a change belongs
//!
//! | what | where |
//! |---|---|
//! | a setting | `config/file.rs`, its bound in `config/limits.rs`, then `config/reference.toml` (a test insists) |
//! | a reason for sessions to end | [`event::EndReason`], its row in `deploy/sessions.md` (a test insists) |
//! | a metric | `admin/metrics/table.rs`, its counter in [`tally`], its line in `deploy/metrics.md` (a test insists) |
//! | a way to choose arm or backend | [`policy`] |
//! | a system call | [`driver::sys`] where both drivers make it, else in the driver that does |
//! | what a driver must do | the contract in [`driver`], then both drivers |
//! | how bytes move, and when they may not | [`session::relay`] |
//! | how a session is carried | [`session::parcel`]; when: `shard/moves.rs`; to another process: [`wire::handover`] |
//! | what a new process gets of the old one | [`control::handover`]; its version is in [`wire::handover`] |
//! | how a backend is reached | [`session::opening`] |
//! | which connections stand ready | `shard/spare.rs`; how a session takes one: [`session::spare`] |
//! | which shard a client goes to | [`shard::placement`] |
//! | what a reload may change | `control/reload.rs` |
//! | an order of operators | [`control::order`], then `admin/endpoints.rs` |
//! | a case of `ringway bench`, or a gate | `bench/cases.rs`, `bench/report.rs` |
//! | a kernel that is known to be faulty | `driver/probe/kernels.rs` |

#![deny(unsafe_code)]

// 1 to 4: plain data; no I/O, no clock, no threads
pub mod config;
pub mod event;
pub mod tally;
pub mod time;
// 5: decisions: pure, time is an argument
pub mod policy;
// 6: bytes as values
pub mod wire;
// 7: the kernel: all I/O, all `unsafe`
#[expect(unsafe_code, reason = "the one place for it; each block says why it is sound")]
pub mod driver;
// 8: one connection, from its first attempt to connect to its last byte
pub mod session;
// 9: one core
pub mod shard;
// 10: slow and careful, on its own thread
pub mod control;
// 11: windows
pub mod admin;
// 12 to 14: the whole
pub mod bench;
pub mod demo;
pub mod run;
