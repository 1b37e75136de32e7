//! `powercut`: tries to break what `engine/docs/SAFETY.md` promises, on real file systems, with the real engine.
//!
//! Owns nothing but temporary folders and a mount name space of its own. Always holds: the ledger of acknowledgements is
//! in this process, the engine in another one; the first violation ends a run with its seed, and the images stay.

mod control;
mod cuts;
mod faults;
mod kills;
mod ledger;
mod life;
mod load;
mod prefixes;
mod report;
mod self_test;
mod tally;
mod write_log;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use rohrpost_tests::host;

use faults::Fault;
use load::{Plant, Story};
use rohrpost_tests::disk::{self, FileSystem};
use tally::{Lab, one};

/// Set for the program when it has mounts of its own.
const INSIDE: &str = "ROHRPOST_POWERCUT_INSIDE";

/// What the checks of every change do: crash points and live cuts on each of two file systems, kills.
const CI_POINTS: u64 = 50;
const CI_CUTS: u64 = 25;
const CI_KILLS: u64 = 50;

#[derive(Parser)]
#[command(about = "Cuts, kills and fills the disks of a running engine, and looks for what was lost.")]
struct Cli {
    #[command(subcommand)]
    tool: Tool,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Tool {
    /// Crash points between any two block writes of a recorded workload.
    Prefixes {
        /// How many on each file system; all, if it is left out.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Live cuts: shuts the file system down under load.
    Cuts {
        /// How many must count on each file system: with an append unacknowledged.
        #[arg(long, default_value_t = 1_000)]
        count: u64,
    },
    /// kill -9 under load, with instant restart.
    Kills {
        /// How many must count: with an append unacknowledged.
        #[arg(long, default_value_t = 2_000)]
        count: u64,
    },
    /// Full, slow, read-only and failing disks.
    Faults,
    /// Plants lies in the load generator, each of which must be found out.
    SelfTest,
    /// A little of everything, as in the checks of every change.
    Ci,
    /// The load generator; started by the others.
    #[command(hide = true)]
    Load(Story),
}

#[derive(Args, Clone)]
struct Common {
    /// Only this file system.
    #[arg(long, global = true)]
    fs: Option<FileSystem>,
    /// Where randomness begins.
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// The poll driver instead of io_uring.
    #[arg(long, global = true)]
    poll: bool,
    /// A lie of the load generator; the run must fail.
    #[arg(long, global = true)]
    plant: Option<Plant>,
    /// Where images are made; /dev/shm, if it is there, and the folder for temporary files for kills.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Results are added to this file, with the command, the kernel and the commit.
    #[arg(long, global = true)]
    results: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Tool::Load(story) = &cli.tool {
        return ExitCode::from(u8::from(load::run(story).is_err()));
    }
    let Common { fs, seed, poll, plant, dir, results } = cli.common;
    let lab = Lab { dir, seed, poll, plant, results };
    let file_systems = fs.map_or(FileSystem::ALL.to_vec(), |one| vec![one]);
    let result = with_mounts(|mounts| run(&cli.tool, &lab, &file_systems, mounts));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            println!("FAILED {what}");
            ExitCode::FAILURE
        }
    }
}

/// `mounts`: why there are none, if so.
fn run(tool: &Tool, lab: &Lab, all: &[FileSystem], mounts: Result<(), String>) -> Result<(), String> {
    let can = |what: &str, programs: &[&str]| match mounts.clone().and_then(|()| disk::missing(programs)) {
        Ok(()) => true,
        Err(reason) => {
            host::skip(&format!("powercut::{what}"), &reason);
            false
        }
    };
    let (daemon, plain) = (["qemu-storage-daemon", "mkfs.xfs", "xfs_io", "filefrag"], ["mkfs.xfs", "xfs_io"]);
    match tool {
        Tool::Prefixes { count } if can("prefixes", &daemon) => all.iter().try_for_each(|fs| {
            one(lab, &format!("crash points on {fs}"), |run| prefixes::run(run, *fs, *count))
        }),
        Tool::Cuts { count } if can("cuts", &plain) => all
            .iter()
            .try_for_each(|fs| one(lab, &format!("live cuts on {fs}"), |run| cuts::run(run, *fs, *count))),
        Tool::Kills { count } => one(&on_disk(lab), "kills", |run| kills::run(run, *count)),
        Tool::Faults if can("faults", &daemon) => {
            let pairs = all.iter().flat_map(|fs| Fault::ALL.map(|fault| (*fs, fault)));
            let mut pairs = pairs.filter(|(fs, fault)| fault.exists_on(*fs));
            pairs.try_for_each(|(fs, fault)| {
                one(lab, &format!("{fault:?} on {fs}"), |run| faults::run(run, fs, fault))
            })
        }
        Tool::SelfTest if can("self_test", &daemon) => self_test::run(lab),
        Tool::Ci => {
            let part = |tool| run(&tool, lab, all, mounts.clone());
            part(Tool::SelfTest)?;
            part(Tool::Prefixes { count: Some(CI_POINTS) })?;
            part(Tool::Cuts { count: CI_CUTS })?;
            part(Tool::Kills { count: CI_KILLS })?;
            part(Tool::Faults)
        }
        _ => Ok(()),
    }
}

/// A killed process's writes should be on their way to a device, not to memory.
fn on_disk(lab: &Lab) -> Lab {
    Lab { dir: lab.dir.clone().or_else(|| Some(std::env::temp_dir())), ..lab.clone() }
}

/// Runs `inside` in a process with mounts of its own, or here, with the reason, where there can be none.
fn with_mounts(inside: impl FnOnce(Result<(), String>) -> Result<(), String>) -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        return inside(Ok(()));
    }
    if let Err(reason) = host::run(&["unshare", "--mount", "--propagation", "private", "true"]) {
        return inside(Err(format!(
            "no mounts of its own ({reason}): run as root, with util-linux installed"
        )));
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(program).args(std::env::args_os().skip(1));
    match command.env(INSIDE, "1").status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
