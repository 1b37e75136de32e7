//! Random logs with random damage: recovery never panics, never changes what it refuses, and what it keeps is what was
//! there, from the start and without holes.

use crate::disk::memory::MemoryDisk;
use crate::error::PartitionError;
use crate::log::test_support::*;
use crate::log::{Durability, LogConfig};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Segments of a dense log, each with its batches' bytes, on a disk; some of them recovered once, so that they have
/// companions; some with a recovery point.
fn random_log(random: &mut Random) -> (MemoryDisk, Vec<(i64, Vec<u8>)>, i64) {
    let disk = killed_with(&[]);
    let (mut segments, mut next) = (Vec::new(), 0);
    for _ in 0..1 + random.below(3) {
        let (base, mut bytes) = (next, Vec::new());
        for _ in 0..1 + random.below(40) {
            let count = 1 + random.below(3) as i64;
            bytes.extend(batch(next, count, random.below(300)));
            next += count;
        }
        disk.put(segment(base, "log"), &bytes);
        segments.push((base, bytes));
    }
    if random.below(2) == 0 {
        assert_eq!(shape(&reopen(&disk).unwrap()).1, next);
    }
    let mut point = 0;
    if random.below(2) == 0 {
        point = random.below(next as usize + 1);
        disk.put("/data/recovery-point-offset-checkpoint", format!("0\n1\nt 0 {point}\n").as_bytes());
    }
    (disk, segments, point as i64)
}

fn damage(random: &mut Random, disk: &MemoryDisk, segments: &[(i64, Vec<u8>)]) {
    let paths: Vec<_> = match random.below(4) {
        0 => disk.files().into_keys().filter(|path| path.starts_with("/data/t-0")).collect(),
        _ => segments.iter().map(|(base, _)| segment(*base, "log")).collect(),
    };
    let path = &paths[random.below(paths.len())];
    let (kind, at, len) = (random.below(5), random.below(1 << 20), 1 + random.below(9000));
    disk.edit(path, |file| {
        let at = at % (file.len() + 1);
        let end = (at + len).min(file.len());
        match kind {
            0 => file.truncate(at),
            1 => file[at..end].fill(0),
            2 => file[at..end].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(7).wrapping_add(3)),
            3 if at < end => file[at] ^= 1 << (len % 8),
            _ => file.resize(file.len() + len, if len % 2 == 0 { 0 } else { 0xa7 }),
        }
    });
}

#[test]
fn damaged_logs_are_refused_unchanged_or_kept_from_the_start() {
    let (mut refused, mut cut, mut whole) = (0, 0, 0);
    for seed in 0..3000 {
        let mut random = Random(seed);
        let (disk, segments, point) = random_log(&mut random);
        for _ in 0..random.below(3) {
            damage(&mut random, &disk, &segments);
        }
        let durability = if random.below(4) == 0 { Durability::Written } else { Durability::Flushed };
        let config = LogConfig { durability, ..config() };
        let dir = log_dir(&disk);
        let before = disk.files();
        let log = match try_open(&dir, &config) {
            Ok(log) => log,
            Err(PartitionError::Corrupt { .. } | PartitionError::Unusable { .. }) => {
                assert_eq!(disk.files(), before, "seed {seed}");
                refused += 1;
                continue;
            }
            Err(other) => panic!("seed {seed}: {other}"),
        };
        let last = log.segments.len() - 1;
        for (i, found) in log.segments.iter().enumerate() {
            let (base, bytes) = &segments[i];
            let kept = disk.get(segment(*base, "log")).unwrap();
            assert_eq!((found.base_offset.get(), found.end.get()), (*base, kept.len() as u64), "seed {seed}");
            // A flip in the 21 bytes that no checksum of Kafka's covers is not seen without the side file.
            // What lies wholly below the recovery point is not read again.
            let read = segments.get(i + 1).is_none_or(|(next_base, _)| *next_base > point);
            let same = bytes.iter().zip(&kept).filter(|(a, b)| a == b).count();
            let differs = kept.len() - same;
            assert!(
                kept.len() <= bytes.len() && (differs <= 21 || !read),
                "seed {seed}: {differs} in {base}"
            );
        }
        if shape(&log).1 == shape_end(&segments) {
            whole += 1
        } else {
            cut += 1
        }
        let shape_now = shape(&log);
        assert!(log.segments[last].file.is_some());
        drop((log, dir));
        let again = try_open(&log_dir(&disk), &config).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(shape(&again), shape_now, "seed {seed}: a second recovery finds nothing to do");
        assert_eq!(again.recovery.truncated.get(), 0, "seed {seed}");
    }
    assert!(refused > 300 && cut > 300 && whole > 300, "{refused} refused, {cut} cut, {whole} whole");
}

fn shape_end(segments: &[(i64, Vec<u8>)]) -> i64 {
    let (base, bytes) = segments.last().expect("a log has a segment");
    let walk = crate::format::walk::BatchWalk::new(
        bytes,
        crate::types::Position::ZERO,
        crate::types::Offset::new(*base),
        crate::format::walk::Check::Header,
    );
    walk.run().next_offset.get()
}
