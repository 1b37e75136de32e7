//! What runs have seen, counted: how much was at stake, and how much was checked.

use crate::coverage::Coverage;

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Hash of everything that happened.
    pub trace_hash: u64,
    /// Ends by force while something was not durable, in flight or not acknowledged.
    pub crash_points: u64,
    /// Lives, the last orderly ones included.
    pub lives: u64,
    /// Ends by force before every partition had been opened and read.
    pub cut_in_recovery: u64,
    /// Power cuts while a write was in flight.
    pub cut_in_write: u64,
    /// Whether the operation that was to fail has come.
    pub struck: bool,
    /// Appends acknowledged.
    pub acked: u64,
    /// Bytes served and compared.
    pub served_len: u64,
    /// Of these, bytes that came over connections.
    pub sent_len: u64,
    /// File operations.
    pub disk_ops: u64,
    /// What the machine has done to the engine.
    pub coverage: Coverage,
}

impl Outcome {
    /// Adds another run's. The hash is that of all hashes in order.
    pub fn add(&mut self, other: &Self) {
        self.trace_hash = self.trace_hash.rotate_left(7) ^ other.trace_hash;
        self.crash_points += other.crash_points;
        self.lives += other.lives;
        self.cut_in_recovery += other.cut_in_recovery;
        self.cut_in_write += other.cut_in_write;
        self.struck |= other.struck;
        self.acked += other.acked;
        self.served_len += other.served_len;
        self.sent_len += other.sent_len;
        self.disk_ops += other.disk_ops;
        self.coverage.add(&other.coverage);
    }
}
