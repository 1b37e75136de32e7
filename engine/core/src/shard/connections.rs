//! Connections of a shard: receiving, splitting frames, answering in order. Sending is `sends`.

use crate::disk::Errno;
use crate::log::partition::Origin;
use crate::ops::{ConnId, NetOp, Now, Ops};
use crate::platform::Platform;
use crate::service::{Answer, Frame, Service};
use crate::shard::Core;
use crate::shard::appends::Batches;
use crate::shard::conn::{AnswerState, Conn, Response};
use crate::shard::remote::Away;
use crate::shard::sends::Staged;

impl<P: Platform, C: Default> Core<P, C> {
    pub(super) fn handle_accepted(&mut self, id: ConnId, remote: bool, ops: &mut Ops<P>) {
        let Some(slot) = self.conns.get_mut(id.slot as usize) else {
            // The driver was configured with a larger table than the limits: refuse.
            ops.net.push(NetOp::Close(id));
            return;
        };
        debug_assert!(slot.is_none(), "a slot is reused after Closed");
        *slot = Some(Box::new(Conn::new(id, remote)));
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

    /// What a connection's answer waited for is in memory: takes it before somebody else's need evicts it, unless what was
    /// taken before is still on its way. It leaves when it is the connection's turn.
    pub(super) fn stage_early(&mut self, id: ConnId, ops: &mut Ops<P>) {
        if self.conn_mut(id).is_some_and(|conn| !conn.sending) && matches!(self.stage(id), Staged::Broken) {
            self.close(id, ops);
        }
        self.queue_conn(id);
    }

    /// The kernel copies this connection's bytes even where it need not.
    pub(super) fn handle_copied_anyway(&mut self, id: ConnId) {
        if let Some(conn) = self.conn_mut(id) {
            conn.zero_copy = false;
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
                let (bytes, mut used) = (bytes.as_ref(), 0);
                loop {
                    let (len, away) = self.handle_frames(id, &bytes[used..], service, now, ops);
                    let Some(away) = away else {
                        used += len;
                        break;
                    };
                    // The driver's memory cannot travel.
                    self.copy_away(away, &bytes[used..used + len]);
                    used += len;
                }
                if let Some(conn) = self.conn_mut(id) {
                    conn.received.extend_from_slice(&bytes[used..]);
                }
            }
            Ok(bytes) => {
                conn.received.extend_from_slice(bytes.as_ref());
                self.handle_held(id, service, now, ops);
            }
            Err(_) => self.close(id, ops),
        }
        self.check_held(id, ops);
        self.send_at_once(id, service, now, ops);
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
        loop {
            let (used, away) = self.handle_frames(id, &received, service, now, ops);
            let Some(away) = away else {
                received.drain(..used);
                break;
            };
            // The frame's memory travels; what has come behind it stays.
            let mut rest = self.peers.frame();
            rest.extend_from_slice(&received[used..]);
            self.send_away(away, std::mem::replace(&mut received, rest));
        }
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
        let scarce = self.fetches.are_scarce() || self.peers.are_scarce();
        let pipeline_max = self.limits.pipeline_max as usize;
        let Some(conn) = self.conn_mut(id) else { return false };
        conn.responses.len() < if scarce { 1 } else { pipeline_max }
    }

    /// Handles whole frames at the start of `bytes`; returns how many bytes they took. Stops behind an append
    /// that another shard must carry out: whoever has the memory sends it there.
    fn handle_frames<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        bytes: &[u8],
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) -> (usize, Option<Away>) {
        let mut used = 0;
        while used < bytes.len() {
            let Some(conn) = self.conn_mut(id) else { return (bytes.len(), None) };
            if conn.ending || !self.may_take(id) {
                break;
            }
            match service.frame_len(&bytes[used..]) {
                Frame::Complete(len) if len > 0 && used + len <= bytes.len() => {
                    let away = self.handle_frame(id, &bytes[used..used + len], service, now, ops);
                    used += len;
                    if let Some(mut away) = away {
                        // From the start of `bytes`, not of the frame.
                        away.batches.start += used - len;
                        away.batches.end += used - len;
                        return (used, Some(away));
                    }
                }
                Frame::Complete(_) | Frame::Malformed => {
                    self.close(id, ops);
                    return (bytes.len(), None);
                }
                Frame::Incomplete => break,
            }
        }
        (used, None)
    }

    fn handle_frame<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        frame: &[u8],
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) -> Option<Away> {
        let conn = self.conn_mut(id)?;
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
                match (frame.get(batches.clone()), self.peers.owner_of(partition)) {
                    (Some(_), Some(owner)) => return Some(Away { owner, partition, batches, origin }),
                    (Some(bytes), None) => self.append(partition, Batches::Borrowed(bytes), origin, now, ops),
                    (None, _) => self.close(id, ops),
                }
            }
        }
        None
    }

    /// Handles held frames and receives again once there is room in the pipeline.
    pub(super) fn resume<S: Service<Connection = C>>(
        &mut self,
        id: ConnId,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        if !self.conn_mut(id).is_some_and(|conn| conn.paused) {
            return;
        }
        let pipeline_max = self.limits.pipeline_max as usize;
        let may_take = self.may_take(id);
        let Some(conn) = self.conn_mut(id) else { return };
        if may_take && conn.responses.len() <= pipeline_max / 2 {
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
