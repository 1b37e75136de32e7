//! A slot of the guard file (`last-block.guard`): a copy of the last, partly filled block of a segment, and whose it is. Our
//! own format, beside Kafka's; `engine/docs/FORMAT.md` has the table.
//!
//! A slot is two blocks, so that no device writes part of two slots at once: the block, padded with zeros, and a label
//! with its own checksum and the block's. The file has two slots, written in turns by ascending sequence numbers.

use super::crc::crc32c;
use super::names::TopicId;
use super::side_file::SegmentIdentity;
use crate::platform::DIRECT_IO_ALIGN;
use crate::types::{ByteCount, Offset, Position};

/// Length of a guarded block, bytes.
pub const GUARDED_LEN: usize = DIRECT_IO_ALIGN as usize;

/// Length of a slot, bytes: the block and its label.
pub const SLOT_LEN: usize = 2 * GUARDED_LEN;

/// Slots in the file.
pub const SLOTS: usize = 2;

/// Length of a label, bytes; zeros fill its block.
pub const LABEL_LEN: usize = 64;

const MAGIC: [u8; 8] = *b"RPGUARD\0";
const VERSION: u16 = 1;
const CRC_AT: usize = 60;

/// What a slot says about its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Whose block it is.
    pub identity: SegmentIdentity,
    /// Where the block begins in the segment.
    pub position: Position,
    /// Bytes of it that hold batches; less than a block.
    pub len: u32,
    /// Ascends with every copy of the partition; its parity is the slot's place.
    pub sequence: u64,
}

/// A slot that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardSlot {
    /// What it says.
    pub label: Label,
    /// The bytes of the block that hold batches.
    pub bytes: Vec<u8>,
}

impl Label {
    /// Where in the file the slot with this sequence number goes.
    pub const fn slot_position(sequence: u64) -> Position {
        Position::new(sequence % SLOTS as u64 * SLOT_LEN as u64)
    }

    /// The label of `block`, which is padded with zeros.
    ///
    /// # Panics
    /// If `block` is not [`GUARDED_LEN`] bytes.
    pub fn encode(&self, block: &[u8]) -> [u8; LABEL_LEN] {
        assert_eq!(block.len(), GUARDED_LEN, "a guarded block is a whole block");
        let mut out = [0; LABEL_LEN];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(LABEL_LEN as u16).to_le_bytes());
        out[12..16].copy_from_slice(&self.identity.partition.to_le_bytes());
        out[16..32].copy_from_slice(&self.identity.topic_id.to_bytes());
        out[32..40].copy_from_slice(&self.identity.base_offset.get().to_le_bytes());
        // A segment is shorter than 2^31 bytes.
        out[40..44].copy_from_slice(&(self.position.get() as u32).to_le_bytes());
        out[44..48].copy_from_slice(&self.len.to_le_bytes());
        out[48..56].copy_from_slice(&self.sequence.to_le_bytes());
        out[56..60].copy_from_slice(&crc32c(block).to_le_bytes());
        let crc = crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

impl GuardSlot {
    /// The slot in these bytes, if all of it is what was written.
    pub fn load(slot: &[u8]) -> Option<Self> {
        let (block, label) = slot.split_at_checked(GUARDED_LEN)?;
        let b = label.first_chunk::<LABEL_LEN>()?;
        let known = b[0..8] == MAGIC && b[8..10] == VERSION.to_le_bytes();
        if !known || crc32c(&b[..CRC_AT]) != u32_at(b, CRC_AT) || crc32c(block) != u32_at(b, 56) {
            return None;
        }
        let identity = SegmentIdentity {
            topic_id: TopicId::from_bytes(chunk(b, 16)),
            partition: i32::from_le_bytes(chunk(b, 12)),
            base_offset: Offset::new(i64::from_le_bytes(chunk(b, 32))),
        };
        let (position, len) = (Position::new(u32_at(b, 40).into()), u32_at(b, 44));
        let bytes = block.get(..len as usize)?.to_vec();
        let sequence = u64::from_le_bytes(chunk(b, 48));
        Some(Self { label: Label { identity, position, len, sequence }, bytes })
    }

    /// The end of its bytes in the segment.
    pub fn end(&self) -> Position {
        self.label.position.plus(ByteCount::of_usize(self.bytes.len()))
    }
}

fn chunk<const N: usize>(bytes: &[u8; LABEL_LEN], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a label's fields lie within it")
}

fn u32_at(bytes: &[u8; LABEL_LEN], at: usize) -> u32 {
    u32::from_le_bytes(chunk(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> (Label, Vec<u8>) {
        let topic_id = TopicId::from_bytes([7; 16]);
        let identity = SegmentIdentity { topic_id, partition: 3, base_offset: Offset::new(1 << 40) };
        let label = Label { identity, position: Position::new(8192), len: 100, sequence: 5 };
        let mut bytes: Vec<u8> = (0..100).map(|at| at as u8 | 1).collect();
        bytes.resize(GUARDED_LEN, 0);
        let label_bytes = label.encode(&bytes);
        bytes.extend_from_slice(&label_bytes);
        bytes.resize(SLOT_LEN, 0);
        (label, bytes)
    }

    /// What was written comes back; sequence numbers take turns.
    #[test]
    fn a_slot_comes_back_as_it_was_written() {
        let (label, bytes) = slot();
        let loaded = GuardSlot::load(&bytes).expect("it is whole");
        assert_eq!((loaded.label, &loaded.bytes[..], loaded.end().get()), (label, &bytes[..100], 8292));
        assert_eq!([4, 5, 6].map(|n| Label::slot_position(n).get()), [0, 8192, 0]);
    }

    /// A slot of which any byte that counts is damaged, or that is cut short, is none. Behind the label nothing counts.
    #[test]
    fn a_damaged_slot_is_none() {
        let (_, bytes) = slot();
        for at in 0..GUARDED_LEN + LABEL_LEN {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(GuardSlot::load(&damaged), None, "byte {at}");
        }
        for len in [0, 1, GUARDED_LEN, GUARDED_LEN + LABEL_LEN - 1] {
            assert_eq!(GuardSlot::load(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(GuardSlot::load(&[0; SLOT_LEN]), None, "a new file");
    }

    /// The bytes of version 1, forever.
    #[test]
    fn a_label_is_these_bytes() {
        let (label, bytes) = slot();
        let encoded = label.encode(&bytes[..GUARDED_LEN]);
        let mut expected = Vec::from(*b"RPGUARD\0\x01\0\x40\0\x03\0\0\0");
        expected.extend_from_slice(&[7; 16]);
        expected.extend_from_slice(&[
            0, 0, 0, 0, 0, 1, 0, 0, 0, 0x20, 0, 0, 100, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(encoded[..56], expected[..]);
        assert_eq!(u32_at(&encoded, 56), crc32c(&bytes[..GUARDED_LEN]));
    }
}
