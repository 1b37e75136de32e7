//! What the shard's thread knows of one slab: which granules are free, and what each page is for.
//!
//! Owns the free granules of the slab, one mask a page. Pure bookkeeping over what `slab.rs` says has returned and
//! `pages.rs` says has been replaced. Always holds: a granule is free, held back with its page, or owned; `empty` and
//! `holes` say of each page whether all or some of it is free.

use std::sync::Arc;

use rohrpost_engine_core::platform::{CHUNK_LEN_MAX, CHUNK_LEN_MIN, SLAB_LEN};

use super::SLAB_CAPACITY;
use super::pages::{PAGE_GRANULES, PAGES};
use super::slab::{BOUNCE_GRANULES, BOUNCE_WORD, SlabShared};
use crate::memory::HUGE_PAGE_LEN;

/// Length of a granule, bytes.
pub(super) const GRANULE_LEN: usize = CHUNK_LEN_MIN.as_usize();

/// Granules of a slab.
pub(super) const GRANULES: usize = SLAB_LEN.as_usize() / GRANULE_LEN;

/// By order, the granules of a page at which a run may start: runs are aligned to their length.
const STARTS: [u32; 5] = [u32::MAX, 0x5555_5555, 0x1111_1111, 0x0101_0101, 0x0001_0001];

const _: () = assert!(GRANULE_LEN << (STARTS.len() - 1) == CHUNK_LEN_MAX.as_usize());
const _: () = assert!(PAGE_GRANULES == u32::BITS as usize, "one bit per granule of a page");
const _: () = assert!(PAGES == u32::BITS as usize, "one bit per page");
const _: () = assert!(BOUNCE_GRANULES < PAGE_GRANULES);

/// What the chunks of a page are; they are given up at about one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Short ones, each with a life of its own. Such a page is not lent.
    Short,
    /// Long ones that are appended to.
    Written,
    /// Long ones that are read from the device.
    Read,
}

/// Kinds there are.
pub(super) const KINDS: usize = 3;

/// See the module documentation.
pub(super) struct OwnedSlab {
    pub(super) shared: Arc<SlabShared>,
    /// By page, one bit per free granule.
    free: [u32; PAGES],
    kinds: [Kind; PAGES],
    /// Pages wholly free.
    empty: u32,
    /// Pages with something free, but not all.
    holes: u32,
    /// One bit per free bounce block.
    pub(super) bounces: u64,
    /// Bytes in the free masks; what waits in `shared` comes on top.
    free_len: u64,
    /// By page, one bit per granule that is held back until the page has been replaced.
    held: [u32; PAGES],
    /// Held granules of pages that have owners still.
    stuck_count: u32,
    /// Pages wholly held, which the driver was asked to replace.
    replacing: u32,
}

impl OwnedSlab {
    pub(super) fn new(shared: Arc<SlabShared>) -> Self {
        let mut free = [u32::MAX; PAGES];
        // The bounce blocks are the slab's first granules. They come and go with every commit, so the rest of their
        // page is for what is not lent.
        free[0] = !granule_bits(0, BOUNCE_GRANULES.ilog2() as usize);
        Self {
            shared,
            free,
            kinds: [Kind::Short; PAGES],
            empty: !1,
            holes: 1,
            bounces: u64::MAX,
            free_len: SLAB_CAPACITY.get(),
            held: [0; PAGES],
            stuck_count: 0,
            replacing: 0,
        }
    }

    /// Bytes not owned and not held.
    pub(super) fn free_len(&self) -> u64 {
        self.free_len + self.shared.returned_len()
    }

    /// Pages wholly free.
    pub(super) fn empty(&self) -> u32 {
        self.empty
    }

    /// Pages being replaced.
    pub(super) fn replacing(&self) -> u32 {
        self.replacing
    }

    /// Granules that wait in lent pages for others to return.
    pub(super) fn stuck_count(&self) -> u32 {
        self.stuck_count
    }

    /// Pages with holes of this kind; of every kind for `None`, but for lent ones: what is put there must not keep
    /// others from being replaced.
    pub(super) fn holes(&self, kind: Option<Kind>) -> u32 {
        match kind {
            None => self.holes & !self.shared.pages().lent(),
            Some(kind) => {
                let of_kind = |page: &u32| self.kinds[*page as usize] == kind;
                bits(self.holes).filter(of_kind).fold(0, |pages, page| pages | 1 << page)
            }
        }
    }

    /// What the page is for.
    pub(super) fn kind(&self, page: usize) -> Kind {
        self.kinds[page]
    }

    /// Takes the first run of `order` in the page, for a chunk of this kind; returns its first granule.
    pub(super) fn take(&mut self, page: usize, order: usize, kind: Kind) -> Option<usize> {
        let at = fit(self.free[page], order)?;
        if self.empty & (1 << page) != 0 {
            self.kinds[page] = kind;
        }
        if kind == Kind::Short {
            self.shared.pages().refuse(page);
        }
        self.free[page] &= !granule_bits(at, order);
        self.free_len -= (GRANULE_LEN << order) as u64;
        self.note(page);
        Some(page * PAGE_GRANULES + at)
    }

    /// Brings `empty` and `holes` up to date.
    fn note(&mut self, page: usize) {
        let (free, bit) = (self.free[page], 1 << page);
        self.empty = self.empty & !bit | if free == u32::MAX { bit } else { 0 };
        self.holes = self.holes & !bit | if free != 0 && free != u32::MAX { bit } else { 0 };
        if free == u32::MAX {
            self.shared.pages().allow(page);
        }
    }

    /// Takes back the runs that have returned, whether to hand them out again or to hold them; whether there
    /// were any.
    pub(super) fn collect(&mut self) -> bool {
        if self.shared.returned_len() == 0 {
            return false;
        }
        let mut len = 0;
        for word in 0..BOUNCE_WORD {
            let mut runs = self.shared.collect(word);
            // [U5] Read after the bits: who lent a page of these runs did so before it gave up its part.
            let lent = if runs == 0 { 0 } else { self.shared.pages().lent() };
            while runs != 0 {
                let granule = word * 64 + runs.trailing_zeros() as usize;
                runs &= runs - 1;
                let order = self.shared.order(granule);
                len += (GRANULE_LEN << order) as u64;
                let (page, at) = (granule / PAGE_GRANULES, granule % PAGE_GRANULES);
                match lent & (1 << page) {
                    0 => self.give(page, granule_bits(at, order)),
                    _ => self.hold(page, granule_bits(at, order)),
                }
            }
        }
        self.shared.forget_returned(len);
        len > 0
    }

    fn give(&mut self, page: usize, granules: u32) {
        assert_eq!(self.free[page] & granules, 0, "granules {granules:#x} of page {page} are free already");
        self.free[page] |= granules;
        self.free_len += u64::from(granules.count_ones()) * GRANULE_LEN as u64;
        self.note(page);
    }

    /// Keeps a run of a lent page back, and with it what is free of the page, so that the page empties soon;
    /// has it replaced when it is empty.
    fn hold(&mut self, page: usize, granules: u32) {
        debug_assert_eq!(self.held[page] & granules, 0, "U5: a run returned twice");
        let withdrawn = std::mem::take(&mut self.free[page]);
        self.free_len -= u64::from(withdrawn.count_ones()) * GRANULE_LEN as u64;
        self.note(page);
        self.held[page] |= granules | withdrawn;
        self.stuck_count += (granules | withdrawn).count_ones();
        if self.held[page] == u32::MAX {
            self.stuck_count -= PAGE_GRANULES as u32;
            self.replacing |= 1 << page;
            self.shared.pages().want(page);
        } else {
            self.shared.pages().drain(page);
        }
    }

    /// Frees the pages that have been replaced; whether there were any.
    pub(super) fn take_replaced(&mut self) -> bool {
        let pages = self.shared.pages().take_replaced();
        for page in bits(pages) {
            let page = page as usize;
            assert_eq!(self.held[page], u32::MAX, "U5: page {page} is replaced while it has owners");
            self.held[page] = 0;
            self.free[page] = u32::MAX;
            self.free_len += HUGE_PAGE_LEN as u64;
            self.note(page);
        }
        self.replacing &= !pages;
        pages != 0
    }
}

/// The set bits' numbers.
pub(super) fn bits(mut mask: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}

/// The order of runs of `len` bytes.
///
/// # Panics
/// If `len` is no power of two within the chunk limits.
pub(super) fn order_of(len: usize) -> usize {
    assert!(len.is_power_of_two(), "chunk length {len} is no power of two");
    assert!(len >= GRANULE_LEN, "chunk length {len} is below {GRANULE_LEN}");
    assert!(len <= CHUNK_LEN_MAX.as_usize(), "chunk length {len} is above {CHUNK_LEN_MAX}");
    (len / GRANULE_LEN).ilog2() as usize
}

/// Where in a page's free granules the first run of `order` starts.
fn fit(free: u32, order: usize) -> Option<usize> {
    let runs = (0..order).fold(free, |runs, step| runs & runs >> (1 << step)) & STARTS[order];
    (runs != 0).then(|| runs.trailing_zeros() as usize)
}

/// A run of `order` from granule `at` of a page on, one bit per granule.
fn granule_bits(at: usize, order: usize) -> u32 {
    (((1u64 << (1 << order)) - 1) << at) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a plain search: the first aligned run, wholly free.
    #[test]
    fn the_first_run_that_fits_is_found() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let free = random.u32(..) | random.u32(..) | random.u32(..);
            for order in 0..STARTS.len() {
                let whole = |at: &usize| granule_bits(*at, order) & !free == 0;
                assert_eq!(fit(free, order), (0..32).step_by(1 << order).find(whole), "{free:#x} {order}");
            }
        }
        assert_eq!((fit(0, 0), fit(u32::MAX, 4), fit(0xffff_0000, 4)), (None, Some(0), Some(16)));
    }

    #[test]
    #[should_panic(expected = "no power of two")]
    fn odd_lengths_are_refused() {
        order_of(3 * GRANULE_LEN);
    }
}
