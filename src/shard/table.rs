//! Where a shard's sessions live: slots in pages, so that they never move and empty pages go back.

#![forbid(unsafe_code)]

use crate::config::limits;
use crate::driver::Key;
use crate::session::Session;

/// Slots of one page.
const PAGE: usize = 64;

/// Sessions by slot. A slot's generation grows each time it is emptied, so that old keys find nothing.
#[derive(Default)]
pub struct Table {
    pages: Vec<Option<Box<[Option<Session>; PAGE]>>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    count: usize,
}

impl Table {
    /// The key of a free slot, which is taken by [`put`](Self::put). `None`: the shard is full.
    pub fn reserve(&mut self) -> Option<Key> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.generations.len()).ok()?;
                if slot >= limits::SESSIONS_PER_SHARD_MAX {
                    return None;
                }
                self.generations.push(0);
                slot
            }
        };
        Some(Key { slot, generation: self.generations[slot as usize] })
    }

    /// Gives a reserved slot back that was not filled. Its generation is used up: something may still name it.
    pub fn unreserve(&mut self, key: Key) {
        let generation = &mut self.generations[key.slot as usize];
        *generation = (*generation + 1) & 0xff_ffff;
        self.free.push(key.slot);
    }

    /// Fills a reserved slot.
    pub fn put(&mut self, key: Key, session: Session) {
        let (page, at) = place(key.slot);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| Box::new([const { None }; PAGE]));
        debug_assert!(page[at].is_none(), "slot {} is taken", key.slot);
        page[at] = Some(session);
        self.count += 1;
    }

    /// The session of this key. `None`: it is no more.
    pub fn session(&mut self, key: Key) -> Option<&mut Session> {
        if self.generations.get(key.slot as usize) != Some(&key.generation) {
            return None;
        }
        let (page, at) = place(key.slot);
        self.pages.get_mut(page)?.as_mut()?[at].as_mut()
    }

    /// The key a slot has now.
    #[must_use]
    pub fn key(&self, slot: u32) -> Key {
        Key { slot, generation: self.generations[slot as usize] }
    }

    /// Empties a slot.
    pub fn take(&mut self, key: Key) -> Option<Session> {
        if self.generations.get(key.slot as usize) != Some(&key.generation) {
            return None;
        }
        let (page, at) = place(key.slot);
        let session = self.pages.get_mut(page)?.as_mut()?[at].take()?;
        let generation = &mut self.generations[key.slot as usize];
        *generation = (*generation + 1) & 0xff_ffff;
        self.free.push(key.slot);
        self.count -= 1;
        Some(session)
    }

    /// How many sessions there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Keys of all sessions.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.keys_in(0, u32::MAX).0
    }

    /// Keys of the sessions in `count` slots from `from` on, and whether there are slots beyond.
    #[must_use]
    pub fn keys_in(&self, from: u32, count: u32) -> (Vec<Key>, bool) {
        let all = u32::try_from(self.generations.len()).unwrap_or(u32::MAX);
        let until = from.saturating_add(count).min(all);
        let taken = |slot: &u32| {
            let (page, at) = place(*slot);
            self.pages.get(page).and_then(Option::as_ref).is_some_and(|p| p[at].is_some())
        };
        ((from..until).filter(taken).map(|slot| self.key(slot)).collect(), until < all)
    }

    /// Gives the memory of empty pages back. Slots are taken from low pages first afterwards, so that others empty.
    pub fn trim(&mut self) {
        for page in &mut self.pages {
            if page.as_ref().is_some_and(|p| p.iter().all(Option::is_none)) {
                *page = None;
            }
        }
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }
}

const fn place(slot: u32) -> (usize, usize) {
    (slot as usize / PAGE, slot as usize % PAGE)
}
