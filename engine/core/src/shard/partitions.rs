//! Partitions of a shard: requests about them, steps that end, commits and upkeep in turn.

use crate::cache::SegmentUid;
use crate::disk::Errno;
use crate::error::{AppendError, FetchError, PartitionError, PartitionFailure};
use crate::format::names::TopicPartition;
use crate::log::partition::{Origin, Partition, PartitionState, TailState};
use crate::log::step::{OpenedLog, Step, StepOutput};
use crate::message::{PartitionId, Reply, Request, Ticket};
use crate::ops::{Now, Ops};
use crate::platform::{DIRECT_IO_ALIGN, Platform};
use crate::service::Service;
use crate::shard::Core;
use crate::shard::appends::Batches;
use crate::shard::letters::Opened;
use crate::token::{PARTITION_ID_MAX, StepKind};

/// Idle partitions looked at for memory to give up, per turn.
const DETACH_PER_TURN: usize = 64;

/// Partitions looked at for files to close, per turn: a lookup each, a system call for what is closed.
const PARK_PER_TURN: usize = 256;

impl<P: Platform, C> Core<P, C> {
    pub(super) fn handle_request<S: Service<Connection = C>>(
        &mut self,
        ticket: Ticket,
        request: Request,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        match request {
            Request::Open { partition, name, config } => {
                if let Err(error) = self.open_partition(partition, name, config, ticket, ops) {
                    ops.replies.push((ticket, Reply::Opened(Err(error))));
                }
            }
            Request::Append { partition, batches } => {
                self.append(partition, Batches::Owned(batches), Origin::Ticket(ticket), now, ops);
            }
            Request::Fetch(request) => {
                self.start_fetch(request, Origin::Ticket(ticket), service, now, ops);
            }
            Request::CancelFetch(fetch) => self.cancel_ticket(fetch, ops),
            Request::Watermarks(id) => {
                let result = self.open_one(id).map(|partition| partition.watermarks());
                ops.replies.push((ticket, Reply::Watermarks(result)));
            }
            Request::DeleteRecords { partition: id, before } => {
                let result = match self.partitions.get_mut(id) {
                    Some(partition) => partition.delete_records(before, ticket, ops),
                    None => Err(PartitionError::Unknown),
                };
                if let Err(error) = result {
                    ops.replies.push((ticket, Reply::RecordsDeleted(Err(error))));
                }
            }
            Request::Delete(id) => self.delete_partition(id, ticket, ops),
            Request::Stats(into) => self.reply_stats(ticket, into, ops),
            Request::Shutdown => self.begin_stop(ticket),
            Request::Abandon => self.stopped = true,
        }
    }

    fn open_one(&self, id: PartitionId) -> Result<&Partition<P>, PartitionError> {
        let partition = self.partitions.get(id).ok_or(PartitionError::Unknown)?;
        partition.check_open()?;
        Ok(partition)
    }

    fn open_partition(
        &mut self,
        id: PartitionId,
        name: TopicPartition,
        config: crate::log::LogConfig,
        ticket: Ticket,
        ops: &mut Ops<P>,
    ) -> Result<(), PartitionError> {
        config.validate()?;
        if self.stopping.is_some() || self.stopped {
            return Err(PartitionError::Closing);
        }
        if self.partitions.len() >= self.limits.partitions_max as usize || id.0 > PARTITION_ID_MAX {
            return Err(PartitionError::TooMany(self.limits.partitions_max));
        }
        if self.partitions.get(id).is_some() || !self.partitions.claim(&name) {
            return Err(PartitionError::AlreadyOpen);
        }
        let step = Step::Open { name: name.clone(), config: config.clone() };
        let mut partition = Box::new(Partition::opening(id, name, config, ticket, self.open_files.clone()));
        partition.push_step(StepKind::Open, None, step, ops);
        self.partitions.put(partition);
        self.all.push(id);
        Ok(())
    }

    fn delete_partition(&mut self, id: PartitionId, ticket: Ticket, ops: &mut Ops<P>) {
        let Some(mut partition) = self.partitions.take(id) else {
            ops.replies.push((ticket, Reply::Deleted(Err(PartitionError::Unknown))));
            return;
        };
        if let Err(error) = partition.check_writable() {
            ops.replies.push((ticket, Reply::Deleted(Err(error))));
        } else {
            partition.end_appends(&AppendError::UnknownPartition, &mut self.outcomes);
            partition.state = PartitionState::Deleting(ticket);
            self.end_fetches_of(id, &FetchError::UnknownPartition, ops);
            self.queue_partition(&mut partition);
        }
        self.partitions.put(partition);
    }

    /// Closes every partition; those that are opening close when they are open.
    fn begin_stop(&mut self, ticket: Ticket) {
        self.stopping = Some(ticket);
        for index in 0..self.all.len() {
            let id = self.all[index];
            if let Some(mut partition) = self.partitions.take(id) {
                partition.begin_close();
                self.queue_partition(&mut partition);
                self.partitions.put(partition);
            }
        }
    }

    /// A step has ended.
    #[expect(clippy::too_many_arguments, reason = "one call site; the token's parts and the turn's context")]
    pub(super) fn handle_step<S: Service<Connection = C>>(
        &mut self,
        kind: StepKind,
        id: PartitionId,
        uid: SegmentUid,
        output: StepOutput<P>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(mut partition) = self.partitions.take(id) else { return };
        partition.steps_in_flight -= 1;
        let outcomes = &mut self.outcomes;
        let mut gone = false;
        let mut opened = None;
        match output {
            StepOutput::Opened(result) => {
                gone = !self.handle_opened(&mut partition, result, service, now, ops)
            }
            StepOutput::SegmentCreated(result) => {
                partition.handle_segment_file(uid, now, result, outcomes);
            }
            StepOutput::SegmentPrepared(result) => self.stats.zeros_len += partition.handle_prepared(result),
            StepOutput::SegmentOpened(result) => {
                opened = Some(partition.handle_segment_opened(uid, now, result, outcomes));
            }
            StepOutput::GuardOpened(result) => partition.handle_guard_opened(now, result, outcomes),
            StepOutput::Extended(result) => {
                self.stats.zeros_len += partition.handle_extended(uid, now, result, outcomes);
            }
            StepOutput::CompanionsWritten(result) => partition.handle_companions(uid, result),
            StepOutput::Sealed(result) => partition.handle_sealed(uid, now, result, outcomes),
            StepOutput::LogStartRaised(result) => partition.handle_log_start(&mut self.memory, result, ops),
            StepOutput::SegmentsDeleted(result) => partition.end_deletion(result, ops),
            StepOutput::Scrubbed(result) => self.handle_scrubbed(now, result),
            StepOutput::Closed(result) => {
                debug_assert_eq!(kind, StepKind::Close);
                if let Err(error) = result {
                    self.stop_failure.get_or_insert(PartitionError::Disk(error));
                }
                self.end_fetches_of(id, &FetchError::Closing, ops);
                gone = true;
            }
            StepOutput::PartitionDeleted(result) => {
                if let PartitionState::Deleting(ticket) = partition.state {
                    ops.replies.push((ticket, Reply::Deleted(result.map_err(PartitionError::Disk))));
                }
                gone = true;
            }
        }
        if gone {
            self.forget(&partition);
            return;
        }
        self.queue_partition(&mut partition);
        self.partitions.put(partition);
        if let Some(result) = opened {
            self.handle_file_opened(uid, &result, ops);
            if let Err(error) = result {
                self.fail_reads(uid, &error, service, now, ops);
            }
        }
    }

    /// Says whether the partition stays.
    fn handle_opened<S: Service<Connection = C>>(
        &mut self,
        partition: &mut Partition<P>,
        result: Result<Box<OpenedLog<P>>, PartitionError>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) -> bool {
        let PartitionState::Opening(ticket) = partition.state else { return true };
        match result {
            Ok(opened) => {
                partition.open(*opened, &mut self.memory);
                if !self.open_files.has_room() {
                    partition.park_files(now);
                }
                if self.stopping.is_some() {
                    partition.begin_close();
                }
                service.handle_opened(partition.id, &partition.name);
                let unseen = self.peers.announce(partition.id, &partition.name);
                let marks = partition.watermarks();
                self.opened.push(Opened { partition: partition.id, ticket, marks, unseen });
                self.wake_parked(partition);
                true
            }
            Err(error) => {
                partition.end_appends(&AppendError::UnknownPartition, &mut self.outcomes);
                self.end_fetches_of(partition.id, &FetchError::UnknownPartition, ops);
                ops.replies.push((ticket, Reply::Opened(Err(error))));
                false
            }
        }
    }

    /// The last block came back, so that appends can go on behind it.
    pub(super) fn handle_tail_read(
        &mut self,
        now: Now,
        id: PartitionId,
        chunk: P::Chunk,
        result: Result<usize, Errno>,
    ) {
        self.with_partition(now, id, |core, partition| {
            if partition.tail_state != TailState::Reading {
                return;
            }
            let end = partition.active().end;
            let needed = (end.get() % DIRECT_IO_ALIGN) as usize;
            let base_offset = partition.active().base_offset;
            match result {
                Ok(len) if len >= needed => partition.handle_tail_read(chunk),
                Ok(_) => {
                    partition.tail_state = TailState::Detached;
                    let failure = PartitionFailure::Read { base_offset, errno: Errno::IO };
                    partition.fail(failure, &mut core.outcomes);
                }
                Err(errno) => {
                    partition.tail_state = TailState::Detached;
                    partition.fail(PartitionFailure::Read { base_offset, errno }, &mut core.outcomes);
                }
            }
        });
    }

    fn forget(&mut self, partition: &Partition<P>) {
        for segment in &partition.segments {
            self.memory.cache.remove_segment(segment.uid, segment.end);
        }
        self.partitions.release(&partition.name);
        self.all.retain(|id| *id != partition.id);
    }

    /// Gives every partition with something to do its turn: waiting appends, upkeep, one commit.
    pub(super) fn poll_partitions(&mut self, now: Now, ops: &mut Ops<P>) {
        self.linger_until = None;
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(mut partition) = self.partitions.take(id) else { continue };
            partition.queued = false;
            if self.goes_at_stop(&partition) {
                self.end_fetches_of(id, &FetchError::Closing, ops);
                self.forget(&partition);
                continue;
            }
            self.retry_waiting(&mut partition, now, ops);
            let zero = self.scheduler.allows_zeros();
            partition.push_upkeep(now, zero, ops);
            self.push_deletion(&mut partition, ops);
            let allowed = self.commits_in_flight < self.limits.commits_in_flight_max;
            let len_max = self.scheduler.commit_len_max(id, now);
            if allowed && partition.push_commit(&mut self.memory, now, len_max, ops) {
                self.commits_in_flight += 1;
                let quiet = self.reads.are_idle().then_some(self.stats.cold_reads);
                partition.commit_started = (now.mono, quiet);
                self.scheduler.note_commit(now);
            }
            let blocked = partition.in_flight.is_none() && !partition.pending.is_empty();
            if blocked && partition.lingers(now) {
                let until = partition.linger_until;
                self.linger_until = Some(self.linger_until.map_or(until, |at| at.min(until)));
            }
            let retry = now.mono < partition.retry_at;
            if blocked || retry || !partition.waiting.is_empty() {
                self.patience = true;
                self.queue_partition(&mut partition);
            }
            self.partitions.put(partition);
        }
    }

    /// At a shutdown, whether a partition simply goes: a read-only one has nothing to close; a failed one
    /// cannot be closed cleanly and is left to the next start's recovery.
    fn goes_at_stop(&mut self, partition: &Partition<P>) -> bool {
        let idle = partition.in_flight.is_none()
            && partition.steps_in_flight == 0
            && partition.tail_state != TailState::Reading;
        if self.stopping.is_none() || !idle {
            return false;
        }
        match &partition.state {
            PartitionState::ReadOnly | PartitionState::Failed(PartitionFailure::Damaged { .. }) => true,
            PartitionState::Failed(failure) => {
                self.stop_failure.get_or_insert(PartitionError::Failed(failure.clone()));
                true
            }
            _ => false,
        }
    }

    /// A partition that is to be deleted goes when nothing of it is under way.
    fn push_deletion(&mut self, partition: &mut Partition<P>, ops: &mut Ops<P>) {
        let idle = partition.in_flight.is_none()
            && partition.steps_in_flight == 0
            && partition.tail_state != TailState::Reading;
        if matches!(partition.state, PartitionState::Deleting(_)) && idle {
            while partition.tail.pop().is_some() {}
            partition.tail_state = TailState::Detached;
            partition.pending.clear();
            let step = Step::DeletePartition { name: partition.name.clone() };
            partition.push_step(StepKind::DeletePartition, None, step, ops);
        }
    }

    /// Retention, every few seconds.
    pub(super) fn poll_retention(&mut self, now: Now, ops: &mut Ops<P>) {
        if !self.retention.is_due(now) {
            return;
        }
        let now = Now { wall: self.retention.judge(now), ..now };
        for index in 0..self.all.len() {
            let id = self.all[index];
            let Some(mut partition) = self.partitions.take(id) else { continue };
            if partition.push_retention(&mut self.memory, now, ops) {
                self.queue_partition(&mut partition);
            }
            self.partitions.put(partition);
        }
    }

    /// Closes files of partitions with nothing under way, a few per turn, once all that may be open are.
    pub(super) fn park_idle_files(&mut self, now: Now) {
        if !self.open_files.has_room() {
            self.parks_files = true;
        }
        for _ in 0..PARK_PER_TURN.min(self.all.len()) {
            self.parks_files = self.parks_files && !self.open_files.has_ample_room();
            if !self.parks_files {
                return;
            }
            self.park_cursor = (self.park_cursor + 1) % self.all.len();
            if let Some(partition) = self.partitions.get_mut(self.all[self.park_cursor]) {
                partition.park_files(now);
            }
        }
    }

    /// Takes memory from partitions that nobody appends to, a few per turn.
    pub(super) fn detach_idle_tails(&mut self) {
        for _ in 0..DETACH_PER_TURN.min(self.all.len()) {
            self.detach_cursor = (self.detach_cursor + 1) % self.all.len();
            let id = self.all[self.detach_cursor];
            if let Some(partition) = self.partitions.get_mut(id)
                && partition.waiting.is_empty()
            {
                partition.detach_tail(&mut self.memory);
            }
        }
    }
}
