//! Small files handled whole: read, replaced durably, removed. Through the page cache; none is on the data path.

use std::path::{Path, PathBuf};

use crate::disk::{Caching, Disk, DiskError, Errno, OpenMode};
use crate::planted::{Bug, is_planted};
use crate::platform::DIRECT_IO_ALIGN;
use crate::types::{ByteCount, Position};

/// The file's content; `None` if it does not exist.
pub(crate) fn read_file<D: Disk>(disk: &D, path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    let file = match disk.open(path, OpenMode::Read, Caching::Buffered) {
        Ok(file) => file,
        Err(error) if error.errno == Errno::NOENT => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; disk.len(&file)?.as_usize()];
    let len = disk.read_at(&file, Position::ZERO, &mut bytes)?;
    bytes.truncate(len);
    Ok(Some(bytes))
}

/// Puts `bytes` in the place of the file, or creates it: after a power cut there is the old content or the new one,
/// and the new one for certain once this has returned.
pub(crate) fn replace_file<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    put_file(disk, path, bytes)?;
    if is_planted(Bug::ReplaceWithoutDirectorySync) { Ok(()) } else { disk.sync_dir(parent(path)) }
}

/// As [`replace_file`], but the new content is certain only once the directory has been synced as well.
pub(crate) fn put_file<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let temporary = temporary(path);
    let file = open_or_create(disk, &temporary)?;
    disk.set_len(&file, ByteCount::ZERO)?;
    disk.write_at(&file, Position::ZERO, bytes)?;
    if !is_planted(Bug::ReplaceWithoutSync) {
        disk.sync(&file)?;
    }
    disk.rename(&temporary, path)
}

/// As [`replace_file`], for a file that must be replaced also where no block is free: the replaced file stays, under
/// the temporary name, and its blocks take the next content.
///
/// `spare_is_free`: whether a power cut certainly does not bring the spare file back under the name of the other one.
/// As long as it might, it is never written: another one is made.
pub(crate) fn swap_file<D: Disk>(
    disk: &D,
    path: &Path,
    bytes: &[u8],
    spare_is_free: &mut bool,
) -> Result<(), DiskError> {
    let spare = temporary(path);
    if !*spare_is_free {
        unlink_if_there(disk, &spare)?;
    }
    let file = open_or_create(disk, &spare)?;
    *spare_is_free = true;
    disk.write_at(&file, Position::ZERO, bytes)?;
    disk.set_len(&file, ByteCount::of_usize(bytes.len()))?;
    if !is_planted(Bug::ReplaceWithoutSync) {
        disk.sync(&file)?;
    }
    *spare_is_free = false;
    match disk.exchange(&spare, path) {
        // There is none yet, or the file system cannot: then space is needed the next time.
        Err(DiskError { errno: Errno::NOENT | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS, .. }) => {
            disk.rename(&spare, path)?;
        }
        other => other?,
    }
    if !is_planted(Bug::ReplaceWithoutDirectorySync) {
        disk.sync_dir(parent(path))?;
    }
    *spare_is_free = true;
    reserve_spare(disk, path, bytes.len());
    Ok(())
}

/// Makes the file that [`swap_file`] will write next, with blocks for `len` bytes and a quarter more. Where that fails,
/// the next replacement needs free space, or meets the error itself.
pub(crate) fn reserve_spare<D: Disk>(disk: &D, path: &Path, len: usize) {
    let wanted = Position::new((len + len / 4).max(1) as u64).align_up(DIRECT_IO_ALIGN);
    let reserve = |file| {
        let end = Position::ZERO.plus(disk.len(&file)?);
        let is_enough = end.align_up(DIRECT_IO_ALIGN) >= wanted;
        if is_enough { Ok(()) } else { disk.preallocate(&file, end, wanted, false) }
    };
    let _ = open_or_create(disk, &temporary(path)).and_then(reserve);
}

/// Where the next content of a file is put together.
fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    PathBuf::from(temporary)
}

/// Opens the file for writing through the page cache, and creates it if there is none.
pub(crate) fn open_or_create<D: Disk>(disk: &D, path: &Path) -> Result<D::File, DiskError> {
    match disk.open(path, OpenMode::ReadWrite, Caching::Buffered) {
        Err(error) if error.errno == Errno::NOENT => disk.open(path, OpenMode::CreateNew, Caching::Buffered),
        other => other,
    }
}

/// Removes the file; says whether there was one.
pub(crate) fn unlink_if_there<D: Disk>(disk: &D, path: &Path) -> Result<bool, DiskError> {
    match disk.unlink(path) {
        Ok(()) => Ok(true),
        Err(error) if error.errno == Errno::NOENT => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a directory and the files in it.
pub(crate) fn remove_tree<D: Disk>(disk: &D, dir: &Path) -> Result<(), DiskError> {
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        if entry.is_dir { remove_tree(disk, &path)? } else { disk.unlink(&path)? }
    }
    disk.remove_dir(dir)
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
