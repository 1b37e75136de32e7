//! Readers whose next fetch depends on the last one: at the tail, at a distance behind a producer with a rate, and
//! through a log that was filled before the window.

use crate::client::ClientConfig;
use crate::client::conn::{Connection, Role};
use crate::error::Result;
use crate::record::WindowRecorder;
use crate::server::schedule::interval_ns;
use crate::wire::Request;

/// How long a tail fetch may wait at the server.
const TAIL_WAIT_MS: u32 = 500;

/// What a producer with a rate has done at which time, seen from its readers.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When it began; `None` without a rate.
    begin_ns: Option<u64>,
    interval_ns: u64,
    is_lagging: bool,
    /// Per connection: when its next fetch is due. `u64::MAX` while one is under way.
    due_ns: Vec<u64>,
}

impl Pace {
    pub(super) fn new(config: &ClientConfig, begin_ns: u64, connections: usize) -> Self {
        let rate = config.workload.append.as_ref().and_then(|append| append.rate_per_s);
        Self {
            begin_ns: rate.map(|_| begin_ns),
            interval_ns: rate.map_or(0, interval_ns),
            is_lagging: config.workload.is_lagging(),
            due_ns: vec![u64::MAX; connections],
        }
    }

    /// A lagging reader has read `batch_count` batches: its next fetch is due when the producer has appended as many
    /// since it began, which keeps their distance.
    fn set_due(&mut self, conn: usize, batch_count: u64) {
        self.due_ns[conn] = self.begin_ns.unwrap_or(0) + batch_count * self.interval_ns;
    }

    /// The next connection whose fetch is due, and since when.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<(usize, u64)> {
        let conn = self.due_ns.iter().position(|due_ns| *due_ns <= now_ns)?;
        Some((conn, std::mem::replace(&mut self.due_ns[conn], u64::MAX)))
    }

    /// When the next fetch becomes due.
    pub(super) fn next_due_ns(&self) -> u64 {
        self.due_ns.iter().copied().min().unwrap_or(u64::MAX)
    }

    /// Records the batches that a tail reader has had since it had `from` of them.
    pub(super) fn record_end_to_end(&self, into: &mut WindowRecorder, from: u64, to: u64, now_ns: u64) {
        let Some(begin_ns) = self.begin_ns.filter(|_| !self.is_lagging) else { return };
        for batch in from..to {
            into.latency(now_ns.saturating_sub(begin_ns + batch * self.interval_ns), now_ns);
        }
    }
}

/// The first fetch of a connection. Returns whether it is to be sent now.
pub(super) fn begin(
    config: &ClientConfig,
    pace: &mut Pace,
    conn: usize,
    connection: &mut Connection,
) -> bool {
    match connection.role {
        Role::Backlog(reader) => connection.walker.next_offset = backlog_range(config, reader).0,
        Role::Tail if pace.is_lagging => {
            pace.set_due(conn, 0);
            return false;
        }
        _ => {}
    }
    true
}

/// After an answer: whether the next fetch is to be sent now, or becomes due later.
pub(super) fn goes_on(pace: &mut Pace, conn: usize, connection: &Connection) -> bool {
    let waits = connection.role == Role::Tail && pace.is_lagging;
    if waits {
        pace.set_due(conn, connection.walker.batch_count);
    }
    !waits
}

/// First and last offset of a reader's share of the filled partition.
fn backlog_range(config: &ClientConfig, reader: usize) -> (i64, i64) {
    let readers = config.workload.cold.as_ref().map_or(1, |cold| cold.readers.max(1)) as i64;
    let share = config.filled_end / readers;
    (share * reader as i64, share * (reader as i64 + 1))
}

/// The next fetch of a reader at the tail or behind it.
pub(super) fn request_tail(config: &ClientConfig, connection: &mut Connection, since_ns: u64) -> Result<()> {
    let Some(tail) = &config.workload.tail else { return Ok(()) };
    let request = Request::fetch(connection.next_id, connection.walker.next_offset, tail.max_bytes);
    connection.request(Request { flags: config.flags, max_wait_ms: TAIL_WAIT_MS, ..request }, since_ns)
}

/// The next fetch of a reader of the filled partition. Returns whether it has begun anew.
pub(super) fn request_backlog(
    config: &ClientConfig,
    connection: &mut Connection,
    reader: usize,
    now_ns: u64,
) -> Result<bool> {
    let (Some(cold), Some(append)) = (&config.workload.cold, &config.workload.append) else {
        return Ok(false);
    };
    let (start, end) = backlog_range(config, reader);
    let wraps = connection.walker.next_offset >= end;
    if wraps {
        connection.walker.next_offset = start;
    }
    let request = Request::fetch(connection.next_id, connection.walker.next_offset, cold.max_bytes);
    let partition = append.partitions as u32;
    connection.request(Request { flags: config.flags, partition, ..request }, now_ns)?;
    Ok(wraps)
}

/// The one request of a connection that will never read.
pub(super) fn request_stalled(
    config: &ClientConfig,
    connection: &mut Connection,
    number: usize,
    now: u64,
) -> Result<()> {
    let Some(stalled) = &config.workload.stalled else { return Ok(()) };
    let request = Request::fetch(connection.next_id, config.plan.stalled[number], stalled.max_bytes);
    connection.request(Request { flags: config.flags, ..request }, now)
}

/// What each connection of a workload is there for; hot readers come first.
pub(super) fn roles(config: &ClientConfig) -> Vec<Role> {
    let mut roles = Vec::new();
    let hot_count = config.workload.hot.as_ref().map_or(0, |hot| hot.connections);
    roles.extend(std::iter::repeat_n(Role::Hot, hot_count));
    roles.extend((0..config.plan.cold.len()).map(Role::Cold));
    roles.extend((0..config.plan.stalled.len()).map(Role::Stalled));
    let tail_count = config.workload.tail.as_ref().map_or(0, |tail| tail.readers);
    roles.extend(std::iter::repeat_n(Role::Tail, tail_count));
    let backlog = config.workload.cold.as_ref().filter(|_| config.workload.append.is_some());
    roles.extend((0..backlog.map_or(0, |cold| cold.readers)).map(Role::Backlog));
    roles
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lagging reader's fetches are due in the producer's pace, each once, the earliest first.
    #[test]
    fn a_lagging_reader_keeps_its_distance() {
        let mut pace =
            Pace { begin_ns: Some(1_000), interval_ns: 10, is_lagging: true, due_ns: vec![u64::MAX; 2] };
        pace.set_due(0, 64);
        pace.set_due(1, 3);
        assert_eq!(pace.next_due_ns(), 1_030);
        assert_eq!(pace.take_due(1_029), None);
        assert_eq!(pace.take_due(1_640), Some((0, 1_640)));
        assert_eq!(pace.take_due(1_640), Some((1, 1_030)));
        assert_eq!((pace.take_due(u64::MAX - 1), pace.next_due_ns()), (None, u64::MAX));
    }

    /// End-to-end latencies count from the intended time of every single batch, and only with a rate.
    #[test]
    fn end_to_end_counts_from_the_intended_time() {
        let mut recorder = WindowRecorder::new(0);
        let paced = Pace { begin_ns: Some(1_000_000), interval_ns: 100_000, ..Pace::default() };
        paced.record_end_to_end(&mut recorder, 2, 4, 2_000_000);
        let recorded = recorder.recorded();
        assert_eq!(recorded.count, 2);
        let near = |value: u64, expected: u64| value.abs_diff(expected) < 2_000;
        assert!(near(recorded.latencies[0].0, 700_000), "{recorded:?}");
        assert!(near(recorded.latencies[1].0, 800_000), "{recorded:?}");
        Pace::default().record_end_to_end(&mut recorder, 0, 9, 2_000_000);
        assert_eq!(recorder.recorded().count, 2);
    }
}
