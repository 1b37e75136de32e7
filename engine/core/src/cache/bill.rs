//! What the cache takes from its host.

use super::ghosts::Ghosts;
use super::{Entry, ReadCache, SegmentUid};
use crate::bill::table_len;
use crate::platform::{CHUNK_LEN_MIN, Lease};
use crate::types::ByteCount;

impl<L: Lease> ReadCache<L> {
    /// Bytes of memory that it takes itself, for an arena of that length.
    pub fn memory_len(arena_len_max: ByteCount) -> usize {
        let granules = (arena_len_max.get() / CHUNK_LEN_MIN.get()) as usize;
        // The map has one byte more a place, and is at most seven eighths full.
        let places = (granules * 2 * 8 / 7).next_power_of_two();
        let map = places * (size_of::<((SegmentUid, u32), u32)>() + 1);
        table_len::<Entry<L>>(granules) + table_len::<u32>(granules) + map + Ghosts::memory_len(granules)
    }
}
