//! Cold reads: bringing what a fetch misses from the device into the read cache, or into a connection's pipe.
//!
//! Always holds (I8): no read or fill is submitted while the scheduler's budget of bytes is in flight, so that
//! commits find the device free; every loading entry of the cache has exactly one read queued or in flight.

use std::collections::VecDeque;

use crate::bill::table_len;
use crate::cache::{AfterRead, NONE, SegmentUid};
use crate::disk::Errno;
use crate::error::FetchError;
use crate::fetch::Mode;
use crate::fetch::policy::{RangeFacts, choose};
use crate::fetch::transfer::{FetchId, FetchState};
use crate::log::partition::{Origin, Partition};
use crate::message::PartitionId;
use crate::ops::{ConnId, DiskOp, Now, Ops, Read};
use crate::platform::{CHUNK_LEN_MIN, Chunk, DIRECT_IO_ALIGN, Platform};
use crate::service::Service;
use crate::shard::Core;
use crate::token::Purpose;
use crate::types::{ByteCount, Nanos, Position};

/// Length of a read where less is wanted than half of a long one, or some of that is in memory.
const SHORT_READ_LEN: ByteCount = ByteCount::kib(256);

/// Times that a stalled send is waited for before reads evict what is in use: it may have begun just now, and what it gives
/// back comes some turns later.
const RECALLS_AWAITED: u64 = 2;

/// How a range comes into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// In long reads: what lies beside it will be wanted too.
    Range,
    /// In the shortest reads: what lies beside it goes by file.
    Edge,
    /// In long reads, through the page cache.
    ThroughPageCache,
}

/// One read into memory that waits for memory, for its file, or for its turn.
#[derive(Clone, Copy, Debug)]
struct Load {
    partition: PartitionId,
    uid: SegmentUid,
    entry: u32,
    generation: u32,
    cached: bool,
}

/// What waits for its turn at the device.
#[derive(Clone, Copy, Debug)]
enum Queued {
    Load(Load),
    /// A connection's pipe, for the fetch at its head.
    Fill(ConnId, FetchId),
}

/// Reads waiting and in flight.
pub(super) struct Reads {
    queue: VecDeque<Queued>,
    in_flight_len: ByteCount,
    /// Since when there has been no memory for them but at the cost of what is in use.
    short_since: Option<Nanos>,
}

impl Reads {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { queue: VecDeque::with_capacity(capacity), in_flight_len: ByteCount::ZERO, short_since: None }
    }

    /// Bytes of memory that the queue takes.
    pub(super) const fn memory_len(capacity: usize) -> usize {
        table_len::<Queued>(capacity)
    }

    /// Whether nothing waits and nothing is in flight.
    pub(super) fn are_done(&self) -> bool {
        self.queue.is_empty() && self.are_idle()
    }

    /// Whether nothing is in flight.
    pub(super) fn are_idle(&self) -> bool {
        self.in_flight_len == ByteCount::ZERO
    }
}

/// What became of a queued read.
enum Submitted {
    Yes,
    /// Its file is being opened.
    Later,
    /// No memory.
    NoMemory,
    /// It can never succeed.
    Failed(Box<FetchError>),
}

impl<P: Platform, C> Core<P, C> {
    /// What a fetch reads into memory, and so how: with a neighbourhood that it is going to send as well, or as
    /// little as possible, because most of it goes by file.
    pub(super) fn reading(&mut self, id: FetchId) -> Reading {
        let Some(fetch) = self.fetches.get_mut(id) else { return Reading::Range };
        let request = fetch.request;
        let mode = match (&fetch.state, fetch.origin) {
            (_, Origin::Ticket(_)) => Mode::DirectSend,
            (FetchState::Streaming(stream), _) => stream.mode,
            _ => choose(RangeFacts {
                resident: false,
                forced: request.mode,
                cold_by_splice: self.goes_by_splice(&request),
            }),
        };
        match mode {
            Mode::ReadSend => Reading::ThroughPageCache,
            mode if mode.is_of_file() => Reading::Edge,
            _ => Reading::Range,
        }
    }

    /// Starts a read of the chunk around `position`, and of those after it up to `until`, as far as they
    /// are not in memory or on their way.
    pub(super) fn request_reads(
        &mut self,
        partition: &Partition<P>,
        uid: SegmentUid,
        position: Position,
        until: Position,
        reading: Reading,
    ) {
        let cached = reading == Reading::ThroughPageCache;
        let long = match reading {
            Reading::Edge => CHUNK_LEN_MIN,
            _ => self.scheduler.read_len().min(self.memory.tail_chunk_len_max().max(CHUNK_LEN_MIN)),
        };
        let short = long.min(SHORT_READ_LEN);
        let is_scan = until.max(position).since(position).get() >= long.get() / 2;
        let mut at = position;
        while at < until {
            // Reading it again would take it from those who wait to send it.
            if self.memory.cache.is_resident(uid, at) {
                at = at.align_down(CHUNK_LEN_MIN.get()).plus(CHUNK_LEN_MIN);
                continue;
            }
            // A long read would bring much that nobody wants, or bring again what is there.
            let is_long = is_scan && self.memory.cache.is_absent(uid, at.align_down(long.get()), long);
            let mut len = if is_long { long } else { short };
            let entry = loop {
                let start = at.align_down(len.get());
                if let Some(entry) = self.memory.cache.begin_load(uid, start, len) {
                    break Some(entry);
                }
                if len == CHUNK_LEN_MIN {
                    break None;
                }
                len = CHUNK_LEN_MIN;
            };
            if let Some(entry) = entry {
                let generation = self.memory.cache.generation(entry);
                let load = Load { partition: partition.id, uid, entry, generation, cached };
                self.reads.queue.push_back(Queued::Load(load));
            }
            at = at.align_down(len.get()).plus(len);
        }
    }

    /// Queues a fill of a connection's pipe.
    pub(super) fn queue_fill(&mut self, id: ConnId, fetch: FetchId) {
        self.reads.queue.push_back(Queued::Fill(id, fetch));
    }

    /// A fill of `asked` bytes has ended.
    pub(super) fn end_fill(&mut self, asked: usize) {
        self.reads.in_flight_len = ByteCount::new(self.reads.in_flight_len.get() - asked as u64);
    }

    fn begin_fill(&mut self, id: ConnId, fetch: FetchId, ops: &mut Ops<P>) {
        let len = self.submit_fill(id, fetch, ops) as u64;
        self.reads.in_flight_len = ByteCount::new(self.reads.in_flight_len.get() + len);
        if len > 0 {
            self.stats.cold_reads += 1;
            self.stats.cold_read_len += len;
        }
    }

    /// Submits queued reads in order, as far as memory and the budget allow.
    pub(super) fn poll_reads<S: Service<Connection = C>>(
        &mut self,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        for _ in 0..self.reads.queue.len() {
            let budget = self.scheduler.cold_budget(now);
            if self.reads.in_flight_len >= budget {
                // Commits that end give the budget back; if none comes, so does time.
                self.patience |= budget < self.limits.cold_read_bytes_max;
                return;
            }
            let load = match self.reads.queue.pop_front() {
                Some(Queued::Load(load)) => load,
                Some(Queued::Fill(id, fetch)) => {
                    self.begin_fill(id, fetch, ops);
                    continue;
                }
                None => return,
            };
            let Some(mut partition) = self.partitions.take(load.partition) else {
                self.end_load(load, Some(FetchError::UnknownPartition), service, now, ops);
                continue;
            };
            let submitted = self.submit_read(&mut partition, load, now, ops);
            self.partitions.put(partition);
            match submitted {
                Submitted::Yes => {}
                Submitted::Later => self.reads.queue.push_back(Queued::Load(load)),
                Submitted::NoMemory => {
                    self.reads.queue.push_front(Queued::Load(load));
                    self.memory_short = true;
                    self.patience = true;
                    return;
                }
                Submitted::Failed(error) => self.end_load(load, Some(*error), service, now, ops),
            }
        }
    }

    fn submit_read(
        &mut self,
        partition: &mut Partition<P>,
        load: Load,
        now: Now,
        ops: &mut Ops<P>,
    ) -> Submitted {
        let Some(index) = partition.segment_index(load.uid) else {
            return Submitted::Failed(Box::new(FetchError::OffsetOutOfRange {
                offset: partition.log_start_offset,
                log_start_offset: partition.log_start_offset,
                log_end_offset: partition.log_end_offset(),
            }));
        };
        if let Err(error) = partition.check_file(index) {
            return Submitted::Failed(Box::new(error));
        }
        let Some(file) = partition.segment_file(index, ops) else { return Submitted::Later };
        let (_, position, chunk_len) = self.memory.cache.loading_range(load.entry);
        let visible = partition.visible_end(index);
        let end = position.plus(chunk_len).min(visible.max(position));
        let len = end.align_up(DIRECT_IO_ALIGN).since(position);
        let Some(chunk) = self.take_for_read(chunk_len, now) else {
            partition.keep_file(index, now);
            return Submitted::NoMemory;
        };
        self.memory.cache.expect(load.entry, end);
        self.reads.in_flight_len = ByteCount::new(self.reads.in_flight_len.get() + chunk_len.get());
        self.stats.cold_reads += 1;
        self.stats.cold_read_len += len.get();
        let token = Purpose::ColdRead(load.entry, load.generation).token();
        let (len, cached) = (len.as_usize(), load.cached);
        ops.disk.push(DiskOp::Read(Read { token, file, position, chunk, from: 0, len, cached }));
        Submitted::Yes
    }

    /// Memory to read into. What peers hold who take nothing comes back when they have been waited for; only then does
    /// what is in use make room.
    fn take_for_read(&mut self, len: ByteCount, now: Now) -> Option<P::Chunk> {
        if let Some(chunk) = self.memory.take_for_read(len, false) {
            self.reads.short_since = None;
            return Some(chunk);
        }
        let since = *self.reads.short_since.get_or_insert(now.mono);
        let waited = now.mono >= since.plus_millis(RECALLS_AWAITED * self.limits.recall_ms);
        waited.then(|| self.memory.take_for_read(len, true)).flatten()
    }

    /// Ends the queued reads of a segment whose file could not be opened.
    pub(super) fn fail_reads<S: Service<Connection = C>>(
        &mut self,
        uid: SegmentUid,
        error: &FetchError,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        for _ in 0..self.reads.queue.len() {
            match self.reads.queue.pop_front() {
                Some(Queued::Load(load)) if load.uid == uid => {
                    self.end_load(load, Some(error.clone()), service, now, ops);
                }
                Some(queued) => self.reads.queue.push_back(queued),
                None => return,
            }
        }
    }

    /// A cold read has ended.
    #[expect(clippy::too_many_arguments, reason = "one call site; the event's parts and the turn's context")]
    pub(super) fn handle_cold_read<S: Service<Connection = C>>(
        &mut self,
        entry: u32,
        generation: u32,
        mut chunk: P::Chunk,
        result: Result<usize, Errno>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let (uid, position, _) = self.memory.cache.loading_range(entry);
        let expected = self.memory.cache.expected_len(entry).as_usize();
        let mut after = self.memory.cache.after_read(entry, generation, result);
        if let AfterRead::ReadOn(piece) = after {
            match self.read_on(entry, generation, piece, chunk, ops) {
                Ok(()) => return,
                Err(back) => (chunk, after) = (back, AfterRead::Failed(Errno::IO)),
            }
        }
        self.reads.in_flight_len = ByteCount::new(self.reads.in_flight_len.get() - chunk.len() as u64);
        // What lies behind the visible end in its block is none of the readers' business.
        let (lease, failure) = match after {
            AfterRead::Failed(errno) => {
                let (base_offset, position) = (self.base_offset_of(uid), position.get());
                (None, Some(FetchError::ReadFailed { base_offset, position, errno }))
            }
            _ => {
                chunk.freeze(expected);
                (Some(chunk.lease(0..expected)), None)
            }
        };
        self.stats.blocks_unreadable += self.memory.cache.holes_count(entry);
        let waiters = self.memory.cache.end_load(entry, generation, lease);
        self.wake_waiters(waiters, failure.as_ref(), service, now, ops);
        self.memory.cache.doubt_holes(entry, generation);
    }

    fn end_load<S: Service<Connection = C>>(
        &mut self,
        load: Load,
        failure: Option<FetchError>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let waiters = self.memory.cache.end_load(load.entry, load.generation, None);
        self.wake_waiters(waiters, failure.as_ref(), service, now, ops);
    }

    /// The partition that has a segment, and the segment's index in it.
    pub(super) fn find_segment(&self, uid: SegmentUid) -> Option<(&Partition<P>, usize)> {
        self.partitions.iter().find_map(|partition| Some((partition, partition.segment_index(uid)?)))
    }

    fn base_offset_of(&self, uid: SegmentUid) -> crate::types::Offset {
        let found = self.find_segment(uid);
        found.map(|(partition, index)| partition.segments[index].base_offset).unwrap_or_default()
    }

    fn wake_waiters<S: Service<Connection = C>>(
        &mut self,
        first: u32,
        failure: Option<&FetchError>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let mut next = first;
        while next != NONE {
            let (id, after) = self.fetches.leave_waiters(next);
            if let Some(fetch) = self.fetches.get_mut(id)
                && let Some(failure) = failure
            {
                fetch.failure = Some(failure.clone());
            }
            self.advance_fetch(id, service, now, ops);
            next = after;
        }
    }
}
