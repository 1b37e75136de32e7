//! Core's `Driver` over the simulated disk: every operation completes after a drawn delay, in whatever order the
//! delays give, and time passes only when nothing is due.
//!
//! Owns the virtual clocks and every operation under way with its memory. Holds no logic about durability or order,
//! but checks what the seam asks of the core: aligned direct transfers, whole lengths, reads into memory not frozen.

use std::collections::{BTreeMap, VecDeque};

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::log::step::{Step, StepOutput};
use rohrpost_engine_core::message::{Request, ShardId, Ticket};
use rohrpost_engine_core::ops::{DiskOp, Driver, Event, Now, Ops, Read, Token, Write};
use rohrpost_engine_core::platform::{Chunk, DIRECT_IO_ALIGN, Lease};
use rohrpost_engine_core::types::{ByteCount, Nanos, Timestamp};

use crate::coverage::{Harm, State};
use crate::disk::SimDisk;
use crate::fault::{Delays, Lie};
use crate::memory::{Memory, SimLease};
use crate::net::Net;
use crate::order::{partition_of, result_number, shuffle_but_requests, state_of};
use crate::platform::SimPlatform;
use crate::prng::Prng;
use crate::slab::{SimSlab, SlabWatch};
use crate::storage::Pending;

/// Executes steps: the world hands in core's own code over the simulated disk.
pub type StepRunner = Box<dyn FnMut(Step<SimPlatform>) -> StepOutput<SimPlatform>>;

/// How long a turn itself takes at the most, nanoseconds: what completes within it arrives together.
const TURN_NS_MAX: u64 = 200_000;

/// How long a letter between shards takes at the most, nanoseconds.
const POST_NS_MAX: u64 = 5_000_000;

/// Something that will happen.
enum Job {
    Write(Box<Write<SimPlatform>>, Pending),
    Sync(Token, Pending),
    Read(Read<SimPlatform>),
    StepStart(String),
    /// With whether it was one of upkeep.
    StepDone(Token, Box<StepOutput<SimPlatform>>, bool),
    Grow,
    /// A page of a slab is replaced.
    Replace(usize, usize),
    Request(Ticket, Request),
    /// What another shard has sent.
    Post(Box<Event<SimPlatform>>),
}

/// The power is gone, or the process: no turn can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this life has ended")]
pub struct Ended;

/// The simulated driver of one shard.
pub struct SimDriver {
    disk: SimDisk,
    run_step: StepRunner,
    prng: Prng,
    /// How long operations take from now on.
    pub delays: Delays,
    memory: Memory,
    slabs: Vec<SlabWatch>,
    now: u64,
    wall_at_zero: i64,
    seq: u64,
    jobs: BTreeMap<(u64, u64), Job>,
    steps: BTreeMap<String, VecDeque<(Token, Step<SimPlatform>)>>,
    /// Steps of upkeep that have no answer yet.
    upkeep: usize,
    /// When the last step of a partition is answered.
    step_order: BTreeMap<String, u64>,
    /// When the last thing from another shard arrives.
    post_order: BTreeMap<u16, u64>,
    /// Writes that never complete, for [`Lie::LostCompletion`].
    lost: Vec<Write<SimPlatform>>,
    /// Memory that never comes back, for [`Lie::LeakedMemory`].
    leaked: Vec<SimLease>,
    /// The connections.
    pub net: Net,
}

impl SimDriver {
    /// A driver that starts at this time.
    pub fn new(
        disk: SimDisk,
        run_step: StepRunner,
        prng: Prng,
        delays: Delays,
        memory: Memory,
        now: Now,
    ) -> Self {
        let wall_at_zero = now.wall.get() - (now.mono.get() / 1_000_000) as i64;
        let mut prng = prng;
        let net = Net::new(prng.fork());
        Self {
            disk,
            run_step,
            prng,
            delays,
            memory,
            slabs: Vec::new(),
            now: now.mono.get(),
            wall_at_zero,
            seq: 0,
            jobs: BTreeMap::new(),
            steps: BTreeMap::new(),
            upkeep: 0,
            step_order: BTreeMap::new(),
            post_order: BTreeMap::new(),
            lost: Vec::new(),
            leaked: Vec::new(),
            net,
        }
    }

    /// Delivers a request in `delay` nanoseconds.
    pub fn request_in(&mut self, delay: u64, ticket: Ticket, request: Request) {
        self.push(delay, Job::Request(ticket, request));
    }

    /// Delivers what another shard has sent, in a while, behind everything it has sent before.
    pub fn post(&mut self, from: ShardId, event: Event<SimPlatform>, now: Now) {
        self.wait_from(now);
        let due = self.now + self.prng.magnitude(1, POST_NS_MAX);
        let order = self.post_order.entry(from.0).or_default();
        *order = due.max(*order);
        let delay = *order - self.now;
        self.push(delay, Job::Post(Box::new(event)));
    }

    /// Whether segments are being made, extended, sealed or indexed.
    pub const fn keeps_up(&self) -> bool {
        self.upkeep > 0
    }

    /// The clock stands at `now` at least.
    pub fn wait_from(&mut self, now: Now) {
        self.now = self.now.max(now.mono.get());
    }

    /// When the next thing happens of itself.
    pub fn next_due(&self) -> Option<u64> {
        let first = self.jobs.keys().next().map(|(due, _)| *due);
        [first, self.net.next_due()].into_iter().flatten().min()
    }

    /// The monotonic clock.
    pub const fn now_ns(&self) -> u64 {
        self.now
    }

    /// Granules and bounce blocks that somebody still owns.
    pub fn memory_taken(&self) -> usize {
        self.slabs.iter().map(SlabWatch::taken).sum()
    }

    /// Moves the wall clock against the monotonic one, milliseconds.
    pub const fn shift_wall(&mut self, millis: i64) {
        self.wall_at_zero += millis;
    }

    /// Lets time pass.
    pub const fn advance(&mut self, nanos: u64) {
        self.now += nanos;
    }

    /// Drops everything under way, as the end of a life does.
    pub fn abandon(&mut self) {
        self.jobs.clear();
        self.steps.clear();
        self.lost.clear();
        self.net.abandon();
    }

    fn push(&mut self, delay: u64, job: Job) {
        self.seq += 1;
        self.jobs.insert((self.now + delay, self.seq), job);
    }

    fn push_drawn(&mut self, job: Job) {
        let delay = self.draw_delay();
        self.push(delay, job);
    }

    fn draw_delay(&mut self) -> u64 {
        let delay = self.delays.draw(&mut self.prng);
        if self.delays.is_stall(delay) {
            self.disk.storage().suffer(Harm::Stalled);
        }
        delay
    }

    fn note(&self, what: &str, numbers: &[u64]) {
        self.disk.storage().trace.note(what, numbers);
    }

    fn submit(&mut self, ops: &mut Ops<SimPlatform>) {
        for op in ops.disk.drain(..) {
            match op {
                DiskOp::Write(write) => self.submit_write(write),
                DiskOp::Sync { token, file } => {
                    self.note("sync", &[token.0, file.description().inode.0]);
                    let pending = self.disk.storage().begin_sync(file.description());
                    self.push_drawn(Job::Sync(token, pending));
                }
                DiskOp::Read(read) => {
                    let numbers =
                        [read.token.0, read.file.description().inode.0, read.position.get(), read.len as u64];
                    self.note("read", &numbers);
                    self.push_drawn(Job::Read(read));
                }
                DiskOp::Fill(fill) => {
                    let numbers = [fill.conn.slot.into(), fill.position.get(), fill.len as u64];
                    self.note("fill", &numbers);
                    let delay = self.draw_delay();
                    self.net.fill(fill, self.now, delay);
                }
            }
        }
        self.net.submit(&mut ops.net, &self.disk, self.now, &self.delays);
        for (token, step) in ops.steps.drain(..) {
            let key = partition_of(&step);
            self.note("step", &[token.0]);
            self.upkeep += usize::from(state_of(&step) == State::Upkeep);
            let queue = self.steps.entry(key.clone()).or_default();
            queue.push_back((token, *step));
            if queue.len() == 1 {
                self.push_drawn(Job::StepStart(key));
            }
        }
        if std::mem::take(&mut ops.grow) {
            self.push_drawn(Job::Grow);
        }
        for slab in 0..self.slabs.len() {
            for page in self.slabs[slab].take_wanted() {
                self.push_drawn(Job::Replace(slab, page));
            }
        }
    }

    fn submit_write(&mut self, write: Write<SimPlatform>) {
        let file = write.file.description();
        let mut bytes = Vec::with_capacity(write.len.as_usize());
        for extent in &write.extents {
            if file.direct {
                assert!(extent.is_aligned(), "a direct write from memory that is not aligned");
                assert!(
                    (extent.len() as u64).is_multiple_of(DIRECT_IO_ALIGN),
                    "an extent of {}",
                    extent.len()
                );
            }
            bytes.extend_from_slice(extent.as_ref());
        }
        if let Some(bounce) = &write.bounce {
            bytes.extend_from_slice(bounce.bytes());
        }
        assert!(bytes.len() as u64 == write.len.get(), "a write of {} in {} bytes", write.len, bytes.len());
        let numbers =
            [write.token.0, file.inode.0, write.position.get(), write.len.get(), u64::from(write.durable)];
        self.note("write", &numbers);
        let pending = self.disk.storage().begin_write(file, write.position.get(), bytes, write.durable);
        let lie = self.disk.storage().lie;
        match lie {
            Some(Lie::LostCompletion) if self.prng.one_in(16) => self.lost.push(write),
            _ => self.push_drawn(Job::Write(Box::new(write), pending)),
        }
    }

    /// Waits for something to happen, at most until `deadline`.
    fn wait(&mut self, deadline: Option<Nanos>) {
        let wake = [self.next_due(), deadline.map(Nanos::get)].into_iter().flatten().min();
        self.now = self.now.max(wake.unwrap_or(self.now)) + self.prng.magnitude(1, TURN_NS_MAX);
    }

    fn finish(&mut self, job: Job, events: &mut Vec<Event<SimPlatform>>) {
        match job {
            Job::Write(mut write, pending) => {
                if self.disk.storage().lie == Some(Lie::LeakedMemory) {
                    self.leaked.extend(write.extents.pop());
                }
                let result = self.disk.storage().end_write(pending).map(ByteCount::of_usize);
                self.note("written", &[write.token.0, result_number(&result.map(ByteCount::get))]);
                events.push(Event::Written { token: write.token, result });
            }
            Job::Sync(token, pending) => {
                let result = self.disk.storage().end_sync(pending);
                self.note("synced", &[token.0, result_number(&result.map(|()| 0))]);
                events.push(Event::Synced { token, result });
            }
            Job::Read(read) => events.push(self.finish_read(read)),
            Job::StepStart(key) => self.run_next_step(key),
            Job::StepDone(token, output, upkeep) => {
                self.upkeep -= usize::from(upkeep);
                self.note("step-done", &[token.0]);
                events.push(Event::StepDone { token, output });
            }
            Job::Grow => events.push(self.grow()),
            Job::Replace(slab, page) => {
                self.note("replace", &[slab as u64, page as u64]);
                self.slabs[slab].replace(page);
            }
            Job::Request(ticket, request) => {
                self.note("request", &[ticket.0]);
                events.push(Event::Request(ticket, request));
            }
            Job::Post(event) => events.push(*event),
        }
    }

    fn finish_read(&mut self, mut read: Read<SimPlatform>) -> Event<SimPlatform> {
        let file = read.file.description();
        if file.direct {
            assert!(
                (read.from as u64).is_multiple_of(DIRECT_IO_ALIGN),
                "a direct read to byte {}",
                read.from
            );
        }
        assert!(read.from + read.len <= read.chunk.len(), "a read of {} beyond its chunk", read.len);
        let buf = read.chunk.fill(read.from, read.len);
        let result = self.disk.storage().read_direct(file, read.position.get(), buf);
        self.note("read-done", &[read.token.0, result_number(&result.map(|len| len as u64))]);
        Event::ReadDone { token: read.token, chunk: read.chunk, result }
    }

    fn run_next_step(&mut self, key: String) {
        let queue = self.steps.get_mut(&key).expect("a step was queued under this key");
        let (token, step) = queue.pop_front().expect("a step was queued");
        let more = !queue.is_empty();
        self.note("step-run", &[token.0]);
        let states = self.disk.storage().states;
        self.disk.storage().states = states.and(state_of(&step));
        let upkeep = state_of(&step) == State::Upkeep;
        let output = (self.run_step)(step);
        self.disk.storage().states = states;
        // Outputs of one partition keep the order of its steps.
        let drawn = self.now + self.draw_delay();
        let last = self.step_order.entry(key.clone()).or_default();
        *last = drawn.max(*last);
        let delay = *last - self.now;
        self.push(delay, Job::StepDone(token, Box::new(output), upkeep));
        if more {
            self.push_drawn(Job::StepStart(key));
        }
    }

    fn grow(&mut self) -> Event<SimPlatform> {
        if self.slabs.len() >= self.memory.slabs_max {
            self.note("grow-failed", &[]);
            self.disk.storage().suffer(Harm::NoSlab);
            return Event::GrowFailed(Errno::NOMEM);
        }
        let slab = SimSlab::new(self.slabs.len() as u64, self.memory.slab_granules, self.memory.slab_bounces);
        self.slabs.push(slab.watch());
        self.note("grown", &[self.slabs.len() as u64]);
        Event::Grown(slab)
    }
}

impl Driver for SimDriver {
    type Platform = SimPlatform;
    type Error = Ended;

    fn now(&self) -> Now {
        let wall = self.wall_at_zero + (self.now / 1_000_000) as i64;
        Now { mono: Nanos::new(self.now), wall: Timestamp::new(wall) }
    }

    fn turn(
        &mut self,
        ops: &mut Ops<SimPlatform>,
        events: &mut Vec<Event<SimPlatform>>,
        deadline: Option<Nanos>,
    ) -> Result<(), Ended> {
        self.submit(ops);
        self.wait(deadline);
        let wall = self.now().wall;
        let mut storage = self.disk.storage();
        storage.wall = wall;
        storage.trace.micros = self.now / 1000;
        drop(storage);
        let first = events.len();
        while let Some(entry) = self.jobs.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let job = entry.remove();
            self.finish(job, events);
        }
        self.net.collect(self.now, &self.disk, events);
        shuffle_but_requests(&mut events[first..], &mut self.prng);
        if self.disk.storage().ended().is_some() { Err(Ended) } else { Ok(()) }
    }
}
