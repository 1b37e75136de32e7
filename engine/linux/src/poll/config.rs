//! What a poll driver is made of, and what it takes from its host.

use rohrpost_engine_core::bill::{Item, Memory, table_len};
use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::ops::ConnId;
use rustix::event::epoll;

use super::connections::Connections;
use super::disk_pool::DiskPool;
use super::recv::RecvPool;
use super::{EVENTS_MAX, PollPlatform};

/// Addresses that a thread's stack may use; a few pages of them are.
const STACK_LEN: usize = 2 << 20;

/// Sizes of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollConfig {
    /// Open connections; more wait in the listener's backlog.
    pub connections_max: u32,
    /// Bytes of one receive at most.
    pub recv_buf_len: usize,
    /// Receive buffers; without a free one, receiving waits.
    pub recv_buf_count: usize,
    /// Threads for cold reads.
    pub read_threads: usize,
    /// Threads for writes and syncs, each of which holds one for as long as the device takes.
    pub write_threads: usize,
}

impl Default for PollConfig {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            recv_buf_len: 32 << 10,
            recv_buf_count: 256,
            read_threads: 2,
            write_threads: 8,
        }
    }
}

impl PollConfig {
    /// A driver for a shard of these limits.
    pub fn new(limits: &ShardLimits) -> Self {
        Self { connections_max: limits.connections_max, ..Self::default() }
    }

    /// What the driver takes from its host, the arena's memory excepted. `limits` are those of its shard.
    pub fn bill(&self, limits: &ShardLimits) -> Vec<Item> {
        let turn = table_len::<epoll::Event>(EVENTS_MAX) + 2 * table_len::<ConnId>(EVENTS_MAX);
        let tables =
            Connections::memory_len(self.connections_max) + turn + RecvPool::table_len(self.recv_buf_count);
        let buffers = self.recv_buf_len * self.recv_buf_count;
        let mut items = vec![
            Item::at_start("epoll, table of connections", tables).with_descriptors(1),
            Item::at_start("operations that wait for a disk thread", DiskPool::<PollPlatform>::memory_len()),
            Item::in_use("receive buffers", buffers),
            Item::in_use("stacks of the disk threads", (self.read_threads + self.write_threads) * STACK_LEN)
                .of(Memory::Pages),
        ];
        items.extend(crate::bill::of_every_driver(limits));
        items
    }
}
