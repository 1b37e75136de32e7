//! What a ring driver is made of, what it costs in memory, and what it counts.

use std::time::Duration;

use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::types::ByteCount;

use super::disk_ops::DiskTable;
use super::net_ops::ConnTable;
use super::probe::ProbeReport;
use super::recv::RecvPool;
use super::ring::RingSizes;
use crate::pipe::{PIPE_LEN, PIPES_MAX};

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

    /// What the driver's memory goes to, apart from the arena; the queues count as locked memory.
    pub fn bill(&self) -> [(&'static str, ByteCount); 4] {
        let sizes = ring_sizes(self);
        let queues = u64::from(sizes.submissions) * 68 + u64::from(sizes.completions) * 16;
        let buffers = RecvPool::memory_len(self.recv_buf_count, self.recv_buf_len);
        let tables = ConnTable::slot_len() * self.limits.connections_max as usize
            + DiskTable::write_slot_len() * self.limits.commits_in_flight_max as usize;
        [
            ("ring queues", ByteCount::new(queues)),
            ("receive buffers", ByteCount::of_usize(buffers)),
            ("operations in flight", ByteCount::of_usize(tables)),
            ("pipes, while they are filled", ByteCount::of_usize(PIPES_MAX * PIPE_LEN)),
        ]
    }
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
