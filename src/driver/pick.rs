//! Which driver carries the sessions, and why: the one place that chooses.

use super::epoll::Epoll;
use super::probe::{Report, kernels, refusal};
use super::uring::Uring;
use super::{Driver, Kind};
use crate::config::DataPath;
use std::io;

/// The driver for `wanted` on the machine that `report` describes, and why, in a sentence for the log.
///
/// `auto` takes io_uring where it is usable and nothing is known against the kernel, and epoll everywhere else.
///
/// # Errors
/// io_uring was asked for by name and is refused: why, and what to do. Falling back to epoll then would leave an
/// operator believing what is not so.
pub fn pick(wanted: DataPath, report: &Report) -> Result<(Kind, String), String> {
    match wanted {
        DataPath::Epoll => Ok((Kind::Epoll, "epoll was asked for".to_owned())),
        DataPath::Auto => Ok(match report.advisable() {
            Ok(()) => {
                (Kind::Uring, format!("kernel {} passed every trial of io_uring", report.kernel))
            }
            Err(why) => (Kind::Epoll, format!("epoll in place of io_uring: {why}")),
        }),
        DataPath::Uring => match report.usable() {
            Ok(()) => Ok((Kind::Uring, asked_for(report))),
            Err(refusals) => Err(format!(
                "io_uring was asked for, and this machine refuses it: {} Or ask for `{}`, which takes epoll here.",
                refusal::sentence(&refusals),
                DataPath::Auto.label()
            )),
        },
    }
}

/// A driver of this kind, for who does not care which it is: a shard is made for one and costs no table of calls.
/// `credit`: as for [`Uring::new`].
///
/// # Errors
/// What the kernel says, where it refuses one.
pub fn start(
    kind: Kind,
    buffers: u16,
    buffer_bytes: u32,
    credit: bool,
) -> io::Result<Box<dyn Driver>> {
    Ok(match kind {
        Kind::Uring => Box::new(Uring::new(buffers, buffer_bytes, credit)?),
        Kind::Epoll | Kind::Sim => Box::new(Epoll::new(buffers, buffer_bytes)?),
    })
}

/// Why io_uring is taken when it was asked for, with what ought to be known about that.
fn asked_for(report: &Report) -> String {
    let why = "io_uring was asked for and every needed trial passed";
    match report.known_bad.iter().find(|bad| bad.severity == kernels::Severity::Avoid) {
        Some(bad) => format!("{why}, though kernel {} is one of {bad}", report.kernel),
        None => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::probe::Feature;
    use crate::driver::probe::refusal::{Circumstances, Failure};

    /// A machine on `kernel` where everything works but `failing`.
    fn machine(kernel: &str, failing: &[Feature]) -> Report {
        let outcome = |feature| match failing.contains(&feature) {
            true => Err(Failure { what: "io_uring_setup".into(), errno: Some(libc::EPERM) }),
            false => Ok("works".to_owned()),
        };
        let outcomes = Feature::ALL.into_iter().map(|f| (f, outcome(f))).collect();
        Report::new(kernel.to_owned(), Circumstances::default(), outcomes)
    }

    fn kind(wanted: DataPath, report: &Report) -> Option<Kind> {
        pick(wanted, report).ok().map(|(kind, _)| kind)
    }

    #[test]
    fn every_wish_on_every_machine() {
        use DataPath::{Auto, Epoll, Uring};
        let table = [
            (machine("6.18.1", &[]), [Kind::Uring, Kind::Uring, Kind::Epoll].map(Some)),
            (machine("6.8.0-45-generic", &[]), [Kind::Epoll, Kind::Uring, Kind::Epoll].map(Some)),
            (machine("6.14.2", &[]), [Kind::Epoll, Kind::Uring, Kind::Epoll].map(Some)),
            (machine("6.13.12", &[]), [Kind::Uring, Kind::Uring, Kind::Epoll].map(Some)),
            (
                machine("6.12.1", &[Feature::RecvCredit, Feature::BusyPoll]),
                [Kind::Uring, Kind::Uring, Kind::Epoll].map(Some),
            ),
            (machine("6.18.1", &[Feature::Ring]), [Some(Kind::Epoll), None, Some(Kind::Epoll)]),
            (
                machine("6.18.1", &[Feature::SendThenRecv]),
                [Some(Kind::Epoll), None, Some(Kind::Epoll)],
            ),
        ];
        for (report, expected) in table {
            let picked = [Auto, Uring, Epoll].map(|wanted| kind(wanted, &report));
            assert_eq!(picked, expected, "{report}");
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        let refused = machine("6.18.1", &[Feature::Ring]);
        let why = pick(DataPath::Uring, &refused).expect_err("the ring is needed");
        for words in ["refuses", "filter", "deploy/README.md", "`auto`"] {
            assert!(why.contains(words), "{why}");
        }
        let (_, why) = pick(DataPath::Auto, &refused).expect("auto never fails");
        assert!(why.contains("filter"), "{why}");
    }

    #[test]
    fn asking_by_name_on_a_suspect_kernel_is_granted_with_a_warning() {
        let (_, why) = pick(DataPath::Uring, &machine("6.6.30", &[])).expect("it is usable");
        assert!(why.contains("6.6.30") && why.contains("1062"), "{why}");
    }
}
