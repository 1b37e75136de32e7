//! Two dumps of the same files, DumpLogSegments' and `inspect`'s, brought into one form: file name -> lines.

use std::collections::BTreeMap;
use std::path::Path;

use rohrpost_bench::inspect::{self, Options, Report};

/// Lines by file name.
pub(crate) type Dump = BTreeMap<String, Vec<String>>;

/// What `inspect` prints for each file below `path`, and its report.
///
/// # Panics
/// If it cannot read `path`.
pub(crate) fn ours(path: &Path) -> (Dump, Report) {
    let mut out = Vec::new();
    let options = Options { batches: true, json: false };
    let report = inspect::run(path, options, &mut out).unwrap_or_else(|e| panic!("{e}"));
    let text = String::from_utf8(out).expect("inspect prints text");
    (sections(&text), report)
}

/// What `inspect` finds.
///
/// # Panics
/// If it cannot read `path`.
pub(crate) fn report(path: &Path) -> Report {
    let result = inspect::run(path, Options::default(), &mut std::io::sink());
    result.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Splits a dump at its `== NAME` headings and keeps the lines that speak of the files' content. A file that
/// DumpLogSegments gave up before its first entry is left out: it has said nothing.
pub(crate) fn sections(text: &str) -> Dump {
    const CONTENT: [&str; 5] = ["baseOffset: ", "offset: ", "timestamp: ", "version: ", "producerId: "];
    let mut dump = Dump::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(next) = line.strip_prefix("== ") {
            name = next;
            dump.entry(name.to_owned()).or_default();
        } else if line.starts_with("stopped by ") && dump.get(name).is_some_and(Vec::is_empty) {
            dump.remove(name);
        } else if CONTENT.iter().any(|start| line.starts_with(start)) && !is_zero_entry(line) {
            dump.entry(name.to_owned()).or_default().push(line.trim_end().to_owned());
        }
    }
    dump
}

/// In a preallocated index DumpLogSegments takes the first zeros for an entry. No real one is like that: the first
/// batch of a segment gets none, and the golden records are of 2023 and later.
fn is_zero_entry(line: &str) -> bool {
    line.starts_with("timestamp: 0 offset: ") || line.ends_with(" position: 0")
}

/// Compares two dumps of the same files: every file of `theirs` must have the same lines in `ours`.
///
/// # Panics
/// At the first difference.
pub(crate) fn assert_equal(ours: &Dump, theirs: &Dump) {
    for (file, theirs) in theirs {
        let ours = ours.get(file).unwrap_or_else(|| panic!("inspect does not mention {file}"));
        for (number, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            assert_eq!(ours, theirs, "{file}, entry {number}");
        }
        assert_eq!(ours.len(), theirs.len(), "{file}: number of entries");
    }
}
