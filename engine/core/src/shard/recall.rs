//! Memory that lies with peers who take nothing: taken back while others need it.
//!
//! A send that waits for its peer holds the memory of what it sends. Where many peers ask and do not read, that is all
//! there is. Always holds: what is taken back was not sent, and its fetch goes on from there once the socket takes bytes
//! again; until then its connection holds no memory of that answer. Left alone are sends that the network card reads in
//! place, answers that are staged to their end, and what another shard has lent: those connections are closed when they
//! have stalled for long ([`crate::limits::STALL_MS_MAX`]).

use crate::fetch::transfer::FetchState;
use crate::ops::{ConnId, NetOp, Now, Ops};
use crate::platform::Platform;
use crate::shard::Core;
use crate::shard::conn::AnswerState;
use crate::types::Position;

/// Sends taken back in one turn: what they give may be enough.
const RECALLED_PER_TURN: usize = 64;

impl<P: Platform, C> Core<P, C> {
    /// Memory is short: asks for what sends hold that have waited for their peers.
    pub(super) fn recall_stalled(&mut self, now: Now, ops: &mut Ops<P>) {
        let wait_ms = self.limits.recall_ms;
        let stalled = self
            .conns
            .iter_mut()
            .flatten()
            .filter(|conn| conn.is_recallable() && now.mono >= conn.sending_since.plus_millis(wait_ms));
        for conn in stalled.take(RECALLED_PER_TURN) {
            conn.recalled = true;
            self.stats.sends_recalled += 1;
            ops.net.push(NetOp::Recall(conn.id));
        }
    }

    /// The send of a connection has ended whose memory was asked back: drops what it has not sent.
    pub(super) fn give_back(&mut self, id: ConnId) {
        let Some(conn) = self.conn_mut(id) else { return };
        // Nothing is staged before the socket takes bytes.
        conn.sending = true;
        let Some(AnswerState::Ready(Some(fetch))) = conn.responses.front().map(|head| head.state) else {
            return;
        };
        let by_reference = conn.refers();
        let Some(entry) = self.fetches.get_mut(fetch) else { return };
        let FetchState::Streaming(stream) = &mut entry.state else { return };
        let Some(conn) = self.conns.get_mut(id.slot as usize).and_then(Option::as_deref_mut) else { return };
        let len = conn.unstage() as u64;
        stream.at = Position::new(stream.at.get() - len);
        self.stats.sent_from_memory -= len;
        self.stats.sent_by_reference -= if by_reference { len } else { 0 };
    }

    /// The socket of a connection takes bytes again.
    pub(super) fn handle_writable(&mut self, id: ConnId) {
        let Some(conn) = self.conn_mut(id) else { return };
        (conn.sending, conn.recalled) = (false, false);
        self.queue_conn(id);
    }
}
