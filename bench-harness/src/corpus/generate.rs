//! The default corpus: real Kafka segments with indexes, written once into the data directory and reused.
//!
//! Batches are about 16 KiB, in the last segment under 1 KiB, so that the smallest fetch holds a whole one. Their
//! lengths all differ, so that positions are never page-aligned and the copy
//! aliasing of one fixed alignment cannot favour or harm a path. The marker file is written last: a corpus
//! without it was interrupted and is made again.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rohrpost_engine_core::format::batch::BatchHeader;
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::format::checkpoint::{self, EpochStart};
use rohrpost_engine_core::format::names::{self, TopicName, TopicPartition};
use rohrpost_engine_core::types::{LeaderEpoch, Offset, Position, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{BenchError, Result};
use crate::interrupt;

/// Raised when the content changes: an older corpus is made again.
const VERSION: u32 = 3;
/// Largest batch of the old segments and of the last one.
const BATCH_LEN_MAX: usize = 16 << 10;
const HOT_BATCH_LEN_MAX: usize = 1000;
const MARKER: &str = "corpus.json";
/// First record's timestamp; fixed, so that a corpus is a function of its parameters.
const EPOCH_MS: i64 = 1_700_000_000_000;
/// Bytes that must stay free on the filesystem.
const FREE_RESERVE: u64 = 1 << 30;

/// How large a corpus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Sealed segments, which cold readers read.
    pub cold_segments: u32,
    /// Length of a sealed segment, bytes.
    pub segment_len: u64,
    /// Length of the last segment, which hot readers read, bytes.
    pub hot_len: u64,
}

impl Shape {
    /// 4 GiB of old segments, more than any window reads, and 64 MiB of tail.
    pub const DEFAULT: Self = Self { cold_segments: 16, segment_len: 256 << 20, hot_len: 64 << 20 };

    /// Only the tail, for workloads without cold readers.
    pub const HOT: Self = Self { cold_segments: 0, ..Self::DEFAULT };

    /// Bytes of the whole corpus, without indexes.
    pub const fn total_len(&self) -> u64 {
        self.cold_segments as u64 * self.segment_len + self.hot_len
    }

    fn name(&self) -> String {
        format!("corpus-v{VERSION}-{}m", self.total_len() >> 20)
    }
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Marker {
    version: u32,
    shape: Shape,
}

/// The partition directory of the corpus in `data_dir`, made if it is not there. `progress` is told bytes
/// written and bytes in all.
///
/// # Errors
/// `Usage` if the filesystem has too little room, `File` if it fails, `Interrupted` on a signal; in each case
/// nothing half-made stays behind.
pub fn ensure(data_dir: &Path, shape: Shape, mut progress: impl FnMut(u64, u64)) -> Result<PathBuf> {
    let root = data_dir.join(shape.name());
    let partition = root.join("bench-0");
    let marker = Marker { version: VERSION, shape };
    let found =
        fs::read(root.join(MARKER)).ok().and_then(|bytes| serde_json::from_slice::<Marker>(&bytes).ok());
    if found.is_some_and(|found| found == marker) {
        return Ok(partition);
    }
    if root.exists() {
        fs::remove_dir_all(&root).map_err(BenchError::file("remove the unfinished corpus", &root))?;
    }
    check_free(data_dir, shape.total_len())?;
    fs::create_dir_all(&partition).map_err(BenchError::file("create", &partition))?;
    remove_old_versions(data_dir);
    let made = write(&root, &partition, shape, &mut progress).and_then(|()| {
        let path = root.join(MARKER);
        let text = serde_json::to_vec(&marker).map_err(|e| BenchError::file("write", &path)(e.into()))?;
        fs::write(&path, text).map_err(BenchError::file("write", &path))
    });
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&root);
        return Err(error);
    }
    Ok(partition)
}

/// Fails if `len` more bytes would leave less than 1 GiB free.
///
/// # Errors
/// `Usage`, naming what is needed and what there is.
pub fn check_free(dir: &Path, len: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)
        .map_err(std::io::Error::from)
        .map_err(BenchError::file("ask for free space in", dir))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free >= len.saturating_add(FREE_RESERVE) {
        return Ok(());
    }
    Err(BenchError::Usage(format!(
        "{} has {} MiB free, {} MiB are needed: free some, or pass --data-dir on another filesystem",
        dir.display(),
        free >> 20,
        len.saturating_add(FREE_RESERVE) >> 20
    )))
}

/// A corpus of an older version is of no use to anybody.
fn remove_old_versions(data_dir: &Path) {
    for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let version = name.strip_prefix("corpus-v").and_then(|rest| rest.split('-').next());
        if version.and_then(|version| version.parse::<u32>().ok()).is_some_and(|version| version < VERSION) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// What a broker that stopped cleanly leaves beside the segments: nothing has to be recovered at an open.
fn write_checkpoints(root: &Path, partition: &Path, end: Offset) -> Result<()> {
    let name = TopicPartition::new(TopicName::new("bench").expect("a legal name"), 0);
    let offsets = |offset: Offset| checkpoint::write_offsets([(&name, offset)].into_iter());
    let epoch = EpochStart { epoch: LeaderEpoch::new(0), start_offset: Offset::ZERO };
    for (path, text) in [
        (partition.join(names::LEADER_EPOCH_CHECKPOINT), checkpoint::write_epochs(&[epoch])),
        (root.join(names::RECOVERY_POINT_CHECKPOINT), offsets(end)),
        (root.join(names::HIGH_WATERMARK_CHECKPOINT), offsets(end)),
        (root.join(names::LOG_START_CHECKPOINT), offsets(Offset::ZERO)),
        (root.join(names::CLEAN_SHUTDOWN), checkpoint::write_clean_shutdown(-1)),
    ] {
        fs::write(&path, text).map_err(BenchError::file("write", &path))?;
    }
    Ok(())
}

fn write(root: &Path, partition: &Path, shape: Shape, progress: &mut impl FnMut(u64, u64)) -> Result<()> {
    let mut source = BatchSource::new(1, BATCH_LEN_MAX);
    let mut done = 0;
    for at in 0..=shape.cold_segments {
        let is_hot = at == shape.cold_segments;
        source.len_max = if is_hot { HOT_BATCH_LEN_MAX } else { BATCH_LEN_MAX };
        let len = if is_hot { shape.hot_len } else { shape.segment_len };
        write_segment(partition, &mut source, len, |written| progress(done + written, shape.total_len()))?;
        done += len;
    }
    write_checkpoints(root, partition, source.next_offset)
}

fn write_segment(
    partition: &Path,
    source: &mut BatchSource,
    len_max: u64,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let base = source.next_offset;
    let path = partition.join(format!("{:020}.log", base.get()));
    let file = File::create_new(&path).map_err(BenchError::file("create", &path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut indexes = super::index_builder(base);
    let mut position = 0;
    let mut batch = Vec::with_capacity(32 << 10);
    while position + source.len_max as u64 <= len_max {
        if position & 0xff_ffff < BATCH_LEN_MAX as u64 {
            interrupt::check()?;
            progress(position);
        }
        let header = source.next_batch(&mut batch);
        indexes
            .push_batch(&header, Position::new(position))
            .map_err(|error| BenchError::Corpus { path: path.clone(), why: error.to_string() })?;
        out.write_all(&batch).map_err(BenchError::file("write", &path))?;
        position += batch.len() as u64;
    }
    let file = out.into_inner().map_err(|e| BenchError::file("write", &path)(e.into_error()))?;
    file.sync_all().map_err(BenchError::file("sync", &path))?;
    let _ = indexes.seal();
    let (offsets, times) = indexes.into_parts();
    for (extension, bytes) in [("index", offsets.as_bytes()), ("timeindex", times.as_bytes())] {
        let path = path.with_extension(extension);
        fs::write(&path, bytes).map_err(BenchError::file("write", &path))?;
    }
    Ok(())
}

/// An endless run of valid batches of varied length: the same seed gives the same bytes.
pub struct BatchSource {
    random: fastrand::Rng,
    payload: Vec<u8>,
    builder: BatchBuilder,
    /// Largest batch it makes.
    pub len_max: usize,
    /// Base offset of the next batch.
    pub next_offset: Offset,
}

/// Payload of a record: about 1 KiB.
const VALUE_LEN: usize = 1000;
/// Bytes of a record beyond its value, at most: key and lengths.
const RECORD_OVERHEAD_LEN: usize = 32;
/// Batches are up to this much shorter than the largest.
const LEN_SPREAD: usize = 4096;

impl BatchSource {
    /// Batches of at most `len_max` bytes (at least 500), from offset 0.
    pub fn new(seed: u64, len_max: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut payload = vec![0; 1 << 20];
        random.fill(&mut payload);
        Self { random, payload, builder: BatchBuilder::new(), len_max, next_offset: Offset::ZERO }
    }

    /// Puts the next batch into `out` and returns its header.
    ///
    /// # Panics
    /// If the builder made a batch that does not parse, which its own tests exclude.
    pub fn next_batch(&mut self, out: &mut Vec<u8>) -> BatchHeader {
        let spread = LEN_SPREAD.min(self.len_max / 4);
        let target = self.len_max - self.random.usize(0..spread) - 2 * RECORD_OVERHEAD_LEN;
        self.builder.clear();
        self.builder.base_offset(self.next_offset).leader_epoch(LeaderEpoch::new(0));
        let mut at = self.next_offset.get();
        let mut left = target;
        while left > RECORD_OVERHEAD_LEN {
            let len = VALUE_LEN.min(left - RECORD_OVERHEAD_LEN);
            let from = self.random.usize(0..self.payload.len() - len);
            let key = at.to_be_bytes();
            let value = &self.payload[from..from + len];
            self.builder.record(Timestamp::new(EPOCH_MS + at), Some(&key), Some(value));
            left -= len + RECORD_OVERHEAD_LEN.min(left - len);
            at += 1;
        }
        out.clear();
        self.builder.build_into(out);
        assert!(out.len() <= self.len_max, "{} of at most {}", out.len(), self.len_max);
        let header = BatchHeader::peek(out).expect("the builder makes valid batches");
        self.next_offset = header.next_offset();
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::ServedLog;
    use rohrpost_engine_core::format::batch::{BATCH_LEN_MAX_STORABLE, validate};
    use std::collections::HashSet;

    const SMALL: Shape = Shape { cold_segments: 2, segment_len: 1 << 20, hot_len: 1 << 20 };

    /// A corpus is valid batches end to end, of varied length, that the read side resolves; the second call
    /// finds it; one without its marker is made again.
    #[test]
    fn a_corpus_is_valid_and_reused() {
        let dir = tempfile::tempdir().unwrap();
        let partition = ensure(dir.path(), SMALL, |_, _| {}).unwrap();
        let log = ServedLog::open(&partition).unwrap();
        assert_eq!(log.segment_count(), 3);
        let mut lengths = HashSet::new();
        let mut offset = 0;
        for segment in 0..3 {
            let mut bytes = vec![0; log.segment_len(segment) as usize];
            log.read_exact(&mut bytes, segment, 0).unwrap();
            let mut at = 0;
            while at < bytes.len() {
                let header = BatchHeader::peek(&bytes[at..]).unwrap();
                let len = header.batch_len().as_usize();
                validate(&bytes[at..at + len], BATCH_LEN_MAX_STORABLE).unwrap();
                assert_eq!(header.base_offset().get(), offset);
                for inside in [offset, header.last_offset().get()] {
                    let body = log.resolve(inside, 100).unwrap();
                    assert_eq!((body.segment, body.position), (segment, at as u64));
                }
                lengths.insert(len);
                offset = header.next_offset().get();
                at += len;
            }
        }
        assert_eq!(offset, log.high_watermark());
        assert!(lengths.len() > 100, "{} different lengths", lengths.len());
        ensure(dir.path(), SMALL, |_, _| panic!("made again")).unwrap();
        fs::remove_file(partition.parent().unwrap().join(MARKER)).unwrap();
        let mut calls = 0;
        ensure(dir.path(), SMALL, |_, _| calls += 1).unwrap();
        assert!(calls > 0);
    }

    /// More than the filesystem holds is refused before anything is written.
    #[test]
    fn too_little_room_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_free(dir.path(), 1 << 60).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--data-dir"));
    }
}
