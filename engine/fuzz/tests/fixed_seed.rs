//! Every target over its committed corpus and a fixed number of mutations from a fixed seed, on any toolchain. The
//! allocator keeps the peak: bytes that claim to be long must not cost memory.

use std::path::Path;

use peak_alloc::PeakAlloc;
use rohrpost_engine_fuzz::mutate::mutate;
use rohrpost_engine_fuzz::{TARGETS, Target};
use rohrpost_engine_sim::prng::Prng;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What one run may hold at its peak: a simulated arena and two indexes are most of it.
const PEAK_LEN_MAX: usize = 96 << 20;

/// Mutations of each target; the environment may ask for more.
const RUNS_DEFAULT: u64 = 4_000;

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(seeds.len() > 2, "{} has a corpus", target.name);
    seeds
}

fn run(target: &Target, data: &[u8], story: &str) {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let outcome = std::panic::catch_unwind(|| (target.run)(data));
    let peak = ALLOCATOR.peak_usage().saturating_sub(before);
    if outcome.is_err() || peak > PEAK_LEN_MAX {
        let path = std::env::temp_dir().join(format!("rohrpost-fuzz-{}", target.name));
        std::fs::write(&path, data).unwrap();
        panic!(
            "{} {story}: {peak} bytes at the peak, panicked: {}; its input is in {}",
            target.name,
            outcome.is_err(),
            path.display()
        );
    }
}

/// One test, so that no other allocates beside it.
#[test]
fn targets_hold_over_the_corpus_and_its_mutations() {
    let runs = std::env::var("ROHRPOST_FUZZ_RUNS").ok().map_or(RUNS_DEFAULT, |runs| runs.parse().unwrap());
    for target in &TARGETS {
        let seeds = corpus(target);
        for (number, seed) in seeds.iter().enumerate() {
            run(target, seed, &format!("seed {number}"));
        }
        let mut prng = Prng::new(0x5eed);
        for number in 0..runs {
            let (seed, other) = (&seeds[prng.index(seeds.len())], &seeds[prng.index(seeds.len())]);
            let data = mutate(seed, other, &mut prng);
            run(target, &data, &format!("mutation {number}"));
        }
    }
}
