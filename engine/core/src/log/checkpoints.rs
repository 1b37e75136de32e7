//! The three offset checkpoints of a log directory, in memory and in their files.
//!
//! Owns the tables, and beside each file a spare one. Always holds (I10): a file is replaced whole and durably; it has
//! blocks for its next content, so that deleting needs no free space; what a power cut may bring back under a file's
//! name is never written over. Blocks; used by steps only.

use std::collections::BTreeMap;
use std::path::Path;

use crate::disk::{Caching, Disk, DiskError, Errno, OpenMode};
use crate::format::checkpoint;
use crate::format::names::{self, TopicPartition};
use crate::log::files::{put_file, reserve_spare, swap_file};
use crate::log::log_dir::OpenError;
use crate::log::root::read_offsets;
use crate::planted::{Bug, is_planted};
use crate::types::Offset;

/// The three checkpoints of a log directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    RecoveryPoint,
    LogStart,
    HighWatermark,
}

impl Table {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::RecoveryPoint, Self::LogStart, Self::HighWatermark];

    const fn file_name(self) -> &'static str {
        match self {
            Self::RecoveryPoint => names::RECOVERY_POINT_CHECKPOINT,
            Self::LogStart => names::LOG_START_CHECKPOINT,
            Self::HighWatermark => names::HIGH_WATERMARK_CHECKPOINT,
        }
    }
}

/// The checkpoints of a log directory.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    tables: [BTreeMap<TopicPartition, Offset>; 3],
    /// Tables that differ from their files.
    dirty: [bool; 3],
    /// Tables whose last write failed: their files may hold what the tables do not.
    uncertain: [bool; 3],
    /// Tables whose spare file may be written; see [`swap_file`].
    spare_is_free: [bool; 3],
}

impl Checkpoints {
    /// Reads the files; changes nothing.
    pub(super) fn read<D: Disk>(disk: &D, root: &Path, notes: &mut Vec<String>) -> Result<Self, OpenError> {
        let mut read = Self::default();
        for table in Table::ALL {
            read.tables[table as usize] = read_offsets(disk, &root.join(table.file_name()), notes)?;
        }
        Ok(read)
    }

    /// Makes files that are missing, so that there are two to change places, and the spare ones. The directory must
    /// have been synced: only then is it certain which of two files is the spare one.
    pub(super) fn make_spares<D: Disk>(&mut self, disk: &D, root: &Path) -> Result<(), DiskError> {
        let (mut lens, mut is_new) = ([0; 3], false);
        for table in Table::ALL {
            let (len, made) = make_if_missing(disk, &root.join(table.file_name()))?;
            lens[table as usize] = len;
            is_new |= made;
        }
        if is_new {
            disk.sync_dir(root)?;
        }
        self.spare_is_free = [true; 3];
        for table in Table::ALL {
            reserve_spare(disk, &root.join(table.file_name()), lens[table as usize]);
        }
        Ok(())
    }

    /// A partition's offset.
    pub(super) fn get(&self, table: Table, tp: &TopicPartition) -> Option<Offset> {
        self.tables[table as usize].get(tp).copied()
    }

    /// Sets a partition's offset; to be written with the next change that is.
    pub(super) fn set(&mut self, table: Table, tp: &TopicPartition, offset: Offset) {
        if self.tables[table as usize].insert(tp.clone(), offset) != Some(offset) {
            self.dirty[table as usize] = true;
        }
    }

    /// Takes a partition out of the table, not out of the file; says whether it was there, or may be in the file.
    pub(super) fn remove(&mut self, table: Table, tp: &TopicPartition) -> bool {
        self.tables[table as usize].remove(tp).is_some() || self.uncertain[table as usize]
    }

    /// Raises a partition's offset, durably. If that fails the table has the old one, as the next write of the file will:
    /// nobody is to see what a power cut may take back.
    pub(super) fn raise<D: Disk>(
        &mut self,
        disk: &D,
        root: &Path,
        table: Table,
        tp: &TopicPartition,
        offset: Offset,
    ) -> Result<(), DiskError> {
        let now = self.get(table, tp);
        if now.is_some_and(|now| now >= offset) && !self.dirty[table as usize] {
            return Ok(());
        }
        self.set(table, tp, now.unwrap_or(offset).max(offset));
        let written = self.write(disk, root, table);
        if written.is_err() && !is_planted(Bug::ShowLogStartEarly) {
            match now {
                Some(now) => self.set(table, tp, now),
                None => _ = self.remove(table, tp),
            }
        }
        written
    }

    /// Writes a table, also one that seems to be in its file.
    pub(super) fn rewrite<D: Disk>(&mut self, disk: &D, root: &Path, table: Table) -> Result<(), DiskError> {
        self.dirty[table as usize] = true;
        self.write(disk, root, table)
    }

    /// Writes every table that differs from its file.
    pub(super) fn write_all<D: Disk>(&mut self, disk: &D, root: &Path) -> Result<(), DiskError> {
        Table::ALL.into_iter().try_for_each(|table| self.write(disk, root, table))
    }

    fn write<D: Disk>(&mut self, disk: &D, root: &Path, table: Table) -> Result<(), DiskError> {
        if !self.dirty[table as usize] {
            return Ok(());
        }
        let text = checkpoint::write_offsets(self.tables[table as usize].iter().map(|(tp, at)| (tp, *at)));
        let path = root.join(table.file_name());
        let written = swap_file(disk, &path, text.as_bytes(), &mut self.spare_is_free[table as usize]);
        (self.dirty[table as usize], self.uncertain[table as usize]) = (written.is_err(), written.is_err());
        written
    }
}

/// Length of a checkpoint, which is made if there is none; whether it was. Its name is not durable then.
fn make_if_missing<D: Disk>(disk: &D, path: &Path) -> Result<(usize, bool), DiskError> {
    match disk.open(path, OpenMode::Read, Caching::Buffered) {
        Ok(file) => return Ok((disk.len(&file)?.as_usize(), false)),
        Err(error) if error.errno != Errno::NOENT => return Err(error),
        Err(_) => {}
    }
    let empty = checkpoint::write_offsets(std::iter::empty());
    match put_file(disk, path, empty.as_bytes()) {
        Ok(()) => Ok((empty.len(), true)),
        // Then the first replacement needs space.
        Err(error) if error.errno.is_shortage() => Ok((0, false)),
        Err(error) => Err(error),
    }
}
