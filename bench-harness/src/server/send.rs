//! Sends from memory: a response's header, or header and body with one call.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::server::Stats;
use crate::server::epoll::{Progress, Transfer};
use crate::wire::HEADER_LEN;

/// Sends what is left of the header. Returns whether all of it is in the socket.
///
/// # Errors
/// The socket's, other than being full.
pub fn send_header(
    socket: BorrowedFd<'_>,
    transfer: &mut Transfer,
    flags: SendFlags,
    stats: &Stats,
) -> io::Result<bool> {
    while transfer.sent < HEADER_LEN {
        stats.entered(1);
        let flags = flags | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(socket, &transfer.header[transfer.sent..], flags) {
            Ok(n) => transfer.sent += n,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Sends header and body from memory with one call, as far as the socket takes. `body` is the whole body
/// from `body_from` on.
///
/// # Errors
/// The socket's, other than being full.
pub fn send_from_memory(
    socket: BorrowedFd<'_>,
    transfer: &mut Transfer,
    body: &[u8],
    body_from: usize,
    stats: &Stats,
) -> io::Result<Progress> {
    use rustix::net::{SendAncillaryBuffer, sendmsg};
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let end = HEADER_LEN + body_from + body.len();
    while transfer.sent < end {
        let rest = &body[transfer.body_sent() - body_from..];
        stats.entered(1);
        let sent = if transfer.sent < HEADER_LEN {
            let parts = [io::IoSlice::new(&transfer.header[transfer.sent..]), io::IoSlice::new(rest)];
            sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags)
        } else {
            rustix::net::send(socket, rest, flags)
        };
        match sent {
            Ok(n) => transfer.sent += n,
            Err(Errno::AGAIN) => return Ok(Progress::Blocked),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if transfer.is_done() { Progress::Done } else { Progress::Waiting })
}
