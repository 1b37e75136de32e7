//! What clients ask for: hot starts near the end of the log, cold runs through the rest of it.
//!
//! Only offsets that an index entry names exactly are asked for, so that no path reads a header to find a
//! position, and every start lies at a different place in its page.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::corpus::ServedLog;
use crate::error::{BenchError, Result};
use crate::workload::Workload;

/// Distinct hot starts.
const HOT_STARTS_MAX: usize = 512;
/// Bytes between what cold readers read and what hot readers read, larger than usual read-ahead.
const GAP_LEN: u64 = 16 << 20;
/// Bytes a cold reader must have ahead of it, else the workload is too large for the corpus.
const COLD_LEN_MIN: u64 = 256 << 20;

/// The offsets of one workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FetchPlan {
    /// Offsets hot readers choose from.
    pub hot: Vec<i64>,
    /// Bytes at the end of the log that hot fetches touch.
    pub hot_len: u64,
    /// Per cold reader, the offsets it asks for one after the other.
    pub cold: Vec<Vec<i64>>,
    /// Bytes at the start of the log that cold fetches touch.
    pub cold_len: u64,
    /// Where the connections start that never read.
    pub stalled: Vec<i64>,
    /// Fetches of [`PRIME_LEN`] that cover the hot range once; asked for before anything is measured.
    pub prime_hot: Vec<i64>,
    /// The same for old data, as much as an engine path has memory, at the end of the last cold reader's run where
    /// no window comes: that memory is then full and being recycled, as it is in a server that has run for a while.
    pub prime_cold: Vec<i64>,
}

/// Length of a priming fetch.
pub const PRIME_LEN: u32 = 1 << 20;

impl FetchPlan {
    /// Plans a fetch workload on this log. The inner error is the reason why the log is too small for it.
    ///
    /// # Errors
    /// `Corpus` if the log cannot be read.
    pub fn new(log: &ServedLog, workload: &Workload, seed: u64) -> Result<Result<Self, String>> {
        let Some(hot) = &workload.hot else { return Ok(Ok(Self::default())) };
        let hot_len = hot.region_len.min(log.len());
        let from = log.len() - hot_len;
        let starts = if hot.spread {
            starts_in(log, from..log.len(), hot.max_bytes, usize::MAX, None)?
        } else {
            starts_in(log, from..log.len(), hot.max_bytes, HOT_STARTS_MAX, Some(seed))?
        };
        if starts.is_empty() || (hot.spread && starts.len() < hot.connections) {
            return Ok(Err(format!(
                "the log's last {} KiB have too few indexed batches of at most {} KiB with as much behind them in \
                 their segment",
                hot_len >> 10,
                hot.max_bytes >> 10
            )));
        }
        let prime_hot = run_through(log, from, log.len(), PRIME_LEN)?;
        let mut plan = Self { hot: starts, hot_len, prime_hot, ..Self::default() };
        if let Some(why) = plan.add_cold(log, workload)? {
            return Ok(Err(why));
        }
        if let Some(stalled) = &workload.stalled {
            plan.cold_len = log.len().saturating_sub(hot_len + GAP_LEN);
            let starts =
                starts_in(log, 0..plan.cold_len, stalled.max_bytes, stalled.connections, Some(seed))?;
            if starts.is_empty() {
                return Ok(Err(format!("no segment holds {} MiB to ask for", stalled.max_bytes >> 20)));
            }
            plan.stalled = starts.iter().copied().cycle().take(stalled.connections).collect();
            plan.prime_old(log, workload)?;
        }
        Ok(Ok(plan))
    }

    /// Plans the cold readers. Returns why the log is too small for them, if it is.
    fn add_cold(&mut self, log: &ServedLog, workload: &Workload) -> Result<Option<String>> {
        let Some(cold) = &workload.cold else { return Ok(None) };
        if let Some(len) = cold.behind_len {
            self.cold_len = log.len() - self.hot_len;
            if self.cold_len < len {
                return Ok(Some(format!("the log has less than {} MiB to catch up with", len >> 20)));
            }
            let run = run_through(log, log.len() - len, log.len(), cold.max_bytes)?;
            self.cold = vec![run; cold.readers];
            return Ok(None);
        }
        self.cold_len = log.len().saturating_sub(self.hot_len + GAP_LEN);
        let share = self.cold_len / cold.readers as u64;
        if share < COLD_LEN_MIN {
            return Ok(Some(format!(
                "{} cold reader(s) need {} MiB each of old segments, the log has {} MiB for each",
                cold.readers,
                COLD_LEN_MIN >> 20,
                share >> 20
            )));
        }
        for reader in 0..cold.readers as u64 {
            let run = run_through(log, reader * share, (reader + 1) * share, cold.max_bytes)?;
            if run.is_empty() {
                return Ok(Some("the log's indexes have too few entries to read along".to_string()));
            }
            self.cold.push(run);
        }
        self.prime_old(log, workload)?;
        Ok(None)
    }

    fn prime_old(&mut self, log: &ServedLog, workload: &Workload) -> Result<()> {
        let memory_len = workload.memory_len.unwrap_or(0).min(self.cold_len / 4);
        self.prime_cold = run_through(log, self.cold_len - memory_len, self.cold_len, PRIME_LEN)?;
        Ok(())
    }

    /// What hot connection number `at` of `connections` chooses from.
    pub fn hot_of(&self, at: usize, connections: usize, spread: bool) -> &[i64] {
        if !spread {
            return &self.hot;
        }
        let count = self.hot.len();
        &self.hot[at * count / connections..(at + 1) * count / connections]
    }
}

/// A place to start: offset, and position within the whole log and within its segment.
struct Start {
    offset: i64,
    at: u64,
    segment: usize,
    position: u64,
}

fn starts(log: &ServedLog, from: u64, to: u64) -> impl Iterator<Item = Start> + '_ {
    log.file_ranges(from..to).into_iter().flat_map(move |(segment, range)| {
        let base: u64 = (0..segment).map(|before| log.segment_len(before)).sum();
        log.entries(segment).filter_map(move |entry| {
            let position = entry.position.get();
            let offset = entry.last_offset.get();
            range.contains(&position).then_some(Start { offset, at: base + position, segment, position })
        })
    })
}

/// Whether the entry's batch is the one its offset lies in (an append of several batches has one entry) and fits
/// the fetch (some paths return a larger first batch whole, as Kafka does, others cut it).
fn is_exact(log: &ServedLog, start: &Start, len: u32) -> Result<bool> {
    let header = log.header(start.segment, start.position).map_err(|error| BenchError::Corpus {
        path: log.path(start.segment).to_path_buf(),
        why: format!("position {}: {error}", start.position),
    })?;
    Ok(header.last_offset().get() == start.offset && header.batch_len().get() <= u64::from(len))
}

/// At most `count_max` starts of fetches of `len` that end within their segment; shuffled with a seed, in the order
/// of the log without.
fn starts_in(
    log: &ServedLog,
    range: Range<u64>,
    len: u32,
    count_max: usize,
    seed: Option<u64>,
) -> Result<Vec<i64>> {
    let fits = |start: &Start| start.position + u64::from(len) <= log.segment_len(start.segment);
    let mut found: Vec<Start> = starts(log, range.start, range.end).filter(fits).collect();
    if let Some(seed) = seed {
        fastrand::Rng::with_seed(seed).shuffle(&mut found);
    }
    let mut offsets = Vec::with_capacity(count_max.min(found.len()));
    for start in found {
        if offsets.len() == count_max {
            break;
        }
        if is_exact(log, &start, len)? {
            offsets.push(start.offset);
        }
    }
    Ok(offsets)
}

/// Starts that follow one another at most `len` apart where entries allow it: consecutive fetches cover
/// everything with little overlap.
fn run_through(log: &ServedLog, from: u64, to: u64, len: u32) -> Result<Vec<i64>> {
    let mut offsets = Vec::new();
    let mut covered = 0;
    let mut candidate: Option<Start> = None;
    for start in starts(log, from, to) {
        if start.at > covered
            && let Some(chosen) = candidate.take()
        {
            let in_segment = log.segment_len(chosen.segment) - chosen.position;
            let end = chosen.at + in_segment.min(u64::from(len));
            // At a segment's end the last start may lie in what is covered already.
            let adds = end > covered;
            covered = covered.max(end);
            if adds && is_exact(log, &chosen, len)? {
                offsets.push(chosen.offset);
            }
        }
        candidate = Some(start);
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::generate::{Shape, ensure};

    fn workload(name: &str) -> Workload {
        Workload::select(&[name.to_string()]).unwrap().remove(0)
    }

    /// Hot fetches are full and lie in the region; a run covers its range without gaps, each fetch once.
    #[test]
    fn plans_cover_what_they_should() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { cold_segments: 3, segment_len: 8 << 20, hot_len: 8 << 20 };
        let log = ServedLog::open(&ensure(dir.path(), shape, |_, _| {}).unwrap()).unwrap();
        let plan = FetchPlan::new(&log, &workload("fanout-64k"), 7).unwrap().unwrap();
        assert!(plan.hot.len() > 300);
        for offset in &plan.hot {
            assert_eq!(log.resolve(*offset, 65_536).unwrap().len, 65_536);
        }
        let len = 1 << 20;
        let run = run_through(&log, 0, 24 << 20, len).unwrap();
        let mut covered = 0;
        for offset in &run {
            let body = log.resolve(*offset, len as usize).unwrap();
            let at = body.position + (0..body.segment).map(|s| log.segment_len(s)).sum::<u64>();
            // A segment's first batch has no index entry.
            assert!(at <= covered + (16 << 10), "gap before {at}, covered to {covered}");
            assert!(at + body.len as u64 > covered);
            covered = at + body.len as u64;
        }
        assert!(covered > 22 << 20, "covered {covered}");
    }

    /// Readers that are spread out have parts of the hot region of their own that together are all of it.
    #[test]
    fn spread_readers_share_no_start() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { cold_segments: 1, segment_len: 1 << 20, hot_len: 68 << 20 };
        let log = ServedLog::open(&ensure(dir.path(), shape, |_, _| {}).unwrap()).unwrap();
        let plan = FetchPlan::new(&log, &workload("spread-64k"), 7).unwrap().unwrap();
        let parts: Vec<_> = (0..64).map(|at| plan.hot_of(at, 64, true)).collect();
        assert!(parts.iter().all(|part| !part.is_empty()));
        assert!(parts.windows(2).all(|two| two[0].last() < two[1].first()));
        assert_eq!(parts.concat(), plan.hot);
        assert_eq!(plan.hot_of(5, 64, false), plan.hot);
    }

    /// A log too small for cold readers is a reason to skip, not an error.
    #[test]
    fn a_small_log_is_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { cold_segments: 1, segment_len: 1 << 20, hot_len: 1 << 20 };
        let log = ServedLog::open(&ensure(dir.path(), shape, |_, _| {}).unwrap()).unwrap();
        let reason = FetchPlan::new(&log, &workload("backfill-1"), 7).unwrap().unwrap_err();
        assert!(reason.contains("256 MiB"), "{reason}");
    }
}
