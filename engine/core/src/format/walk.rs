//! Walking a run of batches header by header: the one loop that append checks, recovery, rebuild and `inspect`
//! share. It works over any window of a segment and says why it stopped, so a caller that streams a file can
//! fetch more bytes and go on from there.

use super::batch::{
    BATCH_LEN_MAX_STORABLE, BatchError, BatchHeader, BatchPrefix, HEADER_LEN, PREFIX_LEN, validate,
};
use crate::types::{ByteCount, Offset, Position};

/// How much of each batch a walk looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The header only. A batch may reach beyond the window: the walk then stops after yielding it.
    Header,
    /// Header, completeness and CRC.
    Crc,
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The window ends where the last batch ends, or (with `Check::Header`) inside it.
    End,
    /// Where a header should be there are only zeros, as far as a header reaches in this window: preallocated
    /// space. Whether the zeros go on to the end of the file is for the caller to see.
    ZeroTail,
    /// The window ends inside a batch. At the end of a file this is a torn tail, else a reason to read on.
    Torn {
        /// Bytes from the stop position that would complete the header or the batch.
        needed: ByteCount,
        /// Bytes the window has there.
        found: ByteCount,
    },
    /// These bytes are no valid batch.
    Bad(BatchError),
}

/// Where and why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// File position after the last good batch.
    pub position: Position,
    /// The offset after the last good batch (or the walk's start).
    pub next_offset: Offset,
    /// Why.
    pub reason: StopReason,
}

/// An iterator over the batches of a window: (file position, header).
#[derive(Clone, Debug)]
pub struct BatchWalk<'a> {
    window: &'a [u8],
    check: Check,
    at: Stop,
    stopped: bool,
}

impl<'a> BatchWalk<'a> {
    /// Walks `window`, whose first byte is the start of a batch and lies at `position` of its file. Batches must
    /// start at `next_offset` or later, and each after the last offset of the one before (gaps are legal:
    /// compaction leaves them).
    pub const fn new(window: &'a [u8], position: Position, next_offset: Offset, check: Check) -> Self {
        let at = Stop { position, next_offset, reason: StopReason::End };
        Self { window, check, at, stopped: false }
    }

    /// Where the walk stands, and why it ended if it has.
    pub const fn stop(&self) -> Stop {
        self.at
    }

    /// Runs to the end and says where that is.
    pub fn run(mut self) -> Stop {
        while self.next().is_some() {}
        self.at
    }

    fn step(&mut self) -> Result<(Position, BatchHeader), StopReason> {
        if self.window.is_empty() {
            return Err(StopReason::End);
        }
        if is_zero(&self.window[..HEADER_LEN.min(self.window.len())]) {
            return Err(StopReason::ZeroTail);
        }
        let header = match self.check {
            Check::Header => BatchHeader::peek(self.window),
            Check::Crc => validate(self.window, BATCH_LEN_MAX_STORABLE),
        }
        .map_err(|error| match error {
            BatchError::Incomplete { needed, found } => StopReason::Torn { needed, found },
            other => StopReason::Bad(other),
        })?;
        let (expected, found) = (self.at.next_offset, header.base_offset());
        if found < expected {
            return Err(StopReason::Bad(BatchError::OffsetOrder { expected, found }));
        }
        let start = self.at.position;
        self.at.position = start.plus(header.batch_len());
        self.at.next_offset = header.next_offset();
        self.window = self.window.get(header.batch_len().as_usize()..).unwrap_or_default();
        Ok((start, header))
    }
}

impl Iterator for BatchWalk<'_> {
    type Item = (Position, BatchHeader);

    fn next(&mut self) -> Option<Self::Item> {
        if self.stopped {
            return None;
        }
        match self.step() {
            Ok(item) => Some(item),
            Err(reason) => {
                self.at.reason = reason;
                self.stopped = true;
                None
            }
        }
    }
}

/// Where a search for an offset got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The first batch whose last offset is the target or later, and where it starts.
    Found(Position, BatchPrefix),
    /// All batches seen so far end before the target; the next header starts here, outside the window.
    ReadOn(Position),
    /// No valid batch starts here.
    Stopped(Position, StopReason),
}

/// Walks batch prefixes from `position` on, where `window` starts, to the first batch whose last offset is at or
/// beyond `target`. A window of `PREFIX_LEN` bytes is enough for a step.
pub fn seek(window: &[u8], position: Position, target: Offset) -> Seek {
    let mut at = 0;
    loop {
        let here = position.plus(ByteCount::of_usize(at));
        let rest = window.get(at..).unwrap_or_default();
        match BatchPrefix::peek(rest) {
            Ok(batch) if batch.last_offset() >= target => return Seek::Found(here, batch),
            Ok(batch) => at += batch.len().as_usize(),
            Err(BatchError::Incomplete { .. }) => return Seek::ReadOn(here),
            Err(_) if is_zero(&rest[..PREFIX_LEN]) => return Seek::Stopped(here, StopReason::ZeroTail),
            Err(error) => return Seek::Stopped(here, StopReason::Bad(error)),
        }
    }
}

/// Whether all of `bytes` are zero, as preallocated space reads.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |or, &b| or | b) == 0) && rest.iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::batch::patch;
    use crate::format::build::BatchBuilder;
    use crate::types::{LeaderEpoch, Timestamp};

    fn log(bases: &[i64]) -> Vec<u8> {
        let mut out = Vec::new();
        for &base in bases {
            let mut batch = BatchBuilder::new();
            for i in 0..3 {
                batch.record(Timestamp::new(base + i), Some(b"k"), Some(&[7; 40]));
            }
            let mut bytes = batch.build();
            patch(&mut bytes, Offset::new(base), LeaderEpoch::new(1));
            out.extend_from_slice(&bytes);
        }
        out
    }

    fn walk(window: &[u8], check: Check) -> (Vec<(u64, i64)>, Stop) {
        let mut walk = BatchWalk::new(window, Position::new(1000), Offset::ZERO, check);
        let seen = walk.by_ref().map(|(p, h)| (p.get(), h.base_offset().get())).collect();
        assert_eq!(walk.next(), None, "a stopped walk stays stopped");
        (seen, walk.stop())
    }

    #[test]
    fn whole_batches_then_end() {
        let bytes = log(&[0, 3, 10]);
        let len = bytes.len() as u64 / 3;
        for check in [Check::Header, Check::Crc] {
            let (seen, stop) = walk(&bytes, check);
            assert_eq!(seen, [(1000, 0), (1000 + len, 3), (1000 + 2 * len, 10)]);
            let next_offset = Offset::new(13);
            assert_eq!(
                stop,
                Stop { position: Position::new(1000 + 3 * len), next_offset, reason: StopReason::End }
            );
        }
        assert_eq!(walk(&[], Check::Crc).1.reason, StopReason::End);
    }

    /// A crash leaves preallocated zeros, or a prefix of the last batch: both end the log, by different names.
    #[test]
    fn zero_and_torn_tails_are_told_apart() {
        let bytes = log(&[0, 3]);
        let half = bytes.len() / 2;
        for zeros in [1, 60, 61, 4096] {
            let mut tail = bytes.clone();
            tail.resize(bytes.len() + zeros, 0);
            let (seen, stop) = walk(&tail, Check::Crc);
            assert_eq!((seen.len(), stop.reason), (2, StopReason::ZeroTail), "{zeros}");
            assert_eq!(stop.position.get(), 1000 + bytes.len() as u64);
        }
        for keep in [half + 20, half + 61, bytes.len() - 1] {
            let (seen, stop) = walk(&bytes[..keep], Check::Crc);
            let needed = if keep < half + 61 { 61 } else { half };
            let (needed, found) = (ByteCount::of_usize(needed), ByteCount::of_usize(keep - half));
            assert_eq!((seen.len(), stop.reason), (1, StopReason::Torn { needed, found }));
            assert_eq!(stop.position.get(), 1000 + half as u64);
        }
    }

    /// A header walk may step over a batch whose end the window does not show: the position says how far.
    #[test]
    fn header_walk_yields_a_batch_that_reaches_beyond_the_window() {
        let bytes = log(&[0, 3]);
        let (seen, stop) = walk(&bytes[..bytes.len() - 1], Check::Header);
        assert_eq!((seen.len(), stop.reason), (2, StopReason::End));
        assert_eq!(stop.position.get(), 1000 + bytes.len() as u64);
    }

    #[test]
    fn bad_bytes_stop_the_walk_where_they_start() {
        let bytes = log(&[5, 8]);
        let half = bytes.len() / 2;
        let mut flipped = bytes.clone();
        flipped[half + 70] ^= 1;
        let (seen, stop) = walk(&flipped, Check::Crc);
        assert!(matches!(stop.reason, StopReason::Bad(BatchError::Crc { .. })));
        assert_eq!((seen.len(), stop.position.get()), (1, 1000 + half as u64));
        assert_eq!(walk(&flipped, Check::Header).0.len(), 2, "the header walk does not read records");

        let mut overlapping = bytes.clone();
        patch(&mut overlapping[half..], Offset::new(7), LeaderEpoch::new(1));
        let (expected, found) = (Offset::new(8), Offset::new(7));
        assert_eq!(
            walk(&overlapping, Check::Crc).1.reason,
            StopReason::Bad(BatchError::OffsetOrder { expected, found })
        );
    }

    #[test]
    fn seek_steps_through_windows_of_any_size() {
        let bytes = log(&[0, 3, 10]);
        let len = bytes.len() / 3;
        let found = |target: i64, from: usize, to: usize| {
            seek(&bytes[from..to], Position::new(from as u64), Offset::new(target))
        };
        let at = |n: usize| Position::new((n * len) as u64);
        for (target, batch) in [(0, 0), (2, 0), (3, 1), (5, 1), (6, 2), (10, 2), (12, 2)] {
            let all = bytes.len();
            assert!(matches!(found(target, 0, all), Seek::Found(p, _) if p == at(batch)), "{target}");
        }
        assert_eq!(found(13, 0, bytes.len()), Seek::ReadOn(at(3)));
        assert_eq!(found(3, 0, PREFIX_LEN), Seek::ReadOn(at(1)));
        assert_eq!(found(3, 0, len + PREFIX_LEN - 1), Seek::ReadOn(at(1)));
        assert!(matches!(found(3, len, len + PREFIX_LEN), Seek::Found(p, _) if p == at(1)));
        assert_eq!(seek(&[0; 30], at(3), Offset::ZERO), Seek::Stopped(at(3), StopReason::ZeroTail));
        let bad = seek(&[0xff; 30], at(3), Offset::ZERO);
        assert!(matches!(bad, Seek::Stopped(_, StopReason::Bad(BatchError::Length { .. }))));
    }

    #[test]
    fn zero_test_sees_every_byte() {
        for len in [1, 63, 64, 65, 200] {
            assert!(is_zero(&vec![0; len]));
            for at in 0..len {
                let mut bytes = vec![0; len];
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
            }
        }
        assert!(is_zero(&[]));
    }
}
