//! Work on files that is not on the data path: opening and recovery, new segments, preallocation,
//! seals, companions, deletions, checkpoints.
//!
//! A step is a plain blocking function over [`Disk`], run on a helper thread by every driver alike.
//! Its logic lives here, so that the simulator runs the very same code. Steps of one partition run in
//! the order they were given; steps of different partitions may overlap.

use crate::disk::{Disk, DiskError, Errno};
use crate::error::{PartitionError, PartitionFailure};
use crate::format::index_build::IndexBuilder;
use crate::format::names::{TopicId, TopicPartition};
use crate::format::side_file::SideFileBuilder;
use crate::log::guard_file::{self, OpenedGuard};
use crate::log::log_dir::LogDir;
use crate::log::recovery::open_partition;
use crate::log::scrub::{Piece, Scrubbed, scrub};
use crate::log::{LogConfig, prepare, segments};
use crate::platform::Platform;
use crate::types::{ByteCount, LeaderEpoch, Offset, Position, Timestamp};

/// One step.
pub enum Step<P: Platform> {
    /// Open a partition, or create it; see [`StepOutput::Opened`].
    Open {
        /// Which.
        name: TopicPartition,
        /// Its settings.
        config: LogConfig,
    },
    /// Make the file of a new active segment; see [`StepOutput::SegmentCreated`].
    CreateSegment {
        /// Which partition.
        name: TopicPartition,
        /// Its settings.
        config: LogConfig,
        /// Names the file.
        base_offset: Offset,
        /// Blocks to reserve at once.
        preallocate: ByteCount,
        /// The file that [`Step::PrepareSegment`] made, and the end of its blocks.
        prepared: Option<(P::File, Position)>,
    },
    /// Make the file of the segment after the active one ahead of need, under a name that recovery removes; see
    /// [`StepOutput::SegmentPrepared`].
    PrepareSegment {
        /// Which partition.
        name: TopicPartition,
        /// Its settings.
        config: LogConfig,
        /// Blocks to reserve.
        preallocate: ByteCount,
        /// Of them, from the start, blocks to fill with zeros.
        zero: ByteCount,
    },
    /// Open an existing segment; see [`StepOutput::SegmentOpened`].
    OpenSegment {
        /// Which partition.
        name: TopicPartition,
        /// Its settings.
        config: LogConfig,
        /// Which segment.
        base_offset: Offset,
        /// Whether it will be written again: then its lock is taken.
        write: bool,
    },
    /// Open the guard file again to write it; see [`StepOutput::GuardOpened`].
    OpenGuard {
        /// Which partition.
        name: TopicPartition,
    },
    /// Reserve blocks ahead of the writer; see [`StepOutput::Extended`].
    Extend {
        /// Whose.
        file: P::File,
        /// From here.
        from: Position,
        /// To here.
        to: Position,
        /// Whether to write zeros as well.
        zero: bool,
    },
    /// Append what is new to a segment's companions; see [`StepOutput::CompanionsWritten`].
    WriteCompanions(Companions),
    /// Close a full segment for good: cut the file to its end, make it and its companions durable, and move
    /// the partition's recovery point behind it; see [`StepOutput::Sealed`].
    Seal {
        /// Its file.
        file: P::File,
        /// End of the last batch.
        end: Position,
        /// The first offset after it, the new recovery point.
        next_offset: Offset,
        /// What its companions still lack.
        companions: Companions,
    },
    /// Make a log start offset durable; see [`StepOutput::LogStartRaised`].
    RaiseLogStart {
        /// Which partition.
        name: TopicPartition,
        /// The new log start offset.
        log_start_offset: Offset,
    },
    /// Unlink segments below the log start offset, which is durable; see [`StepOutput::SegmentsDeleted`].
    DeleteSegments {
        /// Which partition.
        name: TopicPartition,
        /// Base offsets of the segments.
        base_offsets: Vec<Offset>,
    },
    /// Close a partition cleanly: as `Seal` for the active segment, then record that nothing needs recovery; see
    /// [`StepOutput::Closed`].
    Close {
        /// Which partition.
        name: TopicPartition,
        /// Its settings.
        config: LogConfig,
        /// The active segment; `None` if it has no file yet.
        active: Option<LastSegment<P::File>>,
        /// Whether a prepared segment is there, which is no longer wanted.
        prepared: bool,
        /// The end of the log.
        log_end_offset: Offset,
        /// The log start offset.
        log_start_offset: Offset,
    },
    /// Check a piece of a segment against what was written; see [`StepOutput::Scrubbed`].
    Scrub(Piece),
    /// Remove a partition's directory and its checkpoint entries; see [`StepOutput::PartitionDeleted`].
    DeletePartition {
        /// Which.
        name: TopicPartition,
    },
}

/// Bytes to append to a segment's companions (`.index`, `.timeindex`, `.chain`). Companions are rebuilt from the
/// segment when they are missing or stale; they are never on the acknowledgement path.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    /// Which partition; `None` only in `Default`.
    pub name: Option<TopicPartition>,
    /// Which segment.
    pub base_offset: Offset,
    /// Where the index bytes go.
    pub index_position: Position,
    /// Offset index entries, encoded.
    pub index: Vec<u8>,
    /// Where the time index bytes go.
    pub time_index_position: Position,
    /// Time index entries, encoded.
    pub time_index: Vec<u8>,
    /// Where the side file bytes go.
    pub chain_position: Position,
    /// Side file records, encoded; with its header where the position is 0.
    pub chain: Vec<u8>,
}

/// The active segment of a partition that is being closed.
#[derive(Debug)]
pub struct LastSegment<F> {
    /// `None` if it was closed to spare a descriptor; the step then opens and locks it.
    pub file: Option<F>,
    /// End of the last batch.
    pub end: Position,
    /// What its companions still lack.
    pub companions: Companions,
}

/// What a step brought.
pub enum StepOutput<P: Platform> {
    /// From [`Step::Open`].
    Opened(Result<Box<OpenedLog<P>>, PartitionError>),
    /// From [`Step::CreateSegment`]: the file, and the end of its reserved blocks.
    SegmentCreated(Result<(P::File, Position), PartitionError>),
    /// From [`Step::PrepareSegment`].
    SegmentPrepared(Result<PreparedSegment<P::File>, PartitionError>),
    /// From [`Step::OpenSegment`].
    SegmentOpened(Result<P::File, PartitionError>),
    /// From [`Step::OpenGuard`].
    GuardOpened(Result<P::File, PartitionError>),
    /// From [`Step::Extend`]: the new end of the reserved blocks.
    Extended(Result<Position, DiskError>),
    /// From [`Step::WriteCompanions`].
    CompanionsWritten(Result<(), DiskError>),
    /// From [`Step::Seal`].
    Sealed(Result<(), DiskError>),
    /// From [`Step::RaiseLogStart`].
    LogStartRaised(Result<(), DiskError>),
    /// From [`Step::DeleteSegments`].
    SegmentsDeleted(Result<(), DiskError>),
    /// From [`Step::Close`].
    Closed(Result<(), DiskError>),
    /// From [`Step::Scrub`].
    Scrubbed(Result<Scrubbed, DiskError>),
    /// From [`Step::DeletePartition`].
    PartitionDeleted(Result<(), DiskError>),
}

/// A segment's file, made ahead of need.
#[derive(Debug)]
pub struct PreparedSegment<F> {
    /// Its lock is held.
    pub file: F,
    /// End of its reserved blocks.
    pub preallocated: Position,
    /// End of those that are filled with zeros.
    pub zeroed: Position,
}

/// A partition as recovery leaves it.
pub struct OpenedLog<P: Platform> {
    /// In order of base offset; never empty, the last one is active.
    pub segments: Vec<OpenedSegment<P>>,
    /// Whether the log directory must not be changed: appends and changes are refused.
    pub read_only: bool,
    /// Damage that is served around: nothing was changed, and appends are refused.
    pub failure: Option<PartitionFailure>,
    /// The topic's id, from `partition.metadata`.
    pub topic_id: TopicId,
    /// The guard file of a partition that has its last block guarded.
    pub guard: Option<OpenedGuard<P::File>>,
    /// First offset that may be read.
    pub log_start_offset: Offset,
    /// The epoch of appends from now on; raised after an unclean stop.
    pub leader_epoch: LeaderEpoch,
    /// What recovery did, for the log.
    pub recovery: RecoveryReport,
}

/// One segment as recovery leaves it.
pub struct OpenedSegment<P: Platform> {
    /// Offset of its first batch, and its file's name.
    pub base_offset: Offset,
    /// The offset after its last record; its base offset if it is empty.
    pub next_offset: Offset,
    /// End of its last batch.
    pub end: Position,
    /// Open for the active segment, with [`crate::disk::Lock::InputOutput`] held; `None` for sealed ones, which are
    /// opened when first read.
    pub file: Option<P::File>,
    /// End of the reserved blocks.
    pub preallocated: Position,
    /// Offsets to positions, timestamps to offsets.
    pub index: IndexBuilder,
    /// Largest record timestamp in it, [`Timestamp::NONE`] if empty.
    pub max_timestamp: Timestamp,
    /// Timestamp of its first batch, [`Timestamp::NONE`] if empty: the clock of `segment.ms`.
    pub first_timestamp: Timestamp,
    /// Last change of the file, for retention of segments without timestamps.
    pub modified: Timestamp,
    /// Continues its side file; `None` for sealed segments.
    pub chain: Option<SideFileBuilder>,
    /// Bytes that its companions hold already.
    pub companions_len: CompanionsLen,
    /// Whether what followed `end` is damaged: readers get an error there.
    pub damaged: bool,
}

/// Lengths of a segment's companions on disk, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompanionsLen {
    /// Of the `.index`.
    pub index: Position,
    /// Of the `.timeindex`.
    pub time_index: Position,
    /// Of the `.chain`.
    pub chain: Position,
}

/// What recovery did to a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the last stop was clean, so that nothing was scanned.
    pub clean: bool,
    /// Bytes of segments that were read and checked.
    pub scanned: ByteCount,
    /// Batches found valid in them.
    pub batches: u64,
    /// Bytes of a torn tail that were cut off, zeros excluded.
    pub truncated: ByteCount,
    /// Indexes that were rebuilt.
    pub indexes_rebuilt: u32,
    /// Remarks for the operator, one sentence each.
    pub notes: Vec<String>,
}

impl<P: Platform> Step<P> {
    /// The partition it is about, where it names one; an extension names a file only.
    pub fn partition(&self) -> Option<&TopicPartition> {
        match self {
            Step::Open { name, .. }
            | Step::CreateSegment { name, .. }
            | Step::PrepareSegment { name, .. }
            | Step::OpenSegment { name, .. }
            | Step::OpenGuard { name }
            | Step::RaiseLogStart { name, .. }
            | Step::DeleteSegments { name, .. }
            | Step::Close { name, .. }
            | Step::DeletePartition { name } => Some(name),
            Step::WriteCompanions(companions) | Step::Seal { companions, .. } => companions.name.as_ref(),
            Step::Scrub(piece) => Some(&piece.name),
            Step::Extend { .. } => None,
        }
    }

    /// Runs the step; blocks.
    pub fn run(self, log_dir: &LogDir<P::Disk>) -> StepOutput<P>
    where
        P::Disk: Disk<File = P::File>,
    {
        if log_dir.is_read_only() {
            return self.refuse_changes(log_dir);
        }
        self.run_freely(log_dir)
    }

    /// In a directory that must not be changed, only opening and looking is done.
    fn refuse_changes(self, log_dir: &LogDir<P::Disk>) -> StepOutput<P>
    where
        P::Disk: Disk<File = P::File>,
    {
        let refused = || DiskError { action: "change", path: log_dir.root().to_owned(), errno: Errno::ROFS };
        match self {
            Step::Open { .. } | Step::OpenSegment { .. } | Step::Scrub(_) => self.run_freely(log_dir),
            Step::CreateSegment { .. } => StepOutput::SegmentCreated(Err(PartitionError::ReadOnly)),
            Step::PrepareSegment { .. } => StepOutput::SegmentPrepared(Err(PartitionError::ReadOnly)),
            Step::OpenGuard { .. } => StepOutput::GuardOpened(Err(PartitionError::ReadOnly)),
            Step::Extend { .. } => StepOutput::Extended(Err(refused())),
            Step::WriteCompanions(_) => StepOutput::CompanionsWritten(Err(refused())),
            Step::Seal { .. } => StepOutput::Sealed(Err(refused())),
            Step::RaiseLogStart { .. } => StepOutput::LogStartRaised(Err(refused())),
            Step::DeleteSegments { .. } => StepOutput::SegmentsDeleted(Err(refused())),
            Step::Close { .. } => StepOutput::Closed(Err(refused())),
            Step::DeletePartition { .. } => StepOutput::PartitionDeleted(Err(refused())),
        }
    }

    fn run_freely(self, log_dir: &LogDir<P::Disk>) -> StepOutput<P>
    where
        P::Disk: Disk<File = P::File>,
    {
        match self {
            Step::Open { name, config } => StepOutput::Opened(open_partition(log_dir, &name, &config)),
            Step::CreateSegment { name, config, base_offset, preallocate, prepared } => {
                let dir = log_dir.partition_dir(&name);
                let taken = prepared.and_then(|(file, end)| {
                    let used = prepare::use_prepared(log_dir.disk(), &dir, base_offset);
                    used.map(|used| used.then_some((file, end))).transpose()
                });
                let create = || segments::create_segment(log_dir, &dir, &config, base_offset, preallocate);
                StepOutput::SegmentCreated(taken.map_or_else(create, |taken| taken.map_err(Into::into)))
            }
            Step::PrepareSegment { name, config, preallocate, zero } => {
                let dir = log_dir.partition_dir(&name);
                let prepared = prepare::prepare_segment(log_dir, &dir, &config, preallocate, zero);
                StepOutput::SegmentPrepared(prepared)
            }
            Step::OpenSegment { name, config, base_offset, write } => {
                let open = if write { segments::reopen_segment } else { segments::open_segment };
                StepOutput::SegmentOpened(open(log_dir, &name, &config, base_offset))
            }
            Step::OpenGuard { name } => StepOutput::GuardOpened(guard_file::reopen_guard(log_dir, &name)),
            Step::Extend { file, from, to, zero } => {
                StepOutput::Extended(log_dir.disk().preallocate(&file, from, to, zero).map(|()| to))
            }
            Step::WriteCompanions(new) => {
                StepOutput::CompanionsWritten(segments::write_companions(log_dir, &new))
            }
            Step::Seal { file, end, next_offset, companions } => {
                StepOutput::Sealed(segments::seal(log_dir, &file, end, next_offset, &companions))
            }
            Step::RaiseLogStart { name, log_start_offset } => {
                StepOutput::LogStartRaised(segments::raise_log_start(log_dir, &name, log_start_offset))
            }
            Step::DeleteSegments { name, base_offsets } => {
                StepOutput::SegmentsDeleted(segments::delete_segments(log_dir, &name, &base_offsets))
            }
            Step::Close { name, config, active, prepared, log_end_offset, log_start_offset } => {
                let removed = if prepared { prepare::remove_prepared(log_dir, &name) } else { Ok(()) };
                let ends = (log_start_offset, log_end_offset);
                let close = |()| segments::close(log_dir, &name, &config, active, ends);
                StepOutput::Closed(removed.and_then(close))
            }
            Step::Scrub(piece) => StepOutput::Scrubbed(scrub(log_dir, &piece)),
            Step::DeletePartition { name } => {
                StepOutput::PartitionDeleted(segments::delete_partition(log_dir, &name))
            }
        }
    }
}
