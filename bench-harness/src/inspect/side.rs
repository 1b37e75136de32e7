//! Checks a segment against our side file: what Kafka's CRC does not cover, byte for byte.

use std::path::{Path, PathBuf};

use rohrpost_engine_core::format::batch::BatchHeader;
use rohrpost_engine_core::format::side_file::{ChainVerifier, SegmentIdentity, SideFile};
use rohrpost_engine_core::types::Position;

use super::InspectError;
use super::context::Context;
use super::finding::{Finding, What};

/// Loads a side file, if there is one, and checks that it belongs to the segment (as far as that is known).
pub(super) fn load(
    context: &mut Context<'_>,
    path: &Path,
    identity: Option<SegmentIdentity>,
) -> Result<Option<SideFile>, InspectError> {
    let Some(bytes) = context.read_small(path)? else { return Ok(None) };
    let file = context.start(path)?;
    let loaded = SideFile::load(&bytes).and_then(|side| {
        identity.map_or(Ok(()), |identity| side.check_identity(identity))?;
        Ok(side)
    });
    match loaded {
        Ok(side) => {
            if let Some(problem) = side.problem() {
                context.find(Finding::problem(&file, side.valid_len().get(), What::Side(problem)));
            }
            Ok(Some(side))
        }
        Err(error) => {
            context.find(Finding::problem(&file, 0, What::SideFile(error)));
            Ok(None)
        }
    }
}

/// The comparison, beside the scan of the segment.
pub(super) struct ChainCheck<'s> {
    verifier: Option<ChainVerifier<'s>>,
    side: &'s SideFile,
    end: u64,
    log: PathBuf,
}

impl<'s> ChainCheck<'s> {
    /// Compares the segment called `log` in results.
    pub(super) fn new(side: &'s SideFile, log: PathBuf) -> Self {
        Self { verifier: Some(ChainVerifier::new(side)), side, end: 0, log }
    }

    /// Compares the next batch. Ends with the first difference: the chain tells no more behind it.
    pub(super) fn batch(&mut self, context: &mut Context<'_>, position: u64, header: &BatchHeader) {
        let Some(verifier) = &mut self.verifier else { return };
        if position != self.end {
            // A hole in the batches, reported as such where it was met.
            self.verifier = None;
            return;
        }
        self.end = position + header.batch_len().get();
        if let Err(mismatch) = verifier.push_batch(header, Position::new(position)) {
            let what = What::Chain(mismatch);
            context.find(Finding::problem(&self.log, mismatch.from.get(), what));
            self.verifier = None;
        }
    }

    /// Ends the comparison: no more batches.
    pub(super) fn end(self, context: &mut Context<'_>) {
        let known = self.side.end_position().get();
        if self.verifier.is_some_and(|verifier| !verifier.is_complete()) {
            let what = What::LogEndsEarly { known, found: self.end };
            context.find(Finding::problem(&self.log, self.end, what));
        }
    }
}
