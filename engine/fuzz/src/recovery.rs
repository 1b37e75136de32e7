//! Opening a log directory whose files hold any bytes.
//!
//! What is refused is unchanged; what is opened is a log: segments in order, whole batches in each, and opening it once
//! more finds the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rohrpost_engine_core::disk::{Caching, Disk, OpenMode};
use rohrpost_engine_core::error::PartitionError;
use rohrpost_engine_core::format::walk::{BatchWalk, Check};
use rohrpost_engine_core::log::log_dir::OpenError;
use rohrpost_engine_core::log::step::{OpenedLog, Step, StepOutput};
use rohrpost_engine_core::log::{Durability, LogConfig, LogDir, LogDirOptions, WriteMode};
use rohrpost_engine_core::types::{ByteCount, Position};
use rohrpost_engine_sim::disk::SimDisk;
use rohrpost_engine_sim::platform::SimPlatform;
use rohrpost_engine_sim::prng::Prng;
use rohrpost_engine_sim::storage::Storage;
use rohrpost_engine_sim::trace::Trace;

use crate::corpus::{FILES, fix_checksums, read_files};

const ROOT: &str = "/data";

/// Operations on the disk that two openings may take, and the looks at their files: a few for every file, and one a MiB.
const OPS_MAX: u64 = 1_000;

/// Bits of the first byte.
pub(crate) const CLEAN: u8 = 1;
const DIRECT: u8 = 2;
const WRITTEN: u8 = 4;
const READ_ONLY: u8 = 8;
pub(crate) const FIX: u8 = 16;

/// See the module documentation.
pub(crate) fn recovery(data: &[u8]) {
    open_any(data);
}

/// The segments of what was opened.
fn open_any(data: &[u8]) -> Option<Vec<(i64, u64, i64)>> {
    let (&flags, rest) = data.split_first()?;
    let disk = SimDisk::new(Storage::new(Prng::new(1), 1 << 30, Trace::new(false)));
    let dir = Path::new(ROOT).join("t-0");
    for path in [Path::new(ROOT), &dir] {
        disk.create_dir(path).expect("the disk is empty");
    }
    for (kind, bytes) in read_files(rest) {
        let mut bytes = bytes.to_vec();
        let name = FILES[kind];
        if flags & FIX != 0 && name.ends_with(".log") {
            fix_checksums(&mut bytes);
        }
        let path = match name.strip_prefix("../") {
            Some(name) => Path::new(ROOT).join(name),
            None => dir.join(name),
        };
        put(&disk, &path, &bytes);
    }
    if flags & CLEAN != 0 {
        put(&disk, &Path::new(ROOT).join(".kafka_cleanshutdown"), b"");
    }
    let before = files(&disk, &dir);
    let ops_before = disk.storage().ops();
    let first = open(&disk, flags);
    let Some(Ok(opened)) = first else {
        if matches!(first, Some(Err(PartitionError::Disk(error))) if !error.errno.is_full()) {
            panic!("a healthy disk refuses something");
        }
        assert_eq!(files(&disk, &dir), before, "what is refused is not changed");
        return None;
    };
    let shape = check(&disk, &dir, &opened);
    drop(opened);
    if flags & READ_ONLY != 0 {
        assert_eq!(files(&disk, &dir), before, "what is only read is not changed");
    } else if flags & CLEAN == 0 {
        match open(&disk, flags & !CLEAN) {
            Some(Ok(again)) => assert_eq!(check(&disk, &dir, &again), shape, "opened twice, it is the same"),
            other => panic!("what was opened once is refused: {:?}", other.map(|result| result.map(drop))),
        }
    }
    let ops = disk.storage().ops() - ops_before;
    assert!(ops <= OPS_MAX, "{ops} operations");
    Some(shape)
}

type Opened = Result<Box<OpenedLog<SimPlatform>>, PartitionError>;

/// `None` if the directory itself is of a version that nobody knows.
fn open(disk: &SimDisk, flags: u8) -> Option<Opened> {
    let root = Path::new(ROOT);
    let opened = if flags & READ_ONLY != 0 {
        LogDir::open_read_only(disk.clone(), root)
    } else {
        LogDir::open(disk.clone(), root, LogDirOptions::default())
    };
    let log_dir = match opened {
        Ok(log_dir) => log_dir,
        Err(OpenError::UnknownVersion { .. }) => return None,
        Err(other) => panic!("a healthy disk refuses something: {other}"),
    };
    let config = LogConfig {
        write_mode: if flags & DIRECT != 0 { WriteMode::Direct } else { WriteMode::Buffered },
        durability: if flags & WRITTEN != 0 { Durability::Written } else { Durability::Flushed },
        ..LogConfig::default()
    };
    let name = "t-0".parse().expect("a partition's name");
    match Step::<SimPlatform>::run(Step::Open { name, config }, &log_dir) {
        StepOutput::Opened(result) => Some(result),
        _ => unreachable!("a step answers in kind"),
    }
}

/// Base offset, end and next offset of every segment, after a look at them.
fn check(disk: &SimDisk, dir: &Path, opened: &OpenedLog<SimPlatform>) -> Vec<(i64, u64, i64)> {
    assert!(!opened.segments.is_empty(), "there is always one to append to");
    let mut next = i64::MIN;
    let mut shape = Vec::new();
    for part in &opened.segments {
        let (base_offset, end) = (part.base_offset.get(), part.end.get());
        assert!(base_offset >= next && part.next_offset.get() >= base_offset, "segments are in order");
        next = part.next_offset.get();
        let bytes = get(disk, &dir.join(format!("{base_offset:020}.log"))).unwrap_or_default();
        let bytes = bytes.get(..end as usize).expect("the file reaches to the segment's end");
        let walked = BatchWalk::new(bytes, Position::ZERO, part.base_offset, Check::Header).run();
        if opened.recovery.clean {
            assert!(walked.position.get() <= end);
        } else {
            assert_eq!((walked.position.get(), walked.next_offset.get()), (end, next), "batches fill it");
        }
        shape.push((base_offset, end, next));
    }
    assert!(opened.log_start_offset.get() <= next, "I3");
    shape
}

fn put(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let _ = disk.unlink(path);
    let file = disk.open(path, OpenMode::CreateNew, Caching::Buffered).expect("the disk is large enough");
    disk.set_len(&file, ByteCount::ZERO).expect("the disk is healthy");
    disk.write_at(&file, Position::ZERO, bytes).expect("the disk is healthy");
    disk.sync(&file).expect("the disk is healthy");
}

fn get(disk: &SimDisk, path: &Path) -> Option<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read, Caching::Buffered).ok()?;
    let mut bytes = vec![0; disk.len(&file).ok()?.as_usize()];
    let len = disk.read_at(&file, Position::ZERO, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

fn files(disk: &SimDisk, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = disk.list(dir).expect("the directory is there");
    let paths = entries.into_iter().map(|entry| dir.join(entry.name));
    paths.filter_map(|path| get(disk, &path).map(|bytes| (path, bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds reach what they are there for: whole logs, torn ones, a log start, a directory that is only read.
    #[test]
    fn seeds_are_opened() {
        let ends = |name: &str| {
            let seeds = crate::corpus::seeds("recovery");
            let opened = open_any(&seeds.iter().find(|(other, _)| *other == name).unwrap().1);
            opened.map(|shape| shape.iter().map(|(.., next)| *next).collect::<Vec<_>>())
        };
        for (name, expected) in [
            ("clean", vec![7, 12]),
            ("killed", vec![7, 12]),
            ("torn", vec![7]),
            ("start", vec![12]),
            ("read-only", vec![7]),
            ("written", vec![7, 12]),
        ] {
            assert_eq!(ends(name), Some(expected), "{name}");
        }
    }
}
