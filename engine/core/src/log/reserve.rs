//! Blocks ahead of the writer: reserved, written with zeros where that pays, and the next segment's made ready.
//!
//! A durable write into blocks that were written before needs no change of the file's extents, and takes half the
//! time of one into blocks that are only reserved; but every zero takes device time of its own. So zeros are
//! written for partitions with short commits, while the device has time, and never on the acknowledgement path.
//! Always holds: zeros go behind everything appended; no commit reaches into the blocks that are being filled.

use crate::cache::SegmentUid;
use crate::disk::DiskError;
use crate::error::PartitionError;
use crate::log::partition::{AckOutcome, Partition, PartitionState};
use crate::log::segment::{Prepared, PreparedSegment, Segment, SegmentState};
use crate::log::step::Step;
use crate::log::{LogConfig, WriteMode};
use crate::ops::{Now, Ops};
use crate::platform::{DIRECT_IO_ALIGN, Platform};
use crate::token::StepKind;
use crate::types::{ByteCount, Position};

/// Zeros written in one step: some milliseconds of the device's time.
const ZERO_LEN: ByteCount = ByteCount::mib(4);

/// Zeros are due when fewer bytes than this are left ahead of the writer.
const ZERO_AHEAD: ByteCount = ByteCount::mib(4);

/// Where the writer is ahead of the zeros, they begin this far in front of it at the most, so that it does not
/// run into them.
const ZERO_GAP_MAX: ByteCount = ByteCount::mib(1);

/// Zeros in a segment made ahead of need.
const PREPARED_ZERO_LEN: ByteCount = ByteCount::mib(8);

/// A segment that was half filled within this time has the next one made ready, which takes space on the device.
const PREPARE_FILL_MS_MAX: i64 = 60_000;

/// Longest average commit for which zeros are worth their time: changing the extents costs a commit some 150 us,
/// writing its length in zeros costs 0.5 to 0.8 us per KiB.
const ZERO_COMMIT_LEN_MAX: ByteCount = ByteCount::kib(128);

impl<P: Platform> Partition<P> {
    /// Blocks are reserved before the writer needs them: half a step ahead.
    pub(super) fn push_extend(&mut self, index: usize, now: Now, ops: &mut Ops<P>) {
        let segment = &self.segments[index];
        let Some(file) = segment.file().cloned() else { return };
        let busy = matches!(segment.state, SegmentState::Active | SegmentState::Full);
        if segment.extending || !busy || now.mono < self.retry_at {
            return;
        }
        let needed = segment.end.align_up(DIRECT_IO_ALIGN);
        let step = extent_len(segment.preallocated, &self.config);
        let limit = segment_limit(&self.config).max(needed);
        let ahead = if segment.state == SegmentState::Active { step.get() / 2 } else { 0 };
        let due = needed.get() + ahead > segment.preallocated.get() && segment.preallocated < limit;
        if !due || segment.end == Position::ZERO {
            return;
        }
        // A reopened file ends with its last batch; from here on, extents start on whole blocks.
        let to = segment.preallocated.align_up(DIRECT_IO_ALIGN).plus(step).max(needed).min(limit);
        // After a start the last block counts as not reserved, but holds data: reserving may mean writing zeros.
        let from = segment.preallocated.max(self.visible_end(index));
        self.segments[index].extending = true;
        let step = Step::Extend { file, from, to, zero: false };
        self.push_step(StepKind::Extend, Some(index), step, ops);
    }

    /// Whether zeros ahead of the writer are worth their time in this partition.
    fn wants_zeros(&self) -> bool {
        self.config.write_mode == WriteMode::Direct
            && self.config.zero_ahead
            && matches!(self.state, PartitionState::Live)
            && self.commit_len_mean <= ZERO_COMMIT_LEN_MAX.get()
    }

    /// Fills the next reserved blocks of the active segment with zeros; `allowed` says whether the device has time.
    pub(super) fn push_zero(&mut self, index: usize, allowed: bool, ops: &mut Ops<P>) {
        let segment = &self.segments[index];
        let idle = segment.state == SegmentState::Active && !segment.extending;
        // A partition that has not outgrown its first step may never need another block.
        let grows = segment.end.get() >= self.config.preallocate_len_min.get();
        if !allowed || !idle || !grows || !self.wants_zeros() {
            return;
        }
        let Some(file) = segment.file().cloned() else { return };
        let gap = ZERO_GAP_MAX.get().min(segment.end.get());
        let ahead = segment.end.plus(ByteCount::new(gap)).align_up(DIRECT_IO_ALIGN);
        let from = segment.zeroed.max(ahead);
        let to = from.plus(ZERO_LEN).min(segment.preallocated);
        if from >= to || segment.zeroed > segment.end.plus(ZERO_AHEAD) {
            return;
        }
        let segment = &mut self.segments[index];
        segment.extending = true;
        segment.zeroing = Some(from);
        self.push_step(StepKind::Extend, Some(index), Step::Extend { file, from, to, zero: true }, ops);
    }

    /// Blocks were reserved or filled, or could not be. Returns how many bytes were filled.
    pub(crate) fn handle_extended(
        &mut self,
        uid: SegmentUid,
        now: Now,
        result: Result<Position, DiskError>,
        outcomes: &mut Vec<AckOutcome>,
    ) -> u64 {
        let Some(segment) = self.segment_mut(uid) else { return 0 };
        segment.extending = false;
        match (result, segment.zeroing.take()) {
            (Ok(end), Some(from)) => {
                segment.zeroed = end;
                return end.since(from).get();
            }
            (Ok(end), None) => {
                segment.preallocated = end;
                self.disk_full = None;
            }
            (Err(error), _) => self.handle_disk_error(now, error, outcomes),
        }
        0
    }

    /// Once the active segment is half full, and was filled fast, the next one is made ready.
    pub(super) fn push_prepare(&mut self, now: Now, zero: bool, ops: &mut Ops<P>) {
        let active = self.active();
        let limit = ByteCount::new(segment_limit(&self.config).get());
        let half_full = active.end.get() >= limit.get() / 2;
        let fast = now.wall.get().saturating_sub(active.started.get()) <= PREPARE_FILL_MS_MAX;
        let due = half_full && fast && active.file().is_some() && !active.extending;
        let wanted = matches!((&self.prepared, &self.state), (Prepared::No, PartitionState::Live));
        if !due || !wanted || self.config.write_mode != WriteMode::Direct {
            return;
        }
        let preallocate = limit.min(LogConfig::PREALLOCATE_LEN_MAX);
        let zero =
            if zero && self.wants_zeros() { PREPARED_ZERO_LEN.min(preallocate) } else { ByteCount::ZERO };
        self.prepared = Prepared::Requested;
        let (name, config) = (self.name.clone(), self.config.clone());
        let step = Step::PrepareSegment { name, config, preallocate, zero };
        self.push_step(StepKind::PrepareSegment, None, step, ops);
    }

    /// The next segment's file was made, or could not be: then it is made when it is needed. Returns how many of its
    /// bytes were filled.
    pub(crate) fn handle_prepared(
        &mut self,
        result: Result<PreparedSegment<P::File>, PartitionError>,
    ) -> u64 {
        let zeroed = result.as_ref().map_or(Position::ZERO, |prepared| prepared.zeroed);
        self.prepared = result.map_or(Prepared::Refused, Prepared::Ready);
        zeroed.get()
    }
}

fn segment_limit(config: &LogConfig) -> Position {
    Position::new(config.segment_len_max.get()).align_up(DIRECT_IO_ALIGN)
}

/// Bytes to reserve in a new segment: what it holds already, and the first step.
pub(super) fn first_extent<P: Platform>(segment: &Segment<P>, config: &LogConfig) -> ByteCount {
    let limit = segment_limit(config);
    let wanted = segment.end.plus(config.preallocate_len_min).align_up(DIRECT_IO_ALIGN);
    ByteCount::new(wanted.min(limit.max(segment.end.align_up(DIRECT_IO_ALIGN))).get())
}

/// The next step of preallocation: as much as there is already, within limits.
fn extent_len(preallocated: Position, config: &LogConfig) -> ByteCount {
    let max = LogConfig::PREALLOCATE_LEN_MAX.get().max(config.preallocate_len_min.get());
    let len = preallocated.get().clamp(config.preallocate_len_min.get(), max);
    ByteCount::new(Position::new(len).align_up(DIRECT_IO_ALIGN).get())
}
