//! What `inspect` can find, each with the byte it was found at.

use std::path::{Path, PathBuf};

use rohrpost_engine_core::format::batch::BatchError;
use rohrpost_engine_core::format::index::{IndexError, OFFSET_ENTRY_LEN, TIME_ENTRY_LEN};
use rohrpost_engine_core::format::side_file::{ChainMismatch, SideFileError, SideFileProblem};
use serde::{Serialize, Serializer};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; a broker opens such a directory without losing anything.
    Note,
    /// Bytes are wrong or missing.
    Problem,
}

/// One thing found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The file, below the inspected path.
    pub file: PathBuf,
    /// The first byte concerned, if it is a matter of bytes.
    pub position: Option<u64>,
    /// Whether it is a problem.
    pub severity: Severity,
    /// What it is.
    #[serde(serialize_with = "as_text")]
    pub what: What,
}

/// The kinds of findings. Positions and lengths are in bytes, from the start of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum What {
    /// A batch's own bytes are wrong. The bytes the error names count from the start of the batch.
    #[error("batch at {batch}: {error}")]
    Batch {
        /// Where the batch starts.
        batch: u64,
        /// What is wrong with it.
        error: BatchError,
    },
    /// The file ends inside a batch and nothing valid follows: a write that was cut off.
    #[error("torn tail: the batch here needs {needed} bytes, the file has {found}")]
    TornTail {
        /// Length the header names, or the header's own.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A batch claims to reach beyond the end of the file, yet valid batches follow inside it.
    #[error("batch length {found} reaches beyond the end of the file, but a valid batch starts at {next}")]
    LengthBeyondEnd {
        /// Length the header names.
        found: u64,
        /// Where the next valid batch starts.
        next: u64,
    },
    /// Zeros where a batch should start, then data.
    #[error("{len} zero bytes inside the log, data follows")]
    ZerosInside {
        /// How many.
        len: u64,
    },
    /// Bytes that no valid batch claims.
    #[error("{len} bytes skipped to the next valid batch")]
    Skipped {
        /// How many.
        len: u64,
    },
    /// No valid batch was found any more.
    #[error("the remaining {len} bytes hold no valid batch where one was looked for")]
    Unreadable {
        /// How many.
        len: u64,
    },
    /// Preallocated space behind the data: the end of the log.
    #[error("{len} zero bytes of preallocated space end the file")]
    ZeroTail {
        /// How many.
        len: u64,
    },
    /// Offsets missing between batches. Compaction leaves such gaps; so does a damaged base offset, which no
    /// checksum of Kafka's covers.
    #[error("{missing} offsets are missing in {gaps} gaps, the first is {from}..{to}")]
    Gaps {
        /// Number of gaps in the segment.
        gaps: u64,
        /// Offsets missing altogether.
        missing: i64,
        /// First missing offset of the first gap.
        from: i64,
        /// The offset after its last.
        to: i64,
    },
    /// A leader epoch lower than an earlier batch's.
    #[error("leader epoch {found} follows {previous}")]
    EpochOrder {
        /// Epoch of the batch before.
        previous: i32,
        /// Epoch of this batch.
        found: i32,
    },
    /// A leader epoch other than the leader-epoch-checkpoint has for this offset.
    #[error("leader epoch {found} at offset {offset}, but {expected} by the leader-epoch-checkpoint")]
    EpochCheckpoint {
        /// The checkpoint's epoch.
        expected: i32,
        /// The batch's epoch.
        found: i32,
        /// Base offset of the batch.
        offset: i64,
    },
    /// A batch before the base offset its file name promises, or before the end of the segment before.
    #[error("segment starts at offset {found}, the one before it ends at {expected}")]
    SegmentOverlap {
        /// End of the segment before.
        expected: i64,
        /// Base offset of this one.
        found: i64,
    },
    /// An index cannot be read.
    #[error(transparent)]
    Index(IndexError),
    /// An offset index entry that points at no batch.
    #[error("index entry {entry} points at {position}, where no batch starts")]
    IndexPosition {
        /// Number of the entry, from 0.
        entry: usize,
        /// Where it points.
        position: u64,
    },
    /// An offset index entry whose offset is not the last one of its batch.
    #[error("index entry {entry} says offset {found}, the batch at {position} ends with {expected}")]
    IndexOffset {
        /// Number of the entry, from 0.
        entry: usize,
        /// Where it points.
        position: u64,
        /// Last offset of the batch there.
        expected: i64,
        /// Offset of the entry.
        found: i64,
    },
    /// A time index entry that disagrees with the batches.
    #[error("time index entry {entry} says {found} at offset {offset}, the batches say {expected}")]
    IndexTimestamp {
        /// Number of the entry, from 0.
        entry: usize,
        /// Offset of the entry.
        offset: i64,
        /// Largest timestamp up to that offset.
        expected: i64,
        /// Timestamp of the entry.
        found: i64,
    },
    /// Entries that point beyond the last batch.
    #[error("{count} index entries from number {entry} on lie beyond the end of the log")]
    IndexBeyondEnd {
        /// Number of the first, from 0.
        entry: usize,
        /// How many.
        count: usize,
    },
    /// A transaction index entry that names no abort marker of its producer.
    #[error("transaction index entry {entry}: no control batch of producer {producer_id} at offset {offset}")]
    NoMarker {
        /// Number of the entry, from 0.
        entry: usize,
        /// Whose transaction.
        producer_id: i64,
        /// Where its marker should be.
        offset: i64,
    },
    /// A producer snapshot that knows more than the log did.
    #[error("producer {producer_id} has offset {offset}, which lies beyond the snapshot's own")]
    SnapshotBeyond {
        /// The producer.
        producer_id: i64,
        /// Its last offset.
        offset: i64,
    },
    /// A side file of no use.
    #[error(transparent)]
    SideFile(SideFileError),
    /// Damage inside a side file.
    #[error(transparent)]
    Side(SideFileProblem),
    /// Batches are not those the side file has seen.
    #[error(transparent)]
    Chain(ChainMismatch),
    /// The log ends before what the side file knows to have been there.
    #[error("the log ends here, but reached {known} when its side file was written")]
    LogEndsEarly {
        /// Position the side file knows.
        known: u64,
        /// Where the log ends.
        found: u64,
    },
    /// An index or a side file that belongs to no segment.
    #[error("no segment has this base offset")]
    Orphan,
    /// A segment without its index: a broker rebuilds it.
    #[error("the segment has no {0}")]
    Missing(&'static str),
    /// A file that cannot be parsed.
    #[error("{0}")]
    Malformed(String),
    /// A checkpoint that exceeds the log.
    #[error("{name} of {partition} is {found}, beyond the log end offset {end}")]
    CheckpointBeyondEnd {
        /// Which checkpoint.
        name: &'static str,
        /// Which partition.
        partition: String,
        /// The checkpoint's offset.
        found: i64,
        /// The partition's end.
        end: i64,
    },
    /// A checkpoint for a partition that is not there.
    #[error("names partition {0}, which has no directory here")]
    NoSuchPartition(String),
    /// A file or directory in a passing state (deleted, being compacted, moved), or of no kind known here.
    #[error("{0}")]
    Other(&'static str),
    /// More findings of this file than are kept.
    #[error("{0} more findings in this file")]
    More(u64),
}

impl Finding {
    /// A problem with a byte.
    pub(super) fn problem(file: &Path, position: impl Into<Option<u64>>, what: What) -> Self {
        Self { file: file.to_owned(), position: position.into(), severity: Severity::Problem, what }
    }

    /// A note.
    pub(super) fn note(file: &Path, position: impl Into<Option<u64>>, what: What) -> Self {
        Self { file: file.to_owned(), position: position.into(), severity: Severity::Note, what }
    }

    /// A bad batch; the position is that of the field the error names.
    pub(super) fn batch(file: &Path, batch: u64, error: BatchError) -> Self {
        Self::problem(file, batch + field_at(&error), What::Batch { batch, error })
    }

    /// A bad index; the position is that of the entry the error names.
    pub(super) fn index(file: &Path, entry_len: usize, error: IndexError) -> Self {
        let entry = match error {
            IndexError::OffsetOrder { entry, .. }
            | IndexError::PositionOrder { entry, .. }
            | IndexError::TimestampOrder { entry, .. }
            | IndexError::PositionBeyondSegment { entry, .. } => Some(entry),
            _ => None,
        };
        let field = match error {
            IndexError::OffsetOrder { .. } if entry_len == TIME_ENTRY_LEN => 8,
            IndexError::PositionOrder { .. } | IndexError::PositionBeyondSegment { .. } => 4,
            _ => 0,
        };
        debug_assert!(entry_len == OFFSET_ENTRY_LEN || entry_len == TIME_ENTRY_LEN);
        let position = entry.map(|entry| (entry * entry_len + field) as u64);
        Self::problem(file, position, What::Index(error))
    }
}

/// Where in the batch the field lies that an error is about.
fn field_at(error: &BatchError) -> u64 {
    match error {
        BatchError::Length { .. } => 8,
        BatchError::Magic { .. } => 16,
        BatchError::Crc { .. } => 17,
        BatchError::Codec { .. } => 22,
        BatchError::Count { .. } => 57,
        // Offsets, order: the base offset comes first.
        _ => 0,
    }
}

fn as_text<S: Serializer>(what: &What, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(what)
}
