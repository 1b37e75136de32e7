//! The simulated arena. Bookkeeping is as in the real one: slabs of granules, chunks on their natural boundary,
//! bounce blocks per slab, memory that returns when its last owner drops it. The bytes themselves are ordinary ones:
//! a chunk starts filled with garbage, and a lease holds its own copy, so nothing can change under it.
//!
//! Always holds: no two live owners share a granule; what a chunk froze can never be written again.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rohrpost_engine_core::platform::{Arena, CHUNK_LEN_MAX, CHUNK_LEN_MIN, Chunk, DIRECT_IO_ALIGN, Lease};
use rohrpost_engine_core::types::ByteCount;

/// What memory holds before somebody writes it. Neither zeros nor a batch.
const POISON: u8 = 0xdb;

/// Granules of the bookkeeping.
const GRANULE: usize = CHUNK_LEN_MIN.as_usize();

/// A slab on its way into an arena.
pub struct SimSlab {
    shared: Arc<Slab>,
}

#[derive(Debug)]
struct Slab {
    id: u64,
    state: Mutex<SlabState>,
}

#[derive(Debug)]
struct SlabState {
    taken: Vec<bool>,
    bounces_free: Vec<usize>,
    bounces: usize,
}

/// A range of a slab with an owner; returns to the slab when dropped.
#[derive(Debug)]
struct Region {
    slab: Arc<Slab>,
    offset: usize,
    len: usize,
    bounce: bool,
    sent: AtomicU64,
}

/// The simulated arena of one shard.
#[derive(Default)]
pub struct SimArena {
    slabs: Vec<Arc<Slab>>,
}

/// Memory with one writer.
#[derive(Debug)]
pub struct SimChunk {
    region: Arc<Region>,
    bytes: Vec<u8>,
    frozen: usize,
}

/// A copy of frozen bytes that keeps their memory taken.
#[derive(Clone, Debug)]
pub struct SimLease {
    region: Arc<Region>,
    bytes: Arc<[u8]>,
    /// Where the copy lies in the slab.
    offset: usize,
    range: Range<usize>,
}

impl SimSlab {
    /// A slab of `granules` times [`CHUNK_LEN_MIN`] for chunks, and `bounces` bounce blocks.
    pub fn new(id: u64, granules: usize, bounces: usize) -> Self {
        let base = granules * GRANULE;
        let state = SlabState {
            taken: vec![false; granules],
            bounces_free: (0..bounces).rev().map(|i| base + i * DIRECT_IO_ALIGN as usize).collect(),
            bounces,
        };
        Self { shared: Arc::new(Slab { id, state: Mutex::new(state) }) }
    }

    /// Looks after the slab once it is in an arena.
    pub fn watch(&self) -> SlabWatch {
        SlabWatch { shared: self.shared.clone() }
    }
}

/// Tells whether all memory of a slab has come home.
pub struct SlabWatch {
    shared: Arc<Slab>,
}

impl SlabWatch {
    /// Granules and bounce blocks somebody still owns.
    pub fn taken(&self) -> usize {
        let state = self.shared.state();
        state.taken.iter().filter(|taken| **taken).count() + state.bounces - state.bounces_free.len()
    }
}

impl Slab {
    fn state(&self) -> MutexGuard<'_, SlabState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// First free run of `count` granules on its natural boundary.
    fn take(&self, count: usize) -> Option<usize> {
        let mut state = self.state();
        let starts = (0..state.taken.len()).step_by(count).filter(|at| at + count <= state.taken.len());
        let at = starts.into_iter().find(|at| state.taken[*at..at + count].iter().all(|taken| !taken))?;
        state.taken[at..at + count].fill(true);
        Some(at * GRANULE)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut state = self.slab.state();
        if self.bounce {
            assert!(!state.bounces_free.contains(&self.offset), "a bounce block came home twice");
            state.bounces_free.push(self.offset);
            return;
        }
        let granules = self.offset / GRANULE..(self.offset + self.len) / GRANULE;
        assert!(state.taken[granules.clone()].iter().all(|taken| *taken), "a chunk came home twice");
        state.taken[granules].fill(false);
    }
}

impl SimChunk {
    fn new(region: Region) -> Self {
        let bytes = vec![POISON; region.len];
        Self { region: Arc::new(region), bytes, frozen: 0 }
    }

    /// Which slab the memory is in.
    pub fn slab_id(&self) -> u64 {
        self.region.slab.id
    }

    /// All bytes, for a driver that reads a file into `[from, from + len)`.
    ///
    /// # Panics
    /// If the range reaches into what is frozen, or beyond the chunk.
    pub(crate) fn fill(&mut self, from: usize, len: usize) -> &mut [u8] {
        assert!(from >= self.frozen, "a read into frozen memory: {from} < {}", self.frozen);
        &mut self.bytes[from..from + len]
    }

    /// The bytes, frozen or not, for a driver that writes them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl SimLease {
    /// Which slab the memory is in.
    pub fn slab_id(&self) -> u64 {
        self.region.slab.id
    }

    /// Whether the memory starts on a boundary of direct transfers.
    pub fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(DIRECT_IO_ALIGN as usize)
    }
}

impl Arena for SimArena {
    type Chunk = SimChunk;
    type Lease = SimLease;
    type Slab = SimSlab;

    fn take(&mut self, len: ByteCount) -> Option<SimChunk> {
        assert!(len.get().is_power_of_two(), "chunk of {len} bytes");
        assert!((CHUNK_LEN_MIN..=CHUNK_LEN_MAX).contains(&len), "chunk of {len} bytes");
        self.slabs.iter().find_map(|slab| {
            let offset = slab.take(len.as_usize() / GRANULE)?;
            Some(SimChunk::new(Region {
                slab: slab.clone(),
                offset,
                len: len.as_usize(),
                bounce: false,
                sent: AtomicU64::new(0),
            }))
        })
    }

    fn take_bounce(&mut self, beside: &SimLease) -> Option<SimChunk> {
        let slab = beside.region.slab.clone();
        let offset = slab.state().bounces_free.pop()?;
        Some(SimChunk::new(Region {
            slab,
            offset,
            len: DIRECT_IO_ALIGN as usize,
            bounce: true,
            sent: AtomicU64::new(0),
        }))
    }

    fn adopt(&mut self, slab: SimSlab) {
        self.slabs.push(slab.shared);
    }

    fn capacity(&self) -> ByteCount {
        ByteCount::of_usize(self.slabs.iter().map(|slab| slab.state().taken.len() * GRANULE).sum())
    }

    fn free_len(&self) -> ByteCount {
        let free = |slab: &Arc<Slab>| slab.state().taken.iter().filter(|taken| !**taken).count();
        ByteCount::of_usize(self.slabs.iter().map(|slab| free(slab) * GRANULE).sum())
    }

    fn lent_len(&self) -> ByteCount {
        ByteCount::ZERO
    }

    fn replacing_len(&self) -> ByteCount {
        ByteCount::ZERO
    }

    fn settle(&mut self) {}
}

impl Chunk for SimChunk {
    type Lease = SimLease;

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn frozen(&self) -> usize {
        self.frozen
    }

    fn unfrozen_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.frozen..]
    }

    fn freeze(&mut self, end: usize) {
        assert!(end >= self.frozen, "freezing backwards: {end} < {}", self.frozen);
        assert!(end <= self.bytes.len(), "freezing beyond the chunk: {end} > {}", self.bytes.len());
        self.frozen = end;
    }

    fn lease(&self, range: Range<usize>) -> SimLease {
        assert!(range.end <= self.frozen, "leasing what is not frozen: {range:?}, frozen {}", self.frozen);
        let bytes: Arc<[u8]> = self.bytes[range.clone()].into();
        let (offset, range) = (self.region.offset + range.start, 0..bytes.len());
        SimLease { region: self.region.clone(), bytes, offset, range }
    }
}

impl AsRef<[u8]> for SimLease {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl Lease for SimLease {
    fn sent_before(&self) -> u64 {
        self.region.sent.load(Ordering::Relaxed)
    }

    fn count_sent(&self, len: u64) {
        self.region.sent.fetch_add(len, Ordering::Relaxed);
    }

    fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end, "a slice that ends before it begins: {range:?}");
        assert!(range.end <= self.range.len(), "a slice beyond its lease: {range:?} of {}", self.range.len());
        Self {
            region: self.region.clone(),
            bytes: self.bytes.clone(),
            offset: self.offset + range.start,
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(granules: usize, bounces: usize) -> (SimArena, SlabWatch) {
        let (slab, mut arena) = (SimSlab::new(1, granules, bounces), SimArena::default());
        let watch = slab.watch();
        arena.adopt(slab);
        (arena, watch)
    }

    #[test]
    fn memory_comes_home_with_its_last_owner_and_not_before() {
        let (mut arena, watch) = arena(4, 1);
        let mut chunk = arena.take(ByteCount::kib(128)).expect("two of four granules");
        assert_eq!(arena.free_len(), ByteCount::kib(128));
        chunk.freeze(4096);
        let lease = chunk.lease(0..4096);
        let part = lease.slice(512..1024);
        drop((chunk, lease));
        assert_eq!((watch.taken(), arena.free_len()), (2, ByteCount::kib(128)));
        drop(part);
        assert_eq!((watch.taken(), arena.free_len()), (0, ByteCount::kib(256)));
    }

    #[test]
    fn chunks_lie_on_their_natural_boundary_and_never_overlap() {
        let (mut arena, _watch) = arena(4, 0);
        let small = arena.take(ByteCount::kib(64)).expect("four granules are free");
        let large = arena.take(ByteCount::kib(128)).expect("the second pair is free");
        assert_eq!(large.region.offset, 2 * GRANULE);
        assert!(arena.take(ByteCount::kib(128)).is_none(), "only one granule of the first pair is free");
        assert_eq!(arena.take(ByteCount::kib(64)).expect("that one").region.offset, GRANULE);
        drop(small);
        assert!(arena.take(ByteCount::kib(256)).is_none());
    }

    #[test]
    fn a_fresh_chunk_holds_garbage_even_where_zeros_were_before() {
        let (mut arena, _watch) = arena(1, 0);
        let mut chunk = arena.take(CHUNK_LEN_MIN).expect("a free granule");
        chunk.unfrozen_mut().fill(0);
        drop(chunk);
        let mut chunk = arena.take(CHUNK_LEN_MIN).expect("it came home");
        assert!(chunk.unfrozen_mut().iter().all(|byte| *byte == POISON));
    }

    #[test]
    fn bounce_blocks_come_from_the_slab_of_the_lease_and_run_out() {
        let (mut arena, watch) = arena(1, 2);
        let mut chunk = arena.take(CHUNK_LEN_MIN).expect("a free granule");
        chunk.freeze(1);
        let beside = chunk.lease(0..1);
        let first = arena.take_bounce(&beside).expect("two are free");
        let second = arena.take_bounce(&beside).expect("one is free");
        assert!(arena.take_bounce(&beside).is_none());
        assert_ne!(first.region.offset, second.region.offset);
        assert_eq!(watch.taken(), 3);
        drop((first, second, beside, chunk));
        assert_eq!(watch.taken(), 0);
    }

    #[test]
    #[should_panic(expected = "leasing what is not frozen")]
    fn what_is_not_frozen_cannot_be_leased() {
        let (mut arena, _watch) = arena(1, 0);
        let mut chunk = arena.take(CHUNK_LEN_MIN).expect("a free granule");
        chunk.freeze(10);
        let _lease = chunk.lease(0..11);
    }
}
