//! Fetches of a shard: started, looked at again when something has happened, streamed. How far they reach is decided in
//! `planning`; those that wait for more to read are in `parked`.

use crate::error::FetchError;
use crate::fetch::plan::{Glance, unreadable};
use crate::fetch::policy::{PieceFacts, hand_over, is_shared};
use crate::fetch::transfer::{FetchId, FetchState, Part};
use crate::fetch::{FetchOutcome, FetchRequest, Fetched};
use crate::log::partition::{Origin, Partition, PartitionState};
use crate::message::Reply;
use crate::ops::{Now, Ops, SendHow};
use crate::planted::{Bug, is_planted};
use crate::platform::{Lease, Platform};
use crate::service::Service;
use crate::shard::Core;
use crate::shard::conn::AnswerState;
use crate::shard::holes::stop_at_hole;
use crate::types::{ByteCount, Position};

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

    /// Waits for the read of `missing`, after starting it if nobody has.
    pub(super) fn await_read(
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
    pub(super) fn gather(&mut self, partition: &mut Partition<P>, id: FetchId) -> Progress {
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
                Glance::Unreadable(block) => return stop_at_hole(stream, block),
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
        let (uid, at, outcome) = (stream.uid, stream.at, stream.outcome);
        let (partition_id, forced) = (fetch.request.partition, fetch.request.mode);
        let Some(partition) = self.partitions.take(partition_id) else {
            return Err(FetchError::UnknownPartition);
        };
        let piece = match partition.glance(&mut self.memory, uid, at, end) {
            Glance::Resident { lease, start, end: to, written } => {
                let shared = is_shared(lease.sent_before(), to.since(start), written) && self.memory.lends();
                let how = hand_over(PieceFacts { len: outcome.len, shared, zero_copy, forced }, self.modes);
                let to = if is_planted(Bug::ReadPastLease) { to } else { to.min(end) };
                let to = to.min(at.plus(ByteCount::of_usize(len_max)));
                Ok(Some((lease.slice(at.since(start).as_usize()..to.since(start).as_usize()), how)))
            }
            Glance::Unreadable(block) => Err(unreadable(outcome.segment, block)),
            glance => {
                let until = end.min(at.plus(self.limits.cold_read_bytes_max));
                self.await_read(&partition, id, uid, at, until, glance);
                Ok(None)
            }
        };
        self.partitions.put(partition);
        piece
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
