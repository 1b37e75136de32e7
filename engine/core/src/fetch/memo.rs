//! Where the batches lie that were asked for lately.
//!
//! Owns one table per shard, made once. Always holds: an entry is exact. A batch below the high watermark never
//! moves, and a segment's uid is never given out twice, so an entry is replaced but never wrong. Readers that ask
//! for the same place one after the other thereby skip the index and the batch header, which is seldom in a
//! processor cache. Does not say whether the batch is in memory.

use crate::cache::SegmentUid;
use crate::types::{ByteCount, Offset, Position};

/// Sets, a power of two, and the entries of a set, which fill one line of a processor cache: 32 KiB a shard.
const SET_COUNT: usize = 512;
const WAY_COUNT: usize = 4;

const _: () = assert!(SET_COUNT.is_power_of_two());
const _: () = assert!(size_of::<Set>() == 64);

/// What an entry is found by: a segment, and an offset in it counted from the segment's base offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    uid: SegmentUid,
    relative: u32,
}

impl Key {
    /// `None`: no offset of that segment, or further into it than entries reach.
    pub(crate) fn new(uid: SegmentUid, base: Offset, offset: Offset) -> Option<Self> {
        let relative = u32::try_from(offset.get().checked_sub(base.get())?).ok()?;
        Some(Self { uid, relative })
    }

    /// Multiplicative hashing: the product's upper bits depend on every bit of the key.
    const fn place(self) -> usize {
        let key = (self.relative as u64) ^ ((self.uid.0 as u64) << 32);
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SET_COUNT.ilog2())) as usize
    }
}

#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    position: u32,
    /// Zero: the entry is empty.
    len: u32,
}

const EMPTY: Entry = Entry { key: Key { uid: SegmentUid(0), relative: 0 }, position: 0, len: 0 };

/// The latest entry of a set comes first; the last one gives way.
#[derive(Clone)]
#[repr(align(64))]
struct Set([Entry; WAY_COUNT]);

/// See the module documentation.
pub(crate) struct Memo {
    sets: Box<[Set]>,
}

impl Memo {
    pub(crate) fn new() -> Self {
        Self { sets: vec![Set([EMPTY; WAY_COUNT]); SET_COUNT].into_boxed_slice() }
    }

    /// Bytes of memory that it takes.
    pub(crate) const fn memory_len() -> usize {
        SET_COUNT * size_of::<Set>()
    }

    /// Start and length of the batch that answers a request for that offset, if it was noted.
    pub(crate) fn find(&self, key: Key) -> Option<(Position, ByteCount)> {
        let entry = self.sets[key.place()].0.iter().find(|entry| entry.key == key && entry.len > 0)?;
        Some((Position::new(u64::from(entry.position)), ByteCount::new(u64::from(entry.len))))
    }

    /// Notes where it lies; not of batches beyond the 4 GiB that an entry can name.
    pub(crate) fn note(&mut self, key: Key, position: Position, len: ByteCount) {
        let (Ok(position), Ok(len)) = (u32::try_from(position.get()), u32::try_from(len.get())) else {
            return;
        };
        let Set(entries) = &mut self.sets[key.place()];
        entries.rotate_right(1);
        entries[0] = Entry { key, position, len };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY_COUNT: usize = SET_COUNT * WAY_COUNT;

    fn key(uid: u32, offset: i64) -> Key {
        Key::new(SegmentUid(uid), Offset::ZERO, Offset::new(offset)).expect("within reach")
    }

    /// Far more places than entries are noted: what is found is what was noted for exactly that key.
    #[test]
    fn what_is_found_is_exact() {
        let mut memo = Memo::new();
        assert_eq!(memo.find(key(0, 0)), None);
        let at = |uid: u32, offset: i64| Position::new(u64::from(uid) << 28 | offset as u64);
        let mut found_count = 0;
        for offset in 0..4 * ENTRY_COUNT as i64 {
            for uid in 1..4 {
                let len = ByteCount::new(1 + offset as u64);
                memo.note(key(uid, offset), at(uid, offset), len);
                assert_eq!(memo.find(key(uid, offset)), Some((at(uid, offset), len)));
            }
        }
        for offset in 0..4 * ENTRY_COUNT as i64 {
            for uid in 0..5 {
                if let Some(found) = memo.find(key(uid, offset)) {
                    assert_eq!(found, (at(uid, offset), ByteCount::new(1 + offset as u64)));
                    found_count += 1;
                }
            }
        }
        assert!(found_count > ENTRY_COUNT / 2, "{found_count}");
        assert!(found_count <= ENTRY_COUNT, "{found_count}");
    }

    /// Keys count from the base offset, and what does not fit into an entry is not noted, rather than cut short.
    #[test]
    fn what_does_not_fit_is_left_out() {
        let (uid, base) = (SegmentUid(7), Offset::new(1 << 40));
        let at = |relative: i64| Key::new(uid, base, Offset::new(base.get() + relative));
        assert_eq!(at(-1), None);
        assert_eq!(at(1 << 32), None);
        let (first, last) = (at(0).unwrap(), at((1 << 32) - 1).unwrap());
        let mut memo = Memo::new();
        memo.note(first, Position::new(1 << 32), ByteCount::new(1));
        memo.note(last, Position::new(u64::from(u32::MAX)), ByteCount::new(1));
        assert_eq!(memo.find(first), None);
        assert_eq!(memo.find(last), Some((Position::new(u64::from(u32::MAX)), ByteCount::new(1))));
    }
}
