//! The leader epochs of a partition and where they start: Kafka's `leader-epoch-checkpoint`.
//!
//! Always holds: epochs and start offsets increase strictly.

use std::path::Path;

use crate::disk::{Disk, DiskError};
use crate::error::PartitionError;
use crate::format::checkpoint::{self, CheckpointError, EpochStart};
use crate::format::names;
use crate::log::files::{put_file, read_file};
use crate::types::{LeaderEpoch, Offset};

/// The epochs, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epochs {
    entries: Vec<EpochStart>,
    /// Whether they differ from the file.
    dirty: bool,
    /// Whether the file says nothing: only the batches tell.
    unknown: bool,
}

impl Epochs {
    /// Reads the file of a partition. A missing or damaged one is empty, with a note for the damage.
    pub(crate) fn read<D: Disk>(
        disk: &D,
        dir: &Path,
        notes: &mut Vec<String>,
    ) -> Result<Self, PartitionError> {
        let path = dir.join(names::LEADER_EPOCH_CHECKPOINT);
        match read_file(disk, &path)?.map(|bytes| checkpoint::parse_epochs(&bytes)) {
            None => Ok(Self { entries: Vec::new(), dirty: true, unknown: true }),
            Some(Ok(entries)) => Ok(Self { unknown: entries.is_empty(), entries, dirty: false }),
            Some(Err(reason @ CheckpointError::Version { .. })) => {
                Err(PartitionError::Unusable { path, reason: reason.to_string() })
            }
            Some(Err(reason)) => {
                notes.push(format!("{}: {reason}; rebuilt from the batches.", path.display()));
                Ok(Self { entries: Vec::new(), dirty: true, unknown: true })
            }
        }
    }

    /// Whether only the batches can tell which epochs there were.
    pub(crate) const fn unknown(&self) -> bool {
        self.unknown
    }

    /// Takes note of an epoch met in the log.
    pub(crate) fn observe(&mut self, found: EpochStart) {
        let later = |last: &EpochStart| found.epoch > last.epoch && found.start_offset > last.start_offset;
        if found.epoch >= LeaderEpoch::ZERO && self.entries.last().is_none_or(later) {
            self.entries.push(found);
            self.dirty = true;
        }
    }

    /// Drops epochs that start behind the end of the log.
    pub(crate) fn truncate(&mut self, log_end_offset: Offset) {
        let keep = self.entries.partition_point(|entry| entry.start_offset <= log_end_offset);
        self.dirty |= keep < self.entries.len();
        self.entries.truncate(keep);
    }

    /// Begins a new epoch at the end of the log; goes on with the old one if that is the last there is, which only rot
    /// or another program can have reached.
    pub(crate) fn raise(&mut self, log_end_offset: Offset) {
        let epoch = self.entries.last().map_or(Some(LeaderEpoch::ZERO), |last| last.epoch.next());
        let Some(epoch) = epoch else { return };
        self.entries.retain(|entry| entry.start_offset < log_end_offset);
        self.entries.push(EpochStart { epoch, start_offset: log_end_offset });
        self.dirty = true;
    }

    /// The current epoch; begins epoch 0 if there is none.
    pub(crate) fn current(&mut self, log_end_offset: Offset) -> LeaderEpoch {
        if self.entries.is_empty() {
            self.raise(log_end_offset);
        }
        self.entries.last().map_or(LeaderEpoch::ZERO, |last| last.epoch)
    }

    /// Writes the file if it differs, as [`put_file`] does; says whether it has.
    pub(crate) fn put<D: Disk>(&mut self, disk: &D, dir: &Path) -> Result<bool, DiskError> {
        if self.dirty {
            let text = checkpoint::write_epochs(&self.entries);
            put_file(disk, &dir.join(names::LEADER_EPOCH_CHECKPOINT), text.as_bytes())?;
        }
        Ok(std::mem::take(&mut self.dirty))
    }
}
