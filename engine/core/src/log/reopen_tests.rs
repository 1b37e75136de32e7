//! Opening what a clean stop, another program, a compaction or an interrupted recovery has left; and only looking.

use std::path::Path;

use crate::disk::memory::MemoryDisk;
use crate::disk::{Caching, Disk, Lock, OpenMode};
use crate::error::PartitionError;
use crate::format::batch::{HEADER_LEN, patch};
use crate::format::crc::crc32c;
use crate::log::step::{Step, StepOutput};
use crate::log::test_support::*;
use crate::log::{LogConfig, LogDir, WriteMode};
use crate::types::{LeaderEpoch, Offset};

/// A clean stop is trusted: nothing is scanned, whatever state the reserved parts of the indexes are in.
#[test]
fn a_clean_stop_is_believed_after_a_look_at_the_ends() {
    let disk = clean_log();
    for suffix in ["index", "timeindex"] {
        let entry = if suffix == "index" { 8 } else { 12 };
        disk.edit(segment(0, suffix), |file| file.resize(file.len() + 100 * entry, 0));
    }
    let before = disk.get(segment(0, "log"));
    let opened = reopen(&disk).unwrap();
    let report = &opened.recovery;
    assert_eq!((report.clean, report.scanned.get(), report.indexes_rebuilt), (true, 0, 0));
    assert_eq!(shape(&opened).1, 300);
    assert_eq!(opened.segments[0].index.latest().timestamp.get(), 1299);
    assert_eq!(disk.get(segment(0, "log")), before);
}

/// 300 batches, two entries' worth of index at least, closed cleanly.
fn clean_log() -> MemoryDisk {
    let disk = killed_with(&batches(0, 300, 100));
    let dir = log_dir(&disk);
    let opened = try_open(&dir, &config()).unwrap();
    close(&dir, opened);
    assert!(dir.close_clean().unwrap());
    drop(dir);
    disk
}

#[test]
fn bad_indexes_are_rebuilt_even_after_a_clean_stop() {
    type Damage = fn(&MemoryDisk);
    let damages: [Damage; 8] = [
        |disk| disk.remove(segment(0, "index")),
        |disk| disk.remove(segment(0, "timeindex")),
        |disk| disk.edit(segment(0, "index"), |file| file.truncate(file.len() - 1)),
        |disk| disk.edit(segment(0, "index"), |file| file[0] = 0x7f),
        |disk| disk.edit(segment(0, "index"), |file| *file.last_mut().unwrap() ^= 1),
        |disk| disk.edit(segment(0, "timeindex"), |file| file.reverse()),
        |disk| disk.edit(segment(0, "timeindex"), |file| *file.last_mut().unwrap() = 0xff),
        |disk| disk.edit(segment(0, "log"), |file| file.extend_from_slice(&[0; 100])),
    ];
    let whole = clean_log();
    for (i, damage) in damages.into_iter().enumerate() {
        let disk = whole.fork();
        damage(&disk);
        let dir = log_dir(&disk);
        let opened = try_open(&dir, &config()).unwrap();
        assert_eq!((opened.recovery.indexes_rebuilt, shape(&opened).1), (1, 300), "{i}");
        close(&dir, opened);
        for suffix in ["log", "index", "timeindex", "chain"] {
            assert!(disk.get(segment(0, suffix)) == whole.get(segment(0, suffix)), "{i}: {suffix}");
        }
    }
}

/// Another program has appended, or cut and appended: the log is what it left, the side file follows.
#[test]
fn a_stale_side_file_is_rebuilt() {
    let disk = clean_log();
    let one = batch(0, 1, 100).len();
    disk.edit(segment(0, "log"), |file| file.extend_from_slice(&batch(300, 1, 10)));
    let dir = log_dir(&disk);
    let opened = try_open(&dir, &config()).unwrap();
    assert_eq!((shape(&opened).1, opened.recovery.clean), (301, true));
    close(&dir, opened);
    dir.close_clean().unwrap();
    drop(dir);
    let grown = disk.get(segment(0, "chain")).unwrap();

    disk.remove("/data/.kafka_cleanshutdown");
    disk.put("/data/recovery-point-offset-checkpoint", b"0\n0\n");
    disk.edit(segment(0, "log"), |file| {
        file.truncate(290 * one);
        file.extend_from_slice(&batches(290, 305, 100)[..]);
        file[290 * one + 14] ^= 1; // the leader epoch of a batch: outside Kafka's checksum
    });
    let opened = reopen(&disk).unwrap();
    assert_eq!(shape(&opened).1, 305);
    assert_eq!(opened.recovery.notes.len(), 1, "{:?}", opened.recovery.notes);
    assert_ne!(disk.get(segment(0, "chain")).unwrap(), grown);
}

/// A side file of an earlier or a later release says nothing to this one: the log is whole without it, and gets one that
/// this release reads. After a clean stop and after a kill.
#[test]
fn side_files_of_other_versions_are_rebuilt() {
    for clean in [true, false] {
        let disk = clean_log();
        let ours = disk.get(segment(0, "chain")).unwrap();
        for version in [0_u16, 2, u16::MAX] {
            disk.edit(segment(0, "chain"), |file| {
                file[8..10].copy_from_slice(&version.to_le_bytes());
                let crc = crc32c(&file[..60]);
                file[60..64].copy_from_slice(&crc.to_le_bytes());
            });
            if !clean {
                disk.remove("/data/.kafka_cleanshutdown");
                disk.put("/data/recovery-point-offset-checkpoint", b"0\n0\n");
            }
            let dir = log_dir(&disk);
            let opened = try_open(&dir, &config()).unwrap();
            assert_eq!((shape(&opened).1, opened.recovery.clean), (300, clean), "version {version}");
            assert!(disk.get(segment(0, "chain")).unwrap() == ours, "version {version}, clean: {clean}");
            close(&dir, opened);
            assert!(dir.close_clean().unwrap());
        }
    }
}

/// The file of leader epochs is gone or garbage: the batches tell them, those of segments that are believed as well.
#[test]
fn leader_epochs_are_rebuilt_from_the_batches() {
    let epoch_of = |base: i64| LeaderEpoch::new([0, 0, 3, 3, 3, 7][base as usize / 2]);
    let log = |from: i64, to: i64| {
        (from..to).flat_map(|base| {
            let mut bytes = batch(base, 1, 50);
            patch(&mut bytes, Offset::new(base), epoch_of(base));
            bytes
        })
    };
    let whole = killed_with(&log(0, 6).collect::<Vec<_>>());
    whole.put(segment(6, "log"), &log(6, 12).collect::<Vec<_>>());
    let dir = log_dir(&whole);
    let opened = try_open(&dir, &config()).unwrap();
    close(&dir, opened);
    assert!(dir.close_clean().unwrap());
    drop(dir);
    let damages: [fn(&MemoryDisk); 3] = [
        |disk| disk.remove(file("leader-epoch-checkpoint")),
        |disk| disk.put(file("leader-epoch-checkpoint"), b"0\n2\n0 0\n"),
        |disk| disk.put(file("leader-epoch-checkpoint"), b""),
    ];
    for damage in damages {
        for clean in [true, false] {
            let disk = whole.fork();
            damage(&disk);
            if !clean {
                disk.remove("/data/.kafka_cleanshutdown");
                disk.put("/data/recovery-point-offset-checkpoint", b"0\n1\nt 0 12\n");
            }
            let opened = reopen(&disk).unwrap();
            assert_eq!(opened.recovery.clean, clean);
            let expected = if clean { "0\n3\n0 0\n3 4\n7 10\n" } else { "0\n4\n0 0\n3 4\n7 10\n8 12\n" };
            assert_eq!(epochs(&disk), expected);
            assert_eq!(opened.leader_epoch, LeaderEpoch::new(if clean { 7 } else { 8 }));
        }
    }
}

/// Sealed segments below the recovery point are not read after a kill, but they are there.
#[test]
fn recovery_starts_at_the_recovery_point() {
    let disk = killed_with(&batches(0, 4, 50));
    disk.put(segment(4, "log"), &batches(4, 8, 50));
    disk.put(segment(8, "log"), &batches(8, 12, 50));
    drop(reopen(&disk).unwrap()); // builds indexes
    for (recovery_point, scanned) in [(0, 12), (3, 12), (4, 8), (7, 8), (8, 4), (12, 4)] {
        let disk = disk.fork();
        disk.put(
            "/data/recovery-point-offset-checkpoint",
            format!("0\n1\nt 0 {recovery_point}\n").as_bytes(),
        );
        let opened = reopen(&disk).unwrap();
        assert_eq!((opened.recovery.batches, shape(&opened).1), (scanned, 12), "{recovery_point}");
        assert_eq!(opened.recovery.indexes_rebuilt, 0);
    }
}

#[test]
fn leftovers_of_deletion_and_compaction_follow_kafkas_rules() {
    let disk = killed_with(&batches(0, 4, 50));
    let names = ["00000000000000000000.log.deleted", "00000000000000000002.log.cleaned"];
    let swaps = ["00000000000000000002.log.swap", "00000000000000000003.index.swap"];
    for name in
        names.iter().chain(&swaps).chain(&["leader-epoch-checkpoint.tmp", "00000000000000000000.index.tmp"])
    {
        disk.put(file(name), b"x");
    }
    disk.put(segment(77, "index"), b"orphan");
    disk.put(file("notes.tmp"), b"not ours");
    let early = disk.fork();
    early.put(file("00000000000000000001.log.swap"), b"x");
    let before = early.fork();
    let refused = reopen(&early).map(|_| ());
    assert!(
        matches!(&refused, Err(PartitionError::Unusable { path, .. }) if path.ends_with("00000000000000000001.log.swap")),
        "{refused:?}"
    );
    let lock = Path::new("/data/.lock");
    assert!(early.files().keys().filter(|p| *p != lock).eq(before.files().keys().filter(|p| *p != lock)));

    assert_eq!(shape(&reopen(&disk).unwrap()).1, 4);
    let left: Vec<_> = disk.files().into_keys().filter(|path| path.starts_with("/data/t-0")).collect();
    let expected = ["log", "index", "timeindex", "chain"].map(|suffix| segment(0, suffix));
    assert_eq!(left.len(), expected.len() + 3, "{left:?}");
    assert!(expected.iter().all(|path| left.contains(path)), "{left:?}");
}

/// After the log was cut, producer states and aborted transactions behind its end would mislead a Kafka broker.
#[test]
fn a_cut_takes_snapshots_and_transactions_behind_it_along() {
    let bytes = batches(0, 4, 50);
    let disk = killed_with(&bytes[..bytes.len() - 1]);
    disk.put(segment(3, "snapshot"), b"");
    disk.put(segment(4, "snapshot"), b"");
    let entry = |last: i64| [&[0; 18][..], &last.to_be_bytes(), &[0; 8]].concat();
    disk.put(segment(0, "txnindex"), &[entry(2), entry(3)].concat());
    assert_eq!(shape(&reopen(&disk).unwrap()).1, 3);
    assert!(disk.get(segment(3, "snapshot")).is_some());
    assert!(disk.get(segment(4, "snapshot")).is_none());
    assert_eq!(disk.get(segment(0, "txnindex")).unwrap(), entry(2));
}

#[test]
fn versions_and_identities_it_does_not_know_are_refused() {
    let disk = killed_with(&batches(0, 4, 50));
    for (name, content) in [
        ("leader-epoch-checkpoint", &b"1\n1\n0 0\n"[..]),
        ("partition.metadata", b"version: 7\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ"),
        ("partition.metadata", b""),
    ] {
        let disk = disk.fork();
        disk.put(file(name), content);
        let refused = reopen(&disk).map(|_| ());
        assert!(
            matches!(&refused, Err(PartitionError::Unusable { path, .. }) if *path == file(name)),
            "{refused:?}"
        );
        assert_eq!(disk.get(file(name)).unwrap(), content);
    }
    disk.put(file("leader-epoch-checkpoint"), b"garbage");
    disk.edit(segment(0, "log"), |file| file[15] = 6); // leader epoch of the first batch
    let refused = reopen(&disk).map(|_| ());
    assert!(matches!(refused, Err(PartitionError::Unusable { .. })), "{refused:?}");
    disk.put(file("leader-epoch-checkpoint"), b"0\n1\n5");
    let opened = reopen(&disk).unwrap();
    assert_eq!(epochs(&disk), "0\n2\n6 0\n7 4\n", "rebuilt from the batches, then raised");
    assert_eq!(opened.leader_epoch, LeaderEpoch::new(7));
}

#[test]
fn locks_and_direct_io_are_errors_by_name() {
    let disk = killed_with(&batches(0, 2, 50));
    let holder = disk.open(&segment(0, "log"), OpenMode::Read, Caching::Buffered).unwrap();
    disk.lock(&holder, Lock::InputOutput, 0).unwrap();
    let refused = reopen(&disk).map(|_| ());
    assert_eq!(refused, Err(PartitionError::Locked { path: segment(0, "log") }));
    drop(holder);
    disk.refuse_direct();
    let direct = LogConfig { write_mode: WriteMode::Direct, ..config() };
    let refused = try_open(&log_dir(&disk), &direct).map(|_| ());
    assert!(matches!(refused, Err(PartitionError::DirectUnsupported { .. })), "{refused:?}");
    assert_eq!(shape(&reopen(&disk).unwrap()).1, 2);
}

/// The process dies again at every single change that recovery makes. Whatever is left, the next recovery brings the
/// same log.
#[test]
fn recovery_may_be_killed_at_any_point() {
    let first = batches(0, 4, 50);
    let torn = killed_with(&[&first[..], &batch(4, 1, 50)[..HEADER_LEN]].concat());
    let chopped = {
        let disk = killed_with(&[&first[..], &[0; 5000]].concat());
        disk.put(segment(4, "log"), &batches(4, 8, 50));
        disk.put(segment(8, "log"), &batches(8, 11, 50)[..300]);
        disk.put(segment(10, "log"), &[]);
        disk.put("/data/log-start-offset-checkpoint", b"0\n1\nt 0 5\n");
        disk
    };
    let fresh = disk();
    for start in [torn, chopped, fresh] {
        let expected = {
            let disk = start.fork();
            let log = reopen(&disk).unwrap();
            (shape(&log), log.log_start_offset, disk.get(segment(log.segments[0].base_offset.get(), "log")))
        };
        for changes in 1.. {
            let disk = start.fork();
            disk.kill_after(changes);
            let done = LogDir::open(disk.clone(), Path::new(ROOT), Default::default())
                .is_ok_and(|dir| try_open(&dir, &config()).is_ok());
            assert!(done || disk.is_killed());
            let disk = disk.fork();
            let log = reopen(&disk).unwrap();
            let content = disk.get(segment(log.segments[0].base_offset.get(), "log"));
            assert_eq!((shape(&log), log.log_start_offset, content), expected, "killed after {changes}");
            if done {
                assert!(changes > 5);
                break;
            }
        }
    }
}

/// A directory served read-only keeps every byte and every name, whatever a crash has left in it.
#[test]
fn a_directory_that_is_only_read_is_not_touched() {
    read_without_touching(true, &[0; 70]);
    read_without_touching(false, &batch(8, 1, 50)[..70]);
}

fn read_without_touching(clean: bool, tail: &[u8]) {
    let first = batches(0, 4, 50);
    let disk = killed_with(&[&first[..], &[0; 5000]].concat());
    disk.put(segment(4, "log"), &[&batches(4, 8, 50)[..], tail].concat());
    if clean {
        disk.put("/data/.kafka_cleanshutdown", b"");
    }
    disk.put("/data/gone-0.0123456789abcdef0123456789abcdef-delete/f", b"");
    disk.put(file("00000000000000000000.log.deleted"), b"");
    disk.take_trace();
    let before = disk.files();
    let _writer = log_dir_lock(&disk);
    let dir = LogDir::open_read_only(disk.clone(), Path::new(ROOT)).unwrap();
    let opened = try_open(&dir, &config()).unwrap();
    assert_eq!(shape(&opened), (vec![(0, first.len() as u64), (4, first.len() as u64)], 8));
    assert!(opened.read_only && opened.segments.iter().all(|segment| segment.chain.is_none()));
    let missing = (Step::<StepsOnly>::Open { name: partition("none", 0), config: config() }).run(&dir);
    assert!(matches!(missing, StepOutput::Opened(Err(PartitionError::Disk(_)))));
    let name = name();
    let (log_start_offset, base_offsets) = (Offset::new(4), vec![Offset::ZERO]);
    let raised = (Step::<StepsOnly>::RaiseLogStart { name: name.clone(), log_start_offset }).run(&dir);
    assert!(matches!(raised, StepOutput::LogStartRaised(Err(_))));
    let deleted = (Step::<StepsOnly>::DeleteSegments { name: name.clone(), base_offsets }).run(&dir);
    assert!(matches!(deleted, StepOutput::SegmentsDeleted(Err(_))));
    let deleted = (Step::<StepsOnly>::DeletePartition { name }).run(&dir);
    assert!(matches!(deleted, StepOutput::PartitionDeleted(Err(_))));
    drop((opened, dir));
    assert_eq!(disk.take_trace(), [""; 0]);
    assert_eq!(disk.files(), before);
}

/// The lock as another process holds it: it does not hinder a reader.
fn log_dir_lock(disk: &MemoryDisk) -> impl Sized {
    let lock = disk.open(Path::new("/data/.lock"), OpenMode::ReadWrite, Caching::Buffered).unwrap();
    disk.lock(&lock, Lock::Record, 0).unwrap();
    lock
}
