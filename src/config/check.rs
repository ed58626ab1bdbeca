//! Settings held against each other.
//!
//! A setting that is wrong by itself is not held against others: one mistake is one fault.

use super::fault::{Fault, nearest};
use super::file::{Written, WrittenAdmin, WrittenBackend, WrittenListener, WrittenPool};
use super::section::{Report, path};
use super::{Admin, Backend, Config, Limits, Listener, Name, Percent, Pool, Shards, Source, Steer};
use super::{limits, token};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// The config, or all that is wrong with it, in the order of keys. `directory` is where a relative token file is.
pub(super) fn check(
    written: Written,
    directory: &Path,
    mut report: Report,
) -> Result<Config, Vec<Fault>> {
    let known: Vec<Name> = written.pools.iter().map(|(name, _)| Arc::clone(name)).collect();
    check_limits(&written.limits, &written.shards, &mut report);
    check_binds(&written, &mut report);
    let listeners = written.listeners.into_iter().map(|(name, listener)| {
        check_listener(&name, listener?, &known, written.limits.sessions_max, &mut report)
    });
    // Collected to the end before a missing one makes it `None`: the others have faults to tell, too.
    let listeners: Vec<Option<Listener>> = listeners.collect();
    let pools = written.pools.into_iter().map(|(name, pool)| check_pool(&name, pool?, &mut report));
    let pools: Vec<Option<Pool>> = pools.collect();
    check_spares(&pools, &mut report);
    let admin = written.admin.map(|admin| check_admin(admin, directory, &mut report));

    if !report.faults.is_empty() {
        report.faults.sort_by(|a, b| a.key.cmp(&b.key));
        return Err(report.faults);
    }
    let whole = "what is missing was reported as a fault, and there is none";
    Ok(Config {
        data_path: written.data_path,
        data_path_percent: written.data_path_percent,
        carry_sessions: written.carry_sessions,
        shards: written.shards,
        limits: written.limits,
        listeners: listeners.into_iter().collect::<Option<_>>().expect(whole),
        pools: pools.into_iter().collect::<Option<_>>().expect(whole),
        admin: admin.map(|admin| admin.expect(whole)),
        stop: written.stop,
        log: written.log,
        source: Source::default(),
    })
}

fn check_limits(limits: &Limits, shards: &Shards, report: &mut Report) {
    let (high_water, buffer) = (limits.high_water_bytes, limits.buffer_bytes);
    let key = "limits.high_water_bytes";
    if high_water < buffer && report.sound(key) && report.sound("limits.buffer_bytes") {
        let rule = format!("must be at least limits.buffer_bytes, {buffer}: a receive fills it");
        report.fault(key, high_water, rule);
    }
    if shards.steer == Steer::Cpu && !shards.pin && report.sound("shards.pin") {
        let rule = "must be \"hash\" without shards.pin: a shard that moves has no CPU to steer to";
        report.fault("shards.steer", shown_text(shards.steer.label()), rule);
    }
    let Some(count) = shards.count else { return };
    let cpus = shards.cpus.as_ref().map_or(usize::MAX, |cpus| cpus.len());
    if shards.pin && count > cpus && report.sound("shards.pin") {
        let rule = format!(
            "must be at most the {cpus} of shards.cpus, for with shards.pin each shard has its own"
        );
        report.fault("shards.count", count, rule);
    }
    let room = count as u64 * u64::from(limits::SESSIONS_PER_SHARD_MAX);
    let key = "limits.sessions_max";
    if u64::from(limits.sessions_max) > room && report.sound(key) {
        let rule = format!("must be at most {room}, what shards hold with shards.count = {count}");
        report.fault(key, limits.sessions_max, rule);
    }
}

/// Every address is bound once: by one listener, or by the admin endpoint.
fn check_binds(written: &Written, report: &mut Report) {
    let of_listeners = written.listeners.iter().filter_map(|(name, listener)| {
        Some((path(&["listeners", name, "bind"]), listener.as_ref()?.bind?))
    });
    let of_admin = written.admin.as_ref().and_then(|admin| {
        let key = "admin.bind";
        admin.bind.filter(|_| report.sound(key)).map(|bind| (key.to_owned(), bind))
    });
    let mut bound: Vec<(String, SocketAddr)> = Vec::new();
    for (key, bind) in of_listeners.chain(of_admin) {
        let clash = bound.iter().find(|(_, other)| overlap(*other, bind));
        if let Some((other_key, other)) = clash {
            let rule = if *other == bind {
                format!("already bound by {other_key}")
            } else {
                format!("overlaps {other_key} = \"{other}\"")
            };
            report.fault(&key, format!("\"{bind}\""), rule);
        }
        bound.push((key, bind));
    }
}

/// Whether two sockets would listen for the same clients. `[::]` does not include IPv4: all sockets are of one family.
pub(crate) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_place = a.port() == b.port() && a.is_ipv4() == b.is_ipv4();
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && same_place && (a.ip() == b.ip() || any)
}

fn check_listener(
    name: &Name,
    written: WrittenListener,
    pools: &[Name],
    sessions_max: u32,
    report: &mut Report,
) -> Option<Listener> {
    let key = |last: &str| path(&["listeners", name, last]);
    let mut find = |last: &str, wanted: &str| {
        let at = pools.iter().position(|pool| **pool == *wanted);
        // Without any pool that is the fault, and it was reported.
        if at.is_none() && !pools.is_empty() {
            let rule = match nearest(wanted, pools.iter().map(|pool| &**pool)) {
                Some(pool) => format!("unknown pool; did you mean '{pool}'?"),
                None => format!("unknown pool; must be a [pools.NAME], such as '{}'", pools[0]),
            };
            report.fault(&key(last), shown_text(wanted), rule);
        }
        at
    };
    let stable = written.stable.as_deref().and_then(|wanted| find("stable", wanted));
    let wanted = Some(written.canary.as_str()).filter(|wanted| !wanted.is_empty());
    let canary = wanted.and_then(|wanted| find("canary", wanted));

    if canary.is_some() && canary == stable {
        let rule = "must be another pool than stable: a pool cannot be compared with itself";
        report.fault(&key("canary"), shown_text(&written.canary), rule);
    }
    let percent = written.canary_percent;
    if percent > Percent::ZERO && wanted.is_none() && report.sound(&key("canary")) {
        let rule = format!("must be 0 without a canary pool ({} names it)", key("canary"));
        report.fault(&key("canary_percent"), percent.as_f64(), rule);
    }
    let own = written.sessions_max;
    if own > sessions_max && report.sound("limits.sessions_max") {
        let rule = format!("must be at most limits.sessions_max, {sessions_max}");
        report.fault(&key("sessions_max"), own, rule);
    }
    Some(Listener {
        name: Arc::clone(name),
        bind: written.bind?,
        backlog: written.backlog,
        stable: stable?,
        canary,
        canary_percent: percent,
        on_backend_fail: written.on_backend_fail,
        hop: written.hop,
        sessions_max: own,
        timeouts: written.timeouts,
        tcp: written.tcp,
    })
}

fn check_pool(name: &Name, written: WrittenPool, report: &mut Report) -> Option<Pool> {
    let mut addresses = HashSet::new();
    let mut names = HashSet::new();
    let key = path(&["pools", name, "backends"]);
    let backends = written.backends.into_iter().map(|backend| {
        let WrittenBackend { at, address, name, weight } = backend;
        if let Some(address) = address.filter(|&address| !addresses.insert(address)) {
            let rule = "must be in this pool once; to send it more sessions raise its weight";
            report.fault(&format!("{key}[{at}].address"), format!("\"{address}\""), rule);
        }
        if let Some(name) = name.as_ref().filter(|&name| !names.insert(Arc::clone(name))) {
            let rule = "another backend of this pool has this name";
            report.fault(&format!("{key}[{at}].name"), shown_text(name), rule);
        }
        let address = address?;
        Some(Backend { name: name.unwrap_or_else(|| address.to_string().into()), address, weight })
    });
    let backends: Vec<Option<Backend>> = backends.collect();
    Some(Pool {
        name: Arc::clone(name),
        backends: backends.into_iter().collect::<Option<_>>()?,
        retries: written.retries,
        spare: written.spare,
        spare_idle_ms: written.spare_idle_ms,
    })
}

/// A shard keeps only so many connections ready: the first pool that asks for too many is told.
fn check_spares(pools: &[Option<Pool>], report: &mut Report) {
    let most = limits::SPARES_PER_SHARD_MAX as u64;
    let mut wanted = 0;
    for pool in pools.iter().flatten().filter(|pool| pool.spare > 0) {
        wanted += pool.spares();
        let key = path(&["pools", &pool.name, "spare"]);
        if wanted > most && report.sound(&key) {
            let rule = format!(
                "too many: with those of the pools before it a shard would keep {wanted} connections ready, \
                 one for each backend with weight and spare, and keeps at most {most}"
            );
            return report.fault(&key, pool.spare, rule);
        }
    }
}

fn check_admin(written: WrittenAdmin, directory: &Path, report: &mut Report) -> Option<Admin> {
    let (inline, file) = (written.token, written.token_file);
    let token = if file.is_empty() {
        Some(inline).filter(|token| !token.is_empty())
    } else if inline.is_empty() {
        token::read(&directory.join(&file))
            .map_err(|why| report.fault("admin.token_file", shown_text(&file), why))
            .ok()
    } else {
        let rule = "must be \"\" where admin.token is given: only one can be right";
        report.fault("admin.token_file", shown_text(&file), rule);
        None
    };
    let bind = written.bind?;
    let sound = ["admin.bind", "admin.token", "admin.token_file"].map(|key| report.sound(key));
    if token.is_none() && !bind.ip().to_canonical().is_loopback() && sound == [true; 3] {
        let rule = "must be a loopback address, or admin.token or admin.token_file be given";
        report.fault("admin.bind", format!("\"{bind}\""), rule);
    }
    Some(Admin { bind, token: token.map(Arc::from) })
}

fn shown_text(text: &str) -> String {
    super::fault::shown(&text.into())
}
