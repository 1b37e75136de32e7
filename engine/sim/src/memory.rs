//! The simulated arena. Bookkeeping is as in the real one: slabs of granules, chunks on their natural boundary,
//! bounce blocks per slab, memory that returns when its last owner drops it. The bytes themselves are ordinary ones:
//! a chunk starts filled with garbage, and a lease holds its own copy, so nothing can change under it.
//!
//! Who owns which granule, and what is lent, is in `slab.rs`.
//!
//! Always holds: what a chunk froze can never be written again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rohrpost_engine_core::platform::{
    Arena, CHUNK_LEN_MAX, CHUNK_LEN_MIN, Chunk, Content, DIRECT_IO_ALIGN, Lease,
};
use rohrpost_engine_core::types::ByteCount;

use crate::slab::{GRANULE, Reference, Region, SimSlab, Slab};

/// What the shard's memory may grow to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Granules of one slab, each as long as the smallest chunk.
    pub slab_granules: usize,
    /// Bounce blocks of one slab.
    pub slab_bounces: usize,
    /// Slabs there are to be had.
    pub slabs_max: usize,
}

/// What memory holds before somebody writes it. Neither zeros nor a batch.
const POISON: u8 = 0xdb;

/// Share of the arena that may wait in lent pages for neighbours before no more is lent.
const STUCK_SHARE: u64 = 8;

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

    /// Sends these bytes by reference. `None`: they must be copied.
    pub(crate) fn lend(&self) -> Option<Reference> {
        self.region.lend()
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

    fn take(&mut self, len: ByteCount, _: Content) -> Option<SimChunk> {
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
        let offset = slab.take_bounce()?;
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
        self.sum(Slab::len)
    }

    fn free_len(&self) -> ByteCount {
        self.sum(Slab::free_len)
    }

    fn lent_len(&self) -> ByteCount {
        self.sum(Slab::lent_len)
    }

    fn coming_len(&self) -> ByteCount {
        self.sum(Slab::coming_len)
    }

    fn lends(&self) -> bool {
        self.slabs.iter().all(|slab| slab.lends())
    }

    fn settle(&mut self) {
        let lends = self.sum(Slab::stuck_len).get() * STUCK_SHARE <= self.capacity().get();
        self.slabs.iter().for_each(|slab| slab.set_lending(lends));
    }
}

impl SimArena {
    fn sum(&self, len: impl Fn(&Slab) -> usize) -> ByteCount {
        ByteCount::of_usize(self.slabs.iter().map(|slab| len(slab)).sum())
    }
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

    fn holds_up(&self) -> bool {
        self.region.holds_up()
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
#[path = "memory_tests.rs"]
mod tests;
