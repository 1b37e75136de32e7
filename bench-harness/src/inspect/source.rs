//! A file read through one window: positioned reads only, so that a segment of any size costs a fixed buffer.
//! Owns the descriptor, opened read-only. The length is taken once, when the file is opened.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rohrpost_engine_core::format::crc::Crc32c;
use rohrpost_engine_core::format::walk::is_zero;

/// Bytes held in memory at a time.
const WINDOW_LEN: usize = 256 << 10;

/// A read-only file and the window over it.
pub(super) struct Source {
    file: File,
    len: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Source {
    /// Opens `path` for reading.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len, window: Vec::new(), window_start: 0 })
    }

    /// Length in bytes when the file was opened.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// `len` bytes at `position`, fewer at the end of the file. `len` is at most the window's.
    pub(super) fn at(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        assert!(len <= WINDOW_LEN);
        let len = len.min(usize::try_from(self.len.saturating_sub(position)).unwrap_or(usize::MAX));
        let window_end = self.window_start + self.window.len() as u64;
        if position < self.window_start || position + len as u64 > window_end {
            self.fill(position)?;
        }
        let from = (position - self.window_start) as usize;
        Ok(&self.window[from..from + len])
    }

    fn fill(&mut self, position: u64) -> io::Result<()> {
        let len = (self.len - position).min(WINDOW_LEN as u64) as usize;
        self.window.resize(len, 0);
        self.window_start = position;
        self.file.read_exact_at(&mut self.window, position)
    }

    /// Continues `crc` with a range of the file.
    pub(super) fn crc(&mut self, range: Range<u64>, crc: &mut Crc32c) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let bytes = self.at(at, (range.end - at).min(WINDOW_LEN as u64) as usize)?;
            crc.update(bytes);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Position of the first byte at or after `from` that is not zero.
    pub(super) fn data_after(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < self.len {
            let bytes = self.at(at, WINDOW_LEN)?;
            if !is_zero(bytes) {
                return Ok(bytes.iter().position(|&b| b != 0).map(|i| at + i as u64));
            }
            at += bytes.len() as u64;
        }
        Ok(None)
    }
}
