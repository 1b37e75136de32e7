//! The directory that a run writes into.
//!
//! Owns it: it is locked while the run lives, and removed when the run ends, however it ends. What a run left behind that
//! was killed is removed by the next one in the same data directory: it bears the name, and nobody holds the lock.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{BenchError, Result};

const PREFIX: &str = "scratch-";

/// See the module.
pub(super) struct Scratch {
    path: PathBuf,
    /// The directory itself, locked.
    _lock: File,
}

impl Scratch {
    /// A new one in `data_dir`, without those of runs that are no more.
    ///
    /// # Errors
    /// `File` if it cannot be made.
    pub(super) fn create(data_dir: &Path) -> Result<Self> {
        remove_stale(data_dir);
        let path = data_dir.join(format!("{PREFIX}{}", std::process::id()));
        let lock = create_locked(&path).map_err(BenchError::file("create", &path))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn create_locked(path: &Path) -> io::Result<File> {
    loop {
        fs::create_dir_all(path)?;
        let lock = File::open(path)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        // Before it was locked, another run may have taken it for stale and removed it.
        if fs::metadata(path).is_ok_and(|there| is_same(&there, &lock)) {
            return Ok(lock);
        }
    }
}

fn is_same(there: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
}

fn remove_stale(data_dir: &Path) {
    for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
        let is_scratch = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let Some(dir) = File::open(entry.path()).ok().filter(|_| is_scratch) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
