//! A whole shard over real files: what was acknowledged is read back byte for byte, from memory and from
//! the device, after a clean stop and after none.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rohrpost_engine_core::fetch::{FetchRequest, Fetched};
use rohrpost_engine_core::format::batch::patch;
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::log::log_dir::{LogDir, LogDirOptions};
use rohrpost_engine_core::log::{LogConfig, WriteMode};
use rohrpost_engine_core::message::{PartitionId, Reply, Request, Ticket, Watermarks};
use rohrpost_engine_core::ops::{Driver, Ops};
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::{ByteCount, LeaderEpoch, Offset, Timestamp};
use rohrpost_engine_linux::arena::LinuxArena;
use rohrpost_engine_linux::disk::LinuxDisk;
use rohrpost_engine_linux::helper::{Helper, LinuxPlatform, ShardHelper};
use rohrpost_engine_linux::inbox::{Inbox, Mailbox, ReplySink};
use rohrpost_engine_linux::poll::{PollConfig, PollDriver};
use rohrpost_engine_linux::uring::{FeatureMask, UringConfig, UringDriver, probe};

const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: u32 = 3;

type Replies<P> = Rc<RefCell<Vec<(Ticket, Reply<P>)>>>;

struct Collect<P: LinuxPlatform>(Replies<P>);

impl<P: LinuxPlatform> ReplySink<P> for Collect<P> {
    fn reply(&mut self, ticket: Ticket, reply: Reply<P>) {
        self.0.borrow_mut().push((ticket, reply));
    }
}

/// One shard, run by the test's thread.
struct Node<D: Driver<Platform: LinuxPlatform>> {
    driver: D,
    shard: Shard<D::Platform, ()>,
    ops: Ops<D::Platform>,
    mailbox: Mailbox<D::Platform>,
    replies: Replies<D::Platform>,
    tickets: u64,
    log_dir: Arc<LogDir<LinuxDisk>>,
    _helper: Helper<D::Platform>,
}

/// A shard over the files of `root`, with the driver that `make` makes.
fn node<D: Driver<Platform: LinuxPlatform>>(
    root: &Path,
    make: impl FnOnce(Inbox<D::Platform>, ShardHelper<D::Platform>, Box<Collect<D::Platform>>) -> D,
) -> Node<D> {
    let log_dir = LogDir::open(LinuxDisk, root, LogDirOptions::default()).unwrap();
    let steps = Arc::clone(&log_dir);
    let helper = Helper::start(2, Box::new(move |step| step.run(&steps))).unwrap();
    let inbox = Inbox::new(1024).unwrap();
    let (mailbox, replies) = (inbox.mailbox(), Replies::default());
    let sink = Box::new(Collect(Rc::clone(&replies)));
    let driver = make(inbox, helper.for_shard(mailbox.clone()), sink);
    let limits = limits();
    let shard = Shard::new(limits.clone(), LinuxArena::new(limits.slabs_max()), ());
    let ops = Ops::with_capacity(1024);
    Node { driver, shard, ops, mailbox, replies, tickets: 0, log_dir, _helper: helper }
}

/// One slab: in the end, less than is appended.
fn limits() -> ShardLimits {
    ShardLimits::small()
}

fn poll_node(root: &Path) -> Node<PollDriver> {
    node(root, |inbox, helper, sink| {
        PollDriver::new(PollConfig::default(), None, inbox, helper, sink).unwrap()
    })
}

fn uring_node(root: &Path, mask: FeatureMask) -> Node<UringDriver> {
    let config = UringConfig::new(limits(), probe(mask).unwrap());
    node(root, |inbox, helper, sink| UringDriver::new(config, None, inbox, helper, sink).unwrap())
}

impl<D: Driver<Platform: LinuxPlatform>> Node<D> {
    fn turn(&mut self) {
        let mut events = Vec::new();
        let now = self.driver.now();
        // Who waits for the replies is this very thread.
        let soon = now.mono.plus_millis(if self.ops.replies.is_empty() { 50 } else { 0 });
        let deadline = self.shard.next_deadline(now).map_or(soon, |deadline| deadline.min(soon));
        self.driver.turn(&mut self.ops, &mut events, Some(deadline)).unwrap();
        let now = self.driver.now();
        for event in events {
            self.shard.handle_event(now, event, &mut self.ops);
        }
        self.shard.poll(now, &mut self.ops);
    }

    fn send(&mut self, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.mailbox.request(ticket, request).unwrap();
        ticket
    }

    fn wait(&mut self, ticket: Ticket) -> Reply<D::Platform> {
        let started = Instant::now();
        loop {
            let found = self.replies.borrow().iter().position(|(of, _)| *of == ticket);
            if let Some(at) = found {
                return self.replies.borrow_mut().swap_remove(at).1;
            }
            assert!(started.elapsed() < PATIENCE, "no reply to {ticket:?}");
            self.turn();
        }
    }

    fn open(&mut self, partition: u32, config: &LogConfig) -> Watermarks {
        let name = format!("t-{partition}").parse().unwrap();
        let partition = PartitionId(partition);
        let ticket = self.send(Request::Open { partition, name, config: config.clone() });
        let Reply::Opened(opened) = self.wait(ticket) else { panic!("not an answer to open") };
        opened.unwrap()
    }

    fn fetch(&mut self, partition: u32, offset: Offset, len_max: ByteCount) -> Fetched<D::Platform> {
        let request = FetchRequest::new(PartitionId(partition), offset, len_max);
        let ticket = self.send(Request::Fetch(request));
        let Reply::Fetched(fetched) = self.wait(ticket) else { panic!("not an answer to fetch") };
        fetched.unwrap()
    }

    fn stop(mut self) {
        let ticket = self.send(Request::Shutdown);
        let Reply::Stopped(stopped) = self.wait(ticket) else { panic!("not an answer to shutdown") };
        stopped.unwrap();
        assert!(self.shard.is_stopped());
        assert!(self.log_dir.close_clean().unwrap());
    }
}

/// What a partition must contain: its batches, as acknowledged.
#[derive(Default)]
struct Model {
    batches: Vec<(Offset, Vec<u8>)>,
    end: Offset,
}

impl Model {
    fn acknowledge(&mut self, base_offset: Offset, epoch: LeaderEpoch, mut batch: Vec<u8>, records: i64) {
        assert_eq!(base_offset, self.end);
        patch(&mut batch, base_offset, epoch);
        self.batches.push((base_offset, batch));
        self.end = base_offset.plus(records);
    }
}

/// A batch of `records` records with about `len` bytes in all.
fn batch(random: &mut fastrand::Rng, len: usize, records: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for _ in 0..records {
        let mut value = vec![0; len / records as usize];
        random.fill(&mut value);
        builder.record(Timestamp::new(1_700_000_000_000), None, Some(&value));
    }
    builder.build()
}

/// Appends in flights of eight, over all partitions, and checks every acknowledgement.
fn append<D: Driver<Platform: LinuxPlatform>>(
    node: &mut Node<D>,
    models: &mut [Model],
    epochs: &[LeaderEpoch],
    random: &mut fastrand::Rng,
    flights: usize,
) {
    for _ in 0..flights {
        let mut sent = Vec::new();
        for _ in 0..8 {
            let partition = random.u32(..PARTITIONS);
            let records = random.i64(1..4);
            let len = if random.u8(..8) == 0 { 900 << 10 } else { random.usize(100..64 << 10) };
            let batch = batch(random, len, records);
            let batches = Bytes::from(batch.clone());
            let ticket = node.send(Request::Append { partition: PartitionId(partition), batches });
            sent.push((ticket, partition as usize, batch, records));
        }
        for (ticket, partition, batch, records) in sent {
            let Reply::Appended(appended) = node.wait(ticket) else { panic!("not an answer to append") };
            models[partition].acknowledge(appended.unwrap().base_offset, epochs[partition], batch, records);
        }
    }
}

/// Reads every partition from its start to its end and compares.
fn check<D: Driver<Platform: LinuxPlatform>>(node: &mut Node<D>, models: &[Model]) {
    for (partition, model) in models.iter().enumerate() {
        let mut left = model.batches.iter();
        let mut offset = Offset::ZERO;
        while offset < model.end {
            let fetched = node.fetch(partition as u32, offset, ByteCount::kib(300));
            let bytes: Vec<u8> = fetched.pieces.iter().flat_map(|piece| piece.as_ref().to_vec()).collect();
            let mut at = 0;
            // The last batch of an answer may be cut.
            while let Some((base, batch)) = left.as_slice().first()
                && bytes.len() - at >= batch.len()
            {
                assert!(bytes[at..at + batch.len()] == batch[..], "t-{partition} at offset {base}");
                at += batch.len();
                left.next();
            }
            assert!(at > 0, "t-{partition}: no whole batch at offset {offset}");
            offset = left.as_slice().first().map_or(model.end, |(base, _)| *base);
        }
        assert_eq!(left.count(), 0);
    }
}

/// Whether io_uring works here; says so when not.
fn ring_available() -> bool {
    let report = probe(FeatureMask::NONE);
    if let Err(error) = &report {
        skip(&error);
    }
    report.is_ok()
}

fn lives_through_stops<D: Driver<Platform: LinuxPlatform>>(
    write_mode: WriteMode,
    make: impl Fn(&Path) -> Node<D>,
) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data");
    // The records are from 2023: nothing may be deleted for its age.
    let config = LogConfig {
        segment_len_max: ByteCount::mib(4),
        retention_ms: None,
        write_mode,
        ..LogConfig::default()
    };
    let mut random = fastrand::Rng::with_seed(5);
    let mut models: Vec<Model> = (0..PARTITIONS).map(|_| Model::default()).collect();
    for round in 0..3 {
        let mut node = make(&root);
        let watermarks: Vec<_> = (0..PARTITIONS).map(|partition| node.open(partition, &config)).collect();
        for (model, watermarks) in models.iter().zip(&watermarks) {
            assert_eq!(watermarks.log_end_offset, model.end, "round {round}");
            assert_eq!(watermarks.high_watermark, model.end);
        }
        check(&mut node, &models);
        let epochs: Vec<_> = watermarks.iter().map(|watermarks| watermarks.leader_epoch).collect();
        append(&mut node, &mut models, &epochs, &mut random, 40);
        check(&mut node, &models);
        assert!(round == 0 || node.shard.stats().cold_reads > 0, "nothing was read from the device");
        // The second round ends without a stop: the next one recovers.
        if round != 1 {
            node.stop();
        }
    }
}

#[test]
fn direct_partitions_live_through_stops_under_poll() {
    lives_through_stops(WriteMode::Direct, poll_node);
}

#[test]
fn buffered_partitions_live_through_stops_under_poll() {
    lives_through_stops(WriteMode::Buffered, poll_node);
}

#[test]
fn direct_partitions_live_through_stops_under_uring() {
    if ring_available() {
        lives_through_stops(WriteMode::Direct, |root| uring_node(root, FeatureMask::NONE));
    }
}

#[test]
fn direct_partitions_live_through_stops_under_uring_as_of_6_1() {
    if ring_available() {
        lives_through_stops(WriteMode::Direct, |root| uring_node(root, FeatureMask::KERNEL_6_1));
    }
}

#[test]
fn buffered_partitions_live_through_stops_under_uring() {
    if ring_available() {
        lives_through_stops(WriteMode::Buffered, |root| uring_node(root, FeatureMask::NONE));
    }
}

/// Says why a test tests nothing here. In continuous integration that is a failure.
fn skip(reason: &impl std::fmt::Display) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped in CI: {reason}");
    use std::io::Write as _;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the harness's capture, so that it can be seen.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {reason}");
}
