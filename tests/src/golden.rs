//! The golden directories: log directories that a real Apache Kafka broker left behind (see `golden/make`).

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The golden directories.
pub const NAMES: [&str; 3] = ["clean", "killed", "torn"];

/// The folder of this test crate.
pub fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The log directory of a golden directory. Never write there: take a [`copy`].
pub fn log_dir(name: &str) -> PathBuf {
    crate_dir().join("golden").join(name).join("log")
}

/// What DumpLogSegments said about it.
///
/// # Panics
/// If the file is missing.
pub fn expected(name: &str) -> String {
    let path = crate_dir().join("golden").join(name).join("expected.txt");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A copy of one partition, in a folder that vanishes with the test; the partition's own path.
///
/// # Panics
/// If it cannot be copied.
pub fn copy(name: &str, partition: &str) -> (TempDir, PathBuf) {
    let scratch = tempfile::tempdir().expect("a folder for temporary files");
    let to = scratch.path().join(partition);
    copy_dir(&log_dir(name).join(partition), &to);
    (scratch, to)
}

/// Copies a directory with all below it.
///
/// # Panics
/// If it cannot be copied.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    for entry in std::fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let entry = entry.expect("an entry of a readable folder");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("the type of an entry").is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
        }
    }
}
