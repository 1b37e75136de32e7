//! Reading a segment front to back in blocks, batch by batch, and looking for batches behind damage.
//!
//! Owns one block of memory per reader, whatever the segment's or a batch's length. Never changes a file and never
//! trusts a length it has not compared with the file's.

use crate::disk::{Disk, DiskError};
use crate::format::batch::{
    BATCH_LEN_MAX_STORABLE, BatchError, BatchHeader, CRC_START, HEADER_LEN, LOG_OVERHEAD,
};
use crate::format::crc::{Crc32c, crc32_legacy};
use crate::format::guard_slot::GuardSlot;
use crate::format::walk::{Check, StopReason, is_zero};
use crate::platform::DIRECT_IO_ALIGN;
use crate::types::{ByteCount, Offset, Position};

/// Bytes per read of a whole scan.
pub(crate) const SCAN_BLOCK_LEN: ByteCount = ByteCount::mib(1);

/// Bytes per read where only a few headers are wanted.
pub(crate) const PEEK_BLOCK_LEN: ByteCount = ByteCount::kib(32);

/// A window that moves over a file.
pub(crate) struct SegmentReader<'a, D: Disk> {
    disk: &'a D,
    file: &'a D::File,
    len: u64,
    block: Vec<u8>,
    start: u64,
    filled: usize,
    read: u64,
    /// Shown in the place of the file's bytes.
    overlay: Option<&'a GuardSlot>,
}

impl<'a, D: Disk> SegmentReader<'a, D> {
    /// A reader over the file as long as it is now.
    pub(crate) fn new(disk: &'a D, file: &'a D::File, block_len: ByteCount) -> Result<Self, DiskError> {
        let len = disk.len(file)?.get();
        let block_len = block_len.get().min(len.next_multiple_of(DIRECT_IO_ALIGN)) as usize;
        Ok(Self { disk, file, len, block: vec![0; block_len], start: 0, filled: 0, read: 0, overlay: None })
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> Position {
        Position::new(self.len)
    }

    /// From now on shows the slot's bytes in the place of the file's, as far as that reaches; those of one slot at a time.
    /// Returns what was shown before.
    pub(crate) fn lay_over(&mut self, slot: Option<&'a GuardSlot>) -> Option<&'a GuardSlot> {
        self.filled = 0;
        std::mem::replace(&mut self.overlay, slot)
    }

    fn show_overlay(&mut self) {
        let Some(slot) = self.overlay else { return };
        let (read_end, at) = (self.start + self.filled as u64, slot.label.position.get());
        let (from, to) = (at.max(self.start), slot.end().get().min(read_end));
        if from < to {
            self.block[(from - self.start) as usize..(to - self.start) as usize]
                .copy_from_slice(&slot.bytes[(from - at) as usize..(to - at) as usize]);
        }
    }

    /// Up to `want` bytes at `at`; fewer only at the end of the file or of the block.
    fn bytes(&mut self, at: u64, want: usize) -> Result<&[u8], DiskError> {
        let end = (at + want as u64).min(self.len);
        let covered = at >= self.start && end <= self.start + self.filled as u64;
        if !covered {
            self.start = Position::new(at).align_down(DIRECT_IO_ALIGN).get();
            let len = (self.len.saturating_sub(self.start) as usize).min(self.block.len());
            self.filled = self.disk.read_at(self.file, Position::new(self.start), &mut self.block[..len])?;
            self.read += self.filled as u64;
            self.show_overlay();
        }
        let from = (at.saturating_sub(self.start) as usize).min(self.filled);
        let to = (end.saturating_sub(self.start) as usize).clamp(from, self.filled);
        Ok(&self.block[from..to])
    }

    /// The rest of the block at `at`, read on if less than `least` bytes are left of it.
    fn rest(&mut self, at: u64, least: usize) -> Result<&[u8], DiskError> {
        self.bytes(at, least)?;
        let from = (at.saturating_sub(self.start) as usize).min(self.filled);
        Ok(&self.block[from..self.filled])
    }

    /// What the file holds from `at` on, as far as one block reaches; nothing at its end.
    pub(crate) fn block(&mut self, at: Position) -> Result<&[u8], DiskError> {
        self.rest(at.get(), 1)
    }

    /// CRC-32C of `[from, to)`; of less if the file ends before.
    fn crc(&mut self, from: u64, to: u64) -> Result<u32, DiskError> {
        let (mut crc, mut at) = (Crc32c::new(), from);
        while at < to {
            let rest = self.rest(at, 1)?;
            let take = rest.len().min((to - at) as usize);
            if take == 0 {
                break;
            }
            crc.update(&rest[..take]);
            at += take as u64;
        }
        Ok(crc.value())
    }

    /// The end of the last byte at or behind `from` that is not zero; `from` if there is none.
    pub(crate) fn last_nonzero(&mut self, from: Position) -> Result<Position, DiskError> {
        let (mut at, mut end) = (from.get(), from.get());
        while at < self.len {
            let rest = self.rest(at, 1)?;
            if rest.is_empty() {
                break; // the file has become shorter
            }
            if !is_zero(rest) {
                end = at + rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            }
            at += rest.len() as u64;
        }
        Ok(Position::new(end))
    }

    /// The header at `at`, if there is one.
    pub(crate) fn header(&mut self, at: Position) -> Result<Option<BatchHeader>, DiskError> {
        Ok(BatchHeader::peek(self.bytes(at.get(), HEADER_LEN)?).ok())
    }

    /// The format of the message at `at`, if it is whole and of another format than ours: 0 or 1, which Kafka wrote
    /// before 0.11, with a checksum that fits, or one of later times. A torn write leaves zeros or our own bytes,
    /// never that.
    pub(crate) fn foreign_format(
        &mut self,
        at: Position,
        next_offset: Offset,
    ) -> Result<Option<u8>, DiskError> {
        const MAGIC_AT: usize = 16;
        const MESSAGE_LEN_MIN: u64 = 14;
        let (at, end) = (at.get(), self.len);
        let Some(start) = self.bytes(at, MAGIC_AT + 1)?.first_chunk::<{ MAGIC_AT + 1 }>().copied() else {
            return Ok(None);
        };
        let field =
            |from: usize| <[u8; 4]>::try_from(&start[from..from + 4]).expect("four bytes of seventeen");
        let offset = i64::from_be_bytes(*start.first_chunk().expect("eight bytes of seventeen"));
        let len = u64::from(u32::from_be_bytes(field(8)));
        let message_end = at + LOG_OVERHEAD as u64 + len;
        if len < MESSAGE_LEN_MIN || message_end > end || len > BATCH_LEN_MAX_STORABLE.get() {
            return Ok(None);
        }
        let magic = start[MAGIC_AT];
        let foreign = match magic {
            0 | 1 => {
                let mut message = vec![0; (message_end - at) as usize - MAGIC_AT];
                let from = Position::new(at + MAGIC_AT as u64);
                let read = self.disk.read_at(self.file, from, &mut message)?;
                read == message.len() && crc32_legacy(&message) == u32::from_be_bytes(field(12))
            }
            2 => false,
            _ => (0..=i64::from(i32::MAX)).contains(&offset.saturating_sub(next_offset.get())),
        };
        Ok(foreign.then_some(magic))
    }

    /// The batch at `at`, which may not begin before `next_offset`, or why there is none.
    pub(crate) fn batch(
        &mut self,
        at: Position,
        next_offset: Offset,
        check: Check,
    ) -> Result<Result<BatchHeader, StopReason>, DiskError> {
        let (at, len) = (at.get(), self.len);
        let bytes = self.bytes(at, HEADER_LEN)?;
        if bytes.is_empty() {
            return Ok(Err(StopReason::End));
        }
        if is_zero(bytes) {
            return Ok(Err(StopReason::ZeroTail));
        }
        let header = match BatchHeader::peek(bytes) {
            Ok(header) => header,
            Err(BatchError::Incomplete { needed, found }) => {
                return Ok(Err(StopReason::Torn { needed, found }));
            }
            Err(other) => return Ok(Err(StopReason::Bad(other))),
        };
        let found = header.base_offset();
        if found < next_offset {
            return Ok(Err(StopReason::Bad(BatchError::OffsetOrder { expected: next_offset, found })));
        }
        let (needed, found) = (header.batch_len(), ByteCount::new(len - at));
        if needed > found {
            return Ok(Err(StopReason::Torn { needed, found }));
        }
        if check == Check::Crc {
            let crc = self.crc(at + CRC_START as u64, at + needed.get())?;
            if let Err(error) = header.check_crc(crc) {
                return Ok(Err(StopReason::Bad(error)));
            }
        }
        Ok(Ok(header))
    }
}

/// Looks for a valid batch that starts at `from` or beyond and whose offsets lie in `[next_offset, end_offset)`.
/// `None` if there is none.
///
/// Any byte may start a batch. Checking what merely looks like one is limited to a few times the file's length;
/// beyond that the place of the last candidate is returned unchecked: in doubt there is data.
pub(crate) fn find_batch<D: Disk>(
    disk: &D,
    file: &D::File,
    from: Position,
    next_offset: Offset,
    end_offset: Offset,
) -> Result<Option<Position>, DiskError> {
    const MAGIC_AT: usize = 16;
    let mut search = SegmentReader::new(disk, file, SCAN_BLOCK_LEN)?;
    let mut verify = SegmentReader::new(disk, file, SCAN_BLOCK_LEN)?;
    let budget = 4 * search.len + SCAN_BLOCK_LEN.get();
    let mut at = from.get();
    while at + HEADER_LEN as u64 <= search.len {
        let bytes = search.rest(at, HEADER_LEN)?;
        if bytes.len() < HEADER_LEN {
            break; // the file has become shorter
        }
        let starts = bytes.len() - HEADER_LEN + 1;
        if is_zero(bytes) {
            at += starts as u64; // reserved space, of which there may be gigabytes
            continue;
        }
        for (i, _) in bytes[MAGIC_AT..MAGIC_AT + starts].iter().enumerate().filter(|(_, magic)| **magic == 2)
        {
            let Ok(header) = BatchHeader::peek(&bytes[i..]) else { continue };
            if header.base_offset() < next_offset || header.next_offset() > end_offset {
                continue;
            }
            let position = Position::new(at + i as u64);
            if verify.batch(position, next_offset, Check::Crc)?.is_ok() || verify.read > budget {
                return Ok(Some(position));
            }
        }
        at += starts as u64;
    }
    Ok(None)
}
