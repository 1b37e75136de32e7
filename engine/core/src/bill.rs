//! What an engine takes from its host, as a bill: memory and descriptors, item by item.
//!
//! Each part that allocates by its limits states its items beside the code that does; the facade adds them up. Always
//! holds: what a shard takes at its start is on the bill, and so is what its limits let it take later. Not on it: the
//! indexes of partitions, which grow with the log, and what sockets hold in the kernel.

use crate::types::ByteCount;

/// The item of the arena.
pub const ARENA: &str = "arena: appends and read cache";

/// When something is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// At the start.
    Start,
    /// When it is needed, up to this.
    Use,
}

/// What memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// From the allocator.
    Heap,
    /// Mapped pages.
    Pages,
    /// Mapped pages, which count as locked memory as far as the limit on it allows; beyond it they are used all the same.
    PagesLockedIfAllowed,
    /// Pages of the kernel that count as locked memory; without them there is no ring.
    Locked,
    /// The kernel's, on behalf of the process.
    Kernel,
}

/// One item of a bill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is for.
    pub what: &'static str,
    /// When it is taken.
    pub due: Due,
    /// What kind of memory it is.
    pub memory: Memory,
    /// How much of it, bytes.
    pub len: ByteCount,
    /// Descriptors.
    pub descriptors: u64,
}

impl Item {
    /// Heap memory of `len` bytes from the start on.
    pub const fn at_start(what: &'static str, len: usize) -> Self {
        Self { what, due: Due::Start, memory: Memory::Heap, len: ByteCount::new(len as u64), descriptors: 0 }
    }

    /// Heap memory of up to `len` bytes.
    pub const fn in_use(what: &'static str, len: usize) -> Self {
        Self { due: Due::Use, ..Self::at_start(what, len) }
    }

    /// The same, of another kind of memory.
    #[must_use]
    pub const fn of(self, memory: Memory) -> Self {
        Self { memory, ..self }
    }

    /// The same, with descriptors.
    #[must_use]
    pub const fn with_descriptors(self, descriptors: u64) -> Self {
        Self { descriptors, ..self }
    }
}

/// Bytes of a table of `count` values.
pub const fn table_len<T>(count: usize) -> usize {
    count * size_of::<T>()
}
