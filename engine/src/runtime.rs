//! The loop that a shard's thread runs, and what connects its driver to the rest of the engine.

use rohrpost_engine_core::message::{Request, Ticket};
use rohrpost_engine_core::ops::{Driver, Ops};
use rohrpost_engine_core::service::Service;
use rohrpost_engine_core::shard::{Shard, ShardStats};
use rohrpost_engine_linux::helper::LinuxPlatform;
use rohrpost_engine_linux::inbox::{Mailbox, RequestRefused};

use crate::handle::Requests;

/// Operations of one kind that a turn may ask for before the queues grow.
pub(crate) const OPS_CAPACITY: usize = 1024;

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
