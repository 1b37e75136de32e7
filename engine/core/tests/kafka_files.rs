//! Every file that a real Apache Kafka broker left in `tests/golden` is read by the format modules, and its indexes
//! are rebuilt from its segments, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rohrpost_engine_core::format::batch::Codec;
use rohrpost_engine_core::format::index::{INDEX_LEN_MAX_DEFAULT, OffsetIndex, TimeIndex, entries_in};
use rohrpost_engine_core::format::index_build::{INDEX_INTERVAL_DEFAULT, IndexBuilder};
use rohrpost_engine_core::format::meta_properties::MetaProperties;
use rohrpost_engine_core::format::names::{self, PartitionDir, SegmentFile, SegmentFileKind};
use rohrpost_engine_core::format::record::Records;
use rohrpost_engine_core::format::walk::{BatchWalk, Check, StopReason, is_zero};
use rohrpost_engine_core::format::{checkpoint, producer_snapshot, txn_index};
use rohrpost_engine_core::types::{ByteCount, Offset, Position};

/// All log directories below `tests/golden`.
fn log_dirs() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let logs: Vec<_> =
        entries(&golden).into_iter().map(|dir| dir.join("log")).filter(|log| log.is_dir()).collect();
    assert!(!logs.is_empty(), "no golden directory in {}", golden.display());
    logs
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// The segment files of a partition directory, by base offset and kind, and the other files.
type Segments = BTreeMap<(i64, SegmentFileKind), Vec<u8>>;

fn partition(dir: &Path) -> (Segments, Vec<PathBuf>) {
    let (mut segments, mut others) = (Segments::new(), Vec::new());
    for path in entries(dir) {
        match name(&path).parse::<SegmentFile>() {
            Ok(file) => {
                assert_eq!(file.to_string(), name(&path));
                segments.insert((file.base_offset.get(), file.kind), fs::read(&path).unwrap());
            }
            Err(_) => others.push(path),
        }
    }
    (segments, others)
}

fn partition_dirs() -> Vec<PathBuf> {
    let dirs = log_dirs().into_iter().flat_map(|log| entries(&log)).filter(|path| path.is_dir());
    dirs.inspect(|dir| assert!(matches!(name(dir).parse(), Ok(PartitionDir::Live(_))), "{dir:?}")).collect()
}

/// Both indexes as Kafka's rule makes them from the log.
fn rebuild(base: Offset, log: &[u8]) -> (IndexBuilder, StopReason) {
    let entries_max = entries_in(INDEX_LEN_MAX_DEFAULT, 12);
    let (offsets, times) = (OffsetIndex::new(base, entries_max), TimeIndex::new(base, entries_max));
    let mut builder = IndexBuilder::new(offsets, times, INDEX_INTERVAL_DEFAULT);
    let mut walk = BatchWalk::new(log, Position::ZERO, base, Check::Crc);
    for (position, batch) in walk.by_ref() {
        builder.push_batch(&batch, position).unwrap();
        if batch.attributes().codec() == Ok(Codec::None) {
            let records = Records::new(batch, &log[position.get() as usize..]).unwrap();
            assert_eq!(records.map(Result::unwrap).count(), batch.count() as usize);
        }
    }
    (builder, walk.stop().reason)
}

#[test]
fn indexes_are_rebuilt_byte_for_byte() {
    let mut compared = 0;
    for dir in partition_dirs() {
        let (segments, _) = partition(&dir);
        let mut logs = segments.iter().filter(|((_, kind), _)| *kind == SegmentFileKind::Log).peekable();
        while let Some(((base, _), log)) = logs.next() {
            let place = format!("{} segment {base}", dir.display());
            let is_last = logs.peek().is_none();
            let (mut builder, reason) = rebuild(Offset::new(*base), log);
            assert!(!matches!(reason, StopReason::Bad(_)), "{place}: {reason:?}");
            assert!(reason == StopReason::End || is_last, "{place}: {reason:?}");
            let offsets = &segments[&(*base, SegmentFileKind::Index)];
            let times = &segments[&(*base, SegmentFileKind::TimeIndex)];
            let len = ByteCount::of_usize(log.len());
            OffsetIndex::load(Offset::new(*base), offsets, len, 0).unwrap_or_else(|e| panic!("{place}: {e}"));
            TimeIndex::load(Offset::new(*base), times, 0).unwrap_or_else(|e| panic!("{place}: {e}"));
            // A killed broker leaves its last segment's indexes preallocated and without the last time entry.
            if !is_last || (reason == StopReason::End && !is_zero(&times[times.len().saturating_sub(12)..])) {
                builder.seal().unwrap();
                compared += 1;
                assert_eq!(builder.times().as_bytes(), times, "{place}");
                assert_eq!(builder.offsets().as_bytes(), offsets, "{place}");
            }
        }
    }
    assert!(compared >= 10, "only {compared} segments compared");
}

#[test]
fn checkpoints_snapshots_and_metadata_are_read() {
    let (mut producers, mut aborted, mut epochs) = (0, 0, 0);
    for dir in partition_dirs() {
        let (segments, others) = partition(&dir);
        for ((base, kind), bytes) in &segments {
            match kind {
                SegmentFileKind::Snapshot => producers += producer_snapshot::parse(bytes).unwrap().len(),
                SegmentFileKind::TxnIndex => {
                    aborted += txn_index::parse(Offset::new(*base), bytes).unwrap().len();
                }
                _ => {}
            }
        }
        for path in others {
            let bytes = fs::read(&path).unwrap();
            match name(&path) {
                names::PARTITION_METADATA => {
                    let id = checkpoint::parse_partition_metadata(&bytes).unwrap();
                    assert_eq!(checkpoint::write_partition_metadata(id).as_bytes(), bytes);
                }
                names::LEADER_EPOCH_CHECKPOINT => {
                    let found = checkpoint::parse_epochs(&bytes).unwrap();
                    assert!(bytes.is_empty() || checkpoint::write_epochs(&found).as_bytes() == bytes);
                    epochs += found.len();
                }
                other => panic!("unknown file {other} in {}", dir.display()),
            }
        }
    }
    assert!(producers > 0 && aborted > 0 && epochs > 0, "{producers} {aborted} {epochs}");
}

#[test]
fn root_files_are_read() {
    let mut offsets = 0;
    for log in log_dirs() {
        for path in entries(&log).iter().filter(|path| path.is_file()) {
            let bytes = fs::read(path).unwrap();
            match name(path) {
                names::META_PROPERTIES => {
                    assert!(MetaProperties::parse(&bytes).unwrap().directory_id.is_some())
                }
                names::CLEAN_SHUTDOWN => {
                    let epoch = checkpoint::parse_clean_shutdown(&bytes).unwrap();
                    assert_eq!(checkpoint::write_clean_shutdown(epoch).as_bytes(), bytes);
                }
                names::RECOVERY_POINT_CHECKPOINT
                | names::LOG_START_CHECKPOINT
                | names::HIGH_WATERMARK_CHECKPOINT
                | names::CLEANER_CHECKPOINT => {
                    let found = checkpoint::parse_offsets(&bytes).unwrap();
                    let written = checkpoint::write_offsets(found.iter().map(|(tp, offset)| (tp, *offset)));
                    assert!(bytes.is_empty() || written.as_bytes() == bytes);
                    offsets += found.len();
                }
                names::LOCK | "bootstrap.checkpoint" => {}
                other => panic!("unknown file {other} in {}", log.display()),
            }
        }
    }
    assert!(offsets > 0);
}
