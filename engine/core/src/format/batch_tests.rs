//! Record batches against bytes that Apache Kafka 4.3.1's own `MemoryRecordsBuilder` wrote, and at every limit.

use proptest::prelude::*;

use super::*;
use crate::format::build::BatchBuilder;
use crate::format::record::{Record, RecordError, Records};
use crate::format::walk::{BatchWalk, Check, StopReason};
use crate::types::Position;

/// Written by Kafka's builder: base offset 1234567890123, epoch 42, transactional, producer 4000/7, sequence
/// 2^31-1, three records: key+value; null key and two headers, one of them null; a tombstone.
const KAFKA_BATCH: &str = "0000011f71fb04cb000000610000002a02296feee70010000000020000018bcfe568000000018bcfe569f4\
     0000000000000fa000077fffffff000000031c000000066b65790a76616c7565002800e80702010c6e6f206b657904026802780\
     26e011600f4030408676f6e650100";
/// Written by Kafka: the commit marker of a transaction, coordinator epoch 5, leader epoch 3.
const KAFKA_COMMIT_MARKER: &str = "000000000000004d000000420000000302dfa36aa50030000000000000018bcfe56be800000\
     18bcfe56be80000000000000fa00007ffffffff000000012000000008000000010c00000000000500";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn simple() -> Vec<u8> {
    BatchBuilder::new().record(Timestamp::new(5), Some(b"k"), Some(b"value")).build()
}

/// Overwrites bytes and, if asked, makes the CRC right again.
fn with(mut batch: Vec<u8>, at: usize, bytes: &[u8], fix_crc: bool) -> Vec<u8> {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    if fix_crc {
        let crc = crc32c(&batch[CRC_START..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    batch
}

#[test]
fn kafka_header_field_by_field() {
    let bytes = hex(KAFKA_BATCH);
    let header = validate_append(&bytes, BATCH_LEN_MAX_DEFAULT).unwrap();
    assert_eq!(header.base_offset(), Offset::new(1_234_567_890_123));
    assert_eq!(header.last_offset(), Offset::new(1_234_567_890_125));
    assert_eq!(header.next_offset(), Offset::new(1_234_567_890_126));
    assert_eq!(header.batch_len(), ByteCount::of_usize(bytes.len()));
    assert_eq!(header.leader_epoch(), LeaderEpoch::new(42));
    assert_eq!(header.magic(), 2);
    assert_eq!(header.crc(), 695_201_511);
    assert_eq!(header.attributes().bits(), 0x10);
    assert!(header.attributes().is_transactional() && !header.attributes().is_control());
    assert_eq!(header.attributes().codec(), Ok(Codec::None));
    assert_eq!(header.attributes().timestamp_type(), TimestampType::CreateTime);
    assert_eq!(header.delete_horizon(), None);
    assert_eq!(header.base_timestamp(), Timestamp::new(1_700_000_000_000));
    assert_eq!(header.max_timestamp(), Timestamp::new(1_700_000_000_500));
    assert_eq!((header.producer_id(), header.producer_epoch()), (4000, 7));
    assert_eq!((header.base_sequence(), header.last_sequence()), (i32::MAX, 1));
    assert_eq!((header.count(), header.last_offset_delta()), (3, 2));
    assert_eq!(BatchPrefix::peek(&bytes[..PREFIX_LEN]).unwrap(), header.prefix());
    assert_eq!(header.unprotected_bytes(), bytes[..CRC_START]);
}

#[test]
fn kafka_records_and_our_builder_agree() {
    let bytes = hex(KAFKA_BATCH);
    let header = BatchHeader::peek(&bytes).unwrap();
    let records: Vec<Record<'_>> = Records::new(header, &bytes).unwrap().map(Result::unwrap).collect();
    let ts: Vec<i64> = records.iter().map(|r| r.timestamp.get() - 1_700_000_000_000).collect();
    assert_eq!(ts, [0, 500, 250]);
    assert_eq!(records[1].headers().collect::<Vec<_>>(), [(&b"h"[..], Some(&b"x"[..])), (b"n", None)]);
    assert_eq!((records[2].key, records[2].value), (Some(&b"gone"[..]), None));

    let mut builder = BatchBuilder::new();
    builder.base_offset(header.base_offset()).leader_epoch(LeaderEpoch::new(42)).producer(4000, 7, i32::MAX);
    builder.attributes(Attributes::default().transactional());
    for r in &records {
        let headers: Vec<_> = r.headers().map(|(k, v)| (std::str::from_utf8(k).unwrap(), v)).collect();
        builder.record_with_headers(r.timestamp, r.key, r.value, &headers);
    }
    assert_eq!(builder.build(), bytes);
}

/// A control batch is stored and readable, but a producer may not send one.
#[test]
fn kafka_commit_marker() {
    let bytes = hex(KAFKA_COMMIT_MARKER);
    let header = validate(&bytes, BATCH_LEN_MAX_DEFAULT).unwrap();
    assert!(header.attributes().is_control() && header.attributes().is_transactional());
    assert_eq!((header.base_offset(), header.leader_epoch()), (Offset::new(77), LeaderEpoch::new(3)));
    assert_eq!(header.last_sequence(), -1);
    let record = Records::new(header, &bytes).unwrap().next().unwrap().unwrap();
    assert_eq!((record.key, record.value), (Some(&[0, 0, 0, 1][..]), Some(&[0, 0, 0, 0, 0, 5][..])));
    assert_eq!(validate_append(&bytes, BATCH_LEN_MAX_DEFAULT), Err(BatchError::ControlFromProducer));
}

#[test]
fn patch_leaves_the_crc_valid() {
    let mut bytes = simple();
    patch(&mut bytes, Offset::new(99), LeaderEpoch::new(6));
    let header = validate(&bytes, BATCH_LEN_MAX_DEFAULT).unwrap();
    assert_eq!((header.base_offset(), header.leader_epoch()), (Offset::new(99), LeaderEpoch::new(6)));
}

#[test]
fn every_flipped_bit_under_the_crc_is_found() {
    let bytes = hex(KAFKA_BATCH);
    for at in 17..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let error = validate(&flipped, BATCH_LEN_MAX_DEFAULT).unwrap_err();
            let field_check = matches!(error, BatchError::Offsets { .. } | BatchError::Count { .. });
            assert!(field_check || matches!(error, BatchError::Crc { .. }), "byte {at} bit {bit}: {error}");
        }
    }
}

#[test]
fn length_field_at_its_limits() {
    let length = |value: i32| BatchPrefix::peek(&with(simple(), 8, &value.to_be_bytes(), false));
    for found in [i32::MIN, -1, 0, 48, i32::MAX - 11, i32::MAX] {
        assert_eq!(length(found), Err(BatchError::Length { found }));
    }
    assert_eq!(length(49).unwrap().len(), ByteCount::new(61));
    assert_eq!(length(i32::MAX - 12).unwrap().len(), BATCH_LEN_MAX_STORABLE);
}

#[test]
fn cut_short_says_what_is_needed() {
    let bytes = simple();
    let cut = |len: usize| validate(&bytes[..len], BATCH_LEN_MAX_DEFAULT).unwrap_err();
    let needs = |n: usize, len: usize| incomplete(n, len);
    assert_eq!(cut(0), needs(61, 0));
    assert_eq!(cut(60), needs(61, 60));
    assert_eq!(cut(61), needs(bytes.len(), 61));
    assert_eq!(cut(bytes.len() - 1), needs(bytes.len(), bytes.len() - 1));
    assert_eq!(BatchPrefix::peek(&bytes[..26]), Err(needs(27, 26)));
}

#[test]
fn size_limit_from_both_sides() {
    let of = |len: usize| {
        let mut batch = BatchBuilder::new();
        let near = batch.record(Timestamp::new(0), None, Some(&vec![0; len - 100])).len();
        let value = vec![7; len - 100 + (len - near)]; // the same varint lengths as the near miss
        BatchBuilder::new().record(Timestamp::new(0), None, Some(&value)).build()
    };
    let max = BATCH_LEN_MAX_DEFAULT.as_usize();
    let fits = of(max);
    assert_eq!(fits.len(), max);
    assert!(validate_append(&fits, BATCH_LEN_MAX_DEFAULT).is_ok());
    let over = of(max + 1);
    let found = ByteCount::of_usize(max + 1);
    let refused = Err(BatchError::TooLarge { max: BATCH_LEN_MAX_DEFAULT, found });
    assert_eq!(validate_append(&over, BATCH_LEN_MAX_DEFAULT), refused);
    assert!(validate(&over, BATCH_LEN_MAX_STORABLE).is_ok(), "stored batches of any size are readable");
}

#[test]
fn header_fields_that_contradict_each_other() {
    let peek = |at, bytes: &[u8]| BatchHeader::peek(&with(simple(), at, bytes, true));
    assert_eq!(peek(16, &[1]), Err(BatchError::Magic { found: 1 }));
    assert_eq!(peek(0, &(-1i64).to_be_bytes()), Err(BatchError::Offsets { base: -1, delta: 0 }));
    assert_eq!(peek(0, &i64::MAX.to_be_bytes()), Err(BatchError::Offsets { base: i64::MAX, delta: 0 }));
    assert!(peek(0, &(i64::MAX - 1).to_be_bytes()).is_ok());
    assert_eq!(peek(23, &(-1i32).to_be_bytes()), Err(BatchError::Offsets { base: 0, delta: -1 }));
    assert_eq!(peek(57, &2i32.to_be_bytes()), Err(BatchError::Count { max: 1, found: 2 }));
    assert_eq!(peek(57, &(-1i32).to_be_bytes()), Err(BatchError::Count { max: 1, found: -1 }));
    assert!(peek(57, &0i32.to_be_bytes()).is_ok(), "compaction leaves empty batches");
}

#[test]
fn producer_rules() {
    let append = |at, bytes: &[u8]| validate_append(&with(simple(), at, bytes, true), BATCH_LEN_MAX_DEFAULT);
    assert_eq!(append(57, &0i32.to_be_bytes()), Err(BatchError::AppendCount { expected: 1, found: 0 }));
    assert_eq!(append(23, &1i32.to_be_bytes()), Err(BatchError::AppendCount { expected: 2, found: 1 }));
    assert_eq!(append(22, &[5]), Err(BatchError::Codec { found: 5 }));
    assert!(append(22, &[4]).is_ok(), "zstd is opaque to us");
    let sequence = Err(BatchError::Sequence { producer_id: 9, found: -1 });
    assert_eq!(append(43, &9i64.to_be_bytes()), sequence);
    assert!(append(0, &77i64.to_be_bytes()).is_ok(), "the log assigns the base offset");

    let mut two = simple();
    let expected = ByteCount::of_usize(two.len());
    two.extend_from_slice(&simple());
    let found = ByteCount::of_usize(two.len());
    assert_eq!(
        validate_append(&two, BATCH_LEN_MAX_DEFAULT),
        Err(BatchError::TrailingBytes { expected, found })
    );
}

#[test]
fn attribute_bits() {
    let all = Attributes::default().with_codec(Codec::Zstd).transactional().control().log_append_time();
    assert_eq!(all.bits(), 0x3c);
    assert_eq!((all.codec(), all.timestamp_type()), (Ok(Codec::Zstd), TimestampType::LogAppendTime));
    let stamped = with(simple(), 22, &[0x40], true);
    assert_eq!(BatchHeader::peek(&stamped).unwrap().delete_horizon(), Some(Timestamp::new(5)));
}

/// With the broker's clock every record has the batch's maximum timestamp, whatever its delta says.
#[test]
fn log_append_time_overrides_record_timestamps() {
    let mut batch = BatchBuilder::new();
    batch.attributes(Attributes::default().log_append_time());
    let bytes = batch.record(Timestamp::new(10), None, None).record(Timestamp::new(20), None, None).build();
    let header = BatchHeader::peek(&bytes).unwrap();
    let stamps: Vec<_> = Records::new(header, &bytes).unwrap().map(|r| r.unwrap().timestamp.get()).collect();
    assert_eq!(stamps, [20, 20]);
}

#[test]
fn malformed_records_are_named() {
    let read = |bytes: &[u8]| {
        let header = BatchHeader::peek(bytes).unwrap();
        Records::new(header, bytes)
            .and_then(|records| records.collect::<Result<Vec<_>, _>>().map(|r| r.len()))
    };
    assert_eq!(read(&simple()), Ok(1));
    assert_eq!(read(&with(simple(), 22, &[2], true)), Err(RecordError::Compressed(Codec::Snappy)));
    assert_eq!(read(&with(simple(), 57, &0i32.to_be_bytes(), true)), Err(RecordError::Trailing(13)));
    let malformed = |field, at| Err(RecordError::Malformed { index: 0, field, at });
    assert_eq!(read(&with(simple(), 61, &[0x7e], true)), malformed("length", 0));
    assert_eq!(read(&with(simple(), 64, &[2], true)), malformed("offset delta", 4));
    assert_eq!(read(&with(simple(), 65, &[0x7e], true)), malformed("key", 5));
}

type Fields = Vec<(i64, Option<Vec<u8>>, Option<Vec<u8>>)>;

fn records() -> impl Strategy<Value = Fields> {
    let bytes = || prop::option::of(prop::collection::vec(any::<u8>(), 0..200));
    prop::collection::vec((0..i64::MAX / 2, bytes(), bytes()), 1..20)
}

proptest! {
    #[test]
    fn build_then_read_gives_the_records_back(records in records(), base in 0..i64::MAX / 2) {
        let mut builder = BatchBuilder::new();
        builder.base_offset(Offset::new(base));
        for (at, key, value) in &records {
            builder.record(Timestamp::new(*at), key.as_deref(), value.as_deref());
        }
        let bytes = builder.build();
        let header = validate_append(&bytes, BATCH_LEN_MAX_DEFAULT).unwrap();
        prop_assert_eq!(header.max_timestamp().get(), records.iter().map(|r| r.0).max().unwrap());
        let read: Vec<_> = Records::new(header, &bytes).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(read.len(), records.len());
        for (i, (got, (at, key, value))) in read.iter().zip(&records).enumerate() {
            prop_assert_eq!(got.offset, Offset::new(base + i as i64));
            prop_assert_eq!(got.timestamp.get(), *at);
            prop_assert_eq!(got.key, key.as_deref());
            prop_assert_eq!(got.value, value.as_deref());
        }
    }

    /// Foreign bytes never panic anything here, and a walk never leaves its window with `Check::Crc`.
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), like_a_batch: bool) {
        if like_a_batch && bytes.len() > 61 {
            bytes[8..12].copy_from_slice(&(61i32 - 12 + 30).to_be_bytes());
            bytes[16] = 2;
            bytes[0] = 0;
            bytes[23..27].copy_from_slice(&5i32.to_be_bytes());
            bytes[57..61].copy_from_slice(&3i32.to_be_bytes());
            bytes[22] = 0;
        }
        let _ = BatchPrefix::peek(&bytes);
        let _ = validate_append(&bytes, BATCH_LEN_MAX_DEFAULT);
        if let Ok(header) = BatchHeader::peek(&bytes) {
            for record in Records::decompressed(header, &bytes[HEADER_LEN..]).flatten() {
                let _ = record.headers().count();
            }
        }
        let stop = BatchWalk::new(&bytes, Position::ZERO, Offset::ZERO, Check::Crc).run();
        prop_assert!(stop.position.get() <= bytes.len() as u64);
        prop_assert!(!bytes.is_empty() || stop.reason == StopReason::End);
    }
}
