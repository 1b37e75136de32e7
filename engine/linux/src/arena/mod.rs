//! The arena of one shard: slabs of huge pages, cut into chunks by buddies.
//!
//! Owns the free lists; the shard's thread alone takes chunks. Chunks and leases travel, and return by
//! themselves from any thread, without a lock or an allocation (see `slab.rs`). The arena merges what
//! has returned when it runs short.
//!
//! What returns in a page that was lent by reference is held back until the page has been replaced; see
//! `pages.rs`.
//!
//! Always holds: free and held memory together equal `capacity` exactly when nobody owns a chunk or a lease;
//! `take` gives nothing of a page between the first return into it after it was lent and its replacement.

mod buddy;
mod chunk;
mod pages;
#[cfg(test)]
mod pages_tests;
mod slab;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use rohrpost_engine_core::platform::{Arena, SLAB_LEN};
use rohrpost_engine_core::types::ByteCount;

use crate::memory::HUGE_PAGE_LEN;
use buddy::{Buddy, GRANULE_LEN, ORDER_MAX, granule_bits};
use pages::{PAGE_GRANULES, PAGES};
use slab::{BOUNCE_GRANULES, BOUNCE_WORD, Run, SlabShared};

pub use chunk::{LinuxChunk, LinuxLease};
pub(crate) use pages::{PageRound, StalePages};
pub use slab::LinuxSlab;

/// Bytes of a slab that chunks can be taken from; the rest are its bounce blocks.
pub const SLAB_CAPACITY: ByteCount = ByteCount::new(SLAB_LEN.get() - (BOUNCE_GRANULES * GRANULE_LEN) as u64);

/// A shard's memory; see [`Arena`].
pub struct LinuxArena {
    slabs: Vec<OwnedSlab>,
}

struct OwnedSlab {
    shared: Arc<SlabShared>,
    buddy: Buddy,
    /// One bit per free bounce block.
    bounces: u64,
    /// Bytes in the free lists; what waits in `shared` comes on top.
    free_len: u64,
    /// By page, one bit per granule that is held back until the page has been replaced.
    held: [u32; PAGES],
    /// Pages wholly held, which the driver was asked to replace.
    replacing: u32,
}

impl LinuxArena {
    /// An arena without memory, with room for `slabs_max` slabs.
    pub fn new(slabs_max: usize) -> Self {
        Self { slabs: Vec::with_capacity(slabs_max) }
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
            slab.free_len -= (GRANULE_LEN << order) as u64;
            Some(Run::of_granules(&slab.shared, granule, order))
        };
        let run = self.slabs.iter_mut().find_map(slab_and_granule)?;
        Some(LinuxChunk::new(run))
    }

    /// Merges what has returned and what has been replaced into the free lists; whether there was anything.
    fn collect(&mut self) -> bool {
        self.slabs.iter_mut().fold(false, |any, slab| slab.collect() | slab.take_replaced() | any)
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
    }

    fn capacity(&self) -> ByteCount {
        ByteCount::new(SLAB_CAPACITY.get() * self.slabs.len() as u64)
    }

    fn free_len(&self) -> ByteCount {
        ByteCount::new(self.slabs.iter().map(|slab| slab.free_len + slab.shared.returned_len()).sum())
    }

    fn lent_len(&self) -> ByteCount {
        pages_len(self.slabs.iter().map(|slab| slab.shared.pages().lent() & !slab.replacing))
    }

    fn replacing_len(&self) -> ByteCount {
        pages_len(self.slabs.iter().map(|slab| slab.replacing))
    }

    fn settle(&mut self) {
        for slab in self.slabs.iter_mut().filter(|slab| slab.shared.pages().lent() != 0) {
            slab.collect();
            slab.take_replaced();
        }
    }
}

fn pages_len(pages: impl Iterator<Item = u32>) -> ByteCount {
    let count: u32 = pages.map(u32::count_ones).sum();
    ByteCount::of_usize(count as usize * HUGE_PAGE_LEN)
}

impl OwnedSlab {
    fn new(shared: Arc<SlabShared>) -> Self {
        let mut buddy = Buddy::new();
        let bounces = buddy.take(BOUNCE_GRANULES.ilog2() as usize);
        assert_eq!(bounces, Some(0), "the bounce blocks are the slab's first granules");
        let free_len = SLAB_CAPACITY.get();
        Self { shared, buddy, bounces: u64::MAX, free_len, held: [0; PAGES], replacing: 0 }
    }

    /// Takes back the runs that have returned, whether to hand them out again or to hold them; whether there
    /// were any.
    fn collect(&mut self) -> bool {
        if self.shared.returned_len() == 0 {
            return false;
        }
        let mut len = 0;
        for word in 0..BOUNCE_WORD {
            let mut bits = self.shared.collect(word);
            // [U5] Read after the bits: who lent a page of these runs did so before it gave up its part.
            let lent = if bits == 0 { 0 } else { self.shared.pages().lent() };
            while bits != 0 {
                let granule = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let order = self.shared.order(granule);
                len += (GRANULE_LEN << order) as u64;
                if lent & (1 << (granule / PAGE_GRANULES)) != 0 {
                    self.hold(granule, order);
                } else {
                    self.buddy.give(granule, order);
                    self.free_len += (GRANULE_LEN << order) as u64;
                }
            }
        }
        self.shared.forget_returned(len);
        len > 0
    }

    /// Keeps a run of a lent page back, and with it what is free of the page, so that the page empties soon;
    /// has it replaced when it is empty.
    fn hold(&mut self, granule: usize, order: usize) {
        let (page, at) = (granule / PAGE_GRANULES, granule % PAGE_GRANULES);
        if self.held[page] == 0 {
            let withdrawn = self.buddy.withdraw(page * PAGE_GRANULES, PAGE_GRANULES);
            self.free_len -= u64::from(withdrawn.count_ones()) * GRANULE_LEN as u64;
            self.held[page] = withdrawn;
        }
        debug_assert_eq!(self.held[page] & granule_bits(at, order), 0, "U5: a run returned twice");
        self.held[page] |= granule_bits(at, order);
        if self.held[page] == u32::MAX {
            self.replacing |= 1 << page;
            self.shared.pages().want(page);
        }
    }

    /// Frees the pages that have been replaced; whether there were any.
    fn take_replaced(&mut self) -> bool {
        let pages = self.shared.pages().take_replaced();
        let mut rest = pages;
        while rest != 0 {
            let page = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            assert_eq!(self.held[page], u32::MAX, "U5: page {page} is replaced while it has owners");
            self.held[page] = 0;
            for granule in (page * PAGE_GRANULES..(page + 1) * PAGE_GRANULES).step_by(1 << ORDER_MAX) {
                self.buddy.give(granule, ORDER_MAX);
            }
            self.free_len += HUGE_PAGE_LEN as u64;
        }
        self.replacing &= !pages;
        pages != 0
    }
}
