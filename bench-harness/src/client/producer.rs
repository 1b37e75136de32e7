//! The producer as a client: batches over one connection, closed loop, acknowledged by the server when they are
//! durable. It holds itself to the same two limits as a producer inside the server.

use std::collections::VecDeque;

use crate::client::ClientConfig;
use crate::client::conn::{Connection, Role};
use crate::error::Result;
use crate::record::WindowRecorder;
use crate::server::append_log::Batches;
use crate::sys;
use crate::wire::{Opcode, Request};

/// Sends batches; knows which are under way.
pub(super) struct SocketProducer {
    /// Number of its connection.
    conn: usize,
    batches: Batches,
    in_flight_max: usize,
    ahead_len_max: u64,
    sent_len: u64,
    /// Lengths of the batches under way, oldest first.
    lens: VecDeque<u64>,
    /// Acknowledgements in the window.
    pub(super) acks: WindowRecorder,
}

impl SocketProducer {
    /// The producer on connection `conn`, if the workload has one.
    pub(super) fn of(config: &ClientConfig, conn: usize) -> Option<Self> {
        let append = config.workload.append.as_ref().filter(|append| append.socket)?;
        Some(Self {
            conn,
            batches: Batches::new(1, append.batch_len),
            in_flight_max: append.in_flight,
            ahead_len_max: if append.ahead_len_max == 0 { u64::MAX } else { append.ahead_len_max },
            sent_len: 0,
            lens: VecDeque::with_capacity(append.in_flight),
            acks: WindowRecorder::new(0),
        })
    }

    /// Sends what the limits allow.
    pub(super) fn produce(&mut self, connections: &mut [Connection]) -> Result<()> {
        let readers = connections.iter().filter(|connection| connection.role == Role::Tail);
        let slowest = readers.map(|connection| connection.walker.whole_len).min().unwrap_or(u64::MAX);
        let connection = &mut connections[self.conn];
        while self.lens.len() < self.in_flight_max
            && self.sent_len < slowest.saturating_add(self.ahead_len_max)
        {
            let batch = self.batches.next_batch();
            let request = Request {
                opcode: Opcode::Append,
                body_len: batch.len() as u32,
                ..Request::fetch(connection.next_id, 0, 0)
            };
            self.lens.push_back(batch.len() as u64);
            self.sent_len += batch.len() as u64;
            connection.request_with(request, batch, sys::now_ns())?;
        }
        connection.flush()
    }

    /// So many of the oldest batches are durable.
    pub(super) fn acked(&mut self, count: u32, is_in_window: bool, now_ns: u64) {
        let len = self.lens.drain(..(count as usize).min(self.lens.len())).sum();
        if is_in_window {
            self.acks.bytes(len, 0, now_ns);
        }
    }
}
