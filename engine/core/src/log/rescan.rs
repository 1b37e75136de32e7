//! Reading a segment from its first batch to its last: after a stop that was not clean, and where indexes are no help.

use crate::disk::{Disk, DiskError};
use crate::error::PartitionError;
use crate::format::batch::BatchHeader;
use crate::format::checkpoint::EpochStart;
use crate::format::guard_slot::GuardSlot;
use crate::format::index::{IndexError, OffsetIndex, TimeIndex};
use crate::format::index_build::IndexBuilder;
use crate::format::names::SegmentFileKind;
use crate::format::side_file::{ChainVerifier, SideFile};
use crate::format::walk::{Check, StopReason};
use crate::log::WriteMode;
use crate::log::found::{Ending, Found, NewChain, SegmentContext, lens_of, note_epoch, open_around_cache};
use crate::log::scan::{SCAN_BLOCK_LEN, SegmentReader};
use crate::log::step::CompanionsLen;
use crate::planted::{Bug, is_planted};
use crate::types::{LeaderEpoch, Offset, Position, Timestamp};

impl<D: Disk> SegmentContext<'_, D> {
    /// Reads the whole segment around the page cache, which may hold what the device never got, checks every batch and
    /// builds its companions anew. The file is locked.
    pub(crate) fn scan(&self) -> Result<Found<D>, PartitionError> {
        let file = self.open_locked()?;
        let around_cache = match self.config.write_mode {
            WriteMode::Direct => None,
            WriteMode::Buffered if is_planted(Bug::RecoverFromPageCache) => None,
            WriteMode::Buffered => open_around_cache(self.disk, &self.path(SegmentFileKind::Log))?,
        };
        let side = self.read_side_file()?;
        let source = around_cache.as_ref().unwrap_or(&file);
        let mut found = self.scan_file(source, side.as_ref())?;
        let stays_open = self.next_base != Some(found.next_offset) || found.ending != Ending::Whole;
        found.file = stays_open.then_some(file);
        Ok(found)
    }

    fn scan_file(&self, file: &D::File, side: Option<&SideFile>) -> Result<Found<D>, PartitionError> {
        let mut reader = SegmentReader::new(self.disk, file, SCAN_BLOCK_LEN)?;
        let file_len = reader.len();
        let mut read = Rescan::new(self, file_len, side);
        let ending = loop {
            let header = match self.next_batch(&mut reader, &mut read)? {
                Ok(header) => header,
                Err(StopReason::End) => break Ending::Whole,
                Err(other) => break Ending::Damage(describe(other)),
            };
            if self.next_base.is_some_and(|base| header.next_offset() > base) {
                break Ending::Damage("a batch reaches into the next segment's offsets".to_owned());
            }
            if !self.names(&header) {
                break Ending::Damage(format!(
                    "a batch of offset {}, which no segment from {} on holds",
                    header.base_offset(),
                    self.base_offset
                ));
            }
            read.push(&header).map_err(|error| self.unindexable(read.end, error))?;
        };
        if self.next_base.is_some() {
            read.index.seal().map_err(|error| self.unindexable(read.end, error))?;
        }
        let note = self.note(&read);
        let chain = read.chain.finish();
        let lens = lens_of(read.index.offsets(), read.index.times());
        Ok(Found {
            base_offset: self.base_offset,
            file: None,
            file_len,
            end: read.end,
            next_offset: read.next_offset,
            ending,
            max_timestamp: read.index.latest().timestamp,
            index: read.index,
            first_timestamp: read.first_timestamp,
            companions_len: CompanionsLen { chain: chain.len, ..lens },
            chain: Some(chain),
            scanned: true,
            batches: read.batches,
            epochs: read.epochs,
            side_end: side.filter(|_| !read.stale).map(SideFile::end_position),
            restored: read.restored,
            note,
        })
    }

    /// The next batch. Where there is none, and a copy of the block there goes further than the batches so far: the one
    /// that there is with the copy.
    fn next_batch<'a>(
        &'a self,
        reader: &mut SegmentReader<'a, D>,
        read: &mut Rescan<'_>,
    ) -> Result<Result<BatchHeader, StopReason>, DiskError> {
        let check = if is_planted(Bug::AcceptBadChecksum) { Check::Header } else { Check::Crc };
        let found = reader.batch(read.end, read.next_offset, check)?;
        if found.is_ok() {
            return Ok(found);
        }
        let here =
            |slot: &&GuardSlot| slot.label.identity.base_offset == self.base_offset && slot.end() > read.end;
        for slot in self.slots.iter().filter(here) {
            let before = reader.lay_over(Some(slot));
            let with_copy = reader.batch(read.end, read.next_offset, check)?;
            if with_copy.is_ok() {
                read.restored.push(slot.clone());
                return Ok(with_copy);
            }
            reader.lay_over(before);
        }
        Ok(found)
    }

    /// What the operator should know of batches that are whole, and yet not what was written one after the other.
    fn note(&self, read: &Rescan<'_>) -> Option<String> {
        if let Some((at, epoch)) = read.fallen {
            let path = self.path(SegmentFileKind::Log);
            return Some(format!(
                "{} at position {at}: a batch of leader epoch {epoch} follows a later epoch; a number has rotted, or the \
                 device has brought back what was cut off.",
                path.display()
            ));
        }
        read.stale.then(|| {
            let path = self.path(SegmentFileKind::Chain);
            format!(
                "{} does not describe its segment, which another program may have changed; rebuilt.",
                path.display()
            )
        })
    }

    fn unindexable(&self, at: Position, error: IndexError) -> PartitionError {
        PartitionError::Corrupt {
            path: self.path(SegmentFileKind::Log),
            position: at.get(),
            reason: error.to_string(),
        }
    }
}

/// What is known of a segment up to a batch.
struct Rescan<'a> {
    end: Position,
    next_offset: Offset,
    index: IndexBuilder,
    chain: NewChain,
    verifier: Option<ChainVerifier<'a>>,
    /// Whether the side file describes other batches than these.
    stale: bool,
    batches: u64,
    restored: Vec<GuardSlot>,
    epochs: Vec<EpochStart>,
    /// The first batch whose leader epoch is lower than one before it, and that epoch.
    fallen: Option<(Position, LeaderEpoch)>,
    first_timestamp: Timestamp,
}

impl<'a> Rescan<'a> {
    fn new<D: Disk>(context: &SegmentContext<'_, D>, len: Position, side: Option<&'a SideFile>) -> Self {
        let base_offset = context.base_offset;
        let (offsets_max, times_max) = context.entries_max(len.since(Position::ZERO));
        let offsets = OffsetIndex::new(base_offset, offsets_max);
        let times = TimeIndex::new(base_offset, times_max);
        Self {
            end: Position::ZERO,
            next_offset: base_offset,
            index: IndexBuilder::new(offsets, times, context.config.index_interval),
            chain: NewChain::new(context.identity()),
            verifier: side.map(ChainVerifier::new),
            stale: false,
            batches: 0,
            restored: Vec::new(),
            epochs: Vec::new(),
            fallen: None,
            first_timestamp: Timestamp::NONE,
        }
    }

    fn push(&mut self, header: &BatchHeader) -> Result<(), IndexError> {
        self.index.push_batch(header, self.end)?;
        if let Some(verifier) = self.verifier.as_mut().filter(|_| !self.stale) {
            self.stale = verifier.push_batch(header, self.end).is_err();
        }
        self.chain.push(header, self.end);
        let epoch = header.leader_epoch();
        if epoch >= LeaderEpoch::ZERO && self.epochs.last().is_some_and(|last| epoch < last.epoch) {
            self.fallen.get_or_insert((self.end, epoch));
        }
        note_epoch(&mut self.epochs, header);
        if self.batches == 0 {
            self.first_timestamp = header.max_timestamp();
        }
        self.batches += 1;
        self.end = self.end.plus(header.batch_len());
        self.next_offset = header.next_offset();
        Ok(())
    }
}

/// Why there is no batch, for the operator.
pub(crate) fn describe(reason: StopReason) -> String {
    match reason {
        StopReason::End => "the file ends".to_owned(),
        StopReason::ZeroTail => "zeros instead of a batch".to_owned(),
        StopReason::Torn { needed, found } => {
            format!("a batch of {needed} bytes is cut short after {found}")
        }
        StopReason::Bad(error) => error.to_string(),
    }
}
