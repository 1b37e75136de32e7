//! Appends: from whoever asks to a partition's tail, and the acknowledgement back.

use std::ops::Range;

use bytes::Bytes;

use crate::error::AppendError;
use crate::log::append::Refused;
use crate::log::partition::{Ack, Origin, Partition, PartitionState, WaitingAppend};
use crate::message::{PartitionId, Reply, Watermarks};
use crate::ops::{Now, Ops};
use crate::planted::{Bug, is_planted};
use crate::platform::Platform;
use crate::service::{Access, Service};
use crate::shard::Core;
use crate::shard::conn::AnswerState;
use crate::shard::remote::Away;

/// The batches of an append: borrowed where they can be placed at once, owned where they may wait, lent with
/// their memory by another shard.
pub(super) enum Batches<'a> {
    Borrowed(&'a [u8]),
    Owned(Bytes),
    Lent(&'a mut Vec<u8>, Range<usize>),
}

impl Batches<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Batches::Borrowed(bytes) => bytes,
            Batches::Owned(bytes) => bytes,
            Batches::Lent(frame, range) => &frame[range.clone()],
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Batches::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Batches::Owned(bytes) => bytes,
            Batches::Lent(frame, range) => Bytes::from(std::mem::take(frame)).slice(range),
        }
    }
}

/// What a service may do in its turn.
pub(super) struct ShardAccess<'a, P: Platform, C> {
    pub(super) core: &'a mut Core<P, C>,
    pub(super) now: Now,
    pub(super) ops: &'a mut Ops<P>,
}

impl<P: Platform, C> Access for ShardAccess<'_, P, C> {
    fn append(&mut self, partition: PartitionId, batches: &[u8], tag: u64) -> Result<(), AppendError> {
        let core = &mut *self.core;
        if let Some(owner) = core.peers.owner_of(partition) {
            let away = Away { owner, partition, batches: 0..batches.len(), origin: Origin::Service { tag } };
            if core.peers.are_scarce() {
                core.patience = true;
                return Err(AppendError::Busy);
            }
            core.copy_away(away, batches);
            return Ok(());
        }
        let Some(target) = core.partitions.get_mut(partition) else {
            return Err(AppendError::UnknownPartition);
        };
        target.accepts_appends()?;
        let room = target.waiting.is_empty() && target.acks.len() < core.limits.acks_waiting_max as usize;
        if !room || matches!(target.state, PartitionState::Opening(_)) {
            core.patience = true;
            return Err(AppendError::Busy);
        }
        let appended = target.append(&mut core.memory, self.now, batches, self.ops);
        // Also where it was refused: the log may have rolled for it, and what it left is to be sealed.
        if !target.queued {
            target.queued = true;
            core.ready.push_back(partition);
        }
        match appended {
            Ok((base_offset, end_offset)) => {
                target.acks.push_back(Ack { base_offset, end_offset, origin: Origin::Service { tag } });
                Ok(())
            }
            Err(Refused::Error(error)) => Err(error),
            Err(refused) => {
                core.patience = true;
                core.memory_short |= matches!(refused, Refused::NoMemory);
                core.stats.appends_delayed += 1;
                Err(AppendError::Busy)
            }
        }
    }

    fn watermarks(&self, partition: PartitionId) -> Option<Watermarks> {
        self.core.partitions.get(partition).map(|partition| partition.watermarks())
    }
}

impl<P: Platform, C> Core<P, C> {
    /// Appends, or queues the append, or reports through `outcomes` why not.
    pub(super) fn append(
        &mut self,
        id: PartitionId,
        batches: Batches<'_>,
        origin: Origin,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let Some(mut partition) = self.partitions.take(id) else {
            self.outcomes.push((origin, Err(AppendError::UnknownPartition)));
            return;
        };
        if let Err(error) = partition.accepts_appends() {
            self.outcomes.push((origin, Err(error)));
        } else if !partition.waiting.is_empty() || matches!(partition.state, PartitionState::Opening(_)) {
            self.wait(&mut partition, batches, origin, now);
        } else {
            match self.try_append(&mut partition, batches.as_slice(), origin, now, ops) {
                Ok(()) => {}
                Err(Refused::Error(error)) => self.outcomes.push((origin, Err(error))),
                Err(refused) => {
                    self.memory_short |= matches!(refused, Refused::NoMemory);
                    self.wait(&mut partition, batches, origin, now);
                }
            }
        }
        self.queue_partition(&mut partition);
        self.partitions.put(partition);
    }

    fn try_append(
        &mut self,
        partition: &mut Partition<P>,
        batches: &[u8],
        origin: Origin,
        now: Now,
        ops: &mut Ops<P>,
    ) -> Result<(), Refused> {
        if partition.acks.len() >= self.limits.acks_waiting_max as usize {
            return Err(Refused::Wait);
        }
        let (base_offset, end_offset) = partition.append(&mut self.memory, now, batches, ops)?;
        partition.acks.push_back(Ack { base_offset, end_offset, origin });
        Ok(())
    }

    fn wait(&mut self, partition: &mut Partition<P>, batches: Batches<'_>, origin: Origin, now: Now) {
        if partition.waiting.len() >= self.limits.appends_waiting_max as usize {
            self.outcomes.push((origin, Err(AppendError::Busy)));
            return;
        }
        self.stats.appends_delayed += 1;
        self.patience = true;
        let deadline = now.mono.plus_millis(partition.config.append_wait_ms_max);
        partition.waiting.push_back(WaitingAppend { batches: batches.into_bytes(), origin, deadline });
    }

    /// Gives waiting appends another try, in order; ends those whose time is over.
    pub(super) fn retry_waiting(&mut self, partition: &mut Partition<P>, now: Now, ops: &mut Ops<P>) {
        if matches!(partition.state, PartitionState::Opening(_)) {
            return;
        }
        while let Some(append) = partition.waiting.pop_front() {
            let refused = match partition.accepts_appends() {
                Ok(()) => {
                    if is_planted(Bug::DuplicateOnRetry) {
                        let _ = partition.append(&mut self.memory, now, &append.batches, ops);
                    }
                    self.try_append(partition, &append.batches, append.origin, now, ops)
                }
                Err(error) => Err(Refused::Error(error)),
            };
            match refused {
                Ok(()) => {}
                Err(Refused::Error(error)) => self.outcomes.push((append.origin, Err(error))),
                Err(_) if now.mono >= append.deadline => {
                    self.outcomes.push((append.origin, Err(AppendError::Busy)));
                }
                Err(refused) => {
                    partition.waiting.push_front(append);
                    self.patience = true;
                    self.memory_short |= matches!(refused, Refused::NoMemory);
                    return;
                }
            }
        }
    }

    /// Tells everybody whose append has ended.
    pub(super) fn deliver_outcomes<S: Service<Connection = C>>(
        &mut self,
        service: &mut S,
        scratch: &mut Vec<u8>,
        ops: &mut Ops<P>,
    ) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for (origin, outcome) in outcomes.drain(..) {
            match origin {
                Origin::Ticket(ticket) => ops.replies.push((ticket, Reply::Appended(outcome))),
                Origin::Service { tag } => {
                    scratch.clear();
                    service.handle_appended(tag, &outcome, scratch);
                }
                Origin::Frame { conn, sequence, tag } => {
                    if let Some(conn) = self.conn_mut(conn)
                        && let Some(response) = conn.response_mut(sequence)
                    {
                        service.handle_appended(tag, &outcome, &mut response.header);
                        response.state = AnswerState::Ready(None);
                    }
                    self.queue_conn(conn);
                }
                Origin::Shard { shard, call } => self.peers.push_appended(shard, call, outcome),
            }
        }
        // Nobody appends while outcomes are delivered; keep the larger buffer.
        debug_assert!(self.outcomes.is_empty());
        self.outcomes = outcomes;
    }
}
