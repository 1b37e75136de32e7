//! Open files.
//!
//! A [`LinuxFile`] is the descriptor that does the I/O, shared by its clones and closed with the last
//! one, so that an operation in flight keeps its file open, and its `flock` held. `sendfile` reads
//! through the page cache; for a direct file it gets a second descriptor, opened when first needed
//! through `/proc/self/fd`, which names the same inode even after a rename or an unlink.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rohrpost_engine_core::disk::{Caching, Errno, OpenMode};
use rohrpost_engine_core::platform::OpenFile;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, getrlimit};

/// Descriptors of a process beside its sockets and segments: rings, pipes, locks, and what steps have open.
const DESCRIPTORS_BESIDE: u64 = 64;

/// With fewer a shard could not do a thing: it tries, and says what is missing.
const OPEN_FILES_MIN: u32 = 4;

/// An open file; clones share it.
#[derive(Clone)]
pub struct LinuxFile(Arc<Inner>);

struct Inner {
    descriptor: OwnedFd,
    path: PathBuf,
    caching: Caching,
    /// For `sendfile`; unused where `descriptor` reads through the page cache itself.
    buffered: OnceLock<OwnedFd>,
}

/// The number of a system call's error.
pub(crate) fn errno_of(errno: rustix::io::Errno) -> Errno {
    Errno(errno.raw_os_error())
}

/// The number behind a standard library error; `EIO` where it has none.
pub(crate) fn errno_of_io(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno)
}

impl LinuxFile {
    /// Opens a regular file. Symbolic links are not followed: a segment is a file of its directory.
    ///
    /// # Errors
    /// The system's; `EINVAL` for something that is no regular file.
    pub fn open(path: &Path, mode: OpenMode, caching: Caching) -> Result<Self, Errno> {
        let access = match mode {
            OpenMode::Read => OFlags::RDONLY | OFlags::NOATIME,
            OpenMode::ReadWrite => OFlags::RDWR,
            OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let direct = if caching == Caching::Direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = access | direct | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let descriptor = open_noatime(path, flags).map_err(errno_of)?;
        let kind = rustix::fs::fstat(&descriptor).map_err(errno_of)?.st_mode;
        if !rustix::fs::FileType::from_raw_mode(kind).is_file() {
            return Err(Errno::INVAL);
        }
        Ok(Self(Arc::new(Inner { descriptor, path: path.to_owned(), caching, buffered: OnceLock::new() })))
    }

    /// Where the file was when it was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether transfers bypass the page cache.
    pub fn caching(&self) -> Caching {
        self.0.caching
    }

    /// A descriptor that reads the same file through the page cache. Opening it waits for no device:
    /// the inode is in memory, as it is open already.
    ///
    /// # Errors
    /// The system's, mostly `EMFILE`; a later call tries again.
    pub fn buffered_fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        if self.0.caching == Caching::Buffered {
            return Ok(self.0.descriptor.as_fd());
        }
        if let Some(descriptor) = self.0.buffered.get() {
            return Ok(descriptor.as_fd());
        }
        let same_inode = format!("/proc/self/fd/{}", self.0.descriptor.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened = open_noatime(Path::new(&same_inode), flags).map_err(errno_of)?;
        Ok(self.0.buffered.get_or_init(|| opened).as_fd())
    }
}

impl OpenFile for LinuxFile {
    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Segment files that each of `shards` shards may keep open: what the process may have open, less its sockets, as
/// far as they leave most of it, and what rings, pipes and steps take.
pub fn open_files_max(shards: usize, connections_max: u32) -> u32 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    open_files_within(limit, shards as u64, u64::from(connections_max))
}

fn open_files_within(limit: u64, shards: u64, connections_max: u64) -> u32 {
    let sockets = (connections_max * shards).min(limit / 4);
    let left = limit.saturating_sub(sockets + DESCRIPTORS_BESIDE);
    u32::try_from(left / shards.max(1)).unwrap_or(u32::MAX).max(OPEN_FILES_MIN)
}

/// Opens without `O_NOATIME` where the file belongs to somebody else.
fn open_noatime(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o644);
    match open(path, flags, mode) {
        Err(rustix::io::Errno::PERM) if flags.contains(OFlags::NOATIME) => {
            open(path, flags - OFlags::NOATIME, mode)
        }
        result => result,
    }
}

impl AsFd for LinuxFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.descriptor.as_fd()
    }
}

impl fmt::Debug for LinuxFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.0.path.display(), self.0.caching)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page-cache descriptor follows the inode, not the name: retention may unlink the file, and
    /// another may take its name, while a reader is still being served.
    #[test]
    fn buffered_descriptor_survives_unlink_and_replacement() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"first").unwrap();
        let file = LinuxFile::open(&path, OpenMode::Read, Caching::Direct).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"other").unwrap();
        let mut bytes = [0; 5];
        let fd = file.buffered_fd().unwrap();
        assert_eq!(rustix::io::pread(fd, &mut bytes, 0).unwrap(), 5);
        assert_eq!(&bytes, b"first");
        let again = file.clone();
        assert_eq!(again.buffered_fd().unwrap().as_raw_fd(), fd.as_raw_fd());
    }

    /// Sockets come first but leave three quarters; shards share the rest; there is always a minimum.
    #[test]
    fn open_files_fit_the_process() {
        assert_eq!(open_files_within(20_000, 1, 4096), 15_840);
        assert_eq!(open_files_within(20_000, 4, 4096), 3_734);
        assert_eq!(open_files_within(256, 1, 4096), 128);
        assert_eq!(open_files_within(16, 1, 10), OPEN_FILES_MIN);
        assert_eq!(open_files_within(u64::MAX, 1, 10), u32::MAX);
    }

    /// A clone shares the descriptor.
    #[test]
    fn a_clone_shares() {
        let dir = tempfile::tempdir().unwrap();
        let file = LinuxFile::open(&dir.path().join("a"), OpenMode::CreateNew, Caching::Buffered).unwrap();
        assert!(!file.is_shared());
        let clone = file.clone();
        assert!(file.is_shared());
        drop(clone);
        assert!(!file.is_shared());
    }

    #[test]
    fn links_and_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"x").unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        let open = |name: &str, mode| LinuxFile::open(&dir.path().join(name), mode, Caching::Buffered);
        assert_eq!(open("link", OpenMode::Read).unwrap_err(), Errno(libc::ELOOP));
        assert_eq!(open(".", OpenMode::Read).unwrap_err(), Errno::INVAL);
        assert_eq!(open("a", OpenMode::CreateNew).unwrap_err(), Errno::EXIST);
        assert_eq!(open("missing", OpenMode::ReadWrite).unwrap_err(), Errno::NOENT);
        assert!(open("new", OpenMode::CreateNew).is_ok());
    }
}
