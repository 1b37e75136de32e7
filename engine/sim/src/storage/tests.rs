//! The storage model by itself: every promise, and what is promised nowhere, from both sides.

use std::path::{Path, PathBuf};

use rohrpost_engine_core::disk::{Caching, Disk, Errno, Lock, OpenMode};
use rohrpost_engine_core::types::{ByteCount, Position};

use super::landing::ORPHAN_OPS_MAX;
use super::*;
use crate::disk::{SimDisk, SimFile};

fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(Storage::new(Prng::new(seed), 1 << 30, Trace::new(false)));
    disk.create_dir(&root()).expect("an empty disk");
    disk.sync_dir(Path::new("/")).expect("no faults");
    disk
}

fn root() -> PathBuf {
    PathBuf::from("/data")
}

fn path(name: &str) -> PathBuf {
    root().join(name)
}

fn create(disk: &SimDisk, name: &str, caching: Caching) -> SimFile {
    disk.open(&path(name), OpenMode::CreateNew, caching).expect("a new name")
}

fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    disk.storage().peek(&path(name), 0, 1 << 20)
}

fn cut(disk: &SimDisk, mut survival: Survival) {
    disk.storage().restart_with(&mut survival);
}

/// A file of `len` zeros whose name and bytes are durable.
fn durable(disk: &SimDisk, name: &str, len: u64, caching: Caching) -> SimFile {
    let file = create(disk, name, caching);
    disk.set_len(&file, ByteCount::new(len)).expect("no faults");
    disk.sync(&file).expect("no faults");
    disk.sync_dir(&root()).expect("no faults");
    file
}

#[test]
fn a_completed_durable_write_survives_every_cut() {
    for seed in 0..64 {
        let disk = disk(seed);
        let file = durable(&disk, "log", 16_384, Caching::Direct);
        let write = disk.storage().begin_write(file.description(), 4096, vec![7; 8192], true);
        assert_eq!(disk.storage().end_write(write), Ok(8192));
        assert!(disk.storage().is_durable(&path("log"), 4096, 8192));
        disk.storage().end_now(End::PowerCut);
        disk.storage().restart();
        let bytes = content(&disk, "log").expect("its name is durable");
        assert_eq!((bytes.len(), &bytes[4096..12_288]), (16_384, &[7; 8192][..]), "seed {seed}");
    }
}

#[test]
fn a_durable_write_into_unsynced_preallocation_makes_its_length_durable_too() {
    let disk = disk(1);
    let file = create(&disk, "log", Caching::Direct);
    disk.preallocate(&file, Position::ZERO, Position::new(65_536), false).expect("there is room");
    disk.sync_dir(&root()).expect("no faults");
    let write = disk.storage().begin_write(file.description(), 0, vec![7; 4096], true);
    assert_eq!(disk.storage().end_write(write), Ok(4096));
    cut(&disk, Survival::nothing());
    assert_eq!(content(&disk, "log").expect("its name is durable"), [7; 4096]);
}

#[test]
fn a_write_in_flight_or_not_durable_leaves_any_subset_of_its_sectors() {
    for durable_flag in [true, false] {
        let mut seen_torn = false;
        for seed in 0..64 {
            let disk = disk(seed);
            let file = durable(&disk, "log", 4096, Caching::Direct);
            let write = disk.storage().begin_write(file.description(), 0, vec![7; 4096], durable_flag);
            if !durable_flag {
                assert_eq!(disk.storage().end_write(write), Ok(4096));
                assert!(!disk.storage().is_durable(&path("log"), 0, 1));
            }
            disk.storage().end_now(End::PowerCut);
            assert!(disk.storage().was_at_stake());
            disk.storage().restart();
            let bytes = content(&disk, "log").expect("its name is durable");
            let landed = bytes.chunks(SECTOR_LEN).filter(|sector| sector.iter().all(|b| *b == 7)).count();
            let kept = bytes.chunks(SECTOR_LEN).filter(|sector| sector.iter().all(|b| *b == 0)).count();
            assert_eq!(landed + kept, 8, "a sector is torn in itself, seed {seed}");
            seen_torn |= landed > 0 && kept > 0;
        }
        assert!(seen_torn, "no seed tore the write");
    }
}

#[test]
fn buffered_bytes_are_volatile_until_synced_and_durable_after() {
    let disk = disk(2);
    let file = create(&disk, "log", Caching::Buffered);
    disk.sync_dir(&root()).expect("no faults");
    disk.write_at(&file, Position::ZERO, &[7; 1000]).expect("no faults");
    disk.sync(&file).expect("no faults");
    disk.write_at(&file, Position::new(500), &[8; 1000]).expect("no faults");
    assert_eq!(content(&disk, "log").expect("it exists").len(), 1500);
    cut(&disk, Survival::nothing());
    assert_eq!(content(&disk, "log").expect("its name is durable"), [7; 1000]);
}

#[test]
fn preallocated_bytes_that_were_never_written_read_as_zeros() {
    let disk = disk(3);
    let file = create(&disk, "log", Caching::Direct);
    disk.preallocate(&file, Position::ZERO, Position::new(8192), false).expect("there is room");
    disk.sync_dir(&root()).expect("no faults");
    cut(&disk, Survival::everything());
    assert_eq!(content(&disk, "log").expect("its name is durable"), [0; 8192]);
}

#[test]
fn an_unsynced_truncation_is_undone_and_a_synced_one_is_not() {
    let disk = disk(4);
    let file = durable(&disk, "log", 0, Caching::Buffered);
    disk.write_at(&file, Position::ZERO, &[7; 4096]).expect("no faults");
    disk.sync(&file).expect("no faults");
    disk.set_len(&file, ByteCount::new(100)).expect("no faults");
    assert_eq!(content(&disk, "log").expect("it exists").len(), 100);
    cut(&disk, Survival::nothing());
    assert_eq!(content(&disk, "log").expect("it exists"), [7; 4096]);

    let file = disk.open(&path("log"), OpenMode::ReadWrite, Caching::Buffered).expect("it exists");
    disk.set_len(&file, ByteCount::new(100)).expect("no faults");
    disk.sync(&file).expect("no faults");
    cut(&disk, Survival::nothing());
    assert_eq!(content(&disk, "log").expect("it exists"), [7; 100]);
}

#[test]
fn what_a_synced_truncation_cut_off_reads_as_zeros_when_the_file_grows_again() {
    let disk = disk(4);
    let file = durable(&disk, "log", 0, Caching::Buffered);
    disk.write_at(&file, Position::ZERO, &[7; 4096]).expect("no faults");
    disk.sync(&file).expect("no faults");
    disk.set_len(&file, ByteCount::new(100)).expect("no faults");
    disk.sync(&file).expect("no faults");
    disk.preallocate(&file, Position::ZERO, Position::new(4096), false).expect("there is room");
    cut(&disk, Survival::everything());
    let bytes = content(&disk, "log").expect("it exists");
    assert_eq!((&bytes[..100], &bytes[100..]), (&[7; 100][..], &[0; 3996][..]));
}

#[test]
fn entries_are_durable_only_once_their_directory_is_synced() {
    let disk = disk(5);
    let file = create(&disk, "log", Caching::Buffered);
    disk.sync(&file).expect("no faults");
    cut(&disk, Survival::nothing());
    assert_eq!(content(&disk, "log"), None, "a synced file without a synced entry is not there");

    durable(&disk, "a", 1, Caching::Buffered);
    durable(&disk, "b", 2, Caching::Buffered);
    disk.rename(&path("a"), &path("b")).expect("it exists");
    disk.unlink(&path("b")).expect("it exists");
    assert!(disk.list(&root()).expect("it exists").is_empty());
    cut(&disk, Survival::nothing());
    assert_eq!(content(&disk, "a").expect("the rename is undone").len(), 1);
    assert_eq!(content(&disk, "b").expect("the removal is undone").len(), 2);
    disk.rename(&path("a"), &path("b")).expect("it exists");
    disk.sync_dir(&root()).expect("no faults");
    cut(&disk, Survival::nothing());
    assert_eq!((content(&disk, "a"), content(&disk, "b").map(|b| b.len())), (None, Some(1)));
}

/// Real file systems do so, too: the entry that a synced rename has removed does not come back with a later sync.
#[test]
fn a_synced_rename_takes_along_the_creation_before_it() {
    let disk = disk(1);
    disk.create_dir(&path("sub")).expect("no faults");
    disk.sync_dir(&root()).expect("no faults");
    drop(create(&disk, "a", Caching::Buffered));
    disk.rename(&path("a"), &path("sub/b")).expect("it exists");
    disk.sync_dir(&path("sub")).expect("no faults");
    disk.sync_dir(&root()).expect("no faults");
    cut(&disk, Survival::nothing());
    assert_eq!(content(&disk, "a"), None);
    assert!(content(&disk, "sub/b").is_some());
}

#[test]
fn of_a_rename_both_halves_survive_or_none() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..64 {
        let disk = disk(seed);
        durable(&disk, "a", 1, Caching::Buffered);
        disk.rename(&path("a"), &path("b")).expect("it exists");
        disk.storage().end_now(End::PowerCut);
        disk.storage().restart();
        match (content(&disk, "a"), content(&disk, "b")) {
            (Some(_), None) => before += 1,
            (None, Some(_)) => after += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(before > 0 && after > 0, "{before} undone, {after} done");
}

/// A cut leaves both files in the old places or both in the new ones.
#[test]
fn of_an_exchange_both_halves_survive_or_none() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..64 {
        let disk = disk(seed);
        durable(&disk, "a", 1, Caching::Buffered);
        durable(&disk, "b", 2, Caching::Buffered);
        disk.exchange(&path("a"), &path("b")).expect("both exist");
        disk.storage().end_now(End::PowerCut);
        disk.storage().restart();
        match (content(&disk, "a").map(|a| a.len()), content(&disk, "b").map(|b| b.len())) {
            (Some(1), Some(2)) => before += 1,
            (Some(2), Some(1)) => after += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(before > 0 && after > 0, "{before} undone, {after} done");
    let disk = disk(0);
    durable(&disk, "a", 1, Caching::Buffered);
    assert_eq!(disk.exchange(&path("a"), &path("b")).unwrap_err().errno, Errno::NOENT);
}

#[test]
fn a_failed_sync_leaves_the_outcome_unknown_and_a_second_one_hides_it() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..64 {
        let disk = disk(seed);
        let file = durable(&disk, "log", 512, Caching::Buffered);
        disk.write_at(&file, Position::ZERO, &[7; 512]).expect("no faults");
        disk.storage().faults.sync_eio = 65_536;
        let errno = disk.sync(&file).expect_err("as told").errno;
        assert!([Errno::IO, Errno::NOSPC].contains(&errno), "{errno}");
        disk.storage().faults = Faults::NONE;
        disk.sync(&file).expect("the pages look clean");
        assert_eq!(content(&disk, "log").expect("it exists"), [7; 512], "the cache shows the new bytes");
        let direct = disk.open(&path("log"), OpenMode::Read, Caching::Direct).expect("it exists");
        let mut medium = [0; 512];
        assert_eq!(disk.read_at(&direct, Position::ZERO, &mut medium), Ok(512));
        cut(&disk, Survival::everything());
        let bytes = content(&disk, "log").expect("it exists");
        assert_eq!(bytes, medium, "a direct read has seen what the medium holds");
        if bytes == [7; 512] { kept += 1 } else { lost += 1 }
    }
    assert!(kept > 0 && lost > 0, "{kept} kept, {lost} lost");
}

#[test]
fn after_a_kill_the_page_cache_lives_and_direct_writes_may_land_late_until_the_lock_is_taken() {
    let mut late = 0;
    for seed in 0..64 {
        let disk = disk(seed);
        let buffered = durable(&disk, "buffered", 0, Caching::Buffered);
        disk.write_at(&buffered, Position::ZERO, b"still here").expect("no faults");
        let direct = durable(&disk, "direct", 4096, Caching::Direct);
        let _write = disk.storage().begin_write(direct.description(), 0, vec![7; 4096], true);
        disk.storage().end_now(End::Kill);
        disk.storage().restart();
        assert_eq!(content(&disk, "buffered").expect("it exists"), b"still here");
        let before = content(&disk, "direct").expect("it exists");
        let file = disk.open(&path("direct"), OpenMode::ReadWrite, Caching::Direct).expect("it exists");
        disk.lock(&file, Lock::InputOutput, 0).expect("its owner is dead");
        let locked = content(&disk, "direct").expect("it exists");
        late += u32::from(before != locked);
        for _ in 0..2 * ORPHAN_OPS_MAX {
            disk.len(&file).expect("no faults");
        }
        assert_eq!(content(&disk, "direct").expect("it exists"), locked, "nothing lands after the lock");
    }
    assert!(late > 0, "no write landed late");
}

#[test]
fn a_full_disk_refuses_new_blocks_and_takes_them_again_when_space_returns() {
    let disk = disk(6);
    disk.storage().set_capacity(16_384);
    let file = create(&disk, "log", Caching::Direct);
    let reserve = |to| disk.preallocate(&file, Position::ZERO, Position::new(to), false);
    reserve(16_384).expect("exactly full");
    assert_eq!(reserve(16_385).expect_err("one block too many").errno, Errno::NOSPC);
    let error = disk.open(&path("other"), OpenMode::CreateNew, Caching::Buffered).expect_err("full");
    assert_eq!(error.errno, Errno::NOSPC);
    disk.set_len(&file, ByteCount::new(4096)).expect("shrinking always works");
    create(&disk, "other", Caching::Buffered);
    assert_eq!(disk.storage().used(), 4096);
}

#[test]
fn an_end_can_be_planned_at_any_operation_and_nothing_happens_after_it() {
    for op in 1..8 {
        let disk = disk(7);
        disk.storage().end_in(op, End::PowerCut);
        let mut failed = false;
        for name in ["a", "b", "c", "d"] {
            let file = disk.open(&path(name), OpenMode::CreateNew, Caching::Buffered);
            let synced = disk.sync_dir(&root());
            assert!(!failed || (file.is_err() && synced.is_err()), "something worked in the dark");
            failed |= file.is_err() || synced.is_err();
        }
        assert_eq!(disk.storage().ended(), Some(End::PowerCut));
        cut(&disk, Survival::nothing());
        assert_eq!(disk.list(&root()).expect("power is back").len() as u64, (op - 1) / 2);
    }
}

#[test]
fn a_lock_excludes_others_until_its_description_is_closed() {
    let disk = disk(8);
    let first = create(&disk, "log", Caching::Buffered);
    let second = disk.open(&path("log"), OpenMode::ReadWrite, Caching::Buffered).expect("it exists");
    for lock in [Lock::InputOutput, Lock::Record] {
        disk.lock(&first, lock, 0).expect("it is free");
        disk.lock(&first, lock, 0).expect("it is ours");
        assert_eq!(disk.lock(&second, lock, 0).expect_err("it is taken").errno, Errno::AGAIN);
    }
    let clone = first.clone();
    drop(first);
    assert!(disk.lock(&second, Lock::Record, 0).is_err(), "a clone keeps the description open");
    drop(clone);
    disk.lock(&second, Lock::Record, 0).expect("it is free");
}

#[test]
#[should_panic(expected = "written twice at a time")]
fn two_writes_of_one_sector_in_flight_are_a_bug() {
    let disk = disk(9);
    let file = durable(&disk, "log", 8192, Caching::Direct);
    let _first = disk.storage().begin_write(file.description(), 0, vec![1; 8192], true);
    let _second = disk.storage().begin_write(file.description(), 4096, vec![2; 4096], true);
}

#[test]
#[should_panic(expected = "direct write at 100")]
fn a_misaligned_direct_write_is_a_bug() {
    let disk = disk(10);
    let file = durable(&disk, "log", 8192, Caching::Direct);
    let _write = disk.storage().begin_write(file.description(), 100, vec![1; 4096], true);
}

#[test]
#[should_panic(expected = "a file of an earlier life")]
fn a_file_of_an_earlier_life_is_a_bug() {
    let disk = disk(11);
    let file = durable(&disk, "log", 8192, Caching::Direct);
    cut(&disk, Survival::nothing());
    let _len = disk.len(&file);
}
