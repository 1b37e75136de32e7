//! A partition directory written with the formats alone, no engine: what the engine's files must look like.

use std::fs;
use std::path::Path;

use rohrpost_engine_core::format::batch::BatchHeader;
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::format::checkpoint::{EpochStart, write_epochs};
use rohrpost_engine_core::format::index::{OffsetIndex, TimeIndex};
use rohrpost_engine_core::format::index_build::{INDEX_INTERVAL_DEFAULT, IndexBuilder};
use rohrpost_engine_core::format::names::{LEADER_EPOCH_CHECKPOINT, SegmentFile, SegmentFileKind};
use rohrpost_engine_core::types::{LeaderEpoch, Offset, Position, Timestamp};

const ENTRIES_MAX: usize = 1024;
const START_MS: i64 = 1_700_000_000_000;

/// Shape of what [`write_partition`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Segments.
    pub segments: usize,
    /// Batches in each.
    pub batches: usize,
    /// Records in each batch.
    pub records: usize,
    /// Zero bytes behind the last batch of the last segment, as preallocation leaves them.
    pub zero_tail: usize,
}

impl Shape {
    /// Records altogether.
    pub const fn count(&self) -> usize {
        self.segments * self.batches * self.records
    }
}

/// Writes the files of a partition into the existing directory `dir`: record number i has key `key-i` and value
/// `value-i` followed by 100 letters, in segments with both indexes, all of leader epoch 0.
///
/// # Panics
/// If a file cannot be written.
pub fn write_partition(dir: &Path, shape: Shape) {
    let mut next = 0;
    for number in 0..shape.segments {
        let base = Offset::new(next);
        let mut log = Vec::new();
        let indexes = (OffsetIndex::new(base, ENTRIES_MAX), TimeIndex::new(base, ENTRIES_MAX));
        let mut index = IndexBuilder::new(indexes.0, indexes.1, INDEX_INTERVAL_DEFAULT);
        for _ in 0..shape.batches {
            let batch = batch(next, shape.records);
            let header = BatchHeader::peek(&batch).expect("the builder makes whole batches");
            let position = Position::new(log.len() as u64);
            index.push_batch(&header, position).expect("a small segment has room for its entries");
            log.extend_from_slice(&batch);
            next += shape.records as i64;
        }
        index.seal().expect("a small segment has room for its last entry");
        if number + 1 == shape.segments {
            log.resize(log.len() + shape.zero_tail, 0);
        }
        write(dir, base, SegmentFileKind::Log, &log);
        write(dir, base, SegmentFileKind::Index, index.offsets().as_bytes());
        write(dir, base, SegmentFileKind::TimeIndex, index.times().as_bytes());
    }
    let epochs = [EpochStart { epoch: LeaderEpoch::new(0), start_offset: Offset::ZERO }];
    put(&dir.join(LEADER_EPOCH_CHECKPOINT), write_epochs(&epochs).as_bytes());
}

/// Record `number` as [`crate::kafka::Broker::consume`] prints it.
pub fn printed(number: usize) -> String {
    format!("{number}\t{}\t{}", key(number), value(number))
}

/// A batch of `records` records from number `base` on, at that offset.
pub fn batch(base: i64, records: usize) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    batch.base_offset(Offset::new(base)).leader_epoch(LeaderEpoch::new(0));
    for number in base..base + records as i64 {
        let (key, value) = (key(number as usize), value(number as usize));
        batch.record(Timestamp::new(START_MS + number), Some(key.as_bytes()), Some(value.as_bytes()));
    }
    batch.build()
}

/// Key of record `number`.
pub fn key(number: usize) -> String {
    format!("key-{number}")
}

/// Value of record `number`.
pub fn value(number: usize) -> String {
    format!("value-{number}-{}", "abcdefghij".repeat(10))
}

fn write(dir: &Path, base: Offset, kind: SegmentFileKind, bytes: &[u8]) {
    put(&dir.join(SegmentFile::live(base, kind).to_string()), bytes);
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
