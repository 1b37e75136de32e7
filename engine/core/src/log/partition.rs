//! One partition: its segments, its tail, and how far each has come. The owner shard is the only
//! writer.
//!
//! Always holds (I3): log start offset <= high watermark = durable offset <= log end offset. Appends
//! are accepted into memory in order, committed in order, one commit in flight (I5), and acknowledged
//! when the commit that contains them is complete at the chosen durability (I1). Units: offsets in the
//! partition, positions in a segment. Does no I/O: `commit` and `upkeep` push operations.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::cache::SegmentUid;
use crate::disk::DiskError;
use crate::error::{AppendError, PartitionError, PartitionFailure};
use crate::format::names::TopicId;
use crate::format::names::TopicPartition;
use crate::format::side_file::SegmentIdentity;
use crate::log::LogConfig;
use crate::log::deletion::Deletion;
use crate::log::guard::Guard;
use crate::log::open_files::OpenFiles;
use crate::log::segment::{Prepared, Segment, SegmentState};
use crate::log::step::OpenedLog;
use crate::log::tail::Tail;
use crate::memory::Memory;
use crate::message::{Appended, CallId, PartitionId, ShardId, Ticket, Watermarks};
use crate::ops::ConnId;
use crate::planted::{Bug, is_planted};
use crate::platform::{CHUNK_LEN_MIN, Platform};
use crate::types::{ByteCount, LeaderEpoch, Nanos, Offset, Position};

/// Who gets the answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A handle.
    Ticket(Ticket),
    /// A frame of a connection: its place in the order of answers, and the service's tag.
    Frame { conn: ConnId, sequence: u64, tag: u64 },
    /// The service itself.
    Service { tag: u64 },
    /// Another shard, and its name for the request.
    Shard { shard: ShardId, call: CallId },
}

/// An append that is in the log's memory and waits for the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ack {
    pub(crate) base_offset: Offset,
    pub(crate) end_offset: Offset,
    pub(crate) origin: Origin,
}

/// An append that waits to get into the log's memory.
#[derive(Debug)]
pub(crate) struct WaitingAppend {
    pub(crate) batches: Bytes,
    pub(crate) origin: Origin,
    pub(crate) deadline: Nanos,
}

/// A place at a batch boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogPoint {
    pub(crate) uid: SegmentUid,
    pub(crate) position: Position,
    pub(crate) offset: Offset,
}

/// Where a partition stands.
#[derive(Debug)]
pub(crate) enum PartitionState {
    /// A step is opening it; requests wait.
    Opening(Ticket),
    /// Open.
    Live,
    /// Open in a log directory that must not be changed.
    ReadOnly,
    /// Serves reads only.
    Failed(PartitionFailure),
    /// Committing what it has, then closing.
    Closing,
    /// A step is closing it.
    Closed,
    /// A step is removing its files.
    Deleting(Ticket),
}

/// Whether the tail can be appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TailState {
    /// No memory is held; the next append attaches some.
    Detached,
    /// The last block is being read back.
    Reading,
    /// In memory.
    Attached,
}

/// How an append ended that got into memory, for whoever asked.
pub(crate) type AckOutcome = (Origin, Result<Appended, AppendError>);

/// See the module documentation.
pub(crate) struct Partition<P: Platform> {
    pub(crate) id: PartitionId,
    pub(crate) name: TopicPartition,
    pub(crate) config: LogConfig,
    pub(crate) topic_id: TopicId,
    pub(crate) state: PartitionState,
    /// In order; once open never empty, the last one takes appends.
    pub(crate) segments: VecDeque<Segment<P>>,
    pub(crate) tail: Tail<P>,
    pub(crate) tail_state: TailState,
    pub(crate) tail_chunk_len: ByteCount,
    pub(crate) log_start_offset: Offset,
    pub(crate) leader_epoch: LeaderEpoch,
    /// The end at the chosen durability: the high watermark.
    pub(crate) durable: LogPoint,
    /// Ends of accepted appends beyond it, in order.
    pub(crate) pending: VecDeque<LogPoint>,
    /// The end of the commit in flight.
    pub(crate) in_flight: Option<LogPoint>,
    pub(crate) short_writes: u32,
    /// Not before this is a commit submitted: its first append waits for company.
    pub(crate) linger_until: Nanos,
    /// When the commit in flight was submitted, and how many cold reads had begun by then; `None` for the latter if
    /// some were under way.
    pub(crate) commit_started: (Nanos, Option<u64>),
    /// Mean length of the latest commits, bytes.
    pub(crate) commit_len_mean: u64,
    pub(crate) acks: VecDeque<Ack>,
    pub(crate) waiting: VecDeque<WaitingAppend>,
    /// The device is full; no append is accepted until a reservation succeeds.
    pub(crate) disk_full: Option<DiskError>,
    /// Not before this may a failed reservation or a full write be tried again.
    pub(crate) retry_at: Nanos,
    pub(crate) steps_in_flight: u32,
    /// Since when accepted appends have waited for room among the open files.
    pub(crate) roomless_since: Option<Nanos>,
    /// The shard's count of open files.
    pub(crate) open_files: OpenFiles,
    /// The next segment's file, made ahead of need.
    pub(crate) prepared: Prepared<P>,
    /// Copies of the last block, if the partition has it guarded.
    pub(crate) guard: Option<Guard<P>>,
    /// Fetches that wait for data: slot and generation; stale ones are dropped at the next wake-up.
    pub(crate) parked: Vec<(u32, u32)>,
    /// Deletions that were asked for, in order; the steps of the first are under way.
    pub(crate) deletions: VecDeque<Deletion>,
    /// Whether the shard's list of partitions with work has it.
    pub(crate) queued: bool,
}

impl<P: Platform> Partition<P> {
    pub(crate) fn opening(
        id: PartitionId,
        name: TopicPartition,
        config: LogConfig,
        ticket: Ticket,
        open_files: OpenFiles,
    ) -> Self {
        Self {
            id,
            name,
            config,
            topic_id: TopicId::ZERO,
            state: PartitionState::Opening(ticket),
            segments: VecDeque::new(),
            tail: Tail::new(),
            tail_state: TailState::Detached,
            tail_chunk_len: CHUNK_LEN_MIN,
            log_start_offset: Offset::ZERO,
            leader_epoch: LeaderEpoch::ZERO,
            durable: LogPoint { uid: SegmentUid(0), position: Position::ZERO, offset: Offset::ZERO },
            pending: VecDeque::new(),
            in_flight: None,
            short_writes: 0,
            linger_until: Nanos::ZERO,
            commit_started: (Nanos::ZERO, None),
            commit_len_mean: 0,
            acks: VecDeque::new(),
            waiting: VecDeque::new(),
            disk_full: None,
            retry_at: Nanos::ZERO,
            steps_in_flight: 0,
            roomless_since: None,
            open_files,
            prepared: Prepared::No,
            guard: None,
            parked: Vec::new(),
            deletions: VecDeque::new(),
            queued: false,
        }
    }

    /// Takes over what recovery found.
    pub(crate) fn open(&mut self, opened: OpenedLog<P>, memory: &mut Memory<P>) {
        let count = opened.segments.len();
        assert!(count > 0, "recovery leaves an active segment");
        self.topic_id = opened.topic_id;
        self.guard = opened.guard.map(|guard| Guard::new(guard, &self.open_files));
        for (index, segment) in opened.segments.into_iter().enumerate() {
            let identity = self.identity(segment.base_offset);
            let segment =
                Segment::opened(memory.new_uid(), segment, identity, index + 1 == count, &self.open_files);
            self.segments.push_back(segment);
        }
        self.log_start_offset = opened.log_start_offset;
        self.leader_epoch = opened.leader_epoch;
        let active = self.active();
        self.durable = LogPoint { uid: active.uid, position: active.end, offset: active.next_offset };
        self.state = match opened.failure {
            _ if opened.read_only => PartitionState::ReadOnly,
            Some(failure) => PartitionState::Failed(failure),
            None => PartitionState::Live,
        };
        assert!(self.log_start_offset <= self.durable.offset, "I3");
    }

    /// The segment that takes appends.
    pub(crate) fn active(&self) -> &Segment<P> {
        &self.segments[self.segments.len() - 1]
    }

    pub(crate) fn active_mut(&mut self) -> &mut Segment<P> {
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }

    /// The next offset to assign.
    pub(crate) fn log_end_offset(&self) -> Offset {
        self.segments.back().map_or(Offset::ZERO, |segment| segment.next_offset)
    }

    pub(crate) fn watermarks(&self) -> Watermarks {
        if is_planted(Bug::HighWatermarkRegress) && self.in_flight.is_some() {
            let high_watermark =
                self.active().base_offset.max(self.log_start_offset).min(self.durable.offset);
            let (log_start_offset, leader_epoch) = (self.log_start_offset, self.leader_epoch);
            return Watermarks {
                log_start_offset,
                high_watermark,
                log_end_offset: self.log_end_offset(),
                leader_epoch,
            };
        }
        Watermarks {
            log_start_offset: self.log_start_offset,
            high_watermark: if is_planted(Bug::HighWatermarkIsLogEnd) {
                self.log_end_offset()
            } else {
                self.durable.offset
            },
            log_end_offset: self.log_end_offset(),
            leader_epoch: self.leader_epoch,
        }
    }

    /// The segment of that uid. Uids ascend with offsets.
    pub(crate) fn segment_index(&self, uid: SegmentUid) -> Option<usize> {
        let index = self.segments.partition_point(|segment| segment.uid < uid);
        self.segments.get(index).is_some_and(|segment| segment.uid == uid).then_some(index)
    }

    pub(crate) fn segment_mut(&mut self, uid: SegmentUid) -> Option<&mut Segment<P>> {
        let index = self.segment_index(uid)?;
        self.segments.get_mut(index)
    }

    /// The segment that holds `offset`, or would.
    pub(crate) fn segment_of(&self, offset: Offset) -> Option<usize> {
        let after = self.segments.partition_point(|segment| segment.base_offset <= offset);
        after.checked_sub(1)
    }

    /// How far readers may see into a segment.
    pub(crate) fn visible_end(&self, index: usize) -> Position {
        let segment = &self.segments[index];
        match segment.uid.cmp(&self.durable.uid) {
            std::cmp::Ordering::Less => segment.end,
            std::cmp::Ordering::Equal if is_planted(Bug::ServePastHighWatermark) => segment.end,
            std::cmp::Ordering::Equal => self.durable.position,
            std::cmp::Ordering::Greater => Position::ZERO,
        }
    }

    /// Whether appends are taken at all, and if not, why.
    pub(crate) fn accepts_appends(&self) -> Result<(), AppendError> {
        match &self.state {
            PartitionState::Live => match &self.disk_full {
                Some(error) => Err(AppendError::DiskFull(error.clone())),
                None => Ok(()),
            },
            PartitionState::Opening(_) => Ok(()),
            PartitionState::ReadOnly => Err(AppendError::ReadOnly),
            PartitionState::Failed(failure) => Err(AppendError::Failed(failure.clone())),
            PartitionState::Closing | PartitionState::Closed => Err(AppendError::Closing),
            PartitionState::Deleting(_) => Err(AppendError::UnknownPartition),
        }
    }

    /// Whether reads are served, and if not, why.
    pub(crate) fn is_readable(&self) -> bool {
        use PartitionState::{Closing, Failed, Live, ReadOnly};
        matches!(self.state, Live | ReadOnly | Failed(_) | Closing)
    }

    /// For requests about the log as a whole.
    pub(crate) fn check_open(&self) -> Result<(), PartitionError> {
        match &self.state {
            PartitionState::Live | PartitionState::ReadOnly | PartitionState::Failed(_) => Ok(()),
            PartitionState::Closing | PartitionState::Closed => Err(PartitionError::Closing),
            PartitionState::Opening(_) | PartitionState::Deleting(_) => Err(PartitionError::Unknown),
        }
    }

    /// For requests that change the log.
    pub(crate) fn check_writable(&self) -> Result<(), PartitionError> {
        match self.state {
            PartitionState::ReadOnly => Err(PartitionError::ReadOnly),
            _ => self.check_open(),
        }
    }

    /// Stops taking appends for good (I6): nothing beyond the high watermark will be acknowledged, and
    /// nobody has seen it.
    pub(crate) fn fail(&mut self, failure: PartitionFailure, outcomes: &mut Vec<AckOutcome>) {
        if matches!(self.state, PartitionState::Failed(_)) {
            return;
        }
        let error = AppendError::Failed(failure.clone());
        self.end_appends(&error, outcomes);
        // Nothing but the commit in flight is written any more; its memory is not kept for it.
        if !is_planted(Bug::KeepTailOfFailed) {
            self.pending.clear();
        }
        // What is to be deleted goes anyway: somebody waits for it.
        if !matches!(self.state, PartitionState::Deleting(_)) {
            self.state = PartitionState::Failed(failure);
        }
    }

    /// Ends every append that is not acknowledged yet.
    pub(crate) fn end_appends(&mut self, error: &AppendError, outcomes: &mut Vec<AckOutcome>) {
        outcomes.extend(self.acks.drain(..).map(|ack| (ack.origin, Err(error.clone()))));
        outcomes.extend(self.waiting.drain(..).map(|append| (append.origin, Err(error.clone()))));
    }

    pub(crate) fn identity(&self, base_offset: Offset) -> SegmentIdentity {
        SegmentIdentity { topic_id: self.topic_id, partition: self.name.partition(), base_offset }
    }

    /// Starts a new active segment at the log's end. The old one is sealed when all of it is written.
    pub(crate) fn roll(&mut self, memory: &mut Memory<P>, now: crate::types::Timestamp) {
        let identity = self.identity(self.log_end_offset());
        let segment = Segment::create(memory.new_uid(), identity, &self.config, now);
        self.active_mut().state = SegmentState::Full;
        self.segments.push_back(segment);
        self.tail_state = TailState::Detached;
    }
}
