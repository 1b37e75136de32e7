//! Everything about a partition's files that is neither a commit nor a reservation: making, sealing, companions,
//! closing. Decides when a step is due and takes in what it brought; the steps themselves
//! run elsewhere.

use crate::cache::SegmentUid;
use crate::disk::{DiskError, Errno};
use crate::error::{PartitionError, PartitionFailure};
use crate::format::index::IndexError;
use crate::format::names::TopicPartition;
use crate::log::Durability;
use crate::log::partition::{AckOutcome, Partition, PartitionState};
use crate::log::reserve::first_extent;
use crate::log::segment::{Prepared, Segment, SegmentFile, SegmentState};
use crate::log::step::{Companions, LastSegment, Step};
use crate::ops::{Now, Ops};
use crate::planted::{Bug, is_planted};
use crate::platform::Platform;
use crate::token::{Purpose, StepKind};
use crate::types::{ByteCount, Position};

/// Companions are written when so many durable bytes are not covered by them yet.
const COMPANIONS_INTERVAL: ByteCount = ByteCount::mib(8);

impl<P: Platform> Partition<P> {
    pub(crate) fn push_step(
        &mut self,
        kind: StepKind,
        segment: Option<usize>,
        step: Step<P>,
        ops: &mut Ops<P>,
    ) {
        let uid = segment.map_or(SegmentUid(0), |index| self.segments[index].uid);
        self.steps_in_flight += 1;
        ops.steps.push((Purpose::Step(kind, self.id, uid).token(), Box::new(step)));
    }

    /// Starts whatever steps are due. Sealed segments need none. `zero` says whether the device has time for zeros.
    pub(crate) fn push_upkeep(&mut self, now: Now, zero: bool, ops: &mut Ops<P>) {
        if !matches!(self.state, PartitionState::Live | PartitionState::Closing) {
            return;
        }
        for index in (0..self.segments.len()).rev() {
            if self.segments[index].state == SegmentState::Sealed {
                break;
            }
            self.push_reopen(index, now, ops);
            self.push_create(index, now, ops);
            self.push_extend(index, now, ops);
            self.push_zero(index, zero, ops);
            self.push_seal(index, ops);
            self.push_companions(index, ops);
        }
        self.push_guard_open(now, ops);
        self.push_prepare(now, zero, ops);
        self.push_close(ops);
    }

    /// A new segment gets its file once there is something to write into it.
    fn push_create(&mut self, index: usize, now: Now, ops: &mut Ops<P>) {
        if matches!(self.prepared, Prepared::Requested) {
            return; // the file that is being made is this segment's
        }
        // In order: where those before are deleted, the log begins with the first file there is.
        let before = index.checked_sub(1).map(|before| &self.segments[before]);
        let has_file = |s: &Segment<P>| !matches!(s.file, SegmentFile::Closed | SegmentFile::Requested(_));
        if before.is_some_and(|s| s.state != SegmentState::Sealed && !has_file(s)) {
            return;
        }
        let slot = self.open_files.take();
        let segment = &mut self.segments[index];
        let wanted = segment.end > Position::ZERO && matches!(segment.file, SegmentFile::Closed);
        if !wanted || segment.state == SegmentState::Sealing || now.mono < self.retry_at {
            return;
        }
        segment.file = SegmentFile::Requested(slot);
        let prepared = match std::mem::replace(&mut self.prepared, Prepared::No) {
            Prepared::Ready(prepared) => {
                segment.zeroed = prepared.zeroed;
                Some((prepared.file, prepared.preallocated))
            }
            Prepared::No | Prepared::Requested | Prepared::Refused => None,
        };
        let step = Step::CreateSegment {
            name: self.name.clone(),
            config: self.config.clone(),
            base_offset: segment.base_offset,
            preallocate: first_extent(segment, &self.config),
            prepared,
        };
        self.push_step(StepKind::CreateSegment, Some(index), step, ops);
    }

    /// A full segment is sealed when the commit position has left it behind.
    fn push_seal(&mut self, index: usize, ops: &mut Ops<P>) {
        let committed = self.is_committed(index) || is_planted(Bug::SealBeforeCommit);
        // In order: a seal moves the recovery point behind its segment, and below it nothing is doubted.
        if index > 0 && self.segments[index - 1].state != SegmentState::Sealed {
            return;
        }
        let segment = &mut self.segments[index];
        let idle = !segment.extending && !segment.companions_in_flight;
        if segment.state != SegmentState::Full || !committed || !idle {
            return;
        }
        let Some(file) = segment.file().cloned() else {
            // Rolled while empty: there is nothing on disk to seal.
            return;
        };
        segment.state = SegmentState::Sealing;
        let companions = take_companions(segment, &self.name, true);
        let segment = &self.segments[index];
        let step = Step::Seal { file, end: segment.end, next_offset: segment.next_offset, companions };
        self.push_step(StepKind::Seal, Some(index), step, ops);
    }

    fn push_companions(&mut self, index: usize, ops: &mut Ops<P>) {
        let covered = self.segments[index].companions_end;
        let written = self.visible_end(index);
        let segment = &mut self.segments[index];
        let due = written.get() >= covered.get() + COMPANIONS_INTERVAL.get();
        if segment.state != SegmentState::Active
            || segment.companions_in_flight
            || !due
            || segment.file().is_none()
        {
            return;
        }
        segment.companions_in_flight = true;
        segment.companions_end = written;
        let companions = take_companions(segment, &self.name, false);
        self.push_step(StepKind::WriteCompanions, Some(index), Step::WriteCompanions(companions), ops);
    }

    fn is_committed(&self, index: usize) -> bool {
        let in_flight = self.in_flight.is_some_and(|point| point.uid == self.segments[index].uid);
        !in_flight && self.durable.offset >= self.segments[index].next_offset
    }

    /// Stops taking appends and closes when everything accepted is durable.
    pub(crate) fn begin_close(&mut self) {
        if matches!(self.state, PartitionState::Live) {
            self.state = PartitionState::Closing;
        }
    }

    fn push_close(&mut self, ops: &mut Ops<P>) {
        let drained = self.pending.is_empty() && self.in_flight.is_none() && self.steps_in_flight == 0;
        if !matches!(self.state, PartitionState::Closing) || !drained {
            return;
        }
        let last = self.segments.len() - 1;
        let (log_end_offset, log_start_offset) = (self.log_end_offset(), self.log_start_offset);
        let segment = &mut self.segments[last];
        let file = segment.file().cloned();
        let has_file = file.is_some() || matches!(segment.file, SegmentFile::Parked);
        let active = has_file.then(|| LastSegment {
            file,
            end: segment.end,
            companions: take_companions(segment, &self.name, true),
        });
        self.state = PartitionState::Closed;
        let prepared = matches!(std::mem::replace(&mut self.prepared, Prepared::No), Prepared::Ready(..));
        let (name, config) = (self.name.clone(), self.config.clone());
        let step = Step::Close { name, config, active, prepared, log_end_offset, log_start_offset };
        self.push_step(StepKind::Close, None, step, ops);
    }

    /// A new segment's file was made, or could not be.
    pub(crate) fn handle_segment_file(
        &mut self,
        uid: SegmentUid,
        now: Now,
        result: Result<(P::File, Position), PartitionError>,
        outcomes: &mut Vec<AckOutcome>,
    ) {
        let slot = self.open_files.take();
        let Some(segment) = self.segment_mut(uid) else { return };
        match result {
            Ok((file, preallocated)) => {
                segment.file = SegmentFile::Open(file, slot);
                segment.preallocated = preallocated;
                self.disk_full = None;
            }
            Err(error) => {
                segment.file = SegmentFile::Closed;
                match error {
                    PartitionError::Disk(error) => self.handle_disk_error(now, error, outcomes),
                    other => {
                        let path = self.name.path();
                        let errno = match &other {
                            PartitionError::DirectUnsupported { errno, .. } => *errno,
                            _ => Errno::AGAIN,
                        };
                        let failure = DiskError { action: "create a segment in", path, errno };
                        self.fail(PartitionFailure::Disk(failure), outcomes);
                    }
                }
            }
        }
    }

    /// A full device, or too few descriptors, is backpressure; everything else fails the partition.
    pub(crate) fn handle_disk_error(&mut self, now: Now, error: DiskError, outcomes: &mut Vec<AckOutcome>) {
        if error.errno.is_shortage() {
            self.note_full(now, error, outcomes);
        } else {
            self.fail(PartitionFailure::Disk(error), outcomes);
        }
    }

    /// Companions were written or not: they are never a reason to stop, recovery rebuilds them.
    pub(crate) fn handle_companions(&mut self, uid: SegmentUid, result: Result<(), DiskError>) {
        if let Some(segment) = self.segment_mut(uid) {
            segment.companions_in_flight = false;
            if result.is_err() {
                // What this step was to write is missing: stop extending a file with a hole.
                segment.chain = None;
            }
        }
    }

    /// A segment was sealed.
    pub(crate) fn handle_sealed(
        &mut self,
        uid: SegmentUid,
        now: Now,
        result: Result<(), DiskError>,
        outcomes: &mut Vec<AckOutcome>,
    ) {
        let written = self.config.durability == Durability::Written;
        let Some(segment) = self.segment_mut(uid) else { return };
        match result {
            Ok(()) => {
                segment.state = SegmentState::Sealed;
                segment.preallocated = segment.end;
                segment.chain = None;
                self.limit_open_files(uid, now);
            }
            Err(error) => {
                // A sync that fails may leave the page cache clean and the device without the bytes.
                segment.doubted = written;
                self.fail(PartitionFailure::Disk(error), outcomes);
            }
        }
    }
}

/// What the companions on disk lack. With `last`, the segment takes no more batches.
fn take_companions<P: Platform>(segment: &mut Segment<P>, name: &TopicPartition, last: bool) -> Companions {
    if last {
        // The entry is a convenience. `must_roll` excludes an offset out of range; one request may fill the index.
        let sealed = segment.index.seal();
        debug_assert!(matches!(sealed, Ok(()) | Err(IndexError::Full { .. })), "{sealed:?}");
        segment.end_chain();
    }
    let mut companions =
        Companions { name: Some(name.clone()), base_offset: segment.base_offset, ..Companions::default() };
    let (index, times) = (segment.index.offsets().as_bytes(), segment.index.times().as_bytes());
    companions.index_position = segment.companions.index;
    companions.index = index[segment.companions.index.get() as usize..].to_vec();
    companions.time_index_position = segment.companions.time_index;
    companions.time_index = times[segment.companions.time_index.get() as usize..].to_vec();
    companions.chain_position = segment.companions.chain;
    companions.chain = std::mem::take(&mut segment.chain_pending);
    segment.companions.index = Position::new(index.len() as u64);
    segment.companions.time_index = Position::new(times.len() as u64);
    segment.companions.chain = segment.companions.chain.plus(ByteCount::of_usize(companions.chain.len()));
    companions
}
