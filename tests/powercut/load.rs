//! The load generator: the real engine, two shards, several partitions, one writer each; it reports everything and
//! decides nothing. Started by the lab as a process of its own, which is killed or whose disk is cut.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use rohrpost_engine::{
    AppendError, AppendResult, Appended, ByteCount, DriverChoice, Durability, Engine, EngineOptions, Fetched,
    LogConfig, Offset, Partition, Pending, RequestError, ShardLimits, WriteMode,
};
use rohrpost_tests::log::{batch, number_of, peek, split};

use crate::report::Line;

pub(crate) const PARTITIONS: usize = 4;
const SHARDS: usize = 2;
/// Appends of one partition without an acknowledgement.
const IN_FLIGHT: usize = 6;
/// Batches a partition keeps before its writer deletes the older half.
const KEPT_MAX: usize = 240;

/// Between two appends of a writer that was told that there is no space.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// Without any answer for so long, a writer that endures asks with one more append: what is on its way when a disk turns
/// out to be full waits for space, and only what comes later is refused.
const PROBE_AFTER: Duration = Duration::from_millis(100);
/// Appends of one partition without an acknowledgement, probes included.
const IN_FLIGHT_MAX: usize = 2 * IN_FLIGHT;

/// Appends on their way, in the order of sending.
type Waiting = VecDeque<(Pending<AppendResult<Appended>>, u64)>;

/// A lie of the load generator, which the lab must find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// Acknowledgements are reported as soon as an append is sent.
    AckBeforeSync,
    /// Partitions that claim level `flushed` are opened at level `written`.
    WrittenAsFlushed,
    /// A batch that is there is not reported, as if a reader had skipped it.
    SkipOnRead,
}

/// What a load generator is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct Story {
    /// The log directory.
    #[arg(long)]
    pub(crate) root: PathBuf,
    /// The poll driver instead of io_uring.
    #[arg(long)]
    pub(crate) poll: bool,
    /// Number of the first batch.
    #[arg(long, default_value_t = 0)]
    pub(crate) first: u64,
    /// Batches of each partition; without it, until killed.
    #[arg(long)]
    pub(crate) batches: Option<u64>,
    /// The disk's write log, whose length goes into the report.
    #[arg(long)]
    pub(crate) write_log: Option<PathBuf>,
    /// Go on where something cannot be read, or there is no space.
    #[arg(long)]
    pub(crate) endure: bool,
    /// A lie.
    #[arg(long)]
    pub(crate) plant: Option<Plant>,
}

/// Records of batch `number`: offsets it takes.
pub(crate) fn records_of(number: u64) -> usize {
    1 + (number / PARTITIONS as u64) as usize % 4
}

/// What partition `partition` promises with an acknowledgement.
pub(crate) fn level_of(partition: usize) -> Durability {
    if partition == 2 { Durability::Written } else { Durability::Flushed }
}

/// Batch `number`, before the log has assigned anything.
pub(crate) fn sent(number: u64) -> Bytes {
    let lengths: &[usize] =
        if number % PARTITIONS as u64 == 3 { &[8, 60] } else { &[10, 700, 4_000, 17_000, 50_000] };
    let len = lengths[(number.wrapping_mul(2_654_435_761) >> 16) as usize % lengths.len()];
    batch(number, records_of(number), len + number as usize % 97)
}

fn config(partition: usize, plant: Option<Plant>) -> LogConfig {
    let lies = plant == Some(Plant::WrittenAsFlushed);
    LogConfig {
        segment_len_max: ByteCount::kib(512),
        batch_len_max: ByteCount::kib(64),
        retention_ms: None,
        durability: if lies { Durability::Written } else { level_of(partition) },
        write_mode: if partition == 1 { WriteMode::Buffered } else { WriteMode::Direct },
        ..LogConfig::default()
    }
}

/// An engine as the lab runs it.
pub(crate) fn options(root: &Path, poll: bool) -> EngineOptions {
    EngineOptions {
        driver: if poll { DriverChoice::Poll } else { DriverChoice::Uring },
        cores: vec![None; SHARDS],
        limits: ShardLimits::small(),
        ..EngineOptions::new(root)
    }
}

/// Opens, reads and reports everything, then appends until told to end or killed.
pub(crate) fn run(story: &Story) -> Result<(), ()> {
    run_or_say(story).map_err(|why| say(&Line::Failed { why }))
}

fn run_or_say(story: &Story) -> Result<(), String> {
    let engine = Engine::start(options(&story.root, story.poll)).map_err(|error| error.to_string())?;
    let mut partitions = Vec::new();
    for index in 0..PARTITIONS {
        let name = format!("t-{index}").parse().expect("a partition's name");
        let opened = engine.handle().open_partition_blocking(&name, config(index, story.plant));
        partitions.push(opened.map_err(|error| format!("{name}: {error}"))?);
    }
    let mut writers = Vec::new();
    for (index, partition) in partitions.iter().enumerate() {
        writers.push(Writer::read_all(story, index, partition)?);
    }
    say(&Line::Ready);
    std::thread::scope(|scope| writers.iter_mut().for_each(|writer| drop(scope.spawn(|| writer.run()))));
    drop(writers);
    engine.shutdown().map_err(|error| error.to_string())?;
    say(&Line::Done);
    Ok(())
}

fn say(line: &Line) {
    // One write: a kill leaves the whole line or a part without its end mark. Without a listener nothing is left to do.
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

/// The writer of one partition.
struct Writer<'a> {
    story: &'a Story,
    index: usize,
    partition: &'a Partition,
    /// Base offsets of what is in the log, oldest first.
    kept: VecDeque<i64>,
    /// Offset that the next append gets, if none fails.
    next: i64,
}

impl<'a> Writer<'a> {
    fn read_all(story: &'a Story, index: usize, partition: &'a Partition) -> Result<Self, String> {
        let ends = partition.watermarks().wait().map_err(|error| format!("{}: {error}", partition.name()))?;
        let (start, end) = (ends.log_start_offset, ends.high_watermark);
        say(&Line::Open { partition: index, start: start.get(), end: end.get() });
        let mut writer = Self { story, index, partition, kept: VecDeque::new(), next: end.get() };
        let mut offset = start;
        while offset < end {
            let fetched = match partition.fetch(offset, ByteCount::mib(1)).wait() {
                Err(error) if story.endure => {
                    let Some((next, fetched)) = writer.pass(offset, end, &error.to_string()) else { break };
                    offset = next;
                    Ok(fetched)
                }
                other => other,
            };
            let bytes =
                fetched.map_err(|error| format!("{} at {offset}: {error}", partition.name()))?.to_bytes();
            let stored = split(&bytes, offset);
            let Some(last) = stored.last() else {
                say(&Line::Garbage { partition: index, base: offset.get() });
                break;
            };
            offset = last.next_offset;
            for batch in &stored {
                writer.report(batch.base_offset, &batch.bytes, |sent| batch.is(sent));
            }
        }
        Ok(writer)
    }

    /// The first single batch from `offset` on that can be read, after a report of what cannot.
    fn pass(&self, offset: Offset, end: Offset, why: &str) -> Option<(Offset, Fetched)> {
        let readable = (offset.get()..end.get()).map(Offset::new).find_map(|at| {
            self.partition.fetch(at, ByteCount::new(1)).wait().ok().map(|fetched| (at, fetched))
        });
        let (from, to) = (offset.get(), readable.as_ref().map_or(end, |(at, _)| *at).get());
        if from < to {
            say(&Line::Unreadable { partition: self.index, from, to, why: why.to_owned() });
        }
        readable
    }

    fn report(&mut self, base: Offset, bytes: &[u8], is: impl FnOnce(&[u8]) -> bool) {
        let (partition, base, number) = (self.index, base.get(), number_of(bytes));
        if !is(&sent(number)) {
            return say(&Line::Garbage { partition, base });
        }
        self.kept.push_back(base);
        if self.story.plant != Some(Plant::SkipOnRead) || self.kept.len() != 10 {
            say(&Line::Have { partition, base, number });
        }
    }

    /// Length of the write log now, if there is one.
    fn at(&self) -> u64 {
        let path = self.story.write_log.as_ref();
        path.map_or(0, |path| std::fs::metadata(path).map_or(0, |data| data.len()))
    }

    fn run(&mut self) {
        let mut waiting = Waiting::new();
        let mut left = self.story.batches;
        let mut number = self.story.first + self.index as u64;
        let mut in_flight_max = IN_FLIGHT;
        loop {
            if left != Some(0) && waiting.len() < in_flight_max {
                in_flight_max = IN_FLIGHT;
                say(&Line::Send { partition: self.index, number, at: self.at() });
                waiting.push_back((self.partition.append(sent(number)), number));
                if self.story.plant == Some(Plant::AckBeforeSync) {
                    self.acknowledged(self.next, number);
                    self.next += records_of(number) as i64;
                }
                number += PARTITIONS as u64;
                left = left.map(|left| left - 1);
                continue;
            }
            if waiting.is_empty() {
                return;
            }
            let Some((answer, number)) = self.next_answer(&mut waiting) else {
                in_flight_max = IN_FLIGHT_MAX.min(waiting.len() + 1);
                continue;
            };
            match answer {
                Ok(_) if self.story.plant == Some(Plant::AckBeforeSync) => {}
                Ok(appended) => self.acknowledged(appended.base_offset.get(), number),
                Err(RequestError::Refused(why @ (AppendError::DiskFull(_) | AppendError::Busy)))
                    if self.story.endure =>
                {
                    say(&Line::Full { partition: self.index, number, why: why.to_string() });
                    std::thread::sleep(FULL_PAUSE);
                }
                Err(error) => {
                    return say(&Line::Refused { partition: self.index, number, why: error.to_string() });
                }
            }
            // What is deleted would keep a full disk going.
            if self.kept.len() > KEPT_MAX && !self.story.endure {
                self.trim();
            }
        }
    }

    /// What has become of the oldest append; for a writer that endures, of the oldest that has an answer, and `None` if
    /// none has one for a while.
    fn next_answer(&self, waiting: &mut Waiting) -> Option<(AppendResult<Appended>, u64)> {
        if !self.story.endure {
            return waiting.pop_front().map(|(pending, number)| (pending.wait(), number));
        }
        let start = Instant::now();
        while start.elapsed() < PROBE_AFTER {
            let mut all = waiting.iter_mut().enumerate();
            let answered = all.find_map(|(at, (pending, number))| Some((at, peek(pending)?, *number)));
            if let Some((at, answer, number)) = answered {
                drop(waiting.remove(at));
                return Some((answer, number));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    fn acknowledged(&mut self, base: i64, number: u64) {
        let at = self.at();
        say(&Line::Ack { partition: self.index, base, number, at });
        self.kept.push_back(base);
    }

    /// Deletes the older half.
    fn trim(&mut self) {
        self.kept.drain(..KEPT_MAX / 2);
        let before = self.kept[0];
        say(&Line::TrimAsked { partition: self.index, before, at: self.at() });
        match self.partition.delete_records(Offset::new(before)).wait() {
            Ok(start) => say(&Line::Trimmed { partition: self.index, start: start.get(), at: self.at() }),
            Err(error) => say(&Line::Failed { why: format!("deleting below {before}: {error}") }),
        }
    }
}
