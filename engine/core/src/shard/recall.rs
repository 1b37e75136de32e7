//! Memory that lies with peers who take nothing: taken back while others need it.
//!
//! A send that waits for its peer holds the memory of what it sends, this shard's or what another one has lent. Where many
//! peers ask and do not read, that is all there is. Always holds: what is taken back was not sent, and its fetch goes on
//! from there once the socket takes bytes again; until then its connection holds no memory of that answer. What another
//! shard has lent is dropped here and asked for again by a letter. Left alone are sends that the network card reads in
//! place, and answers that are staged to their end behind others: those connections are closed when they have
//! stalled for long ([`crate::limits::STALL_MS_MAX`]).

use crate::fetch::transfer::{FetchId, FetchState};
use crate::message::ShardId;
use crate::ops::{ConnId, NetOp, Now, Ops};
use crate::platform::Platform;
use crate::shard::Core;
use crate::shard::conn::AnswerState;
use crate::types::{ByteCount, Position};

/// Sends taken back in one turn: what they give may be enough.
const RECALLED_PER_TURN: usize = 64;

impl<P: Platform, C> Core<P, C> {
    /// Memory is short, of `lender` or of this shard itself: asks for what sends hold of it that have waited for their
    /// peers.
    pub(super) fn recall_stalled(&mut self, lender: Option<ShardId>, now: Now, ops: &mut Ops<P>) {
        let wait_ms = self.limits.recall_ms;
        let mut recalled = 0;
        for slot in 0..self.conns.len() {
            let Some(conn) = self.conns[slot].as_deref() else { continue };
            if !conn.is_stalled() || now.mono < conn.sending_since.plus_millis(wait_ms) {
                continue;
            }
            let (id, is_recallable) = (conn.id, conn.is_recallable());
            let head = conn.responses.front().and_then(|head| head.fetch_ready());
            // Asked first: what is returned goes on under another name.
            let is_lent = head.is_some_and(|head| self.is_lent_by(head, lender));
            if lender.is_some() {
                self.return_loans(id, lender);
            }
            if is_recallable && is_lent {
                let Some(conn) = self.conn_mut(id) else { continue };
                conn.recalled = true;
                self.stats.sends_recalled += 1;
                ops.net.push(NetOp::Recall(id));
                recalled += 1;
            }
            if recalled == RECALLED_PER_TURN {
                return;
            }
        }
    }

    /// Whether a fetch sends the memory of that shard; `None` is this one.
    fn is_lent_by(&mut self, fetch: FetchId, lender: Option<ShardId>) -> bool {
        self.fetches.get_mut(fetch).is_some_and(|fetch| fetch.owner() == lender)
    }

    /// Drops what `lender` has lent to a connection's fetches and is not on its way to the socket.
    fn return_loans(&mut self, id: ConnId, lender: Option<ShardId>) {
        let answers = self.conn_mut(id).map_or(0, |conn| conn.responses.len());
        for at in 0..answers {
            let Some(fetch) = self.conn_mut(id).and_then(|conn| conn.responses.get(at)?.fetch_ready()) else {
                continue;
            };
            if self.is_lent_by(fetch, lender)
                && let Some(renamed) = self.fetches.give_back(fetch)
                && let Some(response) = self.conn_mut(id).and_then(|conn| conn.responses.get_mut(at))
            {
                response.state = AnswerState::Ready(Some(renamed));
            }
        }
    }

    /// The send of a connection has ended whose memory was asked back: drops what it has not sent.
    pub(super) fn give_back(&mut self, id: ConnId) {
        let Some(conn) = self.conn_mut(id) else { return };
        // Nothing is staged before the socket takes bytes.
        conn.sending = true;
        let Some(fetch) = conn.responses.front().and_then(|head| head.fetch_ready()) else { return };
        let by_reference = conn.refers();
        let Some(entry) = self.fetches.get_mut(fetch) else { return };
        let Some(conn) = self.conns.get_mut(id.slot as usize).and_then(Option::as_deref_mut) else { return };
        let lender = entry.owner();
        match &mut entry.state {
            FetchState::Streaming(stream) => {
                let len = conn.unstage() as u64;
                stream.at = Position::new(stream.at.get() - len);
                self.stats.sent_from_memory -= len;
                self.stats.sent_by_reference -= if by_reference { len } else { 0 };
            }
            FetchState::Foreign(foreign) => {
                foreign.left = ByteCount::new(foreign.left.get() + conn.unstage() as u64);
                self.return_loans(id, lender);
            }
            _ => {}
        }
    }

    /// The socket of a connection takes bytes again.
    pub(super) fn handle_writable(&mut self, id: ConnId) {
        let Some(conn) = self.conn_mut(id) else { return };
        (conn.sending, conn.recalled) = (false, false);
        self.queue_conn(id);
    }
}
