//! Fetches that wait for more to read: parked, woken by the high watermark, answered when their time has come, ended.

use std::cmp::Ordering;

use crate::error::FetchError;
use crate::fetch::transfer::{FetchId, FetchState};
use crate::log::partition::{Origin, Partition};
use crate::message::{PartitionId, Reply, Ticket};
use crate::ops::{Now, Ops};
use crate::platform::Platform;
use crate::service::Service;
use crate::shard::Core;
use crate::shard::fetches::Progress;
use crate::types::Nanos;

/// When a parked fetch must be answered. The earliest is the greatest, for the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParkTimer {
    pub(super) deadline: Nanos,
    pub(super) id: FetchId,
    pub(super) partition: PartitionId,
}

impl Ord for ParkTimer {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |timer: &Self| (timer.deadline, timer.id.index, timer.id.generation);
        key(other).cmp(&key(self))
    }
}

impl PartialOrd for ParkTimer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P: Platform, C> Core<P, C> {
    /// Puts a fetch aside until there is more to read, or its time has come.
    pub(super) fn park(&mut self, partition: &mut Partition<P>, id: FetchId) -> Progress {
        let Some(fetch) = self.fetches.get_mut(id) else { return Progress::Waiting };
        if !matches!(fetch.state, FetchState::Parked) {
            fetch.state = FetchState::Parked;
            partition.parked.push((id.index, id.generation));
            self.park_timers.push(ParkTimer { deadline: fetch.deadline, id, partition: partition.id });
        } else {
            // Woken and not satisfied: its timer still runs, its place in the list was given up.
            partition.parked.push((id.index, id.generation));
        }
        Progress::Waiting
    }

    /// The high watermark has moved: look at the parked fetches again.
    pub(super) fn wake_parked(&mut self, partition: &mut Partition<P>) {
        self.woken
            .extend(partition.parked.drain(..).map(|(index, generation)| FetchId { index, generation }));
    }

    /// Looks at fetches that were woken in this turn.
    pub(super) fn poll_woken<S: Service<Connection = C>>(
        &mut self,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        let mut woken = std::mem::take(&mut self.woken);
        for id in woken.drain(..) {
            self.advance_fetch(id, service, now, ops);
        }
        debug_assert!(self.woken.is_empty());
        self.woken = woken;
    }

    /// Answers parked fetches whose time has come with what there is.
    pub(super) fn expire_parked<S: Service<Connection = C>>(
        &mut self,
        service: &mut S,
        now: Now,
        ops: &mut Ops<P>,
    ) {
        while let Some(timer) = self.park_timers.peek()
            && timer.deadline <= now.mono
        {
            let ParkTimer { id, partition, .. } = *timer;
            self.park_timers.pop();
            // Also for fetches that have ended: nobody else takes them out of the list.
            if let Some(partition) = self.partitions.get_mut(partition) {
                partition
                    .parked
                    .retain(|&(index, generation)| (index, generation) != (id.index, id.generation));
            }
            let parked =
                self.fetches.get_mut(id).is_some_and(|fetch| matches!(fetch.state, FetchState::Parked));
            if !parked {
                continue;
            }
            if let Some(fetch) = self.fetches.get_mut(id) {
                fetch.state = FetchState::New;
            }
            self.advance_fetch(id, service, now, ops);
        }
    }

    /// Ends a handle's fetch that nobody waits for any more.
    pub(super) fn cancel_ticket(&mut self, ticket: Ticket, ops: &mut Ops<P>) {
        let found = self.fetches.ids().find(|(_, fetch)| fetch.origin == Origin::Ticket(ticket));
        if let Some((id, _)) = found {
            self.fetches.end(id);
            ops.replies.push((ticket, Reply::Fetched(Err(FetchError::Cancelled))));
        }
    }

    /// Ends every fetch of a partition that goes away. What connections are in the middle of ends with
    /// their connection.
    pub(super) fn end_fetches_of(&mut self, partition: PartitionId, error: &FetchError, ops: &mut Ops<P>) {
        let ids: Vec<_> = self
            .fetches
            .ids()
            .filter(|(_, fetch)| fetch.request.partition == partition)
            .map(|(id, fetch)| (id, fetch.origin))
            .collect();
        for (id, origin) in ids {
            match origin {
                Origin::Ticket(ticket) => {
                    self.fetches.end(id);
                    ops.replies.push((ticket, Reply::Fetched(Err(error.clone()))));
                }
                _ => {
                    if let Some(fetch) = self.fetches.get_mut(id) {
                        fetch.failure = Some(error.clone());
                        self.woken.push(id);
                    }
                }
            }
        }
    }
}
