//! What becomes of moves where there is room for all.

use super::plan::{Kernel, Plan, Told, When};
use super::run::Run;
use crate::driver::sim::{Fault, Rate};

/// Seeds whose plans are bent to this.
const SEEDS: u64 = 400;

/// Two shards with room for all sessions, which go to and fro, and nothing else is ordered.
fn to_and_fro(seed: u64) -> Plan {
    let mut plan = Plan::drawn_from(seed);
    plan.shards = vec![Kernel { counts_credit: true, plain_calls: seed.is_multiple_of(2) }; 2];
    plan.faults.sockets_max = 10_000;
    // What makes moves fail that could be made.
    for fault in [Fault::LateCancel, Fault::Freeze, Fault::AttachFails, Fault::NoBuffers] {
        plan.faults = plan.faults.with(fault, Rate::NEVER);
    }
    // So that something can happen while a session comes to rest.
    plan.faults = plan.faults.with(Fault::LateCompletion, Rate::HALF);
    plan.config.limits.buffers_per_shard = 4096;
    plan.config.limits.sessions_max = 1000;
    plan.orders = (0..100)
        .flat_map(|n| {
            let (from, to) = [(0, 1), (1, 0)][n % 2];
            let when = When::Round(20 + 9 * n as u64);
            let stays = Told::Evict { from: to, to: None };
            [(when, stays), (when, Told::Evict { from, to: Some(to) })]
        })
        .collect();
    plan
}

#[test]
fn a_session_that_ends_while_it_comes_to_rest_is_no_failed_move() {
    let (mut out, mut failed) = (0, vec![]);
    for seed in 0..SEEDS {
        let mut run = Run::new(to_and_fro(seed));
        if let Err(failure) = run.through() {
            panic!("seed {seed}: {:?}: {}", failure.property, failure.what);
        }
        let of_shards = run.members.iter().map(|member| &member.tally.shard);
        out += of_shards.clone().map(|shard| shard.moves_out.get()).sum::<u64>();
        let count = of_shards.map(|shard| shard.moves_failed.get()).sum::<u64>();
        failed.extend((count > 0).then_some((seed, count)));
    }
    assert!(out > 10 * SEEDS, "{out} went");
    assert_eq!(failed, [], "(seed, moves that failed)");
}
