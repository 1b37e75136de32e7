//! CRC-32C (Castagnoli), the checksum of record batches, producer snapshots and our side files.
//!
//! The arithmetic is crc-fast's (hardware folding). The digest here is four bytes of state, so it can be kept
//! per batch and continued when a batch arrives in pieces; nothing allocates.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes that are checksummed and then copied while they are still in the first-level cache.
pub const COPY_BLOCK_LEN: usize = 16 << 10;

/// An unfinished CRC-32C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc32c {
    state: u32,
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// The checksum of nothing.
    #[inline]
    pub const fn new() -> Self {
        Self { state: u32::MAX }
    }

    /// Continues from the `value` of another digest.
    #[inline]
    pub const fn resume(value: u32) -> Self {
        Self { state: value ^ u32::MAX }
    }

    /// Continues with `bytes`. Any split into pieces gives the same result.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(self.state));
        digest.update(bytes);
        self.state = digest.get_state() as u32;
    }

    /// The checksum of everything so far. Does not end the digest.
    #[inline]
    pub const fn value(self) -> u32 {
        self.state ^ u32::MAX
    }
}

/// The CRC-32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The CRC-32 of zip files, which messages of Kafka's formats 0 and 1 carry.
pub fn crc32_legacy(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iso_hdlc(bytes)
}

/// Copies `src` to `dst` and continues `crc` with it, block by block, so that memory is read once.
///
/// # Panics
/// If the two slices differ in length.
pub fn copy_and_crc(dst: &mut [u8], src: &[u8], crc: &mut Crc32c) {
    assert_eq!(dst.len(), src.len(), "copy_and_crc needs equal lengths");
    for (to, from) in dst.chunks_mut(COPY_BLOCK_LEN).zip(src.chunks(COPY_BLOCK_LEN)) {
        crc.update(from);
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    /// The check value of the CRC catalogue, and RFC 3720's vectors (B.4).
    #[test]
    fn published_vectors() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(Crc32c::new().value(), 0);
        assert_eq!(crc32_legacy(b"123456789"), 0xcbf4_3926);
    }

    /// Hardware folding has different code for each length class: every split of them must agree.
    #[test]
    fn any_split_gives_the_same_value() {
        let bytes = noise(3 * COPY_BLOCK_LEN + 17);
        for len in [0, 1, 15, 16, 17, 61, 255, 256, 257, 1024, 4096, COPY_BLOCK_LEN + 1, bytes.len()] {
            let whole = crc32c(&bytes[..len]);
            for split in [0, 1, 7, 40, len / 2, len.saturating_sub(1)] {
                let split = split.min(len);
                let mut crc = Crc32c::new();
                crc.update(&bytes[..split]);
                crc.update(&bytes[split..len]);
                assert_eq!(crc.value(), whole, "len {len} split {split}");
                let mut resumed = Crc32c::resume(crc32c(&bytes[..split]));
                resumed.update(&bytes[split..len]);
                assert_eq!(resumed, crc);
            }
        }
    }

    #[test]
    fn copy_copies_and_counts_every_byte() {
        for len in [0, 1, COPY_BLOCK_LEN - 1, COPY_BLOCK_LEN, COPY_BLOCK_LEN + 1, 3 * COPY_BLOCK_LEN + 5] {
            let src = noise(len);
            let mut dst = vec![0; len];
            let mut crc = Crc32c::new();
            copy_and_crc(&mut dst, &src, &mut crc);
            assert_eq!(dst, src);
            assert_eq!(crc.value(), crc32c(&src));
        }
    }
}
