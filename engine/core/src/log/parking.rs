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
use crate::platform::{OpenFile, Platform};
use crate::token::StepKind;
use crate::types::Nanos;

/// How long a file that was opened again stays open unused: reads wait for their turn at the device and for memory, and
/// closed before that it would only have to be opened again. Milliseconds.
const REOPENED_MS: u64 = 100;

/// Sealed segments of one partition that stay open for readers.
const OPEN_SEALED_MAX: usize = 16;

impl<P: Platform> Partition<P> {
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
    /// room among the open files.
    pub(super) fn push_reopen(&mut self, index: usize, now: Now, ops: &mut Ops<P>) {
        let segment = &self.segments[index];
        if !matches!(segment.file, SegmentFile::Parked) || now.mono < self.retry_at {
            return;
        }
        let wanted = !self.pending.is_empty() || !self.waiting.is_empty() || self.disk_full.is_some();
        if segment.state != SegmentState::Active || (wanted && self.open_files.has_room()) {
            let _ = self.segment_file(index, ops);
        }
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
    }
}
