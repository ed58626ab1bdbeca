//! The least that carries bytes across a simulated network: what a driver gives for one side goes to the other.

use ringway::config::Tcp;
use ringway::driver::pool::BufferId;
use ringway::driver::sim::{Shared, Sim};
use ringway::driver::{Arm, Completion, Driver, Key, ListenerId, Received, Side, Socket};
use std::collections::VecDeque;

/// A receive that stays armed, as a shard's does; for more than any case sends.
const ARM: Arm = Arm::Multi(1 << 30);

/// A session without any care: it knows no faults, no limits and no timers.
struct Wire {
    client: Socket,
    backend: Socket,
    /// What each side is still to be sent, by the side's number; the first is under way.
    queues: [VecDeque<BufferId>; 2],
    /// Sides that have finished.
    finished: [bool; 2],
}

impl Wire {
    const fn socket(&self, side: Side) -> &Socket {
        match side {
            Side::Client => &self.client,
            Side::Backend => &self.backend,
        }
    }

    fn is_over(&self) -> bool {
        self.finished == [true; 2] && self.queues.iter().all(VecDeque::is_empty)
    }
}

/// Carries all sessions of a world to their end. How many there were.
pub(crate) fn run((world, mut driver): (Shared, Sim)) -> usize {
    let address = crate::BACKEND.parse().expect("an address");
    let listens = world.borrow_mut().listen(ListenerId(0), 1024);
    driver.accept(ListenerId(0), &listens);
    let (mut wires, mut over) = (Vec::<Wire>::new(), 0);
    while wires.is_empty() || over < wires.len() {
        driver.turn(None).expect("the simulated driver does not fail");
        while let Some(completion) = driver.next() {
            match completion {
                Completion::Accepted { result, .. } => {
                    let client = result.expect("nothing goes wrong here");
                    let slot = u32::try_from(wires.len()).expect("a few sessions");
                    let key = Key { slot, generation: 0 };
                    let backend =
                        driver.socket(address, &Tcp::PLAIN).expect("nothing goes wrong here");
                    driver.attach(key, Side::Client, &client).expect("nothing goes wrong here");
                    driver.attach(key, Side::Backend, &backend).expect("nothing goes wrong here");
                    driver.connect(key, &backend, address);
                    let (queues, finished) = (<[VecDeque<BufferId>; 2]>::default(), [false; 2]);
                    wires.push(Wire { client, backend, queues, finished });
                }
                Completion::Connected { key, .. } => {
                    let wire = &wires[key.slot as usize];
                    for side in Side::BOTH {
                        driver.arm_recv(key, side, wire.socket(side), ARM);
                    }
                }
                Completion::Received { key, side, what: Received::Bytes(buffer), more } => {
                    let (wire, to) = (&mut wires[key.slot as usize], side.other());
                    wire.queues[to as usize].push_back(buffer);
                    if wire.queues[to as usize].len() == 1 {
                        driver.send(key, to, wire.socket(to), buffer);
                    }
                    if !more {
                        driver.arm_recv(key, side, wire.socket(side), ARM);
                    }
                }
                Completion::Received { key, side, .. } => {
                    let wire = &mut wires[key.slot as usize];
                    wire.finished[side as usize] = true;
                    // It fails where the other end has left, and then it needs no telling.
                    let _ = driver.finish(wire.socket(side.other()));
                    over += usize::from(wire.is_over());
                }
                Completion::Sent { key, side, .. } => {
                    let wire = &mut wires[key.slot as usize];
                    if let Some(sent) = wire.queues[side as usize].pop_front() {
                        driver.pool().give_back(sent);
                    }
                    if let Some(&next) = wire.queues[side as usize].front() {
                        driver.send(key, side, wire.socket(side), next);
                    }
                    over += usize::from(wire.is_over());
                }
                Completion::Woken | Completion::Polled { .. } => {}
            }
        }
    }
    wires.len()
}
