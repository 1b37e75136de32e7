//! What a ring driver is made of, what it takes from its host, and what it counts.

use std::time::Duration;

use rohrpost_engine_core::bill::{Item, Memory, table_len};
use rohrpost_engine_core::limits::ShardLimits;

use super::disk_ops::DiskTable;
use super::features::FeatureSet;
use super::net_ops::ConnTable;
use super::probe::ProbeReport;
use super::recv::RecvPool;
use super::ring::{Cqe, RingSizes};
use crate::memory::pages_len;

/// How a ring's driver waits and submits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UringTuning {
    /// How long an idle shard looks for completions before it sleeps. Zero, the default, sleeps at once. Saves the
    /// time a sleeping core takes to wake, for as much of a core as the shard would have slept.
    pub spin: Duration,
    /// Submits disk operations together with the turn's sends instead of before them. Only for measuring what
    /// that costs: a write then starts when the sends are done.
    pub one_enter: bool,
}

/// What a driver is made of.
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// The shard's sizes.
    pub limits: ShardLimits,
    /// What the host can do, from [`super::probe()`].
    pub report: ProbeReport,
    /// Length of a receive buffer, bytes.
    pub recv_buf_len: usize,
    /// Receive buffers, a power of two.
    pub recv_buf_count: u16,
    /// Kernel worker threads per class (syncs, buffered writes), per shard.
    pub workers_max: u32,
    /// How it waits and submits.
    pub tuning: UringTuning,
}

impl UringConfig {
    /// Defaults for a shard of these limits.
    pub fn new(limits: ShardLimits, report: ProbeReport) -> Self {
        let recv_buf_count = limits.connections_max.next_power_of_two().clamp(64, 512) as u16;
        let tuning = UringTuning::default();
        Self { limits, report, recv_buf_len: 16 << 10, recv_buf_count, workers_max: 4, tuning }
    }

    /// The same, tuned.
    pub fn tuned(self, tuning: UringTuning) -> Self {
        Self { tuning, ..self }
    }

    /// What the driver takes from its host, the arena's memory excepted.
    pub fn bill(&self) -> Vec<Item> {
        let (limits, sizes) = (&self.limits, ring_sizes(self));
        let buffers = pages_len(RecvPool::memory_len(self.recv_buf_count, self.recv_buf_len));
        let tables = ConnTable::memory_len(limits.connections_max as usize)
            + DiskTable::memory_len(
                limits.commits_in_flight_max as usize,
                limits.cold_reads_max(),
                limits.slabs_max(),
            )
            + table_len::<Cqe>(sizes.completions as usize)
            + RecvPool::table_len(self.recv_buf_count);
        let mut items = vec![
            Item::at_start("ring queues", sizes.queues_len()).of(Memory::Locked).with_descriptors(1),
            Item::at_start("ring of receive buffers", pages_len(RecvPool::entries_len(self.recv_buf_count)))
                .of(Memory::Locked),
            Item::at_start("receive buffers", buffers).of(Memory::Pages),
            Item::at_start("operations in flight", tables),
        ];
        items.extend(crate::bill::of_every_driver(limits));
        items
    }
}

/// What a ring driver takes from its host with these limits, the arena's memory excepted.
pub fn bill(limits: &ShardLimits) -> Vec<Item> {
    let report = ProbeReport { features: FeatureSet::all(), missing: Vec::new() };
    UringConfig::new(limits.clone(), report).bill()
}

/// What a driver has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UringCounters {
    /// Calls of `io_uring_enter`.
    pub enter_count: u64,
    /// Disk transfers from or to registered memory.
    pub fixed_count: u64,
    /// Disk transfers from or to memory that the kernel had to pin for them.
    pub plain_count: u64,
    /// Slabs registered with the ring.
    pub slabs_registered: u32,
    /// Slabs used without registration.
    pub slabs_unregistered: u32,
    /// Receives that had to wait for a free buffer.
    pub recv_starved_count: u64,
    /// Connections closed at once because the table was full.
    pub refused_count: u64,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_starved_count: u64,
    /// Sends from memory that the kernel was to read in place.
    pub zero_copy_count: u64,
    /// Those of them that the kernel copied all the same, as far as it says.
    pub zero_copy_copied_count: u64,
    /// Turns that found the completion queue overflowed; nothing is lost, the kernel keeps the rest.
    pub overflow_count: u64,
}

/// Room for every completion that can be outstanding: one per disk operation, a send, a cancellation
/// and the end of a receive per connection, one per receive buffer, and a burst of accepts.
pub(super) fn ring_sizes(config: &UringConfig) -> RingSizes {
    let limits = &config.limits;
    let disk = limits.commits_in_flight_max + limits.cold_reads_max() as u32;
    let completions = 2 * disk + 4 * limits.connections_max + u32::from(config.recv_buf_count) + 64;
    let submissions = (disk + limits.connections_max).next_power_of_two().clamp(64, 1024);
    let completions = completions.next_power_of_two().min(65_536);
    RingSizes {
        submissions,
        completions,
        workers_max: config.workers_max,
        spins: !config.tuning.spin.is_zero(),
    }
}
