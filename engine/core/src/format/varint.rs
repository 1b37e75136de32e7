//! Kafka's variable-length integers: zig-zag, seven bits a byte, least significant group first.

/// Most bytes a 64-bit varint takes.
pub const VARLONG_LEN_MAX: usize = 10;

/// Reads one signed varint; returns it and the bytes it took, or `None` if it is cut short or over-long.
#[inline]
pub fn read(bytes: &[u8]) -> Option<(i64, usize)> {
    let mut raw: u64 = 0;
    for (i, &byte) in bytes.iter().take(VARLONG_LEN_MAX).enumerate() {
        let group = u64::from(byte & 0x7f);
        if i == VARLONG_LEN_MAX - 1 && group > 1 {
            return None; // the tenth byte has room for one bit
        }
        raw |= group << (7 * i);
        if byte & 0x80 == 0 {
            return Some(((raw >> 1) as i64 ^ -((raw & 1) as i64), i + 1));
        }
    }
    None
}

/// Appends `value` as a signed varint.
#[inline]
pub fn write(out: &mut Vec<u8>, value: i64) {
    let mut raw = ((value << 1) ^ (value >> 63)) as u64;
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// Bytes that `write` appends for `value`.
#[inline]
pub const fn len(value: i64) -> usize {
    let raw = ((value << 1) ^ (value >> 63)) as u64;
    let bits = 64 - (raw | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGES: [i64; 13] =
        [0, -1, 1, 63, -64, 64, -65, 8191, 8192, i32::MAX as i64, i32::MIN as i64, i64::MAX, i64::MIN];

    #[test]
    fn round_trip_at_the_edges() {
        for value in EDGES {
            let mut out = Vec::new();
            write(&mut out, value);
            assert_eq!(out.len(), len(value), "{value}");
            assert_eq!(read(&out), Some((value, out.len())));
            for cut in 0..out.len() {
                assert_eq!(read(&out[..cut]), None, "{value} cut at {cut}");
            }
        }
    }

    /// Bytes from the protocol guide's examples of zig-zag: 0 -> 0, -1 -> 1, 1 -> 2, 150 -> ac 02.
    #[test]
    fn golden_bytes() {
        for (value, expected) in [(0, &[0u8][..]), (-1, &[1]), (1, &[2]), (150, &[0xac, 0x02])] {
            let mut out = Vec::new();
            write(&mut out, value);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn over_long_is_refused() {
        assert_eq!(read(&[0x80; 10]), None);
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Some((i64::MIN, 10)));
    }
}
