//! The simulator, as every CI run uses it: enough crash points, equal seeds, and a machine that lies.

use rohrpost_engine_sim::fault::Lie;
use rohrpost_engine_sim::outcome::Outcome;
use rohrpost_engine_sim::run::{run_seed, run_seed_with_lie};

/// Crash points of a CI run. A cut counts only when something was unsynced or an append unacknowledged.
const CRASH_POINTS_MIN: u64 = 10_000;

/// Seeds run until there are enough crash points; each brings about five.
const SEEDS_MAX: u64 = 4_000;

/// Threads that share the seeds.
const THREADS: u64 = 2;

fn run_share(share: u64, crash_points: u64) -> Outcome {
    let mut sum = Outcome::default();
    for seed in (share..SEEDS_MAX).step_by(THREADS as usize) {
        match run_seed(seed, false) {
            Ok(outcome) => sum.add(&outcome),
            Err(failure) => panic!("{failure}"),
        }
        if sum.crash_points >= crash_points {
            break;
        }
    }
    sum
}

/// Lives end by power cuts and kills at any operation, also in recovery; what was acknowledged stays.
#[test]
fn nothing_acknowledged_is_lost_at_any_crash_point() {
    let shares: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..THREADS)
            .map(|share| scope.spawn(move || run_share(share, CRASH_POINTS_MIN.div_ceil(THREADS))))
            .collect();
        runs.into_iter().map(|run| run.join().expect("a seed failed, see above")).collect()
    });
    let mut sum = Outcome::default();
    shares.iter().for_each(|share| sum.add(share));
    println!("{}{sum:?}", sum.coverage);
    assert!(sum.crash_points >= CRASH_POINTS_MIN, "{SEEDS_MAX} seeds brought {sum:?}");
    assert!(sum.cut_in_recovery >= CRASH_POINTS_MIN / 10, "too few ends within a recovery: {sum:?}");
    assert!(sum.coverage.missing().is_empty(), "never happened: {:?}", sum.coverage.missing());
    assert!(sum.acked > sum.crash_points, "too little was at stake: {sum:?}");
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

/// The checkers are worth something only if they notice: every lie of the machine is found out, and soon.
#[test]
fn every_lie_of_the_machine_is_found_out() {
    for lie in Lie::ALL {
        let noticed = (0..200).find_map(|seed| run_seed_with_lie(seed, *lie).err());
        let failure = noticed.unwrap_or_else(|| panic!("nothing notices {lie:?}"));
        println!("{lie:?}: seed {} says {}", failure.seed, failure.story);
    }
}
