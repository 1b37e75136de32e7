//! The one error type of record batches.

use crate::types::{ByteCount, Offset};

/// Why bytes are not an acceptable batch. Byte numbers count from the start of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The bytes end before the header, or before the length it names. More bytes may complete it.
    #[error("batch is cut short: {needed} bytes needed, {found} present")]
    Incomplete {
        /// Bytes needed from the start of the batch.
        needed: ByteCount,
        /// Bytes there are.
        found: ByteCount,
    },
    /// The length field cannot belong to a batch.
    #[error("batch length at byte 8: expected 49 to {}, found {found}", i32::MAX - 12)]
    Length {
        /// The field's value.
        found: i32,
    },
    /// Another message format, or no batch at all.
    #[error("magic at byte 16: expected 2, found {found}")]
    Magic {
        /// The field's value.
        found: i8,
    },
    /// The stored checksum is not that of bytes 21 to the end.
    #[error("crc at byte 17: expected {expected:#010x}, found {found:#010x}")]
    Crc {
        /// Computed over the bytes.
        expected: u32,
        /// Stored in the header.
        found: u32,
    },
    /// Base offset and last offset delta do not name a range of offsets.
    #[error("offsets at bytes 0 and 23: expected both >= 0 and a sum that fits, found {base} + {delta}")]
    Offsets {
        /// Base offset.
        base: i64,
        /// Last offset delta.
        delta: i32,
    },
    /// More records than offsets, or a negative count.
    #[error("record count at byte 57: expected 0 to {max}, found {found}")]
    Count {
        /// Last offset delta + 1.
        max: i64,
        /// The field's value.
        found: i32,
    },
    /// The batch begins at or before the last offset of its predecessor.
    #[error("base offset at byte 0: expected at least {expected}, found {found}")]
    OffsetOrder {
        /// The offset after the predecessor's last.
        expected: Offset,
        /// The base offset found.
        found: Offset,
    },
    /// A producer's batch holds no record, or skips offsets.
    #[error("record count at byte 57: expected last offset delta + 1 = {expected} and not 0, found {found}")]
    AppendCount {
        /// Last offset delta + 1.
        expected: i64,
        /// The field's value.
        found: i32,
    },
    /// Larger than new batches may be.
    #[error("batch of {found} bytes is larger than the limit of {max}")]
    TooLarge {
        /// The configured limit.
        max: ByteCount,
        /// Total length of the batch.
        found: ByteCount,
    },
    /// Bytes follow the one batch an append may hold.
    #[error("expected one batch of {expected} bytes, found {found} bytes")]
    TrailingBytes {
        /// Total length of the first batch.
        expected: ByteCount,
        /// Bytes given.
        found: ByteCount,
    },
    /// A codec number that Kafka has not assigned.
    #[error("codec in bits 0-2 of byte 22: expected 0 to 4, found {found}")]
    Codec {
        /// The codec bits.
        found: u8,
    },
    /// Control batches are the broker's own; a producer may not send them.
    #[error("control bit of byte 22: expected 0 in a producer's batch, found 1")]
    ControlFromProducer,
    /// A producer id without a sequence.
    #[error("base sequence at byte 53: expected >= 0 with producer id {producer_id}, found {found}")]
    Sequence {
        /// The producer id, not negative.
        producer_id: i64,
        /// The field's value.
        found: i32,
    },
}
