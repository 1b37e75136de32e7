//! When which piece of which segment is scrubbed. The check itself is a step, see [`crate::log::scrub`].
//!
//! Owns the place that has been reached. Always holds: one piece is under way at a time, and none begins while commits
//! want all of the device, or before the last one's bytes are paid off at `scrub_rate`. Goes round and round: partition
//! by partition, segment by segment, up to what the side file of the active one covers.

use crate::disk::DiskError;
use crate::log::partition::{Partition, PartitionState};
use crate::log::scrub::{Piece, ScrubPoint, Scrubbed};
use crate::log::segment::SegmentState;
use crate::log::step::Step;
use crate::message::PartitionId;
use crate::ops::{Now, Ops};
use crate::platform::Platform;
use crate::shard::Core;
use crate::token::StepKind;
use crate::types::{Nanos, Offset, Position};

/// A round begins so long after the last one began, at the earliest.
const ROUND_MS_MIN: u64 = 3_600_000;

/// How soon to look again while commits want all of the device.
const YIELD_MS: u64 = 1_000;

/// Partitions without anything to check that are passed over in one turn.
const PARTITIONS_PER_TURN: usize = 64;

/// How far the round has come.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// Which partition, in the order of opening.
    partition: usize,
    /// From which segment on, and where in it.
    segment: Offset,
    from: Option<ScrubPoint>,
    in_flight: bool,
    /// Not before this does the next piece begin.
    due: Nanos,
    round_began: Nanos,
}

impl<P: Platform, C> Core<P, C> {
    /// When the next piece is due, if there is to be one.
    pub(super) fn scrub_due(&self) -> Option<Nanos> {
        let on = self.limits.scrub_rate.get() > 0 && !self.all.is_empty() && self.stopping.is_none();
        (on && !self.scrub.in_flight).then_some(self.scrub.due)
    }

    /// Begins the next piece if it is due.
    pub(super) fn poll_scrub(&mut self, now: Now, ops: &mut Ops<P>) {
        if self.scrub_due().is_none_or(|due| now.mono < due) {
            return;
        }
        if !self.scheduler.allows_zeros() {
            self.scrub.due = now.mono.plus_millis(YIELD_MS);
            return;
        }
        for _ in 0..PARTITIONS_PER_TURN {
            let Some(&id) = self.all.get(self.scrub.partition) else {
                let next = self.scrub.round_began.plus_millis(ROUND_MS_MIN).max(now.mono);
                self.scrub = Scrub { due: next, round_began: next, ..Scrub::default() };
                return;
            };
            if self.push_piece(id, ops) {
                self.scrub.in_flight = true;
                return;
            }
            self.scrub.partition += 1;
            self.scrub.segment = Offset::ZERO;
            self.scrub.from = None;
        }
        self.scrub.due = now.mono.plus_millis(1);
    }

    /// Begins the next piece of that partition; false if it has none.
    fn push_piece(&mut self, id: PartitionId, ops: &mut Ops<P>) -> bool {
        let Scrub { segment, from, .. } = self.scrub;
        let Some(partition) = self.partitions.get_mut(id) else { return false };
        if !matches!(partition.state, PartitionState::Live | PartitionState::ReadOnly) {
            return false;
        }
        let first = partition.segments.partition_point(|other| other.base_offset < segment);
        for index in first..partition.segments.len() {
            let base_offset = partition.segments[index].base_offset;
            let from = from.filter(|_| base_offset == segment);
            if let Some(piece) = piece_of(partition, index, from) {
                self.scrub.segment = base_offset;
                partition.push_step(StepKind::Scrub, Some(index), Step::Scrub(piece), ops);
                return true;
            }
        }
        false
    }

    /// A piece was checked, or could not be.
    pub(super) fn handle_scrubbed(&mut self, now: Now, result: Result<Scrubbed, DiskError>) {
        self.scrub.in_flight = false;
        let (len, next) = match result {
            Ok(scrubbed) => {
                self.stats.scrubbed_len += scrubbed.len.get();
                self.stats.scrub_damages += u64::from(scrubbed.damaged);
                (scrubbed.len.get(), scrubbed.next)
            }
            // Deleted meanwhile, or out of descriptors: on to the next segment.
            Err(_) => (self.limits.scrub_rate.get(), None),
        };
        if next.is_none() {
            self.scrub.segment = Offset::new(self.scrub.segment.get() + 1);
        }
        self.scrub.from = next;
        let pause_ms = (u128::from(len) * 1000 / u128::from(self.limits.scrub_rate.get().max(1))) as u64;
        self.scrub.due = now.mono.plus_millis(pause_ms.max(1));
    }
}

/// What of a segment may be checked from that point on.
fn piece_of<P: Platform>(partition: &Partition<P>, index: usize, from: Option<ScrubPoint>) -> Option<Piece> {
    let segment = &partition.segments[index];
    let (end, end_offset) = match segment.state {
        SegmentState::Sealed => (segment.end, Some(segment.next_offset)),
        // What the side file has been told of is durable and does not change any more.
        SegmentState::Active => (segment.companions_end.min(partition.visible_end(index)), None),
        SegmentState::Full | SegmentState::Sealing => return None,
    };
    let from = from.unwrap_or(ScrubPoint { position: Position::ZERO, next_offset: segment.base_offset });
    let identity = partition.identity(segment.base_offset);
    let piece = Piece { name: partition.name.clone(), identity, from, end, end_offset };
    (piece.from.position < piece.end).then_some(piece)
}
