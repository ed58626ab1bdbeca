//! Faults that are put into the code on purpose, each with the property that catches it.

use super::check::Property;
use super::plan::Plan;
use crate::session::sabotage::{self, Mutation};

/// Within how many seeds a fault is caught.
const SEEDS: u64 = 20_000;

/// Each fault, and what catches it first.
const CAUGHT: [(Mutation, &[Property]); 23] = [
    (Mutation::LostWakeUp, &[Property::Starvation, Property::Liveness, Property::Reset]),
    (Mutation::ClosedInFlight, &[Property::Contract]),
    // By the pool itself, or where nothing asserts by what is out at the end.
    (Mutation::DoubleGiveBack, &[Property::Contract, Property::Leak]),
    (Mutation::EndBeforeBytes, &[Property::Contract]),
    (Mutation::CreditIgnored, &[Property::Bound]),
    (Mutation::ResetAsEnd, &[Property::CleanEnd, Property::Bytes]),
    (Mutation::StarvedForgotten, &[Property::Starvation, Property::Liveness, Property::Reset]),
    (Mutation::TimerNeverSet, &[Property::Deadline]),
    (Mutation::WrongOrder, &[Property::Bytes]),
    (Mutation::CountedTwice, &[Property::Tally]),
    (Mutation::TailLost, &[Property::Bytes]),
    (Mutation::TailDoubled, &[Property::Bytes]),
    (Mutation::EndForgotten, &[Property::Starvation, Property::Liveness, Property::Reset]),
    (Mutation::NeverSpills, &[Property::Starvation]),
    (Mutation::SpillLosesByte, &[Property::Bytes, Property::Bound]),
    (Mutation::DeafWhilePaused, &[Property::Reset]),
    (Mutation::WideTailLost, &[Property::Bytes]),
    (Mutation::HotSentTwice, &[Property::Bytes]),
    (Mutation::ReadWhileArmed, &[Property::Contract]),
    (Mutation::SettlesForever, &[Property::Deadline]),
    (Mutation::MailForgotten, &[Property::Leak, Property::Starvation, Property::Reset]),
    (Mutation::AcceptedForgotten, &[Property::Leak]),
    (Mutation::SparesForgotten, &[Property::Liveness]),
];

#[test]
fn each_fault_is_caught_by_its_property() {
    if super::number("RINGWAY_SEED").is_some() {
        return;
    }
    for (mutation, properties) in CAUGHT {
        let caught = (0..SEEDS).find_map(|seed| {
            let plan = Plan::drawn_from(seed);
            let failure = sabotage::with(mutation, || super::outcome(plan)).err()?;
            Some((seed, failure))
        });
        let (seed, failure) = caught.unwrap_or_else(|| panic!("{mutation:?} is not caught"));
        let what = super::first_line(&failure.what);
        println!("{mutation:?}: seed {seed}, {:?}: {what}", failure.property);
        assert!(
            properties.contains(&failure.property),
            "{mutation:?} was caught by {:?} at seed {seed}: {what}",
            failure.property
        );
    }
}
