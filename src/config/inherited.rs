//! Settings that stand in a table for all listeners, and in one listener's own: what it does not set, it inherits.

use super::section::Section;
use super::{Keepalive, Name, Tcp, Timeouts, limits};

/// The defaults of `[timeouts]`.
pub(super) const TIMEOUTS: Timeouts =
    Timeouts { connect_ms: 1000, half_closed_ms: Some(60_000), idle_ms: None, age_ms: None };

/// Reads `[timeouts]` or `[listeners.NAME.timeouts]`.
pub(super) fn read_timeouts(s: &mut Section<'_>, default: Timeouts) -> Timeouts {
    const MAX: u32 = limits::DURATION_MS_MAX;
    let mut limit = |key, default: Option<u32>, meaning: &str| {
        or_none(s.number(key, default.unwrap_or(0), 0..=MAX, meaning))
    };
    Timeouts {
        half_closed_ms: limit(
            "half_closed_ms",
            default.half_closed_ms,
            "ends a session of which one end has finished and nothing moved since; 0: never",
        ),
        idle_ms: limit(
            "idle_ms",
            default.idle_ms,
            "ends a session in which nothing moved; 0: never, for a quiet session is not a dead one",
        ),
        age_ms: limit("age_ms", default.age_ms, "ends a session this long after accept; 0: never"),
        connect_ms: s.number(
            "connect_ms",
            default.connect_ms,
            1..=MAX,
            "one attempt to connect to a backend",
        ),
    }
}

/// Socket options as the file has them: 0 and "" leave the kernel's default.
pub(super) struct WrittenTcp {
    nodelay: bool,
    keepalive: Keepalive,
    user_timeout_ms: u32,
    send_buffer_bytes: u32,
    receive_buffer_bytes: u32,
    notsent_lowat_bytes: u32,
    congestion: String,
}

impl Default for WrittenTcp {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Keepalive { idle_s: 15, interval_s: 5, probes: 3 },
            user_timeout_ms: 30_000,
            send_buffer_bytes: 0,
            receive_buffer_bytes: limits::RECEIVE_BUFFER_DEFAULT,
            notsent_lowat_bytes: limits::NOTSENT_LOWAT_DEFAULT,
            congestion: String::new(),
        }
    }
}

impl WrittenTcp {
    /// Reads `[tcp]` or `[listeners.NAME.tcp]`.
    pub(super) fn read(s: &mut Section<'_>, default: &Self) -> Self {
        const BYTES_MAX: u32 = limits::SOCKET_BUFFER_BYTES_MAX;
        Self {
            nodelay: s.flag("nodelay", default.nodelay, "TCP_NODELAY: a small message leaves at once"),
            keepalive: read_keepalive(s, default.keepalive),
            user_timeout_ms: s.number(
                "user_timeout_ms",
                default.user_timeout_ms,
                0..=limits::USER_TIMEOUT_MS_MAX,
                "TCP_USER_TIMEOUT: how long sent bytes, or probes, may stay unanswered; 0: the kernel's choice",
            ),
            send_buffer_bytes: s.number(
                "send_buffer_bytes",
                default.send_buffer_bytes,
                0..=BYTES_MAX,
                "SO_SNDBUF; 0: the kernel's choice",
            ),
            receive_buffer_bytes: s.number(
                "receive_buffer_bytes",
                default.receive_buffer_bytes,
                0..=BYTES_MAX,
                "SO_RCVBUF; 0: the kernel's choice",
            ),
            notsent_lowat_bytes: s.number(
                "notsent_lowat_bytes",
                default.notsent_lowat_bytes,
                0..=BYTES_MAX,
                "TCP_NOTSENT_LOWAT: unsent bytes the kernel may hold; 0: the kernel's choice",
            ),
            congestion: s
                .text(
                    "congestion",
                    &default.congestion,
                    &format!("1..={} of a-z 0-9 _ -, or \"\"", limits::CONGESTION_CHARS_MAX),
                    "TCP_CONGESTION, such as \"cubic\"; \"\": the kernel's choice",
                    |word| is_congestion(word).then(|| word.to_owned()),
                )
                .unwrap_or_else(|| default.congestion.clone()),
        }
    }

    /// The same as options: absent where the file leaves them to the kernel.
    pub(super) fn options(&self) -> Tcp {
        Tcp {
            nodelay: self.nodelay,
            keepalive: Some(self.keepalive).filter(|keepalive| keepalive.idle_s > 0),
            user_timeout_ms: or_none(self.user_timeout_ms),
            send_buffer_bytes: or_none(self.send_buffer_bytes),
            receive_buffer_bytes: or_none(self.receive_buffer_bytes),
            notsent_lowat_bytes: or_none(self.notsent_lowat_bytes),
            congestion: Some(self.congestion.as_str()).filter(|c| !c.is_empty()).map(Name::from),
        }
    }
}

fn read_keepalive(s: &mut Section<'_>, default: Keepalive) -> Keepalive {
    Keepalive {
        idle_s: s.number(
            "keepalive_idle_s",
            default.idle_s,
            0..=limits::KEEPALIVE_S_MAX,
            "TCP_KEEPIDLE: longest silence before the kernel probes whether the other end is there; 0: it does not",
        ),
        interval_s: s.number(
            "keepalive_interval_s",
            default.interval_s,
            1..=limits::KEEPALIVE_S_MAX,
            "TCP_KEEPINTVL: time between probes",
        ),
        probes: s.number(
            "keepalive_probes",
            default.probes,
            1..=limits::KEEPALIVE_PROBES_MAX,
            "TCP_KEEPCNT: unanswered probes that end the connection",
        ),
    }
}

fn is_congestion(word: &str) -> bool {
    word.len() <= limits::CONGESTION_CHARS_MAX
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
}

/// 0 in the file is an absent limit.
fn or_none(number: u32) -> Option<u32> {
    Some(number).filter(|&number| number > 0)
}
