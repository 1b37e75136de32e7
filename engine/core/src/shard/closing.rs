//! How connections end: at once, when they stall while memory is short, and for good.

use crate::limits::STALL_MS_MAX;
use crate::ops::{ConnId, NetOp, Now, Ops};
use crate::platform::Platform;
use crate::service::Service;
use crate::shard::Core;
use crate::shard::conn::Conn;

/// Stalled connections closed in one turn: their memory may be enough.
const CLOSED_PER_TURN: usize = 8;

impl<P: Platform, C> Core<P, C> {
    /// Memory is short: closes some of the connections whose peers have taken nothing for long of what holds memory.
    pub(super) fn close_stalled(&mut self, now: Now, ops: &mut Ops<P>) {
        let stalled = |conn: &Conn<P, C>| {
            let until = conn.sending_since.plus_millis(STALL_MS_MAX);
            (conn.is_stalled() && conn.holds_memory && now.mono >= until).then_some(conn.id)
        };
        for _ in 0..CLOSED_PER_TURN {
            let Some(id) = self.conns.iter().flatten().find_map(|conn| stalled(conn)) else { return };
            self.stats.connections_stalled += 1;
            self.close(id, ops);
        }
    }

    /// Closes a connection at once; what it had under way ends unheard.
    pub(super) fn close(&mut self, id: ConnId, ops: &mut Ops<P>) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.closed = true;
        conn.received.clear();
        let mut responses = std::mem::take(&mut conn.responses);
        for response in responses.drain(..) {
            if let Some(fetch) = response.fetch_ready().or(response.fetch) {
                self.fetches.end(fetch);
            }
        }
        ops.net.push(NetOp::Close(id));
    }

    pub(super) fn handle_closed<S: Service<Connection = C>>(&mut self, id: ConnId, service: &mut S) {
        let Some(slot) = self.conns.get_mut(id.slot as usize) else { return };
        if slot.as_ref().is_some_and(|conn| conn.id == id) {
            *slot = None;
            service.handle_closed(id);
        }
    }
}
