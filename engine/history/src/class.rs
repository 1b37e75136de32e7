//! The names of what can go wrong.

use std::fmt;

/// What kind of promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// What was acknowledged is not there.
    LostWrite,
    /// One batch at two offsets.
    Duplicate,
    /// What was refused is served.
    AbortedRead,
    /// One offset, two batches.
    InconsistentOffsets,
    /// An answer leaves out records that are there, or offsets that nobody has.
    PollSkip,
    /// An answer goes back: it begins before what was asked for, or its batches do not ascend.
    NonMonotonicPoll,
    /// What one client sent later lies before what it sent earlier.
    NonMonotonicSend,
    /// What was once served is gone.
    Phantom,
    /// What was sent to an engine that has ended joins the log of a later one that was open already.
    Resurrected,
    /// An answer holds records beyond the high watermark that it names.
    PrecommittedRead,
    /// The high watermark went back.
    HighWatermarkRegress,
    /// The log starts before records that were deleted.
    LogStartRegress,
    /// Bytes that nobody has sent to this partition.
    Garbage,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 13] = [
        Self::LostWrite,
        Self::Duplicate,
        Self::AbortedRead,
        Self::InconsistentOffsets,
        Self::PollSkip,
        Self::NonMonotonicPoll,
        Self::NonMonotonicSend,
        Self::Phantom,
        Self::Resurrected,
        Self::PrecommittedRead,
        Self::HighWatermarkRegress,
        Self::LogStartRegress,
        Self::Garbage,
    ];

    /// As reports name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LostWrite => "lost-write",
            Self::Duplicate => "duplicate",
            Self::AbortedRead => "aborted-read",
            Self::InconsistentOffsets => "inconsistent-offsets",
            Self::PollSkip => "poll-skip",
            Self::NonMonotonicPoll => "nonmonotonic-poll",
            Self::NonMonotonicSend => "nonmonotonic-send",
            Self::Phantom => "phantom",
            Self::Resurrected => "resurrected",
            Self::PrecommittedRead => "precommitted-read",
            Self::HighWatermarkRegress => "high-watermark-regress",
            Self::LogStartRegress => "log-start-regress",
            Self::Garbage => "garbage",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What kind it is.
    pub class: Class,
    /// Of which partition.
    pub partition: usize,
    /// Index of the event that shows it; the number of events for what only the end shows.
    pub event: u64,
    /// Offsets and batches.
    pub story: String,
}

impl Violation {
    pub(crate) fn new(class: Class, story: String) -> Self {
        Self { class, partition: 0, event: 0, story }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: partition {}, event {}: {}", self.class, self.partition, self.event, self.story)
    }
}

impl std::error::Error for Violation {}
