//! What shards are told, heard by stand-ins in their place.

use super::*;
use crate::config::file;
use crate::driver::Wake;
use crate::shard::mailbox::Mail;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// A fleet of one lane without shards.
fn fleet() -> Fleet {
    let text = "data_path = \"epoll\"\n[shards]\ncount = 1\npin = false\n\
                [listeners.l]\nbind = \"127.0.0.1:0\"\nstable = \"a\"\n[pools.a]\nbackends = [\"127.0.0.1:1\"]\n";
    let config = file::parse(text).unwrap();
    let board = Arc::new(Board::new(Snapshot::new(config.clone(), None)));
    let (causes, journal) = (mpsc::channel().0, mpsc::sync_channel(1).0);
    Fleet::new(board, &config, (false, 1), causes, journal).unwrap()
}

/// A shard that has ended but for its mail.
fn stand_in(fleet: &mut Fleet, kind: Kind) -> (usize, Arc<Load>, mpsc::Receiver<Order>) {
    let id = fleet.next_shard;
    fleet.next_shard += 1;
    let (mail, orders) = Mail::new(Arc::new(Nobody));
    let (load, tally) = (Arc::new(Load::default()), Arc::new(Tally::default()));
    let entry = Arc::new(ShardEntry::new(id, kind, None, tally));
    let thread = std::thread::spawn(|| {});
    fleet.lanes[0].shards.push(Member { entry, load: Arc::clone(&load), mail, thread });
    (id, load, orders)
}

/// Where all sessions are to go, as it was said last. `None`: nothing was said.
fn evicted(orders: &mpsc::Receiver<Order>) -> Option<Option<Neighbour>> {
    let said = orders.try_iter().filter_map(|order| match order {
        Order::Evict(to) => Some(to),
        _ => None,
    });
    said.last()
}

fn goes_to(orders: &mpsc::Receiver<Order>, load: &Arc<Load>) -> bool {
    evicted(orders).flatten().is_some_and(|to| Arc::ptr_eq(&to.load, load))
}

#[test]
fn sessions_on_their_way_are_told_of_the_successor_of_a_shard_that_failed() {
    let mut fleet = fleet();
    let (_, _, from) = stand_in(&mut fleet, Kind::Uring);
    let (heir, load, _mail) = stand_in(&mut fleet, Kind::Epoll);
    fleet.direct(true);
    assert!(goes_to(&from, &load));
    fleet.restart(heir, None, &[]).unwrap();
    let successor = fleet.member_of(0, Kind::Epoll).unwrap();
    assert_ne!(successor.entry.id, heir);
    assert!(goes_to(&from, &successor.load));
    successor.mail.send(Order::Leave).unwrap();
}

#[test]
fn sessions_that_stay_are_not_carried_when_a_shard_failed() {
    let mut fleet = fleet();
    let (_, _, from) = stand_in(&mut fleet, Kind::Uring);
    let (heir, ..) = stand_in(&mut fleet, Kind::Epoll);
    fleet.direct(false);
    fleet.restart(heir, None, &[]).unwrap();
    assert!(evicted(&from).expect("it was told").is_none());
    fleet.tell_all(|| Order::Leave);
}

#[test]
fn a_carry_goes_on_where_something_else_was_said_meanwhile() {
    for carries in [true, false] {
        let mut fleet = fleet();
        let (_, _, from) = stand_in(&mut fleet, Kind::Uring);
        let (_, load, _mail) = stand_in(&mut fleet, Kind::Epoll);
        fleet.direct(carries);
        fleet.tell_all(|| Order::Evict(None));
        while evicted(&from).is_some() {}
        fleet.direct_again();
        assert_eq!(goes_to(&from, &load), carries);
    }
}
