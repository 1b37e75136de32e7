//! The settings of one partition, with Kafka's names beside ours.

use std::fmt;

use crate::disk::Caching;
use crate::error::PartitionError;
use crate::format::index::{OFFSET_ENTRY_LEN, OffsetIndex, TIME_ENTRY_LEN, TimeIndex};
use crate::format::index_build::IndexBuilder;
use crate::limits::{BATCH_LEN_MAX_DEFAULT, BATCH_LEN_MAX_MAX};
use crate::types::{ByteCount, Offset};

/// What an acknowledgement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// The device has confirmed the bytes: they survive a power cut.
    #[default]
    Flushed,
    /// The write has completed: the bytes survive a killed process, not a power cut.
    Written,
}

/// How segments are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriteMode {
    /// Past the page cache, from registered memory into preallocated blocks.
    #[default]
    Direct,
    /// Through the page cache, one sync per group of batches.
    Buffered,
}

impl WriteMode {
    /// How the segment's file is opened.
    pub const fn caching(self) -> Caching {
        match self {
            WriteMode::Direct => Caching::Direct,
            WriteMode::Buffered => Caching::Buffered,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::Flushed => "flushed",
            Durability::Written => "written",
        })
    }
}

impl fmt::Display for WriteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WriteMode::Direct => "direct",
            WriteMode::Buffered => "buffered",
        })
    }
}

/// What opening does with a log that is damaged where no crash explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// The partition is refused; nothing is changed.
    #[default]
    Refuse,
    /// What is whole is served: of the damaged segment what lies before the damage, and all other segments. Readers of
    /// the rest get an error, appends are refused, and nothing is changed.
    Serve,
    /// The log ends at the damage. Everything behind it is dropped for good, acknowledged or not.
    Cut,
}

/// The settings of one partition. Defaults are Kafka's, but for durability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Kafka's `segment.bytes`; at most `i32::MAX`.
    pub segment_len_max: ByteCount,
    /// Kafka's `segment.ms`.
    pub segment_age_ms_max: u64,
    /// Kafka's `segment.index.bytes`; a segment is rolled when one of its indexes is full.
    pub index_len_max: ByteCount,
    /// Kafka's `index.interval.bytes`.
    pub index_interval: ByteCount,
    /// Kafka's `retention.bytes`; `None` keeps everything.
    pub retention_len: Option<ByteCount>,
    /// Kafka's `retention.ms`; `None` keeps everything.
    pub retention_ms: Option<u64>,
    /// Kafka's `max.message.bytes`.
    pub batch_len_max: ByteCount,
    /// What an acknowledgement means.
    pub durability: Durability,
    /// How segments are written.
    pub write_mode: WriteMode,
    /// Bytes reserved ahead of the writer in the first step; every further step doubles it, up to
    /// [`LogConfig::PREALLOCATE_LEN_MAX`] or what the segment can still take.
    pub preallocate_len_min: ByteCount,
    /// Whether the next blocks of a partition with short commits are written with zeros before they are used, off
    /// the acknowledgement path and while the device has time: halves the latency of a durable write, costs one
    /// more write per byte.
    pub zero_ahead: bool,
    /// How long an append waits for others to share its commit, microseconds. Only what has no commit before it
    /// waits: appends that arrive during one share the next anyway.
    pub linger_us: u64,
    /// How long an append may wait for memory, milliseconds, before it fails with `Busy`.
    pub append_wait_ms_max: u64,
    /// What opening does with damage in the middle of the log.
    pub on_damage: OnDamage,
    /// Whether a copy of the last, partly filled block is written beside every commit, in a file of its own: for devices
    /// that may destroy the sector they are writing when power fails. Costs a second write for each commit. Only with
    /// [`Durability::Flushed`] and [`WriteMode::Direct`].
    pub guard_last_block: bool,
}

impl LogConfig {
    /// Largest step of preallocation.
    pub const PREALLOCATE_LEN_MAX: ByteCount = ByteCount::mib(64);

    /// Empty indexes for a segment, as long as this configuration lets them grow.
    pub fn new_index(&self, base_offset: Offset) -> IndexBuilder {
        let len = self.index_len_max.as_usize();
        let offsets = OffsetIndex::new(base_offset, len / OFFSET_ENTRY_LEN);
        let times = TimeIndex::new(base_offset, len / TIME_ENTRY_LEN);
        IndexBuilder::new(offsets, times, self.index_interval)
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`PartitionError::InvalidConfig`] names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), PartitionError> {
        let invalid = |setting, reason: String| Err(PartitionError::InvalidConfig { setting, reason });
        if self.batch_len_max > BATCH_LEN_MAX_MAX {
            return invalid(
                "batch_len_max",
                format!("is {}, at most {BATCH_LEN_MAX_MAX}", self.batch_len_max),
            );
        }
        if self.segment_len_max.get() > i32::MAX as u64 {
            return invalid("segment_len_max", format!("is {}, at most {}", self.segment_len_max, i32::MAX));
        }
        if self.segment_len_max < self.batch_len_max {
            let limit = self.batch_len_max;
            return invalid(
                "segment_len_max",
                format!("is {}, at least batch_len_max ({limit})", self.segment_len_max),
            );
        }
        if self.index_interval == ByteCount::ZERO {
            return invalid("index_interval", "is 0, at least 1".to_owned());
        }
        if self.index_len_max.get() < 24 {
            return invalid("index_len_max", format!("is {}, at least 24", self.index_len_max));
        }
        if self.preallocate_len_min == ByteCount::ZERO {
            return invalid("preallocate_len_min", "is 0, at least 1".to_owned());
        }
        let flushes = self.durability == Durability::Flushed && self.write_mode == WriteMode::Direct;
        if self.guard_last_block && !flushes {
            let reason = format!("is set, at level {} with {} writes", self.durability, self.write_mode);
            return invalid("guard_last_block", format!("{reason}; it needs flushed and direct"));
        }
        Ok(())
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_len_max: ByteCount::mib(1024),
            segment_age_ms_max: 7 * 24 * 3600 * 1000,
            index_len_max: ByteCount::mib(10),
            index_interval: ByteCount::new(4096),
            retention_len: None,
            retention_ms: Some(7 * 24 * 3600 * 1000),
            batch_len_max: BATCH_LEN_MAX_DEFAULT,
            durability: Durability::Flushed,
            write_mode: WriteMode::Direct,
            preallocate_len_min: ByteCount::kib(64),
            zero_ahead: true,
            linger_us: 0,
            append_wait_ms_max: 30_000,
            on_damage: OnDamage::Refuse,
            guard_last_block: false,
        }
    }
}
