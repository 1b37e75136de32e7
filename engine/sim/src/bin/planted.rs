//! Every planted bug must be caught: `cargo run -p rohrpost-engine-sim --features planted-bugs --bin planted`.
//!
//! Each bug of `engine/core/src/planted.rs` is planted alone, and the seed that stands beside it below is run: a check named
//! there must fail, and without the bug the seed must hold. Changes of the engine and of the simulator move the
//! seeds; so others are tried before a bug counts as not caught. `-- find` prints what catches them now.

use std::process::ExitCode;

use rohrpost_engine_core::planted::{Bug, plant};
use rohrpost_engine_sim::run::{keep_panics_quiet, run_seed};

/// Seeds that are tried for a bug whose own no longer catches it.
const SEEDS_MAX: u64 = 4_000;

/// Which seed catches a bug, and what the check that fails says: one of these.
const CATCHERS: &[(Bug, u64, &[&str])] = &[
    (Bug::AckBeforeSync, 0, &["are served, not durable", "acknowledged up to"]),
    (Bug::AckWithoutSync, 0, &["are served, not durable"]),
    (Bug::AckFailedSync, 296, &["are served, not durable", "acknowledged up to"]),
    (Bug::AckFailedWrite, 0, &["from what is served", "are served, not durable", "acknowledged up to"]),
    (Bug::AckShortWrite, 4, &["from what is served", "garbage is served", "acknowledged up to"]),
    (Bug::AckWhatIsNotWritten, 2, &[", known Watermarks"]),
    (Bug::AckWithWrongOffset, 0, &["an acknowledgement with a wrong end"]),
    (Bug::ForgetBounce, 0, &["a write of"]),
    (Bug::BounceZeros, 0, &["acknowledged up to", "a partition cannot be opened"]),
    (Bug::LeakTailChunk, 0, &["have not come home", "no progress"]),
    (Bug::CacheBeforeValid, 29, &["is answered with: corrupt data", "are no batch"]),
    (Bug::ServePastHighWatermark, 0, &["lies beyond the high watermark"]),
    (Bug::HighWatermarkIsLogEnd, 0, &["but the high watermark was"]),
    (Bug::HighWatermarkRegress, 0, &[" after Watermarks"]),
    (Bug::KeepRefusedBatch, 0, &["invalid batches are answered with Ok"]),
    (Bug::WrongOffsetInBatch, 0, &["offsets are not dense", "no progress"]),
    (Bug::TailWithoutItsBlock, 2, &["is answered with: corrupt data", "are no batch"]),
    (Bug::DuplicateOnRetry, 14, &["one batch at two offsets"]),
    (Bug::SkipDirectorySync, 4, &["acknowledged up to"]),
    (Bug::SealWithoutSync, 0, &["the epoch is raised after a clean stop"]),
    (Bug::ForgetLogStart, 6, &["deleted records are back"]),
    (Bug::PreparedNameNotDurable, 88, &["acknowledged up to"]),
    (Bug::ReplaceWithoutSync, 0, &["no progress", "cannot be opened"]),
    (Bug::ReplaceWithoutDirectorySync, 1, &["the epoch is raised after a clean stop"]),
    (Bug::KeepCleanMarker, 152, &["a partition cannot be opened"]),
    (Bug::ForgetLogStartAtClose, 7, &["deleted records are back"]),
    (Bug::TornTailIsCorruption, 0, &["no progress", "a partition cannot be opened"]),
    (Bug::KeepTornTail, 183, &["a partition cannot be opened"]),
    (Bug::AcceptBadChecksum, 4, &["garbage is served"]),
    (Bug::WrongOffsetAfterRecovery, 16, &["inside the batch", "a partition cannot be opened"]),
    (Bug::DeleteOneSegmentTooMany, 2, &["but the high watermark was"]),
    (Bug::TrimBeyondHighWatermark, 8, &["oracle/marks.rs"]),
    (Bug::RecoverFromPageCache, 2329, &["is answered with: corrupt data", "garbage is served"]),
    (Bug::SealBeforeCommit, 2, &["no progress", "are written twice at a time"]),
];

/// Holes of the suite: so few seeds notice these that most ranges have none. They are named, and do not count as caught.
const HOLES: &[Bug] = &[Bug::RetryFailedSync];

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
    for bug in Bug::ALL.iter().filter(|bug| !HOLES.contains(bug)) {
        let Some((_, seed, says)) = CATCHERS.iter().find(|(caught, ..)| caught == bug) else {
            println!("{bug:?}: NOTHING IS TO CATCH IT");
            missed += 1;
            continue;
        };
        let named =
            |seed: &u64| story(*bug, *seed).is_some_and(|story| says.iter().any(|says| story.contains(says)));
        // A seed that fails by itself shows nothing.
        let caught = std::iter::once(*seed).chain(0..SEEDS_MAX);
        let caught = caught.into_iter().find(|seed| named(seed) && story(None, *seed).is_none());
        match caught {
            Some(caught) => println!("{bug:?}: seed {caught}: {says:?}"),
            None => {
                println!("{bug:?}: NOT CAUGHT: {}", bug.breaks());
                missed += 1;
            }
        }
    }
    let planted = Bug::ALL.len() - HOLES.len();
    println!("{planted} bugs planted, {} caught; known holes: {HOLES:?}", planted - missed);
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
