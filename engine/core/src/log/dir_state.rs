//! What a log directory knows of its partitions while it is open: the offsets of its checkpoints, and which partitions
//! exist, are clean, or are doubted. In memory only; [`super::log_dir`] reads and writes the files.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::names::{self, TopicPartition};
use crate::types::Offset;

/// The three checkpoints of a log directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    RecoveryPoint,
    LogStart,
    HighWatermark,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::RecoveryPoint, Self::LogStart, Self::HighWatermark];

    pub(super) const fn file_name(self) -> &'static str {
        match self {
            Self::RecoveryPoint => names::RECOVERY_POINT_CHECKPOINT,
            Self::LogStart => names::LOG_START_CHECKPOINT,
            Self::HighWatermark => names::HIGH_WATERMARK_CHECKPOINT,
        }
    }
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct State {
    /// Offsets of partitions, by [`Table`].
    pub(super) tables: [BTreeMap<TopicPartition, Offset>; 3],
    /// Tables that differ from their files.
    pub(super) dirty: [bool; 3],
    /// Partitions whose files end exactly where their log ends, durably.
    pub(super) clean: BTreeSet<TopicPartition>,
    /// Partitions with a segment whose companions could not be written: until they are opened again nothing may be
    /// taken for recovered, or the next opening would believe what is there of them.
    pub(super) doubted: BTreeSet<TopicPartition>,
    /// Partitions that exist.
    pub(super) live: BTreeSet<TopicPartition>,
    /// Partitions that are to be forgotten and may still be in the files.
    pub(super) forgetting: BTreeSet<TopicPartition>,
    /// Whether the marker of a clean stop is there.
    pub(super) marker: bool,
    /// Directories deleted so far, for the names of the next ones.
    pub(super) deletions: u64,
    /// Remarks for the operator.
    pub(super) notes: Vec<String>,
}

impl State {
    /// Sets an offset; the table is dirty if that changes it.
    pub(super) fn set(&mut self, table: Table, tp: &TopicPartition, offset: Offset) {
        if self.tables[table as usize].insert(tp.clone(), offset) != Some(offset) {
            self.dirty[table as usize] = true;
        }
    }
}
