//! What a driver counts, readable from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rohrpost_engine_core::fetch::ModeSet;
use rohrpost_engine_core::ops::DiskOp;
use rohrpost_engine_core::platform::Platform;

/// Powers of two that the lengths of writes are told apart by: up to 16 MiB, more than a commit.
const WRITE_LENS: usize = 25;

/// Counters of one driver; clones share them. The driver's thread alone writes.
#[derive(Clone, Debug)]
pub struct DriverStats {
    counters: Arc<Counters>,
    modes: ModeSet,
}

#[derive(Debug)]
struct Counters {
    turns: AtomicU64,
    kernel_entries: AtomicU64,
    /// Written by the helper.
    replaced_len: Arc<AtomicU64>,
    /// Count and bytes of the writes, by the power of two below their length.
    writes: [[AtomicU64; 2]; WRITE_LENS],
}

/// Writes of like length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// How many.
    pub count: u64,
    /// Their bytes, whole blocks as they went to the device.
    pub len: u64,
}

impl DriverStats {
    /// All zero, but for what the helper counts.
    pub(crate) fn new(replaced_len: Arc<AtomicU64>) -> Self {
        let counters = Counters {
            turns: AtomicU64::new(0),
            kernel_entries: AtomicU64::new(0),
            replaced_len,
            writes: Default::default(),
        };
        Self { counters: Arc::new(counters), modes: ModeSet::of(&[]) }
    }

    /// The same counters, of a driver that offers these modes.
    #[must_use]
    pub fn offering(self, modes: ModeSet) -> Self {
        Self { modes, ..self }
    }

    /// The transfer modes that the driver offers on this host; forcing another one is refused.
    pub fn modes(&self) -> ModeSet {
        self.modes
    }

    /// Bytes of memory replaced so far because they had been sent by reference.
    pub fn replaced_len(&self) -> u64 {
        self.counters.replaced_len.load(Ordering::Relaxed)
    }

    /// Turns made so far.
    pub fn turns(&self) -> u64 {
        self.counters.turns.load(Ordering::Relaxed)
    }

    /// System calls of the shard's own thread so far; helper and pool threads are not counted.
    pub fn kernel_entries(&self) -> u64 {
        self.counters.kernel_entries.load(Ordering::Relaxed)
    }

    /// Writes to segments so far; entry `n` has those of `2^n` to `2^(n+1)` bytes, the last one all longer ones.
    pub fn writes(&self) -> Vec<Writes> {
        let load = |[count, len]: &[AtomicU64; 2]| Writes {
            count: count.load(Ordering::Relaxed),
            len: len.load(Ordering::Relaxed),
        };
        self.counters.writes.iter().map(load).collect()
    }

    /// Counts the writes among these operations.
    pub(crate) fn add_writes<P: Platform>(&self, ops: &[DiskOp<P>]) {
        for op in ops {
            let DiskOp::Write(write) = op else { continue };
            let len = write.len.get();
            let [count, bytes] = &self.counters.writes[(len.max(1).ilog2() as usize).min(WRITE_LENS - 1)];
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            bytes.store(bytes.load(Ordering::Relaxed) + len, Ordering::Relaxed);
        }
    }

    /// Adds one turn with `kernel_entries` system calls. One writer, so no locked instruction.
    pub(crate) fn add_turn(&self, kernel_entries: u64) {
        self.counters.turns.store(self.turns() + 1, Ordering::Relaxed);
        self.counters.kernel_entries.store(self.kernel_entries() + kernel_entries, Ordering::Relaxed);
    }
}
