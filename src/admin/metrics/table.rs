//! Every metric, once: name, labels, meaning, and where its numbers come from.

use super::{Definition, Facts, Samples};
use crate::policy::health::Fault;
use prometheus::proto::MetricType;

const NONE: &[&str] = &[];
const ROUTE: &[&str] = &["listener", "arm", "pool", "backend"];
const ROUTE_REASON: &[&str] = &["listener", "arm", "pool", "backend", "reason"];
const ROUTE_DIRECTION: &[&str] = &["listener", "arm", "pool", "backend", "direction"];
const SHARD: &[&str] = &["shard", "path"];

type Read = fn(&Facts, &mut Samples);
type Labels = &'static [&'static str];

const fn counter(name: &'static str, labels: Labels, help: &'static str, read: Read) -> Definition {
    Definition { name, kind: MetricType::COUNTER, labels, help, read }
}

const fn gauge(name: &'static str, labels: Labels, help: &'static str, read: Read) -> Definition {
    Definition { name, kind: MetricType::GAUGE, labels, help, read }
}

const fn histogram(name: &'static str, help: &'static str, read: Read) -> Definition {
    Definition { name, kind: MetricType::HISTOGRAM, labels: ROUTE, help, read }
}

/// All of them, in the order in which they are shown.
pub(super) static DEFINITIONS: &[Definition] = &[
    gauge("ringway_build_info", &["version"], "Always 1; the label says what runs.", |_, s| {
        s.put(&[env!("CARGO_PKG_VERSION")], 1.0);
    }),
    gauge("ringway_ready", NONE, "1 while new clients are wanted.", |f, s| {
        s.put(&[], f64::from(u8::from(f.ready)));
    }),
    gauge(
        "ringway_data_path_info",
        &["path", "wanted", "why"],
        "Always 1; which data path new sessions take, what was asked for, and why.",
        |f, s| {
            if let Some(path) = &f.path {
                s.put(&[path.kind.label(), path.wanted.label(), &path.why], 1.0);
            }
        },
    ),
    gauge(
        "ringway_data_path_percent",
        &["path"],
        "How much of the new sessions the data path is to get, 0 to 100.",
        |f, s| {
            if let Some(path) = &f.path {
                s.put(&[path.kind.label()], path.percent.as_f64());
            }
        },
    ),
    gauge(
        "ringway_data_path_seen_percent",
        &["path", "of"],
        "How much the data path has of the live sessions, and of those begun since it was chosen (new).",
        |f, s| {
            if let Some(path) = &f.path {
                let [live, new] = f.path_seen;
                for (of, percent) in [("live", live), ("new", new)] {
                    s.put(&[path.kind.label(), of], percent.unwrap_or(0.0));
                }
            }
        },
    ),
    counter(
        "ringway_ring_rollbacks_total",
        &["reason"],
        "Shards that went back to epoll because their ring misbehaved. Should stay 0.",
        |f, s| {
            for (fault, count) in Fault::ALL.iter().zip(f.rollbacks) {
                s.put(&[fault.label()], count as f64);
            }
        },
    ),
    counter(
        "ringway_rebalanced_total",
        NONE,
        "Live sessions that were told to change their shard because it had more to do than another.",
        |f, s| s.put(&[], f.rebalanced as f64),
    ),
    gauge("ringway_config_generation", NONE, "Number of the snapshot in force.", |f, s| {
        s.put(&[], f.snapshot.number as f64);
    }),
    counter("ringway_reloads_total", &["outcome"], "Reloads of the config file.", |f, s| {
        s.put(&["applied"], f.reloads_applied as f64);
        s.put(&["refused"], f.reloads_refused as f64);
    }),
    gauge(
        "ringway_last_reload_successful",
        NONE,
        "Whether the last reload was applied; 1 before the first.",
        |f, s| s.put(&[], f64::from(u8::from(f.config_taken.0))),
    ),
    gauge(
        "ringway_last_reload_success_timestamp_seconds",
        NONE,
        "When a config was last taken up, by a reload or at the start, in seconds since 1970.",
        |f, s| s.put(&[], f.config_taken.1 as f64),
    ),
    counter(
        "ringway_upgrades_total",
        &["outcome"],
        "Upgrades of the program: done (by a process that took the place of another) or failed (the old one went on).",
        |f, s| {
            s.put(&["done"], f.upgrades_done as f64);
            s.put(&["failed"], f.upgrades_failed as f64);
        },
    ),
    gauge(
        "ringway_process_generation",
        NONE,
        "Which of a line of processes this is, each started by the one before to take its place; from 1.",
        |f, s| s.put(&[], f.generation as f64),
    ),
    gauge(
        "ringway_predecessor_sessions",
        NONE,
        "Sessions that are open in the process before this one; all other metrics count them in.",
        |f, s| s.put(&[], f.sessions_to_come as f64),
    ),
    counter(
        "ringway_path_changes_total",
        NONE,
        "Changes of the data path, whoever asked for them.",
        |f, s| s.put(&[], f.path_changes as f64),
    ),
    counter(
        "ringway_shard_panics_total",
        NONE,
        "Shards that panicked and were started again. Must stay 0.",
        |f, s| s.put(&[], f.shard_panics as f64),
    ),
    gauge(
        "ringway_canary_percent",
        &["listener"],
        "The canary's share of new sessions, 0 to 100.",
        |f, s| {
            for listener in &f.snapshot.config.listeners {
                s.put(&[&listener.name], listener.canary_percent.as_f64());
            }
        },
    ),
    gauge(
        "ringway_sessions_max",
        NONE,
        "Sessions there may be at once: limits.sessions_max, as far as descriptors allow.",
        |f, s| s.put(&[], f64::from(f.snapshot.config.limits.sessions_max)),
    ),
    gauge(
        "ringway_listener_sessions_max",
        &["listener"],
        "Sessions of the listener there may be at once.",
        |f, s| {
            for listener in &f.snapshot.config.listeners {
                s.put(&[&listener.name], f64::from(listener.sessions_max));
            }
        },
    ),
    gauge("ringway_sessions", ROUTE, "Sessions that are open now.", |f, s| {
        s.routes(f, |r| r.open);
    }),
    counter("ringway_sessions_opened_total", ROUTE, "Sessions that were assigned here.", |f, s| {
        s.routes(f, |r| r.opened);
    }),
    counter(
        "ringway_sessions_ended_total",
        ROUTE_REASON,
        "Sessions that ended, by reason; faults are always shown, other reasons once any session had them.",
        |f, s| {
            for (at, reason) in f.reasons_shown() {
                for route in &f.routes {
                    let [listener, arm, pool, backend] = route.labels();
                    s.put(&[listener, arm, pool, backend, reason], route.ended[at] as f64);
                }
            }
        },
    ),
    counter(
        "ringway_sessions_finished_by_backend_total",
        ROUTE,
        "Sessions that ended as finished or half_closed and whose backend had finished first: a killed one looks so.",
        |f, s| s.routes(f, |r| r.finished_by_backend),
    ),
    counter(
        "ringway_bytes_total",
        ROUTE_DIRECTION,
        "Bytes the backend took (up) and the client took (down).",
        |f, s| {
            for route in &f.routes {
                let [listener, arm, pool, backend] = route.labels();
                s.put(&[listener, arm, pool, backend, "up"], route.up_bytes as f64);
                s.put(&[listener, arm, pool, backend, "down"], route.down_bytes as f64);
            }
        },
    ),
    counter(
        "ringway_connect_failed_total",
        ROUTE,
        "Attempts to connect to the backend that failed; a session may make 1 + retries of them.",
        |f, s| s.routes(f, |r| r.connect_failed),
    ),
    histogram(
        "ringway_connect_seconds",
        "From an attempt to connect until the backend accepted.",
        |f, s| s.spreads(f, |r| &r.connect),
    ),
    histogram(
        "ringway_turn_seconds",
        "From client bytes forwarded to the first backend bytes after them.",
        |f, s| s.spreads(f, |r| &r.turn),
    ),
    histogram("ringway_session_seconds", "From accept to the last byte.", |f, s| {
        s.spreads(f, |r| &r.duration);
    }),
    gauge(
        "ringway_shard_sessions",
        SHARD,
        "Sessions that are open on the shard, the opening ones among them.",
        |f, s| s.shards(f, |t| &t.sessions),
    ),
    counter(
        "ringway_begun_total",
        SHARD,
        "Sessions begun on the shard, whoever accepted their clients.",
        |f, s| s.shards(f, |t| &t.begun),
    ),
    counter(
        "ringway_shard_cpu_seconds_total",
        SHARD,
        "CPU time of the shard's thread, user and system.",
        |f, s| s.shard_seconds(f, |t| &t.cpu_ns),
    ),
    counter(
        "ringway_spun_in_vain_seconds_total",
        SHARD,
        "Time the shard looked for work without sleeping and found none.",
        |f, s| s.shard_seconds(f, |t| &t.spun_in_vain_ns),
    ),
    Definition {
        name: "ringway_turn_work_seconds",
        kind: MetricType::HISTOGRAM,
        labels: SHARD,
        help: "How long the shard worked on what the kernel said in one turn; one turn in 64 is measured.",
        read: |f, s| s.shard_spreads(f, |t| &t.work),
    },
    counter(
        "ringway_bulk_copied_bytes_total",
        SHARD,
        "Bytes that bulky directions moved through a large buffer.",
        |f, s| s.shards(f, |t| &t.copied_bytes),
    ),
    counter(
        "ringway_bulk_spliced_bytes_total",
        SHARD,
        "Bytes that bulky directions moved through a pipe, without a copy.",
        |f, s| s.shards(f, |t| &t.spliced_bytes),
    ),
    counter("ringway_accepted_total", SHARD, "Clients accepted.", |f, s| {
        s.shards(f, |t| &t.accepted);
    }),
    counter(
        "ringway_placed_elsewhere_total",
        SHARD,
        "Clients handed to a less loaded shard before their session began.",
        |f, s| s.shards(f, |t| &t.placed_elsewhere),
    ),
    counter(
        "ringway_accept_failed_total",
        &["shard", "path", "cause"],
        "Accepts that failed: exhausted (descriptors or memory are short) or other.",
        |f, s| {
            s.shard_cases(f, "exhausted", |t| &t.accept_failed_exhausted);
            s.shard_cases(f, "other", |t| &t.accept_failed_other);
        },
    ),
    counter(
        "ringway_refused_total",
        &["shard", "path", "why"],
        "Clients turned away: full (a sessions_max was reached, or the shard or listener they came to was going).",
        |f, s| s.shard_cases(f, "full", |t| &t.refused_full),
    ),
    counter(
        "ringway_limit_reached_total",
        &["listener", "limit"],
        "Of the clients turned away, those a sessions_max had no place for: listener (its own) or \
         process (of [limits]).",
        |f, s| {
            for (listener, limit, count) in &f.no_place {
                s.put(&[listener, limit.label()], *count as f64);
            }
        },
    ),
    counter(
        "ringway_connect_retries_total",
        SHARD,
        "Attempts to connect that failed and were followed by another.",
        |f, s| s.shards(f, |t| &t.connect_retries),
    ),
    gauge(
        "ringway_spare_connections",
        SHARD,
        "Connections to backends that stand ready for a session (pools.NAME.spare).",
        |f, s| s.shards(f, |t| &t.spares),
    ),
    counter(
        "ringway_spare_connected_total",
        SHARD,
        "Connections to backends that came to stand ready.",
        |f, s| s.shards(f, |t| &t.spares_made),
    ),
    counter(
        "ringway_spare_taken_total",
        SHARD,
        "Ready connections that sessions took; the others connected by themselves.",
        |f, s| s.shards(f, |t| &t.spares_taken),
    ),
    counter(
        "ringway_spare_failed_total",
        SHARD,
        "Attempts to make a connection ready that failed.",
        |f, s| s.shards(f, |t| &t.spares_failed),
    ),
    counter(
        "ringway_spare_discarded_total",
        &["shard", "path", "why"],
        "Ready connections that no session took: ended (by the backend), aged (others took their places), unwanted \
         (by a reload, another data path or a stop) or short (descriptors or memory ran out).",
        |f, s| {
            s.shard_cases(f, "ended", |t| &t.spares_ended);
            s.shard_cases(f, "aged", |t| &t.spares_aged);
            s.shard_cases(f, "unwanted", |t| &t.spares_unwanted);
            s.shard_cases(f, "short", |t| &t.spares_short);
        },
    ),
    counter("ringway_shard_turns_total", SHARD, "Turns of the shard's loop.", |f, s| {
        s.shards(f, |t| &t.turns);
    }),
    counter(
        "ringway_enters_total",
        SHARD,
        "Calls into the kernel to submit and wait (io_uring_enter or epoll_wait).",
        |f, s| s.shards(f, |t| &t.enters),
    ),
    counter(
        "ringway_enter_failed_total",
        SHARD,
        "Such calls that failed for no reason that passes by itself. Must stay 0.",
        |f, s| s.shards(f, |t| &t.enter_failed),
    ),
    counter(
        "ringway_completions_total",
        SHARD,
        "Completions or readiness reports those calls brought.",
        |f, s| s.shards(f, |t| &t.completions),
    ),
    counter(
        "ringway_sq_full_total",
        SHARD,
        "Submissions that found the queue full and had to enter first.",
        |f, s| s.shards(f, |t| &t.sq_full),
    ),
    counter(
        "ringway_cq_overflow_total",
        SHARD,
        "Turns that found the completion queue overflown.",
        |f, s| s.shards(f, |t| &t.cq_overflow),
    ),
    counter("ringway_no_buffers_total", SHARD, "Receives that found no buffer.", |f, s| {
        s.shards(f, |t| &t.no_buffers);
    }),
    gauge("ringway_starved_directions", SHARD, "Directions that wait for a buffer now.", |f, s| {
        s.shards(f, |t| &t.starved)
    }),
    counter(
        "ringway_sends_blocked_total",
        SHARD,
        "Sends that had to wait for the destination.",
        |f, s| s.shards(f, |t| &t.sends_blocked),
    ),
    gauge(
        "ringway_spilled_bytes",
        SHARD,
        "Bytes for slow readers that were moved out of the pool because few buffers were left.",
        |f, s| s.shards(f, |t| &t.spilled_bytes),
    ),
    gauge("ringway_buffers", SHARD, "Receive buffers of the shard.", |f, s| {
        s.shards(f, |t| &t.buffers);
    }),
    gauge("ringway_buffers_free", SHARD, "Buffers that hold nobody's bytes.", |f, s| {
        s.shards(f, |t| &t.buffers_free);
    }),
    counter(
        "ringway_freezes_total",
        SHARD,
        "Times the thread was found to have been stopped; deadlines were moved.",
        |f, s| s.shards(f, |t| &t.freezes),
    ),
    counter(
        "ringway_moves_total",
        &["shard", "path", "outcome"],
        "Live sessions carried: out (to another shard or process), in (from a shard), upgrade (from a process) or \
         failed (they went on where they were).",
        |f, s| {
            s.shard_cases(f, "out", |t| &t.moves_out);
            s.shard_cases(f, "in", |t| &t.moves_in);
            s.shard_cases(f, "upgrade", |t| &t.moves_upgrade);
            s.shard_cases(f, "failed", |t| &t.moves_failed);
        },
    ),
    counter(
        "ringway_moves_refused_total",
        &["shard", "path", "why"],
        "Moves asked for while the session could not: it was still opening, or ending.",
        |f, s| {
            s.shard_cases(f, "opening", |t| &t.moves_opening);
            s.shard_cases(f, "ending", |t| &t.moves_ending);
        },
    ),
    Definition {
        name: "ringway_pause_seconds",
        kind: MetricType::HISTOGRAM,
        labels: SHARD,
        help: "From the moment a session began to come to rest until it went on, on the shard it went to.",
        read: |f, s| s.shard_spreads(f, |t| &t.pause),
    },
    counter(
        "ringway_watchdog_total",
        SHARD,
        "Ending sessions whose operations had to be cancelled. Must stay 0.",
        |f, s| s.shards(f, |t| &t.watchdog),
    ),
    counter(
        "ringway_stale_completions_total",
        SHARD,
        "Completions for a session that is no more. Must stay 0.",
        |f, s| s.shards(f, |t| &t.stale),
    ),
    counter(
        "ringway_journal_dropped_total",
        SHARD,
        "Lines of ended sessions that were lost because the log was too slow.",
        |f, s| s.shards(f, |t| &t.journal_dropped),
    ),
    counter(
        "ringway_journal_written_total",
        NONE,
        "Lines of ended sessions that were left to be written.",
        |f, s| s.put(&[], f.journal_written as f64),
    ),
    counter(
        "ringway_log_dropped_total",
        &["why"],
        "Lines of the log that were lost: full (its reader was too slow) or failed (they could not be written).",
        |f, s| {
            for (why, count) in ["full", "failed"].iter().zip(f.log_lost) {
                s.put(&[why], count as f64);
            }
        },
    ),
    gauge(
        "ringway_process_resident_memory_bytes",
        NONE,
        "Memory of the process that is in RAM.",
        |f, s| {
            if let Some(bytes) = f.process.resident_bytes {
                s.put(&[], bytes as f64);
            }
        },
    ),
    gauge("ringway_process_open_fds", NONE, "Open descriptors.", |f, s| {
        if let Some(fds) = f.process.open_fds {
            s.put(&[], fds as f64);
        }
    }),
    gauge("ringway_process_max_fds", NONE, "Descriptors the process may have open.", |f, s| {
        if let Some(fds) = f.process.max_fds {
            s.put(&[], fds as f64);
        }
    }),
    gauge(
        "ringway_process_start_time_seconds",
        NONE,
        "When the process began, in seconds since 1970.",
        |f, s| {
            if let Some(seconds) = f.process.start_seconds {
                s.put(&[], seconds);
            }
        },
    ),
    counter(
        "ringway_process_cpu_seconds_total",
        NONE,
        "CPU time of the process, user and system.",
        |f, s| {
            if let Some(seconds) = f.process.cpu_seconds {
                s.put(&[], seconds);
            }
        },
    ),
    gauge(
        "ringway_iou_wrk_threads",
        NONE,
        "Threads the kernel started because a ring's operation would have blocked.",
        |f, s| {
            if let Some(threads) = f.process.iou_workers {
                s.put(&[], threads as f64);
            }
        },
    ),
];
