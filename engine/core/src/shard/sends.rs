//! Sending in turns: what the answers at the head of each connection have for its socket.
//!
//! Always holds: bytes of an answer leave in order, whichever way each of its pieces takes. What does not come from the
//! arena is sent by `by_file`. Does not decide how a piece is sent: `fetch::policy` does.

use crate::disk::Errno;
use crate::error::FetchError;
use crate::fetch::transfer::{FetchId, FetchState, Part};
use crate::limits::TURN_SEND_BYTES;
use crate::ops::{ConnId, NetOp, Now, Ops, Send, SendPart};
use crate::platform::Platform;
use crate::service::Service;
use crate::shard::Core;
use crate::shard::conn::AnswerState;

/// Most bytes in one send: small enough that a turn serves several connections, large enough that the
/// cost of a send does not show.
pub(super) const SEND_LEN_MAX: usize = 256 << 10;

/// Most bytes in one send by reference: nothing is copied on the turn.
const REFERENCE_LEN_MAX: usize = 1 << 20;

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
    /// All of it is staged, and nothing follows: it ends when it has been sent.
    Whole,
    /// Nothing can be staged now: it is being read, or does not come from the arena.
    NotNow,
    /// It is to be sent another way than what is staged.
    OtherWay,
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
                Ok(Piece::Whole) => return parts,
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
            return self.end_staged(id, fetch);
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
        conn.stage_lease(piece.clone());
        self.take_piece(fetch, &piece, how);
        Ok(Piece::Staged)
    }

    /// All of a fetch is staged: ends its answer, unless nothing follows that could be staged with it.
    pub(super) fn end_staged(&mut self, id: ConnId, fetch: FetchId) -> Result<Piece, FetchError> {
        let Some(conn) = self.conn_mut(id) else { return Err(FetchError::Cancelled) };
        if conn.staged_len() > 0 && conn.responses.len() == 1 {
            return Ok(Piece::Whole);
        }
        conn.finish_response();
        self.fetches.end(fetch);
        Ok(Piece::Staged)
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
        (conn.sending, conn.holds_memory) = (false, false);
        match result {
            Ok(len) => conn.restage(send, len),
            Err(_) => return self.close(id, ops),
        }
        if conn.recalled {
            self.give_back(id);
        } else {
            self.end_sent(id);
        }
        self.resume(id, service, now, ops);
    }

    /// Ends the answer at the head if all of it has been sent; what is left to do waits for the connection's turn.
    fn end_sent(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id.slot as usize).and_then(Option::as_deref_mut) else { return };
        // With its header still there nothing of it has been staged.
        if conn.staged_len() == 0
            && let Some(head) = conn.responses.front().filter(|head| head.header.is_empty())
            && let Some(fetch) = head.fetch_ready()
            && self.fetches.get_mut(fetch).is_some_and(|fetch| fetch.is_handed_over())
        {
            conn.finish_response();
            self.fetches.end(fetch);
        }
        if conn.has_more() {
            self.queue_conn(id);
        }
    }
}
