//! What opening a partition has found, and what is to be done about it. Reads and decides; changes nothing.

use crate::disk::Disk;
use crate::error::{PartitionError, PartitionFailure};
use crate::format::guard_slot::GuardSlot;
use crate::format::names::{SegmentFileKind, TopicId};
use crate::log::OnDamage;
use crate::log::epochs::Epochs;
use crate::log::found::{Found, SegmentContext};
use crate::log::inventory::{Inventory, segment_path};
use crate::log::recovery::Opening;
use crate::log::step::RecoveryReport;
use crate::log::verdict::{Behind, Past, Verdict, judge};
use crate::types::{ByteCount, Offset, Position};

/// What reading found and what is to be done about it.
pub(super) struct Plan<D: Disk> {
    /// In order; those to be cut come with the verdict to do so.
    pub(super) segments: Vec<(Found<D>, Verdict)>,
    /// Segments to be removed, in order.
    pub(super) removed: Vec<Offset>,
    pub(super) log_start_offset: Offset,
    pub(super) log_end_offset: Offset,
    /// Damage that the settings allow to be served around.
    pub(super) damage: Option<PartitionFailure>,
}

impl<D: Disk> Opening<'_, D> {
    /// Reads the segments and decides, without changing anything.
    pub(super) fn plan(
        &self,
        inventory: &Inventory,
        topic_id: TopicId,
        epochs: &Epochs,
        slots: &[GuardSlot],
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
            let context = SegmentContext {
                disk: self.log_dir.disk(),
                dir: &self.dir,
                config: self.config,
                lock_patience_ms: self.log_dir.options().lock_patience_ms,
                tp: self.tp,
                topic_id,
                base_offset,
                next_base: kept.get(i + 1).copied(),
                read_only: self.log_dir.is_read_only(),
                epochs,
                slots,
            };
            found.push(self.read_segment(&context, recovery_point, report)?);
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
        let damage = segments.iter().find(|(_, verdict)| matches!(verdict, Verdict::Corrupt(_)));
        let damage = damage.map(|(found, _)| PartitionFailure::Damaged {
            base_offset: found.base_offset,
            position: found.end.get(),
        });
        Ok(Plan { segments, removed, log_start_offset, log_end_offset, damage })
    }

    fn read_segment(
        &self,
        context: &SegmentContext<'_, D>,
        recovery_point: Offset,
        report: &mut RecoveryReport,
    ) -> Result<Found<D>, PartitionError> {
        let durable = context.next_base.is_some_and(|next_base| next_base <= recovery_point);
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
        report.notes.extend(found.restored.iter().map(|slot| {
            let path = context.path(SegmentFileKind::Log);
            format!("{}: the block at {} was restored from its copy.", path.display(), slot.label.position)
        }));
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
        let guarded = self.config.guard_last_block;
        let past = Past { recovery_point, durability, clean, guarded };
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
            let mut verdict = judge(disk, &found, behind, &past)?;
            let path = segment_path(&self.dir, found.base_offset, SegmentFileKind::Log);
            if let Verdict::Corrupt(reason) = &verdict {
                let (position, reason) = (found.end.get(), reason.clone());
                let error = PartitionError::Corrupt { path: path.clone(), position, reason };
                match self.config.on_damage {
                    OnDamage::Refuse => return Err(error),
                    OnDamage::Cut if !self.log_dir.is_read_only() => {
                        report.notes.push(format!("{error}; cut there, as was asked for."));
                        verdict = Verdict::End;
                    }
                    OnDamage::Serve | OnDamage::Cut => {
                        report.notes.push(format!("{error}; the rest of that segment is not served."));
                    }
                }
            }
            match &verdict {
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
}
