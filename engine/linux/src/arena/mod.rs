//! The arena of one shard: slabs of huge pages, cut into chunks.
//!
//! Owns the free memory; the shard's thread alone takes chunks. Chunks and leases travel, and return by
//! themselves from any thread, without a lock or an allocation (see `slab.rs`). The arena takes in what
//! has returned when it runs short.
//!
//! Chunks of one kind that are taken one after the other fill a page from front to back, so that a page empties at about
//! one time: what returns in a page that was lent by reference is held back until the page has been replaced, as a whole
//! (see `pages.rs`). Only where no page is wholly free, holes are filled.
//!
//! Always holds: free and held memory together equal `capacity` exactly when nobody owns a chunk or a lease;
//! `take` gives nothing of a page between the first return into it after it was lent and its replacement.

mod chunk;
mod owned;
mod pages;
#[cfg(test)]
mod pages_tests;
mod slab;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::platform::{Arena, Content, SLAB_LEN};
use rohrpost_engine_core::types::ByteCount;

use crate::memory::HUGE_PAGE_LEN;
use owned::{GRANULE_LEN, KINDS, Kind, OwnedSlab, bits, order_of};
use pages::LENT_RUN_LEN_MIN;
use slab::{BOUNCE_GRANULES, BOUNCE_WORD, Run};

pub use chunk::{LinuxChunk, LinuxLease};
pub(crate) use pages::{NOT_REPLACED, PageRound, StalePages};
pub use slab::LinuxSlab;

/// Bytes of a slab that chunks can be taken from; the rest are its bounce blocks.
pub const SLAB_CAPACITY: ByteCount = ByteCount::new(SLAB_LEN.get() - (BOUNCE_GRANULES * GRANULE_LEN) as u64);

/// Share of the arena that may wait in lent pages for neighbours before no more is lent.
const STUCK_SHARE: u64 = 8;

/// A shard's memory; see [`Arena`].
pub struct LinuxArena {
    slabs: Vec<OwnedSlab>,
    /// By kind, slab and page that are being filled.
    filling: [Option<(usize, usize)>; KINDS],
    lends: bool,
}

impl LinuxArena {
    /// An arena without memory, with room for `slabs_max` slabs.
    pub fn new(slabs_max: usize) -> Self {
        Self { slabs: Vec::with_capacity(slabs_max), filling: [None; KINDS], lends: true }
    }

    /// Bytes of memory that an arena with room for `slabs_max` slabs takes itself.
    pub(crate) const fn table_len(slabs_max: usize) -> usize {
        table_len::<OwnedSlab>(slabs_max)
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

    /// From where this kind's memory is taken as long as there are free pages. Short runs are not kept together.
    fn take_run(&mut self, order: usize, kind: Kind) -> Option<Run> {
        let hole = match kind {
            Kind::Short => self.take_hole(order, kind, Some(kind)),
            Kind::Written | Kind::Read => None,
        };
        hole.or_else(|| self.take_next(order, kind))
    }

    /// From the page that this kind is filling, or from one that is wholly free.
    fn take_next(&mut self, order: usize, kind: Kind) -> Option<Run> {
        if let Some((slab, page)) = self.filling[kind as usize]
            && self.slabs[slab].kind(page) == kind
            && let Some(run) = self.take_from(slab, page, order, kind)
        {
            return Some(run);
        }
        // A page that was read into lately, and has returned, rather than the next that nobody has touched: see the window
        // of the read cache.
        if kind == Kind::Read {
            self.collect();
        }
        let slab = self.slabs.iter().position(|slab| slab.empty() != 0)?;
        let page = self.slabs[slab].empty().trailing_zeros() as usize;
        self.filling[kind as usize] = Some((slab, page));
        self.take_from(slab, page, order, kind)
    }

    /// From what is left of other pages: those of a kind, or all but lent ones.
    fn take_hole(&mut self, order: usize, kind: Kind, of: Option<Kind>) -> Option<Run> {
        (0..self.slabs.len()).find_map(|slab| {
            let mut pages = bits(self.slabs[slab].holes(of));
            pages.find_map(|page| self.take_from(slab, page as usize, order, kind))
        })
    }

    fn take_from(&mut self, slab: usize, page: usize, order: usize, kind: Kind) -> Option<Run> {
        let slab = &mut self.slabs[slab];
        let granule = slab.take(page, order, kind)?;
        Some(Run::of_granules(&slab.shared, granule, order))
    }

    /// Takes in what has returned and what has been replaced; whether there was anything.
    fn collect(&mut self) -> bool {
        self.slabs.iter_mut().fold(false, |any, slab| slab.collect() | slab.take_replaced() | any)
    }
}

impl Arena for LinuxArena {
    type Chunk = LinuxChunk;
    type Lease = LinuxLease;
    type Slab = LinuxSlab;

    fn take(&mut self, len: ByteCount, content: Content) -> Option<LinuxChunk> {
        let order = order_of(len.as_usize());
        let kind = match content {
            _ if len.as_usize() < LENT_RUN_LEN_MIN => Kind::Short,
            Content::Written => Kind::Written,
            Content::Read => Kind::Read,
        };
        let mut run = self.take_run(order, kind);
        if run.is_none() && self.collect() {
            run = self.take_run(order, kind);
        }
        let hole = run.or_else(|| self.take_hole(order, kind, Some(kind)));
        hole.or_else(|| self.take_hole(order, kind, None)).map(LinuxChunk::new)
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
        ByteCount::new(self.slabs.iter().map(OwnedSlab::free_len).sum())
    }

    fn lent_len(&self) -> ByteCount {
        pages_len(self.slabs.iter().map(|slab| slab.shared.pages().lent() & !slab.replacing()))
    }

    fn coming_len(&self) -> ByteCount {
        pages_len(self.slabs.iter().map(|slab| slab.empty() | slab.replacing()))
    }

    fn lends(&self) -> bool {
        self.lends
    }

    fn settle(&mut self) {
        for slab in self.slabs.iter_mut().filter(|slab| slab.shared.pages().lent() != 0) {
            slab.collect();
            slab.take_replaced();
        }
        let stuck: u64 = self.slabs.iter().map(|slab| u64::from(slab.stuck_count())).sum();
        let lends = stuck * GRANULE_LEN as u64 * STUCK_SHARE <= self.capacity().get();
        if lends != self.lends {
            self.lends = lends;
            self.slabs.iter().for_each(|slab| slab.shared.pages().set_lending(lends));
        }
    }
}

fn pages_len(pages: impl Iterator<Item = u32>) -> ByteCount {
    let count: u32 = pages.map(u32::count_ones).sum();
    ByteCount::of_usize(count as usize * HUGE_PAGE_LEN)
}
