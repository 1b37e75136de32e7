//! Sending in turns: what the answers at the head of each connection have for its socket.
//!
//! Always holds: bytes of an answer leave in order, whichever way each of its pieces takes; a pipe is filled again
//! only when it is empty. Does not decide how a piece is sent: `fetch::policy` does.

use crate::disk::Errno;
use crate::error::FetchError;
use crate::fetch::Mode;
use crate::fetch::transfer::{FetchId, FetchState, Foreign, Part};
use crate::limits::TURN_SEND_BYTES;
use crate::message::Source;
use crate::ops::{ConnId, Fill, NetOp, Now, Ops, Send, SendFile, SendPart};
use crate::platform::Platform;
use crate::service::Service;
use crate::shard::Core;
use crate::shard::conn::{AnswerState, Pipe};
use crate::token::Purpose;
use crate::types::{ByteCount, Position};

/// Most bytes in one send: small enough that a turn serves several connections, large enough that the
/// cost of a send does not show.
const SEND_LEN_MAX: usize = 256 << 10;

/// Most bytes in one send by reference: nothing is copied on the turn.
const REFERENCE_LEN_MAX: usize = 1 << 20;

/// Most bytes in one fill: most of its cost is per fill. A pipe that has no room for so much is filled as far as it
/// goes.
const FILL_LEN_MAX: usize = 1 << 20;

/// What the head of a connection's answers has for the socket.
pub(super) enum Staged {
    /// Nothing now.
    Nothing,
    /// Pieces are staged.
    Parts { more: bool },
    /// A range that does not come from the arena, after everything staged has left.
    File(FetchId),
    /// The connection cannot go on.
    Broken,
}

/// What a look at a fetch's stream leads to.
pub(super) enum Piece {
    /// Its next piece is staged, or it has ended.
    Staged,
    /// Nothing can be staged now: it is being read, or does not come from the arena.
    NotNow,
    /// It is to be sent another way than what is staged.
    OtherWay,
}

/// The rest of a fetch that does not come from the arena.
struct FileRange {
    mode: Mode,
    position: Position,
    len: usize,
}

impl<P: Platform, C> Core<P, C> {
    /// Sends for connections in turn, until the turn's bytes are used up.
    pub(super) fn poll_sends<S: Service<Connection = C>>(
        &mut self,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        for _ in 0..self.sendable.len() {
            if self.turn_bytes_left == 0 {
                break;
            }
            let Some(id) = self.sendable.pop_front() else { break };
            self.send_in_turn(id, service, now, ops);
        }
        self.turn_bytes_left = TURN_SEND_BYTES.as_usize();
    }

    /// Sends for a connection that has just asked for something, if it is nobody else's turn: its state is still in
    /// the processor's nearest cache.
    pub(super) fn send_at_once<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let alone = self.sendable.len() == 1 && self.sendable.front() == Some(&id);
        if alone && self.turn_bytes_left > 0 {
            self.sendable.clear();
            self.send_in_turn(id, service, now, ops);
        }
    }

    fn send_in_turn<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.queued = false;
        if !conn.sending {
            let sent = self.send_some(id, ops);
            self.turn_bytes_left = self.turn_bytes_left.saturating_sub(sent);
            if let Some(conn) = self.conn_mut(id) {
                conn.sending_since = now.mono;
            }
        }
        self.resume(id, service, now, ops);
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
            Staged::File(fetch) => self.send_file(id, fetch, ops),
        }
    }

    /// Stages pieces of the answers at the head of a connection.
    pub(super) fn stage(&mut self, id: ConnId) -> Staged {
        loop {
            let Some(conn) = self.conn_mut(id) else { return Staged::Nothing };
            let staged = conn.staged_len();
            let parts = if staged > 0 { Staged::Parts { more: false } } else { Staged::Nothing };
            let len_max = if conn.refers() { REFERENCE_LEN_MAX } else { SEND_LEN_MAX };
            if staged >= len_max || !conn.has_room() {
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
            match self.stage_fetch(id, fetch, len_max - staged) {
                Ok(Piece::Staged) => {}
                Ok(_) if staged > 0 => return Staged::Parts { more: true },
                Ok(_) if self.is_of_file(fetch) => return Staged::File(fetch),
                Ok(_) => return Staged::Nothing,
                Err(_) => return Staged::Broken,
            }
        }
    }

    /// Stages the next piece of a fetch, or ends it.
    fn stage_fetch(&mut self, id: ConnId, fetch: FetchId, len_max: usize) -> Result<Piece, FetchError> {
        if let Some(staged) = self.stage_foreign(id, fetch, len_max) {
            return staged;
        }
        let Some(entry) = self.fetches.get_mut(fetch) else { return Err(FetchError::Cancelled) };
        let FetchState::Streaming(stream) = &entry.state else { return Err(FetchError::Cancelled) };
        if stream.at >= stream.end {
            self.fetches.end(fetch);
            if let Some(conn) = self.conn_mut(id) {
                conn.finish_response();
            }
            return Ok(Piece::Staged);
        }
        if let Part::File(_) = stream.part() {
            return Ok(Piece::NotNow);
        }
        let zero_copy = self.conn_mut(id).is_some_and(|conn| conn.zero_copy);
        let Some((piece, how)) = self.next_piece(fetch, len_max, zero_copy)? else {
            return Ok(Piece::NotNow);
        };
        let Some(conn) = self.conn_mut(id) else { return Ok(Piece::NotNow) };
        if !conn.goes_with(how) {
            return Ok(Piece::OtherWay);
        }
        conn.stage(SendPart::Lease(piece.clone()));
        self.take_piece(fetch, &piece, how);
        Ok(Piece::Staged)
    }

    fn is_of_file(&mut self, fetch: FetchId) -> bool {
        self.file_range(fetch).is_some()
    }

    /// The rest of a fetch that does not come from the arena.
    fn file_range(&mut self, fetch: FetchId) -> Option<FileRange> {
        let entry = self.fetches.get_mut(fetch)?;
        if let FetchState::Foreign(Foreign { source: Source::File { position, .. }, mode, left, .. }) =
            &entry.state
        {
            return Some(FileRange { mode: *mode, position: *position, len: left.as_usize() });
        }
        let FetchState::Streaming(stream) = &entry.state else { return None };
        let Part::File(end) = stream.part() else { return None };
        let len = end.since(stream.at).as_usize();
        Some(FileRange { mode: stream.mode, position: stream.at, len })
    }

    /// Sends from the page cache, or from the connection's pipe once that is filled. Returns the length.
    fn send_file(&mut self, id: ConnId, fetch: FetchId, ops: &mut Ops<P>) -> usize {
        let Some(range) = self.file_range(fetch) else { return 0 };
        if range.mode == Mode::Sendfile {
            let Some(file) = self.file_of(id, fetch, ops) else { return 0 };
            let Some(conn) = self.conn_mut(id) else { return 0 };
            conn.sending = true;
            let len = range.len.min(SEND_LEN_MAX);
            ops.net.push(NetOp::SendFile(SendFile { conn: id, file, position: range.position, len }));
            return len;
        }
        let Some(conn) = self.conn_mut(id) else { return 0 };
        match conn.pipe {
            Pipe::Holds(0) => {
                conn.pipe = Pipe::Queued;
                self.queue_fill(id, fetch);
                0
            }
            Pipe::Holds(held) => {
                conn.sending = true;
                let len = held.min(range.len);
                ops.net.push(NetOp::Drain { conn: id, len });
                len
            }
            Pipe::Queued | Pipe::Filling => 0,
        }
    }

    /// The file that a fetch's range lies in; `None`: it is being opened, or the connection is closed because it
    /// is gone.
    fn file_of(&mut self, id: ConnId, fetch: FetchId, ops: &mut Ops<P>) -> Option<P::File> {
        let entry = self.fetches.get_mut(fetch)?;
        if let FetchState::Foreign(Foreign { source: Source::File { file, .. }, .. }) = &entry.state {
            return Some(file.clone());
        }
        let FetchState::Streaming(stream) = &entry.state else { return None };
        let (uid, partition_id) = (stream.uid, entry.request.partition);
        let partition = self.partitions.get_mut(partition_id);
        let found = partition.and_then(|partition| {
            let index = partition.segment_index(uid)?;
            Some(partition.segment_file(index, ops))
        });
        match found {
            Some(Some(file)) => Some(file),
            Some(None) => {
                self.waiting_for_file.push(id);
                None
            }
            None => {
                self.close(id, ops);
                None
            }
        }
    }

    /// Submits a connection's fill, whose turn it is. Returns its length; 0 if nothing came of it.
    pub(super) fn submit_fill(&mut self, id: ConnId, fetch: FetchId, ops: &mut Ops<P>) -> usize {
        let Some(conn) = self.conn_mut(id) else { return 0 };
        if conn.pipe != Pipe::Queued {
            return 0;
        }
        conn.pipe = Pipe::Holds(0);
        let Some(range) = self.file_range(fetch) else { return 0 };
        // A file that has to be opened first brings the connection back to its turn.
        let Some(file) = self.file_of(id, fetch, ops) else { return 0 };
        let Some(conn) = self.conn_mut(id) else { return 0 };
        conn.pipe = Pipe::Filling;
        let len = range.len.min(FILL_LEN_MAX);
        let (token, cached) = (Purpose::Fill(id).token(), range.mode == Mode::Splice);
        let position = range.position;
        ops.disk.push(crate::ops::DiskOp::Fill(Fill { token, conn: id, file, position, len, cached }));
        len
    }

    /// A connection's pipe has been filled, or could not be.
    pub(super) fn handle_filled(
        &mut self,
        id: ConnId,
        asked: usize,
        result: Result<usize, Errno>,
        ops: &mut Ops<P>,
    ) {
        self.end_fill(asked);
        let Some(conn) = self.conn_mut(id) else { return };
        conn.pipe = Pipe::Holds(result.unwrap_or(0));
        let head = conn.responses.front().map(|response| response.state);
        if result == Ok(0) {
            // The file ends before the log does.
            self.close(id, ops);
            return;
        }
        if result.is_err()
            && let Some(AnswerState::Ready(Some(fetch))) = head
        {
            self.stats.pipes_refused += u64::from(self.give_up_file(fetch));
        }
        if result.is_err()
            && let Some(AnswerState::Ready(Some(fetch))) = head
            && let Some(entry) = self.fetches.get_mut(fetch)
            && let FetchState::Streaming(stream) = &mut entry.state
        {
            // No pipe, or a file system without this way: the arena serves the rest, and reports what is wrong with
            // the device if that was it.
            stream.mode = Mode::DirectSend;
            self.stats.pipes_refused += 1;
        }
        self.queue_conn(id);
    }

    /// A send from memory has ended.
    pub(super) fn handle_sent<S: Service<Connection = C>>(
        &mut self,
        result: Result<usize, Errno>,
        send: Send<P>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let id = send.conn;
        let Some(conn) = self.conn_mut(id) else { return };
        conn.sending = false;
        match result {
            Ok(len) => conn.restage(send, len),
            Err(_) => return self.close(id, ops),
        }
        if conn.has_more() {
            self.queue_conn(id);
        }
        self.resume(id, service, now, ops);
    }

    /// Bytes have gone into the socket from a file or from the connection's pipe, or could not.
    pub(super) fn handle_file_sent<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        result: Result<usize, Errno>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.sending = false;
        match result {
            // Zero: the file ends before the log does.
            Ok(0) | Err(_) => self.close(id, ops),
            Ok(len) => self.advance_file(id, len),
        }
        self.queue_conn(id);
        self.resume(id, service, now, ops);
    }

    /// `len` bytes that did not come from the arena have gone into the socket.
    fn advance_file(&mut self, id: ConnId, len: usize) {
        let Some(conn) = self.conn_mut(id) else { return };
        let Some(AnswerState::Ready(Some(fetch))) = conn.responses.front().map(|head| head.state) else {
            return;
        };
        if let Pipe::Holds(held) = &mut conn.pipe {
            *held = held.saturating_sub(len);
        }
        let Some(entry) = self.fetches.get_mut(fetch) else { return };
        let mode = match &mut entry.state {
            FetchState::Streaming(stream) => {
                stream.at = stream.at.plus(ByteCount::of_usize(len));
                stream.mode
            }
            FetchState::Foreign(Foreign { source: Source::File { position, .. }, left, mode, .. }) => {
                *position = position.plus(ByteCount::of_usize(len));
                *left = ByteCount::new(left.get().saturating_sub(len as u64));
                *mode
            }
            _ => return,
        };
        match mode {
            Mode::DirectSplice => self.stats.sent_through_pipes += len as u64,
            _ => self.stats.sent_from_page_cache += len as u64,
        }
    }
}
