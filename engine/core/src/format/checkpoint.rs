//! Kafka's small text files: offset checkpoints, the leader epoch checkpoint, `partition.metadata` and
//! `.kafka_cleanshutdown`. Each parses into plain values and is written byte for byte as Kafka writes it.
//!
//! A writer replaces such a file whole: temporary file, sync, rename, directory sync.

use std::fmt::Write as _;

use super::names::{NameError, TopicId, TopicName, TopicPartition};
use crate::types::{LeaderEpoch, Offset};

/// Why a checkpoint file cannot be used. Lines are numbered from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The bytes are no text.
    #[error("file is not UTF-8 from byte {0} on")]
    NotText(usize),
    /// A version this engine does not know, or none.
    #[error("version: expected {expected}, found {found:?}")]
    Version {
        /// The version understood.
        expected: &'static str,
        /// What the file says.
        found: String,
    },
    /// Fewer or more entries than the second line says.
    #[error("line 2: expected the number of entries, {expected}, found {found:?}")]
    Count {
        /// Entries there are.
        expected: usize,
        /// What the line says.
        found: String,
    },
    /// A line that is no entry.
    #[error("line {line}: expected {expected}, found {found:?}")]
    Line {
        /// Number of the line.
        line: usize,
        /// What an entry looks like.
        expected: &'static str,
        /// The line.
        found: String,
    },
    /// Epochs or their start offsets do not increase.
    #[error("line {line}: expected a later epoch and start offset than {before:?}, found {found:?}")]
    EpochOrder {
        /// Number of the line.
        line: usize,
        /// The entry before.
        before: EpochStart,
        /// The entry.
        found: EpochStart,
    },
    /// A property is missing.
    #[error("property {0:?} is missing")]
    Missing(&'static str),
    /// A name in the file is not legal.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Where a leader's term starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The term.
    pub epoch: LeaderEpoch,
    /// The first offset it wrote or may write.
    pub start_offset: Offset,
}

/// Reads an offset checkpoint: `topic partition offset` lines. An empty file is one without entries: Kafka
/// creates it so.
///
/// # Errors
/// Any `CheckpointError` but the epochs'.
pub fn parse_offsets(bytes: &[u8]) -> Result<Vec<(TopicPartition, Offset)>, CheckpointError> {
    const EXPECTED: &str = "<topic> <partition> <offset>";
    entries(bytes, |line, text| {
        let bad = || CheckpointError::Line { line, expected: EXPECTED, found: text.to_owned() };
        let mut words = text.split_ascii_whitespace();
        let mut word = || words.next().ok_or_else(bad);
        let topic = TopicName::new(word()?)?;
        let partition: i32 = word()?.parse().map_err(|_| bad())?;
        let offset: i64 = word()?.parse().map_err(|_| bad())?;
        if words.next().is_some() || partition < 0 || offset < 0 {
            return Err(bad());
        }
        Ok((TopicPartition::new(topic, partition), Offset::new(offset)))
    })
}

/// Writes an offset checkpoint.
pub fn write_offsets<'a>(entries: impl ExactSizeIterator<Item = (&'a TopicPartition, Offset)>) -> String {
    let mut out = format!("0\n{}\n", entries.len());
    for (tp, offset) in entries {
        let _ = writeln!(out, "{} {} {offset}", tp.topic(), tp.partition()); // a String takes every write
    }
    out
}

/// Reads a leader epoch checkpoint: `epoch start-offset` lines, both strictly increasing.
///
/// # Errors
/// Any `CheckpointError`.
pub fn parse_epochs(bytes: &[u8]) -> Result<Vec<EpochStart>, CheckpointError> {
    const EXPECTED: &str = "<epoch> <start offset>";
    let mut before: Option<EpochStart> = None;
    entries(bytes, |line, text| {
        let bad = || CheckpointError::Line { line, expected: EXPECTED, found: text.to_owned() };
        let mut words = text.split_ascii_whitespace();
        let mut word = || words.next().ok_or_else(bad);
        let epoch: i32 = word()?.parse().map_err(|_| bad())?;
        let start_offset: i64 = word()?.parse().map_err(|_| bad())?;
        if words.next().is_some() || epoch < 0 || start_offset < 0 {
            return Err(bad());
        }
        let found = EpochStart { epoch: LeaderEpoch::new(epoch), start_offset: Offset::new(start_offset) };
        match before.replace(found) {
            Some(b) if b.epoch >= found.epoch || b.start_offset >= found.start_offset => {
                Err(CheckpointError::EpochOrder { line, before: b, found })
            }
            _ => Ok(found),
        }
    })
}

/// Writes a leader epoch checkpoint.
pub fn write_epochs(entries: &[EpochStart]) -> String {
    let mut out = format!("0\n{}\n", entries.len());
    for entry in entries {
        let _ = writeln!(out, "{} {}", entry.epoch, entry.start_offset);
    }
    out
}

/// Reads a `partition.metadata`: the topic's id.
///
/// # Errors
/// `NotText`, `Version`, `Missing`, `Name`.
pub fn parse_partition_metadata(bytes: &[u8]) -> Result<TopicId, CheckpointError> {
    let text = text(bytes)?;
    let value = |key| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':').map(str::trim));
    let version = value("version").ok_or(CheckpointError::Missing("version"))?;
    if version != "0" {
        return Err(CheckpointError::Version { expected: "0", found: version.to_owned() });
    }
    Ok(value("topic_id").ok_or(CheckpointError::Missing("topic_id"))?.parse()?)
}

/// Writes a `partition.metadata`. Kafka ends it without a newline.
pub fn write_partition_metadata(id: TopicId) -> String {
    format!("version: 0\ntopic_id: {id}")
}

/// The broker epoch in a `.kafka_cleanshutdown`. The file's existence is what counts; brokers before 3.7 left
/// it empty, so anything else than the expected content is "no epoch".
pub fn parse_clean_shutdown(bytes: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (_, rest) = text.split_once("\"brokerEpoch\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let end = rest.find(|c: char| c != '-' && !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Writes a `.kafka_cleanshutdown`; epoch -1 means "none".
pub fn write_clean_shutdown(broker_epoch: i64) -> String {
    format!("{{\"version\":0,\"brokerEpoch\":{broker_epoch}}}")
}

fn text(bytes: &[u8]) -> Result<&str, CheckpointError> {
    std::str::from_utf8(bytes).map_err(|e| CheckpointError::NotText(e.valid_up_to()))
}

/// The frame of both kinds of checkpoint: version 0, the number of entries, the entries.
fn entries<T>(
    bytes: &[u8],
    mut parse: impl FnMut(usize, &str) -> Result<T, CheckpointError>,
) -> Result<Vec<T>, CheckpointError> {
    let mut lines = text(bytes)?.lines();
    let Some(version) = lines.next() else {
        return Ok(Vec::new());
    };
    if version.trim() != "0" {
        return Err(CheckpointError::Version { expected: "0", found: version.to_owned() });
    }
    let count = lines.next().unwrap_or_default();
    let entries: Vec<T> = lines.enumerate().map(|(i, line)| parse(i + 3, line)).collect::<Result<_, _>>()?;
    if count.trim().parse() != Ok(entries.len()) {
        return Err(CheckpointError::Count { expected: entries.len(), found: count.to_owned() });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(text: &str) -> Result<Vec<(String, i64)>, CheckpointError> {
        let parsed = parse_offsets(text.as_bytes())?;
        Ok(parsed.into_iter().map(|(tp, offset)| (tp.to_string(), offset.get())).collect())
    }

    #[test]
    fn offset_checkpoint_as_kafka_writes_it() {
        let file = "0\n2\n__transaction_state 0 62\ntrimmed 12 9223372036854775807\n";
        let parsed = parse_offsets(file.as_bytes()).unwrap();
        assert_eq!(parsed[0].0.to_string(), "__transaction_state-0");
        assert_eq!(parsed[1].1, Offset::new(i64::MAX));
        assert_eq!(write_offsets(parsed.iter().map(|(tp, offset)| (tp, *offset))), file);
        assert_eq!(offsets(""), Ok(vec![]), "Kafka creates it empty");
        assert_eq!(offsets("0\n0\n"), Ok(vec![]));
    }

    #[test]
    fn damaged_offset_checkpoints_name_the_line() {
        let found = |text: &str| text.to_owned();
        assert_eq!(offsets("1\n0\n"), Err(CheckpointError::Version { expected: "0", found: found("1") }));
        assert_eq!(offsets("0\n2\na 0 1\n"), Err(CheckpointError::Count { expected: 1, found: found("2") }));
        assert_eq!(offsets("0\n"), Err(CheckpointError::Count { expected: 0, found: found("") }));
        for bad in ["a 0", "a 0 1 2", "a x 1", "a -1 1", "a 0 -1", "a 0 99999999999999999999", ""] {
            let expected = "<topic> <partition> <offset>";
            let error = CheckpointError::Line { line: 4, expected, found: found(bad) };
            assert_eq!(offsets(&format!("0\n2\na 0 1\n{bad}\n")), Err(error), "{bad}");
        }
        assert!(matches!(offsets("0\n1\na/b 0 1\n"), Err(CheckpointError::Name(NameError::Topic(_)))));
        assert_eq!(parse_offsets(b"0\n1\n\xff"), Err(CheckpointError::NotText(4)));
    }

    #[test]
    fn leader_epochs() {
        let file = "0\n2\n0 0\n2 157\n";
        let parsed = parse_epochs(file.as_bytes()).unwrap();
        let second = EpochStart { epoch: LeaderEpoch::new(2), start_offset: Offset::new(157) };
        assert_eq!(parsed[1], second);
        assert_eq!(write_epochs(&parsed), file);
        assert_eq!(parse_epochs(b""), Ok(vec![]));
        for bad in ["0\n2\n1 5\n1 6\n", "0\n2\n1 5\n2 5\n"] {
            assert!(matches!(parse_epochs(bad.as_bytes()), Err(CheckpointError::EpochOrder { line: 4, .. })));
        }
        for bad in ["0\n1\n-1 5\n", "0\n1\n1\n", "0\n1\n1 2 3\n", "0\n1\n1 -5\n"] {
            assert!(
                matches!(parse_epochs(bad.as_bytes()), Err(CheckpointError::Line { line: 3, .. })),
                "{bad}"
            );
        }
    }

    /// 43 bytes without a last newline, as Kafka 4.3.1 wrote them.
    #[test]
    fn partition_metadata() {
        let file = "version: 0\ntopic_id: zB79o7PZSPeYD-vdw4TH3Q";
        assert_eq!(file.len(), 43);
        let id = parse_partition_metadata(file.as_bytes()).unwrap();
        assert_eq!(write_partition_metadata(id), file);
        assert_eq!(parse_partition_metadata(b"topic_id: x"), Err(CheckpointError::Missing("version")));
        assert_eq!(parse_partition_metadata(b"version: 0\n"), Err(CheckpointError::Missing("topic_id")));
        assert!(matches!(parse_partition_metadata(b"version: 1"), Err(CheckpointError::Version { .. })));
        assert!(matches!(
            parse_partition_metadata(b"version: 0\ntopic_id: short"),
            Err(CheckpointError::Name(NameError::TopicId(_)))
        ));
    }

    #[test]
    fn clean_shutdown_marker() {
        let file = "{\"version\":0,\"brokerEpoch\":111}"; // Kafka 4.3.1's
        assert_eq!(parse_clean_shutdown(file.as_bytes()), Some(111));
        assert_eq!(write_clean_shutdown(111), file);
        assert_eq!(parse_clean_shutdown(b"{ \"brokerEpoch\" : -1 , \"version\": 0 }"), Some(-1));
        for other in ["", "{}", "{\"brokerEpoch\"", "{\"brokerEpoch\":\"x\"}"] {
            assert_eq!(parse_clean_shutdown(other.as_bytes()), None);
        }
    }
}
