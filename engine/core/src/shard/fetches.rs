//! Fetches of a shard: started, located, streamed. Those that wait for more to read are in `parked`.

use crate::error::FetchError;
use crate::fetch::plan::{Glance, Located};
use crate::fetch::policy::{PieceFacts, RangeFacts, choose, hand_over, is_shared};
use crate::fetch::transfer::{FetchId, FetchState, Part, Stream};
use crate::fetch::{FetchOutcome, FetchRequest, Fetched, Mode};
use crate::limits::FETCH_LEN_MAX;
use crate::log::partition::{Origin, Partition, PartitionState};
use crate::message::Reply;
use crate::ops::{Now, Ops, SendHow};
use crate::planted::{Bug, is_planted};
use crate::platform::{CHUNK_LEN_MIN, Lease, Platform};
use crate::service::Service;
use crate::shard::Core;
use crate::shard::conn::AnswerState;
use crate::shard::reads::Reading;
use crate::types::{ByteCount, Position};

/// Requests for less are read into memory: most of a pipe's cost is per fill.
const SPLICE_LEN_MIN: ByteCount = ByteCount::kib(256);

/// What a look at a fetch leads to.
pub(super) enum Progress {
    /// Nothing more to do until something happens.
    Waiting,
    /// The header can be written; bytes follow.
    Planned(FetchOutcome),
    /// All of a handle's pieces are there.
    Gathered,
    Failed(Box<FetchError>),
}

impl<P: Platform, C> Core<P, C> {
    /// Takes a request on; answers it at once where it can. Returns its id if it is under way.
    pub(super) fn start_fetch<S: Service<Connection = C>>(
        &mut self,
        request: FetchRequest,
        origin: Origin,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) -> Option<FetchId> {
        let deadline = now.mono.plus_millis(u64::from(request.wait_ms_max));
        let Some(id) = self.fetches.insert(request, origin, deadline) else {
            self.answer(origin, None, Err(FetchError::Busy), service, ops);
            return None;
        };
        if let (Origin::Frame { .. }, Some(owner)) = (origin, self.peers.owner_of(request.partition)) {
            self.ask(owner, id, request, service, ops);
            return self.fetches.get_mut(id).map(|_| id);
        }
        self.advance_fetch(id, service, now, ops);
        self.fetches.get_mut(id).map(|_| id)
    }

    /// Takes a fetch as far as it goes without waiting.
    pub(super) fn advance_fetch<S: Service<Connection = C>>(
        &mut self,
        id: FetchId,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(fetch) = self.fetches.get_mut(id) else { return };
        let (origin, partition_id) = (fetch.origin, fetch.request.partition);
        if matches!(fetch.state, FetchState::Cancelled) {
            self.fetches.end(id);
            return;
        }
        if let (FetchState::Streaming(_), Origin::Frame { conn, .. }) = (&fetch.state, origin) {
            self.stage_early(conn, ops);
            return;
        }
        if let (FetchState::Streaming(_), Origin::Shard { .. }) = (&fetch.state, origin) {
            self.serve_shard(id);
            return;
        }
        let progress = match self.partitions.take(partition_id) {
            Some(mut partition) => {
                let progress = self.progress(&mut partition, id, now);
                self.partitions.put(partition);
                progress
            }
            None => Progress::Failed(Box::new(FetchError::UnknownPartition)),
        };
        match progress {
            Progress::Waiting => {}
            Progress::Planned(outcome) => self.answer(origin, Some(id), Ok(outcome), service, ops),
            Progress::Gathered => self.reply_gathered(id, origin, ops),
            Progress::Failed(error) => {
                self.fetches.end(id);
                self.answer(origin, None, Err(*error), service, ops);
            }
        }
    }

    fn progress(&mut self, partition: &mut Partition<P>, id: FetchId, now: Now) -> Progress {
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        if let Some(failure) = fetch.failure.take() {
            return Progress::Failed(Box::new(failure));
        }
        if let FetchState::Streaming(_) = fetch.state {
            return self.gather(partition, id);
        }
        let request = fetch.request;
        let expired = now.mono >= fetch.deadline;
        if matches!(partition.state, PartitionState::Opening(_)) {
            return self.park(partition, id);
        }
        if !partition.is_readable() {
            return Progress::Failed(Box::new(FetchError::Closing));
        }
        if let Some(mode) = request.mode
            && !self.modes.contains(mode)
        {
            return Progress::Failed(Box::new(FetchError::UnsupportedMode(mode)));
        }
        let marks = partition.watermarks();
        if let Err(error) = partition.check_offset(request.offset) {
            return Progress::Failed(Box::new(error));
        }
        if request.offset >= marks.high_watermark {
            return if !expired && request.waits() {
                self.park(partition, id)
            } else {
                self.plan_empty(partition, id)
            };
        }
        self.plan(partition, id, expired)
    }

    /// Finds the first batch and the range to send.
    fn plan(&mut self, partition: &mut Partition<P>, id: FetchId, expired: bool) -> Progress {
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        let request = fetch.request;
        // The offset is below the high watermark, so a segment holds it, or compaction has removed it and
        // a later one follows.
        let Some(mut index) = partition.segment_of(request.offset) else {
            return self.plan_empty(partition, id);
        };
        let mut resume = match fetch.state {
            FetchState::Locating { uid, at } if uid == partition.segments[index].uid => Some(at),
            _ => None,
        };
        let (start, first_len) = loop {
            match partition.locate(&mut self.memory, &mut self.memo, index, &request, resume.take()) {
                Ok(Located::At(start, len)) => break (start, len),
                Ok(Located::Beyond) if index + 1 < partition.segments.len() => index += 1,
                // Only a hole follows, up to the high watermark: the next append ends the wait.
                Ok(Located::Beyond) if !expired && request.waits() => return self.park(partition, id),
                Ok(Located::Beyond) => return self.plan_empty(partition, id),
                Ok(Located::Stopped { at, missing, glance }) => {
                    let uid = partition.segments[index].uid;
                    if let Some(fetch) = self.fetches.get_mut(id) {
                        fetch.state = FetchState::Locating { uid, at };
                    }
                    let wanted = request.len_max.min(self.limits.cold_read_bytes_max);
                    let edge = self.reading(id) == Reading::Edge;
                    let until = missing.plus(if edge { CHUNK_LEN_MIN } else { wanted });
                    return self.await_read(partition, id, uid, missing, until, glance);
                }
                Err(error) => return Progress::Failed(Box::new(error)),
            }
        };
        let visible = partition.visible_end(index);
        let segment = &partition.segments[index];
        let last = segment.uid == partition.durable.uid;
        let scarce = last && visible.since(start) < request.len_min.min(request.len_max);
        if scarce && !expired && request.wait_ms_max > 0 {
            return self.park(partition, id);
        }
        let len = request.len_max.min(FETCH_LEN_MAX).max(first_len).min(visible.since(start));
        let cold_by_splice = self.goes_by_splice(&request);
        // Pipes leave a range's edges in memory: there its middle tells.
        let middle = start.plus(ByteCount::new(len.get() / 2));
        let resident = partition.is_resident(&self.memory, segment.uid, start.plus(len))
            && (!cold_by_splice || partition.is_resident(&self.memory, segment.uid, middle));
        let facts = RangeFacts { resident, forced: request.mode, cold_by_splice };
        let outcome = FetchOutcome {
            len,
            segment: segment.base_offset,
            position: start,
            watermarks: partition.watermarks(),
        };
        let mut stream = Stream {
            outcome,
            uid: segment.uid,
            at: start,
            end: start.plus(len),
            mode: choose(facts),
            by_file: start..start.plus(len),
            pieces: Vec::new(),
        };
        self.bring_ahead(partition, index, &mut stream, request.mode);
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        fetch.state = FetchState::Streaming(stream);
        self.stats.fetches += 1;
        match fetch.origin {
            Origin::Ticket(_) => self.gather(partition, id),
            _ => Progress::Planned(outcome),
        }
    }

    /// Whether a cold range of this request goes through a pipe, if nothing is forced.
    pub(super) fn goes_by_splice(&self, request: &FetchRequest) -> bool {
        self.limits.cold_by_splice
            && request.len_max >= SPLICE_LEN_MIN
            && self.modes.contains(Mode::DirectSplice)
    }

    fn plan_empty(&mut self, partition: &Partition<P>, id: FetchId) -> Progress {
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        let active = partition.active();
        let outcome = FetchOutcome {
            len: ByteCount::ZERO,
            segment: active.base_offset,
            position: partition.durable.position,
            watermarks: partition.watermarks(),
        };
        let (at, end) = (Position::ZERO, Position::ZERO);
        let uid = active.uid;
        let mode = Mode::Send;
        let (by_file, pieces) = (at..end, Vec::new());
        fetch.state = FetchState::Streaming(Stream { outcome, uid, at, end, mode, by_file, pieces });
        self.stats.fetches += 1;
        match fetch.origin {
            Origin::Ticket(_) => Progress::Gathered,
            _ => Progress::Planned(outcome),
        }
    }

    /// Waits for the read of `missing`, after starting it if nobody has.
    fn await_read(
        &mut self,
        partition: &Partition<P>,
        id: FetchId,
        uid: crate::cache::SegmentUid,
        missing: Position,
        until: Position,
        glance: Glance<P>,
    ) -> Progress {
        let entry = match glance {
            Glance::Loading(entry) => {
                self.stats.shared_reads += 1;
                Some(entry)
            }
            _ => {
                let index = partition.segment_index(uid);
                let visible = index.map_or(missing, |index| partition.visible_end(index));
                let until = until.min(visible).max(missing.plus(ByteCount::new(1)));
                let reading = self.reading(id);
                self.request_reads(partition, uid, missing, until, reading);
                match partition.glance(&mut self.memory, uid, missing, visible) {
                    Glance::Loading(entry) => Some(entry),
                    _ => None,
                }
            }
        };
        let Some(entry) = entry else {
            debug_assert!(false, "a requested read is loading");
            return Progress::Waiting;
        };
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        if !fetch.waiting {
            fetch.waiting = true;
            fetch.next_waiter = self.memory.cache.add_waiter(entry, id.index);
        }
        Progress::Waiting
    }

    /// Collects a handle's pieces.
    fn gather(&mut self, partition: &mut Partition<P>, id: FetchId) -> Progress {
        loop {
            let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
            let FetchState::Streaming(stream) = &mut fetch.state else { return Progress::Waiting };
            if stream.at >= stream.end {
                return Progress::Gathered;
            }
            let (uid, at, end) = (stream.uid, stream.at, stream.end);
            match partition.glance(&mut self.memory, uid, at, end) {
                Glance::Resident { lease, start, end: to, .. } => {
                    let to = if is_planted(Bug::ReadPastLease) { to } else { to.min(end) };
                    let piece = lease.slice(at.since(start).as_usize()..to.since(start).as_usize());
                    stream.at = to;
                    stream.pieces.push(piece);
                }
                glance => {
                    let until = end.min(at.plus(self.limits.cold_read_bytes_max));
                    return self.await_read(partition, id, uid, at, until, glance);
                }
            }
        }
    }

    fn reply_gathered(&mut self, id: FetchId, origin: Origin, ops: &mut Ops<P>) {
        let Some(fetch) = self.fetches.get_mut(id) else { return };
        let FetchState::Streaming(stream) = &mut fetch.state else { return };
        let fetched = Fetched { outcome: stream.outcome, pieces: std::mem::take(&mut stream.pieces) };
        self.stats.sent_from_memory += fetched.outcome.len.get();
        self.fetches.end(id);
        if let Origin::Ticket(ticket) = origin {
            ops.replies.push((ticket, Reply::Fetched(Ok(fetched))));
        }
    }

    /// The next piece of a connection's stream that is in memory, of at most `len_max` bytes, and how to send it.
    /// It counts once [`Self::take_piece`] has been called. `Ok(None)`: it is being read.
    pub(super) fn next_piece(
        &mut self,
        id: FetchId,
        len_max: usize,
        zero_copy: bool,
    ) -> Result<Option<(P::Lease, SendHow)>, FetchError> {
        let Some(fetch) = self.fetches.get_mut(id) else { return Err(FetchError::Cancelled) };
        if let Some(failure) = fetch.failure.take() {
            return Err(failure);
        }
        if fetch.waiting {
            return Ok(None);
        }
        let FetchState::Streaming(stream) = &fetch.state else { return Err(FetchError::Cancelled) };
        let Part::Memory(end) = stream.part() else { return Ok(None) };
        let (uid, at, len) = (stream.uid, stream.at, stream.outcome.len);
        let (partition_id, forced) = (fetch.request.partition, fetch.request.mode);
        let Some(partition) = self.partitions.take(partition_id) else {
            return Err(FetchError::UnknownPartition);
        };
        let piece = match partition.glance(&mut self.memory, uid, at, end) {
            Glance::Resident { lease, start, end: to, written } => {
                let shared = is_shared(lease.sent_before(), to.since(start), written) && self.memory.lends();
                let how = hand_over(PieceFacts { len, shared, zero_copy, forced }, self.modes);
                let to = if is_planted(Bug::ReadPastLease) { to } else { to.min(end) };
                let to = to.min(at.plus(ByteCount::of_usize(len_max)));
                Some((lease.slice(at.since(start).as_usize()..to.since(start).as_usize()), how))
            }
            glance => {
                let until = end.min(at.plus(self.limits.cold_read_bytes_max));
                self.await_read(&partition, id, uid, at, until, glance);
                None
            }
        };
        self.partitions.put(partition);
        Ok(piece)
    }

    /// The piece that [`Self::next_piece`] gave, of this length, is on its way.
    pub(super) fn take_piece(&mut self, id: FetchId, piece: &P::Lease, how: SendHow) {
        let len = piece.as_ref().len() as u64;
        piece.count_sent(len);
        if let Some(fetch) = self.fetches.get_mut(id)
            && let FetchState::Streaming(stream) = &mut fetch.state
        {
            stream.at = stream.at.plus(ByteCount::new(len));
            self.stats.sent_from_memory += len;
            self.stats.sent_by_reference += if how == SendHow::Reference { len } else { 0 };
        }
    }

    /// Writes the answer of a fetch that is planned, or has failed.
    pub(super) fn answer<S: Service<Connection = C>>(
        &mut self,
        origin: Origin,
        fetch: Option<FetchId>,
        outcome: Result<FetchOutcome, FetchError>,
        service: &mut S,
        ops: &mut Ops<P>,
    ) {
        match origin {
            Origin::Ticket(ticket) => {
                if let Err(error) = outcome {
                    ops.replies.push((ticket, Reply::Fetched(Err(error))));
                }
            }
            Origin::Frame { conn: conn_id, sequence, tag } => {
                let Some(conn) = self.conn_mut(conn_id) else {
                    if let Some(id) = fetch {
                        self.fetches.end(id);
                    }
                    return;
                };
                if let Some(response) = conn.response_mut(sequence) {
                    service.handle_fetched(tag, &outcome, &mut response.header);
                    response.state = AnswerState::Ready(fetch);
                }
                self.queue_conn(conn_id);
            }
            Origin::Service { .. } => debug_assert!(false, "services do not fetch for themselves"),
            Origin::Shard { shard, call } => self.answer_shard(shard, call, fetch, outcome, ops),
        }
    }
}
