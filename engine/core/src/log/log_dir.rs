//! One log directory: its lock, its checkpoints, its clean-stop marker.
//!
//! Owns Kafka's files in the root of the directory. Always holds (I12): the lock is held as long as this value lives, so
//! no JVM broker and no second engine changes anything below it; a checkpoint file is replaced whole and durably;
//! the marker of a clean stop exists only while every partition is closed cleanly. Blocks; used by steps only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskError};
use crate::format::checkpoint::{self, CheckpointError};
use crate::format::names::{self, TopicPartition};
use crate::log::checkpoints::{Checkpoints, Table};
use crate::log::creation::Entries;
use crate::log::files::{remove_tree, replace_file, unlink_if_there};
use crate::log::root::{create_root, list_partitions, read_meta_properties, take_lock};
use crate::planted::{Bug, is_planted};
use crate::types::Offset;

/// Remarks that are kept for the operator.
pub const NOTES_MAX: usize = 256;

/// How a log directory is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDirOptions {
    /// How long to wait for a lock that another process holds, milliseconds. A killed process holds the lock of a
    /// segment until its last write has landed, which takes seconds on a slow device.
    pub lock_patience_ms: u64,
    /// Goes into the ids of new topics, so that a topic gets another id when it is created anew. Sixteen random
    /// bytes where there is randomness; with the same seed, the same name always gets the same id.
    pub topic_id_seed: [u8; 16],
}

impl Default for LogDirOptions {
    fn default() -> Self {
        Self { lock_patience_ms: 5_000, topic_id_seed: [0; 16] }
    }
}

/// A log directory could not be opened. Nothing was changed in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another process, a Kafka broker or another engine: {} is locked; stop that process or choose another directory", root.display(), names::LOCK)]
    Locked {
        /// The directory.
        root: PathBuf,
    },
    /// Neither it nor its parent exists.
    #[error("neither {} nor its parent exists; create the parent, or correct the path", root.display())]
    NoParent {
        /// The directory.
        root: PathBuf,
    },
    /// A file is of a version this engine does not know, and might lose its meaning.
    #[error("{}: {reason}; open it with the program that wrote it, or use another directory", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// What it says.
        reason: CheckpointError,
    },
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

#[derive(Default)]
struct State {
    checkpoints: Checkpoints,
    /// Partitions whose files end exactly where their log ends, durably.
    clean: BTreeSet<TopicPartition>,
    /// Partitions with a segment whose companions could not be written: until they are opened again nothing may be
    /// taken for recovered, or the next opening would believe what is there of them.
    doubted: BTreeSet<TopicPartition>,
    /// Partitions that exist.
    live: BTreeSet<TopicPartition>,
    /// Partitions that are to be forgotten and may still be in the files.
    forgetting: BTreeSet<TopicPartition>,
    /// Whether the marker of a clean stop is there.
    marker: bool,
    /// Directories deleted so far, for the names of the next ones.
    deletions: u64,
    notes: Vec<String>,
}

/// A log directory.
pub struct LogDir<D: Disk> {
    disk: D,
    root: PathBuf,
    options: LogDirOptions,
    was_clean: bool,
    state: Mutex<State>,
    entries: Entries,
    /// `None` where nothing may be changed.
    lock: Option<D::File>,
}

impl<D: Disk> LogDir<D> {
    /// Opens a log directory, creates it if it is missing, and takes its lock. Finishes the deletion of partitions
    /// that was under way, and takes the marker of a clean stop away.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(disk: D, root: &Path, options: LogDirOptions) -> Result<Arc<Self>, OpenError> {
        create_root(&disk, root)?;
        let lock = take_lock(&disk, root, options.lock_patience_ms)?;
        let mut notes = Vec::new();
        read_meta_properties(&disk, root, &mut notes)?;
        let checkpoints = Checkpoints::read(&disk, root, &mut notes)?;
        let mut state = State { checkpoints, ..State::default() };
        let (live, deleted) = list_partitions(&disk, root, &mut notes)?;
        let marker = root.join(names::CLEAN_SHUTDOWN);
        let was_clean = if is_planted(Bug::KeepCleanMarker) {
            super::files::read_file(&disk, &marker)?.is_some()
        } else {
            unlink_if_there(&disk, &marker)?
        };
        for dir in &deleted {
            remove_tree(&disk, &root.join(dir))?;
        }
        // Also for the entries that a killed process has made and no sync has covered.
        disk.sync_dir(root)?;
        state.checkpoints.make_spares(&disk, root)?;
        state.notes = notes;
        state.live = live.into_iter().collect();
        if was_clean {
            state.clean = state.live.clone();
        }
        Ok(Self::of(disk, root, options, was_clean, state, Some(lock)))
    }

    /// Opens a log directory to serve what is there: takes no lock and changes nothing, not even what a
    /// crash has left. Another process may write to it meanwhile; what it appends is not seen.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_read_only(disk: D, root: &Path) -> Result<Arc<Self>, OpenError> {
        let mut notes = Vec::new();
        read_meta_properties(&disk, root, &mut notes)?;
        let checkpoints = Checkpoints::read(&disk, root, &mut notes)?;
        let mut state = State { checkpoints, ..State::default() };
        let entries = disk.list(root)?;
        let was_clean = entries.iter().any(|entry| entry.name == names::CLEAN_SHUTDOWN);
        state.notes = notes;
        Ok(Self::of(disk, root, LogDirOptions::default(), was_clean, state, None))
    }

    /// Whether nothing may be changed.
    pub fn is_read_only(&self) -> bool {
        self.lock.is_none()
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What executes file operations.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// How it was opened.
    pub fn options(&self) -> &LogDirOptions {
        &self.options
    }

    /// Whether the last process that had the directory open stopped cleanly.
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Remarks for the operator, one sentence each, oldest first: on what was found when the directory and its
    /// partitions were opened, and on rot that was found since. The first [`NOTES_MAX`] are kept.
    pub fn notes(&self) -> Vec<String> {
        self.state().notes.clone()
    }

    /// Adds a remark, if there is room and it is new.
    pub(crate) fn note(&self, note: String) {
        let mut state = self.state();
        if state.notes.len() < NOTES_MAX && !state.notes.contains(&note) {
            state.notes.push(note);
        }
    }

    /// The partitions that exist, open or not, in order of name.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn partitions(&self) -> Result<Vec<TopicPartition>, DiskError> {
        let (live, _) = list_partitions(&self.disk, &self.root, &mut Vec::new())?;
        Ok(live)
    }

    /// Writes all checkpoints and, if every partition there is was closed cleanly, the marker that tells the next
    /// start to trust lengths and indexes. Returns whether it wrote the marker. To be called when all partitions
    /// are closed; a partition opened afterwards takes the marker away again.
    ///
    /// # Errors
    /// When a file operation fails. The next start then recovers.
    pub fn close_clean(&self) -> Result<bool, DiskError> {
        let mut state = self.state();
        state.checkpoints.write_all(&self.disk, &self.root)?;
        if !state.live.is_subset(&state.clean) {
            return Ok(false);
        }
        replace_file(
            &self.disk,
            &self.root.join(names::CLEAN_SHUTDOWN),
            checkpoint::write_clean_shutdown(-1).as_bytes(),
        )?;
        state.marker = true;
        Ok(true)
    }

    /// Directory of a partition.
    pub(crate) fn partition_dir(&self, tp: &TopicPartition) -> PathBuf {
        self.root.join(tp.to_string())
    }

    /// Takes note that a partition is being opened for writing; says whether it was closed cleanly before.
    pub(crate) fn mark_open(&self, tp: &TopicPartition) -> Result<bool, DiskError> {
        let mut state = self.state();
        if state.marker {
            unlink_if_there(&self.disk, &self.root.join(names::CLEAN_SHUTDOWN))?;
            self.disk.sync_dir(&self.root)?;
            state.marker = false;
        }
        Ok(state.clean.remove(tp))
    }

    /// Takes note that a partition was created.
    pub(crate) fn mark_created(&self, tp: &TopicPartition) {
        self.state().live.insert(tp.clone());
    }

    /// The partitions' entries in the directory.
    pub(crate) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// The first other partition of its topic, of this number or a greater one.
    pub(crate) fn sibling(&self, tp: &TopicPartition, number: i32) -> Option<TopicPartition> {
        let (from, state) = (TopicPartition::new(tp.topic().clone(), number), self.state());
        let first = state.live.range(from..).find(|other| *other != tp)?;
        (first.topic() == tp.topic()).then(|| first.clone())
    }

    /// Takes note that a partition, opened and left untouched, is as clean as before.
    pub(crate) fn mark_untouched(&self, tp: &TopicPartition) {
        self.state().clean.insert(tp.clone());
    }

    /// Takes note that everything of a partition is durable and its files end where its log ends. Nothing is written
    /// before the next checkpoint or [`LogDir::close_clean`]. Nothing changes for a partition that is doubted.
    pub(crate) fn mark_closed(&self, tp: &TopicPartition, log_start_offset: Offset, log_end_offset: Offset) {
        let mut state = self.state();
        if state.doubted.contains(tp) {
            return;
        }
        state.checkpoints.set(Table::RecoveryPoint, tp, log_end_offset);
        state.checkpoints.set(Table::HighWatermark, tp, log_end_offset);
        let log_start_offset =
            if is_planted(Bug::ForgetLogStartAtClose) { Offset::ZERO } else { log_start_offset };
        state.checkpoints.set(Table::LogStart, tp, log_start_offset);
        state.clean.insert(tp.clone());
    }

    /// Below it every byte is known to be on the device.
    pub(crate) fn recovery_point(&self, tp: &TopicPartition) -> Option<Offset> {
        self.state().checkpoints.get(Table::RecoveryPoint, tp)
    }

    /// First offset that may be read, if it is not simply the first segment's.
    pub(crate) fn log_start_offset(&self, tp: &TopicPartition) -> Option<Offset> {
        self.state().checkpoints.get(Table::LogStart, tp)
    }

    /// Sets the recovery point after recovery; it may go back, where another program cut the log. Written with the
    /// next checkpoint: until then the next recovery reads more than it must.
    pub(crate) fn note_recovery_point(&self, tp: &TopicPartition, offset: Offset) {
        let mut state = self.state();
        state.doubted.remove(tp);
        state.checkpoints.set(Table::RecoveryPoint, tp, offset);
    }

    /// A segment's companions are not whole on disk: the recovery point stays where it is, and no stop is clean, until
    /// an opening has built them anew.
    pub(crate) fn doubt(&self, tp: &TopicPartition) {
        self.state().doubted.insert(tp.clone());
    }

    /// Raises the recovery point, durably, unless something below it is doubted.
    pub(crate) fn raise_recovery_point(&self, tp: &TopicPartition, offset: Offset) -> Result<(), DiskError> {
        if self.state().doubted.contains(tp) {
            return Ok(());
        }
        self.state().checkpoints.raise(&self.disk, &self.root, Table::RecoveryPoint, tp, offset)
    }

    /// Raises the log start offset, durably.
    pub(crate) fn raise_log_start(&self, tp: &TopicPartition, offset: Offset) -> Result<(), DiskError> {
        self.state().checkpoints.raise(&self.disk, &self.root, Table::LogStart, tp, offset)
    }

    /// Forgets a partition, durably.
    pub(crate) fn forget(&self, tp: &TopicPartition) -> Result<(), DiskError> {
        let mut state = self.state();
        state.clean.remove(tp);
        state.doubted.remove(tp);
        state.live.remove(tp);
        let tried_before = !state.forgetting.insert(tp.clone());
        for table in Table::ALL {
            let known = state.checkpoints.remove(table, tp);
            // Other partitions' changes can wait: thousands may be created one after the other.
            if known || tried_before {
                state.checkpoints.rewrite(&self.disk, &self.root, table)?;
            }
        }
        state.forgetting.remove(tp);
        Ok(())
    }

    /// A number no other deletion of this process has had.
    pub(crate) fn next_deletion(&self) -> u64 {
        let mut state = self.state();
        state.deletions += 1;
        state.deletions
    }

    fn of(
        disk: D,
        root: &Path,
        options: LogDirOptions,
        was_clean: bool,
        state: State,
        lock: Option<D::File>,
    ) -> Arc<Self> {
        let (root, state, entries) = (root.to_owned(), Mutex::new(state), Entries::default());
        Arc::new(Self { disk, root, options, was_clean, state, entries, lock })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the next statement can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "log_dir_tests.rs"]
mod tests;
