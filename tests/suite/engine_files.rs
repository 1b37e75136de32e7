//! The engine on directories that a real Kafka broker wrote. (The other way round, and both in turn: `interop`.)

use std::fs;
use std::path::Path;

use crate::dump;
use rohrpost_engine::format::checkpoint::parse_offsets;
use rohrpost_engine::format::walk::{Seek, seek};
use rohrpost_engine::{DriverChoice, LogConfig, Offset, Position};
use rohrpost_tests::{engine, golden, writer};

/// The golden records are of 2023: no retention by time.
fn keep() -> LogConfig {
    LogConfig { retention_ms: None, ..LogConfig::default() }
}

/// Opened, read to the last byte, appended to, stopped, opened and read again: on a copy of every golden directory,
/// whether the broker stopped in good order, was killed, or left a torn batch.
fn serves_and_appends(name: &str, driver: DriverChoice) {
    let scratch = tempfile::tempdir().unwrap();
    golden::copy_dir(&golden::log_dir(name), scratch.path());
    let before = engine::start(scratch.path(), driver);
    let partitions: Vec<String> = before.partitions().unwrap().iter().map(ToString::to_string).collect();
    assert!(!partitions.is_empty(), "{name}");
    let mut ends = Vec::new();
    for partition in &partitions {
        let opened = engine::open(&before, partition, keep());
        let expected = valid_bytes(&golden::log_dir(name), partition);
        assert!(engine::read_all(&opened) == expected, "{name}/{partition}: other bytes than the broker's");
        let base = engine::append(&opened, writer::batch(0, 3));
        ends.push((base, expected.len()));
    }
    before.shutdown().unwrap();
    let report = dump::report(scratch.path());
    assert_eq!(report.problems(), 0, "{name}: {report}");

    let after = engine::start(scratch.path(), driver);
    for (partition, (base, len)) in partitions.iter().zip(ends) {
        let bytes = engine::read_all(&engine::open(&after, partition, keep()));
        let expected: Vec<String> = (0..3)
            .map(|i| format!("{}\t{}\t{}", base + i as i64, writer::key(i), writer::value(i)))
            .collect();
        assert_eq!(engine::printed(&bytes[len..]), expected, "{name}/{partition}");
    }
    after.shutdown().unwrap();
}

#[test]
fn golden_directories_are_served_and_appended_to() {
    for name in golden::NAMES {
        serves_and_appends(name, DriverChoice::Auto);
    }
}

#[test]
fn golden_directories_are_served_and_appended_to_without_io_uring() {
    for name in golden::NAMES {
        serves_and_appends(name, DriverChoice::Poll);
    }
}

/// The batches of a partition from the one that holds its log start offset on.
fn valid_bytes(root: &Path, partition: &str) -> Vec<u8> {
    let dir = root.join(partition);
    let report = dump::report(&dir);
    let mut bytes = Vec::new();
    for segment in &report.partitions[0].segments {
        let file = fs::read(dir.join(&segment.file)).unwrap();
        bytes.extend_from_slice(&file[..segment.end_position as usize]);
    }
    let start = log_start(root, partition);
    match seek(&bytes, Position::ZERO, start) {
        Seek::Found(position, _) => bytes.split_off(position.get() as usize),
        _ => Vec::new(),
    }
}

fn log_start(root: &Path, partition: &str) -> Offset {
    let entries = parse_offsets(&fs::read(root.join("log-start-offset-checkpoint")).unwrap()).unwrap();
    let found = entries.into_iter().find(|(name, _)| name.to_string() == partition);
    found.map_or(Offset::ZERO, |(_, offset)| offset)
}
