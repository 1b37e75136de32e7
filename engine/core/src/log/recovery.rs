//! Opening a partition: what its files say, what of it is to be believed, and the repair of what a crash left.
//!
//! First everything is read and judged, then everything is changed. Always holds (I11): a partition that is refused was not
//! changed; nothing is cut but a torn tail, zeros behind the end, and what lies below the log start offset; what
//! opening returns is on the device.

use std::path::PathBuf;

use crate::disk::Disk;
use crate::error::PartitionError;
use crate::format::checkpoint;
use crate::format::guard_slot::GuardSlot;
use crate::format::names::{self, SegmentFileKind, TopicId, TopicPartition};
use crate::format::side_file::SegmentIdentity;
use crate::log::epochs::Epochs;
use crate::log::files::{put_file, unlink_if_there};
use crate::log::guard_file::{self, FoundGuard, OpenedGuard};
use crate::log::identity::read_topic_id;
use crate::log::inventory::{Inventory, segment_path, unlink_segment};
use crate::log::log_dir::LogDir;
use crate::log::plan::Plan;
use crate::log::repair::{create_first_segment, cut_other_files, repair_segment};
use crate::log::step::{OpenedLog, OpenedSegment, RecoveryReport};
use crate::log::verdict::{Verdict, torn_len};
use crate::log::{LogConfig, OnDamage};
use crate::planted::{Bug, is_planted};
use crate::platform::Platform;
use crate::types::{ByteCount, Offset};

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
    let untouched = match &opened {
        Ok(opened) => opened.failure.is_some(),
        Err(error) => !matches!(error, PartitionError::Disk(_)),
    };
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

/// One opening.
pub(super) struct Opening<'a, D: Disk> {
    pub(super) log_dir: &'a LogDir<D>,
    pub(super) tp: &'a TopicPartition,
    pub(super) dir: PathBuf,
    pub(super) config: &'a LogConfig,
    pub(super) clean: bool,
}

impl<D: Disk> Opening<'_, D> {
    fn run<P>(self) -> Result<Box<OpenedLog<P>>, PartitionError>
    where
        P: Platform<Disk = D, File = D::File>,
    {
        let disk = self.log_dir.disk();
        let mut report = RecoveryReport { clean: self.clean, ..RecoveryReport::default() };
        let entry = self.create_dir()?;
        let inventory = Inventory::read(disk, &self.dir)?;
        let (topic_id, is_new) = self.topic_id()?;
        let mut epochs = Epochs::read(disk, &self.dir, &mut report.notes)?;
        let guard = if inventory.has_guard {
            FoundGuard::read(self.log_dir, &self.dir, self.tp.partition(), topic_id)?
        } else {
            FoundGuard::none()
        };
        let plan = self.plan_restoring(&inventory, topic_id, &epochs, &guard.slots, &mut report)?;
        if plan.damage.is_some() {
            return self.serve_as_it_is(plan, topic_id, epochs, report);
        }
        for (found, _) in &plan.segments {
            found.epochs.iter().for_each(|epoch| epochs.observe(*epoch));
        }
        if is_new {
            let text = checkpoint::write_partition_metadata(topic_id);
            put_file(disk, &self.dir.join(names::PARTITION_METADATA), text.as_bytes())?;
        }
        self.apply(&inventory, &plan, &mut report)?;
        let (start, end) = (plan.log_start_offset, plan.log_end_offset);
        let cut = plan.segments.iter().any(|(_, verdict)| *verdict == Verdict::End);
        let is_empty = plan.segments.is_empty();
        let guard = self.guard(guard, &plan, topic_id)?;
        let segments = self.finish::<P>(plan, topic_id, &mut report)?;
        if !self.clean || cut {
            // Above those, too, whose batches are gone: no epoch stands for two lives.
            epochs.raise(end);
        }
        epochs.truncate(if is_planted(Bug::LowerEpochOnReopen) { Offset::new(-1) } else { end });
        let leader_epoch = epochs.current(end);
        let unguarded = inventory.has_guard && guard.is_none();
        if unguarded {
            guard_file::remove(disk, &self.dir)?;
        }
        let changed = epochs.put(disk, &self.dir)? || is_new || is_empty || unguarded;
        if changed {
            disk.sync_dir(&self.dir)?;
        }
        if let Some(change) = entry {
            self.log_dir.entries().make_durable(disk, self.log_dir.root(), change)?;
        }
        self.log_dir.note_recovery_point(self.tp, end);
        if self.config.on_damage == OnDamage::Cut {
            // What lies below the old one may be cut off now.
            self.log_dir.raise_recovery_point(self.tp, end)?;
        }
        let opened = OpenedLog {
            segments,
            read_only: false,
            failure: None,
            topic_id,
            guard,
            log_start_offset: start,
            leader_epoch,
            recovery: report,
        };
        Ok(Box::new(opened))
    }

    /// The plan with the help of copies of last blocks. Not after a clean stop, when nothing was in flight, and not for what
    /// is to be served as it is.
    fn plan_restoring(
        &self,
        inventory: &Inventory,
        topic_id: TopicId,
        epochs: &Epochs,
        slots: &[GuardSlot],
        report: &mut RecoveryReport,
    ) -> Result<Plan<D>, PartitionError> {
        let before = report.clone();
        let slots = if self.clean { &[] } else { slots };
        let plan = self.plan(inventory, topic_id, epochs, slots, report)?;
        let restores = plan.segments.iter().any(|(found, _)| !found.restored.is_empty());
        if plan.damage.is_none() || !restores {
            return Ok(plan);
        }
        drop(plan); // and with it the locks
        *report = before;
        self.plan(inventory, topic_id, epochs, &[], report)
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
        let epochs = Epochs::read(disk, &self.dir, &mut report.notes)?;
        let plan = self.plan(&inventory, topic_id, &epochs, &[], &mut report)?;
        self.serve_as_it_is(plan, topic_id, epochs, report)
    }

    /// Hands over what is there without changing anything.
    fn serve_as_it_is<P>(
        &self,
        plan: Plan<D>,
        topic_id: TopicId,
        mut epochs: Epochs,
        recovery: RecoveryReport,
    ) -> Result<Box<OpenedLog<P>>, PartitionError>
    where
        P: Platform<Disk = D, File = D::File>,
    {
        if plan.segments.is_empty() {
            let (path, reason) = (self.dir.clone(), "it holds no segment to serve".to_owned());
            return Err(PartitionError::Unusable { path, reason });
        }
        let (log_start_offset, end) = (plan.log_start_offset, plan.log_end_offset);
        let (read_only, failure) = (self.log_dir.is_read_only(), plan.damage.clone());
        let segments = self.hand_over::<P>(plan)?;
        let leader_epoch = epochs.current(end);
        Ok(Box::new(OpenedLog {
            segments,
            read_only,
            failure,
            topic_id,
            guard: None,
            log_start_offset,
            leader_epoch,
            recovery,
        }))
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

    /// Restores what was read from copies, and guards the last block before it is cut or appended to.
    fn guard(
        &self,
        guard: FoundGuard<D>,
        plan: &Plan<D>,
        topic_id: TopicId,
    ) -> Result<Option<OpenedGuard<D::File>>, PartitionError> {
        for (found, _) in &plan.segments {
            guard_file::restore(self.log_dir.disk(), &self.dir, found)?;
        }
        if !self.config.guard_last_block {
            return Ok(None);
        }
        let partition = self.tp.partition();
        let last = plan.segments.last().map(|(found, _)| {
            (found, SegmentIdentity { topic_id, partition, base_offset: found.base_offset })
        });
        guard.guard(self.log_dir, &self.dir, last).map(Some)
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
            // The companions of a segment that goes on need not be durable, unless older ones would reach beyond a cut.
            let durable = i != active || *verdict == Verdict::End;
            repair_segment(disk, &self.dir, found, self.config, durable)?;
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
        let as_it_is = self.log_dir.is_read_only() || plan.damage.is_some();
        let mut segments = Vec::with_capacity(plan.segments.len().max(1));
        for (i, (found, verdict)) in plan.segments.into_iter().enumerate() {
            let path = segment_path(&self.dir, found.base_offset, SegmentFileKind::Log);
            segments.push(OpenedSegment {
                base_offset: found.base_offset,
                next_offset: if is_planted(Bug::WrongOffsetAfterRecovery) {
                    found.next_offset.plus(1)
                } else {
                    found.next_offset
                },
                end: found.end,
                file: found.file.filter(|_| i == active),
                preallocated: found.end,
                index: found.index,
                max_timestamp: found.max_timestamp,
                first_timestamp: found.first_timestamp,
                modified: self.log_dir.disk().modified(&path)?,
                chain: found.chain.filter(|_| i == active && !as_it_is).map(|chain| chain.builder),
                companions_len: found.companions_len,
                damaged: matches!(verdict, Verdict::Corrupt(_)),
            });
        }
        Ok(segments)
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
