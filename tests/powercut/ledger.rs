//! The ledger: what was sent, acknowledged and served, and what must therefore be there after a cut.
//!
//! Kept by the process that survives, in its own memory, so outside of the file system that is cut. A violation is a
//! text; the first one ends a run.

use std::collections::{BTreeMap, BTreeSet};

use crate::load::{PARTITIONS, level_of, records_of};
use crate::report::Line;
use rohrpost_engine::Durability;

/// How the life of a load generator ended, or is imagined to have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its process is gone, the machine is not.
    Killed,
    /// So is everything that was not on the device.
    PowerCut,
}

/// One partition.
#[derive(Clone, Debug, Default)]
struct Account {
    /// Base offset to number of batch: acknowledged since the last look.
    acked: BTreeMap<i64, u64>,
    /// Likewise: served by an engine that has recovered. Whoever has read it has a right to find it again.
    served: BTreeMap<i64, u64>,
    /// Sent, and neither acknowledged nor found.
    in_flight: BTreeSet<u64>,
    /// Highest number ever sent.
    sent_max: Option<u64>,
    /// The log start offset may be anything between these two.
    trimmed: i64,
    trim_asked: i64,
}

/// What one life has found at its start: per partition log start offset, end, and batches.
#[derive(Clone, Debug, Default)]
struct Found {
    start: i64,
    end: i64,
    batches: Vec<(i64, u64)>,
    garbage: Option<i64>,
}

/// All partitions, over many lives.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    accounts: Vec<Account>,
    found: Vec<Option<Found>>,
    /// Acknowledgements ever.
    pub(crate) acked_count: u64,
    /// Batches whose presence was checked, over all lives.
    pub(crate) checked_count: u64,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            accounts: vec![Account::default(); PARTITIONS],
            found: vec![None; PARTITIONS],
            acked_count: 0,
            checked_count: 0,
        }
    }

    /// Takes one line of a report.
    pub(crate) fn push(&mut self, line: &Line) {
        match line {
            Line::Open { partition, start, end } => {
                self.found[*partition] = Some(Found { start: *start, end: *end, ..Found::default() });
            }
            Line::Have { partition, base, number } => {
                self.found[*partition].as_mut().expect("opened first").batches.push((*base, *number));
            }
            Line::Garbage { partition, base } => {
                self.found[*partition].as_mut().expect("opened first").garbage = Some(*base);
            }
            Line::Send { partition, number, .. } => {
                let account = &mut self.accounts[*partition];
                account.in_flight.insert(*number);
                account.sent_max = account.sent_max.max(Some(*number));
            }
            Line::Ack { partition, base, number, .. } => {
                self.acked_count += 1;
                let account = &mut self.accounts[*partition];
                account.in_flight.remove(number);
                account.acked.insert(*base, *number);
            }
            Line::TrimAsked { partition, before, .. } => {
                let asked = &mut self.accounts[*partition].trim_asked;
                *asked = (*asked).max(*before);
            }
            Line::Trimmed { partition, start, .. } => {
                let trimmed = &mut self.accounts[*partition].trimmed;
                *trimmed = (*trimmed).max(*start);
            }
            Line::Refused { .. } | Line::Failed { .. } | Line::Ready | Line::Done => {}
        }
    }

    /// Appends without an acknowledgement.
    pub(crate) fn in_flight(&self) -> usize {
        self.accounts.iter().map(|account| account.in_flight.len()).sum()
    }

    /// The number after the highest that was sent.
    pub(crate) fn sent_end(&self) -> u64 {
        self.accounts.iter().filter_map(|account| account.sent_max).max().map_or(0, |max| max + 1)
    }

    /// Holds what a life has found against what it must find after such an end of the one before, and makes it the
    /// new expectation.
    ///
    /// # Errors
    /// What is lost, changed, doubled or made up.
    pub(crate) fn settle(&mut self, end: End) -> Result<(), String> {
        for partition in 0..PARTITIONS {
            let found = self.found[partition].take().ok_or(format!("partition {partition} was not read"))?;
            let account = &mut self.accounts[partition];
            if end == End::PowerCut && level_of(partition) == Durability::Written {
                account.acked.clear();
            }
            account.check(partition, &found).map_err(|what| format!("partition {partition}: {what}"))?;
            self.checked_count += (account.acked.len() + account.served.len()) as u64;
            account.acked.clear();
            account.in_flight.clear();
            account.served = found.batches.iter().copied().collect();
            account.trimmed = found.start;
            account.trim_asked = account.trim_asked.max(found.start);
        }
        Ok(())
    }
}

impl Account {
    fn check(&self, partition: usize, found: &Found) -> Result<(), String> {
        if let Some(base) = found.garbage {
            return Err(format!("what is served at {base} was never sent"));
        }
        let may = self.trimmed..=self.trim_asked.max(self.trimmed);
        if !may.contains(&found.start) {
            return Err(format!("log start offset {} is not in {may:?}", found.start));
        }
        let (mut next, mut before) = (found.start, None);
        for (base, number) in &found.batches {
            if *base != next {
                return Err(format!("offset {next} is followed by {base}"));
            }
            if before >= Some(*number) || self.sent_max < Some(*number) {
                return Err(format!("{number} at {base}, after {before:?}, of {:?} sent", self.sent_max));
            }
            if number % PARTITIONS as u64 != partition as u64 {
                return Err(format!("{number} at {base} belongs to another partition"));
            }
            before = Some(*number);
            next = base + records_of(*number) as i64;
        }
        if next != found.end {
            return Err(format!("readable to {next}, the high watermark is {}", found.end));
        }
        let there: BTreeMap<i64, u64> = found.batches.iter().copied().collect();
        for (what, expected) in [("acknowledged", &self.acked), ("served before", &self.served)] {
            for (base, number) in expected.range(found.start..) {
                if there.get(base) != Some(number) {
                    return Err(format!("{what} {number} at {base} is lost: there is {:?}", there.get(base)));
                }
            }
        }
        Ok(())
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
