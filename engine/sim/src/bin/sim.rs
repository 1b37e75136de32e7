//! `cargo sim -- SEED` reproduces a seed with its trace; `cargo sim -- --seeds A..B` runs many and stops at the first
//! that fails. See [`USAGE`] for the rest.

use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use rohrpost_engine_sim::campaign::{Campaign, Campaigned};
use rohrpost_engine_sim::fault::Lie;
use rohrpost_engine_sim::run::{keep_panics_quiet, run_seed, run_seed_with_lie};

const USAGE: &str =
    "usage: cargo sim -- SEED [--lines N]      run one seed, print the last N lines of its trace
       cargo sim -- --seeds A..B [--keep-going]   run a range of seeds
       cargo sim -- --crash-points N --from SEED --out FILE
                                                  run seeds until there are N crash points, and write range,
                                                  counts and time to a file
       cargo sim -- --lies                        let the machine lie until a seed notices";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    keep_panics_quiet();
    match words[..] {
        ["--seeds", range] => with(parse_range(range), |seeds| many(seeds, false)),
        ["--seeds", range, "--keep-going"] => with(parse_range(range), |seeds| many(seeds, true)),
        ["--crash-points", count, "--from", seed, "--out", file] => {
            with(count.parse().ok().zip(seed.parse().ok()), |(count, seed)| {
                until(count, seed, Path::new(file))
            })
        }
        ["--lies"] => lies(),
        [seed] => with(seed.parse().ok(), |seed| one(seed, 200)),
        [seed, "--lines", lines] => {
            with(seed.parse().ok().zip(lines.parse().ok()), |(seed, lines)| one(seed, lines))
        }
        _ => usage(),
    }
}

fn with<T>(argument: Option<T>, run: impl FnOnce(T) -> ExitCode) -> ExitCode {
    argument.map_or_else(usage, run)
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn parse_range(range: &str) -> Option<Range<u64>> {
    let (from, to) = range.split_once("..")?;
    Some(from.parse().ok()?..to.parse().ok()?)
}

/// One seed, with its trace if it fails.
fn one(seed: u64, lines: usize) -> ExitCode {
    match run_seed(seed, true) {
        Ok(outcome) => {
            println!("seed {seed} holds: {outcome:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let all: Vec<&str> = failure.trace.lines().collect();
            let shown = &all[all.len().saturating_sub(lines)..];
            println!("... {} lines before\n{}\n\n{failure}", all.len() - shown.len(), shown.join("\n"));
            ExitCode::FAILURE
        }
    }
}

/// Every lie of the machine, until a seed notices it.
fn lies() -> ExitCode {
    let mut unnoticed = 0;
    for lie in Lie::ALL {
        match (0..200).find_map(|seed| run_seed_with_lie(seed, *lie).err()) {
            Some(failure) => println!("{lie:?}: {failure}\n"),
            None => {
                println!("{lie:?}: NOT NOTICED\n");
                unnoticed += 1;
            }
        }
    }
    if unnoticed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Many seeds.
fn many(seeds: Range<u64>, keep_going: bool) -> ExitCode {
    let campaign = Campaign { keep_going, ..Campaign::all(seeds) };
    let done = campaign.run(|_| {});
    println!("{}{}", done.sum.coverage, summary(&done));
    code(&done)
}

/// Seeds until there are so many crash points; writes what was run to a file.
fn until(crash_points: u64, seed: u64, file: &Path) -> ExitCode {
    let started = Instant::now();
    let campaign = Campaign { crash_points, ..Campaign::all(seed..u64::MAX) };
    let done = campaign.run(|so_far| {
        eprint!("\r{} of {crash_points} crash points", so_far.sum.crash_points);
        let _ = std::io::stderr().flush();
    });
    eprintln!();
    let record = format!(
        "# cargo sim -- --crash-points {crash_points} --from {seed} --out {}\n# rohrpost {}, {} threads, {} s\n{}{}",
        file.display(),
        env!("CARGO_PKG_VERSION"),
        campaign.threads,
        started.elapsed().as_secs(),
        done.sum.coverage,
        summary(&done)
    );
    println!("{record}");
    if let Err(error) = std::fs::write(file, record + "\n") {
        eprintln!("cannot write {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    code(&done)
}

fn summary(done: &Campaigned) -> String {
    let (sum, failed) = (&done.sum, done.failures.len());
    let stories: String = done.failures.iter().map(|failure| format!("{failure}\n\n")).collect();
    format!(
        "{stories}seeds {:?}: {failed} failed; {} crash points, {} of them in recovery; {} appends acknowledged, {} bytes served, {} over connections; {} file operations; hash {:#018x}",
        done.seeds,
        sum.crash_points,
        sum.cut_in_recovery,
        sum.acked,
        sum.served_len,
        sum.sent_len,
        sum.disk_ops,
        sum.trace_hash
    )
}

fn code(done: &Campaigned) -> ExitCode {
    if done.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
