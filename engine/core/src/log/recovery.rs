//! Opening a partition: what its files say, what of it is to be believed, and the repair of what a crash left.
//!
//! First everything is read and judged, then everything is changed. Always holds (I11): a partition that is refused was not
//! changed; nothing is cut but a torn tail, zeros behind the end, and what lies below the log start offset; what
//! opening returns is on the device.

use std::path::PathBuf;

use crate::disk::{Disk, Errno};
use crate::error::PartitionError;
use crate::format::checkpoint;
use crate::format::names::{self, SegmentFileKind, TopicId, TopicPartition};
use crate::log::LogConfig;
use crate::log::epochs::Epochs;
use crate::log::files::{replace_file, unlink_if_there};
use crate::log::found::{Found, SegmentContext};
use crate::log::identity::{new_topic_id, read_topic_id};
use crate::log::inventory::{Inventory, segment_path, unlink_segment};
use crate::log::log_dir::LogDir;
use crate::log::repair::{create_first_segment, cut_other_files, repair_segment};
use crate::log::step::{OpenedLog, OpenedSegment, RecoveryReport};
use crate::log::verdict::{Behind, Past, Verdict, judge, torn_len};
use crate::platform::Platform;
use crate::types::{ByteCount, Offset, Position};

/// Opens a partition, or creates it.
///
/// # Errors
/// See [`PartitionError`]. Unless a file operation failed, nothing was changed.
pub(crate) fn open_partition<P: Platform>(
    log_dir: &LogDir<P::Disk>,
    name: &TopicPartition,
    config: &LogConfig,
) -> Result<Box<OpenedLog<P>>, PartitionError>
where
    P::Disk: Disk<File = P::File>,
{
    config.validate()?;
    if log_dir.is_read_only() {
        let dir = log_dir.partition_dir(name);
        let opened = Opening { log_dir, tp: name, dir, config, clean: log_dir.was_clean() }.run_read_only();
        note_recovery(log_dir, name, &opened);
        return opened;
    }
    let clean = log_dir.mark_open(name)?;
    let opened = Opening { log_dir, tp: name, dir: log_dir.partition_dir(name), config, clean }.run();
    note_recovery(log_dir, name, &opened);
    let untouched = !matches!(opened, Ok(_) | Err(PartitionError::Disk(_)));
    if clean && untouched {
        log_dir.mark_untouched(name);
    }
    opened
}

/// What the operator should know of an opening, whoever asked for it.
fn note_recovery<P: Platform>(
    log_dir: &LogDir<P::Disk>,
    name: &TopicPartition,
    opened: &Result<Box<OpenedLog<P>>, PartitionError>,
) {
    match opened {
        Ok(opened) => opened.recovery.notes.iter().for_each(|note| log_dir.note(format!("{name}: {note}"))),
        Err(error) => log_dir.note(format!("{name} was not opened: {error}")),
    }
}

struct Opening<'a, D: Disk> {
    log_dir: &'a LogDir<D>,
    tp: &'a TopicPartition,
    dir: PathBuf,
    config: &'a LogConfig,
    clean: bool,
}

/// What reading found and what is to be done about it.
struct Plan<D: Disk> {
    /// In order; those to be cut come with the verdict to do so.
    segments: Vec<(Found<D>, Verdict)>,
    /// Segments to be removed, in order.
    removed: Vec<Offset>,
    log_start_offset: Offset,
    log_end_offset: Offset,
}

impl<D: Disk> Opening<'_, D> {
    fn run<P>(self) -> Result<Box<OpenedLog<P>>, PartitionError>
    where
        P: Platform<Disk = D, File = D::File>,
    {
        let disk = self.log_dir.disk();
        let mut report = RecoveryReport { clean: self.clean, ..RecoveryReport::default() };
        self.create_dir()?;
        let inventory = Inventory::read(disk, &self.dir)?;
        let (topic_id, is_new) = self.topic_id()?;
        let mut epochs = Epochs::read(disk, &self.dir, &mut report.notes)?;
        let plan = self.plan(&inventory, topic_id, &mut report)?;
        for (found, _) in &plan.segments {
            found.epochs.iter().for_each(|epoch| epochs.observe(*epoch));
        }
        if is_new {
            let text = checkpoint::write_partition_metadata(topic_id);
            replace_file(disk, &self.dir.join(names::PARTITION_METADATA), text.as_bytes())?;
        }
        self.apply(&inventory, &plan, &mut report)?;
        let (start, end) = (plan.log_start_offset, plan.log_end_offset);
        let cut = plan.segments.iter().any(|(_, verdict)| *verdict == Verdict::End);
        let segments = self.finish::<P>(plan, topic_id, &mut report)?;
        epochs.truncate(end);
        if !self.clean || cut {
            epochs.raise(end);
        }
        let leader_epoch = epochs.current(end);
        epochs.write(disk, &self.dir)?;
        self.log_dir.note_recovery_point(self.tp, end);
        let opened = OpenedLog {
            segments,
            read_only: false,
            topic_id,
            log_start_offset: start,
            leader_epoch,
            recovery: report,
        };
        Ok(Box::new(opened))
    }

    /// As [`Self::run`], for a directory that must not be changed: what would be cut or removed is left out
    /// of what is served, and stays where it is.
    fn run_read_only<P>(self) -> Result<Box<OpenedLog<P>>, PartitionError>
    where
        P: Platform<Disk = D, File = D::File>,
    {
        let disk = self.log_dir.disk();
        let mut report = RecoveryReport { clean: self.clean, ..RecoveryReport::default() };
        let inventory = Inventory::read(disk, &self.dir)?;
        let topic_id = read_topic_id(disk, &self.dir)?.unwrap_or(TopicId::ZERO);
        let mut epochs = Epochs::read(disk, &self.dir, &mut report.notes)?;
        let plan = self.plan(&inventory, topic_id, &mut report)?;
        if plan.segments.is_empty() {
            let (path, reason) = (self.dir.clone(), "it holds no segment to serve".to_owned());
            return Err(PartitionError::Unusable { path, reason });
        }
        let (log_start_offset, end) = (plan.log_start_offset, plan.log_end_offset);
        let segments = self.hand_over::<P>(plan)?;
        let leader_epoch = epochs.current(end);
        let recovery = report;
        let opened =
            OpenedLog { segments, read_only: true, topic_id, log_start_offset, leader_epoch, recovery };
        Ok(Box::new(opened))
    }

    /// Creates the partition's directory if there is none; what is there afterwards is there durably.
    fn create_dir(&self) -> Result<(), PartitionError> {
        let disk = self.log_dir.disk();
        match disk.list(&self.dir) {
            Err(error) if error.errno == Errno::NOENT => {}
            Err(error) => return Err(error.into()),
            Ok(_) if self.clean => return Ok(()),
            Ok(_) => {
                // A process that was killed has left entries that no sync has covered.
                disk.sync_dir(&self.dir)?;
                return Ok(disk.sync_dir(self.log_dir.root())?);
            }
        }
        // Checkpoints that a deleted partition of the same name has left would cut into the new one.
        self.log_dir.forget(self.tp)?;
        disk.create_dir(&self.dir)?;
        self.log_dir.mark_created(self.tp);
        Ok(disk.sync_dir(self.log_dir.root())?)
    }

    /// The topic's id: kept where there is one, that of the topic's other partitions, or a new one; and whether it is
    /// still to be written.
    fn topic_id(&self) -> Result<(TopicId, bool), PartitionError> {
        let disk = self.log_dir.disk();
        if let Some(id) = read_topic_id(disk, &self.dir)? {
            return Ok((id, false));
        }
        for sibling in self.log_dir.siblings(self.tp) {
            if let Some(id) = read_topic_id(disk, &self.log_dir.partition_dir(&sibling))? {
                return Ok((id, true));
            }
        }
        Ok((new_topic_id(self.tp.topic(), self.log_dir.options().topic_id_seed), true))
    }

    /// Reads the segments and decides, without changing anything.
    fn plan(
        &self,
        inventory: &Inventory,
        topic_id: TopicId,
        report: &mut RecoveryReport,
    ) -> Result<Plan<D>, PartitionError> {
        let bases: Vec<Offset> = inventory.segments.iter().copied().collect();
        let recovery_point = self.log_dir.recovery_point(self.tp).unwrap_or(Offset::ZERO);
        let checkpointed_start = self.log_dir.log_start_offset(self.tp).unwrap_or(Offset::ZERO);
        // A segment below the log start offset that is still there was unlinked without the directory being synced.
        let resurrected =
            bases.iter().skip(1).take_while(|next_base| **next_base <= checkpointed_start).count();
        let (removed, kept) = bases.split_at(resurrected);
        let mut removed = removed.to_vec();
        let mut found = Vec::with_capacity(kept.len());
        for (i, &base_offset) in kept.iter().enumerate() {
            found.push(self.read_segment(
                base_offset,
                kept.get(i + 1).copied(),
                topic_id,
                recovery_point,
                report,
            )?);
        }
        let mut segments = self.judge(found, recovery_point, &mut removed, report)?;
        let log_end_offset = segments.last().map_or(Offset::ZERO, |(found, _)| found.next_offset);
        let first = segments.first().map_or(Offset::ZERO, |(found, _)| found.base_offset);
        let log_start_offset = checkpointed_start.max(first);
        if log_end_offset < recovery_point && !segments.is_empty() {
            report.notes.push(format!(
                "The log ends at offset {log_end_offset}, below its recovery point {recovery_point}: another program \
                 has cut it, or files are missing."
            ));
        }
        if log_start_offset > log_end_offset {
            // Everything there is has been deleted; the log goes on at its start.
            removed.extend(segments.drain(..).map(|(found, _)| found.base_offset));
        }
        let log_end_offset = log_end_offset.max(log_start_offset);
        Ok(Plan { segments, removed, log_start_offset, log_end_offset })
    }

    fn read_segment(
        &self,
        base_offset: Offset,
        next_base: Option<Offset>,
        topic_id: TopicId,
        recovery_point: Offset,
        report: &mut RecoveryReport,
    ) -> Result<Found<D>, PartitionError> {
        let context = SegmentContext {
            disk: self.log_dir.disk(),
            dir: &self.dir,
            config: self.config,
            lock_patience_ms: self.log_dir.options().lock_patience_ms,
            tp: self.tp,
            topic_id,
            base_offset,
            next_base,
            read_only: self.log_dir.is_read_only(),
        };
        let durable = next_base.is_some_and(|next_base| next_base <= recovery_point);
        if self.clean || durable {
            if let Some(found) = context.load()? {
                return Ok(found);
            }
            report.indexes_rebuilt += 1;
        }
        let mut found = context.scan()?;
        report.scanned = ByteCount::new(report.scanned.get() + found.file_len.get());
        report.batches += found.batches;
        report.notes.extend(found.note.take());
        Ok(found)
    }

    fn judge(
        &self,
        found: Vec<Found<D>>,
        recovery_point: Offset,
        removed: &mut Vec<Offset>,
        report: &mut RecoveryReport,
    ) -> Result<Vec<(Found<D>, Verdict)>, PartitionError> {
        let (clean, durability) = (self.clean, self.config.durability);
        let past = Past { recovery_point, durability, clean };
        let last_with_batches = found.iter().rposition(|found| found.end > Position::ZERO);
        let bases: Vec<Offset> = found.iter().map(|found| found.base_offset).collect();
        let mut segments: Vec<(Found<D>, Verdict)> = Vec::with_capacity(found.len());
        for (i, found) in found.into_iter().enumerate() {
            if segments.last().is_some_and(|(_, verdict)| *verdict == Verdict::End) {
                removed.push(found.base_offset);
                continue;
            }
            let has_batches = last_with_batches.is_some_and(|last| last > i);
            let behind = Behind { next_base: bases.get(i + 1).copied(), has_batches };
            let disk = self.log_dir.disk();
            let verdict = judge(disk, &found, behind, &past)?;
            let path = segment_path(&self.dir, found.base_offset, SegmentFileKind::Log);
            match &verdict {
                Verdict::Corrupt(reason) => {
                    let (position, reason) = (found.end.get(), reason.clone());
                    return Err(PartitionError::Corrupt { path, position, reason });
                }
                Verdict::Foreign(format) => {
                    let reason = format!(
                        "at position {} it goes on in message format {format}; this engine reads format 2 (Kafka 0.11 \
                         and later). Have a broker that knows it rewrite the topic",
                        found.end
                    );
                    return Err(PartitionError::Unusable { path, reason });
                }
                Verdict::End if has_batches => report.notes.push(format!(
                    "{} was cut at {} and the segments behind it were dropped: the durability level `written` allows \
                     a power cut to take them.",
                    path.display(),
                    found.end
                )),
                _ => {}
            }
            segments.push((found, verdict));
        }
        Ok(segments)
    }

    /// Removes what is to go. Afterwards the segments that stay can be cut in any order.
    fn apply(
        &self,
        inventory: &Inventory,
        plan: &Plan<D>,
        report: &mut RecoveryReport,
    ) -> Result<(), PartitionError> {
        let disk = self.log_dir.disk();
        for name in &inventory.leftovers {
            unlink_if_there(disk, &self.dir.join(name))?;
        }
        for file in inventory.orphans() {
            unlink_if_there(disk, &self.dir.join(file.to_string()))?;
        }
        // From the end: what a second crash leaves is still a prefix of the log.
        for base_offset in plan.removed.iter().rev() {
            unlink_segment(disk, &self.dir, *base_offset)?;
        }
        if !plan.removed.is_empty() {
            disk.sync_dir(&self.dir)?;
            report.notes.push(format!("{} segments were removed.", plan.removed.len()));
        }
        if let Some((last, Verdict::End)) = plan.segments.last() {
            cut_other_files(disk, &self.dir, inventory, last.base_offset, plan.log_end_offset)?;
        }
        Ok(())
    }

    /// Cuts the segments, writes their companions, and hands them over.
    fn finish<P>(
        &self,
        plan: Plan<D>,
        topic_id: TopicId,
        report: &mut RecoveryReport,
    ) -> Result<Vec<OpenedSegment<P>>, PartitionError>
    where
        P: Platform<Disk = D, File = D::File>,
    {
        let disk = self.log_dir.disk();
        let active = plan.segments.len().wrapping_sub(1);
        for (i, (found, verdict)) in plan.segments.iter().enumerate() {
            if *verdict == Verdict::End {
                let torn = torn_len(disk, found)?;
                report.truncated = ByteCount::new(report.truncated.get() + torn);
            }
            repair_segment(disk, &self.dir, found, i == active)?;
        }
        let base_offset = plan.log_start_offset;
        let mut segments = self.hand_over::<P>(plan)?;
        if segments.is_empty() {
            let (log_dir, dir) = (self.log_dir, &self.dir);
            segments.push(create_first_segment(log_dir, dir, self.tp, topic_id, self.config, base_offset)?);
        }
        Ok(segments)
    }

    /// The segments as the shard takes them over; the last one stays open.
    fn hand_over<P>(&self, plan: Plan<D>) -> Result<Vec<OpenedSegment<P>>, PartitionError>
    where
        P: Platform<Disk = D, File = D::File>,
    {
        let active = plan.segments.len().wrapping_sub(1);
        let mut segments = Vec::with_capacity(plan.segments.len().max(1));
        for (i, (found, _)) in plan.segments.into_iter().enumerate() {
            let path = segment_path(&self.dir, found.base_offset, SegmentFileKind::Log);
            segments.push(OpenedSegment {
                base_offset: found.base_offset,
                next_offset: found.next_offset,
                end: found.end,
                file: found.file.filter(|_| i == active),
                preallocated: found.end,
                index: found.index,
                max_timestamp: found.max_timestamp,
                first_timestamp: found.first_timestamp,
                modified: self.log_dir.disk().modified(&path)?,
                chain: found
                    .chain
                    .filter(|_| i == active && !self.log_dir.is_read_only())
                    .map(|chain| chain.builder),
                companions_len: found.companions_len,
            });
        }
        Ok(segments)
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
