//! A shard's memory: the arena, the read cache that fills what nobody else needs, and its growth.
//!
//! Always holds: memory in use is what the arena counts as taken; the cache gives up chunks when the
//! arena can neither serve a request nor grow. Does not decide who waits.

use crate::cache::{ReadCache, SegmentUid};
use crate::disk::Errno;
use crate::planted::{Bug, is_planted};
use crate::platform::{Arena, CHUNK_LEN_MAX, CHUNK_LEN_MIN, Chunk, Content, Lease, Platform, SLAB_LEN};
use crate::types::{ByteCount, Position};

/// Largest share of the arena that one chunk of a tail may take: small arenas use small chunks.
const TAIL_CHUNK_SHARE: u64 = 64;

/// Chunks given up for one request. What transfers still name does not come back at once: without a
/// limit, one request under pressure would empty the cache for nothing.
const EVICTIONS_PER_TAKE: usize = 32;

/// Share of the arena that is to be free, or about to be, while memory is sent by reference: what was lent comes
/// back only after its pages have been replaced, which takes a helper thread some milliseconds.
const REPLACED_AHEAD_SHARE: u64 = 8;

/// As much of it as is ever needed, bytes: about ten milliseconds of a fast device.
const REPLACED_AHEAD_LEN_MAX: u64 = 32 << 20;

/// Times that much free, wherever it lies: nothing is evicted ahead then, since what keeps pages from being whole is
/// not in the cache.
const AMPLE: u64 = 2;

/// See the module documentation.
pub(crate) struct Memory<P: Platform> {
    pub(crate) arena: P::Arena,
    pub(crate) cache: ReadCache<P::Lease>,
    len_max: ByteCount,
    len_start: ByteCount,
    growing: bool,
    grow_failed: Option<Errno>,
    next_uid: u32,
    /// Slabs adopted.
    slabs: u64,
}

impl<P: Platform> Memory<P> {
    pub(crate) fn new(arena: P::Arena, len_max: ByteCount, len_start: ByteCount) -> Self {
        let len_max = ByteCount::new(len_max.get().max(SLAB_LEN.get()));
        Self {
            arena,
            cache: ReadCache::new(len_max),
            len_max,
            len_start,
            slabs: 0,
            growing: false,
            grow_failed: None,
            next_uid: 0,
        }
    }

    /// Names a segment to the cache.
    pub(crate) fn new_uid(&mut self) -> SegmentUid {
        self.next_uid += 1;
        SegmentUid(self.next_uid)
    }

    /// Whether the arena should grow now: little is free, the limit allows it, no slab is under way.
    /// The caller asks the driver.
    pub(crate) fn wants_growth(&mut self) -> bool {
        let scarce = self.arena.free_len().get() < SLAB_LEN.get() / 4 || !self.has_start_len();
        let wants = self.can_grow() && scarce && !self.growing;
        self.growing |= wants;
        wants
    }

    /// Whether the limit has room for another slab, and none has been refused.
    fn can_grow(&self) -> bool {
        (self.slabs + 1) * SLAB_LEN.get() <= self.len_max.get() && self.grow_failed.is_none()
    }

    /// Whether the arena is as long as it is to be at the start, or as long as it gets.
    pub(crate) fn has_start_len(&self) -> bool {
        let len = self.slabs * SLAB_LEN.get();
        len >= self.len_start.get().min(self.len_max.get() / SLAB_LEN.get() * SLAB_LEN.get())
            || self.grow_failed.is_some()
    }

    /// A slab arrived.
    pub(crate) fn grow(&mut self, slab: P::Slab) {
        self.arena.adopt(slab);
        self.slabs += 1;
        self.growing = false;
    }

    /// No slab is to be had: the arena stays as it is.
    pub(crate) fn refuse_growth(&mut self, errno: Errno) {
        self.growing = false;
        self.grow_failed = Some(errno);
    }

    /// Why the arena stopped growing, if it did.
    pub(crate) fn growth_refused(&self) -> Option<Errno> {
        self.grow_failed
    }

    /// A chunk of `len` bytes for what is appended, at the cost of cached chunks. `None`: wait for memory to come back.
    pub(crate) fn take(&mut self, len: ByteCount) -> Option<P::Chunk> {
        self.take_evicting(len, Content::Written, ReadCache::evict)
    }

    /// A chunk of `len` bytes to read into: that of a chunk that was read once, if it can be had; at the cost of others
    /// while those fill more than their share; of any, if `at_any_cost`. `None`: wait for memory to come back.
    pub(crate) fn take_for_read(&mut self, len: ByteCount, at_any_cost: bool) -> Option<P::Chunk> {
        for _ in 0..EVICTIONS_PER_TAKE {
            if !self.cache.recycle(len, self.arena.capacity()) {
                break;
            }
        }
        let evict = if at_any_cost { ReadCache::evict } else { ReadCache::evict_sparing };
        self.take_evicting(len, Content::Read, evict)
    }

    fn take_evicting(
        &mut self,
        len: ByteCount,
        content: Content,
        evict: fn(&mut ReadCache<P::Lease>, ByteCount) -> bool,
    ) -> Option<P::Chunk> {
        for _ in 0..EVICTIONS_PER_TAKE {
            if let Some(chunk) = self.arena.take(len, content) {
                return Some(chunk);
            }
            if !evict(&mut self.cache, self.arena.capacity()) {
                return None;
            }
        }
        None
    }

    /// Takes stock of what was lent, once a turn, and evicts so far ahead that free memory does not run out
    /// while pages are being replaced.
    pub(crate) fn settle(&mut self) {
        self.arena.settle();
        if self.can_grow() {
            return;
        }
        let capacity = self.arena.capacity();
        let ahead = (capacity.get() / REPLACED_AHEAD_SHARE).min(REPLACED_AHEAD_LEN_MAX);
        let ahead = ahead.min(self.arena.lent_len().get());
        for _ in 0..EVICTIONS_PER_TAKE {
            let enough =
                self.arena.coming_len().get() >= ahead || self.arena.free_len().get() >= AMPLE * ahead;
            if enough || !self.arena.lends() || !self.cache.evict(capacity) {
                return;
            }
            self.arena.settle();
        }
    }

    /// Whether memory should be lent. A page that was lent is free only when nobody holds anything of it, so while cached
    /// chunks have to go for others to come, ranges are copied: peers that do not read would hold all of the arena.
    pub(crate) fn lends(&self) -> bool {
        let free = self.arena.free_len().get();
        let is_tight = !self.can_grow() && free * REPLACED_AHEAD_SHARE < self.arena.capacity().get();
        self.arena.lends() && !is_tight
    }

    /// Longest chunk for a tail in this arena.
    pub(crate) fn tail_chunk_len_max(&self) -> ByteCount {
        let share = self.arena.capacity().get() / TAIL_CHUNK_SHARE;
        let floor = if share == 0 { 0 } else { 1 << share.ilog2() };
        ByteCount::new(floor.clamp(CHUNK_LEN_MIN.get(), CHUNK_LEN_MAX.get()))
    }

    /// Hands a chunk that nothing is appended to any more to the cache: `[valid_from, end)` of it holds
    /// log bytes.
    pub(crate) fn retire(
        &mut self,
        uid: SegmentUid,
        position: Position,
        mut chunk: P::Chunk,
        valid_from: Position,
        end: Position,
    ) {
        // A chunk taken for an append that came to nothing may lie wholly behind its segment's end.
        if end <= valid_from {
            return;
        }
        let valid_from = if is_planted(Bug::CacheBeforeValid) { position } else { valid_from };
        let (from, to) = (valid_from.since(position).as_usize(), end.since(position).as_usize());
        if chunk.frozen() < to {
            chunk.freeze(to);
        }
        let lease = chunk.lease(from..to);
        let len = ByteCount::of_usize(chunk.len());
        self.cache.insert_written(uid, position, len, (valid_from, end), lease);
    }

    /// A bounce block beside `lease`.
    pub(crate) fn take_bounce(&mut self, lease: &P::Lease) -> Option<P::Chunk> {
        debug_assert!(!lease.is_empty());
        self.arena.take_bounce(lease)
    }
}
