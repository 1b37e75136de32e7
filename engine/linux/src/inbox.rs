//! A shard's inbox: what other threads bring to it.
//!
//! Helper threads post what their work brought, handles post requests, other shards post letters; the
//! shard's driver drains them once a turn. Posting wakes the shard through an eventfd, but only when it is parked: a running shard
//! looks by itself. The queue keeps its capacity, so that posting does not allocate after warm-up.
//!
//! Always holds: a message posted before the shard parks is seen before it waits, one posted after
//! makes the eventfd readable. When an inbox is dropped, every shard it is connected to learns that this one
//! has ended, after everything this one has sent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::log::step::StepOutput;
use rohrpost_engine_core::message::{Letter, Reply, Request, ShardId, Ticket};
use rohrpost_engine_core::ops::{Event, Token};
use rohrpost_engine_core::platform::Platform;
use rohrpost_engine_core::types::ByteCount;
use rustix::event::{EventfdFlags, eventfd};

/// What another thread brings. Each is one [`Event`] of the same name, but for those that concern the
/// driver alone.
pub(crate) enum Message<P: Platform> {
    Written(Token, Result<ByteCount, Errno>),
    Synced(Token, Result<(), Errno>),
    ReadDone(Token, P::Chunk, Result<usize, Errno>),
    /// Bytes asked for, and bytes in the pipe.
    Filled(Token, usize, Result<usize, Errno>),
    StepDone(Token, Box<StepOutput<P>>),
    Grown(P::Slab),
    GrowFailed(Errno),
    /// A batch of lent pages has been replaced: the driver looks which.
    PagesReplaced,
    Request(Ticket, Request),
    Letter(ShardId, Letter<P>),
    ShardEnded(ShardId),
}

impl<P: Platform> Message<P> {
    fn into_event(self) -> Option<Event<P>> {
        Some(match self {
            Message::Written(token, result) => Event::Written { token, result },
            Message::Synced(token, result) => Event::Synced { token, result },
            Message::ReadDone(token, chunk, result) => Event::ReadDone { token, chunk, result },
            Message::Filled(token, asked, result) => Event::Filled { token, asked, result },
            Message::StepDone(token, output) => Event::StepDone { token, output },
            Message::Grown(slab) => Event::Grown(slab),
            Message::GrowFailed(errno) => Event::GrowFailed(errno),
            Message::PagesReplaced => return None,
            Message::Request(ticket, request) => Event::Request(ticket, request),
            Message::Letter(from, letter) => Event::Letter(from, letter),
            Message::ShardEnded(shard) => Event::ShardEnded(shard),
        })
    }
}

/// A request did not reach the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// As many requests as the shard takes are waiting already.
    #[error("too many requests are waiting for the shard; retry later")]
    Full,
    /// The shard has ended.
    #[error("the shard has stopped")]
    Closed,
}

/// Receives the shard's answers to the requests of its mailbox, on the shard's thread.
pub trait ReplySink<P: Platform>: 'static {
    /// Takes the answer to the request that was sent with `ticket`.
    fn reply(&mut self, ticket: Ticket, reply: Reply<P>);

    /// Takes note of something that an operator should know, off the data path.
    fn remark(&mut self, remark: &dyn std::fmt::Display) {
        let _ = remark;
    }
}

struct Shared<P: Platform> {
    queue: Mutex<Queue<P>>,
    parked: AtomicBool,
    wake: OwnedFd,
    requests_max: usize,
}

struct Queue<P: Platform> {
    messages: Vec<Message<P>>,
    /// How many of `messages` are requests.
    requests: usize,
    open: bool,
}

impl<P: Platform> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, Queue<P>> {
        // Nothing panics while it is held, and a queue is whole after every statement.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // The mutex orders this after the push: see `Inbox::prepare_wait`.
        if self.parked.swap(false, Ordering::SeqCst) {
            // The counter overflows only after 2^64 wake-ups that nobody consumed.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// The sending end; clones share it.
pub struct Mailbox<P: Platform>(Arc<Shared<P>>);

impl<P: Platform> Clone for Mailbox<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Platform> Mailbox<P> {
    /// Sends a request; its answer goes to the shard's [`ReplySink`] with the same ticket.
    ///
    /// # Errors
    /// [`RequestRefused`]; the request is dropped.
    pub fn request(&self, ticket: Ticket, request: Request) -> Result<(), RequestRefused> {
        let mut queue = self.0.lock();
        if !queue.open {
            return Err(RequestRefused::Closed);
        }
        if queue.requests == self.0.requests_max {
            return Err(RequestRefused::Full);
        }
        queue.requests += 1;
        queue.messages.push(Message::Request(ticket, request));
        drop(queue);
        self.0.wake();
        Ok(())
    }

    /// Brings what a helper's work has led to. Dropped, with its memory, if the shard has ended.
    pub(crate) fn post(&self, message: Message<P>) {
        let mut queue = self.0.lock();
        if !queue.open {
            // Outside the lock: the message may hold the last reference to much.
            drop(queue);
            return drop(message);
        }
        queue.messages.push(message);
        drop(queue);
        self.0.wake();
    }
}

/// The receiving end; one per shard, held by its driver. Closes the mailbox when dropped.
pub struct Inbox<P: Platform> {
    shared: Arc<Shared<P>>,
    /// Exchanged with the queue's vector at every drain, so that neither ever shrinks.
    taken: Vec<Message<P>>,
    /// This shard's number, and the mailboxes of all, by number.
    me: ShardId,
    shards: Vec<Mailbox<P>>,
}

impl<P: Platform> Inbox<P> {
    /// An inbox that takes up to `requests_max` requests at a time. Messages of helper threads are
    /// limited by the operations that cause them.
    ///
    /// # Errors
    /// The system's, mostly `EMFILE`.
    pub fn new(requests_max: usize) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let queue = Mutex::new(Queue { messages: Vec::new(), requests: 0, open: true });
        let shared = Arc::new(Shared { queue, parked: AtomicBool::new(false), wake, requests_max });
        Ok(Self { shared, taken: Vec::new(), me: ShardId(0), shards: Vec::new() })
    }

    /// Bytes of memory that so many requests take while they wait, their payload excepted.
    pub const fn memory_len(requests_max: usize) -> usize {
        table_len::<Message<P>>(requests_max)
    }

    /// The inboxes of an engine's shards, by number; each can write to all.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_shards(count: usize, requests_max: usize) -> std::io::Result<Vec<Self>> {
        let mut inboxes = Vec::with_capacity(count);
        for _ in 0..count {
            inboxes.push(Self::new(requests_max)?);
        }
        let shards: Vec<_> = inboxes.iter().map(Self::mailbox).collect();
        for (index, inbox) in inboxes.iter_mut().enumerate() {
            inbox.me = ShardId(index as u16);
            inbox.shards.clone_from(&shards);
        }
        Ok(inboxes)
    }

    /// Brings letters to other shards, and empties `letters`. Those to a shard that has ended are dropped: it
    /// has said so, or is about to.
    pub fn send(&self, letters: &mut Vec<(ShardId, Letter<P>)>) {
        for (to, letter) in letters.drain(..) {
            match self.shards.get(usize::from(to.0)) {
                Some(mailbox) => mailbox.post(Message::Letter(self.me, letter)),
                None => debug_assert!(false, "{to:?} of {} shards", self.shards.len()),
            }
        }
    }

    /// A sending end.
    pub fn mailbox(&self) -> Mailbox<P> {
        Mailbox(Arc::clone(&self.shared))
    }

    /// Becomes readable when something is posted after [`Self::prepare_wait`]. Non-blocking; never read
    /// here, so watch it edge-triggered.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Announces that the shard is about to wait. `true`: something is queued already, do not wait.
    pub fn prepare_wait(&self) -> bool {
        // A sender that pushes after the look below sees the flag: it takes the mutex after us.
        self.shared.parked.store(true, Ordering::SeqCst);
        let queued = !self.shared.lock().messages.is_empty();
        if queued {
            self.after_wait();
        }
        queued
    }

    /// Announces that the shard runs again.
    pub fn after_wait(&self) {
        self.shared.parked.store(false, Ordering::SeqCst);
    }

    /// Moves everything posted so far to `events`, in the order of posting.
    pub fn drain(&mut self, events: &mut Vec<Event<P>>) {
        debug_assert!(self.taken.is_empty());
        {
            let mut queue = self.shared.lock();
            queue.requests = 0;
            std::mem::swap(&mut queue.messages, &mut self.taken);
        }
        events.extend(self.taken.drain(..).filter_map(Message::into_event));
    }
}

impl<P: Platform> Drop for Inbox<P> {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.open = false;
        let left = std::mem::take(&mut queue.messages);
        drop(queue);
        drop(left);
        for (index, mailbox) in self.shards.iter().enumerate() {
            if index != usize::from(self.me.0) {
                mailbox.post(Message::ShardEnded(self.me));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::poll::PollPlatform;

    type TestInbox = Inbox<PollPlatform>;

    fn readable(inbox: &TestInbox, wait_s: i64) -> bool {
        let mut fds = [PollFd::new(&inbox.shared.wake, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: wait_s, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn only_a_parked_shard_is_woken() {
        let mut inbox = TestInbox::new(8).unwrap();
        let mailbox = inbox.mailbox();
        mailbox.request(Ticket(1), Request::Shutdown).unwrap();
        assert!(!readable(&inbox, 0));
        assert!(inbox.prepare_wait(), "a queued message must prevent the wait");
        mailbox.request(Ticket(2), Request::Shutdown).unwrap();
        assert!(!readable(&inbox, 0));
        let mut events = Vec::new();
        inbox.drain(&mut events);
        let tickets: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Request(ticket, _) => ticket.0,
                _ => panic!("not a request"),
            })
            .collect();
        assert_eq!(tickets, [1, 2]);
        assert!(!inbox.prepare_wait());
        mailbox.post(Message::GrowFailed(Errno::NOMEM));
        assert!(readable(&inbox, 0));
        inbox.after_wait();
    }

    #[test]
    fn requests_are_limited_and_refused_after_the_end() {
        let mut inbox = TestInbox::new(2).unwrap();
        let mailbox = inbox.mailbox();
        mailbox.request(Ticket(1), Request::Shutdown).unwrap();
        mailbox.request(Ticket(2), Request::Shutdown).unwrap();
        assert_eq!(mailbox.request(Ticket(3), Request::Shutdown), Err(RequestRefused::Full));
        mailbox.post(Message::GrowFailed(Errno::NOMEM));
        let mut events = Vec::new();
        inbox.drain(&mut events);
        assert_eq!(events.len(), 3);
        mailbox.request(Ticket(3), Request::Shutdown).unwrap();
        drop(inbox);
        assert_eq!(mailbox.request(Ticket(4), Request::Shutdown), Err(RequestRefused::Closed));
        mailbox.post(Message::GrowFailed(Errno::NOMEM));
    }

    /// Senders race a shard that parks after every drain: nothing is lost and no wake-up is missed.
    #[test]
    fn no_wake_up_is_lost() {
        const EACH: u64 = 20_000;
        let mut inbox = TestInbox::new(usize::MAX).unwrap();
        let senders: Vec<_> = (0..2)
            .map(|sender| {
                let mailbox = inbox.mailbox();
                std::thread::spawn(move || {
                    for count in 0..EACH {
                        mailbox.request(Ticket(sender * EACH + count), Request::Shutdown).unwrap();
                        if count % 64 == 0 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let (mut seen, mut events) = (0, Vec::new());
        while seen < 2 * EACH {
            if !inbox.prepare_wait() {
                assert!(readable(&inbox, 60), "the shard slept through a message");
                rustix::io::read(&inbox.shared.wake, &mut [0; 8]).unwrap();
                inbox.after_wait();
            }
            inbox.drain(&mut events);
            seen += events.drain(..).count() as u64;
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}
