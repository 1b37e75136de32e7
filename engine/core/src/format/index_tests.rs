//! Indexes: Kafka's bytes, lookups against a plain scan of the same log, and every kind of damage.

use proptest::prelude::*;

use super::*;
use crate::format::batch::patch;
use crate::format::build::BatchBuilder;
use crate::format::index_build::{INDEX_INTERVAL_DEFAULT, IndexBuilder};
use crate::format::walk::{BatchWalk, Check, Seek, seek};
use crate::types::LeaderEpoch;

const BASE: Offset = Offset::new(1000);

fn entry(last_offset: i64, position: u64) -> OffsetEntry {
    OffsetEntry { last_offset: Offset::new(last_offset), position: Position::new(position) }
}

fn time(timestamp: i64, offset: i64) -> TimeEntry {
    TimeEntry { timestamp: Timestamp::new(timestamp), offset: Offset::new(offset) }
}

/// A segment from (gap before the batch, records, value length, timestamp) rows.
fn segment(rows: &[(i64, usize, usize, i64)]) -> Vec<u8> {
    let mut log = Vec::new();
    let mut next = BASE;
    for &(gap, records, value_len, at) in rows {
        let mut batch = BatchBuilder::new();
        for _ in 0..records {
            batch.record(Timestamp::new(at), None, Some(&vec![1; value_len]));
        }
        let base = next.plus(gap);
        let mut bytes = batch.build();
        patch(&mut bytes, base, LeaderEpoch::ZERO);
        log.extend_from_slice(&bytes);
        next = base.plus(records as i64);
    }
    log
}

fn build(log: &[u8]) -> IndexBuilder {
    let (offsets, times) = (OffsetIndex::new(BASE, 100), TimeIndex::new(BASE, 100));
    let mut builder = IndexBuilder::new(offsets, times, INDEX_INTERVAL_DEFAULT);
    for (position, header) in BatchWalk::new(log, Position::ZERO, BASE, Check::Crc) {
        builder.push_batch(&header, position).unwrap();
    }
    builder.seal().unwrap();
    builder
}

/// Kafka's rule: MORE than 4096 bytes since the last entry, counted before the batch; the entry names the last
/// offset of the batch and its start.
#[test]
fn entries_follow_the_sparse_rule() {
    let rows: Vec<_> = (0..6).map(|i| (0, 2, 700, i)).collect();
    let log = segment(&rows);
    let batch = log.len() as u64 / 6;
    assert!(batch * 2 <= 4096 && batch * 3 > 4096, "three batches make more than an interval: {batch}");
    let index = build(&log);
    assert_eq!(index.offsets().len(), 1);
    assert_eq!(index.offsets().last(), Some(entry(1007, 3 * batch)));
    assert_eq!(index.times().entry(0), Some(time(3, 1007)));
    assert_eq!(index.times().entry(1), Some(time(5, 1011)), "sealing adds the last time entry");
    assert_eq!(
        index.offsets().as_bytes(),
        [&7i32.to_be_bytes()[..], &(3 * batch as i32).to_be_bytes()].concat()
    );
    assert_eq!(
        &index.times().as_bytes()[..12],
        [&3i64.to_be_bytes()[..], &7i32.to_be_bytes()].concat(),
        "i64 timestamp, i32 offset"
    );
}

/// Exactly 4096 bytes since the last entry are not enough, 4097 are.
#[test]
fn interval_from_both_sides() {
    for (len, entries) in [(4096, 0), (4097, 1)] {
        let near = segment(&[(0, 1, 3900, 0)]).len();
        let log = segment(&[(0, 1, 3900 + len - near, 0), (0, 1, 10, 1)]);
        assert_eq!(build(&log).offsets().len(), entries, "{len}");
    }
}

#[test]
fn lookup_finds_the_greatest_entry_at_or_below() {
    let mut index = OffsetIndex::new(BASE, 3);
    let start = entry(1000, 0);
    assert_eq!(index.lookup(Offset::new(5000)), start);
    for e in [entry(1010, 500), entry(1020, 900), entry(1030, 1400)] {
        index.push(e).unwrap();
    }
    for (target, found) in [(1000, 0), (1009, 0), (1010, 500), (1011, 500), (1020, 900), (9999, 1400)] {
        assert_eq!(index.lookup(Offset::new(target)).position.get(), found, "{target}");
    }
    for (position, start) in [(0, 0), (500, 0), (899, 0), (900, 500), (1400, 900), (9999, 900)] {
        assert_eq!(index.walk_start(Position::new(position)).get(), start, "{position}");
    }
    index.truncate(Offset::new(1020));
    assert_eq!((index.len(), index.last()), (1, Some(entry(1010, 500))));
}

#[test]
fn time_lookup_and_equal_timestamps() {
    let mut index = TimeIndex::new(BASE, 4);
    assert_eq!(index.lookup(Timestamp::new(7)), time(-1, 1000));
    assert_eq!(index.push(time(50, 1010)), Ok(true));
    assert_eq!(index.push(time(50, 1020)), Ok(false), "equal is skipped");
    assert_eq!(index.push(time(49, 1020)), Ok(false), "earlier is skipped");
    assert_eq!(index.push(time(60, 1030)), Ok(true));
    for (target, offset) in [(49, 1000), (50, 1010), (59, 1010), (60, 1030), (i64::MAX, 1030)] {
        assert_eq!(index.lookup(Timestamp::new(target)).offset.get(), offset, "{target}");
    }
    index.truncate(Offset::new(1030));
    assert_eq!(index.last(), Some(time(50, 1010)));
}

#[test]
fn limits_and_ranges() {
    let mut index = OffsetIndex::new(BASE, 2);
    let memory = index.as_bytes().as_ptr();
    let far = entry(1000 + i64::from(i32::MAX) + 1, 5);
    assert!(matches!(index.push(far), Err(IndexError::Range { .. })));
    assert!(matches!(index.push(entry(999, 5)), Err(IndexError::Range { .. })));
    assert!(matches!(index.push(entry(1001, 1 << 31)), Err(IndexError::Range { .. })));
    index.push(entry(1001, 5)).unwrap();
    assert!(matches!(index.push(entry(1001, 6)), Err(IndexError::OffsetOrder { entry: 1, .. })));
    assert!(matches!(index.push(entry(1002, 5)), Err(IndexError::PositionOrder { entry: 1, .. })));
    assert!(!index.is_full());
    index.push(entry(1000 + i64::from(i32::MAX), i32::MAX as u64)).unwrap();
    assert!(index.is_full());
    assert_eq!(index.push(entry(i64::MAX, u64::MAX)), Err(IndexError::Full { entries: 2 }));
    assert_eq!(index.as_bytes().as_ptr(), memory, "pushing within the limit moves nothing");

    let mut times = TimeIndex::new(BASE, 2);
    assert!(!times.is_full());
    times.push(time(1, 1001)).unwrap();
    assert!(times.is_full(), "one slot is kept for sealing");
    assert_eq!(times.push(time(2, 1002)), Ok(true));
    assert_eq!(times.push(time(3, 1003)), Err(IndexError::Full { entries: 2 }));
}

#[test]
fn load_drops_preallocated_zeros() {
    let mut index = OffsetIndex::new(BASE, 2);
    index.push(entry(1010, 500)).unwrap();
    let mut file = index.as_bytes().to_vec();
    file.resize(4096, 0);
    let loaded = OffsetIndex::load(BASE, &file, ByteCount::new(501), 0).unwrap();
    assert_eq!(loaded.as_bytes(), index.as_bytes());
    assert!(OffsetIndex::load(BASE, &[0; 4096], ByteCount::ZERO, 0).unwrap().is_empty());
    assert!(TimeIndex::load(BASE, &[0; 1200], 0).unwrap().is_empty());
    let mut times = TimeIndex::new(BASE, 2);
    times.push(time(9, 1000)).unwrap();
    let mut file = times.as_bytes().to_vec();
    file.resize(1200, 0);
    assert_eq!(TimeIndex::load(BASE, &file, 0).unwrap().last(), Some(time(9, 1000)));
}

#[test]
fn damaged_files_are_refused_by_name() {
    let file = |pairs: &[(i32, i32)]| -> Vec<u8> {
        pairs.iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()].concat()).collect()
    };
    let load = |bytes: &[u8]| OffsetIndex::load(BASE, bytes, ByteCount::new(1000), 0).map(|i| i.len());
    assert_eq!(load(&[0; 9]), Err(IndexError::Length { len: ByteCount::new(9), entry_len: 8 }));
    assert_eq!(load(&file(&[(1, 10), (2, 999)])), Ok(2));
    let previous = BASE.plus(5);
    let order = |found: i64| Err(IndexError::OffsetOrder { entry: 1, previous, found: BASE.plus(found) });
    assert_eq!(load(&file(&[(5, 10), (5, 20)])), order(5));
    assert_eq!(load(&file(&[(5, 10), (0, 0), (6, 20)])), order(0), "zeros are padding only at the end");
    assert!(matches!(load(&file(&[(-1, 10)])), Err(IndexError::OffsetOrder { entry: 0, .. })));
    let position = IndexError::PositionOrder { entry: 1, previous: 10, found: 10 };
    assert_eq!(load(&file(&[(5, 10), (6, 10)])), Err(position));
    assert!(matches!(load(&file(&[(5, -10)])), Err(IndexError::PositionOrder { entry: 0, .. })));
    let (found, len) = (Position::new(1000), ByteCount::new(1000));
    assert_eq!(load(&file(&[(5, 1000)])), Err(IndexError::PositionBeyondSegment { entry: 0, found, len }));

    let times = |entries: &[(i64, i32)]| {
        let bytes: Vec<u8> =
            entries.iter().flat_map(|(t, o)| [&t.to_be_bytes()[..], &o.to_be_bytes()].concat()).collect();
        TimeIndex::load(BASE, &bytes, 0).map(|i| i.len())
    };
    assert_eq!(times(&[(5, 1), (6, 2)]), Ok(2));
    assert!(matches!(times(&[(5, 1), (5, 2)]), Err(IndexError::TimestampOrder { entry: 1, .. })));
    assert!(matches!(times(&[(5, 1), (6, 1)]), Err(IndexError::OffsetOrder { entry: 1, .. })));
    assert!(matches!(times(&[(5, -1)]), Err(IndexError::OffsetOrder { entry: 0, .. })));
}

proptest! {
    /// Through the index and a walk of headers, every offset is found in the batch that a scan of the whole log
    /// finds it in, gaps included; and the last time entry is the log's latest timestamp. Not of 1970's first millisecond:
    /// that entry at a segment's first offset is all zeros, which in a file is padding, for Kafka as for us.
    #[test]
    fn every_offset_resolves_to_its_batch(
        rows in prop::collection::vec((0..3i64, 1..5usize, 0..3000usize, 1..50i64), 1..40)
    ) {
        let log = segment(&rows);
        let index = build(&log);
        let all: Vec<_> = BatchWalk::new(&log, Position::ZERO, BASE, Check::Header).collect();
        let end = all.last().unwrap().1.next_offset();
        for target in (BASE.get()..end.get()).map(Offset::new) {
            let expected = all.iter().find(|(_, h)| h.last_offset() >= target).unwrap().0;
            let from = index.offsets().lookup(target);
            let window = &log[from.position.get() as usize..];
            match seek(window, from.position, target) {
                Seek::Found(position, _) => prop_assert_eq!(position, expected),
                other => prop_assert!(false, "{:?}", other),
            }
            prop_assert!(index.offsets().walk_start(expected) <= from.position);
        }
        let loaded = OffsetIndex::load(BASE, index.offsets().as_bytes(), ByteCount::of_usize(log.len()), 0);
        let loaded = loaded.unwrap();
        prop_assert_eq!(loaded.as_bytes(), index.offsets().as_bytes());
        let times = TimeIndex::load(BASE, index.times().as_bytes(), 0).unwrap();
        prop_assert_eq!(times.last().unwrap().timestamp.get(), rows.iter().map(|r| r.3).max().unwrap());
        for i in 0..times.len() {
            let TimeEntry { timestamp, offset } = times.entry(i).unwrap();
            let so_far = all.iter().filter(|(_, h)| h.last_offset() <= offset).map(|(_, h)| h.max_timestamp());
            prop_assert_eq!(so_far.max().unwrap(), timestamp);
        }
    }

    #[test]
    fn arbitrary_index_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), target: i64) {
        if let Ok(index) = OffsetIndex::load(BASE, &bytes, ByteCount::new(u64::MAX), 0) {
            index.lookup(Offset::new(target));
        }
        if let Ok(index) = TimeIndex::load(BASE, &bytes, 0) {
            index.lookup(Timestamp::new(target));
        }
    }
}
