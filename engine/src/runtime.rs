//! The loop that a shard's thread runs, and what connects its driver to the rest of the engine.

use std::os::fd::BorrowedFd;

use rohrpost_engine_core::log::step::Step;
use rohrpost_engine_core::message::{Reply, Request, Ticket};
use rohrpost_engine_core::ops::{Driver, Event, Ops, Token};
use rohrpost_engine_core::service::Service;
use rohrpost_engine_core::shard::{Shard, ShardStats};
use rohrpost_engine_linux::helper::{LinuxPlatform, ShardHelper};
use rohrpost_engine_linux::inbox::{Inbox, Mailbox, ReplySink, RequestRefused};
use rohrpost_engine_linux::uring::{Outside, UringPlatform};

use crate::handle::Requests;
use crate::replies::Waiters;

/// Operations of one kind that a turn may ask for before the queues grow.
const OPS_CAPACITY: usize = 1024;

/// What a shard leaves behind when it has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardEnd {
    /// Its counters.
    pub stats: ShardStats,
    /// Turns it made.
    pub turns: u64,
}

/// Runs a shard until it has stopped.
pub(crate) fn run<D: Driver, S: Service>(
    driver: &mut D,
    shard: &mut Shard<D::Platform, S>,
) -> Result<ShardEnd, D::Error> {
    let mut ops = Ops::<D::Platform>::with_capacity(OPS_CAPACITY);
    let mut events = Vec::with_capacity(OPS_CAPACITY);
    let mut turns = 0;
    loop {
        let now = driver.now();
        shard.poll(now, &mut ops);
        if shard.is_stopped() {
            // What is still to be said: the answer to the shutdown, and answers to clients.
            driver.turn(&mut ops, &mut events, Some(now.mono))?;
            return Ok(ShardEnd { stats: shard.stats(), turns });
        }
        let deadline = shard.next_deadline(now);
        driver.turn(&mut ops, &mut events, deadline)?;
        turns += 1;
        let now = driver.now();
        for event in events.drain(..) {
            shard.handle_event(now, event, &mut ops);
        }
    }
}

impl<P: LinuxPlatform> Requests for Mailbox<P>
where
    Mailbox<P>: Send + Sync,
{
    fn request(&self, ticket: Ticket, request: Request) -> Result<(), RequestRefused> {
        Mailbox::request(self, ticket, request)
    }
}

/// The ring driver's way to helper threads and handles.
pub(crate) struct RingOutside {
    pub(crate) inbox: Inbox<UringPlatform>,
    pub(crate) helper: ShardHelper<UringPlatform>,
    pub(crate) waiters: Waiters,
}

impl Outside for RingOutside {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inbox.wake_fd()
    }

    fn park(&mut self) -> bool {
        !self.inbox.prepare_wait()
    }

    fn unpark(&mut self) {
        self.inbox.after_wait();
    }

    fn drain(&mut self, events: &mut Vec<Event<UringPlatform>>) {
        self.inbox.drain(events);
    }

    fn run_step(&mut self, token: Token, step: Box<Step<UringPlatform>>) {
        self.helper.submit_step(token, step);
    }

    fn grow(&mut self) {
        self.helper.grow();
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply<UringPlatform>) {
        self.waiters.reply(ticket, reply);
    }
}
