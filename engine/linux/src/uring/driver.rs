//! The turn: operations into the ring, completions out of it.
//!
//! Owns the ring and every table. Always holds: at most two `io_uring_enter` per turn unless it is tuned to
//! spin, the first only if there are disk operations, which thereby start before the sends of the same turn;
//! completions of disk operations are reported before those of sockets; what the kernel may still write to is
//! freed only after its last completion, in `drop` as well.

mod wind_down;

use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{opcode, types};
use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::fetch::ModeSet;
use rohrpost_engine_core::ops::{DiskOp, Driver, Event, Now, Ops};
use rohrpost_engine_core::types::{Nanos, Timestamp};

use super::UringPlatform;
use super::accept::Acceptor;
use super::config::{UringConfig, UringCounters, UringTuning, ring_sizes};
use super::disk_ops::DiskTable;
use super::features::{Feature, FeatureSet, Missing, Reason};
use super::net_ops::ConnTable;
use super::recv::RecvPool;
use super::ring::{Cqe, Ring, RingError};
use super::setup_error::{SetupError, reason_of};
use super::slab::{Key, Kind};
use crate::arena::{LinuxSlab, NOT_REPLACED, PageRound};
use crate::file::{errno_of, errno_of_io};
use crate::helper::ShardHelper;
use crate::inbox::{Inbox, ReplySink};
use crate::net::{Listener, block_sigpipe};
use crate::reference::Reference;
use crate::stats::DriverStats;

/// The io_uring driver of one shard. Made and used on the shard's thread.
pub struct UringDriver {
    ring: Ring,
    disk: DiskTable,
    conns: ConnTable,
    acceptor: Acceptor,
    inbox: Inbox<UringPlatform>,
    helper: ShardHelper<UringPlatform>,
    pages: PageRound,
    replies: Box<dyn ReplySink<UringPlatform>>,
    wake_armed: bool,
    tuning: UringTuning,
    cqes: Vec<Cqe>,
    missing: Vec<Missing>,
    counters: UringCounters,
    stats: DriverStats,
    wake_reads: u64,
    /// Kernel entries already in `stats`.
    entries_counted: u64,
}

impl UringDriver {
    /// Makes the ring and its tables, and blocks `SIGPIPE` for the calling thread.
    ///
    /// # Errors
    /// When the ring or the receive buffers cannot be had.
    pub fn new(
        config: UringConfig,
        listener: Option<Listener>,
        inbox: Inbox<UringPlatform>,
        helper: ShardHelper<UringPlatform>,
        replies: Box<dyn ReplySink<UringPlatform>>,
    ) -> Result<Self, SetupError> {
        let limits = &config.limits;
        let mut missing = config.report.missing.clone();
        let sizes = ring_sizes(&config);
        let mut ring = Ring::new(sizes, config.report.features, &mut missing)?;
        let no_memory = |error: std::io::Error| SetupError::Other { errno: errno_of_io(&error) };
        let pool = RecvPool::new(config.recv_buf_count, config.recv_buf_len).map_err(no_memory)?;
        if ring.features().has(Feature::BufRing)
            && let Err(errno) = pool.register(&mut ring)
        {
            give_up(&mut ring, &mut missing, Feature::BufRing, errno);
        }
        if ring.features().has(Feature::FixedBuffers)
            && let Err(errno) = ring.register_buffer_table(limits.slabs_max() as u32)
        {
            give_up(&mut ring, &mut missing, Feature::FixedBuffers, errno);
        }
        let mut reference = None;
        if ring.features().has(Feature::ReferencePipe) {
            match Reference::open() {
                Ok(pipe) => reference = Some(pipe),
                Err(errno) => give_up(&mut ring, &mut missing, Feature::ReferencePipe, errno),
            }
        }
        let commits_max = limits.commits_in_flight_max as usize;
        block_sigpipe().map_err(|errno| SetupError::Other { errno: errno_of(errno) })?;
        Ok(Self {
            disk: DiskTable::new(commits_max, limits.cold_reads_max(), limits.slabs_max()),
            conns: ConnTable::new(limits.connections_max as usize, pool, reference, ring.features()),
            acceptor: Acceptor::new(listener),
            inbox,
            pages: PageRound::with_capacity(limits.slabs_max()),
            stats: DriverStats::new(helper.replaced_len()),
            helper,
            replies,
            wake_armed: false,
            tuning: config.tuning,
            cqes: Vec::with_capacity(ring.completion_capacity()),
            missing,
            counters: UringCounters::default(),
            wake_reads: 0,
            entries_counted: 0,
            ring,
        })
    }

    /// Registers a slab's memory before the arena adopts it. Without registration the slab is used all
    /// the same, slower; [`Self::missing`] then says why, once.
    pub fn register(&mut self, slab: &LinuxSlab) {
        self.pages.watch(slab);
        if self.register_memory(slab) {
            self.counters.slabs_registered += 1;
        } else {
            self.counters.slabs_unregistered += 1;
        }
    }

    fn register_memory(&mut self, slab: &LinuxSlab) -> bool {
        if !self.ring.features().has(Feature::FixedBuffers) {
            return false;
        }
        match self.try_register(slab) {
            Ok(()) => true,
            Err(errno) => {
                self.note_unregistered(errno);
                false
            }
        }
    }

    fn try_register(&mut self, slab: &LinuxSlab) -> Result<(), Errno> {
        let (start, len) = slab.memory();
        // SAFETY: [U22] a slab is one anonymous mapping; operations name the slot only while they
        // own memory of the slab.
        unsafe { self.ring.register_buffer(slab.index(), start, len) }?;
        self.disk.registered_mut().insert(slab.index(), start, len);
        Ok(())
    }

    /// Registers a slab anew, for its replaced pages. Old and new registration may exceed the locked memory.
    fn renew_registration(&mut self, slab: &LinuxSlab) {
        if !self.disk.registered_mut().contains(slab.index()) || self.try_register(slab).is_ok() {
            return;
        }
        self.disk.registered_mut().remove(slab.index());
        self.ring.clear_buffer(slab.index());
        if !self.register_memory(slab) {
            self.counters.slabs_registered -= 1;
            self.counters.slabs_unregistered += 1;
        }
    }

    /// Gives replaced pages back to the arena, once the ring knows them.
    fn return_pages(&mut self) {
        let mut pages = std::mem::take(&mut self.pages);
        if pages.take_backed(|slab| self.renew_registration(slab)) {
            self.replies.remark(&NOT_REPLACED);
        }
        self.pages = pages;
    }

    fn note_unregistered(&mut self, errno: Errno) {
        let feature = Feature::FixedBuffers;
        if self.missing.iter().all(|missing| missing.feature != feature) {
            let missing = Missing { feature, reason: reason_of(errno) };
            self.replies.remark(&format_args!("runs without {missing}"));
            self.missing.push(missing);
        }
    }

    /// What the ring uses.
    pub fn features(&self) -> FeatureSet {
        self.ring.features()
    }

    /// What the ring does without, and why; grows when a slab cannot be registered.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Turns and kernel entries, readable from any thread.
    pub fn stats(&self) -> DriverStats {
        self.stats.clone()
    }

    /// Counters of what is particular to the ring.
    pub fn counters(&self) -> UringCounters {
        UringCounters {
            enter_count: self.ring.enter_count,
            fixed_count: self.disk.fixed_count,
            plain_count: self.disk.plain_count,
            recv_starved_count: self.conns.starved_count,
            refused_count: self.acceptor.refused_count,
            accept_starved_count: self.acceptor.starved_count,
            zero_copy_count: self.conns.zero_copies.sent_count,
            zero_copy_copied_count: self.conns.zero_copies.copied_count,
            ..self.counters
        }
    }

    /// Why the listener accepts no more, if it broke.
    pub fn listener_error(&self) -> Option<Errno> {
        self.acceptor.broken
    }

    fn push_ops(
        &mut self,
        ops: &mut Ops<UringPlatform>,
        events: &mut Vec<Event<UringPlatform>>,
    ) -> Result<(), RingError> {
        if !ops.disk.is_empty() {
            self.stats.add_writes(&ops.disk);
            for op in ops.disk.drain(..) {
                match op {
                    DiskOp::Fill(fill) => self.conns.push_fill(&mut self.ring, fill, events)?,
                    op => self.disk.push(&mut self.ring, op)?,
                }
            }
            if !self.tuning.one_enter {
                self.ring.submit()?;
            }
        }
        self.conns.feed_starved(&mut self.ring)?;
        for op in ops.net.drain(..) {
            self.conns.push(&mut self.ring, op, events)?;
        }
        for (token, step) in ops.steps.drain(..) {
            self.helper.submit_step(token, step);
        }
        for (ticket, reply) in ops.replies.drain(..) {
            self.replies.reply(ticket, reply);
        }
        self.inbox.send(&mut ops.to_shards);
        if std::mem::take(&mut ops.grow) {
            self.helper.grow();
        }
        self.pages.take_wanted(|pages| self.helper.replace(pages));
        let features = self.ring.features();
        if events.iter().any(|event| matches!(event, Event::Closed(_))) {
            self.acceptor.handle_closed();
        }
        self.acceptor.arm(&mut self.ring, features, self.conns.has_room(), mono_now())?;
        self.arm_wake()
    }

    fn arm_wake(&mut self) -> Result<(), RingError> {
        if self.wake_armed {
            return Ok(());
        }
        self.wake_armed = true;
        let eventfd = types::Fd(self.inbox.wake_fd().as_raw_fd());
        let multishot = self.ring.features().has(Feature::MultishotPoll);
        let entry = opcode::PollAdd::new(eventfd, libc::POLLIN as u32).multi(multishot).build();
        // SAFETY: [U20] the entry points to no memory; `drop` waits for the request before the inbox
        // closes the descriptor.
        unsafe { self.ring.push(&entry.user_data(Key::lone(Kind::Wake).encode())) }
    }

    /// Submits, and waits if nothing has happened yet and nothing is queued by other threads.
    fn wait(&mut self, idle: bool, deadline: Option<Nanos>) -> Result<(), RingError> {
        let busy = !idle || self.inbox.prepare_wait();
        let deadline = if busy { None } else { earlier(deadline, self.acceptor.deadline()) };
        let timeout = deadline.map(|at| Duration::from_nanos(at.get().saturating_sub(mono_now().get())));
        let want = u32::from(!busy && timeout != Some(Duration::ZERO));
        let spin = self.tuning.spin.min(timeout.unwrap_or(Duration::MAX));
        let result = match want > 0 && !spin.is_zero() && self.ring.spin(spin)? {
            true => Ok(()),
            false => self.ring.submit_and_wait(want, timeout),
        };
        self.inbox.after_wait();
        result
    }

    fn take_completions(&mut self, events: &mut Vec<Event<UringPlatform>>) -> Result<(), RingError> {
        self.counters.overflow_count += u64::from(self.ring.has_overflowed());
        self.cqes.clear();
        self.ring.take_completions(&mut self.cqes);
        for index in 0..self.cqes.len() {
            let cqe = self.cqes[index];
            if let Some(key) = Key::decode(cqe.user_data).filter(|key| key.is_disk()) {
                match key.kind {
                    Kind::Fill => self.conns.complete_fill(key, cqe, events),
                    _ => events.extend(self.disk.complete(key, cqe)),
                }
            }
        }
        if events.iter().any(|event| matches!(event, Event::Closed(_))) {
            self.acceptor.handle_closed();
        }
        let now = mono_now();
        for index in 0..self.cqes.len() {
            let cqe = self.cqes[index];
            if let Some(key) = Key::decode(cqe.user_data).filter(|key| !key.is_disk()) {
                self.complete(key, cqe, now, events)?;
            }
        }
        Ok(())
    }

    fn complete(
        &mut self,
        key: Key,
        cqe: Cqe,
        now: Nanos,
        events: &mut Vec<Event<UringPlatform>>,
    ) -> Result<(), RingError> {
        match key.kind {
            Kind::Accept => {
                self.acceptor.complete(&mut self.ring, cqe, &mut self.conns, now, events)?;
            }
            Kind::Wake => {
                self.wake_armed = cqe.more();
                if !self.wake_armed {
                    self.wake_reads += 1;
                    // The next poll would see the old wake-ups again. Nothing to read is fine too.
                    let _ = rustix::io::read(self.inbox.wake_fd(), &mut [0; 8]);
                }
            }
            Kind::Cancel => {}
            _ => {
                let before = events.len();
                self.conns.complete(&mut self.ring, key, cqe, events)?;
                if events[before..].iter().any(|event| matches!(event, Event::Closed(_))) {
                    self.acceptor.handle_closed();
                }
            }
        }
        Ok(())
    }
}

impl Driver for UringDriver {
    type Platform = UringPlatform;
    type Error = RingError;

    fn modes(&self) -> ModeSet {
        self.ring.features().modes()
    }

    fn now(&self) -> Now {
        let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Now { mono: mono_now(), wall: Timestamp::new(wall.tv_sec * 1000 + wall.tv_nsec / 1_000_000) }
    }

    fn turn(
        &mut self,
        ops: &mut Ops<UringPlatform>,
        events: &mut Vec<Event<UringPlatform>>,
        deadline: Option<Nanos>,
    ) -> Result<(), RingError> {
        let before = events.len();
        self.push_ops(ops, events)?;
        self.wait(events.len() == before, deadline)?;
        self.take_completions(events)?;
        let first = events.len();
        self.inbox.drain(events);
        for event in &events[first..] {
            if let Event::Grown(slab) = event {
                self.register(slab);
            }
        }
        self.return_pages();
        let inline = self.conns.inline_count + self.conns.pipes.pool.calls;
        let entries = self.ring.enter_count + inline + self.wake_reads;
        self.stats.add_turn(entries - std::mem::replace(&mut self.entries_counted, entries));
        Ok(())
    }
}

fn mono_now() -> Nanos {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos::new(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn earlier(a: Option<Nanos>, b: Option<Nanos>) -> Option<Nanos> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn give_up(ring: &mut Ring, missing: &mut Vec<Missing>, feature: Feature, errno: Errno) {
    ring.drop_feature(feature);
    missing.push(Missing { feature, reason: reason_of(errno) });
    for (dependent, needed) in super::features::NEEDS {
        if *needed == feature && ring.features().has(*dependent) {
            ring.drop_feature(*dependent);
            missing.push(Missing { feature: *dependent, reason: Reason::Needs(feature) });
        }
    }
}
