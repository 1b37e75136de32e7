//! One segment as opening finds it: either its indexes are believed, after a look at both ends, or all of it is read.
//!
//! Always holds: nothing here changes a file. What must be changed is decided over the whole partition first.

use std::path::{Path, PathBuf};

use crate::disk::{Caching, Disk, DiskError, Errno, Lock, OpenMode};
use crate::error::PartitionError;
use crate::format::checkpoint::EpochStart;
use crate::format::index::{
    IndexError, OFFSET_ENTRY_LEN, OffsetIndex, TIME_ENTRY_LEN, TimeIndex, entries_in,
};
use crate::format::index_build::IndexBuilder;
use crate::format::names::{SegmentFileKind, TopicId, TopicPartition};
use crate::format::side_file::{
    ChainVerifier, SIDE_INTERVAL_DEFAULT, SegmentIdentity, SideFile, SideFileBuilder,
};
use crate::format::walk::{Check, StopReason};
use crate::log::files::read_file;
use crate::log::inventory::segment_path;
use crate::log::scan::{PEEK_BLOCK_LEN, SCAN_BLOCK_LEN, SegmentReader};
use crate::log::step::CompanionsLen;
use crate::log::{LogConfig, WriteMode};
use crate::types::{ByteCount, Offset, Position, Timestamp};

/// Bytes behind the last index entry that are walked before the index counts as incomplete.
const UNINDEXED_LEN_MAX: ByteCount = ByteCount::mib(1);

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
    /// What is to be said about it.
    pub(crate) note: Option<String>,
}

impl<D: Disk> SegmentContext<'_, D> {
    /// Path of one of its files.
    pub(crate) fn path(&self, kind: SegmentFileKind) -> PathBuf {
        segment_path(self.dir, self.base_offset, kind)
    }

    fn identity(&self) -> SegmentIdentity {
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

    /// Believes lengths and indexes, after a look at both ends of the segment. `None` if they are missing or do not
    /// fit: then only a scan tells. The last segment is opened for writing and locked.
    pub(crate) fn load(&self) -> Result<Option<Found<D>>, PartitionError> {
        let last = self.next_base.is_none();
        let file = if last {
            self.open_locked()?
        } else {
            let path = self.path(SegmentFileKind::Log);
            open_log(self.disk, &path, OpenMode::Read, self.config.write_mode.caching())?
        };
        let mut reader = SegmentReader::new(self.disk, &file, PEEK_BLOCK_LEN)?;
        let Some((offsets, times)) = self.load_indexes(reader.len())? else { return Ok(None) };
        let mut companions_len = lens_of(&offsets, &times);
        let Some(tail) = self.walk_tail(&mut reader, offsets, times)? else { return Ok(None) };
        let first_timestamp = reader.header(Position::ZERO)?.map_or(Timestamp::NONE, |h| h.max_timestamp());
        let (end, next_offset, index) = tail;
        let chain = if last { Some(self.load_chain(&file, end, next_offset)?) } else { None };
        companions_len.chain = chain.as_ref().map_or(Position::ZERO, |chain| chain.len);
        Ok(Some(Found {
            base_offset: self.base_offset,
            file: last.then_some(file),
            file_len: end,
            end,
            next_offset,
            ending: Ending::Whole,
            max_timestamp: index.latest().timestamp,
            index,
            first_timestamp,
            chain,
            companions_len,
            scanned: false,
            batches: 0,
            epochs: Vec::new(),
            side_end: None,
            note: None,
        }))
    }

    fn load_indexes(&self, len: Position) -> Result<Option<(OffsetIndex, TimeIndex)>, PartitionError> {
        let offsets = read_file(self.disk, &self.path(SegmentFileKind::Index))?;
        let times = read_file(self.disk, &self.path(SegmentFileKind::TimeIndex))?;
        let (Some(offsets), Some(times)) = (offsets, times) else { return Ok(None) };
        // What the walk behind the last entries may add must fit as well.
        let more = self.entries_max(UNINDEXED_LEN_MAX);
        let held =
            |bytes: &[u8], entry_len| if self.next_base.is_some() { bytes.len() / entry_len } else { 0 };
        let offsets_max = more.0 + held(&offsets, OFFSET_ENTRY_LEN);
        let times_max = more.1 + held(&times, TIME_ENTRY_LEN);
        let offsets = OffsetIndex::load(self.base_offset, &offsets, len.since(Position::ZERO), offsets_max);
        let times = TimeIndex::load(self.base_offset, &times, times_max);
        Ok(offsets.ok().zip(times.ok()))
    }

    /// Entries that the indexes must have room for: those of `len` bytes of batches and the one of the seal, and what
    /// the settings allow if more batches follow.
    fn entries_max(&self, len: ByteCount) -> (usize, usize) {
        let needed = (len.get() / self.config.index_interval.get()) as usize + 2;
        let allowed = |entry_len| match self.next_base {
            None => entries_in(self.config.index_len_max, entry_len),
            Some(_) => 0,
        };
        (needed.max(allowed(OFFSET_ENTRY_LEN)), needed.max(allowed(TIME_ENTRY_LEN)))
    }

    /// Walks from the last index entry to the end: end of the last batch, next offset, and the indexes with what they
    /// know of the batches behind their last entries.
    fn walk_tail(
        &self,
        reader: &mut SegmentReader<'_, D>,
        offsets: OffsetIndex,
        times: TimeIndex,
    ) -> Result<Option<(Position, Offset, IndexBuilder)>, DiskError> {
        let entry = offsets.last();
        let indexed_end = entry.map(|e| e.last_offset).max(times.last().map(|e| e.offset));
        let start = entry.map_or(Position::ZERO, |entry| entry.position);
        let (mut at, mut next_offset) = (start, self.base_offset);
        let mut index = IndexBuilder::new(offsets, times, self.config.index_interval);
        loop {
            match reader.batch(at, next_offset, Check::Header)? {
                Ok(header) => {
                    let misplaced =
                        entry.is_some_and(|e| at == start && header.last_offset() > e.last_offset);
                    let unindexed = at.since(start) > UNINDEXED_LEN_MAX;
                    if misplaced || unindexed || index.push_batch(&header, at).is_err() {
                        return Ok(None);
                    }
                    at = at.plus(header.batch_len());
                    next_offset = header.next_offset();
                }
                Err(StopReason::End) => break,
                Err(_) => return Ok(None),
            }
        }
        let fits = indexed_end.is_none_or(|offset| offset < next_offset)
            && self.next_base.is_none_or(|base| next_offset <= base);
        Ok(fits.then_some((at, next_offset, index)))
    }

    /// The side file of the last segment, rebuilt from the headers if it does not end where the segment ends.
    fn load_chain(&self, file: &D::File, end: Position, next_offset: Offset) -> Result<Chain, DiskError> {
        let fits = |side: &SideFile| {
            side.end_position() == end && side.end_offset() == next_offset && !side.is_sealed()
        };
        if let Some(side) = self.read_side_file()?.filter(fits) {
            let len = Position::ZERO.plus(side.valid_len());
            let builder = SideFileBuilder::resume(&side, SIDE_INTERVAL_DEFAULT);
            return Ok(Chain { builder, rebuilt: None, len });
        }
        let mut chain = NewChain::new(self.identity());
        let mut reader = SegmentReader::new(self.disk, file, SCAN_BLOCK_LEN)?;
        let (mut at, mut next) = (Position::ZERO, self.base_offset);
        while let Ok(header) = reader.batch(at, next, Check::Header)? {
            chain.push(&header, at);
            at = at.plus(header.batch_len());
            next = header.next_offset();
        }
        Ok(chain.finish())
    }

    fn read_side_file(&self) -> Result<Option<SideFile>, DiskError> {
        let bytes = read_file(self.disk, &self.path(SegmentFileKind::Chain))?;
        let side = bytes.and_then(|bytes| SideFile::load(&bytes).ok());
        Ok(side.filter(|side| side.check_identity(self.identity()).is_ok()))
    }

    /// Reads the whole segment, checks every batch and builds its companions anew. The file is locked, and what was
    /// read is made durable: a page cache may hold what the device never got.
    pub(crate) fn scan(&self) -> Result<Found<D>, PartitionError> {
        let file = self.open_locked()?;
        let around_cache = match self.config.write_mode {
            WriteMode::Direct => None,
            WriteMode::Buffered => self.open_around_cache()?,
        };
        let side = self.read_side_file()?;
        let source = around_cache.as_ref().unwrap_or(&file);
        let mut found = self.scan_file(source, side.as_ref())?;
        if !self.read_only {
            self.disk.sync(&file)?;
        }
        let stays_open = self.next_base != Some(found.next_offset) || found.ending != Ending::Whole;
        found.file = stays_open.then_some(file);
        Ok(found)
    }

    /// After a failed write-back the page cache shows what the device does not have: read the device.
    fn open_around_cache(&self) -> Result<Option<D::File>, DiskError> {
        match self.disk.open(&self.path(SegmentFileKind::Log), OpenMode::Read, Caching::Direct) {
            Ok(file) => Ok(Some(file)),
            Err(error) if matches!(error.errno, Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn scan_file(&self, file: &D::File, side: Option<&SideFile>) -> Result<Found<D>, PartitionError> {
        let mut reader = SegmentReader::new(self.disk, file, SCAN_BLOCK_LEN)?;
        let file_len = reader.len();
        let (offsets_max, times_max) = self.entries_max(file_len.since(Position::ZERO));
        let mut indexes = IndexBuilder::new(
            OffsetIndex::new(self.base_offset, offsets_max),
            TimeIndex::new(self.base_offset, times_max),
            self.config.index_interval,
        );
        let mut chain = NewChain::new(self.identity());
        let mut verifier = side.map(ChainVerifier::new);
        let (mut at, mut next_offset) = (Position::ZERO, self.base_offset);
        let (mut batches, mut epochs) = (0, Vec::<EpochStart>::new());
        let (mut first_timestamp, mut stale) = (Timestamp::NONE, false);
        let ending = loop {
            let header = match reader.batch(at, next_offset, Check::Crc)? {
                Ok(header) => header,
                Err(StopReason::End) => break Ending::Whole,
                Err(other) => break Ending::Damage(describe(other)),
            };
            if self.next_base.is_some_and(|base| header.next_offset() > base) {
                break Ending::Damage("a batch reaches into the next segment's offsets".to_owned());
            }
            indexes.push_batch(&header, at).map_err(|error| self.unindexable(at, error))?;
            stale |=
                verifier.as_mut().is_some_and(|verifier| !stale && verifier.push_batch(&header, at).is_err());
            chain.push(&header, at);
            if epochs.last().is_none_or(|last| header.leader_epoch() > last.epoch) {
                epochs.push(EpochStart { epoch: header.leader_epoch(), start_offset: header.base_offset() });
            }
            if batches == 0 {
                first_timestamp = header.max_timestamp();
            }
            batches += 1;
            at = at.plus(header.batch_len());
            next_offset = header.next_offset();
        };
        if self.next_base.is_some() {
            indexes.seal().map_err(|error| self.unindexable(at, error))?;
        }
        let chain = chain.finish();
        let lens = lens_of(indexes.offsets(), indexes.times());
        let side_end = side.filter(|_| !stale).map(SideFile::end_position);
        Ok(Found {
            base_offset: self.base_offset,
            file: None,
            file_len,
            end: at,
            next_offset,
            ending,
            max_timestamp: indexes.latest().timestamp,
            index: indexes,
            first_timestamp,
            companions_len: CompanionsLen { chain: chain.len, ..lens },
            chain: Some(chain),
            scanned: true,
            batches,
            epochs,
            side_end,
            note: stale.then(|| self.stale_note()),
        })
    }

    fn stale_note(&self) -> String {
        let path = self.path(SegmentFileKind::Chain);
        format!(
            "{} does not describe its segment, which another program may have changed; rebuilt.",
            path.display()
        )
    }

    fn unindexable(&self, at: Position, error: IndexError) -> PartitionError {
        PartitionError::Corrupt {
            path: self.path(SegmentFileKind::Log),
            position: at.get(),
            reason: error.to_string(),
        }
    }
}

/// A side file that is built anew.
struct NewChain {
    builder: SideFileBuilder,
    bytes: Vec<u8>,
}

impl NewChain {
    fn new(identity: SegmentIdentity) -> Self {
        let builder = SideFileBuilder::new(identity, SIDE_INTERVAL_DEFAULT);
        Self { builder, bytes: identity.encode().to_vec() }
    }

    fn push(&mut self, header: &crate::format::batch::BatchHeader, at: Position) {
        if let Some(record) = self.builder.push_batch(header, at) {
            self.bytes.extend_from_slice(&record);
        }
    }

    fn finish(mut self) -> Chain {
        if let Some(record) = self.builder.close() {
            self.bytes.extend_from_slice(&record);
        }
        let len = Position::new(self.bytes.len() as u64);
        Chain { builder: self.builder, rebuilt: Some(self.bytes), len }
    }
}

fn lens_of(offsets: &OffsetIndex, times: &TimeIndex) -> CompanionsLen {
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
    disk.lock(file, Lock::InputOutput, patience_ms).map_err(|error| match error.errno {
        Errno::AGAIN => PartitionError::Locked { path: path.to_owned() },
        _ => error.into(),
    })
}

fn describe(reason: StopReason) -> String {
    match reason {
        StopReason::End => "the file ends".to_owned(),
        StopReason::ZeroTail => "zeros instead of a batch".to_owned(),
        StopReason::Torn { needed, found } => {
            format!("a batch of {needed} bytes is cut short after {found}")
        }
        StopReason::Bad(error) => error.to_string(),
    }
}
