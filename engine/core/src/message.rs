//! What the outside asks of a shard, and the answers.

use bytes::Bytes;

use crate::error::{AppendError, FetchError, PartitionError};
use crate::fetch::{FetchRequest, Fetched};
use crate::format::names::TopicPartition;
use crate::log::LogConfig;
use crate::platform::Platform;
use crate::types::{LeaderEpoch, Offset};

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
    /// To `Shutdown`: the first failure met on the way, if any.
    Stopped(Result<(), PartitionError>),
}
