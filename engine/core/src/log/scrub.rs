//! Checking what was written long ago, piece by piece, so that rot is found before a reader finds it.
//!
//! A piece is what one record of the side file covers, a few MiB of whole batches; without a side file, about as much. It
//! is read around the page cache: checksum and place of every batch, then the chain, which covers what Kafka's checksum
//! leaves out. Always holds: nothing is changed. What is found goes into the log directory's notes and is counted.

use crate::disk::{Caching, Disk, DiskError, Errno, OpenMode};
use crate::format::names::{SegmentFileKind, TopicPartition};
use crate::format::side_file::{ChainVerifier, SIDE_INTERVAL_DEFAULT, SegmentIdentity, SideFile, SideRecord};
use crate::format::walk::Check;
use crate::log::files::read_file;
use crate::log::found::open_around_cache;
use crate::log::inventory::segment_path;
use crate::log::log_dir::LogDir;
use crate::log::rescan::describe;
use crate::log::scan::{SCAN_BLOCK_LEN, SegmentReader};
use crate::types::{ByteCount, Offset, Position};

/// A place between two batches of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPoint {
    /// Where the next batch begins.
    pub position: Position,
    /// Its base offset, at least.
    pub next_offset: Offset,
}

/// What to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which partition.
    pub name: TopicPartition,
    /// Which segment of which topic.
    pub identity: SegmentIdentity,
    /// From here.
    pub from: ScrubPoint,
    /// The segment, or what of it may be read by now, ends here.
    pub end: Position,
    /// The offset there, where it is known.
    pub end_offset: Option<Offset>,
}

/// What a piece was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes of it.
    pub len: ByteCount,
    /// Where the segment's next piece begins; `None` behind its end, or if nobody can tell.
    pub next: Option<ScrubPoint>,
    /// Whether it is not what was written.
    pub damaged: bool,
}

/// Checks one piece.
///
/// # Errors
/// When the files cannot be opened or read; a device that does not give the bytes back is damage, not an error.
pub(crate) fn scrub<D: Disk>(log_dir: &LogDir<D>, piece: &Piece) -> Result<Scrubbed, DiskError> {
    let (disk, dir) = (log_dir.disk(), log_dir.partition_dir(&piece.name));
    let base_offset = piece.identity.base_offset;
    let path = segment_path(&dir, base_offset, SegmentFileKind::Log);
    let file = match open_around_cache(disk, &path)? {
        Some(file) => file,
        None => disk.open(&path, OpenMode::Read, Caching::Buffered)?,
    };
    let side = read_file(disk, &segment_path(&dir, base_offset, SegmentFileKind::Chain))?;
    let side = side.and_then(|bytes| SideFile::load(&bytes).ok());
    let side = side.filter(|side| side.check_identity(piece.identity).is_ok());
    let mut reader = SegmentReader::new(disk, &file, SCAN_BLOCK_LEN)?;
    let (reached, found) = match check(&mut reader, piece, side.as_ref()) {
        Err(error) if error.errno == Errno::IO => (None, Some((piece.from.position, error.to_string()))),
        other => other?,
    };
    if let Some((position, reason)) = &found {
        log_dir.note(format!("{} at position {position}: {reason}; found by the scrub.", path.display()));
    }
    let covering = covering(side.as_ref(), piece);
    let next = match found {
        None => reached,
        Some(_) => covering.map(|(_, r)| ScrubPoint { position: r.to, next_offset: r.next_offset }),
    };
    let to = next.map_or(piece.end, |next| next.position);
    let (len, next) = (to.since(piece.from.position), next.filter(|next| next.position < piece.end));
    Ok(Scrubbed { len, next, damaged: found.is_some() })
}

/// The record of the side file that begins where the piece does.
fn covering(side: Option<&SideFile>, piece: &Piece) -> Option<(usize, SideRecord)> {
    let records = side?.records();
    let number = records.partition_point(|record| record.to <= piece.from.position);
    let record = *records.get(number)?;
    let fits = record.from == piece.from.position && record.to <= piece.end;
    fits.then_some((number, record))
}

type Rot = (Position, String);

/// Where the piece ends, and what is wrong with it.
fn check<D: Disk>(
    reader: &mut SegmentReader<'_, D>,
    piece: &Piece,
    side: Option<&SideFile>,
) -> Result<(Option<ScrubPoint>, Option<Rot>), DiskError> {
    let covering = covering(side, piece);
    let mut verifier = side.zip(covering).map(|(side, (number, _))| match number.checked_sub(1) {
        None => ChainVerifier::new(side),
        Some(before) => ChainVerifier::after_record(side, before),
    });
    let target = covering.map_or(piece.from.position.plus(SIDE_INTERVAL_DEFAULT), |(_, record)| record.to);
    let target = target.min(piece.end);
    let mut at = piece.from;
    while at.position < target {
        let header = match reader.batch(at.position, at.next_offset, Check::Crc)? {
            Ok(header) => header,
            Err(reason) => return Ok((None, Some((at.position, describe(reason))))),
        };
        let end = at.position.plus(header.batch_len());
        if end > piece.end {
            return Ok((
                None,
                Some((at.position, format!("a batch reaches to {end}, beyond the end of the log"))),
            ));
        }
        if let Some(Err(mismatch)) =
            verifier.as_mut().map(|verifier| verifier.push_batch(&header, at.position))
        {
            let reason = format!("{mismatch}, although their checksums fit");
            return Ok((None, Some((mismatch.from, reason))));
        }
        at = ScrubPoint { position: end, next_offset: header.next_offset() };
    }
    let expected = piece.end_offset.filter(|_| at.position >= piece.end);
    let rot = expected.filter(|expected| *expected < at.next_offset).map(|expected| {
        (piece.from.position, format!("offsets reach to {}, beyond {expected}", at.next_offset))
    });
    Ok((Some(at), rot))
}

#[cfg(test)]
#[path = "scrub_tests.rs"]
mod tests;
