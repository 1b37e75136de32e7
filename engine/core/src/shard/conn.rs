//! One connection: bytes in, frames, answers in the order of their frames, bytes out.
//!
//! Always holds (I9): at most one transfer is outstanding; an answer's bytes leave in one piece after those
//! of every earlier frame; what has been staged for the socket is sent or the connection is closed.

use std::collections::VecDeque;

use crate::fetch::transfer::FetchId;
use crate::ops::{ConnId, Send, SendHow, SendPart, SendParts};
use crate::platform::Platform;
use crate::types::Nanos;

/// Header buffers kept for reuse, per connection.
const SPARE_BUFFERS_MAX: usize = 16;

/// Where an answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerState {
    /// The operation behind it has not ended.
    Waiting,
    /// Its header is written; log bytes follow from the fetch, if there is one.
    Ready(Option<FetchId>),
}

/// What the pipe of a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pipe {
    /// So many bytes of the fetch at the head are in it.
    Holds(usize),
    /// A fill waits for its turn at the device.
    Queued,
    /// A fill is under way.
    Filling,
}

/// One answer.
pub(crate) struct Response {
    pub(crate) header: Vec<u8>,
    pub(crate) state: AnswerState,
    /// The fetch behind a waiting answer.
    pub(crate) fetch: Option<FetchId>,
}

impl Response {
    /// The fetch whose log bytes follow the header, once that is written.
    pub(crate) fn fetch_ready(&self) -> Option<FetchId> {
        match self.state {
            AnswerState::Ready(fetch) => fetch,
            AnswerState::Waiting => None,
        }
    }
}

/// See the module documentation.
pub(crate) struct Conn<P: Platform, C> {
    pub(crate) id: ConnId,
    pub(crate) service: C,
    /// Received, not yet a whole frame, or held back by the pipeline limit.
    pub(crate) received: Vec<u8>,
    pub(crate) paused: bool,
    pub(crate) responses: VecDeque<Response>,
    /// The sequence number of the first response.
    pub(crate) first_sequence: u64,
    /// What is staged; `None` while a send has it.
    outgoing: Option<SendParts<P>>,
    /// Bytes of its first piece that have left.
    skip: usize,
    /// Bytes of it that have not.
    staged_len: usize,
    /// Bytes of the answer at the head that have been staged from its fetch, sent or not.
    head_len: usize,
    /// How the leases among the staged parts are sent; all the same way.
    how: SendHow,
    /// Whether sending without a copy may pay: the peer is remote, and the kernel has not copied all the same.
    pub(crate) zero_copy: bool,
    /// What the connection's pipe is doing.
    pub(crate) pipe: Pipe,
    /// A transfer is outstanding: the peer has taken nothing of it.
    pub(crate) sending: bool,
    /// Log bytes of the arena are with it.
    pub(crate) holds_memory: bool,
    /// Its memory has been asked back: nothing is staged before the socket takes bytes again.
    pub(crate) recalled: bool,
    /// Since when, if one is.
    pub(crate) sending_since: Nanos,
    /// It stands in the list of connections that may send.
    pub(crate) queued: bool,
    /// No more frames are read; close when everything is answered.
    pub(crate) ending: bool,
    /// The peer sends no more: close when every frame it has sent is answered.
    pub(crate) peer_ended: bool,
    /// `Close` has been asked for.
    pub(crate) closed: bool,
    spare: Vec<Vec<u8>>,
}

impl<P: Platform, C: Default> Conn<P, C> {
    pub(crate) fn new(id: ConnId, remote: bool) -> Self {
        Self {
            id,
            service: C::default(),
            received: Vec::new(),
            paused: false,
            responses: VecDeque::new(),
            first_sequence: 0,
            outgoing: Some(SendParts::default()),
            skip: 0,
            staged_len: 0,
            head_len: 0,
            how: SendHow::Copy,
            zero_copy: remote,
            pipe: Pipe::Holds(0),
            sending: false,
            holds_memory: false,
            recalled: false,
            sending_since: Nanos::ZERO,
            queued: false,
            ending: false,
            peer_ended: false,
            closed: false,
            spare: Vec::new(),
        }
    }
}

impl<P: Platform, C> Conn<P, C> {
    /// An empty buffer for a header.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub(crate) fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS_MAX && buffer.capacity() > 0 {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Whether nothing is left to be answered, now or later.
    pub(crate) fn is_done(&self) -> bool {
        self.responses.is_empty() && (self.ending || (self.peer_ended && !self.paused))
    }

    /// Whether a send that has ended leaves something to do: to send, to answer, or to close.
    pub(crate) fn has_more(&self) -> bool {
        self.staged_len > 0 || !self.responses.is_empty() || self.is_done()
    }

    /// The sequence number that the next response gets.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.first_sequence + self.responses.len() as u64
    }

    /// The answer with that number, unless it has left already.
    pub(crate) fn response_mut(&mut self, sequence: u64) -> Option<&mut Response> {
        let index = sequence.checked_sub(self.first_sequence)?;
        self.responses.get_mut(index as usize)
    }

    /// Drops the first response, whose bytes are all staged or sent.
    pub(crate) fn finish_response(&mut self) {
        if let Some(response) = self.responses.pop_front() {
            self.first_sequence += 1;
            self.head_len = 0;
            self.recycle(response.header);
        }
    }

    /// Whether another piece can be staged for the next send.
    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.as_ref().is_some_and(|parts| !parts.is_full())
    }

    /// Adds a piece to the next send, for which there is room.
    pub(crate) fn stage(&mut self, part: SendPart<P>) {
        let Some(parts) = &mut self.outgoing else {
            debug_assert!(false, "a piece is staged while a send is under way");
            return;
        };
        let len = part.as_ref().len();
        debug_assert!(len > 0);
        self.staged_len += len;
        parts.push(part);
    }

    /// Adds log bytes of the answer at the head, which could be had again.
    pub(crate) fn stage_lease(&mut self, lease: P::Lease) {
        self.head_len += lease.as_ref().len();
        self.stage(SendPart::Lease(lease));
    }

    /// Whether a transfer is under way that has not been asked back.
    pub(crate) fn is_stalled(&self) -> bool {
        self.sending && !self.recalled && !self.closed
    }

    /// Whether it is a send whose log bytes, or some of them, could be had again.
    pub(crate) fn is_recallable(&self) -> bool {
        let is_from_memory = self.outgoing.is_none() && self.how != SendHow::ZeroCopy;
        self.is_stalled() && is_from_memory && self.head_len > 0
    }

    /// Drops what is staged and not sent of the answer at the head, which lies behind all that is staged of earlier ones;
    /// returns its length.
    pub(crate) fn unstage(&mut self) -> usize {
        let Some(parts) = &mut self.outgoing else { return 0 };
        let mut len = 0;
        while let Some(SendPart::Lease(lease)) = parts.last() {
            let skip = if parts.len() == 1 { self.skip } else { 0 };
            let unsent = lease.as_ref().len() - skip;
            if len + unsent > self.head_len {
                break;
            }
            len += unsent;
            self.skip -= skip;
            parts.pop();
        }
        self.staged_len -= len;
        self.head_len -= len;
        len
    }

    /// Whether a lease that is to be sent this way can join what is staged.
    pub(crate) fn goes_with(&mut self, how: SendHow) -> bool {
        if !self.has_leases() {
            self.how = how;
        }
        self.how == how
    }

    /// Whether leases are staged that go by reference.
    pub(crate) fn refers(&self) -> bool {
        self.how == SendHow::Reference && self.has_leases()
    }

    fn has_leases(&self) -> bool {
        self.outgoing.iter().flat_map(|parts| parts.iter()).any(|part| matches!(part, SendPart::Lease(_)))
    }

    /// Bytes staged.
    pub(crate) fn staged_len(&self) -> usize {
        self.staged_len
    }

    /// What is staged, as an operation.
    pub(crate) fn take_staged(&mut self, more: bool) -> Option<Send<P>> {
        self.holds_memory = self.has_leases();
        let parts = self.outgoing.take_if(|parts| !parts.is_empty())?;
        self.sending = true;
        self.staged_len = 0;
        Some(Send { conn: self.id, parts, skip: std::mem::take(&mut self.skip), more, how: self.how })
    }

    /// A send took `len` bytes: what is left is staged again. Nothing was staged while it was under way.
    pub(crate) fn restage(&mut self, send: Send<P>, len: usize) {
        let Send { mut parts, skip, how, .. } = send;
        let mut sent = skip + len;
        let mut gone = 0;
        for part in parts.iter() {
            let part_len = part.as_ref().len();
            // Once a part is left over, so is everything behind it, however short.
            if sent < part_len {
                break;
            }
            sent -= part_len;
            gone += 1;
        }
        parts.drain(..gone).for_each(|part| self.release(part));
        self.how = how;
        self.skip = sent;
        self.staged_len = parts.iter().map(|part| part.as_ref().len()).sum::<usize>() - sent;
        self.outgoing = Some(parts);
    }

    /// Lets go of a part's memory.
    fn release(&mut self, part: SendPart<P>) {
        if let SendPart::Bytes(buffer) = part {
            self.recycle(buffer);
        }
    }
}
