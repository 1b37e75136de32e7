//! What clients saw of a few logs, held against what a log may show.
//!
//! A history is a sequence of [`Event`]s in the order in which one observer saw them: requests as they were sent, answers
//! as they came, restarts. Requests may overlap. [`check`] reads a recorded one; a [`Checker`] takes events as they
//! happen. Every violation has a [`Class`]: those that Jepsen looks for in Kafka, and those of a single node.
//!
//! Owns everything that was ever said of the partitions, in memory. Does no I/O, and knows nothing of the engine: a batch is a number that its sender has chosen, unique within its partition.

mod class;
mod event;
mod log;

pub use class::{Class, Violation};
pub use event::{Event, Rules, Sent, Stored};

use std::collections::BTreeMap;

use log::{Known, Log};

/// A request that has no answer yet.
#[derive(Clone, Debug)]
enum Asked {
    Append { partition: usize, batches: Vec<u64> },
    Fetch { partition: usize, from: i64, known: Known },
}

/// Checks a history while it is being made.
#[derive(Clone, Debug)]
pub struct Checker {
    logs: Vec<Log>,
    asked: BTreeMap<u64, Asked>,
    events: u64,
    found: Vec<Violation>,
}

impl Checker {
    /// For partitions 0, 1 and on, one for each of the rules.
    pub fn new(rules: impl IntoIterator<Item = Rules>) -> Self {
        let logs = rules.into_iter().map(Log::new).collect();
        Self { logs, asked: BTreeMap::new(), events: 0, found: Vec::new() }
    }

    /// Takes the next event.
    ///
    /// # Panics
    /// If it names a partition that there is not, or an answer whose request was never sent or was answered before:
    /// the history is then not one.
    pub fn push(&mut self, event: &Event) {
        let (partition, before) = (self.partition_of(event), self.found.len());
        self.apply(event);
        for violation in &mut self.found[before..] {
            (violation.event, violation.partition) = (self.events, partition);
        }
        self.events += 1;
    }

    /// What was found so far.
    pub fn violations(&self) -> &[Violation] {
        &self.found
    }

    /// The first violation there is, if there is one.
    ///
    /// # Errors
    /// That violation.
    pub fn verdict(&self) -> Result<(), Violation> {
        self.found.first().cloned().map_or(Ok(()), Err)
    }

    /// The history ends here: what was left out by an answer and never seen again is lost.
    pub fn finish(mut self) -> Vec<Violation> {
        for (partition, log) in self.logs.iter().enumerate() {
            let before = self.found.len();
            log.finish(&mut self.found);
            for violation in &mut self.found[before..] {
                (violation.event, violation.partition) = (self.events, partition);
            }
        }
        self.found
    }

    /// Batches whose place is known and that have not been deleted.
    pub fn batches(&self, partition: usize) -> usize {
        self.logs[partition].batches()
    }

    fn partition_of(&self, event: &Event) -> usize {
        match event {
            Event::AppendSent { partition, .. }
            | Event::FetchSent { partition, .. }
            | Event::Looked { partition, .. }
            | Event::TrimSent { partition, .. }
            | Event::Trimmed { partition, .. }
            | Event::MayHaveLost { partition, .. }
            | Event::Deleted { partition }
            | Event::MayBeDeleted { partition } => *partition,
            Event::Acked { request, .. }
            | Event::Refused { request }
            | Event::Unknown { request }
            | Event::Fetched { request, .. } => match self.asked.get(request) {
                Some(Asked::Append { partition, .. } | Asked::Fetch { partition, .. }) => *partition,
                None => panic!("an answer to {request}, which nobody has sent"),
            },
            Event::Restarted => 0,
        }
    }

    fn apply(&mut self, event: &Event) {
        let found = &mut self.found;
        match event {
            Event::AppendSent { request, client, partition, batches } => {
                let log = &mut self.logs[*partition];
                let numbers = batches.iter().map(|sent| log.send(*client, *sent, found)).collect();
                self.ask(*request, Asked::Append { partition: *partition, batches: numbers });
            }
            Event::FetchSent { request, partition, from } => {
                let known = self.logs[*partition].known();
                self.ask(*request, Asked::Fetch { partition: *partition, from: *from, known });
            }
            Event::Acked { request, base } => {
                let (partition, batches) = self.append(*request);
                self.logs[partition].handle_acked(&batches, *base, &mut self.found);
            }
            Event::Refused { request } => {
                let (partition, batches) = self.append(*request);
                self.logs[partition].handle_refused(&batches, &mut self.found);
            }
            Event::Unknown { request } => drop(self.asked.remove(request)),
            Event::Fetched { request, log_start, high_watermark, batches } => {
                let Some(Asked::Fetch { partition, from, known }) = self.asked.remove(request) else {
                    panic!("{request} is no fetch")
                };
                let answer = log::Answer { from, log_start: *log_start, high_watermark: *high_watermark };
                self.logs[partition].handle_fetched(known, answer, batches, &mut self.found);
            }
            Event::Looked { partition, log_start, high_watermark } => {
                let log = &mut self.logs[*partition];
                log.handle_marks(log.known(), *log_start, *high_watermark, found);
            }
            Event::TrimSent { partition, before } => self.logs[*partition].trim(*before),
            Event::Trimmed { partition, start } => self.logs[*partition].handle_trimmed(*start, found),
            Event::MayHaveLost { partition, from } => self.logs[*partition].doubt(*from),
            Event::Deleted { partition } => self.logs[*partition].handle_deleted(),
            Event::MayBeDeleted { partition } => self.logs[*partition].doubt_all(),
            Event::Restarted => {
                self.asked.clear();
                self.logs.iter_mut().for_each(Log::restart);
            }
        }
    }

    fn ask(&mut self, request: u64, asked: Asked) {
        let before = self.asked.insert(request, asked);
        assert!(before.is_none(), "{request} was sent twice");
    }

    fn append(&mut self, request: u64) -> (usize, Vec<u64>) {
        match self.asked.remove(&request) {
            Some(Asked::Append { partition, batches }) => (partition, batches),
            other => panic!("{request} is no append: {other:?}"),
        }
    }
}

/// All violations of a recorded history of partitions with these rules.
pub fn check(rules: impl IntoIterator<Item = Rules>, history: &[Event]) -> Vec<Violation> {
    let mut checker = Checker::new(rules);
    history.iter().for_each(|event| checker.push(event));
    checker.finish()
}

#[cfg(test)]
mod tests;
