//! What a shard knows of the other shards of its engine, and letters to and from them.
//!
//! Always holds (I15): what a connection asks of another shard is answered: by its owner, or by an error once
//! the owner has ended. An asker's slot names one request at a time, so an answer that comes too late finds
//! another generation and is dropped, with its leases.

use crate::bill::table_len;
use crate::error::{AppendError, FetchError};
use crate::format::names::TopicPartition;
use crate::log::partition::Origin;
use crate::message::{Appended, CallId, Letter, PartitionId, Reply, ShardId, Ticket, Watermarks};
use crate::ops::{Now, Ops};
use crate::platform::Platform;
use crate::service::Service;
use crate::shard::Core;
use crate::types::Nanos;

/// Letters of a turn before memory is allocated for more.
const OUT_CAPACITY: usize = 1024;

/// Memory of frames kept for reuse.
const SPARE_FRAMES_MAX: usize = 256;

/// Bytes of it.
pub(super) const SPARE_FRAMES_LEN_MAX: usize = 16 << 20;

/// How often the other shards are told that memory is short, milliseconds.
const SHORT_INTERVAL_MS: u64 = 100;

/// An append that another shard carries out.
struct Call {
    generation: u32,
    /// `None`: the slot is free.
    under_way: Option<(ShardId, Origin)>,
}

/// A partition that has been opened here, until every shard's service knows of it and there is memory.
pub(super) struct Opened {
    pub(super) partition: PartitionId,
    pub(super) ticket: Ticket,
    pub(super) marks: Watermarks,
    /// Shards that have not said yet that they know of it.
    pub(super) unseen: Vec<ShardId>,
}

/// See the module documentation.
pub(super) struct Peers<P: Platform> {
    me: ShardId,
    count: u16,
    /// Shards that have ended.
    ended: Vec<bool>,
    /// Letters of this turn.
    out: Vec<(ShardId, Letter<P>)>,
    calls: Vec<Call>,
    free_calls: Vec<u32>,
    calls_max: u32,
    frames: Vec<Vec<u8>>,
    frames_len: usize,
    /// Memory of frames to give back, by shard.
    foreign_frames: Vec<Vec<Vec<u8>>>,
    /// When to tell the other shards again that memory is short.
    next_short: Nanos,
}

impl<P: Platform> Peers<P> {
    pub(super) fn alone() -> Self {
        Self::new(ShardId(0), 1, 0)
    }

    pub(super) fn new(me: ShardId, count: u16, calls_max: u32) -> Self {
        assert!(me.0 < count, "{me:?} of {count} shards");
        let shards = usize::from(count);
        let capacity = if count > 1 { calls_max as usize } else { 0 };
        Self {
            me,
            count,
            ended: vec![false; shards],
            out: Vec::with_capacity(capacity.min(OUT_CAPACITY)),
            calls: Vec::with_capacity(capacity),
            free_calls: Vec::with_capacity(capacity),
            calls_max,
            frames: Vec::with_capacity(SPARE_FRAMES_MAX),
            frames_len: 0,
            foreign_frames: (0..shards).map(|_| Vec::with_capacity(capacity.min(SPARE_FRAMES_MAX))).collect(),
            next_short: Nanos::ZERO,
        }
    }

    /// Bytes of memory that its tables take among `count` shards.
    pub(super) fn memory_len(count: u16, calls_max: u32) -> usize {
        let calls = if count > 1 { calls_max as usize } else { 0 };
        table_len::<(ShardId, Letter<P>)>(calls.min(OUT_CAPACITY))
            + table_len::<Call>(calls)
            + table_len::<u32>(calls)
            + usize::from(count) * table_len::<Vec<u8>>(calls.min(SPARE_FRAMES_MAX))
            + table_len::<Vec<u8>>(SPARE_FRAMES_MAX)
    }

    /// The shard to ask about a partition; `None` if it is this one.
    pub(super) fn owner_of(&self, partition: PartitionId) -> Option<ShardId> {
        let owner = ShardId::owner(partition, self.count);
        (owner != self.me).then_some(owner)
    }

    pub(super) fn has_ended(&self, shard: ShardId) -> bool {
        self.ended[usize::from(shard.0)]
    }

    pub(super) fn push(&mut self, to: ShardId, letter: Letter<P>) {
        debug_assert!(to != self.me, "a shard writes to others only");
        if !self.has_ended(to) {
            self.out.push((to, letter));
        }
    }

    fn others(&self) -> impl Iterator<Item = ShardId> + use<P> {
        let me = self.me;
        (0..self.count).map(ShardId).filter(move |shard| *shard != me)
    }

    /// Tells every other shard of a partition; returns those who will say that they know of it.
    pub(super) fn announce(&mut self, partition: PartitionId, name: &TopicPartition) -> Vec<ShardId> {
        let unseen: Vec<_> = self.others().filter(|shard| !self.has_ended(*shard)).collect();
        for shard in &unseen {
            self.push(*shard, Letter::Opened { partition, name: name.clone() });
        }
        unseen
    }

    /// A slot for an append that goes to `owner`; `None` at the limit.
    pub(super) fn begin_append(&mut self, owner: ShardId, origin: Origin) -> Option<CallId> {
        let index = match self.free_calls.pop() {
            Some(index) => index,
            None if (self.calls.len() as u32) < self.calls_max => {
                self.calls.push(Call { generation: 0, under_way: None });
                self.calls.len() as u32 - 1
            }
            None => return None,
        };
        let call = &mut self.calls[index as usize];
        call.under_way = Some((owner, origin));
        Some(CallId { index, generation: call.generation })
    }

    fn end_append(&mut self, id: CallId) -> Option<Origin> {
        let call = self.calls.get_mut(id.index as usize)?;
        if call.generation != id.generation {
            return None;
        }
        let (_, origin) = call.under_way.take()?;
        call.generation = call.generation.wrapping_add(1);
        self.free_calls.push(id.index);
        Some(origin)
    }

    /// Whether more than half of the appends that may be at other shards are.
    pub(super) fn are_scarce(&self) -> bool {
        (self.calls.len() - self.free_calls.len()) * 2 > self.calls_max as usize
    }

    /// Empty memory for a frame.
    pub(super) fn frame(&mut self) -> Vec<u8> {
        let frame = self.frames.pop().unwrap_or_default();
        self.frames_len -= frame.capacity();
        frame
    }

    /// Takes a frame's memory back.
    pub(super) fn recycle(&mut self, mut frame: Vec<u8>) {
        let len = frame.capacity();
        let fits = self.frames_len + len <= SPARE_FRAMES_LEN_MAX;
        if len > 0 && fits && self.frames.len() < SPARE_FRAMES_MAX {
            frame.clear();
            self.frames_len += len;
            self.frames.push(frame);
        }
    }

    /// Keeps the memory of another shard's frame until an answer goes there.
    pub(super) fn keep_foreign(&mut self, from: ShardId, frame: Vec<u8>) {
        let frames = &mut self.foreign_frames[usize::from(from.0)];
        if frame.capacity() > 0 {
            frames.push(frame);
        }
    }

    pub(super) fn push_appended(&mut self, to: ShardId, call: CallId, result: Result<Appended, AppendError>) {
        let spare = self.foreign_frames[usize::from(to.0)].pop();
        self.push(to, Letter::Appended { call, result, spare });
    }
}

impl<P: Platform, C> Core<P, C> {
    pub(super) fn handle_letter<S: Service<Connection = C>>(
        &mut self,
        from: ShardId,
        letter: Letter<P>,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        match letter {
            Letter::Fetch { call, request } => {
                self.start_fetch(request, Origin::Shard { shard: from, call }, service, now, ops);
            }
            Letter::Resume { call, request, rest } => self.resume_for(from, call, request, rest, ops),
            Letter::Pull { plan, from } => self.handle_pull(plan, from),
            Letter::Cancel { call, plan } => self.handle_cancel(from, call, plan),
            Letter::Append { call, partition, mut frame, batches } => {
                let origin = Origin::Shard { shard: from, call };
                self.append_foreign(partition, &mut frame, batches, origin, now, ops);
                self.peers.keep_foreign(from, frame);
            }
            Letter::Planned { call, outcome, mode, source } => {
                self.handle_planned(call.into(), outcome, mode, source, service, ops);
            }
            Letter::Bytes { call, pieces } => self.handle_bytes(call.into(), pieces),
            Letter::Refused { call, error } => self.end_call(call.into(), error, service, ops),
            Letter::Appended { call, result, spare } => {
                if let Some(frame) = spare {
                    self.peers.recycle(frame);
                }
                if let Some(origin) = self.peers.end_append(call) {
                    self.outcomes.push((origin, result));
                }
            }
            Letter::Opened { partition, name } => {
                service.handle_opened(partition, &name);
                self.peers.push(from, Letter::OpenedSeen { partition });
            }
            Letter::OpenedSeen { partition } => {
                let waiting = self.opened.iter_mut().find(|opened| opened.partition == partition);
                if let Some(opened) = waiting {
                    opened.unseen.retain(|shard| *shard != from);
                }
            }
            Letter::MemoryShort => {
                self.recall_stalled(Some(from), now, ops);
                self.close_stalled(now, ops);
            }
        }
    }

    /// Another shard has ended: whoever waits for it learns it, what it has asked for is dropped.
    pub(super) fn handle_shard_ended<S: Service<Connection = C>>(
        &mut self,
        shard: ShardId,
        service: &mut S,
        ops: &mut Ops<P>,
    ) {
        if self.peers.has_ended(shard) {
            return;
        }
        self.peers.ended[usize::from(shard.0)] = true;
        for index in 0..self.peers.calls.len() {
            let call = &self.peers.calls[index];
            if call.under_way.is_some_and(|(owner, _)| owner == shard) {
                let id = CallId { index: index as u32, generation: call.generation };
                if let Some(origin) = self.peers.end_append(id) {
                    self.outcomes.push((origin, Err(AppendError::Closing)));
                }
            }
        }
        let fetches: Vec<_> =
            self.fetches.ids().map(|(id, fetch)| (id, fetch.origin, fetch.owner())).collect();
        for (id, origin, owner) in fetches {
            if owner == Some(shard) {
                self.end_call(id, FetchError::Closing, service, ops);
            } else if matches!(origin, Origin::Shard { shard: asker, .. } if asker == shard) {
                self.fetches.end(id);
            }
        }
        for opened in &mut self.opened {
            opened.unseen.retain(|unseen| *unseen != shard);
        }
    }

    /// Answers that a partition is open, where every shard knows of it and the arena has its start length.
    pub(super) fn poll_opened(&mut self, ops: &mut Ops<P>) {
        if self.opened.is_empty() || !self.memory.has_start_len() {
            return;
        }
        self.opened.retain(|opened| {
            let seen = opened.unseen.is_empty();
            if seen {
                ops.replies.push((opened.ticket, Reply::Opened(Ok(opened.marks))));
            }
            !seen
        });
    }

    /// Hands over the letters of this turn, and takes cancelled fetches back from their owners.
    pub(super) fn poll_letters(&mut self, now: Now, ops: &mut Ops<P>) {
        while let Some((owner, call, plan)) = self.fetches.pop_cancelled() {
            self.peers.push(owner, Letter::Cancel { call, plan });
        }
        if self.memory_short && now.mono >= self.peers.next_short {
            self.peers.next_short = now.mono.plus_millis(SHORT_INTERVAL_MS);
            for shard in self.peers.others() {
                self.peers.push(shard, Letter::MemoryShort);
            }
        }
        ops.to_shards.append(&mut self.peers.out);
    }
}
