//! What a driver counts, readable from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one driver; clones share them. The driver's thread alone writes.
#[derive(Clone, Debug)]
pub struct DriverStats(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    turns: AtomicU64,
    kernel_entries: AtomicU64,
    /// Written by the helper.
    replaced_len: Arc<AtomicU64>,
}

impl DriverStats {
    /// All zero, but for what the helper counts.
    pub(crate) fn new(replaced_len: Arc<AtomicU64>) -> Self {
        Self(Arc::new(Counters { turns: AtomicU64::new(0), kernel_entries: AtomicU64::new(0), replaced_len }))
    }

    /// Bytes of memory replaced so far because they had been sent by reference.
    pub fn replaced_len(&self) -> u64 {
        self.0.replaced_len.load(Ordering::Relaxed)
    }

    /// Turns made so far.
    pub fn turns(&self) -> u64 {
        self.0.turns.load(Ordering::Relaxed)
    }

    /// System calls of the shard's own thread so far; helper and pool threads are not counted.
    pub fn kernel_entries(&self) -> u64 {
        self.0.kernel_entries.load(Ordering::Relaxed)
    }

    /// Adds one turn with `kernel_entries` system calls. One writer, so no locked instruction.
    pub(crate) fn add_turn(&self, kernel_entries: u64) {
        self.0.turns.store(self.turns() + 1, Ordering::Relaxed);
        self.0.kernel_entries.store(self.kernel_entries() + kernel_entries, Ordering::Relaxed);
    }
}
