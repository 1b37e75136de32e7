//! The scrub finds what has changed since it was written, says where, and goes on behind it.

use std::sync::Arc;

use super::*;
use crate::disk::memory::MemoryDisk;
use crate::log::LogDir;
use crate::log::test_support::*;

/// A cleanly closed log of one segment with two records in its side file.
struct Log {
    disk: MemoryDisk,
    dir: Arc<LogDir<MemoryDisk>>,
    whole: Piece,
    /// Length of a batch.
    one: usize,
}

impl Log {
    fn new() -> Self {
        let (len, count) = (500_000, 12);
        let disk = killed_with(&batches(0, count, len));
        let dir = log_dir(&disk);
        let opened = try_open(&dir, &config()).unwrap();
        let identity = SegmentIdentity { topic_id: opened.topic_id, partition: 0, base_offset: Offset::ZERO };
        close(&dir, opened);
        let one = batch(0, 1, len).len();
        let from = ScrubPoint { position: Position::ZERO, next_offset: Offset::ZERO };
        let (end, end_offset) = (Position::new((one * 12) as u64), Some(Offset::new(count)));
        Self { disk, dir, whole: Piece { name: name(), identity, from, end, end_offset }, one }
    }

    /// Scrubs from start to end: where pieces began, and how many were damaged.
    fn round(&self) -> (Vec<u64>, usize) {
        let (mut begun, mut damaged, mut len) = (Vec::new(), 0, 0);
        let mut from = Some(self.whole.from);
        while let Some(point) = from {
            begun.push(point.position.get());
            let scrubbed = scrub(&self.dir, &Piece { from: point, ..self.whole.clone() }).unwrap();
            assert!(scrubbed.next.is_none_or(|next| next.position > point.position), "it goes forward");
            damaged += usize::from(scrubbed.damaged);
            len += scrubbed.len.get();
            from = scrubbed.next;
        }
        assert_eq!(len, self.whole.end.get(), "what cannot be checked counts as well");
        (begun, damaged)
    }
}

/// With its side file and without: a whole log is found whole, every kind of damage is found, and the piece behind it
/// is checked all the same where the side file says where it begins. Without it, leader epochs are beyond proof.
#[test]
fn damage_is_found_wherever_it_is() {
    type Damage = (&'static str, fn(&mut Vec<u8>, usize), usize, usize);
    let damages: [Damage; 6] = [
        ("nothing", |_, _| {}, 0, 0),
        ("a record", |file, one| file[one + 5000] ^= 4, 1, 1),
        ("a leader epoch", |file, one| file[one + 15] ^= 1, 1, 0),
        ("a length", |file, one| file[one + 11] ^= 1, 1, 1),
        ("zeros instead of a block", |file, one| file[one..one + 4096].fill(0), 1, 1),
        ("cut", |file, one| file.truncate(one + 10), 2, 1),
    ];
    for (story, damage, with_side, without) in damages {
        let log = Log::new();
        let second = (log.one * 9) as u64;
        log.disk.edit(segment(0, "log"), |file| damage(file, log.one));
        assert_eq!(log.round(), (vec![0, second], with_side), "{story}");
        let noted = log.dir.notes().iter().filter(|note| note.contains("found by the scrub")).count();
        assert_eq!(noted, with_side, "{story}");
        log.disk.remove(segment(0, "chain"));
        let begun = if without == 0 { vec![0, second] } else { vec![0] };
        assert_eq!(log.round(), (begun, without), "{story}");
    }
}

/// A device that gives an error instead of the bytes has lost them: that is damage. A file that is gone is not.
#[test]
fn a_device_that_gives_nothing_back_is_damage() {
    let log = Log::new();
    log.disk.fail("read", ".log", Errno::IO);
    let scrubbed = scrub(&log.dir, &log.whole).unwrap();
    assert!(scrubbed.damaged && scrubbed.next.is_some(), "{scrubbed:?}");
    log.disk.fail("read", ".log", Errno::NOMEM);
    assert!(scrub(&log.dir, &log.whole).is_err());
    log.disk.heal();
    assert!(!scrub(&log.dir, &log.whole).unwrap().damaged);
    log.disk.remove(segment(0, "log"));
    assert!(scrub(&log.dir, &log.whole).is_err());
}
