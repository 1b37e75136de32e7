//! One partition that a baseline appends to: the broker's part of an append (check, assign offset, index, roll)
//! without its durability, which is what the append baselines differ in.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rohrpost_engine_core::format::batch::{BATCH_LEN_MAX_DEFAULT, BatchHeader, patch, validate_append};
use rohrpost_engine_core::format::index_build::IndexBuilder;
use rohrpost_engine_core::types::{ByteCount, LeaderEpoch, Offset, Position};

use crate::corpus::generate::BatchSource;
use crate::corpus::index_builder;
use crate::error::{BenchError, Result};

/// Batches made before anything is timed. The producer sends them again and again; what makes an append unique
/// is the offset that the log assigns.
const BATCH_COUNT: usize = 64;

/// Ready-made batches of varied length, as a producer would send them.
pub struct Batches {
    batches: Vec<Vec<u8>>,
    next: usize,
}

impl Batches {
    /// Batches of at most `len_max` bytes.
    pub fn new(seed: u64, len_max: usize) -> Self {
        let mut source = BatchSource::new(seed, len_max);
        let batches = (0..BATCH_COUNT)
            .map(|_| {
                let mut batch = Vec::new();
                // As from a producer: every batch counts from offset 0.
                source.next_offset = Offset::ZERO;
                source.next_batch(&mut batch);
                batch
            })
            .collect();
        Self { batches, next: 0 }
    }

    /// The next batch, to be written to: the log patches it in place.
    pub fn next_batch(&mut self) -> &mut [u8] {
        let at = self.next % BATCH_COUNT;
        self.next += 1;
        &mut self.batches[at]
    }
}

/// A partition directory with one growing segment.
pub struct AppendLog {
    dir: PathBuf,
    /// The segment appended to. Shared with whoever syncs it.
    pub file: Arc<File>,
    path: PathBuf,
    base_offset: Offset,
    /// Bytes in the segment.
    pub position: u64,
    /// The next offset to assign.
    pub next_offset: Offset,
    segment_len: u64,
    indexes: IndexBuilder,
}

/// A batch that was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Where it starts in its segment.
    pub position: u64,
    /// Its length.
    pub len: u64,
    /// Its last offset.
    pub last_offset: Offset,
    /// Whether it is the first of a new segment.
    pub rolled: bool,
}

impl AppendLog {
    /// An empty log in a new directory.
    ///
    /// # Errors
    /// `File` with the failing name.
    pub fn create(dir: &Path, segment_len: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(BenchError::file("create", dir))?;
        let (file, path) = new_segment(dir, Offset::ZERO).map_err(BenchError::file("create in", dir))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            file,
            path,
            base_offset: Offset::ZERO,
            position: 0,
            next_offset: Offset::ZERO,
            segment_len,
            indexes: index_builder(Offset::ZERO),
        })
    }

    /// Checks a producer's batch, assigns its offset and writes it into the page cache. It is not durable yet.
    ///
    /// # Errors
    /// The file's; `InvalidData` for a batch that Kafka would refuse.
    pub fn append(&mut self, batch: &mut [u8]) -> io::Result<Written> {
        let header = validate_append(batch, BATCH_LEN_MAX_DEFAULT).map_err(io::Error::other)?;
        let len = batch.len() as u64;
        let rolled = self.position + len > self.segment_len && self.position > 0;
        if rolled {
            self.roll()?;
        }
        patch(batch, self.next_offset, LeaderEpoch::new(0));
        self.file.write_all_at(batch, self.position)?;
        let position = self.position;
        let last_offset = self.next_offset.plus(i64::from(header.last_offset_delta()));
        let placed = BatchHeader::peek(batch).map_err(io::Error::other)?;
        self.indexes.push_batch(&placed, Position::new(position)).map_err(io::Error::other)?;
        self.position += ByteCount::new(len).get();
        self.next_offset = last_offset.plus(1);
        Ok(Written { position, len, last_offset, rolled })
    }

    /// Ends the segment and starts the next. What was written to the old one is synced by whoever holds it.
    fn roll(&mut self) -> io::Result<()> {
        self.indexes.seal().map_err(io::Error::other)?;
        let indexes = std::mem::replace(&mut self.indexes, index_builder(self.next_offset));
        let (offsets, times) = indexes.into_parts();
        std::fs::write(self.path.with_extension("index"), offsets.as_bytes())?;
        std::fs::write(self.path.with_extension("timeindex"), times.as_bytes())?;
        (self.file, self.path) = new_segment(&self.dir, self.next_offset)?;
        self.base_offset = self.next_offset;
        self.position = 0;
        Ok(())
    }
}

/// A new segment whose name is durable.
fn new_segment(dir: &Path, base_offset: Offset) -> io::Result<(Arc<File>, PathBuf)> {
    let path = dir.join(format!("{:020}.log", base_offset.get()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    File::open(dir)?.sync_all()?;
    Ok((Arc::new(file), path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::ServedLog;

    /// What was appended reads back as one log: offsets without gaps over several segments, the same batches
    /// used again and again.
    #[test]
    fn an_appended_log_is_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = AppendLog::create(dir.path(), 1 << 20).unwrap();
        let mut batches = Batches::new(5, 16 << 10);
        let (mut rolls, mut bytes) = (0, 0);
        for _ in 0..200 {
            let written = log.append(batches.next_batch()).unwrap();
            rolls += u64::from(written.rolled);
            bytes += written.len;
            assert!(written.position + written.len <= 1 << 20);
        }
        assert!(rolls >= 2);
        let read = ServedLog::open(dir.path()).unwrap();
        assert_eq!((read.segment_count() as u64, read.len()), (rolls + 1, bytes));
        assert_eq!(read.high_watermark(), log.next_offset.get());
    }
}
