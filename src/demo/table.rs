//! The live table: what a [`View`] looks like, as text. Pure; [`super::run`] prints it.

use std::fmt::Write;

/// One second of the demo, as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Seconds since the start.
    pub elapsed_s: u64,
    /// Requests answered in the last second.
    pub orders_per_s: u64,
    /// Half of the last second's turns took no longer, in microseconds; `None` where there were none.
    pub p50_us: Option<f64>,
    /// 99 of 100 of the last second's turns took no longer, in microseconds.
    pub p99_us: Option<f64>,
    /// Requests answered since the start.
    pub answered: u64,
    /// Those of them that were rejected.
    pub rejected: u64,
    /// What should not have happened, since the start.
    pub errors: u64,
    /// The last of it.
    pub last_error: Option<String>,
    /// Stable and canary.
    pub arms: Vec<ArmRow>,
    /// The data path of new sessions, and why; `None` while none is chosen.
    pub path: Option<(&'static str, String)>,
}

/// One arm's row.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmRow {
    /// Its word.
    pub label: &'static str,
    /// The share of new sessions it was promised, in percent.
    pub wanted_percent: f64,
    /// Its share of the sessions that were opened lately, in percent; `None` where there were none.
    pub share_percent: Option<f64>,
    /// Sessions open now.
    pub open: u64,
    /// Sessions opened since the start.
    pub opened: u64,
    /// Requests its engine handled in the last second.
    pub orders_per_s: u64,
}

/// How far back a share looks, in seconds: enough sessions to be exact, few enough to follow a change.
pub const SHARE_WINDOW_S: usize = 10;

/// The table for a terminal, as lines that each end.
#[must_use]
pub fn table(view: &View) -> String {
    let mut out = String::new();
    let (path, why) = path_of(view);
    let line = &mut |text: std::fmt::Arguments<'_>| {
        writeln!(out, "{}", text.to_string().trim_end()).expect("a String takes everything");
    };
    line(format_args!("data path  {path}: {why}"));
    line(format_args!(
        "orders/s   {:<10} answered {}, rejected {}, errors {}",
        view.orders_per_s, view.answered, view.rejected, view.errors
    ));
    line(format_args!(
        "turn time  p50 {} us, p99 {} us",
        whole(view.p50_us, 0),
        whole(view.p99_us, 0)
    ));
    line(format_args!(
        "{:<10} {:>9} {:>12} {:>8} {:>8} {:>10}",
        "arm",
        "wanted %",
        format!("last {SHARE_WINDOW_S} s %"),
        "open",
        "opened",
        "orders/s"
    ));
    for arm in &view.arms {
        line(format_args!(
            "{:<10} {:>9.2} {:>12} {:>8} {:>8} {:>10}",
            arm.label,
            arm.wanted_percent,
            whole(arm.share_percent, 1),
            arm.open,
            arm.opened,
            arm.orders_per_s
        ));
    }
    line(format_args!(
        "{} s{}",
        view.elapsed_s,
        view.last_error.iter().map(|e| format!("; last error: {e}")).collect::<String>()
    ));
    out
}

/// The same as one line without its end, for a file or a pipe.
#[must_use]
pub fn line(view: &View) -> String {
    let (path, why) = path_of(view);
    let mut out = format!(
        "t={}s orders/s={} p50_us={} p99_us={} rejected={} errors={}",
        view.elapsed_s,
        view.orders_per_s,
        whole(view.p50_us, 0),
        whole(view.p99_us, 0),
        view.rejected,
        view.errors
    );
    for arm in &view.arms {
        let share = whole(arm.share_percent, 1);
        write!(
            out,
            " {}: open={} opened={} share={share}% of {:.2}%",
            arm.label, arm.open, arm.opened, arm.wanted_percent
        )
        .expect("a String takes everything");
    }
    write!(out, " path={path} ({why})").expect("a String takes everything");
    if let Some(error) = &view.last_error {
        write!(out, " last error: {error}").expect("a String takes everything");
    }
    out
}

/// What makes a terminal show `table` where it shows `lines_before` lines of the one before.
///
/// Lines too long for the terminal are cut by it: were they wrapped, the next table would not find its place.
#[must_use]
pub fn in_place(table: &str, lines_before: usize) -> String {
    let up = if lines_before == 0 { String::new() } else { format!("\x1b[{lines_before}A") };
    format!("{up}\x1b[?7l\x1b[J{table}\x1b[?7h")
}

fn path_of(view: &View) -> (&str, &str) {
    view.path.as_ref().map_or(("none", "no shard serves yet"), |(path, why)| (path, why))
}

fn whole(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            elapsed_s: 12,
            orders_per_s: 7421,
            p50_us: Some(84.4),
            p99_us: Some(310.6),
            answered: 89_012,
            rejected: 211,
            errors: 0,
            last_error: None,
            arms: vec![
                ArmRow {
                    label: "stable",
                    wanted_percent: 90.0,
                    share_percent: Some(89.96),
                    open: 14,
                    opened: 108,
                    orders_per_s: 6680,
                },
                ArmRow {
                    label: "canary",
                    wanted_percent: 10.0,
                    share_percent: Some(10.04),
                    open: 2,
                    opened: 12,
                    orders_per_s: 741,
                },
            ],
            path: Some(("uring", "the probe passed".into())),
        }
    }

    #[test]
    fn the_table_shows_all_of_it() {
        let wanted = "\
data path  uring: the probe passed
orders/s   7421       answered 89012, rejected 211, errors 0
turn time  p50 84 us, p99 311 us
arm         wanted %  last 10 s %     open   opened   orders/s
stable         90.00         90.0       14      108       6680
canary         10.00         10.0        2       12        741
12 s
";
        assert_eq!(table(&view()), wanted);
    }

    #[test]
    fn the_line_shows_all_of_it() {
        assert_eq!(
            line(&view()),
            "t=12s orders/s=7421 p50_us=84 p99_us=311 rejected=211 errors=0 \
             stable: open=14 opened=108 share=90.0% of 90.00% \
             canary: open=2 opened=12 share=10.0% of 10.00% path=uring (the probe passed)"
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_the_last_error_is_told() {
        let mut view = view();
        view.p50_us = None;
        view.path = None;
        view.arms[1].share_percent = None;
        view.last_error = Some("no answer within 1000 ms".into());
        let shown = table(&view);
        assert!(shown.contains("p50 - us"), "{shown}");
        assert!(shown.contains("none: no shard serves yet"), "{shown}");
        assert!(shown.ends_with("12 s; last error: no answer within 1000 ms\n"), "{shown}");
        assert!(line(&view).contains("share=-%"), "{}", line(&view));
        assert!(line(&view).ends_with("last error: no answer within 1000 ms"));
    }

    #[test]
    fn the_next_table_takes_the_place_of_the_one_before() {
        assert_eq!(in_place("a\nb\n", 0), "\x1b[?7l\x1b[Ja\nb\n\x1b[?7h");
        assert!(in_place("a\nb\n", 2).starts_with("\x1b[2A"));
    }
}
