//! Many seeds on several threads, up to a number of crash points: what every test run does a little of, and a release
//! a lot.
//!
//! Seeds are run in rounds, and a round is summed up in the order of its seeds: what a campaign says depends on its
//! range alone, not on the machine or the number of threads.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::outcome::Outcome;
use crate::run::{Failure, Plan, run_plan};

/// Seeds of a round.
const ROUND: u64 = 256;

type Ran = (u64, Result<Outcome, Box<Failure>>);

/// Seeds to run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// From the first one on; those of rounds behind the last crash point wanted are not run.
    pub seeds: Range<u64>,
    /// What every run is, its seed apart.
    pub plan: Plan,
    /// No further round is begun once there are so many crash points.
    pub crash_points: u64,
    /// Threads that share the seeds.
    pub threads: usize,
    /// Whether to go on behind a seed that fails.
    pub keep_going: bool,
}

/// What a campaign has seen.
#[derive(Debug)]
pub struct Campaigned {
    /// The seeds that were run, without a gap.
    pub seeds: Range<u64>,
    /// All runs that held, together.
    pub sum: Outcome,
    /// The seeds that found a violation, in order.
    pub failures: Vec<Failure>,
}

impl Campaign {
    /// Every seed of the range, on every core.
    pub fn all(seeds: Range<u64>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { seeds, plan: Plan::default(), crash_points: u64::MAX, threads, keep_going: false }
    }

    /// Likewise, of the moments that are rare in those.
    pub fn rushed(seeds: Range<u64>) -> Self {
        Self { plan: Plan { rush: true, ..Plan::default() }, ..Self::all(seeds) }
    }

    /// Runs it. `progress` hears after every round how things stand.
    pub fn run(&self, mut progress: impl FnMut(&Campaigned)) -> Campaigned {
        let start = self.seeds.start;
        let mut so_far = Campaigned { seeds: start..start, sum: Outcome::default(), failures: Vec::new() };
        while so_far.seeds.end < self.seeds.end
            && so_far.sum.crash_points < self.crash_points
            && (so_far.failures.is_empty() || self.keep_going)
        {
            let round = so_far.seeds.end..self.seeds.end.min(so_far.seeds.end + ROUND);
            so_far.seeds.end = round.end;
            for (_, result) in self.run_round(round) {
                match result {
                    Ok(outcome) => so_far.sum.add(&outcome),
                    Err(failure) => so_far.failures.push(*failure),
                }
            }
            progress(&so_far);
        }
        so_far
    }

    fn run_round(&self, seeds: Range<u64>) -> Vec<Ran> {
        let next = AtomicU64::new(seeds.start);
        let share = || {
            let mut ran: Vec<Ran> = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return ran;
                }
                ran.push((seed, run_plan(&Plan { seed, ..self.plan.clone() })));
            }
        };
        let mut ran = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(share)).collect();
            let shares = threads.into_iter().map(|thread| thread.join().expect("a run catches its panics"));
            shares.flatten().collect::<Vec<_>>()
        });
        ran.sort_by_key(|(seed, _)| *seed);
        ran
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_says_the_same_on_any_number_of_threads() {
        let run = |threads| Campaign { threads, ..Campaign::all(3..19) }.run(|_| {});
        let (one, three) = (run(1), run(3));
        assert_eq!((one.seeds.clone(), one.sum), (3..19, three.sum));
        assert!(one.failures.is_empty(), "{:?}", one.failures);
        assert_eq!(one.sum.lives, (3..19).map(|seed| run_plan(&Plan::of(seed)).unwrap().lives).sum::<u64>());
    }
}
