//! Committing: from the tail in memory to the device, one write in flight per partition.
//!
//! A commit is one vectored write of whole blocks straight from the tail, and of a bounced copy of the
//! last, partly filled block, padded with zeros: the block in the tail keeps growing while the device
//! reads its copy (I2). What has been appended meanwhile becomes the next commit: group commit that
//! clocks itself. The high watermark moves when the commit is complete at the partition's durability
//! (I1). A failed write or sync fails the partition; it is never retried (I6). A full device is no
//! failure: the same write is tried again later.

use arrayvec::ArrayVec;

use crate::cache::SegmentUid;
use crate::disk::{DiskError, Errno};
use crate::error::PartitionFailure;
use crate::format::batch::{BatchHeader, HEADER_LEN};
use crate::limits::COMMIT_LEN_MAX;
use crate::log::partition::{AckOutcome, LogPoint, Partition, PartitionState, TailState};
use crate::log::tail::TailChunk;
use crate::log::{Durability, WriteMode};
use crate::memory::Memory;
use crate::message::Appended;
use crate::ops::{DiskOp, Now, Ops, WRITE_EXTENTS_MAX, Write};
use crate::planted::{Bug, is_planted};
use crate::platform::{Chunk, DIRECT_IO_ALIGN, Platform};
use crate::token::Purpose;
use crate::types::{ByteCount, Position};

/// How long to wait before a reservation or a write is tried again on a full device.
pub(crate) const FULL_RETRY_MS: u64 = 200;

/// A write may come back short so many times in a row before the partition fails.
const SHORT_WRITES_MAX: u32 = 8;

/// How many commits weigh in their mean length.
const COMMITS_IN_MEAN: u64 = 16;

impl<P: Platform> Partition<P> {
    /// Where the next commit starts: the end of the last one, or the start of the next segment.
    fn commit_start(&self, uid: SegmentUid) -> Position {
        if self.durable.uid == uid { self.durable.position } else { Position::ZERO }
    }

    /// Submits the next commit if there is something to write and nothing in its way. Returns whether it
    /// did. A commit of more than one append is no longer than `len_max`.
    pub(crate) fn push_commit(
        &mut self,
        memory: &mut Memory<P>,
        now: Now,
        len_max: ByteCount,
        ops: &mut Ops<P>,
    ) -> bool {
        if self.in_flight.is_some() || now.mono < self.retry_at {
            return false;
        }
        if !matches!(self.state, PartitionState::Live | PartitionState::Closing) {
            return false;
        }
        if self.lingers(now) {
            return false;
        }
        let Some(&first) = self.pending.front() else { return false };
        let start = self.commit_start(first.uid);
        let Some(end) = self.commit_end(first.uid, start, len_max) else { return false };
        let Some(index) = self.segment_index(first.uid) else { return false };
        let Some(file) = self.segments[index].file().cloned().filter(|_| self.guard_allows(index)) else {
            return false;
        };
        let Some(mut write) = self.build_write(memory, file, start, end) else { return false };
        if !self.push_guard_copy(memory, &mut write, end, ops) {
            return false;
        }
        ops.disk.push(DiskOp::Write(write));
        self.in_flight = Some(end);
        true
    }

    /// Whether the next commit waits for more appends.
    pub(crate) fn lingers(&self, now: Now) -> bool {
        matches!(self.state, PartitionState::Live) && now.mono < self.linger_until
    }

    /// The last accepted append that fits one commit and the reserved blocks; the first may be longer than `len_max`.
    fn commit_end(&self, uid: SegmentUid, start: Position, len_max: ByteCount) -> Option<LogPoint> {
        let index = self.segment_index(uid)?;
        let from = start.align_down(DIRECT_IO_ALIGN);
        let segment = &self.segments[index];
        let free = segment.zeroing.unwrap_or(segment.preallocated).min(segment.preallocated);
        let to = from.plus(COMMIT_LEN_MAX).min(free);
        let fits = |point: &LogPoint| point.uid == uid && point.position.align_up(DIRECT_IO_ALIGN) <= to;
        let first = *self.pending.front().filter(|point| fits(point))?;
        let short = from.plus(len_max);
        let more = self.pending.iter().skip(1);
        let more = more.take_while(|point| fits(point) && point.position.align_up(DIRECT_IO_ALIGN) <= short);
        Some(more.last().copied().unwrap_or(first))
    }

    fn build_write(
        &mut self,
        memory: &mut Memory<P>,
        file: P::File,
        start: Position,
        end: LogPoint,
    ) -> Option<Write<P>> {
        let token = Purpose::Commit(self.id).token();
        let direct = self.config.write_mode == WriteMode::Direct;
        let durable =
            direct && self.config.durability == Durability::Flushed && !is_planted(Bug::AckBeforeSync);
        let (position, len) = self.written_range(start, end.position);
        let mut frozen_end = end.position;
        let mut bounce = None;
        if direct {
            frozen_end = end.position.align_down(DIRECT_IO_ALIGN);
            if frozen_end < end.position && !is_planted(Bug::ForgetBounce) {
                bounce = Some(self.bounce_block(memory, end.uid, frozen_end, end.position)?);
            }
        }
        let mut extents = ArrayVec::<P::Lease, WRITE_EXTENTS_MAX>::new();
        self.tail.freeze(end.uid, position, frozen_end, |lease| extents.push(lease));
        Some(Write { token, file, position, extents, bounce, len, durable })
    }

    /// What a commit of `[start, end)` writes: where from, and how much. Past the page cache, whole blocks.
    fn written_range(&self, start: Position, end: Position) -> (Position, ByteCount) {
        match self.config.write_mode {
            WriteMode::Buffered => (start, end.since(start)),
            WriteMode::Direct => {
                let from = start.align_down(DIRECT_IO_ALIGN);
                (from, end.align_up(DIRECT_IO_ALIGN).since(from))
            }
        }
    }

    /// A padded copy of the last block.
    fn bounce_block(
        &mut self,
        memory: &mut Memory<P>,
        uid: SegmentUid,
        block: Position,
        end: Position,
    ) -> Option<P::Chunk> {
        let mut source = None;
        self.tail.freeze(uid, block, end, |lease| source = Some(lease));
        // One block lies in one chunk: both are aligned.
        let source = source?;
        let mut bounce = memory.take_bounce(&source)?;
        let bytes = bounce.unfrozen_mut();
        let source = source.as_ref();
        bytes[..source.len()].copy_from_slice(source);
        if is_planted(Bug::BounceZeros) {
            bytes.fill(0);
        }
        bytes[source.len()..].fill(0);
        Some(bounce)
    }

    /// A commit's write has ended.
    pub(crate) fn handle_written(
        &mut self,
        memory: &mut Memory<P>,
        now: Now,
        result: Result<ByteCount, Errno>,
        ops: &mut Ops<P>,
        outcomes: &mut Vec<AckOutcome>,
    ) {
        let Some(end) = self.in_flight else { return };
        let (_, expected) = self.written_range(self.commit_start(end.uid), end.position);
        let result = match &mut self.guard {
            Some(guard) => match guard.join(result, expected) {
                Some(result) => result,
                None => return,
            },
            None => result,
        };
        match result {
            Ok(len) if len >= expected || is_planted(Bug::AckShortWrite) => {
                self.short_writes = 0;
                let sync = self.config.write_mode == WriteMode::Buffered
                    && self.config.durability == Durability::Flushed
                    && !is_planted(Bug::AckWithoutSync);
                let file = self.segment_mut(end.uid).and_then(|segment| segment.file().cloned());
                match file.filter(|_| sync) {
                    Some(file) => {
                        ops.disk.push(DiskOp::Sync { token: Purpose::CommitSync(self.id).token(), file });
                    }
                    None => self.finish_commit(memory, end, outcomes),
                }
            }
            Ok(_) if self.short_writes < SHORT_WRITES_MAX => {
                // The bytes are frozen: writing them again is harmless.
                self.short_writes += 1;
                self.in_flight = None;
            }
            Err(errno) if errno.is_full() => {
                self.in_flight = None;
                let error = DiskError { action: "write", path: self.name.path(), errno };
                self.note_full(now, error, outcomes);
            }
            Err(_) if is_planted(Bug::AckFailedWrite) => self.finish_commit(memory, end, outcomes),
            Err(errno) => self.fail_write(end, errno, outcomes),
            Ok(_) => self.fail_write(end, Errno::IO, outcomes),
        }
    }

    /// The device is full: refuse appends, try again later. A partition that closes does not wait for space,
    /// which may never come: it fails, and the next start recovers it.
    pub(crate) fn note_full(&mut self, now: Now, error: DiskError, outcomes: &mut Vec<AckOutcome>) {
        if matches!(self.state, PartitionState::Closing) {
            return self.fail(PartitionFailure::Disk(error), outcomes);
        }
        self.disk_full = Some(error);
        self.retry_at = now.mono.plus_millis(FULL_RETRY_MS);
    }

    fn fail_write(&mut self, end: LogPoint, errno: Errno, outcomes: &mut Vec<AckOutcome>) {
        let base_offset = self.segment_mut(end.uid).map_or(end.offset, |segment| segment.base_offset);
        self.in_flight = None;
        self.fail(PartitionFailure::Write { base_offset, errno }, outcomes);
    }

    /// The sync after a buffered commit has ended.
    pub(crate) fn handle_synced(
        &mut self,
        memory: &mut Memory<P>,
        result: Result<(), Errno>,
        outcomes: &mut Vec<AckOutcome>,
    ) {
        let Some(end) = self.in_flight else { return };
        match result {
            Ok(()) => self.finish_commit(memory, end, outcomes),
            Err(_) if is_planted(Bug::AckFailedSync) => self.finish_commit(memory, end, outcomes),
            Err(errno) => {
                let base_offset = self.segment_mut(end.uid).map_or(end.offset, |s| s.base_offset);
                self.in_flight = None;
                self.fail(PartitionFailure::Sync { base_offset, errno }, outcomes);
            }
        }
    }

    /// Everything up to `end` is durable: raise the high watermark, acknowledge, let memory go.
    fn finish_commit(&mut self, memory: &mut Memory<P>, end: LogPoint, outcomes: &mut Vec<AckOutcome>) {
        let start = self.commit_start(end.uid);
        assert!(end.offset > self.durable.offset, "I3 {end:?} {:?}", self.durable);
        self.extend_chain(end.uid, start, end.position);
        let len = end.position.since(start).get();
        self.commit_len_mean = (self.commit_len_mean * (COMMITS_IN_MEAN - 1) + len) / COMMITS_IN_MEAN;
        self.durable = end;
        self.in_flight = None;
        self.disk_full = None;
        while self.pending.front().is_some_and(|point| point.offset <= end.offset) {
            self.pending.pop_front();
        }
        let log_start_offset = self.log_start_offset;
        while let Some(&ack) = self.acks.front()
            && (ack.end_offset <= end.offset || is_planted(Bug::AckWhatIsNotWritten))
        {
            let end_offset = ack.end_offset;
            let base_offset = if is_planted(Bug::AckWithWrongOffset) { end_offset } else { ack.base_offset };
            outcomes.push((ack.origin, Ok(Appended { base_offset, end_offset, log_start_offset })));
            self.acks.pop_front();
        }
        self.retire_tail(memory);
    }

    /// Hands the chunks that no later commit needs to the cache.
    fn retire_tail(&mut self, memory: &mut Memory<P>) {
        let needed = match self.config.write_mode {
            WriteMode::Direct => self.durable.position.align_down(DIRECT_IO_ALIGN),
            WriteMode::Buffered => self.durable.position,
        };
        while let Some(TailChunk { uid, position, valid_from, chunk }) =
            self.tail.pop_below(self.durable.uid, needed)
        {
            let Some(index) = self.segment_index(uid) else { continue };
            if is_planted(Bug::LeakTailChunk) {
                std::mem::forget(chunk);
                continue;
            }
            let to = self.segments[index].end.min(position.plus(ByteCount::of_usize(chunk.len())));
            memory.retire(uid, position, chunk, valid_from, to);
        }
        if self.tail.is_empty() && self.tail_state == TailState::Attached {
            self.tail_state = TailState::Detached;
        }
    }

    /// Feeds the side file with the batches of `[from, to)`, which are durable now (I14).
    fn extend_chain(&mut self, uid: SegmentUid, from: Position, to: Position) {
        let mut at = from;
        while at < to {
            let Some(header) = self.tail_header(uid, at, to) else {
                debug_assert!(false, "the tail holds what was just written");
                return;
            };
            let Some(segment) = self.segment_mut(uid) else { return };
            segment.push_chain(&header, at);
            at = at.plus(header.batch_len());
        }
    }

    /// The header of the batch at `position`, which may lie in two chunks.
    fn tail_header(&self, uid: SegmentUid, position: Position, end: Position) -> Option<BatchHeader> {
        let mut bytes = [0; HEADER_LEN];
        let mut filled = 0;
        while filled < HEADER_LEN {
            let at = position.plus(ByteCount::of_usize(filled));
            let (lease, start, _) = self.tail.lease_at(uid, at, end)?;
            let source = &lease.as_ref()[at.since(start).as_usize()..];
            let len = source.len().min(HEADER_LEN - filled);
            bytes[filled..filled + len].copy_from_slice(&source[..len]);
            filled += len;
        }
        BatchHeader::peek(&bytes).ok()
    }
}
