//! Who waits for which answer.
//!
//! A handle registers a waiter and sends its request with the waiter's ticket; the shard's thread hands
//! the answer over. Always holds: a ticket is answered at most once; a waiter whose shard ends gets
//! [`Answer`]'s absence, never silence.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use rohrpost_engine_core::error::{AppendError, FetchError, PartitionError};
use rohrpost_engine_core::fetch::FetchOutcome;
use rohrpost_engine_core::message::{Appended, Reply, Ticket, Watermarks};
use rohrpost_engine_core::platform::Platform;
use rohrpost_engine_core::shard::ShardStats;
use rohrpost_engine_core::types::Offset;
use rohrpost_engine_linux::helper::LinuxPlatform;
use rohrpost_engine_linux::inbox::ReplySink;
use rustc_hash::FxHashMap;

/// Record batches as they lie in the log, in memory.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// What this is, and where the log began and ended at the time.
    pub outcome: FetchOutcome,
    /// The bytes, in order. They keep the engine's memory occupied until they are dropped.
    pub pieces: Vec<Bytes>,
}

impl Fetched {
    /// Total length, bytes.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All bytes end to end: a copy, unless there is only one piece.
    pub fn to_bytes(&self) -> Bytes {
        match self.pieces.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => many.concat().into(),
        }
    }
}

/// A shard's answer, free of driver types.
pub(crate) enum Answer {
    Opened(Result<Watermarks, PartitionError>),
    Appended(Result<Appended, AppendError>),
    Fetched(Result<Fetched, FetchError>),
    Watermarks(Result<Watermarks, PartitionError>),
    RecordsDeleted(Result<Offset, PartitionError>),
    Deleted(Result<(), PartitionError>),
    Stats(Box<ShardStats>),
    Stopped(Result<(), PartitionError>),
}

/// One shard's waiters.
#[derive(Clone, Default)]
pub(crate) struct Waiters(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    waiting: FxHashMap<u64, oneshot::Sender<Answer>>,
    ended: bool,
    remarks: Vec<String>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The table is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket and its receiver; `None` once the shard has ended.
    pub(crate) fn register(&self) -> Option<(Ticket, oneshot::Receiver<Answer>)> {
        let mut state = self.lock();
        if state.ended {
            return None;
        }
        state.next += 1;
        let ticket = state.next;
        let (sender, receiver) = oneshot::channel();
        state.waiting.insert(ticket, sender);
        Some((Ticket(ticket), receiver))
    }

    /// Forgets a waiter whose request was not sent.
    pub(crate) fn forget(&self, ticket: Ticket) {
        self.lock().waiting.remove(&ticket.0);
    }

    /// Notes what an operator should know of the shard.
    pub(crate) fn push_remark(&self, remark: String) {
        self.lock().remarks.push(remark);
    }

    /// What has been noted so far.
    pub(crate) fn remarks(&self) -> Vec<String> {
        self.lock().remarks.clone()
    }

    /// The shard has ended: everybody who still waits learns it.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }
}

impl<P: LinuxPlatform> ReplySink<P> for Waiters {
    fn reply(&mut self, ticket: Ticket, reply: Reply<P>) {
        let sender = self.lock().waiting.remove(&ticket.0);
        if let Some(sender) = sender {
            // A dropped receiver has lost interest.
            let _ = sender.send(answer(reply));
        }
    }

    fn remark(&mut self, remark: &dyn std::fmt::Display) {
        self.push_remark(remark.to_string());
    }
}

fn answer<P: LinuxPlatform>(reply: Reply<P>) -> Answer {
    match reply {
        Reply::Opened(result) => Answer::Opened(result),
        Reply::Appended(result) => Answer::Appended(result),
        Reply::Fetched(result) => Answer::Fetched(result.map(|fetched| Fetched {
            outcome: fetched.outcome,
            pieces: fetched.pieces.into_iter().map(into_bytes::<P>).collect(),
        })),
        Reply::Watermarks(result) => Answer::Watermarks(result),
        Reply::RecordsDeleted(result) => Answer::RecordsDeleted(result),
        Reply::Deleted(result) => Answer::Deleted(result),
        Reply::Stats(stats) => Answer::Stats(stats),
        Reply::Stopped(result) => Answer::Stopped(result),
    }
}

fn into_bytes<P: Platform>(lease: P::Lease) -> Bytes {
    Bytes::from_owner(lease)
}

/// An answer to come. Await it on any runtime, or block with [`Pending::wait`]. Dropping it gives up
/// the answer, not the request: an append that was sent is carried out.
#[must_use = "an answer that nobody awaits is lost; the request is carried out all the same"]
pub struct Pending<T> {
    state: PendingState<T>,
}

enum PendingState<T> {
    Waiting { receiver: oneshot::Receiver<Answer>, convert: fn(Option<Answer>) -> T, on_drop: Option<OnDrop> },
    Ready(Option<T>),
}

/// What a dropped wait leads to.
type OnDrop = Box<dyn FnOnce() + Send>;

impl<T> Pending<T> {
    pub(crate) fn new(receiver: oneshot::Receiver<Answer>, convert: fn(Option<Answer>) -> T) -> Self {
        Self { state: PendingState::Waiting { receiver, convert, on_drop: None } }
    }

    pub(crate) fn ready(value: T) -> Self {
        Self { state: PendingState::Ready(Some(value)) }
    }

    pub(crate) fn on_drop(mut self, action: OnDrop) -> Self {
        if let PendingState::Waiting { on_drop, .. } = &mut self.state {
            *on_drop = Some(action);
        }
        self
    }

    /// Blocks the calling thread until the answer is there.
    ///
    /// # Panics
    /// If the answer was awaited before.
    pub fn wait(mut self) -> T {
        match std::mem::replace(&mut self.state, PendingState::Ready(None)) {
            PendingState::Waiting { receiver, convert, .. } => convert(receiver.recv().ok()),
            PendingState::Ready(value) => value.expect("an answer is taken once"),
        }
    }
}

impl<T: Unpin> Future for Pending<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let value = match &mut self.state {
            PendingState::Waiting { receiver, convert, .. } => match Pin::new(receiver).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(answer) => convert(answer.ok()),
            },
            PendingState::Ready(value) => value.take().expect("a finished future is not polled again"),
        };
        self.state = PendingState::Ready(None);
        Poll::Ready(value)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let PendingState::Waiting { on_drop, .. } = &mut self.state
            && let Some(action) = on_drop.take()
        {
            action();
        }
    }
}
