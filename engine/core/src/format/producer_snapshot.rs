//! Kafka's producer snapshot (`.snapshot`): the last batch of each idempotent producer at an offset. Read only: for
//! inspection, and for a broker that keeps producer state.

use super::crc::crc32c;
use crate::types::{Offset, Timestamp};

/// The version Kafka 4 writes.
pub const SNAPSHOT_VERSION: i16 = 1;
/// Bytes before the first producer: version, CRC, count.
pub const SNAPSHOT_HEADER_LEN: usize = 10;
/// Bytes of one producer.
pub const PRODUCER_ENTRY_LEN: usize = 46;

/// Why a snapshot cannot be used: Kafka drops it and takes an older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The length does not fit the count.
    #[error("snapshot length: expected {expected} bytes, found {found}")]
    Length {
        /// Header and as many entries as the count says.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// A version of another release.
    #[error("snapshot version at byte 0: expected 1, found {0}")]
    Version(i16),
    /// Damaged.
    #[error("snapshot crc at byte 2: expected {expected:#010x}, found {found:#010x}")]
    Crc {
        /// Computed over byte 6 to the end.
        expected: u32,
        /// Stored.
        found: u32,
    },
    /// A negative count.
    #[error("snapshot count at byte 6: expected 0 or more, found {0}")]
    Count(i32),
}

/// What the log knows of one producer. -1 stands for "none" in every field but the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerEntry {
    /// The producer.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// Offset of its last record.
    pub last_offset: Offset,
    /// Last offset minus first offset of its last batch.
    pub offset_delta: i32,
    /// Timestamp of its last batch.
    pub timestamp: Timestamp,
    /// Epoch of the coordinator that wrote its last marker.
    pub coordinator_epoch: i32,
    /// First offset of its open transaction.
    pub transaction_first_offset: Offset,
}

/// Reads a snapshot.
///
/// # Errors
/// Any `SnapshotError`.
pub fn parse(bytes: &[u8]) -> Result<Vec<ProducerEntry>, SnapshotError> {
    let found_len = bytes.len() as u64;
    let Some(header) = bytes.first_chunk::<SNAPSHOT_HEADER_LEN>() else {
        return Err(SnapshotError::Length { expected: SNAPSHOT_HEADER_LEN as u64, found: found_len });
    };
    let version = i16::from_be_bytes(field(header, 0));
    if version != SNAPSHOT_VERSION {
        return Err(SnapshotError::Version(version));
    }
    let (expected, found) = (crc32c(&bytes[6..]), u32::from_be_bytes(field(header, 2)));
    if expected != found {
        return Err(SnapshotError::Crc { expected, found });
    }
    let count = i32::from_be_bytes(field(header, 6));
    let items = u64::try_from(count).map_err(|_| SnapshotError::Count(count))?;
    let expected = SNAPSHOT_HEADER_LEN as u64 + items * PRODUCER_ENTRY_LEN as u64;
    if expected != found_len {
        return Err(SnapshotError::Length { expected, found: found_len });
    }
    Ok(bytes[SNAPSHOT_HEADER_LEN..].as_chunks().0.iter().map(entry).collect())
}

fn entry(b: &[u8; PRODUCER_ENTRY_LEN]) -> ProducerEntry {
    ProducerEntry {
        producer_id: i64::from_be_bytes(field(b, 0)),
        producer_epoch: i16::from_be_bytes(field(b, 8)),
        last_sequence: i32::from_be_bytes(field(b, 10)),
        last_offset: Offset::new(i64::from_be_bytes(field(b, 14))),
        offset_delta: i32::from_be_bytes(field(b, 22)),
        timestamp: Timestamp::new(i64::from_be_bytes(field(b, 26))),
        coordinator_epoch: i32::from_be_bytes(field(b, 34)),
        transaction_first_offset: Offset::new(i64::from_be_bytes(field(b, 38))),
    }
}

pub(super) fn field<const N: usize, const L: usize>(bytes: &[u8; L], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes is an array of N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file Kafka 4.3.1 wrote, of one producer.
    const KAFKA: [u8; 56] = [
        0x00, 0x01, 0xb6, 0x3b, 0x98, 0x20, 0x00, 0x00, 0x00, 0x01, // version, crc, count
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x45, // id, epoch, sequence
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x45, 0x00, 0x00, 0x00, 0x04, // offset, delta
        0x00, 0x00, 0x01, 0x8b, 0xcf, 0xe5, 0x9a, 0xcc, 0xff, 0xff, 0xff,
        0xff, // timestamp, coordinator
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // transaction
    ];
    /// The file of a log without producers.
    const KAFKA_EMPTY: [u8; 10] = [0x00, 0x01, 0x48, 0x67, 0x4b, 0xc7, 0, 0, 0, 0];

    #[test]
    fn kafka_files() {
        assert_eq!(parse(&KAFKA_EMPTY), Ok(vec![]));
        let entry = ProducerEntry {
            producer_id: 10,
            producer_epoch: 0,
            last_sequence: 69,
            last_offset: Offset::new(69),
            offset_delta: 4,
            timestamp: Timestamp::new(1_700_000_013_004),
            coordinator_epoch: -1,
            transaction_first_offset: Offset::new(-1),
        };
        assert_eq!(parse(&KAFKA), Ok(vec![entry]));
    }

    #[test]
    fn damage_is_named() {
        assert_eq!(parse(&KAFKA[..9]), Err(SnapshotError::Length { expected: 10, found: 9 }));
        for at in 2..KAFKA.len() {
            let mut damaged = KAFKA;
            damaged[at] ^= 1;
            assert!(matches!(parse(&damaged), Err(SnapshotError::Crc { .. })), "{at}");
        }
        let with_crc = |mut bytes: Vec<u8>| {
            let crc = crc32c(&bytes[6..]);
            bytes[2..6].copy_from_slice(&crc.to_be_bytes());
            parse(&bytes)
        };
        assert_eq!(with_crc([&KAFKA[..1], &[2], &KAFKA[2..]].concat()), Err(SnapshotError::Version(2)));
        assert_eq!(with_crc(KAFKA[..55].to_vec()), Err(SnapshotError::Length { expected: 56, found: 55 }));
        let counted = |count: i32| with_crc([&KAFKA[..6], &count.to_be_bytes(), &KAFKA[10..]].concat());
        assert_eq!(counted(2), Err(SnapshotError::Length { expected: 102, found: 56 }));
        assert_eq!(counted(-1), Err(SnapshotError::Count(-1)));
    }
}
