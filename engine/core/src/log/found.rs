//! One segment as opening finds it: what is known of it, and the files it is read from.
//!
//! Always holds: nothing here, in `load` or in `rescan` changes a file. What must be changed is decided over the whole
//! partition first.

use std::path::{Path, PathBuf};

use crate::disk::{Caching, Disk, DiskError, Errno, Lock, OpenMode};
use crate::error::PartitionError;
use crate::format::batch::BatchHeader;
use crate::format::checkpoint::EpochStart;
use crate::format::guard_slot::GuardSlot;
use crate::format::index::{OFFSET_ENTRY_LEN, OffsetIndex, TIME_ENTRY_LEN, TimeIndex, entries_in};
use crate::format::index_build::IndexBuilder;
use crate::format::names::{SegmentFileKind, TopicId, TopicPartition};
use crate::format::side_file::{SIDE_INTERVAL_DEFAULT, SegmentIdentity, SideFile, SideFileBuilder};
use crate::log::LogConfig;
use crate::log::epochs::Epochs;
use crate::log::files::read_file;
use crate::log::inventory::segment_path;
use crate::log::step::CompanionsLen;
use crate::planted::{Bug, is_planted};
use crate::types::{ByteCount, Offset, Position, Timestamp};

/// What to open.
pub(crate) struct SegmentContext<'a, D: Disk> {
    pub(crate) disk: &'a D,
    pub(crate) dir: &'a Path,
    pub(crate) config: &'a LogConfig,
    pub(crate) lock_patience_ms: u64,
    pub(crate) tp: &'a TopicPartition,
    pub(crate) topic_id: TopicId,
    pub(crate) base_offset: Offset,
    /// Base offset of the segment behind it; `None` for the last.
    pub(crate) next_base: Option<Offset>,
    /// Whether the directory must not be changed: files are opened for reading, and no lock is taken.
    pub(crate) read_only: bool,
    /// What the partition's file says of leader epochs.
    pub(crate) epochs: &'a Epochs,
    /// Copies of last blocks, the newest first; of any segment of the partition.
    pub(crate) slots: &'a [GuardSlot],
}

/// How the batches of a segment end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the file.
    Whole,
    /// With something that is no batch, or none of this segment: what it is.
    Damage(String),
}

/// The side file as it continues from here.
pub(crate) struct Chain {
    pub(crate) builder: SideFileBuilder,
    /// The file's content, if it must be written anew.
    pub(crate) rebuilt: Option<Vec<u8>>,
    /// Length of the file.
    pub(crate) len: Position,
}

/// A segment.
pub(crate) struct Found<D: Disk> {
    pub(crate) base_offset: Offset,
    /// Kept open where the segment may be changed; its lock is held.
    pub(crate) file: Option<D::File>,
    pub(crate) file_len: Position,
    pub(crate) end: Position,
    pub(crate) next_offset: Offset,
    pub(crate) ending: Ending,
    pub(crate) index: IndexBuilder,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) first_timestamp: Timestamp,
    pub(crate) chain: Option<Chain>,
    /// Bytes of its companions that lie on disk, and will after its repair.
    pub(crate) companions_len: CompanionsLen,
    /// Whether all of it was read; its indexes are then new.
    pub(crate) scanned: bool,
    pub(crate) batches: u64,
    pub(crate) epochs: Vec<EpochStart>,
    /// End of what the side file vouches for, if it belongs to this segment.
    pub(crate) side_end: Option<Position>,
    /// Copies that stand in for blocks which the device has destroyed.
    pub(crate) restored: Vec<GuardSlot>,
    /// What is to be said about it.
    pub(crate) note: Option<String>,
}

impl<D: Disk> SegmentContext<'_, D> {
    /// Path of one of its files.
    pub(crate) fn path(&self, kind: SegmentFileKind) -> PathBuf {
        segment_path(self.dir, self.base_offset, kind)
    }

    pub(crate) fn identity(&self) -> SegmentIdentity {
        let (topic_id, partition) = (self.topic_id, self.tp.partition());
        SegmentIdentity { topic_id, partition, base_offset: self.base_offset }
    }

    /// Opens the segment for writing and takes its lock through this very description.
    pub(crate) fn open_locked(&self) -> Result<D::File, PartitionError> {
        if self.read_only {
            let path = self.path(SegmentFileKind::Log);
            return open_log(self.disk, &path, OpenMode::Read, self.config.write_mode.caching());
        }
        let file = open_log(
            self.disk,
            &self.path(SegmentFileKind::Log),
            OpenMode::ReadWrite,
            self.config.write_mode.caching(),
        )?;
        lock_log(self.disk, &file, &self.path(SegmentFileKind::Log), self.lock_patience_ms)?;
        Ok(file)
    }

    /// Entries that the indexes must have room for: those of `len` bytes of batches and the one of the seal, and what
    /// the settings allow if more batches follow.
    pub(crate) fn entries_max(&self, len: ByteCount) -> (usize, usize) {
        let needed = (len.get() / self.config.index_interval.get()) as usize + 2;
        let allowed = |entry_len| match self.next_base {
            None => entries_in(self.config.index_len_max, entry_len),
            Some(_) => 0,
        };
        (needed.max(allowed(OFFSET_ENTRY_LEN)), needed.max(allowed(TIME_ENTRY_LEN)))
    }

    /// Whether offsets relative to the segment's base can name this batch: Kafka's are 32 bits.
    pub(crate) fn names(&self, header: &BatchHeader) -> bool {
        header.last_offset().get().saturating_sub(self.base_offset.get()) <= i64::from(i32::MAX)
    }

    /// The side file, if it belongs to this segment.
    pub(crate) fn read_side_file(&self) -> Result<Option<SideFile>, DiskError> {
        let bytes = read_file(self.disk, &self.path(SegmentFileKind::Chain))?;
        let side = bytes.and_then(|bytes| SideFile::load(&bytes).ok());
        Ok(side.filter(|side| side.check_identity(self.identity()).is_ok()))
    }
}

/// A side file that is built anew.
pub(crate) struct NewChain {
    builder: SideFileBuilder,
    bytes: Vec<u8>,
}

impl NewChain {
    pub(crate) fn new(identity: SegmentIdentity) -> Self {
        let builder = SideFileBuilder::new(identity, SIDE_INTERVAL_DEFAULT);
        Self { builder, bytes: identity.encode().to_vec() }
    }

    pub(crate) fn push(&mut self, header: &BatchHeader, at: Position) {
        if let Some(record) = self.builder.push_batch(header, at) {
            self.bytes.extend_from_slice(&record);
        }
    }

    pub(crate) fn finish(mut self) -> Chain {
        if let Some(record) = self.builder.close() {
            self.bytes.extend_from_slice(&record);
        }
        let len = Position::new(self.bytes.len() as u64);
        Chain { builder: self.builder, rebuilt: Some(self.bytes), len }
    }
}

/// Adds the epoch of the next batch, if it is a new one.
pub(crate) fn note_epoch(epochs: &mut Vec<EpochStart>, header: &BatchHeader) {
    if epochs.last().is_none_or(|last| header.leader_epoch() > last.epoch) {
        epochs.push(EpochStart { epoch: header.leader_epoch(), start_offset: header.base_offset() });
    }
}

/// Lengths of the two indexes' files.
pub(crate) fn lens_of(offsets: &OffsetIndex, times: &TimeIndex) -> CompanionsLen {
    CompanionsLen {
        index: Position::new(offsets.as_bytes().len() as u64),
        time_index: Position::new(times.as_bytes().len() as u64),
        chain: Position::ZERO,
    }
}

/// Opens a segment's file.
///
/// # Errors
/// [`PartitionError::DirectUnsupported`] where the file system has no direct I/O.
pub(crate) fn open_log<D: Disk>(
    disk: &D,
    path: &Path,
    mode: OpenMode,
    caching: Caching,
) -> Result<D::File, PartitionError> {
    disk.open(path, mode, caching).map_err(|error| match (caching, error.errno) {
        (Caching::Direct, Errno::INVAL | Errno::OPNOTSUPP) => {
            PartitionError::DirectUnsupported { path: error.path, errno: error.errno }
        }
        _ => error.into(),
    })
}

/// Opens a file to read what the device has, which the page cache may not show after a failed write-back. `None` where
/// the file system has no direct I/O.
pub(crate) fn open_around_cache<D: Disk>(disk: &D, path: &Path) -> Result<Option<D::File>, DiskError> {
    match disk.open(path, OpenMode::Read, Caching::Direct) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.errno, Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a segment's lock.
///
/// # Errors
/// [`PartitionError::Locked`] if somebody else keeps it.
pub(crate) fn lock_log<D: Disk>(
    disk: &D,
    file: &D::File,
    path: &Path,
    patience_ms: u64,
) -> Result<(), PartitionError> {
    if is_planted(Bug::RecoverWithoutLock) {
        return Ok(());
    }
    disk.lock(file, Lock::InputOutput, patience_ms).map_err(|error| match error.errno {
        Errno::AGAIN => PartitionError::Locked { path: path.to_owned() },
        _ => error.into(),
    })
}
