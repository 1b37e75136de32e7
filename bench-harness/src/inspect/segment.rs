//! One segment: its batches against its name, the segment before, the leader epochs and both indexes.

use std::path::Path;

use rohrpost_engine_core::format::batch::{BatchError, BatchHeader};
use rohrpost_engine_core::format::checkpoint::EpochStart;
use rohrpost_engine_core::format::index::{
    IndexError, OFFSET_ENTRY_LEN, OffsetIndex, TIME_ENTRY_LEN, TimeIndex,
};
use rohrpost_engine_core::format::names::{SegmentFile, SegmentFileKind};
use rohrpost_engine_core::format::side_file::SegmentIdentity;
use rohrpost_engine_core::types::{ByteCount, Offset};

use super::context::Context;
use super::entry::{BatchLine, Entry};
use super::finding::{Finding, What};
use super::index_check::{Found, OffsetCheck, TimeCheck, TxnCheck};
use super::report::SegmentReport;
use super::scan::{Scan, Step, Tail};
use super::side::ChainCheck;
use super::source::Source;
use super::{InspectError, at, side, small};

/// What a segment is checked against.
#[derive(Clone, Copy, Default)]
pub(super) struct Expected<'e> {
    /// End of the segment before.
    pub(super) next_offset: Option<i64>,
    /// Epoch of its last batch.
    pub(super) leader_epoch: Option<i32>,
    /// The leader-epoch-checkpoint; empty if there is none.
    pub(super) epochs: &'e [EpochStart],
    /// What the side file must say it belongs to.
    pub(super) identity: Option<SegmentIdentity>,
}

/// A segment's report, and the epoch of its last batch.
pub(super) struct Inspected {
    pub(super) report: SegmentReport,
    pub(super) leader_epoch: Option<i32>,
}

/// Inspects the segment `base` of `dir` with the indexes that lie beside it.
pub(super) fn inspect(
    context: &mut Context<'_>,
    dir: &Path,
    base: Offset,
    expected: Expected<'_>,
) -> Result<Inspected, InspectError> {
    let beside = |kind| dir.join(SegmentFile::live(base, kind).to_string());
    let path = beside(SegmentFileKind::Log);
    let mut source = Source::open(&path).map_err(at(&path))?;
    let len = ByteCount::new(source.len());
    let offsets = load_offsets(context, dir, base, len)?;
    let times = load_times(context, dir, base)?;
    let aborted = small::transactions(context, &beside(SegmentFileKind::TxnIndex), base)?;
    let side = side::load(context, &beside(SegmentFileKind::Chain), expected.identity)?;
    let file = context.start(&path)?;
    let mut batches = Batches {
        offsets: offsets.map(OffsetCheck::new),
        times: times.map(TimeCheck::new),
        aborted: Some(TxnCheck::new(aborted)),
        side: side.as_ref().map(|side| ChainCheck::new(side, file.clone())),
        ..Batches::new(&file, base, expected)
    };
    batches.first(context);
    let mut scan = Scan::new(&mut source, base.get());
    let (end_position, tail) = loop {
        match scan.step().map_err(at(&path))? {
            Step::Batch { position, header, error } => {
                context.entry(&Entry::Batch(BatchLine::new(&header, position, error.is_none())))?;
                batches.batch(context, position, &header, error);
            }
            Step::Bad { position, what } => bad(context, &file, position, what),
            Step::End { position, tail } => break (position, tail),
        }
    };
    let leader_epoch = batches.leader_epoch;
    let report = batches.end(context, dir, end_position, tail, len.get());
    Ok(Inspected { report, leader_epoch })
}

/// Scans a file of batches that is no segment: the broker's bootstrap checkpoint.
pub(super) fn inspect_batches(context: &mut Context<'_>, path: &Path) -> Result<(), InspectError> {
    let mut source = Source::open(path).map_err(at(path))?;
    let file = context.start(path)?;
    let mut scan = Scan::new(&mut source, 0);
    loop {
        match scan.step().map_err(at(path))? {
            Step::Batch { position, header, error } => {
                context.entry(&Entry::Batch(BatchLine::new(&header, position, error.is_none())))?;
                if let Some(error) = error {
                    context.find(Finding::batch(&file, position, error));
                }
            }
            Step::Bad { position, what } => bad(context, &file, position, what),
            Step::End { .. } => return Ok(()),
        }
    }
}

/// Bytes where a batch should start and none does.
fn bad(context: &mut Context<'_>, file: &Path, position: u64, what: What) {
    context.find(match what {
        What::Batch { batch, error } => Finding::batch(file, batch, error),
        What::ZeroTail { .. } => Finding::note(file, position, what),
        _ => Finding::problem(file, position, what),
    });
}

fn load_offsets(
    context: &mut Context<'_>,
    dir: &Path,
    base: Offset,
    segment_len: ByteCount,
) -> Result<Option<OffsetIndex>, InspectError> {
    let load = |bytes: &[u8]| OffsetIndex::load(base, bytes, segment_len, 0);
    let index = load_index(context, dir, base, SegmentFileKind::Index, OFFSET_ENTRY_LEN, load)?;
    for entry in index.iter().flat_map(|index| (0..index.len()).map_while(|i| index.entry(i))) {
        context.entry(&entry.into())?;
    }
    Ok(index)
}

fn load_times(
    context: &mut Context<'_>,
    dir: &Path,
    base: Offset,
) -> Result<Option<TimeIndex>, InspectError> {
    let load = |bytes: &[u8]| TimeIndex::load(base, bytes, 0);
    let index = load_index(context, dir, base, SegmentFileKind::TimeIndex, TIME_ENTRY_LEN, load)?;
    for entry in index.iter().flat_map(|index| (0..index.len()).map_while(|i| index.entry(i))) {
        context.entry(&entry.into())?;
    }
    Ok(index)
}

/// Reads and loads one index; a missing or malformed one is a finding.
fn load_index<I>(
    context: &mut Context<'_>,
    dir: &Path,
    base: Offset,
    kind: SegmentFileKind,
    entry_len: usize,
    load: impl Fn(&[u8]) -> Result<I, IndexError>,
) -> Result<Option<I>, InspectError> {
    let path = dir.join(SegmentFile::live(base, kind).to_string());
    let Some(bytes) = context.read_small(&path)? else {
        let name = if kind == SegmentFileKind::Index { "offset index" } else { "time index" };
        let log = dir.join(SegmentFile::live(base, SegmentFileKind::Log).to_string());
        let log = context.relative(&log);
        context.find(Finding::note(&log, None, What::Missing(name)));
        return Ok(None);
    };
    let file = context.start(&path)?;
    match load(&bytes) {
        Ok(index) => Ok(Some(index)),
        Err(error) => {
            context.find(Finding::index(&file, entry_len, error));
            Ok(None)
        }
    }
}

/// The running state of one segment's batches.
struct Batches<'e> {
    file: &'e Path,
    expected: Expected<'e>,
    base: Offset,
    first_offset: Option<i64>,
    next_offset: i64,
    leader_epoch: Option<i32>,
    max_timestamp: i64,
    count: u64,
    records: u64,
    gaps: Option<(u64, What)>,
    offsets: Option<OffsetCheck>,
    times: Option<TimeCheck>,
    aborted: Option<TxnCheck>,
    side: Option<ChainCheck<'e>>,
    offset_findings: Vec<Found>,
    time_findings: Vec<Found>,
    txn_findings: Vec<Found>,
}

impl<'e> Batches<'e> {
    fn new(file: &'e Path, base: Offset, expected: Expected<'e>) -> Self {
        Self {
            file,
            expected,
            base,
            first_offset: None,
            next_offset: base.get(),
            leader_epoch: expected.leader_epoch,
            max_timestamp: -1,
            count: 0,
            records: 0,
            gaps: None,
            offsets: None,
            times: None,
            aborted: None,
            side: None,
            offset_findings: Vec::new(),
            time_findings: Vec::new(),
            txn_findings: Vec::new(),
        }
    }

    fn first(&self, context: &mut Context<'_>) {
        let found = self.base.get();
        if let Some(expected) = self.expected.next_offset.filter(|&end| found < end) {
            context.find(Finding::problem(self.file, None, What::SegmentOverlap { expected, found }));
        }
    }

    fn batch(
        &mut self,
        context: &mut Context<'_>,
        position: u64,
        header: &BatchHeader,
        error: Option<BatchError>,
    ) {
        let codec = header.attributes().codec().err();
        for error in error.into_iter().chain(codec) {
            context.find(Finding::batch(self.file, position, error));
        }
        self.chain(context, position, header);
        self.epoch(context, position, header);
        if let Some(check) = &mut self.offsets {
            check.batch(position, header, &mut self.offset_findings);
        }
        if let Some(check) = &mut self.times {
            check.batch(header, &mut self.time_findings);
        }
        if let Some(check) = &mut self.aborted {
            check.batch(header, &mut self.txn_findings);
        }
        if let Some(check) = &mut self.side {
            check.batch(context, position, header);
        }
        self.count += 1;
        self.records += u64::from(header.count().unsigned_abs());
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp().get());
    }

    /// Offsets increase from batch to batch; what is missing between them is counted.
    fn chain(&mut self, context: &mut Context<'_>, position: u64, header: &BatchHeader) {
        let found = header.base_offset().get();
        if found < self.next_offset {
            let expected = Offset::new(self.next_offset);
            let error = BatchError::OffsetOrder { expected, found: header.base_offset() };
            context.find(Finding::batch(self.file, position, error));
        }
        let len = found - self.next_offset;
        if len > 0 && self.first_offset.is_some() {
            match &mut self.gaps {
                Some((_, What::Gaps { gaps, missing, .. })) => {
                    *gaps += 1;
                    *missing += len;
                }
                _ => {
                    let what = What::Gaps { gaps: 1, missing: len, from: self.next_offset, to: found };
                    self.gaps = Some((position, what));
                }
            }
        }
        self.first_offset.get_or_insert(found);
        self.next_offset = header.next_offset().get();
    }

    /// Epochs never fall, and are those of the checkpoint where it reaches back far enough.
    fn epoch(&mut self, context: &mut Context<'_>, position: u64, header: &BatchHeader) {
        let (found, offset) = (header.leader_epoch().get(), header.base_offset());
        if let Some(previous) = self.leader_epoch.filter(|&previous| found < previous) {
            let what = What::EpochOrder { previous, found };
            context.find(Finding::problem(self.file, position + 12, what));
        }
        let by_checkpoint = self.expected.epochs.iter().rev().find(|start| start.start_offset <= offset);
        if let Some(expected) = by_checkpoint.map(|start| start.epoch.get()).filter(|&e| e != found) {
            let what = What::EpochCheckpoint { expected, found, offset: offset.get() };
            context.find(Finding::problem(self.file, position + 12, what));
        }
        self.leader_epoch = Some(found);
    }

    fn end(
        mut self,
        context: &mut Context<'_>,
        dir: &Path,
        end_position: u64,
        tail: Tail,
        len: u64,
    ) -> SegmentReport {
        if let Some(check) = self.offsets.take() {
            check.end(&mut self.offset_findings);
        }
        if let Some(check) = self.times.take() {
            check.end(&mut self.time_findings);
        }
        if let Some(check) = self.aborted.take() {
            check.end(&mut self.txn_findings);
        }
        if let Some(check) = self.side.take() {
            check.end(context);
        }
        if let Some((position, what)) = self.gaps.take() {
            context.find(Finding::note(self.file, position, what));
        }
        let kinds = [SegmentFileKind::Index, SegmentFileKind::TimeIndex, SegmentFileKind::TxnIndex];
        let findings = [self.offset_findings, self.time_findings, self.txn_findings];
        for (kind, findings) in kinds.into_iter().zip(findings) {
            let file = context.relative(&dir.join(SegmentFile::live(self.base, kind).to_string()));
            for (position, what) in findings {
                context.find(Finding::problem(&file, position, what));
            }
        }
        SegmentReport {
            file: self.file.to_owned(),
            len,
            base_offset: self.first_offset.unwrap_or(self.base.get()),
            next_offset: self.next_offset,
            batches: self.count,
            records: self.records,
            max_timestamp: self.max_timestamp,
            end_position,
            tail,
        }
    }
}
