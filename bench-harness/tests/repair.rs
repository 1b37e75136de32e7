//! `rohrpost-bench repair` end to end: what it says of damage, and that it changes nothing unless it is told to cut.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::{
    ByteCount, Engine, EngineOptions, LogConfig, Offset, Partition, ShardLimits, Timestamp,
};

const BATCHES: i64 = 40;
const RECORDS: i64 = 2;

/// A directory on a real file system: direct I/O does not work on tmpfs.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

fn repair(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rohrpost-bench"));
    command.arg("repair").arg(dir).args(args).output().expect("the binary runs")
}

fn start(dir: &Path) -> Engine {
    Engine::start(EngineOptions { limits: ShardLimits::small(), ..EngineOptions::new(dir) }).unwrap()
}

fn open(engine: &Engine, name: &str) -> Partition {
    let config = LogConfig {
        segment_len_max: ByteCount::mib(1),
        batch_len_max: ByteCount::kib(512),
        retention_ms: None,
        ..LogConfig::default()
    };
    engine.handle().open_partition_blocking(&name.parse().unwrap(), config).unwrap()
}

fn append(partition: &Partition, count: i64) {
    for number in 0..count {
        let mut batch = BatchBuilder::new();
        for _ in 0..RECORDS {
            let value = vec![number as u8; 30_000];
            batch.record(Timestamp::new(1_700_000_000_000), None, Some(&value));
        }
        partition.append(batch.build().into()).wait().unwrap();
    }
}

fn marks(partition: &Partition) -> (i64, i64) {
    let marks = partition.watermarks().wait().unwrap();
    (marks.log_start_offset.get(), marks.high_watermark.get())
}

/// Every file of a partition, byte for byte.
fn contents(dir: &Path, partition: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir.join(partition)).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// A log directory with two partitions of three segments each; the second segment of the first one has lost its end.
/// Also the offset at which that segment begins.
fn damaged() -> (tempfile::TempDir, i64) {
    let dir = scratch();
    let engine = start(dir.path());
    for name in ["orders-0", "orders-1"] {
        append(&open(&engine, name), BATCHES);
    }
    engine.shutdown().unwrap();
    let mut logs: Vec<PathBuf> = contents(dir.path(), "orders-0").into_keys().collect();
    logs.retain(|path| path.extension().is_some_and(|end| end == "log"));
    assert!(logs.len() >= 3, "{logs:?}");
    let second = &logs[1];
    let len = fs::metadata(second).unwrap().len();
    fs::File::options().write(true).open(second).unwrap().set_len(len - 1_000).unwrap();
    let base = second.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    (dir, base)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Without `--cut` it names the damage and where the log begins and ends, and not a byte changes; the engine still refuses
/// the partition.
#[test]
fn without_cut_it_only_tells() {
    let (dir, base) = damaged();
    let before = contents(dir.path(), "orders-0");
    for _ in 0..2 {
        let output = repair(dir.path(), &["orders-0"]);
        let text = stdout(&output);
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        for word in [&format!("{base:020}.log"), "is corrupt", "orders-0: offsets 0 to 80"] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
        assert!(before == contents(dir.path(), "orders-0"), "changed by looking");
    }
    let engine = start(dir.path());
    let refused = engine.handle().open_partition_blocking(&"orders-0".parse().unwrap(), LogConfig::default());
    assert!(refused.is_err_and(|error| error.to_string().contains("rohrpost-bench repair")));
    engine.shutdown().unwrap();
}

/// With `--cut` the log ends at the first damage, inside that segment, and says where; it opens, goes on from there, and
/// its neighbour is untouched.
#[test]
fn with_cut_the_log_ends_at_the_damage() {
    let (dir, base) = damaged();
    let neighbour = contents(dir.path(), "orders-1");
    let output = repair(dir.path(), &["orders-0", "--cut"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(neighbour == contents(dir.path(), "orders-1"), "the neighbour was changed");
    let engine = start(dir.path());
    let partition = open(&engine, "orders-0");
    let (start, end) = marks(&partition);
    assert_eq!(start, 0);
    assert!(end > base && end < BATCHES * RECORDS, "{end}, the damaged segment begins at {base}");
    assert!(text.contains(&format!("orders-0: offsets 0 to {end}")), "{text}");
    append(&partition, 1);
    assert_eq!(marks(&partition), (0, end + RECORDS));
    for offset in (0..end + RECORDS).step_by(RECORDS as usize) {
        let fetched = partition.fetch(Offset::new(offset), ByteCount::new(1)).wait().unwrap();
        assert!(!fetched.is_empty(), "{offset}");
    }
    assert_eq!(marks(&open(&engine, "orders-1")), (0, BATCHES * RECORDS));
    engine.shutdown().unwrap();
    let sound = repair(dir.path(), &["orders-0", "--cut"]);
    assert!(sound.status.success());
    assert!(
        stdout(&sound).contains(&format!("orders-0: offsets 0 to {}", end + RECORDS)),
        "nothing more is cut"
    );
}

/// A partition that is not there is refused and not made; so is a directory that an engine has open.
#[test]
fn what_is_not_there_or_in_use_is_refused() {
    let (dir, _) = damaged();
    for args in [&["orders-7"][..], &["orders-7", "--cut"], &["no name", "--cut"]] {
        let output = repair(dir.path(), args);
        assert!(!output.status.success(), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
    assert!(!dir.path().join("orders-7").exists());
    let before = contents(dir.path(), "orders-0");
    let engine = start(dir.path());
    let output = repair(dir.path(), &["orders-0", "--cut"]);
    assert!(!output.status.success(), "{}", stdout(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use by another process"));
    engine.shutdown().unwrap();
    assert!(before == contents(dir.path(), "orders-0"), "changed by a refusal");
}
