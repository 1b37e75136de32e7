//! A slab: 64 MiB of huge-page memory and the counters that say who still names which part of it.
//!
//! Units are what is counted: the granules of 64 KiB, of which a chunk takes a run and is counted at
//! the first, and the bounce blocks of 4 KiB that the slab's first granules are cut into. Counters are
//! made with the slab, so that handing out, sharing and returning memory never allocates. The last
//! owner of a run, on whichever thread, sets the run's bit in `returned`; the arena collects the bits.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use rohrpost_engine_core::platform::{DIRECT_IO_ALIGN, SLAB_LEN};

use super::owned::{GRANULE_LEN, GRANULES};
use super::pages::{PAGE_GRANULES, Pages};
use crate::memory::AlignedBuffer;

/// Length of a bounce block, bytes.
pub(super) const BOUNCE_LEN: usize = DIRECT_IO_ALIGN as usize;

/// Bounce blocks of a slab: as many as one shard has commits in flight by default, so one bit set.
pub(super) const BOUNCES: usize = 64;

/// Granules at the start of the slab that are cut into bounce blocks.
pub(super) const BOUNCE_GRANULES: usize = BOUNCES * BOUNCE_LEN / GRANULE_LEN;

const _: () = assert!((BOUNCES * BOUNCE_LEN).is_multiple_of(GRANULE_LEN));
const _: () = assert!(BOUNCE_GRANULES.is_power_of_two());

/// Word of `returned` that stands for the bounce blocks.
pub(super) const BOUNCE_WORD: usize = GRANULES / 64;

const UNITS: usize = GRANULES + BOUNCES;

/// Fresh memory on its way into an arena.
#[derive(Debug)]
pub struct LinuxSlab(pub(super) Arc<SlabShared>);

impl LinuxSlab {
    /// Maps a slab and backs all its pages; takes tens to hundreds of milliseconds, so never on a
    /// shard. `index` is its number in the arena that will adopt it, from 0 in order.
    ///
    /// # Errors
    /// The system's, mostly `ENOMEM`.
    pub fn allocate(index: u32) -> io::Result<Self> {
        let mut memory = AlignedBuffer::new(SLAB_LEN.as_usize())?;
        memory.populate()?;
        let lends = memory.try_renew();
        Ok(Self(Arc::new(SlabShared::new(memory, index, lends))))
    }

    /// Number of the slab in its arena, and so of its registered buffer.
    pub fn index(&self) -> u32 {
        self.0.index
    }

    /// The slab's memory, for registration: start and length in bytes.
    pub(crate) fn memory(&self) -> (NonNull<u8>, usize) {
        (self.0.memory.start(), self.0.memory.len())
    }
}

/// What the arena, its chunks and their leases share.
#[derive(Debug)]
pub(super) struct SlabShared {
    /// [U2] Only named through runs once chunks exist; never dereferenced as a whole.
    memory: AlignedBuffer,
    pub(super) index: u32,
    /// By unit: owners of the run that starts there.
    references: Box<[AtomicU32]>,
    /// By granule: bytes of the run that starts there counted as sent; zeroed before it is handed out.
    sent: Box<[AtomicU64]>,
    /// By granule: order of the run that starts there; written by the arena before it hands it out.
    orders: Box<[AtomicU8]>,
    /// One bit per unit whose run has no owner and waits for the arena.
    returned: [AtomicU64; BOUNCE_WORD + 1],
    /// Bytes of the runs in `returned`, bounce blocks excluded. Raised before the bit is set, so it is
    /// never less than what the bits stand for.
    returned_len: AtomicU64,
    pages: Pages,
}

impl SlabShared {
    fn new(memory: AlignedBuffer, index: u32, lends: bool) -> Self {
        Self {
            memory,
            index,
            references: (0..UNITS).map(|_| AtomicU32::new(0)).collect(),
            sent: (0..GRANULES).map(|_| AtomicU64::new(0)).collect(),
            orders: (0..GRANULES).map(|_| AtomicU8::new(0)).collect(),
            returned: [const { AtomicU64::new(0) }; BOUNCE_WORD + 1],
            returned_len: AtomicU64::new(0),
            pages: Pages::new(lends),
        }
    }

    /// What is lent and replaced of it.
    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The memory, for replacing pages of it.
    pub(super) fn memory(&self) -> &AlignedBuffer {
        &self.memory
    }

    /// Order of the run that starts at `granule`.
    pub(super) fn order(&self, granule: usize) -> usize {
        usize::from(self.orders[granule].load(Ordering::Relaxed))
    }

    /// Bytes that wait in `returned`.
    pub(super) fn returned_len(&self) -> u64 {
        self.returned_len.load(Ordering::Relaxed)
    }

    /// Takes the returned units of one word. Everything their last owners did happened before.
    pub(super) fn collect(&self, word: usize) -> u64 {
        if self.returned[word].load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.returned[word].swap(0, Ordering::Acquire)
    }

    /// Takes `len` bytes off what waits, for runs that were collected.
    pub(super) fn forget_returned(&self, len: u64) {
        self.returned_len.fetch_sub(len, Ordering::Relaxed);
    }
}

/// One owner of a run of memory; counted.
#[derive(Debug)]
pub(super) struct Run {
    slab: Arc<SlabShared>,
    unit: u32,
}

impl Run {
    /// The first owner of a run of granules.
    ///
    /// # Panics
    /// If the run has an owner.
    pub(super) fn of_granules(slab: &Arc<SlabShared>, granule: usize, order: usize) -> Self {
        slab.orders[granule].store(order as u8, Ordering::Relaxed);
        slab.sent[granule].store(0, Ordering::Relaxed);
        Self::first(slab, granule)
    }

    /// The first owner of a bounce block.
    ///
    /// # Panics
    /// If the block has an owner.
    pub(super) fn of_bounce(slab: &Arc<SlabShared>, bounce: usize) -> Self {
        Self::first(slab, GRANULES + bounce)
    }

    fn first(slab: &Arc<SlabShared>, unit: usize) -> Self {
        // [U3] Only the arena gets here, after it collected the unit's bit or before it ever handed it out.
        let owners = slab.references[unit].swap(1, Ordering::Relaxed);
        assert_eq!(owners, 0, "U3: unit {unit} has owners");
        Self { slab: Arc::clone(slab), unit: unit as u32 }
    }

    /// The slab the run lies in.
    pub(super) fn slab(&self) -> &Arc<SlabShared> {
        &self.slab
    }

    /// Marks the run's huge page as lent: what this owner gives to the kernel by reference stays as it is
    /// until the page is replaced. `false`: its bytes must be copied.
    pub(super) fn lend(&self) -> bool {
        let unit = self.unit as usize;
        unit < GRANULES && self.slab.pages.lend(unit / PAGE_GRANULES, self.len())
    }

    /// Whether what was given up of the run's page waits for the run.
    pub(super) fn holds_up(&self) -> bool {
        let unit = self.unit as usize;
        unit < GRANULES && self.slab.pages.is_draining(unit / PAGE_GRANULES)
    }

    /// Bytes of the run counted as sent; `None` for bounce blocks, which are never sent.
    pub(super) fn sent(&self) -> Option<&AtomicU64> {
        self.slab.sent.get(self.unit as usize)
    }

    /// Where the run starts in its slab, bytes.
    fn start(&self) -> usize {
        let unit = self.unit as usize;
        if unit < GRANULES { unit * GRANULE_LEN } else { (unit - GRANULES) * BOUNCE_LEN }
    }

    /// Length of the run, bytes.
    pub(super) fn len(&self) -> usize {
        let unit = self.unit as usize;
        if unit < GRANULES { GRANULE_LEN << self.slab.order(unit) } else { BOUNCE_LEN }
    }

    /// Address of the run's byte `at`; valid for reading or writing only as U2 says.
    pub(super) fn address(&self, at: usize) -> NonNull<u8> {
        debug_assert!(at <= self.len(), "U2: {at} beyond a run of {}", self.len());
        let from = self.start() + at;
        // SAFETY: [U2] `at` is at most the run's length and the run lies within the slab.
        unsafe { self.slab.memory.start().add(from) }
    }
}

impl Clone for Run {
    fn clone(&self) -> Self {
        let owners = self.slab.references[self.unit as usize].fetch_add(1, Ordering::Relaxed);
        assert!(owners < u32::MAX / 2, "U3: unit {} has {owners} owners", self.unit);
        Self { slab: Arc::clone(&self.slab), unit: self.unit }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let unit = self.unit as usize;
        if self.slab.references[unit].fetch_sub(1, Ordering::Release) > 1 {
            return;
        }
        // [U3] What every other owner read or wrote comes before the unit's return.
        fence(Ordering::Acquire);
        if unit < GRANULES {
            self.slab.returned_len.fetch_add(self.len() as u64, Ordering::Relaxed);
        }
        self.slab.returned[unit / 64].fetch_or(1 << (unit % 64), Ordering::Release);
    }
}
