//! Makes what producers send: valid batches whose content tells them apart, and bytes that must be refused.

use bytes::Bytes;
use rohrpost_engine_core::format::batch::{self, Attributes, HEADER_LEN};
use rohrpost_engine_core::format::build::BatchBuilder;
use rohrpost_engine_core::types::Timestamp;

use crate::prng::Prng;

/// Makes batches; no two are alike.
#[derive(Debug, Default)]
pub struct Batches {
    serial: u64,
    builder: BatchBuilder,
}

impl Batches {
    /// A batch of one to four records of up to `value_len_max` bytes, at most `len_max` long.
    pub fn make(&mut self, prng: &mut Prng, now: Timestamp, value_len_max: u64, len_max: u64) -> Vec<u8> {
        let mut count = if prng.one_in(3) { prng.range(1, 4) } else { 1 };
        let mut longest = value_len_max;
        loop {
            self.builder.clear();
            if prng.one_in(8) {
                let id = prng.range(0, 3) as i64;
                self.builder.producer(id, 0, prng.below(1000) as i32);
            } else {
                self.builder.producer(-1, -1, -1);
            }
            for _ in 0..count {
                let value = self.value(prng.magnitude(0, longest) as usize);
                self.builder.record(timestamp(prng, now), None, Some(&value));
            }
            if self.builder.len() as u64 <= len_max {
                return self.builder.build();
            }
            (count, longest) = (1, longest / 2);
        }
    }

    /// Bytes that look like batches and must be refused.
    pub fn make_invalid(&mut self, prng: &mut Prng, now: Timestamp, len_max: u64) -> Vec<u8> {
        let mut bytes = self.make(prng, now, 500, len_max);
        match prng.below(8) {
            0 => {
                let at = prng.range(21, bytes.len() as u64 - 1) as usize;
                bytes[at] ^= 1 << prng.below(8);
            }
            1 => bytes.truncate(prng.index(bytes.len())),
            2 => bytes[16] = 1,
            3 => bytes[8..12].copy_from_slice(&(prng.next_u64() as i32).to_be_bytes()),
            4 => return self.too_large(len_max, now),
            5 => {
                let control = Attributes::default().control();
                self.builder.attributes(control);
                bytes = self.builder.build();
                self.builder.attributes(Attributes::default());
            }
            6 => {
                // A good batch first: all of them are accepted, or none.
                let mut later = self.make(prng, now, 500, len_max);
                later[HEADER_LEN] ^= 0x10;
                bytes.extend_from_slice(&later);
            }
            _ => {
                let garbage = prng.range(1, 200) as usize;
                bytes = (0..garbage).map(|_| prng.next_u64() as u8).collect();
            }
        }
        bytes
    }

    fn too_large(&mut self, len_max: u64, now: Timestamp) -> Vec<u8> {
        let value = self.value(len_max as usize);
        self.builder.clear().record(now, None, Some(&value));
        self.builder.build()
    }

    /// A value that occurs once.
    fn value(&mut self, len: usize) -> Vec<u8> {
        self.serial += 1;
        let mut value = self.serial.to_be_bytes().to_vec();
        value.extend((0..len).map(|at| (self.serial as usize).wrapping_mul(31).wrapping_add(at * 7) as u8));
        value
    }
}

/// Splits what was made into its batches.
pub fn split(bytes: &Bytes) -> Vec<Bytes> {
    let mut batches = Vec::new();
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        let header = batch::BatchHeader::peek(&rest).expect("made by `Batches::make`");
        batches.push(rest.split_to(header.batch_len().as_usize()));
    }
    batches
}

/// Mostly now; sometimes out of order, sometimes none.
fn timestamp(prng: &mut Prng, now: Timestamp) -> Timestamp {
    match prng.below(16) {
        0 => Timestamp::new(now.get() - prng.magnitude(0, 60_000) as i64),
        1 => Timestamp::new(now.get() + prng.magnitude(0, 60_000) as i64),
        2 => Timestamp::NONE,
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use rohrpost_engine_core::types::ByteCount;

    use super::*;

    #[test]
    fn valid_batches_are_valid_and_all_different() {
        let (mut batches, mut prng) = (Batches::default(), Prng::new(1));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let made = batches.make(&mut prng, Timestamp::new(1_700_000_000_000), 3000, 1500);
            batch::validate_append(&made, ByteCount::new(1500)).expect("a valid batch");
            assert!(seen.insert(made));
        }
    }

    #[test]
    fn invalid_ones_are_refused_whole() {
        let (mut batches, mut prng) = (Batches::default(), Prng::new(2));
        let mut first_is_valid = 0;
        for _ in 0..500 {
            let made = batches.make_invalid(&mut prng, Timestamp::new(1_700_000_000_000), 1500);
            let mut rest = &made[..];
            let refused = loop {
                match batch::BatchHeader::peek(rest).map(|header| header.batch_len().as_usize()) {
                    Ok(len) if len < rest.len() => {
                        if batch::validate_append(&rest[..len], ByteCount::new(1500)).is_err() {
                            break true;
                        }
                        first_is_valid += 1;
                        rest = &rest[len..];
                    }
                    _ => break batch::validate_append(rest, ByteCount::new(1500)).is_err(),
                }
            };
            assert!(refused, "{made:?}");
        }
        assert!(first_is_valid > 0, "no request was bad only in its second batch");
    }
}
