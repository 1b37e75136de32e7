//! One slab of the simulated arena: which granules are taken, which pages are lent, and what was sent of them.
//!
//! What returns in a lent page is held back until all of the page has, and the driver has replaced it in its own time. A
//! [`Reference`] stands for what a peer has not read yet, and tells whether its bytes are still those that were
//! sent. Always holds: a granule is free, taken or held; no two live regions share one.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rohrpost_engine_core::platform::{CHUNK_LEN_MIN, DIRECT_IO_ALIGN};

/// Granules of the bookkeeping.
pub(crate) const GRANULE: usize = CHUNK_LEN_MIN.as_usize();

/// Granules of a page, which is replaced as a whole.
const PAGE_GRANULES: usize = 4;

/// A slab on its way into an arena.
pub struct SimSlab {
    pub(crate) shared: Arc<Slab>,
}

/// What an arena, its chunks and the driver share.
#[derive(Debug)]
pub(crate) struct Slab {
    pub(crate) id: u64,
    state: Mutex<SlabState>,
}

#[derive(Debug)]
struct SlabState {
    granules: Vec<Granule>,
    pages: Vec<Page>,
    /// Nothing more may be lent for now.
    paused: bool,
    bounces_free: Vec<usize>,
    bounces: usize,
}

#[derive(Clone, Debug, Default)]
struct Granule {
    taken: bool,
    /// Returned, and waits for its page.
    held: bool,
    /// How often it was taken.
    uses: u32,
}

#[derive(Clone, Debug, Default)]
struct Page {
    lent: bool,
    /// The driver replaces it.
    wanted: bool,
    /// How often it was replaced.
    incarnation: u32,
}

/// Bytes in a peer's queue that were not copied.
#[derive(Debug)]
pub struct Reference {
    slab: Arc<Slab>,
    granules: Range<usize>,
    /// What the granules were when they were sent: incarnation of the page, use of the granule.
    sent: Vec<(u32, u32)>,
}

/// A range of a slab with an owner; returns to the slab when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) slab: Arc<Slab>,
    /// In the slab, bytes.
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) bounce: bool,
    pub(crate) sent: AtomicU64,
}

/// Looks after a slab that is in an arena: counts what has come home, and replaces what was lent.
pub struct SlabWatch {
    shared: Arc<Slab>,
}

impl SimSlab {
    /// A slab of `granules` times [`CHUNK_LEN_MIN`] for chunks, and `bounces` bounce blocks.
    pub fn new(id: u64, granules: usize, bounces: usize) -> Self {
        let base = granules * GRANULE;
        let state = SlabState {
            granules: vec![Granule::default(); granules],
            pages: vec![Page::default(); granules.div_ceil(PAGE_GRANULES)],
            paused: false,
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

impl SlabWatch {
    /// Granules and bounce blocks somebody still owns.
    pub fn taken(&self) -> usize {
        let state = self.shared.state();
        let taken = state.granules.iter().filter(|granule| granule.taken).count();
        taken + state.bounces - state.bounces_free.len()
    }

    /// Lent pages that nobody owns any of and that no earlier call has named.
    pub(crate) fn take_wanted(&self) -> Vec<usize> {
        let mut state = self.shared.state();
        let is_held = |page: &usize| state.granules_of(*page).iter().all(|granule| granule.held);
        let found: Vec<_> = (0..state.pages.len()).filter(|&page| !state.pages[page].wanted).collect();
        let found: Vec<_> = found.into_iter().filter(is_held).collect();
        found.iter().for_each(|&page| state.pages[page].wanted = true);
        found
    }

    /// Puts fresh memory in the place of a page.
    pub(crate) fn replace(&self, page: usize) {
        let mut state = self.shared.state();
        let granules = state.of_page(page);
        for granule in &mut state.granules[granules] {
            assert!(granule.held && !granule.taken, "page {page} is replaced while it has owners");
            granule.held = false;
        }
        let incarnation = state.pages[page].incarnation + 1;
        state.pages[page] = Page { lent: false, wanted: false, incarnation };
    }
}

impl Reference {
    /// Whether the bytes are still there: nobody was given their memory, or not before it was replaced.
    pub fn is_intact(&self) -> bool {
        let state = self.slab.state();
        let now = self.granules.clone().map(|granule| state.identity(granule));
        now.zip(&self.sent).all(|(now, sent)| now.0 != sent.0 || now.1 == sent.1)
    }
}

impl Slab {
    fn state(&self) -> MutexGuard<'_, SlabState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// First free run of `count` granules on its natural boundary.
    pub(crate) fn take(&self, count: usize) -> Option<usize> {
        let mut state = self.state();
        let starts = (0..state.granules.len()).step_by(count).filter(|at| at + count <= state.granules.len());
        let is_free = |at: &usize| state.granules[*at..at + count].iter().all(Granule::is_free);
        let at = starts.into_iter().find(is_free)?;
        for granule in &mut state.granules[at..at + count] {
            granule.taken = true;
            granule.uses += 1;
        }
        Some(at * GRANULE)
    }

    pub(crate) fn take_bounce(&self) -> Option<usize> {
        self.state().bounces_free.pop()
    }

    pub(crate) fn len(&self) -> usize {
        self.state().granules.len() * GRANULE
    }

    pub(crate) fn free_len(&self) -> usize {
        self.state().granules.iter().filter(|granule| granule.is_free()).count() * GRANULE
    }

    /// Bytes that wait in lent pages for others to return.
    pub(crate) fn stuck_len(&self) -> usize {
        let state = self.state();
        let pages = (0..state.pages.len()).map(|page| state.granules_of(page));
        let held = pages.map(|page| (page.iter().filter(|granule| granule.held).count(), page.len()));
        held.filter(|(held, all)| held < all).map(|(held, _)| held * GRANULE).sum()
    }

    /// Bytes of lent pages that are not being replaced.
    pub(crate) fn lent_len(&self) -> usize {
        let pages = self.state().pages.iter().filter(|page| page.lent && !page.wanted).count();
        pages * PAGE_GRANULES * GRANULE
    }

    /// Bytes of pages wholly free, or being replaced.
    pub(crate) fn coming_len(&self) -> usize {
        let state = self.state();
        let is_free = |page: usize| state.granules_of(page).iter().all(Granule::is_free);
        let pages = (0..state.pages.len()).filter(|&page| state.pages[page].wanted || is_free(page));
        pages.count() * PAGE_GRANULES * GRANULE
    }

    pub(crate) fn set_lending(&self, lends: bool) {
        self.state().paused = !lends;
    }

    pub(crate) fn lends(&self) -> bool {
        !self.state().paused
    }
}

impl Granule {
    const fn is_free(&self) -> bool {
        !self.taken && !self.held
    }
}

impl SlabState {
    fn of_page(&self, page: usize) -> Range<usize> {
        page * PAGE_GRANULES..self.granules.len().min((page + 1) * PAGE_GRANULES)
    }

    fn granules_of(&self, page: usize) -> &[Granule] {
        &self.granules[self.of_page(page)]
    }

    fn identity(&self, granule: usize) -> (u32, u32) {
        (self.pages[granule / PAGE_GRANULES].incarnation, self.granules[granule].uses)
    }

    /// Takes a run back. What returns in a lent page is held back, and with it what was free of the page.
    fn give_back(&mut self, run: Range<usize>) {
        for granule in run.clone() {
            assert!(self.granules[granule].taken, "a chunk came home twice");
            self.granules[granule].taken = false;
        }
        for page in pages_of(&run) {
            if self.pages[page].lent {
                let granules = self.of_page(page);
                self.granules[granules].iter_mut().for_each(|granule| granule.held |= !granule.taken);
            }
        }
    }
}

impl Region {
    fn granules(&self) -> Range<usize> {
        self.offset / GRANULE..(self.offset + self.len) / GRANULE
    }

    /// Lends the pages of the region. `None`: its bytes must be copied.
    pub(crate) fn lend(&self) -> Option<Reference> {
        let mut state = self.slab.state();
        if self.bounce || state.paused {
            return None;
        }
        let granules = self.granules();
        pages_of(&granules).for_each(|page| state.pages[page].lent = true);
        let sent = granules.clone().map(|granule| state.identity(granule)).collect();
        Some(Reference { slab: self.slab.clone(), granules, sent })
    }

    /// Whether memory of the same pages waits for this region.
    pub(crate) fn holds_up(&self) -> bool {
        let state = self.slab.state();
        !self.bounce
            && pages_of(&self.granules())
                .any(|page| state.granules_of(page).iter().any(|granule| granule.held))
    }
}

fn pages_of(run: &Range<usize>) -> Range<usize> {
    run.start / PAGE_GRANULES..run.end.div_ceil(PAGE_GRANULES)
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut state = self.slab.state();
        if self.bounce {
            assert!(!state.bounces_free.contains(&self.offset), "a bounce block came home twice");
            state.bounces_free.push(self.offset);
            return;
        }
        state.give_back(self.granules());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(slab: &SimSlab, granules: usize) -> Option<Region> {
        let slab = slab.shared.clone();
        let offset = slab.take(granules)?;
        Some(Region { slab, offset, len: granules * GRANULE, bounce: false, sent: AtomicU64::new(0) })
    }

    /// What a peer still has to read stays; what is taken next lies elsewhere, or in fresh memory.
    #[test]
    fn lent_memory_comes_home_when_its_page_is_replaced() {
        let slab = SimSlab::new(1, 2 * PAGE_GRANULES, 0);
        let watch = slab.watch();
        let take = || region(&slab, PAGE_GRANULES / 2);
        let [first, beside] = [take(), take()].map(|region| region.expect("memory"));
        let reference = first.lend().expect("nothing is stuck");
        drop(first);
        assert!(beside.holds_up());
        let others = [take(), take()].map(|region| region.expect("the other page"));
        assert!(take().is_none() && watch.take_wanted().is_empty(), "its page has an owner");
        drop(beside);
        assert_eq!((watch.take_wanted(), watch.take_wanted()), (vec![0], vec![]));
        assert!(take().is_none(), "it is not replaced yet");
        watch.replace(0);
        let fresh = take().expect("it is replaced");
        assert!(reference.is_intact());
        drop((others, fresh));
        assert_eq!((watch.taken(), slab.shared.free_len()), (0, slab.shared.len()));
    }

    /// An arena that hands lent memory out again is found out.
    #[test]
    fn a_reference_notices_that_its_memory_is_used_again() {
        let slab = SimSlab::new(1, 1, 0);
        let lent = region(&slab, 1).expect("memory");
        let reference = lent.lend().expect("nothing is stuck");
        slab.shared.state().pages[0].lent = false;
        drop(lent);
        assert!(reference.is_intact(), "what is free is not overwritten");
        let _again = region(&slab, 1).expect("memory");
        assert!(!reference.is_intact());
    }
}
