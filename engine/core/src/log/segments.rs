//! The steps after opening: new segments, preallocation, companions, seals, deletions, closing.
//!
//! Always holds (I10): the recovery point moves only behind bytes that are on the device; the log start offset is durable
//! before a segment below it is unlinked; a file that is to be written is locked through the description that writes.

use std::path::Path;

use crate::disk::{Disk, DiskError, Errno, OpenMode};
use crate::error::PartitionError;
use crate::format::names::{SegmentFileKind, TopicPartition};
use crate::format::walk::Check;
use crate::log::LogConfig;
use crate::log::files::{open_or_create, remove_tree, unlink_if_there};
use crate::log::found::{lock_log, open_log};
use crate::log::identity::deletion_id;
use crate::log::inventory::{segment_path, unlink_segment};
use crate::log::log_dir::LogDir;
use crate::log::scan::{PEEK_BLOCK_LEN, SegmentReader};
use crate::log::step::{Companions, LastSegment};
use crate::planted::{Bug, is_planted};
use crate::types::{ByteCount, Offset, Position};

/// As [`make_segment`], and makes its name durable.
///
/// # Errors
/// As [`make_segment`].
pub(crate) fn create_segment<D: Disk>(
    log_dir: &LogDir<D>,
    dir: &Path,
    config: &LogConfig,
    base_offset: Offset,
    preallocate: ByteCount,
) -> Result<(D::File, Position), PartitionError> {
    let made = make_segment(log_dir, dir, config, base_offset, preallocate)?;
    if !is_planted(Bug::SkipDirectorySync) {
        log_dir.disk().sync_dir(dir)?;
    }
    Ok(made)
}

/// Makes the file of a new active segment, with its lock held and `preallocate` bytes reserved.
///
/// A file of that name can be there after a crash: it is taken over if it holds no batch.
///
/// # Errors
/// See [`PartitionError`]. Where the device is full, no file stays behind.
pub(crate) fn make_segment<D: Disk>(
    log_dir: &LogDir<D>,
    dir: &Path,
    config: &LogConfig,
    base_offset: Offset,
    preallocate: ByteCount,
) -> Result<(D::File, Position), PartitionError> {
    let disk = log_dir.disk();
    let path = segment_path(dir, base_offset, SegmentFileKind::Log);
    let caching = config.write_mode.caching();
    let created = open_log(disk, &path, OpenMode::CreateNew, caching);
    let exists = matches!(&created, Err(PartitionError::Disk(error)) if error.errno == Errno::EXIST);
    let file = if exists { open_log(disk, &path, OpenMode::ReadWrite, caching)? } else { created? };
    lock_log(disk, &file, &path, log_dir.options().lock_patience_ms)?;
    if exists {
        let first = SegmentReader::new(disk, &file, PEEK_BLOCK_LEN)?;
        take_over(disk, first, &file, &path, base_offset)?;
    }
    for kind in [SegmentFileKind::Index, SegmentFileKind::TimeIndex, SegmentFileKind::Chain] {
        unlink_if_there(disk, &segment_path(dir, base_offset, kind))?;
    }
    let end = Position::ZERO.plus(preallocate);
    if preallocate > ByteCount::ZERO {
        disk.preallocate(&file, Position::ZERO, end, false).or_else(|error| {
            if error.errno.is_full() {
                disk.unlink(&path)?;
            }
            Err(error)
        })?;
    }
    Ok((file, end))
}

fn take_over<D: Disk>(
    disk: &D,
    mut first: SegmentReader<'_, D>,
    file: &D::File,
    path: &Path,
    base_offset: Offset,
) -> Result<(), PartitionError> {
    if first.batch(Position::ZERO, base_offset, Check::Crc)?.is_ok() {
        let reason =
            "a new segment was to be created here, but the file holds batches; close and open the partition";
        return Err(PartitionError::Corrupt {
            path: path.to_owned(),
            position: 0,
            reason: reason.to_owned(),
        });
    }
    disk.set_len(file, ByteCount::ZERO)?;
    Ok(disk.sync(file)?)
}

/// Opens a segment for reading.
pub(crate) fn open_segment<D: Disk>(
    log_dir: &LogDir<D>,
    name: &TopicPartition,
    config: &LogConfig,
    base_offset: Offset,
) -> Result<D::File, PartitionError> {
    let dir = log_dir.partition_dir(name);
    let path = segment_path(&dir, base_offset, SegmentFileKind::Log);
    open_log(log_dir.disk(), &path, OpenMode::Read, config.write_mode.caching())
}

/// Opens a segment that is to be written again, and takes its lock anew.
pub(crate) fn reopen_segment<D: Disk>(
    log_dir: &LogDir<D>,
    name: &TopicPartition,
    config: &LogConfig,
    base_offset: Offset,
) -> Result<D::File, PartitionError> {
    let dir = log_dir.partition_dir(name);
    let path = segment_path(&dir, base_offset, SegmentFileKind::Log);
    let file = open_log(log_dir.disk(), &path, OpenMode::ReadWrite, config.write_mode.caching())?;
    lock_log(log_dir.disk(), &file, &path, log_dir.options().lock_patience_ms)?;
    Ok(file)
}

/// Appends to a segment's companions. Not durable. What cannot be written leaves a hole.
pub(crate) fn write_companions<D: Disk>(log_dir: &LogDir<D>, new: &Companions) -> Result<(), DiskError> {
    let Some(name) = &new.name else { return Ok(()) };
    append_companions(log_dir, name, new).inspect_err(|_| log_dir.doubt(name))
}

fn append_companions<D: Disk>(
    log_dir: &LogDir<D>,
    name: &TopicPartition,
    new: &Companions,
) -> Result<(), DiskError> {
    let dir = log_dir.partition_dir(name);
    for (kind, position, bytes) in parts(new) {
        if !bytes.is_empty() {
            let file = open_or_create(log_dir.disk(), &segment_path(&dir, new.base_offset, kind))?;
            log_dir.disk().write_at(&file, position, bytes)?;
        }
    }
    Ok(())
}

/// Cuts a segment to its end and makes it durable, then its companions, then moves the recovery point behind it.
///
/// When space or descriptors are too short for the companions, they are left behind: the next opening builds them
/// anew. The recovery point then stays where it is, for the segments behind this one as well; it also stays when it
/// cannot be written.
pub(crate) fn seal<D: Disk>(
    log_dir: &LogDir<D>,
    file: &D::File,
    end: Position,
    next_offset: Offset,
    companions: &Companions,
) -> Result<(), DiskError> {
    let whole = finish_segment(log_dir, file, end, companions)?;
    match &companions.name {
        Some(name) if whole => match log_dir.raise_recovery_point(name, next_offset) {
            Err(error) if error.errno.is_shortage() => Ok(()),
            other => other,
        },
        _ => Ok(()),
    }
}

/// As [`seal`] for the active segment, if it has a file; then takes note that nothing needs recovery.
pub(crate) fn close<D: Disk>(
    log_dir: &LogDir<D>,
    name: &TopicPartition,
    config: &LogConfig,
    active: Option<LastSegment<D::File>>,
    (log_start_offset, log_end_offset): (Offset, Offset),
) -> Result<(), DiskError> {
    let whole = match active {
        Some(LastSegment { file, end, companions }) => {
            let reopen = || reopen_segment(log_dir, name, config, companions.base_offset);
            let file = file.map_or_else(reopen, Ok).map_err(|error| match error {
                PartitionError::Disk(error) => error,
                _ => DiskError { action: "lock", path: log_dir.partition_dir(name), errno: Errno::AGAIN },
            })?;
            finish_segment(log_dir, &file, end, &companions)?
        }
        None => true,
    };
    if whole {
        log_dir.mark_closed(name, log_start_offset, log_end_offset);
    }
    Ok(())
}

/// Says whether the companions are whole as well.
fn finish_segment<D: Disk>(
    log_dir: &LogDir<D>,
    file: &D::File,
    end: Position,
    companions: &Companions,
) -> Result<bool, DiskError> {
    let disk = log_dir.disk();
    disk.set_len(file, end.since(Position::ZERO))?;
    if !is_planted(Bug::SealWithoutSync) {
        disk.sync(file)
            .or_else(|error| if is_planted(Bug::RetryFailedSync) { disk.sync(file) } else { Err(error) })?;
    }
    match finish_companions(log_dir, companions) {
        Ok(()) => Ok(true),
        Err(error) if error.errno.is_shortage() => {
            companions.name.iter().for_each(|name| log_dir.doubt(name));
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn finish_companions<D: Disk>(log_dir: &LogDir<D>, new: &Companions) -> Result<(), DiskError> {
    let Some(name) = &new.name else { return Ok(()) };
    let (disk, dir) = (log_dir.disk(), log_dir.partition_dir(name));
    for (kind, position, bytes) in parts(new) {
        let file = open_or_create(disk, &segment_path(&dir, new.base_offset, kind))?;
        if !bytes.is_empty() {
            disk.write_at(&file, position, bytes)?;
        }
        let len = ByteCount::new(position.get() + bytes.len() as u64);
        if disk.len(&file)? != len {
            disk.set_len(&file, len)?; // zeros that Kafka had reserved
        }
        disk.sync(&file)?;
    }
    disk.sync_dir(&dir)
}

/// Makes the log start offset durable.
pub(crate) fn raise_log_start<D: Disk>(
    log_dir: &LogDir<D>,
    name: &TopicPartition,
    log_start_offset: Offset,
) -> Result<(), DiskError> {
    if is_planted(Bug::ForgetLogStart) { Ok(()) } else { log_dir.raise_log_start(name, log_start_offset) }
}

/// Unlinks segments below the log start offset, which is durable.
pub(crate) fn delete_segments<D: Disk>(
    log_dir: &LogDir<D>,
    name: &TopicPartition,
    base_offsets: &[Offset],
) -> Result<(), DiskError> {
    let dir = log_dir.partition_dir(name);
    for base_offset in base_offsets {
        unlink_segment(log_dir.disk(), &dir, *base_offset)?;
    }
    log_dir.disk().sync_dir(&dir)
}

/// Removes a partition: its directory first gets a name that no start takes for a partition.
pub(crate) fn delete_partition<D: Disk>(log_dir: &LogDir<D>, name: &TopicPartition) -> Result<(), DiskError> {
    let disk = log_dir.disk();
    let id = deletion_id(name, log_dir.options().topic_id_seed, log_dir.next_deletion());
    let dir = log_dir.root().join(name.deleted_dir_name(id));
    match disk.list(&dir) {
        Ok(_) => remove_tree(disk, &dir)?, // left by an earlier process with the same seed
        Err(error) if error.errno == Errno::NOENT => {}
        Err(error) => return Err(error),
    }
    disk.rename(&log_dir.partition_dir(name), &dir)?;
    disk.sync_dir(log_dir.root())?;
    log_dir.forget(name)?;
    remove_tree(disk, &dir)?;
    disk.sync_dir(log_dir.root())
}

fn parts(new: &Companions) -> [(SegmentFileKind, Position, &[u8]); 3] {
    [
        (SegmentFileKind::Index, new.index_position, &new.index),
        (SegmentFileKind::TimeIndex, new.time_index_position, &new.time_index),
        (SegmentFileKind::Chain, new.chain_position, &new.chain),
    ]
}

#[cfg(test)]
#[path = "segments_tests.rs"]
mod tests;
