//! Watermarks as the engine shows them, turn by turn and with every answer: in order, never going back, and never moved
//! by a clock that has jumped.

use rohrpost_engine_core::format::batch::BatchHeader;
use rohrpost_engine_core::message::Watermarks;
use rohrpost_engine_core::types::{Offset, Timestamp};

use super::Oracle;

impl Oracle {
    /// The partition stands like this at the end of a turn. No honest clock shows a later time than `latest`.
    pub fn handle_turn(&mut self, marks: Watermarks, latest: Timestamp) {
        let before = self.turned.replace(marks).unwrap_or(marks);
        self.check_retention(before.log_start_offset, marks.log_start_offset, latest);
        assert!(marks.log_start_offset >= before.log_start_offset, "{marks:?} after {before:?}");
        assert!(marks.high_watermark >= before.high_watermark, "{marks:?} after {before:?}");
        assert!(marks.log_end_offset >= before.log_end_offset, "{marks:?} after {before:?}");
        assert!(marks.log_start_offset <= marks.high_watermark, "{marks:?}");
        assert!(marks.high_watermark <= marks.log_end_offset, "{marks:?}");
        assert!(marks.high_watermark >= self.marks.high_watermark, "{marks:?}, known {:?}", self.marks);
    }

    /// Records that only time has deleted were old by a clock that has not jumped.
    fn check_retention(&self, from: Offset, to: Offset, latest: Timestamp) {
        let config = &self.settings.config;
        let (false, None, Some(keep)) = (self.shrinks, config.retention_len, config.retention_ms) else {
            return;
        };
        for (base, placed) in self.log.range(from.get()..to.get().max(from.get())) {
            let header = BatchHeader::peek(&self.sent[placed.sent].bytes).expect("made by `Batches::make`");
            let old = header.max_timestamp().get().saturating_add_unsigned(keep);
            assert!(
                old <= latest.get(),
                "records at {base} are deleted, young by any honest clock: {old} > {latest:?}"
            );
        }
    }

    /// Watermarks were answered in a life that is under way.
    pub fn handle_marks(&mut self, marks: Watermarks) {
        let before = self.marks;
        assert!(marks.log_end_offset >= before.log_end_offset, "{marks:?} after {before:?}");
        self.handle_planned(marks, before);
    }

    /// A fetch was planned with these watermarks, after it had been sent when `asked` was known. Its answer may be
    /// older than others that have come meanwhile.
    pub fn handle_planned(&mut self, marks: Watermarks, asked: Watermarks) {
        assert!(marks.high_watermark >= asked.high_watermark, "{marks:?}, known before {asked:?}");
        assert!(marks.log_start_offset >= asked.log_start_offset, "{marks:?}, known before {asked:?}");
        assert!(marks.log_end_offset >= marks.high_watermark, "{marks:?}");
        assert!(marks.high_watermark >= marks.log_start_offset, "{marks:?}");
        assert_eq!(marks.leader_epoch, self.marks.leader_epoch, "the epoch changes only in a recovery");
        self.check_start(marks.log_start_offset.get());
        self.marks.log_start_offset = self.marks.log_start_offset.max(marks.log_start_offset);
        self.marks.log_end_offset = self.marks.log_end_offset.max(marks.log_end_offset);
        self.raise_high_watermark(marks.high_watermark.get());
    }

    pub(super) fn check_start(&self, start: i64) {
        let config = &self.settings.config;
        let retention = config.retention_len.is_some() || config.retention_ms.is_some();
        assert!(
            retention || start <= self.start_max,
            "the log starts at {start}, at most {}",
            self.start_max
        );
    }

    pub(super) fn raise_high_watermark(&mut self, end: i64) {
        self.marks.high_watermark = self.marks.high_watermark.max(Offset::new(end));
        self.marks.log_end_offset = self.marks.log_end_offset.max(Offset::new(end));
        self.durable_end = self.durable_end.max(end);
    }
}
