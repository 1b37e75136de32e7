//! Which faults a run injects and how often, and how long operations take. All chances are in 65,536.

use rohrpost_engine_core::disk::Errno;

use crate::prng::Prng;

/// What kind of file operation is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Opening, creating, locking, listing, measuring.
    Lookup,
    /// Reading bytes, as a step waits for it.
    Read,
    /// Reading bytes on the data path.
    ReadAsync,
    /// Writing bytes, as a step waits for it.
    Write,
    /// Writing bytes on the data path.
    WriteAsync,
    /// Reserving blocks, cutting, extending.
    Resize,
    /// Making a file or a directory durable, as a step waits for it.
    Sync,
    /// Making a file durable on the data path.
    SyncAsync,
    /// Creating, renaming, removing entries.
    Entry,
}

/// A machine that breaks its word, planted to see whether the checkers notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Durable writes complete before they are durable.
    DurableWrite,
    /// Syncs of files do nothing.
    Sync,
    /// Syncs of directories do nothing.
    SyncDirectory,
    /// One read in a while brings bytes of another place.
    MisdirectedRead,
    /// One write in a while lands one block off.
    MisdirectedWrite,
    /// One write in a while never completes.
    LostCompletion,
    /// The memory of one write in a while never comes back.
    LeakedMemory,
}

impl Lie {
    /// Every lie.
    pub const ALL: &'static [Self] = &[
        Self::DurableWrite,
        Self::Sync,
        Self::SyncDirectory,
        Self::MisdirectedRead,
        Self::MisdirectedWrite,
        Self::LostCompletion,
        Self::LeakedMemory,
    ];
}

/// Chances of faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A read fails.
    pub read_eio: u32,
    /// A read ends early.
    pub read_short: u32,
    /// A write fails; any of its sectors may have landed.
    pub write_eio: u32,
    /// A write ends early.
    pub write_short: u32,
    /// A sync fails; what it covered may or may not be durable.
    pub sync_eio: u32,
    /// Another file operation fails.
    pub other_eio: u32,
    /// The process has no descriptor left.
    pub open_mfile: u32,
}

impl Faults {
    /// So many faults that some fall into the short moments.
    pub const MANY: Self = Self {
        read_eio: 20_000,
        read_short: 20_000,
        write_eio: 16_000,
        write_short: 16_000,
        sync_eio: 12_000,
        other_eio: 6_000,
        open_mfile: 6_000,
    };

    /// Nothing fails.
    pub const NONE: Self = Self {
        read_eio: 0,
        read_short: 0,
        write_eio: 0,
        write_short: 0,
        sync_eio: 0,
        other_eio: 0,
        open_mfile: 0,
    };

    /// The fault that befalls an operation of this kind, if any.
    pub(crate) fn draw(&self, kind: OpKind, prng: &mut Prng) -> Option<Errno> {
        let chance = match kind {
            OpKind::Read | OpKind::ReadAsync => self.read_eio,
            OpKind::Write | OpKind::WriteAsync => self.write_eio,
            OpKind::Sync | OpKind::SyncAsync => self.sync_eio,
            OpKind::Lookup | OpKind::Resize | OpKind::Entry => self.other_eio,
        };
        if prng.chance(chance) {
            return Some(*prng.pick(Self::errors_of(kind)));
        }
        (kind == OpKind::Lookup && prng.chance(self.open_mfile)).then_some(Errno::MFILE)
    }

    /// What an operation of this kind may fail with, the likely ones several times. A file system that reserves
    /// blocks late finds the disk full in a sync.
    const fn errors_of(kind: OpKind) -> &'static [Errno] {
        const IO: Errno = Errno::IO;
        match kind {
            OpKind::ReadAsync | OpKind::WriteAsync => &[IO, IO, Errno::CANCELED, Errno::AGAIN, Errno::NOMEM],
            OpKind::SyncAsync => &[IO, IO, Errno::CANCELED, Errno::AGAIN, Errno::NOMEM, Errno::NOSPC],
            OpKind::Sync => &[IO, IO, IO, Errno::NOSPC],
            OpKind::Lookup | OpKind::Read | OpKind::Write | OpKind::Resize | OpKind::Entry => {
                &[IO, IO, Errno::NOMEM]
            }
        }
    }

    /// Whether anything can fail.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// How long operations take, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// The usual least.
    pub low: u64,
    /// The usual most.
    pub high: u64,
    /// Chance of a stall.
    pub stall: u32,
    /// Length of a stall.
    pub stall_len: u64,
}

impl Delays {
    /// A device in good health.
    pub const QUICK: Self = Self { low: 10_000, high: 300_000, stall: 0, stall_len: 0 };

    /// How long the next operation takes.
    pub(crate) fn draw(&self, prng: &mut Prng) -> u64 {
        if prng.chance(self.stall) {
            return self.high + 1 + prng.below(self.stall_len.max(1));
        }
        prng.magnitude(self.low, self.high)
    }

    /// Whether an operation that takes so long has stalled.
    pub(crate) const fn is_stall(&self, delay: u64) -> bool {
        delay > self.high
    }
}
