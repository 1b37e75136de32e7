//! Makes valid uncompressed record batches from records, for tests, examples and the harness. Byte for byte what
//! Kafka's producer writes for the same records.

use super::batch::{Attributes, CRC_START, HEADER_LEN, LOG_OVERHEAD, MAGIC};
use super::crc::crc32c;
use super::varint;
use crate::types::{LeaderEpoch, Offset, Timestamp};

/// A record batch in the making. Offsets count up from the base offset, one a record.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    base_offset: Offset,
    leader_epoch: LeaderEpoch,
    attributes: Attributes,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    count: i32,
    records: Vec<u8>,
    scratch: Vec<u8>,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty batch as a plain producer sends it: base offset 0, no leader epoch, no producer id.
    pub const fn new() -> Self {
        Self {
            base_offset: Offset::ZERO,
            leader_epoch: LeaderEpoch::new(-1),
            attributes: Attributes::from_bits(0),
            base_timestamp: Timestamp::NONE,
            max_timestamp: Timestamp::NONE,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            count: 0,
            records: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Sets the offset of the first record.
    pub fn base_offset(&mut self, offset: Offset) -> &mut Self {
        self.base_offset = offset;
        self
    }

    /// Sets the leader epoch.
    pub fn leader_epoch(&mut self, epoch: LeaderEpoch) -> &mut Self {
        self.leader_epoch = epoch;
        self
    }

    /// Sets the attribute bits. The codec bits describe the records; this builder does not compress.
    pub fn attributes(&mut self, attributes: Attributes) -> &mut Self {
        self.attributes = attributes;
        self
    }

    /// Makes it an idempotent producer's batch.
    pub fn producer(&mut self, id: i64, epoch: i16, base_sequence: i32) -> &mut Self {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
        self
    }

    /// Appends a record without headers.
    pub fn record(&mut self, at: Timestamp, key: Option<&[u8]>, value: Option<&[u8]>) -> &mut Self {
        self.record_with_headers(at, key, value, &[])
    }

    /// Appends a record. Its timestamp is stored relative to the first record's.
    ///
    /// # Panics
    /// If a length or the count does not fit Kafka's 32-bit fields.
    pub fn record_with_headers(
        &mut self,
        at: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> &mut Self {
        if self.count == 0 {
            self.base_timestamp = at;
        }
        self.max_timestamp = self.max_timestamp.max(at);
        let out = &mut self.scratch;
        out.clear();
        out.push(0); // record attributes: none are assigned
        varint::write(out, at.get() - self.base_timestamp.get());
        varint::write(out, i64::from(self.count));
        bytes_or_null(out, key);
        bytes_or_null(out, value);
        varint::write(out, headers.len() as i64);
        for (name, value) in headers {
            bytes_or_null(out, Some(name.as_bytes()));
            bytes_or_null(out, *value);
        }
        assert!(out.len() <= i32::MAX as usize, "a record of {} bytes does not fit Kafka's i32", out.len());
        varint::write(&mut self.records, out.len() as i64);
        self.records.extend_from_slice(out);
        self.count = self.count.checked_add(1).expect("a batch holds at most i32::MAX records");
        self
    }

    /// Total length of the batch so far, in bytes.
    pub fn len(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// Whether it holds no record yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The batch. The builder keeps its records; `clear` starts the next one.
    ///
    /// # Panics
    /// If the batch is larger than Kafka can store.
    pub fn build(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.build_into(&mut out);
        out
    }

    /// Appends the batch to `out`.
    ///
    /// # Panics
    /// If the batch is larger than Kafka can store.
    pub fn build_into(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let length =
            i32::try_from(self.len()).expect("a batch is at most i32::MAX bytes") - LOG_OVERHEAD as i32;
        out.extend_from_slice(&self.base_offset.get().to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.leader_epoch.get().to_be_bytes());
        out.push(MAGIC as u8);
        out.extend_from_slice(&[0; 4]); // the CRC, below
        out.extend_from_slice(&self.attributes.bits().to_be_bytes());
        out.extend_from_slice(&(self.count - 1).max(0).to_be_bytes());
        out.extend_from_slice(&self.base_timestamp.get().to_be_bytes());
        out.extend_from_slice(&self.max_timestamp.get().to_be_bytes());
        out.extend_from_slice(&self.producer_id.to_be_bytes());
        out.extend_from_slice(&self.producer_epoch.to_be_bytes());
        out.extend_from_slice(&self.base_sequence.to_be_bytes());
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&self.records);
        let crc = crc32c(&out[start + CRC_START..]);
        out[start + 17..start + CRC_START].copy_from_slice(&crc.to_be_bytes());
    }

    /// Drops the records; the other fields stay.
    pub fn clear(&mut self) -> &mut Self {
        self.records.clear();
        self.count = 0;
        self.base_timestamp = Timestamp::NONE;
        self.max_timestamp = Timestamp::NONE;
        self
    }
}

fn bytes_or_null(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint::write(out, -1),
        Some(bytes) => {
            varint::write(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}
