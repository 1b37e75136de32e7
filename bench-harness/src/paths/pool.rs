//! `sendfile_epoll_directpool`: a good epoll server. Resident ranges go by inline sendfile, the others are read
//! by a small pool of blocking O_DIRECT readers into huge pages, off the loop, and sent in order. Two threads
//! and 1 MiB chunks measured best. Whether a range is resident is asked of mincore: the cold reads leave the
//! page cache alone, so what it reports does not change under it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rohrpost_engine_linux::memory::{AlignedBuffer, HUGE_PAGE_LEN};
use rohrpost_engine_linux::residency::ResidencyMap;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::SendFlags;

use crate::corpus::ServedLog;
use crate::error::{BenchError, Result};
use crate::paths::sendfile_epoll::send_file_rest;
use crate::server::epoll::{Delivery, EpollServer, Progress, Transfer, send_from_memory, send_header};
use crate::server::{ServerContext, Stats};

/// Direct reads start and end on multiples of this.
const ALIGN: u64 = 4096;
/// Pieces of one transfer in flight at once.
const PIECES_AHEAD: usize = 2;
/// Buffers in all.
const BUFFER_COUNT_MAX: usize = 32;

/// Memory in huge pages of which `len` bytes or more are used, every page touched: a fresh page inside a window
/// would cost microseconds, and direct reads into small pages cost three times those into huge ones.
pub(super) fn aligned_buffer(len: usize) -> Result<AlignedBuffer> {
    let huge = len.next_multiple_of(HUGE_PAGE_LEN);
    let mut buffer = AlignedBuffer::new(huge).map_err(BenchError::system("allocate a buffer"))?;
    buffer.populate().map_err(BenchError::system("touch a buffer"))?;
    Ok(buffer)
}

struct Job {
    conn: usize,
    generation: u64,
    segment: usize,
    position: u64,
    len: usize,
    buffer: AlignedBuffer,
}

struct Finished {
    job: Job,
    result: io::Result<usize>,
}

#[derive(Default)]
struct Queues {
    jobs: VecDeque<Job>,
    finished: Vec<Finished>,
}

struct Shared {
    queues: Mutex<Queues>,
    work: Condvar,
    event: OwnedFd,
    files: Vec<OwnedFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_loop(&self) {
        // The counter cannot overflow: it is written at most once per drain.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn reader(&self) {
        loop {
            let mut queues = self.lock();
            let mut job = loop {
                match queues.jobs.pop_front() {
                    Some(job) => break job,
                    None => queues = self.work.wait(queues).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(queues);
            let into = &mut job.buffer[..job.len];
            let result = read_direct(self.files[job.segment].as_fd(), into, job.position);
            let mut queues = self.lock();
            let was_empty = queues.finished.is_empty();
            queues.finished.push(Finished { job, result });
            drop(queues);
            if was_empty {
                self.wake_loop();
            }
        }
    }
}

fn read_direct(file: BorrowedFd<'_>, into: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match rustix::io::pread(file, &mut into[filled..], position + filled as u64) {
            Ok(0) => break,
            // Off the end of the file, where a direct read may not go on.
            Ok(n) if !(n as u64).is_multiple_of(ALIGN) => return Ok(filled + n),
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

/// A piece of a cold body, in the order of the body.
struct Piece {
    /// Where in the body its useful bytes start and end.
    from: usize,
    end: usize,
    /// Bytes before them in the buffer, because the read is aligned.
    skip: usize,
    position: u64,
    buffer: Option<AlignedBuffer>,
}

#[derive(Default)]
struct ColdTransfer {
    generation: u64,
    cold: bool,
    requested: usize,
    pieces: VecDeque<Piece>,
    failed: bool,
}

struct Pool {
    chunk_len: usize,
    shared: Arc<Shared>,
    transfers: Vec<ColdTransfer>,
    free: Vec<AlignedBuffer>,
    made_count: usize,
    starved: Vec<usize>,
    finished: Vec<Finished>,
    residency: Vec<Option<ResidencyMap>>,
}

impl Pool {
    fn take_buffer(&mut self) -> Option<AlignedBuffer> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        if self.made_count == BUFFER_COUNT_MAX {
            return None;
        }
        self.made_count += 1;
        aligned_buffer(self.buffer_len()).ok()
    }

    /// A chunk and both its unaligned ends.
    fn buffer_len(&self) -> usize {
        self.chunk_len + 2 * ALIGN as usize
    }

    fn give_buffer(&mut self, buffer: AlignedBuffer) {
        self.free.push(buffer);
        if !self.starved.is_empty() {
            self.shared.wake_loop();
        }
    }

    /// Asks for the next pieces of a body, as far as the limits go.
    fn request(&mut self, transfer: &Transfer, stats: &Stats) {
        let (conn, buffer_len) = (transfer.conn, self.buffer_len());
        while self.transfers[conn].pieces.len() < PIECES_AHEAD
            && self.transfers[conn].requested < transfer.body.len
        {
            let Some(buffer) = self.take_buffer() else {
                if self.transfers[conn].pieces.is_empty() {
                    self.starved.push(conn);
                }
                return;
            };
            let state = &mut self.transfers[conn];
            let from = state.requested;
            let start = transfer.body.position + from as u64;
            let position = start & !(ALIGN - 1);
            let skip = (start - position) as usize;
            // The buffer has room for both unaligned ends, so a body of one chunk is one read.
            let room = buffer_len - skip;
            let rest = transfer.body.len - from;
            let len = if rest <= room { rest } else { self.chunk_len - skip };
            let read_len = (skip + len).next_multiple_of(ALIGN as usize);
            state.requested = from + len;
            state.pieces.push_back(Piece { from, end: from + len, skip, position, buffer: None });
            let job = Job {
                conn,
                generation: state.generation,
                segment: transfer.body.segment,
                position,
                len: read_len,
                buffer,
            };
            stats.entered(1);
            self.shared.lock().jobs.push_back(job);
            self.shared.work.notify_one();
        }
    }

    fn is_resident(&mut self, transfer: &Transfer) -> bool {
        let body = &transfer.body;
        let range = body.position..body.position + body.len as u64;
        match &mut self.residency[body.segment] {
            Some(map) => map.is_resident(range),
            None => false,
        }
    }

    fn reset(&mut self, conn: usize) {
        let state = &mut self.transfers[conn];
        state.generation += 1;
        state.requested = 0;
        state.failed = false;
        let pieces = std::mem::take(&mut state.pieces);
        for buffer in pieces.into_iter().filter_map(|piece| piece.buffer) {
            self.give_buffer(buffer);
        }
    }
}

impl Delivery for Pool {
    fn begin(&mut self, transfer: &Transfer, _log: &ServedLog) -> io::Result<()> {
        if self.transfers.len() <= transfer.conn {
            self.transfers.resize_with(transfer.conn + 1, ColdTransfer::default);
        }
        self.reset(transfer.conn);
        self.transfers[transfer.conn].cold = !self.is_resident(transfer);
        Ok(())
    }

    fn advance(
        &mut self,
        socket: BorrowedFd<'_>,
        transfer: &mut Transfer,
        log: &ServedLog,
        stats: &Stats,
    ) -> io::Result<Progress> {
        let conn = transfer.conn;
        if !self.transfers[conn].cold {
            if !send_header(socket, transfer, SendFlags::MORE, stats)? {
                return Ok(Progress::Blocked);
            }
            return send_file_rest(socket, transfer, log, stats);
        }
        loop {
            self.request(transfer, stats);
            let state = &mut self.transfers[conn];
            if state.failed {
                return Err(io::Error::other("direct read failed"));
            }
            let Some(piece) = state.pieces.front() else { return Ok(Progress::Waiting) };
            let Some(buffer) = &piece.buffer else { return Ok(Progress::Waiting) };
            let bytes = &buffer[piece.skip..piece.skip + piece.end - piece.from];
            let progress = send_from_memory(socket, transfer, bytes, piece.from, stats)?;
            if progress == Progress::Blocked {
                return Ok(progress);
            }
            let sent = state.pieces.pop_front().and_then(|piece| piece.buffer);
            sent.into_iter().for_each(|buffer| self.give_buffer(buffer));
            if progress == Progress::Done {
                return Ok(progress);
            }
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.event.as_fd())
    }

    fn drain_woken(&mut self, conns: &mut Vec<usize>) {
        let mut counter = [0u8; 8];
        let _ = rustix::io::read(&self.shared.event, &mut counter);
        conns.append(&mut self.starved);
        // The two lists change places, so that neither is allocated anew.
        let mut finished = std::mem::take(&mut self.finished);
        std::mem::swap(&mut finished, &mut self.shared.lock().finished);
        for Finished { job, result } in finished.drain(..) {
            let state = &mut self.transfers[job.conn];
            let piece = state.pieces.iter_mut().find(|piece| piece.position == job.position);
            match piece {
                Some(piece) if state.generation == job.generation => {
                    let needed = piece.skip + piece.end - piece.from;
                    state.failed |= !result.is_ok_and(|got| got >= needed);
                    piece.buffer = Some(job.buffer);
                    conns.push(job.conn);
                }
                _ => self.give_buffer(job.buffer),
            }
        }
        self.finished = finished;
    }

    fn closed(&mut self, conn: usize) {
        if conn < self.transfers.len() {
            self.reset(conn);
        }
    }
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    let log = context.take_log()?;
    let files = (0..log.segment_count()).map(|at| log.open_direct(at)).collect::<Result<Vec<_>>>()?;
    let residency = (0..log.segment_count())
        .map(|at| ResidencyMap::new(log.file(at), log.segment_len(at)).ok())
        .collect();
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(BenchError::system("make an eventfd"))?;
    let shared = Arc::new(Shared { queues: Mutex::default(), work: Condvar::new(), event, files });
    let (chunk_len, threads) = (context.config.pool_chunk_len, context.config.pool_threads);
    for at in 0..threads {
        let shared = shared.clone();
        std::thread::Builder::new()
            .name(format!("direct-{at}"))
            .spawn(move || shared.reader())
            .map_err(BenchError::system("start a reader thread"))?;
    }
    let mut pool = Pool {
        chunk_len,
        shared,
        transfers: Vec::new(),
        free: Vec::new(),
        made_count: 0,
        starved: Vec::new(),
        finished: Vec::new(),
        residency,
    };
    // Touched now, not inside a window: a fresh page costs microseconds.
    let ready: Vec<_> = (0..2 * threads).filter_map(|_| pool.take_buffer()).collect();
    pool.free.extend(ready);
    let listener = context.listener.try_clone().map_err(BenchError::system("clone a socket"))?;
    let server = EpollServer::new(listener, log, pool, context.stats.clone())?;
    context.ready(&format!("{threads} threads x {} KiB", chunk_len >> 10))?;
    server.run()
}
