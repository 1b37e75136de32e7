//! What one partition may show, kept beside it: every batch ever sent, where each was seen, and how far the log is
//! known to reach.
//!
//! Always holds, or the run fails: nothing acknowledged is lost at its durability level; nothing is served that was
//! not sent, or was refused, or was gone after a recovery; a batch is in one place, byte for byte as sent but for base
//! offset and epoch; offsets are dense; watermarks never go back; readers never see beyond the high watermark.

mod epochs;
mod marks;
mod sent;

use std::collections::BTreeMap;

use bytes::Bytes;
use rohrpost_engine_core::error::AppendError;
use rohrpost_engine_core::format::batch::{BatchHeader, HEADER_LEN};
use rohrpost_engine_core::log::Durability;
use rohrpost_engine_core::message::{Appended, Watermarks};
use rohrpost_engine_core::types::Offset;

use crate::batches::split;
use crate::oracle::epochs::EpochsOfLives;
use crate::settings::PartitionSettings;
use crate::storage::End;

/// What is known of a batch that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No answer yet, or one that leaves it open.
    Open,
    /// In the log at this offset.
    At(i64),
    /// Refused, or gone in a recovery or a deletion: must never be seen again.
    Gone,
}

#[derive(Clone, Debug)]
struct Sent {
    bytes: Bytes,
    records: i64,
    fate: Fate,
    /// Sent in which life.
    life: u64,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    sent: usize,
    end: i64,
    epoch: i32,
    /// In which life it was last seen.
    life: u64,
}

/// The model of one partition.
#[derive(Debug)]
pub struct Oracle {
    settings: PartitionSettings,
    sent: Vec<Sent>,
    by_crc: BTreeMap<u32, Vec<usize>>,
    /// By base offset: every batch that was acknowledged or seen.
    log: BTreeMap<i64, Placed>,
    marks: Watermarks,
    /// The high watermark may not lie below this after the next recovery.
    durable_end: i64,
    /// The log may not start beyond this, unless retention moves it.
    start_max: i64,
    /// Confirmed by a DeleteRecords: the log may never again start below this.
    start_confirmed: i64,
    /// A deletion was under way when the last life ended.
    maybe_deleted: bool,
    /// The end of the log at the last orderly stop: durable at every level.
    stopped_end: i64,
    /// Ends since the last orderly stop, its own included.
    ends_since_stop: u64,
    /// Whether the partition has been open since the last orderly stop.
    opened_since_stop: bool,
    epochs: EpochsOfLives,
    /// A power cut may have taken any part of the log, at the level that allows it.
    lossy: bool,
    /// Offsets that a recovery has left without records, begin to end: batches that never got to the device, before
    /// a segment that was made for what should have followed.
    holes: BTreeMap<i64, i64>,
    life: u64,
    acked_end: i64,
    /// The next acknowledgement may be older than others.
    disorder: bool,
    /// A deletion was asked for in this life.
    shrinks: bool,
    /// Since it was opened, the log's start has moved while it was being read: not everything was seen.
    skipped: bool,
    /// Where the partition stood at the last turn since it was opened.
    turned: Option<Watermarks>,
}

impl Oracle {
    /// A partition that does not exist yet.
    pub fn new(settings: PartitionSettings) -> Self {
        Self {
            settings,
            sent: Vec::new(),
            by_crc: BTreeMap::new(),
            log: BTreeMap::new(),
            marks: Watermarks::default(),
            durable_end: 0,
            start_max: 0,
            start_confirmed: 0,
            maybe_deleted: false,
            stopped_end: 0,
            ends_since_stop: 0,
            opened_since_stop: true,
            epochs: EpochsOfLives::default(),
            lossy: false,
            holes: BTreeMap::new(),
            life: 0,
            acked_end: 0,
            disorder: false,
            shrinks: false,
            skipped: false,
            turned: None,
        }
    }

    /// The partition's settings.
    pub const fn settings(&self) -> &PartitionSettings {
        &self.settings
    }

    /// Begin and end of the log as last seen.
    pub const fn marks(&self) -> Watermarks {
        self.marks
    }

    /// Batches that were acknowledged or seen.
    pub fn batches(&self) -> usize {
        self.log.len()
    }

    /// The log may not end below this when it is opened next.
    pub const fn durable_end(&self) -> i64 {
        self.durable_end
    }

    /// Registers what is about to be sent. Returns how to refer to it.
    pub fn send(&mut self, request: &Bytes) -> std::ops::Range<usize> {
        let first = self.sent.len();
        for bytes in split(request) {
            let header = BatchHeader::peek(&bytes).expect("made by `Batches::make`");
            let records = i64::from(header.last_offset_delta()) + 1;
            self.by_crc.entry(header.crc()).or_default().push(self.sent.len());
            self.sent.push(Sent { bytes, records, fate: Fate::Open, life: self.life });
        }
        first..self.sent.len()
    }

    /// The next acknowledgement has come on another way than the last one and may be older.
    pub const fn expect_disorder(&mut self) {
        self.disorder = true;
    }

    /// An append of valid batches was answered.
    pub fn handle_appended(
        &mut self,
        sent: std::ops::Range<usize>,
        result: &Result<Appended, AppendError>,
        faulty: bool,
    ) {
        match result {
            Ok(appended) => self.handle_acked(sent, appended),
            Err(error) => {
                self.disorder = false;
                let open = matches!(error, AppendError::Failed(_) | AppendError::Closing);
                let config = &self.settings.config;
                match error {
                    AppendError::InvalidBatch { .. } => panic!("a valid batch is refused: {error}"),
                    AppendError::BatchTooLarge { len, .. } => {
                        let too_long = *len > config.batch_len_max || *len > config.segment_len_max;
                        assert!(too_long, "a batch within the limits is refused: {error}");
                    }
                    AppendError::Failed(_) => assert!(faulty, "a partition failed without a fault: {error}"),
                    _ => {}
                }
                if !open {
                    self.give_up(sent);
                }
            }
        }
    }

    /// The partition does not exist for this append: nothing of it may ever be seen.
    fn give_up(&mut self, sent: std::ops::Range<usize>) {
        for index in sent {
            let known = self.sent[index].fate;
            assert!(!matches!(known, Fate::At(_)), "refused, but seen in the log before: {known:?}");
            self.sent[index].fate = Fate::Gone;
        }
    }

    fn handle_acked(&mut self, sent: std::ops::Range<usize>, appended: &Appended) {
        let base = appended.base_offset.get();
        assert!(
            std::mem::take(&mut self.disorder) || base >= self.acked_end,
            "acknowledged out of order: {base} after an end of {}",
            self.acked_end
        );
        let mut at = base;
        for index in sent {
            self.place(at, index, None);
            at += self.sent[index].records;
        }
        assert_eq!(at, appended.end_offset.get(), "an acknowledgement with a wrong end: {appended:?}");
        self.acked_end = self.acked_end.max(at);
        self.raise_high_watermark(at);
    }

    /// A batch is at this offset; checks it against everything known.
    fn place(&mut self, base: i64, index: usize, epoch: Option<i32>) {
        let end = base + self.sent[index].records;
        match self.sent[index].fate {
            Fate::At(known) => assert_eq!(known, base, "one batch at two offsets"),
            Fate::Gone => panic!("a batch that was refused, or gone in a recovery, is in the log at {base}"),
            Fate::Open => self.sent[index].fate = Fate::At(base),
        }
        if let Some((before, placed)) = self.log.range(..base).next_back() {
            assert!(placed.end <= base, "{base} lies within the batch {before}..{}", placed.end);
        }
        if let Some((after, _)) = self.log.range(base + 1..).next() {
            assert!(end <= *after, "{base}..{end} reaches into the batch at {after}");
        }
        let placed = self.log.entry(base).or_insert(Placed { sent: index, end, epoch: -1, life: self.life });
        placed.life = self.life;
        assert_eq!(placed.sent, index, "two batches at offset {base}");
        if let Some(epoch) = epoch {
            assert!(placed.epoch == -1 || placed.epoch == epoch, "the epoch at {base} has changed");
            placed.epoch = epoch;
            let life = self.sent[index].life;
            assert!(life <= self.life, "a batch of life {life} in life {}", self.life);
            self.epochs.check_served(base, epoch, life);
        }
    }

    /// Bytes were served from `offset` on; `scan` says that the log is being read for the first time after opening,
    /// end to end. Returns the offset after the last whole batch.
    pub fn handle_served(&mut self, offset: i64, bytes: &[u8], high_watermark: i64, scan: bool) -> i64 {
        let mut rest = bytes;
        let mut expected: Option<i64> = None;
        let mut epoch_before = i32::MIN;
        while let Ok(header) = BatchHeader::peek(rest) {
            let base = header.base_offset().get();
            match expected {
                None => {
                    let inside = base <= offset && offset < header.next_offset().get();
                    let ok = inside || self.is_hole(offset, base, scan);
                    assert!(ok, "a fetch from {offset} begins with {base}..{}", header.next_offset());
                }
                Some(expected) => {
                    let ok = base == expected || self.is_hole(expected, base, scan);
                    assert!(ok, "offsets are not dense: {base} after an end of {expected}");
                }
            }
            let next = header.next_offset().get();
            assert!(next <= high_watermark, "{base}..{next} lies beyond the high watermark {high_watermark}");
            let epoch = header.leader_epoch().get();
            assert!(epoch >= epoch_before, "epoch {epoch} after {epoch_before} at {base}");
            assert!(epoch <= self.marks.leader_epoch.get(), "epoch {epoch} at {base} is of the future");
            epoch_before = epoch;
            let len = header.batch_len().as_usize().min(rest.len());
            let index = self.identify(&header, &rest[..len]);
            self.place(base, index, Some(epoch));
            if len < header.batch_len().as_usize() {
                assert!(expected.is_some(), "the first batch of a fetch is not whole");
                return base;
            }
            expected = Some(next);
            rest = &rest[len..];
        }
        assert!(rest.len() < HEADER_LEN, "{} bytes behind {expected:?} are no batch", rest.len());
        assert!(expected.is_some() || bytes.is_empty(), "a fetch from {offset} begins in a header cut short");
        expected.unwrap_or(offset)
    }

    /// Whether `[from, to)` holds no records. A scan right after opening finds that out; nothing that was seen or
    /// acknowledged may be missing, unless the level allowed a power cut to take it.
    fn is_hole(&mut self, from: i64, to: i64, scan: bool) -> bool {
        if from >= to {
            return false;
        }
        if scan {
            let lossy = self.lossy;
            let kept =
                |base: i64, placed: &Placed| !lossy || base < self.stopped_end || placed.life == self.life;
            if self.log.range(from..to).any(|(base, placed)| kept(*base, placed)) {
                return false;
            }
            for (_, placed) in self.log.extract_if(from..to, |_, _| true) {
                self.sent[placed.sent].fate = Fate::Gone;
            }
            self.holes.insert(from, to);
        }
        self.holes.range(..=from).next_back().is_some_and(|(_, end)| to <= *end)
    }

    /// Nothing was served from `offset` on. Whether that is right while the high watermark lies at `end`.
    pub fn handle_nothing_served(&mut self, offset: i64, end: i64, scan: bool) -> bool {
        offset >= end || self.is_hole(offset, end, scan)
    }

    /// Which of the batches sent these bytes are, as far as they go.
    fn identify(&self, header: &BatchHeader, bytes: &[u8]) -> usize {
        let found = self.find(header, bytes);
        found.unwrap_or_else(|| panic!("garbage is served at offset {}", header.base_offset()))
    }

    fn find(&self, header: &BatchHeader, bytes: &[u8]) -> Option<usize> {
        let candidates = self.by_crc.get(&header.crc()).map_or(&[][..], Vec::as_slice);
        let same = |index: &&usize| {
            let sent = &self.sent[**index].bytes;
            // Base offset (0..8) and leader epoch (12..16) are the log's own.
            let len = bytes.len();
            sent.len() >= len && sent[8..12] == bytes[8..12] && sent[16..len] == bytes[16..]
        };
        candidates.iter().find(same).copied()
    }

    /// Whether records may have been deleted in this life: a transfer of them may end with its connection.
    pub const fn may_shrink(&self) -> bool {
        let config = &self.settings.config;
        self.shrinks || config.retention_len.is_some() || config.retention_ms.is_some()
    }

    /// The partition is about to be deleted.
    pub const fn delete(&mut self) {
        self.shrinks = true;
    }

    /// A DeleteRecords is about to be sent.
    pub fn delete_records(&mut self, before: i64) {
        self.shrinks = true;
        let before = if before == -1 { i64::MAX } else { before };
        self.start_max = self.start_max.max(before);
    }

    /// A DeleteRecords was confirmed.
    pub fn handle_records_deleted(&mut self, start: i64) {
        self.check_start(start);
        self.start_confirmed = self.start_confirmed.max(start);
        self.marks.log_start_offset = self.marks.log_start_offset.max(Offset::new(start));
        self.raise_high_watermark(start);
    }

    /// The partition was deleted: everything is gone.
    pub fn handle_deleted(&mut self) {
        for sent in &mut self.sent {
            sent.fate = Fate::Gone;
        }
        self.holes.clear();
        self.log.clear();
        self.marks = Watermarks::default();
        (self.durable_end, self.start_max, self.start_confirmed, self.acked_end) = (0, 0, 0, 0);
        self.stopped_end = 0;
        self.epochs.forget();
    }

    /// A deletion failed: the partition is there as before, or gone.
    pub fn handle_delete_failed(&mut self) {
        self.forget_promises();
    }

    /// A life has ended while the partition was being deleted: it is there as before, in part, or gone.
    pub fn forget_promises(&mut self) {
        (self.durable_end, self.start_confirmed, self.stopped_end) = (0, 0, 0);
        self.start_max = i64::MAX;
        self.marks = Watermarks { leader_epoch: self.marks.leader_epoch, ..Watermarks::default() };
        self.maybe_deleted = true;
        self.epochs.forget();
    }

    /// An answer below the log's start has told where the log starts now.
    pub fn handle_start_moved(&mut self, start: i64) {
        self.skipped = true;
        self.check_start(start);
        self.marks.log_start_offset = self.marks.log_start_offset.max(Offset::new(start));
        self.raise_high_watermark(start);
    }

    /// An answer longer than was asked for may hold one batch only.
    pub fn check_single_batch(&self, bytes: &[u8]) {
        let first = BatchHeader::peek(bytes).map_or(0, |header| header.batch_len().as_usize());
        assert_eq!(bytes.len(), first, "an answer longer than asked for holds more than one batch");
    }

    /// What may be gone at its level once the power has failed, or a write-back: records from here on.
    pub fn may_lose(&self) -> Option<i64> {
        let written = self.settings.config.durability == Durability::Written;
        written.then(|| self.start_confirmed.max(self.stopped_end))
    }

    /// A life has ended by force.
    pub fn handle_end(&mut self, end: End, faulty: bool) {
        self.ends_since_stop += 1;
        self.epochs.handle_end();
        self.shrinks = false;
        // At this level a failed write-back takes as much as a power cut: the page cache shows what no device has.
        if end == End::PowerCut || faulty {
            self.lose_written();
        }
    }

    /// What is only written may be gone.
    fn lose_written(&mut self) {
        if let Some(from) = self.may_lose() {
            (self.durable_end, self.lossy) = (from, true);
        }
    }

    /// The engine has stopped in order: everything is durable.
    pub fn handle_stopped(&mut self) {
        self.stopped_end = self.marks.log_end_offset.get();
        (self.ends_since_stop, self.opened_since_stop) = (0, false);
    }

    /// The marker of an orderly stop is about to be written, and may be there whatever comes of it.
    pub const fn handle_stopping(&mut self) {
        self.epochs.handle_stopping();
    }

    /// A partition was opened in a new life.
    pub fn handle_opened(&mut self, marks: Watermarks, faulty: bool) {
        self.life += 1;
        (self.turned, self.skipped) = (None, false);
        if faulty {
            self.lose_written();
        }
        if std::mem::take(&mut self.maybe_deleted) && marks.log_end_offset == Offset::ZERO {
            self.handle_deleted();
        }
        let before = self.marks;
        let (start, end) = (marks.log_start_offset.get(), marks.high_watermark.get());
        assert_eq!(marks.high_watermark, marks.log_end_offset, "nothing is under way after opening");
        assert!(end >= self.durable_end, "acknowledged up to {}, recovered {marks:?}", self.durable_end);
        assert!(start <= end, "{marks:?}");
        assert!(
            start >= self.start_confirmed,
            "deleted records are back: {marks:?}, {}",
            self.start_confirmed
        );
        self.check_start(start);
        let epoch = (before.leader_epoch.get(), marks.leader_epoch.get());
        assert!(epoch.1 >= epoch.0, "the epoch went back from {} to {}", epoch.0, epoch.1);
        self.epochs.handle_opened(self.life, epoch);
        if !std::mem::replace(&mut self.opened_since_stop, true) {
            assert!(start >= before.log_start_offset.get(), "{marks:?} after a clean stop at {before:?}");
            assert!(end >= before.log_end_offset.get(), "{marks:?} after a clean stop at {before:?}");
            let just_stopped = self.ends_since_stop == 1 && !faulty;
            assert!(!just_stopped || epoch.0 == epoch.1, "the epoch is raised after a clean stop");
        }
        for (_, placed) in self.log.split_off(&end) {
            self.sent[placed.sent].fate = Fate::Gone;
        }
        if let Some((base, placed)) = self.log.iter().next_back()
            && placed.end > end
        {
            // Only where everything was lost, and the log goes on at a start inside this batch.
            let lost = self.lossy && start == end;
            assert!(lost, "the log ends at {end}, inside the batch {base}..{}", placed.end);
            self.sent[placed.sent].fate = Fate::Gone;
            self.log.pop_last();
        }
        self.holes.retain(|_, hole_end| *hole_end <= end);
        self.marks = marks;
        self.start_max = self.start_max.min(end).max(start);
        self.acked_end = 0;
        self.durable_end = end;
    }

    /// The whole log was read after opening: whatever was not in it is gone for good. What its start has moved over
    /// may come back: a deletion that nobody was told of need not survive a crash.
    pub fn handle_scanned(&mut self) {
        if self.skipped {
            return;
        }
        for sent in &mut self.sent {
            if sent.fate == Fate::Open && sent.life < self.life {
                sent.fate = Fate::Gone;
            }
        }
    }

    /// Whether a batch was sent whose outcome is not known.
    pub fn has_open(&self) -> bool {
        self.sent.iter().any(|sent| sent.fate == Fate::Open && sent.life == self.life)
    }
}
