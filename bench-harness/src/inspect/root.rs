//! A log directory: its partitions, and the checkpoints that speak of them.

use std::path::Path;

use rohrpost_engine_core::format::names::{
    self, CLEAN_SHUTDOWN, CLEANER_CHECKPOINT, HIGH_WATERMARK_CHECKPOINT, LOCK, LOG_START_CHECKPOINT,
    META_PROPERTIES, PartitionDir, RECOVERY_POINT_CHECKPOINT,
};

use super::context::Context;
use super::finding::{Finding, What};
use super::partition::{self, Files};
use super::{InspectError, at, segment, small};

const OFFSET_CHECKPOINTS: [&str; 4] =
    [RECOVERY_POINT_CHECKPOINT, LOG_START_CHECKPOINT, HIGH_WATERMARK_CHECKPOINT, CLEANER_CHECKPOINT];

/// Inspects a directory: a partition's, or a log directory with all its partitions.
pub(super) fn inspect(context: &mut Context<'_>, dir: &Path) -> Result<(), InspectError> {
    let files = Files::list(dir)?;
    if files.has_segments() {
        return partition::inspect(context, dir, &files);
    }
    let mut found = false;
    let mut checkpoints = Vec::new();
    for name in names(dir)? {
        let path = dir.join(&name);
        if std::fs::metadata(&path).map_err(at(&path))?.is_dir() {
            found |= inspect_partition_dir(context, &path, &name)?;
        } else if OFFSET_CHECKPOINTS.contains(&name.as_str()) {
            checkpoints.push(name);
            found = true;
        } else if !matches!(name.as_str(), LOCK | CLEAN_SHUTDOWN) {
            found |= inspect_root_file(context, &path, &name)?;
        }
    }
    for name in checkpoints {
        let offsets = small::offsets(context, &dir.join(&name))?;
        let known = OFFSET_CHECKPOINTS.into_iter().find(|known| *known == name);
        if let (Some(offsets), Some(name)) = (offsets, known) {
            compare(context, dir, name, &offsets);
        }
    }
    if found { Ok(()) } else { Err(InspectError::Nothing(dir.to_owned())) }
}

/// Inspects one file of a log directory, or a text file of a partition.
pub(super) fn inspect_file(context: &mut Context<'_>, path: &Path, name: &str) -> Result<(), InspectError> {
    let dir = path.parent().unwrap_or(Path::new(""));
    match name {
        names::LEADER_EPOCH_CHECKPOINT => small::epochs(context, dir).map(|_| ()),
        names::PARTITION_METADATA => small::topic_id(context, dir).map(|_| ()),
        _ if OFFSET_CHECKPOINTS.contains(&name) => small::offsets(context, path).map(|_| ()),
        _ if inspect_root_file(context, path, name)? => Ok(()),
        _ => Err(InspectError::Nothing(path.to_owned())),
    }
}

/// The names in `dir`, sorted. Those that are not UTF-8 are nobody's here and left out.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, InspectError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        names.extend(entry.map_err(at(dir))?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Says whether the directory has a partition's name.
fn inspect_partition_dir(context: &mut Context<'_>, path: &Path, name: &str) -> Result<bool, InspectError> {
    let what = match name.parse::<PartitionDir>() {
        Ok(PartitionDir::Live(_)) => {
            let files = Files::list(path)?;
            partition::inspect(context, path, &files)?;
            return Ok(true);
        }
        Ok(PartitionDir::Deleted(_)) => "a deleted partition",
        Ok(PartitionDir::Future(_)) => "a partition being moved here",
        Ok(PartitionDir::Stray(_)) => "a partition set aside by a broker that no longer owns it",
        Err(_) => "no partition's name",
    };
    let path = context.relative(path);
    context.find(Finding::note(&path, None, What::Other(what)));
    Ok(false)
}

/// Says whether the file is known.
fn inspect_root_file(context: &mut Context<'_>, path: &Path, name: &str) -> Result<bool, InspectError> {
    if name == META_PROPERTIES {
        small::meta_properties(context, path)?;
    } else if name.ends_with(".checkpoint") {
        segment::inspect_batches(context, path)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Holds a checkpoint against the ends of the partitions.
fn compare(
    context: &mut Context<'_>,
    dir: &Path,
    name: &'static str,
    offsets: &[(names::TopicPartition, rohrpost_engine_core::types::Offset)],
) {
    let file = context.relative(&dir.join(name));
    for (partition, offset) in offsets {
        let directory = partition.to_string();
        let report = context.partitions().iter().find(|p| p.dir.as_os_str() == directory.as_str());
        let finding = match report.map(|report| report.offsets().map_or(0, |(_, end)| end)) {
            None => Finding::note(&file, None, What::NoSuchPartition(directory)),
            Some(end) if offset.get() > end => {
                let found = offset.get();
                let what = What::CheckpointBeyondEnd { name, partition: directory, found, end };
                Finding::problem(&file, None, what)
            }
            Some(_) => continue,
        };
        context.find(finding);
    }
}
