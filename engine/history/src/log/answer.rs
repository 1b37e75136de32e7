//! What answers say: the batches they hold, what they leave out, and the marks they name.

use super::{Fate, Found, Known, Log, note};
use crate::class::Class;
use crate::event::Stored;

/// The head of a fetch's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) from: i64,
    pub(crate) log_start: i64,
    pub(crate) high_watermark: i64,
}

impl Log {
    pub(crate) fn handle_fetched(
        &mut self,
        known: Known,
        answer: Answer,
        batches: &[Stored],
        found: &mut Found,
    ) {
        let Answer { from, log_start, high_watermark } = answer;
        self.handle_marks(known, log_start, high_watermark, found);
        let mut next = from.max(log_start);
        let told = high_watermark.min(known.high_watermark);
        if batches.is_empty() && next < told {
            self.leave_out(known, next, told, found);
        }
        for (index, stored) in batches.iter().enumerate() {
            let Some(records) =
                stored.number.and_then(|number| self.records_of(number, stored.base, known, found))
            else {
                let what = format!("what is served at {} was never sent here", stored.base);
                note(found, Class::Garbage, what);
                return;
            };
            let end = stored.base + records;
            let goes_back = if index == 0 { end <= from } else { stored.base < next };
            if goes_back {
                note(found, Class::NonMonotonicPoll, format!("{}..{end} is served for {next}", stored.base));
            }
            if stored.base > next {
                self.leave_out(known, next, stored.base, found);
            }
            if end > high_watermark {
                let what =
                    format!("{}..{end} is served at a high watermark of {high_watermark}", stored.base);
                note(found, Class::PrecommittedRead, what);
            }
            self.place(stored.number.unwrap_or_default(), stored.base, found);
            next = end;
        }
    }

    /// Length of a batch that is served, and whether it may be. `None` for one that was never sent.
    fn records_of(&self, number: u64, base: i64, known: Known, found: &mut Found) -> Option<i64> {
        let batch = self.batches.get(&number)?;
        let late = batch.fate == Fate::Open && batch.life < self.life;
        if late && known.opened_end.is_some_and(|end| base >= end) {
            let what =
                format!("batch {number} of an earlier life joins at {base}, behind {:?}", known.opened_end);
            note(found, Class::Resurrected, what);
        }
        Some(batch.records)
    }

    /// An answer says that there is nothing in `[from, to)`.
    fn leave_out(&mut self, known: Known, from: i64, to: i64, found: &mut Found) {
        let missing = self.within(from, to);
        for at in &missing {
            let placed = self.log[at];
            if placed.doubtful {
                self.drop_at(*at, Fate::Gone);
            } else if placed.end <= known.high_watermark {
                self.miss(*at, found);
            }
        }
        if missing.is_empty() && !self.rules.gaps {
            note(found, Class::PollSkip, format!("there is nothing in {from}..{to}, below what is served"));
        }
    }

    /// A batch that must be there is not: it may still turn up in this life, not in another.
    fn miss(&mut self, at: i64, found: &mut Found) {
        let (now, Some(placed)) = (self.life, self.log.get_mut(&at)) else { return };
        if placed.life == now {
            placed.skipped = true;
            note(found, Class::PollSkip, format!("an answer leaves out {at}..{}", placed.end));
            return;
        }
        found.push(placed.lost(at));
        self.drop_at(at, Fate::Gone);
    }

    pub(crate) fn handle_marks(
        &mut self,
        known: Known,
        log_start: i64,
        high_watermark: i64,
        found: &mut Found,
    ) {
        if log_start < known.log_start {
            let what = format!("the log starts at {log_start}, it started at {}", known.log_start);
            note(found, Class::LogStartRegress, what);
        }
        if log_start > self.start_max && !self.rules.retention {
            let what = format!("the log starts at {log_start}, deleted was below {}", self.start_max);
            note(found, Class::LostWrite, what);
        }
        self.check_end(known, high_watermark, found);
        self.known.log_start = self.known.log_start.max(log_start);
        self.raise(high_watermark);
        self.forget_below(self.known.log_start);
    }

    fn check_end(&mut self, known: Known, high_watermark: i64, found: &mut Found) {
        let beyond: Vec<i64> =
            self.log.range(..).rev().take_while(|(_, p)| p.end > high_watermark).map(|(at, _)| *at).collect();
        for at in &beyond {
            if self.log[at].doubtful {
                self.drop_at(*at, Fate::Gone);
            }
        }
        if high_watermark >= known.high_watermark {
            return;
        }
        if known.opened_end.is_some_and(|end| high_watermark < end) {
            let what = format!("the high watermark is {high_watermark}, it was {}", known.high_watermark);
            return note(found, Class::HighWatermarkRegress, what);
        }
        let before = found.len();
        for at in beyond {
            if let Some(placed) = self.log.get(&at).filter(|placed| placed.end <= known.high_watermark) {
                found.push(placed.lost(at));
                self.drop_at(at, Fate::Gone);
            }
        }
        if found.len() == before {
            let what = format!(
                "the high watermark is {high_watermark}, it was {} before the restart",
                known.high_watermark
            );
            note(found, Class::HighWatermarkRegress, what);
        }
    }
}
