//! The file to copy for a new delivery path: reads the range with pread and sends header and body.
//!
//! A path owns how bytes get from the log to a socket and nothing else: the epoll loop in
//! [`crate::server::epoll`] accepts, parses, keeps order and closes. `advance` moves what it can and says
//! whether it is done, the socket is full, or the bytes are still on their way. Then add a row in `mod.rs`.

use std::io;
use std::os::fd::BorrowedFd;

use crate::corpus::ServedLog;
use crate::error::Result;
use crate::server::epoll::{Delivery, EpollServer, Progress, Transfer, send_from_memory};
use crate::server::{ServerContext, Stats};

struct Skeleton {
    buffer: Vec<u8>,
}

impl Delivery for Skeleton {
    fn advance(
        &mut self,
        socket: BorrowedFd<'_>,
        transfer: &mut Transfer,
        log: &ServedLog,
        stats: &Stats,
    ) -> io::Result<Progress> {
        let from = transfer.body_sent();
        self.buffer.resize(transfer.body.len - from, 0);
        stats.entered(1);
        log.read_exact(&mut self.buffer, transfer.body.segment, transfer.body.position + from as u64)?;
        send_from_memory(socket, transfer, &self.buffer, from, stats)
    }
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    let log = context.take_log()?;
    let listener =
        context.listener.try_clone().map_err(crate::error::BenchError::system("clone a socket"))?;
    let server = EpollServer::new(listener, log, Skeleton { buffer: Vec::new() }, context.stats.clone())?;
    context.ready("")?;
    server.run()
}
