//! The end of a log in memory: the chunks that are being appended to and written from.
//!
//! Owns the chunks from the block that the next commit starts in to the log's end. A chunk lies in
//! memory as its range lies in the file, byte for byte, so that frozen blocks are written in place.
//! Invariant I2: bytes below the appended end of a commit are frozen before the commit is submitted
//! and never change again. Units: positions in a segment file. Does no I/O.

use std::collections::VecDeque;

use crate::cache::SegmentUid;
use crate::format::crc::{Crc32c, copy_and_crc};
use crate::planted::{Bug, is_planted};
use crate::platform::{CHUNK_LEN_MAX, CHUNK_LEN_MIN, Chunk, Platform};
use crate::types::{ByteCount, Position};

/// One chunk of the tail.
pub(crate) struct TailChunk<P: Platform> {
    pub(crate) uid: SegmentUid,
    /// Position of the chunk's first byte; a multiple of its length.
    pub(crate) position: Position,
    /// Bytes before this are not in the chunk.
    pub(crate) valid_from: Position,
    pub(crate) chunk: P::Chunk,
}

impl<P: Platform> TailChunk<P> {
    pub(crate) fn end(&self) -> Position {
        self.position.plus(ByteCount::of_usize(self.chunk.len()))
    }

    /// Freezes up to `end` and leases `[start, end)`.
    fn freeze_and_lease(&mut self, start: Position, end: Position) -> P::Lease {
        let to = end.since(self.position).as_usize();
        if to > self.chunk.frozen() {
            self.chunk.freeze(to);
        }
        self.chunk.lease(start.since(self.position).as_usize()..to)
    }
}

/// See the module documentation.
pub(crate) struct Tail<P: Platform> {
    chunks: VecDeque<TailChunk<P>>,
}

impl<P: Platform> Tail<P> {
    pub(crate) fn new() -> Self {
        Self { chunks: VecDeque::new() }
    }

    /// How far appends to `uid` can go without another chunk; `None` if the tail has none for it.
    pub(crate) fn capacity_end(&self, uid: SegmentUid) -> Option<Position> {
        self.chunks.back().filter(|chunk| chunk.uid == uid).map(TailChunk::end)
    }

    pub(crate) fn push(&mut self, chunk: TailChunk<P>) {
        debug_assert!(
            self.chunks.back().is_none_or(|last| last.uid != chunk.uid || last.end() == chunk.position)
        );
        self.chunks.push_back(chunk);
    }

    /// Copies `src` to `position` of `uid`, continuing `crc` where one is given. The chunks are there
    /// and nothing in the range is frozen.
    pub(crate) fn write(
        &mut self,
        uid: SegmentUid,
        position: Position,
        src: &[u8],
        mut crc: Option<&mut Crc32c>,
    ) {
        let mut at = position;
        let mut rest = src;
        let first = self.chunks.partition_point(|c| c.uid < uid || (c.uid == uid && c.end() <= position));
        for chunk in self.chunks.iter_mut().skip(first) {
            if rest.is_empty() {
                break;
            }
            let from = at.since(chunk.position).as_usize() - chunk.chunk.frozen();
            let room = chunk.end().since(at).as_usize();
            let (now, later) = rest.split_at(room.min(rest.len()));
            let into = &mut chunk.chunk.unfrozen_mut()[from..from + now.len()];
            match crc.as_deref_mut() {
                Some(crc) => copy_and_crc(into, now, crc),
                None => into.copy_from_slice(now),
            }
            at = at.plus(ByteCount::of_usize(now.len()));
            rest = later;
        }
        assert!(rest.is_empty(), "the tail has no chunk at {at:?} of {uid:?}");
    }

    /// Freezes everything below `end` and hands the leases over `[start, end)` of `uid` to `each`, in
    /// order.
    pub(crate) fn freeze(
        &mut self,
        uid: SegmentUid,
        start: Position,
        end: Position,
        mut each: impl FnMut(P::Lease),
    ) {
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.uid == uid) {
            let (from, to) = (start.max(chunk.position), end.min(chunk.end()));
            if from < to {
                each(chunk.freeze_and_lease(from, to));
            }
        }
    }

    /// Frozen bytes at `position` of `uid`, up to `end`: a lease and its range.
    pub(crate) fn lease_at(
        &self,
        uid: SegmentUid,
        position: Position,
        end: Position,
    ) -> Option<(P::Lease, Position, Position)> {
        let chunk =
            self.chunks.iter().find(|c| c.uid == uid && c.valid_from <= position && position < c.end())?;
        let frozen = chunk.position.plus(ByteCount::of_usize(chunk.chunk.frozen()));
        let to = if is_planted(Bug::ReadPastLease) { frozen } else { end.min(frozen) };
        if position >= to {
            return None;
        }
        let range = chunk.valid_from.since(chunk.position).as_usize()..to.since(chunk.position).as_usize();
        Some((chunk.chunk.lease(range), chunk.valid_from, to))
    }

    /// The first chunk, if nothing at or above `position` of `uid` is in it.
    pub(crate) fn pop_below(&mut self, uid: SegmentUid, position: Position) -> Option<TailChunk<P>> {
        let first = self.chunks.front()?;
        let below = first.uid < uid || (first.uid == uid && first.end() <= position);
        if below { self.chunks.pop_front() } else { None }
    }

    /// All chunks, of an idle partition or a deleted one.
    pub(crate) fn pop(&mut self) -> Option<TailChunk<P>> {
        self.chunks.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// The chunk to take for appends from `position` on: the longest of at most `wanted` that does not
/// reach back over the granule `position` lies in. Returns its first position and its length.
pub(crate) fn chunk_range(position: Position, wanted: ByteCount) -> (Position, ByteCount) {
    let granule = position.align_down(CHUNK_LEN_MIN.get());
    let mut len = wanted.get().next_power_of_two().clamp(CHUNK_LEN_MIN.get(), CHUNK_LEN_MAX.get());
    while position.align_down(len) != granule {
        len /= 2;
    }
    (granule, ByteCount::new(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks double with the file, and never overlap the granules before them.
    #[test]
    fn chunks_align_to_their_length() {
        let kib = |n: u64| n << 10;
        for (position, wanted, base, len) in [
            (0, 64, 0, 64),
            (0, 1024, 0, 1024),
            (kib(64), 1024, kib(64), 64),
            (kib(128), 1024, kib(128), 128),
            (kib(1024), 512, kib(1024), 512),
            (kib(1024) + 5, 4096, kib(1024), 1024),
            (kib(100), 256, kib(64), 64),
        ] {
            let got = chunk_range(Position::new(position), ByteCount::kib(wanted));
            assert_eq!(got, (Position::new(base), ByteCount::kib(len)), "{position} {wanted}");
        }
    }
}
