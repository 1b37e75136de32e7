//! Deleting from the start of a log: retention, and Kafka's DeleteRecords.
//!
//! One deletion at a time, in two steps. The first makes the new log start offset durable; only then do readers see it,
//! and the second unlinks the segments below it (I10). So nobody is shown a start that a power cut takes back, and a
//! deletion that the device refuses has not happened for readers.

use crate::disk::DiskError;
use crate::error::PartitionError;
use crate::log::partition::{Partition, PartitionState};
use crate::log::segment::SegmentState;
use crate::log::step::Step;
use crate::memory::Memory;
use crate::message::{Reply, Ticket};
use crate::ops::{Now, Ops};
use crate::planted::{Bug, is_planted};
use crate::platform::Platform;
use crate::token::StepKind;
use crate::types::{Offset, Position, Timestamp};

/// A deletion that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deletion {
    /// Who asked; `None` for retention.
    ticket: Option<Ticket>,
    /// Where the log is to start, if it does not start later.
    start: Offset,
}

impl<P: Platform> Partition<P> {
    /// Deletes what retention no longer keeps: whole segments from the oldest on, never beyond the high
    /// watermark. Says whether the log has rolled for it, so that there is a segment to seal.
    pub(crate) fn push_retention(&mut self, memory: &mut Memory<P>, now: Now, ops: &mut Ops<P>) -> bool {
        if !matches!(self.state, PartitionState::Live) || !self.deletions.is_empty() {
            return false;
        }
        let doomed = self.expired(now.wall);
        let rolls = doomed == self.segments.len() && self.active().end > Position::ZERO;
        if rolls {
            self.roll(memory, now.wall);
        }
        let doomed = doomed.min(self.segments.len() - 1);
        if doomed > 0 {
            let start = self.segments[doomed].base_offset;
            self.push_deletion(Deletion { ticket: None, start }, ops);
        }
        rolls
    }

    /// How many segments, from the oldest on, retention by time or by size gives up.
    fn expired(&self, now: Timestamp) -> usize {
        let total: u64 = self.segments.iter().map(|segment| segment.end.get()).sum();
        let mut excess = self.config.retention_len.map_or(0, |keep| total.saturating_sub(keep.get()));
        let mut count = 0;
        for segment in &self.segments {
            let settled = segment.next_offset <= self.durable.offset
                && matches!(segment.state, SegmentState::Sealed | SegmentState::Active)
                && segment.end > Position::ZERO;
            let age = i128::from(now.get()) - i128::from(segment.retention_timestamp().get());
            let old = self.config.retention_ms.is_some_and(|keep| age > i128::from(keep));
            let surplus = segment.state == SegmentState::Sealed && segment.end.get() <= excess && excess > 0;
            if !settled || !(old || surplus) {
                break;
            }
            excess = excess.saturating_sub(segment.end.get());
            count += 1;
        }
        count
    }

    /// Kafka's DeleteRecords: everything below `before` may go. -1 means the high watermark.
    pub(crate) fn delete_records(
        &mut self,
        before: Offset,
        ticket: Ticket,
        ops: &mut Ops<P>,
    ) -> Result<(), PartitionError> {
        self.check_writable()?;
        let high_watermark = self.durable.offset;
        let start = if before == Offset::new(-1) { high_watermark } else { before };
        if start < Offset::ZERO || (start > high_watermark && !is_planted(Bug::TrimBeyondHighWatermark)) {
            return Err(PartitionError::OffsetOutOfRange { offset: start, high_watermark });
        }
        self.push_deletion(Deletion { ticket: Some(ticket), start }, ops);
        Ok(())
    }

    fn push_deletion(&mut self, deletion: Deletion, ops: &mut Ops<P>) {
        self.deletions.push_back(deletion);
        if self.deletions.len() == 1 {
            self.push_log_start(ops);
        }
    }

    /// The first step of the first deletion.
    fn push_log_start(&mut self, ops: &mut Ops<P>) {
        let Some(&Deletion { start, .. }) = self.deletions.front() else { return };
        let log_start_offset = self.log_start_offset.max(start);
        if is_planted(Bug::ShowLogStartEarly) {
            self.log_start_offset = log_start_offset;
        }
        let step = Step::RaiseLogStart { name: self.name.clone(), log_start_offset };
        self.push_step(StepKind::DeleteSegments, None, step, ops);
    }

    /// The log start offset of the first deletion is durable, or could not be made so. Readers see it from now on, and lose
    /// sight of the sealed segments that lie wholly below it; transfers under way keep their descriptors.
    pub(crate) fn handle_log_start(
        &mut self,
        memory: &mut Memory<P>,
        result: Result<(), DiskError>,
        ops: &mut Ops<P>,
    ) {
        let Some(&Deletion { start, .. }) = self.deletions.front() else { return };
        if let Err(error) = result {
            return self.end_deletion(Err(error), ops);
        }
        self.log_start_offset = self.log_start_offset.max(start);
        let next = usize::from(!is_planted(Bug::DeleteOneSegmentTooMany));
        let mut base_offsets = Vec::new();
        while self.segments.len() > 1
            && self.segments[next].base_offset <= self.log_start_offset
            && self.segments[0].state == SegmentState::Sealed
            && let Some(segment) = self.segments.pop_front()
        {
            memory.cache.remove_segment(segment.uid, segment.end);
            base_offsets.push(segment.base_offset);
        }
        if base_offsets.is_empty() {
            return self.end_deletion(Ok(()), ops);
        }
        let step = Step::DeleteSegments { name: self.name.clone(), base_offsets };
        self.push_step(StepKind::DeleteSegments, None, step, ops);
    }

    /// The first deletion has ended: answers who asked, and begins the next one.
    pub(crate) fn end_deletion(&mut self, result: Result<(), DiskError>, ops: &mut Ops<P>) {
        let Some(Deletion { ticket, .. }) = self.deletions.pop_front() else { return };
        if let Some(ticket) = ticket {
            let reply = result.map(|()| self.log_start_offset).map_err(PartitionError::Disk);
            ops.replies.push((ticket, Reply::RecordsDeleted(reply)));
        }
        self.push_log_start(ops);
    }
}
