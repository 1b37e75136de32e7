//! The blocking pool: threads that do the data path's file operations for a driver without a ring.
//!
//! Reads and writes have threads of their own, so that a commit never queues behind cold reads.
//! Always holds: an operation's memory is released, or posted back, before its completion is seen.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use arrayvec::ArrayVec;
use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::ops::{DiskOp, Read, Token, WRITE_EXTENTS_MAX, Write};
use rohrpost_engine_core::platform::Chunk;
use rohrpost_engine_core::types::ByteCount;
use rustix::io::{ReadWriteFlags, retry_on_intr};

use crate::file::{LinuxFile, errno_of};
use crate::helper::LinuxPlatform;
use crate::inbox::{Mailbox, Message};
use crate::pipe::{Pipe, Span, fill_now};

/// Jobs of a lane before memory is allocated for more.
const JOBS_CAPACITY: usize = 64;

/// The threads of one driver. Dropping it finishes what was submitted and joins them.
pub(super) struct DiskPool<P: LinuxPlatform> {
    reads: Arc<Lane<P>>,
    writes: Arc<Lane<P>>,
    threads: Vec<JoinHandle<()>>,
}

struct Lane<P: LinuxPlatform> {
    queue: Mutex<LaneQueue<P>>,
    changed: Condvar,
}

/// What a thread does: an operation, or its own half of a fill.
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation per operation")]
enum Job<P: LinuxPlatform> {
    Op(DiskOp<P>),
    Fill(FillJob),
}

/// The part of a fill that may wait for the disk.
pub(super) struct FillJob {
    pub(super) token: Token,
    pub(super) asked: usize,
    pub(super) file: LinuxFile,
    pub(super) pipe: Pipe,
    pub(super) span: Span,
    pub(super) cached: bool,
}

struct LaneQueue<P: LinuxPlatform> {
    jobs: VecDeque<Job<P>>,
    ending: bool,
}

impl<P: LinuxPlatform> DiskPool<P> {
    /// Starts the threads, at least one of each kind.
    ///
    /// # Errors
    /// The system's, when it gives no more threads.
    pub(super) fn start(read_threads: usize, write_threads: usize, mailbox: &Mailbox<P>) -> io::Result<Self> {
        let mut pool = Self { reads: Lane::new(), writes: Lane::new(), threads: Vec::new() };
        for (name, count, lane) in
            [("rp-read", read_threads, pool.reads.clone()), ("rp-write", write_threads, pool.writes.clone())]
        {
            for index in 0..count.max(1) {
                let (lane, mailbox) = (Arc::clone(&lane), mailbox.clone());
                let thread = std::thread::Builder::new().name(format!("{name}-{index}"));
                pool.threads.push(thread.spawn(move || lane.serve(&mailbox))?);
            }
        }
        Ok(pool)
    }

    /// Bytes of memory that the queues of both lanes take.
    pub(super) const fn memory_len() -> usize {
        2 * table_len::<Job<P>>(JOBS_CAPACITY)
    }

    /// Queues an operation; its completion is posted.
    pub(super) fn submit(&self, op: DiskOp<P>) {
        let lane = if matches!(op, DiskOp::Read(_)) { &self.reads } else { &self.writes };
        lane.push(Job::Op(op));
    }

    /// Queues a fill among the reads. Its completion counts every byte read, wanted or not.
    pub(super) fn fill(&self, job: FillJob) {
        self.reads.push(Job::Fill(job));
    }
}

impl<P: LinuxPlatform> Drop for DiskPool<P> {
    fn drop(&mut self) {
        for lane in [&self.reads, &self.writes] {
            lane.lock().ending = true;
            lane.changed.notify_all();
        }
        for thread in self.threads.drain(..) {
            // Nothing in `serve` panics on the world's behalf; if it did, its operations are lost anyway.
            let _ = thread.join();
        }
    }
}

impl<P: LinuxPlatform> Lane<P> {
    fn new() -> Arc<Self> {
        let queue = LaneQueue { jobs: VecDeque::with_capacity(JOBS_CAPACITY), ending: false };
        Arc::new(Self { queue: Mutex::new(queue), changed: Condvar::new() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LaneQueue<P>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job<P>) {
        self.lock().jobs.push_back(job);
        self.changed.notify_one();
    }

    fn serve(&self, mailbox: &Mailbox<P>) {
        while let Some(job) = self.next() {
            mailbox.post(match job {
                Job::Op(op) => run(op),
                Job::Fill(job) => run_fill(&job),
            });
        }
    }

    fn next(&self) -> Option<Job<P>> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.ending {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn run<P: LinuxPlatform>(op: DiskOp<P>) -> Message<P> {
    match op {
        DiskOp::Write(write) => {
            let result = run_write(&write);
            Message::Written(write.token, result)
        }
        DiskOp::Read(mut read) => {
            let result = run_read(&mut read);
            Message::ReadDone(read.token, read.chunk, result)
        }
        DiskOp::Sync { token, file } => Message::Synced(token, sync(&file)),
        DiskOp::Fill(_) => unreachable!("the driver finds the pipe first"),
    }
}

fn run_fill<P: LinuxPlatform>(job: &FillJob) -> Message<P> {
    let filled = fill_now(&job.file, &job.pipe, job.span, job.cached);
    Message::Filled(job.token, job.asked, filled)
}

fn run_write<P: LinuxPlatform>(write: &Write<P>) -> Result<ByteCount, Errno> {
    let mut pieces: ArrayVec<IoSlice<'_>, { WRITE_EXTENTS_MAX + 1 }> =
        write.extents.iter().map(|lease| IoSlice::new(lease.as_ref())).collect();
    if let Some(bounce) = &write.bounce {
        pieces.push(IoSlice::new(bounce.bytes()));
    }
    debug_assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), write.len.get());
    let flags = if write.durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    let call = || rustix::io::pwritev2(&write.file, &pieces, write.position.get(), flags);
    retry_on_intr(call).map(ByteCount::of_usize).map_err(errno_of)
}

fn run_read<P: LinuxPlatform>(read: &mut Read<P>) -> Result<usize, Errno> {
    let from = read.from - read.chunk.frozen();
    let source = if read.cached { read.file.buffered_fd()? } else { read.file.as_fd() };
    let position = read.position.get();
    let space = &mut read.chunk.unfrozen_mut()[from..from + read.len];
    retry_on_intr(|| rustix::io::pread(source, &mut *space, position)).map_err(errno_of)
}

fn sync(file: &LinuxFile) -> Result<(), Errno> {
    // Never retried: a sync that failed has lost the data already.
    rustix::fs::fdatasync(file).map_err(errno_of)
}
