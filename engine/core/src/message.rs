//! What the outside asks of a shard, and the answers; what shards ask of each other.

use std::ops::Range;

use arrayvec::ArrayVec;
use bytes::Bytes;

use crate::error::{AppendError, FetchError, PartitionError};
use crate::fetch::{FetchOutcome, FetchRequest, Fetched, Mode};
use crate::format::names::TopicPartition;
use crate::log::LogConfig;
use crate::ops::SendHow;
use crate::platform::Platform;
use crate::shard::ShardStats;
use crate::types::{LeaderEpoch, Offset, Position};

/// Names a request to whoever sent it; the shard returns it unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// A partition's number in this process, given out at opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u32);

/// A request to a shard.
#[derive(Debug)]
pub enum Request {
    /// Open a partition, or create it where it does not exist.
    Open {
        /// The number it gets.
        partition: PartitionId,
        /// Its name.
        name: TopicPartition,
        /// Its settings.
        config: LogConfig,
    },
    /// Append whole record batches.
    Append {
        /// Where.
        partition: PartitionId,
        /// One or more record batches, end to end.
        batches: Bytes,
    },
    /// Read.
    Fetch(FetchRequest),
    /// Forget the request; its memory is released and it is answered with `Cancelled`.
    CancelFetch(Ticket),
    /// Where the log begins and ends.
    Watermarks(PartitionId),
    /// Raise the log start offset; -1 means the high watermark.
    DeleteRecords {
        /// Where.
        partition: PartitionId,
        /// The new log start offset.
        before: Offset,
    },
    /// Remove the partition and its files.
    Delete(PartitionId),
    /// What the shard has counted. It comes back in the memory that is sent with the request.
    Stats(Box<ShardStats>),
    /// Make everything appended durable, close every partition cleanly, end the shard.
    Shutdown,
    /// End the shard at once, closing nothing: what was acknowledged is safe, the next start recovers.
    Abandon,
}

/// Where a log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// First offset that may be read.
    pub log_start_offset: Offset,
    /// First offset that may not be read yet: the end at the chosen durability.
    pub high_watermark: Offset,
    /// The next offset to assign.
    pub log_end_offset: Offset,
    /// The current leader epoch.
    pub leader_epoch: LeaderEpoch,
}

/// An acknowledged append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// The offset after the last record; the high watermark is at least this.
    pub end_offset: Offset,
    /// The log start offset at the time.
    pub log_start_offset: Offset,
}

/// A shard's answer.
pub enum Reply<P: Platform> {
    /// To `Open`.
    Opened(Result<Watermarks, PartitionError>),
    /// To `Append`.
    Appended(Result<Appended, AppendError>),
    /// To `Fetch`.
    Fetched(Result<Fetched<P>, FetchError>),
    /// To `Watermarks`.
    Watermarks(Result<Watermarks, PartitionError>),
    /// To `DeleteRecords`: the new log start offset.
    RecordsDeleted(Result<Offset, PartitionError>),
    /// To `Delete`.
    Deleted(Result<(), PartitionError>),
    /// To `Stats`.
    Stats(Box<ShardStats>),
    /// To `Shutdown`: the first failure met on the way, if any.
    Stopped(Result<(), PartitionError>),
}

/// A shard's number in its engine, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The owner of a partition: fixed by its number, so that nobody has to look it up.
    ///
    /// # Panics
    /// If there are no shards.
    pub const fn owner(partition: PartitionId, shards: u16) -> Self {
        Self((partition.0 % shards as u32) as u16)
    }
}

/// Names something under way to the shard that keeps it; other shards return it unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Most leases in one letter.
pub const LETTER_PIECES_MAX: usize = 6;

/// Log bytes on their way to the shard whose connection wants them, and how the owner would send them.
pub type Pieces<P> = ArrayVec<(<P as Platform>::Lease, SendHow), LETTER_PIECES_MAX>;

/// What travels between shards: requests of a connection's shard to a partition's owner, and answers.
/// Descriptors and leases, never a copy of log bytes.
///
/// Letters from one shard to another arrive in their order. There are never more of them under way than the
/// sender's limits on fetches allow, so a mailbox has no limit of its own.
pub enum Letter<P: Platform> {
    /// Read; answered by `Planned` or `Refused`.
    Fetch {
        /// The asker's name for it.
        call: CallId,
        /// What to read.
        request: FetchRequest,
    },
    /// Go on with a fetch whose bytes were given back, from memory; answered as `Fetch` is.
    Resume {
        /// The asker's new name for it.
        call: CallId,
        /// What it was to read.
        request: FetchRequest,
        /// What is left of the answer.
        rest: FetchOutcome,
    },
    /// The bytes of this fetch that follow are wanted now; answered by `Bytes`.
    Pull {
        /// The owner's name for the fetch.
        plan: CallId,
        /// From here on from memory, of a fetch that was to go by file.
        from: Option<Position>,
    },
    /// Nobody wants the fetch any more. Not answered.
    Cancel {
        /// The asker's name for it.
        call: CallId,
        /// The owner's, if the asker has been told.
        plan: Option<CallId>,
    },
    /// A fetch is planned; its first bytes, if they are in memory.
    Planned {
        /// The asker's name for it.
        call: CallId,
        /// What the answer will contain.
        outcome: FetchOutcome,
        /// How its bytes are to be read.
        mode: Mode,
        /// Where its bytes are.
        source: Source<P>,
    },
    /// More bytes of a fetch, or why there are no more.
    Bytes {
        /// The asker's name for it.
        call: CallId,
        /// In order.
        pieces: Result<Pieces<P>, FetchError>,
    },
    /// A fetch brought nothing.
    Refused {
        /// The asker's name for it.
        call: CallId,
        /// Why.
        error: FetchError,
    },
    /// Append; answered by `Appended`.
    Append {
        /// The asker's name for it.
        call: CallId,
        /// Where.
        partition: PartitionId,
        /// The memory that the frame was received into.
        frame: Vec<u8>,
        /// Which of it are the record batches.
        batches: Range<usize>,
    },
    /// An append is durable at the partition's level, or has failed.
    Appended {
        /// The asker's name for it.
        call: CallId,
        /// What became of it.
        result: Result<Appended, AppendError>,
        /// A frame's memory that came with an earlier `Append`, for reuse.
        spare: Option<Vec<u8>>,
    },
    /// A partition has become available; answered by `OpenedSeen`.
    Opened {
        /// Its number.
        partition: PartitionId,
        /// Its name.
        name: TopicPartition,
    },
    /// The service on the answering shard knows of the partition.
    OpenedSeen {
        /// Its number.
        partition: PartitionId,
    },
    /// The owner's memory is short: what peers hold of it that take nothing is to be given back.
    MemoryShort,
}

/// Where the bytes of a fetch come from that another shard has planned.
pub enum Source<P: Platform> {
    /// From the owner's memory, a letter at a time.
    Memory {
        /// The owner's name for the fetch; `None` if everything is in `pieces`.
        plan: Option<CallId>,
        /// The first of them; none while they are being read, `Bytes` follows then without being asked for.
        pieces: Pieces<P>,
    },
    /// From a file, by the shard that sends them.
    File {
        /// Keeps the file open, even if its partition is deleted meanwhile.
        file: P::File,
        /// Where they start.
        position: Position,
        /// The owner's name for the fetch, where it may have to take over after all.
        plan: Option<CallId>,
    },
}
