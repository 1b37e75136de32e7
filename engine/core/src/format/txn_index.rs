//! Kafka's transaction index (`.txnindex`): the aborted transactions whose marker lies in a segment. Read only: for
//! inspection, and for readers that must skip aborted records.

use super::producer_snapshot::field;
use crate::types::{ByteCount, Offset};

/// Bytes of one entry.
pub const TXN_ENTRY_LEN: usize = 34;

/// Why a transaction index cannot be used: Kafka rebuilds it from the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TxnIndexError {
    /// The file is no whole number of entries.
    #[error("transaction index of {0} bytes is no multiple of 34")]
    Length(ByteCount),
    /// A version of another release.
    #[error("transaction index entry {entry}: expected version 0, found {found}")]
    Version {
        /// Number of the entry, from 0.
        entry: usize,
        /// What it says.
        found: i16,
    },
    /// A transaction that ends before it starts, or outside the segment, or entries out of order.
    #[error("transaction index entry {entry}: offsets {first} to {last} are impossible here")]
    Offsets {
        /// Number of the entry, from 0.
        entry: usize,
        /// First offset of the transaction.
        first: Offset,
        /// Offset of its marker.
        last: Offset,
    },
}

/// An aborted transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTxn {
    /// Whose.
    pub producer_id: i64,
    /// Its first offset, perhaps in an earlier segment.
    pub first_offset: Offset,
    /// The offset of its abort marker.
    pub last_offset: Offset,
    /// The last stable offset when the marker was written.
    pub last_stable_offset: Offset,
}

/// Reads the transaction index of the segment at `base_offset`.
///
/// # Errors
/// Any `TxnIndexError`. Markers must lie in the segment, each behind the one before.
pub fn parse(base_offset: Offset, bytes: &[u8]) -> Result<Vec<AbortedTxn>, TxnIndexError> {
    let (entries, rest) = bytes.as_chunks::<TXN_ENTRY_LEN>();
    if !rest.is_empty() {
        return Err(TxnIndexError::Length(ByteCount::of_usize(bytes.len())));
    }
    let mut marker_min = base_offset;
    let mut read = |(entry, b): (usize, &[u8; TXN_ENTRY_LEN])| {
        let version = i16::from_be_bytes(field(b, 0));
        if version != 0 {
            return Err(TxnIndexError::Version { entry, found: version });
        }
        let offset = |at| Offset::new(i64::from_be_bytes(field(b, at)));
        let (first, last) = (offset(10), offset(18));
        if first > last || first < Offset::ZERO || last < marker_min || last == Offset::new(i64::MAX) {
            return Err(TxnIndexError::Offsets { entry, first, last });
        }
        marker_min = last.plus(1);
        Ok(AbortedTxn {
            producer_id: i64::from_be_bytes(field(b, 2)),
            first_offset: first,
            last_offset: last,
            last_stable_offset: offset(26),
        })
    };
    entries.iter().enumerate().map(&mut read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first entry of a file Kafka 4.3.1 wrote for the segment at 11.
    const KAFKA: [u8; 34] = [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0x0d, 0, 0, 0, 0, 0, 0, 0, 0x18, 0, 0, 0, 0, 0, 0,
        0, 0x11,
    ];
    const BASE: Offset = Offset::new(11);

    #[test]
    fn kafka_file() {
        let expected = AbortedTxn {
            producer_id: 7,
            first_offset: Offset::new(13),
            last_offset: Offset::new(24),
            last_stable_offset: Offset::new(17),
        };
        assert_eq!(parse(BASE, &KAFKA), Ok(vec![expected]));
        assert_eq!(parse(BASE, &[]), Ok(vec![]));
    }

    #[test]
    fn damage_is_named() {
        assert_eq!(parse(BASE, &KAFKA[..33]), Err(TxnIndexError::Length(ByteCount::new(33))));
        let with = |at: usize, value: u8| {
            let mut bytes = [KAFKA, KAFKA].concat();
            bytes[34 + 25] = 0x19; // the second marker, one behind the first
            bytes[at] = value;
            parse(BASE, &bytes)
        };
        assert_eq!(with(0, 0).map(|entries| entries.len()), Ok(2));
        assert_eq!(with(35, 1), Err(TxnIndexError::Version { entry: 1, found: 1 }));
        assert!(matches!(with(25, 10), Err(TxnIndexError::Offsets { entry: 0, .. })), "before the segment");
        assert!(
            matches!(with(34 + 25, 24), Err(TxnIndexError::Offsets { entry: 1, .. })),
            "same marker twice"
        );
        assert!(
            matches!(with(17, 25), Err(TxnIndexError::Offsets { entry: 0, .. })),
            "ends before it starts"
        );
        assert!(matches!(with(10, 0x80), Err(TxnIndexError::Offsets { entry: 0, .. })), "negative");
    }
}
