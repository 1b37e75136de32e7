//! The segment after the active one, made ahead of need: created, reserved and where it pays filled with
//! zeros off the acknowledgement path, so that a roll costs no more than a rename.
//!
//! Always holds: the file carries a name that neither Kafka nor recovery takes for a segment until it is used;
//! recovery removes what a crash has left of it, and a clean close removes it before the partition counts as closed.

use std::path::{Path, PathBuf};

use crate::disk::{Caching, Disk, DiskError, Errno, OpenMode};
use crate::error::PartitionError;
use crate::format::names::{PREPARED_SEGMENT, SegmentFileKind, TopicPartition};
use crate::log::LogConfig;
use crate::log::files::unlink_if_there;
use crate::log::found::{lock_log, open_log};
use crate::log::inventory::segment_path;
use crate::log::log_dir::LogDir;
use crate::log::step::PreparedSegment;
use crate::planted::{Bug, is_planted};
use crate::types::{ByteCount, Offset, Position};

fn prepared_path(dir: &Path) -> PathBuf {
    dir.join(PREPARED_SEGMENT)
}

/// Makes the file, with its lock held, `preallocate` bytes reserved, and the first `zero` of them written.
///
/// # Errors
/// See [`PartitionError`]. No file stays behind.
pub(crate) fn prepare_segment<D: Disk>(
    log_dir: &LogDir<D>,
    dir: &Path,
    config: &LogConfig,
    preallocate: ByteCount,
    zero: ByteCount,
) -> Result<PreparedSegment<D::File>, PartitionError> {
    let disk = log_dir.disk();
    let path = prepared_path(dir);
    unlink_if_there(disk, &path)?;
    let file = open_log(disk, &path, OpenMode::CreateNew, config.write_mode.caching())?;
    let (preallocated, zeroed) = (Position::ZERO.plus(preallocate), Position::ZERO.plus(zero));
    let filled = lock_log(disk, &file, &path, log_dir.options().lock_patience_ms).and_then(|()| {
        disk.preallocate(&file, Position::ZERO, preallocated, false)?;
        if zero > ByteCount::ZERO {
            disk.preallocate(&file, Position::ZERO, zeroed, true)?;
        }
        Ok(disk.sync(&file)?)
    });
    match filled {
        Ok(()) => Ok(PreparedSegment { file, preallocated, zeroed }),
        Err(error) => {
            unlink_if_there(disk, &path)?;
            Err(error)
        }
    }
}

/// Gives the prepared file its segment's name, durably. `false` where a file of that name is there: the prepared
/// one is then gone.
pub(crate) fn use_prepared<D: Disk>(disk: &D, dir: &Path, base_offset: Offset) -> Result<bool, DiskError> {
    let path = segment_path(dir, base_offset, SegmentFileKind::Log);
    match disk.open(&path, OpenMode::Read, Caching::Buffered) {
        Err(error) if error.errno == Errno::NOENT => {}
        Err(error) => return Err(error),
        Ok(_) => {
            unlink_if_there(disk, &prepared_path(dir))?;
            return Ok(false);
        }
    }
    for kind in [SegmentFileKind::Index, SegmentFileKind::TimeIndex, SegmentFileKind::Chain] {
        unlink_if_there(disk, &segment_path(dir, base_offset, kind))?;
    }
    disk.rename(&prepared_path(dir), &path)?;
    if !is_planted(Bug::PreparedNameNotDurable) {
        disk.sync_dir(dir)?;
    }
    Ok(true)
}

/// Removes the prepared file of a partition that is being closed.
pub(crate) fn remove_prepared<D: Disk>(log_dir: &LogDir<D>, name: &TopicPartition) -> Result<(), DiskError> {
    let dir = log_dir.partition_dir(name);
    unlink_if_there(log_dir.disk(), &prepared_path(&dir))?;
    log_dir.disk().sync_dir(&dir)
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
