//! `rohrpost-bench inspect`: a read-only dump and check of Kafka's files, ours included.
//!
//! It opens files for reading only, takes no lock and streams: a segment of any size costs a fixed buffer. Nothing
//! is trusted: every batch's CRC, its place in the log, what the indexes, checkpoints and side files say of it.
//!
//! What Kafka's CRC does not cover (base offset, length, leader epoch, magic: the first 17 bytes of a batch) is held
//! against the rest: length and magic by the chain of batches, the leader epoch by the leader-epoch-checkpoint, the
//! base offset by order, indexes and checkpoints. A base offset that was raised into a gap, or at the end of a log
//! without an index entry, contradicts nothing of Kafka's: only our side file finds it.

mod context;
mod entry;
mod finding;
mod index_check;
mod partition;
mod report;
mod root;
mod scan;
mod segment;
mod side;
mod small;
mod source;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use entry::{BatchLine, Entry};
pub use finding::{Finding, Severity, What};
pub use report::{FINDINGS_MAX_PER_FILE, PartitionReport, Report, SegmentReport};
pub use scan::Tail;

use context::Context;

/// What to print beside the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Every batch, index entry and producer, as DumpLogSegments prints them, each file under `== NAME`.
    pub batches: bool,
    /// JSON, one object a line, instead of text.
    pub json: bool,
}

/// Why an inspection could not be carried out. What is wrong with the bytes is not an error but a [`Finding`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// A file or directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing at the path looks like Kafka's.
    #[error(
        "{} holds nothing to inspect: give a log directory, a partition directory (TOPIC-N) or one of its files",
        .0.display()
    )]
    Nothing(PathBuf),
    /// An index or checkpoint larger than any broker writes.
    #[error("{} has {len} bytes, more than the {max} that are read at once", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The output could not be written.
    #[error("cannot write the result: {0}")]
    Write(#[source] io::Error),
}

/// Inspects a log directory, a partition directory or a single file, and writes what `options` ask for and the
/// report to `out`.
///
/// # Errors
/// `InspectError` if it could not be carried out (exit code 2); the report's `exit_code` is 1 if there are
/// problems, else 0.
pub fn run(target: &Path, options: Options, out: &mut dyn Write) -> Result<Report, InspectError> {
    let metadata = std::fs::metadata(target).map_err(at(target))?;
    let base = if metadata.is_dir() { target } else { target.parent().unwrap_or(Path::new("")) };
    let mut context = Context::new(target, base, options, out);
    if metadata.is_dir() {
        root::inspect(&mut context, target)?;
    } else {
        context.only(target);
        partition::inspect_file(&mut context, target)?;
    }
    context.finish()
}

/// Adds the path to an I/O error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> InspectError + '_ {
    |source| InspectError::Read { path: path.to_owned(), source }
}
