//! The config files that are shipped or tested with say what they promise, and the reference is the code's own.

use proptest::prelude::*;
use ringway::config::file::{self, Setting};
use ringway::config::{Config, DataPath, LogLevel, Percent, limits};
use ringway::event::EndReason;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

const REFERENCE: &str = include_str!("../config/reference.toml");
const EXAMPLE: &str = include_str!("../config/ringway.toml");
const SESSIONS: &str = include_str!("../deploy/sessions.md");
const CANARY: &str = include_str!("black_box/canary.toml");

/// Every leaf of a TOML value, as full key path and TOML text.
fn leaves(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&path, value, found);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                leaves(&format!("{path}[{at}]"), item, found);
            }
        }
        leaf => {
            found.insert(path.to_owned(), leaf.to_string());
        }
    }
}

/// What is wrong with a reference, beside what a parse would say.
fn reference_faults(text: &str) -> Vec<String> {
    let mut written = BTreeMap::new();
    let table: Table = text.parse().expect("the reference is TOML");
    leaves("", &Value::Table(table), &mut written);
    let mut faults = Vec::new();
    for Setting { key, default, .. } in file::settings(text) {
        match (written.remove(&key), default) {
            (None, _) => faults.push(format!("{key} is missing")),
            (Some(shown), Some(default)) if shown != default => {
                faults.push(format!("{key} shows {shown}, its default is {default}"));
            }
            _ => {}
        }
    }
    faults.extend(written.into_keys().map(|key| format!("{key} is no setting")));
    faults
}

#[test]
fn the_reference_shows_every_key_with_its_default() {
    assert_eq!(reference_faults(REFERENCE), Vec::<String>::new());
    file::parse(REFERENCE).expect("the reference is a valid config");
}

#[test]
fn the_reference_says_the_rule_of_every_key() {
    // Comment blocks in the order of the file, each joined to one line, with the key below it.
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut comment = String::new();
    for line in REFERENCE.lines() {
        if let Some(more) = line.strip_prefix('#') {
            comment.push_str(more);
        } else {
            if let Some((key, _)) = line.split_once(" = ") {
                blocks.push((key.to_owned(), comment.trim().to_owned()));
            }
            comment.clear();
        }
    }
    for Setting { key, rule, .. } in file::settings(REFERENCE) {
        let last = key.rsplit('.').next().expect("a path has a last key");
        assert!(
            blocks.iter().any(|(key, comment)| key == last && *comment == rule),
            "no comment above {last} says: {rule}"
        );
    }
}

#[test]
fn a_reference_that_is_off_is_noticed() {
    let without = |line: &str| {
        assert!(REFERENCE.contains(line), "{line}");
        reference_faults(&REFERENCE.replacen(line, "", 1))
    };
    assert_eq!(without("\nbacklog = 4096"), ["listeners.orders.backlog is missing"]);
    assert_eq!(without("\ngrace_ms = 0"), ["stop.grace_ms is missing"]);
    assert_eq!(without("\nname = \"\""), ["pools.v1.backends[0].name is missing"]);
    let other = REFERENCE.replacen("backlog = 4096", "backlog = 1024\nbacklogs = 1", 1);
    assert_eq!(
        reference_faults(&other),
        [
            "listeners.orders.backlog shows 1024, its default is 4096",
            "listeners.orders.backlogs is no setting"
        ]
    );
    let end = REFERENCE.find("\n[admin]").expect("the reference has an admin table");
    let faults = reference_faults(&REFERENCE[..end]);
    assert!(faults.contains(&"admin.bind is missing".to_owned()), "{faults:?}");
}

#[test]
fn the_table_of_end_reasons_is_the_codes_own() {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(" | ").collect();
        let [why, fault, _, what_to_do] = cells.as_slice() else { return None };
        let why = why.strip_prefix("| `")?.strip_suffix('`')?;
        assert!(what_to_do.len() > " |".len(), "{line}");
        Some(format!("{why}: {fault}"))
    };
    let (_, table) = SESSIONS.split_once("## All reasons").expect("the page has the table");
    let (table, _) = table.split_once("\n## ").expect("another section follows");
    let written: Vec<String> =
        table.lines().skip_while(|line| !line.starts_with("|--")).filter_map(row).collect();
    let known =
        EndReason::ALL.iter().map(|why| format!("{}: {}", why.label(), why.whose().label()));
    assert_eq!(written, known.collect::<Vec<_>>());
}

#[test]
fn the_example_is_what_it_says() {
    let config = file::parse(EXAMPLE).expect("the example is valid");
    let [listener] = &config.listeners[..] else { panic!("one listener") };
    assert_eq!(&*config.pools[listener.stable].name, "v1");
    assert_eq!(listener.canary.map(|at| &*config.pools[at].name), Some("v2"));
    assert_eq!(listener.canary_percent, Percent::from_hundredths(500).expect("5 %"));
    assert_eq!(config.pools.len(), 2);
    assert!(config.admin.expect("there is an endpoint").bind.ip().is_loopback());
}

/// A template with its places filled in, parsed.
fn filled(template: &str) -> Config {
    let places = [("@PORT@", "7001"), ("@UP@", "7002"), ("@UP2@", "7003"), ("@ADMIN@", "7004")];
    let text =
        places.iter().fold(template.to_owned(), |text, (place, port)| text.replace(place, port));
    file::parse(&text).unwrap_or_else(|faults| panic!("{faults:#?}\nin\n{text}"))
}

/// The addresses of a config: of its one listener, of its pools' only backends, of admin.
fn addresses(config: &Config) -> (String, Vec<String>, Option<String>) {
    let [listener] = &config.listeners[..] else { panic!("one listener") };
    let only = |pool: &ringway::config::Pool| {
        assert_eq!(pool.backends.len(), 1);
        pool.backends[0].address.to_string()
    };
    let of_pools = [Some(listener.stable), listener.canary].into_iter().flatten();
    (
        listener.bind.to_string(),
        of_pools.map(|at| only(&config.pools[at])).collect(),
        config.admin.as_ref().map(|admin| admin.bind.to_string()),
    )
}

#[test]
fn black_box_templates_are_what_the_tests_need() {
    for (text, data_path) in [
        (include_str!("black_box/uring.toml"), DataPath::Uring),
        (include_str!("black_box/epoll.toml"), DataPath::Epoll),
    ] {
        let config = filled(text);
        let (listener, backends, admin) = addresses(&config);
        assert_eq!(listener, "127.0.0.1:7001");
        assert_eq!(backends, ["127.0.0.1:7002"]);
        assert_eq!(admin.as_deref(), Some("127.0.0.1:7004"));
        assert_eq!(config.admin.as_ref().and_then(|admin| admin.token.as_deref()), None);
        assert_eq!(config.data_path, data_path);
        assert_eq!(config.shards.count, Some(1));
        assert_eq!(config.listeners[0].timeouts.connect_ms, 2000);
        assert_eq!(config.listeners[0].timeouts.idle_ms, Some(3000));
        assert_eq!(config.listeners[0].sessions_max, 3000);
        assert_eq!(config.limits.sessions_max, 3000);
        assert_eq!(config.pools[0].retries, 0);
    }
}

#[test]
fn the_canary_template_is_what_the_tests_need() {
    let config = filled(CANARY);
    let (listener, backends, admin) = addresses(&config);
    assert_eq!(listener, "127.0.0.1:7001");
    assert_eq!(backends, ["127.0.0.1:7002", "127.0.0.1:7003"], "stable, then canary");
    assert_eq!(admin.as_deref(), Some("127.0.0.1:7004"));
    assert_eq!(config.shards.count, Some(2));
    assert_eq!(config.listeners[0].canary_percent.hundredths(), 500);
}

#[test]
fn bench_templates_are_what_the_comparison_needs() {
    for (text, data_path) in [
        (include_str!("../benches/compare/uring.toml"), DataPath::Uring),
        (include_str!("../benches/compare/epoll.toml"), DataPath::Epoll),
    ] {
        let config = filled(text);
        let (listener, backends, admin) = addresses(&config);
        assert_eq!(listener, "127.0.0.1:7001");
        assert_eq!(backends, ["127.0.0.1:7002"]);
        assert_eq!(admin, None);
        assert_eq!(config.data_path, data_path);
        assert_eq!(config.shards.count, Some(1));
        assert_eq!(config.listeners[0].timeouts.idle_ms, None);
        assert_eq!(config.listeners[0].sessions_max, 9900);
        assert_eq!((config.log.session_every, config.log.level), (0, LogLevel::Warn));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_line() {
    let missing = file::read(Path::new("/nonexistent/ringway.toml")).expect_err("it is not there");
    let line = missing.to_string();
    assert!(line.starts_with("cannot read config /nonexistent/ringway.toml: "), "{line}");
    assert_eq!(line.lines().count(), 1);

    let directory = std::env::temp_dir().join(format!("ringway-reference-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("the temporary directory is writable");
    let path = directory.join("ringway.toml");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("the temporary directory is writable");
        file::read(&path)
    };
    let long = vec![b'#'; usize::try_from(limits::CONFIG_BYTES_MAX).expect("1 MiB") + 1];
    let outcomes = [
        read(&long).map_err(|error| error.to_string()),
        read(b"\xff").map_err(|error| error.to_string()),
        read(EXAMPLE.as_bytes()).map_err(|error| error.to_string()),
    ];
    std::fs::write(directory.join("token"), "0123456789abcdef\n").expect("as above");
    let beside = EXAMPLE.replace("127.0.0.1:9900\"", "10.0.0.1:9900\"\ntoken_file = \"token\"");
    let with_token = read(beside.as_bytes());
    std::fs::remove_dir_all(&directory).expect("we made it");

    let [long, not_utf8, good] = outcomes;
    assert!(long.expect_err("too long").ends_with("must be at most 1048576 bytes"));
    assert!(not_utf8.expect_err("not text").contains("not UTF-8"));
    good.expect("the example is valid");
    let admin = with_token.expect("the token is beside the config").admin.expect("it has admin");
    assert_eq!(admin.token.as_deref(), Some("0123456789abcdef"));
}

/// A text with some of its characters, words or lines replaced, doubled or gone.
fn mutated(text: &'static str) -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just(String::new()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("nan".to_owned()),
        Just("1979-05-27".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        "\"[ -~]{0,12}\"",
        "[ -~]{0,12}",
        any::<char>().prop_map(String::from),
    ];
    let change = (any::<prop::sample::Index>(), 0..4_u8, value);
    prop::collection::vec(change, 1..8).prop_map(move |changes| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (at, kind, value) in changes {
            let at = at.index(lines.len());
            match (kind, lines[at].split_once(" = ")) {
                (0, Some((key, _))) => lines[at] = format!("{key} = {value}"),
                (1, Some((_, old))) => lines[at] = format!("{value} = {old}"),
                (2, _) => lines[at] = value,
                _ => {
                    let line = lines[at].clone();
                    lines.insert(at, line);
                }
            }
        }
        lines.join("\n")
    })
}

/// Parses; whatever comes out must make sense: a config, or at least one fault on one line each.
fn parses_or_says_why(text: &str) {
    if let Err(faults) = file::parse(text) {
        assert!(!faults.is_empty());
        assert!(faults.is_sorted_by(|a, b| a.key <= b.key), "{faults:#?}");
        for fault in faults {
            let line = fault.to_string();
            assert!(!line.chars().any(char::is_control) && !line.is_empty(), "{line:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_survived(text in any::<String>()) {
        parses_or_says_why(&text);
    }

    #[test]
    fn any_change_to_the_reference_is_survived(text in mutated(REFERENCE)) {
        parses_or_says_why(&text);
    }

    #[test]
    fn any_change_to_the_example_is_survived(text in mutated(EXAMPLE)) {
        parses_or_says_why(&text);
    }

    #[test]
    fn any_cut_is_survived(at in any::<prop::sample::Index>()) {
        let end = REFERENCE.floor_char_boundary(at.index(REFERENCE.len()));
        parses_or_says_why(&REFERENCE[..end]);
    }
}
