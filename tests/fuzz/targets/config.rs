//! Any text: it is a config that cannot be wrong, or at least one fault, in the order of keys, a line each.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::config::{Config, Listener, Percent, Pool, file, limits};
use ringway::policy::snapshot::Snapshot;
use std::collections::HashSet;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parsed = file::parse(text);
    assert_eq!(parsed, file::parse(text), "the same text reads the same");
    match parsed {
        Ok(config) => {
            check(&config);
            serve(config);
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a reason");
            assert!(faults.is_sorted_by(|a, b| a.key <= b.key), "{faults:#?}");
            for fault in faults {
                let line = fault.to_string();
                assert!(!line.chars().any(char::is_control) && !fault.rule.is_empty(), "{line:?}");
            }
        }
    }
    let _ = file::settings(text);
});

/// What the types of a config say of themselves.
fn check(config: &Config) {
    let Config { limits: its, listeners, pools, shards, admin, .. } = config;
    assert!((1..=limits::SESSIONS_MAX).contains(&its.sessions_max));
    assert!((limits::BUFFER_BYTES_MIN..=limits::BUFFER_BYTES_MAX).contains(&its.buffer_bytes));
    assert!((its.buffer_bytes..=limits::HIGH_WATER_MAX).contains(&its.high_water_bytes));
    assert!((limits::BUFFERS_MIN..=limits::BUFFERS_MAX).contains(&its.buffers_per_shard));
    assert!(shards.count.is_none_or(|count| (1..=limits::SHARDS_MAX).contains(&count)));
    assert!(shards.cpus.as_ref().is_none_or(|cpus| !cpus.is_empty()));
    assert!(shards.busy_poll_us <= limits::BUSY_POLL_US_MAX);
    assert!(shards.answer_poll_us <= limits::ANSWER_POLL_US_MAX);

    assert!((1..=limits::LISTENERS_MAX).contains(&listeners.len()));
    assert!((1..=limits::POOLS_MAX).contains(&pools.len()));
    assert!(listeners.is_sorted_by(|a, b| a.name < b.name), "in order, and each once");
    assert!(pools.is_sorted_by(|a, b| a.name < b.name), "in order, and each once");
    listeners.iter().for_each(|listener| check_listener(listener, config));
    pools.iter().for_each(check_pool);

    let binds = listeners.iter().map(|l| l.bind).chain(admin.iter().map(|admin| admin.bind));
    let fixed: Vec<_> = binds.filter(|bind| bind.port() != 0).collect();
    assert_eq!(fixed.iter().collect::<HashSet<_>>().len(), fixed.len(), "bound twice: {fixed:?}");
    if let Some(admin) = admin {
        assert!(admin.token.is_some() || admin.bind.ip().to_canonical().is_loopback());
        assert!(admin.token.iter().all(|token| token.len() >= limits::TOKEN_CHARS_MIN));
    }
}

fn check_listener(listener: &Listener, config: &Config) {
    let Listener { name, stable, canary, canary_percent, sessions_max, .. } = listener;
    check_name(name);
    assert!(*stable < config.pools.len());
    assert!(canary.is_none_or(|canary| canary < config.pools.len() && canary != *stable));
    assert!(canary_percent.hundredths() <= Percent::WHOLE);
    assert!(canary.is_some() || *canary_percent == Percent::ZERO);
    assert!((1..=config.limits.sessions_max).contains(sessions_max));
    assert!((1..=limits::BACKLOG_MAX).contains(&listener.backlog));
    let times = &listener.timeouts;
    let others = [times.half_closed_ms, times.idle_ms, times.age_ms];
    for ms in others.into_iter().flatten().chain([times.connect_ms]) {
        assert!((1..=limits::DURATION_MS_MAX).contains(&ms), "{times:?}");
    }
    assert!(listener.tcp.congestion.as_ref().is_none_or(|it| !it.is_empty()));
}

fn check_pool(pool: &Pool) {
    check_name(&pool.name);
    assert!((1..=limits::BACKENDS_PER_POOL_MAX).contains(&pool.backends.len()));
    assert!(pool.retries <= limits::RETRIES_MAX);
    assert!(pool.spare <= limits::SPARES_PER_BACKEND_MAX);
    assert!(pool.spares() <= limits::SPARES_PER_SHARD_MAX as u64);
    assert!(pool.spare_idle_ms >= limits::SPARE_IDLE_MS_MIN);
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    for backend in &pool.backends {
        assert!(names.insert(&backend.name) && addresses.insert(backend.address), "{pool:?}");
        assert!(backend.address.port() != 0 && backend.weight <= limits::WEIGHT_MAX);
    }
}

fn check_name(name: &str) {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    assert!(
        (1..=limits::NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(fits),
        "{name:?}"
    );
}

/// A config that was taken can be served, and reloaded.
fn serve(config: Config) {
    let first = Snapshot::new(config.clone(), None);
    let second = Snapshot::new(config, Some(&first));
    for (at, listener) in second.config.listeners.iter().enumerate() {
        let (_, pool) = second.assign(at);
        let weighs = second.pool(pool).backends.iter().any(|backend| backend.weight > 0);
        assert_eq!(second.next_backend(pool).is_some(), weighs, "{}", listener.name);
        assert!(second.enter(at), "the first session finds a place");
        second.leave(at);
    }
}
