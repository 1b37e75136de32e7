//! Which batches get index entries: Kafka's sparse rule, in one place. Append, recovery's rebuild and the harness
//! feed their batches through this builder, so that all of them have the same indexes.

use super::batch::BatchHeader;
use super::index::{IndexError, OffsetEntry, OffsetIndex, TimeEntry, TimeIndex};
use crate::types::{ByteCount, Position, Timestamp};

/// Kafka's default `index.interval.bytes`.
pub const INDEX_INTERVAL_DEFAULT: ByteCount = ByteCount::kib(4);

/// Both indexes of a segment, grown batch by batch.
#[derive(Clone, Debug)]
pub struct IndexBuilder {
    offsets: OffsetIndex,
    times: TimeIndex,
    interval: ByteCount,
    len_since_entry: ByteCount,
    latest: TimeEntry,
}

impl IndexBuilder {
    /// Continues two indexes of the same segment, empty ones or those of a cleanly closed file. Entries follow
    /// every `interval` bytes.
    ///
    /// # Panics
    /// If the two indexes have different base offsets.
    pub fn new(offsets: OffsetIndex, times: TimeIndex, interval: ByteCount) -> Self {
        assert_eq!(offsets.base_offset(), times.base_offset(), "two indexes of one segment");
        let none = TimeEntry { timestamp: Timestamp::NONE, offset: times.base_offset() };
        let latest = times.last().unwrap_or(none);
        Self { offsets, times, interval, len_since_entry: ByteCount::ZERO, latest }
    }

    /// Takes note of the next batch of the segment, which starts at `position`. It gets an entry if more than
    /// the interval was appended since the last one; says whether it did.
    ///
    /// # Errors
    /// `Full` or `Range` if the segment should have rolled before this batch; order errors if batches come out of
    /// order. The indexes then lack this batch's entry.
    pub fn push_batch(&mut self, batch: &BatchHeader, position: Position) -> Result<bool, IndexError> {
        if batch.max_timestamp() > self.latest.timestamp {
            self.latest = TimeEntry { timestamp: batch.max_timestamp(), offset: batch.last_offset() };
        }
        let due = self.len_since_entry > self.interval;
        if due {
            self.offsets.push(OffsetEntry { last_offset: batch.last_offset(), position })?;
            self.times.push(self.latest)?;
            self.len_since_entry = ByteCount::ZERO;
        }
        self.len_since_entry = ByteCount::new(self.len_since_entry.get() + batch.batch_len().get());
        Ok(due)
    }

    /// Adds the last time entry, when the segment is sealed or cleanly closed. Doing it twice changes nothing.
    ///
    /// # Errors
    /// `Range` if the segment spans more offsets than an index can.
    pub fn seal(&mut self) -> Result<(), IndexError> {
        self.times.push(self.latest).map(|_| ())
    }

    /// Whether one of the indexes has no room for another entry: the segment must roll.
    pub fn is_full(&self) -> bool {
        self.offsets.is_full() || self.times.is_full()
    }

    /// The latest timestamp of the segment and the last offset of its batch; "none" before the first.
    pub const fn latest(&self) -> TimeEntry {
        self.latest
    }

    /// The offset index.
    pub const fn offsets(&self) -> &OffsetIndex {
        &self.offsets
    }

    /// The time index.
    pub const fn times(&self) -> &TimeIndex {
        &self.times
    }

    /// The indexes, when no more batches follow.
    pub fn into_parts(self) -> (OffsetIndex, TimeIndex) {
        (self.offsets, self.times)
    }
}
