//! Opening after a stop of any kind: what is kept, what is cut, what is refused.

use std::path::Path;

use super::*;
use crate::disk::Errno;
use crate::disk::memory::MemoryDisk;
use crate::limits::COMMIT_LEN_MAX;
use crate::log::test_support::*;
use crate::log::{Durability, LogDirOptions};
use crate::types::{LeaderEpoch, Offset};

const COMMIT: usize = COMMIT_LEN_MAX.as_usize();

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
    let options = LogDirOptions { topic_id_seed: [9; 16], ..Default::default() };
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
    // Behind a gap it goes as well, unless the gap was there before: then it is the end of the log, which compaction
    // does not move.
    for (recovery_point, segments, end) in [(3, 1, 4), (4, 1, 4), (5, 2, 9), (9, 2, 9)] {
        let disk = killed_with(&first);
        disk.put(segment(9, "log"), &[]);
        disk.put(
            "/data/recovery-point-offset-checkpoint",
            format!("0\n1\nt 0 {recovery_point}\n").as_bytes(),
        );
        let opened = reopen(&disk).unwrap();
        assert_eq!((opened.segments.len(), shape(&opened).1), (segments, end), "{recovery_point}");
        assert!(opened.segments.last().unwrap().file.is_some());
    }
}

#[test]
fn offset_gaps_are_legal() {
    let bytes = [batch(5, 2, 10), batch(70, 1, 10), batch(1000, 3, 10)].concat();
    let disk = killed_with(&bytes);
    disk.put(segment(2000, "log"), &batch(2500, 1, 10));
    let (segments, end) = shape(&reopen(&disk).unwrap());
    assert_eq!((segments[0], end), ((0, bytes.len() as u64), 2501));
}

/// A killed process leaves files whose names no sync has covered: recovery must not build on them.
#[test]
fn names_are_durable_before_anything_is_built_on_them() {
    let disk = killed_with(&batches(0, 2, 50));
    disk.take_trace();
    let dir = log_dir(&disk);
    assert_eq!(disk.take_trace().last().unwrap(), "sync directory /data");
    drop(try_open(&dir, &config()).unwrap());
    assert_eq!(disk.take_trace()[0], "sync directory /data/t-0");
    drop(dir);
    let empty = MemoryDisk::new();
    empty.create_dir(Path::new(ROOT)).unwrap();
    empty.take_trace();
    drop(log_dir(&empty));
    assert_eq!(empty.take_trace()[0], "sync directory /");
}

/// What is served after recovery is written once more and synced, and what was cut off cannot come back behind new
/// batches. Only what the side file vouches for was synced for certain before.
#[test]
fn what_was_read_and_what_was_cut_is_rewritten_and_synced() {
    let bytes = batches(0, 3, 50);
    let log = segment(0, "log");
    for (torn, expected) in [(0, vec!["write", "sync"]), (1, vec!["truncate", "sync", "write", "sync"])] {
        let disk = killed_with(&bytes[..bytes.len() - torn]);
        let opening = |disk: &MemoryDisk| {
            let dir = log_dir(disk);
            disk.take_trace();
            drop(try_open(&dir, &config()).unwrap());
            let trace = disk.take_trace();
            let suffix = format!(" {}", log.display());
            trace
                .iter()
                .filter_map(|entry| entry.strip_suffix(&suffix).map(str::to_owned))
                .collect::<Vec<_>>()
        };
        assert_eq!(opening(&disk), expected);
        assert_eq!(opening(&disk), ["sync"], "the side file now reaches to the end");
    }
    let disk = killed_with(&batches(0, 300, 100));
    disk.fail("write", &log.display().to_string(), Errno::IO);
    assert!(
        matches!(reopen(&disk), Err(PartitionError::Disk(_))),
        "a log that cannot be rewritten is not served"
    );
}

/// After a failed write-back the page cache shows what the device never got, and calls it clean: recovery reads around it.
#[test]
fn recovery_believes_the_device_and_not_the_page_cache() {
    let bytes = batches(0, 3, 50);
    let kept = bytes.len() / 3 * 2;
    let disk = killed_with(&[&bytes[..kept], &vec![0; bytes.len() - kept]].concat());
    disk.show_cached(segment(0, "log"), &bytes);
    assert_eq!(shape(&reopen(&disk).unwrap()), (vec![(0, kept as u64)], 2));
    assert_eq!(disk.get(segment(0, "log")).unwrap(), bytes[..kept]);
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
