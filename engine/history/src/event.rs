//! What clients did and saw. Offsets are Kafka's: ends are exclusive.

/// What a partition is allowed beyond what every log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The log start may move by itself.
    pub retention: bool,
    /// Offsets may belong to nobody: the log has been compacted, or has lost what it was allowed to lose.
    pub gaps: bool,
}

/// A batch that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Which one: unique within its partition.
    pub number: u64,
    /// Offsets it takes.
    pub records: i64,
}

/// A batch that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its first offset.
    pub base: i64,
    /// Which one, byte for byte; `None` for bytes that nobody has sent.
    pub number: Option<u64>,
}

/// One line of a history. Requests have numbers of their own, unique among those without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client is about to append. What one client sends to a partition is expected to be stored in the order of
    /// sending; who gives no order gives every request a client of its own.
    AppendSent {
        /// This request.
        request: u64,
        /// Who sends.
        client: u64,
        /// Where to.
        partition: usize,
        /// All of them or none are appended.
        batches: Vec<Sent>,
    },
    /// An append was acknowledged: its first batch lies at `base`.
    Acked {
        /// The append.
        request: u64,
        /// Its first offset.
        base: i64,
    },
    /// An append was refused: nothing of it may ever be seen.
    Refused {
        /// The append.
        request: u64,
    },
    /// The outcome of a request will never be known.
    Unknown {
        /// The request.
        request: u64,
    },
    /// A client is about to fetch from this offset on.
    FetchSent {
        /// This request.
        request: u64,
        /// Where from.
        partition: usize,
        /// The first offset wanted.
        from: i64,
    },
    /// Its answer. An empty one says that there was nothing between the offset and the high watermark that was known
    /// when it was sent: whoever asked for less than a batch reports it as [`Event::Unknown`].
    Fetched {
        /// The fetch.
        request: u64,
        /// Where the log started.
        log_start: i64,
        /// Readers see nothing at or beyond it.
        high_watermark: i64,
        /// In the order of the answer, whole batches only.
        batches: Vec<Stored>,
    },
    /// The partition's marks were asked for and answered, with nothing known that came between.
    Looked {
        /// Whose.
        partition: usize,
        /// Where the log starts.
        log_start: i64,
        /// Where readers' view of it ends.
        high_watermark: i64,
    },
    /// Records below this offset are about to be deleted.
    TrimSent {
        /// Where.
        partition: usize,
        /// The offset that stays.
        before: i64,
    },
    /// A deletion was confirmed: the log starts here.
    Trimmed {
        /// Where.
        partition: usize,
        /// The log start.
        start: i64,
    },
    /// A partition was deleted; one of the same name may begin anew.
    Deleted {
        /// Which.
        partition: usize,
    },
    /// A deletion of a partition may have happened, in whole or in part.
    MayBeDeleted {
        /// Which.
        partition: usize,
    },
    /// The promise did not cover what has happened: records from here on may be gone, all or a part.
    MayHaveLost {
        /// Which.
        partition: usize,
        /// The first offset that may be gone.
        from: i64,
    },
    /// The engine has ended in whatever way and starts again; no request of before will be answered.
    Restarted,
}
