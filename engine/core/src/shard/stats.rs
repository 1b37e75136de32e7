//! What a shard counts, and what it tells of it while it runs.

use crate::message::{Reply, Ticket};
use crate::ops::Ops;
use crate::platform::Platform;
use crate::shard::Core;

/// Counters of a shard since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Commits that have ended.
    pub commits: u64,
    /// Bytes of record batches made durable.
    pub committed_len: u64,
    /// Fetches answered.
    pub fetches: u64,
    /// Bytes sent from the arena.
    pub sent_from_memory: u64,
    /// Bytes sent by reference to the arena's pages; part of `sent_from_memory`.
    pub sent_by_reference: u64,
    /// Bytes sent from the page cache.
    pub sent_from_page_cache: u64,
    /// Bytes sent from a pipe that was filled past the page cache.
    pub sent_through_pipes: u64,
    /// Fetches that were to go through a pipe and went through the arena, because there was no pipe to be had or
    /// the file system refused.
    pub pipes_refused: u64,
    /// Bytes read from the device for fetches.
    pub cold_read_len: u64,
    /// Cold reads.
    pub cold_reads: u64,
    /// Blocks that the device did not give out, each time they were asked for.
    pub blocks_unreadable: u64,
    /// Fetches that waited for a read another fetch had started.
    pub shared_reads: u64,
    /// Times an append had to wait for memory or for its last block.
    pub appends_delayed: u64,
    /// Connections closed because their peers took nothing while memory was short.
    pub connections_stalled: u64,
    /// Sends that gave their memory back because their peers took nothing while others needed it.
    pub sends_recalled: u64,
    /// Fetches of this shard's connections that other shards planned.
    pub fetches_at_others: u64,
    /// Appends of this shard's connections that other shards carried out.
    pub appends_at_others: u64,
    /// Bytes of old segments that were read and checked in the background.
    pub scrubbed_len: u64,
    /// Pieces of a few MiB among them that are not what was written; the log directory's notes say where and why.
    pub scrub_damages: u64,
    /// Bytes of record batches copied only because they had to go to another shard.
    pub payload_copied_between_shards: u64,
    /// Bytes of cold reads that may be in flight beside commits, now: shrinks while commits suffer from reads.
    pub cold_budget_len: u64,
    /// The least that it has been.
    pub cold_budget_len_min: u64,
    /// Commits that were to be timed without cold reads beside them.
    pub cold_probes: u64,
    /// How long cold reads have waited for that, milliseconds.
    pub cold_paused_ms: u64,
    /// Bytes of zeros written ahead of the writers.
    pub zeros_len: u64,
}

impl<P: Platform, C> Core<P, C> {
    /// All counters as they are now.
    pub(super) fn stats(&self) -> ShardStats {
        self.scheduler.count_into(self.stats)
    }

    /// Writes the counters where whoever asks wants them.
    pub(super) fn reply_stats(&mut self, ticket: Ticket, mut into: Box<ShardStats>, ops: &mut Ops<P>) {
        *into = self.stats();
        ops.replies.push((ticket, Reply::Stats(into)));
    }
}
