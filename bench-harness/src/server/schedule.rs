//! When a producer appends what to where: the one order of events that every producer inside a server follows, the
//! engine's as the baselines', so that paths differ in how they append and not in what.
//!
//! First a log is filled, as fast as it goes, if the workload wants one, or every partition gets a batch; then the producer waits to be told when to
//! begin; then it appends in a closed loop, or at a fixed rate whose latencies count from the intended time.
//! Units: nanoseconds of the monotonic clock, bytes, batches.

use std::sync::Arc;

use crate::server::Stop;
use crate::workload::Workload;

/// While it has not been told when to begin, a producer looks again after this long.
const START_POLL_NS: u64 = 1_000_000;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Append one batch; [`Schedule::appended`] is to follow unless the log has no room at the moment.
    Append(Turn),
    /// Nothing before this time.
    At(u64),
    /// Nothing before an acknowledgement or a fetch.
    Blocked,
}

/// One append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// To which partition.
    pub partition: usize,
    /// When it should have begun, or begins.
    pub since_ns: u64,
    /// Whether it is a batch of the flood.
    pub is_flood: bool,
}

/// What is appended before a producer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    /// So many bytes to one partition.
    Log { partition: usize, len: u64 },
    /// One batch to every partition.
    Each,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fill,
    Wait,
    Run { start_ns: u64 },
}

/// A producer's order of events.
#[derive(Debug)]
pub struct Schedule {
    phase: Phase,
    stop: Arc<Stop>,
    /// Partitions appended to in turn, by number from 0. Behind them comes the one that is flooded or filled.
    measured: usize,
    in_flight_max: usize,
    in_flight_each_max: usize,
    interval_ns: Option<u64>,
    flood_in_flight_max: usize,
    fill: Option<Fill>,
    next_partition: usize,
    in_flight: Vec<usize>,
    measured_in_flight: usize,
    filled_len: u64,
    filled_count: usize,
    /// Batches appended at the rate.
    count: u64,
}

/// Nanoseconds between the batches of an open loop.
pub fn interval_ns(rate_per_s: f64) -> u64 {
    (1e9 / rate_per_s) as u64
}

impl Schedule {
    /// The schedule of a workload. `None` if nothing inside the server produces.
    pub fn new(workload: &Workload, stop: Arc<Stop>) -> Option<Self> {
        let append = workload.append.as_ref()?;
        if append.socket {
            stop.set_filled();
            return None;
        }
        let lag_len = workload.tail.as_ref().map_or(0, |tail| tail.lag_len);
        let fill = match (lag_len, append.backlog_len) {
            (0, 0) => append.touch_all.then_some(Fill::Each),
            (0, len) => Some(Fill::Log { partition: append.partitions, len }),
            (len, _) => Some(Fill::Log { partition: 0, len }),
        };
        let phase = if fill.is_some() {
            Phase::Fill
        } else if append.rate_per_s.is_some() {
            Phase::Wait
        } else {
            Phase::Run { start_ns: 0 }
        };
        if fill.is_none() {
            stop.set_filled();
        }
        Some(Self {
            phase,
            stop,
            measured: append.partitions,
            in_flight_max: append.in_flight,
            in_flight_each_max: (append.in_flight / append.partitions).max(1),
            interval_ns: append.rate_per_s.map(interval_ns),
            flood_in_flight_max: append.flood.as_ref().map_or(0, |flood| flood.in_flight),
            fill,
            next_partition: 0,
            in_flight: vec![0; append.partition_count()],
            measured_in_flight: 0,
            filled_len: 0,
            filled_count: 0,
            count: 0,
        })
    }

    /// What to do at `now_ns`. `is_within_reach` says whether the slowest reader is near enough.
    pub fn next(&mut self, now_ns: u64, is_within_reach: bool) -> Next {
        if self.phase == Phase::Fill {
            match self.next_of_fill(now_ns) {
                Some(next) => return next,
                None => self.phase = Phase::Wait,
            }
        }
        if self.phase == Phase::Wait {
            match self.stop.start_ns() {
                None => return Next::At(now_ns + START_POLL_NS),
                Some(start_ns) if start_ns > now_ns => return Next::At(start_ns),
                Some(start_ns) => self.phase = Phase::Run { start_ns },
            }
        }
        let Phase::Run { start_ns } = self.phase else { return Next::Blocked };
        let mut later = Next::Blocked;
        match self.interval_ns {
            Some(interval_ns) => {
                let due_ns = start_ns + self.count * interval_ns;
                if due_ns > now_ns {
                    later = Next::At(due_ns);
                } else if let Some(partition) = self.partition_with_room() {
                    return Next::Append(Turn { partition, since_ns: due_ns, is_flood: false });
                }
            }
            None if is_within_reach => {
                if let Some(partition) = self.partition_with_room() {
                    return Next::Append(Turn { partition, since_ns: now_ns, is_flood: false });
                }
            }
            None => {}
        }
        if self.flood_in_flight_max > 0 && self.in_flight[self.measured] < self.flood_in_flight_max {
            return Next::Append(Turn { partition: self.measured, since_ns: now_ns, is_flood: true });
        }
        later
    }

    /// `None` once the fill is durable.
    fn next_of_fill(&mut self, now_ns: u64) -> Option<Next> {
        let (partition, is_full, in_flight) = match self.fill? {
            Fill::Log { partition, len } => (partition, self.filled_len >= len, self.in_flight[partition]),
            Fill::Each => (self.filled_count, self.filled_count == self.measured, self.measured_in_flight),
        };
        if !is_full {
            let has_room = in_flight < self.in_flight_max;
            let turn = Turn { partition, since_ns: now_ns, is_flood: false };
            return Some(if has_room { Next::Append(turn) } else { Next::Blocked });
        }
        if in_flight > 0 {
            return Some(Next::Blocked);
        }
        self.stop.set_filled();
        None
    }

    /// The next partition in turn that may have one more batch in flight.
    fn partition_with_room(&mut self) -> Option<usize> {
        if self.measured_in_flight >= self.in_flight_max {
            return None;
        }
        for _ in 0..self.measured {
            if self.in_flight[self.next_partition] < self.in_flight_each_max {
                return Some(self.next_partition);
            }
            self.next_partition = (self.next_partition + 1) % self.measured;
        }
        None
    }

    /// The log has accepted what [`Schedule::next`] asked for.
    pub fn appended(&mut self, turn: &Turn, len: u64) {
        self.in_flight[turn.partition] += 1;
        if turn.partition < self.measured {
            self.measured_in_flight += 1;
        }
        match self.phase {
            Phase::Fill => {
                self.filled_len += len;
                self.filled_count += 1;
            }
            _ if turn.is_flood => {}
            _ => {
                self.count += 1;
                self.next_partition = (turn.partition + 1) % self.measured;
            }
        }
    }

    /// A batch is durable, or has failed.
    pub fn acked(&mut self, partition: usize) {
        self.in_flight[partition] -= 1;
        if partition < self.measured {
            self.measured_in_flight -= 1;
        }
    }

    /// Whether the latencies of a partition are what the workload measures.
    pub fn is_measured(&self, partition: usize) -> bool {
        partition < self.measured
    }

    /// Most batches in flight at once, over all partitions.
    pub fn in_flight_max(&self) -> usize {
        self.in_flight_max + self.flood_in_flight_max
    }
}
