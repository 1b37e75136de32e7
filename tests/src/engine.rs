//! The engine as its users have it: started on a directory, read to the end, stopped.

use std::path::Path;

use bytes::Bytes;
use rohrpost_engine::format::batch::BatchHeader;
use rohrpost_engine::format::record::Records;
use rohrpost_engine::format::walk::{BatchWalk, Check};
use rohrpost_engine::{
    ByteCount, DriverChoice, Engine, EngineOptions, LogConfig, Offset, Partition, Position, TopicPartition,
};

/// Bytes asked for at a time: several fetches a segment, several batches a fetch.
const FETCH_LEN: ByteCount = ByteCount::kib(24);

/// Keeps everything, and rolls after 64 KiB.
pub fn small_segments() -> LogConfig {
    LogConfig {
        segment_len_max: ByteCount::kib(64),
        batch_len_max: ByteCount::kib(60),
        retention_ms: None,
        ..LogConfig::default()
    }
}

/// An engine on `dir`.
///
/// # Panics
/// If it does not start.
pub fn start(dir: &Path, driver: DriverChoice) -> Engine {
    let options = EngineOptions { driver, ..EngineOptions::new(dir) };
    Engine::start(options).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

/// Opens a partition by name.
///
/// # Panics
/// If it cannot be opened.
pub fn open(engine: &Engine, name: &str, config: LogConfig) -> Partition {
    let name: TopicPartition = name.parse().expect("a partition's name");
    engine.handle().open_partition_blocking(&name, config).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Appends one batch and waits until it is durable; returns its base offset.
///
/// # Panics
/// If it is refused.
pub fn append(partition: &Partition, batch: Vec<u8>) -> i64 {
    let appended = partition.append(Bytes::from(batch)).wait();
    appended.unwrap_or_else(|e| panic!("{}: {e}", partition.name())).base_offset.get()
}

/// Every batch from the log start to the high watermark, end to end.
///
/// # Panics
/// If a fetch fails, or returns anything but whole batches and perhaps the beginning of another.
pub fn read_all(partition: &Partition) -> Vec<u8> {
    let ends = partition.watermarks().wait().unwrap_or_else(|e| panic!("{}: {e}", partition.name()));
    let (mut all, mut next) = (Vec::new(), ends.log_start_offset);
    while next < ends.high_watermark {
        let fetched = partition.fetch(next, FETCH_LEN).wait();
        let bytes = fetched.unwrap_or_else(|e| panic!("{} at {next}: {e}", partition.name())).to_bytes();
        let stop = BatchWalk::new(&bytes, Position::ZERO, Offset::ZERO, Check::Crc).run();
        assert!(stop.next_offset > next, "{} at {next}: {:?}", partition.name(), stop.reason);
        all.extend_from_slice(&bytes[..stop.position.get() as usize]);
        next = stop.next_offset;
    }
    all
}

/// The records of uncompressed batches, as [`crate::kafka::Broker::consume`] prints them.
///
/// # Panics
/// If the bytes are anything else.
pub fn printed(batches: &[u8]) -> Vec<String> {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"null")).into_owned();
    let mut lines = Vec::new();
    for (position, header) in BatchWalk::new(batches, Position::ZERO, Offset::ZERO, Check::Crc) {
        let header: BatchHeader = header;
        let batch = &batches[position.get() as usize..];
        for record in Records::new(header, batch).expect("records that are not compressed") {
            let record = record.expect("a whole record");
            lines.push(format!("{}\t{}\t{}", record.offset, text(record.key), text(record.value)));
        }
    }
    lines
}
