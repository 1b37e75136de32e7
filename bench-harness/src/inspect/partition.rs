//! A partition directory: its segments in order, the files beside them, and single files of one.

use std::collections::BTreeMap;
use std::path::Path;

use rohrpost_engine_core::format::checkpoint::EpochStart;
use rohrpost_engine_core::format::names::{
    self, SegmentFile, SegmentFileKind, SegmentFileState, TopicId, TopicPartition,
};
use rohrpost_engine_core::format::side_file::SegmentIdentity;
use rohrpost_engine_core::types::Offset;

use super::context::Context;
use super::finding::{Finding, What};
use super::report::PartitionReport;
use super::segment::{self, Expected};
use super::{InspectError, at, root, small};

/// The files of a partition directory, by name.
#[derive(Default)]
pub(super) struct Files {
    live: BTreeMap<Offset, Vec<SegmentFileKind>>,
    passing: Vec<SegmentFile>,
    others: Vec<String>,
}

impl Files {
    /// Lists `dir`.
    ///
    /// # Errors
    /// `Read`.
    pub(super) fn list(dir: &Path) -> Result<Self, InspectError> {
        let mut files = Self::default();
        for name in root::names(dir)? {
            match name.parse::<SegmentFile>() {
                Ok(file) if file.state == SegmentFileState::Live => {
                    files.live.entry(file.base_offset).or_default().push(file.kind);
                }
                Ok(file) => files.passing.push(file),
                Err(_) => files.others.push(name),
            }
        }
        Ok(files)
    }

    /// Whether there is a segment.
    pub(super) fn has_segments(&self) -> bool {
        self.live.values().any(|kinds| kinds.contains(&SegmentFileKind::Log))
    }
}

/// Inspects all of a partition directory.
pub(super) fn inspect(context: &mut Context<'_>, dir: &Path, files: &Files) -> Result<(), InspectError> {
    let epochs = small::epochs(context, dir)?;
    let topic_id = small::topic_id(context, dir)?;
    let mut report = PartitionReport { dir: context.relative(dir), segments: Vec::new() };
    let mut expected = Expected { epochs: &epochs, ..Expected::default() };
    for (&base, kinds) in &files.live {
        if kinds.contains(&SegmentFileKind::Snapshot) {
            let path = dir.join(SegmentFile::live(base, SegmentFileKind::Snapshot).to_string());
            small::snapshot(context, &path, base)?;
        }
        if !kinds.contains(&SegmentFileKind::Log) {
            orphans(context, dir, base, kinds);
            continue;
        }
        expected.identity = identity(dir, topic_id, base);
        let inspected = segment::inspect(context, dir, base, expected)?;
        expected.next_offset = Some(inspected.report.next_offset);
        expected.leader_epoch = inspected.leader_epoch;
        report.segments.push(inspected.report);
    }
    for file in &files.passing {
        let what = match file.state {
            SegmentFileState::Deleted => "deleted, not yet unlinked",
            SegmentFileState::Cleaned => "left by an unfinished compaction",
            _ => "compacted, not yet in place",
        };
        let path = context.relative(&dir.join(file.to_string()));
        context.find(Finding::note(&path, None, What::Other(what)));
    }
    others(context, dir, files)?;
    context.partition(report);
    Ok(())
}

/// Inspects one file, with what lies beside it as the yardstick.
pub(super) fn inspect_file(context: &mut Context<'_>, path: &Path) -> Result<(), InspectError> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Ok(file) = name.parse::<SegmentFile>() else {
        return root::inspect_file(context, path, &name);
    };
    let log = dir.join(SegmentFile::live(file.base_offset, SegmentFileKind::Log).to_string());
    match file.kind {
        _ if file.state != SegmentFileState::Live => Err(InspectError::Nothing(path.to_owned())),
        SegmentFileKind::Snapshot => small::snapshot(context, path, file.base_offset),
        SegmentFileKind::TxnIndex if !log.exists() => {
            small::transactions(context, path, file.base_offset).map(|_| ())
        }
        SegmentFileKind::Log => alone(context, dir, file.base_offset),
        _ if log.exists() => alone(context, dir, file.base_offset),
        // Without the segment there is nothing to hold an index or a side file against.
        _ => Err(InspectError::Read { path: log, source: std::io::ErrorKind::NotFound.into() }),
    }
}

/// One segment, its neighbours unread.
fn alone(context: &mut Context<'_>, dir: &Path, base: Offset) -> Result<(), InspectError> {
    let epochs: Vec<EpochStart> = small::epochs(context, dir)?;
    let topic_id = small::topic_id(context, dir)?;
    let identity = identity(dir, topic_id, base);
    let expected = Expected { epochs: &epochs, identity, ..Expected::default() };
    let inspected = segment::inspect(context, dir, base, expected)?;
    context.partition(PartitionReport { segments: vec![inspected.report], ..PartitionReport::default() });
    Ok(())
}

/// What a side file must say, if the directory has a partition's name and a topic id.
fn identity(dir: &Path, topic_id: Option<TopicId>, base_offset: Offset) -> Option<SegmentIdentity> {
    let dir = std::fs::canonicalize(dir).ok()?;
    let partition: TopicPartition = dir.file_name()?.to_str()?.parse().ok()?;
    Some(SegmentIdentity { topic_id: topic_id?, partition: partition.partition(), base_offset })
}

fn orphans(context: &mut Context<'_>, dir: &Path, base: Offset, kinds: &[SegmentFileKind]) {
    // A snapshot belongs to an offset, not to a segment.
    for &kind in kinds.iter().filter(|&&kind| kind != SegmentFileKind::Snapshot) {
        let path = context.relative(&dir.join(SegmentFile::live(base, kind).to_string()));
        context.find(Finding::problem(&path, None, What::Orphan));
    }
}

fn others(context: &mut Context<'_>, dir: &Path, files: &Files) -> Result<(), InspectError> {
    for name in &files.others {
        let known =
            [names::LEADER_EPOCH_CHECKPOINT, names::PARTITION_METADATA, names::LAST_BLOCK_GUARD, names::LOCK];
        let path = dir.join(name);
        if known.contains(&name.as_str()) {
            continue;
        }
        if name.ends_with(".checkpoint") {
            segment::inspect_batches(context, &path)?;
            continue;
        }
        let is_dir = std::fs::metadata(&path).map_err(at(&path))?.is_dir();
        let what =
            if is_dir { "a directory inside a partition" } else { "no file of a partition known here" };
        let path = context.relative(&path);
        context.find(Finding::note(&path, None, What::Other(what)));
    }
    Ok(())
}
