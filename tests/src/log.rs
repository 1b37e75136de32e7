//! The engine from a test's side: batches that tell one from another, and everything a log holds.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rohrpost_engine::format::batch::{BatchHeader, HEADER_LEN};
use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::format::walk::{BatchWalk, Check};
use rohrpost_engine::{
    AppendError, AppendResult, Appended, ByteCount, DriverChoice, EngineOptions, LogConfig, Offset,
    Partition, Pending, Position, RequestError, ShardLimits, Timestamp,
};

/// Both drivers, each chosen by name.
pub const DRIVERS: [DriverChoice; 2] = [DriverChoice::Poll, DriverChoice::Uring];

/// A hang is a failure, not a test run without end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Header bytes that the log assigns: base offset, and leader epoch.
const ASSIGNED: [std::ops::Range<usize>; 2] = [0..8, 12..16];

/// An engine of one slab on a driver, impatient about locks.
pub fn options(dir: &std::path::Path, driver: DriverChoice) -> EngineOptions {
    EngineOptions {
        driver,
        limits: ShardLimits::small(),
        lock_patience_ms: 20_000,
        ..EngineOptions::new(dir)
    }
}

/// Small segments that are kept for ever.
pub fn config() -> LogConfig {
    LogConfig {
        segment_len_max: ByteCount::mib(2),
        batch_len_max: ByteCount::kib(512),
        retention_ms: None,
        ..LogConfig::default()
    }
}

/// A batch like no other: `records` records, `len` bytes of values in all, drawn from `number`.
pub fn batch(number: u64, records: usize, len: usize) -> Bytes {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut builder = BatchBuilder::new();
    let mut value = vec![0; len / records.max(1)];
    for record in 0..records {
        for word in value.chunks_mut(8) {
            // xorshift64: cheap, and no two batches alike.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let len = word.len();
            word.copy_from_slice(&state.to_le_bytes()[..len]);
        }
        let key = number.to_le_bytes();
        builder.record(Timestamp::new(1_700_000_000_000 + record as i64), Some(&key), Some(&value));
    }
    builder.build().into()
}

/// The number that [`batch`] was given: the key of the first record.
///
/// # Panics
/// If the bytes are too short to be such a batch.
pub fn number_of(bytes: &[u8]) -> u64 {
    let mut at = HEADER_LEN;
    while bytes[at] & 0x80 != 0 {
        at += 1; // the record's length, a varint
    }
    at += 1 + 4; // and, one byte each: attributes, both deltas, the key's length
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A batch as a reader gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub next_offset: Offset,
    /// All of it.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// Whether this is `sent`, but for what the log assigns.
    pub fn is(&self, sent: &[u8]) -> bool {
        let mut sent = sent.to_vec();
        if sent.len() != self.bytes.len() {
            return false;
        }
        for range in ASSIGNED {
            sent[range.clone()].copy_from_slice(&self.bytes[range]);
        }
        sent == self.bytes
    }
}

/// Splits bytes from the log, whose first batch is to begin at or before `offset`, into whole batches, each
/// checked against its CRC; what is left of a last, unfinished one is dropped.
pub fn split(bytes: &[u8], offset: Offset) -> Vec<Stored> {
    let first = BatchHeader::peek(bytes).map_or(offset, |header| header.base_offset());
    let mut batches = Vec::new();
    for (position, header) in BatchWalk::new(bytes, Position::ZERO, first, Check::Crc) {
        let from = position.get() as usize;
        batches.push(Stored {
            base_offset: header.base_offset(),
            next_offset: header.next_offset(),
            bytes: bytes[from..from + header.batch_len().as_usize()].to_vec(),
        });
    }
    batches
}

/// Everything from `from` on.
///
/// # Panics
/// If a fetch fails, or brings bytes without a whole batch.
pub fn read_all(partition: &Partition, from: Offset) -> Vec<Stored> {
    let (mut all, mut offset) = (Vec::new(), from);
    loop {
        let fetched =
            partition.fetch(offset, ByteCount::mib(1)).wait().unwrap_or_else(|e| panic!("{offset}: {e}"));
        if fetched.is_empty() {
            return all;
        }
        let bytes = fetched.to_bytes();
        let batches = split(&bytes, offset);
        let Some(last) = batches.last() else {
            let first = BatchHeader::peek(&bytes);
            panic!("no whole batch at {offset}: {:?}, {first:?}", fetched.outcome);
        };
        offset = last.next_offset;
        all.extend(batches);
    }
}

/// What was acknowledged, by offset.
#[derive(Debug, Default)]
pub struct Ledger(Vec<(Offset, Bytes)>);

impl Ledger {
    /// Notes an acknowledgement.
    pub fn push(&mut self, base_offset: Offset, batch: Bytes) {
        self.0.push((base_offset, batch));
    }

    /// Acknowledged batches.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that every acknowledged batch is there byte for byte, and that offsets are dense from 0.
    ///
    /// # Panics
    /// If not.
    pub fn check(&self, partition: &Partition) {
        let stored = read_all(partition, Offset::ZERO);
        let mut next = Offset::ZERO;
        for batch in &stored {
            assert_eq!(batch.base_offset, next, "offsets are dense");
            next = batch.next_offset;
        }
        for (base_offset, sent) in &self.0 {
            let at = stored.binary_search_by_key(base_offset, |batch| batch.base_offset);
            let batch =
                at.map(|at| &stored[at]).unwrap_or_else(|_| panic!("acknowledged {base_offset} is lost"));
            assert!(batch.is(sent), "acknowledged {base_offset} is not what was sent");
        }
    }
}

/// The answer, if it is there already.
pub fn peek<T: Unpin>(pending: &mut Pending<T>) -> Option<T> {
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(pending).poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The answer, which may have been asked for with [`peek`] before.
pub fn settle<T: Unpin>(mut pending: Pending<T>) -> T {
    loop {
        match peek(&mut pending) {
            Some(value) => return value,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Appends under way, with what was sent.
pub type Waiting = Vec<(Pending<AppendResult<Appended>>, Bytes)>;

/// Appends until it is refused, at most `batches_max` times; what has not ended yet is left in `waiting`.
///
/// # Panics
/// If it is not refused within a minute.
pub fn append_until_refused(
    partition: &Partition,
    ledger: &mut Ledger,
    waiting: &mut Waiting,
    batches_max: u64,
) -> RequestError<AppendError> {
    let start = Instant::now();
    let mut number = 1_000 * ledger.len() as u64;
    let mut sent_count = 0;
    loop {
        if waiting.len() < 4 && sent_count < batches_max {
            number += 1;
            sent_count += 1;
            let sent = batch(number, 2, 100_000);
            waiting.push((partition.append(sent.clone()), sent));
        }
        let mut refused = None;
        let mut at = 0;
        while at < waiting.len() {
            match peek(&mut waiting[at].0) {
                None => at += 1,
                Some(Ok(appended)) => ledger.push(appended.base_offset, waiting.remove(at).1),
                Some(Err(error)) => {
                    drop(waiting.remove(at));
                    refused = Some(error);
                }
            }
        }
        if let Some(error) = refused {
            return error;
        }
        if waiting.len() >= 4 {
            // The full device is found out in memory; ask once more with another append.
            let probe = batch(number, 1, 10);
            let mut pending = partition.append(probe.clone());
            std::thread::sleep(Duration::from_millis(5));
            match peek(&mut pending) {
                None => waiting.push((pending, probe)),
                Some(Ok(appended)) => ledger.push(appended.base_offset, probe),
                Some(Err(error)) => return error,
            }
        }
        assert!(start.elapsed() < PATIENCE, "never refused, {} acknowledged", ledger.len());
        assert!(waiting.len() < 1_000, "never refused, {} wait", waiting.len());
    }
}
