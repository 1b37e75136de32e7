//! Seeded mutations: what a fuzzer without a compiler's help does.

use rohrpost_engine_sim::prng::Prng;

/// Longest input that mutations make, bytes.
pub const INPUT_LEN_MAX: usize = 64 << 10;

const NUMBERS: [i64; 12] =
    [0, 1, -1, 2, 61, 255, 4096, i32::MAX as i64, i32::MIN as i64, i64::MAX, i64::MIN, 0x7fff_fff0];

/// A few changes to `seed`, some of them with pieces of `other`.
pub fn mutate(seed: &[u8], other: &[u8], prng: &mut Prng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..prng.magnitude(1, 12) {
        change(&mut bytes, other, prng);
    }
    bytes.truncate(INPUT_LEN_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], prng: &mut Prng) {
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        bytes.push(prng.next_u64() as u8);
        return;
    }
    let at = prng.index(bytes.len());
    let len = prng.magnitude(1, (bytes.len() - at) as u64) as usize;
    match prng.below(9) {
        0 => bytes[at] ^= 1 << prng.below(8),
        1 => bytes[at] = prng.next_u64() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..at + len)),
        4 => bytes[at..at + len].fill(if prng.one_in(2) { 0 } else { 0xff }),
        5 => {
            let copy = bytes[at..at + len].to_vec();
            let to = prng.index(bytes.len());
            bytes.splice(to..to, copy);
        }
        6 if !other.is_empty() => {
            let from = prng.index(other.len());
            let len = prng.magnitude(1, (other.len() - from) as u64) as usize;
            bytes.splice(at..at, other[from..from + len].iter().copied());
        }
        _ => {
            let number = *prng.pick(&NUMBERS);
            let width = *prng.pick(&[2, 4, 8]);
            let encoded = if prng.one_in(2) { number.to_be_bytes() } else { number.to_le_bytes() };
            let encoded = if prng.one_in(2) { &encoded[8 - width..] } else { &encoded[..width] };
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&encoded[..end - at]);
        }
    }
}
