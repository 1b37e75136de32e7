//! When retention looks at the logs, and the time by which it judges what is old. That follows the wall clock, but runs at most twice as fast as time
//! passes: a clock that is set ten years ahead under a running engine wipes no log, and one that was slow is caught up
//! with. What the clock says at the start is believed.

use crate::ops::Now;
use crate::types::{Nanos, Timestamp};

/// How many times as fast as time itself a clock is followed.
const PACE_MAX: u64 = 2;

/// How often retention is looked at, milliseconds.
const INTERVAL_MS: u64 = 5_000;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct RetentionClock {
    started: Option<Now>,
    next: Nanos,
}

impl RetentionClock {
    /// When retention is due next.
    pub(super) const fn next(&self) -> Nanos {
        self.next
    }

    /// Whether retention is due; the next time it is a while later.
    pub(super) fn is_due(&mut self, now: Now) -> bool {
        let due = now.mono >= self.next;
        if due {
            self.next = now.mono.plus_millis(INTERVAL_MS);
        }
        due
    }

    /// The wall clock, or the latest it can honestly show.
    pub(super) fn judge(&mut self, now: Now) -> Timestamp {
        let started = *self.started.get_or_insert(now);
        let elapsed_ms = now.mono.get().saturating_sub(started.mono.get()) / 1_000_000;
        let latest = started.wall.get().saturating_add_unsigned(elapsed_ms.saturating_mul(PACE_MAX));
        Timestamp::new(now.wall.get().min(latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that goes right is followed; one that jumps ahead is followed slowly, one that jumps back at once.
    #[test]
    fn jumps_ahead_are_not_believed() {
        let mut clock = RetentionClock::default();
        let mut judge = |second: u64, wall_s: i64| {
            let now = Now { mono: Nanos::new(second * 1_000_000_000), wall: Timestamp::new(wall_s * 1000) };
            clock.judge(now).get() / 1000
        };
        assert_eq!(judge(100, 5_000), 5_000);
        assert_eq!(judge(160, 5_060), 5_060);
        assert_eq!(judge(160, 5_120), 5_120);
        assert_eq!(judge(160, 5_121), 5_120);
        assert_eq!(judge(200, 400_000_000), 5_200);
        assert_eq!(judge(300, 17), 17);
        assert_eq!(judge(400, 5_300), 5_300);
    }
}
