//! One partition: every batch that was sent to it, where each was seen, and how far the log is known to reach.
//!
//! Whatever was acknowledged or served when a request was sent lies below the high watermark that was known then, so
//! that one offset is all a request has to remember: what its answer lacks below it is missing.

mod answer;

use std::collections::BTreeMap;

use crate::class::{Class, Violation};
use crate::event::{Rules, Sent};

pub(crate) use answer::Answer;

/// What is known of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Whether it is in the log is not known.
    Open,
    /// In the log, at this offset.
    At(i64),
    /// Refused: must never be seen.
    Refused,
    /// Was not in the log when that was known to be whole: must never be seen again.
    Gone,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    client: u64,
    /// How many its client had sent before.
    place: u64,
    records: i64,
    fate: Fate,
    life: u64,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    number: u64,
    end: i64,
    acked: bool,
    /// May be gone without blame.
    doubtful: bool,
    /// Last acknowledged or served in this life.
    life: u64,
    /// An answer has left it out, and it was not seen since.
    skipped: bool,
}

/// What is known when a request is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    log_start: i64,
    high_watermark: i64,
    /// The highest of this life; `None` before the first.
    opened_end: Option<i64>,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    rules: Rules,
    batches: BTreeMap<u64, Batch>,
    /// By first offset.
    log: BTreeMap<i64, Placed>,
    /// By client and how many it had sent before: where it lies.
    order: BTreeMap<(u64, u64), i64>,
    sent: BTreeMap<u64, u64>,
    known: Known,
    /// The log may not start beyond it without retention.
    start_max: i64,
    life: u64,
}

type Found = Vec<Violation>;

fn note(found: &mut Found, class: Class, story: String) {
    found.push(Violation::new(class, story));
}

impl Log {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            batches: BTreeMap::new(),
            log: BTreeMap::new(),
            order: BTreeMap::new(),
            sent: BTreeMap::new(),
            known: Known { log_start: 0, high_watermark: 0, opened_end: None },
            start_max: 0,
            life: 0,
        }
    }

    pub(crate) const fn known(&self) -> Known {
        self.known
    }

    pub(crate) fn batches(&self) -> usize {
        self.log.len()
    }

    pub(crate) fn send(&mut self, client: u64, sent: Sent, found: &mut Found) -> u64 {
        let count = self.sent.entry(client).or_default();
        let batch = Batch { client, place: *count, records: sent.records, fate: Fate::Open, life: self.life };
        *count += 1;
        if self.batches.insert(sent.number, batch).is_some() {
            note(found, Class::Duplicate, format!("batch {} was sent twice", sent.number));
        }
        sent.number
    }

    pub(crate) fn handle_acked(&mut self, batches: &[u64], base: i64, found: &mut Found) {
        let mut at = base;
        for number in batches {
            let records = self.batches.get(number).map_or(0, |batch| batch.records);
            if let Some(placed) = self.place(*number, at, found) {
                placed.acked = true;
            }
            at += records;
        }
        self.raise(at);
    }

    pub(crate) fn handle_refused(&mut self, batches: &[u64], found: &mut Found) {
        for number in batches {
            let Some(batch) = self.batches.get_mut(number) else { continue };
            if let Fate::At(base) = batch.fate {
                note(found, Class::AbortedRead, format!("batch {number} at {base} was served, then refused"));
            }
            batch.fate = Fate::Refused;
        }
    }

    /// A batch lies at `base`. What an answer from before a deletion holds is not taken back into the log.
    fn place(&mut self, number: u64, base: i64, found: &mut Found) -> Option<&mut Placed> {
        let batch = self.batches.get_mut(&number)?;
        let end = base + batch.records;
        let wrong = match batch.fate {
            Fate::Open => None,
            Fate::At(at) if at == base => None,
            Fate::At(at) => Some((Class::Duplicate, format!("batch {number} is at {at} and at {base}"))),
            Fate::Refused => Some((Class::AbortedRead, format!("batch {number} at {base} was refused"))),
            Fate::Gone => Some((Class::Resurrected, format!("batch {number} is back, at {base}"))),
        };
        if let Some((class, story)) = wrong {
            note(found, class, story);
            return None;
        }
        batch.fate = Fate::At(base);
        let (client, place) = (batch.client, batch.place);
        if end <= self.known.log_start {
            return None;
        }
        self.clear(number, base, end, found);
        self.check_order(client, place, base, found);
        let life = self.life;
        let placed = self.log.entry(base).or_insert(Placed {
            number,
            end,
            acked: false,
            doubtful: false,
            life,
            skipped: false,
        });
        (placed.doubtful, placed.life, placed.skipped) = (false, life, false);
        Some(placed)
    }

    fn check_order(&mut self, client: u64, place: u64, base: i64, found: &mut Found) {
        let before = self.order.range((client, 0)..(client, place)).next_back();
        let after = self.order.range((client, place + 1)..=(client, u64::MAX)).next();
        let ok = before.is_none_or(|(_, at)| *at < base) && after.is_none_or(|(_, at)| *at > base);
        if !ok {
            let what =
                format!("append {place} of client {client} lies at {base}, beside {before:?}, {after:?}");
            note(found, Class::NonMonotonicSend, what);
        }
        self.order.insert((client, place), base);
    }

    /// Nothing else may lie in `[base, end)`.
    fn clear(&mut self, number: u64, base: i64, end: i64, found: &mut Found) {
        for at in self.within(base, end) {
            let other = self.log[&at];
            if other.number == number {
                continue;
            }
            if !other.doubtful {
                let what =
                    format!("batch {number} at {base}..{end}, batch {} at {at}..{}", other.number, other.end);
                note(found, Class::InconsistentOffsets, what);
            }
            self.drop_at(at, Fate::Gone);
        }
    }

    /// First offsets of what takes any of `[from, to)`.
    fn within(&self, from: i64, to: i64) -> Vec<i64> {
        let first = self.log.range(..from).next_back().filter(|(_, placed)| placed.end > from);
        let first = first.map_or(from, |(at, _)| *at);
        self.log.range(first..to).map(|(at, _)| *at).collect()
    }

    fn drop_at(&mut self, at: i64, fate: Fate) {
        let Some(placed) = self.log.remove(&at) else { return };
        if let Some(batch) = self.batches.get_mut(&placed.number) {
            batch.fate = fate;
            self.order.remove(&(batch.client, batch.place));
        }
    }

    fn raise(&mut self, end: i64) {
        self.known.high_watermark = self.known.high_watermark.max(end);
        self.known.opened_end = self.known.opened_end.max(Some(end));
    }

    /// Whatever was deleted need not be remembered; should it come back, the log start tells.
    fn forget_below(&mut self, start: i64) {
        while let Some(first) = self.log.first_entry().filter(|entry| entry.get().end <= start) {
            let (at, placed) = first.remove_entry();
            if let Some(batch) = self.batches.get_mut(&placed.number) {
                batch.fate = Fate::At(at);
                self.order.remove(&(batch.client, batch.place));
            }
        }
    }

    pub(crate) fn trim(&mut self, before: i64) {
        self.start_max = self.start_max.max(before);
    }

    pub(crate) fn handle_trimmed(&mut self, start: i64, found: &mut Found) {
        self.start_max = self.start_max.max(start);
        self.handle_marks(self.known, start, self.known.high_watermark.max(start), found);
    }

    pub(crate) fn handle_deleted(&mut self) {
        self.batches.values_mut().for_each(|batch| batch.fate = Fate::Gone);
        self.log.clear();
        self.order.clear();
        self.known = Known { log_start: 0, high_watermark: 0, opened_end: None };
        self.start_max = 0;
    }

    pub(crate) fn doubt(&mut self, from: i64) {
        self.log
            .iter_mut()
            .filter(|(_, placed)| placed.end > from)
            .for_each(|(_, placed)| placed.doubtful = true);
        self.known.high_watermark = self.known.high_watermark.min(from);
        self.known.opened_end = None;
    }

    pub(crate) fn doubt_all(&mut self) {
        self.doubt(0);
        (self.known.log_start, self.start_max) = (0, i64::MAX);
    }

    pub(crate) fn restart(&mut self) {
        self.life += 1;
        self.known.opened_end = None;
    }

    pub(crate) fn finish(&self, found: &mut Found) {
        found.extend(
            self.log.iter().filter(|(_, placed)| placed.skipped).map(|(at, placed)| placed.lost(*at)),
        );
    }
}

impl Placed {
    fn lost(&self, at: i64) -> Violation {
        let Self { number, end, .. } = self;
        if self.acked {
            Violation::new(
                Class::LostWrite,
                format!("batch {number}, acknowledged at {at}..{end}, is not there"),
            )
        } else {
            Violation::new(Class::Phantom, format!("batch {number}, served at {at}..{end} before, is gone"))
        }
    }
}
