//! Reads under way: begun, waited for, ended; in pieces where the device fails.
//!
//! Always holds: a granule is being read by at most one of them.

use super::holes::{Holes, Piece};
use super::{Entry, NONE, Queue, ReadCache, SegmentUid, granules_of};
use crate::disk::Errno;
use crate::platform::{CHUNK_LEN_MIN, Lease};
use crate::types::{ByteCount, Position};

/// What follows a read of a chunk that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AfterRead {
    /// The device has failed somewhere: this is to be read next, into its place in the chunk.
    ReadOn(Piece),
    /// All of it that can be read is in memory.
    Done,
    /// Nothing of it is.
    Failed(Errno),
}

impl<L: Lease> ReadCache<L> {
    /// Notes that a read of a chunk is under way; returns its entry. `None` if part of the range is being read already.
    pub fn begin_load(&mut self, uid: SegmentUid, position: Position, len: ByteCount) -> Option<u32> {
        let taken = granules_of(position, len).any(|granule| match self.granules.get(&(uid, granule)) {
            Some(&index) => self.entries[index as usize].queue == Queue::Loading,
            None => false,
        });
        if taken {
            return None;
        }
        self.remove_range(uid, position, len);
        let index = self.new_entry(uid, position, len);
        let entry = &mut self.entries[index as usize];
        entry.queue = Queue::Loading;
        // Asked for again, if it was here before.
        if let Some(hits) = self.ghosts.take(uid, position) {
            entry.hits = hits.saturating_add(1);
            self.window.widen(len);
        }
        Some(index)
    }

    /// The generation that a completed read must name; see [`Self::end_load`].
    pub fn generation(&self, index: u32) -> u32 {
        self.entries[index as usize].generation
    }

    /// Where a loading entry's chunk lies.
    pub fn loading_range(&self, index: u32) -> (SegmentUid, Position, ByteCount) {
        let entry = &self.entries[index as usize];
        (entry.uid, entry.position, entry.len)
    }

    /// Notes up to where a loading entry's read will be valid.
    pub fn expect(&mut self, index: u32, end: Position) {
        let entry = &mut self.entries[index as usize];
        debug_assert_eq!(entry.queue, Queue::Loading);
        entry.valid = (entry.position, end);
    }

    /// Length of what a loading entry's read must bring.
    pub fn expected_len(&self, index: u32) -> ByteCount {
        let (start, end) = self.entries[index as usize].valid;
        end.since(start)
    }

    /// What follows a read that has ended: of the whole chunk, or of the piece that was asked for last.
    pub(crate) fn after_read(
        &mut self,
        index: u32,
        generation: u32,
        result: Result<usize, Errno>,
    ) -> AfterRead {
        let Some(entry) = loading(&mut self.entries, index, generation) else {
            return AfterRead::Failed(Errno::CANCELED);
        };
        let (start, end) = entry.valid;
        let piece = match (&mut entry.holes, result) {
            (Some(holes), _) => holes.handle_piece(result, end),
            (None, Err(Errno::IO)) => {
                self.holed_count += 1;
                entry.holes.insert(Box::new(Holes::new(start))).next_piece(end)
            }
            (None, Err(errno)) => return AfterRead::Failed(errno),
            (None, Ok(len)) if len < end.since(start).as_usize() => return AfterRead::Failed(Errno::IO),
            (None, Ok(_)) => None,
        };
        piece.map_or(AfterRead::Done, AfterRead::ReadOn)
    }

    /// Blocks of a chunk that could not be read.
    pub(crate) fn holes_count(&self, index: u32) -> u64 {
        self.entries[index as usize].holes.as_ref().map_or(0, |holes| holes.count())
    }

    /// Everybody who waited for a read has been told what it could not bring: who wants that from now on asks the device
    /// again.
    pub(crate) fn doubt_holes(&mut self, index: u32, generation: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.generation == generation
            && let Some(holes) = &mut entry.holes
        {
            holes.doubt();
        }
    }

    /// The first block in `[start, end)` of a segment that is known to be unreadable.
    pub(crate) fn first_hole(&self, uid: SegmentUid, start: Position, end: Position) -> Option<Position> {
        if self.holed_count == 0 {
            return None;
        }
        let first = start.align_down(CHUNK_LEN_MIN.get());
        granules_of(first, end.align_up(CHUNK_LEN_MIN.get()).since(first)).find_map(|granule| {
            let entry = &self.entries[*self.granules.get(&(uid, granule))? as usize];
            let holes = entry.holes.as_ref().filter(|_| entry.queue != Queue::Loading)?;
            holes.first(start, end)
        })
    }

    /// A read has ended: `Some(lease)` over `[position, position + lease.len())`, or `None` if it
    /// failed. Returns the head of the list of waiters. Ignored, with no waiters, if the entry has been
    /// given up meanwhile.
    pub fn end_load(&mut self, index: u32, generation: u32, lease: Option<L>) -> u32 {
        let Some(entry) = loading(&mut self.entries, index, generation) else { return NONE };
        let waiters = std::mem::replace(&mut entry.first_waiter, NONE);
        let start = entry.position;
        if entry.holes.as_ref().is_some_and(|holes| holes.count() == 0) {
            entry.holes = None;
            self.holed_count -= 1;
        }
        match lease.filter(|lease| !lease.is_empty()) {
            Some(lease) => {
                let end = start.plus(ByteCount::of_usize(lease.len()));
                self.fill(index, (start, end), lease);
                self.push(index, Queue::Probation);
            }
            None => self.release(index),
        }
        waiters
    }

    /// Puts `waiter` at the head of a loading entry's list; returns the previous head, which the waiter
    /// must remember as its successor.
    pub fn add_waiter(&mut self, index: u32, waiter: u32) -> u32 {
        let entry = &mut self.entries[index as usize];
        debug_assert_eq!(entry.queue, Queue::Loading);
        std::mem::replace(&mut entry.first_waiter, waiter)
    }
}

/// The entry of a read under way, unless it has been given up meanwhile.
fn loading<L>(entries: &mut [Entry<L>], index: u32, generation: u32) -> Option<&mut Entry<L>> {
    let entry = &mut entries[index as usize];
    (entry.generation == generation && entry.queue == Queue::Loading).then_some(entry)
}
