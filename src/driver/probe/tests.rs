use super::refusal::Failure;
use super::*;

fn all_work() -> Outcomes {
    Feature::ALL.into_iter().map(|feature| (feature, Ok("works".to_owned()))).collect()
}

fn failing(feature: Feature, errno: i32) -> Outcomes {
    let failure = Failure { what: "trial".into(), errno: Some(errno) };
    let mut outcomes = all_work();
    outcomes.retain(|(tried, _)| *tried != feature);
    outcomes.push((feature, Err(failure)));
    outcomes
}

fn report(kernel: &str, outcomes: Outcomes) -> Report {
    Report::new(kernel.to_owned(), Circumstances::default(), outcomes)
}

#[test]
fn a_needed_feature_that_fails_makes_it_unusable_and_says_why() {
    let report = report("6.18.1", failing(Feature::BufferRing, libc::EINVAL));
    let refusals = report.usable().expect_err("the buffer ring is needed");
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0].feature, Feature::BufferRing);
    assert!(report.to_string().contains("NO  provided-buffer ring"), "{report}");
}

#[test]
fn a_feature_with_another_way_does_not() {
    let report = report("6.18.1", failing(Feature::RecvCredit, libc::EINVAL));
    assert_eq!(report.usable(), Ok(()));
    assert!(!report.has(Feature::RecvCredit));
    assert_eq!(report.advisable(), Ok(()));
}

#[test]
fn what_was_not_tried_is_not_there() {
    let failure = Failure { what: "io_uring_setup".into(), errno: Some(libc::EPERM) };
    let report = report("6.18.1", vec![(Feature::Ring, Err(failure))]);
    assert_eq!(report.found().len(), Feature::ALL.len());
    assert_eq!(report.usable().expect_err("no ring").len(), 1, "only what was tried is refused");
    assert!(!report.has(Feature::SendWhole));
}

#[test]
fn without_trials_nothing_is_usable() {
    assert_eq!(report("6.18.1", Vec::new()).usable(), Err(Vec::new()));
}

#[test]
fn auto_wants_more_than_trials_that_pass() {
    assert_eq!(report("6.12.57+deb13-amd64", all_work()).advisable(), Ok(()));
    let old = report("6.6.30", all_work());
    assert_eq!(old.usable(), Ok(()));
    assert!(old.advisable().expect_err("before 6.12").contains("6.6.30"));
    let nameless = report("custom", all_work());
    assert!(nameless.advisable().expect_err("no version").contains("`custom`"));
}

#[test]
fn json_carries_the_verdict_and_every_feature() {
    let text = report("6.6.30", failing(Feature::Ring, libc::EPERM)).to_json();
    let json: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(json["usable"], false);
    assert_eq!(json["found"].as_array().map(Vec::len), Some(Feature::ALL.len()));
    assert_eq!(json["found"][0]["feature"], "ring");
    assert_eq!(json["found"][0]["refusal"]["errno"], libc::EPERM);
    assert_eq!(json["known_bad"][0]["severity"], "avoid");
}

/// Proves nothing, and says so, where a sandbox forbids io_uring; elsewhere every needed trial must pass.
#[test]
fn this_machine_allows_io_uring() {
    let report = probe();
    let errno = report.found()[0].refusal.as_ref().and_then(|refusal| refusal.errno);
    if matches!(errno, Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) {
        eprintln!("not proved here: {report}");
        return;
    }
    assert_eq!(report.usable(), Ok(()), "{report}");
    if Version::parse(&report.kernel) >= Some(Version(6, 17, 0)) {
        assert!(report.has(Feature::RecvCredit), "{report}");
    }
}

#[test]
fn it_takes_down_what_it_set_up() {
    let open = || std::fs::read_dir("/proc/thread-self/fd").map_or(0, Iterator::count);
    let (before, _, after) = std::thread::spawn(move || {
        // A table of descriptors of its own, so that other tests' do not count.
        // SAFETY: unshare(2) of the descriptor table copies it for this thread and touches no memory.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        (open(), probe(), open())
    })
    .join()
    .expect("the probe does not panic");
    assert_eq!(before, after);
}

/// A filter like a container's, on one thread of this process.
fn under_a_filter(answer: i32) -> Report {
    std::thread::spawn(move || {
        forbid_io_uring(answer);
        probe()
    })
    .join()
    .expect("the probe does not panic")
}

fn forbid_io_uring(answer: i32) {
    const SETUP: u32 = 425; // io_uring_setup, the same on every architecture
    let statement = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).expect("opcodes of the filter language have 16 bits"),
        jt,
        jf,
        k,
    };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0), // the call's number
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SETUP),
        statement(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | answer.cast_unsigned(),
        ),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: both calls bear on this thread alone; the second copies the four statements `filter` points to.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter),
            0
        );
    }
}

#[test]
fn a_sandbox_that_forbids_it_is_named() {
    for answer in [libc::EPERM, libc::ENOSYS] {
        let report = under_a_filter(answer);
        assert_eq!(report.circumstances.filtered, Some(true));
        let refusals = report.usable().expect_err("the filter forbids it");
        assert_eq!(refusals.len(), 1);
        assert_eq!(refusals[0].errno, Some(answer));
        assert!(refusals[0].why.contains("filter"), "{}", refusals[0]);
        assert!(refusals[0].change.contains("io_uring_enter"), "{}", refusals[0]);
    }
}
