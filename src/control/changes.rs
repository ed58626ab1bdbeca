//! What a reload changes, key by key, in the words of the file: what was, what is, and from when on it holds.

use super::reload;
use crate::config::fault::{cut, shown_key};
use crate::config::{Backend, Config, Pool, file, limits};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// From when on a change holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    /// For all there is.
    AtOnce,
    /// For sessions that begin from now on.
    NewSessions,
    /// For the next process.
    Restart,
}

impl When {
    const ALL: [Self; 3] = [Self::AtOnce, Self::NewSessions, Self::Restart];

    const fn label(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::NewSessions => "for new sessions",
            Self::Restart => "waits for a restart",
        }
    }

    /// Of a key, such as `listeners.orders.backlog`.
    fn of(key: &str) -> Self {
        const RESTART: [&str; 7] = [
            "limits.buffer_bytes",
            "limits.buffers_per_shard",
            "log.format",
            "log.level",
            "shards.fifo_priority",
            "shards.napi_busy_poll_us",
            "shards.steer",
        ];
        if RESTART.contains(&key) || key.starts_with("admin") {
            return Self::Restart;
        }
        let last = key.rsplit('.').next().unwrap_or(key);
        // Sockets, shards and connections that stand ready are there already.
        let at_once = ["bind", "backlog", "spare", "spare_idle_ms", "carry_sessions"];
        if at_once.contains(&last) || ["shards.", "stop."].iter().any(|of| key.starts_with(of)) {
            Self::AtOnce
        } else {
            Self::NewSessions
        }
    }
}

/// One thing that is another than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    when: When,
    key: String,
    /// Such as `2 -> 0`.
    what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// What a config says of every setting, defaults included, as TOML text by key. Secrets are not in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Of the text a config was read from.
    pub(super) fn of(config: &Config) -> Self {
        let settings = file::settings(&config.source.0).into_iter();
        // Backends are told by their addresses, not by their places in the list.
        let settings = settings.filter(|setting| !setting.key.contains(".backends["));
        Self(settings.filter_map(|s| Some((s.key, s.value.or(s.default)?))).collect())
    }

    /// What of `new` is not so yet; from now on it is, but for what waits for a restart.
    pub(super) fn go_over(&mut self, new: Self) {
        let waits = |key: &str| When::of(key) == When::Restart;
        self.0.retain(|key, _| waits(key));
        self.0.extend(new.0.into_iter().filter(|(key, _)| !waits(key)));
    }
}

/// All that is another in `new` than it is in force. `told`: keys of which is told elsewhere.
///
/// `in_force` is what the settings that are in force say; `running` and `new` are configs, of which the backends and
/// the token are compared.
fn changes(
    in_force: &Settings,
    said: &Settings,
    (running, new): (&Config, &Config),
    told: impl Fn(&str) -> bool,
) -> Vec<Change> {
    let mut found = Vec::new();
    let keys: BTreeSet<&String> = in_force.0.keys().chain(said.0.keys()).collect();
    let groups = [groups(in_force), groups(said)];
    let [come, gone] = [&groups[1] - &groups[0], &groups[0] - &groups[1]];
    for (names, what) in [(&come, "added"), (&gone, "removed")] {
        // Its name may be that of a key, so the rules for keys do not judge it.
        let when = |group: &str| match group.starts_with("listeners.") {
            true => When::AtOnce,
            false => When::NewSessions,
        };
        let whole = |group: &String| Change {
            when: when(group),
            key: group.clone(),
            what: what.to_owned(),
        };
        found.extend(names.iter().map(whole));
    }
    for key in keys {
        let group = group(key);
        if told(key) || group.is_some_and(|g| come.contains(g) || gone.contains(g)) {
            continue;
        }
        let of = |settings: &Settings| {
            settings.0.get(key).map_or_else(|| "(none)".to_owned(), |v| cut(v))
        };
        if in_force.0.get(key) != said.0.get(key) {
            found.push(change(key, format!("{} -> {}", of(in_force), of(said))));
        }
    }
    for pool in &new.pools {
        let before = running.pools.iter().find(|before| before.name == pool.name);
        found.extend(before.into_iter().flat_map(|before| backends(before, pool)));
    }
    let token = |config: &Config| config.admin.as_ref().and_then(|admin| admin.token.clone());
    let is_there = |config: &Config| config.admin.is_some();
    if is_there(running) != is_there(new) {
        let what = if is_there(new) { "added" } else { "removed" };
        found.push(change("admin", what.to_owned()));
    } else if token(running) != token(new) {
        found.push(change("admin.token", "changed".to_owned()));
    }
    found
}

/// Which backends come and go, and what of those that stay is another.
fn backends(before: &Pool, now: &Pool) -> Vec<Change> {
    let in_both = |backend: &Backend, other: &Pool| -> Option<Backend> {
        other.backends.iter().find(|of| of.address == backend.address).cloned()
    };
    let key = format!("pools.{}.backends", shown_key(&before.name));
    let is_new = |backend: &&Backend| in_both(backend, before).is_none();
    let is_gone = |backend: &&Backend| in_both(backend, now).is_none();
    let gone = before.backends.iter().filter(is_gone).map(|b| format!("-{}", b.address));
    let new = now.backends.iter().filter(is_new).map(|b| format!("+{}", b.address));
    let moved: Vec<String> = gone.chain(new).collect();
    let mut found = Vec::new();
    if !moved.is_empty() {
        let more = moved.len().saturating_sub(limits::CHANGES_SHOWN);
        let mut what = moved[..moved.len() - more].join(" ");
        if more > 0 {
            what = format!("{what} and {more} more");
        }
        found.push(change(&key, what));
    }
    for backend in &now.backends {
        let Some(was) = in_both(backend, before) else { continue };
        let of = |last: &str| format!("{key}[{}].{last}", backend.address);
        if was.weight != backend.weight {
            found.push(change(&of("weight"), format!("{} -> {}", was.weight, backend.weight)));
        }
        if was.name != backend.name {
            found.push(change(&of("name"), format!("{} -> {}", was.name, backend.name)));
        }
    }
    found
}

fn change(key: &str, what: String) -> Change {
    Change { when: When::of(key), key: key.to_owned(), what }
}

/// The listener or pool a key belongs to: `listeners.orders` of `listeners.orders.tcp.nodelay`.
fn group(key: &str) -> Option<&str> {
    let kind = ["listeners.", "pools."].into_iter().find(|kind| key.starts_with(kind))?;
    let rest = &key[kind.len()..];
    // A name with a dot in it stands in quotes.
    let end = match rest.strip_prefix('"') {
        Some(quoted) => quoted.find('"')? + 2,
        None => rest.find('.')?,
    };
    Some(&key[..kind.len() + end])
}

fn groups(settings: &Settings) -> BTreeSet<String> {
    settings.0.keys().filter_map(|key| group(key)).map(str::to_owned).collect()
}

/// What a reload changes, but for what has a sentence of its own. `said`: what `new` says of every setting.
pub(super) fn of_reload(
    in_force: &Settings,
    said: &Settings,
    running: &Config,
    new: &Config,
) -> Vec<Change> {
    let has_sentence = |key: &str| key.starts_with("data_path") || key.ends_with(".canary_percent");
    changes(in_force, said, (running, new), has_sentence)
}

/// What a new process finds changed, all of which holds there: `file` is what the process before it read last,
/// `running` the same with its canary percents, `new` what is in force now. Empty: nothing.
pub(super) fn of_upgrade(file: &Config, running: &Config, new: &Config) -> String {
    // What was carried has no admin endpoint; keys of its table are told all the same.
    let before = Config { admin: new.admin.clone(), ..file.clone() };
    let has_sentence = |key: &str| key.ends_with(".canary_percent");
    let of = (&Settings::of(file), &Settings::of(new));
    let changes = changes(of.0, of.1, (&before, new), has_sentence);
    let mut told = reload::canaries(running, new);
    told.extend(changes.iter().map(ToString::to_string));
    let more = told.len().saturating_sub(limits::CHANGES_SHOWN);
    told.truncate(limits::CHANGES_SHOWN);
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    format!("{}{rest}", told.join(", "))
}

/// What is told of a reload after which all that is in force is as before. A change may still come to nothing: of a
/// default that nobody inherits, or of a limit that descriptors lower.
pub(super) fn told_of_nothing(changes: &[Change]) -> String {
    let waits = changes.iter().all(|change| change.when == When::Restart);
    let what = if waits { "nothing changed" } else { "nothing changed in effect" };
    told(vec![what.to_owned()], changes, None)
}

/// What is told of a reload: `what` has sentences already, `last` is told at the end. What waits for a restart is
/// logged as well.
pub(super) fn told(mut what: Vec<String>, changes: &[Change], last: Option<String>) -> String {
    let waits = changes.iter().filter(|change| change.when == When::Restart);
    let settings: Vec<String> =
        waits.take(limits::CHANGES_SHOWN).map(ToString::to_string).collect();
    if !settings.is_empty() {
        tracing::warn!(?settings, "these changes wait for a restart");
    }
    what.extend(sentences(changes));
    if what.is_empty() {
        // Such as backends in another order.
        what.push("taken up; no setting has another value".to_owned());
    }
    what.extend(last);
    what.join("; ")
}

/// What is told of the changes, a sentence for each moment from which on they hold; at most
/// [`limits::CHANGES_SHOWN`] of them, and how many more there are.
fn sentences(changes: &[Change]) -> Vec<String> {
    let mut room = limits::CHANGES_SHOWN;
    let mut told = Vec::new();
    // What an operator has to do something for is told even where there is much else.
    for when in When::ALL.into_iter().rev() {
        let all: Vec<&Change> = changes.iter().filter(|change| change.when == when).collect();
        if all.is_empty() {
            continue;
        }
        let shown: Vec<String> = all.iter().take(room).map(ToString::to_string).collect();
        room -= shown.len();
        let more = match all.len() - shown.len() {
            0 => String::new(),
            n if shown.is_empty() => format!("{n} changes"),
            n => format!(", and {n} more"),
        };
        told.push(format!("{}: {}{more}", when.label(), shown.join(", ")));
    }
    told.reverse();
    told
}

#[cfg(test)]
mod tests {
    use super::super::reload::plan;
    use super::*;
    use crate::config::file::parse;

    const REFERENCE: &str = include_str!("../../config/reference.toml");

    fn told(before: &str, after: &str) -> Vec<String> {
        let (before, after) = (parse(before).unwrap(), parse(after).unwrap());
        let (was, is) = (Settings::of(&before), Settings::of(&after));
        sentences(&changes(&was, &is, (&before, &after), |_| false))
    }

    fn small(pool: &str, more: &str) -> String {
        format!(
            "[listeners.l]\nbind = \"127.0.0.1:7000\"\nstable = \"v1\"\n[pools.v1]\n{pool}\n{more}"
        )
    }

    #[test]
    fn each_key_is_told_with_what_was_and_what_is() {
        let before = small("backends = [\"10.0.0.1:9000\", \"10.0.0.2:9000\"]", "");
        let after = small(
            "backends = [{ address = \"10.0.0.2:9000\", weight = 3 }, \"10.0.0.3:9000\"]\nretries = 0",
            "[shards]\nsteer = \"cpu\"\ncount = 2\n[stop]\ndrain_ms = 5",
        );
        let expected = [
            "at once: shards.count: 0 -> 2, stop.drain_ms: 30000 -> 5",
            "for new sessions: pools.v1.retries: 2 -> 0, pools.v1.backends: -10.0.0.1:9000 +10.0.0.3:9000, \
             pools.v1.backends[10.0.0.2:9000].weight: 1 -> 3",
            "waits for a restart: shards.steer: \"hash\" -> \"cpu\"",
        ];
        assert_eq!(told(&before, &after), expected);
        assert_eq!(
            told(
                &before,
                &format!("# a comment\n{before}[pools.v1.x]").replace("[pools.v1.x]", "")
            ),
            [""; 0]
        );
    }

    #[test]
    fn a_default_that_is_written_out_is_no_change_and_what_inherits_it_is_told() {
        let before = small("backends = [\"10.0.0.1:9000\"]", "");
        let same =
            small("backends = [\"10.0.0.1:9000\"]\nretries = 2", "data_path_percent = 100.0");
        let same = same.replace("data_path_percent = 100.0", "");
        assert_eq!(told(&before, &format!("data_path_percent = 100.0\n{same}")), [""; 0]);
        let after = small("backends = [\"10.0.0.1:9000\"]", "[timeouts]\nidle_ms = 7");
        let expected =
            "for new sessions: listeners.l.timeouts.idle_ms: 0 -> 7, timeouts.idle_ms: 0 -> 7";
        assert_eq!(told(&before, &after), [expected]);
    }

    #[test]
    fn a_listener_or_pool_that_comes_or_goes_is_one_change() {
        let before = small("backends = [\"10.0.0.1:9000\"]", "");
        let more = "[listeners.\"a.b\"]\nbind = \"127.0.0.1:7001\"\nstable = \"spare\"\n\
                    [pools.spare]\nbackends = [\"10.0.0.1:9000\"]";
        let after = small("backends = [\"10.0.0.1:9000\"]", more);
        let both = |what| {
            [
                format!("at once: listeners.\"a.b\": {what}"),
                format!("for new sessions: pools.spare: {what}"),
            ]
        };
        assert_eq!(told(&before, &after), both("added"));
        assert_eq!(told(&after, &before), both("removed"));
    }

    #[test]
    fn a_secret_is_not_told() {
        let admin =
            |keys: &str| small("backends = [\"10.0.0.1:9000\"]", &format!("[admin]\n{keys}"));
        let (one, two) = ("token = \"0123456789abcdef\"", "token = \"fedcba9876543210\"");
        assert_eq!(told(&admin(one), &admin(two)), ["waits for a restart: admin.token: changed"]);
        assert_eq!(told(&admin(""), &admin(one)), ["waits for a restart: admin.token: changed"]);
        let none = small("backends = [\"10.0.0.1:9000\"]", "");
        assert_eq!(told(&none, &admin(one)), ["waits for a restart: admin: added"]);
    }

    #[test]
    fn what_waits_is_told_again_until_it_is_taken_back() {
        let text = |more| small("backends = [\"10.0.0.1:9000\"]", more);
        let first = parse(&text("")).unwrap();
        let new = parse(&text("[log]\nlevel = \"warn\"\nsession_every = 2")).unwrap();
        let mut in_force = Settings::of(&first);
        in_force.go_over(Settings::of(&new));
        let again = |config: &Config| {
            sentences(&changes(&in_force, &Settings::of(config), (config, config), |_| false))
        };
        assert_eq!(again(&new), ["waits for a restart: log.level: \"info\" -> \"warn\""]);
        let back = parse(&text("[log]\nsession_every = 2")).unwrap();
        assert_eq!(again(&back), [""; 0]);
    }

    #[test]
    fn what_is_told_is_bounded_and_what_waits_comes_first() {
        let pool = |n: usize| format!("[pools.p{n}]\nbackends = [\"10.0.0.1:9000\"]\nretries = ");
        let pools =
            |retries: usize| (0..60).map(|n| format!("{}{retries}\n", pool(n))).collect::<String>();
        let text = |more: String| small("backends = [\"10.0.0.1:9000\"]", &more);
        let all = told(&text(pools(1)), &text(pools(2) + "[log]\nlevel = \"warn\""));
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all[0].ends_with(", and 11 more"), "{}", all[0]);
        assert_eq!(all[1], "waits for a restart: log.level: \"info\" -> \"warn\"");
        assert_eq!(cut(&"x".repeat(500)).len(), limits::SHOWN_CHARS_MAX + 3);
    }

    /// Every kind of change to the reference: what waits for a restart is just what a reload keeps as it was.
    #[test]
    fn what_is_said_to_wait_is_what_is_kept() {
        let before = parse(REFERENCE).unwrap();
        for (from, to, waits) in [
            ("buffer_bytes = 16384", "buffer_bytes = 8192", true),
            ("buffers_per_shard = 16384", "buffers_per_shard = 8192", true),
            ("napi_busy_poll_us = 0", "napi_busy_poll_us = 9", true),
            ("fifo_priority = 0", "fifo_priority = 9", true),
            ("steer = \"hash\"", "steer = \"cpu\"", true),
            ("\nlevel = \"info\"", "\nlevel = \"warn\"", true),
            ("format = \"human\"", "format = \"json\"", true),
            ("bind = \"127.0.0.1:9900\"", "bind = \"127.0.0.1:9901\"", true),
            ("\ntoken = \"\"", "\ntoken = \"0123456789abcdef\"", true),
            ("session_every = 1", "session_every = 2", false),
            ("\nbusy_poll_us = 0", "\nbusy_poll_us = 9", false),
            ("rebalance = true", "rebalance = false", false),
            ("\nhigh_water_bytes = 65536", "\nhigh_water_bytes = 32768", false),
            ("sessions_max = 10000", "sessions_max = 20000", false),
            ("retries = 2", "retries = 1", false),
            ("backlog = 4096", "backlog = 1024", false),
            ("weight = 1", "weight = 2", false),
            ("carry_sessions = true", "carry_sessions = false", false),
            ("drain_ms = 30000", "drain_ms = 1", false),
            ("spare = 0", "spare = 1", false),
        ] {
            let text = REFERENCE.replacen(from, to, 1);
            assert_ne!(text, REFERENCE, "{from}");
            let new = parse(&text).unwrap();
            let kept = plan(&before, &before, &new).config == before;
            let (was, is) = (Settings::of(&before), Settings::of(&new));
            let found = changes(&was, &is, (&before, &new), |_| false);
            assert!(!found.is_empty(), "{to} is not told");
            let said = found.iter().all(|change| change.when == When::Restart);
            assert_eq!((kept, said), (waits, waits), "{to}: {found:?}");
        }
    }
}
