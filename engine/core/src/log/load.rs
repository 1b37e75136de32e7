//! Believing a segment: after a clean stop, or below the recovery point, lengths and indexes are trusted once both ends
//! of the segment bear them out.

use crate::disk::{Disk, DiskError, OpenMode};
use crate::error::PartitionError;
use crate::format::checkpoint::EpochStart;
use crate::format::index::{OFFSET_ENTRY_LEN, OffsetIndex, TIME_ENTRY_LEN, TimeIndex};
use crate::format::index_build::IndexBuilder;
use crate::format::names::SegmentFileKind;
use crate::format::side_file::{SIDE_INTERVAL_DEFAULT, SideFile, SideFileBuilder};
use crate::format::walk::{Check, StopReason};
use crate::log::files::read_file;
use crate::log::found::{Chain, Ending, Found, NewChain, SegmentContext, lens_of, note_epoch, open_log};
use crate::log::scan::{PEEK_BLOCK_LEN, SCAN_BLOCK_LEN, SegmentReader};
use crate::types::{ByteCount, Offset, Position, Timestamp};

/// Bytes behind the last index entry that are walked before the index counts as incomplete.
const UNINDEXED_LEN_MAX: ByteCount = ByteCount::mib(1);

impl<D: Disk> SegmentContext<'_, D> {
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
        let epochs = if self.epochs.unknown() { self.walk_epochs(&file)? } else { Vec::new() };
        // Nothing follows in a log that is only read.
        let continues = last && !self.read_only;
        let side = if last { self.read_side_file()? } else { None };
        if side.is_some_and(|side| side.end_position() == end && side.end_offset() != next_offset) {
            return Ok(None); // as long as it was, with other offsets
        }
        let chain = continues.then(|| self.load_chain(&file, end, next_offset)).transpose()?;
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
            epochs,
            side_end: None,
            restored: Vec::new(),
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
                    if misplaced
                        || unindexed
                        || !self.names(&header)
                        || index.push_batch(&header, at).is_err()
                    {
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

    /// The leader epochs of the batches and where they start, from the headers.
    fn walk_epochs(&self, file: &D::File) -> Result<Vec<EpochStart>, DiskError> {
        let mut reader = SegmentReader::new(self.disk, file, SCAN_BLOCK_LEN)?;
        let (mut at, mut next, mut epochs) = (Position::ZERO, self.base_offset, Vec::new());
        while let Ok(header) = reader.batch(at, next, Check::Header)? {
            note_epoch(&mut epochs, &header);
            at = at.plus(header.batch_len());
            next = header.next_offset();
        }
        Ok(epochs)
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
}
