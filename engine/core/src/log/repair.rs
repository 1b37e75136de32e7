//! What opening changes in a segment's files once it is decided: cut, companions, first segment.

use std::path::{Path, PathBuf};

use crate::disk::{Caching, Disk, DiskError, Errno, OpenMode};
use crate::error::PartitionError;
use crate::format::index::{OFFSET_ENTRY_LEN, OffsetIndex, TIME_ENTRY_LEN, TimeIndex, entries_in};
use crate::format::index_build::IndexBuilder;
use crate::format::names::{SegmentFileKind, TopicId, TopicPartition};
use crate::format::side_file::{SIDE_INTERVAL_DEFAULT, SegmentIdentity, SideFileBuilder};
use crate::log::LogConfig;
use crate::log::files::{open_or_create, read_file, replace_file, unlink_if_there};
use crate::log::found::{Ending, Found, open_around_cache};
use crate::log::inventory::{Inventory, segment_path};
use crate::log::log_dir::LogDir;
use crate::log::scan::{SCAN_BLOCK_LEN, SegmentReader};
use crate::log::segments::make_segment;
use crate::log::step::{CompanionsLen, OpenedSegment};
use crate::planted::{Bug, is_planted};
use crate::platform::{DIRECT_IO_ALIGN, Platform};
use crate::types::{ByteCount, Offset, Position, Timestamp};

const TXN_ENTRY_LEN: usize = 34;

/// Cuts the segment behind its last batch, makes what was read durable, and writes what of its companions is new;
/// `durable`, if no later recovery reads it again.
pub(crate) fn repair_segment<D: Disk>(
    disk: &D,
    dir: &Path,
    found: &Found<D>,
    config: &LogConfig,
    durable: bool,
) -> Result<(), DiskError> {
    let path = |kind| segment_path(dir, found.base_offset, kind);
    if let (Ending::Damage(_), Some(file)) = (&found.ending, &found.file) {
        if !is_planted(Bug::KeepTornTail) {
            disk.set_len(file, found.end.since(Position::ZERO))?;
        }
        disk.sync(file)?;
    }
    if found.scanned && !is_planted(Bug::SkipRewrite) {
        make_durable(disk, &path(SegmentFileKind::Log), found, config.guard_last_block)?;
    }
    let put = |path: PathBuf, bytes: &[u8]| put_companion(disk, &path, bytes, durable);
    if found.scanned {
        put(path(SegmentFileKind::Index), found.index.offsets().as_bytes())?;
        put(path(SegmentFileKind::TimeIndex), found.index.times().as_bytes())?;
    }
    if let Some(bytes) = found.chain.as_ref().and_then(|chain| chain.rebuilt.as_ref()) {
        put(path(SegmentFileKind::Chain), bytes)?;
    }
    Ok(())
}

/// Writes what was accepted once more, and syncs. After a failed flush the batches may be in a cache that loses them
/// and calls itself clean: a sync alone would then promise what it does not keep. What the side file vouches for was
/// flushed before the side file was written, and is left alone.
///
/// Where the last block is guarded, the device may destroy what it is writing, so that acknowledged bytes are not written
/// without need. Such a log is written past the page cache: what was read is on the device, if only in its cache, and
/// the sync flushes that.
fn make_durable<D: Disk>(disk: &D, path: &Path, found: &Found<D>, guarded: bool) -> Result<(), DiskError> {
    let vouched = if guarded { found.end } else { found.side_end.unwrap_or(Position::ZERO).min(found.end) };
    // Through the page cache, so that the last block need not be padded.
    let target = disk.open(path, OpenMode::ReadWrite, Caching::Buffered)?;
    let device = open_around_cache(disk, path)?;
    let mut reader = SegmentReader::new(disk, device.as_ref().unwrap_or(&target), SCAN_BLOCK_LEN)?;
    let mut at = if vouched < found.end { vouched.align_down(DIRECT_IO_ALIGN) } else { found.end };
    while at < found.end {
        let block = reader.block(at)?;
        let len = block.len().min(found.end.since(at).as_usize());
        if len == 0 {
            return Err(DiskError { action: "read", path: path.to_owned(), errno: Errno::IO }); // it was longer before
        }
        disk.write_at(&target, at, &block[..len])?;
        at = at.plus(ByteCount::of_usize(len));
    }
    disk.sync(&target)
}

fn put_companion<D: Disk>(disk: &D, path: &Path, bytes: &[u8], durable: bool) -> Result<(), DiskError> {
    if read_file(disk, path)?.as_deref() == Some(bytes) {
        // Perhaps only in the cache, if a killed process has written it.
        return if durable { sync_companion(disk, path) } else { Ok(()) };
    }
    if durable {
        return replace_file(disk, path, bytes);
    }
    let file = open_or_create(disk, path)?;
    disk.set_len(&file, ByteCount::ZERO)?;
    disk.write_at(&file, Position::ZERO, bytes)
}

fn sync_companion<D: Disk>(disk: &D, path: &Path) -> Result<(), DiskError> {
    let file = disk.open(path, OpenMode::ReadWrite, Caching::Buffered)?;
    disk.sync(&file)?;
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
}

/// After the log was cut: drops the producer snapshots and the aborted transactions that lie behind its end.
pub(crate) fn cut_other_files<D: Disk>(
    disk: &D,
    dir: &Path,
    inventory: &Inventory,
    last_base: Offset,
    log_end_offset: Offset,
) -> Result<(), DiskError> {
    for offset in inventory.snapshots.iter().filter(|offset| **offset > log_end_offset) {
        unlink_if_there(disk, &segment_path(dir, *offset, SegmentFileKind::Snapshot))?;
    }
    let path = segment_path(dir, last_base, SegmentFileKind::TxnIndex);
    let Some(bytes) = read_file(disk, &path)? else { return Ok(()) };
    let (entries, _) = bytes.as_chunks::<TXN_ENTRY_LEN>();
    let last_offset = |entry: &[u8; TXN_ENTRY_LEN]| {
        i64::from_be_bytes(*entry[18..].first_chunk().expect("an entry has 16 bytes behind its 18th"))
    };
    let keep = entries.partition_point(|entry| last_offset(entry) < log_end_offset.get()) * TXN_ENTRY_LEN;
    if keep < bytes.len() { replace_file(disk, &path, &bytes[..keep]) } else { Ok(()) }
}

/// Makes the first segment of a log that has none. Its name is not durable yet.
pub(crate) fn create_first_segment<P: Platform>(
    log_dir: &LogDir<P::Disk>,
    dir: &Path,
    tp: &TopicPartition,
    topic_id: TopicId,
    config: &LogConfig,
    base_offset: Offset,
) -> Result<OpenedSegment<P>, PartitionError>
where
    P::Disk: Disk<File = P::File>,
{
    let (file, preallocated) = make_segment(log_dir, dir, config, base_offset, ByteCount::ZERO)?;
    let modified = log_dir.disk().modified(&segment_path(dir, base_offset, SegmentFileKind::Log))?;
    let offsets = OffsetIndex::new(base_offset, entries_in(config.index_len_max, OFFSET_ENTRY_LEN));
    let times = TimeIndex::new(base_offset, entries_in(config.index_len_max, TIME_ENTRY_LEN));
    let identity = SegmentIdentity { topic_id, partition: tp.partition(), base_offset };
    Ok(OpenedSegment {
        base_offset,
        next_offset: base_offset,
        end: Position::ZERO,
        file: Some(file),
        preallocated,
        index: IndexBuilder::new(offsets, times, config.index_interval),
        max_timestamp: Timestamp::NONE,
        first_timestamp: Timestamp::NONE,
        modified,
        chain: Some(SideFileBuilder::new(identity, SIDE_INTERVAL_DEFAULT)),
        companions_len: CompanionsLen::default(),
        damaged: false,
    })
}
