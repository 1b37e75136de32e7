//! The simulated disk as the core sees it: [`SimDisk`] is core's `Disk`, [`SimFile`] an open file. Both are handles onto
//! one [`Storage`]; the locks exist because the seam asks for `Sync`, nothing ever contends for them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rohrpost_engine_core::disk::{Caching, DirEntry, Disk, DiskError, Errno, Lock, OpenMode};
use rohrpost_engine_core::platform::OpenFile;
use rohrpost_engine_core::types::{ByteCount, Position, Timestamp};

use crate::storage::{Description, Storage};

/// A handle onto the simulated disk.
#[derive(Clone)]
pub struct SimDisk {
    storage: Arc<Mutex<Storage>>,
}

/// An open file of the simulated disk. Clones share one description, which closes with the last clone.
#[derive(Clone)]
pub struct SimFile {
    shared: Arc<Open>,
}

struct Open {
    disk: SimDisk,
    path: PathBuf,
    description: Description,
}

impl SimDisk {
    /// Puts a storage behind a handle.
    pub fn new(storage: Storage) -> Self {
        Self { storage: Arc::new(Mutex::new(storage)) }
    }

    /// The storage, for whoever runs the world.
    pub fn storage(&self) -> MutexGuard<'_, Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimFile {
    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(crate) fn description(&self) -> Description {
        self.shared.description
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(Errno) -> DiskError {
        failed(action, self.path())
    }
}

impl OpenFile for SimFile {
    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({}, {:?})", self.path().display(), self.shared.description)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.disk.storage().close(self.description);
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> DiskError {
    let path = path.to_owned();
    move |errno| DiskError { action, path, errno }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create_dir(&self, path: &Path) -> Result<(), DiskError> {
        self.storage().create_dir(path).map_err(failed("create directory", path))
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, DiskError> {
        self.storage().list(path).map_err(failed("list", path))
    }

    fn open(&self, path: &Path, mode: OpenMode, caching: Caching) -> Result<SimFile, DiskError> {
        let description = self.storage().open(path, mode, caching).map_err(failed("open", path))?;
        Ok(SimFile { shared: Arc::new(Open { disk: self.clone(), path: path.to_owned(), description }) })
    }

    fn lock(&self, file: &SimFile, lock: Lock, _patience_ms: u64) -> Result<(), DiskError> {
        self.storage().lock(file.description(), lock).map_err(file.failed("lock"))
    }

    fn len(&self, file: &SimFile) -> Result<ByteCount, DiskError> {
        self.storage().len(file.description()).map(ByteCount::new).map_err(file.failed("measure"))
    }

    fn read_at(&self, file: &SimFile, position: Position, buf: &mut [u8]) -> Result<usize, DiskError> {
        self.storage().read(file.description(), position.get(), buf).map_err(file.failed("read"))
    }

    fn write_at(&self, file: &SimFile, position: Position, buf: &[u8]) -> Result<(), DiskError> {
        self.storage().write(file.description(), position.get(), buf).map_err(file.failed("write"))
    }

    fn set_len(&self, file: &SimFile, len: ByteCount) -> Result<(), DiskError> {
        self.storage().set_len(file.description(), len.get()).map_err(file.failed("resize"))
    }

    fn preallocate(&self, file: &SimFile, from: Position, to: Position, zero: bool) -> Result<(), DiskError> {
        let result = self.storage().preallocate(file.description(), from.get(), to.get(), zero);
        result.map_err(file.failed("preallocate"))
    }

    fn sync(&self, file: &SimFile) -> Result<(), DiskError> {
        self.storage().sync(file.description()).map_err(file.failed("sync"))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        self.storage().sync_dir(path).map_err(failed("sync directory", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.storage().rename(from, to).map_err(failed("rename", from))
    }

    fn exchange(&self, one: &Path, other: &Path) -> Result<(), DiskError> {
        self.storage().exchange(one, other).map_err(failed("exchange", one))
    }

    fn unlink(&self, path: &Path) -> Result<(), DiskError> {
        self.storage().unlink(path).map_err(failed("unlink", path))
    }

    fn remove_dir(&self, path: &Path) -> Result<(), DiskError> {
        self.storage().remove_dir(path).map_err(failed("remove directory", path))
    }

    fn modified(&self, path: &Path) -> Result<Timestamp, DiskError> {
        self.storage().modified(path).map_err(failed("measure", path))
    }
}
