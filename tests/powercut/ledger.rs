//! The ledger: what was sent, acknowledged and served, and what must therefore be there after a cut.
//!
//! Kept by the process that survives, in its own memory, so outside of the file system that is cut. It turns the lines of
//! the load generator into a history; what a history may show is the checker's to say. A violation is a text; the first
//! one ends a run.

use std::collections::BTreeSet;

use rohrpost_engine::Durability;
use rohrpost_history::{Checker, Event, Rules, Sent, Stored};

use crate::load::{PARTITIONS, level_of, records_of};
use crate::report::Line;

/// How the life of a load generator ended, or is imagined to have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its process is gone, the machine is not.
    Killed,
    /// So is everything that was not on the device.
    PowerCut,
}

/// What one life has found at its start in one partition.
#[derive(Clone, Debug, Default)]
struct Found {
    start: i64,
    end: i64,
    batches: Vec<Stored>,
    /// What a broken disk does not give out, for now: from here to there, in order.
    unreadable: Vec<(i64, i64)>,
}

/// All partitions, over many lives.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    checker: Checker,
    found: Vec<Option<Found>>,
    /// Where each partition ended when it was last looked at: up to there everything is on the device.
    looked_end: Vec<i64>,
    /// Sent, and neither acknowledged nor found.
    in_flight: BTreeSet<u64>,
    /// Number after the highest that was sent.
    sent_end: u64,
    /// Acknowledgements ever.
    pub(crate) acked_count: u64,
    /// Batches whose presence was checked, over all lives.
    pub(crate) checked_count: u64,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            checker: Checker::new([Rules::default(); PARTITIONS]),
            found: vec![None; PARTITIONS],
            looked_end: vec![0; PARTITIONS],
            in_flight: BTreeSet::new(),
            sent_end: 0,
            acked_count: 0,
            checked_count: 0,
        }
    }

    /// Takes one line of a report. The lines of a look are held against the history by [`Self::settle`].
    pub(crate) fn push(&mut self, line: &Line) {
        match line {
            Line::Open { partition, start, end } => {
                self.found[*partition] = Some(Found { start: *start, end: *end, ..Found::default() });
            }
            Line::Have { partition, base, number } => self.have(*partition, *base, Some(*number)),
            Line::Garbage { partition, base } => self.have(*partition, *base, None),
            Line::Unreadable { partition, from, to, .. } => {
                self.found[*partition].as_mut().expect("opened first").unreadable.push((*from, *to));
            }
            Line::Send { partition, number, .. } => {
                self.in_flight.insert(*number);
                self.sent_end = self.sent_end.max(number + 1);
                let batches = vec![Sent { number: *number, records: records_of(*number) as i64 }];
                // One writer a partition, which sends in order.
                let (request, client) = (*number, *partition as u64);
                self.checker.push(&Event::AppendSent { request, client, partition: *partition, batches });
            }
            Line::Ack { base, number, .. } => {
                self.acked_count += 1;
                self.in_flight.remove(number);
                self.checker.push(&Event::Acked { request: *number, base: *base });
            }
            Line::TrimAsked { partition, before, .. } => {
                self.checker.push(&Event::TrimSent { partition: *partition, before: *before });
            }
            Line::Trimmed { partition, start, .. } => {
                self.checker.push(&Event::Trimmed { partition: *partition, start: *start });
            }
            Line::Full { number, .. } => {
                self.in_flight.remove(number);
                self.checker.push(&Event::Refused { request: *number });
            }
            Line::Refused { .. } | Line::Failed { .. } | Line::Ready | Line::Done => {}
        }
    }

    fn have(&mut self, partition: usize, base: i64, number: Option<u64>) {
        self.found[partition].as_mut().expect("opened first").batches.push(Stored { base, number });
    }

    /// Appends without an acknowledgement.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The number after the highest that was sent.
    pub(crate) fn sent_end(&self) -> u64 {
        self.sent_end
    }

    /// Holds what a life has found against what it must find after such an end of the one before.
    ///
    /// # Errors
    /// What is lost, changed, doubled or made up.
    pub(crate) fn settle(&mut self, end: End) -> Result<(), String> {
        for partition in (0..PARTITIONS).filter(|partition| level_of(*partition) == Durability::Written) {
            if end == End::PowerCut {
                self.checker.push(&Event::MayHaveLost { partition, from: self.looked_end[partition] });
            }
        }
        self.checker.push(&Event::Restarted);
        self.in_flight.clear();
        for partition in 0..PARTITIONS {
            let found = self.found[partition].take().ok_or(format!("partition {partition} was not read"))?;
            self.checked_count += self.checker.batches(partition) as u64;
            let (log_start, high_watermark) = (found.start, found.end);
            self.checker.push(&Event::Looked { partition, log_start, high_watermark });
            self.look(partition, &found).map_err(|what| format!("partition {partition}: {what}"))?;
            self.looked_end[partition] = high_watermark;
        }
        self.checker.verdict().map_err(|violation| violation.to_string())
    }

    /// One partition as it was read: a fetch of what lies before, between and behind what is unreadable, and of its end.
    fn look(&mut self, partition: usize, found: &Found) -> Result<(), String> {
        let (mut from, mut rest) = (found.start, found.batches.as_slice());
        for (gap_start, gap_end) in &found.unreadable {
            let (before, behind) = rest.split_at(rest.partition_point(|stored| stored.base < *gap_start));
            let next = self.fetch(partition, found, from, before);
            if next != *gap_start {
                return Err(format!("nothing from {next} on, unreadable is {gap_start}..{gap_end}"));
            }
            (from, rest) = (*gap_end, behind);
        }
        let next = self.fetch(partition, found, from, rest);
        // There is nothing more, or else it is missing.
        self.push_fetched(partition, found, next, Vec::new());
        Ok(())
    }

    /// Returns the offset after the last of `batches`, if there are any.
    fn fetch(&mut self, partition: usize, found: &Found, from: i64, batches: &[Stored]) -> i64 {
        let Some(last) = batches.last() else { return from };
        self.push_fetched(partition, found, from, batches.to_vec());
        last.base + last.number.map_or(0, |number| records_of(number) as i64)
    }

    fn push_fetched(&mut self, partition: usize, found: &Found, from: i64, batches: Vec<Stored>) {
        // Nobody else's number: appends are counted from zero.
        let request = u64::MAX;
        let (log_start, high_watermark) = (found.start, found.end);
        self.checker.push(&Event::FetchSent { request, partition, from });
        self.checker.push(&Event::Fetched { request, log_start, high_watermark, batches });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One partition with batches 0, 4 and 8 acknowledged, read back as told; the others are empty.
    fn look(have: &[(i64, u64)], start: i64, end: Option<i64>) -> Result<(), String> {
        let mut ledger = Ledger::new();
        let mut base = 0;
        for number in [0, 4, 8] {
            ledger.push(&Line::Send { partition: 0, number, at: 0 });
            ledger.push(&Line::Ack { partition: 0, base, number, at: 0 });
            base += records_of(number) as i64;
        }
        for partition in 0..PARTITIONS {
            ledger.push(&Line::Open { partition, start: 0, end: 0 });
        }
        let last = have.last().map_or(start, |(base, number)| base + records_of(*number) as i64);
        ledger.push(&Line::Open { partition: 0, start, end: end.unwrap_or(last) });
        for (base, number) in have {
            ledger.push(&Line::Have { partition: 0, base: *base, number: *number });
        }
        ledger.settle(End::PowerCut)
    }

    /// The whole is accepted; a lost end, a hole, an exchange, a doubled or unsent batch and a moved start are not.
    #[test]
    fn every_kind_of_loss_is_found() {
        let (a, b) = (records_of(0) as i64, records_of(0) as i64 + records_of(4) as i64);
        let c = b + records_of(8) as i64;
        look(&[(0, 0), (a, 4), (b, 8)], 0, None).unwrap();
        let lost = [
            look(&[(0, 0), (a, 4)], 0, None),
            look(&[(0, 0), (b, 8)], 0, None),
            look(&[(0, 0), (a, 8), (a + records_of(8) as i64, 4)], 0, None),
            look(&[(0, 0), (a, 4), (b, 8), (c, 8)], 0, None),
            look(&[(0, 0), (a, 4), (b, 8), (c, 12)], 0, None),
            look(&[(a, 4), (b, 8)], a, None),
            look(&[(0, 0), (a, 4), (b, 8)], 0, Some(c + 1)),
        ];
        for (index, result) in lost.into_iter().enumerate() {
            assert!(result.is_err(), "case {index} was accepted");
        }
    }

    /// What a disk does not give out for now is not lost, and is expected again; nothing else may be missing with it.
    #[test]
    fn what_cannot_be_read_now_must_come_back() {
        let (a, b) = (records_of(0) as i64, records_of(0) as i64 + records_of(4) as i64);
        let c = b + records_of(8) as i64;
        let all = [(0, 0), (a, 4), (b, 8)];
        let mut ledger = Ledger::new();
        for (base, number) in all {
            ledger.push(&Line::Send { partition: 0, number, at: 0 });
            ledger.push(&Line::Ack { partition: 0, base, number, at: 0 });
        }
        let look = |ledger: &mut Ledger, have: &[(i64, u64)], gap: Option<(i64, i64)>| {
            for partition in 0..PARTITIONS {
                ledger.push(&Line::Open { partition, start: 0, end: if partition == 0 { c } else { 0 } });
            }
            for (base, number) in have {
                ledger.push(&Line::Have { partition: 0, base: *base, number: *number });
            }
            if let Some((from, to)) = gap {
                ledger.push(&Line::Unreadable { partition: 0, from, to, why: String::new() });
            }
            ledger.settle(End::PowerCut)
        };
        let (ends, gap) = ([all[0], all[2]], Some((a, b)));
        assert!(look(&mut ledger.clone(), &ends, None).is_err(), "nobody blames the disk");
        assert!(look(&mut ledger.clone(), &all[..1], gap).is_err(), "what lies behind is missing");
        assert!(look(&mut ledger.clone(), &all[2..], gap).is_err(), "what lies before is missing");
        look(&mut ledger.clone(), &all[1..], Some((0, a))).unwrap();
        look(&mut ledger.clone(), &all[..2], Some((b, c))).unwrap();
        look(&mut ledger, &ends, gap).unwrap();
        assert!(look(&mut ledger.clone(), &ends, None).is_err(), "still missing when the disk is sound");
        look(&mut ledger, &all, None).unwrap();
    }

    /// Who was refused for want of space must never be served.
    #[test]
    fn what_was_refused_stays_away() {
        let mut ledger = Ledger::new();
        ledger.push(&Line::Send { partition: 0, number: 0, at: 0 });
        ledger.push(&Line::Full { partition: 0, number: 0, why: String::new() });
        assert_eq!(ledger.in_flight(), 0);
        for partition in 0..PARTITIONS {
            let end = if partition == 0 { records_of(0) as i64 } else { 0 };
            ledger.push(&Line::Open { partition, start: 0, end });
        }
        ledger.push(&Line::Have { partition: 0, base: 0, number: 0 });
        assert!(ledger.settle(End::Killed).is_err());
    }

    /// What was served once must stay, acknowledged or not; at level `written`, an acknowledgement does not outlive
    /// a power cut, and outlives a kill.
    #[test]
    fn what_was_served_stays_and_levels_differ() {
        let written = (0..PARTITIONS).find(|p| level_of(*p) == Durability::Written).unwrap();
        let number = written as u64;
        let open = |ledger: &mut Ledger, have: bool| {
            let end = if have { records_of(number) as i64 } else { 0 };
            for partition in 0..PARTITIONS {
                let end = if partition == written { end } else { 0 };
                ledger.push(&Line::Open { partition, start: 0, end });
            }
            if have {
                ledger.push(&Line::Have { partition: written, base: 0, number });
            }
        };
        let mut ledger = Ledger::new();
        ledger.push(&Line::Send { partition: written, number, at: 0 });
        ledger.push(&Line::Ack { partition: written, base: 0, number, at: 0 });
        let mut killed = ledger.clone();
        open(&mut killed, false);
        assert!(killed.settle(End::Killed).is_err());
        let mut cut = ledger.clone();
        open(&mut cut, false);
        cut.settle(End::PowerCut).unwrap();
        open(&mut ledger, true);
        ledger.settle(End::PowerCut).unwrap();
        open(&mut ledger, false);
        assert!(ledger.settle(End::PowerCut).is_err(), "it had been served");
    }
}
