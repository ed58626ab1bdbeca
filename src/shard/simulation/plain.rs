//! Single stories in a world where nothing goes wrong but what they are about.

use super::plan::{Kernel, Plan};
use super::run::Run;
use crate::config::{Hop, Percent, Timeouts, limits};
use crate::driver::sim::{Answer, Fault, Faults, Rate, Script, Step};
use crate::driver::{Errno, Key, Side};
use crate::event::{EndReason, Ended};
use crate::session::glance::State;
use crate::time::Time;

/// One shard, one listener without a canary, and so many clients at once that ask once a millisecond or faster.
fn plan(clients: usize) -> Plan {
    let mut plan = Plan::drawn_from(1);
    plan.faults = Faults::none();
    plan.shards = vec![Kernel { counts_credit: true, plain_calls: true }];
    plan.awake.busy_poll_us = 800;
    plan.config.limits.sessions_max = 1000;
    plan.config.limits.buffer_bytes = 1024;
    plan.config.limits.buffers_per_shard = 256;
    plan.config.limits.high_water_bytes = 4096;
    for listener in &mut plan.config.listeners {
        (listener.canary, listener.canary_percent) = (None, Percent::ZERO);
        (listener.sessions_max, listener.hop) = (1000, Hop::Auto);
        listener.timeouts =
            Timeouts { connect_ms: 1000, half_closed_ms: None, idle_ms: None, age_ms: None };
    }
    for pool in &mut plan.config.pools {
        pool.spare = 0;
        pool.backends.iter_mut().for_each(|backend| backend.weight = 1);
    }
    for backend in &mut plan.backends {
        backend.answers = vec![(Time(0), Answer::Accept { after_ns: 0 })];
        backend.scripts = vec![Script::answers(200, 10)];
    }
    plan.clients.truncate(1);
    plan.clients[0].at = Time(1_000_000_000);
    plan.clients[0].listener = 0;
    plan.clients[0].script = Script::asks(200, 10);
    plan.clients.resize(clients, plan.clients[0].clone());
    plan.orders.clear();
    (plan.heals_ms, plan.all_leave, plan.places) = (1000, true, false);
    plan
}

/// Goes on until so many sessions are open.
fn until_open(run: &mut Run, sessions: usize) -> Vec<Key> {
    for _ in 0..10_000 {
        run.round().map_err(|failure| failure.what).unwrap();
        let shard = run.members[0].shard.as_mut().unwrap();
        let keys = shard.sessions.keys();
        let mut open = |key: &Key| {
            let session = shard.sessions.session(*key);
            session.is_some_and(|session| session.state() == State::Open)
        };
        if keys.iter().filter(|key| open(key)).count() == sessions {
            return keys;
        }
    }
    panic!("the sessions do not open");
}

#[test]
fn clients_that_wait_for_their_turn_take_nobodys_descriptors() {
    let mut plan = plan(16);
    plan.config.limits.sessions_max = 10;
    // Two a session, those of the listeners, and one.
    plan.faults.sockets_max = 2 * 10 + 2 + 1;
    let mut run = Run::new(plan);
    run.through().map_err(|failure| failure.what).unwrap();
    let failed = |ended: &&Ended| ended.why == EndReason::NoDescriptors;
    assert_eq!(run.journal.iter().filter(failed).count(), 0);
    assert_eq!((run.journal.len(), run.members[0].tally.shard.refused_full.get()), (10, 6));
}

#[test]
fn clients_that_left_before_their_turn_keep_no_place() {
    let mut plan = plan(16);
    plan.config.limits.sessions_max = 10;
    for client in &mut plan.clients[..10] {
        client.script = Script(vec![Step::Reset]);
    }
    // All have come before the first is looked at.
    plan.clients[10..].iter_mut().for_each(|client| client.at = Time(1_000_050_000));
    let mut run = Run::new(plan);
    run.through().map_err(|failure| failure.what).unwrap();
    assert_eq!((run.journal.len(), run.members[0].tally.shard.refused_full.get()), (16, 0));
}

#[test]
fn a_rush_of_clients_that_leave_at_once_takes_nobodys_place() {
    let (gone, stay) = (6000, 10);
    let mut plan = plan(gone + stay);
    plan.config.limits.sessions_max = 1500;
    for listener in &mut plan.config.listeners {
        (listener.backlog, listener.sessions_max) = (8192, 1500);
    }
    // Faster than sessions begin, and looked at when they have left.
    for (number, client) in plan.clients.iter_mut().enumerate() {
        client.at = Time(1_000_000_000 + 100 * number as u64);
    }
    for client in &mut plan.clients[..gone] {
        client.script = Script(vec![Step::Wait(200_000), Step::Reset]);
    }
    let mut run = Run::new(plan);
    run.through().map_err(|failure| failure.what).unwrap();
    let refused = run.members[0].tally.shard.refused_full.get();
    assert_eq!((run.journal.len(), refused), (gone + stay, 0));
}

#[test]
fn a_listener_rests_after_errors_that_last_and_says_so_once_a_second() {
    // EPERM, EINVAL, ENOSPC, EMFILE.
    let errors = [1, 22, 28, 24].map(Errno);
    for (error, more) in errors.into_iter().flat_map(|e| [(e, false), (e, true)]) {
        let mut plan = plan(3);
        (plan.faults.accepts_fail, plan.heals_ms) = (Some((error, more)), 2500);
        let mut run = Run::new(plan);
        run.through().map_err(|failure| failure.what).unwrap();
        let shard = &run.members[0].tally.shard;
        let failed = shard.accept_failed_exhausted.get() + shard.accept_failed_other.get();
        assert!((20..=26).contains(&failed), "{error}, {more}: {failed} times in 2.5 s");
        let said = &run.rests;
        assert!((2..=3).contains(&said.len()), "{error}, {more}: {said:?}");
        assert!(said.iter().all(|(_, rest_ms, _)| *rest_ms == limits::ACCEPT_REST_MS), "{said:?}");
        assert!(said.is_sorted_by(|a, b| a.0.plus_ms(1000) <= b.0), "{said:?}");
        assert!((8..=10).contains(&said[1].2), "{error}, {more}: {said:?}");
        assert_eq!(run.journal.len(), 3, "{error}, {more}: all are served afterwards");
    }
}

#[test]
fn a_connection_that_has_reached_itself_is_no_backend() {
    for spare in [0, 4] {
        let mut plan = plan(16);
        plan.faults = plan.faults.with(Fault::OwnEnd, Rate::ALWAYS);
        plan.config.pools.iter_mut().for_each(|pool| pool.spare = spare);
        plan.heals_ms = 5000;
        plan.clients.iter_mut().skip(8).for_each(|client| client.at = Time(9_000_000_000));
        let mut run = Run::new(plan);
        run.through().map_err(|failure| failure.what).unwrap();
        let (refused, served): (Vec<_>, Vec<_>) =
            run.journal.iter().partition(|ended| ended.why == EndReason::ConnectRefused);
        assert_eq!((refused.len(), served.len()), (8, 8), "{spare} ready");
        assert!(refused.iter().all(|ended| ended.up_bytes + ended.down_bytes == 0));
    }
}

#[test]
fn a_client_that_left_before_it_was_accepted_rests_no_listener() {
    let mut plan = plan(16);
    plan.faults = plan.faults.with(Fault::AcceptAborted, Rate::HALF);
    let mut run = Run::new(plan);
    run.through().map_err(|failure| failure.what).unwrap();
    let aborted = run.members[0].tally.shard.accept_failed_other.get();
    assert!(aborted > 0 && run.rests.is_empty(), "{aborted}: {:?}", run.rests);
}

#[test]
fn sessions_that_are_to_be_hot_stay_so_however_many_carry_traffic() {
    let mut plan = plan(12);
    plan.config.listeners.iter_mut().for_each(|listener| listener.hop = Hop::Hot);
    let mut run = Run::new(plan);
    let keys = until_open(&mut run, 12);
    let shard = run.members[0].shard.as_mut().unwrap();
    shard.heat.clear();
    let samples = 2 * limits::HEAT_SAMPLE as usize;
    for key in keys.iter().cycle().take(samples) {
        shard.note_movement(*key, Side::Client);
    }
    let hot = keys.iter().filter(|key| shard.sessions.session(**key).unwrap().is_hot()).count();
    assert_eq!(hot, 12, "of 12");
    run.through().map_err(|failure| failure.what).unwrap();
}

#[test]
fn few_sessions_are_hot_until_many_carry_traffic() {
    let mut run = Run::new(plan(12));
    let keys = until_open(&mut run, 12);
    let shard = run.members[0].shard.as_mut().unwrap();
    shard.cool_all();
    let sample = limits::HEAT_SAMPLE as usize;
    for key in keys[..2].iter().cycle().take(sample) {
        shard.note_movement(*key, Side::Client);
    }
    assert_eq!(shard.hot, keys[..2], "two carry all");
    for key in keys.iter().cycle().take(sample) {
        shard.note_movement(*key, Side::Client);
    }
    assert_eq!(shard.hot, [], "twelve carry it");
    run.through().map_err(|failure| failure.what).unwrap();
}

#[test]
fn hot_sessions_that_have_ended_leave_their_room_to_others() {
    let mut plan = plan(1);
    plan.config.listeners.iter_mut().for_each(|listener| listener.hop = Hop::Hot);
    let mut run = Run::new(plan);
    let live = until_open(&mut run, 1)[0];
    let shard = run.members[0].shard.as_mut().unwrap();
    shard.cool_all();
    let gone = Key { slot: live.slot, generation: live.generation + 1 };
    shard.hot = vec![gone; limits::HOT_FORCED_MAX];
    shard.read_hot();
    shard.note_movement(live, Side::Client);
    assert_eq!(shard.hot, [live]);
    run.through().map_err(|failure| failure.what).unwrap();
}
