//! Every single bit of every file of a cleanly closed log, flipped: opening never panics, a flip is refused, repaired or
//! without effect, and what a reader then gets is what was written, or fails its checksum, or is named by the scrub.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::test_support::*;
use crate::disk::memory::MemoryDisk;
use crate::format::side_file::SegmentIdentity;
use crate::format::walk::{BatchWalk, Check, Seek, seek};
use crate::log::log_dir::{LogDir, LogDirOptions, OpenError};
use crate::log::scrub::{Piece, ScrubPoint, scrub};
use crate::log::step::OpenedSegment;
use crate::types::{Offset, Position};

/// What became of the flips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Count {
    /// The directory or the partition was refused, and nothing of the partition was changed.
    refused: u32,
    /// Readers get what was written, and the scrub has nothing to say.
    whole: u32,
    /// Readers get what was written, and opening or the scrub says that a file is not as it was.
    noted: u32,
    /// Readers get an error or a wrong checksum where the damage is, and what was written before it; the scrub says so.
    detected: u32,
    /// Readers get bytes that pass Kafka's checksum but are not what was written; opening or the scrub says so.
    told: u32,
}

/// Segments of the log, and batches in each.
const SEGMENTS: i64 = 6;
const BATCHES: i64 = 6;
const VALUE_LEN: usize = 1_800;

/// 64 KiB in a few segments, closed as a shard closes it.
fn clean_log() -> MemoryDisk {
    let disk = killed_with(&batches(0, BATCHES, VALUE_LEN));
    for base in (1..SEGMENTS).map(|number| number * BATCHES) {
        disk.put(segment(base, "log"), &batches(base, base + BATCHES, VALUE_LEN));
    }
    let dir = log_dir(&disk);
    close(&dir, try_open(&dir, &config()).unwrap());
    assert!(dir.close_clean().unwrap());
    disk
}

/// What is in the log, by offset.
fn written() -> BTreeMap<i64, Vec<u8>> {
    (0..SEGMENTS * BATCHES).map(|base| (base, batch(base, 1, VALUE_LEN))).collect()
}

/// What a reader met who asked for every offset from the log's start to its end.
#[derive(Default)]
struct Reading {
    /// An error, or bytes that the reader's own checks refuse.
    detected: bool,
    /// Bytes that pass them, and are not what was written.
    foreign: bool,
    /// Not everything was there.
    short: bool,
}

/// Reads every offset through the index, as the engine plans it, and checks batches as Kafka's consumers do.
fn read_all(
    disk: &MemoryDisk,
    whole: &MemoryDisk,
    opened: &Opened,
    written: &BTreeMap<i64, Vec<u8>>,
) -> Reading {
    let mut reading = Reading { short: shape(opened).1 != SEGMENTS * BATCHES, ..Reading::default() };
    for part in &opened.segments {
        if is_as_before(disk, whole, part) {
            continue;
        }
        let file = disk.get(segment(part.base_offset.get(), "log")).unwrap();
        let bytes = &file[..(part.end.get() as usize).min(file.len())];
        // An offset that has rotted may name more records than anybody can read.
        let end = part.next_offset.get().min(part.base_offset.get() + 2 * BATCHES);
        for offset in part.base_offset.get()..end {
            let start = part.index.offsets().lookup(Offset::new(offset)).position;
            let Some(window) = bytes.get(start.get() as usize..) else {
                reading.detected = true;
                continue;
            };
            let Seek::Found(at, _) = seek(window, start, Offset::new(offset)) else {
                reading.detected = true;
                continue;
            };
            let mut walk = BatchWalk::new(&bytes[at.get() as usize..], at, Offset::ZERO, Check::Crc);
            match walk.next() {
                None => reading.detected = true,
                Some((at, header)) => {
                    let got = &bytes[at.get() as usize..][..header.batch_len().as_usize()];
                    let wanted = written.get(&offset).is_some_and(|wanted| wanted == got);
                    reading.foreign |= !wanted;
                }
            }
        }
    }
    reading
}

/// Whether a segment is what it was before the flip, in the engine's eyes and on disk: one that was checked once.
fn is_as_before(disk: &MemoryDisk, whole: &MemoryDisk, part: &OpenedSegment<StepsOnly>) -> bool {
    let base = part.base_offset.get();
    let same = |suffix| disk.get(segment(base, suffix)) == whole.get(segment(base, suffix));
    let is_whole = part.next_offset.get() == base + BATCHES
        && whole.get(segment(base, "log")).is_some_and(|log| log.len() as u64 == part.end.get());
    let indexed =
        whole.get(segment(base, "index")).is_some_and(|index| index == part.index.offsets().as_bytes());
    is_whole && indexed && same("log") && same("chain")
}

/// Whether the scrub finds anything wrong.
fn scrubs_clean(disk: &MemoryDisk, whole: &MemoryDisk, dir: &LogDir<MemoryDisk>, opened: &Opened) -> bool {
    opened.segments.iter().filter(|part| !is_as_before(disk, whole, part)).all(|part| {
        let base_offset = part.base_offset;
        let identity = SegmentIdentity { topic_id: opened.topic_id, partition: 0, base_offset };
        let mut from = Some(ScrubPoint { position: Position::ZERO, next_offset: base_offset });
        let mut clean = true;
        while let Some(point) = from.filter(|point| point.position < part.end) {
            let end_offset = Some(part.next_offset);
            let piece = Piece { name: name(), identity, from: point, end: part.end, end_offset };
            let scrubbed = scrub(dir, &piece).expect("the files are there");
            clean &= !scrubbed.damaged;
            from = scrubbed.next;
        }
        clean
    })
}

/// Flips one bit, opens, reads everything, scrubs; says what should not have happened.
fn flip(
    whole: &MemoryDisk,
    path: &PathBuf,
    bit: usize,
    written: &BTreeMap<i64, Vec<u8>>,
    count: &mut Count,
) -> Result<(), String> {
    let disk = whole.fork();
    disk.edit(path, |file| file[bit / 8] ^= 1 << (bit % 8));
    let story = format!("{}, bit {} of byte {}", path.display(), bit % 8, bit / 8);
    let dir = match LogDir::open(disk.clone(), std::path::Path::new(ROOT), LogDirOptions::default()) {
        Ok(dir) => dir,
        Err(OpenError::UnknownVersion { .. }) => {
            count.refused += 1;
            return Ok(());
        }
        Err(other) => panic!("{story}: {other}"),
    };
    let before = disk.get(path);
    let opened = match try_open(&dir, &config()) {
        Ok(opened) => opened,
        Err(_) => {
            assert_eq!(disk.get(path), before, "{story}: a refusal changes nothing");
            assert!(!dir.notes().is_empty(), "{story}: a refusal is told");
            count.refused += 1;
            return Ok(());
        }
    };
    let reading = read_all(&disk, whole, &opened, written);
    let clean = scrubs_clean(&disk, whole, &dir, &opened);
    let noted = !clean || opened.recovery.indexes_rebuilt > 0 || !dir.notes().is_empty();
    let problem = match () {
        () if reading.foreign && !noted => "served, not what was written, and nobody says so",
        () if reading.short && !noted => "the log ends elsewhere, and nobody says so",
        () if reading.detected && clean => "readers meet damage that the scrub does not find",
        () => "",
    };
    if !problem.is_empty() {
        return Err(format!("{story}: {problem}; ends {:?}, {:?}", shape(&opened), dir.notes()));
    }
    match (reading.foreign, reading.detected, noted) {
        (true, ..) => count.told += 1,
        (_, true, _) => count.detected += 1,
        (_, _, true) => count.noted += 1,
        _ => count.whole += 1,
    }
    Ok(())
}

/// In every file of a cleanly closed log of 64 KiB, every bit.
#[test]
fn every_flipped_bit_is_refused_repaired_or_found() {
    let (whole, written) = (clean_log(), written());
    let reopened = whole.fork();
    let dir = log_dir(&reopened);
    let opened = try_open(&dir, &config()).unwrap();
    let blank = disk();
    let reading = read_all(&reopened, &blank, &opened, &written);
    assert!(!reading.detected && !reading.foreign && !reading.short, "nothing has been flipped yet");
    assert!(scrubs_clean(&reopened, &blank, &dir, &opened) && dir.notes().is_empty());
    let files = whole.files();
    let log_len: usize = files
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "log"))
        .map(|(_, f)| f.len())
        .sum();
    assert!(log_len >= 64 << 10, "{log_len}");
    let mut work: Vec<(PathBuf, usize)> = Vec::new();
    for (path, bytes) in &files {
        work.extend((0..bytes.len() * 8).map(|bit| (path.clone(), bit)));
    }
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let counts = std::thread::scope(|scope| {
        let parts: Vec<_> = work
            .chunks(work.len().div_ceil(threads))
            .map(|part| {
                let (whole, written) = (whole.fork(), &written);
                scope.spawn(move || {
                    let (mut counts, mut problems) = (BTreeMap::<PathBuf, Count>::new(), Vec::new());
                    for (path, bit) in part {
                        let count = counts.entry(path.clone()).or_default();
                        problems.extend(flip(&whole, path, *bit, written, count).err());
                    }
                    (counts, problems)
                })
            })
            .collect();
        parts.into_iter().map(|part| part.join().expect("no flip panics")).collect::<Vec<_>>()
    });
    let mut sum = Count::default();
    let problems: Vec<_> = counts.iter().flat_map(|(_, problems)| problems).collect();
    assert!(
        problems.is_empty(),
        "{} problems, first of them {:#?}",
        problems.len(),
        &problems[..problems.len().min(20)]
    );
    for (path, count) in counts.into_iter().flat_map(|(counts, _)| counts) {
        println!("{}: {count:?}", path.display());
        sum.refused += count.refused;
        sum.whole += count.whole;
        sum.noted += count.noted;
        sum.detected += count.detected;
        sum.told += count.told;
    }
    println!("{} bits of {} files: {sum:?}", work.len(), files.len());
    let seen = sum.refused + sum.whole + sum.noted + sum.detected + sum.told;
    assert_eq!(seen as usize, work.len());
    assert!(sum.detected > 0 && sum.told > 0 && sum.noted > 0, "{sum:?}");
}
