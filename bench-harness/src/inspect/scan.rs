//! Steps through the batches of one file, whatever its bytes are, and says at each step what stands there.
//!
//! Always holds: every step moves forward, so a scan ends. A batch whose CRC is wrong is still a step, as in
//! DumpLogSegments; bytes that are no batch are skipped to the next one that is valid in every respect, looked for
//! in the next `RESYNC_LEN_MAX` bytes. That tells damage inside a log from a torn end.

use std::io;

use rohrpost_engine_core::format::batch::{BatchError, BatchHeader, CRC_START, HEADER_LEN};
use rohrpost_engine_core::format::crc::Crc32c;
use rohrpost_engine_core::format::walk::is_zero;

use super::finding::What;
use super::source::Source;

/// How far beyond a bad byte the next valid batch is looked for.
const RESYNC_LEN_MAX: u64 = 16 << 20;
/// A valid batch's offset is believed only this close to where the log stands: a segment spans fewer.
const RESYNC_OFFSETS_MAX: i64 = i32::MAX as i64;

/// What stands at the scan's position.
#[derive(Debug)]
pub(super) enum Step {
    /// A batch, complete. `error` is set if its CRC is wrong.
    Batch { position: u64, header: BatchHeader, error: Option<BatchError> },
    /// Something else; the scan goes on behind it.
    Bad { position: u64, what: What },
    /// Nothing more.
    End { position: u64, tail: Tail },
}

/// How a file of batches ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// With its last batch.
    Exact,
    /// With zeros: preallocated space.
    Zeros,
    /// Inside a batch.
    Torn,
    /// With bytes that are no batch.
    Unreadable,
}

/// The scan of one file.
pub(super) struct Scan<'s> {
    source: &'s mut Source,
    position: u64,
    next_offset: i64,
    /// The next step, if finding the one before has shown it already.
    pending: Option<Step>,
    /// Where and how the file ended.
    ended: Option<(u64, Tail)>,
}

impl<'s> Scan<'s> {
    /// Scans `source` from its start. `base_offset` is what its name promises.
    pub(super) const fn new(source: &'s mut Source, base_offset: i64) -> Self {
        Self { source, position: 0, next_offset: base_offset, pending: None, ended: None }
    }

    /// The next step. After `End` comes `End`.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        if let Some(step) = self.pending.take() {
            return Ok(step);
        }
        if let Some((position, tail)) = self.ended {
            return Ok(Step::End { position, tail });
        }
        let (position, rest) = (self.position, self.source.len() - self.position);
        if rest == 0 {
            return Ok(Step::End { position, tail: Tail::Exact });
        }
        let bytes = self.source.at(position, HEADER_LEN)?;
        if is_zero(bytes) {
            return self.zeros(position);
        }
        match BatchHeader::peek(bytes) {
            Ok(header) if header.batch_len().get() <= rest => self.batch(position, header),
            Ok(header) => {
                let needed = header.batch_len().get();
                self.cut_off(position, needed, rest)
            }
            Err(BatchError::Incomplete { needed, .. }) => self.cut_off(position, needed.get(), rest),
            Err(error) => self.skip(position, What::Batch { batch: position, error }),
        }
    }

    fn batch(&mut self, position: u64, header: BatchHeader) -> io::Result<Step> {
        let error = self.crc_error(position, &header)?;
        self.position = position + header.batch_len().get();
        self.next_offset = header.next_offset().get();
        Ok(Step::Batch { position, header, error })
    }

    fn crc_error(&mut self, position: u64, header: &BatchHeader) -> io::Result<Option<BatchError>> {
        let mut crc = Crc32c::new();
        self.source.crc(position + CRC_START as u64..position + header.batch_len().get(), &mut crc)?;
        Ok(header.check_crc(crc.value()).err())
    }

    fn zeros(&mut self, position: u64) -> io::Result<Step> {
        let Some(data) = self.source.data_after(position)? else {
            return Ok(self.end(position, Tail::Zeros, What::ZeroTail { len: self.source.len() - position }));
        };
        self.skip(position, What::ZerosInside { len: data - position })
    }

    /// The file ends inside the batch at `position`, or its length field lies.
    fn cut_off(&mut self, position: u64, needed: u64, found: u64) -> io::Result<Step> {
        match self.resync(position + 1)? {
            Some(next) => {
                self.position = next;
                Ok(Step::Bad { position: position + 8, what: What::LengthBeyondEnd { found: needed, next } })
            }
            None => Ok(self.end(position, Tail::Torn, What::TornTail { needed, found })),
        }
    }

    /// `what` stands at `position`; the next step is at the next valid batch.
    fn skip(&mut self, position: u64, what: What) -> io::Result<Step> {
        let rest = self.source.len() - position;
        self.pending = Some(match self.resync(position + 1)? {
            Some(next) => {
                self.position = next;
                Step::Bad { position, what: What::Skipped { len: next - position } }
            }
            None => self.end(position, Tail::Unreadable, What::Unreadable { len: rest }),
        });
        Ok(Step::Bad { position, what })
    }

    /// Reports `what` and ends the scan.
    const fn end(&mut self, position: u64, tail: Tail, what: What) -> Step {
        self.ended = Some((position, tail));
        Step::Bad { position, what }
    }

    /// The next position, from `from` on, where a batch starts that is valid in every respect.
    fn resync(&mut self, from: u64) -> io::Result<Option<u64>> {
        let end = self.source.len().min(from + RESYNC_LEN_MAX);
        for at in from..end {
            let Ok(header) = BatchHeader::peek(self.source.at(at, HEADER_LEN)?) else { continue };
            let ahead = header.base_offset().get() - self.next_offset;
            let fits = header.batch_len().get() <= self.source.len() - at;
            let near = (0..RESYNC_OFFSETS_MAX).contains(&ahead);
            if fits && near && self.crc_error(at, &header)?.is_none() {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}
