//! Side files: golden bytes, and every damage to the log that Kafka's own CRC cannot see.

use proptest::prelude::*;

use super::*;
use crate::format::batch::patch;
use crate::format::build::BatchBuilder;
use crate::format::walk::{BatchWalk, Check, StopReason};

const ID: SegmentIdentity =
    SegmentIdentity { topic_id: TopicId::from_bytes([7; 16]), partition: 3, base_offset: Offset::new(100) };
const INTERVAL: ByteCount = ByteCount::new(500);

/// `count` batches of 100 bytes and more, one record each.
fn log(count: i64) -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..count {
        let mut bytes = BatchBuilder::new().record(Timestamp::new(1000 + i), None, Some(&[9; 60])).build();
        patch(&mut bytes, ID.base_offset.plus(i), LeaderEpoch::new(4));
        out.extend_from_slice(&bytes);
    }
    out
}

fn batches(log: &[u8]) -> Vec<(Position, BatchHeader)> {
    BatchWalk::new(log, Position::ZERO, Offset::ZERO, Check::Header).collect()
}

/// A side file of all of `log`, and whether to seal it.
fn side(log: &[u8], seal: bool) -> Vec<u8> {
    let mut builder = SideFileBuilder::new(ID, INTERVAL);
    let mut out = ID.encode().to_vec();
    for (position, batch) in batches(log) {
        out.extend(builder.push_batch(&batch, position).into_iter().flatten());
    }
    if seal {
        out.extend(builder.seal());
    } else {
        out.extend(builder.close().into_iter().flatten());
        assert_eq!(builder.close(), None, "closing twice adds nothing");
    }
    out
}

fn verify(file: &SideFile, log: &[u8]) -> Result<bool, ChainMismatch> {
    let mut verifier = ChainVerifier::new(file);
    for (position, batch) in batches(log) {
        verifier.push_batch(&batch, position)?;
    }
    Ok(verifier.is_complete())
}

/// The header and a record, byte for byte: a change here is a new version of the format.
#[test]
fn golden_bytes() {
    let log = log(1);
    let file = side(&log, true);
    assert_eq!(file.len(), 128);
    let len = log.len() as u8;
    let mut header = b"RPCHAIN\0\x01\0\x40\0\x03\0\0\0".to_vec();
    header.extend([7; 16]);
    header.extend([100, 0, 0, 0, 0, 0, 0, 0]);
    header.resize(60, 0);
    assert_eq!(file[..60], header);
    let mut record = vec![0, 0, 0, 0, 1, 0, 0, 0]; // number 0, sealed
    record.extend([0; 8]); // from
    record.extend([len, 0, 0, 0, 0, 0, 0, 0]); // to
    record.extend([101, 0, 0, 0, 0, 0, 0, 0]); // next offset
    record.extend([0xe8, 3, 0, 0, 0, 0, 0, 0]); // max timestamp 1000
    record.extend([4, 0, 0, 0, 1, 0, 0, 0]); // leader epoch, batch count
    assert_eq!(file[64..112], record);
    let mut chained = file[..60].to_vec();
    chained.extend([0; 8]); // the batch's position
    chained.extend(&log[..21]);
    assert_eq!(file[112..116], crc32c(&chained).to_le_bytes(), "chain");
    assert_eq!(file[116..120], file[60..64], "the predecessor's crc");
    assert_eq!(file[120..124], [0; 4]);
    assert_eq!(file[124..128], crc32c(&file[64..124]).to_le_bytes());
}

#[test]
fn records_follow_the_interval_and_cover_everything() {
    let log = log(20);
    let file = SideFile::load(&side(&log, false)).unwrap();
    assert!(file.records().len() >= 3);
    let mut end = Position::ZERO;
    for (i, record) in file.records().iter().enumerate() {
        assert_eq!(record.from, end);
        let is_last = i + 1 == file.records().len();
        assert!(is_last || record.to.since(record.from) >= INTERVAL);
        end = record.to;
    }
    assert_eq!(file.end_position().get(), log.len() as u64);
    assert_eq!(file.end_offset(), Offset::new(120));
    assert_eq!(file.end().max_timestamp, Timestamp::new(1019));
    assert_eq!(file.records().iter().map(|r| r.batch_count).sum::<u32>(), 20);
    assert!(!file.is_sealed());
    assert_eq!((file.problem(), verify(&file, &log)), (None, Ok(true)));
    file.check_identity(ID).unwrap();
    let other = SegmentIdentity { partition: 4, ..ID };
    assert_eq!(file.check_identity(other), Err(SideFileError::Identity { expected: other, found: ID }));
}

/// A flipped bit in base offset or leader epoch passes Kafka's CRC; the chain finds it. (In the other bytes
/// before 21 the walk itself stumbles.)
#[test]
fn flips_outside_the_crc_are_found() {
    let log = log(12);
    let file = SideFile::load(&side(&log, true)).unwrap();
    let second = batches(&log)[1].0.get() as usize;
    for at in (0..8).chain(12..16) {
        let mut damaged = log.clone();
        damaged[second + at] ^= 1;
        let stop = BatchWalk::new(&damaged, Position::ZERO, Offset::ZERO, Check::Crc).run();
        if stop.reason == StopReason::End {
            let record = file.records()[0];
            let mismatch = ChainMismatch { record: 0, from: record.from, to: record.to };
            assert_eq!(verify(&file, &damaged), Err(mismatch), "byte {at}");
        } else {
            assert!(at < 8, "leader epochs are free of any rule, byte {at}");
        }
    }
}

/// Batches with good CRCs in the wrong place: swapped, or from another partition's log.
#[test]
fn misplaced_batches_are_found() {
    let log = log(12);
    let len = batches(&log)[1].0.get() as usize;
    let file = SideFile::load(&side(&log, true)).unwrap();
    let mut lost = log.clone();
    lost.drain(len..2 * len); // a lost write that later writes closed up
    assert!(verify(&file, &lost).is_err());
    let mut foreign = file.clone();
    foreign.identity.partition = 4;
    assert!(verify(&foreign, &log).is_err());
    assert_eq!(verify(&file, &log[..6 * len]), Ok(false), "a log cut short leaves records without batches");
}

#[test]
fn torn_ends_are_ends_and_damage_is_named() {
    let good = side(&log(20), true);
    let all = SideFile::load(&good).unwrap();
    let count = all.records().len();
    for cut in SIDE_HEADER_LEN..good.len() {
        let file = SideFile::load(&good[..cut]).unwrap();
        assert_eq!((file.records().len(), file.problem()), ((cut - 64) / 64, None), "{cut}");
        assert_eq!(file.valid_len().as_usize(), cut / 64 * 64);
    }
    let mut zeros = good.clone();
    zeros.resize(good.len() + 130, 0);
    assert_eq!(SideFile::load(&zeros).unwrap(), all);

    let mut last = good.clone();
    last[good.len() - 30] ^= 1;
    let file = SideFile::load(&last).unwrap();
    assert_eq!((file.records().len(), file.problem()), (count - 1, None), "the last record was torn");
    let mut middle = good.clone();
    middle[64 * 2 + 30] ^= 1;
    let file = SideFile::load(&middle).unwrap();
    assert_eq!((file.records().len(), file.problem()), (1, Some(SideFileProblem::Damaged(1))));
    let mut skipped = good.clone();
    skipped.drain(64..128);
    let file = SideFile::load(&skipped).unwrap();
    assert_eq!((file.records().len(), file.problem()), (0, Some(SideFileProblem::Order(0))));
}

#[test]
fn bad_headers_are_refused() {
    let good = side(&log(1), true);
    assert_eq!(SideFile::load(&good[..63]), Err(SideFileError::TooShort(ByteCount::new(63))));
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        SideFile::load(&bytes).unwrap_err()
    };
    assert_eq!(with(0, b'X'), SideFileError::Magic(*b"XPCHAIN\0"));
    assert_eq!(with(8, 2), SideFileError::Version(2));
    assert!(matches!(with(12, 9), SideFileError::HeaderCrc { .. }));
}

/// A segment without a batch can be sealed, and its side file agrees with it.
#[test]
fn empty_segment() {
    let file = SideFile::load(&side(&[], true)).unwrap();
    assert!(file.is_sealed());
    assert_eq!(verify(&file, &[]), Ok(true));
    assert_eq!(SideFile::load(&side(&[], false)).unwrap().end_offset(), ID.base_offset);
}

proptest! {
    /// Closed and resumed anywhere, or cut back and rewritten, the file ends up equal in meaning: it agrees with
    /// the log and covers it.
    #[test]
    fn resume_and_truncate(count in 1..30i64, stop in 0..30usize, cut in 0..30usize) {
        let log = log(count);
        let all = batches(&log);
        let at = |n: usize| all.get(n).map_or(log.len(), |(p, _)| p.get() as usize);
        let mut file = side(&log[..at(stop)], false);
        let loaded = SideFile::load(&file).unwrap().truncated(Position::new(at(cut) as u64));
        prop_assert!(loaded.end_position().get() <= at(cut) as u64);
        file.truncate(loaded.valid_len().as_usize());
        prop_assert_eq!(&SideFile::load(&file).unwrap(), &loaded);
        let mut builder = SideFileBuilder::resume(&loaded, INTERVAL);
        for (position, batch) in all.iter().filter(|(p, _)| *p >= loaded.end_position()) {
            file.extend(builder.push_batch(batch, *position).into_iter().flatten());
        }
        file.extend(builder.seal());
        let loaded = SideFile::load(&file).unwrap();
        prop_assert_eq!(loaded.problem(), None);
        prop_assert_eq!(loaded.end_position().get(), log.len() as u64);
        prop_assert_eq!(verify(&loaded, &log), Ok(true));
        if loaded.records().len() > 1 {
            let mut verifier = ChainVerifier::after_record(&loaded, 0);
            for (position, batch) in all.iter().filter(|(p, _)| *p >= loaded.records()[0].to) {
                verifier.push_batch(batch, *position).unwrap();
            }
            prop_assert!(verifier.is_complete());
        }
    }
}
