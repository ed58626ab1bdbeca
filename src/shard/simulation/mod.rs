//! Shards as they ship, in simulated networks: a seed draws the network's faults, the ends, the config and control's
//! orders, and [`Property`] names what has to hold.
//!
//! `RINGWAY_SEED=417 cargo test simulation` replays one seed and prints what happened.
//! `cargo test --release --lib -- --ignored --nocapture million_seeds` runs `RINGWAY_SEEDS` seeds (a million) from
//! `RINGWAY_SEED_FROM` on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod check;
mod mood;
mod moves;
mod mutations;
mod plain;
mod plan;
mod run;

use check::{Failure, Property};
use plan::Plan;
use run::Run;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Seeds of each `cargo test`.
const SEEDS: u64 = 3000;
/// Seeds that found something in this code or in an earlier form of it, whose plans may have been drawn otherwise.
const FOUND: [u64; 16] = [
    11_896, 14_867, 18_232, 18_952, 20_123, 30_191, 41_846, 58_090, 79_493, 135_523, 158_767,
    169_377, 701_737, 717_940, 909_350, 1_092_438,
];

/// Runs a plan; what it did, as a number.
fn outcome(plan: Plan) -> Result<u64, Failure> {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new(plan);
        run.through()?;
        let digest = run.world.borrow().digest();
        Ok(digest)
    }));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let what = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Failure { property: Property::Contract, what, trace: String::new() })
    })
}

/// The same failure with as little as can be.
fn shrunk(mut plan: Plan, mut failure: Failure) -> (Plan, Failure) {
    let mut tries = 400;
    'smaller: loop {
        for smaller in plan.smaller() {
            tries -= 1;
            if tries == 0 {
                return (plan, failure);
            }
            if let Err(same) = outcome(smaller.clone())
                && same.property == failure.property
            {
                (plan, failure) = (smaller, same);
                continue 'smaller;
            }
        }
        return (plan, failure);
    }
}

/// What a person needs to know of a failure.
fn report(seed: u64, failure: Failure) -> String {
    let first = format!("{:?}: {}", failure.property, first_line(&failure.what));
    let (plan, failure) = shrunk(Plan::drawn_from(seed), failure);
    let Failure { property, what, trace } = failure;
    format!(
        "seed {seed}: {first}\nmade smaller:\n{plan}{trace}{property:?}: {what}\n\
         replay it: RINGWAY_SEED={seed} cargo test simulation"
    )
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn say(text: &str) {
    // Past the capture of tests: it is what was asked for.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Replays the seed that was asked for, if one was.
fn replayed() -> bool {
    let Some(seed) = number("RINGWAY_SEED") else { return false };
    let plan = Plan::drawn_from(seed);
    say(&format!("seed {seed}:\n{plan}"));
    let mut run = Run::new(plan.clone());
    let ran = catch_unwind(AssertUnwindSafe(|| run.through()));
    say(&run.world.borrow().trace());
    match ran {
        Ok(Ok(())) => say("every property holds"),
        _ => panic!("{}", report(seed, outcome(plan).expect_err("it failed just now"))),
    }
    true
}

#[test]
fn every_property_holds_for_thousands_of_seeds() {
    if replayed() {
        return;
    }
    let mut failed = Vec::new();
    for seed in FOUND.into_iter().chain(0..SEEDS) {
        if let Err(failure) = outcome(Plan::drawn_from(seed)) {
            failed.push((seed, failure));
        }
    }
    if let Some((seed, failure)) = failed.first().cloned() {
        for (seed, failure) in &failed {
            println!("seed {seed}: {:?}: {}", failure.property, first_line(&failure.what));
        }
        panic!("{} seeds fail, the first: {}", failed.len(), report(seed, failure));
    }
}

#[test]
fn a_seed_does_the_same_twice() {
    for seed in 0..50 {
        let digest = || outcome(Plan::drawn_from(seed)).map_err(|failure| failure.property);
        assert_eq!(digest(), digest(), "{:?}: seed {seed}", Property::Replay);
    }
}

#[test]
#[ignore = "a million seeds take minutes: cargo test --release --lib -- --ignored --nocapture million_seeds"]
fn every_property_holds_for_a_million_seeds() {
    let from = number("RINGWAY_SEED_FROM").unwrap_or(0);
    let seeds = number("RINGWAY_SEEDS").unwrap_or(1_000_000);
    let next = AtomicU64::new(from);
    let failed = std::sync::Mutex::new(Vec::new());
    let began = crate::driver::sys::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= from + seeds || failed.lock().unwrap().len() >= 20 {
                return;
            }
            if let Err(failure) = outcome(Plan::drawn_from(seed)) {
                say(&format!("seed {seed}: {:?}: {}", failure.property, first_line(&failure.what)));
                failed.lock().unwrap().push((seed, failure));
            }
            let done = seed + 1 - from;
            if done.is_multiple_of(50_000) {
                let ms = crate::driver::sys::now().since_ns(began) / 1_000_000;
                say(&format!("{done} seeds in {}.{:03} s", ms / 1000, ms % 1000));
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        other.join().unwrap();
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by_key(|(seed, _)| *seed);
    if let Some((seed, failure)) = failed.first().cloned() {
        panic!("{} seeds fail, the first: {}", failed.len(), report(seed, failure));
    }
}

#[test]
fn plans_reach_plain_calls() {
    let mut all = [0_u64; 5];
    for seed in 0..SEEDS {
        let mut run = Run::new(Plan::drawn_from(seed));
        let _ = catch_unwind(AssertUnwindSafe(|| run.through()));
        let plain = run.world.borrow().plain();
        let counts = [plain.reads, plain.sends, plain.steps, plain.tails, plain.left];
        all.iter_mut().zip(counts).for_each(|(all, n)| *all += u64::from(n > 0));
    }
    println!("seeds with reads, sends, steps, tails, bytes left: {all:?} of {SEEDS}");
    assert!(all.iter().all(|n| *n >= 10), "{all:?} of {SEEDS}");
}

#[test]
fn plans_reach_spares() {
    let mut all = [0_u64; 6];
    for seed in 0..SEEDS {
        let mut run = Run::new(Plan::drawn_from(seed));
        let _ = catch_unwind(AssertUnwindSafe(|| run.through()));
        for tally in run.members.iter().map(|member| &member.tally.shard) {
            let counts = check::spares_gone(tally).into_iter().chain([&tally.spares_failed]);
            all.iter_mut().zip(counts).for_each(|(all, n)| *all += n.get().min(1));
        }
    }
    println!("shards with spares taken, ended, aged, unwanted, short, failed: {all:?}");
    assert!(all.iter().all(|n| *n >= 10), "{all:?} of {SEEDS} seeds");
}
