//! The huge pages of a slab: which are lent, which are to be replaced, which have been.
//!
//! What is sent by reference stays in socket queues for as long as peers please, and nothing tells when
//! they have read it. So memory of a lent page is not handed out again; once nobody owns any of it, the
//! whole page is dropped and backed afresh, and what is queued keeps the old page.
//!
//! A page goes round: lent (by the driver that sends) -> wanted (by the arena, when the last owner is gone)
//! -> under way (a helper thread drops and backs it) -> replaced -> free (after the driver has registered the
//! slab again, since a registration keeps the old page). Always holds: a page that is wanted, under way or
//! replaced has no owner, and the arena hands nothing of it out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rohrpost_engine_core::ops::Event;
use rohrpost_engine_core::planted::{Bug, is_planted};
use rohrpost_engine_core::platform::{Platform, SLAB_LEN};

use super::owned::GRANULE_LEN;
use super::slab::{LinuxSlab, SlabShared};
use crate::memory::HUGE_PAGE_LEN;

/// Huge pages of a slab.
pub(super) const PAGES: usize = SLAB_LEN.as_usize() / HUGE_PAGE_LEN;

/// Granules of a huge page.
pub(super) const PAGE_GRANULES: usize = HUGE_PAGE_LEN / GRANULE_LEN;

/// Shortest run whose bytes are lent. A page is replaced when all its runs have come back; many short runs,
/// each with a life of its own, would keep it from that.
pub(super) const LENT_RUN_LEN_MIN: usize = 256 << 10;

/// One bit per page in each; see the module.
#[derive(Debug, Default)]
pub(super) struct Pages {
    lent: AtomicU32,
    /// Lent no more: they hold short runs.
    refused: AtomicU32,
    /// Lent, and partly given up.
    draining: AtomicU32,
    wanted: AtomicU32,
    backed: AtomicU32,
    /// The batch under way is complete.
    batch_done: AtomicBool,
    replaced: AtomicU32,
    /// The system does not let go of pages: nothing more may be lent.
    stuck: AtomicBool,
    /// Too much of what was lent waits for its neighbours: nothing more may be lent for now.
    paused: AtomicBool,
}

impl Pages {
    /// `lends`: whether the system lets go of pages.
    pub(super) fn new(lends: bool) -> Self {
        Self { stuck: AtomicBool::new(!lends), ..Self::default() }
    }

    /// Marks the page of an owned run as lent. `false`: its bytes must be copied.
    ///
    /// [U5] The caller owns part of the run, so the arena, which takes it back after its last owner, sees
    /// the mark.
    pub(super) fn lend(&self, page: usize, run_len: usize) -> bool {
        if self.lent.load(Ordering::Relaxed) & (1 << page) != 0 {
            return true;
        }
        // The first page holds the bounce blocks, which come and go with every commit.
        let refused = page == 0
            || run_len < LENT_RUN_LEN_MIN
            || self.refused.load(Ordering::Relaxed) & (1 << page) != 0
            || self.stuck.load(Ordering::Relaxed)
            || self.paused.load(Ordering::Relaxed);
        if !refused {
            self.lent.fetch_or(1 << page, Ordering::Relaxed);
        }
        !refused
    }

    /// Nothing more is lent of a page that holds short runs.
    pub(super) fn refuse(&self, page: usize) {
        self.refused.fetch_or(1 << page, Ordering::Relaxed);
    }

    /// A page that is free may be lent.
    pub(super) fn allow(&self, page: usize) {
        self.refused.fetch_and(!(1 << page), Ordering::Relaxed);
    }

    /// Whether pages may be lent that are not yet.
    pub(super) fn set_lending(&self, lends: bool) {
        self.paused.store(!lends, Ordering::Relaxed);
    }

    /// Part of a lent page has been given up.
    pub(super) fn drain(&self, page: usize) {
        self.draining.fetch_or(1 << page, Ordering::Relaxed);
    }

    /// Whether part of the page has been given up and waits for the rest.
    pub(super) fn is_draining(&self, page: usize) -> bool {
        self.draining.load(Ordering::Relaxed) & (1 << page) != 0
    }

    /// The lent pages. Exact for pages whose runs have been collected.
    pub(super) fn lent(&self) -> u32 {
        self.lent.load(Ordering::Relaxed)
    }

    /// Asks for a page to be replaced; nobody owns any of it.
    pub(super) fn want(&self, page: usize) {
        self.wanted.fetch_or(1 << page, Ordering::Release);
    }

    /// The pages whose replacement is complete; they are not lent any more.
    pub(super) fn take_replaced(&self) -> u32 {
        if self.replaced.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let pages = self.replaced.swap(0, Ordering::Acquire);
        self.lent.fetch_and(!pages, Ordering::Relaxed);
        self.draining.fetch_and(!pages, Ordering::Relaxed);
        pages
    }
}

/// Pages of one slab that nobody owns, on their way to a helper thread.
#[derive(Debug)]
pub(crate) struct StalePages {
    slab: Arc<SlabShared>,
    pages: u32,
}

impl StalePages {
    /// Drops the pages and backs them afresh; takes a tenth to several milliseconds per page, so never on a
    /// shard. Returns how many bytes were replaced.
    pub(crate) fn replace(self) -> u64 {
        let mut rest = self.pages;
        let mut backed = 0;
        while rest != 0 {
            let page = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            if is_planted(Bug::ReuseLentPage) {
                backed |= 1 << page;
                continue;
            }
            // SAFETY: [U5] the page was wanted, so nobody owns any of it, and nobody will before it counts
            // as replaced.
            let renewed = unsafe { self.slab.memory().renew(page * HUGE_PAGE_LEN, HUGE_PAGE_LEN) };
            match renewed {
                Ok(()) => backed |= 1 << page,
                // The old page is still there, and so is what is queued: it stays out of use.
                Err(_) => self.slab.pages().stuck.store(true, Ordering::Relaxed),
            }
        }
        self.slab.pages().backed.fetch_or(backed, Ordering::Relaxed);
        self.slab.pages().batch_done.store(true, Ordering::Release);
        u64::from(backed.count_ones()) * HUGE_PAGE_LEN as u64
    }
}

/// What is to be said when a lent page cannot be replaced.
pub(crate) const NOT_REPLACED: &str = "sends no more by reference: the system does not let go of memory that was sent, \
     as if it were locked (mlockall); it is copied instead, which costs CPU";

/// A driver's part in the round of the pages of its shard's slabs.
#[derive(Debug, Default)]
pub(crate) struct PageRound {
    slabs: Vec<Watched>,
    /// A page could not be replaced, and that was said.
    stuck: bool,
}

#[derive(Debug)]
struct Watched {
    slab: LinuxSlab,
    under_way: bool,
}

impl PageRound {
    /// A round over up to `slabs_max` slabs without allocation.
    pub(crate) fn with_capacity(slabs_max: usize) -> Self {
        Self { slabs: Vec::with_capacity(slabs_max), stuck: false }
    }

    /// Includes a slab.
    pub(crate) fn watch(&mut self, slab: &LinuxSlab) {
        self.slabs.push(Watched { slab: LinuxSlab(Arc::clone(&slab.0)), under_way: false });
    }

    /// Includes the slabs that have just come.
    pub(crate) fn watch_grown<P: Platform<Slab = LinuxSlab>>(&mut self, events: &[Event<P>]) {
        for event in events {
            if let Event::Grown(slab) = event {
                self.watch(slab);
            }
        }
    }

    /// Hands the pages that the arena wants replaced to `submit`, one batch per slab at a time.
    pub(crate) fn take_wanted(&mut self, mut submit: impl FnMut(StalePages)) {
        for Watched { slab, under_way } in &mut self.slabs {
            let wanted = &slab.0.pages().wanted;
            if !*under_way && wanted.load(Ordering::Relaxed) != 0 {
                let pages = wanted.swap(0, Ordering::Acquire);
                *under_way = true;
                submit(StalePages { slab: Arc::clone(&slab.0), pages });
            }
        }
    }

    /// Gives pages that were backed afresh to the arena, after `register` has registered their slab again. Whether
    /// pages turned out not to be replaceable, for the first time: [`NOT_REPLACED`].
    pub(crate) fn take_backed(&mut self, mut register: impl FnMut(&LinuxSlab)) -> bool {
        let mut stuck = self.stuck;
        for Watched { slab, under_way } in &mut self.slabs {
            let pages = slab.0.pages();
            if *under_way && pages.batch_done.load(Ordering::Acquire) {
                pages.batch_done.store(false, Ordering::Relaxed);
                let backed = pages.backed.swap(0, Ordering::Relaxed);
                if backed != 0 {
                    register(slab);
                }
                pages.replaced.fetch_or(backed, Ordering::Release);
                *under_way = false;
            }
            stuck |= pages.stuck.load(Ordering::Relaxed);
        }
        std::mem::replace(&mut self.stuck, stuck) != stuck
    }
}
