//! Opening after a stop of any kind: what is kept, what is cut, what is refused.

use super::*;
use crate::disk::memory::MemoryDisk;
use crate::disk::{Caching, Lock, OpenMode};
use crate::format::batch::HEADER_LEN;
use crate::limits::COMMIT_LEN_MAX;
use crate::log::test_support::*;
use crate::log::{Durability, WriteMode};
use crate::types::LeaderEpoch;

const COMMIT: usize = COMMIT_LEN_MAX.as_usize();

fn epochs(disk: &MemoryDisk) -> String {
    String::from_utf8(disk.get(file("leader-epoch-checkpoint")).unwrap()).unwrap()
}

/// Opens, expects a refusal of this file at this position, and that no byte was changed.
fn assert_corrupt(disk: &MemoryDisk, config: &LogConfig, base_offset: i64, position: usize) {
    let dir = log_dir(disk);
    let before = disk.files();
    match try_open(&dir, config).map(|opened| shape(&opened)) {
        Err(PartitionError::Corrupt { path, position: found, reason }) => {
            assert_eq!((path, found), (segment(base_offset, "log"), position as u64), "{reason}");
        }
        other => panic!("expected corruption at {position}, found {other:?}"),
    }
    assert_eq!(disk.files(), before, "a refused partition was changed");
}

#[test]
fn a_new_partition_has_all_it_needs_and_reopens_clean() {
    let disk = disk();
    let dir = log_dir(&disk);
    let opened = try_open(&dir, &config()).unwrap();
    assert_eq!(shape(&opened), (vec![(0, 0)], 0));
    assert_eq!((opened.leader_epoch, opened.log_start_offset), (LeaderEpoch::ZERO, Offset::ZERO));
    assert!(opened.segments[0].file.is_some());
    assert_eq!(epochs(&disk), "0\n1\n0 0\n");
    let id = opened.topic_id;
    assert_eq!(
        disk.get(file("partition.metadata")).unwrap(),
        checkpoint::write_partition_metadata(id).as_bytes()
    );
    close(&dir, opened);
    assert!(dir.close_clean().unwrap());
    drop(dir);

    let opened = reopen(&disk).unwrap();
    assert!(opened.recovery.clean);
    assert_eq!((opened.recovery.batches, opened.leader_epoch, opened.topic_id), (0, LeaderEpoch::ZERO, id));
}

/// A second partition of a topic gets the topic's id, whatever the seed of this process.
#[test]
fn partitions_of_a_topic_share_its_id() {
    let disk = disk();
    let id = reopen(&disk).unwrap().topic_id;
    let options = crate::log::LogDirOptions { topic_id_seed: [9; 16], ..Default::default() };
    let dir = LogDir::open(disk, Path::new(ROOT), options).unwrap();
    let open = |topic: &str, number| {
        open_partition::<StepsOnly>(&dir, &partition(topic, number), &config()).unwrap().topic_id
    };
    assert_eq!(open("t", 1), id);
    assert_ne!(open("other", 0), id);
}

/// What a kill leaves most often: whole batches, then reserved space.
#[test]
fn zeros_behind_the_last_batch_are_the_end() {
    let bytes = batches(0, 300, 100);
    for zeros in [0, 1, 60, 61, 4096, 3 << 20] {
        let disk = killed_with(&[bytes.clone(), vec![0; zeros]].concat());
        let opened = reopen(&disk).unwrap();
        assert_eq!(shape(&opened), (vec![(0, bytes.len() as u64)], 300));
        assert_eq!(disk.get(segment(0, "log")).unwrap(), bytes);
        let report = &opened.recovery;
        assert_eq!((report.clean, report.batches, report.truncated.get()), (false, 300, 0));
        assert_eq!(opened.leader_epoch, LeaderEpoch::new(1), "raised at an unclean start");
        assert_eq!(epochs(&disk), "0\n2\n0 0\n1 300\n");
        let active = &opened.segments[0];
        assert_eq!(active.max_timestamp.get(), 1299);
        assert_eq!(active.first_timestamp.get(), 1000);
        assert_eq!(disk.get(segment(0, "index")).unwrap(), active.index.offsets().as_bytes());
        assert_eq!(disk.get(segment(0, "timeindex")).unwrap(), active.index.times().as_bytes());
        assert!(active.index.offsets().len() > 5);
    }
}

/// A cut at every byte of the last batch, and garbage after every such cut.
#[test]
fn a_torn_batch_is_cut_off_wherever_it_was_torn() {
    let (whole, last) = (batches(0, 3, 40), batch(3, 2, 30));
    // Not up to the last byte: it counts the record's headers, and zeros behind the cut would restore it.
    for keep in 1..last.len() - 1 {
        for garbage in [&b""[..], &[0; 100][..], &[0xa5; 100][..]] {
            let disk = killed_with(&[&whole, &last[..keep], garbage].concat());
            let opened = reopen(&disk).unwrap();
            assert_eq!(shape(&opened), (vec![(0, whole.len() as u64)], 3), "{keep}");
            assert_eq!(disk.get(segment(0, "log")).unwrap(), whole);
            let tail = [&last[..keep], garbage].concat();
            let torn = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            assert_eq!(opened.recovery.truncated.get(), torn, "zeros excluded");
        }
    }
    let disk = killed_with(&[whole, last].concat());
    assert_eq!(shape(&reopen(&disk).unwrap()).1, 5);
}

/// One flipped bit: the first batch behind the commit that may have been in flight decides.
#[test]
fn damage_is_a_torn_tail_only_as_far_as_a_commit_reaches() {
    let head = batch(0, 1, 100);
    let bad = {
        let mut bytes = batch(1, 1, 100);
        bytes[70] ^= 1;
        bytes
    };
    let next = batch(2, 1, 100);
    for (gap, corrupt) in [(bad.len(), false), (COMMIT - 1, false), (COMMIT, true), (COMMIT + 5000, true)] {
        for fill in [0, 0xee] {
            let mut bytes = [head.clone(), bad.clone()].concat();
            bytes.resize(head.len() + gap, fill);
            bytes.extend_from_slice(&next);
            let disk = killed_with(&bytes);
            if corrupt {
                assert_corrupt(&disk, &config(), 0, head.len());
            } else {
                assert_eq!(shape(&reopen(&disk).unwrap()), (vec![(0, head.len() as u64)], 1), "{gap}");
            }
        }
    }
}

/// What looks like a batch behind the damage, but has offsets from before it or a wrong checksum, proves nothing.
#[test]
fn only_a_valid_batch_with_later_offsets_proves_corruption() {
    let head = batches(0, 2, 50);
    let mut broken = batch(3, 1, 50);
    let end = broken.len() - 1;
    broken[end] ^= 1;
    for behind in [batch(0, 1, 50), batch(1, 1, 50), broken] {
        let bytes = [&head[..], &[7; COMMIT + 10], &behind].concat();
        assert_eq!(shape(&reopen(&killed_with(&bytes)).unwrap()).1, 2);
    }
}

/// What the side file or the recovery point vouches for was on the device: damage there is no torn tail.
#[test]
fn damage_below_what_was_known_to_be_durable_is_refused() {
    let (first, second) = (batches(0, 3, 50), batches(3, 6, 50));
    let vouched = || {
        let disk = killed_with(&first);
        drop(reopen(&disk).unwrap()); // recovery writes the side file up to the end
        disk.edit(segment(0, "log"), |file| file.extend_from_slice(&second));
        disk
    };
    let one = first.len() / 3;
    for batch in 0..6 {
        let disk = vouched();
        disk.edit(segment(0, "log"), |file| file[batch * one + 70] ^= 1);
        if batch < 3 {
            assert_corrupt(&disk, &config(), 0, batch * one);
            disk.edit(segment(0, "log"), |file| file.truncate(batch * one + 70));
            assert_corrupt(&disk, &config(), 0, batch * one);
        } else {
            assert_eq!(shape(&reopen(&disk).unwrap()).1, batch as i64);
        }
    }
    for batch in 0..6 {
        let disk = vouched();
        disk.remove(segment(0, "chain"));
        disk.put("/data/recovery-point-offset-checkpoint", b"0\n1\nt 0 3\n");
        disk.edit(segment(0, "log"), |file| file[batch * one + 70] ^= 1);
        if batch < 3 {
            assert_corrupt(&disk, &config(), 0, batch * one);
        } else {
            assert_eq!(shape(&reopen(&disk).unwrap()).1, batch as i64);
        }
    }
}

/// At the level `written` a power cut may take what was not sealed: the log is cut there, not refused.
#[test]
fn the_level_written_gives_up_what_a_power_cut_took() {
    let written = LogConfig { durability: Durability::Written, ..config() };
    let head = batches(0, 2, 50);
    let bytes = [&head[..], &[0; COMMIT + 10], &batch(9, 1, 50)].concat();
    let disk = killed_with(&bytes);
    assert_corrupt(&disk, &config(), 0, head.len());
    disk.put(segment(10, "log"), &batches(10, 12, 50));
    let opened = try_open(&log_dir(&disk), &written).unwrap();
    assert_eq!(shape(&opened), (vec![(0, head.len() as u64)], 2));
    assert_eq!(opened.recovery.notes.len(), 2, "{:?}", opened.recovery.notes);
    assert_eq!(disk.get(segment(10, "log")), None);
}

/// A segment that was full but not yet sealed when the process died: reserved space in the middle of the log.
#[test]
fn an_unsealed_segment_is_trimmed_where_the_next_one_begins() {
    let (first, second) = (batches(0, 4, 50), batches(4, 6, 50));
    for behind in [&[0; 9000][..], &[0x55; 9000][..], &batch(4, 1, 50)[..]] {
        let disk = killed_with(&[&first, behind].concat());
        disk.put(segment(4, "log"), &second);
        let opened = reopen(&disk).unwrap();
        assert_eq!(shape(&opened), (vec![(0, first.len() as u64), (4, second.len() as u64)], 6));
        assert_eq!(disk.get(segment(0, "log")).unwrap(), first);
        assert!(opened.segments[0].file.is_none() && opened.segments[1].file.is_some());
    }
}

#[test]
fn damage_in_the_middle_of_the_log_is_refused() {
    let (first, second) = (batches(0, 4, 50), batches(4, 6, 50));
    let one = first.len() / 4;
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let disk = killed_with(&first);
        disk.put(segment(4, "log"), &second);
        disk.edit(segment(0, "log"), change);
        disk
    };
    assert_corrupt(&damaged(&|file| file[3 * one + 70] ^= 1), &config(), 0, 3 * one);
    assert_corrupt(&damaged(&|file| file.truncate(3 * one + 70)), &config(), 0, 3 * one);
    assert_corrupt(&damaged(&|file| file[2 * one..].fill(0)), &config(), 0, 2 * one);
}

/// The next segment's file may have been made before the last commit of this one was complete.
#[test]
fn an_empty_segment_behind_a_torn_one_goes() {
    let first = batches(0, 4, 50);
    for tail in [&[][..], &[0; 5000][..]] {
        let disk = killed_with(&first[..first.len() - 1]);
        disk.put(segment(4, "log"), tail);
        let opened = reopen(&disk).unwrap();
        assert_eq!(shape(&opened), (vec![(0, first.len() as u64 / 4 * 3)], 3));
        assert_eq!(disk.get(segment(4, "log")), None);
        assert!(opened.segments[0].file.is_some());
    }
    // But behind a whole segment an empty one stays: its name is the log's end, which compaction does not move.
    let disk = killed_with(&first);
    disk.put(segment(9, "log"), &[]);
    assert_eq!(shape(&reopen(&disk).unwrap()), (vec![(0, first.len() as u64), (9, 0)], 9));
}

#[test]
fn offset_gaps_are_legal() {
    let bytes = [batch(5, 2, 10), batch(70, 1, 10), batch(1000, 3, 10)].concat();
    let disk = killed_with(&bytes);
    disk.put(segment(2000, "log"), &batch(2500, 1, 10));
    let (segments, end) = shape(&reopen(&disk).unwrap());
    assert_eq!((segments[0], end), ((0, bytes.len() as u64), 2501));
}

/// Batches larger than a scan's block are read in pieces.
#[test]
fn large_batches_are_checked_to_their_last_byte() {
    let bytes = [batch(0, 1, 10), batch(1, 1, 3 << 20), batch(2, 1, 10)].concat();
    let disk = killed_with(&bytes);
    assert_eq!(shape(&reopen(&disk).unwrap()).1, 3);
    let disk = killed_with(&bytes);
    disk.edit(segment(0, "log"), |file| file[3 << 20] ^= 1);
    assert_eq!(shape(&reopen(&disk).unwrap()).1, 1, "less than a commit lies behind it");
}

/// Unlinked, but the directory was not synced: the files are back after a power cut.
#[test]
fn segments_below_the_log_start_offset_stay_deleted() {
    let disk = killed_with(&batches(0, 4, 50));
    for base in [4, 8] {
        disk.put(segment(base, "log"), &batches(base, base + 4, 50));
    }
    for (start, first, left) in [(3, 0, 3), (4, 4, 2), (8, 8, 1), (11, 8, 1)] {
        let disk = disk.fork();
        disk.put("/data/log-start-offset-checkpoint", format!("0\n1\nt 0 {start}\n").as_bytes());
        let opened = reopen(&disk).unwrap();
        assert_eq!((opened.segments.len(), opened.segments[0].base_offset.get()), (left, first));
        assert_eq!((opened.log_start_offset.get(), shape(&opened).1), (start, 12));
        assert_eq!(disk.get(segment(0, "log")).is_some(), start < 4);
        assert_eq!(disk.get(segment(0, "chain")).is_some(), start < 4);
    }
    disk.put("/data/log-start-offset-checkpoint", b"0\n1\nt 0 20\n");
    let opened = reopen(&disk).unwrap();
    assert_eq!(shape(&opened), (vec![(20, 0)], 20), "everything was deleted; offsets are not assigned twice");
}

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
    for name in names.iter().chain(&swaps).chain(&["leader-epoch-checkpoint.tmp"]) {
        disk.put(file(name), b"x");
    }
    disk.put(segment(77, "index"), b"orphan");
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
    assert_eq!(left.len(), expected.len() + 2, "{left:?}");
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
