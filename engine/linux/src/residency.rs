//! Which pages of a file are in the page cache, by mincore over a mapping that nobody reads through.
//!
//! For measurements and baselines. The engine never guesses hot or cold from the page cache: it knows what it
//! holds. mincore, unlike cachestat, does not count pages that read-ahead has inserted and the disk not filled.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

/// An inaccessible mapping of a whole file, for asking only.
#[derive(Debug)]
pub struct ResidencyMap {
    start: NonNull<c_void>,
    len: usize,
    pages: Vec<u8>,
}

// The mapping is not readable and belongs to this value alone.
// SAFETY: [U10] no memory is reached through `start`; the calls that take it are thread-safe.
unsafe impl Send for ResidencyMap {}

const PAGE_LEN: u64 = 4096;

impl ResidencyMap {
    /// Maps the first `len` bytes of `file`.
    ///
    /// # Errors
    /// Those of mmap; an empty file cannot be mapped.
    pub fn new(file: impl AsFd, len: u64) -> io::Result<Self> {
        let len = len as usize;
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: [U10] a new mapping at an address of the kernel's choice, without access rights.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { start, len, pages: Vec::new() })
    }

    /// Pages of the byte range that are resident, and pages it touches.
    ///
    /// # Errors
    /// Those of mincore; `InvalidInput` for a range beyond the mapping.
    pub fn resident_pages(&mut self, range: Range<u64>) -> io::Result<(u64, u64)> {
        if range.start >= range.end || range.end > self.len as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let first = range.start & !(PAGE_LEN - 1);
        let count = (range.end - first).div_ceil(PAGE_LEN);
        self.pages.resize(count as usize, 0);
        let len = (range.end - first) as usize;
        // SAFETY: [U10] `first` lies inside the mapping, as `range.end <= len` was checked.
        let at = unsafe { self.start.byte_add(first as usize) };
        // SAFETY: [U10] `pages` has one byte for every page of `len` bytes from `at`.
        if unsafe { libc::mincore(at.as_ptr(), len, self.pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let resident = self.pages.iter().filter(|page| **page & 1 != 0).count();
        Ok((resident as u64, count))
    }

    /// Whether every page of the byte range is resident. `false` when the kernel does not say.
    pub fn is_resident(&mut self, range: Range<u64>) -> bool {
        self.resident_pages(range).is_ok_and(|(resident, count)| resident == count)
    }
}

impl Drop for ResidencyMap {
    fn drop(&mut self) {
        // SAFETY: [U10] exactly the mapping made in `new`.
        unsafe { libc::munmap(self.start.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file just written is resident; ranges beyond the mapping are refused.
    #[test]
    fn written_pages_are_resident() {
        let path = std::env::temp_dir().join(format!("residency-{}", std::process::id()));
        let mut file =
            std::fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        file.write_all(&[1; 10_000]).unwrap();
        let mut map = ResidencyMap::new(&file, 10_000).unwrap();
        assert_eq!(map.resident_pages(0..10_000).unwrap(), (3, 3));
        assert_eq!(map.resident_pages(4095..4097).unwrap(), (2, 2));
        assert!(map.is_resident(9_999..10_000));
        assert!(map.resident_pages(0..10_001).is_err());
        assert!(map.resident_pages(5..5).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
