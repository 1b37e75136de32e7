//! A fetch under way: from the request to the last byte handed to a socket or a handle.
//!
//! Always holds (I13): a fetch is in one place at a time: new, parked on its partition, waiting for one read
//! of the cache, or streaming. A slot is reused only when nothing names it any more: a cancelled fetch
//! that still stands in a list of waiters keeps its slot until that read has ended.

use std::ops::Range;

use crate::bill::table_len;
use crate::cache::{NONE, SegmentUid};
use crate::error::FetchError;
use crate::fetch::{FetchOutcome, FetchRequest, Mode};
use crate::log::partition::Origin;
use crate::message::{CallId, ShardId, Source};
use crate::platform::Platform;
use crate::types::{ByteCount, Nanos, Position};

/// Names a fetch and its slot's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FetchId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl From<FetchId> for CallId {
    fn from(id: FetchId) -> Self {
        Self { index: id.index, generation: id.generation }
    }
}

impl From<CallId> for FetchId {
    fn from(id: CallId) -> Self {
        Self { index: id.index, generation: id.generation }
    }
}

/// How far a fetch has come.
pub(crate) enum FetchState<P: Platform> {
    /// The slot is free.
    Free,
    /// Not looked at yet, or to be looked at again.
    New,
    /// Waits for data beyond the high watermark, until its deadline.
    Parked,
    /// Looks for the batch that contains the offset: walked up to here.
    Locating { uid: SegmentUid, at: Position },
    /// Planned: `[at, end)` is still to be handed over.
    Streaming(Stream<P>),
    /// Another shard has been asked to plan it.
    Asked { owner: ShardId },
    /// Another shard has planned it.
    Foreign(Foreign<P>),
    /// Nobody wants the answer any more.
    Cancelled,
}

/// The rest of a planned fetch.
pub(crate) struct Stream<P: Platform> {
    pub(crate) outcome: FetchOutcome,
    pub(crate) uid: SegmentUid,
    pub(crate) at: Position,
    /// Where the first batch ends: an answer has all of it.
    pub(crate) first_end: Position,
    pub(crate) end: Position,
    pub(crate) mode: Mode,
    /// In a mode that goes by file: the part that does. What lies before and behind it goes through memory.
    pub(crate) by_file: Range<Position>,
    /// What a handle gets; connections send piece by piece.
    pub(crate) pieces: Vec<P::Lease>,
}

/// A part of a stream that goes one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// From the arena, up to here.
    Memory(Position),
    /// From the file, up to here.
    File(Position),
}

impl<P: Platform> Stream<P> {
    /// The part that begins at `at`.
    pub(crate) fn part(&self) -> Part {
        match self.mode.is_of_file() {
            true if self.by_file.contains(&self.at) => Part::File(self.by_file.end),
            true if self.at < self.by_file.start => Part::Memory(self.by_file.start),
            _ => Part::Memory(self.end),
        }
    }
}

/// The rest of a fetch that another shard has planned.
pub(crate) struct Foreign<P: Platform> {
    pub(crate) owner: ShardId,
    /// Bytes that have not been handed to the socket yet.
    pub(crate) left: ByteCount,
    /// As it was planned.
    pub(crate) outcome: FetchOutcome,
    pub(crate) mode: Mode,
    /// In memory without a plan and without pieces, though there are bytes left: they were given back.
    pub(crate) source: Source<P>,
    /// More bytes are on their way from the owner.
    pub(crate) pulled: bool,
}

impl<P: Platform> Foreign<P> {
    /// What is to be planned of it again.
    pub(crate) fn rest(&self) -> FetchOutcome {
        let sent = self.outcome.len.get() - self.left.get();
        let position = self.outcome.position.plus(ByteCount::new(sent));
        FetchOutcome { position, len: self.left, ..self.outcome }
    }

    /// The owner's name for it, if the owner has it under way: `None` in it while it has yet to be told.
    fn plan_at_owner(&self) -> Option<Option<CallId>> {
        match &self.source {
            // The owner has ended it with its last bytes.
            Source::Memory { .. } if self.left == ByteCount::ZERO => None,
            Source::Memory { plan, .. } => (plan.is_some() || self.pulled).then_some(*plan),
            Source::File { plan, .. } => plan.is_some().then_some(*plan),
        }
    }
}

/// One fetch.
pub(crate) struct Fetch<P: Platform> {
    pub(crate) generation: u32,
    pub(crate) request: FetchRequest,
    pub(crate) origin: Origin,
    pub(crate) deadline: Nanos,
    pub(crate) state: FetchState<P>,
    /// Whether it stands in a list of waiters of the cache, and its successor there.
    pub(crate) waiting: bool,
    pub(crate) next_waiter: u32,
    /// A read it waited for has failed.
    pub(crate) failure: Option<FetchError>,
    /// The shard that asked for it waits for bytes.
    pub(crate) owed: bool,
    /// It stands in the list of those that wait for a segment's file.
    pub(crate) awaits_file: bool,
}

impl<P: Platform> Fetch<P> {
    /// Whether all its bytes have been handed to the socket.
    pub(crate) fn is_handed_over(&self) -> bool {
        match &self.state {
            FetchState::Streaming(stream) => stream.at >= stream.end,
            FetchState::Foreign(foreign) => foreign.left == ByteCount::ZERO,
            _ => false,
        }
    }

    /// The shard that plans it, if that is another one.
    pub(crate) fn owner(&self) -> Option<ShardId> {
        match &self.state {
            FetchState::Asked { owner } => Some(*owner),
            FetchState::Foreign(foreign) => Some(foreign.owner),
            _ => None,
        }
    }
}

/// A fetch that nobody wants any more and its owner does not know it: owner, its name here and there.
pub(crate) type CancelledCall = (ShardId, CallId, Option<CallId>);

/// All fetches of a shard. Does not allocate within its capacity.
pub(crate) struct Fetches<P: Platform> {
    slots: Vec<Fetch<P>>,
    free: Vec<u32>,
    max: u32,
    cancelled: Vec<CancelledCall>,
}

impl<P: Platform> Fetches<P> {
    pub(crate) fn new(max: u32) -> Self {
        Self {
            slots: Vec::with_capacity(max as usize),
            free: Vec::with_capacity(max as usize),
            max,
            cancelled: Vec::new(),
        }
    }

    /// Bytes of memory that `max` of them take.
    pub(crate) const fn memory_len(max: usize) -> usize {
        table_len::<Fetch<P>>(max) + table_len::<u32>(max)
    }

    /// A slot for a request; `None` at the limit.
    pub(crate) fn insert(
        &mut self,
        request: FetchRequest,
        origin: Origin,
        deadline: Nanos,
    ) -> Option<FetchId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if (self.slots.len() as u32) < self.max => {
                self.slots.push(Fetch {
                    generation: 0,
                    request,
                    origin,
                    deadline,
                    state: FetchState::Free,
                    waiting: false,
                    next_waiter: NONE,
                    failure: None,
                    owed: false,
                    awaits_file: false,
                });
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let fetch = &mut self.slots[index as usize];
        fetch.request = request;
        fetch.origin = origin;
        fetch.deadline = deadline;
        fetch.state = FetchState::New;
        fetch.failure = None;
        (fetch.owed, fetch.awaits_file) = (false, false);
        Some(FetchId { index, generation: fetch.generation })
    }

    /// Whether more than half of the slots are taken.
    pub(crate) fn are_scarce(&self) -> bool {
        let taken = self.slots.len() - self.free.len();
        taken > self.max as usize / 2
    }

    /// The fetch, unless its slot has been freed meanwhile.
    pub(crate) fn get_mut(&mut self, id: FetchId) -> Option<&mut Fetch<P>> {
        let fetch = self.slots.get_mut(id.index as usize)?;
        let current = fetch.generation == id.generation && !matches!(fetch.state, FetchState::Free);
        current.then_some(fetch)
    }

    /// The fetch in a list of waiters, and takes it out of the list: returns its id and its successor.
    pub(crate) fn leave_waiters(&mut self, index: u32) -> (FetchId, u32) {
        let fetch = &mut self.slots[index as usize];
        fetch.waiting = false;
        (FetchId { index, generation: fetch.generation }, std::mem::replace(&mut fetch.next_waiter, NONE))
    }

    /// Frees the slot, now or when the read it waits for has ended.
    pub(crate) fn end(&mut self, id: FetchId) {
        let Some(fetch) = self.get_mut(id) else { return };
        if fetch.waiting {
            fetch.state = FetchState::Cancelled;
            return;
        }
        let cancelled = match &fetch.state {
            FetchState::Asked { owner } => Some((*owner, id.into(), None)),
            FetchState::Foreign(foreign) => {
                foreign.plan_at_owner().map(|plan| (foreign.owner, id.into(), plan))
            }
            _ => None,
        };
        fetch.state = FetchState::Free;
        fetch.generation = fetch.generation.wrapping_add(1);
        self.cancelled.extend(cancelled);
        self.free.push(id.index);
    }

    /// Gives up what the owner of a fetch has lent to it and has still to bring: what comes under its old name is dropped.
    /// Returns its new one, under which the rest can be asked for. `None` if it holds nothing of that kind.
    pub(crate) fn give_back(&mut self, id: FetchId) -> Option<FetchId> {
        let fetch = self.get_mut(id)?;
        let FetchState::Foreign(foreign) = &mut fetch.state else { return None };
        if foreign.left == ByteCount::ZERO {
            return None;
        }
        let cancelled = foreign.plan_at_owner().map(|plan| (foreign.owner, id.into(), plan));
        let Source::Memory { plan, pieces } = &mut foreign.source else { return None };
        (*plan, foreign.pulled) = (None, false);
        pieces.clear();
        fetch.generation = fetch.generation.wrapping_add(1);
        let generation = fetch.generation;
        self.cancelled.extend(cancelled);
        Some(FetchId { generation, ..id })
    }

    /// The next fetch to be taken back from its owner.
    pub(crate) fn pop_cancelled(&mut self) -> Option<CancelledCall> {
        self.cancelled.pop()
    }

    /// Ids of every fetch that is under way and not cancelled; for shutdown and deletion, not for every turn.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (FetchId, &Fetch<P>)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, fetch)| !matches!(fetch.state, FetchState::Free | FetchState::Cancelled))
            .map(|(index, fetch)| (FetchId { index: index as u32, generation: fetch.generation }, fetch))
    }
}
