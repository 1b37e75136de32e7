//! The log that fetch workloads read: a Kafka partition directory, opened read-only.
//!
//! [`ServedLog`] is what every baseline serves from, [`plan`] chooses what clients ask for, [`generate`] writes
//! the default corpus. Nothing here ever writes to a directory that was given with `--segments`: no lock, no
//! side file, no truncation. Offsets become positions through the engine's own index code.

pub mod generate;
pub mod plan;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rohrpost_engine_core::format::batch::{BatchHeader, HEADER_LEN, PREFIX_LEN};
use rohrpost_engine_core::format::index::{
    INDEX_LEN_MAX_DEFAULT, OFFSET_ENTRY_LEN, OffsetEntry, OffsetIndex, TIME_ENTRY_LEN, TimeIndex, entries_in,
};
use rohrpost_engine_core::format::index_build::{INDEX_INTERVAL_DEFAULT, IndexBuilder};
use rohrpost_engine_core::format::walk::{Seek, seek};
use rohrpost_engine_core::types::{ByteCount, Offset, Position};
use rustix::fs::{Advice, Mode, OFlags, fadvise};

use crate::error::{BenchError, Result};

/// Where a response's body lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyRange {
    /// Number of the segment, in offset order.
    pub segment: usize,
    /// First byte.
    pub position: u64,
    /// Length; 0 for an empty body.
    pub len: usize,
}

/// Why an offset has no position.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Before the log's start or beyond its end.
    #[error("offset out of range")]
    OutOfRange,
    /// The file could not be read.
    #[error("cannot read the segment: {0}")]
    Io(#[from] io::Error),
    /// No batch where the index says there is one.
    #[error("no valid batch where the index points")]
    Corrupt,
}

struct Segment {
    path: PathBuf,
    base_offset: Offset,
    file: File,
    index: OffsetIndex,
    /// End of the last whole batch.
    len: u64,
    next_offset: Offset,
}

/// A partition directory, open for reading.
pub struct ServedLog {
    segments: Vec<Segment>,
}

impl ServedLog {
    /// Opens every segment of `dir`.
    ///
    /// # Errors
    /// `File` or `Corpus`, naming the file and what is wrong with it.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut bases = segment_bases(dir)?;
        bases.sort_unstable();
        let segments = bases.into_iter().map(|base| Segment::open(dir, base)).collect::<Result<Vec<_>>>()?;
        if segments.iter().all(|segment| segment.len == 0) {
            return Err(BenchError::Corpus {
                path: dir.to_path_buf(),
                why: "holds no record batch; --segments wants a partition directory such as \
                      <log.dirs>/<topic>-<partition>, with 20-digit .log files"
                    .to_string(),
            });
        }
        Ok(Self { segments })
    }

    /// Number of segments.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of a segment up to the end of its last whole batch.
    pub fn segment_len(&self, segment: usize) -> u64 {
        self.segments[segment].len
    }

    /// Bytes of all segments.
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// Whether there is no batch; an opened log has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A segment's file, for reads through the page cache.
    pub fn file(&self, segment: usize) -> BorrowedFd<'_> {
        self.segments[segment].file.as_fd()
    }

    /// A segment's file name.
    pub fn path(&self, segment: usize) -> &Path {
        &self.segments[segment].path
    }

    /// A second descriptor for reads around the page cache.
    ///
    /// # Errors
    /// `File`; `EINVAL` means that the filesystem has no O_DIRECT.
    pub fn open_direct(&self, segment: usize) -> Result<OwnedFd> {
        let path = &self.segments[segment].path;
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .map_err(BenchError::file("open with O_DIRECT", path))
    }

    /// Fills `into` from a segment, through the page cache.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` beyond its end.
    pub fn read_exact(&self, into: &mut [u8], segment: usize, position: u64) -> io::Result<()> {
        self.segments[segment].file.read_exact_at(into, position)
    }

    /// First offset of the log.
    pub fn log_start_offset(&self) -> i64 {
        self.segments.first().map_or(0, |segment| segment.base_offset.get())
    }

    /// The offset after the last.
    pub fn high_watermark(&self) -> i64 {
        self.segments.last().map_or(0, |segment| segment.next_offset.get())
    }

    /// The body of a fetch: from the start of the batch that holds `offset`, at most `len_max` bytes, within
    /// one segment. An offset that an index entry names exactly is found without reading the segment: its
    /// batch starts where the entry points (the logs we ask this way have one batch per append).
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve(&self, offset: i64, len_max: usize) -> Result<BodyRange, ResolveError> {
        if offset < self.log_start_offset() || offset > self.high_watermark() {
            return Err(ResolveError::OutOfRange);
        }
        if offset == self.high_watermark() {
            return Ok(BodyRange::default());
        }
        let target = Offset::new(offset);
        let at = self.segments.partition_point(|segment| segment.next_offset <= target);
        let segment = &self.segments[at];
        let entry = segment.index.lookup(target);
        let position =
            if entry.last_offset == target { entry.position } else { segment.walk(entry, target)? };
        let len = (segment.len - position.get()).min(len_max as u64) as usize;
        Ok(BodyRange { segment: at, position: position.get(), len })
    }

    /// The index entries of a segment.
    pub fn entries(&self, segment: usize) -> impl Iterator<Item = OffsetEntry> + '_ {
        let index = &self.segments[segment].index;
        (0..index.len()).filter_map(|i| index.entry(i))
    }

    /// The header of the batch at `position`.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn header(&self, segment: usize, position: u64) -> Result<BatchHeader, ResolveError> {
        let mut bytes = [0; HEADER_LEN];
        self.segments[segment].file.read_exact_at(&mut bytes, position)?;
        BatchHeader::peek(&bytes).map_err(|_| ResolveError::Corrupt)
    }

    /// The byte range of each segment within a range of the whole log, segments laid end to end.
    pub fn file_ranges(&self, range: Range<u64>) -> Vec<(usize, Range<u64>)> {
        let mut start = 0;
        let mut ranges = Vec::new();
        for (at, segment) in self.segments.iter().enumerate() {
            let (from, to) = (range.start.max(start), range.end.min(start + segment.len));
            if from < to {
                ranges.push((at, from - start..to - start));
            }
            start += segment.len;
        }
        ranges
    }
}

impl Segment {
    fn open(dir: &Path, base: i64) -> Result<Self> {
        let path = dir.join(format!("{base:020}.log"));
        let base_offset = Offset::new(base);
        let file = File::open(&path).map_err(BenchError::file("open", &path))?;
        let file_len = file.metadata().map_err(BenchError::file("stat", &path))?.len();
        // No read-ahead while headers are looked up: it would fill the page cache with the segment.
        let _ = fadvise(&file, 0, None, Advice::Random);
        let index = load_index(&path, base_offset, file_len);
        let mut builder = index_builder(base_offset);
        let start = index.as_ref().and_then(OffsetIndex::last).map_or(Position::ZERO, |entry| entry.position);
        let mut next_offset = base_offset;
        let len = walk_headers(&file, start.get(), file_len, |header, position| {
            next_offset = header.next_offset();
            if index.is_none() {
                // An index that cannot take the batch stays sparse; lookups walk further.
                let _ = builder.push_batch(header, position);
            }
        })
        .map_err(BenchError::file("read", &path))?;
        let _ = fadvise(&file, 0, None, Advice::Normal);
        let index = index.unwrap_or_else(|| builder.into_parts().0);
        Ok(Self { path, base_offset, file, index, len, next_offset })
    }

    fn walk(&self, entry: OffsetEntry, target: Offset) -> Result<Position, ResolveError> {
        let mut position = entry.position;
        let mut window = [0; PREFIX_LEN];
        while position.get() < self.len {
            self.file.read_exact_at(&mut window, position.get())?;
            match seek(&window, position, target) {
                Seek::Found(found, _) => return Ok(found),
                Seek::ReadOn(next) if next > position => position = next,
                _ => return Err(ResolveError::Corrupt),
            }
        }
        Err(ResolveError::Corrupt)
    }
}

fn segment_bases(dir: &Path) -> Result<Vec<i64>> {
    let entries = std::fs::read_dir(dir).map_err(BenchError::file("read the directory", dir))?;
    let mut bases = Vec::new();
    for entry in entries {
        let name = entry.map_err(BenchError::file("read the directory", dir))?.file_name();
        let name = name.to_string_lossy();
        if let Some(digits) = name.strip_suffix(".log")
            && digits.len() == 20
            && let Ok(base) = digits.parse()
        {
            bases.push(base);
        }
    }
    Ok(bases)
}

/// The segment's index if there is a good one with at least one entry.
fn load_index(log: &Path, base_offset: Offset, file_len: u64) -> Option<OffsetIndex> {
    let bytes = std::fs::read(log.with_extension("index")).ok()?;
    let index = OffsetIndex::load(base_offset, &bytes, ByteCount::new(file_len), 0).ok()?;
    (!index.is_empty()).then_some(index)
}

pub(crate) fn index_builder(base_offset: Offset) -> IndexBuilder {
    let offsets = OffsetIndex::new(base_offset, entries_in(INDEX_LEN_MAX_DEFAULT, OFFSET_ENTRY_LEN));
    let times = TimeIndex::new(base_offset, entries_in(INDEX_LEN_MAX_DEFAULT, TIME_ENTRY_LEN));
    IndexBuilder::new(offsets, times, INDEX_INTERVAL_DEFAULT)
}

/// Visits every whole batch from `position` on and returns where the last one ends.
pub(crate) fn walk_headers(
    file: &File,
    mut position: u64,
    file_len: u64,
    mut visit: impl FnMut(&BatchHeader, Position),
) -> io::Result<u64> {
    let mut bytes = [0; HEADER_LEN];
    while position + HEADER_LEN as u64 <= file_len {
        file.read_exact_at(&mut bytes, position)?;
        let Ok(header) = BatchHeader::peek(&bytes) else { break };
        let end = position + header.batch_len().get();
        if end > file_len {
            break;
        }
        visit(&header, Position::new(position));
        position = end;
    }
    Ok(position)
}
