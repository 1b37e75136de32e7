//! Directories that a real Apache Kafka broker has written, after clean stops and after kills.

use std::path::Path;

use crate::disk::memory::MemoryDisk;
use crate::format::names::TopicPartition;
use crate::format::walk::{BatchWalk, Check};
use crate::log::step::OpenedLog;
use crate::log::test_support::*;
use crate::log::{LogDir, LogDirOptions};
use crate::types::{ByteCount, Offset, Position};

fn golden(kind: &str) -> MemoryDisk {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(kind).join("log");
    let disk = disk();
    copy(&from, Path::new(ROOT), &disk);
    disk
}

fn copy(from: &Path, to: &Path, disk: &MemoryDisk) {
    for entry in std::fs::read_dir(from).expect("the golden directories belong to the repository") {
        let entry = entry.expect("a directory can be listed");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target, disk);
        } else {
            disk.put(target, &std::fs::read(entry.path()).expect("a file can be read"));
        }
    }
}

fn open_all(disk: &MemoryDisk) -> Vec<(TopicPartition, Box<OpenedLog<StepsOnly>>)> {
    let dir = LogDir::open(disk.clone(), Path::new(ROOT), LogDirOptions::default()).unwrap();
    assert_eq!(dir.notes(), [""; 0]);
    let names = dir.partitions().unwrap();
    let open = |name: TopicPartition| {
        let opened = crate::log::recovery::open_partition(&dir, &name, &config());
        let opened = opened.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        (name, opened)
    };
    names.into_iter().map(open).collect()
}

/// What a walk over the raw file finds: end, next offset.
fn walk(bytes: &[u8], base_offset: Offset) -> (Position, Offset) {
    let stop = BatchWalk::new(bytes, Position::ZERO, base_offset, Check::Crc).run();
    (stop.position, stop.next_offset)
}

#[test]
fn cleanly_stopped_directories_open_without_a_scan() {
    let disk = golden("clean");
    let before = disk.files();
    let opened = open_all(&disk);
    assert!(opened.len() >= 12, "{}", opened.len());
    for (name, log) in &opened {
        let report = &log.recovery;
        assert_eq!(
            (report.clean, report.indexes_rebuilt, report.scanned),
            (true, 0, ByteCount::ZERO),
            "{name:?}"
        );
        assert_eq!(report.notes, [""; 0], "{name:?}");
        for segment in &log.segments {
            let path = format!("{ROOT}/{}/{:020}.log", name, segment.base_offset.get());
            assert_eq!(
                (segment.end, segment.next_offset),
                walk(&before[Path::new(&path)], segment.base_offset)
            );
        }
    }
    let log = |topic: &str| &opened.iter().find(|(name, _)| name.topic().as_str() == topic).unwrap().1;
    assert_eq!(shape(log("empty")), (vec![(0, 0)], 0));
    assert!(log("trimmed").log_start_offset.get() > 35);
    assert!(log("epochs").leader_epoch.get() >= 1);
    let after = disk.files();
    for (path, bytes) in before.iter().filter(|(path, _)| !path.ends_with(".kafka_cleanshutdown")) {
        assert!(after.get(path) == Some(bytes), "{} was changed", path.display());
    }
}

/// Reserved indexes, zero tails, torn batches: every whole batch stays.
#[test]
fn killed_directories_keep_every_whole_batch() {
    for kind in ["killed", "torn"] {
        let disk = golden(kind);
        let before = disk.files();
        let opened = open_all(&disk);
        assert!(!opened.is_empty());
        for (name, log) in &opened {
            assert!(!log.recovery.clean);
            let last = log.segments.last().unwrap();
            assert_eq!(log.recovery.truncated > ByteCount::ZERO, kind == "torn", "{name:?}");
            for segment in &log.segments {
                let path = format!("{ROOT}/{}/{:020}.log", name, segment.base_offset.get());
                let whole = &before[Path::new(&path)];
                assert_eq!((segment.end, segment.next_offset), walk(whole, segment.base_offset), "{path}");
                assert!(disk.get(&path).unwrap() == whole[..segment.end.get() as usize], "{path}");
            }
            assert!(log.leader_epoch.get() >= 1 && last.file.is_some());
        }
        // What recovery built is what it would build: nothing changes any more but the epoch.
        let shapes: Vec<_> = opened.iter().map(|(_, log)| shape(log)).collect();
        drop(opened);
        let again: Vec<_> = open_all(&disk).iter().map(|(_, log)| shape(log)).collect();
        assert_eq!(shapes, again);
    }
}

/// Rebuilding an index gives the entries that Kafka wrote.
#[test]
fn rebuilt_indexes_are_kafkas() {
    let disk = golden("clean");
    let before = disk.files();
    disk.remove(format!("{ROOT}/.kafka_cleanshutdown"));
    disk.put(format!("{ROOT}/recovery-point-offset-checkpoint"), b"0\n0\n");
    let opened = open_all(&disk);
    let mut compared = 0;
    for (name, log) in opened.iter().filter(|(name, _)| name.topic().as_str().starts_with("codec-")) {
        for segment in &log.segments[..log.segments.len() - 1] {
            for suffix in ["index", "timeindex"] {
                let base = segment.base_offset.get();
                let path = format!("{ROOT}/{}/{base:020}.{suffix}", name);
                assert!(disk.get(&path).as_ref() == before.get(Path::new(&path)), "{path}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 4, "{compared}");
}
