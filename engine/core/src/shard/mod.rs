//! One shard: the partitions and connections of one core, as one state machine.
//!
//! Owns its partitions, its memory, its connections and the service that runs on it. Events go in
//! through [`Shard::handle_event`]; [`Shard::poll`] then pushes the operations of the turn: what the
//! service produces, appends that waited, commits of all partitions in turn, cold reads, sends. A turn
//! is bounded: commits and reads by what may be in flight, sends by
//! [`crate::limits::TURN_SEND_BYTES`]. Does not do I/O, does not read the clock.

mod ahead;
mod appends;
mod bill;
mod by_file;
mod closing;
mod conn;
mod connections;
mod fetches;
mod foreign;
mod holes;
mod letters;
mod parked;
mod partitions;
mod planning;
mod reads;
mod recall;
mod remote;
mod retention_clock;
mod scheduler;
mod scrub;
mod sends;
mod stats;
mod table;

use std::collections::{BinaryHeap, VecDeque};

use crate::error::PartitionError;
use crate::fetch::ModeSet;
use crate::fetch::memo::Memo;
use crate::fetch::transfer::{FetchId, Fetches};
use crate::limits::{ShardLimits, TURN_SEND_BYTES};
use crate::log::open_files::OpenFiles;
use crate::log::partition::{AckOutcome, Partition};
use crate::memory::Memory;
use crate::message::{PartitionId, Reply, ShardId, Ticket};
use crate::ops::{ConnId, Event, Now, Ops};
use crate::platform::Platform;
use crate::service::Service;
use crate::shard::ahead::Places;
use crate::shard::conn::Conn;
use crate::shard::letters::{Opened, Peers};
use crate::shard::parked::ParkTimer;
use crate::shard::reads::Reads;
use crate::shard::retention_clock::RetentionClock;
use crate::shard::scheduler::Scheduler;
use crate::shard::scrub::Scrub;
pub use crate::shard::stats::ShardStats;
use crate::shard::table::PartitionTable;
use crate::token::Purpose;
use crate::types::{ByteCount, Nanos};

/// How soon to look again at what waits for memory or for space on the device, milliseconds.
const PATIENCE_MS: u64 = 20;

/// Partitions with something to do, outcomes of appends and bytes of an answer that a turn may meet before memory is
/// allocated for more.
const READY_CAPACITY: usize = 1024;
const OUTCOMES_CAPACITY: usize = 1024;
const SCRATCH_CAPACITY: usize = 4096;

/// The parts of a shard that the service's callbacks must not see.
pub(crate) struct Core<P: Platform, C> {
    limits: ShardLimits,
    memory: Memory<P>,
    partitions: PartitionTable<P>,
    /// Every partition, for the slow round of retention and of idle tails.
    all: Vec<PartitionId>,
    detach_cursor: usize,
    open_files: OpenFiles,
    /// Files are being closed until there is ample room again.
    parks_files: bool,
    park_cursor: usize,
    /// Partitions that may have something to commit, to append or to tidy up.
    ready: VecDeque<PartitionId>,
    commits_in_flight: u32,
    /// When the first commit that waits for company is due.
    linger_until: Option<Nanos>,
    fetches: Fetches<P>,
    memo: Memo,
    park_timers: BinaryHeap<ParkTimer>,
    /// Fetches to look at again in this turn.
    woken: Vec<FetchId>,
    reads: Reads,
    scheduler: Scheduler,
    scrub: Scrub,
    places: Places,
    /// What the driver can do on this host.
    modes: ModeSet,
    conns: Vec<Option<Box<Conn<P, C>>>>,
    sendable: VecDeque<ConnId>,
    /// Bytes that may still be sent in this turn.
    turn_bytes_left: usize,
    /// Fetches that wait for a segment's file, each of them once.
    waiting_for_file: Vec<FetchId>,
    /// Something waits for memory or for space.
    patience: bool,
    memory_short: bool,
    retention: RetentionClock,
    outcomes: Vec<AckOutcome>,
    /// Answers to opening that wait for the other shards and for the arena's start length.
    opened: Vec<Opened>,
    peers: Peers<P>,
    stopping: Option<Ticket>,
    stop_failure: Option<PartitionError>,
    stopped: bool,
    stats: ShardStats,
}

/// See the module documentation.
pub struct Shard<P: Platform, S: Service> {
    service: S,
    core: Core<P, S::Connection>,
    service_deadline: Option<Nanos>,
    scratch: Vec<u8>,
}

impl<P: Platform, S: Service> Shard<P, S> {
    /// A shard without partitions. Allocates what it will ever need, the arena's slabs excepted.
    pub fn new(limits: ShardLimits, arena: P::Arena, service: S) -> Self {
        let memory = Memory::new(arena, limits.arena_len_max, limits.arena_len_start);
        let mut conns = Vec::new();
        conns.resize_with(limits.connections_max as usize, || None);
        let core = Core {
            memory,
            partitions: PartitionTable::new(),
            all: Vec::new(),
            detach_cursor: 0,
            open_files: OpenFiles::new(limits.open_files_max),
            parks_files: false,
            park_cursor: 0,
            ready: VecDeque::with_capacity(READY_CAPACITY),
            commits_in_flight: 0,
            linger_until: None,
            fetches: Fetches::new(limits.fetches_max),
            memo: Memo::new(),
            park_timers: BinaryHeap::with_capacity(limits.fetches_max as usize),
            woken: Vec::with_capacity(limits.fetches_max as usize),
            scheduler: Scheduler::new(limits.cold_read_bytes_max, limits.cold_read_len),
            reads: Reads::with_capacity(limits.fetches_max as usize),
            scrub: Scrub::default(),
            places: Places::new(),
            modes: P::MODES,
            conns,
            sendable: VecDeque::with_capacity(limits.connections_max as usize),
            turn_bytes_left: TURN_SEND_BYTES.as_usize(),
            waiting_for_file: Vec::with_capacity(limits.fetches_max as usize),
            patience: false,
            memory_short: false,
            retention: RetentionClock::default(),
            outcomes: Vec::with_capacity(OUTCOMES_CAPACITY),
            opened: Vec::new(),
            peers: Peers::alone(),
            stopping: None,
            stop_failure: None,
            stopped: false,
            stats: ShardStats::default(),
            limits,
        };
        Self { service, core, service_deadline: None, scratch: Vec::with_capacity(SCRATCH_CAPACITY) }
    }

    /// The same shard as number `me` of `count` in its engine. It owns the partitions of
    /// [`ShardId::owner`]; its connections may use those of every shard.
    ///
    /// # Panics
    /// If there is no such number.
    #[must_use]
    pub fn among(mut self, me: ShardId, count: u16) -> Self {
        self.core.peers = Peers::new(me, count, self.core.limits.fetches_max);
        self
    }

    /// The same shard for a driver that lacks some of its modes on this host.
    #[must_use]
    pub fn offering(mut self, modes: ModeSet) -> Self {
        self.core.modes = P::MODES.and(modes);
        self
    }

    /// Takes in one event.
    pub fn handle_event(&mut self, now: Now, event: Event<P>, ops: &mut Ops<P>) {
        let Self { service, core, .. } = self;
        match event {
            Event::Written { token, result } => match Purpose::of(token) {
                Purpose::Commit(id) => core.with_partition(now, id, |core, partition| {
                    partition.handle_written(&mut core.memory, now, result, ops, &mut core.outcomes);
                }),
                Purpose::GuardCopy(id) => core.with_partition(now, id, |core, partition| {
                    partition.handle_copied(&mut core.memory, now, result, ops, &mut core.outcomes);
                }),
                other => debug_assert!(false, "no write for {other:?}"),
            },
            Event::Synced { token, result } => {
                if let Purpose::CommitSync(id) = Purpose::of(token) {
                    core.with_partition(now, id, |core, partition| {
                        partition.handle_synced(&mut core.memory, result, &mut core.outcomes);
                    });
                }
            }
            Event::ReadDone { token, chunk, result } => match Purpose::of(token) {
                Purpose::TailRead(id) => core.handle_tail_read(now, id, chunk, result),
                Purpose::ColdRead(entry, generation) => {
                    core.handle_cold_read(entry, generation, chunk, result, service, now, ops);
                }
                other => debug_assert!(false, "no read for {other:?}"),
            },
            Event::StepDone { token, output } => {
                if let Purpose::Step(kind, id, uid) = Purpose::of(token) {
                    core.handle_step(kind, id, uid, *output, service, now, ops);
                }
            }
            Event::Grown(slab) => core.memory.grow(slab),
            Event::GrowFailed(errno) => core.memory.refuse_growth(errno),
            Event::Accepted { conn, remote } => core.handle_accepted(conn, remote, ops),
            Event::Received { conn, bytes } => core.handle_received(conn, bytes, service, now, ops),
            Event::Filled { token, asked, result } => {
                if let Purpose::Fill(conn) = Purpose::of(token) {
                    core.handle_filled(conn, asked, result, ops);
                }
            }
            Event::Sent { result, send } => core.handle_sent(result, send, service, now, ops),
            Event::FileSent { conn, result } => core.handle_file_sent(conn, result, service, now, ops),
            Event::Writable(conn) => core.handle_writable(conn),
            Event::CopiedAnyway(conn) => core.handle_copied_anyway(conn),
            Event::Closed(conn) => core.handle_closed(conn, service),
            Event::Request(ticket, request) => core.handle_request(ticket, request, service, now, ops),
            Event::Letter(from, letter) => core.handle_letter(from, letter, service, now, ops),
            Event::ShardEnded(shard) => core.handle_shard_ended(shard, service, ops),
        }
        core.deliver_outcomes(service, &mut self.scratch, ops);
        core.poll_woken(service, now, ops);
    }

    /// Pushes the operations of this turn. Call it after every batch of events.
    pub fn poll(&mut self, now: Now, ops: &mut Ops<P>) {
        let Self { service, core, scratch, .. } = self;
        core.patience = false;
        core.memory_short = false;
        core.memory.settle();
        if core.memory.wants_growth() {
            ops.grow = true;
        }
        core.poll_opened(ops);
        let mut access = appends::ShardAccess { core, now, ops };
        self.service_deadline = service.turn(now, &mut access);
        core.scheduler.observe(now, core.stats.committed_len);
        core.expire_parked(service, now, ops);
        core.poll_retention(now, ops);
        core.poll_scrub(now, ops);
        core.park_idle_files(now);
        core.poll_partitions(now, ops);
        core.deliver_outcomes(service, scratch, ops);
        core.poll_woken(service, now, ops);
        core.poll_reads(service, now, ops);
        core.poll_sends(service, now, ops);
        // Frames that were held back have been handled: what came to nothing must not wait either.
        core.deliver_outcomes(service, scratch, ops);
        // What the transfers just sent miss must not wait for the next event.
        core.poll_reads(service, now, ops);
        if core.memory_short {
            core.detach_idle_tails();
            core.recall_stalled(None, now, ops);
            core.close_stalled(now, ops);
        }
        core.poll_letters(now, ops);
        core.poll_stop(ops);
    }

    /// When [`Self::poll`] wants to be called even if nothing happens; `None` for never. In the past if
    /// it has more to do at once.
    pub fn next_deadline(&self, now: Now) -> Option<Nanos> {
        let core = &self.core;
        if core.more_to_send() {
            return Some(now.mono);
        }
        let mut deadline = self.service_deadline;
        let mut sooner = |at: Nanos| deadline = Some(deadline.map_or(at, |d| d.min(at)));
        if let Some(timer) = core.park_timers.peek() {
            sooner(timer.deadline);
        }
        if let Some(at) = core.linger_until {
            sooner(at);
        }
        if core.patience || core.memory_short {
            sooner(now.mono.plus_millis(PATIENCE_MS));
        }
        if !core.all.is_empty() {
            sooner(core.retention.next());
        }
        if let Some(at) = core.scrub_due() {
            sooner(at);
        }
        deadline
    }

    /// Whether a shutdown is complete: every partition is closed.
    pub fn is_stopped(&self) -> bool {
        self.core.stopped
    }

    /// Counters since the start.
    pub fn stats(&self) -> ShardStats {
        self.core.stats()
    }

    /// The service.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// Bytes of the arena in all, and free.
    pub fn arena_len(&self) -> (ByteCount, ByteCount) {
        use crate::platform::Arena;
        (self.core.memory.arena.capacity(), self.core.memory.arena.free_len())
    }

    /// Why the arena stopped growing, if it did.
    pub fn growth_refused(&self) -> Option<crate::disk::Errno> {
        self.core.memory.growth_refused()
    }
}

impl<P: Platform, C> Core<P, C> {
    /// Runs `f` on a partition, and queues it for the next round if it is still there. Counts commits in
    /// and out of flight, and wakes parked fetches if the high watermark moved.
    fn with_partition(&mut self, now: Now, id: PartitionId, f: impl FnOnce(&mut Self, &mut Partition<P>)) {
        let Some(mut partition) = self.partitions.take(id) else { return };
        let in_flight = partition.in_flight.is_some();
        let durable = partition.durable;
        f(self, &mut partition);
        if in_flight && partition.in_flight.is_none() {
            self.commits_in_flight -= 1;
        }
        if partition.durable.offset > durable.offset {
            self.stats.commits += 1;
            let from = if durable.uid == partition.durable.uid { durable.position.get() } else { 0 };
            let len = partition.durable.position.get() - from;
            self.stats.committed_len += len;
            let (started, reads) = partition.commit_started;
            let quiet = reads == Some(self.stats.cold_reads);
            let elapsed = now.mono.get().saturating_sub(started.get());
            self.scheduler.note_committed(now, id, elapsed, len, quiet);
            self.wake_parked(&mut partition);
        }
        self.queue_partition(&mut partition);
        self.partitions.put(partition);
    }

    fn queue_partition(&mut self, partition: &mut Partition<P>) {
        if !partition.queued {
            partition.queued = true;
            self.ready.push_back(partition.id);
        }
    }

    /// Ends a shutdown when the last partition is closed.
    fn poll_stop(&mut self, ops: &mut Ops<P>) {
        if self.stopping.is_some() && self.partitions.is_empty() {
            self.stopped = true;
            if let Some(ticket) = self.stopping.take() {
                let result = self.stop_failure.take().map_or(Ok(()), Err);
                ops.replies.push((ticket, Reply::Stopped(result)));
            }
        }
    }
}
