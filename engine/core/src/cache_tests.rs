//! The read cache against a model: a map from granules to what was put there last.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::cache::{Lookup, NONE, ReadCache, SegmentUid};
use crate::platform::{CHUNK_LEN_MIN, Lease};
use crate::types::{ByteCount, Position};

const UID: SegmentUid = SegmentUid(1);
const GRANULES: u64 = 64;

/// Tags from this one on lie beside memory that waits for them.
const HOLDING_UP: u64 = 1_000_000;

/// A lease that only knows what was put there, and how long it is.
#[derive(Clone)]
struct Tag(u64, Arc<[u8]>);

impl AsRef<[u8]> for Tag {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Lease for Tag {
    fn sent_before(&self) -> u64 {
        0
    }

    fn count_sent(&self, _: u64) {}

    fn holds_up(&self) -> bool {
        self.0 >= HOLDING_UP
    }

    fn slice(&self, range: Range<usize>) -> Self {
        Self(self.0, self.1[range].into())
    }
}

fn tag(number: u64, len: ByteCount) -> Tag {
    Tag(number, vec![0; len.as_usize()].into())
}

fn at(granule: u64) -> Position {
    Position::new(granule * CHUNK_LEN_MIN.get())
}

fn len(granules: u64) -> ByteCount {
    ByteCount::new(granules * CHUNK_LEN_MIN.get())
}

fn insert(cache: &mut ReadCache<Tag>, granule: u64, granules: u64, number: u64) {
    let (start, len) = (at(granule), len(granules));
    cache.insert_written(UID, start, len, (start, start.plus(len)), tag(number, len));
}

fn resident(cache: &mut ReadCache<Tag>, granule: u64) -> Option<(u64, Range<u64>)> {
    match cache.lookup(UID, at(granule)) {
        Lookup::Resident { lease, start, end, .. } => {
            let granules = |position: Position| position.get() / CHUNK_LEN_MIN.get();
            Some((lease.0, granules(start)..granules(end)))
        }
        _ => None,
    }
}

/// I7, over a few thousand random writes, reads and evictions: every granule shows what was put there last, or nothing;
/// and two granules that show the same chunk show the same range.
#[test]
fn a_granule_is_in_one_chunk() {
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seed = 1_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for number in 0..4000 {
        let granules = 1 << random(5);
        let first = random(GRANULES / granules) * granules;
        match random(8) {
            0 => drop(cache.evict(len(GRANULES))),
            1 | 2 => {
                let entry = cache.begin_load(UID, at(first), len(granules)).expect("nothing else is loading");
                let generation = cache.generation(entry);
                assert_eq!(cache.end_load(entry, generation, Some(tag(number, len(granules)))), NONE);
                forget(&mut model, first..first + granules);
                model.extend((first..first + granules).map(|granule| (granule, number)));
            }
            _ => {
                insert(&mut cache, first, granules, number);
                forget(&mut model, first..first + granules);
                model.extend((first..first + granules).map(|granule| (granule, number)));
            }
        }
        let mut ranges: BTreeMap<u64, Range<u64>> = BTreeMap::new();
        for granule in 0..GRANULES {
            let Some((found, range)) = resident(&mut cache, granule) else { continue };
            assert_eq!(model.get(&granule), Some(&found), "granule {granule} after {number}");
            assert!(range.contains(&granule));
            assert_eq!(*ranges.entry(found).or_insert_with(|| range.clone()), range);
        }
        let covered: u64 = ranges.values().map(|range| range.end - range.start).sum();
        assert_eq!(cache.len(), len(covered), "what is counted is what can be found");
    }
}

/// A chunk goes as a whole when a part of it is replaced.
fn forget(model: &mut BTreeMap<u64, u64>, range: Range<u64>) {
    let hit: Vec<u64> = range.filter_map(|granule| model.get(&granule).copied()).collect();
    model.retain(|_, number| !hit.contains(number));
}

/// A reader of a whole cold log does not push out what was written lately.
#[test]
fn a_scan_does_not_evict_the_tail() {
    let capacity = len(16);
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    (0..8).for_each(|granule| insert(&mut cache, granule, 1, granule));
    for granule in 8..GRANULES {
        while cache.len() >= capacity {
            assert!(cache.evict(capacity));
        }
        let entry = cache.begin_load(UID, at(granule), len(1)).unwrap();
        let generation = cache.generation(entry);
        cache.end_load(entry, generation, Some(tag(granule, len(1))));
        assert_eq!(
            resident(&mut cache, granule).map(|(number, _)| number),
            Some(granule),
            "the scan reads it"
        );
    }
    let kept = (0..8).filter(|granule| resident(&mut cache, *granule).is_some()).count();
    assert_eq!(kept, 8, "all that was written");
}

/// What is asked for now and then stays, though it came from the disk, beside four readers of a whole cold log that go
/// side by side, each looking at everything twice.
#[test]
fn readers_side_by_side_do_not_evict_what_is_in_use() {
    let capacity = len(64);
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    let read = |cache: &mut ReadCache<Tag>, granule: u64| {
        while cache.len() >= capacity {
            assert!(cache.evict(capacity));
        }
        let entry = cache.begin_load(UID, at(granule), len(1)).unwrap();
        let generation = cache.generation(entry);
        cache.end_load(entry, generation, Some(tag(granule, len(1))));
    };
    (0..16).for_each(|granule| read(&mut cache, granule));
    for i in 0..16 * 20 {
        assert!(resident(&mut cache, i * 7 % 16).is_some());
        (0..8).for_each(|_| _ = resident(&mut cache, 15));
    }
    for granule in 16..600 {
        read(&mut cache, granule);
        (0..8).for_each(|_| assert!(resident(&mut cache, granule).is_some()));
        if granule % 4 == 0 {
            assert!(resident(&mut cache, granule / 4 * 7 % 16).is_some(), "{granule}");
        }
    }
}

/// What is in use stays even if readers of old data fill all memory between two of its uses: its uses over several stays
/// show it.
#[test]
fn what_returns_between_scans_stays() {
    let capacity = len(32);
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    let mut loads = [0; 8];
    let mut cold = 8;
    let mut missing = 0;
    for round in 0..1000 {
        let wanted = round % 8;
        let granules: Vec<u64> = if resident(&mut cache, wanted).is_some() { vec![] } else { vec![wanted] };
        missing += granules.len();
        for granule in granules.into_iter().chain(cold..cold + 8) {
            while cache.len() >= capacity {
                assert!(cache.evict(capacity));
            }
            let entry = cache.begin_load(UID, at(granule), len(1)).unwrap();
            let generation = cache.generation(entry);
            cache.end_load(entry, generation, Some(tag(granule, len(1))));
            (0..8).for_each(|_| assert!(resident(&mut cache, granule).is_some()));
            if let Some(loads) = loads.get_mut(granule as usize) {
                *loads += 1;
            }
        }
        cold += 8;
    }
    assert!(missing < 8 * 8, "reads of what is in use: {loads:?}");
}

/// A granule that a reader of old data wants: from memory, or from the disk as the shard reads it. Whether it was read.
fn scan(cache: &mut ReadCache<Tag>, capacity: ByteCount, granule: u64) -> bool {
    if resident(cache, granule).is_some() {
        return false;
    }
    while cache.recycle(len(1), capacity) || cache.len() >= capacity && cache.evict(capacity) {}
    let entry = cache.begin_load(UID, at(granule), len(1)).unwrap();
    let generation = cache.generation(entry);
    cache.end_load(entry, generation, Some(tag(granule, len(1))));
    true
}

/// A reader of old data goes round in a window, whatever else of the arena is free.
#[test]
fn a_scan_uses_little_memory() {
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    (0..10_000).for_each(|granule| assert!(scan(&mut cache, len(64), granule)));
    assert_eq!(cache.len(), len(16), "a quarter");
}

/// Where a second reader follows at a distance that the window is too narrow for, it widens, and the disk is read once.
/// It narrows again when the second has gone, so that what a third wants is all that stays.
#[test]
fn the_window_widens_for_readers_at_a_distance() {
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    let (capacity, distance) = (len(64), 30);
    let mut again = 0;
    for granule in distance..5000 {
        assert!(scan(&mut cache, capacity, granule));
        again += u64::from(scan(&mut cache, capacity, granule - distance));
    }
    assert!(again < distance + 500, "{again} of 5000 read twice");
    (5000..6000).for_each(|granule| _ = scan(&mut cache, capacity, granule));
    assert_eq!(cache.len(), len(16));
}

/// A read leaves what is in use its share, whatever else holds the memory; beyond it, the oldest goes.
#[test]
fn reads_leave_what_is_in_use_its_share() {
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    (0..40).for_each(|granule| insert(&mut cache, granule, 1, granule));
    let gone = (0..40).take_while(|_| cache.evict_sparing(len(64))).count();
    assert_eq!((gone, cache.len()), (8, len(32)), "a half stays");
    assert!(scan(&mut cache, len(64), 50) && cache.evict_sparing(len(64)) && !cache.evict_sparing(len(64)));
    assert_eq!(cache.len(), len(32), "what was read once goes before it");
}

/// Makes room for one granule in a cache of `capacity`, and appends one.
fn roll(cache: &mut ReadCache<Tag>, capacity: ByteCount, granule: u64) {
    while cache.len() >= capacity {
        assert!(cache.evict(capacity));
    }
    insert(cache, granule, 1, granule);
}

/// Readers that follow a producer at a distance are done with what is old, however many they are: it goes in order,
/// and nothing goes that they have still to come to.
#[test]
fn what_every_reader_has_passed_goes_first() {
    for readers in [1, 4, 16] {
        let mut cache = ReadCache::<Tag>::new(len(GRANULES));
        let (capacity, distance) = (len(48), 20);
        for granule in 0..1000 {
            roll(&mut cache, capacity, granule);
            for _ in 0..4 * readers {
                let passed = granule.saturating_sub(distance);
                assert!(resident(&mut cache, passed).is_some(), "{passed} of {granule}, {readers} readers");
            }
        }
        let kept = (1000 - 48..1000).filter(|granule| cache.is_resident(UID, at(*granule)));
        assert_eq!(kept.count(), 48, "the newest, for {readers} readers");
    }
}

/// What is asked for over and over stays, though it is old, unless memory beside it waits to be replaced.
#[test]
fn what_is_wanted_most_stays() {
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    let (wanted, held) = ([2, 9], 3);
    for granule in 0..500 {
        roll(&mut cache, len(32), granule);
        if granule == held {
            insert(&mut cache, held, 1, HOLDING_UP);
        }
        for old in wanted.into_iter().chain([held]).filter(|old| *old <= granule) {
            (0..40).for_each(|_| _ = resident(&mut cache, old));
        }
        (0..3).for_each(|_| _ = resident(&mut cache, granule));
    }
    assert!(wanted.iter().all(|old| cache.is_resident(UID, at(*old))));
    assert!(!cache.is_resident(UID, at(held)));
}

/// A read that ends after its entry was given up brings nothing, and the next one of the range is not mixed up with it.
#[test]
fn a_late_read_is_ignored() {
    let mut cache = ReadCache::<Tag>::new(len(GRANULES));
    let entry = cache.begin_load(UID, at(4), len(1)).unwrap();
    let generation = cache.generation(entry);
    assert!(cache.begin_load(UID, at(4), len(4)).is_none(), "part of it is being read");
    assert_eq!(cache.add_waiter(entry, 9), NONE);
    assert_eq!(cache.end_load(entry, generation, None), 9, "a failed read wakes who waits");
    let again = cache.begin_load(UID, at(4), len(1)).unwrap();
    assert_eq!(cache.end_load(entry, generation, Some(tag(1, len(1)))), NONE);
    assert!(resident(&mut cache, 4).is_none());
    let generation = cache.generation(again);
    cache.end_load(again, generation, Some(tag(2, len(1))));
    assert_eq!(resident(&mut cache, 4).map(|(number, _)| number), Some(2));
}
