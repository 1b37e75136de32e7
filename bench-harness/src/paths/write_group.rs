//! `write_group_fdatasync`: buffered writes, and one fdatasync for all that arrived while the last one ran, on a
//! thread per partition. Readers at the tail are served from the page cache by sendfile in the same loop. The
//! best a log can do that keeps to the page cache.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rohrpost_engine_core::types::Offset;

use crate::corpus::{BodyRange, ResolveError};
use crate::error::{BenchError, Result};
use crate::paths::sendfile_epoll::Sendfile;
use crate::server::append_log::{AppendLog, Batches};
use crate::server::epoll::EpollServer;
use crate::server::produce::Recorder;
use crate::server::source::Source;
use crate::server::{ServerContext, Stats, Stop};
use crate::sys;
use crate::wire::Request;
use crate::workload::Append;

/// Batches whose places are remembered without growing the memory for it.
const BATCH_COUNT_EXPECTED: usize = 1 << 17;

/// What one sync thread is asked for and has done.
#[derive(Default)]
struct SyncState {
    files: Vec<Arc<File>>,
    wanted: i64,
    done: i64,
    error: Option<std::io::Error>,
}

#[derive(Default)]
struct Syncer {
    state: Mutex<SyncState>,
    work: Condvar,
}

impl Syncer {
    fn lock(&self) -> MutexGuard<'_, SyncState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, stop: &Stop, signaled: &AtomicBool, stats: &Stats) {
        let mut files = Vec::new();
        loop {
            let mut state = self.lock();
            while state.wanted == state.done {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let target = state.wanted;
            std::mem::swap(&mut files, &mut state.files);
            drop(state);
            stats.entered(files.len() as u64);
            let synced = files.drain(..).try_for_each(|file: Arc<File>| file.sync_data());
            let mut state = self.lock();
            if let Err(error) = synced {
                // After a failed sync a second one may succeed with the data gone: this log is over.
                state.error = Some(error);
                return;
            }
            state.done = target;
            drop(state);
            if !signaled.swap(true, Ordering::AcqRel) {
                stats.entered(1);
                let _ = rustix::io::write(&stop.event, &1u64.to_ne_bytes());
            }
        }
    }
}

/// An append that waits for its sync.
struct InFlight {
    start_ns: u64,
    last_offset: Offset,
    len: u64,
}

struct Partition {
    log: AppendLog,
    in_flight: VecDeque<InFlight>,
    requested: i64,
    syncer: Arc<Syncer>,
}

/// Where a batch lies, for the readers of partition 0.
struct Place {
    last_offset: i64,
    segment: usize,
    position: u64,
    len: u64,
    /// Bytes of the log before it.
    before: u64,
}

struct GroupLog {
    partitions: Vec<Partition>,
    batches: Batches,
    in_flight_max: usize,
    ahead_len_max: u64,
    next_partition: usize,
    places: Vec<Place>,
    files: Vec<Arc<File>>,
    high_watermark: i64,
    /// Bytes each connection has read.
    consumed: Vec<Option<u64>>,
    recorder: Arc<Recorder>,
    stats: Arc<Stats>,
    stop: Arc<Stop>,
    signaled: Arc<AtomicBool>,
}

impl GroupLog {
    fn new(context: &ServerContext, append: &Append) -> Result<Self> {
        let signaled = Arc::new(AtomicBool::new(false));
        let mut partitions = Vec::with_capacity(append.partitions);
        for at in 0..append.partitions {
            let dir = context.config.scratch.join(format!("bench-{at}"));
            let log = AppendLog::create(&dir, append.segment_len)?;
            let syncer = Arc::new(Syncer::default());
            let (shared, stop, stats) = (syncer.clone(), context.stop.clone(), context.stats.clone());
            let signaled = signaled.clone();
            std::thread::Builder::new()
                .name(format!("sync-{at}"))
                .spawn(move || shared.run(&stop, &signaled, &stats))
                .map_err(BenchError::system("start a sync thread"))?;
            let in_flight = VecDeque::with_capacity(append.in_flight);
            partitions.push(Partition { log, in_flight, requested: 0, syncer });
        }
        let files = vec![partitions[0].log.file.clone()];
        Ok(Self {
            partitions,
            batches: Batches::new(1, append.batch_len),
            in_flight_max: (append.in_flight / append.partitions).max(1),
            ahead_len_max: if append.ahead_len_max == 0 { u64::MAX } else { append.ahead_len_max },
            next_partition: 0,
            places: Vec::with_capacity(BATCH_COUNT_EXPECTED),
            files,
            high_watermark: 0,
            consumed: Vec::new(),
            recorder: context.recorder.clone(),
            stats: context.stats.clone(),
            stop: context.stop.clone(),
            signaled,
        })
    }

    /// Acknowledges what is durable.
    fn take_done(&mut self) -> Result<bool> {
        let mut moved = false;
        for (at, partition) in self.partitions.iter_mut().enumerate() {
            let mut state = partition.syncer.lock();
            if let Some(error) = state.error.take() {
                return Err(BenchError::system("fdatasync")(error));
            }
            let done = state.done;
            drop(state);
            let now = sys::now_ns();
            while let Some(append) = partition.in_flight.front().filter(|a| a.last_offset.get() < done) {
                self.recorder.ack(append.start_ns, now, append.len);
                self.stats.responded();
                partition.in_flight.pop_front();
            }
            if at == 0 && done > self.high_watermark {
                self.high_watermark = done;
                moved = true;
            }
        }
        Ok(moved)
    }

    /// Appends as much as the limits allow, partitions in turn, and asks for the syncs.
    fn produce(&mut self) -> Result<()> {
        let mut full = 0;
        while full < self.partitions.len() && self.is_within_reach() {
            let at = self.next_partition;
            self.next_partition = (at + 1) % self.partitions.len();
            if self.partitions[at].in_flight.len() >= self.in_flight_max {
                full += 1;
                continue;
            }
            full = 0;
            self.append(at).map_err(BenchError::system("append"))?;
        }
        for partition in &mut self.partitions {
            let end = partition.log.next_offset.get();
            if end > partition.requested {
                partition.requested = end;
                let mut state = partition.syncer.lock();
                state.wanted = end;
                if !state.files.iter().any(|file| Arc::ptr_eq(file, &partition.log.file)) {
                    state.files.push(partition.log.file.clone());
                }
                drop(state);
                partition.syncer.work.notify_one();
            }
        }
        Ok(())
    }

    fn append(&mut self, at: usize) -> std::io::Result<()> {
        let start_ns = sys::now_ns();
        let partition = &mut self.partitions[at];
        let file_before = partition.log.file.clone();
        let written = partition.log.append(self.batches.next_batch())?;
        self.stats.entered(1);
        if written.rolled {
            // What the old segment got since its last sync must be durable with this group.
            partition.syncer.lock().files.push(file_before);
        }
        let Partition { log, in_flight, .. } = partition;
        in_flight.push_back(InFlight { start_ns, last_offset: written.last_offset, len: written.len });
        if at == 0 {
            if written.rolled {
                self.files.push(log.file.clone());
            }
            let before = self.appended_len();
            self.places.push(Place {
                last_offset: written.last_offset.get(),
                segment: self.files.len() - 1,
                position: written.position,
                len: written.len,
                before,
            });
        }
        Ok(())
    }

    fn appended_len(&self) -> u64 {
        self.places.last().map_or(0, |place| place.before + place.len)
    }

    /// Whether the slowest reader is near enough.
    fn is_within_reach(&self) -> bool {
        if self.ahead_len_max == u64::MAX {
            return true;
        }
        let slowest = self.consumed.iter().flatten().min().copied().unwrap_or(0);
        self.appended_len() - slowest < self.ahead_len_max
    }

    /// The first batch that ends at or after `offset`.
    fn place_of(&self, offset: i64) -> usize {
        self.places.partition_point(|place| place.last_offset < offset)
    }
}

impl Source for GroupLog {
    fn resolve(&self, offset: i64, len_max: usize) -> Result<BodyRange, ResolveError> {
        if offset < 0 || offset > self.high_watermark {
            return Err(ResolveError::OutOfRange);
        }
        if offset == self.high_watermark {
            return Ok(BodyRange::default());
        }
        let first = &self.places[self.place_of(offset)];
        // The last durable batch, or the last one of this segment.
        let durable = &self.places[self.place_of(self.high_watermark) - 1];
        let last = if durable.segment == first.segment {
            durable
        } else {
            &self.places[self.places.partition_point(|place| place.segment <= first.segment) - 1]
        };
        let len = (last.position + last.len - first.position).min(len_max as u64);
        Ok(BodyRange { segment: first.segment, position: first.position, len: len as usize })
    }

    fn high_watermark(&self) -> i64 {
        self.high_watermark
    }

    fn file(&self, segment: usize) -> BorrowedFd<'_> {
        self.files[segment].as_fd()
    }

    fn fetched(&mut self, conn: usize, request: &Request) {
        if self.consumed.len() <= conn {
            self.consumed.resize(conn + 1, None);
        }
        let place = self.places.get(self.place_of(request.offset));
        self.consumed[conn] = Some(place.map_or(self.appended_len(), |place| place.before));
    }

    fn closed(&mut self, conn: usize) {
        if let Some(consumed) = self.consumed.get_mut(conn) {
            *consumed = None;
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stop.event.as_fd())
    }

    fn turn(&mut self) -> Result<bool> {
        let stopping = self.stop.is_set();
        if self.signaled.swap(false, Ordering::AcqRel) || stopping {
            let mut counter = [0u8; 8];
            self.stats.entered(1);
            let _ = rustix::io::read(&self.stop.event, &mut counter);
        }
        let moved = self.take_done()?;
        if !stopping {
            self.produce()?;
        } else if self.partitions.iter().all(|partition| partition.in_flight.is_empty()) {
            self.stop.finished();
        }
        Ok(moved)
    }
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    let append = context.config.workload.append.clone().ok_or_else(|| BenchError::Process {
        who: "server",
        why: "this path appends, and the workload does not".to_string(),
    })?;
    let log = GroupLog::new(context, &append)?;
    let listener = context.listener.try_clone().map_err(BenchError::system("clone a socket"))?;
    let server = EpollServer::new(listener, log, Sendfile, context.stats.clone())?;
    context.recorder.start();
    context.ready(&format!("{} sync thread(s)", append.partitions))?;
    server.run()
}
