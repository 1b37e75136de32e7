//! Connections whose answer waits until a segment's file is open.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rohrpost_engine_core::disk::{DiskError, Errno};
use rohrpost_engine_core::error::PartitionError;
use rohrpost_engine_core::fetch::{FetchRequest, Mode};
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::format::names::TopicPartition;
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::log::LogConfig;
use rohrpost_engine_core::log::log_dir::{LogDir, LogDirOptions};
use rohrpost_engine_core::log::step::{Step, StepOutput};
use rohrpost_engine_core::message::{PartitionId, Reply, Request, Ticket};
use rohrpost_engine_core::ops::{ConnId, Driver, Event, Now, Ops};
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::{ByteCount, Nanos, Offset, Timestamp};

use crate::disk::SimDisk;
use crate::driver::SimDriver;
use crate::fault::Delays;
use crate::memory::{Memory, SimArena};
use crate::platform::SimPlatform;
use crate::prng::Prng;
use crate::service::{HEADER_LEN, SimService, fetch_frame, read_header};
use crate::storage::Storage;
use crate::trace::Trace;
use crate::workload::ROOT;

/// Most turns in which something that is to happen happens.
const TURNS_MAX: usize = 10_000;

/// Batches of each partition.
const BATCHES: u64 = 12;

/// A shard with two partitions and hardly an open file, and its clients.
struct Bench {
    shard: Shard<SimPlatform, SimService>,
    driver: SimDriver,
    ops: Ops<SimPlatform>,
    events: Vec<Event<SimPlatform>>,
    now: Now,
    /// No segment of the first partition can be opened again.
    broken: Arc<AtomicBool>,
}

/// Several batches a segment, several segments.
fn config() -> LogConfig {
    let (segment_len_max, batch_len_max) = (ByteCount::new(4096), ByteCount::new(1500));
    LogConfig { segment_len_max, batch_len_max, ..LogConfig::default() }
}

impl Bench {
    fn start(seed: u64) -> Self {
        let disk = SimDisk::new(Storage::new(Prng::new(seed), 1 << 40, Trace::new(false)));
        let now = Now { mono: Nanos::new(1_000_000_000), wall: Timestamp::new(1_700_000_000_000) };
        let log_dir = LogDir::open(disk.clone(), Path::new(ROOT), LogDirOptions::default());
        let log_dir = log_dir.expect("no faults");
        let names = ["a-0", "b-0"].map(|name| name.parse::<TopicPartition>().expect("a partition's name"));
        let (first, broken) = (names[0].clone(), Arc::new(AtomicBool::new(false)));
        let is_broken = broken.clone();
        let run_step = Box::new(move |step: Step<SimPlatform>| match step {
            Step::OpenSegment { name, .. } if name == first && is_broken.load(Relaxed) => {
                let (action, path) = ("open", log_dir.root().join(name.to_string()));
                let error = DiskError { action, path, errno: Errno::IO };
                StepOutput::SegmentOpened(Err(PartitionError::Disk(error)))
            }
            step => step.run(&log_dir),
        });
        let memory = Memory { slab_granules: 64, slab_bounces: 4, slabs_max: 2 };
        let driver = SimDriver::new(disk, run_step, Prng::new(seed), Delays::QUICK, memory, now);
        let limits = ShardLimits { connections_max: 8, open_files_max: 1, ..ShardLimits::small() };
        let shard = Shard::new(limits, SimArena::default(), SimService::of(2));
        let (ops, events) = (Ops::with_capacity(64), Vec::new());
        let mut bench = Self { shard, driver, ops, events, now, broken };
        for (at, name) in names.into_iter().enumerate() {
            let request = Request::Open { partition: PartitionId(at as u32), name, config: config() };
            assert!(matches!(bench.ask(request), Reply::Opened(Ok(_))), "seed {seed}");
        }
        bench
    }

    /// Several segments in both partitions, in memory too; then every file that is not needed is closed.
    fn fill(&mut self) {
        let mut batch = BatchBuilder::new();
        batch.record(self.now.wall, None, Some(&[7; 1000]));
        let batch = Bytes::from(batch.build());
        for number in 0..2 * BATCHES {
            let partition = PartitionId((number % 2) as u32);
            let reply = self.ask(Request::Append { partition, batches: batch.clone() });
            assert!(matches!(reply, Reply::Appended(Ok(_))));
        }
        for _ in 0..100 {
            self.turn();
        }
    }

    fn turn(&mut self) -> Vec<Reply<SimPlatform>> {
        let deadline = self.shard.next_deadline(self.now);
        self.driver.turn(&mut self.ops, &mut self.events, deadline).expect("nobody ends this life");
        self.now = self.driver.now();
        for event in self.events.drain(..) {
            self.shard.handle_event(self.now, event, &mut self.ops);
        }
        self.shard.poll(self.now, &mut self.ops);
        self.ops.replies.drain(..).map(|(_, reply)| reply).collect()
    }

    /// A request, and its answer.
    fn ask(&mut self, request: Request) -> Reply<SimPlatform> {
        self.driver.request_in(1, Ticket(0), request);
        (0..TURNS_MAX).find_map(|_| self.turn().pop()).expect("every request is answered")
    }

    /// A client asks for the oldest records of a partition, to be sent from their file.
    fn fetch(&mut self, partition: u32) -> ConnId {
        let conn = self.driver.net.connect(partition, self.driver.now_ns());
        let request = FetchRequest::new(PartitionId(partition), Offset::ZERO, ByteCount::new(1));
        let frame = fetch_frame(partition.into(), &FetchRequest { mode: Some(Mode::Sendfile), ..request });
        self.driver.net.client_send(conn, &frame, self.driver.now_ns());
        conn
    }
}

/// Whoever waits for one segment's file is not told what became of another's: a file that cannot be opened ends the
/// connections that want it, and no others.
#[test]
fn a_file_that_cannot_be_opened_closes_nobody_elses_connection() {
    for seed in 0..64 {
        let mut bench = Bench::start(seed);
        bench.fill();
        bench.broken.store(true, Relaxed);
        let (lost, served) = (bench.fetch(0), bench.fetch(1));
        let mut bytes = Vec::new();
        let whole = |bytes: &[u8]| {
            read_header(bytes)
                .is_some_and(|(tag, len)| tag == 1 && bytes.len() == HEADER_LEN + len && len > 0)
        };
        for _ in 0..TURNS_MAX {
            bench.turn();
            bytes.extend(bench.driver.net.client_receive(served).unwrap_or_default());
            if whole(&bytes) && !bench.driver.net.is_open(lost) {
                break;
            }
        }
        assert!(!bench.driver.net.is_open(lost), "seed {seed}: its file cannot be opened");
        assert!(bench.driver.net.is_open(served), "seed {seed}: closed for another's sake");
        assert!(whole(&bytes), "seed {seed}: {} bytes", bytes.len());
    }
}
