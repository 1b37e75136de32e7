//! Checks a segment's loaded indexes against its batches, in one pass beside the scan: both are sorted.

use rohrpost_engine_core::format::batch::BatchHeader;
use rohrpost_engine_core::format::index::{
    OFFSET_ENTRY_LEN, OffsetEntry, OffsetIndex, TIME_ENTRY_LEN, TimeIndex,
};
use rohrpost_engine_core::format::txn_index::{AbortedTxn, TXN_ENTRY_LEN};

use super::finding::What;

/// What was found, with the byte of the index file it is about.
pub(super) type Found = (u64, What);

/// The offset index: every entry points at the start of a batch, and its offset is the last one of that batch, or
/// of a later one before the next entry (brokers before 4 wrote the end of the whole append).
pub(super) struct OffsetCheck {
    index: OffsetIndex,
    next: usize,
    open: Option<Open>,
}

/// An entry whose batch has been seen and whose offset has not.
struct Open {
    entry: usize,
    at: OffsetEntry,
    batch_end: i64,
}

impl OffsetCheck {
    pub(super) const fn new(index: OffsetIndex) -> Self {
        Self { index, next: 0, open: None }
    }

    /// Compares with the next batch of the segment.
    pub(super) fn batch(&mut self, position: u64, header: &BatchHeader, found: &mut Vec<Found>) {
        while let Some(at) = self.index.entry(self.next).filter(|e| e.position.get() <= position) {
            self.close(found);
            let (entry, points_at) = (self.next, at.position.get());
            if points_at == position {
                self.open = Some(Open { entry, at, batch_end: header.last_offset().get() });
            } else {
                found.push((place(entry) + 4, What::IndexPosition { entry, position: points_at }));
            }
            self.next += 1;
        }
        match &self.open {
            Some(open) if open.at.last_offset == header.last_offset() => self.open = None,
            Some(open) if open.at.last_offset < header.last_offset() => self.close(found),
            _ => {}
        }
    }

    /// Ends the pass: no more batches.
    pub(super) fn end(mut self, found: &mut Vec<Found>) {
        self.close(found);
        let count = self.index.len() - self.next;
        if count > 0 {
            found.push((place(self.next), What::IndexBeyondEnd { entry: self.next, count }));
        }
    }

    fn close(&mut self, found: &mut Vec<Found>) {
        if let Some(Open { entry, at, batch_end }) = self.open.take() {
            let (position, offset) = (at.position.get(), at.last_offset.get());
            let what = What::IndexOffset { entry, position, expected: batch_end, found: offset };
            found.push((place(entry), what));
        }
    }
}

const fn place(entry: usize) -> u64 {
    (entry * OFFSET_ENTRY_LEN) as u64
}

/// The time index: an entry's timestamp is the largest one up to and in the batch that holds its offset.
pub(super) struct TimeCheck {
    index: TimeIndex,
    next: usize,
    max_timestamp: i64,
}

impl TimeCheck {
    pub(super) const fn new(index: TimeIndex) -> Self {
        Self { index, next: 0, max_timestamp: -1 }
    }

    /// Compares with the next batch of the segment.
    pub(super) fn batch(&mut self, header: &BatchHeader, found: &mut Vec<Found>) {
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp().get());
        while let Some(at) = self.index.entry(self.next).filter(|e| e.offset <= header.last_offset()) {
            let (entry, timestamp) = (self.next, at.timestamp.get());
            if timestamp != self.max_timestamp {
                let expected = self.max_timestamp;
                let what =
                    What::IndexTimestamp { entry, offset: at.offset.get(), expected, found: timestamp };
                found.push(((entry * TIME_ENTRY_LEN) as u64, what));
            }
            self.next += 1;
        }
    }

    /// Ends the pass: no more batches.
    pub(super) fn end(self, found: &mut Vec<Found>) {
        let count = self.index.len() - self.next;
        if count > 0 {
            let place = (self.next * TIME_ENTRY_LEN) as u64;
            found.push((place, What::IndexBeyondEnd { entry: self.next, count }));
        }
    }
}

/// The transaction index: at the last offset of every entry stands a control batch of its producer.
pub(super) struct TxnCheck {
    aborted: Vec<AbortedTxn>,
    next: usize,
}

impl TxnCheck {
    pub(super) const fn new(aborted: Vec<AbortedTxn>) -> Self {
        Self { aborted, next: 0 }
    }

    /// Compares with the next batch of the segment.
    pub(super) fn batch(&mut self, header: &BatchHeader, found: &mut Vec<Found>) {
        while let Some(at) = self.aborted.get(self.next).filter(|e| e.last_offset <= header.last_offset()) {
            let is_here = header.base_offset() <= at.last_offset;
            let is_marker = header.attributes().is_control() && header.producer_id() == at.producer_id;
            if !(is_here && is_marker) {
                found.push(self.missing());
            }
            self.next += 1;
        }
    }

    /// Ends the pass: no more batches.
    pub(super) fn end(mut self, found: &mut Vec<Found>) {
        while self.next < self.aborted.len() {
            found.push(self.missing());
            self.next += 1;
        }
    }

    fn missing(&self) -> Found {
        let (entry, at) = (self.next, self.aborted[self.next]);
        let (producer_id, offset) = (at.producer_id, at.last_offset.get());
        ((entry * TXN_ENTRY_LEN) as u64, What::NoMarker { entry, producer_id, offset })
    }
}
