//! The device scheduler: what beside commits may go to the device, and how much of it.
//!
//! Three classes. Commits go at once; where several partitions commit, none makes the others wait for a long one.
//! Cold reads have a budget of bytes in flight, which shrinks while commits take longer than they do without reads
//! beside them, and grows again as long as they do not; a read is no longer than the budget. Zeros are written while
//! commits leave the device time. Always holds: the budget lies between the shortest read and its maximum, but for the
//! moments in which a commit is timed without reads beside it. Deterministic: time comes in. Does not queue anything itself. Times in ns.

use crate::limits::COMMIT_LEN_MAX;
use crate::message::PartitionId;
use crate::ops::Now;
use crate::platform::CHUNK_LEN_MIN;
use crate::shard::ShardStats;
use crate::types::{ByteCount, Nanos};

/// The commit rate is measured over this long.
const RATE_WINDOW_MS: u64 = 20;

/// Zeros are written while commits bring at most so many bytes a second: beyond that the device's bandwidth is what
/// they wait for, and every zero takes some of it.
const ZERO_RATE_MAX: u64 = 256_000_000;

/// Longest commit, of more than one append, while another partition commits too. Measured with one that gets 100 small
/// appends a second beside a flooded one, median acknowledgement of the one and rate of the other: 0.57 ms and 0.85 GB/s
/// at 512 KiB, 0.76 and 1.07 at 1 MiB, 1.16 and 1.29 at 2 MiB, 1.98 and 1.39 at 4 MiB; 0.41 ms alone.
const SHARED_COMMIT_LEN_MAX: ByteCount = ByteCount::mib(1);

/// A partition counts as committing for so long after a commit.
const COMMITTING_MS: u64 = 50;

/// Cold reads have all of their budget when no commit was submitted or has ended for so long.
const COMMITS_IDLE_MS: u64 = 100;

/// After so many commits beside cold reads, one is timed without them.
const COMMITS_PER_PROBE: u32 = 64;

/// Cold reads wait at most so long for that commit.
const PROBE_MS_MAX: u64 = 10;

/// How many commits weigh in the mean time of those without reads beside them.
const QUIET_COMMITS_IN_MEAN: u64 = 8;

/// No cold read is shorter.
const READ_LEN_MIN: u64 = CHUNK_LEN_MIN.get();

/// A commit is expected to take one more nanosecond per byte: 1 GB/s.
const NS_PER_BYTE: u64 = 1;

/// See the module documentation.
pub(super) struct Scheduler {
    window_start: Nanos,
    committed_then: u64,
    /// Bytes per second in the last window.
    rate: u64,
    /// The partitions that committed last, and when.
    committing: [(Option<PartitionId>, Nanos); 2],
    /// When a commit was submitted or has ended.
    last_commit: Nanos,
    budget: u64,
    budget_min: u64,
    budget_max: u64,
    read_len: u64,
    /// Whether nothing commits, as of this turn.
    commits_idle: bool,
    /// What a commit takes without cold reads beside it, its length left out.
    quiet_ns: Option<u64>,
    commits_since_quiet: u32,
    /// Since when cold reads wait for a commit to be timed without them.
    probing_since: Option<Nanos>,
    probes: u64,
    /// Since when there has been a read that waits for that.
    paused_since: Option<Nanos>,
    /// How long reads have waited before.
    paused_ns: u64,
}

impl Scheduler {
    pub(super) fn new(budget_max: ByteCount, read_len: ByteCount) -> Self {
        Self {
            window_start: Nanos::ZERO,
            committed_then: 0,
            rate: 0,
            committing: [(None, Nanos::ZERO); 2],
            last_commit: Nanos::ZERO,
            budget: budget_max.get(),
            budget_min: budget_max.get(),
            budget_max: budget_max.get(),
            read_len: read_len.get(),
            commits_idle: true,
            quiet_ns: None,
            commits_since_quiet: COMMITS_PER_PROBE - 1,
            probing_since: None,
            probes: 0,
            paused_since: None,
            paused_ns: 0,
        }
    }

    /// Takes note of the time and of all bytes committed until now. Call it once a turn.
    pub(super) fn observe(&mut self, now: Now, committed: u64) {
        self.commits_idle = self.are_commits_idle(now);
        let elapsed = elapsed_ns(self.window_start, now);
        if elapsed >= RATE_WINDOW_MS * 1_000_000 {
            let len = u128::from(committed - self.committed_then);
            // A window of at least some milliseconds: the quotient fits.
            self.rate = (len * 1_000_000_000 / u128::from(elapsed)) as u64;
            self.window_start = now.mono;
            self.committed_then = committed;
        }
    }

    /// A commit was submitted.
    pub(super) fn note_commit(&mut self, now: Now) {
        self.last_commit = now.mono;
    }

    /// A commit of `len` bytes has ended `elapsed` after it was submitted; `quiet` if no cold read was under way
    /// meanwhile.
    pub(super) fn note_committed(&mut self, now: Now, id: PartitionId, elapsed: u64, len: u64, quiet: bool) {
        self.last_commit = now.mono;
        if self.committing[0].0 != Some(id) {
            self.committing[1] = self.committing[0];
        }
        self.committing[0] = (Some(id), now.mono);
        let for_len = len.saturating_mul(NS_PER_BYTE);
        if quiet {
            let fixed = elapsed.saturating_sub(for_len);
            let mean = self.quiet_ns.unwrap_or(fixed);
            let weight = QUIET_COMMITS_IN_MEAN - 1;
            self.quiet_ns = Some((mean.saturating_mul(weight).saturating_add(fixed)) / QUIET_COMMITS_IN_MEAN);
            self.end_probe(now);
            return;
        }
        self.commits_since_quiet = self.commits_since_quiet.saturating_add(1);
        if self.commits_since_quiet >= COMMITS_PER_PROBE && self.probing_since.is_none() {
            self.probing_since = Some(now.mono);
            self.probes += 1;
        }
        let Some(quiet_ns) = self.quiet_ns else { return };
        let expected = quiet_ns.saturating_add(for_len);
        if elapsed > expected.saturating_add(expected / 2) {
            self.budget = (self.budget / 2).max(READ_LEN_MIN);
            self.budget_min = self.budget_min.min(self.budget);
        } else {
            self.budget = (self.budget + self.read_len / 8).min(self.budget_max);
        }
    }

    /// Bytes of cold reads that may be in flight before one more is submitted.
    pub(super) fn cold_budget(&mut self, now: Now) -> ByteCount {
        if self.are_commits_idle(now) {
            return ByteCount::new(self.budget_max);
        }
        match self.probing_since {
            Some(begun) if elapsed_ns(begun, now) < PROBE_MS_MAX * 1_000_000 => {
                self.paused_since.get_or_insert(now.mono);
                ByteCount::ZERO
            }
            Some(_) => {
                self.end_probe(now);
                ByteCount::new(self.budget)
            }
            None => ByteCount::new(self.budget),
        }
    }

    fn are_commits_idle(&self, now: Now) -> bool {
        self.last_commit == Nanos::ZERO || elapsed_ns(self.last_commit, now) >= COMMITS_IDLE_MS * 1_000_000
    }

    /// Length of a cold read. Beside commits no longer than the budget: a commit waits for the one that is before it at
    /// the device, however few they are.
    pub(super) fn read_len(&self) -> ByteCount {
        let budget = if self.commits_idle { self.budget_max } else { self.budget };
        ByteCount::new(self.read_len.min(1 << budget.max(READ_LEN_MIN).ilog2()))
    }

    /// Cold reads go on.
    fn end_probe(&mut self, now: Now) {
        self.probing_since = None;
        self.commits_since_quiet = 0;
        if let Some(since) = self.paused_since.take() {
            self.paused_ns += elapsed_ns(since, now);
        }
    }

    /// The same counters with the scheduler's own.
    pub(super) fn count_into(&self, stats: ShardStats) -> ShardStats {
        ShardStats {
            cold_budget_len: self.budget,
            cold_budget_len_min: self.budget_min,
            cold_probes: self.probes,
            cold_paused_ms: self.paused_ns / 1_000_000,
            ..stats
        }
    }

    /// How long a commit of more than one append may be.
    pub(super) fn commit_len_max(&self, id: PartitionId, now: Now) -> ByteCount {
        let [last, before] = self.committing;
        let (other, at) = if last.0 == Some(id) { before } else { last };
        let recent = elapsed_ns(at, now) < COMMITTING_MS * 1_000_000;
        if other.is_some() && recent { SHARED_COMMIT_LEN_MAX } else { COMMIT_LEN_MAX }
    }

    /// Whether the device has time for zeros ahead of the writers.
    pub(super) fn allows_zeros(&self) -> bool {
        self.rate <= ZERO_RATE_MAX
    }
}

/// Nanoseconds since then; zero if it lies ahead.
fn elapsed_ns(then: Nanos, now: Now) -> u64 {
    now.mono.get().saturating_sub(then.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    const READ: u64 = 256 << 10;
    const ID: PartitionId = PartitionId(1);

    fn scheduler() -> Scheduler {
        Scheduler::new(ByteCount::new(64 * READ), ByteCount::new(READ))
    }

    fn at(ms: u64) -> Now {
        Now { mono: Nanos::ZERO.plus_millis(ms), wall: Timestamp::new(0) }
    }

    /// Zeros stop within a window of commits coming faster than the limit, and go on when they have slowed down.
    #[test]
    fn zeros_make_way_for_fast_commits() {
        let mut scheduler = scheduler();
        assert!(scheduler.allows_zeros());
        scheduler.observe(at(1000), 0);
        let limit = ZERO_RATE_MAX * RATE_WINDOW_MS / 1000;
        scheduler.observe(at(1000 + RATE_WINDOW_MS), limit);
        assert!(scheduler.allows_zeros());
        scheduler.observe(at(1000 + 2 * RATE_WINDOW_MS), 2 * limit + RATE_WINDOW_MS);
        assert!(!scheduler.allows_zeros());
        scheduler.observe(at(1000 + 3 * RATE_WINDOW_MS - 1), 2 * limit + RATE_WINDOW_MS);
        assert!(!scheduler.allows_zeros(), "the window is not over");
        scheduler.observe(at(1000 + 3 * RATE_WINDOW_MS), 2 * limit + RATE_WINDOW_MS);
        assert!(scheduler.allows_zeros());
    }

    /// Commits that take twice their time beside reads bring the budget down to the shortest read, and the reads' length
    /// with it; both come back while they take no longer than alone, and at once when there are none.
    #[test]
    fn the_budget_follows_the_commits() {
        let mut scheduler = scheduler();
        assert_eq!(scheduler.cold_budget(at(1000)).get(), 64 * READ);
        scheduler.note_committed(at(1000), ID, 200_000 + 4096, 4096, true);
        assert_eq!(scheduler.cold_budget(at(1000)).get(), 64 * READ);
        scheduler.observe(at(1001), 4096);
        for _ in 0..6 {
            scheduler.note_committed(at(1001), ID, 2 * (200_000 + 4096), 4096, false);
        }
        assert_eq!(scheduler.cold_budget(at(1001)).get(), READ);
        assert_eq!(scheduler.read_len().get(), READ);
        for _ in 0..3 {
            scheduler.note_committed(at(1001), ID, u64::MAX, 4096, false);
        }
        assert_eq!(scheduler.cold_budget(at(1001)), CHUNK_LEN_MIN, "never less than one read");
        assert_eq!(scheduler.read_len(), CHUNK_LEN_MIN);
        for _ in 0..14 {
            scheduler.note_committed(at(1002), ID, 200_000 + 4096, 4096, false);
        }
        assert_eq!(scheduler.cold_budget(at(1002)).get(), 2 * READ);
        assert_eq!(scheduler.read_len().get(), READ);
        scheduler.note_committed(at(1002), ID, u64::MAX, 4096, false);
        scheduler.note_committed(at(1002), ID, u64::MAX, 4096, false);
        assert_eq!(scheduler.read_len().get(), READ / 2);
        assert_eq!(scheduler.cold_budget(at(1002 + COMMITS_IDLE_MS - 1)).get(), READ / 2);
        assert_eq!(scheduler.cold_budget(at(1002 + COMMITS_IDLE_MS)).get(), 64 * READ);
        scheduler.observe(at(1002 + COMMITS_IDLE_MS), 4096);
        assert_eq!(scheduler.read_len().get(), READ);
        let stats = scheduler.count_into(ShardStats::default());
        assert_eq!((stats.cold_budget_len, stats.cold_budget_len_min), (READ / 2, READ / 4));
    }

    /// Long commits are compared with what their length lets expect.
    #[test]
    fn a_long_commit_may_take_longer() {
        let mut scheduler = scheduler();
        scheduler.note_committed(at(1000), ID, 204_096, 4096, true);
        scheduler.note_committed(at(1000), ID, 1_200_000, 1 << 20, false);
        assert_eq!(scheduler.cold_budget(at(1000)).get(), 64 * READ);
    }

    /// Reads pause until one commit has been timed without them, or for the longest time they wait.
    #[test]
    fn a_probe_ends_with_a_quiet_commit_or_with_time() {
        let mut scheduler = scheduler();
        scheduler.note_committed(at(1000), ID, 204_096, 4096, false);
        assert_eq!(scheduler.cold_budget(at(1000)).get(), 0, "nothing is known yet");
        scheduler.note_committed(at(1001), ID, 204_096, 4096, true);
        assert_eq!(scheduler.cold_budget(at(1001)).get(), 64 * READ);
        for _ in 0..COMMITS_PER_PROBE - 1 {
            scheduler.note_committed(at(1002), ID, 204_096, 4096, false);
        }
        assert_eq!(scheduler.cold_budget(at(1002)).get(), 64 * READ);
        scheduler.note_committed(at(1002), ID, 204_096, 4096, false);
        assert_eq!(scheduler.cold_budget(at(1002)).get(), 0);
        assert_eq!(scheduler.cold_budget(at(1002 + PROBE_MS_MAX - 1)).get(), 0);
        assert_eq!(scheduler.cold_budget(at(1002 + PROBE_MS_MAX)).get(), 64 * READ);
        let stats = scheduler.count_into(ShardStats::default());
        assert_eq!((stats.cold_probes, stats.cold_paused_ms), (2, 1 + PROBE_MS_MAX));
    }

    /// A partition that commits alone may take all it wants; beside another one it may not.
    #[test]
    fn commits_are_short_while_others_commit() {
        let mut scheduler = scheduler();
        assert_eq!(scheduler.commit_len_max(ID, at(1000)), COMMIT_LEN_MAX);
        scheduler.note_committed(at(1000), ID, 1, 1, true);
        scheduler.note_committed(at(1000), ID, 1, 1, true);
        assert_eq!(scheduler.commit_len_max(ID, at(1001)), COMMIT_LEN_MAX, "alone");
        let other = PartitionId(2);
        assert_eq!(scheduler.commit_len_max(other, at(1001)), SHARED_COMMIT_LEN_MAX);
        scheduler.note_committed(at(1002), other, 1, 1, true);
        assert_eq!(scheduler.commit_len_max(ID, at(1002)), SHARED_COMMIT_LEN_MAX);
        scheduler.note_committed(at(1003), ID, 1, 1, true);
        assert_eq!(scheduler.commit_len_max(ID, at(1002 + COMMITTING_MS - 1)), SHARED_COMMIT_LEN_MAX);
        assert_eq!(scheduler.commit_len_max(ID, at(1002 + COMMITTING_MS)), COMMIT_LEN_MAX);
    }
}
