//! The arena of one shard: slabs of huge pages, cut into chunks by buddies.
//!
//! Owns the free lists; the shard's thread alone takes chunks. Chunks and leases travel, and return by
//! themselves from any thread, without a lock or an allocation (see `slab.rs`). The arena merges what
//! has returned when it runs short.
//!
//! Always holds: `free_len` equals `capacity` exactly when nobody owns a chunk or a lease.

mod buddy;
mod chunk;
mod slab;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use rohrpost_engine_core::platform::{Arena, SLAB_LEN};
use rohrpost_engine_core::types::ByteCount;

use buddy::{Buddy, GRANULE_LEN};
use slab::{BOUNCE_GRANULES, BOUNCE_WORD, Run, SlabShared};

pub use chunk::{LinuxChunk, LinuxLease};
pub use slab::LinuxSlab;

/// Bytes of a slab that chunks can be taken from; the rest are its bounce blocks.
pub const SLAB_CAPACITY: ByteCount = ByteCount::new(SLAB_LEN.get() - (BOUNCE_GRANULES * GRANULE_LEN) as u64);

/// A shard's memory; see [`Arena`].
pub struct LinuxArena {
    slabs: Vec<OwnedSlab>,
    /// Bytes in the free lists; what waits in the slabs' returns comes on top.
    free_len: u64,
}

struct OwnedSlab {
    shared: Arc<SlabShared>,
    buddy: Buddy,
    /// One bit per free bounce block.
    bounces: u64,
}

impl LinuxArena {
    /// An arena without memory, with room for `slabs_max` slabs.
    pub fn new(slabs_max: usize) -> Self {
        Self { slabs: Vec::with_capacity(slabs_max), free_len: 0 }
    }

    /// An arena that starts with `slabs` slabs, mapped and backed on this thread.
    ///
    /// # Errors
    /// As [`LinuxSlab::allocate`].
    pub fn with_slabs(slabs: u32) -> io::Result<Self> {
        let mut arena = Self::new(slabs as usize);
        for index in 0..slabs {
            arena.adopt(LinuxSlab::allocate(index)?);
        }
        Ok(arena)
    }

    fn take_free(&mut self, order: usize) -> Option<LinuxChunk> {
        let slab_and_granule = |slab: &mut OwnedSlab| {
            let granule = slab.buddy.take(order)?;
            Some(Run::of_granules(&slab.shared, granule, order))
        };
        let run = self.slabs.iter_mut().find_map(slab_and_granule)?;
        self.free_len -= run.len() as u64;
        Some(LinuxChunk::new(run))
    }

    /// Merges what has returned into the free lists; whether there was anything.
    fn collect(&mut self) -> bool {
        let collected: u64 = self.slabs.iter_mut().map(OwnedSlab::collect).sum();
        self.free_len += collected;
        collected > 0
    }
}

impl Arena for LinuxArena {
    type Chunk = LinuxChunk;
    type Lease = LinuxLease;
    type Slab = LinuxSlab;

    fn take(&mut self, len: ByteCount) -> Option<LinuxChunk> {
        let order = Buddy::order_of(len.as_usize());
        if let Some(chunk) = self.take_free(order) {
            return Some(chunk);
        }
        if self.collect() { self.take_free(order) } else { None }
    }

    fn take_bounce(&mut self, beside: &LinuxLease) -> Option<LinuxChunk> {
        let shared = beside.run().slab();
        let slab = &mut self.slabs[shared.index as usize];
        assert!(Arc::ptr_eq(&slab.shared, shared), "the lease belongs to another arena");
        if slab.bounces == 0 {
            slab.bounces = slab.shared.collect(BOUNCE_WORD);
        }
        if slab.bounces == 0 {
            return None;
        }
        let bounce = slab.bounces.trailing_zeros() as usize;
        slab.bounces &= slab.bounces - 1;
        Some(LinuxChunk::new(Run::of_bounce(&slab.shared, bounce)))
    }

    /// # Panics
    /// If the slab's index is not the number of slabs adopted so far.
    fn adopt(&mut self, slab: LinuxSlab) {
        assert_eq!(
            slab.index() as usize,
            self.slabs.len(),
            "slabs are adopted in the order of their indexes"
        );
        self.slabs.push(OwnedSlab::new(slab.0));
        self.free_len += SLAB_CAPACITY.get();
    }

    fn capacity(&self) -> ByteCount {
        ByteCount::new(SLAB_CAPACITY.get() * self.slabs.len() as u64)
    }

    fn free_len(&self) -> ByteCount {
        let returned: u64 = self.slabs.iter().map(|slab| slab.shared.returned_len()).sum();
        ByteCount::new(self.free_len + returned)
    }
}

impl OwnedSlab {
    fn new(shared: Arc<SlabShared>) -> Self {
        let mut buddy = Buddy::new();
        let bounces = buddy.take(BOUNCE_GRANULES.ilog2() as usize);
        assert_eq!(bounces, Some(0), "the bounce blocks are the slab's first granules");
        Self { shared, buddy, bounces: u64::MAX }
    }

    /// Merges the runs that have returned; their bytes.
    fn collect(&mut self) -> u64 {
        if self.shared.returned_len() == 0 {
            return 0;
        }
        let mut len = 0;
        for word in 0..BOUNCE_WORD {
            let mut bits = self.shared.collect(word);
            while bits != 0 {
                let granule = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let order = self.shared.order(granule);
                self.buddy.give(granule, order);
                len += (GRANULE_LEN << order) as u64;
            }
        }
        self.shared.forget_returned(len);
        len
    }
}
