//! Acknowledgements of a connection's appends, collected so that those of one group leave with one send.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::server::Stats;
use crate::wire::Response;

/// Response headers that are not in the socket yet.
#[derive(Debug, Default)]
pub(super) struct Acks {
    bytes: Vec<u8>,
    sent: usize,
}

impl Acks {
    pub(super) fn push(&mut self, response: &Response) {
        self.bytes.extend_from_slice(&response.encode());
    }

    /// Returns whether all are in the socket.
    ///
    /// # Errors
    /// The socket's, other than being full.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>, stats: &Stats) -> io::Result<bool> {
        while self.sent < self.bytes.len() {
            stats.entered(1);
            match send(socket, &self.bytes[self.sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(true)
    }
}
