//! What one seed plays with: partitions and their settings, a shard's limits, its memory, the health of its disk.
//! Every dimension is drawn by itself, so that each run is extreme in some and plain in others.

use rohrpost_engine_core::format::names::{TopicName, TopicPartition};
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::log::{Durability, LogConfig, OnDamage, WriteMode};
use rohrpost_engine_core::platform::{CHUNK_LEN_MIN, SLAB_LEN};
use rohrpost_engine_core::types::ByteCount;

use crate::fault::{Delays, Faults};
use crate::memory::Memory;
use crate::prng::Prng;

/// Bounce blocks that a guarded commit takes at once: its last block, and the label of the copy.
const GUARDED_BOUNCES_MIN: usize = 2;

/// A partition of the run.
#[derive(Clone, Debug)]
pub struct PartitionSettings {
    /// Its name.
    pub name: TopicPartition,
    /// Its configuration, the same in every life.
    pub config: LogConfig,
}

/// How often the workload does what; weights, not chances.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Appends of valid batches.
    pub append: u64,
    /// Appends that must be refused.
    pub append_invalid: u64,
    /// Fetches of what is there.
    pub fetch: u64,
    /// Fetches that wait.
    pub park: u64,
    /// Questions about watermarks and timestamps.
    pub ask: u64,
    /// DeleteRecords.
    pub delete_records: u64,
    /// Deletions of whole partitions.
    pub delete_partition: u64,
    /// Time passing, caches dropped.
    pub disturb: u64,
}

/// Everything that is drawn before the first life.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shards of the engine; each partition is owned by one of them, connections are to any.
    pub shards: u16,
    /// The partitions.
    pub partitions: Vec<PartitionSettings>,
    /// Of the shard.
    pub limits: ShardLimits,
    /// Of the shard.
    pub memory: Memory,
    /// How long operations take.
    pub delays: Delays,
    /// What fails in lives with faults.
    pub faults: Faults,
    /// One life in so many has faults; 0 for none.
    pub faulty_life_one_in: u64,
    /// In one life of so many the disk is nearly full; 0 for none.
    pub short_life_one_in: u64,
    /// Whether the medium forgets something before the very last life.
    pub damaged: bool,
    /// Lives that end by force before the last, orderly one.
    pub lives: u64,
    /// Latest operation at which a life ends by force.
    pub end_ops_max: u64,
    /// Requests per life at the most.
    pub actions_max: u64,
    /// Longest record value.
    pub value_len_max: u64,
    /// Chance in 65,536 that a life ends by a kill rather than a power cut.
    pub kill: u32,
    /// Chance in 65,536 that a clock that jumps does so by ten years.
    pub years: u32,
    /// Of a hundred fetches and appends, so many go over connections; the others come from handles.
    pub connection_share: u64,
    /// Whether a life opens one partition after the other and in good health, and is stopped at once, with requests
    /// under way and its faults as they are.
    pub abrupt: bool,
    /// What the workload does.
    pub mix: Mix,
}

impl Settings {
    /// Draws a run.
    pub fn draw(prng: &mut Prng) -> Self {
        let partitions: Vec<_> = (0..prng.range(1, 3)).map(|n| draw_partition(n as i32, prng)).collect();
        let shards = *prng.pick(&[1, 1, 2, 2, 3]);
        let batch_len_max = longest_batch(&partitions);
        let (limits, mut memory) = draw_limits(partitions.len(), batch_len_max, prng);
        if partitions.iter().any(|partition| partition.config.guard_last_block) {
            memory.slab_bounces = memory.slab_bounces.max(GUARDED_BOUNCES_MIN);
        }
        let quick = Delays::QUICK;
        let delays = *prng.pick(&[
            quick,
            quick,
            Delays { high: 20_000_000, ..quick },
            Delays { high: 2_000_000, stall: 1024, stall_len: 2_000_000_000, ..quick },
        ]);
        Self {
            shards,
            partitions,
            limits,
            memory,
            delays,
            faults: draw_faults(prng),
            faulty_life_one_in: *prng.pick(&[0, 0, 1, 2, 4]),
            short_life_one_in: *prng.pick(&[0, 0, 0, 1, 3]),
            damaged: prng.one_in(2),
            lives: prng.range(3, 8),
            end_ops_max: *prng.pick(&[40, 120, 400, 1200]),
            actions_max: *prng.pick(&[10, 40, 120, 300]),
            value_len_max: batch_len_max.min(*prng.pick(&[64, 2000, 20_000, 400_000])),
            kill: *prng.pick(&[0, 8192, 32_768]),
            years: *prng.pick(&[0, 0, 0, 32_768]),
            connection_share: *prng.pick(&[0, 50, 90]),
            abrupt: false,
            mix: draw_mix(prng),
        }
    }

    /// A run of moments that are rare in others: partitions come and go, clients lose interest and shards stop while the
    /// disk is slow, much of it fails, and readers and writers wait for it.
    #[must_use]
    pub fn rushed(self) -> Self {
        let batch_len_max = longest_batch(&self.partitions);
        let slab_granules = granules_needed(self.partitions.len(), batch_len_max).next_multiple_of(4);
        Self {
            // Little memory, and more than it holds: what is fetched is read.
            memory: Memory { slab_granules, slabs_max: 1, ..self.memory },
            value_len_max: batch_len_max,
            faults: Faults { read_eio: 40_000, ..Faults::MANY },
            delays: Delays { high: 20_000_000, ..Delays::QUICK },
            faulty_life_one_in: 1,
            lives: self.lives.max(6),
            end_ops_max: 4_000,
            actions_max: self.actions_max.min(40),
            kill: 32_768,
            abrupt: true,
            mix: Mix { fetch: 80, ask: 30, delete_records: 12, delete_partition: 8, disturb: 20, ..self.mix },
            ..self
        }
    }

    /// The same run with every partition's last block guarded, and so durable and written directly.
    #[must_use]
    pub fn guarded(mut self) -> Self {
        self.memory.slab_bounces = self.memory.slab_bounces.max(GUARDED_BOUNCES_MIN);
        for partition in &mut self.partitions {
            let (durability, write_mode) = (Durability::Flushed, WriteMode::Direct);
            let plain = partition.config.clone();
            partition.config = LogConfig { durability, write_mode, guard_last_block: true, ..plain };
        }
        self
    }

    /// A short run in which nothing fails by chance.
    #[must_use]
    pub fn short_and_sound(self) -> Self {
        Self {
            faults: Faults::NONE,
            delays: Delays::QUICK,
            faulty_life_one_in: 0,
            short_life_one_in: 0,
            damaged: false,
            lives: 2,
            end_ops_max: 200,
            actions_max: 12,
            ..self
        }
    }
}

fn draw_mix(prng: &mut Prng) -> Mix {
    Mix {
        append: prng.range(20, 100),
        append_invalid: *prng.pick(&[0, 2, 8]),
        fetch: *prng.pick(&[5, 20, 80]),
        park: *prng.pick(&[0, 4, 20]),
        ask: 4,
        delete_records: *prng.pick(&[0, 0, 1, 6]),
        delete_partition: *prng.pick(&[0, 0, 1, 3]),
        disturb: *prng.pick(&[0, 4, 12]),
    }
}

fn draw_partition(number: i32, prng: &mut Prng) -> PartitionSettings {
    let batch_len_max = *prng.pick(&[1500, 16_000, 16_000, 100_000, 300_000]);
    let segment_len_max = batch_len_max + prng.magnitude(0, 256 << 10);
    let config = LogConfig {
        segment_len_max: ByteCount::new(segment_len_max),
        segment_age_ms_max: *prng.pick(&[50, 5_000, 604_800_000, 604_800_000]),
        index_len_max: ByteCount::new(*prng.pick(&[24, 96, 1024, 1 << 20])),
        index_interval: ByteCount::new(*prng.pick(&[1, 256, 4096])),
        retention_len: prng
            .one_in(4)
            .then(|| ByteCount::new(prng.range(segment_len_max / 2, 4 * segment_len_max))),
        retention_ms: *prng.pick(&[None, None, Some(20_000), Some(604_800_000)]),
        batch_len_max: ByteCount::new(batch_len_max),
        durability: if prng.one_in(4) { Durability::Written } else { Durability::Flushed },
        write_mode: if prng.one_in(3) { WriteMode::Buffered } else { WriteMode::Direct },
        preallocate_len_min: ByteCount::new(*prng.pick(&[1, 4096, 20_000, 65_536])),
        zero_ahead: prng.one_in(2),
        linger_us: *prng.pick(&[0, 0, 0, 300]),
        append_wait_ms_max: *prng.pick(&[100, 2_000, 30_000]),
        on_damage: OnDamage::Refuse,
        guard_last_block: false,
    };
    let guardable = config.durability == Durability::Flushed && config.write_mode == WriteMode::Direct;
    // A look ahead: nothing else that is drawn depends on it.
    let config = LogConfig { guard_last_block: guardable && prng.clone().fork().one_in(3), ..config };
    let topic = TopicName::new("orders").expect("letters are allowed");
    PartitionSettings { name: TopicPartition::new(topic, number), config }
}

fn longest_batch(partitions: &[PartitionSettings]) -> u64 {
    partitions.iter().map(|partition| partition.config.batch_len_max.get()).max().unwrap_or(0)
}

/// Every partition must be able to hold one batch in its tail, and a cold read must fit beside them.
fn granules_needed(partitions: usize, batch_len_max: u64) -> usize {
    partitions * (batch_len_max.div_ceil(CHUNK_LEN_MIN.get()) as usize + 2) + 4
}

fn draw_limits(partitions: usize, batch_len_max: u64, prng: &mut Prng) -> (ShardLimits, Memory) {
    let memory = Memory {
        slab_granules: (granules_needed(partitions, batch_len_max) * prng.pick(&[1, 1, 2, 4]))
            .next_multiple_of(4),
        slab_bounces: *prng.pick(&[1, 2, 16]),
        slabs_max: *prng.pick(&[1, 1, 2]),
    };
    let cold_read_len = *prng.pick(&[64u64, 64, 128, 1024]) << 10;
    let limits = ShardLimits {
        // More may be asked for than is to be had.
        arena_len_max: ByteCount::new(SLAB_LEN.get() * (memory.slabs_max as u64 + prng.below(2))),
        arena_len_start: ByteCount::ZERO,
        connections_max: 8,
        partitions_max: 16,
        open_files_max: *prng.pick(&[1, 2, 64, 64]),
        fetches_max: *prng.pick(&[2, 8, 64]),
        pipeline_max: 4,
        request_len_max: ByteCount::mib(1),
        appends_waiting_max: *prng.pick(&[1, 16, 1024]),
        acks_waiting_max: *prng.pick(&[4, 64, 8192]),
        commits_in_flight_max: *prng.pick(&[1, 2, 64]),
        cold_read_bytes_max: ByteCount::new(cold_read_len.max(*prng.pick(&[1, 1 << 20, 16 << 20]))),
        cold_read_len: ByteCount::new(cold_read_len),
        cold_ahead_len: ByteCount::new(*prng.pick(&[0, 1, 64 << 10, 1 << 20])),
        cold_by_splice: prng.one_in(4),
        scrub_rate: ByteCount::mib(4),
        recall_ms: *prng.pick(&[0, 0, 1, 10]),
    };
    (limits, memory)
}

fn draw_faults(prng: &mut Prng) -> Faults {
    if prng.one_in(6) {
        return Faults::MANY;
    }
    let mut rate = |of: &[u32]| *prng.pick(of);
    Faults {
        read_eio: rate(&[0, 0, 1000, 6000]),
        read_short: rate(&[0, 2000, 16_000]),
        write_eio: rate(&[0, 0, 1000, 6000]),
        write_short: rate(&[0, 8000, 20_000]),
        sync_eio: rate(&[0, 0, 600, 6000]),
        other_eio: rate(&[0, 0, 400, 2000]),
        open_mfile: rate(&[0, 0, 0, 2000]),
    }
}
