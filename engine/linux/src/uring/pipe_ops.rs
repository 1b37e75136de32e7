//! Pipes of connections: filled from files on the ring, drained into sockets beside it.
//!
//! The kernel runs every ring splice on a worker thread, which may wait for the disk; the shard never does. The
//! second hop stays off the ring: there, slow readers would hold the workers. Owns a fill's file and pipe until its
//! completion. Always holds: a fill counts among its connection's requests, so that `Filled` comes before `Closed`.

use std::os::fd::{AsFd, AsRawFd};

use io_uring::{opcode, squeue, types};
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{ConnId, Event, Fill, Token};

use super::UringPlatform;
use super::features::Feature;
use super::net_ops::{ConnTable, Events, Outcome};
use super::ring::{Cqe, Ring};
use super::slab::{Key, Kind, Slab};
use crate::file::LinuxFile;
use crate::pipe::{PIPES_MAX, Pipe, PipePool, Span};

/// For file to pipe: "never wait for room in the pipe". The wait for the disk is not affected.
const NONBLOCK: u32 = libc::SPLICE_F_NONBLOCK;

/// No offset: pipes have none.
const NO_OFFSET: i64 = -1;

struct Filling {
    token: Token,
    conn: ConnId,
    asked: usize,
    _file: LinuxFile,
    pipe: Pipe,
    span: Span,
}

#[derive(Default)]
struct FillSlot(Option<Filling>);

/// The pipes of a driver, and the fills under way.
pub(super) struct PipeTable {
    pub(super) pool: PipePool,
    fills: Slab<FillSlot>,
}

impl PipeTable {
    /// No pipes yet.
    pub(super) fn new() -> Self {
        Self { pool: PipePool::new(PIPES_MAX), fills: Slab::with_capacity(Kind::Fill, PIPES_MAX) }
    }

    /// Bytes of memory that it takes itself.
    pub(super) const fn memory_len() -> usize {
        PipePool::memory_len(PIPES_MAX) + Slab::<FillSlot>::memory_len(PIPES_MAX)
    }
}

impl ConnTable {
    /// Starts a fill; one that cannot be started is answered at once.
    pub(super) fn push_fill(
        &mut self,
        ring: &mut Ring,
        fill: Fill<UringPlatform>,
        events: &mut Events,
    ) -> Outcome {
        let (token, asked) = (fill.token, fill.len);
        match self.fill_entry(fill) {
            // SAFETY: [U20] the slot owns the file and the pipe until the only completion of the request.
            Ok(entry) => unsafe { ring.push(&entry) },
            Err(errno) => {
                events.push(Event::Filled { token, asked, result: Err(errno) });
                Ok(())
            }
        }
    }

    fn fill_entry(&mut self, fill: Fill<UringPlatform>) -> Result<squeue::Entry, Errno> {
        if !self.features.has(Feature::Splice) {
            return Err(Errno::OPNOTSUPP);
        }
        let Fill { token, conn: id, file, position, len: asked, cached } = fill;
        let conn = self.find(id).filter(|conn| !conn.closing).ok_or(Errno::CONNRESET)?;
        assert!(conn.pipe.is_none(), "a pipe is filled before it is drained: {id:?}");
        let source = if cached { file.buffered_fd()? } else { file.as_fd() }.as_raw_fd();
        let pipe = self.pipes.pool.take()?;
        let span = Span::new(position, asked, pipe.len(), cached);
        let target = types::Fd(pipe.write_end().as_raw_fd());
        let (key, slot) = self.pipes.fills.take();
        slot.0 = Some(Filling { token, conn: id, asked, _file: file, pipe, span });
        self.conns[id.slot as usize].requests += 1;
        self.requests += 1;
        let position = span.position as i64;
        let request = opcode::Splice::new(types::Fd(source), position, target, NO_OFFSET, span.len as u32);
        Ok(request.flags(NONBLOCK).build().user_data(key.encode()))
    }

    /// Takes the completion of a fill.
    pub(super) fn complete_fill(&mut self, key: Key, cqe: Cqe, events: &mut Events) {
        let Some(filling) = self.pipes.fills.release(key).and_then(|slot| slot.0.take()) else {
            debug_assert!(false, "a completion of no fill: {key:?}");
            return;
        };
        let Filling { token, conn: id, asked, pipe, span, .. } = filling;
        let conn = &mut self.conns[id.slot as usize];
        debug_assert_eq!(conn.id, id, "a fill keeps its connection's slot");
        conn.requests -= 1;
        self.requests -= 1;
        let result = match self.pipes.pool.load(pipe, span, cqe.outcome()) {
            Ok(Some(loaded)) if conn.closing => {
                self.pipes.pool.unload(loaded);
                Err(Errno::CANCELED)
            }
            Ok(None) => Ok(0),
            Ok(Some(loaded)) => Ok(conn.pipe.insert(loaded).len()),
            Err(errno) => Err(errno),
        };
        events.push(Event::Filled { token, asked, result });
        self.close_if_quiet(id.slot, events);
    }
}
