//! What a run is told, what it counts, and where its result goes.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rohrpost_tests::host;

use crate::load::Plant;

/// Settings that all tools share.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    /// Where runs have their folders, if not in memory.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) seed: u64,
    pub(crate) poll: bool,
    pub(crate) plant: Option<Plant>,
    /// Results are added to this file.
    pub(crate) results: Option<PathBuf>,
}

/// One run, with a folder of its own.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) seed: u64,
    pub(crate) poll: bool,
    pub(crate) plant: Option<Plant>,
}

impl Run {
    pub(crate) fn new(lab: &Lab) -> Result<Self, String> {
        let shm = PathBuf::from("/dev/shm");
        let above = lab.dir.clone().unwrap_or(if shm.is_dir() { shm } else { std::env::temp_dir() });
        let dir = tempfile::Builder::new().prefix("powercut-").tempdir_in(&above);
        let dir = dir.map_err(|error| format!("{}: {error}", above.display()))?.keep();
        Ok(Self { dir, seed: lab.seed, poll: lab.poll, plant: lab.plant })
    }

    /// A violation, with what is needed to see it again.
    pub(crate) fn keep(&self, what: &str, seed: u64) -> String {
        format!("{what} (seed {seed}, evidence in {})", self.dir.display())
    }

    /// Without a violation there is no evidence.
    pub(crate) fn remove(self) -> Result<(), String> {
        fs::remove_dir_all(&self.dir).map_err(|error| format!("{}: {error}", self.dir.display()))
    }
}

/// One run in a folder of its own, which stays if it fails; the result is printed, and kept if asked for.
pub(crate) fn one(
    lab: &Lab,
    what: &str,
    tool: impl FnOnce(&Run) -> Result<Tally, String>,
) -> Result<(), String> {
    let run = Run::new(lab)?;
    let start = Instant::now();
    let mut tally = tool(&run).map_err(|why| format!("{what}: {why}"))?;
    tally.took = start.elapsed();
    println!("{what}: {tally}");
    run.remove()?;
    let Some(results) = &lab.results else { return Ok(()) };
    let mut command: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = command.iter().position(|word| word == "--results") {
        command.drain(at..(at + 2).min(command.len())); // a place on one machine
    }
    let uname = rustix::system::uname();
    let text = format!(
        "powercut {}\n  Linux {}, checked out {}, driver {}, seed {}\n  {what}: {tally}\n",
        command.join(" "),
        uname.release().to_string_lossy(),
        host::run(&["git", "rev-parse", "--short", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned()),
        if lab.poll { "poll" } else { "uring" },
        lab.seed,
    );
    let file = File::options().create(true).append(true).open(results);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| format!("{}: {error}", results.display()))
}

/// What a run has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Cuts, kills or crash points.
    pub(crate) cuts: u64,
    /// Of those, with something unsynced or an append unacknowledged.
    pub(crate) counted: u64,
    /// Images that their own file system refused; not counted.
    pub(crate) refused: u64,
    /// How often the recovery from one was cut again.
    pub(crate) in_recovery: u64,
    /// File systems made.
    pub(crate) images: u64,
    /// Batches acknowledged.
    pub(crate) acked: u64,
    /// Batches that had to be there and were looked for, over all looks.
    pub(crate) checked: u64,
    /// How long it took.
    pub(crate) took: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, counted, refused, in_recovery, images, acked, checked, took } = self;
        write!(
            f,
            "{counted} counted of {cuts}, {refused} refused by the file system, {in_recovery} recoveries cut again, {images} images, {acked} batches \
             acknowledged, {checked} looked for and found, 0 violations, {:.0} s",
            took.as_secs_f64(),
        )
    }
}
