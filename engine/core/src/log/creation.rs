//! What is new when a partition is opened: its directory, its topic's id; and the entries of the log directory, made
//! durable once for many partitions that are created together.
//!
//! Always holds (I10): opening a partition returns only after the names of its directory and of what it has made in there
//! are durable. Until then nothing relies on them: an opening that is cut off is done again, and finds any part of
//! them.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::disk::{Disk, DiskError, Errno};
use crate::error::PartitionError;
use crate::format::names::TopicId;
use crate::log::identity::{new_topic_id, read_topic_id};
use crate::log::recovery::Opening;

/// The partitions' entries in a log directory, and which of them are durable.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// Changes so far.
    changes: AtomicU64,
    /// Changes that a sync has covered; locked while one is under way.
    durable: Mutex<u64>,
}

/// A change to the entries of a log directory, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change(u64);

impl Entries {
    /// Takes note of a change that was made.
    pub(crate) fn note(&self) -> Change {
        Change(self.changes.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The latest change.
    pub(crate) fn latest(&self) -> Change {
        Change(self.changes.load(Ordering::Acquire))
    }

    /// Makes a change durable, and with it all that were made before the sync begins: who comes while one is under way
    /// waits for it and finds his change covered, or begins the next for all who have come meanwhile.
    ///
    /// # Errors
    /// The sync's. Nothing that it was to cover counts as durable.
    pub(crate) fn make_durable<D: Disk>(
        &self,
        disk: &D,
        root: &Path,
        change: Change,
    ) -> Result<(), DiskError> {
        // The number is changed by a single statement.
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if change.0 > *durable {
            let covered = self.latest().0;
            disk.sync_dir(root)?;
            *durable = covered;
        }
        Ok(())
    }
}

impl<D: Disk> Opening<'_, D> {
    /// Creates the partition's directory if there is none, and returns what is then to be made durable before the opening
    /// returns; what was there before is there durably.
    pub(super) fn create_dir(&self) -> Result<Option<Change>, PartitionError> {
        let disk = self.log_dir.disk();
        match disk.list(&self.dir) {
            Err(error) if error.errno == Errno::NOENT => {}
            Err(error) => return Err(error.into()),
            Ok(_) if self.clean => return Ok(None),
            Ok(_) => {
                // A process that was killed has left entries that no sync has covered; so may an opening that failed.
                disk.sync_dir(&self.dir)?;
                let entries = self.log_dir.entries();
                entries.make_durable(disk, self.log_dir.root(), entries.latest())?;
                return Ok(None);
            }
        }
        // Checkpoints that a deleted partition of the same name has left would cut into the new one.
        self.log_dir.forget(self.tp)?;
        disk.create_dir(&self.dir)?;
        self.log_dir.mark_created(self.tp);
        Ok(Some(self.log_dir.entries().note()))
    }

    /// The topic's id: kept where there is one, that of the topic's other partitions, or a new one; and whether it is
    /// still to be written. Where the others have one and none can be read, none is made up beside it.
    pub(super) fn topic_id(&self) -> Result<(TopicId, bool), PartitionError> {
        let disk = self.log_dir.disk();
        if let Some(id) = read_topic_id(disk, &self.dir)? {
            return Ok((id, false));
        }
        let (mut number, mut unread) = (0, None);
        while let Some(sibling) = self.log_dir.sibling(self.tp, number) {
            match read_topic_id(disk, &self.log_dir.partition_dir(&sibling)) {
                Ok(Some(id)) => return Ok((id, true)),
                Ok(None) => {}
                Err(error) => unread = unread.or(Some(error)),
            }
            let Some(next) = sibling.partition().checked_add(1) else { break };
            number = next;
        }
        match unread {
            Some(error) => Err(error),
            None => Ok((new_topic_id(self.tp.topic(), self.log_dir.options().topic_id_seed), true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::MemoryDisk;

    /// One sync serves all changes made before it, and none that is made later; a failed one serves nobody.
    #[test]
    fn a_sync_covers_what_was_there_when_it_began() {
        let (disk, root) = (MemoryDisk::new(), Path::new("/"));
        let syncs = || disk.take_trace().len();
        let entries = Entries::default();
        let (first, second) = (entries.note(), entries.note());
        entries.make_durable(&disk, root, first).unwrap();
        assert_eq!(syncs(), 1);
        entries.make_durable(&disk, root, second).unwrap();
        entries.make_durable(&disk, root, entries.latest()).unwrap();
        assert_eq!(syncs(), 0);
        let third = entries.note();
        disk.fail("sync directory", "/", Errno::IO);
        assert!(entries.make_durable(&disk, root, third).is_err());
        disk.heal();
        syncs();
        entries.make_durable(&disk, root, third).unwrap();
        assert_eq!(syncs(), 1);
    }
}
