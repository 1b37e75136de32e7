//! Calls made on a socket directly, beside the ring. None of them waits.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use arrayvec::ArrayVec;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{SEND_PARTS_MAX, SendFile, SendPart};
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::UringPlatform;
use crate::file::errno_of;

/// As many of the file's bytes as the socket takes at this moment.
pub(super) fn send_from_file(
    socket: Option<&OwnedFd>,
    file: &SendFile<UringPlatform>,
) -> Result<usize, Errno> {
    let Some(socket) = socket else { return Err(Errno::CONNRESET) };
    let source = file.file.buffered_fd()?;
    let mut position = file.position.get();
    let sent = rustix::fs::sendfile(socket, source, Some(&mut position), file.len);
    sent.map_err(errno_of)
}

/// As many bytes of these parts, the first `skip` left out, as the socket takes at this moment.
pub(super) fn send_now(
    socket: Option<&OwnedFd>,
    parts: &[SendPart<UringPlatform>],
    skip: usize,
    more: bool,
) -> Result<usize, Errno> {
    let Some(socket) = socket else { return Err(Errno::CONNRESET) };
    let mut pieces: ArrayVec<IoSlice<'_>, SEND_PARTS_MAX> =
        parts.iter().map(|part| IoSlice::new(part.as_ref())).collect();
    if let Some(first) = pieces.first_mut() {
        first.advance(skip);
    }
    let more = if more { SendFlags::MORE } else { SendFlags::empty() };
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | more;
    let sent = rustix::net::sendmsg(socket, &pieces, &mut SendAncillaryBuffer::default(), flags);
    sent.map_err(errno_of)
}

/// What the socket has, without waiting.
pub(super) fn receive_now(fd: BorrowedFd<'_>, start: NonNull<u8>, len: usize) -> Result<usize, Errno> {
    // SAFETY: [U25] the pool lends the buffer for the length of this call.
    let received = unsafe { libc::recv(fd.as_raw_fd(), start.as_ptr().cast(), len, libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| crate::file::errno_of_io(&std::io::Error::last_os_error()))
}
