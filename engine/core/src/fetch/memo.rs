//! Where the batches lie that were asked for lately.
//!
//! Owns one table per shard, made once. Always holds: an entry is exact. A batch below the high watermark never
//! moves, and a segment's uid is never given out twice, so an entry is replaced but never wrong. Readers that ask
//! for the same place one after the other thereby skip the index and the batch header, which is seldom in a
//! processor cache. Does not say whether the batch is in memory.

use crate::cache::SegmentUid;
use crate::types::{ByteCount, Offset, Position};

/// Sets, a power of two, and the entries of a set: 24 KiB a shard.
const SET_COUNT: usize = 256;
const WAY_COUNT: usize = 4;

const _: () = assert!(SET_COUNT.is_power_of_two());

#[derive(Clone, Copy)]
struct Entry {
    uid: SegmentUid,
    /// Zero: the entry is empty.
    len: u32,
    offset: Offset,
    position: Position,
}

const EMPTY: Entry = Entry { uid: SegmentUid(0), len: 0, offset: Offset::ZERO, position: Position::ZERO };

/// See the module documentation.
pub(crate) struct Memo {
    /// The latest entry of a set comes first; the last one gives way.
    sets: Box<[[Entry; WAY_COUNT]; SET_COUNT]>,
}

impl Memo {
    pub(crate) fn new() -> Self {
        Self { sets: Box::new([[EMPTY; WAY_COUNT]; SET_COUNT]) }
    }

    /// Start and length of the batch of that segment that answers a request for `offset`, if it was noted.
    pub(crate) fn find(&self, uid: SegmentUid, offset: Offset) -> Option<(Position, ByteCount)> {
        let set = &self.sets[place(uid, offset)];
        let entry = set.iter().find(|entry| entry.offset == offset && entry.uid == uid && entry.len > 0)?;
        Some((entry.position, ByteCount::new(u64::from(entry.len))))
    }

    /// Notes where it lies.
    pub(crate) fn note(&mut self, uid: SegmentUid, offset: Offset, position: Position, len: ByteCount) {
        let Ok(len) = u32::try_from(len.get()) else { return };
        let set = &mut self.sets[place(uid, offset)];
        set.rotate_right(1);
        set[0] = Entry { uid, len, offset, position };
    }
}

/// Multiplicative hashing: the product's upper bits depend on every bit of the key.
const fn place(uid: SegmentUid, offset: Offset) -> usize {
    let key = (offset.get() as u64) ^ ((uid.0 as u64) << 40);
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SET_COUNT.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY_COUNT: usize = SET_COUNT * WAY_COUNT;

    /// Far more places than entries are noted: what is found is what was noted for exactly that key.
    #[test]
    fn what_is_found_is_exact() {
        let mut memo = Memo::new();
        assert_eq!(memo.find(SegmentUid(0), Offset::ZERO), None);
        let at = |uid: u32, offset: i64| Position::new(u64::from(uid) << 32 | offset as u64);
        let mut found_count = 0;
        for offset in 0..4 * ENTRY_COUNT as i64 {
            for uid in 1..4 {
                let len = ByteCount::new(1 + offset as u64);
                memo.note(SegmentUid(uid), Offset::new(offset), at(uid, offset), len);
                assert_eq!(memo.find(SegmentUid(uid), Offset::new(offset)), Some((at(uid, offset), len)));
            }
        }
        for offset in 0..4 * ENTRY_COUNT as i64 {
            for uid in 0..5 {
                if let Some(found) = memo.find(SegmentUid(uid), Offset::new(offset)) {
                    assert_eq!(found, (at(uid, offset), ByteCount::new(1 + offset as u64)));
                    found_count += 1;
                }
            }
        }
        assert!(found_count > ENTRY_COUNT / 2, "{found_count}");
        assert!(found_count <= ENTRY_COUNT, "{found_count}");
    }
}
