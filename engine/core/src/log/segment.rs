//! One segment as its partition's owner shard knows it: extents, indexes, file.
//!
//! Always holds: batches lie end to end in `[0, end)`; offsets in `[base_offset, next_offset)`;
//! segments of a partition do not overlap. Units: positions in the segment's file.

use crate::cache::SegmentUid;
use crate::format::batch::BatchHeader;
use crate::format::index::IndexError;
use crate::format::index_build::IndexBuilder;
use crate::format::side_file::{SIDE_INTERVAL_DEFAULT, SegmentIdentity, SideFileBuilder};
use crate::log::LogConfig;
use crate::log::open_files::{OpenFiles, Slot};
pub(crate) use crate::log::step::PreparedSegment;
use crate::log::step::{CompanionsLen, OpenedSegment};
use crate::platform::{DIRECT_IO_ALIGN, Platform};
use crate::types::{ByteCount, Nanos, Offset, Position, Timestamp};

/// The descriptor of a segment.
pub(crate) enum SegmentFile<P: Platform> {
    /// Not open, nobody has asked.
    Closed,
    /// There, of a segment that is not sealed, and closed to spare a descriptor.
    Parked,
    /// A step is opening or creating it.
    Requested(#[expect(dead_code, reason = "it counts while it lives")] Slot),
    /// Open.
    Open(P::File, #[expect(dead_code, reason = "it counts while it lives")] Slot),
}

/// Where a segment stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentState {
    /// Takes appends.
    Active,
    /// Rolled; some of it may still have to be written.
    Full,
    /// A seal is under way.
    Sealing,
    /// Cut to its end, durable, and so are its companions.
    Sealed,
}

/// The file of the segment after the active one.
pub(crate) enum Prepared<P: Platform> {
    /// Nobody has asked.
    No,
    /// A step is making it.
    Requested,
    /// It could not be made; the next segment is made when it is needed.
    Refused,
    /// There.
    Ready(PreparedSegment<P::File>),
}

/// See the module documentation.
pub(crate) struct Segment<P: Platform> {
    pub(crate) uid: SegmentUid,
    pub(crate) base_offset: Offset,
    pub(crate) next_offset: Offset,
    pub(crate) end: Position,
    pub(crate) state: SegmentState,
    pub(crate) file: SegmentFile<P>,
    /// It has been opened again, and until then stays open for what it was opened for, unless that has begun.
    pub(crate) kept_until: Nanos,
    /// End of the reserved blocks; no commit reaches beyond it.
    pub(crate) preallocated: Position,
    /// A step is reserving blocks, or filling them.
    pub(crate) extending: bool,
    /// Blocks from here on are being filled with zeros: no commit reaches beyond it.
    pub(crate) zeroing: Option<Position>,
    /// Blocks up to here were filled, as far as the writer had not passed them.
    pub(crate) zeroed: Position,
    pub(crate) index: IndexBuilder,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) first_timestamp: Timestamp,
    pub(crate) modified: Timestamp,
    /// When the first append since its creation or opening came; [`Timestamp::NONE`] before.
    pub(crate) started: Timestamp,
    /// Makes the side file's records; `None` once it is complete, or given up.
    pub(crate) chain: Option<SideFileBuilder>,
    /// Side file bytes that no step has taken yet.
    pub(crate) chain_pending: Vec<u8>,
    pub(crate) companions: CompanionsLen,
    pub(crate) companions_in_flight: bool,
    /// End of the side file's coverage when it was last written.
    pub(crate) companions_end: Position,
    /// What followed `end` is damaged.
    pub(crate) damaged: bool,
    /// Its seal has failed, and no sync before that has covered it: what its file gives out may be older bytes.
    pub(crate) doubted: bool,
}

impl<P: Platform> Segment<P> {
    /// A new, empty active segment, whose file is still to be made.
    pub(crate) fn create(
        uid: SegmentUid,
        identity: SegmentIdentity,
        config: &LogConfig,
        now: Timestamp,
    ) -> Self {
        let base_offset = identity.base_offset;
        Self {
            uid,
            base_offset,
            next_offset: base_offset,
            end: Position::ZERO,
            state: SegmentState::Active,
            file: SegmentFile::Closed,
            kept_until: Nanos::ZERO,
            preallocated: Position::ZERO,
            extending: false,
            zeroing: None,
            zeroed: Position::ZERO,
            index: config.new_index(base_offset),
            max_timestamp: Timestamp::NONE,
            first_timestamp: Timestamp::NONE,
            modified: now,
            started: Timestamp::NONE,
            chain: Some(SideFileBuilder::new(identity, SIDE_INTERVAL_DEFAULT)),
            chain_pending: identity.encode().to_vec(),
            companions: CompanionsLen::default(),
            companions_in_flight: false,
            companions_end: Position::ZERO,
            damaged: false,
            doubted: false,
        }
    }

    /// A segment as recovery left it.
    pub(crate) fn opened(
        uid: SegmentUid,
        opened: OpenedSegment<P>,
        identity: SegmentIdentity,
        active: bool,
        open_files: &OpenFiles,
    ) -> Self {
        // A side file begins with its header.
        let new_chain = opened.chain.is_some() && opened.companions_len.chain == Position::ZERO;
        let chain_pending = if new_chain { identity.encode().to_vec() } else { Vec::new() };
        Self {
            uid,
            base_offset: opened.base_offset,
            next_offset: opened.next_offset,
            end: opened.end,
            state: if active { SegmentState::Active } else { SegmentState::Sealed },
            file: opened.file.map_or(SegmentFile::Closed, |file| SegmentFile::Open(file, open_files.take())),
            kept_until: Nanos::ZERO,
            // Blocks are reserved whole; the one that holds the end is reserved again with the next extent.
            preallocated: opened.preallocated.align_down(DIRECT_IO_ALIGN),
            extending: false,
            zeroing: None,
            zeroed: Position::ZERO,
            index: opened.index,
            max_timestamp: opened.max_timestamp,
            first_timestamp: opened.first_timestamp,
            modified: opened.modified,
            started: Timestamp::NONE,
            chain: opened.chain,
            chain_pending,
            companions: opened.companions_len,
            companions_in_flight: false,
            companions_end: opened.end,
            damaged: opened.damaged,
            doubted: false,
        }
    }

    /// The open file, if it is.
    pub(crate) fn file(&self) -> Option<&P::File> {
        match &self.file {
            SegmentFile::Open(file, _) => Some(file),
            _ => None,
        }
    }

    /// Whether the segment must be rolled before `len` bytes of batches, whose last offset will be
    /// `last_offset` and whose latest timestamp is `timestamp`: Kafka's rules.
    pub(crate) fn must_roll(
        &self,
        config: &LogConfig,
        len: ByteCount,
        last_offset: Offset,
        timestamp: Timestamp,
        now: Timestamp,
    ) -> bool {
        let relative = last_offset.get() - self.base_offset.get();
        if relative > i64::from(i32::MAX) {
            return true;
        }
        if self.end == Position::ZERO {
            return false;
        }
        self.end.get() + len.get() > config.segment_len_max.get()
            || self.index.is_full()
            || self.is_old(config, timestamp, now)
    }

    /// Whether the time from its first batch to `timestamp` exceeds the limit; wall clock where batches carry
    /// no timestamps.
    fn is_old(&self, config: &LogConfig, timestamp: Timestamp, now: Timestamp) -> bool {
        let (from, to) = if self.first_timestamp >= Timestamp::ZERO && timestamp >= Timestamp::ZERO {
            (self.first_timestamp, timestamp)
        } else {
            (self.modified, now)
        };
        i128::from(to.get()) - i128::from(from.get()) > i128::from(config.segment_age_ms_max)
    }

    /// Takes note of a batch that was placed at the end.
    pub(crate) fn push_batch(&mut self, header: &BatchHeader, now: Timestamp) {
        // `must_roll` has excluded `Range`. One request may hold more batches than an index has entries: the
        // indexes are sparse, so the batches behind the last entry are found by walking.
        let pushed = self.index.push_batch(header, self.end);
        assert!(matches!(pushed, Ok(_) | Err(IndexError::Full { .. })), "I4: {pushed:?}");
        if self.end == Position::ZERO {
            self.first_timestamp = header.max_timestamp();
        }
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp());
        self.modified = now;
        if self.started == Timestamp::NONE {
            self.started = now;
        }
        self.end = self.end.plus(header.batch_len());
        self.next_offset = header.next_offset();
    }

    /// Feeds the side file with the next durable batch.
    pub(crate) fn push_chain(&mut self, header: &BatchHeader, position: Position) {
        if let Some(chain) = &mut self.chain
            && let Some(record) = chain.push_batch(header, position)
        {
            self.chain_pending.extend_from_slice(&record);
        }
    }

    /// The side file's last record: of a sealed segment, or of one that is cleanly closed.
    pub(crate) fn end_chain(&mut self) {
        if let Some(chain) = &mut self.chain {
            let record = if self.state == SegmentState::Active { chain.close() } else { Some(chain.seal()) };
            self.chain_pending.extend_from_slice(record.as_ref().map_or(&[], |record| record));
        }
    }

    /// What `segment.ms` and `retention.ms` compare: the latest timestamp, or the last change.
    pub(crate) fn retention_timestamp(&self) -> Timestamp {
        if self.max_timestamp >= Timestamp::ZERO { self.max_timestamp } else { self.modified }
    }
}
