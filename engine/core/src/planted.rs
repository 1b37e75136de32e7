//! Bugs planted in shipped code, to see whether the suite notices: one switch each, chosen by name at run time.
//!
//! Only with the feature `planted-bugs`, which no shipped build has: without it `is_planted` is a constant, and nothing of
//! this is compiled. What catches each of them stands in `engine/sim/src/bin/planted.rs`. A bug is planted for the
//! thread that asks, since the simulator runs an engine on one, or for a process from its start, as tests are run with.

macro_rules! bugs {
    ($($name:ident: $breaks:literal,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $breaks] $name,)*
        }

        impl Bug {
            /// Every bug.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it breaks, in a sentence.
            pub const fn breaks(self) -> &'static str {
                match self {
                    $(Self::$name => $breaks,)*
                }
            }
        }
    };
}

bugs! {
    AckBeforeSync: "Commits past the page cache are not durable when they complete.",
    AckWithoutSync: "A buffered commit is acknowledged without the sync behind it.",
    AckFailedSync: "A sync that has failed counts as one that has not.",
    AckFailedWrite: "A write that has failed counts as one that has not.",
    AckShortWrite: "A write that came back short is taken for whole.",
    AckWhatIsNotWritten: "An acknowledgement leaves with the commit before its own.",
    AckWithWrongOffset: "An acknowledgement names the offset behind its batch.",
    ForgetBounce: "The last, partly filled block of a commit is not written.",
    ShowLogStartEarly: "Readers see a new log start before it is on the device.",
    ForgetTheGuard: "The copy that guards the last block is not written.",
    BounceZeros: "The copy of the last block is made before its bytes are.",
    LeakTailChunk: "The memory of a written chunk never comes back.",
    CacheBeforeValid: "A chunk that goes to the cache forgets where its bytes begin.",
    ServePastHighWatermark: "Readers see the log end instead of the durable end.",
    HighWatermarkIsLogEnd: "The high watermark told is the log end.",
    HighWatermarkRegress: "While a commit is in flight the high watermark told is the segment's start.",
    KeepRefusedBatch: "A batch whose checksum is wrong stays in the log.",
    WrongOffsetInBatch: "The second batch of a request gets the offset of the first.",
    TailWithoutItsBlock: "The last block is not read back before it is written again.",
    DuplicateOnRetry: "An append that had to wait is made twice.",
    SkipDirectorySync: "The name of a new segment is not made durable.",
    SealWithoutSync: "A sealed segment is not synced before the recovery point moves behind it.",
    ForgetLogStart: "Segments are unlinked before the log start offset is durable.",
    PreparedNameNotDurable: "A prepared segment gets its name without a sync of the directory.",
    ReplaceWithoutSync: "A replaced file gets its name before its bytes are durable.",
    ReplaceWithoutDirectorySync: "A replaced file may be the old one after a power cut.",
    KeepCleanMarker: "The marker of a clean stop outlives the start.",
    ForgetLogStartAtClose: "A clean stop writes an older log start offset.",
    TornTailIsCorruption: "A torn tail is refused like damage in the middle.",
    KeepTornTail: "A torn tail is not cut off.",
    AcceptBadChecksum: "Recovery believes batches whose checksum is wrong.",
    WrongOffsetAfterRecovery: "The log goes on one offset behind its end.",
    DeleteOneSegmentTooMany: "A deletion takes the segment that holds the log start.",
    TrimBeyondHighWatermark: "Records beyond the high watermark may be deleted.",
    SealBeforeCommit: "A full segment is sealed while its last commit is not durable.",
    RetryFailedSync: "A failed sync is tried again, and believed.",
    ReadAfterFailedSync: "What a failed sync may have taken is read from its file.",
    KeepTailOfFailed: "A partition that has failed keeps the memory of what it will never write.",
    RecoverFromPageCache: "Recovery reads what the page cache says.",
    ReadPastLease: "An answer's pieces reach to the end of what is frozen, whatever was planned.",
    KeepProducersEpoch: "The leader epoch is not written into batches.",
    LowerEpochOnReopen: "The leader epochs of earlier lives are forgotten.",
    CutInTheMiddle: "Damage in the middle of a log is cut off like a torn tail.",
    ForgetRecoveryPoint: "Damage below the recovery point is taken for a torn tail.",
    SkipRewrite: "What recovery accepts is served without being made durable.",
    RecoverWithoutLock: "Recovery does not wait for what a killed process has in flight.",
    ReuseBeforeNotification: "Memory that the kernel sends in place is given back before the kernel is done with it.",
    ReuseLentPage: "A page that was sent by reference is handed out again without having been replaced.",
    CancelledCountsAsSent: "A send that was taken back counts as sent.",
}

/// The variable of the environment that names the bug of a process.
#[cfg(feature = "planted-bugs")]
pub const VARIABLE: &str = "ROHRPOST_PLANTED_BUG";

#[cfg(feature = "planted-bugs")]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

#[cfg(feature = "planted-bugs")]
static OF_PROCESS: std::sync::LazyLock<Option<Bug>> = std::sync::LazyLock::new(|| {
    let name = std::env::var(VARIABLE).ok()?;
    let bug = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
    Some(*bug.unwrap_or_else(|| panic!("{VARIABLE} names no bug: {name}")))
});

/// Plants a bug for this thread, in the place of the last one.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
///
/// # Panics
/// If the environment names a bug that there is not.
#[cfg(feature = "planted-bugs")]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug) || *OF_PROCESS == Some(bug)
}

/// Whether this bug is planted: never, in a shipped build.
#[cfg(not(feature = "planted-bugs"))]
#[inline]
pub const fn is_planted(_: Bug) -> bool {
    false
}
