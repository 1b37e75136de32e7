//! Handles: the engine from any thread.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rohrpost_engine_core::error::{AppendError, FetchError, PartitionError};
use rohrpost_engine_core::fetch::FetchRequest;
use rohrpost_engine_core::format::names::TopicPartition;
use rohrpost_engine_core::log::LogConfig;
use rohrpost_engine_core::message::{Appended, PartitionId, Request, ShardId, Ticket, Watermarks};
use rohrpost_engine_core::shard::ShardStats;
use rohrpost_engine_core::types::{ByteCount, Offset};
use rohrpost_engine_linux::inbox::RequestRefused;
use rohrpost_engine_linux::stats::DriverStats;

use crate::error::RequestError;
use crate::replies::{Answer, Fetched, Pending, Waiters};

/// Sends requests to one shard, whatever its driver.
pub(crate) trait Requests: Send + Sync {
    fn request(&self, ticket: Ticket, request: Request) -> Result<(), RequestRefused>;
}

/// The way to one shard.
#[derive(Clone)]
pub(crate) struct ShardLink {
    pub(crate) requests: Arc<dyn Requests>,
    pub(crate) waiters: Waiters,
    /// Set once the shard's driver exists.
    pub(crate) stats: Arc<OnceLock<DriverStats>>,
}

impl ShardLink {
    fn send<T, E: std::error::Error>(
        &self,
        request: Request,
        convert: fn(Option<Answer>) -> Result<T, RequestError<E>>,
    ) -> (Ticket, Pending<Result<T, RequestError<E>>>) {
        let Some((ticket, receiver)) = self.waiters.register() else {
            return (Ticket(0), Pending::ready(Err(RequestError::Stopped)));
        };
        match self.requests.request(ticket, request) {
            Ok(()) => (ticket, Pending::new(receiver, convert)),
            Err(refused) => {
                self.waiters.forget(ticket);
                let error = match refused {
                    RequestRefused::Full => RequestError::Full,
                    RequestRefused::Closed => RequestError::Stopped,
                };
                (ticket, Pending::ready(Err(error)))
            }
        }
    }

    /// Tells the shard to end at once, closing nothing.
    pub(crate) fn abandon(&self) {
        // A shard that has ended already needs no telling.
        let _ = self.requests.request(Ticket(0), Request::Abandon);
    }

    /// Asks the shard to close everything and end.
    pub(crate) fn shutdown(&self) -> Pending<Result<(), RequestError<PartitionError>>> {
        self.send(Request::Shutdown, |answer| match answer {
            Some(Answer::Stopped(result)) => result.map_err(RequestError::Refused),
            _ => Err(RequestError::Stopped),
        })
        .1
    }
}

struct Shared {
    shards: Vec<ShardLink>,
    next_id: AtomicU32,
}

/// The engine from any thread: cheap to clone, usable from any runtime or from none.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("shards", &self.0.shards.len()).finish_non_exhaustive()
    }
}

impl Handle {
    pub(crate) fn new(shards: Vec<ShardLink>) -> Self {
        Self(Arc::new(Shared { shards, next_id: AtomicU32::new(0) }))
    }

    pub(crate) fn shards(&self) -> &[ShardLink] {
        &self.0.shards
    }

    /// Opens a partition, or creates it where it does not exist. After an unclean stop this is where
    /// recovery happens.
    ///
    /// # Errors
    /// See [`PartitionError`]: an invalid name or setting, a lock another process holds, a corrupt
    /// segment, a file system without direct I/O.
    pub async fn open_partition(
        &self,
        name: &TopicPartition,
        config: LogConfig,
    ) -> Result<Partition, RequestError<PartitionError>> {
        let (opened, pending) = self.begin_open(name, config);
        pending.await.map(|_| opened)
    }

    /// As [`Handle::open_partition`], blocking the calling thread.
    ///
    /// # Errors
    /// As [`Handle::open_partition`].
    pub fn open_partition_blocking(
        &self,
        name: &TopicPartition,
        config: LogConfig,
    ) -> Result<Partition, RequestError<PartitionError>> {
        let (opened, pending) = self.begin_open(name, config);
        pending.wait().map(|_| opened)
    }

    /// What each shard has counted since its start, in the order of the shards. Asks each of them: not for every
    /// request of a client.
    ///
    /// # Errors
    /// [`RequestError::Stopped`] if a shard has ended, [`RequestError::Full`] if one takes no more requests now.
    pub async fn stats(&self) -> Result<Vec<ShardStats>, RequestError<Infallible>> {
        let mut stats = Vec::with_capacity(self.0.shards.len());
        for pending in self.begin_stats() {
            stats.push(pending.await?);
        }
        Ok(stats)
    }

    /// As [`Handle::stats`], blocking the calling thread.
    ///
    /// # Errors
    /// As [`Handle::stats`].
    pub fn stats_blocking(&self) -> Result<Vec<ShardStats>, RequestError<Infallible>> {
        self.begin_stats().into_iter().map(Pending::wait).collect()
    }

    fn begin_stats(&self) -> Vec<Pending<Result<ShardStats, RequestError<Infallible>>>> {
        let ask = |link: &ShardLink| {
            let request = Request::Stats(Box::default());
            let (_, pending) = link.send(request, |answer| match answer {
                Some(Answer::Stats(stats)) => Ok(*stats),
                _ => Err(RequestError::Stopped),
            });
            pending
        };
        self.0.shards.iter().map(ask).collect()
    }

    fn begin_open(
        &self,
        name: &TopicPartition,
        config: LogConfig,
    ) -> (Partition, Pending<Result<Watermarks, RequestError<PartitionError>>>) {
        let id = PartitionId(self.0.next_id.fetch_add(1, Ordering::Relaxed));
        // `check` in the engine bounds how many there are.
        let owner = ShardId::owner(id, self.0.shards.len() as u16);
        let link = self.0.shards[usize::from(owner.0)].clone();
        let request = Request::Open { partition: id, name: name.clone(), config };
        let (_, pending) = link.send(request, |answer| match answer {
            Some(Answer::Opened(result)) => result.map_err(RequestError::Refused),
            _ => Err(RequestError::Stopped),
        });
        (Partition { id, name: name.clone(), link }, pending)
    }
}

/// One open partition, from any thread.
#[derive(Clone)]
pub struct Partition {
    id: PartitionId,
    name: TopicPartition,
    link: ShardLink,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition({}, {:?})", self.name, self.id)
    }
}

impl Partition {
    /// Its number in this engine, as services on the shards see it.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &TopicPartition {
        &self.name
    }

    /// Appends one or more whole record batches (Kafka's format 2, end to end). Resolves when they are
    /// durable at the partition's level. All of them are appended, or none; their base offsets and
    /// leader epochs are assigned by the log. Appends of one handle keep their order.
    ///
    /// # Errors
    /// See [`AppendError`]; after [`RequestError::Stopped`] the batches may or may not be in the log.
    pub fn append(&self, batches: Bytes) -> Pending<Result<Appended, RequestError<AppendError>>> {
        let request = Request::Append { partition: self.id, batches };
        let (_, pending) = self.link.send(request, |answer| match answer {
            Some(Answer::Appended(result)) => result.map_err(RequestError::Refused),
            _ => Err(RequestError::Stopped),
        });
        pending
    }

    /// Reads up to `len_max` bytes from the batch that contains `offset` on, without waiting for more.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn fetch(
        &self,
        offset: Offset,
        len_max: ByteCount,
    ) -> Pending<Result<Fetched, RequestError<FetchError>>> {
        self.fetch_with(FetchRequest::new(self.id, offset, len_max))
    }

    /// Reads as the request says; it may wait for data. Dropping the answer ends the wait.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn fetch_with(&self, request: FetchRequest) -> Pending<Result<Fetched, RequestError<FetchError>>> {
        let request = Request::Fetch(FetchRequest { partition: self.id, ..request });
        let (ticket, pending) = self.link.send(request, |answer| match answer {
            Some(Answer::Fetched(result)) => result.map_err(RequestError::Refused),
            _ => Err(RequestError::Stopped),
        });
        let requests = Arc::clone(&self.link.requests);
        pending.on_drop(Box::new(move || {
            // A stopped shard has nothing left to cancel; nobody awaits this request's own answer.
            let _ = requests.request(Ticket(0), Request::CancelFetch(ticket));
        }))
    }

    /// Where the log begins and ends.
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn watermarks(&self) -> Pending<Result<Watermarks, RequestError<PartitionError>>> {
        let (_, pending) = self.link.send(Request::Watermarks(self.id), |answer| match answer {
            Some(Answer::Watermarks(result)) => result.map_err(RequestError::Refused),
            _ => Err(RequestError::Stopped),
        });
        pending
    }

    /// Raises the log start offset to `before`; -1 means the high watermark. Resolves to the new log
    /// start offset once it is durable.
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn delete_records(&self, before: Offset) -> Pending<Result<Offset, RequestError<PartitionError>>> {
        let request = Request::DeleteRecords { partition: self.id, before };
        let (_, pending) = self.link.send(request, |answer| match answer {
            Some(Answer::RecordsDeleted(result)) => result.map_err(RequestError::Refused),
            _ => Err(RequestError::Stopped),
        });
        pending
    }

    /// Removes the partition and its files. Its readers and writers get an error.
    ///
    /// # Errors
    /// See [`PartitionError`].
    pub fn delete(&self) -> Pending<Result<(), RequestError<PartitionError>>> {
        let (_, pending) = self.link.send(Request::Delete(self.id), |answer| match answer {
            Some(Answer::Deleted(result)) => result.map_err(RequestError::Refused),
            _ => Err(RequestError::Stopped),
        });
        pending
    }
}
