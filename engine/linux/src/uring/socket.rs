//! Calls made on a socket directly, beside the ring. None of them waits.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::SendFile;

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

/// What the socket has, without waiting.
pub(super) fn receive_now(fd: BorrowedFd<'_>, start: NonNull<u8>, len: usize) -> Result<usize, Errno> {
    // SAFETY: [U25] the pool lends the buffer for the length of this call.
    let received = unsafe { libc::recv(fd.as_raw_fd(), start.as_ptr().cast(), len, libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| crate::file::errno_of_io(&std::io::Error::last_os_error()))
}
