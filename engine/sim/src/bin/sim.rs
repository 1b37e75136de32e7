//! `cargo sim -- SEED` reproduces a seed with its trace; `cargo sim -- --seeds A..B` runs many and stops at the first
//! that fails. See [`USAGE`] for the rest.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use rohrpost_engine_sim::campaign::{Campaign, Campaigned};
use rohrpost_engine_sim::coverage::Coverage;
use rohrpost_engine_sim::errors::every_operation_fails;
use rohrpost_engine_sim::fault::Lie;
use rohrpost_engine_sim::outcome::Outcome;
use rohrpost_engine_sim::run::{Plan, keep_panics_quiet, run_plan, run_seed_with_lie};
use rohrpost_engine_sim::shrink::shrink;

const USAGE: &str = "usage: cargo sim -- PLAN [--lines N]           run one seed, print the last N lines of its trace
       cargo sim -- --shrink PLAN              leave out of a failing seed what can be left out
       cargo sim -- --seeds A..B [--keep-going | --rush]   run a range of seeds
       cargo sim -- --coverage A..B            likewise, each seed also in a rush, and fail if a cell of the table is
                                               empty that need not be
       cargo sim -- --crash-points N --from SEED --out FILE
                                               run seeds until there are N crash points, and write range, counts
                                               and time to a file
       cargo sim -- --errors A..B              fail every operation of these seeds' short runs, with every error
       cargo sim -- --spoiled A..B [--guard]   how often a power cut loses what was acknowledged if it makes garbage
                                               of a sector that is being written; with every last block guarded:
                                               fail if it ever does
       cargo sim -- --lies                     let the machine lie until a seed notices
PLAN:  SEED [--without DECISIONS] [--lie NAME] [--blow OPERATION ERROR] [--rush] [--spoil] [--guard]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    keep_panics_quiet();
    match words[..] {
        ["--seeds", range] => with(parse_range(range), |seeds| many(&Campaign::all(seeds))),
        ["--seeds", range, "--rush"] => with(parse_range(range), |seeds| many(&Campaign::rushed(seeds))),
        ["--seeds", range, "--keep-going"] => {
            with(parse_range(range), |seeds| many(&Campaign { keep_going: true, ..Campaign::all(seeds) }))
        }
        ["--coverage", range] => with(parse_range(range), cover),
        ["--crash-points", count, "--from", seed, "--out", file] => {
            with(count.parse().ok().zip(seed.parse().ok()), |(count, seed)| {
                until(count, seed, Path::new(file))
            })
        }
        ["--errors", range] => with(parse_range(range), errors),
        ["--spoiled", range] => with(parse_range(range), |seeds| spoiled(seeds, false)),
        ["--spoiled", range, "--guard"] => with(parse_range(range), |seeds| spoiled(seeds, true)),
        ["--lies"] => lies(),
        ["--shrink", ref plan @ ..] => with(parse_plan(plan), |(plan, _)| small(&plan)),
        ref plan => with(parse_plan(plan), |(plan, lines)| one(plan, lines)),
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

/// A plan, and how many lines of its trace to print.
fn parse_plan(words: &[&str]) -> Option<(Plan, usize)> {
    let (seed, mut rest) = words.split_first()?;
    let (mut plan, mut lines) = (Plan::of(seed.parse().ok()?), 200);
    while !rest.is_empty() {
        rest = match rest {
            ["--without", edits, rest @ ..] => {
                plan.edits = edits.parse().ok()?;
                rest
            }
            ["--lie", name, rest @ ..] => {
                plan.lie = Some(*Lie::ALL.iter().find(|lie| format!("{lie:?}") == *name)?);
                rest
            }
            ["--blow", op, blow, rest @ ..] => {
                plan.blow = Some((op.parse().ok()?, blow.parse().ok()?));
                rest
            }
            ["--rush", rest @ ..] => {
                plan.rush = true;
                rest
            }
            ["--spoil", rest @ ..] => {
                plan.spoil = true;
                rest
            }
            ["--guard", rest @ ..] => {
                plan.guard = true;
                rest
            }
            ["--lines", count, rest @ ..] => {
                lines = count.parse().ok()?;
                rest
            }
            _ => return None,
        };
    }
    Some((plan, lines))
}

/// One run, with its trace if it fails.
fn one(plan: Plan, lines: usize) -> ExitCode {
    match run_plan(&Plan { keep_trace: true, ..plan }) {
        Ok(outcome) => {
            println!("it holds: {outcome:?}");
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

/// A failing run, made small.
fn small(plan: &Plan) -> ExitCode {
    match shrink(plan) {
        Some(shrunk) => {
            println!("{} of {} decisions are needed\n{}", shrunk.left, shrunk.before, shrunk.failure);
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("it holds: there is nothing to shrink");
            ExitCode::FAILURE
        }
    }
}

/// The table of faults by what the engine was doing.
fn cover(seeds: Range<u64>) -> ExitCode {
    let done = [Campaign::all(seeds.clone()), Campaign::rushed(seeds)].map(|campaign| campaign.run(|_| {}));
    let mut coverage = Coverage::default();
    done.iter().for_each(|done| coverage.add(&done.sum.coverage));
    let empty = coverage.empty();
    let [plain, rushed] = &done;
    println!("{coverage}{}\nin a rush: {}\nempty cells: {empty:?}", summary(plain), summary(rushed));
    let held = empty.is_empty() && done.iter().all(|done| done.failures.is_empty());
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The exhaustive error loop over the short runs of some seeds.
fn errors(seeds: Range<u64>) -> ExitCode {
    for seed in seeds {
        match every_operation_fails(seed) {
            Ok(looped) => {
                println!("seed {seed}: {} operations, {} runs in which one failed", looped.ops, looped.runs);
            }
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// What a medium costs that does not write its sectors atomically.
fn spoiled(seeds: Range<u64>, guard: bool) -> ExitCode {
    let (mut sum, mut lost) = (Outcome::default(), BTreeMap::<String, (u64, String)>::new());
    for seed in seeds.clone() {
        match run_plan(&Plan { spoil: true, guard, ..Plan::of(seed) }) {
            Ok(outcome) => sum.add(&outcome),
            Err(failure) => {
                let first = (0, failure.plan.to_string());
                lost.entry(failure.kind()).or_insert(first).0 += 1;
            }
        }
    }
    let failed: u64 = lost.values().map(|(count, _)| count).sum();
    println!(
        "seeds {seeds:?}: {failed} runs ended with a loss or a refusal; in the others {} power cuts met a write in flight",
        sum.cut_in_write
    );
    lost.iter().for_each(|(story, (count, plan))| println!("{count:>8} {story}: {plan}"));
    if guard && failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
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
fn many(campaign: &Campaign) -> ExitCode {
    let done = campaign.run(|_| {});
    println!("{}{}", done.sum.coverage, summary(&done));
    code(&done)
}

/// Seeds until there are so many crash points; a file holds what was run so far, whenever this is interrupted.
fn until(crash_points: u64, seed: u64, file: &Path) -> ExitCode {
    let (started, commit) = (Instant::now(), commit());
    let campaign = Campaign { crash_points, ..Campaign::all(seed..u64::MAX) };
    let mut written = Ok(());
    let done = campaign.run(|so_far| {
        let record = format!(
            "# cargo sim -- --crash-points {crash_points} --from {seed} --out {}\n# rohrpost {}, commit {commit}, {} threads, {} s\n{}{}\n",
            file.display(),
            env!("CARGO_PKG_VERSION"),
            campaign.threads,
            started.elapsed().as_secs(),
            so_far.sum.coverage,
            summary(so_far)
        );
        written = std::fs::write(file, record);
        eprint!("\r{} of {crash_points} crash points", so_far.sum.crash_points);
        let _ = std::io::stderr().flush();
    });
    eprintln!();
    println!("{}", summary(&done));
    if let Err(error) = written {
        eprintln!("cannot write {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    code(&done)
}

/// The commit of the sources, with a plus sign if they were changed since; as far as git knows.
fn commit() -> String {
    let described = Command::new("git").args(["describe", "--always", "--dirty=+"]).output();
    described
        .map_or_else(|_| "unknown".to_owned(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
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
