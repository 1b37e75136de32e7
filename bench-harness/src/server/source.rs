//! The log as the epoll loop sees it: a finished corpus or one that grows.

use std::io;
use std::os::fd::BorrowedFd;

use crate::corpus::{BodyRange, ResolveError, ServedLog};
use crate::error::Result;
use crate::wire::Request;

/// Where fetches are answered from.
pub trait Source {
    /// Partitions there are, numbered from 0.
    fn partition_count(&self) -> u32 {
        1
    }

    /// The body of a fetch from a partition that exists; empty at the high watermark.
    ///
    /// # Errors
    /// See [`ResolveError`].
    fn resolve(&self, partition: u32, offset: i64, len_max: usize) -> Result<BodyRange, ResolveError>;

    /// First offset that may not be read yet; -1 for a partition that does not exist.
    fn high_watermark(&self, partition: u32) -> i64;

    /// A segment's file, for sending from the page cache.
    fn file(&self, segment: usize) -> BorrowedFd<'_>;

    /// A fetch has arrived: everything before its offset has been read by this connection.
    fn fetched(&mut self, _conn: usize, _request: &Request) {}

    /// Largest append it takes over a connection, bytes; 0 if it takes none.
    fn append_len_max(&self) -> usize {
        0
    }

    /// Appends one batch. Returns its last offset: it is durable when the high watermark lies beyond it.
    ///
    /// # Errors
    /// The log's; `Unsupported` if it takes none.
    fn append(&mut self, _partition: u32, _batch: &mut [u8]) -> io::Result<i64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The connection is gone.
    fn closed(&mut self, _conn: usize) {}

    /// A descriptor that becomes readable when `turn` has something to do.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// When `turn` wants to be called even if nothing happens; `u64::MAX` if it does not.
    fn next_due_ns(&self) -> u64 {
        u64::MAX
    }

    /// Called after every batch of events. Returns whether the high watermark has moved.
    ///
    /// # Errors
    /// Whatever ends the server.
    fn turn(&mut self) -> Result<bool> {
        Ok(false)
    }
}

impl Source for ServedLog {
    fn resolve(&self, _partition: u32, offset: i64, len_max: usize) -> Result<BodyRange, ResolveError> {
        ServedLog::resolve(self, offset, len_max)
    }

    fn high_watermark(&self, _partition: u32) -> i64 {
        ServedLog::high_watermark(self)
    }

    fn file(&self, segment: usize) -> BorrowedFd<'_> {
        ServedLog::file(self, segment)
    }
}
