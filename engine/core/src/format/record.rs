//! The records inside an uncompressed batch. The engine itself never looks at them; tests, examples, `inspect`
//! and compaction do.

use super::batch::{BatchHeader, Codec, HEADER_LEN};
use super::varint;
use crate::types::{Offset, Timestamp};

/// Why records could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The records are compressed; decompress them first.
    #[error("records are compressed with {0:?}")]
    Compressed(Codec),
    /// A record's own fields do not add up.
    #[error("record {index} of the batch: bad {field} at byte {at}")]
    Malformed {
        /// 0-based number of the record in its batch.
        index: i32,
        /// Which field.
        field: &'static str,
        /// Where reading stopped, counted in bytes from the start of the records: in the field or just behind it.
        at: usize,
    },
    /// Bytes follow the last record.
    #[error("{0} bytes follow the last record")]
    Trailing(usize),
}

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset in the partition.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Key, or `None` for null.
    pub key: Option<&'a [u8]>,
    /// Value, or `None` for null (a tombstone in a compacted topic).
    pub value: Option<&'a [u8]>,
    /// Number of headers.
    pub header_count: i32,
    headers: &'a [u8],
}

impl<'a> Record<'a> {
    /// The headers: (name, value or null).
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut cursor = Cursor { bytes: self.headers, at: 0 };
        // Checked when the record was read, so every step succeeds.
        (0..self.header_count).map_while(move |_| Some((cursor.bytes_or_null()??, cursor.bytes_or_null()?)))
    }
}

/// Iterates over the records of one batch; ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    cursor: Cursor<'a>,
    header: BatchHeader,
    index: i32,
    failed: bool,
}

impl<'a> Records<'a> {
    /// Reads the records of `batch`, whose header is `header`.
    ///
    /// # Errors
    /// `Compressed` if they are; use [`Records::decompressed`] on the inflated bytes.
    ///
    /// # Panics
    /// If `batch` is shorter than its header says: validate it first.
    pub fn new(header: BatchHeader, batch: &'a [u8]) -> Result<Self, RecordError> {
        match header.attributes().codec() {
            Ok(Codec::None) => {
                let end = header.batch_len().as_usize();
                Ok(Self::decompressed(header, &batch[HEADER_LEN..end]))
            }
            Ok(codec) => Err(RecordError::Compressed(codec)),
            Err(_) => Err(RecordError::Malformed { index: 0, field: "codec", at: 0 }),
        }
    }

    /// Reads records from the inflated bytes behind a batch header.
    pub fn decompressed(header: BatchHeader, records: &'a [u8]) -> Self {
        Self { cursor: Cursor { bytes: records, at: 0 }, header, index: 0, failed: false }
    }

    fn read(&mut self) -> Result<Record<'a>, RecordError> {
        let index = self.index;
        let at = self.cursor.at;
        let fail = |field, at| RecordError::Malformed { index, field, at };
        let len = self.cursor.varint().and_then(|len| usize::try_from(len).ok());
        let body = len.and_then(|len| self.cursor.take(len)).ok_or(fail("length", at))?;
        let body_at = self.cursor.at - body.len();
        let mut c = Cursor { bytes: body, at: 0 };
        c.take(1).ok_or(fail("attributes", body_at))?;
        let ts_delta = c.varint().ok_or(fail("timestamp delta", body_at + c.at))?;
        let offset_delta = c
            .varint()
            .filter(|&delta| (0..=i64::from(self.header.last_offset_delta())).contains(&delta))
            .ok_or(fail("offset delta", body_at + c.at))?;
        let key = c.bytes_or_null().ok_or(fail("key", body_at + c.at))?;
        let value = c.bytes_or_null().ok_or(fail("value", body_at + c.at))?;
        let header_count = c.varint().and_then(|n| i32::try_from(n).ok()).filter(|&n| n >= 0);
        let header_count = header_count.ok_or(fail("header count", body_at + c.at))?;
        let headers = &body[c.at..];
        for _ in 0..header_count {
            c.bytes_or_null().flatten().ok_or(fail("header name", body_at + c.at))?;
            c.bytes_or_null().ok_or(fail("header value", body_at + c.at))?;
        }
        if c.at != body.len() {
            return Err(fail("length", at));
        }
        let timestamp = match self.header.attributes().timestamp_type() {
            super::batch::TimestampType::LogAppendTime => self.header.max_timestamp(),
            super::batch::TimestampType::CreateTime => {
                Timestamp::new(self.header.base_timestamp().get().wrapping_add(ts_delta))
            }
        };
        let offset = self.header.base_offset().plus(offset_delta);
        Ok(Record { offset, timestamp, key, value, header_count, headers })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.index == self.header.count() {
            self.failed = true;
            let rest = self.cursor.bytes.len() - self.cursor.at;
            return (rest != 0).then_some(Err(RecordError::Trailing(rest)));
        }
        let record = self.read();
        self.failed = record.is_err();
        self.index += 1;
        Some(record)
    }
}

/// A read position in a byte slice; every read either fits or is `None`.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn varint(&mut self) -> Option<i64> {
        let (value, len) = varint::read(&self.bytes[self.at..])?;
        self.at += len;
        Some(value)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.bytes[self.at..].get(..len)?;
        self.at += len;
        Some(taken)
    }

    /// A varint length and that many bytes; length -1 is null.
    fn bytes_or_null(&mut self) -> Option<Option<&'a [u8]>> {
        match self.varint()? {
            -1 => Some(None),
            len => Some(Some(self.take(usize::try_from(len).ok()?)?)),
        }
    }
}
