//! Torn tail or corruption? The one place that decides what of a damaged segment may be cut off.
//!
//! Always holds: in doubt nothing is cut (I11). Invariant I5: at most [`COMMIT_LEN_MAX`] bytes of a partition were in flight
//! when its writer stopped, so what lies further behind a bad batch was complete before that batch was written.

use crate::disk::{Disk, DiskError};
use crate::format::walk::Check;
use crate::limits::COMMIT_LEN_MAX;
use crate::log::Durability;
use crate::log::found::{Ending, Found};
use crate::log::scan::{PEEK_BLOCK_LEN, SCAN_BLOCK_LEN, SegmentReader, find_batch};
use crate::planted::{Bug, is_planted};
use crate::types::Offset;

/// What a device writes whole, bytes: the least that any does.
const SECTOR_LEN: u64 = 512;

/// Bytes of a batch before its magic: base offset, length and leader epoch. Zeros may be all of them or a part, and no
/// checksum covers them.
const UNCHECKED_LEN: u64 = 16;

/// What lies behind a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Base offset of the next segment, if there is one.
    pub(crate) next_base: Option<Offset>,
    /// Whether any later segment holds a batch.
    pub(crate) has_batches: bool,
}

/// What is known of the time before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// Below it every byte was on the device.
    pub(crate) recovery_point: Offset,
    /// What an acknowledgement has promised.
    pub(crate) durability: Durability,
    /// Whether the log was closed cleanly: its files then end where their batches end.
    pub(crate) clean: bool,
    /// Whether the device may have left garbage where it was writing: the last block is guarded for that.
    pub(crate) guarded: bool,
}

/// What to do with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its batches fill the file.
    Keep,
    /// Cut the file behind its last batch; the log goes on in the next segment, if there is one.
    Trim,
    /// The log ends here: cut the file behind its last batch and drop the segments behind it.
    End,
    /// Change nothing: why.
    Corrupt(String),
    /// Change nothing: the log goes on in this other message format.
    Foreign(u8),
}

/// Decides about one segment that was read up to `found.end`.
pub(crate) fn judge<D: Disk>(
    disk: &D,
    found: &Found<D>,
    behind: Behind,
    past: &Past,
) -> Result<Verdict, DiskError> {
    let recovery_point =
        if is_planted(Bug::ForgetRecoveryPoint) { Offset::ZERO } else { past.recovery_point };
    let Ending::Damage(damage) = &found.ending else {
        // Segments behind a gap that hold nothing were made for batches that never got this far.
        let behind_gap = behind.next_base.is_some_and(|base| base != found.next_offset);
        let lost = behind_gap && !behind.has_batches && found.scanned && found.next_offset >= recovery_point;
        return Ok(if lost { Verdict::End } else { Verdict::Keep });
    };
    let file = found.file.as_ref().expect("a segment with damage was scanned and is open");
    let mut reader = SegmentReader::new(disk, file, PEEK_BLOCK_LEN)?;
    let only_zeros = reader.last_nonzero(found.end)? <= found.end;
    if let Some(at) = misplaced(&mut reader, found, behind)? {
        return Ok(Verdict::Corrupt(format!(
            "{damage}; the whole batch there, of offset {at}, belongs before it"
        )));
    }
    if behind.next_base == Some(found.next_offset) && (only_zeros || !past.clean) {
        // The log is whole: this is the space reserved ahead of a segment that was not sealed any more.
        return Ok(Verdict::Trim);
    }
    // A format of later times shows by numbers alone, which garbage may hold; the older ones have a checksum.
    let foreign = reader.foreign_format(found.end, found.next_offset)?;
    if let Some(format) = foreign.filter(|format| *format < 2 || past.clean || !past.guarded) {
        return Ok(Verdict::Foreign(format));
    }
    if is_planted(Bug::CutInTheMiddle) {
        return Ok(Verdict::End);
    }
    if past.clean && !only_zeros {
        return Ok(Verdict::Corrupt(format!("{damage}, in a log that was closed cleanly")));
    }
    if found.next_offset < recovery_point {
        return Ok(Verdict::Corrupt(format!("{damage}, below the recovery point {recovery_point}")));
    }
    if past.durability == Durability::Written {
        return Ok(Verdict::End); // a power cut may take anything above the recovery point, by contract
    }
    if let Some(side_end) = found.side_end.filter(|end| *end > found.end) {
        return Ok(Verdict::Corrupt(format!("{damage}, although the side file reaches to {side_end}")));
    }
    if behind.has_batches {
        return Ok(Verdict::Corrupt(format!("{damage}, although a later segment holds batches")));
    }
    let from = found.end.plus(COMMIT_LEN_MAX);
    let end_offset = Offset::new(found.base_offset.get().saturating_add(i64::from(i32::MAX) + 1));
    match find_batch(disk, file, from, found.next_offset, end_offset)? {
        Some(at) => Ok(Verdict::Corrupt(format!("{damage}, although a valid batch follows at {at}"))),
        None if is_planted(Bug::TornTailIsCorruption) => {
            Ok(Verdict::Corrupt(format!("{damage}, a torn tail")))
        }
        None => Ok(Verdict::End),
    }
}

/// The base offset of a whole batch right behind the end that has offsets from before it: an offset has rotted, that
/// batch's or its predecessor's. A torn write leaves that only if what no checksum covers was in another sector than
/// the rest of its batch; such a batch says nothing.
fn misplaced<D: Disk>(
    reader: &mut SegmentReader<'_, D>,
    found: &Found<D>,
    behind: Behind,
) -> Result<Option<Offset>, DiskError> {
    if found.end.get() % SECTOR_LEN >= SECTOR_LEN - UNCHECKED_LEN {
        return Ok(None);
    }
    let Ok(header) = reader.batch(found.end, found.base_offset, Check::Crc)? else { return Ok(None) };
    let end = behind.next_base.unwrap_or(found.next_offset).min(found.next_offset);
    Ok((header.base_offset() < end).then_some(header.base_offset()))
}

/// Bytes from `found.end` to the last byte that is not zero.
pub(crate) fn torn_len<D: Disk>(disk: &D, found: &Found<D>) -> Result<u64, DiskError> {
    let Some(file) = &found.file else { return Ok(0) };
    let mut reader = SegmentReader::new(disk, file, SCAN_BLOCK_LEN)?;
    let end = reader.last_nonzero(found.end)?;
    Ok(end.max(found.end).since(found.end).get())
}
