//! The steps after opening: their order, and what they do when the device says no.

use super::*;
use crate::disk::memory::MemoryDisk;
use crate::disk::{Caching, Lock};
use crate::log::step::{Step, StepOutput};
use crate::log::test_support::*;

fn create(
    log_dir: &LogDir<MemoryDisk>,
    base: i64,
    preallocate: u64,
) -> Result<(<MemoryDisk as Disk>::File, Position), PartitionError> {
    let step = Step::<StepsOnly>::CreateSegment {
        name: name(),
        config: config(),
        base_offset: Offset::new(base),
        preallocate: ByteCount::new(preallocate),
        prepared: None,
    };
    match step.run(log_dir) {
        StepOutput::SegmentCreated(result) => result,
        _ => unreachable!("a step answers in kind"),
    }
}

fn seal_active(dir: &LogDir<MemoryDisk>, opened: &mut Opened) -> Result<(), DiskError> {
    let companions = companions_of(opened);
    let active = opened.segments.last_mut().unwrap();
    let (end, next_offset) = (active.end, active.next_offset);
    let step = Step::<StepsOnly>::Seal { file: active.file.take().unwrap(), end, next_offset, companions };
    match step.run(dir) {
        StepOutput::Sealed(result) => result,
        _ => unreachable!("a step answers in kind"),
    }
}

#[test]
fn a_new_segment_is_locked_reserved_and_named_durably() {
    let disk = disk();
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    disk.take_trace();
    let (file, end) = create(&dir, 10, 8192).unwrap();
    assert_eq!((end.get(), disk.len(&file).unwrap().get()), (8192, 8192));
    assert_eq!(disk.take_trace().last().unwrap(), "sync directory /data/t-0");
    let other = disk.open(&segment(10, "log"), OpenMode::Read, Caching::Buffered).unwrap();
    assert!(disk.lock(&other, Lock::InputOutput, 0).is_err());
}

/// A crash can leave the file that a roll had made: nothing in it is lost if there is nothing in it.
#[test]
fn a_leftover_file_is_taken_over_only_if_it_holds_no_batch() {
    let disk = disk();
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    for leftover in [&[][..], &[0; 5000][..], &batch(10, 1, 50)[..60], &batch(3, 1, 50)[..]] {
        disk.put(segment(10, "log"), leftover);
        disk.put(segment(10, "index"), b"old");
        drop(create(&dir, 10, 4096).unwrap());
        assert_eq!(disk.get(segment(10, "log")).unwrap(), [0; 4096]);
        assert_eq!(disk.get(segment(10, "index")), None);
    }
    let kept = batch(10, 1, 50);
    disk.put(segment(10, "log"), &kept);
    let refused = create(&dir, 10, 4096).map(|_| ());
    assert!(matches!(refused, Err(PartitionError::Corrupt { position: 0, .. })), "{refused:?}");
    assert_eq!(disk.get(segment(10, "log")).unwrap(), kept);
}

#[test]
fn a_full_device_refuses_a_segment_and_leaves_nothing() {
    let disk = disk();
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        disk.fail("preallocate", "", errno);
        let refused = create(&dir, 10, 4096).map(|_| ());
        assert!(matches!(&refused, Err(PartitionError::Disk(error)) if error.errno == errno), "{refused:?}");
        assert_eq!(disk.get(segment(10, "log")), None);
        disk.heal();
        assert!(create(&dir, 10, 4096).is_ok());
        disk.remove(segment(10, "log"));
    }
}

#[test]
fn extending_reserves_and_says_how_far() {
    let disk = disk();
    let dir = log_dir(&disk);
    let opened = try_open(&dir, &config()).unwrap();
    let file = opened.segments[0].file.clone().unwrap();
    let (from, to) = (Position::ZERO, Position::new(12_288));
    let step = Step::<StepsOnly>::Extend { file: file.clone(), from, to, zero: true };
    assert!(matches!(step.run(&dir), StepOutput::Extended(Ok(end)) if end == to));
    assert_eq!(disk.len(&file).unwrap().get(), 12_288);
}

/// Data, then companions, then the recovery point: each is durable before the next is written.
#[test]
fn a_seal_makes_everything_durable_in_order() {
    let disk = killed_with(&[batches(0, 100, 100), vec![0; 5000]].concat());
    let dir = log_dir(&disk);
    let mut opened = try_open(&dir, &config()).unwrap();
    disk.edit(segment(0, "log"), |file| file.extend_from_slice(&[0; 4096]));
    disk.edit(segment(0, "timeindex"), |file| file.extend_from_slice(&[0; 1200]));
    disk.take_trace();
    seal_active(&dir, &mut opened).unwrap();
    let trace = disk.take_trace();
    let at = |step: &str| trace.iter().position(|entry| entry.starts_with(step)).expect(step);
    let log = format!("sync {}", segment(0, "log").display());
    let companions =
        ["index", "timeindex", "chain"].map(|kind| at(&format!("sync {}", segment(0, kind).display())));
    assert!(at(&log) < companions[0], "{trace:?}");
    assert!(
        companions.iter().all(|c| *c < at("exchange /data/recovery-point-offset-checkpoint.tmp")),
        "{trace:?}"
    );
    assert_eq!(disk.get("/data/recovery-point-offset-checkpoint").unwrap(), b"0\n1\nt 0 100\n");
    assert_eq!(disk.get(segment(0, "log")).unwrap(), batches(0, 100, 100));
    let times = disk.get(segment(0, "timeindex")).unwrap();
    assert_eq!(times, opened.segments[0].index.times().as_bytes());
    assert_eq!(times[times.len() - 12..][..8], 1099_i64.to_be_bytes());
}

#[test]
fn a_failed_sync_fails_the_seal_and_a_full_device_only_costs_companions() {
    let disk = killed_with(&batches(0, 100, 100));
    for (action, path, errno, fails) in [
        ("sync", ".log", Errno::IO, true),
        ("truncate", ".log", Errno::IO, true),
        ("sync", ".timeindex", Errno::IO, true),
        ("write", ".timeindex", Errno::NOSPC, false),
    ] {
        let disk = disk.fork();
        let dir = log_dir(&disk);
        let mut opened = try_open(&dir, &config()).unwrap();
        disk.fail(action, path, errno);
        assert_eq!(seal_active(&dir, &mut opened).is_err(), fails, "{action} {path}");
        let checkpoint = disk.get("/data/recovery-point-offset-checkpoint").unwrap();
        assert_eq!(checkpoint, b"0\n0\n", "{action} {path}");
        drop((opened, dir));
        let opened = reopen(&disk.fork()).unwrap();
        assert_eq!(shape(&opened).1, 100);
    }
}

/// A device that fails one sync has lost what that covered: the next one succeeds and means nothing.
#[test]
fn a_failed_sync_is_not_tried_again() {
    let disk = killed_with(&batches(0, 100, 100));
    for path in [".log", ".timeindex"] {
        let disk = disk.fork();
        let dir = log_dir(&disk);
        let mut opened = try_open(&dir, &config()).unwrap();
        disk.fail_once("sync", path, Errno::IO);
        assert!(seal_active(&dir, &mut opened).is_err(), "{path}");
        assert_eq!(disk.get("/data/recovery-point-offset-checkpoint").unwrap(), b"0\n0\n", "{path}");
    }
}

/// Once the offset index of a sealed segment is on disk and its time index is not, believing them would lose its latest
/// timestamp, and retention would delete it too early.
#[test]
fn a_seal_behind_one_that_left_its_companions_vouches_for_neither() {
    let disk = killed_with(&batches(0, 100, 100));
    let dir = log_dir(&disk);
    let mut opened = try_open(&dir, &config()).unwrap();
    disk.fail("write", ".timeindex", Errno::NOSPC);
    seal_active(&dir, &mut opened).unwrap();
    disk.heal();
    let (file, _) = create(&dir, 100, 4096).unwrap();
    let companions =
        Companions { name: Some(name()), base_offset: Offset::new(100), ..Companions::default() };
    seal(&dir, &file, Position::ZERO, Offset::new(100), &companions).unwrap();
    assert_eq!(disk.get("/data/recovery-point-offset-checkpoint"), Some(b"0\n0\n".to_vec()));
    super::close(&dir, &name(), &config(), None, (Offset::ZERO, Offset::new(100))).unwrap();
    assert_eq!(dir.close_clean(), Ok(false));
    drop((opened, dir));
    let opened = reopen(&disk.fork()).unwrap();
    assert_eq!(opened.segments[0].max_timestamp.get(), 1099);
}

#[test]
fn companions_are_appended_where_they_end() {
    let disk = disk();
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    let write = |position: u64, bytes: &[u8]| {
        let new = Companions {
            name: Some(name()),
            index_position: Position::new(position),
            index: bytes.to_vec(),
            ..Companions::default()
        };
        assert!(matches!(
            Step::<StepsOnly>::WriteCompanions(new).run(&dir),
            StepOutput::CompanionsWritten(Ok(()))
        ));
    };
    write(0, b"abcdefgh");
    write(8, b"ijkl");
    write(12, b"");
    assert_eq!(disk.get(segment(0, "index")).unwrap(), b"abcdefghijkl");
    assert_eq!(disk.get(segment(0, "timeindex")), None);
}

/// Files must not vanish before the offset that says so is durable: a power cut would bring some of them back.
#[test]
fn the_log_start_offset_is_durable_before_a_segment_is_unlinked() {
    let disk = killed_with(&batches(0, 4, 50));
    disk.put(segment(4, "log"), &batches(4, 8, 50));
    disk.put(segment(4, "txnindex"), b"");
    disk.put(segment(8, "log"), &batches(8, 9, 50));
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    let raise = |start: i64| {
        let log_start_offset = Offset::new(start);
        match (Step::<StepsOnly>::RaiseLogStart { name: name(), log_start_offset }).run(&dir) {
            StepOutput::LogStartRaised(result) => result,
            _ => unreachable!("a step answers in kind"),
        }
    };
    let delete = |bases: &[i64]| {
        let base_offsets = bases.iter().copied().map(Offset::new).collect();
        match (Step::<StepsOnly>::DeleteSegments { name: name(), base_offsets }).run(&dir) {
            StepOutput::SegmentsDeleted(result) => result,
            _ => unreachable!("a step answers in kind"),
        }
    };
    disk.fail("sync", "log-start", Errno::IO);
    assert!(raise(9).is_err());
    assert_eq!(dir.log_start_offset(&name()), None, "an opening is not told of what may not last");
    disk.heal();
    disk.take_trace();
    raise(9).unwrap();
    delete(&[0, 4]).unwrap();
    let trace = disk.take_trace();
    let renamed =
        trace.iter().position(|entry| entry == "exchange /data/log-start-offset-checkpoint.tmp").unwrap();
    assert_eq!(trace[renamed + 1], "sync directory /data");
    let unlinked = trace.iter().position(|entry| entry.starts_with("unlink")).unwrap();
    assert!(renamed + 1 < unlinked, "{trace:?}");
    assert_eq!(trace.last().unwrap(), "sync directory /data/t-0");
    let left = |base: i64| {
        disk.files().keys().filter(|p| p.to_string_lossy().contains(&format!("{base:020}"))).count()
    };
    assert_eq!((left(0), left(4), left(8)), (0, 0, 4));
    assert_eq!(disk.get("/data/log-start-offset-checkpoint").unwrap(), b"0\n1\nt 0 9\n");
    raise(8).unwrap();
    assert_eq!(disk.get("/data/log-start-offset-checkpoint").unwrap(), b"0\n1\nt 0 9\n", "never back");
}

/// A partition that is made again under the same name starts from nothing, also when the deletion was cut short.
#[test]
fn a_deleted_partition_leaves_nothing_behind() {
    let start = killed_with(&batches(0, 4, 50));
    start.put("/data/log-start-offset-checkpoint", b"0\n2\nother 0 7\nt 0 2\n");
    for changes in 1.. {
        let disk = start.fork();
        let dir = log_dir(&disk);
        let opened = try_open(&dir, &config()).unwrap();
        drop(opened);
        disk.kill_after(changes);
        let step = Step::<StepsOnly>::DeletePartition { name: name() };
        let done = matches!(step.run(&dir), StepOutput::PartitionDeleted(Ok(())));
        assert!(done || disk.is_killed());
        let disk = disk.fork();
        let dir = log_dir(&disk);
        let opened = try_open(&dir, &config()).unwrap();
        let there = shape(&opened).1 == 4;
        assert!(there || shape(&opened) == (vec![(0, 0)], 0), "killed after {changes}: {:?}", shape(&opened));
        assert!(!(there && done));
        assert_eq!(opened.log_start_offset.get(), if there { 2 } else { 0 });
        if !there {
            assert_eq!(disk.get("/data/log-start-offset-checkpoint").unwrap(), b"0\n1\nother 0 7\n");
        }
        if done {
            assert!(changes > 5 && disk.list(dir.root()).unwrap().iter().filter(|e| e.is_dir).count() == 1);
            break;
        }
    }
}
