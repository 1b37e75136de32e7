//! Reading side files: loading one, and comparing a log with it.

use super::batch::BatchHeader;
use super::crc::{Crc32c, crc32c};
use super::side_file::{
    CRC_AT, ChainMismatch, SIDE_HEADER_LEN, SIDE_RECORD_LEN, SegmentIdentity, SideFileError, SideFileProblem,
    SideRecord, add, chain_of, le_u32, start_of,
};
use super::walk::is_zero;
use crate::types::{ByteCount, Offset, Position};

/// A loaded side file: its good records, and what is wrong behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideFile {
    pub(super) identity: SegmentIdentity,
    pub(super) records: Vec<SideRecord>,
    problem: Option<SideFileProblem>,
    pub(super) crc_last: u32,
}

impl SideFile {
    /// Reads a side file. Records are taken up to the first bad one; if only zeros or nothing follow that one, it is
    /// a torn write and the end, else it is reported as `problem`.
    ///
    /// # Errors
    /// `SideFileError` if the header is bad: the file is of no use.
    pub fn load(bytes: &[u8]) -> Result<Self, SideFileError> {
        let identity = SegmentIdentity::decode(bytes)?;
        let crc_last = crc32c(&bytes[..CRC_AT]);
        let mut file = Self { identity, records: Vec::new(), problem: None, crc_last };
        let (records, torn) = bytes[SIDE_HEADER_LEN..].as_chunks::<SIDE_RECORD_LEN>();
        for (number, record) in records.iter().enumerate() {
            match file.check(number, record) {
                Ok(found) => {
                    file.crc_last = le_u32(record, CRC_AT);
                    file.records.push(found);
                }
                Err(problem) => {
                    let behind = records[number + 1..].as_flattened();
                    let is_end = is_zero(behind) && is_zero(torn);
                    let torn_write = is_end && problem == SideFileProblem::Damaged(number);
                    file.problem = (!torn_write).then_some(problem);
                    break;
                }
            }
        }
        Ok(file)
    }

    fn check(&self, number: usize, bytes: &[u8; SIDE_RECORD_LEN]) -> Result<SideRecord, SideFileProblem> {
        if crc32c(&bytes[..CRC_AT]) != le_u32(bytes, CRC_AT) || is_zero(bytes) {
            return Err(SideFileProblem::Damaged(number));
        }
        let (before, found) = (self.end(), SideRecord::decode(bytes));
        let chained = le_u32(bytes, 0) == number as u32 && le_u32(bytes, 52) == self.crc_last;
        let forward = found.from == before.to && found.to >= found.from;
        if !chained || !forward || found.next_offset < before.next_offset {
            return Err(SideFileProblem::Order(number));
        }
        Ok(found)
    }

    /// Checks that this is the side file of that segment.
    ///
    /// # Errors
    /// `SideFileError::Identity`.
    pub fn check_identity(&self, expected: SegmentIdentity) -> Result<(), SideFileError> {
        if self.identity == expected {
            Ok(())
        } else {
            Err(SideFileError::Identity { expected, found: self.identity })
        }
    }

    /// The segment it says it belongs to.
    pub const fn identity(&self) -> SegmentIdentity {
        self.identity
    }

    /// The good records, in order.
    pub fn records(&self) -> &[SideRecord] {
        &self.records
    }

    /// Damage with records behind it, if any.
    pub const fn problem(&self) -> Option<SideFileProblem> {
        self.problem
    }

    /// The last good record; without one, the start of the segment.
    pub fn end(&self) -> SideRecord {
        self.records.last().copied().unwrap_or(start_of(self.identity))
    }

    /// Position up to which the log was known to be good when the side file was written.
    pub fn end_position(&self) -> Position {
        self.end().to
    }

    /// The offset there.
    pub fn end_offset(&self) -> Offset {
        self.end().next_offset
    }

    /// Whether the segment was sealed.
    pub fn is_sealed(&self) -> bool {
        self.end().sealed
    }

    /// Length of the good part of the file: cut it there before appending.
    pub fn valid_len(&self) -> ByteCount {
        ByteCount::of_usize(SIDE_HEADER_LEN + self.records.len() * SIDE_RECORD_LEN)
    }

    /// Drops the records that reach beyond `position`, after the log was cut there; the file is then `valid_len`
    /// bytes long. Those before remain good: the chain runs forward.
    #[must_use]
    pub fn truncated(mut self, position: Position) -> Self {
        let keep = self.records.partition_point(|record| record.to <= position && !record.sealed);
        if keep < self.records.len() {
            self.problem = None;
        }
        self.records.truncate(keep);
        self.crc_last = le_u32(&self.identity.encode(), CRC_AT);
        for (number, record) in self.records.iter().enumerate() {
            self.crc_last = le_u32(&record.encode(number, self.crc_last), CRC_AT);
        }
        self
    }
}

/// Compares a log with its side file, batch by batch.
#[derive(Clone, Debug)]
pub struct ChainVerifier<'a> {
    file: &'a SideFile,
    next: usize,
    chain: Crc32c,
    seen: SideRecord,
}

impl<'a> ChainVerifier<'a> {
    /// Starts at the beginning of the segment.
    pub fn new(file: &'a SideFile) -> Self {
        Self { file, next: 0, chain: chain_of(file.identity), seen: start_of(file.identity) }
    }

    /// Starts where record `number` ends: everything before is trusted.
    ///
    /// # Panics
    /// If there is no such record.
    pub fn after_record(file: &'a SideFile, number: usize) -> Self {
        let last = file.records[number];
        let seen = SideRecord { from: last.to, batch_count: 0, ..last };
        Self { file, next: number + 1, chain: Crc32c::resume(last.chain), seen }
    }

    /// Takes the next batch of the log.
    ///
    /// # Errors
    /// `ChainMismatch` if a record ends at or inside this batch and does not agree with the batches it covers. The
    /// verifier is then spent.
    ///
    /// # Panics
    /// If `position` is not where the last batch ended.
    pub fn push_batch(&mut self, batch: &BatchHeader, position: Position) -> Result<(), ChainMismatch> {
        add(&mut self.chain, &mut self.seen, batch, position);
        while let Some(&expected) = self.file.records.get(self.next).filter(|r| r.to <= self.seen.to) {
            let found = SideRecord { chain: self.chain.value(), sealed: expected.sealed, ..self.seen };
            if found != expected {
                return Err(ChainMismatch { record: self.next, from: expected.from, to: expected.to });
            }
            self.seen = SideRecord { from: found.to, batch_count: 0, ..found };
            self.next += 1;
        }
        Ok(())
    }

    /// Whether every record was compared and agreed; what lies beyond the last is not covered.
    pub fn is_complete(&self) -> bool {
        // A segment sealed without a batch has a record that no batch leads to.
        self.file.records[self.next..].iter().all(|r| r.from == r.to && r.to == self.seen.to)
    }
}
