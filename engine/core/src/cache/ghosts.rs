//! What the cache gave up lately, and how often it had been asked for: the ghosts of chunks.
//!
//! Where readers of old data fill memory faster than a chunk that is in use is asked for again, no single stay shows that
//! it is in use; its uses over several stays do. Owns one place for each granule of the arena, found by a hash; a chunk
//! takes the place of whichever was there before, so a ghost lasts for a few times as many bytes as the arena holds.
//! A hint only: a ghost that is lost or mistaken costs one read or one place in memory. Does not allocate after
//! construction.

use crate::bill::table_len;
use crate::cache::SegmentUid;
use crate::platform::CHUNK_LEN_MIN;
use crate::types::Position;

/// 2^64 divided by the golden ratio: spreads keys that differ in their low bits (Knuth, volume 3, section 6.4).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Clone, Copy)]
struct Ghost {
    key: u64,
    hits: u32,
}

/// No segment has this number.
const NOBODY: Ghost = Ghost { key: u64::MAX, hits: 0 };

/// See the module documentation.
pub(super) struct Ghosts {
    places: Vec<Ghost>,
    shift: u32,
}

impl Ghosts {
    /// Room for an arena of `granules` granules.
    pub(super) fn new(granules: usize) -> Self {
        let places = place_count(granules);
        Self { places: vec![NOBODY; places], shift: u64::BITS - places.ilog2() }
    }

    /// Bytes of memory that they take.
    pub(super) const fn memory_len(granules: usize) -> usize {
        table_len::<Ghost>(place_count(granules))
    }

    /// Notes that the chunk that begins at `position` was given up, having been asked for `hits` times.
    pub(super) fn note(&mut self, uid: SegmentUid, position: Position, hits: u32) {
        let key = key(uid, position);
        let place = self.place(key);
        self.places[place] = Ghost { key, hits };
    }

    /// How often a chunk that is asked for again had been asked for, if that is known. Known once.
    pub(super) fn take(&mut self, uid: SegmentUid, position: Position) -> Option<u32> {
        let key = key(uid, position);
        let place = self.place(key);
        let ghost = &mut self.places[place];
        (ghost.key == key).then(|| std::mem::replace(ghost, NOBODY).hits)
    }

    fn place(&self, key: u64) -> usize {
        (key.wrapping_mul(SPREAD) >> self.shift) as usize
    }
}

const fn place_count(granules: usize) -> usize {
    let places = granules.next_power_of_two();
    if places < 2 { 2 } else { places }
}

fn key(uid: SegmentUid, position: Position) -> u64 {
    (u64::from(uid.0) << 32) | (position.get() / CHUNK_LEN_MIN.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was noted is known once; what took its place is not mistaken for it.
    #[test]
    fn ghosts_are_known_once() {
        let mut ghosts = Ghosts::new(4);
        let at = |granule: u64| Position::new(granule * CHUNK_LEN_MIN.get());
        for granule in 0..100 {
            ghosts.note(SegmentUid(granule as u32 % 3), at(granule), granule as u32);
        }
        let known: Vec<u64> = (0..100)
            .filter(|granule| {
                let hits = ghosts.take(SegmentUid(*granule as u32 % 3), at(*granule));
                assert!(hits.is_none_or(|hits| u64::from(hits) == *granule));
                hits.is_some()
            })
            .collect();
        assert!((1..=4).contains(&known.len()) && known.contains(&99), "{known:?}");
        assert_eq!(ghosts.take(SegmentUid(0), at(99)), None);
    }
}
