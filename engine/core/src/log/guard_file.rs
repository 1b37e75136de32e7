//! The guard file of a partition on disk: made, read and written by steps; between openings its slots are written by
//! the shard, see `guard`.
//!
//! Always holds (I16): opening restores a damaged block from its slot, durably, before any slot is written; it writes
//! the copy of the block that the log ends in before the segment is cut there, and before the shard appends.

use std::path::{Path, PathBuf};

use crate::disk::{Caching, Disk, DiskError, Errno, OpenMode};
use crate::error::PartitionError;
use crate::format::guard_slot::{GUARDED_LEN, GuardSlot, Label, SLOT_LEN, SLOTS};
use crate::format::names::{LAST_BLOCK_GUARD, SegmentFileKind, TopicId, TopicPartition};
use crate::format::side_file::SegmentIdentity;
use crate::log::files::unlink_if_there;
use crate::log::found::{Found, lock_log, open_log};
use crate::log::inventory::segment_path;
use crate::log::log_dir::LogDir;
use crate::platform::DIRECT_IO_ALIGN;
use crate::types::{ByteCount, Position};

/// Length of the file.
const FILE_LEN: ByteCount = ByteCount::of_usize(SLOTS * SLOT_LEN);

/// The guard file as opening leaves it.
#[derive(Debug)]
pub struct OpenedGuard<F> {
    /// Open for direct writes, its lock held.
    pub file: F,
    /// Sequence number of its newest slot; 0 if it has none.
    pub sequence: u64,
}

/// The guard file as opening finds it.
pub(super) struct FoundGuard<D: Disk> {
    /// `None` if there is none.
    file: Option<D::File>,
    /// The partition's slots, the newest first.
    pub(super) slots: Vec<GuardSlot>,
}

impl<D: Disk> FoundGuard<D> {
    /// No file, and nothing to restore from.
    pub(super) const fn none() -> Self {
        Self { file: None, slots: Vec::new() }
    }

    /// Opens, locks and reads the file, which is there. Slots of another partition, and those that are not whole, are none.
    pub(super) fn read(
        log_dir: &LogDir<D>,
        dir: &Path,
        partition: i32,
        topic_id: TopicId,
    ) -> Result<Self, PartitionError> {
        let disk = log_dir.disk();
        let file = open_locked(log_dir, &path(dir), OpenMode::ReadWrite)?;
        let mut bytes = vec![0; FILE_LEN.as_usize()];
        let len = disk.read_at(&file, Position::ZERO, &mut bytes)?;
        let mut slots: Vec<GuardSlot> = bytes[..len].chunks(SLOT_LEN).filter_map(GuardSlot::load).collect();
        slots.retain(|slot| {
            let identity = slot.label.identity;
            identity.topic_id == topic_id && identity.partition == partition
        });
        slots.sort_by_key(|slot| std::cmp::Reverse(slot.label.sequence));
        Ok(Self { file: Some(file), slots })
    }

    /// Guards the block that the log ends in: `last` is its last segment, which is about to be cut and appended to.
    /// Blocks that were read from slots have been restored; slots with what is to be cut off are emptied, so that it does
    /// not come back.
    pub(super) fn guard(
        mut self,
        log_dir: &LogDir<D>,
        dir: &Path,
        last: Option<(&Found<D>, SegmentIdentity)>,
    ) -> Result<OpenedGuard<D::File>, PartitionError> {
        let disk = log_dir.disk();
        let file = match self.file {
            Some(file) => file,
            None => open_locked(log_dir, &path(dir), OpenMode::CreateNew)?,
        };
        if disk.len(&file)? < FILE_LEN {
            disk.preallocate(&file, Position::ZERO, Position::ZERO.plus(FILE_LEN), true)?;
            disk.sync(&file)?;
            disk.sync_dir(dir)?;
        }
        let mut sequence = self.slots.first().map_or(0, |slot| slot.label.sequence);
        if let Some((found, identity)) = last
            && let Some((label, block)) = last_block(disk, dir, found, identity, sequence + 1)?
            && !self.slots.first().is_some_and(|slot| is_copy(slot, &label, &block))
        {
            let mut slot = block;
            let encoded = label.encode(&slot);
            slot.extend_from_slice(&encoded);
            slot.resize(SLOT_LEN, 0);
            sequence = label.sequence;
            disk.write_at(&file, Label::slot_position(sequence), &slot)?;
            disk.sync(&file)?;
            self.slots
                .retain(|old| Label::slot_position(old.label.sequence) != Label::slot_position(sequence));
        }
        let end = last.map(|(found, identity)| (identity.base_offset, found.end));
        let beyond = |slot: &&GuardSlot| Some((slot.label.identity.base_offset, slot.end())) > end;
        for slot in self.slots.iter().filter(beyond) {
            disk.write_at(&file, Label::slot_position(slot.label.sequence), &[0; SLOT_LEN])?;
            disk.sync(&file)?;
        }
        Ok(OpenedGuard { file, sequence })
    }
}

/// The partly filled block that a segment ends in, padded, and its label.
fn last_block<D: Disk>(
    disk: &D,
    dir: &Path,
    found: &Found<D>,
    identity: SegmentIdentity,
    sequence: u64,
) -> Result<Option<(Label, Vec<u8>)>, DiskError> {
    let position = found.end.align_down(DIRECT_IO_ALIGN);
    let len = found.end.since(position).as_usize();
    if len == 0 {
        return Ok(None);
    }
    let path = segment_path(dir, found.base_offset, SegmentFileKind::Log);
    let file = disk.open(&path, OpenMode::Read, Caching::Direct)?;
    let mut block = vec![0; GUARDED_LEN];
    if disk.read_at(&file, position, &mut block[..len])? < len {
        return Err(DiskError { action: "read", path, errno: Errno::IO }); // it was longer before
    }
    Ok(Some((Label { identity, position, len: len as u32, sequence }, block)))
}

/// Whether the slot holds this block already.
fn is_copy(slot: &GuardSlot, label: &Label, block: &[u8]) -> bool {
    Label { sequence: label.sequence, ..slot.label } == *label && block.starts_with(&slot.bytes)
}

/// Writes the blocks that were read from slots in the place of what the device has destroyed, and syncs.
pub(super) fn restore<D: Disk>(disk: &D, dir: &Path, found: &Found<D>) -> Result<(), DiskError> {
    if found.restored.is_empty() {
        return Ok(());
    }
    let path = segment_path(dir, found.base_offset, SegmentFileKind::Log);
    // Through the page cache, so that the block need not be padded.
    let target = disk.open(&path, OpenMode::ReadWrite, Caching::Buffered)?;
    for slot in &found.restored {
        let end = slot.end().min(found.end).max(slot.label.position);
        let len = end.since(slot.label.position).as_usize();
        disk.write_at(&target, slot.label.position, &slot.bytes[..len])?;
    }
    disk.sync(&target)
}

/// Opens the guard file again to write it.
pub(super) fn reopen_guard<D: Disk>(
    log_dir: &LogDir<D>,
    name: &TopicPartition,
) -> Result<D::File, PartitionError> {
    open_locked(log_dir, &path(&log_dir.partition_dir(name)), OpenMode::ReadWrite)
}

/// Removes the file of a partition that is not guarded any more. The directory is not synced.
pub(super) fn remove<D: Disk>(disk: &D, dir: &Path) -> Result<(), DiskError> {
    unlink_if_there(disk, &path(dir)).map(|_| ())
}

/// As with segments, the lock waits for what a killed process still has in flight.
fn open_locked<D: Disk>(log_dir: &LogDir<D>, path: &Path, mode: OpenMode) -> Result<D::File, PartitionError> {
    let file = open_log(log_dir.disk(), path, mode, Caching::Direct)?;
    lock_log(log_dir.disk(), &file, path, log_dir.options().lock_patience_ms)?;
    Ok(file)
}

fn path(dir: &Path) -> PathBuf {
    dir.join(LAST_BLOCK_GUARD)
}
