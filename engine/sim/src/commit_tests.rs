//! When a commit is submitted, of how much, and how: a shard whose writes the test ends by hand. What only costs time when it
//! is wrong, no oracle of whole lives can see.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::error::{AppendError, PartitionFailure};
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::log::log_dir::{LogDir, LogDirOptions};
use rohrpost_engine_core::log::{Durability, LogConfig, WriteMode};
use rohrpost_engine_core::message::{PartitionId, Reply, Request, Ticket};
use rohrpost_engine_core::ops::{DiskOp, Event, Now, Ops, Token, Write};
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::{ByteCount, Nanos, Timestamp};

use crate::disk::SimDisk;
use crate::memory::SimArena;
use crate::platform::SimPlatform;
use crate::prng::Prng;
use crate::service::SimService;
use crate::slab::SimSlab;
use crate::storage::Storage;
use crate::trace::Trace;
use crate::workload::ROOT;

const PARTITION: PartitionId = PartitionId(0);

/// How long the core waits before it writes again on a full device, nanoseconds.
const FULL_RETRY_NS: u64 = 200_000_000;

/// A shard with one partition; steps run at once, writes and syncs when the test ends them.
struct Bench {
    shard: Shard<SimPlatform, SimService>,
    log_dir: Arc<LogDir<SimDisk>>,
    ops: Ops<SimPlatform>,
    now: Now,
    writes: Vec<Write<SimPlatform>>,
    syncs: Vec<Token>,
    acks: Vec<i64>,
    refused: Vec<AppendError>,
}

impl Bench {
    fn start(config: LogConfig) -> Self {
        let disk = SimDisk::new(Storage::new(Prng::new(1), 1 << 40, Trace::new(false)));
        let log_dir = LogDir::open(disk, Path::new(ROOT), LogDirOptions::default()).expect("no faults");
        let now = Now { mono: Nanos::new(1_000_000_000), wall: Timestamp::new(1_700_000_000_000) };
        let shard = Shard::new(ShardLimits::small(), SimArena::default(), SimService::of(1));
        let (ops, writes, syncs, acks) = (Ops::with_capacity(64), Vec::new(), Vec::new(), Vec::new());
        let mut bench = Self { shard, log_dir, ops, now, writes, syncs, acks, refused: Vec::new() };
        bench.open(PARTITION, "a-0", config);
        bench
    }

    fn open(&mut self, partition: PartitionId, name: &str, config: LogConfig) {
        let name = name.parse().expect("a partition's name");
        self.handle(Event::Request(Ticket(0), Request::Open { partition, name, config }));
    }

    /// An event, and all that follows from it but for the ends of writes and syncs.
    fn handle(&mut self, event: Event<SimPlatform>) {
        self.shard.handle_event(self.now, event, &mut self.ops);
        self.settle();
    }

    /// So much time passes.
    fn wait(&mut self, nanos: u64) {
        self.now.mono = Nanos::new(self.now.mono.get() + nanos);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            self.shard.poll(self.now, &mut self.ops);
            for op in self.ops.disk.drain(..) {
                match op {
                    DiskOp::Write(write) => self.writes.push(write),
                    DiskOp::Sync { token, .. } => self.syncs.push(token),
                    DiskOp::Read(_) | DiskOp::Fill(_) => panic!("nobody reads"),
                }
            }
            for (_, reply) in self.ops.replies.drain(..) {
                match reply {
                    Reply::Opened(result) => drop(result.expect("no faults")),
                    Reply::Appended(Ok(appended)) => self.acks.push(appended.base_offset.get()),
                    Reply::Appended(Err(error)) => self.refused.push(error),
                    _ => panic!("nobody has asked"),
                }
            }
            let mut events: Vec<_> = self
                .ops
                .steps
                .drain(..)
                .map(|(token, step)| Event::StepDone { token, output: Box::new(step.run(&self.log_dir)) })
                .collect();
            if std::mem::take(&mut self.ops.grow) {
                events.push(Event::Grown(SimSlab::new(0, 64, 4)));
            }
            if events.is_empty() {
                return;
            }
            events.into_iter().for_each(|event| self.shard.handle_event(self.now, event, &mut self.ops));
        }
    }

    /// Appends a batch of one record; returns its length.
    fn append(&mut self, value_len: usize) -> u64 {
        self.append_to(PARTITION, value_len)
    }

    fn append_to(&mut self, partition: PartitionId, value_len: usize) -> u64 {
        let mut batch = BatchBuilder::new();
        batch.record(self.now.wall, None, Some(&vec![7; value_len]));
        let batches = Bytes::from(batch.build());
        let len = batches.len() as u64;
        self.handle(Event::Request(Ticket(1), Request::Append { partition, batches }));
        len
    }

    /// The only write there is: its start and its length.
    fn write(&self) -> (u64, u64) {
        assert_eq!(self.writes.len(), 1);
        (self.writes[0].position.get(), self.writes[0].len.get())
    }

    /// Ends the only write there is, whole.
    fn end_write(&mut self) {
        let (_, len) = self.write();
        self.end_write_with(Ok(len));
    }

    /// Ends the only write there is.
    fn end_write_with(&mut self, result: Result<u64, Errno>) {
        let write = self.writes.pop().expect("a write is under way");
        let result = result.map(ByteCount::new);
        self.handle(Event::Written { token: write.token, result });
    }
}

/// At the level `written`, through the page cache: a commit is exactly what was appended.
fn config() -> LogConfig {
    let (durability, write_mode) = (Durability::Written, WriteMode::Buffered);
    LogConfig { durability, write_mode, ..LogConfig::default() }
}

/// What is appended while a commit is in flight is the next commit, all of it in one write.
#[test]
fn what_came_meanwhile_is_one_commit() {
    let mut bench = Bench::start(config());
    let first = bench.append(100);
    assert_eq!(bench.write(), (0, first));
    let meanwhile = bench.append(200) + bench.append(300) + bench.append(400);
    assert_eq!(bench.write(), (0, first), "one in flight");
    bench.end_write();
    assert_eq!(bench.acks, [0]);
    assert_eq!(bench.write(), (first, meanwhile));
    bench.end_write();
    assert_eq!((bench.acks.as_slice(), bench.writes.len()), (&[0, 1, 2, 3][..], 0));
}

/// A commit's first append waits for company as long as it was told to, and no longer.
#[test]
fn a_commit_lingers_to_the_microsecond() {
    let mut bench = Bench::start(LogConfig { linger_us: 300, ..config() });
    let first = bench.append(100);
    assert!(bench.writes.is_empty(), "at once");
    bench.wait(299_999);
    assert!(bench.writes.is_empty(), "too early");
    let company = bench.append(100);
    bench.wait(1);
    assert_eq!(bench.write(), (0, first + company));
}

/// A full device is tried again with the same bytes after a while, and not before.
#[test]
fn a_full_device_is_left_alone_for_a_while() {
    let mut bench = Bench::start(config());
    let len = bench.append(100);
    bench.end_write_with(Err(Errno::NOSPC));
    assert!(bench.writes.is_empty(), "at once");
    bench.wait(FULL_RETRY_NS - 1);
    assert!(bench.writes.is_empty(), "too early");
    bench.wait(1);
    assert_eq!(bench.write(), (0, len));
    bench.end_write();
    assert_eq!(bench.acks, [0]);
}

/// Only a direct write at the level `flushed` waits for the device; a buffered one at that level is synced, and nothing is
/// at the other.
#[test]
fn a_commit_asks_for_what_its_level_needs() {
    for (durability, write_mode, durable, syncs) in [
        (Durability::Flushed, WriteMode::Direct, true, 0),
        (Durability::Flushed, WriteMode::Buffered, false, 1),
        (Durability::Written, WriteMode::Direct, false, 0),
        (Durability::Written, WriteMode::Buffered, false, 0),
    ] {
        let mut bench = Bench::start(LogConfig { durability, write_mode, ..LogConfig::default() });
        bench.append(100);
        assert_eq!(bench.writes[0].durable, durable, "{durability:?} {write_mode:?}");
        bench.end_write();
        assert_eq!(bench.syncs.len(), syncs, "{durability:?} {write_mode:?}");
        assert_eq!(bench.acks.len(), 1 - syncs, "{durability:?} {write_mode:?}");
        for token in std::mem::take(&mut bench.syncs) {
            bench.handle(Event::Synced { token, result: Ok(()) });
        }
        assert_eq!(bench.acks, [0], "{durability:?} {write_mode:?}");
    }
}

/// A write that comes back short is submitted again, eight times in a row; the ninth time it has failed. A whole one in
/// between begins the count anew.
#[test]
fn a_short_write_is_tried_again_a_few_times() {
    const TRIES: usize = 8;
    let mut bench = Bench::start(config());
    for round in 0..2 {
        bench.append(100);
        let whole = bench.write();
        for _ in 0..TRIES {
            bench.end_write_with(Ok(whole.1 - 1));
            assert_eq!(bench.write(), whole, "the same bytes again");
        }
        bench.end_write();
        assert_eq!(bench.acks.len(), round + 1);
    }
    bench.append(100);
    for _ in 0..=TRIES {
        assert!(bench.refused.is_empty(), "too early");
        bench.end_write_with(Ok(1));
    }
    assert!(bench.writes.is_empty());
    assert!(matches!(bench.refused[..], [AppendError::Failed(PartitionFailure::Write { .. })]));
}

/// A write that fails is final (I6): nothing is written any more, however long one waits, and no append is taken.
#[test]
fn a_failed_write_is_not_tried_again() {
    let mut bench = Bench::start(config());
    bench.append(100);
    bench.append(100);
    bench.end_write_with(Err(Errno::IO));
    bench.wait(10 * FULL_RETRY_NS);
    bench.append(100);
    bench.wait(10 * FULL_RETRY_NS);
    assert!(bench.writes.is_empty() && bench.acks.is_empty());
    assert_eq!(bench.refused.len(), 3, "{:?}", bench.refused);
    let failed = |error: &AppendError| {
        matches!(error, AppendError::Failed(PartitionFailure::Write { errno: Errno::IO, .. }))
    };
    assert!(bench.refused.iter().all(failed), "{:?}", bench.refused);
}

/// What will never be written is not kept in memory: a neighbour has it.
#[test]
fn what_failed_keeps_no_memory() {
    const OTHER: PartitionId = PartitionId(1);
    let mut bench = Bench::start(config());
    bench.open(OTHER, "a-1", config());
    // One append is being written, the others wait; together they fill three quarters of the arena.
    (0..15).for_each(|_| _ = bench.append(200 << 10));
    bench.end_write_with(Err(Errno::IO));
    (0..15).for_each(|_| _ = bench.append_to(OTHER, 200 << 10));
    bench.wait(FULL_RETRY_NS);
    let (_, len) = bench.write();
    bench.end_write();
    assert_eq!(bench.write().1, 14 * len, "all that waits is in memory, and one commit");
}

/// Past the page cache the last block is written from a padded copy, unless a batch ends with it: then there is nothing to
/// copy, and the next commit begins behind it.
#[test]
fn a_commit_that_ends_with_a_block_needs_no_copy() {
    const BLOCK: u64 = 4096;
    let (durability, write_mode) = (Durability::Flushed, WriteMode::Direct);
    for short in [1, 0] {
        let mut bench = Bench::start(LogConfig { durability, write_mode, ..LogConfig::default() });
        let header = bench.append(1_000) - 1_000;
        bench.end_write();
        let len = bench.append((BLOCK - 1_000 - 2 * header - short) as usize);
        assert_eq!(len, BLOCK - 1_000 - header - short, "as long as was asked for");
        assert_eq!((bench.write(), bench.writes[0].bounce.is_some()), ((0, BLOCK), short > 0));
        bench.end_write();
        bench.append(100);
        assert_eq!(bench.write(), (BLOCK * (1 - short), BLOCK * (1 + short)));
        bench.end_write();
        assert_eq!(bench.acks, [0, 1, 2]);
    }
}
