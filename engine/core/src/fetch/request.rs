//! What a reader asks for and what it gets.

use crate::fetch::Mode;
use crate::message::{PartitionId, Watermarks};
use crate::platform::{Lease, Platform};
use crate::types::{ByteCount, Offset, Position};

/// Read a partition from an offset. The answer starts at the batch that contains the offset, may end
/// in the middle of a batch, and never reaches beyond one segment or the high watermark. Its first
/// batch is whole even if it is larger than `len_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// Which partition.
    pub partition: PartitionId,
    /// From here.
    pub offset: Offset,
    /// At most so many bytes, the first batch excepted.
    pub len_max: ByteCount,
    /// Wait until there are so many bytes; 0 or 1 waits for nothing or for anything.
    pub len_min: ByteCount,
    /// But no longer than this, milliseconds.
    pub wait_ms_max: u32,
    /// Force a transfer mode, for measurement; `None` leaves it to the policy.
    pub mode: Option<Mode>,
}

impl FetchRequest {
    /// Up to `len_max` bytes from `offset`, whatever there is now.
    pub const fn new(partition: PartitionId, offset: Offset, len_max: ByteCount) -> Self {
        Self { partition, offset, len_max, len_min: ByteCount::ZERO, wait_ms_max: 0, mode: None }
    }

    /// Whether it would rather wait than come back with nothing.
    pub(crate) fn waits(&self) -> bool {
        self.len_min > ByteCount::ZERO && self.wait_ms_max > 0
    }
}

/// What an answer will contain, before its bytes are on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchOutcome {
    /// Bytes of record batches that follow.
    pub len: ByteCount,
    /// Base offset of the segment they come from.
    pub segment: Offset,
    /// Where in the segment they start.
    pub position: Position,
    /// Begin and end of the log at the time of planning.
    pub watermarks: Watermarks,
}

/// An answer whose bytes are in memory.
pub struct Fetched<P: Platform> {
    /// What it contains.
    pub outcome: FetchOutcome,
    /// The bytes, in order.
    pub pieces: Vec<P::Lease>,
}

impl<P: Platform> Fetched<P> {
    /// Total length of the pieces, bytes.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Lease::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
