//! What the device does not give out of a chunk.
//!
//! A read that meets an error is repeated in pieces, those that fail again block by block, so that everything beside a bad
//! sector can be served. Always holds: no lease that leaves the cache covers a block that was not read. What could not be
//! read is believed by those who waited for it; whoever wants it later asks the device again.

use std::ops::Range;

use super::Lookup;
use crate::disk::Errno;
use crate::platform::{CHUNK_LEN_MIN, DIRECT_IO_ALIGN, Lease};
use crate::types::{ByteCount, Position};

const BLOCK_LEN: ByteCount = ByteCount::new(DIRECT_IO_ALIGN);

/// A part of a chunk to be read: where, and how much.
pub(crate) type Piece = (Position, ByteCount);

/// The holes of a chunk, and while it is being read in pieces, how far that has come.
pub(super) struct Holes {
    /// Blocks that could not be read, in order.
    bad: Vec<Position>,
    /// Where the piece begins that is being read.
    at: Position,
    len: ByteCount,
    /// Up to here it goes block by block.
    by_block_until: Position,
    doubted: bool,
}

impl Holes {
    /// Of a chunk whose range begins at `start`.
    pub(super) const fn new(start: Position) -> Self {
        Self { bad: Vec::new(), at: start, len: BLOCK_LEN, by_block_until: start, doubted: false }
    }

    /// The next piece of a chunk that ends at `end`; `None` when there is none left.
    pub(super) fn next_piece(&mut self, end: Position) -> Option<Piece> {
        if self.at >= end {
            return None;
        }
        self.len = if self.at < self.by_block_until { BLOCK_LEN } else { CHUNK_LEN_MIN };
        Some((self.at, self.len.min(end.since(self.at))))
    }

    /// A piece has been read, or not; returns the next one.
    pub(super) fn handle_piece(&mut self, result: Result<usize, Errno>, end: Position) -> Option<Piece> {
        let wanted = self.len.min(end.since(self.at)).as_usize();
        let next = self.at.plus(self.len);
        match result {
            Ok(len) if len >= wanted => self.at = next,
            _ if self.len > BLOCK_LEN => self.by_block_until = next,
            _ => {
                self.bad.push(self.at);
                self.at = next;
            }
        }
        self.next_piece(end)
    }

    pub(super) fn count(&self) -> u64 {
        self.bad.len() as u64
    }

    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    pub(super) fn contain(&self, position: Position) -> bool {
        self.bad.contains(&position.align_down(DIRECT_IO_ALIGN))
    }

    /// The first block that touches `[start, end)`.
    pub(super) fn first(&self, start: Position, end: Position) -> Option<Position> {
        self.bad.iter().copied().find(|bad| *bad < end && bad.plus(BLOCK_LEN) > start)
    }

    /// What can be read around `position` of a chunk whose `lease` covers `valid`.
    pub(super) fn lookup<L: Lease>(
        &self,
        lease: &L,
        position: Position,
        valid: Range<Position>,
    ) -> Lookup<L> {
        let block = position.align_down(DIRECT_IO_ALIGN);
        match self.bad.binary_search(&block) {
            Ok(_) if self.doubted => Lookup::Missing,
            Ok(_) => Lookup::Unreadable(block),
            Err(next) => {
                let start =
                    next.checked_sub(1).map_or(valid.start, |before| self.bad[before].plus(BLOCK_LEN));
                let end = self.bad.get(next).map_or(valid.end, |bad| *bad);
                let range = start.since(valid.start).as_usize()..end.since(valid.start).as_usize();
                Lookup::Resident { lease: lease.slice(range), start, end, written: false }
            }
        }
    }
}
