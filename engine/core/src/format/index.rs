//! Kafka's two sparse indexes of a segment: `.index` (offset to file position) and `.timeindex` (timestamp to
//! offset). Both are kept in memory as the very bytes of their files, so writing one is a copy of `as_bytes`
//! and loading one is a check and a copy.
//!
//! Always holds: offsets and positions, and timestamps and offsets, strictly increase from entry to entry; the
//! entry count never exceeds the limit fixed at creation, and pushing within it never allocates.

use super::batch::be_i32;
use crate::types::{ByteCount, Offset, Position, Timestamp};

/// Bytes of one entry of an offset index: i32 last offset - base offset, i32 position.
pub const OFFSET_ENTRY_LEN: usize = 8;
/// Bytes of one entry of a time index: i64 timestamp, i32 offset - base offset.
pub const TIME_ENTRY_LEN: usize = 12;
/// Kafka's default `segment.index.bytes`; both indexes are limited to it, rounded down to whole entries.
pub const INDEX_LEN_MAX_DEFAULT: ByteCount = ByteCount::mib(10);

/// Why an index cannot be used, or an entry not be added. Entries are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The file is no whole number of entries.
    #[error("index of {len} bytes is no multiple of {entry_len}")]
    Length {
        /// Length of the file.
        len: ByteCount,
        /// Length of an entry.
        entry_len: usize,
    },
    /// An entry's offset does not follow its predecessor's.
    #[error("index entry {entry}: expected an offset above {previous}, found {found}")]
    OffsetOrder {
        /// Number of the entry.
        entry: usize,
        /// The predecessor's offset; for the first entry, the one below the base offset.
        previous: Offset,
        /// The offset found.
        found: Offset,
    },
    /// An entry's position does not follow its predecessor's.
    #[error("index entry {entry}: expected a position above {previous}, found {found}")]
    PositionOrder {
        /// Number of the entry.
        entry: usize,
        /// The predecessor's position.
        previous: i64,
        /// The position found.
        found: i64,
    },
    /// An entry's timestamp does not follow its predecessor's.
    #[error("time index entry {entry}: expected a timestamp above {previous}, found {found}")]
    TimestampOrder {
        /// Number of the entry.
        entry: usize,
        /// The predecessor's timestamp.
        previous: Timestamp,
        /// The timestamp found.
        found: Timestamp,
    },
    /// An entry points at or beyond the end of the segment.
    #[error("index entry {entry}: position {found} lies beyond the segment's {len} bytes")]
    PositionBeyondSegment {
        /// Number of the entry.
        entry: usize,
        /// The position found.
        found: Position,
        /// Length of the segment.
        len: ByteCount,
    },
    /// Offset or position do not fit the 32-bit fields: the segment should have rolled before.
    #[error("offset {offset} at position {position} does not fit an index with base offset {base}")]
    Range {
        /// The index's base offset.
        base: Offset,
        /// The offset refused.
        offset: Offset,
        /// The position refused (0 in a time index).
        position: Position,
    },
    /// The entry limit is reached: the segment should have rolled before.
    #[error("index is full with {entries} entries")]
    Full {
        /// Entries it holds.
        entries: usize,
    },
}

/// A point of an offset index: the batch that starts at `position` ends with `last_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetEntry {
    /// Last offset of the batch (of the whole append, in segments of Kafka before 4).
    pub last_offset: Offset,
    /// Where the batch (or append) starts in the segment.
    pub position: Position,
}

/// A point of a time index: up to `offset`, no record is later than `timestamp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeEntry {
    /// Largest timestamp so far.
    pub timestamp: Timestamp,
    /// Last offset of the batch that holds it.
    pub offset: Offset,
}

/// The offset index of one segment.
#[derive(Clone, Debug)]
pub struct OffsetIndex {
    base_offset: Offset,
    bytes: Vec<u8>,
    entries_max: usize,
}

impl OffsetIndex {
    /// An empty index that can take `entries_max` entries; their memory is reserved here.
    pub fn new(base_offset: Offset, entries_max: usize) -> Self {
        Self { base_offset, bytes: Vec::with_capacity(entries_max * OFFSET_ENTRY_LEN), entries_max }
    }

    /// Loads a file's content and checks every entry. Zeros behind the last entry, as Kafka preallocates them,
    /// are dropped. `entries_max` is raised to what the file holds.
    ///
    /// # Errors
    /// `Length`, `OffsetOrder`, `PositionOrder`, `PositionBeyondSegment`: rebuild the index from the segment.
    pub fn load(
        base_offset: Offset,
        file: &[u8],
        segment_len: ByteCount,
        entries_max: usize,
    ) -> Result<Self, IndexError> {
        let entries = whole_entries::<OFFSET_ENTRY_LEN>(file)?;
        let (mut offset_before, mut position_before) = (-1, -1);
        for (entry, bytes) in entries.iter().enumerate() {
            let (offset, position) = (i64::from(be_i32(bytes, 0)), i64::from(be_i32(bytes, 4)));
            if offset <= offset_before {
                let (previous, found) = (base_offset.plus(offset_before), base_offset.plus(offset));
                return Err(IndexError::OffsetOrder { entry, previous, found });
            }
            if position <= position_before {
                return Err(IndexError::PositionOrder { entry, previous: position_before, found: position });
            }
            if position as u64 >= segment_len.get() {
                let found = Position::new(position as u64);
                return Err(IndexError::PositionBeyondSegment { entry, found, len: segment_len });
            }
            (offset_before, position_before) = (offset, position);
        }
        let mut index = Self::new(base_offset, entries_max.max(entries.len()));
        index.bytes.extend_from_slice(entries.as_flattened());
        Ok(index)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// `Full`, `Range`, `OffsetOrder` or `PositionOrder`; the index is unchanged.
    pub fn push(&mut self, new: OffsetEntry) -> Result<(), IndexError> {
        let entry = self.len();
        if entry == self.entries_max {
            return Err(IndexError::Full { entries: entry });
        }
        if let Some(last) = self.last() {
            if new.last_offset <= last.last_offset {
                let (previous, found) = (last.last_offset, new.last_offset);
                return Err(IndexError::OffsetOrder { entry, previous, found });
            }
            if new.position <= last.position {
                let (previous, found) = (last.position.get() as i64, new.position.get() as i64);
                return Err(IndexError::PositionOrder { entry, previous, found });
            }
        }
        let range =
            IndexError::Range { base: self.base_offset, offset: new.last_offset, position: new.position };
        let relative = relative(self.base_offset, new.last_offset).ok_or(range)?;
        let position = i32::try_from(new.position.get()).map_err(|_| range)?;
        self.bytes.extend_from_slice(&relative.to_be_bytes());
        self.bytes.extend_from_slice(&position.to_be_bytes());
        Ok(())
    }

    /// The greatest entry at or below `target`; without one, the segment's start. The batch that holds `target`
    /// starts there or later: walk the headers on from its position. This is Kafka's lookup.
    pub fn lookup(&self, target: Offset) -> OffsetEntry {
        let start = OffsetEntry { last_offset: self.base_offset, position: Position::ZERO };
        let count = self.entries().partition_point(|bytes| self.decode(bytes).last_offset <= target);
        count.checked_sub(1).map_or(start, |i| self.decode(&self.entries()[i]))
    }

    /// The entry after the one that [`Self::lookup`] finds: of the batch that contains `target`, or of one behind it.
    pub fn after(&self, target: Offset) -> Option<OffsetEntry> {
        self.entry(self.entries().partition_point(|bytes| self.decode(bytes).last_offset <= target))
    }

    /// Where the walk begins to whatever batch lies across `position`, or to one shortly before it.
    pub fn walk_start(&self, position: Position) -> Position {
        // Asked for by its first offset, the batch that an entry names is found from the entry before.
        let entries = self.entries();
        let count = entries.partition_point(|bytes| self.decode(bytes).position <= position);
        count.checked_sub(2).map_or(Position::ZERO, |i| self.decode(&entries[i]).position)
    }

    /// Drops the entries at `next_offset` and above, after the segment was cut there.
    pub fn truncate(&mut self, next_offset: Offset) {
        let keep = self.entries().partition_point(|bytes| self.decode(bytes).last_offset < next_offset);
        self.bytes.truncate(keep * OFFSET_ENTRY_LEN);
    }

    /// Entry number `i`, if there is one.
    pub fn entry(&self, i: usize) -> Option<OffsetEntry> {
        self.entries().get(i).map(|bytes| self.decode(bytes))
    }

    /// The last entry, if any.
    pub fn last(&self) -> Option<OffsetEntry> {
        self.entries().last().map(|bytes| self.decode(bytes))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.bytes.len() / OFFSET_ENTRY_LEN
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the next push would fail: the segment must roll first.
    pub fn is_full(&self) -> bool {
        self.len() >= self.entries_max
    }

    /// The file's content. Entries only ever follow; a writer appends what it has not written yet.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Base offset of the segment.
    pub const fn base_offset(&self) -> Offset {
        self.base_offset
    }

    fn entries(&self) -> &[[u8; OFFSET_ENTRY_LEN]] {
        self.bytes.as_chunks().0
    }

    fn decode(&self, bytes: &[u8; OFFSET_ENTRY_LEN]) -> OffsetEntry {
        let position = Position::new(be_i32(bytes, 4) as u64);
        OffsetEntry { last_offset: self.base_offset.plus(i64::from(be_i32(bytes, 0))), position }
    }
}

/// The time index of one segment.
#[derive(Clone, Debug)]
pub struct TimeIndex {
    base_offset: Offset,
    bytes: Vec<u8>,
    entries_max: usize,
}

impl TimeIndex {
    /// An empty index that can take `entries_max` entries; their memory is reserved here.
    pub fn new(base_offset: Offset, entries_max: usize) -> Self {
        Self { base_offset, bytes: Vec::with_capacity(entries_max * TIME_ENTRY_LEN), entries_max }
    }

    /// Loads a file's content and checks every entry. Zeros behind the last entry are dropped. `entries_max` is
    /// raised to what the file holds.
    ///
    /// # Errors
    /// `Length`, `OffsetOrder`, `TimestampOrder`: rebuild the index from the segment.
    pub fn load(base_offset: Offset, file: &[u8], entries_max: usize) -> Result<Self, IndexError> {
        let entries = whole_entries::<TIME_ENTRY_LEN>(file)?;
        let mut index = Self::new(base_offset, entries_max.max(entries.len()));
        let (mut offset_before, mut timestamp_before) = (base_offset.plus(-1), Timestamp::NONE);
        for (entry, bytes) in entries.iter().enumerate() {
            let TimeEntry { timestamp, offset } = index.decode(bytes);
            if timestamp <= timestamp_before {
                let (previous, found) = (timestamp_before, timestamp);
                return Err(IndexError::TimestampOrder { entry, previous, found });
            }
            if offset <= offset_before {
                return Err(IndexError::OffsetOrder { entry, previous: offset_before, found: offset });
            }
            (offset_before, timestamp_before) = (offset, timestamp);
        }
        index.bytes.extend_from_slice(entries.as_flattened());
        Ok(index)
    }

    /// Adds an entry if its timestamp is later than the last one's; says whether it did.
    ///
    /// # Errors
    /// `Full`, `Range` or `OffsetOrder`; the index is unchanged.
    pub fn push(&mut self, new: TimeEntry) -> Result<bool, IndexError> {
        let entry = self.len();
        let last = self.last().unwrap_or(self.none());
        if new.timestamp <= last.timestamp {
            return Ok(false);
        }
        if entry > 0 && new.offset <= last.offset {
            return Err(IndexError::OffsetOrder { entry, previous: last.offset, found: new.offset });
        }
        if entry == self.entries_max {
            return Err(IndexError::Full { entries: entry });
        }
        let range =
            IndexError::Range { base: self.base_offset, offset: new.offset, position: Position::ZERO };
        let relative = relative(self.base_offset, new.offset).ok_or(range)?;
        self.bytes.extend_from_slice(&new.timestamp.get().to_be_bytes());
        self.bytes.extend_from_slice(&relative.to_be_bytes());
        Ok(true)
    }

    /// The greatest entry at or before `target`; without one, "no timestamp" at the base offset. The first record
    /// at or after `target` has that entry's offset or a later one.
    pub fn lookup(&self, target: Timestamp) -> TimeEntry {
        let count = self.entries().partition_point(|bytes| self.decode(bytes).timestamp <= target);
        count.checked_sub(1).map_or(self.none(), |i| self.decode(&self.entries()[i]))
    }

    /// Drops the entries at `next_offset` and above, after the segment was cut there.
    pub fn truncate(&mut self, next_offset: Offset) {
        let keep = self.entries().partition_point(|bytes| self.decode(bytes).offset < next_offset);
        self.bytes.truncate(keep * TIME_ENTRY_LEN);
    }

    /// Entry number `i`, if there is one.
    pub fn entry(&self, i: usize) -> Option<TimeEntry> {
        self.entries().get(i).map(|bytes| self.decode(bytes))
    }

    /// The last entry, if any.
    pub fn last(&self) -> Option<TimeEntry> {
        self.entries().last().map(|bytes| self.decode(bytes))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.bytes.len() / TIME_ENTRY_LEN
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether only the slot is left that sealing the segment needs: the segment must roll first.
    pub fn is_full(&self) -> bool {
        self.len() + 1 >= self.entries_max
    }

    /// The file's content. Entries only ever follow; a writer appends what it has not written yet.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Base offset of the segment.
    pub const fn base_offset(&self) -> Offset {
        self.base_offset
    }

    fn none(&self) -> TimeEntry {
        TimeEntry { timestamp: Timestamp::NONE, offset: self.base_offset }
    }

    fn entries(&self) -> &[[u8; TIME_ENTRY_LEN]] {
        self.bytes.as_chunks().0
    }

    fn decode(&self, bytes: &[u8; TIME_ENTRY_LEN]) -> TimeEntry {
        let high = i64::from(be_i32(bytes, 0)) << 32;
        let timestamp = Timestamp::new(high | i64::from(be_i32(bytes, 4) as u32));
        TimeEntry { timestamp, offset: self.base_offset.plus(i64::from(be_i32(bytes, 8))) }
    }
}

/// Entries that a limit of `len` bytes allows in an index whose entries take `entry_len`.
pub const fn entries_in(len: ByteCount, entry_len: usize) -> usize {
    len.as_usize() / entry_len
}

/// The entries of a file without the zeros that preallocation left behind them. A zero entry at the very start
/// says what the absence of an entry says, so dropping it too loses nothing.
fn whole_entries<const N: usize>(file: &[u8]) -> Result<&[[u8; N]], IndexError> {
    let (entries, rest) = file.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(IndexError::Length { len: ByteCount::of_usize(file.len()), entry_len: N });
    }
    let count = entries.iter().rposition(|entry| *entry != [0; N]).map_or(0, |last| last + 1);
    Ok(&entries[..count])
}

fn relative(base: Offset, offset: Offset) -> Option<i32> {
    i32::try_from(offset.get().checked_sub(base.get())?).ok().filter(|&relative| relative >= 0)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
