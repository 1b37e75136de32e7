//! From nothing to a durable append and a fetch: `cargo run --example append_and_fetch -- DIR`.

use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::{ByteCount, Engine, EngineOptions, LogConfig, Timestamp};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: append_and_fetch DIR")?;
    let engine = Engine::start(EngineOptions::new(&dir))?;
    println!("{:?}", engine.driver());
    let orders = engine.handle().open_partition_blocking(&"orders-0".parse()?, LogConfig::default())?;

    let mut batch = BatchBuilder::new();
    batch.record(Timestamp::new(1_700_000_000_000), Some(b"key"), Some(b"a letter"));
    let appended = orders.append(batch.build().into()).wait()?; // on the device when this returns
    println!("appended at offset {}", appended.base_offset);

    let fetched = orders.fetch(appended.base_offset, ByteCount::mib(1)).wait()?;
    println!("fetched {} bytes, high watermark {}", fetched.len(), fetched.outcome.watermarks.high_watermark);
    engine.shutdown()?;
    Ok(())
}
