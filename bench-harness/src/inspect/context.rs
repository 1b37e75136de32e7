//! What every part of an inspection needs: where results go, and which of them are wanted.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::entry::Entry;
use super::finding::Finding;
use super::report::{PartitionReport, Report};
use super::{InspectError, Options, at};

/// Indexes, checkpoints and snapshots are read whole, up to this length.
const SMALL_FILE_LEN_MAX: u64 = 256 << 20;

pub(super) struct Context<'w> {
    base: PathBuf,
    only: Option<PathBuf>,
    options: Options,
    out: &'w mut dyn Write,
    file: PathBuf,
    report: Report,
}

impl<'w> Context<'w> {
    /// Names in results are relative to `base`.
    pub(super) fn new(target: &Path, base: &Path, options: Options, out: &'w mut dyn Write) -> Self {
        let report = Report { target: target.to_owned(), ..Report::default() };
        Self { base: base.to_owned(), only: None, options, out, file: PathBuf::new(), report }
    }

    /// Restricts results to one file: what else is read serves to check it.
    pub(super) fn only(&mut self, path: &Path) {
        self.only = Some(self.relative(path));
    }

    /// The name of `path` in results.
    pub(super) fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.base).unwrap_or(path).to_owned()
    }

    /// Begins with a file; returns its name.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn start(&mut self, path: &Path) -> Result<PathBuf, InspectError> {
        self.file = self.relative(path);
        if self.is_wanted(&self.file) {
            self.report.files += 1;
            if self.options.batches && !self.options.json {
                writeln!(self.out, "== {}", self.file.display()).map_err(InspectError::Write)?;
            }
        }
        Ok(self.file.clone())
    }

    /// Prints an entry of the file begun last, if entries are wanted.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), InspectError> {
        if !self.options.batches || !self.is_wanted(&self.file) {
            return Ok(());
        }
        if self.options.json {
            #[derive(Serialize)]
            struct Line<'e> {
                file: &'e Path,
                #[serde(flatten)]
                entry: &'e Entry,
            }
            return self.json(&Line { file: &self.file.clone(), entry });
        }
        writeln!(self.out, "{entry}").map_err(InspectError::Write)
    }

    /// Keeps a finding.
    pub(super) fn find(&mut self, finding: Finding) {
        if self.is_wanted(&finding.file) {
            self.report.push(finding);
        }
    }

    /// Keeps a partition's report.
    pub(super) fn partition(&mut self, partition: PartitionReport) {
        self.report.partitions.push(partition);
    }

    /// The partitions so far.
    pub(super) fn partitions(&self) -> &[PartitionReport] {
        &self.report.partitions
    }

    /// Reads a small file whole; `None` if there is none.
    ///
    /// # Errors
    /// `Read`, `TooLarge`.
    pub(super) fn read_small(&self, path: &Path) -> Result<Option<Vec<u8>>, InspectError> {
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(path)(error)),
        };
        let len = file.metadata().map_err(at(path))?.len();
        if len > SMALL_FILE_LEN_MAX {
            return Err(InspectError::TooLarge { path: path.to_owned(), len, max: SMALL_FILE_LEN_MAX });
        }
        let mut bytes = Vec::new();
        file.take(len).read_to_end(&mut bytes).map_err(at(path))?;
        Ok(Some(bytes))
    }

    /// Prints the report and returns it.
    ///
    /// # Errors
    /// `Write`.
    pub(super) fn finish(mut self) -> Result<Report, InspectError> {
        let report = std::mem::take(&mut self.report);
        if self.options.json {
            self.json_report(&report)?;
        } else {
            write!(self.out, "{report}").map_err(InspectError::Write)?;
        }
        self.out.flush().map_err(InspectError::Write)?;
        Ok(report)
    }

    fn json_report(&mut self, report: &Report) -> Result<(), InspectError> {
        #[derive(Serialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        enum Line<'r> {
            Segment(&'r super::SegmentReport),
            Finding(&'r Finding),
            Summary { target: &'r Path, files: u64, problems: usize },
        }
        for segment in report.partitions.iter().flat_map(|p| &p.segments) {
            self.json(&Line::Segment(segment))?;
        }
        for finding in &report.findings {
            self.json(&Line::Finding(finding))?;
        }
        self.json(&Line::Summary { target: &report.target, files: report.files, problems: report.problems() })
    }

    fn json(&mut self, line: &impl Serialize) -> Result<(), InspectError> {
        serde_json::to_writer(&mut *self.out, line).map_err(|e| InspectError::Write(e.into()))?;
        self.out.write_all(b"\n").map_err(InspectError::Write)
    }

    fn is_wanted(&self, file: &Path) -> bool {
        self.only.as_deref().is_none_or(|only| only == file)
    }
}
