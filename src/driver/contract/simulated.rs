//! The contract on the simulated driver: without faults, and under those that a contract's cases can bear.

use super::{Far, Harness};
use crate::driver::sim::{
    Answer, Backend, Fate, Fault, Faults, Hand, Rate, Role, Shared, Sight, Sim, World,
};
use crate::driver::{ListenerId, Socket};
use std::cell::Cell;
use std::net::SocketAddr;

thread_local! {
    /// The seed of the next world, and whether it has faults.
    pub(super) static CLIMATE: Cell<(u64, bool)> = const { Cell::new((0, false)) };
}

/// A simulated driver alone in its world.
pub(super) struct Simulated {
    world: Shared,
    driver: Sim,
    /// Connections to backends that were handed out.
    handed: usize,
}

impl Far for Hand {
    fn write(&mut self, bytes: &[u8]) -> usize {
        Self::write(self, bytes)
    }

    fn read(&mut self, most: usize) -> Sight {
        Self::read(self, most)
    }

    fn finish(&mut self) {
        Self::finish(self);
    }

    fn reset(self: Box<Self>) {
        Self::reset(&self);
    }
}

const BACKEND: ([u8; 4], u16) = ([127, 0, 1, 1], 7001);
const HANGING: ([u8; 4], u16) = ([127, 0, 1, 2], 7001);
const REFUSING: ([u8; 4], u16) = ([127, 0, 1, 3], 7001);

impl Harness for Simulated {
    type D = Sim;
    const REAL: bool = false;

    fn new(buffers: u16, buffer_bytes: u32) -> Option<Self> {
        let (seed, faulty) = CLIMATE.get();
        let mut faults = Faults::none();
        if faulty {
            for fault in [
                Fault::ShortReceive,
                Fault::ShortSend,
                Fault::SplitArrival,
                Fault::LateArrival,
                Fault::LateCompletion,
                Fault::ReceiveEnds,
                Fault::CancelLoses,
            ] {
                faults = faults.with(fault, Rate::one_in(2 + seed % 7));
            }
        }
        let world = World::new(seed, faults);
        world.borrow_mut().backend(Backend::accepting(BACKEND.into(), vec![]));
        let hangs = Backend::always(HANGING.into(), Answer::Hang, vec![]);
        world.borrow_mut().backend(hangs);
        let mut driver = Sim::new(&world, buffers, buffer_bytes);
        driver.set_plain_calls(true);
        if !faulty {
            driver.set_counts_credit(true);
        }
        Some(Self { world, driver, handed: 0 })
    }

    fn driver(&mut self) -> &mut Sim {
        &mut self.driver
    }

    fn driver_ref(&self) -> &Sim {
        &self.driver
    }

    fn listen(&mut self, listener: ListenerId) -> Socket {
        self.world.borrow_mut().listen(listener, 8)
    }

    fn client(&mut self, listener: ListenerId) -> Box<dyn Far> {
        Box::new(Hand::client(&self.world, listener))
    }

    fn backend(&mut self) -> SocketAddr {
        BACKEND.into()
    }

    fn reached(&mut self, address: SocketAddr) -> Option<Box<dyn Far>> {
        let reached = |role, fate| role == Role::Backend(address) && fate == Fate::Established;
        let world = self.world.borrow();
        let new = world.records().filter(|it| reached(it.role, it.fate)).nth(self.handed)?.id;
        drop(world);
        self.handed += 1;
        Some(Box::new(Hand::take(&self.world, new)))
    }

    fn refusing(&mut self) -> SocketAddr {
        REFUSING.into()
    }

    fn hanging(&mut self) -> SocketAddr {
        HANGING.into()
    }

    fn buffers_at_rest(&mut self) -> usize {
        use crate::driver::Driver;
        self.driver.pool().free()
    }

    fn leftovers(&mut self) -> Vec<String> {
        self.driver.leaks()
    }
}

super::contract_tests!(Simulated);

#[test]
fn the_contract_holds_in_bad_weather() {
    for seed in 1..12 {
        CLIMATE.set((seed, true));
        for (name, _) in super::all::<Simulated>() {
            // It counts on its silence.
            if name != "a_turn_ends_in_time" {
                println!("seed {seed}: {name}");
                super::run::<Simulated>(name);
            }
        }
    }
}
