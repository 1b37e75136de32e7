//! Chunks, the one writer of a run, and leases, its readers.
//!
//! Always holds: a chunk writes only at or behind its frozen end, leases read only before it, and the
//! frozen end never moves back. Readers and writer are disjoint by construction.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use rohrpost_engine_core::platform::{Chunk, Lease};

use super::slab::Run;

/// Memory with one writer; see [`Chunk`].
pub struct LinuxChunk {
    run: Run,
    len: usize,
    frozen: usize,
}

/// Memory with any number of readers; see [`Lease`]. Cloning counts, it does not allocate.
#[derive(Clone)]
pub struct LinuxLease {
    run: Run,
    /// Within the run.
    from: u32,
    len: u32,
}

impl LinuxChunk {
    /// The one chunk of a run that has no other owner.
    pub(super) fn new(run: Run) -> Self {
        let len = run.len();
        Self { run, len, frozen: 0 }
    }

    /// Number of the slab in its arena, and so of its registered buffer.
    pub fn slab_index(&self) -> u32 {
        self.run.slab().index
    }

    /// Address of the unfrozen byte `at`, for the kernel to write to while an operation owns the chunk.
    ///
    /// # Panics
    /// If `at` is frozen or beyond the chunk.
    pub(crate) fn unfrozen_address(&mut self, at: usize) -> NonNull<u8> {
        assert!(at >= self.frozen, "U2: byte {at} is frozen up to {}", self.frozen);
        assert!(at <= self.len, "U2: byte {at} of {}", self.len);
        self.run.address(at)
    }

    /// Address of the chunk's first byte, for the kernel to read from while an operation owns the chunk.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.run.address(0)
    }

    /// The whole chunk, for reading through its only owner.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: [U2] the run is mapped; only this chunk writes to it, and `&self` excludes that.
        unsafe { std::slice::from_raw_parts(self.run.address(0).as_ptr(), self.len) }
    }
}

impl Chunk for LinuxChunk {
    type Lease = LinuxLease;

    fn len(&self) -> usize {
        self.len
    }

    fn frozen(&self) -> usize {
        self.frozen
    }

    fn unfrozen_mut(&mut self) -> &mut [u8] {
        let start = self.run.address(self.frozen).as_ptr();
        // SAFETY: [U2] no lease reaches behind the frozen end, and this chunk is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, self.len - self.frozen) }
    }

    fn freeze(&mut self, end: usize) {
        assert!(end >= self.frozen, "U2: frozen end {} cannot move back to {end}", self.frozen);
        assert!(end <= self.len, "U2: frozen end {end} beyond {}", self.len);
        self.frozen = end;
    }

    fn lease(&self, range: Range<usize>) -> LinuxLease {
        assert!(range.start <= range.end, "U2: {range:?}");
        assert!(range.end <= self.frozen, "U2: {range:?} is frozen only up to {}", self.frozen);
        LinuxLease { run: self.run.clone(), from: range.start as u32, len: range.len() as u32 }
    }
}

impl LinuxLease {
    /// Number of the slab in its arena, and so of its registered buffer there.
    pub fn slab_index(&self) -> u32 {
        self.run.slab().index
    }

    /// Allows the kernel to keep these bytes beyond the lease: their page is replaced before it is used
    /// again. `false`: they must be copied.
    pub(crate) fn lend(&self) -> bool {
        self.run.lend()
    }

    /// Address of the first byte, for the kernel to read from while an operation owns the lease.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.run.address(self.from as usize)
    }
}

impl AsRef<[u8]> for LinuxLease {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: [U2] the range lies before the frozen end, where nobody writes while this owner lives.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), self.len as usize) }
    }
}

impl Lease for LinuxLease {
    fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end, "U2: {range:?}");
        assert!(range.end <= self.len as usize, "U2: {range:?} of a lease of {}", self.len);
        Self { run: self.run.clone(), from: self.from + range.start as u32, len: range.len() as u32 }
    }

    fn sent_before(&self) -> u64 {
        self.run.sent().map_or(0, |sent| sent.load(Ordering::Relaxed))
    }

    fn count_sent(&self, len: u64) {
        if let Some(sent) = self.run.sent() {
            sent.fetch_add(len, Ordering::Relaxed);
        }
    }

    fn holds_up(&self) -> bool {
        self.run.holds_up()
    }

    fn len(&self) -> usize {
        self.len as usize
    }
}

impl LinuxLease {
    pub(super) fn run(&self) -> &Run {
        &self.run
    }
}

impl fmt::Debug for LinuxChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinuxChunk({} of {} frozen)", self.frozen, self.len)
    }
}

impl fmt::Debug for LinuxLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinuxLease({} bytes)", self.len)
    }
}
