//! Record batch v2: the unit of append, storage and fetch. A view of its 61-byte header, validation, and the
//! two fields a leader assigns in place.
//!
//! A `BatchHeader` that exists is consistent in itself: magic 2, a length Kafka can store, offsets that do not
//! overflow, a count that fits its offsets. Whether the bytes behind it match is `validate`'s business (CRC).
//! Big-endian throughout; the CRC covers bytes 21 to the end, so base offset and leader epoch lie outside it.

pub use super::attributes::{Attributes, Codec, TimestampType};
pub use super::batch_error::BatchError;
use super::crc::crc32c;
use crate::types::{ByteCount, LeaderEpoch, Offset, Timestamp};

/// Length of the header; also the least a batch can take.
pub const HEADER_LEN: usize = 61;
/// Bytes from the start that a walk over batches needs: base offset, length, magic, last offset delta.
pub const PREFIX_LEN: usize = 27;
/// Base offset and length field: what the length field does not count.
pub const LOG_OVERHEAD: usize = 12;
/// First byte the CRC covers.
pub const CRC_START: usize = 21;
/// The only magic this engine stores. Kafka 4 dropped the older message formats.
pub const MAGIC: i8 = 2;
/// Kafka's default `message.max.bytes`: 1 MiB of payload and the 12 bytes before the length counts.
pub const BATCH_LEN_MAX_DEFAULT: ByteCount = ByteCount::new(1_048_588);
/// The largest batch Kafka can store or name in a fetch: its sizes are `i32`.
pub const BATCH_LEN_MAX_STORABLE: ByteCount = ByteCount::new(i32::MAX as u64);

const _: () = assert!(BATCH_LEN_MAX_DEFAULT.get() == (1 << 20) + LOG_OVERHEAD as u64);

/// What the first 27 bytes tell: enough to place a batch and to step to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPrefix {
    base_offset: Offset,
    len: u32,
    last_offset_delta: i32,
}

impl BatchPrefix {
    /// Reads the prefix.
    ///
    /// # Errors
    /// `Incomplete` below 27 bytes; `Length`, `Magic`, `Offsets` for bytes that cannot start a batch.
    #[inline]
    pub fn peek(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(b) = bytes.first_chunk::<PREFIX_LEN>() else {
            return Err(incomplete(PREFIX_LEN, bytes.len()));
        };
        let length = be_i32(b, 8);
        if length < (HEADER_LEN - LOG_OVERHEAD) as i32 || length > i32::MAX - LOG_OVERHEAD as i32 {
            return Err(BatchError::Length { found: length });
        }
        let magic = b[16] as i8;
        if magic != MAGIC {
            return Err(BatchError::Magic { found: magic });
        }
        let (base, delta) = (be_i64(b, 0), be_i32(b, 23));
        if base < 0 || delta < 0 || base >= i64::MAX - i64::from(delta) {
            return Err(BatchError::Offsets { base, delta });
        }
        let len = length as u32 + LOG_OVERHEAD as u32;
        Ok(Self { base_offset: Offset::new(base), len, last_offset_delta: delta })
    }

    /// Offset of the first record.
    #[inline]
    pub const fn base_offset(self) -> Offset {
        self.base_offset
    }

    /// Offset of the last record (or of the last one there was, before compaction).
    #[inline]
    pub const fn last_offset(self) -> Offset {
        self.base_offset.plus(self.last_offset_delta as i64)
    }

    /// The offset after the last.
    #[inline]
    pub const fn next_offset(self) -> Offset {
        self.last_offset().plus(1)
    }

    /// Total length, header included.
    #[inline]
    pub const fn len(self) -> ByteCount {
        ByteCount::new(self.len as u64)
    }

    /// Never: a batch has at least its header. (For the lint that wants it beside `len`.)
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// A parsed batch header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    prefix: BatchPrefix,
    leader_epoch: LeaderEpoch,
    crc: u32,
    attributes: Attributes,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    count: i32,
}

impl BatchHeader {
    /// Reads a header from the first 61 bytes. Does not look at the records.
    ///
    /// # Errors
    /// `Incomplete` below 61 bytes; `Length`, `Magic`, `Offsets`, `Count` for bytes that are no batch header.
    #[inline]
    pub fn peek(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(b) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(incomplete(HEADER_LEN, bytes.len()));
        };
        let prefix = BatchPrefix::peek(b)?;
        let (count, max) = (be_i32(b, 57), i64::from(prefix.last_offset_delta) + 1);
        if count < 0 || i64::from(count) > max {
            return Err(BatchError::Count { max, found: count });
        }
        Ok(Self {
            prefix,
            leader_epoch: LeaderEpoch::new(be_i32(b, 12)),
            crc: be_i32(b, 17) as u32,
            attributes: Attributes::from_bits(be_i16(b, 21)),
            base_timestamp: Timestamp::new(be_i64(b, 27)),
            max_timestamp: Timestamp::new(be_i64(b, 35)),
            producer_id: be_i64(b, 43),
            producer_epoch: be_i16(b, 51),
            base_sequence: be_i32(b, 53),
            count,
        })
    }

    /// The fields a walk needs.
    #[inline]
    pub const fn prefix(&self) -> BatchPrefix {
        self.prefix
    }

    /// Offset of the first record.
    #[inline]
    pub const fn base_offset(&self) -> Offset {
        self.prefix.base_offset()
    }

    /// Total length in bytes, the 12 bytes before the counted part included.
    #[inline]
    pub const fn batch_len(&self) -> ByteCount {
        self.prefix.len()
    }

    /// Term of the leader that appended the batch; -1 from a producer.
    pub const fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// The message format: always 2.
    pub const fn magic(&self) -> i8 {
        MAGIC
    }

    /// The stored CRC-32C of bytes 21 to the end.
    pub const fn crc(&self) -> u32 {
        self.crc
    }

    /// Codec, timestamp type and flags.
    pub const fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// Last offset minus base offset.
    pub const fn last_offset_delta(&self) -> i32 {
        self.prefix.last_offset_delta
    }

    /// Offset of the last record (or of the last one there was, before compaction).
    #[inline]
    pub const fn last_offset(&self) -> Offset {
        self.prefix.last_offset()
    }

    /// The offset after the last.
    #[inline]
    pub const fn next_offset(&self) -> Offset {
        self.prefix.next_offset()
    }

    /// What record timestamps are relative to; the delete horizon where that bit is set.
    pub const fn base_timestamp(&self) -> Timestamp {
        self.base_timestamp
    }

    /// Largest timestamp of the batch; -1 if it has none.
    pub const fn max_timestamp(&self) -> Timestamp {
        self.max_timestamp
    }

    /// When the cleaner may drop this batch's tombstones, if it has stamped it.
    pub const fn delete_horizon(&self) -> Option<Timestamp> {
        if self.attributes.has_delete_horizon() { Some(self.base_timestamp) } else { None }
    }

    /// Idempotent producer's id, or -1.
    pub const fn producer_id(&self) -> i64 {
        self.producer_id
    }

    /// The producer's epoch, or -1.
    pub const fn producer_epoch(&self) -> i16 {
        self.producer_epoch
    }

    /// Sequence of the first record, or -1.
    pub const fn base_sequence(&self) -> i32 {
        self.base_sequence
    }

    /// Sequence of the last record, wrapping from 2^31 - 1 to 0 as Kafka's do; -1 without a sequence.
    pub const fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            return -1;
        }
        self.base_sequence.wrapping_add(self.prefix.last_offset_delta) & i32::MAX
    }

    /// Number of records in the batch; compaction can leave 0.
    pub const fn count(&self) -> i32 {
        self.count
    }

    /// The first 21 bytes as they are stored: what the CRC does not cover, and the CRC itself.
    pub fn unprotected_bytes(&self) -> [u8; CRC_START] {
        let mut out = [0; CRC_START];
        let length = self.prefix.len - LOG_OVERHEAD as u32;
        out[0..8].copy_from_slice(&self.base_offset().get().to_be_bytes());
        out[8..12].copy_from_slice(&length.to_be_bytes());
        out[12..16].copy_from_slice(&self.leader_epoch.get().to_be_bytes());
        out[16] = MAGIC as u8;
        out[17..21].copy_from_slice(&self.crc.to_be_bytes());
        out
    }

    /// Compares the stored CRC with one computed over bytes 21 to the end.
    ///
    /// # Errors
    /// `Crc` if they differ.
    #[inline]
    pub const fn check_crc(&self, computed: u32) -> Result<(), BatchError> {
        if self.crc == computed {
            Ok(())
        } else {
            Err(BatchError::Crc { expected: computed, found: self.crc })
        }
    }

    /// Checks a producer's batch against Kafka's rules, all but the CRC. The base offset is free: the log
    /// assigns it.
    ///
    /// # Errors
    /// `TooLarge`, `AppendCount`, `Codec`, `ControlFromProducer` or `Sequence`, in this order.
    pub fn check_append(&self, len_max: ByteCount) -> Result<(), BatchError> {
        if self.batch_len() > len_max {
            return Err(BatchError::TooLarge { max: len_max, found: self.batch_len() });
        }
        let expected = i64::from(self.last_offset_delta()) + 1;
        if i64::from(self.count) != expected {
            return Err(BatchError::AppendCount { expected, found: self.count });
        }
        self.attributes.codec()?;
        if self.attributes.is_control() {
            return Err(BatchError::ControlFromProducer);
        }
        if self.producer_id >= 0 && self.base_sequence < 0 {
            return Err(BatchError::Sequence { producer_id: self.producer_id, found: self.base_sequence });
        }
        Ok(())
    }
}

/// Checks the batch at the start of `bytes`: header, completeness, `len_max`, CRC. More bytes may follow.
///
/// # Errors
/// The first `BatchError` found; `Incomplete` says how many bytes would complete it.
pub fn validate(bytes: &[u8], len_max: ByteCount) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::peek(bytes)?;
    if header.batch_len() > len_max {
        return Err(BatchError::TooLarge { max: len_max, found: header.batch_len() });
    }
    let Some(batch) = bytes.get(..header.batch_len().as_usize()) else {
        return Err(incomplete(header.batch_len().as_usize(), bytes.len()));
    };
    header.check_crc(crc32c(&batch[CRC_START..]))?;
    Ok(header)
}

/// Checks that `bytes` are exactly one batch that a producer may append: Kafka's rules and the CRC.
///
/// # Errors
/// The first `BatchError` found.
pub fn validate_append(bytes: &[u8], len_max: ByteCount) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::peek(bytes)?;
    header.check_append(len_max)?;
    let (expected, found) = (header.batch_len(), ByteCount::of_usize(bytes.len()));
    if found > expected {
        return Err(BatchError::TrailingBytes { expected, found });
    }
    validate(bytes, len_max)
}

/// Assigns base offset and leader epoch in place. The CRC does not cover them and stays valid.
///
/// # Panics
/// If `batch` is shorter than 16 bytes: the caller has parsed it before.
#[inline]
pub fn patch(batch: &mut [u8], base_offset: Offset, leader_epoch: LeaderEpoch) {
    batch[0..8].copy_from_slice(&base_offset.get().to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.get().to_be_bytes());
}

const fn incomplete(needed: usize, found: usize) -> BatchError {
    BatchError::Incomplete { needed: ByteCount::of_usize(needed), found: ByteCount::of_usize(found) }
}

#[inline]
fn be_i16<const N: usize>(b: &[u8; N], at: usize) -> i16 {
    i16::from_be_bytes([b[at], b[at + 1]])
}

#[inline]
pub(super) fn be_i32<const N: usize>(b: &[u8; N], at: usize) -> i32 {
    i32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

#[inline]
fn be_i64<const N: usize>(b: &[u8; N], at: usize) -> i64 {
    (i64::from(be_i32(b, at)) << 32) | i64::from(be_i32(b, at + 4) as u32)
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
