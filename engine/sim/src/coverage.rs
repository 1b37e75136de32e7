//! What the machine has done to the engine, by what the engine was doing: a fault that never happens tests nothing,
//! and neither does one that never happens at the wrong moment.

use std::fmt;

use rohrpost_engine_core::disk::Errno;

use crate::fault::OpKind;

/// Something that merely happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Happening {
    EndedInRecovery,
    StoppedInOrder,
    PartitionDeleted,
    AppendRefused,
    FetchRefused,
    ConnectionBroken,
    AskedAnotherShard,
    DamageRefused,
    DamageServed,
    DamageMissed,
}

impl Happening {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::EndedInRecovery,
        Self::StoppedInOrder,
        Self::PartitionDeleted,
        Self::AppendRefused,
        Self::FetchRefused,
        Self::ConnectionBroken,
        Self::AskedAnotherShard,
        Self::DamageRefused,
        Self::DamageServed,
        Self::DamageMissed,
    ];
}

/// One kind of ill-treatment: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Harm {
    LookupFails,
    ReadFails,
    WriteFails,
    ResizeFails,
    SyncFails,
    EntryFails,
    Cancelled,
    TriedInVain,
    NoMemory,
    NoDescriptor,
    NoSpace,
    NoSlab,
    ReadShort,
    WriteShort,
    Stalled,
    LandedLate,
    CachesDropped,
    ClockForward,
    ClockBack,
    PeerGone,
    PipeRefused,
    NotifiedLate,
    PowerCut,
    Killed,
    BitRot,
    WriteLost,
    WriteAstray,
}

impl Harm {
    /// All kinds.
    pub const ALL: [Self; 27] = [
        Self::LookupFails,
        Self::ReadFails,
        Self::WriteFails,
        Self::ResizeFails,
        Self::SyncFails,
        Self::EntryFails,
        Self::Cancelled,
        Self::TriedInVain,
        Self::NoMemory,
        Self::NoDescriptor,
        Self::NoSpace,
        Self::NoSlab,
        Self::ReadShort,
        Self::WriteShort,
        Self::Stalled,
        Self::LandedLate,
        Self::CachesDropped,
        Self::ClockForward,
        Self::ClockBack,
        Self::PeerGone,
        Self::PipeRefused,
        Self::NotifiedLate,
        Self::PowerCut,
        Self::Killed,
        Self::BitRot,
        Self::WriteLost,
        Self::WriteAstray,
    ];

    /// The failure of an operation.
    pub(crate) const fn of(kind: OpKind, errno: Errno) -> Self {
        match errno {
            Errno::CANCELED => return Self::Cancelled,
            Errno::AGAIN => return Self::TriedInVain,
            Errno::NOMEM => return Self::NoMemory,
            Errno::MFILE => return Self::NoDescriptor,
            Errno::NOSPC => return Self::NoSpace,
            _ => {}
        }
        match kind {
            OpKind::Lookup => Self::LookupFails,
            OpKind::Read | OpKind::ReadAsync => Self::ReadFails,
            OpKind::Write | OpKind::WriteAsync => Self::WriteFails,
            OpKind::Resize => Self::ResizeFails,
            OpKind::Sync | OpKind::SyncAsync => Self::SyncFails,
            OpKind::Entry => Self::EntryFails,
        }
    }
}

/// What the engine is doing: a column of the table. Several may hold at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum State {
    /// No shard runs yet.
    Starting,
    Opening,
    Appending,
    Fetching,
    /// A step makes, extends, seals or indexes a segment.
    Upkeep,
    Deleting,
    Stopping,
    /// Nobody waits for an answer.
    Idle,
}

impl State {
    /// All columns.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Opening,
        Self::Appending,
        Self::Fetching,
        Self::Upkeep,
        Self::Deleting,
        Self::Stopping,
        Self::Idle,
    ];
}

/// What the engine is doing at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States(u16);

impl States {
    /// Only this.
    pub const fn only(state: State) -> Self {
        Self(1 << state as u16)
    }

    /// This as well.
    #[must_use]
    pub const fn and(self, state: State) -> Self {
        Self(self.0 | 1 << state as u16)
    }

    /// Whether this is among it.
    pub const fn has(self, state: State) -> bool {
        self.0 & (1 << state as u16) != 0
    }

    /// This, or [`State::Idle`] where it is nothing.
    #[must_use]
    pub const fn or_idle(self) -> Self {
        if self.0 == 0 { Self::only(State::Idle) } else { self }
    }
}

/// How often everything has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    table: [[u64; State::ALL.len()]; Harm::ALL.len()],
    events: [u64; Happening::ALL.len()],
}

impl Coverage {
    /// Counts something that happened.
    pub const fn note(&mut self, happening: Happening) {
        self.events[happening as usize] += 1;
    }

    /// Counts a harm in every state that holds.
    pub fn suffer(&mut self, harm: Harm, states: States) {
        for state in State::ALL {
            self.table[harm as usize][state as usize] += u64::from(states.has(state));
        }
    }

    /// How often it has happened.
    pub const fn count(&self, happening: Happening) -> u64 {
        self.events[happening as usize]
    }

    /// How often the engine has met this while it was doing that.
    pub const fn met(&self, harm: Harm, state: State) -> u64 {
        self.table[harm as usize][state as usize]
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        let mine = self.table.iter_mut().flatten().chain(&mut self.events);
        let theirs = other.table.iter().flatten().chain(&other.events);
        mine.zip(theirs).for_each(|(sum, count)| *sum += count);
    }

    /// What has never happened: events, and harms in no state at all.
    pub fn missing(&self) -> Vec<String> {
        let events = Happening::ALL.into_iter().filter(|happening| self.count(*happening) == 0);
        let met = |harm: Harm| self.table[harm as usize].iter().sum::<u64>();
        let harms = Harm::ALL.into_iter().filter(|harm| met(*harm) == 0);
        events.map(|event| format!("{event:?}")).chain(harms.map(|harm| format!("{harm:?}"))).collect()
    }

    /// Cells of the table that are empty although they need not be.
    pub fn empty(&self) -> Vec<(Harm, State)> {
        let cells = Harm::ALL.into_iter().flat_map(|harm| State::ALL.map(|state| (harm, state)));
        cells.filter(|(harm, state)| self.met(*harm, *state) == 0 && never(*harm, *state).is_none()).collect()
    }
}

/// Why a harm cannot befall the engine in a state, if it cannot.
pub fn never(harm: Harm, state: State) -> Option<&'static str> {
    let ring = matches!(
        harm,
        Harm::Cancelled
            | Harm::TriedInVain
            | Harm::ReadShort
            | Harm::WriteShort
            | Harm::Stalled
            | Harm::NoSlab
            | Harm::PeerGone
            | Harm::PipeRefused
            | Harm::NotifiedLate
    );
    match (harm, state) {
        (_, State::Starting) if ring => Some("no shard runs yet"),
        (Harm::ClockForward | Harm::ClockBack | Harm::CachesDropped, State::Starting) => {
            Some("the machine acts between turns of a shard, and none runs yet")
        }
        (Harm::PipeRefused, State::Idle) => Some("a pipe is filled for an answer that a client waits for"),
        (Harm::BitRot | Harm::WriteLost | Harm::WriteAstray, State::Starting) => None,
        (Harm::BitRot | Harm::WriteLost | Harm::WriteAstray, _) => {
            Some("media are damaged at rest; what is in memory or on its way is whole")
        }
        (Harm::WriteFails | Harm::ResizeFails, State::Starting) => {
            Some("starting makes, renames and removes names, and writes no bytes")
        }
        (Harm::LandedLate, State::Appending | State::Deleting | State::Stopping | State::Idle) => {
            Some("a segment is locked before clients see it, and its lock waits for such writes")
        }
        _ => None,
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for happening in Happening::ALL {
            writeln!(f, "{:>10} {happening:?}", self.count(happening))?;
        }
        write!(f, "\n{:14}", "")?;
        State::ALL.iter().try_for_each(|state| write!(f, "{:>10}", format!("{state:?}")))?;
        let mut reasons = Vec::new();
        for harm in Harm::ALL {
            write!(f, "\n{:14}", format!("{harm:?}"))?;
            for state in State::ALL {
                match (self.met(harm, state), never(harm, state)) {
                    (0, Some(reason)) => {
                        if !reasons.contains(&reason) {
                            reasons.push(reason);
                        }
                        let number = reasons.iter().position(|known| *known == reason).unwrap_or(0) + 1;
                        write!(f, "{:>10}", format!("({number})"))?;
                    }
                    (count, _) => write!(f, "{count:>10}")?,
                }
            }
        }
        writeln!(f)?;
        let mut notes = reasons.iter().enumerate();
        notes.try_for_each(|(at, reason)| writeln!(f, "({}) cannot be: {reason}", at + 1))
    }
}
