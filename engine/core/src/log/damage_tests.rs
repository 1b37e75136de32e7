//! Damage in the middle of the log, by choice: served around without a change, or cut off.

use crate::disk::memory::MemoryDisk;
use crate::error::{PartitionError, PartitionFailure};
use crate::format::batch::patch;
use crate::log::test_support::*;
use crate::log::{LogConfig, OnDamage};
use crate::types::{LeaderEpoch, Offset};

const VALUE_LEN: usize = 50;

/// Three segments of four batches; the third batch of the second one has a wrong checksum.
fn damaged_log() -> (MemoryDisk, usize) {
    let disk = killed_with(&batches(0, 4, VALUE_LEN));
    for base in [4, 8] {
        disk.put(segment(base, "log"), &batches(base, base + 4, VALUE_LEN));
    }
    let one = batch(0, 1, VALUE_LEN).len();
    disk.edit(segment(4, "log"), |file| file[2 * one + 70] ^= 1);
    (disk, one)
}

fn open(disk: &MemoryDisk, on_damage: OnDamage) -> Result<Box<Opened>, PartitionError> {
    try_open(&log_dir(disk), &LogConfig { on_damage, ..config() })
}

/// Refused unless asked otherwise; served around, everything else is there and not a byte has changed.
#[test]
fn what_is_whole_is_served_and_nothing_changes() {
    let (disk, one) = damaged_log();
    assert!(matches!(open(&disk, OnDamage::Refuse), Err(PartitionError::Corrupt { .. })));
    drop(log_dir(&disk)); // the lock's file is there from now on
    let before = disk.files();
    let opened = open(&disk, OnDamage::Serve).unwrap();
    let (four, two) = (4 * one as u64, 2 * one as u64);
    assert_eq!(shape(&opened), (vec![(0, four), (4, two), (8, four)], 12));
    let (base_offset, position) = (Offset::new(4), two);
    assert_eq!(opened.failure, Some(PartitionFailure::Damaged { base_offset, position }));
    assert_eq!(opened.segments.iter().map(|s| s.damaged).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(opened.recovery.notes.len(), 1, "{:?}", opened.recovery.notes);
    assert!(opened.segments[2].chain.is_none() && !opened.read_only);
    drop(opened);
    assert_eq!(disk.files(), before);
}

/// Cut, the log ends at the damage for good, and the next opening finds nothing wrong.
#[test]
fn a_cut_by_choice_ends_the_log_at_the_damage() {
    let (disk, one) = damaged_log();
    disk.put("/data/recovery-point-offset-checkpoint", b"0\n1\nt 0 8\n");
    let opened = open(&disk, OnDamage::Cut).unwrap();
    assert_eq!(shape(&opened), (vec![(0, 4 * one as u64), (4, 2 * one as u64)], 6));
    assert!(opened.failure.is_none() && !opened.recovery.notes.is_empty());
    drop(opened);
    assert_eq!(disk.get(segment(8, "log")), None);
    assert_eq!(disk.get("/data/recovery-point-offset-checkpoint").unwrap(), b"0\n1\nt 0 6\n");
    let again = open(&disk, OnDamage::Refuse).unwrap();
    assert_eq!((shape(&again).1, again.recovery.notes.len()), (6, 0));
}

/// After a cut the side file of before must not come back: it would reach beyond the end, and the log would be refused.
#[test]
fn the_side_file_of_a_cut_segment_is_durable() {
    let (disk, _) = damaged_log();
    let dir = log_dir(&disk);
    disk.take_trace();
    drop(try_open(&dir, &LogConfig { on_damage: OnDamage::Cut, ..config() }).unwrap());
    let (trace, side) = (disk.take_trace(), segment(4, "chain"));
    let expected = format!("sync {}.tmp", side.display());
    assert!(trace.contains(&expected), "{trace:?}");
}

/// A batch of an earlier leader epoch than one before it: a number has rotted, or a device has lost a truncation. Nobody can
/// tell which, so nothing is cut, and the operator is told.
#[test]
fn leader_epochs_that_fall_are_told() {
    let of = |base: i64, epoch: i32| {
        let mut bytes = batch(base, 1, VALUE_LEN);
        patch(&mut bytes, Offset::new(base), LeaderEpoch::new(epoch));
        bytes
    };
    let one = of(0, 0).len();
    for (epochs, told) in [([0, 0, 1, 0], true), ([0, 0, 1, 1], false), ([0, 1, 1, -1], false)] {
        let log: Vec<u8> = (0..4).flat_map(|base| of(base, epochs[base as usize])).collect();
        let opened = open(&killed_with(&log), OnDamage::Refuse).unwrap();
        assert_eq!(shape(&opened).1, 4, "{epochs:?}");
        let place = format!("at position {}: a batch of leader epoch 0", 3 * one);
        assert_eq!(opened.recovery.notes.iter().any(|note| note.contains(&place)), told, "{epochs:?}");
    }
}
