//! Typed errors, one enum per API family. Each says what happened, where it helps what to do.

use crate::disk::DiskError;
use crate::types::{ByteCount, Offset};

/// An append was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// No such partition in this engine.
    #[error("unknown partition; open or create it first")]
    UnknownPartition,
    /// The bytes are not a sequence of valid record batches. Nothing was appended.
    #[error("invalid record batch at byte {position}: {reason}")]
    InvalidBatch {
        /// Where in the request.
        position: u64,
        /// What is wrong with it.
        reason: crate::format::batch::BatchError,
    },
    /// A batch is larger than the partition accepts. Nothing was appended.
    #[error(
        "record batch of {len} bytes exceeds the limit of {limit}; raise batch_len_max or send smaller batches"
    )]
    BatchTooLarge {
        /// Its length.
        len: ByteCount,
        /// The partition's `batch_len_max`.
        limit: ByteCount,
    },
    /// The log directory is open for reading only.
    #[error("the log directory is open for reading only")]
    ReadOnly,
    /// The device, the quota or the table of open files is full. Nothing of this request was appended; appends
    /// resume when there is room again.
    #[error("appends are suspended: {0}")]
    DiskFull(DiskError),
    /// Too many appends wait already for memory or for the device. Nothing was appended.
    #[error("too many appends are waiting for memory or the device; retry later")]
    Busy,
    /// The partition failed earlier and serves reads only until it is reopened.
    #[error("the partition has failed and takes no appends until it is reopened: {0}")]
    Failed(PartitionFailure),
    /// The partition or the engine is closing, or the partition was deleted. An append that was under way may or
    /// may not be in the log.
    #[error("the partition is closing")]
    Closing,
}

/// A fetch brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No such partition in this engine.
    #[error("unknown partition; open or create it first")]
    UnknownPartition,
    /// The offset is below the log start offset or beyond the log end offset.
    #[error("offset {offset} is out of range [{log_start_offset}, {log_end_offset}]")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// First offset there is.
        log_start_offset: Offset,
        /// The next offset to assign.
        log_end_offset: Offset,
    },
    /// The bytes at this place are not what was written.
    #[error(
        "corrupt data in segment {base_offset} at position {position}; run `rohrpost-bench inspect` on it"
    )]
    Corrupt {
        /// Which segment.
        base_offset: Offset,
        /// Where in it.
        position: u64,
    },
    /// Reading failed.
    #[error("reading segment {base_offset} at position {position} failed: {errno}{}", errno.remedy())]
    ReadFailed {
        /// Which segment.
        base_offset: Offset,
        /// Where in it.
        position: u64,
        /// The kernel's answer.
        errno: crate::disk::Errno,
    },
    /// The mode asked for is not among the driver's.
    #[error("the driver in use does not support transfer mode {0}")]
    UnsupportedMode(crate::fetch::Mode),
    /// More fetches are under way than the limits allow.
    #[error("too many fetches are under way; retry later")]
    Busy,
    /// A file could not be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The request was cancelled.
    #[error("the fetch was cancelled")]
    Cancelled,
    /// The partition or the engine is closing.
    #[error("the partition is closing")]
    Closing,
}

/// Why a partition stopped taking appends. It stays failed until it is reopened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionFailure {
    /// A write failed; what is on the device beyond the high watermark is unknown.
    #[error("writing segment {base_offset} failed: {errno}{}", errno.remedy())]
    Write {
        /// Which segment.
        base_offset: Offset,
        /// The kernel's answer.
        errno: crate::disk::Errno,
    },
    /// A sync failed. It is never retried: the kernel forgets what it could not write.
    #[error("syncing segment {base_offset} failed: {errno}{}", errno.remedy())]
    Sync {
        /// Which segment.
        base_offset: Offset,
        /// The kernel's answer.
        errno: crate::disk::Errno,
    },
    /// The last block could not be read back, so nothing can be appended behind it.
    #[error("reading the end of segment {base_offset} failed: {errno}{}", errno.remedy())]
    Read {
        /// Which segment.
        base_offset: Offset,
        /// The kernel's answer.
        errno: crate::disk::Errno,
    },
    /// The log is damaged in its middle. What is whole is served; `rohrpost-bench repair` can end the log there.
    #[error(
        "segment {base_offset} is damaged from position {position} on; see `rohrpost-bench inspect` and `repair`"
    )]
    Damaged {
        /// Which segment.
        base_offset: Offset,
        /// First bad byte.
        position: u64,
    },
    /// A file operation beside the data path failed.
    #[error(transparent)]
    Disk(DiskError),
}

/// A partition could not be opened, changed or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// No such partition in this engine.
    #[error("unknown partition; open or create it first")]
    Unknown,
    /// The log directory is open for reading only.
    #[error("the log directory is open for reading only")]
    ReadOnly,
    /// The name is not one Kafka accepts.
    #[error(transparent)]
    InvalidName(#[from] crate::format::names::NameError),
    /// It is open already.
    #[error("the partition is open already")]
    AlreadyOpen,
    /// The limits allow no further partition.
    #[error("the limit of {0} partitions per shard is reached; raise partitions_max")]
    TooMany(u32),
    /// Another process has the files open for writing.
    #[error("{} is in use by another process; stop it, or wait until its last writes have landed", path.display())]
    Locked {
        /// The locked file.
        path: std::path::PathBuf,
    },
    /// The file system has no direct I/O.
    #[error("the file system of {} does not support direct I/O ({errno}); set write_mode = buffered for this data directory, or use ext4 or XFS", path.display())]
    DirectUnsupported {
        /// The file that was tried.
        path: std::path::PathBuf,
        /// The kernel's answer.
        errno: crate::disk::Errno,
    },
    /// Data below the end of the log is not what was written. Nothing was changed.
    #[error("{} is corrupt at position {position}: {reason}; nothing was changed. Inspect it with `rohrpost-bench inspect`; `rohrpost-bench repair` can end the log there", path.display())]
    Corrupt {
        /// The damaged file.
        path: std::path::PathBuf,
        /// First bad byte.
        position: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A file is in a state, or of a version, that this engine does not handle. Nothing was changed.
    #[error("{} cannot be used: {reason}; nothing was changed", path.display())]
    Unusable {
        /// The file.
        path: std::path::PathBuf,
        /// Why, and what helps.
        reason: String,
    },
    /// The offset is beyond the high watermark.
    #[error("offset {offset} is beyond the high watermark {high_watermark}")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// The end of what may be deleted.
        high_watermark: Offset,
    },
    /// A setting is out of its range.
    #[error("setting {setting}: {reason}")]
    InvalidConfig {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The partition failed earlier.
    #[error("the partition has failed: {0}")]
    Failed(PartitionFailure),
    /// The partition or the engine is closing.
    #[error("the partition is closing")]
    Closing,
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
