//! The files that are read whole: snapshots, transaction indexes, checkpoints, identity files.

use std::fmt::Display;
use std::path::Path;

use rohrpost_engine_core::format::checkpoint::{self, EpochStart};
use rohrpost_engine_core::format::meta_properties::MetaProperties;
use rohrpost_engine_core::format::names::{self, TopicId, TopicPartition};
use rohrpost_engine_core::format::producer_snapshot::{self, SnapshotError};
use rohrpost_engine_core::format::txn_index::{self, AbortedTxn, TXN_ENTRY_LEN, TxnIndexError};
use rohrpost_engine_core::types::Offset;

use super::InspectError;
use super::context::Context;
use super::finding::{Finding, What};

/// The producer states at `offset`.
pub(super) fn snapshot(context: &mut Context<'_>, path: &Path, offset: Offset) -> Result<(), InspectError> {
    let Some(bytes) = context.read_small(path)? else { return Ok(()) };
    let file = context.start(path)?;
    match producer_snapshot::parse(&bytes) {
        Ok(producers) => {
            for producer in &producers {
                context.entry(&producer.into())?;
                if producer.last_offset >= offset {
                    let what = What::SnapshotBeyond {
                        producer_id: producer.producer_id,
                        offset: producer.last_offset.get(),
                    };
                    context.find(Finding::problem(&file, None, what));
                }
            }
        }
        Err(error) => {
            let position = match error {
                SnapshotError::Version(_) => 0,
                SnapshotError::Crc { .. } => 2,
                SnapshotError::Count(_) => 6,
                _ => bytes.len() as u64,
            };
            context.find(Finding::problem(&file, position, malformed(&error)));
        }
    }
    Ok(())
}

/// The aborted transactions of the segment at `base`.
pub(super) fn transactions(
    context: &mut Context<'_>,
    path: &Path,
    base: Offset,
) -> Result<Vec<AbortedTxn>, InspectError> {
    let Some(bytes) = context.read_small(path)? else { return Ok(Vec::new()) };
    let file = context.start(path)?;
    match txn_index::parse(base, &bytes) {
        Ok(transactions) => {
            for transaction in &transactions {
                context.entry(&transaction.into())?;
            }
            Ok(transactions)
        }
        Err(error) => {
            let position = match error {
                TxnIndexError::Version { entry, .. } => entry * TXN_ENTRY_LEN,
                TxnIndexError::Offsets { entry, .. } => entry * TXN_ENTRY_LEN + 10,
                _ => bytes.len() / TXN_ENTRY_LEN * TXN_ENTRY_LEN,
            };
            context.find(Finding::problem(&file, position as u64, malformed(&error)));
            Ok(Vec::new())
        }
    }
}

/// The leader epochs of a partition.
pub(super) fn epochs(context: &mut Context<'_>, dir: &Path) -> Result<Vec<EpochStart>, InspectError> {
    let epochs = text(context, &dir.join(names::LEADER_EPOCH_CHECKPOINT), checkpoint::parse_epochs)?;
    Ok(epochs.unwrap_or_default())
}

/// The topic id in `partition.metadata`.
pub(super) fn topic_id(context: &mut Context<'_>, dir: &Path) -> Result<Option<TopicId>, InspectError> {
    text(context, &dir.join(names::PARTITION_METADATA), checkpoint::parse_partition_metadata)
}

/// An offset checkpoint of a log directory.
pub(super) fn offsets(
    context: &mut Context<'_>,
    path: &Path,
) -> Result<Option<Vec<(TopicPartition, Offset)>>, InspectError> {
    text(context, path, checkpoint::parse_offsets)
}

/// The identity of a log directory.
pub(super) fn meta_properties(context: &mut Context<'_>, path: &Path) -> Result<(), InspectError> {
    text(context, path, MetaProperties::parse).map(|_| ())
}

/// Parses one text file; `None` if it is missing or malformed, the latter with a finding.
fn text<T, E: Display>(
    context: &mut Context<'_>,
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<Option<T>, InspectError> {
    let Some(bytes) = context.read_small(path)? else { return Ok(None) };
    let file = context.start(path)?;
    match parse(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            context.find(Finding::problem(&file, None, malformed(&error)));
            Ok(None)
        }
    }
}

fn malformed(error: &impl Display) -> What {
    What::Malformed(error.to_string())
}
