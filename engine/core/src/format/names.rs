//! Names in a Kafka log directory: topics, topic ids, partition directories, segment files and the fixed files.
//! Parsing a name yields a type that cannot be wrong; writing it gives the very same name back.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::types::Offset;

/// Longest topic name Kafka allows, in bytes.
pub const TOPIC_NAME_LEN_MAX: usize = 249;
/// Longest name of a directory; deleted directories of long topics are cut to it.
const DIR_NAME_LEN_MAX: usize = 255;

/// A partition's leader epochs and where they start, in the partition directory.
pub const LEADER_EPOCH_CHECKPOINT: &str = "leader-epoch-checkpoint";
/// The file of a partition's next segment, made ahead of need; neither Kafka nor recovery takes it for a segment.
pub const PREPARED_SEGMENT: &str = "next.log.tmp";
/// Copies of the last block of a partition that has it guarded, in the partition directory.
pub const LAST_BLOCK_GUARD: &str = "last-block.guard";
/// A partition's topic id, in the partition directory.
pub const PARTITION_METADATA: &str = "partition.metadata";
/// Identity of a log directory, in its root.
pub const META_PROPERTIES: &str = "meta.properties";
/// Offsets below which every byte is known to be on the device, in the root.
pub const RECOVERY_POINT_CHECKPOINT: &str = "recovery-point-offset-checkpoint";
/// First offsets that may be read, where they are not a segment's base offset, in the root.
pub const LOG_START_CHECKPOINT: &str = "log-start-offset-checkpoint";
/// High watermarks, in the root.
pub const HIGH_WATERMARK_CHECKPOINT: &str = "replication-offset-checkpoint";
/// First dirty offsets of compacted partitions, in the root.
pub const CLEANER_CHECKPOINT: &str = "cleaner-offset-checkpoint";
/// Locked as long as a process has the log directory open, in the root.
pub const LOCK: &str = ".lock";
/// There only between a clean stop and the next start, in the root.
pub const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a topic name.
    #[error("topic name {0:?}: expected 1 to 249 of a-z A-Z 0-9 . _ - and neither \".\" nor \"..\"")]
    Topic(String),
    /// Not a partition directory.
    #[error("directory {0:?}: expected <topic>-<partition>, and a known suffix if any")]
    PartitionDir(String),
    /// Not a segment file.
    #[error("file {0:?}: expected 20 digits and a known suffix")]
    SegmentFile(String),
    /// Not a topic id.
    #[error("topic id {0:?}: expected 22 characters of URL-safe base64")]
    TopicId(String),
}

/// A valid topic name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks Kafka's rules.
    ///
    /// # Errors
    /// `NameError::Topic`.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let len_fits = (1..=TOPIC_NAME_LEN_MAX).contains(&name.len());
        if len_fits && name.bytes().all(legal) && name != "." && name != ".." {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Topic(name.to_owned()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicName({})", self.0)
    }
}

/// A topic and a partition number; displayed as the name of its directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    topic: TopicName,
    partition: i32,
}

impl TopicPartition {
    /// Joins the two.
    ///
    /// # Panics
    /// If `partition` is negative.
    pub fn new(topic: TopicName, partition: i32) -> Self {
        assert!(partition >= 0, "partition numbers start at 0, found {partition}");
        Self { topic, partition }
    }

    /// The topic.
    pub const fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The partition number, 0 or more.
    pub const fn partition(&self) -> i32 {
        self.partition
    }

    /// Its directory, relative to the log directory.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// The name its directory gets when it is deleted, unique by `id`; long topic names are cut to fit.
    pub fn deleted_dir_name(&self, id: u128) -> String {
        let suffix = format!("-{}.{id:032x}-delete", self.partition);
        let topic = self.topic.as_str();
        format!("{}{suffix}", &topic[..topic.len().min(DIR_NAME_LEN_MAX - suffix.len())])
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

impl FromStr for TopicPartition {
    type Err = NameError;

    /// Reads the name of a live partition's directory.
    fn from_str(name: &str) -> Result<Self, NameError> {
        let bad = || NameError::PartitionDir(name.to_owned());
        let (topic, digits) = name.rsplit_once('-').ok_or_else(bad)?;
        let partition = canonical_number(digits).and_then(|n| i32::try_from(n).ok()).ok_or_else(bad)?;
        Ok(Self { topic: TopicName::new(topic).map_err(|_| bad())?, partition })
    }
}

/// What a directory below a log directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionDir {
    /// A partition in use.
    Live(TopicPartition),
    /// Deleted, its files not yet unlinked. The topic may be cut.
    Deleted(TopicPartition),
    /// Being copied from another log directory. The topic may be cut.
    Future(TopicPartition),
    /// Set aside by a broker that no longer owns it. The topic may be cut.
    Stray(TopicPartition),
}

impl FromStr for PartitionDir {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        type Wrap = fn(TopicPartition) -> PartitionDir;
        let kinds: [(&str, Wrap); 3] =
            [("-delete", Self::Deleted), ("-future", Self::Future), ("-stray", Self::Stray)];
        for (suffix, wrap) in kinds {
            // A live partition cannot end like this: its number follows the last dash.
            let Some(stem) = name.strip_suffix(suffix) else { continue };
            let (partition, id) =
                stem.rsplit_once('.').ok_or_else(|| NameError::PartitionDir(name.to_owned()))?;
            if id.len() != 32 || !id.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(NameError::PartitionDir(name.to_owned()));
            }
            return partition.parse().map(wrap).map_err(|_| NameError::PartitionDir(name.to_owned()));
        }
        name.parse().map(Self::Live)
    }
}

/// A topic's id: the same after a restart, another one when the topic is created anew. Displayed in Kafka's
/// URL-safe base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// "No topic id".
    pub const ZERO: Self = Self([0; 16]);

    /// From its 16 bytes, most significant first.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes, most significant first.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

impl FromStr for TopicId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NameError::TopicId(text.to_owned()))
    }
}

/// What a file of a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentFileKind {
    /// Record batches.
    Log,
    /// Offset index.
    Index,
    /// Time index.
    TimeIndex,
    /// Aborted transactions.
    TxnIndex,
    /// Producer states at the segment's start.
    Snapshot,
    /// The engine's own side file: what Kafka's CRC does not cover.
    Chain,
}

impl SegmentFileKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Log, Self::Index, Self::TimeIndex, Self::TxnIndex, Self::Snapshot, Self::Chain];

    /// The suffix, with its dot.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Log => ".log",
            Self::Index => ".index",
            Self::TimeIndex => ".timeindex",
            Self::TxnIndex => ".txnindex",
            Self::Snapshot => ".snapshot",
            Self::Chain => ".chain",
        }
    }
}

/// Which step of its life a segment file is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SegmentFileState {
    /// In use.
    Live,
    /// Renamed, to be unlinked (`.deleted`).
    Deleted,
    /// Being written by compaction (`.cleaned`).
    Cleaned,
    /// Complete, to take the place of what it was compacted from (`.swap`).
    Swap,
}

/// A file of a segment: 20 digits of base offset, a kind and a state. Displayed as its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Offset of the segment's first record (the snapshot's: the offset it describes).
    pub base_offset: Offset,
    /// What it holds.
    pub kind: SegmentFileKind,
    /// Its step of life.
    pub state: SegmentFileState,
}

impl SegmentFile {
    /// A file in use.
    pub const fn live(base_offset: Offset, kind: SegmentFileKind) -> Self {
        Self { base_offset, kind, state: SegmentFileState::Live }
    }
}

impl fmt::Display for SegmentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            SegmentFileState::Live => "",
            SegmentFileState::Deleted => ".deleted",
            SegmentFileState::Cleaned => ".cleaned",
            SegmentFileState::Swap => ".swap",
        };
        write!(f, "{:020}{}{state}", self.base_offset.get(), self.kind.suffix())
    }
}

impl FromStr for SegmentFile {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let bad = || NameError::SegmentFile(name.to_owned());
        let (digits, suffix) = name.split_at_checked(20).ok_or_else(bad)?;
        if !digits.bytes().all(|c| c.is_ascii_digit()) {
            return Err(bad());
        }
        let base_offset = Offset::new(digits.parse().map_err(|_| bad())?);
        let found = SegmentFileKind::ALL.into_iter().find_map(|kind| {
            let state = match suffix.strip_prefix(kind.suffix())? {
                "" => SegmentFileState::Live,
                ".deleted" => SegmentFileState::Deleted,
                ".cleaned" => SegmentFileState::Cleaned,
                ".swap" => SegmentFileState::Swap,
                _ => return None,
            };
            Some((kind, state))
        });
        let (kind, state) = found.ok_or_else(bad)?;
        Ok(Self { base_offset, kind, state })
    }
}

/// A number as Kafka writes it: digits only, no leading zero.
fn canonical_number(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|c| c.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_rules_from_both_sides() {
        for good in ["a", "A.b_c-9", "...", "__consumer_offsets", &"x".repeat(249)] {
            assert_eq!(TopicName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a b", "a/b", "caf\u{e9}", "a\0", &"x".repeat(250)] {
            assert_eq!(TopicName::new(bad), Err(NameError::Topic(bad.to_owned())));
        }
    }

    #[test]
    fn partition_directories() {
        let live = |topic, n| PartitionDir::Live(TopicPartition::new(TopicName::new(topic).unwrap(), n));
        assert_eq!("orders-0".parse(), Ok(live("orders", 0)));
        assert_eq!("a-b.c-delete-12".parse(), Ok(live("a-b.c-delete", 12)));
        assert_eq!("o--1".parse(), Ok(live("o-", 1)));
        assert_eq!(live("t", i32::MAX), "t-2147483647".parse().unwrap());
        for bad in ["orders", "orders-", "-0", "o-01", "o-+1", "o-2147483648", "..-0", "o-0.x-delete"] {
            assert_eq!(bad.parse::<PartitionDir>(), Err(NameError::PartitionDir(bad.to_owned())), "{bad}");
        }
    }

    /// Kafka's `<topic>-<partition>.<32 hex>-delete`, cut so that the name fits 255 bytes.
    #[test]
    fn deleted_directories() {
        let orders: TopicPartition = "orders-3".parse().unwrap();
        let name = orders.deleted_dir_name(0xab);
        assert_eq!(name, "orders-3.000000000000000000000000000000ab-delete");
        assert_eq!(name.parse(), Ok(PartitionDir::Deleted(orders.clone())));
        assert_eq!(name.replace("-delete", "-stray").parse(), Ok(PartitionDir::Stray(orders.clone())));
        assert_eq!(name.replace("-delete", "-future").parse(), Ok(PartitionDir::Future(orders)));
        let long = TopicPartition::new(TopicName::new(&"x".repeat(249)).unwrap(), 1234);
        let name = long.deleted_dir_name(u128::MAX);
        assert_eq!(name.len(), 255);
        assert!(matches!(name.parse(), Ok(PartitionDir::Deleted(p)) if p.partition() == 1234));
    }

    #[test]
    fn segment_files() {
        let file = |base, kind, state| SegmentFile { base_offset: Offset::new(base), kind, state };
        use SegmentFileKind as K;
        use SegmentFileState as S;
        for (name, expected) in [
            ("00000000000000000000.log", file(0, K::Log, S::Live)),
            ("00000000000000000157.snapshot", file(157, K::Snapshot, S::Live)),
            ("09223372036854775807.timeindex", file(i64::MAX, K::TimeIndex, S::Live)),
            ("00000000000000000001.index.swap", file(1, K::Index, S::Swap)),
            ("00000000000000000001.txnindex.cleaned", file(1, K::TxnIndex, S::Cleaned)),
            ("00000000000000000001.log.deleted", file(1, K::Log, S::Deleted)),
            ("00000000000000000001.chain", file(1, K::Chain, S::Live)),
        ] {
            assert_eq!(name.parse(), Ok(expected));
            assert_eq!(expected.to_string(), name);
        }
        for bad in [
            "0.log",
            "00000000000000000000",
            "00000000000000000000.txt",
            "00000000000000000000.log.tmp",
            "+0000000000000000000.log",
            "99999999999999999999.log",
            "000000000000000000000.log",
            "leader-epoch-checkpoint",
            "0000000000000000000\u{e9}.log",
        ] {
            assert_eq!(bad.parse::<SegmentFile>(), Err(NameError::SegmentFile(bad.to_owned())), "{bad}");
        }
    }

    /// From a partition.metadata that Kafka 4.3.1 wrote.
    #[test]
    fn topic_ids() {
        let id: TopicId = "zB79o7PZSPeYD-vdw4TH3Q".parse().unwrap();
        assert_eq!(id.to_bytes()[..3], [0xcc, 0x1e, 0xfd]);
        assert_eq!(id.to_string(), "zB79o7PZSPeYD-vdw4TH3Q");
        for bad in ["", "zB79o7PZSPeYD-vdw4TH3", "zB79o7PZSPeYD+vdw4TH3Q", "zB79o7PZSPeYD-vdw4TH3Q=="] {
            assert_eq!(bad.parse::<TopicId>(), Err(NameError::TopicId(bad.to_owned())));
        }
    }
}
