//! What a bench prints: a table a case, the gates and what follows from them. Pure; [`super::run`] prints it.

use super::cases::{CASES, Case, Measure, Plan, Row};
use super::gates::{self, Better, GATES_WANTED, ROUNDS_SURE, Ratio, Verdict};
use super::idle::{Idle, Sleeper};
use std::fmt::Write as _;

/// A measured case: what came of it, and by which of its contenders the ratios are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Result {
    /// What was measured.
    pub(super) case: Case,
    /// By contender.
    pub(super) rows: Vec<Row>,
}

/// What must be better by how much for a data path to be worth it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Gate {
    /// Its name.
    name: &'static str,
    /// Where it is read: case and measure.
    case: &'static str,
    measure: Measure,
    percent: f64,
}

/// The gates of io_uring against epoll.
const GATES: [Gate; 5] = [
    Gate { name: "latency", case: "ping", measure: Measure::P50, percent: 10.0 },
    Gate { name: "throughput", case: "turns64", measure: Measure::Rate, percent: 20.0 },
    Gate { name: "p95", case: "turns64", measure: Measure::P95, percent: 15.0 },
    Gate { name: "messages", case: "messages", measure: Measure::Rate, percent: 25.0 },
    Gate { name: "CPU", case: "turns64", measure: Measure::Cpu, percent: 15.0 },
];
/// The CPU of a shard that may be spent on sessions that say nothing, in low-latency mode.
const IDLE_CPU: f64 = 0.01;
/// The part of a CPU that others may take before it is warned of.
const QUIET: f64 = 0.05;

impl Result {
    /// How the contender at `at` compares to the first, by this measure.
    fn ratio(&self, at: usize, measure: Measure) -> Option<Ratio> {
        gates::ratio(&self.rows.get(at)?.get(measure), &self.rows.first()?.get(measure))
    }

    /// The case as a table, its first contender being what the others are compared to.
    pub(super) fn table(&self, plan: Plan) -> String {
        let Plan { slice_ns, rounds } = plan;
        let mut out = format!("\n== {}; {rounds} x {} ms each\n", self.case.title, ms(slice_ns));
        let reference = self.rows.first().map_or("", |row| &row.name);
        head(&mut out, reference);
        for &measure in self.case.shows {
            let rows: Vec<(&str, Vec<f64>)> =
                self.rows.iter().map(|row| (row.name.as_str(), row.get(measure))).collect();
            lines(&mut out, &measure.label(&self.case), &rows);
        }
        put(&mut out, format_args!("busy: {}", self.busy()));
        out
    }

    /// How busy proxies and load were: where the load is busier than the proxy, rates say less than CPU does.
    fn busy(&self) -> String {
        let middle = |values: Vec<f64>| gates::median(&values).unwrap_or(0.0) * 100.0;
        let of = |row: &Row| {
            let proxy = middle(row.samples.iter().map(|sample| sample.proxy_busy).collect());
            let load = middle(row.samples.iter().map(|sample| sample.load_busy).collect());
            format!("{} {proxy:.0} % (load {load:.0} %)", row.name)
        };
        self.rows.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

/// The gates and what follows. In `results` the first contender is epoll, the second io_uring.
pub(super) fn verdicts(results: &[Result]) -> String {
    let mut out = "\n== gates: io_uring against epoll\n".to_owned();
    put(
        &mut out,
        format_args!(
            "{:<12}{:<38}{:>9}{:>10}  {:<16}  {}",
            "", "", "wanted", "ratio", "95 % interval", "verdict"
        ),
    );
    let (mut held, mut open) = (0, 0);
    for gate in GATES {
        let found = results.iter().find(|result| result.case.key == gate.case);
        let ratio = found.and_then(|result| result.ratio(1, gate.measure));
        let better = gate.measure.better();
        let verdict = gates::judge(ratio, better, gate.percent);
        held += usize::from(verdict == Verdict::Yes);
        open += usize::from(verdict == Verdict::Unmeasured);
        let [middle, interval] = shown(ratio, "-");
        let sign = if better == Better::Less { "<=" } else { ">=" };
        put(
            &mut out,
            format_args!(
                "{:<12}{:<38}{:>9}{:>10}  {:<16}  {}",
                gate.name,
                gate.describe(),
                format!("{sign} {:.2}", gates::bound(better, gate.percent)),
                middle,
                interval,
                verdict.label()
            ),
        );
    }
    let (answer, recommended) = match (held, held + open) {
        (GATES_WANTED.., _) => ("yes", "data_path = \"auto\", which takes io_uring"),
        (_, GATES_WANTED..) => ("open", "nothing yet: too few gates were measured; run all cases"),
        _ => ("no", "data_path = \"epoll\": io_uring is not shown to win enough on this machine"),
    };
    put(
        &mut out,
        format_args!(
            "{held} of {} gates hold; io_uring is worth it where any {GATES_WANTED} do: {}",
            GATES.len(),
            answer
        ),
    );
    put(&mut out, format_args!("recommended here: {recommended}"));
    out
}

impl Gate {
    /// Where it is read, in words.
    fn describe(&self) -> String {
        let case = CASES.iter().find(|case| case.key == self.case);
        let label = case.map_or_else(String::new, |case| self.measure.label(case));
        format!("{label} of {}", self.case)
    }
}

/// The idle case as a table, and whether low-latency mode keeps what it promises: it sleeps where nothing moves, and
/// is then no slower than who sleeps anyway.
pub(super) fn idle(found: &Idle) -> String {
    let Idle { sessions, silence_ns, rows } = found;
    let rounds = rows.first().map_or(0, |row| row.first_us.len());
    let mut out = format!(
        "\n== idle: {sessions} sessions of each that say nothing for {} ms, then one turn on one of them; {rounds} x\n",
        ms(*silence_ns)
    );
    head(&mut out, rows.first().map_or("", |row| &row.name));
    let times: Vec<(&str, Vec<f64>)> =
        rows.iter().map(|row| (row.name.as_str(), row.first_us.clone())).collect();
    lines(&mut out, "first turn us", &times);
    for (at, Sleeper { name, low_latency, cpu, .. }) in rows.iter().enumerate() {
        let label = if at == 0 { "CPU while silent" } else { "" };
        let verdict = if *cpu < IDLE_CPU { "yes" } else { "no" };
        let verdict = format!("   under {:.0} %: {verdict}", IDLE_CPU * 100.0);
        let verdict = if *low_latency { &verdict } else { "" };
        put(&mut out, format_args!("{label:<20}{name:<14}{:>10.3} %{verdict}", cpu * 100.0));
    }
    for eager in rows.iter().filter(|row| row.low_latency) {
        for asleep in rows.iter().filter(|row| !row.low_latency) {
            let ratio = gates::ratio(&eager.first_us, &asleep.first_us);
            let [middle, interval] = shown(ratio, "-");
            put(
                &mut out,
                format_args!(
                    "{:<20}{:<14}{:<20}{:>10}  {:<16}  no slower: {}",
                    "first turn of",
                    eager.name,
                    format!("to {}", asleep.name),
                    middle,
                    interval,
                    gates::no_slower(ratio).label()
                ),
            );
        }
    }
    out
}

/// What was taken of a CPU by others than the bench, as parts of the time it ran.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Taken {
    /// Which CPU.
    pub(super) cpu: usize,
    /// By other programs.
    pub(super) others: f64,
    /// By the host, for other guests.
    pub(super) host: f64,
}

/// Who else was there: figures of a machine that is not quiet are of little use, and this says so.
pub(super) fn meanwhile(taken: &[Taken]) -> String {
    let is_loud = taken.iter().any(|taken| taken.others + taken.host > QUIET);
    let of = |taken: &Taken| {
        let Taken { cpu, others, host } = taken;
        format!("{:.0} % of CPU {cpu} (its host {:.0} %)", others * 100.0, host * 100.0)
    };
    let parts: Vec<String> = taken.iter().map(of).collect();
    format!(
        "\n{}other programs took {}{}\n",
        if is_loud { "ATTENTION: " } else { "" },
        parts.join(" and "),
        if is_loud { ": repeat this on a quiet machine" } else { "" }
    )
}

/// How the figures are to be read.
pub(super) fn legend(plan: Plan) -> String {
    let mut out = format!(
        "Contenders take turns of {} ms; ratios are by pairs of rounds, and the interval holds their median\n\
         with 95 % confidence. Where it overlaps a gate the verdict is no: undecided by noise.\n",
        ms(plan.slice_ns)
    );
    if plan.rounds < ROUNDS_SURE {
        put(
            &mut out,
            format_args!(
                "ATTENTION: with fewer than {ROUNDS_SURE} rounds the interval is less sure than 95 %, and no gate \
                 is said to hold."
            ),
        );
    }
    out
}

/// The head of a table whose ratios are to `reference`.
fn head(out: &mut String, reference: &str) {
    put(
        out,
        format_args!(
            "{:<20}{:<14}{:>12}{:>8}{:>10}  {}",
            "",
            "",
            "median",
            "spread",
            "ratio",
            format_args!("95 % interval (to {reference})")
        ),
    );
}

/// One measure in a table: a line for each contender, from what its rounds showed; the first is what the others are
/// compared to.
fn lines(out: &mut String, label: &str, rows: &[(&str, Vec<f64>)]) {
    for (at, (name, rounds)) in rows.iter().enumerate() {
        let values: Vec<f64> = rounds.iter().copied().filter(|value| value.is_finite()).collect();
        let ratio = if at == 0 { None } else { gates::ratio(rounds, &rows[0].1) };
        let [middle, interval] = shown(ratio, "");
        put(
            out,
            format_args!(
                "{:<20}{name:<14}{:>12}{:>8}{:>10}  {}",
                if at == 0 { label } else { "" },
                gates::median(&values).map_or_else(|| "-".into(), number),
                gates::spread(&values)
                    .map_or_else(|| "-".into(), |part| format!("{:.0} %", part * 100.0)),
                middle,
                interval
            ),
        );
    }
}

/// A ratio and its interval, or `none` for both.
fn shown(ratio: Option<Ratio>, none: &str) -> [String; 2] {
    ratio.map_or_else(
        || [none, none].map(str::to_owned),
        |r| [format!("{:.3}", r.median), format!("{:.3}..{:.3}", r.low, r.high)],
    )
}

/// Nanoseconds as milliseconds, short.
fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e4).round() / 100.0
}

/// With about four digits that count.
fn number(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{}", line.to_string().trim_end()).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::super::cases::Sample;
    use super::*;

    fn result(key: &str, epoll: &[f64], uring: &[f64]) -> Result {
        let case = *CASES.iter().find(|case| case.key == key).unwrap();
        let row = |name: &str, values: &[f64]| Row {
            name: name.to_owned(),
            samples: values.iter().map(|value| Sample::of(*value)).collect(),
        };
        Result { case, rows: vec![row("epoll", epoll), row("uring", uring)] }
    }

    /// A sample of which each measure is better with a lower `x`: rates are 1000 / x.
    fn steady(x: f64) -> Vec<f64> {
        vec![x; 10]
    }

    #[test]
    fn two_gates_are_enough_and_one_is_not() {
        // 12 % less time: the latency gate, and no other.
        let one = [result("ping", &steady(1.0), &steady(0.88))];
        let text = verdicts(&one);
        assert!(text.contains("1 of 5 gates hold") && text.contains("do: open\n"), "{text}");
        assert!(text.contains("recommended here: nothing yet"), "{text}");
        assert_eq!(text.matches("no (not measured)").count(), 4, "{text}");
        let even = |key| result(key, &steady(1.0), &steady(1.0));
        let all = [one[0].clone(), even("turns64"), even("messages")];
        let text = verdicts(&all);
        assert!(text.contains("1 of 5 gates hold") && text.contains("do: no\n"), "{text}");
        assert!(text.contains("data_path = \"epoll\""), "{text}");
        // 16 % less: latency here; p95 and CPU there, but not the rate, which grows by 19 %.
        let three = [one[0].clone(), result("turns64", &steady(1.0), &steady(0.84))];
        let text = verdicts(&three);
        assert!(text.contains("3 of 5 gates hold") && text.contains("do: yes\n"), "{text}");
        assert!(text.contains("data_path = \"auto\""), "{text}");
        let throughput = text.lines().find(|line| line.starts_with("throughput")).unwrap();
        assert!(throughput.contains(">= 1.20") && throughput.contains("1.190"), "{throughput}");
        assert!(throughput.ends_with("  no"), "{throughput}");
    }

    #[test]
    fn noise_across_a_gate_is_said() {
        let uring: Vec<f64> = (0..10).map(|n| if n % 2 == 0 { 0.7 } else { 1.1 }).collect();
        let text = verdicts(&[result("ping", &steady(1.0), &uring)]);
        let latency = text.lines().find(|line| line.starts_with("latency")).unwrap();
        assert!(latency.contains("0.700..1.100"), "{latency}");
        assert!(latency.ends_with("no (undecided by noise)"), "{latency}");
    }

    #[test]
    fn a_table_shows_each_measure_of_each_contender() {
        let plan = Plan { slice_ns: 200_000_000, rounds: 10 };
        let table = result("turns16", &steady(2.0), &steady(1.0)).table(plan);
        assert!(table.contains("turns of 64 B, 16 sessions; 10 x 200 ms each"), "{table}");
        assert!(table.contains("(to epoll)"), "{table}");
        let rows: Vec<Vec<&str>> =
            table.lines().skip(3).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["turns/s", "epoll", "500.0", "0", "%"]);
        assert_eq!(rows[1], ["uring", "1000", "0", "%", "2.000", "2.000..2.000"]);
        assert_eq!(rows.len(), 11, "five measures of two, and how busy they were: {table}");
        assert!(table.contains("busy: epoll 50 % (load 25 %), uring 50 % (load 25 %)"), "{table}");
    }

    fn sleeper(name: &str, low_latency: bool, cpu: f64, first_us: &[f64]) -> Sleeper {
        Sleeper { name: name.to_owned(), low_latency, cpu, first_us: first_us.to_vec() }
    }

    #[test]
    fn idle_sessions_may_cost_less_than_a_hundredth() {
        let rows =
            [("uring", false, 0.5), ("uring busy", true, 0.0099), ("epoll busy", true, 0.01)]
                .map(|(name, low_latency, cpu)| sleeper(name, low_latency, cpu, &steady(50.0)));
        let text = idle(&Idle { sessions: 1000, silence_ns: 1_000_000_000, rows: rows.into() });
        assert!(text.contains("1000 sessions of each that say nothing for 1000 ms"), "{text}");
        assert!(text.contains("0.990 %   under 1 %: yes"), "{text}");
        assert!(text.contains("1.000 %   under 1 %: no"), "{text}");
        assert!(text.contains("50.000 %\n"), "only low-latency mode is judged: {text}");
    }

    #[test]
    fn a_first_turn_is_compared_to_that_of_each_who_sleeps() {
        let rows = vec![
            sleeper("ringway", false, 0.0, &steady(50.0)),
            sleeper("haproxy", false, 0.0, &[40.0, 60.0].repeat(5)),
            sleeper("nginx", false, 0.0, &steady(20.0)),
            sleeper("ringway busy", true, 0.0, &steady(50.0)),
        ];
        let text = idle(&Idle { sessions: 1000, silence_ns: 1_000_000_000, rows });
        assert!(text.contains("one of them; 10 x\n") && text.contains("(to ringway)"), "{text}");
        let words = |label: &str| -> Vec<Vec<&str>> {
            let lines = text.lines().filter(|line| line.starts_with(label));
            lines.map(|line| line.split_whitespace().skip(2).collect()).collect()
        };
        assert_eq!(words("first turn us"), [["us", "ringway", "50.00", "0", "%"]]);
        let verdicts: Vec<String> =
            words("first turn of").iter().map(|words| words[1..].join(" ")).collect();
        assert_eq!(
            verdicts,
            [
                "ringway busy to ringway 1.000 1.000..1.000 no slower: yes",
                "ringway busy to haproxy 1.042 0.833..1.250 no slower: yes",
                "ringway busy to nginx 2.500 2.500..2.500 no slower: no",
            ]
        );
    }

    #[test]
    fn a_loud_machine_is_warned_of() {
        let of = |others, host| {
            let quiet = Taken { cpu: 0, others: 0.01, host: 0.0 };
            meanwhile(&[quiet, Taken { cpu: 3, others, host }])
        };
        assert_eq!(
            of(0.02, 0.01),
            "\nother programs took 1 % of CPU 0 (its host 0 %) and 2 % of CPU 3 (its host 1 %)\n"
        );
        assert!(of(0.5, 0.0).starts_with("\nATTENTION: "), "{}", of(0.5, 0.0));
        assert!(of(0.0, 0.2).contains("a quiet machine"), "{}", of(0.0, 0.2));
    }

    #[test]
    fn few_rounds_are_warned_of() {
        let of = |rounds| legend(Plan { slice_ns: 1_000_000, rounds });
        assert!(of(5).contains("ATTENTION") && !of(6).contains("ATTENTION"));
        assert_eq!(
            [0.001, 12.3456, 123.456, 12345.6].map(number),
            ["0.0010", "12.35", "123.5", "12346"]
        );
    }
}
