//! Everything has a limit, and the limit has a name. Memory is a bill: what a shard may use follows
//! from its limits, item by item.

use crate::platform::{CHUNK_LEN_MAX, CHUNK_LEN_MIN, DIRECT_IO_ALIGN, SLAB_LEN};
use crate::types::ByteCount;

pub use crate::format::batch::BATCH_LEN_MAX_DEFAULT;

/// Most bytes of one partition in flight to the device. Recovery relies on it: beyond a torn write of
/// this length nothing was ever in flight (invariant I5).
pub const COMMIT_LEN_MAX: ByteCount = ByteCount::mib(4);

/// Largest `batch_len_max`: a batch and its two unaligned edges must fit one commit.
pub const BATCH_LEN_MAX_MAX: ByteCount = ByteCount::new(COMMIT_LEN_MAX.get() - 2 * DIRECT_IO_ALIGN);

/// Bytes one connection may send in one turn, before the others get theirs.
pub const TURN_SEND_BYTES: ByteCount = ByteCount::mib(1);

/// Largest fetch answer. Less than asked for is always a legal answer; Kafka's `fetch.max.bytes`.
pub const FETCH_LEN_MAX: ByteCount = ByteCount::mib(55);

/// While memory is short, a connection whose peer takes nothing for so long is closed: what is on its way to it
/// occupies memory that the others need. Milliseconds.
pub const STALL_MS_MAX: u64 = 5_000;

const _: () = assert!(BATCH_LEN_MAX_DEFAULT.get() <= BATCH_LEN_MAX_MAX.get());
const _: () = assert!(COMMIT_LEN_MAX.get() >= 2 * CHUNK_LEN_MAX.get());

/// The sizes of one shard, fixed at start-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLimits {
    /// The arena may grow to this length, in whole slabs.
    pub arena_len_max: ByteCount,
    /// The arena has this length, in whole slabs, before the first partition counts as open. Zero starts in
    /// milliseconds and grows on demand; fresh memory costs seconds per GiB where a hypervisor must find it.
    pub arena_len_start: ByteCount,
    /// Open connections.
    pub connections_max: u32,
    /// Open partitions.
    pub partitions_max: u32,
    /// Segment files kept open; beyond it, those of partitions with nothing under way are closed. The engine lowers
    /// it to what the process may have open. Below what is used at the same time, appends wait for one another, a tenth of
    /// a second and longer, and then go beyond it.
    pub open_files_max: u32,
    /// Fetches under way, parked ones included.
    pub fetches_max: u32,
    /// Requests of one connection that are answered in order; beyond it, receiving pauses.
    pub pipeline_max: u32,
    /// Longest request frame a service accepts.
    pub request_len_max: ByteCount,
    /// Appends of one partition that wait for memory or the device.
    pub appends_waiting_max: u32,
    /// Acknowledgements of one partition that wait for the device.
    pub acks_waiting_max: u32,
    /// Writes in flight, over all partitions.
    pub commits_in_flight_max: u32,
    /// Bytes of cold reads in flight.
    pub cold_read_bytes_max: ByteCount,
    /// Length of a cold read where at least half as much is wanted, unless commits suffer from so long ones: a power of
    /// two between the chunk limits.
    pub cold_read_len: ByteCount,
    /// Bytes read ahead of a reader that goes through old data from one fetch to the next; zero reads none.
    /// Only while no other read of old data is under way.
    pub cold_ahead_len: ByteCount,
    /// Whether long cold ranges go through pipes, past arena and page cache: the cheapest way for the core, at the
    /// price of reading again what the next reader of the same range asks for, and of some throughput where several
    /// such readers share a disk.
    pub cold_by_splice: bool,
    /// While memory is short, a send that has waited so long for its peer gives its memory back; what it has not sent is
    /// brought again when the peer takes bytes. Milliseconds, longer than a reading peer needs to make room.
    pub recall_ms: u64,
    /// Bytes a second of old segments that are read and checked in the background, while commits leave the device
    /// time; zero checks nothing. A round begins an hour after the last one, at the earliest.
    pub scrub_rate: ByteCount,
}

impl Default for ShardLimits {
    fn default() -> Self {
        Self {
            arena_len_max: ByteCount::mib(512),
            arena_len_start: ByteCount::ZERO,
            connections_max: 4096,
            partitions_max: 16_384,
            open_files_max: 65_536,
            fetches_max: 8192,
            pipeline_max: 64,
            request_len_max: ByteCount::mib(2),
            appends_waiting_max: 1024,
            acks_waiting_max: 8192,
            commits_in_flight_max: 64,
            cold_read_bytes_max: ByteCount::mib(16),
            cold_read_len: CHUNK_LEN_MAX,
            cold_ahead_len: ByteCount::mib(1),
            cold_by_splice: false,
            recall_ms: 10,
            scrub_rate: ByteCount::mib(4),
        }
    }
}

impl ShardLimits {
    /// Runs within a memlock limit of 8 MiB without `CAP_IPC_LOCK`: one slab, used unregistered
    /// where it cannot be registered, few connections.
    pub fn small() -> Self {
        Self {
            arena_len_max: SLAB_LEN,
            connections_max: 256,
            partitions_max: 1024,
            fetches_max: 512,
            pipeline_max: 16,
            cold_read_bytes_max: ByteCount::mib(4),
            ..Self::default()
        }
    }

    /// Cold reads in flight: those of the shortest kind, as many as the bytes in flight allow.
    pub fn cold_reads_max(&self) -> usize {
        self.cold_read_bytes_max.get().div_ceil(CHUNK_LEN_MIN.get()).max(1) as usize
    }

    /// Slabs the arena may grow to; at least one.
    pub fn slabs_max(&self) -> usize {
        (self.arena_len_max.get() / SLAB_LEN.get()).max(1) as usize
    }
}
