//! Log directories of a real Kafka broker under the engine, on a real file system: every record is served, more are
//! appended, and what is left behind is sound. And directories served read-only are not touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rohrpost_bench::inspect;
use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::format::walk::{BatchWalk, Check};
use rohrpost_engine::{
    ByteCount, DriverChoice, Engine, EngineOptions, LogConfig, Offset, Partition, Position, Timestamp,
    TopicPartition, WriteMode,
};
use rohrpost_tests::golden;

/// No retention: the golden records are old.
fn config(write_mode: WriteMode) -> LogConfig {
    LogConfig { retention_ms: None, write_mode, ..LogConfig::default() }
}

fn start(dir: &Path, driver: DriverChoice, read_only: bool) -> Engine {
    Engine::start(EngineOptions { driver, read_only, ..EngineOptions::new(dir) }).expect("the engine starts")
}

/// (base offset, CRC) of every batch from `from` to the end of the log.
fn served(partition: &Partition, from: Offset) -> Vec<(Offset, u32)> {
    let (mut batches, mut offset) = (Vec::new(), from);
    let end = partition.watermarks().wait().expect("an open partition has watermarks").high_watermark;
    while offset < end {
        let fetched = partition.fetch(offset, ByteCount::mib(1)).wait().expect("the log is readable");
        let bytes = fetched.to_bytes();
        let before = offset;
        for (_, header) in BatchWalk::new(&bytes, Position::ZERO, Offset::ZERO, Check::Crc) {
            batches.push((header.base_offset(), header.crc()));
            offset = offset.max(header.next_offset());
        }
        if offset == before {
            break; // the log ends in a gap that compaction has left
        }
    }
    batches
}

/// The same, from the files themselves: whole batches of all segments in order.
fn stored(dir: &Path) -> Vec<(Offset, u32)> {
    let mut logs: Vec<PathBuf> = files(dir).into_keys().filter(|path| is_log(path)).collect();
    logs.sort();
    let mut batches = Vec::new();
    for log in logs {
        let bytes = std::fs::read(&log).expect("a segment is readable");
        let walk = BatchWalk::new(&bytes, Position::ZERO, Offset::ZERO, Check::Crc);
        batches.extend(walk.map(|(_, header)| (header.base_offset(), header.crc())));
    }
    batches
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

/// Every file below `dir` with its length and time of change.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("an entry of a readable folder").path();
        let metadata = path.metadata().expect("a file that is there");
        if metadata.is_dir() {
            found.extend(files(&path));
        }
        found.insert(path, (metadata.len(), metadata.modified().expect("file systems keep times")));
    }
    found
}

fn batch(value: &[u8]) -> bytes::Bytes {
    let mut builder = BatchBuilder::new();
    builder.record(Timestamp::new(1_900_000_000_000), Some(b"key"), Some(value));
    builder.build().into()
}

/// Opens every partition, compares, appends, closes; twice, the second time abruptly; then looks at the files.
fn open_and_append(name: &str, driver: DriverChoice, write_mode: WriteMode) {
    let what = format!("{name} {driver:?} {write_mode:?}");
    let scratch = tempfile::tempdir().expect("a folder for temporary files");
    let dir = scratch.path().join("log");
    golden::copy_dir(&golden::log_dir(name), &dir);
    let mut appended: BTreeMap<TopicPartition, Vec<(Offset, u32)>> = BTreeMap::new();
    for round in 0..3 {
        let engine = start(&dir, driver, false);
        let partitions = engine.partitions().expect("the directory is readable");
        assert!(!partitions.is_empty());
        for tp in partitions {
            let before = stored(&golden::log_dir(name).join(tp.to_string()));
            let partition = engine.handle().open_partition_blocking(&tp, config(write_mode));
            let partition = partition.unwrap_or_else(|error| panic!("{what} {tp}: {error}"));
            let start = partition.watermarks().wait().expect("it is open").log_start_offset;
            let mine = appended.entry(tp.clone()).or_default();
            let expected: Vec<_> = before.iter().chain(mine.iter()).copied().collect();
            let all = served(&partition, start);
            // The first batch served may begin before the log start offset, as Kafka's does.
            assert!(expected.ends_with(&all), "{what} {tp} round {round}");
            let left_out = expected.len() - all.len();
            assert!(expected[..left_out].iter().all(|(base, _)| *base < start), "{what} {tp} round {round}");
            for i in 0..3 {
                let bytes = batch(&[i; 700]);
                let crc = u32::from_be_bytes(bytes[17..21].try_into().expect("four bytes"));
                let done = partition.append(bytes).wait().unwrap_or_else(|e| panic!("{what} {tp}: {e}"));
                mine.push((done.base_offset, crc));
            }
        }
        if round == 1 {
            drop(engine); // abruptly: the next start recovers
        } else {
            engine.shutdown().expect("a clean stop");
            assert!(dir.join(".kafka_cleanshutdown").exists(), "{what}");
        }
    }
    let mut text = Vec::new();
    let report =
        inspect::run(&dir, inspect::Options::default(), &mut text).expect("the directory is readable");
    assert_eq!(
        report.exit_code(),
        0,
        "{what}: {:?}\n{}",
        report.first_problem(),
        String::from_utf8_lossy(&text)
    );
}

#[test]
fn kafkas_directories_are_served_and_continued() {
    for name in golden::NAMES {
        for driver in [DriverChoice::Poll, DriverChoice::Auto] {
            for write_mode in [WriteMode::Direct, WriteMode::Buffered] {
                open_and_append(name, driver, write_mode);
            }
        }
    }
}

/// Bytes, lengths, times of change and names stay what they were, also in what a killed broker left.
#[test]
fn a_directory_served_read_only_is_not_touched() {
    for name in golden::NAMES {
        let scratch = tempfile::tempdir().expect("a folder for temporary files");
        let dir = scratch.path().join("log");
        golden::copy_dir(&golden::log_dir(name), &dir);
        let before = files(&dir);
        for write_mode in [WriteMode::Direct, WriteMode::Buffered] {
            let engine = start(&dir, DriverChoice::Auto, true);
            for tp in engine.partitions().expect("the directory is readable") {
                let partition = engine.handle().open_partition_blocking(&tp, config(write_mode));
                let partition = partition.unwrap_or_else(|error| panic!("{name} {tp}: {error}"));
                let expected = stored(&dir.join(tp.to_string()));
                let start = partition.watermarks().wait().expect("it is open").log_start_offset;
                assert!(expected.ends_with(&served(&partition, start)), "{name} {tp}");
                assert!(partition.append(batch(b"x")).wait().is_err(), "{name} {tp} took an append");
            }
            engine.shutdown().expect("a stop");
        }
        assert_eq!(files(&dir), before, "{name}");
        for (path, _) in before.iter().filter(|(path, _)| path.is_file()) {
            let original = golden::log_dir(name).join(path.strip_prefix(&dir).expect("it lies below"));
            assert!(std::fs::read(path).ok() == std::fs::read(original).ok(), "{}", path.display());
        }
    }
}
