//! Guarding the last block: a copy of it beside every commit that leaves it partly filled, for devices that may destroy
//! the sector they are writing when power fails.
//!
//! Such a block holds acknowledged bytes, and the next commit writes it again. So its copy goes to the guard file, at the
//! same time as the commit's own write, and the commit is complete when both are durable. Always holds (I16): while
//! a block that holds acknowledged bytes is written again, a slot of the guard file that nobody writes holds these
//! bytes. Owns the guard file's descriptor, and what is known of the two writes of the commit in flight.

use arrayvec::ArrayVec;

use crate::disk::{DiskError, Errno};
use crate::error::{PartitionError, PartitionFailure};
use crate::format::guard_slot::{GUARDED_LEN, LABEL_LEN, Label, SLOT_LEN};
use crate::log::guard_file::OpenedGuard;
use crate::log::open_files::{OpenFiles, Slot};
use crate::log::partition::{AckOutcome, LogPoint, Partition};
use crate::log::segment::{SegmentFile, SegmentState};
use crate::log::step::Step;
use crate::memory::Memory;
use crate::ops::{DiskOp, Now, Ops, Write};
use crate::planted::{Bug, is_planted};
use crate::platform::{Chunk, DIRECT_IO_ALIGN, OpenFile, Platform};
use crate::token::{Purpose, StepKind};
use crate::types::{ByteCount, Position};

/// The guard file.
enum GuardFile<P: Platform> {
    /// Closed to spare a descriptor.
    Parked,
    /// A step is opening it.
    Requested,
    /// Open, its lock held.
    Open(P::File, #[expect(dead_code, reason = "it counts while it lives")] Slot),
}

/// See the module documentation.
pub(crate) struct Guard<P: Platform> {
    file: GuardFile<P>,
    /// Of the newest copy that is durable; the next one goes to the other slot.
    sequence: u64,
    /// How the commit in flight stands.
    halves: Halves,
}

/// How the commit in flight and its copy stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halves {
    /// The commit has no copy: it ends with a whole block, or there is none.
    NoCopy,
    /// Both are being written.
    Both,
    /// The commit's own write has ended so; its copy has not.
    Copying(Result<ByteCount, Errno>),
    /// The copy has ended so; the commit's own write has not.
    Copied(Result<ByteCount, Errno>),
}

impl<P: Platform> Guard<P> {
    pub(crate) fn new(opened: OpenedGuard<P::File>, open_files: &OpenFiles) -> Self {
        let file = GuardFile::Open(opened.file, open_files.take());
        Self { file, sequence: opened.sequence, halves: Halves::NoCopy }
    }

    /// The commit's own write has ended. Says how the commit has ended, once its copy has as well.
    pub(crate) fn join(
        &mut self,
        written: Result<ByteCount, Errno>,
        expected: ByteCount,
    ) -> Option<Result<ByteCount, Errno>> {
        let copied = match std::mem::replace(&mut self.halves, Halves::NoCopy) {
            Halves::NoCopy => return Some(written),
            Halves::Copied(copied) => copied,
            Halves::Both | Halves::Copying(_) => {
                self.halves = Halves::Copying(written);
                return None;
            }
        };
        if !written.is_ok_and(|len| len >= expected) {
            return Some(written);
        }
        Some(match copied {
            Ok(len) if len.as_usize() >= SLOT_LEN => {
                self.sequence += 1;
                written
            }
            Ok(_) => Ok(ByteCount::ZERO), // both are written again
            Err(errno) => Err(errno),
        })
    }
}

impl<P: Platform> Partition<P> {
    /// Whether the next commit, into the segment at `index`, may be submitted. The cut of a seal writes its segment's last
    /// block as well, and that block's copy must outlast it.
    pub(crate) fn guard_allows(&self, index: usize) -> bool {
        let Some(guard) = &self.guard else { return true };
        let before = index.checked_sub(1).map(|before| &self.segments[before]);
        let sealed = before.is_none_or(|s| s.state == SegmentState::Sealed || s.end == Position::ZERO);
        matches!(guard.file, GuardFile::Open(..)) && sealed
    }

    /// Pushes the write of the copy that belongs to `commit`, which ends at `end`, if it needs one. `false` for want of
    /// memory.
    pub(crate) fn push_guard_copy(
        &mut self,
        memory: &mut Memory<P>,
        commit: &mut Write<P>,
        end: LogPoint,
        ops: &mut Ops<P>,
    ) -> bool {
        let Some(segment) = self.segment_index(end.uid) else { return false };
        let identity = self.identity(self.segments[segment].base_offset);
        let Some(guard) = &mut self.guard else { return true };
        let GuardFile::Open(file, _) = &guard.file else { return false };
        let Some(block) = commit.bounce.as_mut().filter(|_| !is_planted(Bug::ForgetTheGuard)) else {
            return true;
        };
        block.freeze(GUARDED_LEN);
        let block = block.lease(0..GUARDED_LEN);
        let Some(mut label_block) = memory.take_bounce(&block) else { return false };
        let position = end.position.align_down(DIRECT_IO_ALIGN);
        let (len, sequence) = (end.position.since(position).get() as u32, guard.sequence + 1);
        let label = Label { identity, position, len, sequence }.encode(block.as_ref());
        let bytes = label_block.unfrozen_mut();
        bytes[..LABEL_LEN].copy_from_slice(&label);
        bytes[LABEL_LEN..].fill(0);
        guard.halves = Halves::Both;
        let mut extents = ArrayVec::new();
        extents.push(block);
        ops.disk.push(DiskOp::Write(Write {
            token: Purpose::GuardCopy(self.id).token(),
            file: file.clone(),
            position: Label::slot_position(sequence),
            extents,
            bounce: Some(label_block),
            len: ByteCount::of_usize(SLOT_LEN),
            durable: true,
        }));
        true
    }

    /// The write of a copy has ended.
    pub(crate) fn handle_copied(
        &mut self,
        memory: &mut Memory<P>,
        now: Now,
        result: Result<ByteCount, Errno>,
        ops: &mut Ops<P>,
        outcomes: &mut Vec<AckOutcome>,
    ) {
        let Some(guard) = &mut self.guard else { return };
        let before = std::mem::replace(&mut guard.halves, Halves::Copied(result));
        if let Halves::Copying(written) = before {
            self.handle_written(memory, now, written, ops, outcomes);
        }
    }

    /// Opens the guard file again once the file that it guards is open.
    pub(super) fn push_guard_open(&mut self, now: Now, ops: &mut Ops<P>) {
        let next = self.pending.front().and_then(|point| self.segment_index(point.uid));
        let wanted = next.is_some_and(|index| self.segments[index].file().is_some());
        let Some(guard) = self.guard.as_mut().filter(|_| wanted && now.mono >= self.retry_at) else { return };
        if matches!(guard.file, GuardFile::Parked) {
            guard.file = GuardFile::Requested;
            let step = Step::OpenGuard { name: self.name.clone() };
            self.push_step(StepKind::OpenSegment, None, step, ops);
        }
    }

    /// The guard file was opened, or could not be.
    pub(crate) fn handle_guard_opened(
        &mut self,
        now: Now,
        result: Result<P::File, PartitionError>,
        outcomes: &mut Vec<AckOutcome>,
    ) {
        let slot = self.open_files.take();
        let Some(guard) = &mut self.guard else { return };
        guard.file = GuardFile::Parked;
        match result {
            Ok(file) => {
                guard.file = GuardFile::Open(file, slot);
                self.disk_full = None;
            }
            Err(PartitionError::Disk(error)) => self.handle_disk_error(now, error, outcomes),
            Err(_) => {
                let error = DiskError { action: "lock", path: self.name.path(), errno: Errno::AGAIN };
                self.fail(PartitionFailure::Disk(error), outcomes);
            }
        }
    }

    /// Closes the guard file if the file that it guards is closed. Nothing is in flight.
    pub(super) fn park_guard(&mut self) {
        let writes = matches!(self.active().file, SegmentFile::Open(..) | SegmentFile::Requested(_));
        let Some(guard) = self.guard.as_mut().filter(|_| !writes) else { return };
        // A lock goes with the last holder of its descriptor: taking it anew would wait for the others.
        if let GuardFile::Open(file, _) = &guard.file
            && !file.is_shared()
        {
            guard.file = GuardFile::Parked;
        }
    }
}
