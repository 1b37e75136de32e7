//! `send_epoll`: header and body with one sendmsg from user memory that holds the hot end of the log, as a
//! server with its own cache would. Two calls per response. What leaving sendfile gains, without a ring.

use std::io;
use std::os::fd::BorrowedFd;

use rohrpost_engine_linux::memory::AlignedBuffer;

use crate::corpus::ServedLog;
use crate::error::{BenchError, Result};
use crate::paths::pool::aligned_buffer;
use crate::server::epoll::{Delivery, EpollServer, Progress, Transfer, send_from_memory};
use crate::server::{ServerContext, Stats};

/// One segment's part of the memory.
struct Piece {
    segment: usize,
    position: u64,
    start: usize,
    len: usize,
}

struct SendEpoll {
    memory: AlignedBuffer,
    pieces: Vec<Piece>,
}

impl SendEpoll {
    fn load(log: &ServedLog, hot_len: u64) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut total = 0usize;
        for segment in (0..log.segment_count()).rev() {
            let want = (hot_len - total as u64).min(log.segment_len(segment));
            let position = log.segment_len(segment) - want;
            pieces.push(Piece { segment, position, start: total, len: want as usize });
            total += want as usize;
            if total as u64 == hot_len {
                break;
            }
        }
        let mut memory = aligned_buffer(total)?;
        for piece in &pieces {
            let into = &mut memory[piece.start..piece.start + piece.len];
            log.read_exact(into, piece.segment, piece.position)
                .map_err(BenchError::system("read the hot end of the log"))?;
        }
        Ok(Self { memory, pieces })
    }

    fn start_of(&self, transfer: &Transfer) -> Option<usize> {
        let body = &transfer.body;
        let piece = self.pieces.iter().find(|piece| piece.segment == body.segment)?;
        let at = body.position.checked_sub(piece.position)? as usize;
        (at + body.len <= piece.len).then_some(piece.start + at)
    }
}

impl Delivery for SendEpoll {
    fn begin(&mut self, transfer: &Transfer, _log: &ServedLog) -> io::Result<()> {
        let held = self.start_of(transfer).is_some();
        if held { Ok(()) } else { Err(io::Error::other("range is not in memory")) }
    }

    fn advance(
        &mut self,
        socket: BorrowedFd<'_>,
        transfer: &mut Transfer,
        _log: &ServedLog,
        stats: &Stats,
    ) -> io::Result<Progress> {
        let Some(start) = self.start_of(transfer) else {
            return Err(io::Error::other("range is not in memory"));
        };
        let body = &self.memory[start..start + transfer.body.len];
        send_from_memory(socket, transfer, body, 0, stats)
    }
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    let log = context.take_log()?;
    let delivery = SendEpoll::load(&log, context.config.hot_len)?;
    let listener = context.listener.try_clone().map_err(BenchError::system("clone a socket"))?;
    let server = EpollServer::new(listener, log, delivery, context.stats.clone())?;
    context.ready(&format!("{} MiB of the log in memory", context.config.hot_len >> 20))?;
    server.run()
}
