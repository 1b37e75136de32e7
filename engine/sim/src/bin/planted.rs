//! Every planted bug must be caught: `cargo run -p rohrpost-engine-sim --features planted-bugs --bin planted`.
//!
//! Each bug of `engine/core/src/planted.rs` is planted alone, and what stands beside it below must notice: a seed of the
//! simulator, in which a check named there fails, or a test, which fails. Without the bug the seed must hold and the
//! test pass. Changes of the engine and of the simulator move the seeds; so others are tried before a bug counts as
//! not caught. `-- find` prints what catches them now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::process::{Command, ExitCode};

use rohrpost_engine_core::planted::{Bug, VARIABLE, plant};
use rohrpost_engine_sim::run::{Plan, keep_panics_quiet, run_plan};
use rohrpost_history::Class::{self, *};

use Catcher::{Seed, Test};
use Check::{History, Says};

/// Seeds that are tried for a bug whose own no longer catches it.
const SEEDS_MAX: u64 = 4_000;

/// What notices a bug.
enum Catcher {
    /// This seed of the simulator, by one of these checks.
    Seed(u64, &'static [Check]),
    /// This test of the engine's crates or of the simulator. What whole lives show too seldom, or not at all.
    Test(&'static str),
}

/// What fails first.
enum Check {
    /// The checker of histories, which names what it finds.
    History(Class),
    /// Another one: words from its story.
    Says(&'static str),
}

/// What catches each bug.
const CATCHERS: &[(Bug, Catcher)] = &[
    (Bug::AckBeforeSync, Seed(0, &[History(LostWrite), Says("are served, not durable")])),
    (Bug::AckWithoutSync, Seed(0, &[Says("are served, not durable"), History(LostWrite)])),
    (Bug::AckFailedSync, Seed(469, &[Says("are served, not durable"), History(LostWrite)])),
    (
        Bug::AckFailedWrite,
        Seed(0, &[Says("are served, not durable"), Says("from what is served"), History(LostWrite)]),
    ),
    (Bug::AckShortWrite, Seed(4, &[History(Garbage), History(LostWrite), Says("from what is served")])),
    (Bug::AckWhatIsNotWritten, Seed(0, &[Says(", known Watermarks")])),
    (
        Bug::AckWithWrongOffset,
        Seed(0, &[Says("an acknowledgement with a wrong end"), History(InconsistentOffsets)]),
    ),
    (Bug::ForgetBounce, Seed(0, &[Says("a write of")])),
    (Bug::ForgetTheGuard, Seed(29, &[History(LostWrite), Says("a partition cannot be opened")])),
    (Bug::ShowLogStartEarly, Seed(122, &[History(LogStartRegress)])),
    (Bug::BounceZeros, Seed(0, &[Says("a partition cannot be opened"), History(LostWrite)])),
    (Bug::LeakTailChunk, Seed(0, &[Says("have not come home"), Says("no progress")])),
    (Bug::CacheBeforeValid, Seed(29, &[History(Garbage), Says("is answered with: corrupt data")])),
    (Bug::ServePastHighWatermark, Seed(0, &[History(PrecommittedRead)])),
    (Bug::HighWatermarkIsLogEnd, Seed(0, &[History(HighWatermarkRegress), History(PollSkip)])),
    (Bug::HighWatermarkRegress, Seed(0, &[Says(" after Watermarks"), History(HighWatermarkRegress)])),
    (Bug::KeepRefusedBatch, Seed(0, &[Says("invalid batches are answered with Ok")])),
    (Bug::WrongOffsetInBatch, Seed(0, &[Says("a partition cannot be opened"), History(NonMonotonicPoll)])),
    (Bug::TailWithoutItsBlock, Seed(0, &[History(LostWrite), Says("is answered with: corrupt data")])),
    (Bug::DuplicateOnRetry, Seed(5, &[History(Duplicate)])),
    (Bug::SkipDirectorySync, Seed(4, &[History(LostWrite)])),
    (Bug::SealWithoutSync, Seed(0, &[Says("the epoch is raised after a clean stop")])),
    (Bug::ForgetLogStart, Seed(8, &[History(LogStartRegress)])),
    (Bug::PreparedNameNotDurable, Seed(88, &[History(LostWrite)])),
    (Bug::ReplaceWithoutSync, Seed(0, &[Says("no progress"), Says("cannot be opened")])),
    (Bug::ReplaceWithoutDirectorySync, Seed(1, &[Says("the epoch is raised after a clean stop")])),
    (Bug::KeepCleanMarker, Seed(6, &[Says("the epoch is not raised"), Says("a partition cannot be opened")])),
    (Bug::ForgetLogStartAtClose, Seed(6, &[History(LogStartRegress)])),
    (Bug::TornTailIsCorruption, Seed(0, &[Says("no progress"), Says("a partition cannot be opened")])),
    (Bug::KeepTornTail, Seed(183, &[Says("a partition cannot be opened")])),
    (Bug::AcceptBadChecksum, Seed(4, &[History(Garbage)])),
    (Bug::WrongOffsetAfterRecovery, Seed(16, &[Says("inside the batch"), Says("cannot be opened")])),
    (Bug::DeleteOneSegmentTooMany, Seed(2, &[History(PollSkip)])),
    (Bug::TrimBeyondHighWatermark, Seed(8, &[Says("oracle/marks.rs")])),
    (
        Bug::RecoverFromPageCache,
        Test("log::recovery::tests::recovery_believes_the_device_and_not_the_page_cache"),
    ),
    (Bug::ReadAfterFailedSync, Seed(28_253, &[History(Garbage)])),
    (Bug::KeepTailOfFailed, Test("commit_tests::what_failed_keeps_no_memory")),
    (Bug::SealBeforeCommit, Seed(2, &[Says("no progress"), Says("are written twice at a time")])),
    (Bug::ReadPastLease, Seed(0, &[Says("no more comes than was planned"), Says("an outcome of")])),
    (Bug::KeepProducersEpoch, Seed(0, &[Says("was appended in epoch")])),
    (Bug::LowerEpochOnReopen, Seed(0, &[Says("the epoch is not raised")])),
    (Bug::RetryFailedSync, Test("log::segments::tests::a_failed_sync_is_not_tried_again")),
    (Bug::CutInTheMiddle, Test("log::recovery::tests::damage_in_the_middle_of_the_log_is_refused")),
    (
        Bug::ForgetRecoveryPoint,
        Test("log::recovery::tests::damage_below_what_was_known_to_be_durable_is_refused"),
    ),
    (Bug::SkipRewrite, Test("log::recovery::tests::what_was_read_and_what_was_cut_is_rewritten_and_synced")),
    (Bug::RecoverWithoutLock, Test("log::reopen_tests::locks_and_direct_io_are_errors_by_name")),
    (
        Bug::ReuseBeforeNotification,
        Test("uring::transfer_tests::memory_stays_taken_while_the_kernel_reads_it"),
    ),
    (Bug::ReuseLentPage, Test("reference::tests::a_stalled_reader_gets_what_was_sent")),
    (Bug::CancelledCountsAsSent, Test("uring::tests::a_recalled_send_was_not_sent")),
];

/// What came of one bug.
enum Verdict {
    Caught(String),
    /// It cannot be shown here: why.
    Skipped(String),
    Missed(String),
}

fn main() -> ExitCode {
    keep_panics_quiet();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => check_all(),
        ["find"] => find(None, 0),
        ["find", bug] => find(Some(bug), 0),
        ["find", bug, seed] if seed.parse::<u64>().is_ok() => find(Some(bug), seed.parse().unwrap_or(0)),
        _ => {
            eprintln!("usage: planted [find [BUG [FIRST_SEED]]]");
            ExitCode::from(2)
        }
    }
}

fn check_all() -> ExitCode {
    let mut tests = Tests::default();
    let (mut caught, mut missed, mut classes) = (0, 0, BTreeSet::new());
    for bug in Bug::ALL {
        let verdict = match CATCHERS.iter().find(|(of, _)| of == bug) {
            None => Verdict::Missed("nothing is to catch it".to_owned()),
            Some((_, Seed(seed, checks))) => try_seeds(*bug, *seed, checks, &mut classes),
            Some((_, Test(test))) => tests.check(*bug, test),
        };
        match verdict {
            Verdict::Caught(by) => {
                caught += 1;
                println!("{bug:?}: {by}");
            }
            Verdict::Skipped(reason) => println!("skipped planted_bugs::{bug:?}: {reason}"),
            Verdict::Missed(why) => {
                missed += 1;
                println!("{bug:?}: NOT CAUGHT, {why}: {}", bug.breaks());
            }
        }
    }
    let names: Vec<&str> = classes.iter().map(|class: &Class| class.name()).collect();
    println!("{} bugs planted, {caught} caught; in histories: {}", Bug::ALL.len(), names.join(", "));
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The run that may notice a bug. A guard is needed only where the device destroys what it is writing.
fn plan(bug: Bug, seed: u64) -> Plan {
    let guard = bug == Bug::ForgetTheGuard;
    Plan { spoil: guard, guard, ..Plan::of(seed) }
}

/// What the first failing check says, if the run notices the bug.
fn story(bug: Option<Bug>, plan: &Plan) -> Option<String> {
    plant(bug);
    let story = run_plan(plan).err().map(|failure| failure.story.clone());
    plant(None);
    story
}

fn try_seeds(bug: Bug, first: u64, checks: &[Check], classes: &mut BTreeSet<Class>) -> Verdict {
    for seed in std::iter::once(first).chain(0..SEEDS_MAX) {
        let plan = plan(bug, seed);
        let Some(story) = story(Some(bug), &plan) else { continue };
        // A seed that fails by itself shows nothing.
        if let Some(check) = checks.iter().find(|check| check.tells(&story))
            && self::story(None, &plan).is_none()
        {
            if let History(class) = check {
                classes.insert(*class);
            }
            return Verdict::Caught(format!("seed {seed}, {check}"));
        }
    }
    Verdict::Missed(format!("by none of {SEEDS_MAX} seeds"))
}

impl Check {
    fn tells(&self, story: &str) -> bool {
        match self {
            History(class) => story.contains(&format!("{class}: partition ")),
            Says(words) => story.contains(words),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            History(class) => write!(f, "history: {class}"),
            Says(words) => write!(f, "{words:?}"),
        }
    }
}

/// Tests of the engine's crates, built with the feature; and which of them pass without a bug.
#[derive(Default)]
struct Tests {
    sound: BTreeMap<&'static str, Result<(), Verdict>>,
}

impl Tests {
    fn check(&mut self, bug: Bug, test: &'static str) -> Verdict {
        if let Err(verdict) = self.sound.entry(test).or_insert_with(|| passes(test)) {
            return std::mem::replace(verdict, Verdict::Missed("its test shows nothing".to_owned()));
        }
        if run(test, Some(bug)).contains("1 passed") {
            return Verdict::Missed(format!("{test} passes"));
        }
        Verdict::Caught(test.to_owned())
    }
}

/// Whether a test passes without a bug; why it shows nothing, if it does not.
fn passes(test: &'static str) -> Result<(), Verdict> {
    let output = run(test, None);
    if let Some(line) = output.lines().find(|line| line.starts_with("skipped ")) {
        return Err(Verdict::Skipped(line.to_owned()));
    }
    if output.contains("1 passed") && !output.contains("FAILED") {
        return Ok(());
    }
    Err(Verdict::Missed(format!("{test} fails without it, or is not there:\n{output}")))
}

/// What a test prints.
fn run(test: &str, bug: Option<Bug>) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args([
        "test",
        "--quiet",
        "--lib",
        "--no-fail-fast",
        "--features",
        "rohrpost-engine-core/planted-bugs",
    ]);
    for package in ["rohrpost-engine-core", "rohrpost-engine-linux", "rohrpost-engine-sim"] {
        command.args(["-p", package]);
    }
    command.args(["--", "--exact", test]);
    if let Some(bug) = bug {
        command.env(VARIABLE, format!("{bug:?}"));
    }
    let output = command.output().expect("cargo has started this program and starts again");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// For every bug, or for one, the first seed from this one on that notices it and what is said then.
fn find(name: Option<&str>, first: u64) -> ExitCode {
    for bug in Bug::ALL.iter().filter(|bug| name.is_none_or(|name| *name == format!("{bug:?}"))) {
        match (first..first + SEEDS_MAX).find_map(|seed| Some((seed, story(Some(*bug), &plan(*bug, seed))?)))
        {
            Some((seed, story)) => println!("(Bug::{bug:?}, {seed}, {story:?}),"),
            None => println!("// {bug:?}: nothing in {SEEDS_MAX} seeds from {first} on"),
        }
    }
    ExitCode::SUCCESS
}
