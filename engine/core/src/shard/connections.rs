//! Connections of a shard: receiving, splitting frames, answering in order, sending in turns.

use crate::disk::Errno;
use crate::error::FetchError;
use crate::fetch::Mode;
use crate::fetch::transfer::{FetchId, FetchState};
use crate::limits::TURN_SEND_BYTES;
use crate::log::partition::Origin;
use crate::log::segment::SegmentFile;
use crate::log::step::Step;
use crate::ops::{ConnId, NetOp, Now, Ops, Send, SendFile, SendPart};
use crate::platform::Platform;
use crate::service::{Answer, Frame, Service};
use crate::shard::Core;
use crate::shard::appends::Batches;
use crate::shard::conn::{AnswerState, Conn, Response};
use crate::token::StepKind;
use crate::types::{ByteCount, Position};

/// Most bytes in one send: small enough that a turn serves several connections, large enough that the
/// cost of a send does not show.
const SEND_LEN_MAX: usize = 256 << 10;

/// What the head of a connection's answers has for the socket.
enum Staged {
    /// Nothing now.
    Nothing,
    /// Pieces are staged.
    Parts { more: bool },
    /// A range of a file, after everything staged has left.
    File(SendFileRange),
    /// The connection cannot go on.
    Broken,
}

struct SendFileRange {
    fetch: FetchId,
    position: Position,
    len: usize,
}

impl<P: Platform, C: Default> Core<P, C> {
    pub(super) fn handle_accepted(&mut self, id: ConnId, ops: &mut Ops<P>) {
        let Some(slot) = self.conns.get_mut(id.slot as usize) else {
            // The driver was configured with a larger table than the limits: refuse.
            ops.net.push(NetOp::Close(id));
            return;
        };
        debug_assert!(slot.is_none(), "a slot is reused after Closed");
        *slot = Some(Box::new(Conn::new(id)));
        ops.net.push(NetOp::Receive(id));
    }
}

impl<P: Platform, C> Core<P, C> {
    pub(super) fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn<P, C>> {
        let conn = self.conns.get_mut(id.slot as usize)?.as_deref_mut()?;
        (conn.id == id && !conn.closed).then_some(conn)
    }

    /// Notes that a connection may have something to send.
    pub(super) fn queue_conn(&mut self, id: ConnId) {
        if let Some(conn) = self.conn_mut(id)
            && !conn.queued
        {
            conn.queued = true;
            self.sendable.push_back(id);
        }
    }

    pub(super) fn more_to_send(&self) -> bool {
        !self.sendable.is_empty()
    }

    pub(super) fn handle_received<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        bytes: Result<P::RecvBuf, Errno>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(conn) = self.conn_mut(id) else { return };
        match &bytes {
            Ok(bytes) if bytes.as_ref().is_empty() => {
                conn.peer_ended = true;
                self.queue_conn(id);
            }
            Ok(bytes) if conn.received.is_empty() => {
                let used = self.handle_frames(id, bytes.as_ref(), service, now, ops);
                if let Some(conn) = self.conn_mut(id) {
                    conn.received.extend_from_slice(&bytes.as_ref()[used..]);
                }
            }
            Ok(bytes) => {
                conn.received.extend_from_slice(bytes.as_ref());
                self.handle_held(id, service, now, ops);
            }
            Err(_) => self.close(id, ops),
        }
        self.check_held(id, ops);
    }

    /// Handles what is held back of a connection, as far as it goes.
    fn handle_held<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(conn) = self.conn_mut(id) else { return };
        let mut received = std::mem::take(&mut conn.received);
        let used = self.handle_frames(id, &received, service, now, ops);
        received.drain(..used);
        if let Some(conn) = self.conn_mut(id) {
            conn.received = received;
        }
    }

    /// Pauses a connection that asks faster than it is answered, and closes one whose frame is too long.
    fn check_held(&mut self, id: ConnId, ops: &mut Ops<P>) {
        let request_len_max = self.limits.request_len_max;
        let full = !self.may_take(id);
        let Some(conn) = self.conn_mut(id) else { return };
        if full && !conn.paused {
            conn.paused = true;
            ops.net.push(NetOp::Pause(id));
        }
        if !full && conn.received.len() as u64 > request_len_max.get() {
            self.close(id, ops);
        }
    }

    /// Whether a connection may have another request under way. While fetches are scarce each has one: clients
    /// that ask much and read nothing do not keep the others from theirs.
    fn may_take(&mut self, id: ConnId) -> bool {
        let (pipeline_max, scarce) = (self.limits.pipeline_max as usize, self.fetches.are_scarce());
        let Some(conn) = self.conn_mut(id) else { return false };
        conn.responses.len() < if scarce { 1 } else { pipeline_max }
    }

    /// Handles whole frames at the start of `bytes`; returns how many bytes they took.
    fn handle_frames<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        bytes: &[u8],
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let Some(conn) = self.conn_mut(id) else { return bytes.len() };
            if conn.ending || !self.may_take(id) {
                break;
            }
            match service.frame_len(&bytes[used..]) {
                Frame::Complete(len) if len > 0 && used + len <= bytes.len() => {
                    self.handle_frame(id, &bytes[used..used + len], service, now, ops);
                    used += len;
                }
                Frame::Complete(_) | Frame::Malformed => {
                    self.close(id, ops);
                    return bytes.len();
                }
                Frame::Incomplete => break,
            }
        }
        used
    }

    fn handle_frame<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        frame: &[u8],
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(conn) = self.conn_mut(id) else { return };
        let mut header = conn.buffer();
        let answer = service.handle_frame(now, &mut conn.service, frame, &mut header);
        let sequence = conn.next_sequence();
        let state = match answer {
            Answer::Respond | Answer::Close => AnswerState::Ready(None),
            _ => AnswerState::Waiting,
        };
        conn.ending |= matches!(answer, Answer::Close);
        // A protocol may say why it closes.
        if !matches!(answer, Answer::Close) || !header.is_empty() {
            conn.responses.push_back(Response { header, state, fetch: None });
        }
        match answer {
            Answer::Respond | Answer::Close => self.queue_conn(id),
            Answer::Fetch { request, tag } => {
                let origin = Origin::Frame { conn: id, sequence, tag };
                let fetch = self.start_fetch(request, origin, service, now, ops);
                if let Some(conn) = self.conn_mut(id)
                    && let Some(response) = conn.response_mut(sequence)
                {
                    response.fetch = fetch;
                }
            }
            Answer::Append { partition, batches, tag } => {
                let origin = Origin::Frame { conn: id, sequence, tag };
                match frame.get(batches) {
                    Some(bytes) => self.append(partition, Batches::Borrowed(bytes), origin, now, ops),
                    None => self.close(id, ops),
                }
            }
        }
    }

    /// Sends for connections in turn, until the turn's bytes are used up.
    pub(super) fn poll_sends<S: Service<Connection = C>>(
        &mut self,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let mut budget = TURN_SEND_BYTES.as_usize();
        for _ in 0..self.sendable.len() {
            if budget == 0 {
                return;
            }
            let Some(id) = self.sendable.pop_front() else { return };
            let Some(conn) = self.conn_mut(id) else { continue };
            conn.queued = false;
            if !conn.sending {
                let sent = self.send_some(id, ops);
                budget = budget.saturating_sub(sent);
                if let Some(conn) = self.conn_mut(id) {
                    conn.sending_since = now.mono;
                }
            }
            self.resume(id, service, now, ops);
        }
    }

    /// Pushes the next send of a connection; returns its length.
    fn send_some(&mut self, id: ConnId, ops: &mut Ops<P>) -> usize {
        match self.stage(id) {
            Staged::Broken => {
                self.close(id, ops);
                0
            }
            Staged::Nothing => {
                if let Some(conn) = self.conn_mut(id)
                    && conn.is_done()
                {
                    self.close(id, ops);
                }
                0
            }
            Staged::Parts { more } => {
                let Some(conn) = self.conn_mut(id) else { return 0 };
                let len = conn.staged_len();
                if let Some(send) = conn.take_staged(more) {
                    ops.net.push(NetOp::Send(send));
                }
                len
            }
            Staged::File(range) => self.send_file(id, &range, ops),
        }
    }

    /// Stages pieces of the answers at the head of a connection.
    fn stage(&mut self, id: ConnId) -> Staged {
        loop {
            let Some(conn) = self.conn_mut(id) else { return Staged::Nothing };
            let staged = conn.staged_len();
            let parts = if staged > 0 { Staged::Parts { more: false } } else { Staged::Nothing };
            if staged >= SEND_LEN_MAX || !conn.has_room() {
                return parts;
            }
            let Some(response) = conn.responses.front_mut() else { return parts };
            let AnswerState::Ready(fetch) = response.state else { return parts };
            if !response.header.is_empty() {
                let header = std::mem::take(&mut response.header);
                conn.stage(SendPart::Bytes(header));
                continue;
            }
            let Some(fetch) = fetch else {
                conn.finish_response();
                continue;
            };
            match self.stage_fetch(id, fetch, SEND_LEN_MAX - staged) {
                Ok(true) => {}
                Ok(false) if staged > 0 => return Staged::Parts { more: true },
                Ok(false) => return self.file_range(fetch).map_or(Staged::Nothing, Staged::File),
                Err(_) => return Staged::Broken,
            }
        }
    }

    /// Stages the next piece of a fetch, or ends it. `false`: nothing can be staged now.
    fn stage_fetch(&mut self, id: ConnId, fetch: FetchId, len_max: usize) -> Result<bool, FetchError> {
        let Some(entry) = self.fetches.get_mut(fetch) else { return Err(FetchError::Cancelled) };
        let FetchState::Streaming(stream) = &entry.state else { return Err(FetchError::Cancelled) };
        if stream.at >= stream.end {
            self.fetches.end(fetch);
            if let Some(conn) = self.conn_mut(id) {
                conn.finish_response();
            }
            return Ok(true);
        }
        if stream.mode == Mode::Sendfile {
            return Ok(false);
        }
        let Some(piece) = self.next_piece(fetch, len_max)? else { return Ok(false) };
        if let Some(conn) = self.conn_mut(id) {
            conn.stage(SendPart::Lease(piece));
        }
        Ok(true)
    }

    /// The next range of a fetch that goes by `sendfile`.
    fn file_range(&mut self, fetch: FetchId) -> Option<SendFileRange> {
        let entry = self.fetches.get_mut(fetch)?;
        let FetchState::Streaming(stream) = &entry.state else { return None };
        if stream.mode != Mode::Sendfile {
            return None;
        }
        let len = stream.end.since(stream.at).as_usize().min(SEND_LEN_MAX);
        Some(SendFileRange { fetch, position: stream.at, len })
    }

    fn send_file(&mut self, id: ConnId, range: &SendFileRange, ops: &mut Ops<P>) -> usize {
        let Some(entry) = self.fetches.get_mut(range.fetch) else { return 0 };
        let FetchState::Streaming(stream) = &entry.state else { return 0 };
        let (uid, partition_id) = (stream.uid, entry.request.partition);
        let Some(partition) = self.partitions.get_mut(partition_id) else {
            self.close(id, ops);
            return 0;
        };
        let Some(index) = partition.segment_index(uid) else {
            self.close(id, ops);
            return 0;
        };
        let file = match &partition.segments[index].file {
            SegmentFile::Open(file) => file.clone(),
            SegmentFile::Requested => {
                self.waiting_for_file.push(id);
                return 0;
            }
            SegmentFile::Closed => {
                let step = Step::OpenSegment {
                    name: partition.name.clone(),
                    config: partition.config.clone(),
                    base_offset: partition.segments[index].base_offset,
                };
                partition.segments[index].file = SegmentFile::Requested;
                partition.push_step(StepKind::OpenSegment, Some(index), step, ops);
                self.waiting_for_file.push(id);
                return 0;
            }
        };
        let Some(conn) = self.conn_mut(id) else { return 0 };
        conn.sending = true;
        let (position, len) = (range.position, range.len);
        ops.net.push(NetOp::SendFile(SendFile { conn: id, file, position, len }));
        len
    }

    /// A transfer has ended.
    pub(super) fn handle_sent<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        result: Result<usize, Errno>,
        released: Option<Send<P>>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.sending = false;
        match (result, released) {
            (Ok(len), Some(send)) => conn.restage(send, len),
            (Ok(len), None) => self.advance_file(id, len, ops),
            (Err(_), _) => self.close(id, ops),
        }
        self.queue_conn(id);
        self.resume(id, service, now, ops);
    }

    /// `len` bytes of a file have gone into the socket.
    fn advance_file(&mut self, id: ConnId, len: usize, ops: &mut Ops<P>) {
        let head = self.conn_mut(id).and_then(|conn| conn.responses.front()).map(|response| response.state);
        let Some(AnswerState::Ready(Some(fetch))) = head else { return };
        if let Some(entry) = self.fetches.get_mut(fetch)
            && let FetchState::Streaming(stream) = &mut entry.state
        {
            if len == 0 {
                // The file ends before the log does.
                self.close(id, ops);
                return;
            }
            stream.at = stream.at.plus(ByteCount::of_usize(len));
            self.stats.sent_from_page_cache += len as u64;
        }
    }

    /// Handles held frames and receives again once there is room in the pipeline.
    fn resume<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let pipeline_max = self.limits.pipeline_max as usize;
        let may_take = self.may_take(id);
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.paused && may_take && conn.responses.len() <= pipeline_max / 2 {
            conn.paused = false;
            ops.net.push(NetOp::Receive(id));
            self.handle_held(id, service, now, ops);
            self.check_held(id, ops);
            if self.conn_mut(id).is_some_and(|conn| conn.peer_ended) {
                // Whether that was the last of it is found out when it is its turn to send.
                self.queue_conn(id);
            }
        }
    }
}
