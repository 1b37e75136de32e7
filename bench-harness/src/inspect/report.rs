//! The result of an inspection, and its text.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::finding::{Finding, Severity, What};
use super::scan::Tail;

/// Findings kept per file; further ones are counted.
pub const FINDINGS_MAX_PER_FILE: u64 = 100;

/// All that was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The path inspected.
    pub target: PathBuf,
    /// One for each partition, in the order of their names.
    pub partitions: Vec<PartitionReport>,
    /// Problems and notes, in the order they were met.
    pub findings: Vec<Finding>,
    /// Files read.
    pub files: u64,
}

/// One partition directory, or the files that were inspected alone.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PartitionReport {
    /// Directory below the inspected path; empty for the path itself.
    pub dir: PathBuf,
    /// Its segments, in offset order.
    pub segments: Vec<SegmentReport>,
}

/// One segment file.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentReport {
    /// Below the inspected path.
    pub file: PathBuf,
    /// Length of the file in bytes.
    pub len: u64,
    /// Base offset of its first batch; of the name, if it has none.
    pub base_offset: i64,
    /// The offset after its last batch.
    pub next_offset: i64,
    /// Batches.
    pub batches: u64,
    /// Records the batches say they hold.
    pub records: u64,
    /// Largest timestamp in ms, -1 without any.
    pub max_timestamp: i64,
    /// Where the last batch ends.
    pub end_position: u64,
    /// How the file ends.
    pub tail: Tail,
}

impl Report {
    /// Number of findings that are problems.
    pub fn problems(&self) -> usize {
        self.findings.iter().filter(|f| f.severity == Severity::Problem).count()
    }

    /// 0 without problems, else 1.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.problems() > 0)
    }

    /// The first problem: where the first bad byte is.
    pub fn first_problem(&self) -> Option<&Finding> {
        self.findings.iter().find(|f| f.severity == Severity::Problem)
    }

    /// Keeps a finding, up to the limit of its file.
    pub(super) fn push(&mut self, finding: Finding) {
        let kept = self.findings.iter().rev().take_while(|f| f.file == finding.file).count() as u64;
        match self.findings.last_mut() {
            Some(Finding { what: What::More(more), .. }) if kept > FINDINGS_MAX_PER_FILE => *more += 1,
            _ if kept == FINDINGS_MAX_PER_FILE => {
                self.findings.push(Finding { position: None, what: What::More(1), ..finding });
            }
            _ => self.findings.push(finding),
        }
    }
}

impl PartitionReport {
    /// First and next offset; `None` without a segment.
    pub fn offsets(&self) -> Option<(i64, i64)> {
        Some((self.segments.first()?.base_offset, self.segments.last()?.next_offset))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Note => "note",
            Severity::Problem => "problem",
        };
        match self.position {
            Some(position) => write!(f, "{word}: {}:{position}: {}", shown(&self.file), self.what),
            None => write!(f, "{word}: {}: {}", shown(&self.file), self.what),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.partitions.iter().map(|p| shown(&p.dir).len()).max().unwrap_or(0).max(9);
        if !self.partitions.is_empty() {
            let head = ["segments", "batches", "records", "bytes", "offsets"];
            let [segments, batches, records, bytes, offsets] = head;
            writeln!(
                f,
                "{:width$} {segments:>8} {batches:>9} {records:>11} {bytes:>13}  {offsets:<20} tail",
                "partition"
            )?;
        }
        for partition in &self.partitions {
            partition.row(f, width)?;
        }
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        match self.problems() {
            0 => writeln!(f, "{}: no problem in {} files", self.target.display(), self.files),
            1 => writeln!(f, "{}: 1 problem in {} files", self.target.display(), self.files),
            n => writeln!(f, "{}: {n} problems in {} files", self.target.display(), self.files),
        }
    }
}

impl PartitionReport {
    fn row(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let sum = |of: fn(&SegmentReport) -> u64| self.segments.iter().map(of).sum::<u64>();
        let offsets = match self.offsets() {
            Some((from, to)) => format!("{from}..{to}"),
            None => "-".to_owned(),
        };
        let tail = match self.segments.last().map(|s| s.tail) {
            None => "-",
            Some(Tail::Exact) => "exact",
            Some(Tail::Zeros) => "zeros",
            Some(Tail::Torn) => "torn",
            Some(Tail::Unreadable) => "unreadable",
        };
        let (segments, bytes) = (self.segments.len(), sum(|s| s.len));
        let (batches, records) = (sum(|s| s.batches), sum(|s| s.records));
        let dir = shown(&self.dir);
        writeln!(f, "{dir:width$} {segments:>8} {batches:>9} {records:>11} {bytes:>13}  {offsets:<20} {tail}")
    }
}

fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() { ".".to_owned() } else { path.display().to_string() }
}
