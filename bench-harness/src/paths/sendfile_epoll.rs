//! `sendfile_epoll`: header with MSG_MORE, then non-blocking sendfile from the page cache. What Kafka does,
//! without Kafka's JVM. On a resident range it is the best there is for large bodies; on a cold one sendfile
//! blocks in spite of the socket's flag, and every connection of this thread with it.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::error::{BenchError, Result};
use crate::server::epoll::{Delivery, EpollServer, Progress, Transfer, send_header};
use crate::server::source::Source;
use crate::server::{ServerContext, Stats};

pub(super) struct Sendfile;

impl<L: Source> Delivery<L> for Sendfile {
    fn advance(
        &mut self,
        socket: BorrowedFd<'_>,
        transfer: &mut Transfer,
        log: &L,
        stats: &Stats,
    ) -> io::Result<Progress> {
        if !send_header(socket, transfer, SendFlags::MORE, stats)? {
            return Ok(Progress::Blocked);
        }
        send_file_rest(socket, transfer, log, stats)
    }
}

/// Sends the rest of the body from the page cache, as far as the socket takes.
///
/// # Errors
/// The socket's or the file's; `UnexpectedEof` if the file became shorter.
pub(super) fn send_file_rest(
    socket: BorrowedFd<'_>,
    transfer: &mut Transfer,
    log: &impl Source,
    stats: &Stats,
) -> io::Result<Progress> {
    while !transfer.is_done() {
        let from = transfer.body_sent();
        let mut position = transfer.body.position + from as u64;
        stats.entered(1);
        let file = log.file(transfer.body.segment);
        match rustix::fs::sendfile(socket, file, Some(&mut position), transfer.body.len - from) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => transfer.sent += n,
            Err(Errno::AGAIN) => return Ok(Progress::Blocked),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Progress::Done)
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    let log = context.take_log()?;
    let listener = context.listener.try_clone().map_err(BenchError::system("clone a socket"))?;
    let server = EpollServer::new(listener, log, Sendfile, context.stats.clone())?;
    context.ready("")?;
    server.run()
}
