//! How much memory once-read chunks fill before it is used again.
//!
//! What a scan has passed is rarely wanted again, and a device that is played by a host writes faster into memory that
//! the processor's cache still knows (KERNEL.md, "Reads into few pages"). So scans go round in little memory and leave
//! the rest to others. Where chunks are read again soon after they had to leave, as by readers at some distance from each
//! other, the window is too small, and widens; it narrows as chunks leave that were of no more use. Deterministic.

use crate::types::ByteCount;

/// The narrowest window, bytes: room for a read each of sixteen readers.
const LEN_MIN: u64 = 16 << 20;

/// It takes no more of a small arena than this share.
const LEN_MIN_SHARE: u64 = 4;

/// A chunk that is read again widens the window by so many times its length.
const WIDEN: u64 = 4;

/// A chunk that leaves without having been asked for again narrows it by this share of its length.
const NARROW_SHARE: u64 = 8;

/// See the module documentation.
pub(super) struct Window {
    /// Bytes beyond the narrowest.
    more: u64,
    more_max: u64,
}

impl Window {
    /// For an arena of at most `arena_len_max` bytes.
    pub(super) fn new(arena_len_max: ByteCount) -> Self {
        Self { more: 0, more_max: arena_len_max.get() }
    }

    /// Bytes that once-read chunks may fill of an arena that has grown to `capacity`.
    pub(super) fn len(&self, capacity: ByteCount) -> ByteCount {
        ByteCount::new(LEN_MIN.min(capacity.get() / LEN_MIN_SHARE) + self.more)
    }

    /// A chunk of `len` bytes is read again.
    pub(super) fn widen(&mut self, len: ByteCount) {
        self.more = (self.more + WIDEN * len.get()).min(self.more_max);
    }

    /// A chunk of `len` bytes leaves that nobody has asked for again.
    pub(super) fn narrow(&mut self, len: ByteCount) {
        self.more = self.more.saturating_sub(len.get() / NARROW_SHARE);
    }
}
