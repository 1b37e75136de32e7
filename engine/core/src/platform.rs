//! The seam to the machine: what a driver provides and what the core may do with it.
//!
//! A [`Platform`] names one driver's memory, file and disk types, so that the core is compiled once per
//! driver and nothing is dispatched dynamically on the data path. Memory moves: a chunk handed to an
//! operation is gone until its completion returns it; leases are counted, so memory that an operation
//! still names cannot be reused.

use std::fmt::Debug;
use std::ops::Range;

use crate::disk::Disk;
use crate::fetch::ModeSet;
use crate::types::ByteCount;

/// Unit in which segments are written and read directly. Every direct transfer starts and ends on a
/// multiple of it, in the file and in memory. 4096 covers devices with 512 and with 4096-byte sectors.
pub const DIRECT_IO_ALIGN: u64 = 4096;

/// Smallest chunk of the arena, and the granule of the read cache.
pub const CHUNK_LEN_MIN: ByteCount = ByteCount::kib(64);

/// Largest chunk of the arena.
pub const CHUNK_LEN_MAX: ByteCount = ByteCount::mib(1);

/// The arena grows by slabs of this length, the length of 32 transparent huge pages.
pub const SLAB_LEN: ByteCount = ByteCount::mib(64);

const _: () = assert!(CHUNK_LEN_MIN.get().is_multiple_of(DIRECT_IO_ALIGN));
const _: () = assert!(CHUNK_LEN_MAX.get().is_multiple_of(CHUNK_LEN_MIN.get()));
const _: () = assert!(SLAB_LEN.get().is_multiple_of(CHUNK_LEN_MAX.get()));

/// One driver's types and abilities.
pub trait Platform: Sized + 'static {
    /// Blocking file operations, for steps that run on a helper thread.
    type Disk: Disk<File = Self::File>;
    /// An open segment file. Clones share one descriptor, which closes with the last clone.
    type File: OpenFile;
    /// The shard's memory.
    type Arena: Arena<Chunk = Self::Chunk, Lease = Self::Lease, Slab = Self::Slab>;
    /// Fresh memory on its way into an arena.
    type Slab: Send + 'static;
    /// Memory with one writer.
    type Chunk: Chunk<Lease = Self::Lease>;
    /// Memory with any number of readers.
    type Lease: Lease;
    /// Bytes received on a connection; the buffer returns to the driver when dropped.
    type RecvBuf: AsRef<[u8]>;

    /// The transfer modes that this driver can execute where the host has what they need.
    const MODES: ModeSet;
}

/// What a chunk is taken for, and so about how long it will be kept. Chunks of one kind that are taken one after the
/// other lie side by side, and are given up about together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes of a log that are being appended.
    Written,
    /// Bytes of a log that are read from the device.
    Read,
}

/// An open file.
pub trait OpenFile: Clone + Send + Sync + Debug + 'static {
    /// Whether somebody else holds the descriptor as well. If not, dropping this closes the file, and with it goes its
    /// lock.
    fn is_shared(&self) -> bool;
}

/// A shard's memory: slabs cut into chunks of a power of two from [`CHUNK_LEN_MIN`] to
/// [`CHUNK_LEN_MAX`]. A chunk returns by itself when its last owner drops it, on whichever thread.
///
/// Memory may be sent by reference; then it is *lent*, and replaced by the driver, page by page, before any of it is
/// taken again.
pub trait Arena {
    /// See [`Platform::Chunk`].
    type Chunk: Chunk<Lease = Self::Lease>;
    /// See [`Platform::Lease`].
    type Lease: Lease;
    /// See [`Platform::Slab`].
    type Slab;

    /// A chunk of `len` bytes (a power of two within the chunk limits), aligned to
    /// [`DIRECT_IO_ALIGN`], with nothing frozen. Its content is unspecified. `None` when no free
    /// run of that length exists.
    fn take(&mut self, len: ByteCount, content: Content) -> Option<Self::Chunk>;

    /// One block of [`DIRECT_IO_ALIGN`] bytes from the same slab as `beside`, for the last,
    /// partly filled block of a commit. `None` when all of that slab's bounce blocks are in flight.
    fn take_bounce(&mut self, beside: &Self::Lease) -> Option<Self::Chunk>;

    /// Adds a slab that a [`crate::ops::Event::Grown`] brought.
    fn adopt(&mut self, slab: Self::Slab);

    /// Bytes of all adopted slabs that chunks can be taken from.
    fn capacity(&self) -> ByteCount;

    /// Bytes not taken at this moment.
    fn free_len(&self) -> ByteCount;

    /// Bytes of pages that are lent.
    fn lent_len(&self) -> ByteCount;

    /// Bytes of whole pages that are free, or become free without further ado: the driver is replacing them.
    fn coming_len(&self) -> ByteCount;

    /// Whether memory should be lent now. Not while much of what was lent cannot be replaced, because its pages have
    /// owners still; what is to be sent by reference is copied then.
    fn lends(&self) -> bool;

    /// Takes stock of what has returned, so that lent memory is replaced ahead of need. Called every turn.
    fn settle(&mut self);
}

/// Memory with one writer: `[0, frozen)` is immutable and may be leased, the rest may be written.
pub trait Chunk: Send + 'static {
    /// See [`Platform::Lease`].
    type Lease: Lease;

    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether the length is zero; a chunk's never is.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// End of the immutable prefix.
    fn frozen(&self) -> usize;

    /// The writable rest, `[frozen, len)`.
    fn unfrozen_mut(&mut self) -> &mut [u8];

    /// Makes `[0, end)` immutable for as long as the chunk or a lease on it lives.
    ///
    /// # Panics
    /// If `end` lies before the frozen end or beyond the chunk.
    fn freeze(&mut self, end: usize);

    /// A counted reader of a frozen range.
    ///
    /// # Panics
    /// If the range reaches beyond the frozen end.
    fn lease(&self, range: Range<usize>) -> Self::Lease;
}

/// A counted, read-only view of frozen memory. Cloning does not allocate.
pub trait Lease: Clone + Send + Sync + AsRef<[u8]> + 'static {
    /// A view of a part of this one.
    ///
    /// # Panics
    /// If the range reaches beyond this view.
    fn slice(&self, range: Range<usize>) -> Self;

    /// Bytes of this lease's chunk counted as sent, over all leases on it. Zero again when the chunk's memory is
    /// taken anew.
    fn sent_before(&self) -> u64;

    /// Counts `len` bytes of the chunk as sent.
    fn count_sent(&self, len: u64);

    /// Whether memory beside this one, of the same page, was given up and cannot be used before this one is given up
    /// too.
    fn holds_up(&self) -> bool;

    /// Length in bytes.
    fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// Whether the view is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
