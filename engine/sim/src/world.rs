//! One run: a seed's settings, several lives of an engine on one disk, each ended by force at some operation, and a
//! last one that ends in order.
//!
//! A life is: open the log directory and every partition, read everything there is, work, end. A violation panics with
//! its story; whoever runs seeds catches it and names the seed. Owns the disk across lives, the workload and its
//! oracles; starts every life anew.

use std::path::Path;

use rohrpost_engine_core::log::log_dir::{LogDir, LogDirOptions};
use rohrpost_engine_core::message::{PartitionId, Request, ShardId, Ticket};
use rohrpost_engine_core::ops::Now;
use rohrpost_engine_core::types::{Nanos, Timestamp};

use crate::coverage::{Happening, Harm, State, States};
use crate::disk::SimDisk;
use crate::driver::Ended;
use crate::edits::{Decision, Drawn};
use crate::fault::{Delays, Faults};
use crate::life::Life;
use crate::limit::Limit;
use crate::outcome::Outcome;
use crate::prng::Prng;
use crate::run::Plan;
use crate::settings::Settings;
use crate::storage::{End, Storage};
use crate::trace::Trace;
use crate::workload::{ROOT, Workload};

/// Room on a disk that never runs short.
const CAPACITY: u64 = 1 << 40;

/// Ten years, milliseconds.
const TEN_YEARS_MS: i64 = 10 * 365 * 24 * 3_600_000;

/// When the world begins: 14 November 2023.
const WALL_START: i64 = 1_700_000_000_000;

/// One run.
pub struct World {
    pub(crate) settings: Settings,
    /// What every life draws from a generator of its own.
    lives: Prng,
    pub(crate) prng: Prng,
    drawn: Drawn,
    pub(crate) disk: SimDisk,
    pub(crate) workload: Workload,
    pub(crate) now: Now,
    /// The end of this life, counted from the moment everything is open.
    end_when_ready: Option<(u64, End)>,
    /// What may fail in this life.
    faults: Faults,
    /// Whether the disk has been made healthy in this life.
    healed: bool,
    outcome: Outcome,
}

impl World {
    /// The world of a plan.
    pub fn new(plan: &Plan) -> Self {
        let mut prng = Prng::new(plan.seed);
        let drawn = Settings::draw(&mut prng);
        let drawn = if plan.guard { drawn.guarded() } else { drawn };
        let settings = if plan.rush { drawn.rushed() } else { drawn };
        let settings = if plan.blow.is_some() { settings.short_and_sound() } else { settings };
        let mut trace = Trace::new(plan.keep_trace);
        trace.note("seed", &[plan.seed]);
        trace.remark(|| format!("{settings:#?}"));
        let mut storage = Storage::new(prng.fork(), CAPACITY, trace);
        storage.edits = plan.edits.clone();
        (storage.lie, storage.blow, storage.spoil_all) = (plan.lie, plan.blow, plan.spoil);
        let disk = SimDisk::new(storage);
        let workload = Workload::new(&settings, disk.clone(), prng.fork());
        let now = Now { mono: Nanos::new(1_000_000_000), wall: Timestamp::new(WALL_START) };
        Self {
            settings,
            lives: prng.fork(),
            prng,
            drawn: Drawn::default(),
            disk,
            workload,
            now,
            end_when_ready: None,
            faults: Faults::NONE,
            healed: false,
            outcome: Outcome::default(),
        }
    }

    /// Runs the seed to its end.
    ///
    /// # Panics
    /// On a violation.
    pub fn run(&mut self) -> Outcome {
        for number in 0..self.settings.lives {
            self.drawn.lives = number + 1;
            self.live(true);
        }
        // Twice in order: the second one opens what the first has closed.
        self.live(false);
        self.live(false);
        self.prng = self.lives.fork();
        if self.settings.damaged {
            self.live_damaged();
        }
        let storage = self.disk.storage();
        self.outcome.trace_hash = storage.trace.hash();
        self.outcome.coverage = storage.coverage;
        self.outcome.cut_in_write = storage.cut_in_write;
        self.outcome.acked = self.workload.acked;
        self.outcome.served_len = self.workload.served_len;
        self.outcome.sent_len = self.workload.sent_len;
        drop(storage);
        self.outcome
    }

    /// How many decisions this run has come to.
    pub fn drawn(&self) -> Drawn {
        Drawn { faults: self.disk.storage().faults_drawn, ..self.drawn }
    }

    /// The disk, for whoever wants to read its trace.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// One life, ended by force or in order.
    fn live(&mut self, by_force: bool) {
        // What is left out of one life does not shift what is drawn for the next.
        self.prng = self.lives.fork();
        if by_force && self.leaves_out(Decision::Life(self.drawn.lives - 1)) {
            return;
        }
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
        self.outcome.struck |= self.disk.storage().struck;
        self.disk.storage().restart();
    }

    /// Health, space and the planned end of the life to come.
    pub(crate) fn prepare_disk(&mut self, by_force: bool) {
        let faults = by_force && self.prng.one_in(self.settings.faulty_life_one_in);
        let short = by_force && self.prng.one_in(self.settings.short_life_one_in);
        let kill = self.prng.chance(self.settings.kill);
        let end = if kill { End::Kill } else { End::PowerCut };
        let early = self.prng.one_in(3);
        let at = self.prng.magnitude(1, self.settings.end_ops_max);
        self.end_when_ready = (by_force && !early).then_some((at, end));
        let mut storage = self.disk.storage();
        self.faults = if faults { self.settings.faults } else { Faults::NONE };
        // Partitions open in good health: the faults are for what comes then.
        storage.faults = if self.settings.abrupt { Faults::NONE } else { self.faults };
        // Not much more than what is there already.
        let room = storage.used() + (4096 << self.prng.below(8));
        storage.set_capacity(if short { room } else { CAPACITY });
        if by_force && early {
            storage.end_in(at, end);
        }
        storage.trace.note("life", &[self.outcome.lives, u64::from(faults), u64::from(short), at]);
        drop(storage);
        self.workload.ailing = faults || short;
        self.healed = false;
    }

    /// Says whether everything was opened and read before the end.
    fn live_until_ended(&mut self, by_force: bool) -> bool {
        let Some(log_dir) = self.open_log_dir() else { return false };
        let prng = self.prng.fork();
        let mut life = Life::start(&self.settings, &self.disk, &log_dir, prng, self.now);
        let mut ready = false;
        let ended = self.work(&mut life, by_force, &mut ready);
        let abrupt = self.settings.abrupt;
        if ended.is_ok() && (!by_force || abrupt || self.prng.one_in(3)) {
            if by_force && (abrupt || self.prng.one_in(2)) {
                self.disk.storage().faults = self.faults;
            }
            let stopped = self.stop(&mut life, &log_dir);
            let sound = !by_force && !self.disk.storage().struck;
            assert!(!sound || stopped == Ok(true), "a healthy engine stops with {stopped:?}");
        }
        self.now = life.now();
        life.bury(&self.workload);
        drop(log_dir);
        ready
    }

    /// `None` if the life ended on the way.
    pub(crate) fn open_log_dir(&mut self) -> Option<std::sync::Arc<LogDir<SimDisk>>> {
        self.disk.storage().states = States::only(State::Starting);
        loop {
            let options = LogDirOptions::default();
            let error = match LogDir::open(self.disk.clone(), Path::new(ROOT), options) {
                Ok(log_dir) => return Some(log_dir),
                Err(error) => error,
            };
            if self.disk.storage().ended().is_some() {
                return None;
            }
            let excused = self.workload.is_faulty() && !self.healed;
            assert!(excused, "the log directory cannot be opened: {error}");
            self.heal();
        }
    }

    fn work(&mut self, life: &mut Life, by_force: bool, ready: &mut bool) -> Result<(), Ended> {
        self.make_ready(life)?;
        *ready = true;
        if by_force {
            // What had to be healed for partitions to open at all fails again from here on.
            self.healed = false;
            self.disk.storage().faults = self.faults;
        }
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
                life.turn(&mut self.workload)?;
                // What was accepted waits for room as long as there is none.
                if limit.is_tried(life) && !self.healed {
                    self.heal_in(life);
                }
                limit.check(life, &self.workload);
            }
        }
        if by_force && (self.settings.abrupt || self.prng.one_in(2)) {
            return Ok(());
        }
        self.settle(life, by_force)
    }

    /// Opens and reads every partition that is not open.
    pub(crate) fn make_ready(&mut self, life: &mut Life) -> Result<(), Ended> {
        let mut limit = Limit::new(life);
        while !self.workload.is_ready() {
            if let Some((ticket, request)) = self.workload.prepare(life.now()) {
                let mut prng = self.prng.fork();
                self.send(life, &mut prng, ticket, request);
            }
            life.turn(&mut self.workload)?;
            if limit.is_tried(life) && !self.healed {
                self.heal_in(life);
            }
            limit.check(life, &self.workload);
        }
        Ok(())
    }

    /// One thing a client does, or that happens to the machine.
    fn act(&mut self, life: &mut Life) {
        // What is drawn for one action does not shift what is drawn for the next.
        let mut prng = self.prng.fork();
        self.workload.reseed(prng.next_u64());
        self.drawn.actions += 1;
        if self.leaves_out(Decision::Action(self.drawn.actions - 1)) {
            return;
        }
        if prng.below(100) < self.settings.mix.disturb {
            if prng.one_in(5) {
                self.heal_in(life);
            } else {
                self.disturb(life, &mut prng);
            }
        } else if let Some((ticket, request)) = self.workload.next_request(&self.settings, life.now()) {
            self.send(life, &mut prng, ticket, request);
        }
    }

    /// Something that happens beside all requests.
    fn disturb(&self, life: &mut Life, prng: &mut Prng) {
        match prng.below(4) {
            0 => self.disk.storage().drop_caches(),
            1 => life.advance(prng.magnitude(1_000_000, 20_000_000_000)),
            2 => self.jump(life, prng),
            _ => {
                self.disk.storage().suffer(Harm::PeerGone);
                life.hang_up();
            }
        }
    }

    fn leaves_out(&self, decision: Decision) -> bool {
        self.disk.storage().edits.leaves_out(decision)
    }

    /// The wall clock is set: by seconds, or by ten years.
    fn jump(&self, life: &mut Life, prng: &mut Prng) {
        let years = prng.chance(self.settings.years);
        let far = if years { TEN_YEARS_MS } else { prng.range(1, 10_000) as i64 };
        let forward = prng.one_in(2);
        self.disk.storage().suffer(if forward { Harm::ClockForward } else { Harm::ClockBack });
        life.shift_wall(if forward { far } else { -far });
    }

    fn send(&mut self, life: &mut Life, prng: &mut Prng, ticket: Ticket, request: Request) {
        let backs_off = std::mem::take(&mut self.workload.backs_off);
        let over_connection = !backs_off && prng.below(100) < self.settings.connection_share;
        let (ticket, request) = if over_connection {
            let Some(unsent) = life.send(ticket, request) else { return };
            unsent
        } else {
            (ticket, request)
        };
        let delay = if backs_off { 50_000_000 } else { prng.magnitude(1, 1_000_000) };
        let partition = self.workload.partition_of(ticket);
        let owner = ShardId::owner(PartitionId(partition as u32), self.settings.shards);
        life.request_in(delay, owner.0.into(), ticket, request);
    }

    /// The disk is healthy from now on: everything outstanding must be answered.
    fn settle(&mut self, life: &mut Life, by_force: bool) -> Result<(), Ended> {
        self.heal_in(life);
        let mut limit = Limit::new(life);
        while !self.workload.outstanding.is_empty() {
            if by_force && self.prng.one_in(64) {
                return Ok(());
            }
            life.turn(&mut self.workload)?;
            limit.check(life, &self.workload);
        }
        Ok(())
    }

    /// The orderly end. Says whether the directory was left as cleanly closed.
    fn stop(&mut self, life: &mut Life, log_dir: &LogDir<SimDisk>) -> Result<bool, Ended> {
        for shard in 0..life.shards() {
            let (ticket, request) = self.workload.shutdown();
            let delay = self.prng.magnitude(1, 1_000_000);
            life.request_in(delay, shard, ticket, request);
        }
        let mut limit = Limit::new(life);
        while !life.is_stopped() || self.workload.stopped.len() < life.shards() {
            if self.prng.one_in(64) {
                let mut prng = self.prng.fork();
                self.disturb(life, &mut prng);
            }
            life.turn(&mut self.workload)?;
            limit.check(life, &self.workload);
        }
        let stopped = self.workload.stopped.iter().all(Result::is_ok);
        self.workload.handle_stopping();
        let marker = log_dir.close_clean();
        let dark = self.disk.storage().ended().is_some();
        assert!(marker.is_ok() || dark || self.workload.is_faulty(), "{marker:?}");
        let clean = stopped && marker == Ok(true);
        if clean {
            self.workload.handle_stopped();
            self.workload.note(Happening::StoppedInOrder);
        }
        self.disk.storage().end_now(End::PowerCut);
        Ok(clean)
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
        life.set_delays(Delays::QUICK);
    }
}
