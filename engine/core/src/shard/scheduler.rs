//! The device scheduler: what beside commits may go to the device, and how much of it.
//!
//! Owns the shard's view of its commits: how many bytes a second they bring. Deterministic: time comes in. Does not
//! queue anything itself.

use crate::ops::Now;
use crate::types::Nanos;

/// The commit rate is measured over this long.
const RATE_WINDOW_MS: u64 = 20;

/// Zeros are written while commits bring at most so many bytes a second: beyond that the device's bandwidth is what
/// they wait for, and every zero takes some of it.
const ZERO_RATE_MAX: u64 = 256_000_000;

/// See the module documentation.
pub(super) struct Scheduler {
    window_start: Nanos,
    committed_then: u64,
    /// Bytes per second in the last window.
    rate: u64,
}

impl Scheduler {
    pub(super) fn new() -> Self {
        Self { window_start: Nanos::ZERO, committed_then: 0, rate: 0 }
    }

    /// Takes note of the time and of all bytes committed until now. Call it once a turn.
    pub(super) fn observe(&mut self, now: Now, committed: u64) {
        let elapsed = now.mono.get().saturating_sub(self.window_start.get());
        if elapsed >= RATE_WINDOW_MS * 1_000_000 {
            let len = u128::from(committed - self.committed_then);
            // A window of at least some milliseconds: the quotient fits.
            self.rate = (len * 1_000_000_000 / u128::from(elapsed)) as u64;
            self.window_start = now.mono;
            self.committed_then = committed;
        }
    }

    /// Whether the device has time for zeros ahead of the writers.
    pub(super) fn allows_zeros(&self) -> bool {
        self.rate <= ZERO_RATE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn at(ms: u64) -> Now {
        Now { mono: Nanos::ZERO.plus_millis(ms), wall: Timestamp::new(0) }
    }

    /// Zeros stop within a window of commits coming faster than the limit, and go on when they have slowed down.
    #[test]
    fn zeros_make_way_for_fast_commits() {
        let mut scheduler = Scheduler::new();
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
}
