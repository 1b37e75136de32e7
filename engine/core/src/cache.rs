//! The read cache: which ranges of which segments are in memory.
//!
//! Owns one lease per cached chunk, and the reads that are under way to fill one. A chunk covers a
//! position range that is aligned to its own length, so that a granule of [`CHUNK_LEN_MIN`] is in at
//! most one chunk (I7). Scan-resistant: what a reader brought from the disk waits in a short
//! queue (`window`) and leaves it unless it is asked for again later, be it after it had to leave (`ghosts`); what was
//! written lately, or asked for again, is in the main queue. Both are given up in order of age, as the arena lays them
//! out, so that whole pages empty at a time; only what is asked for far more often than its likes stays. Several readers
//! of one cold range wait for one read.
//!
//! Units: positions in a segment file. Does not read, does not allocate after construction but where the device fails.

mod bill;
mod evict;
mod ghosts;
mod holes;
mod loading;
mod window;

use rustc_hash::FxHashMap;

use self::ghosts::Ghosts;
use self::window::Window;
use crate::demand::UsualDemand;
use crate::platform::{CHUNK_LEN_MIN, Lease};
use crate::types::{ByteCount, Position};
use holes::Holes;
pub(crate) use holes::Piece;
pub(crate) use loading::AfterRead;

/// A segment, to the cache and to transfers. Never reused within a shard's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentUid(pub u32);

/// "No entry", "no waiter".
pub(crate) const NONE: u32 = u32::MAX;

/// Lookups of anything between two uses of a chunk read from the disk, so that both count: the pieces of one fetch, and
/// readers that go through a log side by side, use a chunk at about the same time and then never again.
const APART: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Queue {
    Free,
    Loading,
    Probation,
    Main,
}

struct Entry<L> {
    uid: SegmentUid,
    /// Start of the chunk's range, aligned to its length.
    position: Position,
    /// Length of the chunk.
    len: ByteCount,
    /// The part of the range that holds log bytes; the lease covers exactly this.
    valid: (Position, Position),
    lease: Option<L>,
    queue: Queue,
    /// What of the chunk the device does not give out; `None` for nearly all of them.
    holes: Option<Box<Holes>>,
    hits: u32,
    /// The number of the lookup that counted last, or after which the chunk was read.
    counted_at: u32,
    written: bool,
    generation: u32,
    previous: u32,
    next: u32,
    first_waiter: u32,
}

#[derive(Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
    len: ByteCount,
}

const EMPTY: Ends = Ends { oldest: NONE, newest: NONE, len: ByteCount::ZERO };

/// What the cache knows of a position.
pub enum Lookup<L> {
    /// In memory: a lease over `[start, end)`, which contains the position.
    Resident {
        /// The bytes.
        lease: L,
        /// Position of its first byte.
        start: Position,
        /// Position after its last byte.
        end: Position,
        /// Whether it was written, and not read from the device.
        written: bool,
    },
    /// A read is under way.
    Loading(u32),
    /// The read that has just ended could not bring the block that begins here.
    Unreadable(Position),
    /// None of these.
    Missing,
}

/// See the module documentation.
pub struct ReadCache<L> {
    entries: Vec<Entry<L>>,
    free: Vec<u32>,
    granules: FxHashMap<(SegmentUid, u32), u32>,
    probation: Ends,
    main: Ends,
    usual_demand: UsualDemand,
    ghosts: Ghosts,
    window: Window,
    /// Entries with holes.
    holed_count: u32,
    /// Lookups so far; wraps.
    lookups: u32,
}

impl<L: Lease> ReadCache<L> {
    /// Room for an arena of `arena_len_max` bytes.
    pub fn new(arena_len_max: ByteCount) -> Self {
        let granules = (arena_len_max.get() / CHUNK_LEN_MIN.get()) as usize;
        let mut map = FxHashMap::default();
        map.reserve(granules * 2);
        Self {
            entries: Vec::with_capacity(granules),
            free: Vec::with_capacity(granules),
            granules: map,
            probation: EMPTY,
            main: EMPTY,
            usual_demand: UsualDemand::default(),
            ghosts: Ghosts::new(granules),
            window: Window::new(arena_len_max),
            holed_count: 0,
            lookups: 0,
        }
    }

    /// Looks a position up and counts the use.
    pub fn lookup(&mut self, uid: SegmentUid, position: Position) -> Lookup<L> {
        let Some(&index) = self.granules.get(&(uid, granule(position))) else { return Lookup::Missing };
        let entry = &mut self.entries[index as usize];
        if entry.queue == Queue::Loading {
            return Lookup::Loading(index);
        }
        let (start, end) = entry.valid;
        if position < start || position >= end {
            return Lookup::Missing;
        }
        self.lookups = self.lookups.wrapping_add(1);
        if entry.queue == Queue::Main || self.lookups.wrapping_sub(entry.counted_at) >= APART {
            entry.hits = entry.hits.saturating_add(1);
            entry.counted_at = self.lookups;
        }
        match (&entry.lease, &entry.holes) {
            (Some(lease), None) => {
                Lookup::Resident { lease: lease.clone(), start, end, written: entry.written }
            }
            (Some(lease), Some(holes)) => holes.lookup(lease, position, start..end),
            (None, _) => Lookup::Missing,
        }
    }

    /// Whether nothing of a range is in memory or on its way.
    pub fn is_absent(&self, uid: SegmentUid, position: Position, len: ByteCount) -> bool {
        granules_of(position, len).all(|granule| !self.granules.contains_key(&(uid, granule)))
    }

    /// Whether a position is in memory; no use of it.
    pub fn is_resident(&self, uid: SegmentUid, position: Position) -> bool {
        self.granules.get(&(uid, granule(position))).is_some_and(|&index| {
            let entry = &self.entries[index as usize];
            entry.queue != Queue::Loading
                && (entry.valid.0..entry.valid.1).contains(&position)
                && entry.holes.as_ref().is_none_or(|holes| !holes.contain(position))
        })
    }

    /// Adds a chunk that was just written. Replaces what covered the same granules.
    pub fn insert_written(
        &mut self,
        uid: SegmentUid,
        position: Position,
        len: ByteCount,
        valid: (Position, Position),
        lease: L,
    ) {
        self.remove_range(uid, position, len);
        let index = self.new_entry(uid, position, len);
        self.entries[index as usize].written = true;
        self.fill(index, valid, lease);
        self.push(index, Queue::Main);
    }

    /// Takes a resident chunk without holes out, whoever else holds a lease on it; returns its valid range and lease.
    pub fn take(&mut self, uid: SegmentUid, position: Position) -> Option<((Position, Position), L)> {
        let index = *self.granules.get(&(uid, granule(position)))?;
        let entry = &self.entries[index as usize];
        if entry.queue == Queue::Loading || entry.holes.is_some() {
            return None;
        }
        self.unlink(index);
        let valid = self.entries[index as usize].valid;
        let lease = self.entries[index as usize].lease.take();
        self.release(index);
        lease.map(|lease| (valid, lease))
    }

    /// Forgets everything of a segment in `[0, end)`.
    pub fn remove_segment(&mut self, uid: SegmentUid, end: Position) {
        let len = ByteCount::new(end.align_up(CHUNK_LEN_MIN.get()).get());
        self.remove_range(uid, Position::ZERO, len);
    }

    /// Bytes of chunks that hold data.
    pub fn len(&self) -> ByteCount {
        ByteCount::new(self.probation.len.get() + self.main.len.get())
    }

    /// Whether no chunk holds data.
    pub fn is_empty(&self) -> bool {
        self.len() == ByteCount::ZERO
    }

    /// Removes resident entries that touch the range. Reads under way are left alone: their entries
    /// keep their waiters and end by themselves.
    fn remove_range(&mut self, uid: SegmentUid, position: Position, len: ByteCount) {
        for granule in granules_of(position, len) {
            let Some(&index) = self.granules.get(&(uid, granule)) else { continue };
            if self.entries[index as usize].queue != Queue::Loading {
                self.unlink(index);
                self.release(index);
            }
        }
    }

    fn new_entry(&mut self, uid: SegmentUid, position: Position, len: ByteCount) -> u32 {
        debug_assert_eq!(position.get() % len.get(), 0, "I7");
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(Entry {
                    uid,
                    position,
                    len,
                    valid: (position, position),
                    lease: None,
                    queue: Queue::Free,
                    holes: None,
                    hits: 0,
                    counted_at: 0,
                    written: false,
                    generation: 0,
                    previous: NONE,
                    next: NONE,
                    first_waiter: NONE,
                });
                (self.entries.len() - 1) as u32
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.uid = uid;
        entry.position = position;
        entry.len = len;
        entry.hits = 0;
        entry.counted_at = self.lookups;
        entry.written = false;
        entry.first_waiter = NONE;
        for granule in granules_of(position, len) {
            self.granules.insert((uid, granule), index);
        }
        index
    }

    fn fill(&mut self, index: u32, valid: (Position, Position), lease: L) {
        debug_assert_eq!(valid.1.since(valid.0).as_usize(), lease.len());
        let entry = &mut self.entries[index as usize];
        entry.valid = valid;
        entry.lease = Some(lease);
    }

    /// Returns an unlinked entry to the free list.
    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.lease = None;
        self.holed_count -= u32::from(entry.holes.take().is_some());
        entry.queue = Queue::Free;
        entry.generation = entry.generation.wrapping_add(1);
        let (uid, position, len) = (entry.uid, entry.position, entry.len);
        for granule in granules_of(position, len) {
            if self.granules.get(&(uid, granule)) == Some(&index) {
                self.granules.remove(&(uid, granule));
            }
        }
        self.free.push(index);
    }

    fn ends(&mut self, queue: Queue) -> &mut Ends {
        match queue {
            Queue::Probation => &mut self.probation,
            _ => &mut self.main,
        }
    }

    fn push(&mut self, index: u32, queue: Queue) {
        let newest = self.ends(queue).newest;
        let entry = &mut self.entries[index as usize];
        entry.queue = queue;
        entry.previous = newest;
        entry.next = NONE;
        let len = entry.len.get();
        if newest != NONE {
            self.entries[newest as usize].next = index;
        }
        let ends = self.ends(queue);
        if newest == NONE {
            ends.oldest = index;
        }
        ends.newest = index;
        ends.len = ByteCount::new(ends.len.get() + len);
    }

    fn unlink(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let (queue, previous, next, len) = (entry.queue, entry.previous, entry.next, entry.len.get());
        debug_assert!(matches!(queue, Queue::Main | Queue::Probation), "{queue:?}");
        if previous != NONE {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        let ends = self.ends(queue);
        if ends.oldest == index {
            ends.oldest = next;
        }
        if ends.newest == index {
            ends.newest = previous;
        }
        ends.len = ByteCount::new(ends.len.get() - len);
    }
}

fn granule(position: Position) -> u32 {
    (position.get() / CHUNK_LEN_MIN.get()) as u32
}

fn granules_of(position: Position, len: ByteCount) -> impl Iterator<Item = u32> {
    let first = granule(position);
    first..first + (len.get() / CHUNK_LEN_MIN.get()) as u32
}
