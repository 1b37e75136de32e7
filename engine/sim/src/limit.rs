//! Liveness: how long something may take once the disk is healthy.

use crate::life::Life;
use crate::workload::Workload;

/// Turns within which everything outstanding must be answered once the disk is healthy.
const TURNS_MAX: u64 = 20_000;

/// Turns after which an ailing disk is healed, so that partitions can be opened at all.
const TRIES: u64 = 400;

/// Virtual time within which the same must happen, nanoseconds.
const PATIENCE_NS: u64 = 300_000_000_000;

/// How long something may take on a healthy disk.
pub(crate) struct Limit {
    turns: u64,
    until: u64,
}

impl Limit {
    pub(crate) fn new(life: &Life) -> Self {
        Self { turns: life.turns + TURNS_MAX, until: life.now().mono.get() + PATIENCE_NS }
    }

    /// Whether there has been enough of trying on a disk that is not healthy.
    pub(crate) fn is_tried(&self, life: &Life) -> bool {
        life.turns + TURNS_MAX - TRIES > self.turns || life.now().mono.get() + PATIENCE_NS / 2 > self.until
    }

    pub(crate) fn check(&mut self, life: &Life, workload: &Workload) {
        let now = life.now().mono.get();
        assert!(
            life.turns < self.turns && now < self.until,
            "no progress: {:?}, {:?}",
            workload.standing,
            workload.outstanding
        );
    }
}
