//! What the tests of this module share: a platform without memory or sockets, and a partition on a disk in memory.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::memory::{MemoryDisk, MemoryFile};
use crate::error::PartitionError;
use crate::fetch::ModeSet;
use crate::format::batch::patch;
use crate::format::build::BatchBuilder;
use crate::format::names::{TopicName, TopicPartition};
use crate::format::side_file::SideFileBuilder;
use crate::log::step::{Companions, LastSegment, OpenedLog, Step, StepOutput};
use crate::log::{LogConfig, LogDir, LogDirOptions, WriteMode};
use crate::platform::{Arena, Chunk, Content, Lease, Platform};
use crate::types::{ByteCount, LeaderEpoch, Offset, Position, Timestamp};

/// A platform for steps only. Its memory types have no values.
pub(crate) enum StepsOnly {}

pub(crate) enum NoArena {}

#[derive(Clone)]
pub(crate) enum NoMemory {}

impl AsRef<[u8]> for NoMemory {
    fn as_ref(&self) -> &[u8] {
        match *self {}
    }
}

impl Lease for NoMemory {
    fn sent_before(&self) -> u64 {
        match *self {}
    }

    fn count_sent(&self, _: u64) {
        match *self {}
    }

    fn slice(&self, _: Range<usize>) -> Self {
        match *self {}
    }

    fn holds_up(&self) -> bool {
        match *self {}
    }
}

impl Chunk for NoMemory {
    type Lease = NoMemory;
    fn len(&self) -> usize {
        match *self {}
    }
    fn frozen(&self) -> usize {
        match *self {}
    }
    fn unfrozen_mut(&mut self) -> &mut [u8] {
        match *self {}
    }
    fn freeze(&mut self, _: usize) {
        match *self {}
    }
    fn lease(&self, _: Range<usize>) -> NoMemory {
        match *self {}
    }
}

impl Arena for NoArena {
    type Chunk = NoMemory;
    type Lease = NoMemory;
    type Slab = NoMemory;
    fn take(&mut self, _: ByteCount, _: Content) -> Option<NoMemory> {
        match *self {}
    }
    fn take_bounce(&mut self, _: &NoMemory) -> Option<NoMemory> {
        match *self {}
    }
    fn adopt(&mut self, _: NoMemory) {
        match *self {}
    }
    fn capacity(&self) -> ByteCount {
        match *self {}
    }
    fn free_len(&self) -> ByteCount {
        match *self {}
    }
    fn lent_len(&self) -> ByteCount {
        match *self {}
    }
    fn coming_len(&self) -> ByteCount {
        match *self {}
    }
    fn lends(&self) -> bool {
        match *self {}
    }
    fn settle(&mut self) {
        match *self {}
    }
}

impl Platform for StepsOnly {
    type Disk = MemoryDisk;
    type File = MemoryFile;
    type Arena = NoArena;
    type Slab = NoMemory;
    type Chunk = NoMemory;
    type Lease = NoMemory;
    type RecvBuf = NoMemory;
    const MODES: ModeSet = ModeSet::of(&[]);
}

pub(crate) type Opened = OpenedLog<StepsOnly>;

/// Where the tests' log directory lies.
pub(crate) const ROOT: &str = "/data";

/// The tests' partition.
pub(crate) fn name() -> TopicPartition {
    partition("t", 0)
}

/// A partition.
pub(crate) fn partition(topic: &str, number: i32) -> TopicPartition {
    TopicPartition::new(TopicName::new(topic).expect("a valid topic name"), number)
}

/// Path of a file of the tests' partition.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(ROOT).join("t-0").join(name)
}

/// Path of a segment's file of the tests' partition.
pub(crate) fn segment(base_offset: i64, suffix: &str) -> PathBuf {
    file(&format!("{base_offset:020}.{suffix}"))
}

/// Settings without direct I/O, which the tests' files are not padded for.
pub(crate) fn config() -> LogConfig {
    LogConfig { write_mode: WriteMode::Buffered, ..LogConfig::default() }
}

/// A disk with an empty root.
pub(crate) fn disk() -> MemoryDisk {
    MemoryDisk::new()
}

/// Opens the tests' log directory.
pub(crate) fn log_dir(disk: &MemoryDisk) -> Arc<LogDir<MemoryDisk>> {
    LogDir::open(disk.clone(), Path::new(ROOT), LogDirOptions::default()).expect("the log directory opens")
}

/// Opens the tests' partition.
pub(crate) fn try_open(
    log_dir: &LogDir<MemoryDisk>,
    config: &LogConfig,
) -> Result<Box<Opened>, PartitionError> {
    match (Step::<StepsOnly>::Open { name: name(), config: config.clone() }).run(log_dir) {
        StepOutput::Opened(result) => result,
        _ => unreachable!("a step answers in kind"),
    }
}

/// Opens log directory and partition after a crash: whatever had them open is gone.
pub(crate) fn reopen(disk: &MemoryDisk) -> Result<Box<Opened>, PartitionError> {
    try_open(&log_dir(disk), &config())
}

/// A batch of `count` records from `base` on, each with `len` bytes of value.
pub(crate) fn batch(base: i64, count: i64, len: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for i in 0..count {
        let value: Vec<u8> = (0..len).map(|j| (j as i64 * 31 + base + i) as u8 | 0x80).collect();
        builder.record(Timestamp::new(1_000 + base + i), None, Some(&value));
    }
    let mut bytes = builder.build();
    patch(&mut bytes, Offset::new(base), LeaderEpoch::ZERO);
    bytes
}

/// Batches of one record each, `[from, to)`.
pub(crate) fn batches(from: i64, to: i64, len: usize) -> Vec<u8> {
    (from..to).flat_map(|base| batch(base, 1, len)).collect()
}

/// Ends and log end offset of a log: what a recovery must leave.
pub(crate) fn shape(log: &Opened) -> (Vec<(i64, u64)>, i64) {
    let segments = log.segments.iter().map(|s| (s.base_offset.get(), s.end.get())).collect();
    (segments, log.segments.last().map_or(-1, |s| s.next_offset.get()))
}

/// A partition with these bytes in its only segment, after a kill: created by the engine, filled behind its back.
pub(crate) fn killed_with(bytes: &[u8]) -> MemoryDisk {
    let disk = disk();
    let opened = reopen(&disk).expect("a new partition opens");
    assert_eq!(shape(&opened), (vec![(0, 0)], 0));
    drop(opened);
    disk.edit(segment(0, "log"), |file| file.extend_from_slice(bytes));
    disk
}

/// What the active segment's companions still lack, as a shard would hand it to a seal.
pub(crate) fn companions_of(log: &mut Opened) -> Companions {
    let active = log.segments.last_mut().expect("a log has a segment");
    active.index.seal().expect("the index takes its last entry");
    let mut chain = match active.companions_len.chain {
        Position::ZERO => identity_bytes(log.topic_id, active.base_offset),
        _ => Vec::new(),
    };
    chain.extend(active.chain.as_mut().and_then(SideFileBuilder::close).into_iter().flatten());
    let rest = |bytes: &[u8], from: Position| bytes[from.get() as usize..].to_vec();
    Companions {
        name: Some(name()),
        base_offset: active.base_offset,
        index_position: active.companions_len.index,
        index: rest(active.index.offsets().as_bytes(), active.companions_len.index),
        time_index_position: active.companions_len.time_index,
        time_index: rest(active.index.times().as_bytes(), active.companions_len.time_index),
        chain_position: active.companions_len.chain,
        chain,
    }
}

fn identity_bytes(topic_id: crate::format::names::TopicId, base_offset: Offset) -> Vec<u8> {
    crate::format::side_file::SegmentIdentity { topic_id, partition: 0, base_offset }.encode().to_vec()
}

/// Closes the partition as a shard does.
pub(crate) fn close(log_dir: &LogDir<MemoryDisk>, mut log: Box<Opened>) {
    let companions = companions_of(&mut log);
    let active = log.segments.last_mut().expect("a log has a segment");
    let file = active.file.take().expect("the active segment is open");
    let step = Step::<StepsOnly>::Close {
        name: name(),
        config: config(),
        active: Some(LastSegment { file: Some(file), end: active.end, companions }),
        prepared: false,
        log_end_offset: active.next_offset,
        log_start_offset: log.log_start_offset,
    };
    assert!(matches!(step.run(log_dir), StepOutput::Closed(Ok(()))));
}

/// The tests' partition's leader epoch file.
pub(crate) fn epochs(disk: &MemoryDisk) -> String {
    let bytes = disk.get(file("leader-epoch-checkpoint")).expect("every partition has one");
    String::from_utf8(bytes).expect("it is text")
}
