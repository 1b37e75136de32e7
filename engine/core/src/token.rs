//! What an outstanding operation was for, packed into its [`Token`].

use crate::cache::SegmentUid;
use crate::message::PartitionId;
use crate::ops::{ConnId, Token};

/// Most partitions one process can name in a token.
pub(crate) const PARTITION_ID_MAX: u32 = (1 << 28) - 1;

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A commit's write.
    Commit(PartitionId),
    /// The sync after a buffered commit's write.
    CommitSync(PartitionId),
    /// The write of a copy that guards the last block, beside a commit's.
    GuardCopy(PartitionId),
    /// Reading the last block back before appending to it.
    TailRead(PartitionId),
    /// Filling a chunk of the read cache: entry and its generation.
    ColdRead(u32, u32),
    /// Filling a connection's pipe.
    Fill(ConnId),
    /// A step of a partition; the segment it is about, where there is one.
    Step(StepKind, PartitionId, SegmentUid),
}

/// Which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepKind {
    Open,
    CreateSegment,
    OpenSegment,
    Extend,
    WriteCompanions,
    Seal,
    DeleteSegments,
    Close,
    DeletePartition,
    PrepareSegment,
    Scrub,
}

const STEPS: [StepKind; 11] = [
    StepKind::Open,
    StepKind::CreateSegment,
    StepKind::OpenSegment,
    StepKind::Extend,
    StepKind::WriteCompanions,
    StepKind::Seal,
    StepKind::DeleteSegments,
    StepKind::Close,
    StepKind::DeletePartition,
    StepKind::PrepareSegment,
    StepKind::Scrub,
];
const FIRST_STEP: u64 = 5;

const _: () = assert!(FIRST_STEP + (STEPS.len() as u64) <= 16, "four bits name the purpose");

const fn pack(kind: u64, high: u32, low: u32) -> Token {
    debug_assert!(high <= PARTITION_ID_MAX);
    Token(kind << 60 | (high as u64) << 32 | low as u64)
}

impl Purpose {
    pub(crate) fn token(self) -> Token {
        match self {
            Purpose::Commit(id) => pack(0, id.0, 0),
            Purpose::GuardCopy(id) => pack(0, id.0, 1),
            Purpose::CommitSync(id) => pack(1, id.0, 0),
            Purpose::TailRead(id) => pack(2, id.0, 0),
            Purpose::ColdRead(entry, generation) => pack(3, entry, generation),
            Purpose::Fill(conn) => pack(4, conn.slot, conn.generation),
            Purpose::Step(kind, id, uid) => pack(FIRST_STEP + kind as u64, id.0, uid.0),
        }
    }

    pub(crate) fn of(token: Token) -> Self {
        let (kind, high, low) = (token.0 >> 60, (token.0 >> 32) as u32 & PARTITION_ID_MAX, token.0 as u32);
        match kind {
            0 if low == 1 => Purpose::GuardCopy(PartitionId(high)),
            0 => Purpose::Commit(PartitionId(high)),
            1 => Purpose::CommitSync(PartitionId(high)),
            2 => Purpose::TailRead(PartitionId(high)),
            3 => Purpose::ColdRead(high, low),
            4 => Purpose::Fill(ConnId { slot: high, generation: low }),
            kind => {
                let step = STEPS[(kind - FIRST_STEP) as usize];
                Purpose::Step(step, PartitionId(high), SegmentUid(low))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_what_they_were_for() {
        let id = PartitionId(PARTITION_ID_MAX);
        let mut all = vec![
            Purpose::Commit(id),
            Purpose::GuardCopy(id),
            Purpose::CommitSync(PartitionId(0)),
            Purpose::TailRead(id),
            Purpose::ColdRead(PARTITION_ID_MAX, u32::MAX),
            Purpose::Fill(ConnId { slot: PARTITION_ID_MAX, generation: u32::MAX }),
        ];
        all.extend(STEPS.map(|kind| Purpose::Step(kind, id, SegmentUid(u32::MAX))));
        for purpose in all {
            assert_eq!(Purpose::of(purpose.token()), purpose);
        }
    }
}
