//! The contract as tests: what a [`Driver`](super::Driver) is, run on each of the three.
//!
//! A driver's own tests say `contract_tests!(Loopback<TheDriver>);` and implement [`Fresh`](loopback::Fresh) for it;
//! each case becomes a test of that name. The cases speak to the driver through its trait alone, and to far ends
//! through [`Far`], which on a real driver are sockets of the standard library at 127.0.0.1.

#![cfg(test)]
#![allow(clippy::unwrap_used, reason = "a case that cannot go on has failed")]

mod accepting;
mod cancelling;
mod connecting;
mod ending;
mod liar;
pub(crate) mod loopback;
mod plain;
mod receiving;
mod sending;
mod simulated;
mod stage;
mod turning;

use super::sim::Sight;
use super::{Driver, ListenerId, Socket};
use std::net::SocketAddr;

/// The far end of a connection, which a case moves by hand. Nothing here waits.
pub(crate) trait Far {
    /// Writes what there is room for; returns how many bytes that was.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Reads at most `most` bytes of what has come.
    fn read(&mut self, most: usize) -> Sight;
    /// Has nothing more to send.
    fn finish(&mut self);
    /// Resets the connection.
    fn reset(self: Box<Self>);
}

/// A driver and the network around it.
pub(crate) trait Harness: Sized {
    /// The driver.
    type D: Driver;
    /// Whether its clock is the real one, and other threads exist.
    const REAL: bool;
    /// A fresh one. `None`: this kernel does not offer the driver, and there is nothing to test.
    fn new(buffers: u16, buffer_bytes: u32) -> Option<Self>;
    /// The driver.
    fn driver(&mut self) -> &mut Self::D;
    /// The driver, to look at.
    fn driver_ref(&self) -> &Self::D;
    /// A socket that listens.
    fn listen(&mut self, listener: ListenerId) -> Socket;
    /// A client that connects to it.
    fn client(&mut self, listener: ListenerId) -> Box<dyn Far>;
    /// Where a backend accepts.
    fn backend(&mut self) -> SocketAddr;
    /// The far end of a connection that reached it, if one did.
    fn reached(&mut self, address: SocketAddr) -> Option<Box<dyn Far>>;
    /// Where nobody listens.
    fn refusing(&mut self) -> SocketAddr;
    /// Where nobody answers.
    fn hanging(&mut self) -> SocketAddr;
    /// Buffers that are no session's.
    fn buffers_at_rest(&mut self) -> usize;
    /// What the driver still holds, a line each, as far as it can tell.
    fn leftovers(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// The cases, each once: makes their table and the macro that turns them into tests.
macro_rules! cases {
    ($($group:ident: $($name:ident)*;)*) => {
        /// Every case with its name.
        fn all<H: Harness>() -> Vec<(&'static str, fn(&mut stage::Stage<H>))> {
            vec![$($((stringify!($name), $group::$name::<H> as fn(&mut stage::Stage<H>)),)*)*]
        }

        /// Makes each case a test of the driver in `$harness`.
        macro_rules! contract_tests {
            ($harness:ty) => {
                /// The contract, case by case.
                mod contract {
                    use super::*;
                    $($(
                        #[test]
                        fn $name() {
                            $crate::driver::contract::run::<$harness>(stringify!($name));
                        }
                    )*)*
                }
            };
        }
        pub(crate) use contract_tests;
    };
}

cases! {
    accepting: two_clients_come_in_by_one_accept stop_accepting_gives_a_last_word
        a_client_has_an_address a_client_who_left_can_be_closed
        a_connection_to_a_backend_begins_somewhere;
    connecting: a_backend_is_reached a_refusal_is_told a_connect_is_cancelled;
    receiving: once_brings_one_and_is_over multi_stops_at_its_credit bytes_come_in_order
        the_end_comes_after_all_bytes bytes_and_end_at_once a_reset_is_not_an_end
        without_a_buffer_a_receive_ends_and_loses_nothing what_comes_between_two_receives_stays;
    sending: a_send_is_whole_however_slow_the_reader a_send_to_who_reset_fails
        a_receive_follows_its_send a_receive_does_not_follow_a_failed_send
        sends_of_both_sides_do_not_wait_for_each_other;
    cancelling: a_cancelled_receive_says_so_and_takes_nothing a_cancelled_send_says_what_it_took
        a_cancelled_poll_says_so cancelling_what_is_over_does_nothing;
    ending: finish_is_told_after_all_bytes one_side_finishes_the_other_goes_on
        abort_is_a_reset_and_ends_what_is_in_flight abort_at_rest_is_a_reset
        a_socket_moves_to_another_key a_connection_nobody_has_stands_until_it_ends
        a_slot_used_again_hears_nothing_of_before;
    plain: what_is_there_is_read_at_once straight_and_armed_receives_take_turns
        what_there_is_room_for_is_sent_at_once a_wide_step_keeps_order_and_bounds_its_tail
        a_wide_step_says_the_end_after_all_bytes a_wide_step_without_a_buffer_leaves_all
        a_wide_step_tells_which_end_is_broken;
    turning: a_turn_ends_in_time a_poll_tells_what_came the_waker_ends_a_turn;
}

/// Runs one case on a fresh driver.
pub(crate) fn run<H: Harness>(name: &str) {
    let (_, case) = *all::<H>().iter().find(|(it, _)| *it == name).expect("it is a case");
    if let Some(mut stage) = stage::Stage::<H>::open() {
        case(&mut stage);
        stage.end();
    }
}

/// Runs every case, each on a fresh driver.
pub(crate) fn run_all<H: Harness>() {
    for (name, _) in all::<H>() {
        run::<H>(name);
    }
}
