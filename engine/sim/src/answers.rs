//! What fetches brought, judged: against the oracle, against the file, against what was known when they were sent.

use std::path::{Path, PathBuf};

use rohrpost_engine_core::error::FetchError;
use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest};
use rohrpost_engine_core::log::Durability;
use rohrpost_engine_core::message::{Reply, Ticket, Watermarks};
use rohrpost_engine_core::ops::Now;
use rohrpost_engine_core::types::Offset;

use crate::coverage::Happening;
use crate::disk::SimDisk;
use crate::oracle::Oracle;
use crate::platform::SimPlatform;
use crate::workload::{Asked, ROOT, Standing, Workload};

impl Workload {
    /// The bytes of a fetch have come over a connection.
    pub(crate) fn handle_sent(
        &mut self,
        ticket: Ticket,
        result: Result<FetchOutcome, FetchError>,
        bytes: &[u8],
        now: Now,
    ) {
        let (partition, asked) =
            self.outstanding.remove(&ticket.0).unwrap_or_else(|| panic!("{ticket:?} is answered twice"));
        let Asked::Fetch { request, at, known, scan } = asked else {
            panic!("{asked:?} is answered by bytes")
        };
        let numbers = [ticket.0, partition as u64, bytes.len() as u64, u64::from(result.is_ok())];
        self.disk.storage().trace.note("sent", &numbers);
        self.disk.storage().trace.remark(|| format!("sent {result:?}"));
        self.sent_len += bytes.len() as u64;
        match result {
            Ok(outcome) => {
                self.tell_fetched(ticket, partition, Some((&outcome, bytes)));
                self.handle_fetched(partition, &request, at, known, scan, &outcome, bytes, now);
            }
            Err(error) => {
                self.tell_fetched(ticket, partition, None);
                self.handle_fetch_error(partition, &request, known, scan, &error);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one question and its answer")]
    pub(crate) fn handle_fetched(
        &mut self,
        partition: usize,
        request: &FetchRequest,
        at: Now,
        known: Watermarks,
        scan: bool,
        outcome: &FetchOutcome,
        bytes: &[u8],
        now: Now,
    ) {
        assert_eq!(bytes.len() as u64, outcome.len.get(), "an outcome of {outcome:?}");
        self.served_len += bytes.len() as u64;
        let faulty = self.is_faulty();
        let oracle = &mut self.oracles[partition];
        oracle.handle_planned(outcome.watermarks, known);
        let offset = request.offset.get();
        if bytes.is_empty() {
            assert!(
                oracle.handle_nothing_served(offset, known.high_watermark.get(), scan),
                "nothing at {offset}, but the high watermark was {} already",
                known.high_watermark
            );
            let waited = now.mono.get().saturating_sub(at.mono.get()) / 1_000_000;
            let may_wait = request.len_min.get() > 0 && request.wait_ms_max > 0;
            assert!(
                !may_wait || waited >= u64::from(request.wait_ms_max),
                "nothing after {waited} ms of {request:?}"
            );
        }
        let next = oracle.handle_served(offset, bytes, outcome.watermarks.high_watermark.get(), scan);
        if bytes.len() as u64 > request.len_max.get() {
            oracle.check_single_batch(bytes);
        }
        check_medium(&self.disk, oracle, faulty, outcome.segment, outcome.position.get(), bytes);
        if scan {
            let next = if bytes.is_empty() { known.high_watermark.get() } else { next };
            self.standing[partition] = Standing::Scanning(next);
            self.finish_scan(partition);
        }
    }

    pub(crate) fn handle_fetch_error(
        &mut self,
        partition: usize,
        request: &FetchRequest,
        known: Watermarks,
        scan: bool,
        error: &FetchError,
    ) {
        let offset = request.offset.get();
        self.note(Happening::FetchRefused);
        match error {
            FetchError::OffsetOutOfRange { log_start_offset, log_end_offset, .. } => {
                let (start, end) = (log_start_offset.get(), log_end_offset.get());
                assert!(offset < start || offset > end, "{error}");
                assert!(end >= known.high_watermark.get(), "{error}, known {known:?}");
                // Retention may move the start during the scan.
                if scan && offset < start {
                    self.oracles[partition].handle_start_moved(start);
                    self.standing[partition] = Standing::Scanning(start);
                    self.finish_scan(partition);
                }
            }
            FetchError::UnknownPartition if self.stopping => {}
            FetchError::Busy => self.backs_off = true,
            FetchError::Closing | FetchError::Cancelled => {}
            FetchError::ReadFailed { .. } | FetchError::Disk(_) => {
                assert!(self.is_faulty(), "a fetch fails without a fault: {error}");
            }
            other => panic!("{request:?} is answered with: {other}"),
        }
    }

    pub(crate) fn note_reply(&self, ticket: Ticket, partition: usize, reply: &Reply<SimPlatform>) {
        let (kind, ok, number) = match reply {
            Reply::Opened(r) => (0, r.is_ok(), r.as_ref().map_or(0, |m| m.high_watermark.get())),
            Reply::Appended(r) => (1, r.is_ok(), r.as_ref().map_or(0, |a| a.base_offset.get())),
            Reply::Fetched(r) => (2, r.is_ok(), r.as_ref().map_or(0, |f| f.outcome.len.get() as i64)),
            Reply::Watermarks(r) => (3, r.is_ok(), r.as_ref().map_or(0, |m| m.high_watermark.get())),
            Reply::RecordsDeleted(r) => (5, r.is_ok(), r.as_ref().map_or(0, |o| o.get())),
            Reply::Deleted(r) => (6, r.is_ok(), 0),
            Reply::Stopped(r) => (7, r.is_ok(), 0),
            Reply::Stats(stats) => (8, true, stats.commits as i64),
        };
        let trace = &mut self.disk.storage().trace;
        trace.note("reply", &[ticket.0, partition as u64, kind, u64::from(ok), number as u64]);
        trace.remark(|| describe(reply));
    }
}

/// What was served must be what the file holds, and must survive a power cut where that is promised.
///
/// A failed sync, of a seal for instance, drops what it was to write from the page cache: where only `written` is
/// promised, the engine then serves from memory what the file no longer holds.
fn check_medium(disk: &SimDisk, oracle: &Oracle, faulty: bool, segment: Offset, position: u64, bytes: &[u8]) {
    let settings = oracle.settings();
    if faulty && settings.config.durability == Durability::Written {
        return;
    }
    let path = segment_path(&settings.name.to_string(), segment);
    let storage = disk.storage();
    let Some(held) = storage.peek(&path, position, bytes.len()) else { return };
    assert!(held == bytes, "{} differs at {position} from what is served", path.display());
    let durable = storage.is_durable(&path, position, bytes.len() as u64);
    if settings.config.durability == Durability::Flushed && !bytes.is_empty() {
        assert!(durable, "{} bytes at {position} of {} are served, not durable", bytes.len(), path.display());
    }
}

fn segment_path(partition: &str, segment: Offset) -> PathBuf {
    Path::new(ROOT).join(partition).join(format!("{:020}.log", segment.get()))
}

fn describe(reply: &Reply<SimPlatform>) -> String {
    match reply {
        Reply::Opened(r) => format!("opened {r:?}"),
        Reply::Appended(r) => format!("appended {r:?}"),
        Reply::Fetched(Ok(fetched)) => format!("fetched {:?}", fetched.outcome),
        Reply::Fetched(Err(error)) => format!("not fetched: {error}"),
        Reply::Watermarks(r) => format!("watermarks {r:?}"),
        Reply::RecordsDeleted(r) => format!("records deleted {r:?}"),
        Reply::Deleted(r) => format!("deleted {r:?}"),
        Reply::Stopped(r) => format!("stopped {r:?}"),
        Reply::Stats(stats) => format!("{stats:?}"),
    }
}
