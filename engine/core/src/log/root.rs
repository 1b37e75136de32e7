//! The files in the root of a log directory, as opening reads them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::disk::{Caching, Disk, DiskError, Errno, Lock, OpenMode};
use crate::format::checkpoint::{self, CheckpointError};
use crate::format::meta_properties::MetaProperties;
use crate::format::names::{self, PartitionDir, TopicPartition};
use crate::log::files::{parent, read_file};
use crate::log::log_dir::OpenError;
use crate::types::Offset;

/// The quorum's own log, which a broker may keep in the same directory. Never the engine's business.
const CLUSTER_METADATA_TOPIC: &str = "__cluster_metadata";

/// Creates the directory if it is missing.
pub(crate) fn create_root<D: Disk>(disk: &D, root: &Path) -> Result<(), OpenError> {
    match disk.list(root) {
        // A process that was killed may have made it a moment ago, without making its entry durable.
        Ok(entries) if entries.is_empty() => return Ok(disk.sync_dir(parent(root))?),
        Ok(_) => return Ok(()),
        Err(error) if error.errno == Errno::NOENT => {}
        Err(error) => return Err(error.into()),
    }
    match disk.create_dir(root) {
        Err(error) if error.errno == Errno::NOENT => Err(OpenError::NoParent { root: root.to_owned() }),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(disk.sync_dir(parent(root))?),
    }
}

/// Takes the lock that a JVM broker and another engine respect.
pub(crate) fn take_lock<D: Disk>(disk: &D, root: &Path, patience_ms: u64) -> Result<D::File, OpenError> {
    let path = root.join(names::LOCK);
    let mut file = disk.open(&path, OpenMode::ReadWrite, Caching::Buffered);
    if file.as_ref().is_err_and(|error| error.errno == Errno::NOENT) {
        file = disk.open(&path, OpenMode::CreateNew, Caching::Buffered);
    }
    if file.as_ref().is_err_and(|error| error.errno == Errno::EXIST) {
        file = disk.open(&path, OpenMode::ReadWrite, Caching::Buffered); // created by another process meanwhile
    }
    let file = file?;
    match disk.lock(&file, Lock::Record, patience_ms) {
        Err(error) if error.errno == Errno::AGAIN || error.errno == Errno::ACCES => {
            Err(OpenError::Locked { root: root.to_owned() })
        }
        other => Ok(other.map(|()| file)?),
    }
}

/// Refuses a version that this engine does not know; notes what else is wrong.
pub(crate) fn read_meta_properties<D: Disk>(
    disk: &D,
    root: &Path,
    notes: &mut Vec<String>,
) -> Result<(), OpenError> {
    let path = root.join(names::META_PROPERTIES);
    match read_file(disk, &path)?.map(|bytes| MetaProperties::parse(&bytes)) {
        Some(Err(reason @ CheckpointError::Version { .. })) => {
            Err(OpenError::UnknownVersion { path, reason })
        }
        Some(Err(reason)) => {
            notes.push(format!("{}: {reason}; left as it is.", path.display()));
            Ok(())
        }
        Some(Ok(_)) | None => Ok(()),
    }
}

/// Reads an offset checkpoint. A damaged one counts as absent, with a note.
pub(crate) fn read_offsets<D: Disk>(
    disk: &D,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<TopicPartition, Offset>, OpenError> {
    match read_file(disk, path)?.map(|bytes| checkpoint::parse_offsets(&bytes)) {
        None => Ok(BTreeMap::new()),
        Some(Ok(entries)) => Ok(entries.into_iter().collect()),
        Some(Err(reason @ CheckpointError::Version { .. })) => {
            Err(OpenError::UnknownVersion { path: path.to_owned(), reason })
        }
        Some(Err(reason)) => {
            notes.push(format!("{}: {reason}; taken as absent and written anew.", path.display()));
            Ok(BTreeMap::new())
        }
    }
}

/// Live partitions, and names of directories whose deletion is to be finished.
pub(crate) fn list_partitions<D: Disk>(
    disk: &D,
    root: &Path,
    notes: &mut Vec<String>,
) -> Result<(Vec<TopicPartition>, Vec<String>), DiskError> {
    let (mut live, mut deleted) = (Vec::new(), Vec::new());
    for entry in disk.list(root)?.into_iter().filter(|entry| entry.is_dir) {
        match entry.name.parse() {
            Ok(PartitionDir::Live(tp)) if tp.topic().as_str() == CLUSTER_METADATA_TOPIC => {}
            Ok(PartitionDir::Live(tp)) => live.push(tp),
            Ok(PartitionDir::Deleted(_)) => deleted.push(entry.name),
            Ok(PartitionDir::Future(_) | PartitionDir::Stray(_)) | Err(_) => {
                notes.push(format!(
                    "{} is not a partition in use; left as it is.",
                    root.join(&entry.name).display()
                ));
            }
        }
    }
    live.sort();
    Ok((live, deleted))
}
