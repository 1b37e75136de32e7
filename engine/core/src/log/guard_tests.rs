//! The last block and its copy: what a device has destroyed is restored, and what was cut off does not come back.

use crate::disk::memory::MemoryDisk;
use crate::error::PartitionError;
use crate::format::guard_slot::{GuardSlot, SLOT_LEN};
use crate::log::test_support::*;
use crate::log::{Durability, LogConfig, OnDamage, WriteMode};

const VALUE_LEN: usize = 300;

/// A sector of the device, bytes.
const SECTOR: usize = 512;

fn guarded() -> LogConfig {
    LogConfig { guard_last_block: true, ..LogConfig::default() }
}

fn open(disk: &MemoryDisk, config: &LogConfig) -> Result<Box<Opened>, PartitionError> {
    try_open(&log_dir(disk), config)
}

fn copies(disk: &MemoryDisk) -> Vec<GuardSlot> {
    let bytes = disk.get(file("last-block.guard")).expect("the partition is guarded");
    bytes.chunks(SLOT_LEN).filter_map(GuardSlot::load).collect()
}

/// A log of `count` batches that a killed engine has left, its last block guarded; and where that block begins.
fn killed(count: i64) -> (MemoryDisk, Vec<u8>, usize) {
    let disk = disk();
    drop(open(&disk, &guarded()).expect("a new partition opens"));
    let bytes = batches(0, count, VALUE_LEN);
    disk.edit(segment(0, "log"), |file| file.extend_from_slice(&bytes));
    drop(open(&disk, &guarded()).expect("a killed log opens"));
    let block = bytes.len() / 4096 * 4096;
    assert!(bytes.len() - block > 2 * SECTOR, "a test of something");
    (disk, bytes, block)
}

fn destroy(disk: &MemoryDisk, at: usize) {
    destroy_in(disk, 0, at);
}

fn destroy_in(disk: &MemoryDisk, base_offset: i64, at: usize) {
    disk.edit(segment(base_offset, "log"), |file| {
        let end = file.len().min(at + SECTOR);
        file[at..end].iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 37 + 11) as u8);
    });
}

/// Whether opening refuses the log of twenty batches, or cuts it.
fn loses(disk: &MemoryDisk) -> bool {
    open(disk, &guarded())
        .map_or_else(|error| matches!(error, PartitionError::Corrupt { .. }), |log| shape(&log).1 < 20)
}

/// Whichever sector of the last block the device has destroyed, every batch is there, and the next opening finds nothing
/// wrong. Without a copy the same log is refused or cut.
#[test]
fn a_destroyed_last_block_is_restored() {
    let (start, bytes, block) = killed(20);
    for at in (block..bytes.len()).step_by(SECTOR) {
        let disk = start.fork();
        destroy(&disk, at);
        let unguarded = disk.fork();
        let opened = open(&disk, &guarded()).unwrap();
        assert_eq!(shape(&opened), (vec![(0, bytes.len() as u64)], 20), "sector at {at}");
        assert_eq!(opened.recovery.notes.len(), 1, "{:?}", opened.recovery.notes);
        drop(opened);
        assert_eq!(disk.get(segment(0, "log")).unwrap(), bytes);
        assert!(open(&disk, &guarded()).unwrap().recovery.notes.is_empty());
        unguarded.remove(file("last-block.guard"));
        assert!(loses(&unguarded), "sector at {at}");
    }
}

/// What lies before the last block has no copy: there nothing is made up.
#[test]
fn an_earlier_block_is_not_restored() {
    let (disk, _, block) = killed(20);
    destroy(&disk, block - SECTOR);
    assert!(loses(&disk));
}

/// The process dies again at every single change that the restoring makes; the next one brings the same log.
#[test]
fn restoring_may_be_killed_at_any_point() {
    let (start, bytes, block) = killed(20);
    destroy(&start, block + SECTOR);
    // Behind the block a torn batch, which is to be cut.
    start.edit(segment(0, "log"), |file| file.extend_from_slice(&batch(20, 1, VALUE_LEN)[..100]));
    for changes in 1.. {
        let disk = start.fork();
        disk.kill_after(changes);
        let dir = crate::log::LogDir::open(disk.clone(), std::path::Path::new(ROOT), Default::default());
        let done = dir.is_ok_and(|dir| try_open(&dir, &guarded()).is_ok());
        assert!(done || disk.is_killed());
        let disk = disk.fork();
        assert_eq!(shape(&open(&disk, &guarded()).unwrap()).1, 20, "killed after {changes}");
        assert_eq!(disk.get(segment(0, "log")).unwrap(), bytes, "killed after {changes}");
        if done {
            return;
        }
    }
}

/// The copy of the block that the log ends in is durable before the segment is cut there: cutting writes that block.
#[test]
fn the_copy_is_durable_before_the_cut() {
    let (disk, _, _) = killed(20);
    disk.edit(segment(0, "log"), |file| {
        file.extend_from_slice(&[&batch(20, 1, VALUE_LEN)[..], &[7; 100]].concat());
    });
    disk.take_trace();
    drop(open(&disk, &guarded()).unwrap());
    let trace = disk.take_trace();
    let at = |what: &str| {
        let found = trace.iter().position(|call| call.starts_with(what));
        found.unwrap_or_else(|| panic!("{what} in {trace:?}"))
    };
    let copied = at("write /data/t-0/last-block.guard");
    assert!(trace[copied + 1].starts_with("sync /data/t-0/last-block.guard"), "{trace:?}");
    assert!(copied + 1 < at("truncate /data/t-0/0000"), "{trace:?}");
}

/// A log that ends before its copy, by choice or because another program has cut it: the copy brings nothing back.
#[test]
fn what_was_cut_off_does_not_come_back() {
    let (disk, bytes, _) = killed(20);
    let end = bytes.len() - batch(19, 1, VALUE_LEN).len();
    disk.edit(segment(0, "log"), |file| file.truncate(end));
    let opened = open(&disk, &guarded()).unwrap();
    assert_eq!(shape(&opened), (vec![(0, end as u64)], 19), "the file ends where its batches end");
    drop(opened);
    assert!(copies(&disk).iter().all(|copy| copy.end().get() <= end as u64), "{:?}", copies(&disk));
    disk.edit(segment(0, "log"), |file| file.extend_from_slice(&[9; 50]));
    assert_eq!(shape(&open(&disk, &guarded()).unwrap()).1, 19, "a torn tail is cut off");
}

/// Another program's batches in the place of the copied ones are left as they are.
#[test]
fn other_batches_are_not_overwritten() {
    let (disk, _, _) = killed(20);
    let other = batches(0, 20, VALUE_LEN - 1);
    disk.edit(segment(0, "log"), |file| *file = other.clone());
    assert_eq!(shape(&open(&disk, &guarded()).unwrap()).1, 20);
    assert_eq!(disk.get(segment(0, "log")).unwrap(), other);
    assert_eq!(copies(&disk).last().map(|copy| copy.end().get()), Some(other.len() as u64));
}

/// Without the option the copies serve once more, and go.
#[test]
fn copies_go_with_the_option() {
    let (disk, bytes, block) = killed(20);
    destroy(&disk, block);
    let plain = LogConfig::default();
    assert_eq!(shape(&open(&disk, &plain).unwrap()).1, 20);
    assert_eq!(disk.get(segment(0, "log")).unwrap(), bytes);
    assert_eq!(disk.get(file("last-block.guard")), None);
}

/// A partition that is served around damage is not changed, so its last block is not restored either; without other
/// damage it is.
#[test]
fn what_is_served_as_it_is_is_not_restored() {
    let serve = LogConfig { on_damage: OnDamage::Serve, ..guarded() };
    let (disk, bytes, block) = killed(20);
    destroy(&disk, block);
    assert_eq!(shape(&open(&disk, &serve).unwrap()).1, 20);
    assert_eq!(disk.get(segment(0, "log")).unwrap(), bytes);

    let damaged = crate::log::test_support::disk();
    drop(open(&damaged, &guarded()).unwrap());
    damaged.put(segment(0, "log"), &batches(0, 4, VALUE_LEN));
    damaged.put(segment(4, "log"), &batches(4, 24, VALUE_LEN));
    drop(open(&damaged, &guarded()).unwrap());
    assert_eq!(copies(&damaged).len(), 1);
    destroy_in(&damaged, 4, block);
    damaged.put("/data/recovery-point-offset-checkpoint", b"0\n1\nt 0 2\n");
    damaged.edit(segment(0, "log"), |file| file[70] ^= 1);
    drop(log_dir(&damaged));
    let before = damaged.files();
    let opened = open(&damaged, &serve).unwrap();
    assert!(opened.failure.is_some() && opened.guard.is_none());
    drop(opened);
    assert_eq!(damaged.files(), before);
}

/// The option needs what it is for: writes past the page cache that the device confirms.
#[test]
fn a_guard_needs_flushed_direct_writes() {
    assert!(guarded().validate().is_ok());
    let refused = [
        LogConfig { durability: Durability::Written, ..guarded() },
        LogConfig { write_mode: WriteMode::Buffered, ..guarded() },
    ];
    for config in refused {
        let error = config.validate().unwrap_err();
        assert!(
            matches!(error, PartitionError::InvalidConfig { setting: "guard_last_block", .. }),
            "{error}"
        );
    }
}
