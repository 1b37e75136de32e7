//! Files of a partition that are closed and opened again: sealed segments when somebody reads them, the active one when
//! there is something to do with it.
//!
//! Always holds: a file is closed only with nothing in flight; the lock of one that is written is taken again before
//! the next write. In between, the log directory's own lock keeps other processes out.

use crate::cache::SegmentUid;
use crate::disk::{DiskError, Errno};
use crate::error::{FetchError, PartitionError, PartitionFailure};
use crate::log::partition::{AckOutcome, Partition, PartitionState, TailState};
use crate::log::segment::{Segment, SegmentFile, SegmentState};
use crate::log::step::Step;
use crate::ops::{Now, Ops};
use crate::planted::{Bug, is_planted};
use crate::platform::{OpenFile, Platform};
use crate::token::StepKind;
use crate::types::Nanos;

/// How long a file that was opened again stays open unused: reads wait for their turn at the device and for memory, and
/// closed before that it would only have to be opened again. Milliseconds.
const REOPENED_MS: u64 = 100;

/// How long accepted appends wait for room among the open files, for each file that is open beyond the limit once more.
/// What is open may be held by answers that stand behind those to just these appends. Milliseconds.
const ROOM_WAIT_MS: u64 = 100;

/// Sealed segments of one partition that stay open for readers.
const OPEN_SEALED_MAX: usize = 16;

impl<P: Platform> Partition<P> {
    /// Whether readers may be given what a segment's file holds, and if not, why (I6).
    pub(crate) fn check_file(&self, index: usize) -> Result<(), FetchError> {
        let Segment { base_offset, doubted, .. } = &self.segments[index];
        let error = FetchError::ReadFailed { base_offset: *base_offset, position: 0, errno: Errno::IO };
        if *doubted && !is_planted(Bug::ReadAfterFailedSync) { Err(error) } else { Ok(()) }
    }

    /// The file of a segment; `None` while it is being opened, which this asks for if nobody has.
    pub(crate) fn segment_file(&mut self, index: usize, ops: &mut Ops<P>) -> Option<P::File> {
        let slot = self.open_files.take();
        let segment = &mut self.segments[index];
        let write = match &segment.file {
            SegmentFile::Open(file, _) => {
                segment.kept_until = Nanos::ZERO;
                return Some(file.clone());
            }
            SegmentFile::Requested(_) => return None,
            SegmentFile::Closed => false,
            SegmentFile::Parked => true,
        };
        segment.file = SegmentFile::Requested(slot);
        let base_offset = segment.base_offset;
        let (name, config) = (self.name.clone(), self.config.clone());
        let step = Step::OpenSegment { name, config, base_offset, write };
        self.push_step(StepKind::OpenSegment, Some(index), step, ops);
        None
    }

    /// Whoever asked for the file cannot use it yet and will ask again: until then it stays open.
    pub(crate) fn keep_file(&mut self, index: usize, now: Now) {
        self.segments[index].kept_until = now.mono.plus_millis(REOPENED_MS);
    }

    /// Opens a parked file again if there is something to do with it: at once to seal it, for appends when there is
    /// room among the open files, or has been none for long.
    pub(super) fn push_reopen(&mut self, index: usize, now: Now, ops: &mut Ops<P>) {
        let segment = &self.segments[index];
        if !matches!(segment.file, SegmentFile::Parked) || now.mono < self.retry_at {
            return;
        }
        let wanted = !self.pending.is_empty() || !self.waiting.is_empty() || self.disk_full.is_some();
        if segment.state != SegmentState::Active || (wanted && self.has_room(now)) {
            self.roomless_since = None;
            let _ = self.segment_file(index, ops);
        }
    }

    /// Whether the file may be opened for appends: within the limit, or beyond it where accepted ones have waited.
    fn has_room(&mut self, now: Now) -> bool {
        if self.open_files.has_room() {
            return true;
        }
        if self.pending.is_empty() {
            self.roomless_since = None;
            return false;
        }
        let since = *self.roomless_since.get_or_insert(now.mono);
        now.mono >= since.plus_millis(ROOM_WAIT_MS * (1 + u64::from(self.open_files.beyond())))
    }

    /// A segment's file was opened, or could not be: what its readers are told.
    pub(crate) fn handle_segment_opened(
        &mut self,
        uid: SegmentUid,
        now: Now,
        result: Result<P::File, PartitionError>,
        outcomes: &mut Vec<AckOutcome>,
    ) -> Result<(), FetchError> {
        let slot = self.open_files.take();
        let sealed = SegmentState::Sealed;
        let Some(segment) = self.segment_mut(uid) else { return Ok(()) };
        let base_offset = segment.base_offset;
        match result {
            Ok(file) => {
                segment.file = SegmentFile::Open(file, slot);
                segment.kept_until = now.mono.plus_millis(REOPENED_MS);
                if segment.state == sealed {
                    self.limit_open_files(uid, now);
                } else {
                    self.disk_full = None;
                }
                Ok(())
            }
            Err(error) => {
                let is_sealed = segment.state == sealed;
                let writes = matches!(self.state, PartitionState::Live | PartitionState::Closing);
                let is_parked = writes && !is_sealed;
                if let Some(segment) = self.segment_mut(uid) {
                    segment.file = if is_parked { SegmentFile::Parked } else { SegmentFile::Closed };
                }
                let error = match error {
                    PartitionError::Disk(error) => error,
                    PartitionError::Locked { path } => {
                        DiskError { action: "lock", path, errno: Errno::AGAIN }
                    }
                    _ => return Err(FetchError::ReadFailed { base_offset, position: 0, errno: Errno::IO }),
                };
                if is_parked && error.errno.is_shortage() {
                    self.handle_disk_error(now, error.clone(), outcomes);
                } else if is_parked {
                    self.fail(PartitionFailure::Disk(error.clone()), outcomes);
                }
                Err(FetchError::Disk(error))
            }
        }
    }

    /// Closes the oldest open sealed segment beyond a few, if nobody waits for it; operations under way keep their
    /// descriptor.
    pub(super) fn limit_open_files(&mut self, keep: SegmentUid, now: Now) {
        let is_open = |s: &Segment<P>| s.state == SegmentState::Sealed && s.file().is_some();
        if self.segments.iter().filter(|segment| is_open(segment)).count() <= OPEN_SEALED_MAX {
            return;
        }
        let goes = |s: &&mut Segment<P>| is_open(s) && s.uid != keep && now.mono >= s.kept_until;
        let oldest = self.segments.iter_mut().find(goes);
        if let Some(segment) = oldest {
            segment.file = SegmentFile::Closed;
        }
    }

    /// Closes what nobody needs open: sealed segments, and the active one if nothing is under way. A file that was
    /// just opened stays for what it was opened for.
    pub(crate) fn park_files(&mut self, now: Now) {
        let live = matches!(self.state, PartitionState::Live);
        let failed = matches!(self.state, PartitionState::Failed(_));
        let idle = match self.state {
            PartitionState::Live => self.pending.is_empty() && self.waiting.is_empty(),
            PartitionState::ReadOnly | PartitionState::Failed(_) => true,
            _ => false,
        };
        let reading = self.tail_state == TailState::Reading;
        let idle = idle && self.in_flight.is_none() && self.steps_in_flight == 0 && !reading;
        for segment in &mut self.segments {
            let SegmentFile::Open(file, _) = &segment.file else { continue };
            let goes = match segment.state {
                SegmentState::Sealed => true,
                _ if failed => idle,
                // A lock goes with the last holder of its descriptor: taking it anew would wait for the others.
                SegmentState::Active => idle && !file.is_shared(),
                SegmentState::Full | SegmentState::Sealing => false,
            };
            if goes && now.mono >= segment.kept_until {
                let parked = live && segment.state == SegmentState::Active;
                segment.file = if parked { SegmentFile::Parked } else { SegmentFile::Closed };
            }
        }
        if idle {
            self.park_guard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::open_files::OpenFiles;
    use crate::log::partition::LogPoint;
    use crate::log::test_support::*;
    use crate::message::{PartitionId, Ticket};
    use crate::types::{Offset, Position, Timestamp};

    /// Every file that is open is held by an answer behind that to this very append: its file is opened beyond the limit,
    /// the later the more are.
    #[test]
    fn accepted_appends_do_not_wait_for_room_for_ever() {
        let disk = disk();
        let mut opened = try_open(&log_dir(&disk), &config()).unwrap();
        let files = OpenFiles::new(1);
        let (id, uid) = (PartitionId(0), SegmentUid(1));
        let mut partition = Partition::<StepsOnly>::opening(id, name(), config(), Ticket(1), files.clone());
        let identity = partition.identity(Offset::ZERO);
        let segment = opened.segments.pop().unwrap();
        partition.segments.push_back(Segment::opened(uid, segment, identity, true, &files));
        partition.state = PartitionState::Live;
        partition.segments[0].file = SegmentFile::Parked;
        let asks = |partition: &mut Partition<StepsOnly>, ms| {
            let mut ops = Ops::with_capacity(1);
            let now = Now { mono: Nanos::ZERO.plus_millis(ms), wall: Timestamp::ZERO };
            partition.push_reopen(0, now, &mut ops);
            ops.steps.len()
        };
        let _held = files.take();
        assert_eq!(asks(&mut partition, 5), 0, "nothing is to be written");
        partition.pending.push_back(LogPoint { uid, position: Position::new(100), offset: Offset::new(1) });
        assert_eq!(asks(&mut partition, 10), 0);
        assert_eq!(asks(&mut partition, 9 + ROOM_WAIT_MS), 0);
        assert_eq!(asks(&mut partition, 10 + ROOM_WAIT_MS), 1);
        assert_eq!(files.beyond(), 1, "its own");
        partition.segments[0].file = SegmentFile::Parked;
        let _another = files.take();
        assert_eq!(asks(&mut partition, 1000), 0);
        assert_eq!(asks(&mut partition, 999 + 2 * ROOM_WAIT_MS), 0);
        assert_eq!(asks(&mut partition, 1000 + 2 * ROOM_WAIT_MS), 1);
    }
}
