//! What the pages for users say is so: their configs parse, and the commands, metrics and links they name exist.

use ringway::config::file;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../README.md");
const DEPLOY: &str = include_str!("../deploy/README.md");
const TUNING: &str = include_str!("../deploy/tuning.md");
const CHANGELOG: &str = include_str!("../CHANGELOG.md");
const METRICS: &str = include_str!("../deploy/metrics.md");
const ALERTS: &str = include_str!("../deploy/prometheus-rules.yml");
const UNIT: &str = include_str!("../deploy/systemd/ringway.service");
const DOCKERFILE: &str = include_str!("../Dockerfile");

/// The insides of fenced blocks of this kind.
fn blocks<'t>(page: &'t str, kind: &str) -> Vec<&'t str> {
    let fence = format!("```{kind}\n");
    page.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// What stands between single backticks outside of blocks.
fn spans(page: &str) -> Vec<&str> {
    let outside = page.split("```").step_by(2);
    outside.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

/// A command of Ringway and the long options it is given.
type Call = (String, Vec<String>);

/// Calls of Ringway in lines a shell, a unit or a container would read.
fn calls(lines: &str) -> Vec<Call> {
    let mut found = Vec::new();
    for line in lines.lines() {
        let line = line.split(" #").next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let own = |i: usize| match words[i]
            .trim_start_matches("ExecStart=")
            .trim_start_matches("ExecReload=")
            .trim_start_matches("ExecStartPre=")
        {
            "ringway" | "/usr/bin/ringway" | "target/release/ringway" => true,
            "--" => words[..i].starts_with(&["cargo", "run"]),
            _ => false,
        };
        for i in (0..words.len()).filter(|&i| own(i)) {
            let Some(command) =
                words.get(i + 1).filter(|w| w.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            else {
                continue;
            };
            if command.starts_with('-') || line.contains("systemctl") || line.contains("install ") {
                continue;
            }
            let rest = words[i + 2..].iter().take_while(|w| !["|", "&&", ";"].contains(*w));
            let options = rest.filter(|w| w.starts_with("--")).map(|w| (*w).to_owned());
            found.push(((*command).to_owned(), options.collect()));
        }
    }
    found
}

/// Asks the program for help with each command. Faults, one for each command or option it does not know.
fn call_faults(calls: &[Call]) -> Vec<String> {
    let mut pages: BTreeMap<&str, Option<String>> = BTreeMap::new();
    let mut faults = Vec::new();
    for (command, options) in calls {
        let help = pages.entry(command).or_insert_with(|| {
            let mut program = Command::new(env!("CARGO_BIN_EXE_ringway"));
            let output = program.args([command, "--help"]).output().expect("the program runs");
            output.status.success().then(|| String::from_utf8(output.stdout).expect("help is text"))
        });
        match help {
            None => faults.push(format!("there is no command {command}")),
            Some(help) => {
                let unknown = options.iter().filter(|option| !help.contains(option.as_str()));
                faults.extend(unknown.map(|option| format!("{command} has no option {option}")));
            }
        }
    }
    faults
}

#[test]
fn commands_exist() {
    let mut all = Vec::new();
    for page in [README, DEPLOY, TUNING, CHANGELOG] {
        all.extend(blocks(page, "sh").into_iter().chain(spans(page)).flat_map(calls));
    }
    all.extend([UNIT, DOCKERFILE].into_iter().flat_map(|text| calls(&text.replace('#', ""))));
    let commands: BTreeSet<&str> = all.iter().map(|(command, _)| command.as_str()).collect();
    assert_eq!(
        commands.into_iter().collect::<Vec<_>>(),
        [
            "bench",
            "check",
            "datapath",
            "demo",
            "order-engine",
            "probe",
            "reload",
            "run",
            "status",
            "upgrade"
        ]
    );
    assert_eq!(call_faults(&all), Vec::<String>::new());
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    let named = calls(
        "cargo run --release -- demo --for 5s\n/usr/bin/ringway check --fonfig x\nringway prove",
    );
    assert_eq!(named.len(), 3);
    let faults = call_faults(&named);
    assert_eq!(faults, ["check has no option --fonfig", "there is no command prove"]);
}

#[test]
fn configs_parse() {
    let configs = blocks(README, "toml");
    assert!(!configs.is_empty());
    for config in configs {
        file::parse(config).unwrap_or_else(|faults| panic!("{faults:#?}\nin\n{config}"));
    }
}

/// Words that begin as metrics of Ringway do.
fn metrics(page: &str) -> BTreeSet<&str> {
    let words = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("ringway_")).collect()
}

#[test]
fn metrics_exist() {
    let (mut named, known) = (metrics(README), metrics(METRICS));
    named.extend(metrics(TUNING));
    assert!(named.len() >= 5);
    assert_eq!(named.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new());
    assert_eq!(metrics("`ringway_no_such_total` grows").difference(&known).count(), 1);
}

/// What alerts ask for that is not shown: metrics, and labels and reasons they are chosen by.
fn alert_faults(alerts: &str) -> Vec<String> {
    let rows: BTreeMap<&str, &str> =
        METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ")).collect();
    let reasons: Vec<&str> = ringway::event::EndReason::ALL.iter().map(|why| why.label()).collect();
    let mut faults = Vec::new();
    for (at, _) in alerts.match_indices("ringway_") {
        let rest = &alerts[at..];
        let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
        let name = name.unwrap_or_default();
        let Some(labels) = rows.get(name).and_then(|row| row.split(" | ").nth(1)) else {
            faults.push(format!("there is no metric {name}"));
            continue;
        };
        let chosen = rest[name.len()..].strip_prefix('{').and_then(|more| more.split('}').next());
        for part in chosen.into_iter().flat_map(|chosen| chosen.split(',')) {
            let (label, values) = part.split_once('=').expect("a label has a value");
            if !labels.split(", ").any(|known| known == label.trim()) {
                faults.push(format!("{name} has no label {label}"));
            }
            let values = values.trim_matches(['~', '"']).split('|');
            let unknown =
                values.filter(|value| label.trim() == "reason" && !reasons.contains(value));
            faults.extend(unknown.map(|value| format!("no session ends with {value}")));
        }
    }
    faults
}

#[test]
fn the_alerts_ask_for_what_is_shown() {
    assert!(ALERTS.matches("- alert: ").count() >= 8);
    assert!(ALERTS.contains("absent(up{"), "a dead process shows nothing else");
    assert_eq!(alert_faults(ALERTS), Vec::<String>::new());
    let bad = "rate(ringway_no_such_total[1m]) or ringway_reloads_total{why=\"refused\"} \
               or ringway_sessions_ended_total{reason=~\"idle|bored\"}";
    let faults = alert_faults(bad);
    assert_eq!(
        faults,
        [
            "there is no metric ringway_no_such_total",
            "ringway_reloads_total has no label why",
            "no session ends with bored"
        ]
    );
}

/// Relative links that lead nowhere: no such file, or no such heading in it.
fn broken(page: &str, folder: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let relative = links.filter(|link| !link.contains("://"));
    let is_broken = |link: &&str| {
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let path = root.join(file);
        let has = |text: String| {
            text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
        };
        !path.exists() || !(heading.is_empty() || std::fs::read_to_string(path).is_ok_and(has))
    };
    relative.filter(is_broken).map(str::to_owned).collect()
}

/// How a link names a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let pages = [
        (README, ""),
        (CHANGELOG, ""),
        (DEPLOY, "deploy"),
        (TUNING, "deploy"),
        (METRICS, "deploy"),
        (include_str!("../deploy/sessions.md"), "deploy"),
    ];
    for (page, folder) in pages {
        assert_eq!(broken(page, folder), Vec::<String>::new());
    }
    let page =
        "[a](no/such.md) [b](README.md#no-such-heading) [c](README.md#quick-start) [d](src/lib.rs)";
    assert_eq!(broken(page, ""), ["no/such.md", "README.md#no-such-heading"]);
}

/// All of the program's source, its line breaks within strings aside.
fn source(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).expect("the source is there");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    let text_of = |path: &std::path::PathBuf| {
        if path.is_dir() {
            return source(path);
        }
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        if is_rust { std::fs::read_to_string(path).expect("readable") } else { String::new() }
    };
    paths.iter().map(text_of).collect()
}

#[test]
fn what_the_program_is_quoted_with_it_says() {
    let source = source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let table = README.split("## Troubleshooting").nth(1).and_then(|rest| rest.split("## ").next());
    let rows = table.expect("there is such a table").lines().filter(|line| line.starts_with("| "));
    let mut quotes = 0;
    for row in rows.skip(1) {
        let says = row.split(" | ").nth(1).expect("it has three columns");
        for quote in says.split('`').skip(1).step_by(2).filter(|quote| !quote.contains(['=', '"']))
        {
            // An ellipsis stands for what differs.
            for part in quote.split("...").map(|part| part.trim_matches([':', ' '])) {
                let by_system = part == "Address already in use";
                assert!(by_system || source.contains(part), "{part}");
                quotes += 1;
            }
        }
    }
    assert!(quotes >= 8, "{quotes}");
    assert!(!source.contains(&["no such", "sentence"].join(" ")));
}

/// The commands that the reasons of ignored tests name; a reason that names none, whole.
fn commands_of_ignored(source: &str) -> BTreeSet<&str> {
    let reasons = source.lines().filter_map(|line| line.trim().strip_prefix("#[ignore = \""));
    let reasons = reasons.map(|reason| reason.trim_end_matches("\"]"));
    reasons.map(|reason| reason.find("cargo test ").map_or(reason, |at| &reason[at..])).collect()
}

#[test]
fn every_ignored_test_has_its_command_in_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = ["src", "tests"].map(|folder| source(&root.join(folder))).concat();
    let mut commands = commands_of_ignored(&source);
    assert!(
        commands
            .remove("no test: it stands in for a new binary, in a process that other tests start")
    );
    assert!(commands.len() >= 7, "{commands:?}");
    let shown: Vec<&str> = blocks(README, "sh").into_iter().flat_map(str::lines).collect();
    let is_shown = |command: &&str| {
        let ends = |rest: &str| rest.is_empty() || rest.trim_start().starts_with('#');
        shown.iter().any(|line| line.split_once(command).is_some_and(|(_, rest)| ends(rest)))
    };
    assert!(commands.iter().all(is_shown), "{commands:#?}");
    let found =
        commands_of_ignored("  #[ignore = \"long: cargo test x -- y\"]\n#[ignore = \"long\"]\n");
    assert_eq!(found, BTreeSet::from(["cargo test x -- y", "long"]));
    assert!(!is_shown(&"cargo test --lib -- million"));
}

#[test]
fn the_reasons_the_readme_quotes_exist() {
    let known: Vec<&str> = ringway::event::EndReason::ALL.iter().map(|why| why.label()).collect();
    let quoted = README.split("why=\"").skip(1).filter_map(|rest| rest.split('"').next());
    for word in quoted {
        assert!(known.contains(&word), "{word}");
    }
}

/// Settings in the first column of the tuning page's tables, as `section.key`.
#[test]
fn the_tuning_page_names_settings_that_exist() {
    let reference = include_str!("../config/reference.toml");
    let mut named = 0;
    for row in TUNING.lines().filter(|line| line.starts_with("| `")) {
        let first = row.split(" | ").next().unwrap_or_default();
        for setting in first.split('`').skip(1).step_by(2).filter(|word| !word.contains(['/', '=']))
        {
            let (section, key) = setting.rsplit_once('.').unwrap_or(("", setting));
            let ends = |name: &str| name == section || name.ends_with(&format!(".{section}"));
            let mut inside = section.is_empty();
            let found = reference.lines().any(|line| {
                if let Some(name) = line.strip_prefix('[') {
                    inside = ends(name.trim_matches(['[', ']']));
                }
                inside && line.split(" = ").next() == Some(key)
            });
            assert!(found, "there is no setting {setting}");
            named += 1;
        }
    }
    assert!(named >= 15, "{named}");
}
