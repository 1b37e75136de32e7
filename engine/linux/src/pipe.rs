//! Pipes that carry file bytes to a socket without passing through user memory.
//!
//! A driver keeps a [`PipePool`]. A pipe is lent to one connection for one [`Fill`](rohrpost_engine_core::ops::Fill):
//! filled from the file by a splice that may wait for the disk, then drained into the socket by splices that never
//! wait. Owns the pipes' descriptors. Always holds: a pipe in the pool is empty, so no byte of one answer can reach
//! another connection; one that cannot be emptied is closed. Lengths are bytes. Decides nothing about who gets one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::platform::DIRECT_IO_ALIGN;
use rohrpost_engine_core::types::Position;
use rustix::fs::OFlags;
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use crate::file::{LinuxFile, errno_of};

/// Most pipes of one shard. A process without privileges gets 64 of 1 MiB for all its shards (`pipe-user-pages-soft`).
pub(crate) const PIPES_MAX: usize = 32;

/// Bytes of one fill: what a range of 1 MiB takes.
pub(crate) const PIPE_LEN: usize = 1 << 20;

/// Lengths to ask for, in this order. The first holds a range of 1 MiB that starts inside a block; only
/// privileged processes get it (`pipe-max-size`).
pub(crate) const PIPE_LENS: [usize; 2] = [2 * PIPE_LEN, PIPE_LEN];

/// What a pipe has without asking. Less is what the kernel gives to a user who has too many: of no use.
const PIPE_LEN_MIN: usize = 64 << 10;

const PAGE_LEN: usize = DIRECT_IO_ALIGN as usize;

/// An empty or filling pipe; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Pipe(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    len: usize,
}

impl Pipe {
    fn new() -> Result<Self, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(errno_of)?;
        // Refused, it keeps the length it was made with.
        let _ = PIPE_LENS.iter().find(|len| fcntl_setpipe_size(&write, **len).is_ok());
        let len = fcntl_getpipe_size(&write).map_err(errno_of)?;
        if len < PIPE_LEN_MIN {
            return Err(Errno::PERM);
        }
        Ok(Self(Arc::new(Ends { read, write, len })))
    }

    /// Where a fill writes to.
    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.0.write.as_fd()
    }

    /// Bytes it holds, if they start on a page.
    pub(crate) fn len(&self) -> usize {
        self.0.len
    }
}

/// What a fill reads for a range: the range itself through the page cache, whole blocks past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Start in the file.
    pub(crate) position: u64,
    /// Bytes to read.
    pub(crate) len: usize,
    /// Bytes before the range.
    head: usize,
    /// Bytes of the range.
    wanted: usize,
}

impl Span {
    /// For `len` bytes from `position`, as far as a pipe of `pipe_len` bytes has room.
    pub(crate) fn new(position: Position, len: usize, pipe_len: usize, cached: bool) -> Self {
        let start = position.get();
        if cached {
            return Self { position: start, len: len.min(pipe_len), head: 0, wanted: len };
        }
        let from = start - start % DIRECT_IO_ALIGN;
        let head = (start - from) as usize;
        let span = head.saturating_add(len).min(pipe_len).next_multiple_of(PAGE_LEN).min(pipe_len);
        Self { position: from, len: span, head, wanted: len }
    }
}

/// Fills a pipe, waiting for the disk. For threads that may.
pub(crate) fn fill_now(file: &LinuxFile, pipe: &Pipe, span: Span, cached: bool) -> Result<usize, Errno> {
    let source = if cached { file.buffered_fd()? } else { file.as_fd() };
    let filled = retry_on_intr(|| {
        let mut position = span.position;
        splice(source, Some(&mut position), pipe.write_end(), None, span.len, SpliceFlags::NONBLOCK)
    });
    filled.map_err(errno_of)
}

/// A pipe with bytes for a socket in front, and perhaps the rest of a block behind them.
#[derive(Debug)]
pub(crate) struct Loaded {
    pipe: Pipe,
    /// For the socket.
    len: usize,
    /// Not for the socket.
    excess: usize,
}

impl Loaded {
    /// Gives the socket as much as it takes now of the next `len` bytes. `EAGAIN`: nothing.
    pub(crate) fn drain(&mut self, socket: impl AsFd, len: usize) -> Result<usize, Errno> {
        let len = len.min(self.len);
        let taken = splice(&self.pipe.0.read, None, socket, None, len, SpliceFlags::NONBLOCK);
        let taken = taken.map_err(errno_of)?;
        self.len -= taken;
        Ok(taken)
    }

    /// Bytes that the socket has not taken yet.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// The pipes of one driver; see the module.
#[derive(Debug)]
pub(crate) struct PipePool {
    spare: Vec<Pipe>,
    /// Pipes that exist, in the pool or lent.
    count: usize,
    count_max: usize,
    /// Where bytes go that nobody wants.
    sink: Option<OwnedFd>,
    /// System calls made for emptying pipes.
    pub(crate) calls: u64,
}

impl PipePool {
    /// A pool of at most `count_max` pipes, none of them made yet.
    pub(crate) fn new(count_max: usize) -> Self {
        Self { spare: Vec::with_capacity(count_max), count: 0, count_max, sink: None, calls: 0 }
    }

    /// Bytes of memory that a pool of `count_max` pipes takes itself.
    pub(crate) const fn memory_len(count_max: usize) -> usize {
        table_len::<Pipe>(count_max)
    }

    /// An empty pipe.
    ///
    /// # Errors
    /// `EAGAIN` when all are lent; `EPERM` when the user has so many that the kernel grants a few pages
    /// only; otherwise the system's, mostly `EMFILE`.
    pub(crate) fn take(&mut self) -> Result<Pipe, Errno> {
        if let Some(pipe) = self.spare.pop() {
            return Ok(pipe);
        }
        if self.count == self.count_max {
            return Err(Errno::AGAIN);
        }
        if self.sink.is_none() {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let sink = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty());
            self.sink = Some(sink.map_err(errno_of)?);
        }
        let pipe = Pipe::new()?;
        self.count += 1;
        Ok(pipe)
    }

    /// A filled pipe without what lies before the range, and how much of the range it holds. `None`: none
    /// of it, and the pipe is back in the pool.
    pub(crate) fn load(
        &mut self,
        pipe: Pipe,
        span: Span,
        filled: Result<usize, Errno>,
    ) -> Result<Option<Loaded>, Errno> {
        let filled = match filled {
            Ok(filled) if filled > span.head => filled,
            Ok(filled) => {
                self.give_back(pipe, filled);
                return Ok(None);
            }
            Err(errno) => {
                self.give_back(pipe, 0);
                return Err(errno);
            }
        };
        if let Err(errno) = self.discard(&pipe, span.head) {
            self.close(pipe);
            return Err(errno);
        }
        let len = (filled - span.head).min(span.wanted);
        Ok(Some(Loaded { pipe, len, excess: filled - span.head - len }))
    }

    /// Takes a pipe back, whatever is still in it.
    pub(crate) fn unload(&mut self, loaded: Loaded) {
        self.give_back(loaded.pipe, loaded.len + loaded.excess);
    }

    /// Takes a pipe back that holds `left` bytes.
    pub(crate) fn give_back(&mut self, pipe: Pipe, left: usize) {
        if self.discard(&pipe, left).is_ok() {
            self.spare.push(pipe);
        } else {
            self.close(pipe);
        }
    }

    fn close(&mut self, pipe: Pipe) {
        self.count -= 1;
        drop(pipe);
    }

    fn discard(&mut self, pipe: &Pipe, len: usize) -> Result<(), Errno> {
        let mut left = len;
        while left > 0 {
            let sink = self.sink.as_ref().ok_or(Errno::IO)?;
            self.calls += 1;
            let gone = retry_on_intr(|| splice(&pipe.0.read, None, sink, None, left, SpliceFlags::NONBLOCK));
            match gone.map_err(errno_of)? {
                0 => return Err(Errno::IO),
                gone => left -= gone,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::testing::{pattern, patterned_file};

    fn read_out(pool: &mut PipePool, mut loaded: Loaded) -> Vec<u8> {
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut bytes = vec![0; loaded.len];
        let mut done = 0;
        while loaded.len() > 0 {
            let taken = loaded.drain(&near, 50_000).unwrap();
            far.read_exact(&mut bytes[done..done + taken]).unwrap();
            done += taken;
        }
        pool.unload(loaded);
        bytes
    }

    /// Every edge inside and on block boundaries, past and through the page cache: exactly the range comes
    /// out, or its beginning as far as the pipe or the file goes, and the same pipe serves the next range.
    #[test]
    fn exactly_the_range_comes_out() {
        const LEN: usize = (3 << 20) + 1234;
        let dir = tempfile::tempdir().unwrap();
        let (_, file) = patterned_file(dir.path(), LEN, 3);
        let mut pool = PipePool::new(1);
        for cached in [false, true] {
            for start in [0, 1, 511, 4095, 4096, 70_001, LEN - 5000, LEN - 1234, LEN - 1, LEN, LEN + 9000] {
                for len in [1, 100, 4095, 4096, 4097, 65_536, 1 << 20, 4 << 20] {
                    let pipe = pool.take().unwrap();
                    let span = Span::new(Position::new(start as u64), len, pipe.len(), cached);
                    let filled = fill_now(&file, &pipe, span, cached);
                    let there = LEN.saturating_sub(start).min(len);
                    match pool.load(pipe, span, filled).unwrap() {
                        None => assert_eq!(there, 0, "{start} {len} {cached}"),
                        Some(loaded) => {
                            let bytes = read_out(&mut pool, loaded);
                            assert!(!bytes.is_empty() && bytes.len() <= there, "{start} {len} {cached}");
                            assert!(bytes.len() == there || span.len > PIPE_LEN_MIN / 2);
                            let wrong = (0..bytes.len()).find(|at| bytes[*at] != pattern(start + at, 3));
                            assert_eq!(wrong, None, "{start} {len} {cached}");
                        }
                    }
                    assert_eq!((pool.count, pool.spare.len()), (1, 1));
                }
            }
        }
    }

    /// A pipe that comes back with bytes in it is empty before the next one gets it, and the pool makes no
    /// more pipes than it may.
    #[test]
    fn nothing_is_left_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (_, file) = patterned_file(dir.path(), 1 << 20, 4);
        let mut pool = PipePool::new(2);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!(pool.take().unwrap_err(), Errno::AGAIN);
        for pipe in [first, second] {
            let span = Span::new(Position::new(700), 100_000, pipe.len(), false);
            let filled = fill_now(&file, &pipe, span, false);
            let loaded = pool.load(pipe, span, filled).unwrap().unwrap();
            assert!(loaded.excess > 0);
            pool.unload(loaded);
        }
        for _ in 0..2 {
            let pipe = pool.take().unwrap();
            let empty = rustix::io::read(&pipe.0.read, &mut [0; 1]);
            assert_eq!(empty, Err(rustix::io::Errno::AGAIN));
        }
    }

    /// A fill that fails leaves an empty pipe and its error.
    #[test]
    fn a_failed_fill_is_an_error_and_costs_no_pipe() {
        let mut pool = PipePool::new(1);
        let pipe = pool.take().unwrap();
        let span = Span::new(Position::new(0), 4096, pipe.len(), false);
        assert_eq!(pool.load(pipe, span, Err(Errno::INVAL)).unwrap_err(), Errno::INVAL);
        assert!(pool.take().is_ok());
    }
}
