//! Fills and drains: a thread of the disk pool moves file bytes into a connection's pipe, the shard's thread moves
//! them on into the socket.
//!
//! Owns the pool of pipes and what is known of fills under way. Always holds: a connection that is closed while its
//! pipe is being filled keeps its slot until the fill has ended, so that `Filled` comes before `Closed`.

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, Fill, Token};

use super::connections::{Connection, Connections};
use super::disk_pool::{DiskPool, FillJob};
use super::{PollDriver, PollPlatform};
use crate::pipe::{PIPES_MAX, Pipe, PipePool, Span};

struct Filling {
    token: Token,
    conn: ConnId,
    pipe: Pipe,
    span: Span,
}

/// See the module.
pub(super) struct Pipes {
    pub(super) pool: PipePool,
    /// As many as there are pipes, at most: searched from the front.
    filling: Vec<Filling>,
}

impl Pipes {
    pub(super) fn new() -> Self {
        Self { pool: PipePool::new(PIPES_MAX), filling: Vec::with_capacity(PIPES_MAX) }
    }

    /// Starts a fill; one that cannot be started is answered at once.
    pub(super) fn start(
        &mut self,
        fill: Fill<PollPlatform>,
        connections: &mut Connections,
        threads: &DiskPool<PollPlatform>,
        events: &mut Vec<Event<PollPlatform>>,
    ) {
        let Fill { token, conn, file, position, len: asked, cached } = fill;
        let pipe = match connections.get_mut(conn) {
            Some(connection) => {
                assert!(connection.pipe.is_none(), "a pipe is filled before it is drained: {conn:?}");
                self.pool.take()
            }
            None => Err(Errno::CONNRESET),
        };
        match pipe {
            Ok(pipe) => {
                let span = Span::new(position, asked, pipe.len(), cached);
                self.filling.push(Filling { token, conn, pipe: pipe.clone(), span });
                threads.fill(FillJob { token, asked, file, pipe, span, cached });
            }
            Err(errno) => events.push(Event::Filled { token, asked, result: Err(errno) }),
        }
    }

    /// Whether a pipe is being filled for the connection.
    pub(super) fn is_filling(&self, conn: ConnId) -> bool {
        self.filling.iter().any(|filling| filling.conn == conn)
    }

    /// A thread has ended a fill, `result` being all that it read. Turns that into the answer, and names the
    /// connection, which is gone if nobody waits for the bytes any more.
    pub(super) fn finish(
        &mut self,
        token: Token,
        result: &mut Result<usize, Errno>,
        connections: &mut Connections,
    ) -> Option<ConnId> {
        let at = self.filling.iter().position(|filling| filling.token == token)?;
        let Filling { conn, pipe, span, .. } = self.filling.swap_remove(at);
        let loaded = self.pool.load(pipe, span, *result);
        *result = match (loaded, connections.get_mut(conn)) {
            (Ok(Some(loaded)), Some(connection)) => Ok(connection.pipe.insert(loaded).len()),
            (Ok(Some(loaded)), None) => {
                self.pool.unload(loaded);
                Err(Errno::CANCELED)
            }
            (Ok(None), _) => Ok(0),
            (Err(errno), _) => Err(errno),
        };
        Some(conn)
    }

    /// Gives the socket what it takes now of the connection's pipe.
    pub(super) fn drain(&mut self, connection: &mut Connection, len: usize) -> Result<usize, Errno> {
        let Some(loaded) = &mut connection.pipe else { return Ok(0) };
        let taken = loaded.drain(&connection.socket, len);
        if loaded.len() == 0
            && let Some(loaded) = connection.pipe.take()
        {
            self.pool.unload(loaded);
        }
        taken
    }
}

impl PollDriver {
    /// Completes the fills whose threads are done: from `first` on, the events are fresh from the inbox.
    pub(super) fn finish_fills(&mut self, first: usize, events: &mut Vec<Event<PollPlatform>>) {
        for at in first..events.len() {
            let Event::Filled { token, result, .. } = &mut events[at] else { continue };
            let conn = self.pipes.finish(*token, result, &mut self.connections);
            // Closed meanwhile: nothing else is to come.
            if let Some(id) = conn.filter(|id| self.connections.get_mut(*id).is_none()) {
                self.closed(id, events);
            }
        }
    }
}
