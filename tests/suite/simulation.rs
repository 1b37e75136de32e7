//! The simulator, as every CI run uses it: enough crash points, equal seeds, and a machine that lies.

use rohrpost_engine_sim::campaign::{Campaign, Campaigned};
use rohrpost_engine_sim::coverage::{Coverage, Harm, State};
use rohrpost_engine_sim::edits::Edits;
use rohrpost_engine_sim::errors::every_operation_fails;
use rohrpost_engine_sim::fault::Lie;
use rohrpost_engine_sim::run::{Plan, run_plan, run_seed, run_seed_with_lie};
use rohrpost_engine_sim::shrink::shrink;

/// Crash points of a CI run. A cut counts only when something was unsynced or an append unacknowledged.
const CRASH_POINTS_MIN: u64 = 50_000;

/// Seeds that are run in a rush as well: so many that nearly every cell of the table is met several times.
const RUSHED: u64 = 1_000;

/// Cells that are left to luck all the same, and only told: an operation that ends when nobody waits for it any more, and
/// a killed process's write that lands just while a neighbour has work. So many seeds may have none, or one.
const RARE: &[(Harm, State)] = &[
    (Harm::ReadFails, State::Idle),
    (Harm::ReadShort, State::Idle),
    (Harm::Cancelled, State::Idle),
    (Harm::TriedInVain, State::Idle),
    (Harm::WriteShort, State::Opening),
    (Harm::PipeRefused, State::Stopping),
    (Harm::LandedLate, State::Fetching),
    (Harm::LandedLate, State::Upkeep),
];

/// Seeds run until there are enough crash points; each brings about five.
const SEEDS_MAX: u64 = 20_000;

/// Seeds of runs on a device that destroys what it is writing; about every second one has a cut that meets a write.
const SPOILED_SEEDS: u64 = 200;

/// Seeds that found something, and what.
const FOUND: &[(u64, &str)] = &[
    (
        5_910,
        "a power cut took time index entries that recovery had only seen in the cache: young records were deleted",
    ),
    (7_590, "a power cut took everything that an epoch was for, and the next life had the same one"),
    (
        12_040,
        "what two connections waited for was evicted, for want of whole pages, before either was sent it",
    ),
    (13_530, "what a refused append had left by rolling was never sealed and kept the only descriptor"),
    (
        28_253,
        "a seal's sync failed, the page cache let go of what was only written, and readers got what the device held",
    ),
    (
        34_574,
        "a partition that failed kept the memory of what it would never write, and its readers waited for some",
    ),
];

/// Runs in which every operation fails once with every error.
const ERROR_LOOPS: u64 = 2;

/// Lives end by power cuts and kills at any operation, also in recovery; what was acknowledged stays.
#[test]
fn nothing_acknowledged_is_lost_at_any_crash_point() {
    let campaign = Campaign { crash_points: CRASH_POINTS_MIN, ..Campaign::all(0..SEEDS_MAX) };
    let Campaigned { seeds, sum, failures } = campaign.run(|_| {});
    println!("seeds {seeds:?}\n{}{sum:?}", sum.coverage);
    failures.iter().for_each(|failure| println!("{failure}"));
    assert!(failures.is_empty(), "{} seeds failed, see above", failures.len());
    assert!(sum.crash_points >= CRASH_POINTS_MIN, "{SEEDS_MAX} seeds brought {sum:?}");
    assert!(sum.cut_in_recovery >= CRASH_POINTS_MIN / 10, "too few ends within a recovery: {sum:?}");
    assert!(sum.acked > sum.crash_points, "too little was at stake: {sum:?}");
    every_fault_meets_every_state(sum.coverage);
}

/// A fault that never happens tests nothing, and neither does one that never happens at the wrong moment. What is rare in
/// those lives is common in a rush: partitions deleted and shards stopped amid failing reads and writes.
fn every_fault_meets_every_state(mut coverage: Coverage) {
    let Campaigned { sum, failures, .. } = Campaign::rushed(0..RUSHED).run(|_| {});
    failures.iter().for_each(|failure| println!("{failure}"));
    assert!(failures.is_empty(), "{} seeds failed in a rush, see above", failures.len());
    coverage.add(&sum.coverage);
    println!("with {RUSHED} seeds in a rush:\n{coverage}");
    assert!(coverage.missing().is_empty(), "never happened: {:?}", coverage.missing());
    let (rare, empty): (Vec<_>, Vec<_>) = coverage.empty().into_iter().partition(|cell| RARE.contains(cell));
    println!("rare, and not met: {rare:?}");
    assert!(empty.is_empty(), "these have never met: {empty:?}");
}

/// A device that destroys the sector it is writing when the power goes takes acknowledged bytes with it, unless the last
/// block is guarded.
#[test]
fn nothing_guarded_is_lost_when_a_sector_is_destroyed() {
    let run =
        |guard| (0..SPOILED_SEEDS).map(move |seed| run_plan(&Plan { spoil: true, guard, ..Plan::of(seed) }));
    assert!(run(false).any(|result| result.is_err()), "nothing is at stake: a test of nothing");
    let cuts: u64 = run(true).map(|result| result.unwrap_or_else(|e| panic!("{e}")).cut_in_write).sum();
    assert!(cuts >= SPOILED_SEEDS / 8, "only {cuts} cuts met a write");
}

/// One operation fails, the next time another one, with every error there is: nothing acknowledged is lost, and the
/// engine goes on.
#[test]
fn every_operation_may_fail_with_every_error() {
    for seed in 0..ERROR_LOOPS {
        let looped = every_operation_fails(seed).unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {seed}: {} operations, {} runs", looped.ops, looped.runs);
        assert!(looped.ops >= 50, "too short a run: {looped:?}");
    }
}

/// Of a run that fails, little is left when everything is left out that the failure does not need; and what is left
/// can be written down and run again.
#[test]
fn a_failing_run_is_made_small() {
    let plan = |seed| Plan { lie: Some(Lie::DurableWrite), ..Plan::of(seed) };
    let fails = (0..200).map(plan).find(|plan| run_plan(plan).is_err()).expect("lies are found out");
    let shrunk = shrink(&fails).expect("it fails");
    println!("{} of {} decisions: {}", shrunk.left, shrunk.before, shrunk.failure);
    assert!(shrunk.left <= 12 && shrunk.left < shrunk.before, "{} of {}", shrunk.left, shrunk.before);
    let edits: Edits = shrunk.plan.edits.to_string().parse().expect("edits are written as they are read");
    let again = run_plan(&Plan { edits, ..fails }).expect_err("it failed a moment ago");
    assert_eq!(*again, shrunk.failure);
}

/// A failing seed is worth printing only if it fails again.
#[test]
fn equal_seeds_give_equal_traces() {
    for seed in 0..20 {
        let hash = || run_seed(seed, false).unwrap_or_else(|failure| panic!("{failure}")).trace_hash;
        assert_eq!(hash(), hash(), "seed {seed}");
    }
    assert_ne!(run_seed(0, false).map(|o| o.trace_hash), run_seed(1, false).map(|o| o.trace_hash));
}

/// What a seed has found stays mended.
#[test]
fn what_seeds_have_found_is_mended() {
    for (seed, story) in FOUND {
        if let Err(failure) = run_seed(*seed, false) {
            panic!("{story}: {failure}");
        }
    }
}

/// The checkers are worth something only if they notice: every lie of the machine is found out, and soon.
#[test]
fn every_lie_of_the_machine_is_found_out() {
    for lie in Lie::ALL {
        let noticed = (0..200).find_map(|seed| run_seed_with_lie(seed, *lie).err());
        let failure = noticed.unwrap_or_else(|| panic!("nothing notices {lie:?}"));
        println!("{lie:?}: seed {} says {}", failure.plan.seed, failure.story);
    }
}
