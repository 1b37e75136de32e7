//! `inspect` against directories that a real Apache Kafka broker wrote, and against every damage done to them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::dump;
use rohrpost_bench::inspect::{Finding, Options, Report, Severity, Tail, What};
use rohrpost_engine_core::format::batch::HEADER_LEN;
use rohrpost_engine_core::format::checkpoint::parse_partition_metadata;
use rohrpost_engine_core::format::side_file::{SIDE_INTERVAL_DEFAULT, SegmentIdentity, SideFileBuilder};
use rohrpost_engine_core::format::walk::{BatchWalk, Check};
use rohrpost_engine_core::types::{Offset, Position};
use rohrpost_tests::golden;

#[test]
fn every_entry_is_what_dump_log_segments_says() {
    for name in golden::NAMES {
        let theirs = dump::sections(&golden::expected(name));
        let (ours, _) = dump::ours(&golden::log_dir(name));
        assert!(theirs.values().flatten().count() > 50, "{name}: the oracle is there");
        dump::assert_equal(&ours, &theirs);
    }
}

/// A broker that stopped in good order, and one that was killed, leave nothing that is wrong.
#[test]
fn whole_directories_have_no_problem() {
    for name in ["clean", "killed"] {
        let report = dump::report(&golden::log_dir(name));
        assert_eq!((report.problems(), report.exit_code()), (0, 0), "{report}");
    }
}

#[test]
fn preallocated_space_is_the_end_of_the_log() {
    let report = dump::report(&golden::log_dir("killed").join("preallocated-0"));
    let last = report.partitions[0].segments.last().unwrap();
    assert_eq!((last.tail, last.next_offset), (Tail::Zeros, 280));
    let [Finding { severity: Severity::Note, position, what: What::ZeroTail { len }, .. }] =
        &report.findings[..]
    else {
        panic!("{report}")
    };
    assert_eq!((position.unwrap(), last.end_position + len), (last.end_position, last.len));
}

#[test]
fn a_torn_tail_is_named_with_its_place() {
    let report = dump::report(&golden::log_dir("torn"));
    let last = report.partitions[0].segments.last().unwrap();
    assert_eq!((report.problems(), report.exit_code(), last.tail), (1, 1, Tail::Torn));
    let problem = report.first_problem().unwrap();
    assert_eq!((problem.position, &problem.file), (Some(last.end_position), &last.file));
    assert!(matches!(problem.what, What::TornTail { needed, found } if needed == found + 100));
}

/// Control batches, aborted transactions and the gaps of compaction are there to be read.
#[test]
fn golden_directories_hold_what_they_are_for() {
    let expected = golden::expected("clean");
    for what in
        ["isControl: true", "LogAppendTime", "OptionalLong[", "compresscodec: zstd", "lastStableOffset"]
    {
        assert!(expected.contains(what), "{what}");
    }
    let report = dump::report(&golden::log_dir("clean"));
    let of = |name: &str| report.partitions.iter().find(|p| p.dir == Path::new(name)).unwrap();
    assert_eq!(of("empty-0").offsets(), Some((0, 0)));
    assert_eq!(of("trimmed-0").offsets(), Some((35, 100)));
    let compacted = &of("compacted-0").segments;
    assert!(compacted.iter().map(|s| s.records).sum::<u64>() < 240, "records are gone, offsets stay");
}

/// Every byte of a segment, flipped. What the CRC covers is found in the batch it belongs to. Of the header's first
/// 17 bytes, length and leader epoch and magic are always found; a base offset is found unless it leaves a gap that
/// compaction could have left and neither an index entry nor the next batch contradicts it.
#[test]
fn flipped_bytes_are_found_and_named() {
    let (_scratch, dir) = golden::copy("clean", "transactions-0");
    let log = dir.join("00000000000000000077.log");
    let bytes = fs::read(&log).unwrap();
    let batches = batches(&bytes, 77);
    let mut unseen = 0;
    for &(start, end) in &batches {
        let header = start..start + HEADER_LEN;
        for at in header.chain([end - 1]) {
            let report = flipped(&log, &bytes, at, &log);
            let first = report.first_problem().and_then(|problem| problem.position);
            match at - start {
                0..8 => unseen += usize::from(first.is_none()),
                8..17 => assert!(first.is_some(), "byte {at} of the batch at {start}"),
                _ => {
                    let position = first.unwrap_or_else(|| panic!("byte {at} of the batch at {start}"));
                    assert!((start as u64..end as u64).contains(&position), "byte {at}: {report}");
                }
            }
        }
    }
    assert!(unseen < batches.len() * 8, "lowered base offsets, at least, are found");
}

/// With our side file nothing in a header goes unseen.
#[test]
fn the_side_file_covers_what_the_crc_does_not() {
    let (_scratch, dir) = golden::copy("clean", "transactions-0");
    let log = dir.join("00000000000000000077.log");
    let bytes = fs::read(&log).unwrap();
    write_side_file(&dir, &bytes, 77);
    assert_eq!(dump::report(&dir).problems(), 0, "{}", dump::report(&dir));
    for &(start, _) in &batches(&bytes, 77) {
        for at in start..start + HEADER_LEN {
            let report = flipped(&log, &bytes, at, &log);
            assert_ne!(report.problems(), 0, "byte {at} of the batch at {start}");
        }
    }
    let cut = batches(&bytes, 77).last().unwrap().0;
    fs::write(&log, &bytes[..cut]).unwrap();
    let report = dump::report(&log);
    let lost = |what: &What| matches!(what, What::LogEndsEarly { known, .. } if *known == bytes.len() as u64);
    assert!(report.findings.iter().any(|f| lost(&f.what)), "a log that lost its last batch: {report}");
}

#[test]
fn flipped_bytes_of_an_index_are_found() {
    let (_scratch, dir) = golden::copy("clean", "codec-none-0");
    let index = dir.join("00000000000000000000.index");
    let times = dir.join("00000000000000000000.timeindex");
    for path in [&index, &times] {
        let bytes = fs::read(path).unwrap();
        for at in 0..bytes.len() {
            // A time entry's offset may be any of its batch's: brokers before 4 wrote the record's own.
            if path == &times && at % 12 >= 8 {
                continue;
            }
            let report = flipped(path, &bytes, at, path);
            assert_ne!(report.problems(), 0, "byte {at} of {}", path.display());
        }
    }
}

#[test]
fn flipped_bytes_of_small_files_are_found() {
    let (_scratch, dir) = golden::copy("clean", "transactions-0");
    let snapshot = dir.join("00000000000000000130.snapshot");
    let bytes = fs::read(&snapshot).unwrap();
    for at in 0..bytes.len() {
        assert_eq!(flipped(&snapshot, &bytes, at, &snapshot).problems(), 1, "byte {at}");
    }
    let aborted = dir.join("00000000000000000077.txnindex");
    let bytes = fs::read(&aborted).unwrap();
    for entry in (0..bytes.len()).step_by(34) {
        for at in entry..entry + 26 {
            // The first offset may be any before the marker.
            if !(10..18).contains(&(at - entry)) {
                assert_ne!(flipped(&aborted, &bytes, at, &aborted).problems(), 0, "byte {at}");
            }
        }
    }
}

/// A segment cut at every length: only at the end of a batch is it whole, and then its index knows better.
#[test]
fn a_segment_cut_anywhere_is_torn_or_shorter_than_its_index() {
    let (_scratch, dir) = golden::copy("clean", "transactions-0");
    let log = dir.join("00000000000000000077.log");
    let bytes = fs::read(&log).unwrap();
    let ends: Vec<usize> = batches(&bytes, 77).iter().map(|b| b.1).collect();
    for len in (1..bytes.len()).rev().step_by(7).chain(ends.iter().copied().filter(|&e| e < bytes.len())) {
        fs::write(&log, &bytes[..len]).unwrap();
        let report = dump::report(&dir);
        let tail = report.partitions[0].segments.last().unwrap().tail;
        let start = ends.iter().rfind(|&&end| end <= len).copied().unwrap_or(0);
        let expected = match bytes[start..len].iter().any(|&b| b != 0) {
            true => Tail::Torn,
            _ if start == len => Tail::Exact,
            // The first bytes of a base offset are zeros like any.
            _ => Tail::Zeros,
        };
        assert_eq!(tail, expected, "{len} bytes");
        assert_ne!(report.problems(), 0, "{len} bytes: the time index reaches to the old end");
    }
}

/// Damage in the middle is not taken for the end: what follows is found again and checked.
#[test]
fn batches_behind_damage_are_still_read() {
    let (_scratch, dir) = golden::copy("killed", "preallocated-0");
    let log = dir.join("00000000000000000000.log");
    let bytes = fs::read(&log).unwrap();
    let batches = batches(&bytes, 0);
    let (start, end) = batches[4];
    let mut zeroed = bytes.clone();
    zeroed[start..end].fill(0);
    let mut huge = bytes.clone();
    huge[start + 8] = 0x7f;
    for (damaged, at) in [(zeroed, start as u64), (huge, start as u64 + 8)] {
        fs::write(&log, &damaged).unwrap();
        let report = dump::report(&log);
        let segment = &report.partitions[0].segments[0];
        assert_eq!(report.first_problem().unwrap().position, Some(at));
        assert_eq!((segment.batches, segment.tail), (batches.len() as u64 - 1, Tail::Exact), "{report}");
    }
}

#[test]
fn segments_that_overlap_and_epochs_that_fall_are_found() {
    let (_scratch, dir) = golden::copy("clean", "epochs-0");
    fs::write(dir.join("leader-epoch-checkpoint"), "0\n2\n0 0\n2 9\n").unwrap();
    let report = dump::report(&dir);
    let what = &report.first_problem().unwrap().what;
    assert_eq!(*what, What::EpochCheckpoint { expected: 2, found: 0, offset: 9 });

    let (_scratch, dir) = golden::copy("clean", "codec-none-0");
    fs::rename(dir.join("00000000000000000092.log"), dir.join("00000000000000000091.log")).unwrap();
    let report = dump::report(&dir);
    let found = report.findings.iter().any(|f| f.what == What::SegmentOverlap { expected: 92, found: 91 });
    assert!(found, "{report}");
    assert!(report.findings.iter().any(|f| f.what == What::Orphan), "the old name's indexes: {report}");
}

#[test]
fn checkpoints_are_held_against_the_log() {
    let scratch = tempfile::tempdir().unwrap();
    golden::copy_dir(&golden::log_dir("clean"), scratch.path());
    let checkpoint = scratch.path().join("replication-offset-checkpoint");
    let text = fs::read_to_string(&checkpoint).unwrap();
    fs::write(&checkpoint, text.replace("shapes 0 29", "shapes 0 30")).unwrap();
    let report = dump::report(scratch.path());
    assert_eq!(report.problems(), 1, "{report}");
    let what = &report.first_problem().unwrap().what;
    assert!(matches!(what, What::CheckpointBeyondEnd { found: 30, end: 29, .. }), "{what}");
    fs::write(&checkpoint, "0\n1\nnot a line\n").unwrap();
    assert!(matches!(dump::report(scratch.path()).first_problem().unwrap().what, What::Malformed(_)));
}

/// Reading changes nothing: neither bytes nor times of change.
#[test]
fn inspection_leaves_no_trace() {
    let (scratch, dir) = golden::copy("killed", "busy-0");
    let state = |dir: &Path| -> Vec<_> {
        let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths
            .into_iter()
            .map(|p| (fs::read(&p).unwrap(), fs::metadata(&p).unwrap().modified().unwrap(), p))
            .collect()
    };
    let before = state(&dir);
    dump::report(&dir);
    assert!(before == state(&dir));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[test]
fn json_has_one_object_a_line() {
    let mut out = Vec::new();
    let options = Options { batches: true, json: true };
    let report = rohrpost_bench::inspect::run(&golden::log_dir("torn"), options, &mut out).unwrap();
    let lines: Vec<serde_json::Value> = out
        .split(|&b| b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    let of = |kind: &str| {
        let wanted =
            |line: &&serde_json::Value| line["kind"] == kind && line["file"] != "bootstrap.checkpoint";
        lines.iter().filter(wanted).collect::<Vec<_>>()
    };
    let batches: u64 = report.partitions[0].segments.iter().map(|s| s.batches).sum();
    assert_eq!(of("batch").len() as u64, batches);
    assert_eq!(of("batch")[0]["file"], "busy-0/00000000000000000000.log");
    assert_eq!((of("segment").len(), of("finding").len()), (3, 1));
    assert_eq!(of("finding")[0]["position"], 7575);
    assert_eq!(of("summary")[0]["problems"], 1);
}

/// What cannot be inspected is an error that names the path, not an empty report.
#[test]
fn what_is_not_kafkas_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("notes.txt"), "hello").unwrap();
    for path in [scratch.path().to_owned(), scratch.path().join("notes.txt"), scratch.path().join("missing")]
    {
        let error =
            rohrpost_bench::inspect::run(&path, Options::default(), &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

/// (start, end) of every batch.
fn batches(bytes: &[u8], base: i64) -> Vec<(usize, usize)> {
    let walk = BatchWalk::new(bytes, Position::ZERO, Offset::new(base), Check::Crc);
    let found = walk.map(|(at, header)| {
        let start = at.get() as usize;
        (start, start + header.batch_len().as_usize())
    });
    found.collect()
}

/// Flips the lowest bit of one byte of `path`, whose content is `bytes`, inspects `target`, and puts the byte back.
fn flipped(path: &Path, bytes: &[u8], at: usize, target: &Path) -> Report {
    let mut damaged = bytes.to_vec();
    damaged[at] ^= 1;
    fs::write(path, &damaged).unwrap();
    let report = dump::report(target);
    fs::write(path, bytes).unwrap();
    report
}

fn write_side_file(dir: &Path, bytes: &[u8], base: i64) {
    let base_offset = Offset::new(base);
    let topic_id = parse_partition_metadata(&fs::read(dir.join("partition.metadata")).unwrap()).unwrap();
    let identity = SegmentIdentity { topic_id, partition: 0, base_offset };
    let mut side = SideFileBuilder::new(identity, SIDE_INTERVAL_DEFAULT);
    let mut file = identity.encode().to_vec();
    for (position, header) in BatchWalk::new(bytes, Position::ZERO, base_offset, Check::Crc) {
        file.extend(side.push_batch(&header, position).into_iter().flatten());
    }
    file.extend(side.seal());
    fs::write(dir.join(format!("{base:020}.chain")), file).unwrap();
}
