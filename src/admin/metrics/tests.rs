use super::*;
use crate::admin::harness;
use crate::control::board::PathChoice;
use crate::driver::Kind;
use crate::event::{Arm, EndReason};
use crate::tally::{RouteName, RouteTally};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

fn scrape(board: &Board) -> String {
    String::from_utf8(text(board).unwrap()).unwrap()
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

fn route(board: &Board, shard: usize, listener: &str) -> Arc<RouteTally> {
    let name = RouteName {
        listener: listener.into(),
        arm: Arm::Canary,
        pool: "p".into(),
        backend: "b".into(),
    };
    board.shards()[shard].tally.route(&name)
}

#[test]
fn the_docs_list_exactly_these_metrics() {
    let mut expected = vec!["| name | type | labels | meaning |".to_owned()];
    expected.push("|---|---|---|---|".to_owned());
    expected.extend(table::DEFINITIONS.iter().map(|d| {
        let kind = format!("{:?}", d.kind).to_lowercase();
        format!("| `{}` | {kind} | {} | {} |", d.name, d.labels.join(", "), d.help)
    }));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let found: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
    assert!(found == expected, "deploy/metrics.md should hold\n{}", expected.join("\n"));
}

#[test]
fn names_are_unique_and_say_their_type_and_unit() {
    let mut names: Vec<&str> = table::DEFINITIONS.iter().map(|d| d.name).collect();
    assert!(names.iter().all(|name| name.starts_with("ringway_")));
    for d in table::DEFINITIONS {
        assert_eq!(d.name.ends_with("_total"), d.kind == MetricType::COUNTER, "{}", d.name);
        assert!(d.kind != MetricType::HISTOGRAM || d.name.ends_with("_seconds"), "{}", d.name);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), table::DEFINITIONS.len());
}

fn chosen(kind: Kind, why: String) -> PathChoice {
    let (wanted, percent) = (crate::config::DataPath::Auto, crate::config::Percent::HUNDRED);
    PathChoice { wanted, kind, why, percent, begun: [0, 0] }
}

#[test]
fn every_metric_is_there_once_there_is_a_session_of_each_kind() {
    let board = harness::board(1);
    let route = route(&board, 0, "fix");
    route.ended[0].add(1);
    let why = "the probe passed".to_owned();
    let path = chosen(Kind::Uring, why);
    board.path.store(Some(Arc::new(path)));
    let text = scrape(&board);
    for d in table::DEFINITIONS {
        assert!(text.contains(&format!("\n# TYPE {} ", d.name)), "{} is not in\n{text}", d.name);
        assert!(text.contains(&format!("# HELP {} {}\n", d.name, d.help)), "{}", d.name);
    }
}

#[test]
fn shards_are_added_up_into_routes() {
    let board = harness::board(2);
    for (shard, n) in [(0, 3), (1, 4)] {
        let route = route(&board, shard, "fix");
        route.opened.add(n);
        route.up_bytes.add(10 * n);
        route.ended[EndReason::Idle as usize].add(n);
        route.finished_by_backend.add(n);
        board.shards()[shard].tally.shard.accepted.add(n);
    }
    // Opened on shard 0, carried to shard 1, and ended there; one more stays open.
    route(&board, 0, "fix").open.add(2);
    route(&board, 1, "fix").open.sub(1);
    let text = scrape(&board);
    let labels = r#"listener="fix",arm="canary",pool="p",backend="b""#;
    assert_eq!(value(&text, &format!("ringway_sessions_opened_total{{{labels}}}")), 7.0);
    assert_eq!(value(&text, &format!("ringway_sessions{{{labels}}}")), 1.0);
    assert_eq!(value(&text, &format!("ringway_bytes_total{{{labels},direction=\"up\"}}")), 70.0);
    let by_backend = format!("ringway_sessions_finished_by_backend_total{{{labels}}}");
    assert_eq!(value(&text, &by_backend), 7.0);
    let ended = format!("ringway_sessions_ended_total{{{labels},reason=\"idle\"}}");
    assert_eq!(value(&text, &ended), 7.0);
    assert!(!text.contains(r#"reason="age""#), "a reason nobody had, and no fault, is shown");
    assert!(text.contains(r#"reason="idle""#), "{text}");
    assert_eq!(value(&text, r#"ringway_accepted_total{shard="1",path="epoll"}"#), 4.0);
}

#[test]
fn a_histogram_is_cumulative_and_its_count_and_sum_are_right() {
    let board = harness::board(2);
    route(&board, 0, "fix").turn.record(10_000);
    route(&board, 0, "fix").turn.record(15_000);
    route(&board, 1, "fix").turn.record(1_000_000);
    route(&board, 1, "fix").turn.record(20_000_000_000);
    let text = scrape(&board);
    let labels = r#"listener="fix",arm="canary",pool="p",backend="b""#;
    let bucket =
        |le: &str| value(&text, &format!("ringway_turn_seconds_bucket{{{labels},le=\"{le}\"}}"));
    let read = ["0.00001", "0.00002", "0.0005", "0.001", "10", "+Inf"].map(bucket);
    assert_eq!(read, [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]);
    assert_eq!(value(&text, &format!("ringway_turn_seconds_count{{{labels}}}")), 4.0);
    let sum = value(&text, &format!("ringway_turn_seconds_sum{{{labels}}}"));
    assert!((sum - 20.001_025).abs() < 1e-9, "{sum}");
}

#[test]
fn label_values_are_escaped() {
    let board = harness::board(1);
    let why = "a \"quoted\" reason,\nwith C:\\path".to_owned();
    let path = chosen(Kind::Epoll, why);
    board.path.store(Some(Arc::new(path)));
    let text = scrape(&board);
    let escaped = r#"why="a \"quoted\" reason,\nwith C:\\path"} 1"#;
    assert!(text.contains(escaped), "{text}");
}

#[test]
fn the_board_is_shown() {
    let board = harness::board(0);
    board.ready.store(true, Relaxed);
    board.reloads_refused.store(2, Relaxed);
    let text = scrape(&board);
    assert_eq!(value(&text, "ringway_ready"), 1.0);
    assert_eq!(value(&text, "ringway_config_generation"), 1.0);
    assert_eq!(value(&text, r#"ringway_reloads_total{outcome="refused"}"#), 2.0);
    assert_eq!(value(&text, r#"ringway_canary_percent{listener="fix"}"#), 5.0);
}

#[test]
fn what_the_config_names_is_shown_before_anything_happened() {
    let board = harness::board(1);
    let text = scrape(&board);
    for (arm, pool, backend) in [
        ("stable", "stable", "a"),
        ("stable", "stable", ""),
        ("canary", "trial", "a"),
        ("canary", "trial", ""),
    ] {
        let labels = format!(r#"listener="fix",arm="{arm}",pool="{pool}",backend="{backend}""#);
        for name in [
            "sessions",
            "sessions_opened_total",
            "sessions_finished_by_backend_total",
            "connect_failed_total",
        ] {
            assert_eq!(value(&text, &format!("ringway_{name}{{{labels}}}")), 0.0);
        }
        for reason in EndReason::ALL.iter().map(|reason| (reason.whose().is_ours(), reason.label()))
        {
            let series =
                format!("ringway_sessions_ended_total{{{labels},reason=\"{}\"}}", reason.1);
            assert_eq!(text.contains(&series), reason.0, "{series}");
        }
    }
    assert!(
        !text.contains("ringway_turn_seconds"),
        "histograms of nobody would be most of the page"
    );
    assert!(text.contains(r#"reason="connect_refused""#) && !text.contains(r#"reason="drained""#));
    // The first session of a route changes its numbers, and adds no second series.
    let name = RouteName {
        listener: "fix".into(),
        arm: Arm::Stable,
        pool: "stable".into(),
        backend: "a".into(),
    };
    board.shards()[0].tally.route(&name).connect_failed.add(1);
    let text = scrape(&board);
    let series =
        r#"ringway_connect_failed_total{listener="fix",arm="stable",pool="stable",backend="a"}"#;
    assert_eq!((value(&text, series), text.matches(series).count()), (1.0, 1));
}

#[test]
fn which_limit_had_no_place_is_told_and_goes_to_the_next_process() {
    use crate::control::totals::Totals;
    use crate::policy::snapshot::Snapshot;
    let mut config = harness::config();
    config.limits.sessions_max = 3;
    config.listeners[0].sessions_max = 2;
    let first = Snapshot::new(config.clone(), None);
    let enter = |snapshot: &Snapshot| {
        snapshot.enter(0).inspect_err(|limit| snapshot.count_no_place(0, *limit)).is_ok()
    };
    let taken: Vec<bool> = (0..4).map(|_| enter(&first)).collect();
    assert_eq!(taken, [true, true, false, false]);
    config.listeners[0].sessions_max = 3;
    let board = Board::new(Snapshot::new(config, Some(&first)));
    let snapshot = board.snapshot.load_full();
    assert_eq!([enter(&snapshot), enter(&snapshot)], [true, false]);
    let next = harness::board(0);
    next.inherit(Totals::of(&board).record());
    for (board, max) in [(&board, 3.0), (&*next, 10.0)] {
        let text = scrape(board);
        let of =
            |limit| format!("ringway_limit_reached_total{{listener=\"fix\",limit=\"{limit}\"}}");
        assert_eq!(value(&text, &of("listener")), 2.0);
        assert_eq!(value(&text, &of("process")), 1.0);
        assert_eq!(value(&text, "ringway_sessions_max"), max);
        assert_eq!(value(&text, r#"ringway_listener_sessions_max{listener="fix"}"#), max);
    }
}

#[test]
fn the_last_reload_is_told() {
    let board = harness::board(0);
    let told = || {
        let text = scrape(&board);
        let success = value(&text, "ringway_last_reload_successful");
        (success, value(&text, "ringway_last_reload_success_timestamp_seconds"))
    };
    let (success, at) = told();
    assert!(success == 1.0 && at > 1.7e9, "the start counts: {at}");
    board.reloaded(false);
    assert_eq!(told(), (0.0, at), "a refusal changes no time");
    board.reloaded(true);
    assert!(told().0 == 1.0 && told().1 >= at);
    let text = scrape(&board);
    assert_eq!(value(&text, r#"ringway_reloads_total{outcome="applied"}"#), 1.0);
    assert_eq!(value(&text, r#"ringway_reloads_total{outcome="refused"}"#), 1.0);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "measures how long a scrape takes")]
fn a_scrape_of_a_hundred_routes_on_two_shards_is_small_and_quick() {
    let board = harness::board(2);
    for (shard, n) in (0..2).flat_map(|shard| (0..100).map(move |n| (shard, n))) {
        route(&board, shard, &format!("listener-{n}")).opened.add(1);
    }
    let began = std::time::Instant::now();
    let bytes = scrape(&board).len();
    let took = began.elapsed();
    assert!(bytes < 2 << 20, "{bytes} bytes");
    // A hundred times what it takes here: a mistake of order, not a slow machine, fails this.
    assert!(took.as_millis() < 1000, "{took:?}");
    println!("{bytes} bytes in {took:?}");
}
