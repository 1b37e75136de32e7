//! The engine through its handle, on both drivers: what is acknowledged is there, also after a restart.

use bytes::Bytes;
use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::format::walk::{BatchWalk, Check};
use rohrpost_engine::{
    ByteCount, DriverChoice, Engine, EngineOptions, FetchRequest, LogConfig, Offset, Partition, Position,
    Timestamp,
};

const DRIVERS: [DriverChoice; 2] = [DriverChoice::Poll, DriverChoice::Uring];

fn options(dir: &std::path::Path, driver: DriverChoice) -> EngineOptions {
    EngineOptions { driver, ..EngineOptions::new(dir) }
}

fn batch(seed: u8, records: usize, value_len: usize) -> Bytes {
    let mut builder = BatchBuilder::new();
    for i in 0..records {
        let value = vec![seed.wrapping_add(i as u8); value_len];
        builder.record(Timestamp::new(1_000 + i as i64), Some(b"key"), Some(&value));
    }
    builder.build().into()
}

/// Every byte from `from` on, checked batch by batch.
fn read_all(partition: &Partition, from: Offset) -> Vec<u8> {
    let (mut all, mut offset) = (Vec::new(), from);
    loop {
        let fetched = partition.fetch(offset, ByteCount::mib(1)).wait().unwrap();
        if fetched.is_empty() {
            return all;
        }
        let bytes = fetched.to_bytes();
        let mut walk = BatchWalk::new(&bytes, Position::ZERO, offset, Check::Crc);
        let mut used = 0;
        for (position, header) in walk.by_ref() {
            used = (position.get() + header.batch_len().get()) as usize;
            offset = header.next_offset();
        }
        assert!(used > 0, "a first batch is whole");
        all.extend_from_slice(&bytes[..used]);
    }
}

#[test]
fn acknowledged_batches_are_there_after_clean_and_abrupt_ends() {
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig {
            segment_len_max: ByteCount::mib(2),
            batch_len_max: ByteCount::kib(512),
            ..LogConfig::default()
        };
        let mut expected_len = 0;
        let mut next = Offset::ZERO;
        for round in 0..3u8 {
            let engine = Engine::start(options(dir.path(), driver)).unwrap();
            let partition = engine
                .handle()
                .open_partition_blocking(&"orders-0".parse().unwrap(), config.clone())
                .unwrap();
            let marks = partition.watermarks().wait().unwrap();
            assert_eq!(marks.high_watermark, next, "{driver:?} round {round}");
            let pending: Vec<_> = (0..100u8)
                .map(|i| {
                    let batch = batch(i, 1 + usize::from(i % 7), 1 + usize::from(i) * 150);
                    expected_len += batch.len();
                    partition.append(batch)
                })
                .collect();
            for pending in pending {
                let appended = pending.wait().unwrap();
                assert_eq!(appended.base_offset, next);
                next = appended.end_offset;
            }
            assert_eq!(read_all(&partition, Offset::ZERO).len(), expected_len, "{driver:?} round {round}");
            if round == 1 {
                drop(engine);
            } else {
                engine.shutdown().unwrap();
            }
        }
    }
}

#[test]
fn a_parked_fetch_gets_what_is_appended_later() {
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(options(dir.path(), driver)).unwrap();
        let partition =
            engine.handle().open_partition_blocking(&"t-1".parse().unwrap(), LogConfig::default()).unwrap();
        let waiting = partition.fetch_with(FetchRequest {
            len_min: ByteCount::new(1),
            wait_ms_max: 60_000,
            ..FetchRequest::new(partition.id(), Offset::ZERO, ByteCount::mib(1))
        });
        let appended = partition.append(batch(1, 3, 10)).wait().unwrap();
        let fetched = waiting.wait().unwrap();
        assert_eq!(fetched.outcome.watermarks.high_watermark, appended.end_offset);
        assert!(!fetched.is_empty());
        engine.shutdown().unwrap();
    }
}
