//! The attribute bits of a record batch.

use super::batch_error::BatchError;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the variants are Kafka's names
pub enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// What a batch's timestamps mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// Set by the producer.
    CreateTime,
    /// Set by the broker; every record has the batch's maximum timestamp.
    LogAppendTime,
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Attributes(i16);

impl Attributes {
    /// From the field as stored.
    pub const fn from_bits(bits: i16) -> Self {
        Self(bits)
    }

    /// The field as stored.
    pub const fn bits(self) -> i16 {
        self.0
    }

    /// The codec.
    ///
    /// # Errors
    /// `BatchError::Codec` for the numbers 5 to 7, which Kafka has not assigned.
    pub const fn codec(self) -> Result<Codec, BatchError> {
        match self.0 & 7 {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Gzip),
            2 => Ok(Codec::Snappy),
            3 => Ok(Codec::Lz4),
            4 => Ok(Codec::Zstd),
            other => Err(BatchError::Codec { found: other as u8 }),
        }
    }

    /// Whose clock stamped the records.
    pub const fn timestamp_type(self) -> TimestampType {
        if self.0 & 0x08 == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Part of a transaction.
    pub const fn is_transactional(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// Written by a broker: transaction markers and quorum records.
    pub const fn is_control(self) -> bool {
        self.0 & 0x20 != 0
    }

    /// Stamped by the log cleaner: the base timestamp holds the time after which tombstones go.
    pub const fn has_delete_horizon(self) -> bool {
        self.0 & 0x40 != 0
    }

    /// The same attributes with another codec.
    pub const fn with_codec(self, codec: Codec) -> Self {
        Self(self.0 & !7 | codec as i16)
    }

    /// The same attributes with the transactional bit.
    pub const fn transactional(self) -> Self {
        Self(self.0 | 0x10)
    }

    /// The same attributes with the control bit.
    pub const fn control(self) -> Self {
        Self(self.0 | 0x20)
    }

    /// The same attributes with the broker's clock.
    pub const fn log_append_time(self) -> Self {
        Self(self.0 | 0x08)
    }
}
