//! What lies in a partition's directory, sorted by what is to be done with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, DiskError};
use crate::error::PartitionError;
use crate::format::names::{self, SegmentFile, SegmentFileKind, SegmentFileState};
use crate::types::Offset;

/// The files of a partition.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Base offsets of the segments.
    pub(crate) segments: BTreeSet<Offset>,
    /// Offsets of the producer snapshots.
    pub(crate) snapshots: BTreeSet<Offset>,
    /// Companions in use, snapshots excluded.
    companions: Vec<SegmentFile>,
    /// Whether there are copies of the last block.
    pub(crate) has_guard: bool,
    /// Names of files whose deletion is to be finished.
    pub(crate) leftovers: Vec<String>,
}

impl Inventory {
    /// Lists `dir`.
    ///
    /// Kafka's rules for the temporaries of deletion and compaction: `.deleted` and `.cleaned` go; a `.swap` at or
    /// above the first `.cleaned` goes too, because what it was to replace is still whole. Any other `.swap` is a
    /// replacement half done, which this engine does not finish.
    ///
    /// # Errors
    /// [`PartitionError::Unusable`] for such a `.swap`; nothing was changed.
    pub(crate) fn read<D: Disk>(disk: &D, dir: &Path) -> Result<Self, PartitionError> {
        let mut found = Self::default();
        let (mut swaps, mut first_cleaned) = (Vec::new(), None::<Offset>);
        for entry in disk.list(dir)?.into_iter().filter(|entry| !entry.is_dir) {
            let Ok(file) = entry.name.parse::<SegmentFile>() else {
                found.has_guard |= entry.name == names::LAST_BLOCK_GUARD;
                if is_temporary(&entry.name) {
                    found.leftovers.push(entry.name);
                }
                continue;
            };
            match (file.state, file.kind) {
                (SegmentFileState::Live, SegmentFileKind::Log) => {
                    found.segments.insert(file.base_offset);
                }
                (SegmentFileState::Live, SegmentFileKind::Snapshot) => {
                    found.snapshots.insert(file.base_offset);
                }
                (SegmentFileState::Live, _) => found.companions.push(file),
                (SegmentFileState::Deleted, _) => found.leftovers.push(entry.name),
                (SegmentFileState::Cleaned, _) => {
                    first_cleaned = Some(first_cleaned.unwrap_or(file.base_offset).min(file.base_offset));
                    found.leftovers.push(entry.name);
                }
                (SegmentFileState::Swap, _) => swaps.push((file, entry.name)),
            }
        }
        for (file, name) in swaps {
            if first_cleaned.is_none_or(|first| file.base_offset < first) {
                let reason = "a compaction was interrupted while it replaced segments; let Apache Kafka open the \
                              directory once, which finishes it";
                return Err(PartitionError::Unusable { path: dir.join(name), reason: reason.to_owned() });
            }
            found.leftovers.push(name);
        }
        Ok(found)
    }

    /// Companions without a segment.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = &SegmentFile> {
        self.companions.iter().filter(|file| !self.segments.contains(&file.base_offset))
    }
}

/// Whether the file is a replacement that was being written when its process died.
fn is_temporary(name: &str) -> bool {
    let replaced = name.strip_suffix(".tmp");
    replaced.is_some_and(|name| {
        name == names::LEADER_EPOCH_CHECKPOINT
            || names::PREPARED_SEGMENT.strip_suffix(".tmp") == Some(name)
            || name == names::PARTITION_METADATA
            || name.parse::<SegmentFile>().is_ok()
    })
}

/// Path of a file of a segment.
pub(crate) fn segment_path(dir: &Path, base_offset: Offset, kind: SegmentFileKind) -> PathBuf {
    dir.join(SegmentFile::live(base_offset, kind).to_string())
}

/// Unlinks a segment with everything that belongs to it. The directory is not synced.
pub(crate) fn unlink_segment<D: Disk>(disk: &D, dir: &Path, base_offset: Offset) -> Result<(), DiskError> {
    for kind in SegmentFileKind::ALL {
        crate::log::files::unlink_if_there(disk, &segment_path(dir, base_offset, kind))?;
    }
    Ok(())
}
