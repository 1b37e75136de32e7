//! The side file of a segment (`.chain`): our own format, beside Kafka's. It covers what Kafka's CRC does not: the
//! first 21 bytes of every batch header and the batch's place in the log, under the partition's identity.
//!
//! A 64-byte header, then 64-byte records, little-endian, appended every few MiB and when the segment is sealed or
//! closed; never on the way to an acknowledgement. Each record carries its own CRC, its predecessor's, and a running
//! checksum (the chain) over (position, 21 header bytes) of every batch from the start of the segment.
//!
//! A missing, stale or damaged side file is rebuilt from the segment: it is never a reason to drop bytes that Kafka
//! would accept. A torn last record is just the end.

use super::batch::{BatchHeader, CRC_START};
use super::crc::{Crc32c, crc32c};
use super::names::TopicId;
pub use super::side_load::{ChainVerifier, SideFile};
use crate::types::{ByteCount, LeaderEpoch, Offset, Position, Timestamp};

/// Length of the file's header.
pub const SIDE_HEADER_LEN: usize = 64;
/// Length of a record. It divides a sector, so a record is whole or absent where sectors are.
pub const SIDE_RECORD_LEN: usize = 64;
/// Bytes of the log that a record covers, at least, unless the segment ends.
pub const SIDE_INTERVAL_DEFAULT: ByteCount = ByteCount::mib(4);

const MAGIC: [u8; 8] = *b"RPCHAIN\0";
const VERSION: u16 = 1;
const FLAG_SEALED: u32 = 1;
pub(super) const CRC_AT: usize = 60;

const _: () = assert!(512usize.is_multiple_of(SIDE_RECORD_LEN));
const _: () = assert!(SIDE_HEADER_LEN.is_multiple_of(SIDE_RECORD_LEN));

/// Which segment a side file belongs to. The chain starts from it, so batches of another log never fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentIdentity {
    /// The topic's id; zero if it has none.
    pub topic_id: TopicId,
    /// The partition number.
    pub partition: i32,
    /// Base offset of the segment.
    pub base_offset: Offset,
}

/// Why a side file is of no use: rebuild it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SideFileError {
    /// Shorter than its header.
    #[error("side file of {0} bytes has no header of 64")]
    TooShort(ByteCount),
    /// Another kind of file.
    #[error("side file starts with {0:02x?}, not with RPCHAIN")]
    Magic([u8; 8]),
    /// A version of another release.
    #[error("side file version: expected 1, found {0}")]
    Version(u16),
    /// A damaged header.
    #[error("side file header crc: expected {expected:#010x}, found {found:#010x}")]
    HeaderCrc {
        /// Computed over the header.
        expected: u32,
        /// Stored in it.
        found: u32,
    },
    /// The side file of another segment.
    #[error("side file belongs to {found:?}, expected {expected:?}")]
    Identity {
        /// The segment at hand.
        expected: SegmentIdentity,
        /// What the header says.
        found: SegmentIdentity,
    },
}

/// Damage inside a side file, with records behind it. The records before it are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SideFileProblem {
    /// The record's bytes are not what was written.
    #[error("side record {0}: damaged")]
    Damaged(usize),
    /// The record is whole but does not follow its predecessor.
    #[error("side record {0}: does not follow its predecessor")]
    Order(usize),
}

/// A batch, or a run of batches, is not what the chain recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("headers between positions {from} and {to} differ from side record {record}")]
pub struct ChainMismatch {
    /// Number of the record.
    pub record: usize,
    /// First position it covers.
    pub from: Position,
    /// The position after the last.
    pub to: Position,
}

/// One record: what was known when the log ended at `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideRecord {
    /// First position this record covers.
    pub from: Position,
    /// The position after the last; the log ended here.
    pub to: Position,
    /// The offset after the last batch.
    pub next_offset: Offset,
    /// Latest timestamp of the segment so far.
    pub max_timestamp: Timestamp,
    /// Leader epoch of the last batch; -1 before the first.
    pub leader_epoch: LeaderEpoch,
    /// Batches in `from..to`.
    pub batch_count: u32,
    /// The running checksum at `to`.
    pub chain: u32,
    /// Nothing follows in this segment.
    pub sealed: bool,
}

impl SegmentIdentity {
    /// The header of a new side file.
    pub fn encode(&self) -> [u8; SIDE_HEADER_LEN] {
        let mut out = [0; SIDE_HEADER_LEN];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(SIDE_HEADER_LEN as u16).to_le_bytes());
        out[12..16].copy_from_slice(&self.partition.to_le_bytes());
        out[16..32].copy_from_slice(&self.topic_id.to_bytes());
        out[32..40].copy_from_slice(&self.base_offset.get().to_le_bytes());
        seal_crc(&mut out);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SideFileError> {
        let Some(b) = bytes.first_chunk::<SIDE_HEADER_LEN>() else {
            return Err(SideFileError::TooShort(ByteCount::of_usize(bytes.len())));
        };
        let magic = chunk(b, 0);
        if magic != MAGIC {
            return Err(SideFileError::Magic(magic));
        }
        let version = u16::from_le_bytes(chunk(b, 8));
        if version != VERSION {
            return Err(SideFileError::Version(version));
        }
        let (expected, found) = (crc32c(&b[..CRC_AT]), le_u32(b, CRC_AT));
        if expected != found {
            return Err(SideFileError::HeaderCrc { expected, found });
        }
        Ok(Self {
            topic_id: TopicId::from_bytes(chunk(b, 16)),
            partition: i32::from_le_bytes(chunk(b, 12)),
            base_offset: Offset::new(i64::from_le_bytes(chunk(b, 32))),
        })
    }
}

impl SideRecord {
    pub(super) fn encode(&self, number: usize, crc_before: u32) -> [u8; SIDE_RECORD_LEN] {
        let mut out = [0; SIDE_RECORD_LEN];
        out[0..4].copy_from_slice(&(number as u32).to_le_bytes());
        out[4..8].copy_from_slice(&(if self.sealed { FLAG_SEALED } else { 0 }).to_le_bytes());
        out[8..16].copy_from_slice(&self.from.get().to_le_bytes());
        out[16..24].copy_from_slice(&self.to.get().to_le_bytes());
        out[24..32].copy_from_slice(&self.next_offset.get().to_le_bytes());
        out[32..40].copy_from_slice(&self.max_timestamp.get().to_le_bytes());
        out[40..44].copy_from_slice(&self.leader_epoch.get().to_le_bytes());
        out[44..48].copy_from_slice(&self.batch_count.to_le_bytes());
        out[48..52].copy_from_slice(&self.chain.to_le_bytes());
        out[52..56].copy_from_slice(&crc_before.to_le_bytes());
        seal_crc(&mut out);
        out
    }

    pub(super) fn decode(b: &[u8; SIDE_RECORD_LEN]) -> Self {
        Self {
            from: Position::new(u64::from_le_bytes(chunk(b, 8))),
            to: Position::new(u64::from_le_bytes(chunk(b, 16))),
            next_offset: Offset::new(i64::from_le_bytes(chunk(b, 24))),
            max_timestamp: Timestamp::new(i64::from_le_bytes(chunk(b, 32))),
            leader_epoch: LeaderEpoch::new(le_u32(b, 40) as i32),
            batch_count: le_u32(b, 44),
            chain: le_u32(b, 48),
            sealed: le_u32(b, 4) & FLAG_SEALED != 0,
        }
    }
}

/// Makes the records of a side file from the batches of its segment, in order.
#[derive(Clone, Debug)]
pub struct SideFileBuilder {
    chain: Crc32c,
    last: SideRecord,
    pending: SideRecord,
    number: usize,
    crc_before: u32,
    interval: ByteCount,
}

impl SideFileBuilder {
    /// A side file from the start of its segment; `identity.encode()` is its header. A record becomes due when
    /// it covers `interval` bytes.
    pub fn new(identity: SegmentIdentity, interval: ByteCount) -> Self {
        let start = start_of(identity);
        let header = identity.encode();
        Self {
            chain: chain_of(identity),
            last: start,
            pending: start,
            number: 0,
            crc_before: le_u32(&header, CRC_AT),
            interval,
        }
    }

    /// Continues a loaded side file. Feed the batches from its `end_position` on, and write the records from its
    /// `valid_len` on.
    pub fn resume(file: &SideFile, interval: ByteCount) -> Self {
        let last = SideRecord { sealed: false, batch_count: 0, ..file.end() };
        let pending = SideRecord { from: last.to, ..last };
        let chain = Crc32c::resume(last.chain);
        Self { chain, last, pending, number: file.records.len(), crc_before: file.crc_last, interval }
    }

    /// Takes note of the next batch; returns a record when one is due.
    ///
    /// # Panics
    /// If `position` is not where the last batch ended.
    pub fn push_batch(&mut self, batch: &BatchHeader, position: Position) -> Option<[u8; SIDE_RECORD_LEN]> {
        add(&mut self.chain, &mut self.pending, batch, position);
        (self.pending.to.since(self.pending.from) >= self.interval).then(|| self.emit(false))
    }

    /// The record of a clean close: what came since the last one, if anything.
    pub fn close(&mut self) -> Option<[u8; SIDE_RECORD_LEN]> {
        (self.pending.to > self.last.to).then(|| self.emit(false))
    }

    /// The last record of the segment.
    pub fn seal(&mut self) -> [u8; SIDE_RECORD_LEN] {
        self.emit(true)
    }

    /// End of what has been fed.
    pub const fn end_position(&self) -> Position {
        self.pending.to
    }

    fn emit(&mut self, sealed: bool) -> [u8; SIDE_RECORD_LEN] {
        let record = SideRecord { sealed, chain: self.chain.value(), ..self.pending };
        let bytes = record.encode(self.number, self.crc_before);
        self.number += 1;
        self.crc_before = le_u32(&bytes, CRC_AT);
        self.last = record;
        self.pending = SideRecord { from: record.to, batch_count: 0, ..record };
        bytes
    }
}

pub(super) fn add(chain: &mut Crc32c, state: &mut SideRecord, batch: &BatchHeader, position: Position) {
    assert_eq!(position, state.to, "batches are fed in order, without holes");
    let mut covered = [0; 8 + CRC_START];
    covered[..8].copy_from_slice(&position.get().to_le_bytes());
    covered[8..].copy_from_slice(&batch.unprotected_bytes());
    chain.update(&covered);
    state.to = position.plus(batch.batch_len());
    state.next_offset = batch.next_offset();
    state.max_timestamp = state.max_timestamp.max(batch.max_timestamp());
    state.leader_epoch = batch.leader_epoch();
    state.batch_count += 1;
}

pub(super) fn chain_of(identity: SegmentIdentity) -> Crc32c {
    let mut chain = Crc32c::new();
    // Without the header's own CRC: a CRC over bytes and their CRC is the same for all bytes.
    chain.update(&identity.encode()[..CRC_AT]);
    chain
}

pub(super) fn start_of(identity: SegmentIdentity) -> SideRecord {
    SideRecord {
        from: Position::ZERO,
        to: Position::ZERO,
        next_offset: identity.base_offset,
        max_timestamp: Timestamp::NONE,
        leader_epoch: LeaderEpoch::new(-1),
        batch_count: 0,
        chain: chain_of(identity).value(),
        sealed: false,
    }
}

fn seal_crc(block: &mut [u8; 64]) {
    let crc = crc32c(&block[..CRC_AT]);
    block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

fn chunk<const N: usize>(b: &[u8; 64], at: usize) -> [u8; N] {
    b[at..at + N].try_into().expect("a slice of N bytes is an array of N bytes")
}

pub(super) fn le_u32(b: &[u8; 64], at: usize) -> u32 {
    u32::from_le_bytes(chunk(b, at))
}

#[cfg(test)]
#[path = "side_file_tests.rs"]
mod tests;
