//! Every planted bug must be caught: `cargo run -p rohrpost-engine-sim --features planted-bugs --bin planted`.
//!
//! Each bug of `engine/core/src/planted.rs` is planted alone, and the seed that stands beside it below is run; the check
//! that fails must be the one named there, and without the bug the seed must hold. Where a change of the simulator has moved the seeds, others are tried
//! before a bug counts as not caught. `-- find` prints this table anew.

use std::process::ExitCode;

use rohrpost_engine_core::planted::{Bug, plant};
use rohrpost_engine_sim::run::{keep_panics_quiet, run_seed};

/// Seeds that are tried for a bug whose own no longer catches it.
const SEEDS_MAX: u64 = 4_000;

/// Which seed catches a bug, and what the check that fails says.
const CATCHERS: &[(Bug, u64, &str)] = &[
    (Bug::AckBeforeSync, 0, "are served, not durable"),
    (Bug::AckWithoutSync, 0, "are served, not durable"),
    (Bug::AckFailedSync, 177, "are served, not durable"),
    (Bug::AckFailedWrite, 24, "from what is served"),
    (Bug::AckShortWrite, 24, "from what is served"),
    (Bug::AckWhatIsNotWritten, 0, ", known Watermarks"),
    (Bug::AckWithWrongOffset, 0, "an acknowledgement with a wrong end"),
    (Bug::ForgetBounce, 0, "a write of"),
    (Bug::BounceZeros, 0, "acknowledged up to"),
    (Bug::LeakTailChunk, 0, "have not come home"),
    (Bug::CacheBeforeValid, 87, "is answered with: corrupt data"),
    (Bug::ServePastHighWatermark, 0, "lies beyond the high watermark"),
    (Bug::HighWatermarkIsLogEnd, 0, "but the high watermark was"),
    (Bug::HighWatermarkRegress, 0, " after Watermarks"),
    (Bug::KeepRefusedBatch, 4, "invalid batches are answered with Ok"),
    (Bug::WrongOffsetInBatch, 0, "no progress"),
    (Bug::TailWithoutItsBlock, 0, "is answered with: corrupt data"),
    (Bug::DuplicateOnRetry, 8, "one batch at two offsets"),
    (Bug::SkipDirectorySync, 26, "acknowledged up to"),
    (Bug::SealWithoutSync, 0, "the epoch is raised after a clean stop"),
    (Bug::ForgetLogStart, 1, "deleted records are back"),
    (Bug::PreparedNameNotDurable, 234, "acknowledged up to"),
    (Bug::ReplaceWithoutSync, 0, "no progress"),
    (Bug::ReplaceWithoutDirectorySync, 0, "the epoch is raised after a clean stop"),
    (Bug::KeepCleanMarker, 311, "a partition cannot be opened"),
    (Bug::ForgetLogStartAtClose, 6, "deleted records are back"),
    (Bug::TornTailIsCorruption, 0, "no progress"),
    (Bug::KeepTornTail, 35, "a partition cannot be opened"),
    (Bug::AcceptBadChecksum, 5, "garbage is served"),
    (Bug::WrongOffsetAfterRecovery, 31, "inside the batch"),
    (Bug::DeleteOneSegmentTooMany, 2, "but the high watermark was"),
    (Bug::TrimBeyondHighWatermark, 4, "oracle/marks.rs"),
    (Bug::RetryFailedSync, 980, "is answered with: corrupt data"),
    (Bug::RecoverFromPageCache, 97, "is answered with: corrupt data"),
    (Bug::SealBeforeCommit, 0, "no progress"),
];

fn main() -> ExitCode {
    keep_panics_quiet();
    match std::env::args().nth(1).as_deref() {
        None => check_all(),
        Some("find") => find(std::env::args().nth(2)),
        Some(_) => {
            eprintln!("usage: planted [find [BUG]]");
            ExitCode::from(2)
        }
    }
}

/// What the first failing check says, if a seed notices the bug.
fn story(bug: impl Into<Option<Bug>>, seed: u64) -> Option<String> {
    plant(bug.into());
    let story = run_seed(seed, false).err().map(|failure| failure.story.clone());
    plant(None);
    story
}

fn check_all() -> ExitCode {
    let mut missed = 0;
    for bug in Bug::ALL {
        let Some((_, seed, says)) = CATCHERS.iter().find(|(caught, ..)| caught == bug) else {
            println!("{bug:?}: NOTHING IS TO CATCH IT");
            missed += 1;
            continue;
        };
        let seeds = std::iter::once(*seed).chain(0..SEEDS_MAX);
        let caught =
            seeds.into_iter().find(|seed| story(*bug, *seed).is_some_and(|story| story.contains(says)));
        match caught {
            Some(caught) if story(None, caught).is_some() => {
                println!("{bug:?}: seed {caught} fails without it as well");
                missed += 1;
            }
            Some(caught) => println!("{bug:?}: seed {caught}: {says}"),
            None => {
                println!("{bug:?}: NOT CAUGHT: {} {:?}", bug.breaks(), story(*bug, *seed));
                missed += 1;
            }
        }
    }
    println!("{} bugs planted, {} caught", Bug::ALL.len(), Bug::ALL.len() - missed);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// For every bug, or for one, the first seed that notices it and what is said then.
fn find(name: Option<String>) -> ExitCode {
    for bug in Bug::ALL.iter().filter(|bug| name.as_ref().is_none_or(|name| *name == format!("{bug:?}"))) {
        match (0..SEEDS_MAX).find_map(|seed| Some((seed, story(*bug, seed)?))) {
            Some((seed, story)) => println!("(Bug::{bug:?}, {seed}, {story:?}),"),
            None => println!("// {bug:?}: nothing in {SEEDS_MAX} seeds"),
        }
    }
    ExitCode::SUCCESS
}
