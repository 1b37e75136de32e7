//! Blocking file operations over the file system, for steps on helper threads. See [`Disk`].
//!
//! Direct files take transfers in blocks of 4096 bytes between aligned memory; this module bounces what
//! does not fit through one buffer per thread.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rohrpost_engine_core::disk::{Caching, DirEntry, Disk, DiskError, Errno, Lock, OpenMode};
use rohrpost_engine_core::platform::DIRECT_IO_ALIGN;
use rohrpost_engine_core::types::{ByteCount, Position, Timestamp};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, OFlags, RenameFlags, StatxFlags};
use rustix::io::retry_on_intr;

use crate::file::{LinuxFile, errno_of, errno_of_io};
use crate::memory::AlignedBuffer;

/// Bytes per bounced transfer and per write of zeros.
const BLOCK_LEN: usize = 1 << 20;

const ALIGN: usize = DIRECT_IO_ALIGN as usize;

/// The first and the longest pause between two tries for a lock.
const LOCK_PAUSE_MIN: Duration = Duration::from_millis(1);
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(50);

thread_local! {
    static SCRATCH: RefCell<Option<AlignedBuffer>> = const { RefCell::new(None) };
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxDisk;

fn failed(action: &'static str, path: &Path, errno: Errno) -> DiskError {
    DiskError { action, path: path.to_owned(), errno }
}

/// Names the action and the path of a system call's failure.
fn sys<T>(action: &'static str, path: &Path, result: rustix::io::Result<T>) -> Result<T, DiskError> {
    result.map_err(|errno| failed(action, path, errno_of(errno)))
}

/// The same for the standard library's.
fn std_io<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, DiskError> {
    result.map_err(|error| failed(action, path, errno_of_io(&error)))
}

impl Disk for LinuxDisk {
    type File = LinuxFile;

    fn create_dir(&self, path: &Path) -> Result<(), DiskError> {
        std_io("create directory", path, std::fs::create_dir(path))
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, DiskError> {
        let mut entries = Vec::new();
        for entry in std_io("list", path, std::fs::read_dir(path))? {
            let entry = std_io("list", path, entry)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_dir = std_io("examine", &entry.path(), entry.file_type())?.is_dir();
            entries.push(DirEntry { name, is_dir });
        }
        entries.sort();
        Ok(entries)
    }

    fn open(&self, path: &Path, mode: OpenMode, caching: Caching) -> Result<LinuxFile, DiskError> {
        let opened = LinuxFile::open(path, mode, caching).and_then(|file| {
            if caching == Caching::Direct {
                check_direct_alignment(&file)?;
            }
            Ok(file)
        });
        opened.map_err(|errno| {
            // A file system without direct I/O creates the file before it refuses the flag.
            let refused = matches!(errno, Errno::INVAL | Errno::OPNOTSUPP);
            if refused && caching == Caching::Direct && mode == OpenMode::CreateNew {
                let _ = std::fs::remove_file(path);
            }
            let action = if mode == OpenMode::CreateNew { "create" } else { "open" };
            failed(action, path, errno)
        })
    }

    fn lock(&self, file: &LinuxFile, lock: Lock, patience_ms: u64) -> Result<(), DiskError> {
        let deadline = Instant::now() + Duration::from_millis(patience_ms);
        let mut pause = LOCK_PAUSE_MIN;
        loop {
            let result = match lock {
                Lock::InputOutput => rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive),
                Lock::Record => record_lock(file),
            };
            match result {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                // A conflicting record lock is EAGAIN or EACCES, by fcntl(2).
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {}
                Err(errno) => return Err(failed("lock", file.path(), errno_of(errno))),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed("lock", file.path(), Errno::AGAIN));
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LOCK_PAUSE_MAX);
        }
    }

    fn len(&self, file: &LinuxFile) -> Result<ByteCount, DiskError> {
        let stat = sys("examine", file.path(), rustix::fs::fstat(file))?;
        Ok(ByteCount::new(stat.st_size as u64))
    }

    fn read_at(&self, file: &LinuxFile, position: Position, buf: &mut [u8]) -> Result<usize, DiskError> {
        let read = match file.caching() {
            Caching::Buffered => read_fully(file, position.get(), buf),
            Caching::Direct => with_scratch(|scratch| read_bounced(file, position, buf, scratch)),
        };
        read.map_err(|errno| failed("read", file.path(), errno))
    }

    fn write_at(&self, file: &LinuxFile, position: Position, buf: &[u8]) -> Result<(), DiskError> {
        let aligned = buf.as_ptr().addr().is_multiple_of(ALIGN);
        let written = if file.caching() == Caching::Buffered || aligned {
            write_fully(file, position.get(), buf)
        } else {
            with_scratch(|scratch| {
                let mut at = position.get();
                for block in buf.chunks(BLOCK_LEN) {
                    scratch[..block.len()].copy_from_slice(block);
                    write_fully(file, at, &scratch[..block.len()])?;
                    at += block.len() as u64;
                }
                Ok(())
            })
        };
        written.map_err(|errno| failed("write", file.path(), errno))
    }

    fn set_len(&self, file: &LinuxFile, len: ByteCount) -> Result<(), DiskError> {
        let cut = retry_on_intr(|| rustix::fs::ftruncate(file, len.get()));
        sys("set the length of", file.path(), cut)
    }

    fn preallocate(
        &self,
        file: &LinuxFile,
        from: Position,
        to: Position,
        zero: bool,
    ) -> Result<(), DiskError> {
        let len = to.since(from).get();
        if len == 0 {
            return Ok(());
        }
        let reserve = || rustix::fs::fallocate(file, FallocateFlags::empty(), from.get(), len);
        let reserved = match retry_on_intr(reserve) {
            // The file system can reserve blocks only by having them written.
            Err(rustix::io::Errno::OPNOTSUPP) => false,
            result => sys("preallocate", file.path(), result).map(|()| true)?,
        };
        if reserved && !zero {
            return Ok(());
        }
        // What the file holds already is not ours to overwrite.
        let from = if reserved { from } else { from.max(Position::ZERO.plus(self.len(file)?)) };
        write_zeros(file, from, to)?;
        self.sync(file)
    }

    fn sync(&self, file: &LinuxFile) -> Result<(), DiskError> {
        sys("sync", file.path(), rustix::fs::fdatasync(file))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), DiskError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = sys("open", path, rustix::fs::open(path, flags, rustix::fs::Mode::empty()))?;
        sys("sync", path, rustix::fs::fsync(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        std_io("rename", from, std::fs::rename(from, to))
    }

    fn exchange(&self, one: &Path, other: &Path) -> Result<(), DiskError> {
        let exchanged =
            retry_on_intr(|| rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE));
        sys("exchange", one, exchanged)
    }

    fn unlink(&self, path: &Path) -> Result<(), DiskError> {
        std_io("delete", path, std::fs::remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> Result<(), DiskError> {
        std_io("delete", path, std::fs::remove_dir(path))
    }

    fn modified(&self, path: &Path) -> Result<Timestamp, DiskError> {
        let stat = sys("examine", path, rustix::fs::lstat(path))?;
        Ok(Timestamp::new(stat.st_mtime * 1000 + stat.st_mtime_nsec as i64 / 1_000_000))
    }
}

/// Refuses files whose device wants larger blocks than ours. Kernels before 6.1, and file systems that
/// do not say, are taken at their word: they opened the file for direct I/O.
fn check_direct_alignment(file: &LinuxFile) -> Result<(), Errno> {
    let stat =
        rustix::fs::statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).map_err(errno_of)?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(());
    }
    if stat.stx_dio_offset_align == 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let align = stat.stx_dio_offset_align.max(stat.stx_dio_mem_align);
    if u64::from(align) > DIRECT_IO_ALIGN { Err(Errno::INVAL) } else { Ok(()) }
}

/// Tries for an open-file-description lock over the whole file.
fn record_lock(file: &LinuxFile) -> rustix::io::Result<()> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: [U4] the descriptor is open and the kernel only reads the structure, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == -1 {
        let error = io::Error::last_os_error();
        return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO));
    }
    Ok(())
}

/// Lends the thread's aligned buffer of [`BLOCK_LEN`] bytes.
fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> Result<T, Errno>) -> Result<T, Errno> {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.is_none() {
            *scratch = Some(AlignedBuffer::new(BLOCK_LEN).map_err(|error| errno_of_io(&error))?);
        }
        // The branch above has just filled it.
        work(scratch.as_mut().expect("filled above"))
    })
}

/// Memory that is only ever read, and so costs one page of zeros.
fn zeros() -> io::Result<&'static [u8]> {
    static ZEROS: OnceLock<AlignedBuffer> = OnceLock::new();
    if let Some(zeros) = ZEROS.get() {
        return Ok(zeros);
    }
    let zeros = AlignedBuffer::new(BLOCK_LEN)?;
    Ok(ZEROS.get_or_init(|| zeros))
}

/// Writes zeros to `[from, to)`; in a direct file from the first whole block on, as what lies before it
/// in its block is beyond the end of the data and reads as zeros already.
fn write_zeros(file: &LinuxFile, from: Position, to: Position) -> Result<(), DiskError> {
    let zeros = std_io("get memory for", file.path(), zeros())?;
    let first = if file.caching() == Caching::Direct { from.align_up(DIRECT_IO_ALIGN) } else { from };
    let mut at = first.get();
    while at < to.get() {
        let len = (to.get() - at).min(BLOCK_LEN as u64);
        write_fully(file, at, &zeros[..len as usize])
            .map_err(|errno| failed("write zeros to", file.path(), errno))?;
        at += len;
    }
    Ok(())
}

fn read_fully(file: &LinuxFile, position: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buf.len() {
        let at = position + filled as u64;
        match retry_on_intr(|| rustix::io::pread(file, &mut buf[filled..], at)).map_err(errno_of)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn read_bounced(
    file: &LinuxFile,
    position: Position,
    buf: &mut [u8],
    scratch: &mut [u8],
) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buf.len() {
        let at = position.plus(ByteCount::of_usize(filled));
        let from = at.align_down(DIRECT_IO_ALIGN);
        let skip = at.since(from).as_usize();
        let len = (skip + buf.len() - filled).next_multiple_of(ALIGN).min(scratch.len());
        let read = retry_on_intr(|| rustix::io::pread(file, &mut scratch[..len], from.get()));
        let read = read.map_err(errno_of)?;
        let got = read.saturating_sub(skip).min(buf.len() - filled);
        buf[filled..filled + got].copy_from_slice(&scratch[skip..skip + got]);
        filled += got;
        // A direct read stops inside a block only at the end of the file.
        if got == 0 || !read.is_multiple_of(ALIGN) {
            break;
        }
    }
    Ok(filled)
}

fn write_fully(file: &LinuxFile, position: u64, buf: &[u8]) -> Result<(), Errno> {
    let mut written = 0;
    while written < buf.len() {
        let at = position + written as u64;
        match retry_on_intr(|| rustix::io::pwrite(file, &buf[written..], at)).map_err(errno_of)? {
            0 => return Err(Errno::IO),
            count => written += count,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
