//! `write_group_fdatasync`: buffered writes, and one fdatasync for all that arrived while the last one ran, on a
//! thread per partition. Readers are served from the page cache by sendfile in the same loop. The best a log can
//! do that keeps to the page cache.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::corpus::{BodyRange, ResolveError};
use crate::error::{BenchError, Result};
use crate::paths::sendfile_epoll::Sendfile;
use crate::paths::syncer::Syncers;
use crate::server::append_log::{AppendLog, Batches, Written};
use crate::server::epoll::EpollServer;
use crate::server::produce::Recorder;
use crate::server::schedule::{Next, Schedule, Turn};
use crate::server::source::Source;
use crate::server::{ServerContext, Stats, Stop};
use crate::sys;
use crate::wire::Request;

/// Batches of a partition with readers whose places are remembered without growing the memory for it.
const BATCH_COUNT_EXPECTED: usize = 1 << 17;
/// Appends between two looks at the sockets.
const APPENDS_PER_TURN: usize = 256;

/// An append that waits for its sync.
struct InFlight {
    since_ns: u64,
    last_offset: i64,
    len: u64,
}

struct Partition {
    log: AppendLog,
    in_flight: VecDeque<InFlight>,
    high_watermark: i64,
    places: Vec<Place>,
    /// Number of the file appended to.
    segment: usize,
    is_touched: bool,
}

/// Where a batch lies.
struct Place {
    last_offset: i64,
    segment: usize,
    position: u64,
    len: u64,
    /// Bytes of the partition before it.
    before: u64,
}

impl Partition {
    fn appended_len(&self) -> u64 {
        self.places.last().map_or(0, |place| place.before + place.len)
    }

    /// The first batch that ends at or after `offset`.
    fn place_of(&self, offset: i64) -> usize {
        self.places.partition_point(|place| place.last_offset < offset)
    }
}

struct GroupLog {
    partitions: Vec<Partition>,
    /// Partitions appended to since their sync was last asked for.
    touched: Vec<usize>,
    syncers: Syncers,
    done: Vec<(usize, i64)>,
    batches: Batches,
    flood_batches: Option<Batches>,
    schedule: Option<Schedule>,
    next_due_ns: u64,
    ahead_len_max: u64,
    /// Largest batch that comes over a connection; 0 where none does.
    append_len_max: usize,
    files: Vec<Arc<File>>,
    /// Bytes of partition 0 that each connection has read.
    consumed: Vec<Option<u64>>,
    recorder: Arc<Recorder>,
    stats: Arc<Stats>,
    stop: Arc<Stop>,
}

impl GroupLog {
    fn new(context: &ServerContext) -> Result<Self> {
        let append = context.config.workload.append.clone().ok_or_else(|| BenchError::Process {
            who: "server",
            why: "this path appends, and the workload does not".to_string(),
        })?;
        let count = append.partition_count();
        let has_few = count <= 64;
        let mut partitions = Vec::with_capacity(count);
        let mut files = Vec::with_capacity(count);
        for at in 0..count {
            let log =
                AppendLog::create(&context.config.scratch.join(format!("bench-{at}")), append.segment_len)?;
            files.push(log.file.clone());
            partitions.push(Partition {
                log,
                in_flight: VecDeque::with_capacity(if has_few { append.in_flight } else { 4 }),
                high_watermark: 0,
                places: Vec::with_capacity(if has_few { BATCH_COUNT_EXPECTED } else { 64 }),
                segment: at,
                is_touched: false,
            });
        }
        let schedule = Schedule::new(&context.config.workload, context.stop.clone());
        Ok(Self {
            partitions,
            touched: Vec::with_capacity(count),
            syncers: Syncers::start(count, &context.stop, &context.stats)?,
            done: Vec::with_capacity(2 * count),
            batches: Batches::new(1, append.batch_len),
            flood_batches: append.flood.as_ref().map(|flood| Batches::new(2, flood.batch_len)),
            schedule,
            next_due_ns: u64::MAX,
            ahead_len_max: if append.ahead_len_max == 0 { u64::MAX } else { append.ahead_len_max },
            append_len_max: if append.socket { append.batch_len } else { 0 },
            files,
            consumed: Vec::new(),
            recorder: context.recorder.clone(),
            stats: context.stats.clone(),
            stop: context.stop.clone(),
        })
    }

    /// Acknowledges what is durable.
    fn take_done(&mut self) -> Result<bool> {
        self.syncers.take_done(&mut self.done)?;
        let moved = !self.done.is_empty();
        let now = sys::now_ns();
        for (at, end) in self.done.drain(..) {
            let partition = &mut self.partitions[at];
            partition.high_watermark = end;
            while let Some(append) = partition.in_flight.front().filter(|a| a.last_offset < end) {
                let Some(schedule) = &mut self.schedule else { break };
                schedule.acked(at);
                match schedule.is_measured(at) {
                    true => self.recorder.ack(append.since_ns, now, append.len),
                    false => self.recorder.beside(now, append.len),
                }
                self.stats.responded();
                partition.in_flight.pop_front();
            }
        }
        Ok(moved)
    }

    /// Appends as much as the schedule wants, and asks for the syncs.
    fn produce(&mut self) -> Result<()> {
        self.next_due_ns = u64::MAX;
        for _ in 0..APPENDS_PER_TURN {
            let is_within_reach = self.is_within_reach();
            let Some(schedule) = &mut self.schedule else { break };
            match schedule.next(sys::now_ns(), is_within_reach) {
                Next::Append(turn) => {
                    self.produce_one(&turn).map_err(BenchError::system("append"))?;
                    // Should the turn end here, the next one follows at once.
                    self.next_due_ns = 0;
                }
                Next::At(due_ns) => {
                    self.next_due_ns = due_ns;
                    break;
                }
                Next::Blocked => {
                    self.next_due_ns = u64::MAX;
                    break;
                }
            }
        }
        for at in self.touched.drain(..) {
            let partition = &mut self.partitions[at];
            partition.is_touched = false;
            self.syncers.request(at, partition.log.next_offset.get(), &partition.log.file);
        }
        Ok(())
    }

    fn produce_one(&mut self, turn: &Turn) -> io::Result<()> {
        let batches = match &mut self.flood_batches {
            Some(flood) if turn.is_flood => flood,
            _ => &mut self.batches,
        };
        let file_before = self.partitions[turn.partition].log.file.clone();
        let written = self.partitions[turn.partition].log.append(batches.next_batch())?;
        self.appended(turn.partition, written, file_before);
        self.partitions[turn.partition].in_flight.push_back(InFlight {
            since_ns: turn.since_ns,
            last_offset: written.last_offset.get(),
            len: written.len,
        });
        if let Some(schedule) = &mut self.schedule {
            schedule.appended(turn, written.len);
        }
        Ok(())
    }

    /// Notes where a batch lies and that it is not durable.
    fn appended(&mut self, at: usize, written: Written, file_before: Arc<File>) {
        self.stats.entered(1);
        let partition = &mut self.partitions[at];
        if written.rolled {
            // What the old segment got since its last sync must be durable with this group.
            self.syncers.add_file(at, file_before);
            partition.segment = self.files.len();
            self.files.push(partition.log.file.clone());
        }
        let place = Place {
            last_offset: written.last_offset.get(),
            segment: partition.segment,
            position: written.position,
            len: written.len,
            before: partition.appended_len(),
        };
        partition.places.push(place);
        if !partition.is_touched {
            partition.is_touched = true;
            self.touched.push(at);
        }
    }

    /// Whether the slowest reader is near enough.
    fn is_within_reach(&self) -> bool {
        if self.ahead_len_max == u64::MAX {
            return true;
        }
        let slowest = self.consumed.iter().flatten().min().copied().unwrap_or(0);
        self.partitions[0].appended_len() - slowest < self.ahead_len_max
    }

    /// Fills the log before anything is served, if the workload wants that.
    fn fill(&mut self) -> Result<()> {
        while !self.stop.is_filled() {
            self.turn()?;
            let mut fds = [rustix::event::PollFd::new(&self.stop.event, rustix::event::PollFlags::IN)];
            if !self.stop.is_filled() && self.next_due_ns == u64::MAX {
                rustix::event::poll(&mut fds, None).map_err(BenchError::system("poll"))?;
            }
        }
        Ok(())
    }
}

impl Source for GroupLog {
    fn partition_count(&self) -> u32 {
        self.partitions.len() as u32
    }

    fn resolve(&self, partition: u32, offset: i64, len_max: usize) -> Result<BodyRange, ResolveError> {
        let partition = &self.partitions[partition as usize];
        if offset < 0 || offset > partition.high_watermark {
            return Err(ResolveError::OutOfRange);
        }
        if offset == partition.high_watermark {
            return Ok(BodyRange::default());
        }
        let places = &partition.places;
        let first = &places[partition.place_of(offset)];
        // The last durable batch, or the last one of this segment.
        let durable = &places[partition.place_of(partition.high_watermark) - 1];
        let last = if durable.segment == first.segment {
            durable
        } else {
            &places[places.partition_point(|place| place.segment <= first.segment) - 1]
        };
        let len = (last.position + last.len - first.position).min(len_max as u64);
        Ok(BodyRange { segment: first.segment, position: first.position, len: len as usize })
    }

    fn high_watermark(&self, partition: u32) -> i64 {
        self.partitions.get(partition as usize).map_or(-1, |partition| partition.high_watermark)
    }

    fn file(&self, segment: usize) -> BorrowedFd<'_> {
        self.files[segment].as_fd()
    }

    fn fetched(&mut self, conn: usize, request: &Request) {
        if request.partition > 0 {
            return;
        }
        if self.consumed.len() <= conn {
            self.consumed.resize(conn + 1, None);
        }
        let partition = &self.partitions[0];
        let place = partition.places.get(partition.place_of(request.offset));
        self.consumed[conn] = Some(place.map_or(partition.appended_len(), |place| place.before));
    }

    fn append_len_max(&self) -> usize {
        self.append_len_max
    }

    fn append(&mut self, partition: u32, batch: &mut [u8]) -> io::Result<i64> {
        let at = partition as usize;
        let partition = self.partitions.get_mut(at).ok_or(io::ErrorKind::NotFound)?;
        let file_before = partition.log.file.clone();
        let written = partition.log.append(batch)?;
        self.appended(at, written, file_before);
        Ok(written.last_offset.get())
    }

    fn closed(&mut self, conn: usize) {
        if let Some(consumed) = self.consumed.get_mut(conn) {
            *consumed = None;
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stop.event.as_fd())
    }

    fn next_due_ns(&self) -> u64 {
        self.next_due_ns
    }

    fn turn(&mut self) -> Result<bool> {
        let stopping = self.stop.is_set();
        let mut moved = false;
        if self.syncers.take_signal() || stopping {
            let mut counter = [0u8; 8];
            self.stats.entered(1);
            let _ = rustix::io::read(&self.stop.event, &mut counter);
            moved = self.take_done()?;
        }
        if !stopping {
            self.produce()?;
        } else if self.partitions.iter().all(|partition| partition.in_flight.is_empty()) {
            self.stop.finished();
        }
        Ok(moved)
    }
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    let mut log = GroupLog::new(context)?;
    log.fill()?;
    let listener = context.listener.try_clone().map_err(BenchError::system("clone a socket"))?;
    let note = format!("{} sync thread(s)", log.syncers.thread_count());
    let filled = log.partitions.last().map_or(0, |partition| partition.high_watermark);
    let server = EpollServer::new(listener, log, Sendfile, context.stats.clone())?;
    context.recorder.start();
    context.filled_end = filled;
    context.ready(&note)?;
    server.run()
}
