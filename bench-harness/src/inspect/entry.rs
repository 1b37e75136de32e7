//! One printed line: a batch, an index entry, a producer. The text is that of Apache Kafka's DumpLogSegments,
//! word for word, so that the two can be compared with `diff`; JSON has the same names.

use std::fmt;

use rohrpost_engine_core::format::batch::{BatchHeader, Codec, TimestampType};
use rohrpost_engine_core::format::index::{OffsetEntry, TimeEntry};
use rohrpost_engine_core::format::producer_snapshot::ProducerEntry;
use rohrpost_engine_core::format::txn_index::AbortedTxn;
use serde::Serialize;

/// A line of the dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// A record batch.
    Batch(BatchLine),
    /// An entry of an offset index.
    OffsetIndex {
        /// Last offset of the batch.
        offset: i64,
        /// Where it starts.
        position: u64,
    },
    /// An entry of a time index.
    TimeIndex {
        /// Largest timestamp so far, in ms.
        timestamp: i64,
        /// Last offset of the batch that has it.
        offset: i64,
    },
    /// An aborted transaction.
    #[serde(rename_all = "camelCase")]
    TxnIndex {
        /// Whose.
        producer_id: i64,
        /// Its first offset.
        first_offset: i64,
        /// The offset of its abort marker.
        last_offset: i64,
        /// The last stable offset then.
        last_stable_offset: i64,
    },
    /// A producer in a snapshot.
    Producer(ProducerLine),
}

/// A producer as DumpLogSegments shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the fields are Kafka's, under Kafka's names
pub struct ProducerLine {
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub coordinator_epoch: i32,
    pub current_txn_first_offset: Option<i64>,
    pub first_sequence: i32,
    pub last_sequence: i32,
    pub last_offset: i64,
    pub offset_delta: i32,
    pub timestamp: i64,
}

/// A record batch as DumpLogSegments shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the fields are Kafka's, under Kafka's names
pub struct BatchLine {
    pub base_offset: i64,
    pub last_offset: i64,
    pub count: i32,
    pub base_sequence: i32,
    pub last_sequence: i32,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub partition_leader_epoch: i32,
    pub is_transactional: bool,
    pub is_control: bool,
    pub delete_horizon_ms: Option<i64>,
    pub position: u64,
    pub timestamp_type: &'static str,
    pub max_timestamp: i64,
    pub size: u64,
    pub magic: i8,
    pub compresscodec: &'static str,
    pub crc: u32,
    pub isvalid: bool,
}

impl BatchLine {
    /// The line for a batch at `position`; `valid` says whether its CRC is right.
    pub(super) fn new(header: &BatchHeader, position: u64, valid: bool) -> Self {
        let attributes = header.attributes();
        Self {
            base_offset: header.base_offset().get(),
            last_offset: header.last_offset().get(),
            count: header.count(),
            base_sequence: header.base_sequence(),
            last_sequence: header.last_sequence(),
            producer_id: header.producer_id(),
            producer_epoch: header.producer_epoch(),
            partition_leader_epoch: header.leader_epoch().get(),
            is_transactional: attributes.is_transactional(),
            is_control: attributes.is_control(),
            delete_horizon_ms: header.delete_horizon().map(|t| t.get()),
            position,
            timestamp_type: match attributes.timestamp_type() {
                TimestampType::CreateTime => "CreateTime",
                TimestampType::LogAppendTime => "LogAppendTime",
            },
            max_timestamp: header.max_timestamp().get(),
            size: header.batch_len().get(),
            magic: header.magic(),
            compresscodec: match attributes.codec() {
                Ok(Codec::None) => "none",
                Ok(Codec::Gzip) => "gzip",
                Ok(Codec::Snappy) => "snappy",
                Ok(Codec::Lz4) => "lz4",
                Ok(Codec::Zstd) => "zstd",
                Err(_) => "unknown",
            },
            crc: header.crc(),
            isvalid: valid,
        }
    }
}

impl From<OffsetEntry> for Entry {
    fn from(entry: OffsetEntry) -> Self {
        Self::OffsetIndex { offset: entry.last_offset.get(), position: entry.position.get() }
    }
}

impl From<TimeEntry> for Entry {
    fn from(entry: TimeEntry) -> Self {
        Self::TimeIndex { timestamp: entry.timestamp.get(), offset: entry.offset.get() }
    }
}

impl From<&AbortedTxn> for Entry {
    fn from(aborted: &AbortedTxn) -> Self {
        Self::TxnIndex {
            producer_id: aborted.producer_id,
            first_offset: aborted.first_offset.get(),
            last_offset: aborted.last_offset.get(),
            last_stable_offset: aborted.last_stable_offset.get(),
        }
    }
}

impl From<&ProducerEntry> for Entry {
    fn from(producer: &ProducerEntry) -> Self {
        let first_offset = producer.transaction_first_offset.get();
        let first_sequence = producer.last_sequence.wrapping_sub(producer.offset_delta) & i32::MAX;
        Self::Producer(ProducerLine {
            producer_id: producer.producer_id,
            producer_epoch: producer.producer_epoch,
            coordinator_epoch: producer.coordinator_epoch,
            current_txn_first_offset: (first_offset >= 0).then_some(first_offset),
            first_sequence: if producer.last_sequence < 0 { -1 } else { first_sequence },
            last_sequence: producer.last_sequence,
            last_offset: producer.last_offset.get(),
            offset_delta: producer.offset_delta,
            timestamp: producer.timestamp.get(),
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch(batch) => batch.fmt(f),
            Self::OffsetIndex { offset, position } => write!(f, "offset: {offset} position: {position}"),
            Self::TimeIndex { timestamp, offset } => write!(f, "timestamp: {timestamp} offset: {offset}"),
            Self::TxnIndex { producer_id, first_offset, last_offset, last_stable_offset } => {
                write!(f, "version: 0 producerId: {producer_id} firstOffset: {first_offset} ")?;
                write!(f, "lastOffset: {last_offset} lastStableOffset: {last_stable_offset}")
            }
            Self::Producer(producer) => producer.fmt(f),
        }
    }
}

impl fmt::Display for BatchLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "baseOffset: {} lastOffset: {} ", self.base_offset, self.last_offset)?;
        write!(f, "count: {} baseSequence: {} ", self.count, self.base_sequence)?;
        write!(f, "lastSequence: {} producerId: {} ", self.last_sequence, self.producer_id)?;
        write!(f, "producerEpoch: {} ", self.producer_epoch)?;
        write!(f, "partitionLeaderEpoch: {} ", self.partition_leader_epoch)?;
        write!(f, "isTransactional: {} isControl: {} ", self.is_transactional, self.is_control)?;
        write!(f, "deleteHorizonMs: {} ", Optional(self.delete_horizon_ms))?;
        write!(f, "position: {} {}: {} ", self.position, self.timestamp_type, self.max_timestamp)?;
        write!(f, "size: {} magic: {} ", self.size, self.magic)?;
        write!(f, "compresscodec: {} crc: {} isvalid: {}", self.compresscodec, self.crc, self.isvalid)
    }
}

impl fmt::Display for ProducerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = Optional(self.current_txn_first_offset);
        write!(f, "producerId: {} producerEpoch: {} ", self.producer_id, self.producer_epoch)?;
        write!(f, "coordinatorEpoch: {} currentTxnFirstOffset: {open} ", self.coordinator_epoch)?;
        write!(f, "lastTimestamp: {} ", self.timestamp)?;
        if self.last_offset >= 0 {
            write!(f, "firstSequence: {} lastSequence: {} ", self.first_sequence, self.last_sequence)?;
            write!(f, "lastOffset: {} offsetDelta: {} ", self.last_offset, self.offset_delta)?;
            write!(f, "timestamp: {}", self.timestamp)?;
        }
        Ok(())
    }
}

/// As Java prints an `OptionalLong`.
struct Optional(Option<i64>);

impl fmt::Display for Optional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "OptionalLong[{value}]"),
            None => f.write_str("OptionalLong.empty"),
        }
    }
}
