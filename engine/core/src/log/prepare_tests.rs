//! The next segment made ahead of need: what it looks like, what becomes of it, what a crash leaves.

use super::*;
use crate::disk::Lock;
use crate::disk::memory::MemoryDisk;
use crate::log::step::{Step, StepOutput};
use crate::log::test_support::*;

fn path() -> PathBuf {
    segment(0, "log").with_file_name(PREPARED_SEGMENT)
}

fn prepare(dir: &LogDir<MemoryDisk>) -> PreparedSegment<<MemoryDisk as Disk>::File> {
    let step = Step::<StepsOnly>::PrepareSegment {
        name: name(),
        config: config(),
        preallocate: ByteCount::new(8192),
        zero: ByteCount::new(4096),
    };
    match step.run(dir) {
        StepOutput::SegmentPrepared(result) => result.unwrap(),
        _ => unreachable!("a step answers in kind"),
    }
}

fn create(
    dir: &LogDir<MemoryDisk>,
    base: i64,
    prepared: Option<(<MemoryDisk as Disk>::File, Position)>,
) -> (<MemoryDisk as Disk>::File, Position) {
    let step = Step::<StepsOnly>::CreateSegment {
        name: name(),
        config: config(),
        base_offset: Offset::new(base),
        preallocate: ByteCount::new(4096),
        prepared,
    };
    match step.run(dir) {
        StepOutput::SegmentCreated(result) => result.unwrap(),
        _ => unreachable!("a step answers in kind"),
    }
}

#[test]
fn a_prepared_file_becomes_the_segment_by_a_durable_rename() {
    let disk = disk();
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    let prepared = prepare(&dir);
    assert_eq!((prepared.preallocated.get(), prepared.zeroed.get()), (8192, 4096));
    assert_eq!(disk.get(path()).unwrap(), [0; 8192]);
    disk.put(segment(10, "index"), b"old");
    disk.take_trace();
    let (_file, end) = create(&dir, 10, Some((prepared.file, prepared.preallocated)));
    assert_eq!(disk.take_trace().last().unwrap(), "sync directory /data/t-0");
    assert_eq!((end.get(), disk.get(segment(10, "log")).unwrap()), (8192, vec![0; 8192]));
    assert!(disk.get(path()).is_none() && disk.get(segment(10, "index")).is_none());
    let other = disk.open(&segment(10, "log"), OpenMode::Read, Caching::Buffered).unwrap();
    assert!(disk.lock(&other, Lock::InputOutput, 0).is_err(), "the lock came along");
}

/// A file that is in the way is judged as without preparation; the prepared one goes.
#[test]
fn a_file_of_the_segments_name_is_not_replaced() {
    let disk = disk();
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    disk.put(segment(10, "log"), &[0; 5000]);
    let prepared = prepare(&dir);
    let (_file, end) = create(&dir, 10, Some((prepared.file, prepared.preallocated)));
    assert_eq!((end.get(), disk.get(segment(10, "log")).unwrap()), (4096, vec![0; 4096]));
    assert!(disk.get(path()).is_none());
}

#[test]
fn opening_removes_what_a_crash_has_left() {
    let disk = disk();
    disk.put(path(), &[0; 8192]);
    let dir = log_dir(&disk);
    let opened = try_open(&dir, &config()).unwrap();
    assert!(disk.get(path()).is_none());
    assert_eq!(opened.segments.len(), 1);
}

#[test]
fn a_clean_close_leaves_no_prepared_file() {
    let disk = disk();
    let dir = log_dir(&disk);
    let _opened = try_open(&dir, &config()).unwrap();
    let _prepared = prepare(&dir);
    let step = Step::<StepsOnly>::Close {
        name: name(),
        config: config(),
        active: None,
        prepared: true,
        log_end_offset: Offset::ZERO,
        log_start_offset: Offset::ZERO,
    };
    assert!(matches!(step.run(&dir), StepOutput::Closed(Ok(()))));
    assert!(disk.get(path()).is_none());
}
