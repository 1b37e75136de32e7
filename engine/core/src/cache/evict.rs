//! Which chunk goes when memory is wanted.
//!
//! Always holds: what was read from the disk goes first while such chunks fill more than their share; those that have been
//! asked for again join the main queue, where only what is wanted far more than its likes outlives its age.

use super::{NONE, Queue, ReadCache};
use crate::demand::WANTED_SHARE;
use crate::platform::Lease;
use crate::types::ByteCount;

/// Share of the arena that once-read chunks may fill before they are evicted first.
const PROBATION_SHARE: u64 = 4;

/// Share of the arena that reads leave to the main queue while memory may come back.
const MAIN_SHARE: u64 = 2;

/// Uses that count after which a chunk read from the disk stays; those of earlier stays and each new read among them.
const REUSES_MIN: u32 = 2;

impl<L: Lease> ReadCache<L> {
    /// Gives up the chunk that is worth least. Its memory is free once the last transfer that still
    /// names it has ended. `false` if nothing is cached.
    pub fn evict(&mut self, capacity: ByteCount) -> bool {
        let index = if self.probation.len.get() * PROBATION_SHARE > capacity.get() || self.main.oldest == NONE
        {
            self.oldest_of_probation().or_else(|| self.oldest_of_main())
        } else {
            self.oldest_of_main().or_else(|| self.oldest_of_probation())
        };
        match index {
            Some(index) => {
                self.give_up(index);
                true
            }
            None => false,
        }
    }

    /// Gives up the chunk that is worth least for a read from the disk, but no more of the main queue than what exceeds its
    /// share: what is in use would only make room for peers that ask much and take nothing. `false` if there is no such
    /// chunk.
    pub(crate) fn evict_sparing(&mut self, capacity: ByteCount) -> bool {
        if self.main.len.get() * MAIN_SHARE > capacity.get() {
            return self.evict(capacity);
        }
        let index = self.oldest_of_probation();
        index.inspect(|index| self.give_up(*index)).is_some()
    }

    /// Gives up a once-read chunk if such chunks, with another of `len` bytes, fill more than their window. `false` if not.
    pub(crate) fn recycle(&mut self, len: ByteCount, capacity: ByteCount) -> bool {
        if self.probation.len.get() + len.get() <= self.window.len(capacity).get() {
            return false;
        }
        let Some(index) = self.oldest_of_probation() else { return false };
        self.give_up(index);
        true
    }

    fn give_up(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        if entry.queue == Queue::Probation {
            self.ghosts.note(entry.uid, entry.position, entry.hits);
            if entry.hits == 0 {
                self.window.narrow(entry.len);
            }
        }
        self.unlink(index);
        self.release(index);
    }

    fn oldest_of_probation(&mut self) -> Option<u32> {
        loop {
            let index = self.probation.oldest;
            if index == NONE {
                return None;
            }
            if self.entries[index as usize].hits < REUSES_MIN {
                return Some(index);
            }
            self.keep(index);
        }
    }

    fn oldest_of_main(&mut self) -> Option<u32> {
        loop {
            let index = self.main.oldest;
            if index == NONE {
                return None;
            }
            let entry = &self.entries[index as usize];
            let holds_up = entry.lease.as_ref().is_some_and(Lease::holds_up);
            if !self.usual_demand.is_exceeded(entry.hits, entry.len) || holds_up {
                return Some(index);
            }
            self.keep(index);
        }
    }

    /// Gives a chunk another time in the main queue. Some of its requests still count, else it would look unwanted.
    fn keep(&mut self, index: u32) {
        self.unlink(index);
        self.entries[index as usize].hits /= WANTED_SHARE as u32;
        self.push(index, Queue::Main);
    }
}
