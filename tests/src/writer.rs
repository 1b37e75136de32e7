//! Records that tests append and know again: number i has key `key-i` and value `value-i-` and 100 letters.

use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::{Offset, Timestamp};

const START_MS: i64 = 1_700_000_000_000;

/// A batch of `records` records from number `base` on, at that offset.
pub fn batch(base: i64, records: usize) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    batch.base_offset(Offset::new(base));
    for number in base..base + records as i64 {
        let (key, value) = (key(number as usize), value(number as usize));
        batch.record(Timestamp::new(START_MS + number), Some(key.as_bytes()), Some(value.as_bytes()));
    }
    batch.build()
}

/// Record `number`, if that is its offset too, as [`crate::kafka::Broker::consume`] prints it.
pub fn printed(number: usize) -> String {
    format!("{number}\t{}\t{}", key(number), value(number))
}

/// Key of record `number`.
pub fn key(number: usize) -> String {
    format!("key-{number}")
}

/// Value of record `number`.
pub fn value(number: usize) -> String {
    format!("value-{number}-{}", "abcdefghij".repeat(10))
}
