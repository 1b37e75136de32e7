//! What clients have sent and seen, as a history: beside the oracle, which knows more of the engine, the checker of
//! [`rohrpost_history`] holds it against what a log may show to anybody, and names what it finds.
//!
//! A violation panics with its class. Owns the checker. A history knows no holes, which a recovery may leave; how dense
//! offsets are is the oracle's to say.

use rohrpost_engine_core::fetch::FetchOutcome;
use rohrpost_engine_core::format::batch::{BatchHeader, HEADER_LEN};
use rohrpost_engine_core::message::Watermarks;
use rohrpost_history::{Checker, Event, Rules, Sent, Stored};

use crate::oracle::Oracle;
use crate::settings::PartitionSettings;

/// See the module documentation.
pub(crate) struct History {
    checker: Checker,
}

impl History {
    pub(crate) fn new(partitions: &[PartitionSettings]) -> Self {
        let rules = partitions.iter().map(|PartitionSettings { config, .. }| Rules {
            retention: config.retention_len.is_some() || config.retention_ms.is_some(),
            gaps: true,
        });
        Self { checker: Checker::new(rules) }
    }

    /// Takes an event.
    pub(crate) fn push(&mut self, event: &Event) {
        self.checker.push(event);
        if let Err(violation) = self.checker.verdict() {
            panic!("{violation}");
        }
    }

    /// An append is sent; requests have no order among each other.
    pub(crate) fn append(&mut self, request: u64, partition: usize, batches: Vec<Sent>) {
        self.push(&Event::AppendSent { request, client: request, partition, batches });
    }

    /// A fetch was answered.
    pub(crate) fn handle_fetched(&mut self, request: u64, outcome: &FetchOutcome, batches: Vec<Stored>) {
        let (log_start, high_watermark) = ends(outcome.watermarks);
        self.push(&Event::Fetched { request, log_start, high_watermark, batches });
    }

    /// The partition's marks were asked for and answered, or told by its opening.
    pub(crate) fn handle_marks(&mut self, partition: usize, marks: Watermarks) {
        let (log_start, high_watermark) = ends(marks);
        self.push(&Event::Looked { partition, log_start, high_watermark });
    }

    /// Records are about to be deleted: all that readers see, where `before` is -1.
    pub(crate) fn trim(&mut self, partition: usize, before: i64) {
        let before = if before == -1 { i64::MAX } else { before };
        self.push(&Event::TrimSent { partition, before });
    }

    /// That was confirmed.
    pub(crate) fn handle_trimmed(&mut self, partition: usize, start: i64) {
        self.push(&Event::Trimmed { partition, start });
    }

    /// The partition is gone; or may be.
    pub(crate) fn handle_deleted(&mut self, partition: usize, surely: bool) {
        self.push(&if surely { Event::Deleted { partition } } else { Event::MayBeDeleted { partition } });
    }
}

/// The ends of what readers see.
fn ends(marks: Watermarks) -> (i64, i64) {
    (marks.log_start_offset.get(), marks.high_watermark.get())
}

/// The whole batches of an answer.
pub(crate) fn stored(oracle: &Oracle, bytes: &[u8]) -> Vec<Stored> {
    let (mut rest, mut stored) = (bytes, Vec::new());
    while rest.len() >= HEADER_LEN {
        let Ok(header) = BatchHeader::peek(rest) else {
            stored.push(Stored { base: -1, number: None });
            break;
        };
        let len = header.batch_len().as_usize();
        if len > rest.len() {
            break;
        }
        let number = oracle.number_of(&header, &rest[..len]);
        stored.push(Stored { base: header.base_offset().get(), number });
        rest = &rest[len..];
    }
    stored
}
