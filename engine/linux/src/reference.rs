//! Sending memory by reference: `vmsplice` into a pipe, `splice` on into the socket.
//!
//! Owns one pipe per shard, used inline. The socket's queue then refers to the arena's pages until the peer has
//! read them, which nothing reports; so a page is marked as lent before, and replaced before it is used
//! again (see `arena/pages.rs`). Always holds: the pipe is empty between sends; bytes enter the socket in the
//! order of the parts; what is not lent is copied.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{SEND_PARTS_MAX, Send, SendPart};
use rohrpost_engine_core::platform::Platform;
use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use rustix::pipe::{IoSliceRaw, PipeFlags, SpliceFlags};

use crate::arena::LinuxLease;
use crate::file::errno_of;

/// Bytes given to the socket at a time. What it does not take was queued in vain, so not all at once.
const STEP_LEN: usize = 256 << 10;

/// Room in the pipe: a step that starts anywhere in a page, as the kernel rounds it.
pub(crate) const PIPE_LEN: usize = 2 * STEP_LEN;

/// See the module.
#[derive(Debug)]
pub(crate) struct Reference {
    read: OwnedFd,
    write: OwnedFd,
    null: OwnedFd,
    /// System calls made so far.
    pub(crate) call_count: u64,
    /// Bytes that sockets have taken by reference.
    pub(crate) lent_len: u64,
}

impl Reference {
    /// Makes the pipe. A shorter one than asked for works too, with more calls.
    ///
    /// # Errors
    /// The system's, mostly `EMFILE`.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (read, write) = rustix::pipe::pipe_with(flags).map_err(errno_of)?;
        // Refused beyond the user's share of pipe memory.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_LEN);
        let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { read, write, null: null.map_err(errno_of)?, call_count: 0, lent_len: 0 })
    }

    /// Gives a non-blocking socket as much of the parts as it takes; how much that was, in bytes.
    ///
    /// # Errors
    /// The system's, if nothing was taken: `EAGAIN` when the socket is full, else it is broken.
    pub(crate) fn send<P>(&mut self, socket: BorrowedFd<'_>, send: &Send<P>) -> Result<usize, Errno>
    where
        P: Platform<Lease = LinuxLease>,
    {
        let mut taken = 0;
        let mut copies: ArrayVec<IoSlice<'_>, SEND_PARTS_MAX> = ArrayVec::new();
        for (at, part) in send.parts.iter().enumerate() {
            let bytes = &part.as_ref()[if at == 0 { send.skip } else { 0 }..];
            let more = send.more || at + 1 < send.parts.len();
            let lent = match part {
                SendPart::Bytes(_) => false,
                SendPart::Lease(lease) => lease.lend(),
            };
            if !lent {
                copies.push(IoSlice::new(bytes));
                continue;
            }
            if !self.copy(socket, &mut copies, true, &mut taken)?
                || !self.refer(socket, bytes, more, &mut taken)?
            {
                return Ok(taken);
            }
        }
        self.copy(socket, &mut copies, send.more, &mut taken)?;
        Ok(taken)
    }

    /// Copies; whether all of it was taken. An error counts only if nothing was taken before.
    fn copy(
        &mut self,
        socket: BorrowedFd<'_>,
        copies: &mut ArrayVec<IoSlice<'_>, SEND_PARTS_MAX>,
        more: bool,
        taken: &mut usize,
    ) -> Result<bool, Errno> {
        let len: usize = copies.iter().map(|bytes| bytes.len()).sum();
        if len == 0 {
            return Ok(true);
        }
        let more = if more { SendFlags::MORE } else { SendFlags::empty() };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | more;
        self.call_count += 1;
        let sent = rustix::net::sendmsg(socket, copies, &mut SendAncillaryBuffer::default(), flags);
        copies.clear();
        count(sent, len, taken)
    }

    /// Lends; whether all of it was taken. An error counts only if nothing was taken before.
    fn refer(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        more: bool,
        taken: &mut usize,
    ) -> Result<bool, Errno> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = &rest[..rest.len().min(STEP_LEN)];
            self.call_count += 2;
            // SAFETY: [U5] the bytes lie in a page marked as lent, and are frozen: nobody writes them while
            // they are leased, and nobody gets their memory before the page has been replaced.
            let queued = unsafe {
                rustix::pipe::vmsplice(&self.write, &[IoSliceRaw::from_slice(step)], SpliceFlags::NONBLOCK)
            };
            let queued = match queued {
                Ok(queued) => queued,
                Err(errno) => return count(Err(errno), rest.len(), taken),
            };
            let more = if more || queued < rest.len() { SpliceFlags::MORE } else { SpliceFlags::empty() };
            let flags = SpliceFlags::NONBLOCK | more;
            let sent = rustix::pipe::splice(&self.read, None, socket, None, queued, flags);
            self.lent_len += *sent.as_ref().unwrap_or(&0) as u64;
            if sent != Ok(queued) {
                self.discard(queued - sent.unwrap_or(0))?;
            }
            if !count(sent, queued, taken)? {
                return Ok(false);
            }
            rest = &rest[queued..];
        }
        Ok(true)
    }

    /// Empties the pipe, which still holds `len` bytes.
    fn discard(&mut self, len: usize) -> Result<(), Errno> {
        let mut rest = len;
        while rest > 0 {
            self.call_count += 1;
            match rustix::pipe::splice(&self.read, None, self.null.as_fd(), None, rest, SpliceFlags::NONBLOCK)
            {
                Ok(gone) if gone > 0 => rest -= gone,
                // What is left must not reach the next connection.
                _ => {
                    *self = Self { call_count: self.call_count, lent_len: self.lent_len, ..Self::open()? };
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Adds what one call has sent; whether that was `len` bytes.
fn count(sent: rustix::io::Result<usize>, len: usize, taken: &mut usize) -> Result<bool, Errno> {
    match sent {
        Ok(sent) => {
            *taken += sent;
            Ok(sent == len)
        }
        Err(_) if *taken > 0 => Ok(false),
        Err(errno) => Err(errno_of(errno)),
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
