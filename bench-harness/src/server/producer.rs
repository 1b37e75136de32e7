//! The producer of the engine's paths: it runs on the shard, in the service's turn, and appends what its schedule
//! says. The engine's data path does everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rohrpost_engine::service::Access;
use rohrpost_engine::{AppendError, Appended, Nanos, Now, PartitionId};

use crate::server::append_log::Batches;
use crate::server::produce::Recorder;
use crate::server::schedule::{Next, Schedule, Turn};
use crate::server::{Stats, Stop};
use crate::sys;
use crate::workload::Append;

/// Appends of one turn, so that a turn stays short.
const APPENDS_PER_TURN: usize = 64;
/// Batches whose ends are remembered without growing the memory for it.
const BATCH_COUNT_EXPECTED: usize = 1 << 18;

/// What a producer reports to.
#[derive(Clone)]
pub struct Reports {
    /// Acknowledgements.
    pub recorder: Arc<Recorder>,
    /// When to begin and to stop.
    pub stop: Arc<Stop>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Appends that the engine refused for good.
    pub failed: Arc<AtomicU64>,
}

/// Appends on a shard.
pub struct Producer {
    load: Append,
    schedule: Schedule,
    batches: Batches,
    flood_batches: Option<Batches>,
    /// Appends under way, with their length.
    begun: Vec<(Turn, u64)>,
    free: Vec<usize>,
    /// Of partition 0: end offset of every durable batch and the bytes up to there.
    ends: Vec<(i64, u64)>,
    accepted_len: u64,
    /// Bytes of partition 0 that each reader has read.
    consumed: Vec<u64>,
    reports: Reports,
}

impl Producer {
    /// A producer of this load.
    pub fn new(load: Append, schedule: Schedule, reports: Reports) -> Self {
        let in_flight_max = schedule.in_flight_max();
        let begun = (Turn { partition: 0, since_ns: 0, is_flood: false }, 0);
        Self {
            schedule,
            batches: Batches::new(1, load.batch_len),
            flood_batches: load.flood.as_ref().map(|flood| Batches::new(2, flood.batch_len)),
            begun: vec![begun; in_flight_max],
            free: (0..in_flight_max).collect(),
            ends: Vec::with_capacity(BATCH_COUNT_EXPECTED),
            accepted_len: 0,
            consumed: Vec::new(),
            reports,
            load,
        }
    }

    fn is_within_reach(&self) -> bool {
        let slowest = self.consumed.iter().min().copied().unwrap_or(0);
        self.load.ahead_len_max == 0 || self.accepted_len - slowest < self.load.ahead_len_max
    }

    /// Appends what the schedule and the limits allow. Returns when to be called again even if nothing happens.
    pub fn turn(
        &mut self,
        now: Now,
        partitions: &[(i32, PartitionId)],
        access: &mut impl Access,
    ) -> Option<Nanos> {
        if partitions.len() < self.load.partition_count() || self.reports.stop.is_set() {
            return None;
        }
        for _ in 0..APPENDS_PER_TURN {
            let now_ns = sys::now_ns();
            let turn = match self.schedule.next(now_ns, self.is_within_reach()) {
                Next::Append(turn) => turn,
                // The shard's clock is the same, read at the start of its turn.
                Next::At(due_ns) => return Some(Nanos::new(due_ns)),
                // An acknowledgement or a fetch makes room, and brings the next turn.
                Next::Blocked => return None,
            };
            let tag = self.free.pop()?;
            let batches = match &mut self.flood_batches {
                Some(flood) if turn.is_flood => flood,
                _ => &mut self.batches,
            };
            let batch = batches.next_batch();
            let len = batch.len() as u64;
            self.begun[tag] = (turn, len);
            match access.append(partitions[turn.partition].1, batch, tag as u64) {
                Ok(()) => {}
                Err(error) => {
                    self.free.push(tag);
                    // Busy passes; anything else would repeat for ever.
                    if error != AppendError::Busy {
                        self.reports.failed.fetch_add(1, Ordering::Relaxed);
                    }
                    return Some(now.mono.plus_millis(1));
                }
            }
            self.schedule.appended(&turn, len);
            self.accepted_len += if turn.partition == 0 { len } else { 0 };
        }
        Some(now.mono)
    }

    /// An append is durable, or has failed.
    pub fn appended(&mut self, tag: u64, outcome: &Result<Appended, AppendError>) {
        let (turn, len) = self.begun[tag as usize];
        self.free.push(tag as usize);
        self.schedule.acked(turn.partition);
        let Ok(appended) = outcome else {
            self.reports.failed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let now_ns = sys::now_ns();
        match self.schedule.is_measured(turn.partition) {
            true => self.reports.recorder.ack(turn.since_ns, now_ns, len),
            false => self.reports.recorder.beside(now_ns, len),
        }
        self.reports.stats.responded();
        if turn.partition == 0 {
            let before = self.ends.last().map_or(0, |(_, total)| *total);
            self.ends.push((appended.end_offset.get(), before + len));
        }
        if turn.partition + 1 == self.load.partition_count() && !self.reports.stop.is_filled() {
            self.reports.stop.set_filled_end(appended.end_offset.get());
        }
    }

    /// A reader asks for `offset` of partition 0: it has read everything before.
    pub fn fetched(&mut self, reader: &mut Option<usize>, offset: i64) {
        let reader = *reader.get_or_insert_with(|| {
            self.consumed.push(0);
            self.consumed.len() - 1
        });
        let count = self.ends.partition_point(|(end, _)| *end <= offset);
        self.consumed[reader] = count.checked_sub(1).map_or(0, |last| self.ends[last].1);
    }
}
