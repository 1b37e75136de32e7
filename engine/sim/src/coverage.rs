//! What the machine has done to the engine, counted: a fault that never happens tests nothing.

use std::fmt;

use crate::fault::OpKind;

/// One kind of ill-treatment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Happening {
    LookupFailed,
    ReadFailed,
    WriteFailed,
    ResizeFailed,
    SyncFailed,
    EntryFailed,
    ReadShort,
    WriteShort,
    NoSpace,
    NoDescriptor,
    WriteLandedLate,
    PowerCut,
    Kill,
    EndedInRecovery,
    StoppedInOrder,
    CachesDropped,
    PartitionDeleted,
    AppendRefused,
    FetchRefused,
    ConnectionBroken,
}

impl Happening {
    /// All kinds.
    pub const ALL: [Self; 20] = [
        Self::LookupFailed,
        Self::ReadFailed,
        Self::WriteFailed,
        Self::ResizeFailed,
        Self::SyncFailed,
        Self::EntryFailed,
        Self::ReadShort,
        Self::WriteShort,
        Self::NoSpace,
        Self::NoDescriptor,
        Self::WriteLandedLate,
        Self::PowerCut,
        Self::Kill,
        Self::EndedInRecovery,
        Self::StoppedInOrder,
        Self::CachesDropped,
        Self::PartitionDeleted,
        Self::AppendRefused,
        Self::FetchRefused,
        Self::ConnectionBroken,
    ];

    /// The failure of an operation.
    pub(crate) const fn failure_of(kind: OpKind) -> Self {
        match kind {
            OpKind::Lookup => Self::LookupFailed,
            OpKind::Read => Self::ReadFailed,
            OpKind::Write => Self::WriteFailed,
            OpKind::Resize => Self::ResizeFailed,
            OpKind::Sync => Self::SyncFailed,
            OpKind::Entry => Self::EntryFailed,
        }
    }
}

/// How often each kind has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: [u64; Happening::ALL.len()],
}

impl Coverage {
    /// Counts one.
    pub const fn note(&mut self, happening: Happening) {
        self.counts[happening as usize] += 1;
    }

    /// How often it has happened.
    pub const fn count(&self, happening: Happening) -> u64 {
        self.counts[happening as usize]
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
    }

    /// What has never happened.
    pub fn missing(&self) -> Vec<Happening> {
        Happening::ALL.into_iter().filter(|happening| self.count(*happening) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for happening in Happening::ALL {
            writeln!(f, "{:>10} {happening:?}", self.count(happening))?;
        }
        Ok(())
    }
}
