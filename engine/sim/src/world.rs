//! One run: a seed's settings, several lives of an engine on one disk, each ended by force at some operation, and a
//! last one that ends in order.
//!
//! A life is: open the log directory and every partition, read everything there is, work, end. A violation panics with
//! its story; whoever runs seeds catches it and names the seed. Owns the disk across lives, the workload and its
//! oracles; builds shard and driver anew for every life.

use std::path::Path;

use rohrpost_engine_core::log::log_dir::{LogDir, LogDirOptions};
use rohrpost_engine_core::message::{Request, Ticket};
use rohrpost_engine_core::ops::{Driver, Event, Now, Ops};
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::{Nanos, Timestamp};

use crate::clients::Clients;
use crate::coverage::Happening;
use crate::disk::SimDisk;
use crate::driver::{Ended, SimDriver};
use crate::fault::{Delays, Faults, Lie};
use crate::memory::SimArena;
use crate::outcome::Outcome;
use crate::platform::SimPlatform;
use crate::prng::Prng;
use crate::service::SimService;
use crate::settings::Settings;
use crate::storage::{End, Storage};
use crate::trace::Trace;
use crate::workload::{ROOT, Workload};

/// Room on a disk that never runs short.
const CAPACITY: u64 = 1 << 40;

/// Turns within which everything outstanding must be answered once the disk is healthy.
const TURNS_MAX: u64 = 20_000;

/// Turns after which an ailing disk is healed, so that partitions can be opened at all.
const TRIES: u64 = 400;

/// Virtual time within which the same must happen, nanoseconds.
const PATIENCE_NS: u64 = 300_000_000_000;

/// When the world begins: 14 November 2023.
const WALL_START: i64 = 1_700_000_000_000;

/// One run.
pub struct World {
    settings: Settings,
    prng: Prng,
    disk: SimDisk,
    workload: Workload,
    now: Now,
    /// The end of this life, counted from the moment everything is open.
    end_when_ready: Option<(u64, End)>,
    /// Whether the disk has been made healthy in this life.
    healed: bool,
    outcome: Outcome,
}

/// Shard and driver of one life.
struct Life {
    shard: Shard<SimPlatform, SimService>,
    driver: SimDriver,
    clients: Clients,
    ops: Ops<SimPlatform>,
    events: Vec<Event<SimPlatform>>,
    turns: u64,
}

impl World {
    /// The world of a seed. With `keep_trace`, the lines of the trace are kept.
    pub fn new(seed: u64, keep_trace: bool) -> Self {
        let mut prng = Prng::new(seed);
        let settings = Settings::draw(&mut prng);
        let mut trace = Trace::new(keep_trace);
        trace.note("seed", &[seed]);
        trace.remark(|| format!("{settings:#?}"));
        let disk = SimDisk::new(Storage::new(prng.fork(), CAPACITY, trace));
        let workload = Workload::new(&settings, disk.clone(), prng.fork());
        let now = Now { mono: Nanos::new(1_000_000_000), wall: Timestamp::new(WALL_START) };
        Self {
            settings,
            prng,
            disk,
            workload,
            now,
            end_when_ready: None,
            healed: false,
            outcome: Outcome::default(),
        }
    }

    /// The same world on a machine that breaks its word.
    pub fn with_lie(seed: u64, lie: Lie) -> Self {
        let world = Self::new(seed, false);
        world.disk.storage().lie = Some(lie);
        world
    }

    /// Runs the seed to its end.
    ///
    /// # Panics
    /// On a violation.
    pub fn run(&mut self) -> Outcome {
        for _ in 0..self.settings.lives {
            self.live(true);
        }
        // Twice in order: the second one opens what the first has closed.
        self.live(false);
        self.live(false);
        let storage = self.disk.storage();
        self.outcome.trace_hash = storage.trace.hash();
        self.outcome.coverage = storage.coverage;
        self.outcome.acked = self.workload.acked;
        self.outcome.served_len = self.workload.served_len;
        self.outcome.sent_len = self.workload.sent_len;
        drop(storage);
        self.outcome
    }

    /// The disk, for whoever wants to read its trace.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// One life, ended by force or in order.
    fn live(&mut self, by_force: bool) {
        self.outcome.lives += 1;
        self.prepare_disk(by_force);
        let ready = self.live_until_ended(by_force);
        let end = self.disk.storage().ended().unwrap_or(End::PowerCut);
        self.disk.storage().end_now(end);
        if by_force {
            let at_stake = self.disk.storage().was_at_stake();
            let unacked = self.workload.oracles.iter().any(crate::oracle::Oracle::has_open);
            self.outcome.crash_points += u64::from(at_stake || unacked);
            self.outcome.cut_in_recovery += u64::from(!ready);
            if !ready {
                self.workload.note(Happening::EndedInRecovery);
            }
        }
        self.outcome.disk_ops += self.disk.storage().ops();
        self.workload.handle_end(end);
        self.disk.storage().restart();
    }

    /// Health, space and the planned end of the life to come.
    fn prepare_disk(&mut self, by_force: bool) {
        let faults = by_force && self.prng.one_in(self.settings.faulty_life_one_in);
        let short = by_force && self.prng.one_in(self.settings.short_life_one_in);
        let kill = self.prng.chance(self.settings.kill);
        let end = if kill { End::Kill } else { End::PowerCut };
        let early = self.prng.one_in(3);
        let at = self.prng.magnitude(1, self.settings.end_ops_max);
        self.end_when_ready = (by_force && !early).then_some((at, end));
        let mut storage = self.disk.storage();
        storage.faults = if faults { self.settings.faults } else { Faults::NONE };
        // Not much more than what is there already.
        let room = storage.used() + (4096 << self.prng.below(8));
        storage.set_capacity(if short { room } else { CAPACITY });
        if by_force && early {
            storage.end_in(at, end);
        }
        storage.trace.note("life", &[self.outcome.lives, u64::from(faults), u64::from(short), at]);
        drop(storage);
        self.workload.faulty = faults || short;
        self.healed = false;
    }

    /// Says whether everything was opened and read before the end.
    fn live_until_ended(&mut self, by_force: bool) -> bool {
        let Some(log_dir) = self.open_log_dir() else { return false };
        let mut life = self.start_life(&log_dir);
        let mut ready = false;
        let ended = self.work(&mut life, by_force, &mut ready);
        if ended.is_ok() && (!by_force || self.prng.one_in(3)) {
            let stopped = self.stop(&mut life, &log_dir);
            assert!(by_force || stopped == Ok(true), "a healthy engine stops with {stopped:?}");
        }
        self.now = life.driver.now();
        self.bury(life);
        drop(log_dir);
        ready
    }

    /// `None` if the life ended on the way.
    fn open_log_dir(&mut self) -> Option<std::sync::Arc<LogDir<SimDisk>>> {
        loop {
            let options = LogDirOptions::default();
            let error = match LogDir::open(self.disk.clone(), Path::new(ROOT), options) {
                Ok(log_dir) => return Some(log_dir),
                Err(error) => error,
            };
            if self.disk.storage().ended().is_some() {
                return None;
            }
            assert!(self.workload.faulty, "the log directory cannot be opened: {error}");
            self.heal();
        }
    }

    fn start_life(&mut self, log_dir: &std::sync::Arc<LogDir<SimDisk>>) -> Life {
        let steps = log_dir.clone();
        let run_step =
            Box::new(move |step: rohrpost_engine_core::log::step::Step<SimPlatform>| step.run(&steps));
        let prng = self.prng.fork();
        let (delays, memory) = (self.settings.delays, self.settings.memory);
        let driver = SimDriver::new(self.disk.clone(), run_step, prng, delays, memory, self.now);
        let shard = Shard::new(self.settings.limits.clone(), SimArena::default(), SimService::default());
        let clients = Clients::new(self.prng.fork(), self.settings.limits.request_len_max.as_usize());
        let mut life =
            Life { shard, driver, clients, ops: Ops::with_capacity(64), events: Vec::new(), turns: 0 };
        life.shard.poll(life.driver.now(), &mut life.ops);
        life
    }

    fn work(&mut self, life: &mut Life, by_force: bool, ready: &mut bool) -> Result<(), Ended> {
        self.make_ready(life)?;
        *ready = true;
        if let Some((at, end)) = self.end_when_ready.take() {
            self.disk.storage().end_in(at, end);
        }
        let mut actions = self.prng.range(0, self.settings.actions_max);
        let width = self.prng.magnitude(1, 32) as usize;
        let mut limit = Limit::new(life);
        while actions > 0 {
            self.make_ready(life)?;
            if self.workload.outstanding.len() < width && self.prng.one_in(2) {
                actions -= 1;
                self.act(life);
                limit = Limit::new(life);
            } else {
                self.turn(life)?;
                limit.check(life, &self.workload);
            }
        }
        if by_force && self.prng.one_in(2) {
            return Ok(());
        }
        self.settle(life, by_force)
    }

    /// Opens and reads every partition that is not open.
    fn make_ready(&mut self, life: &mut Life) -> Result<(), Ended> {
        let mut limit = Limit::new(life);
        while !self.workload.is_ready() {
            if let Some((ticket, request)) = self.workload.prepare(life.driver.now()) {
                self.send(life, ticket, request);
            }
            self.turn(life)?;
            if limit.is_tried(life) && !self.healed {
                self.heal_in(life);
            }
            limit.check(life, &self.workload);
        }
        Ok(())
    }

    /// One thing a client does, or that happens to the machine.
    fn act(&mut self, life: &mut Life) {
        if self.prng.below(100) < self.settings.mix.disturb {
            match self.prng.below(5) {
                4 => life.clients.hang_up(&mut life.driver),
                0 => self.disk.storage().drop_caches(),
                1 => life.driver.advance(self.prng.magnitude(1_000_000, 20_000_000_000)),
                2 => life.driver.shift_wall(self.prng.range(0, 20_000) as i64 - 10_000),
                _ => self.heal_in(life),
            }
        } else if let Some((ticket, request)) = self.workload.next_request(&self.settings, life.driver.now())
        {
            self.send(life, ticket, request);
        }
    }

    fn send(&mut self, life: &mut Life, ticket: Ticket, request: Request) {
        let backs_off = std::mem::take(&mut self.workload.backs_off);
        let over_connection = !backs_off && self.prng.below(100) < self.settings.connection_share;
        let (ticket, request) = if over_connection {
            let sent = life.clients.send(&mut life.driver, life.shard.service(), ticket, request);
            let Some(unsent) = sent else { return };
            unsent
        } else {
            (ticket, request)
        };
        let delay = if backs_off { 50_000_000 } else { self.prng.magnitude(1, 1_000_000) };
        life.driver.request_in(delay, ticket, request);
    }

    /// The disk is healthy from now on: everything outstanding must be answered.
    fn settle(&mut self, life: &mut Life, by_force: bool) -> Result<(), Ended> {
        self.heal_in(life);
        let mut limit = Limit::new(life);
        while !self.workload.outstanding.is_empty() {
            if by_force && self.prng.one_in(64) {
                return Ok(());
            }
            self.turn(life)?;
            limit.check(life, &self.workload);
        }
        Ok(())
    }

    /// The orderly end. Says whether the directory was left as cleanly closed.
    fn stop(&mut self, life: &mut Life, log_dir: &LogDir<SimDisk>) -> Result<bool, Ended> {
        let (ticket, request) = self.workload.shutdown();
        self.send(life, ticket, request);
        let mut limit = Limit::new(life);
        while !life.shard.is_stopped() || self.workload.stopped.is_none() {
            self.turn(life)?;
            limit.check(life, &self.workload);
        }
        let stopped = self.workload.stopped.take() == Some(Ok(()));
        let marker = log_dir.close_clean();
        let dark = self.disk.storage().ended().is_some();
        assert!(marker.is_ok() || dark || self.workload.faulty, "{marker:?}");
        let clean = stopped && marker == Ok(true);
        if clean {
            self.workload.handle_stopped();
            self.workload.note(Happening::StoppedInOrder);
        }
        self.disk.storage().end_now(End::PowerCut);
        Ok(clean)
    }

    fn turn(&mut self, life: &mut Life) -> Result<(), Ended> {
        life.turns += 1;
        let now = life.driver.now();
        let deadline = life.shard.next_deadline(now);
        life.driver.turn(&mut life.ops, &mut life.events, deadline)?;
        let now = life.driver.now();
        for event in life.events.drain(..) {
            life.shard.handle_event(now, event, &mut life.ops);
        }
        life.shard.poll(now, &mut life.ops);
        for (ticket, reply) in life.ops.replies.drain(..) {
            self.workload.handle_reply(ticket, reply, now);
        }
        // A connection that stalls while memory is short is closed.
        self.workload.stalled = life.shard.stats().connections_stalled > 0;
        life.clients.receive(&mut life.driver, life.shard.service(), &mut self.workload, now);
        Ok(())
    }

    /// Nothing fails any more, and there is room.
    fn heal(&mut self) {
        self.healed = true;
        let mut storage = self.disk.storage();
        storage.faults = Faults::NONE;
        storage.set_capacity(CAPACITY);
        storage.trace.note("heal", &[]);
    }

    fn heal_in(&mut self, life: &mut Life) {
        self.heal();
        life.driver.delays = Delays::QUICK;
    }

    /// Everything of a life is dropped; its memory must have come home.
    fn bury(&mut self, life: Life) {
        let Life { shard, mut driver, ops, events, .. } = life;
        driver.abandon();
        drop((shard, ops, events));
        let taken = driver.memory_taken();
        assert!(taken == 0, "{taken} chunks or bounce blocks have not come home");
    }
}

/// How long something may take on a healthy disk.
struct Limit {
    turns: u64,
    until: u64,
}

impl Limit {
    fn new(life: &Life) -> Self {
        Self { turns: life.turns + TURNS_MAX, until: life.driver.now().mono.get() + PATIENCE_NS }
    }

    /// Whether there has been enough of trying on a disk that is not healthy.
    fn is_tried(&self, life: &Life) -> bool {
        life.turns + TURNS_MAX - TRIES > self.turns
            || life.driver.now().mono.get() + PATIENCE_NS / 2 > self.until
    }

    fn check(&mut self, life: &Life, workload: &Workload) {
        let now = life.driver.now().mono.get();
        assert!(
            life.turns < self.turns && now < self.until,
            "no progress: {:?}, {:?}",
            workload.standing,
            workload.outstanding
        );
    }
}
