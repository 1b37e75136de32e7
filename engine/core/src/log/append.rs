//! Appending: from a producer's bytes to the tail in memory.
//!
//! A request is one or more batches; all of them are accepted, or none. A batch is looked at three
//! times: its header before anything is touched, its bytes once while they are copied and checksummed,
//! its header again when it joins the log.

use crate::error::AppendError;
use crate::format::batch::{self, BatchError, BatchHeader, CRC_START, HEADER_LEN};
use crate::format::crc::Crc32c;
use crate::format::index::{OFFSET_ENTRY_LEN, TIME_ENTRY_LEN};
use crate::limits::BATCH_LEN_MAX_MAX;
use crate::log::partition::{LogPoint, Partition, TailState};
use crate::log::tail::{TailChunk, chunk_range};
use crate::log::{LogConfig, WriteMode};
use crate::memory::Memory;
use crate::ops::{DiskOp, Now, Ops, Read};
use crate::planted::{Bug, is_planted};
use crate::platform::{CHUNK_LEN_MIN, Chunk, DIRECT_IO_ALIGN, Platform};
use crate::token::Purpose;
use crate::types::{ByteCount, Nanos, Offset, Position, Timestamp};

/// Why an append did not get into memory.
#[derive(Debug)]
pub(crate) enum Refused {
    /// For good.
    Error(AppendError),
    /// For a file or a block that is on its way, or for those who came before: try again.
    Wait,
    /// Memory is short: try again.
    NoMemory,
}

/// What the headers of a request say.
struct Survey {
    batches: usize,
    len: ByteCount,
    records: i64,
    max_timestamp: Timestamp,
}

impl<P: Platform> Partition<P> {
    /// Places the batches at the log's end. Returns the offsets they got: `[base, end)`.
    pub(crate) fn append(
        &mut self,
        memory: &mut Memory<P>,
        now: Now,
        batches: &[u8],
        ops: &mut Ops<P>,
    ) -> Result<(Offset, Offset), Refused> {
        self.accepts_appends().map_err(Refused::Error)?;
        let survey = survey(batches, &self.config).map_err(Refused::Error)?;
        let last_offset = self.log_end_offset().plus(survey.records - 1);
        if self.must_roll(&survey, last_offset, now.wall) {
            self.roll(memory, now.wall);
        }
        let end = self.active().end.plus(survey.len);
        self.reserve_tail(memory, end, ops)?;
        self.place(batches).map_err(Refused::Error)?;
        let base = self.log_end_offset();
        self.join(batches, now.wall);
        let active = self.active();
        let point = LogPoint { uid: active.uid, position: active.end, offset: active.next_offset };
        assert_eq!(point.position, end, "I4");
        if self.pending.is_empty() {
            self.linger_until = Nanos::new(now.mono.get() + self.config.linger_us * 1_000);
        }
        self.pending.push_back(point);
        Ok((base, point.offset))
    }

    fn must_roll(&self, survey: &Survey, last_offset: Offset, now: Timestamp) -> bool {
        let active = self.active();
        // Every batch may get an entry, and sealing adds one to the time index.
        let entries = self.config.index_len_max.as_usize();
        let index_full = active.index.offsets().len() + survey.batches > entries / OFFSET_ENTRY_LEN
            || active.index.times().len() + survey.batches + 1 > entries / TIME_ENTRY_LEN;
        (index_full && active.end > Position::ZERO)
            || active.must_roll(&self.config, survey.len, last_offset, survey.max_timestamp, now)
    }

    /// Makes sure that the tail reaches to `end` of the active segment.
    fn reserve_tail(
        &mut self,
        memory: &mut Memory<P>,
        end: Position,
        ops: &mut Ops<P>,
    ) -> Result<(), Refused> {
        match self.tail_state {
            TailState::Reading => return Err(Refused::Wait),
            TailState::Attached => {}
            TailState::Detached => self.attach_tail(memory, ops)?,
        }
        let uid = self.active().uid;
        while let Some(at) = self.tail.capacity_end(uid)
            && at < end
        {
            let doubled = ByteCount::new(self.tail_chunk_len.get() * 2);
            let wanted = end.since(at).max(doubled);
            let (position, chunk) = take_chunk(memory, at, wanted)?;
            self.tail_chunk_len = ByteCount::of_usize(chunk.len());
            self.tail.push(TailChunk { uid, position, valid_from: at, chunk });
        }
        Ok(())
    }

    /// Takes memory for the log's end, and brings the last, partly filled block into it.
    fn attach_tail(&mut self, memory: &mut Memory<P>, ops: &mut Ops<P>) -> Result<(), Refused> {
        let (uid, end) = (self.active().uid, self.active().end);
        let block = match self.config.write_mode {
            WriteMode::Direct => end.align_down(DIRECT_IO_ALIGN),
            WriteMode::Buffered => end,
        };
        let file = self.active().file().cloned();
        if block < end && file.is_none() && !memory.cache.is_resident(uid, block) {
            return Err(Refused::Wait);
        }
        let (position, mut chunk) = take_chunk(memory, block, self.tail_chunk_len)?;
        self.tail_chunk_len = ByteCount::of_usize(chunk.len());
        let mut valid_from = block;
        if block < end && !is_planted(Bug::TailWithoutItsBlock) {
            match memory.cache.take(uid, block) {
                Some(((from, to), lease)) if to == end => {
                    valid_from = from.max(position);
                    let source = &lease.as_ref()[valid_from.since(from).as_usize()..];
                    let at = valid_from.since(position).as_usize();
                    chunk.unfrozen_mut()[at..at + source.len()].copy_from_slice(source);
                }
                _ => {
                    let file = file.ok_or(Refused::Wait)?;
                    let from = block.since(position).as_usize();
                    let token = Purpose::TailRead(self.id).token();
                    let len = DIRECT_IO_ALIGN as usize;
                    ops.disk.push(DiskOp::Read(Read {
                        token,
                        file,
                        position: block,
                        chunk,
                        from,
                        len,
                        cached: false,
                    }));
                    self.tail_state = TailState::Reading;
                    return Err(Refused::Wait);
                }
            }
        }
        self.tail.push(TailChunk { uid, position, valid_from, chunk });
        self.tail_state = TailState::Attached;
        Ok(())
    }

    /// The last block has been read back into `chunk`.
    pub(crate) fn handle_tail_read(&mut self, chunk: P::Chunk) {
        let (uid, end) = (self.active().uid, self.active().end);
        let block = end.align_down(DIRECT_IO_ALIGN);
        let position = block.align_down(chunk.len() as u64);
        self.tail.push(TailChunk { uid, position, valid_from: block, chunk });
        self.tail_state = TailState::Attached;
    }

    /// Copies and checks every batch. On error nothing has changed: what was copied lies beyond the end
    /// and is not frozen.
    fn place(&mut self, batches: &[u8]) -> Result<(), AppendError> {
        let (uid, mut position) = (self.active().uid, self.active().end);
        let mut offset = self.log_end_offset();
        let mut rest = batches;
        while !rest.is_empty() {
            let at = (batches.len() - rest.len()) as u64;
            let header = BatchHeader::peek(rest).map_err(|e| invalid(at, e))?;
            let (batch, later) = rest.split_at(header.batch_len().as_usize());
            let (start, body) = batch.split_at(HEADER_LEN);
            let mut patched = [0; HEADER_LEN];
            patched.copy_from_slice(start);
            let epoch =
                if is_planted(Bug::KeepProducersEpoch) { header.leader_epoch() } else { self.leader_epoch };
            batch::patch(&mut patched, offset, epoch);
            let mut crc = Crc32c::new();
            crc.update(&start[CRC_START..]);
            self.tail.write(uid, position, &patched, None);
            let after_header = position.plus(ByteCount::of_usize(HEADER_LEN));
            self.tail.write(uid, after_header, body, Some(&mut crc));
            header
                .check_crc(crc.value())
                .or_else(|e| if is_planted(Bug::KeepRefusedBatch) { Ok(()) } else { Err(invalid(at, e)) })?;
            position = position.plus(header.batch_len());
            offset = if is_planted(Bug::WrongOffsetInBatch) {
                offset
            } else {
                offset.plus(i64::from(header.last_offset_delta()) + 1)
            };
            rest = later;
        }
        Ok(())
    }

    /// Counts the placed batches in: end, offsets, indexes.
    fn join(&mut self, batches: &[u8], now: Timestamp) {
        let epoch = self.leader_epoch;
        let active = self.active_mut();
        let mut rest = batches;
        while let Some(start) = rest.first_chunk::<HEADER_LEN>() {
            let mut patched = *start;
            batch::patch(&mut patched, active.next_offset, epoch);
            // `place` has parsed the same bytes a moment ago.
            let Ok(header) = BatchHeader::peek(&patched) else { unreachable!("parsed by place") };
            active.push_batch(&header, now);
            rest = &rest[header.batch_len().as_usize()..];
        }
    }

    /// Gives the memory of an idle partition to the cache, as far as readers see it. Does nothing while anything is on
    /// its way to the device.
    pub(crate) fn detach_tail(&mut self, memory: &mut Memory<P>) {
        let busy = !self.pending.is_empty() || self.in_flight.is_some();
        if busy || self.tail.is_empty() || self.tail_state == TailState::Reading {
            return;
        }
        while let Some(TailChunk { uid, position, valid_from, chunk }) = self.tail.pop() {
            let Some(index) = self.segment_index(uid) else { continue };
            let to = self.visible_end(index).min(position.plus(ByteCount::of_usize(chunk.len())));
            memory.retire(uid, position, chunk, valid_from, to);
        }
        self.tail_state = TailState::Detached;
        self.tail_chunk_len = CHUNK_LEN_MIN;
    }
}

/// Takes the chunk for appends from `at` on, shorter than wanted where memory is short.
fn take_chunk<P: Platform>(
    memory: &mut Memory<P>,
    at: Position,
    wanted: ByteCount,
) -> Result<(Position, P::Chunk), Refused> {
    let mut wanted = wanted.min(memory.tail_chunk_len_max());
    loop {
        let (position, len) = chunk_range(at, wanted);
        if let Some(chunk) = memory.take(len) {
            return Ok((position, chunk));
        }
        if len == CHUNK_LEN_MIN {
            return Err(Refused::NoMemory);
        }
        wanted = ByteCount::new(len.get() / 2);
    }
}

fn invalid(position: u64, reason: BatchError) -> AppendError {
    AppendError::InvalidBatch { position, reason }
}

/// Reads every header of a request and checks what needs no copy.
fn survey(batches: &[u8], config: &LogConfig) -> Result<Survey, AppendError> {
    let mut survey = Survey {
        batches: 0,
        len: ByteCount::of_usize(batches.len()),
        records: 0,
        max_timestamp: Timestamp::NONE,
    };
    let limit = config.segment_len_max.min(BATCH_LEN_MAX_MAX);
    if survey.len > limit {
        return Err(AppendError::BatchTooLarge { len: survey.len, limit });
    }
    let mut rest = batches;
    loop {
        let at = (batches.len() - rest.len()) as u64;
        let header = BatchHeader::peek(rest).map_err(|e| invalid(at, e))?;
        if header.batch_len() > config.batch_len_max {
            let (len, limit) = (header.batch_len(), config.batch_len_max);
            return Err(AppendError::BatchTooLarge { len, limit });
        }
        header.check_append(config.batch_len_max).map_err(|e| invalid(at, e))?;
        let found = ByteCount::of_usize(rest.len());
        if header.batch_len() > found {
            return Err(invalid(at, BatchError::Incomplete { needed: header.batch_len(), found }));
        }
        survey.batches += 1;
        survey.records += i64::from(header.last_offset_delta()) + 1;
        survey.max_timestamp = survey.max_timestamp.max(header.max_timestamp());
        rest = &rest[header.batch_len().as_usize()..];
        if rest.is_empty() {
            return Ok(survey);
        }
    }
}
