//! One life of the engine: its shards, each with a driver and clients of its own, and the letters between them, all on
//! one clock.
//!
//! Owns everything that ends with the process. Always holds: time never goes back; letters from one shard to another
//! arrive in the order of sending, late; a shard that has ended is never turned again, and the others hear of it after
//! its last letter. A turn is one shard's; which one is next is for the seed to say, among those with something to do.

use std::sync::Arc;

use rohrpost_engine_core::log::log_dir::LogDir;
use rohrpost_engine_core::log::step::Step;
use rohrpost_engine_core::message::{Request, ShardId, Ticket};
use rohrpost_engine_core::ops::{Driver, Event, Now, Ops};
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::Timestamp;

use crate::clients::Clients;
use crate::coverage::{Happening, State};
use crate::disk::SimDisk;
use crate::driver::{Ended, SimDriver};
use crate::fault::Delays;
use crate::memory::SimArena;
use crate::platform::SimPlatform;
use crate::prng::Prng;
use crate::service::SimService;
use crate::settings::Settings;
use crate::workload::Workload;

/// A shard, and what is its own.
struct Node {
    shard: Shard<SimPlatform, SimService>,
    driver: SimDriver,
    clients: Clients,
    ops: Ops<SimPlatform>,
    events: Vec<Event<SimPlatform>>,
    /// The shard has stopped, and the others have been told.
    ended: bool,
}

/// See the module documentation.
pub(crate) struct Life {
    nodes: Vec<Node>,
    started: Now,
    now: Now,
    prng: Prng,
    /// Turns made so far.
    pub(crate) turns: u64,
}

impl Life {
    /// Starts the shards over an open log directory.
    pub(crate) fn start(
        settings: &Settings,
        disk: &SimDisk,
        log_dir: &Arc<LogDir<SimDisk>>,
        mut prng: Prng,
        now: Now,
    ) -> Self {
        let nodes = (0..settings.shards)
            .map(|me| {
                let steps = log_dir.clone();
                let run_step = Box::new(move |step: Step<SimPlatform>| step.run(&steps));
                let (delays, memory) = (settings.delays, settings.memory);
                let driver = SimDriver::new(disk.clone(), run_step, prng.fork(), delays, memory, now);
                let service = SimService::of(settings.partitions.len());
                let shard = Shard::new(settings.limits.clone(), SimArena::default(), service)
                    .among(ShardId(me), settings.shards);
                let clients = Clients::new(prng.fork(), settings.limits.request_len_max.as_usize());
                let (ops, events) = (Ops::with_capacity(64), Vec::new());
                let mut node = Node { shard, driver, clients, ops, events, ended: false };
                node.shard.poll(now, &mut node.ops);
                node
            })
            .collect();
        Self { nodes, started: now, now, prng, turns: 0 }
    }

    /// The time.
    pub(crate) const fn now(&self) -> Now {
        self.now
    }

    /// How many shards there are.
    pub(crate) const fn shards(&self) -> usize {
        self.nodes.len()
    }

    /// Whether every shard has stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.nodes.iter().all(|node| node.ended)
    }

    /// One turn of one shard. `Err` if this life has ended by force.
    pub(crate) fn turn(&mut self, workload: &mut Workload) -> Result<(), Ended> {
        self.turns += 1;
        let Some((at, woken)) = self.next_node() else { return Ok(()) };
        let before = self.now;
        let node = &mut self.nodes[at];
        node.driver.wait_from(before);
        let states = workload.states();
        let states = if node.driver.keeps_up() { states.and(State::Upkeep) } else { states };
        workload.disk.storage().states = states;
        let deadline = if woken { Some(before.mono) } else { node.shard.next_deadline(before) };
        let turned = node.driver.turn(&mut node.ops, &mut node.events, deadline);
        self.now = node.driver.now();
        turned?;
        // A clock may be slow before it is set right: as fast again as time itself is still honest.
        let elapsed = (self.now.mono.get() - self.started.mono.get()) / 1_000_000;
        let latest = Timestamp::new(self.started.wall.get().saturating_add_unsigned(2 * elapsed + 1));
        for event in node.events.drain(..) {
            node.shard.handle_event(self.now, event, &mut node.ops);
        }
        node.shard.poll(self.now, &mut node.ops);
        for (ticket, reply) in node.ops.replies.drain(..) {
            workload.handle_reply(ticket, reply, self.now);
        }
        workload.handle_turn(node.shard.service().take_marks(), latest);
        // A connection that stalls while memory is short is closed.
        workload.stalled |= node.shard.stats().connections_stalled > 0;
        node.clients.receive(&mut node.driver, node.shard.service(), workload, self.now);
        self.post_letters(at);
        Ok(())
    }

    /// Mostly the shard that has something to do first; sometimes another one makes it wait, woken for nothing: each
    /// sleeps by itself, so that one with nothing to do does not hold up the others until its own deadline.
    fn next_node(&mut self) -> Option<(usize, bool)> {
        let now = self.now;
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|at| !self.nodes[*at].ended).collect();
        if alive.len() > 1 && self.prng.one_in(8) {
            return Some((*self.prng.pick(&alive), true));
        }
        let wake = |at: &usize| {
            let node = &self.nodes[*at];
            let deadline = node.shard.next_deadline(now).map(|deadline| deadline.get());
            let soonest = [node.driver.next_due(), deadline].into_iter().flatten().min();
            let at_once = !node.ops.is_empty() || node.shard.service().is_due();
            let due = if at_once { 0 } else { soonest.unwrap_or(u64::MAX) };
            due.max(now.mono.get())
        };
        alive.into_iter().min_by_key(wake).map(|at| (at, false))
    }

    fn post_letters(&mut self, at: usize) {
        let from = ShardId(at as u16);
        let letters = std::mem::take(&mut self.nodes[at].ops.to_shards);
        for (to, letter) in letters {
            let other = &mut self.nodes[usize::from(to.0)];
            if !other.ended {
                other.driver.post(from, Event::Letter(from, letter), self.now);
            }
        }
        if self.nodes[at].shard.is_stopped() && !self.nodes[at].ended {
            self.nodes[at].ended = true;
            for other in self.nodes.iter_mut().filter(|node| !node.ended) {
                other.driver.post(from, Event::ShardEnded(from), self.now);
            }
        }
    }

    /// Sends a request over a connection of any shard, if it is of the kind and a connection takes it. Returns it
    /// otherwise.
    pub(crate) fn send(&mut self, ticket: Ticket, request: Request) -> Option<(Ticket, Request)> {
        let at = self.prng.index(self.nodes.len());
        let node = &mut self.nodes[at];
        if node.ended {
            return Some((ticket, request));
        }
        node.driver.wait_from(self.now);
        node.clients.send(&mut node.driver, node.shard.service(), ticket, request)
    }

    /// Delivers a request to a shard's mailbox in `delay` nanoseconds.
    pub(crate) fn request_in(&mut self, delay: u64, shard: usize, ticket: Ticket, request: Request) {
        let driver = &mut self.nodes[shard].driver;
        driver.wait_from(self.now);
        driver.request_in(delay, ticket, request);
    }

    /// One client of some shard closes its connection, or resets it.
    pub(crate) fn hang_up(&mut self) {
        let at = self.prng.index(self.nodes.len());
        let node = &mut self.nodes[at];
        node.driver.wait_from(self.now);
        node.clients.hang_up(&mut node.driver);
    }

    /// How long operations take from now on.
    pub(crate) fn set_delays(&mut self, delays: Delays) {
        self.nodes.iter_mut().for_each(|node| node.driver.delays = delays);
    }

    /// Lets time pass in which nobody runs.
    pub(crate) fn advance(&mut self, nanos: u64) {
        let driver = &mut self.nodes[0].driver;
        driver.wait_from(self.now);
        driver.advance(nanos);
        self.now = driver.now();
    }

    /// Moves the wall clock against the monotonic one, milliseconds.
    pub(crate) fn shift_wall(&mut self, millis: i64) {
        for node in &mut self.nodes {
            node.driver.wait_from(self.now);
            node.driver.shift_wall(millis);
        }
        self.now = self.nodes[0].driver.now();
    }

    /// Everything of this life is dropped; its memory must have come home.
    pub(crate) fn bury(self, workload: &Workload) {
        let asked = |node: &Node| node.shard.stats().fetches_at_others + node.shard.stats().appends_at_others;
        if self.nodes.iter().map(asked).sum::<u64>() > 0 {
            workload.note(Happening::AskedAnotherShard);
        }
        let mut drivers: Vec<SimDriver> = self.nodes.into_iter().map(|node| node.driver).collect();
        drivers.iter_mut().for_each(SimDriver::abandon);
        let taken: usize = drivers.iter().map(SimDriver::memory_taken).sum();
        assert!(taken == 0, "{taken} chunks or bounce blocks have not come home");
    }
}
