//! Blocking file operations for steps that run off the shard: opening, recovery, rolling, deletion,
//! checkpoints. The Linux crate implements it over the file system, the simulator over its model.
//!
//! Nothing here is on the acknowledgement path, except that a partition cannot take its first append
//! before its files exist.

#[cfg(test)]
pub(crate) mod memory;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::types::{ByteCount, Position, Timestamp};

/// A Linux error number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// No such file or directory.
    pub const NOENT: Self = Self(2);
    /// Input/output error.
    pub const IO: Self = Self(5);
    /// Try again.
    pub const AGAIN: Self = Self(11);
    /// Cannot allocate memory.
    pub const NOMEM: Self = Self(12);
    /// Permission denied.
    pub const ACCES: Self = Self(13);
    /// File exists.
    pub const EXIST: Self = Self(17);
    /// Invalid argument; for direct I/O mostly a misaligned transfer.
    pub const INVAL: Self = Self(22);
    /// The process has no descriptor left.
    pub const MFILE: Self = Self(24);
    /// No space left on device.
    pub const NOSPC: Self = Self(28);
    /// Read-only file system.
    pub const ROFS: Self = Self(30);
    /// Operation not permitted.
    pub const PERM: Self = Self(1);
    /// Disk quota exceeded.
    pub const DQUOT: Self = Self(122);
    /// The kernel has no such call.
    pub const NOSYS: Self = Self(38);
    /// Operation not supported.
    pub const OPNOTSUPP: Self = Self(95);
    /// Connection reset by peer.
    pub const CONNRESET: Self = Self(104);
    /// Broken pipe.
    pub const PIPE: Self = Self(32);
    /// Operation cancelled.
    pub const CANCELED: Self = Self(125);

    /// Whether the device or the quota is full: backpressure, not a failure.
    pub const fn is_full(self) -> bool {
        matches!(self, Self::NOSPC | Self::DQUOT)
    }

    /// Whether something that comes back is missing: space, quota, or descriptors.
    pub const fn is_shortage(self) -> bool {
        self.is_full() || matches!(self, Self::MFILE | Self(23))
    }

    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NOENT => "no such file or directory",
            Self::IO => "input/output error",
            Self::AGAIN => "resource temporarily unavailable",
            Self::NOMEM => "cannot allocate memory",
            Self::ACCES => "permission denied",
            Self::EXIST => "file exists",
            Self(20) => "not a directory",
            Self(21) => "is a directory",
            Self::INVAL => "invalid argument",
            Self(23) => "too many open files in the system",
            Self::MFILE => "too many open files",
            Self(27) => "file too large",
            Self::NOSPC => "no space left on device",
            Self::ROFS => "read-only file system",
            Self::PERM => "operation not permitted",
            Self(40) => "too many symbolic links",
            Self(98) => "address already in use",
            Self::DQUOT => "disk quota exceeded",
            Self::OPNOTSUPP => "operation not supported",
            Self::CONNRESET => "connection reset by peer",
            Self::PIPE => "broken pipe",
            Self::CANCELED => "operation cancelled",
            _ => return None,
        })
    }

    /// What an operator can do about it, where there is something to say.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NOSPC => "; free space, or lower the retention, and appends resume by themselves",
            Self::DQUOT => "; raise the quota or free space, and appends resume by themselves",
            Self::ACCES | Self::PERM => "; run as the owner of the data directory, or change its mode",
            Self::ROFS => "; remount the file system read-write, or choose another data directory",
            Self::MFILE | Self(23) => "; raise the limit on open files (ulimit -n)",
            Self(20) => "; correct the path",
            Self(27) => "; raise the limit on file sizes (ulimit -f)",
            Self(98) => "; stop the process that listens there, or choose another port",
            Self::IO => "; the device reported a fault: see the kernel log",
            _ => "",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} (errno {})", self.0),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A file operation failed: what was tried, on which path, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} {}: {errno}{}", path.display(), errno.remedy())]
pub struct DiskError {
    /// What was tried, as a verb: "open", "preallocate", "lock".
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's answer.
    pub errno: Errno,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading only; never changes the file, not even its access time where that can be avoided.
    Read,
    /// For reading and writing.
    ReadWrite,
    /// As `ReadWrite`, created empty; fails with [`Errno::EXIST`] if it exists.
    CreateNew,
}

/// Whether transfers bypass the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Straight between memory and device: `O_DIRECT`. Transfers are aligned to
    /// [`crate::platform::DIRECT_IO_ALIGN`].
    Direct,
    /// Through the page cache.
    Buffered,
}

/// The two kinds of lock the engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// `flock` on the description that does I/O: a killed process keeps it until its last write has
    /// landed, so whoever gets it may truncate and append.
    InputOutput,
    /// An open-file-description record lock over the whole file: it conflicts with a JVM's
    /// `FileChannel.lock` on the same file, and with a second engine.
    Record,
}

/// One entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// File name without its directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Blocking file operations. All of them may block; none is called on a shard.
///
/// Paths are absolute or relative to the process, as the log directory was given. Implementations do
/// what the name says and nothing more: no retries, no hidden syncs.
pub trait Disk: Send + Sync + 'static {
    /// An open file; see [`crate::platform::Platform::File`].
    type File: Clone + Send + Sync + fmt::Debug + 'static;

    /// Creates a directory; its parent must exist.
    fn create_dir(&self, path: &Path) -> Result<(), DiskError>;

    /// Lists a directory, sorted by name.
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, DiskError>;

    /// Opens a file. With [`Caching::Direct`], fails with [`Errno::INVAL`] or [`Errno::OPNOTSUPP`]
    /// where the file system has no direct I/O.
    fn open(&self, path: &Path, mode: OpenMode, caching: Caching) -> Result<Self::File, DiskError>;

    /// Takes an exclusive lock, waiting up to `patience_ms` milliseconds. Fails with
    /// [`Errno::AGAIN`] when somebody else keeps it.
    fn lock(&self, file: &Self::File, lock: Lock, patience_ms: u64) -> Result<(), DiskError>;

    /// Length of the file in bytes.
    fn len(&self, file: &Self::File) -> Result<ByteCount, DiskError>;

    /// Fills `buf` from `position` as far as the file reaches; returns the number of bytes read.
    /// Any alignment: implementations of direct files bounce the edges.
    fn read_at(&self, file: &Self::File, position: Position, buf: &mut [u8]) -> Result<usize, DiskError>;

    /// Writes all of `buf` at `position`. For direct files, position and length are multiples of
    /// [`crate::platform::DIRECT_IO_ALIGN`].
    fn write_at(&self, file: &Self::File, position: Position, buf: &[u8]) -> Result<(), DiskError>;

    /// Cuts or extends (with zeros) the file to `len`.
    fn set_len(&self, file: &Self::File, len: ByteCount) -> Result<(), DiskError>;

    /// Reserves blocks for `[from, to)` and makes the file at least `to` long; with `zero`, also
    /// writes zeros there, so that later writes need no extent conversion.
    fn preallocate(
        &self,
        file: &Self::File,
        from: Position,
        to: Position,
        zero: bool,
    ) -> Result<(), DiskError>;

    /// Makes the file's data and length durable (`fdatasync`).
    fn sync(&self, file: &Self::File) -> Result<(), DiskError>;

    /// Makes the directory's entries durable.
    fn sync_dir(&self, path: &Path) -> Result<(), DiskError>;

    /// Renames a file or directory, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError>;

    /// Lets two files, which must exist, change places at once. Fails with [`Errno::INVAL`] where the file system cannot.
    fn exchange(&self, one: &Path, other: &Path) -> Result<(), DiskError>;

    /// Removes a file.
    fn unlink(&self, path: &Path) -> Result<(), DiskError>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> Result<(), DiskError>;

    /// Time of the file's last change of content.
    fn modified(&self, path: &Path) -> Result<Timestamp, DiskError>;
}
