//! The engine through its handle, on both drivers: what is acknowledged is there, also after a restart.

use bytes::Bytes;
use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::format::walk::{BatchWalk, Check};
use rohrpost_engine::{
    ByteCount, DriverChoice, Engine, EngineOptions, FetchRequest, LogConfig, Offset, Partition, Position,
    RequestError, ShardLimits, Timestamp,
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

/// The counters of a shard can be read while it runs: what was appended is in them, and what was written ahead of the
/// writer; the scheduler's budget is whole where nothing old is read. A shard that has ended says so.
#[test]
fn counters_are_readable_while_shards_run() {
    const TRIES: u8 = 250;
    for driver in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let engine =
            Engine::start(EngineOptions { cores: vec![None; 2], ..options(dir.path(), driver) }).unwrap();
        let handle = engine.handle();
        let config = LogConfig { preallocate_len_min: ByteCount::kib(256), ..LogConfig::default() };
        let partition = handle.open_partition_blocking(&"t-0".parse().unwrap(), config).unwrap();
        let mut appended = 0;
        let ran_ahead = (0..TRIES).any(|i| {
            let batch = batch(i, 1, 16_000);
            appended += batch.len() as u64;
            partition.append(batch).wait().unwrap();
            let [busy, idle] = handle.stats_blocking().unwrap()[..] else { panic!("two shards") };
            assert_eq!((busy.committed_len, idle.committed_len), (appended, 0), "{driver:?}");
            let budget = ShardLimits::default().cold_read_bytes_max.get();
            assert_eq!((busy.cold_budget_len, busy.cold_budget_len_min), (budget, budget), "{driver:?}");
            busy.zeros_len > 0
        });
        assert!(ran_ahead, "{driver:?}: no zeros beside {appended} bytes of short commits");
        engine.shutdown().unwrap();
        assert!(matches!(handle.stats_blocking(), Err(RequestError::Stopped)), "{driver:?}");
    }
}
