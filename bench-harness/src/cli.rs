//! The command line. Without arguments it runs the main job.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::error::{BenchError, Result};
use crate::method::{self, RunOptions};
use crate::paths::{self, PATHS, Role};
use crate::results::host::filesystem_of;
use crate::results::{figures, table};
use crate::server::ColdReads;
use crate::workload::{Kind, Workload};
use crate::{client, doctor, flame, inspect, repair, server, sys};

const ROUNDS_DEFAULT: usize = 5;
/// Prime, so that it beats with no timer.
const SAMPLE_HZ_DEFAULT: u32 = 1999;
const POOL_CHUNK_KIB_DEFAULT: usize = 1024;
const POOL_THREADS_DEFAULT: usize = 2;

/// Compares ways to deliver Kafka-style log segments to TCP clients.
///
/// Without a subcommand: the main job, six workloads on every path, in under five minutes.
#[derive(Parser)]
#[command(name = "rohrpost-bench", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The workloads and the paths there are.
    List,
    /// Run chosen workloads on chosen paths.
    Run(Box<RunArgs>),
    /// Draw where a path's server spends its time under a workload.
    Flame(FlameArgs),
    /// Dump and verify segments, indexes and checkpoints; reads only.
    Inspect(InspectArgs),
    /// End a damaged partition's log where the damage begins, or say where that is.
    Repair(repair::RepairArgs),
    /// Print the README's table from committed result files.
    Figures(FiguresArgs),
    /// What this machine offers the engine.
    Doctor,
    /// The server process of a window.
    #[command(hide = true)]
    Server,
    /// The client process of a window.
    #[command(hide = true)]
    Client,
}

#[derive(Args)]
struct InspectArgs {
    /// A log directory, a partition directory or one of its files.
    target: PathBuf,
    /// Print every batch and index entry, as DumpLogSegments does.
    #[arg(long)]
    batches: bool,
    /// JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct FiguresArgs {
    /// Where the result files are, and the list of rows beside them.
    #[arg(default_value = "bench-harness/results")]
    dir: PathBuf,
    /// Paths, each a column.
    #[arg(long, value_delimiter = ',', default_value = "engine,engine_poll")]
    paths: Vec<String>,
}

#[derive(Args)]
struct FlameArgs {
    /// The workload.
    #[arg(long)]
    workload: String,
    /// The path.
    #[arg(long)]
    path: String,
    /// A second path, drawn as well, and the first as it differs from it.
    #[arg(long)]
    diff: Option<String>,
    /// Windows whose samples make a picture.
    #[arg(long, default_value_t = ROUNDS_DEFAULT)]
    rounds: usize,
    /// Seconds of a window (default: the workload's own).
    #[arg(long)]
    seconds: Option<f64>,
    /// Samples per second of CPU.
    #[arg(long, default_value_t = SAMPLE_HZ_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    hz: u32,
    /// Where pictures and records go.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Where the corpus and scratch files go (default: rohrpost-bench in the user's cache directory).
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

#[derive(Args, Default)]
struct RunArgs {
    /// Workloads, separated by commas (default: those of the main job).
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Paths, separated by commas (default: all that can run the workload).
    #[arg(long, value_delimiter = ',')]
    paths: Vec<String>,
    /// Every workload.
    #[arg(long, conflicts_with = "workload")]
    all: bool,
    /// Rounds; in each, every path runs once.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of a window (default: the workload's own).
    #[arg(long)]
    seconds: Option<f64>,
    /// A Kafka partition directory to serve instead of the generated corpus; it is only read.
    #[arg(long)]
    segments: Option<PathBuf>,
    /// Where the corpus and scratch files go (default: rohrpost-bench in the user's cache directory).
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Result file (default: results.jsonl in the data directory).
    #[arg(long)]
    json: Option<PathBuf>,
    /// Core of the server process.
    #[arg(long)]
    server_core: Option<usize>,
    /// Core of the client process.
    #[arg(long)]
    client_core: Option<usize>,
    /// Kernel features the engine shall do without, separated by commas.
    #[arg(long, value_delimiter = ',')]
    mask_features: Vec<String>,
    /// Chunk of the direct-read pool, KiB.
    #[arg(long)]
    pool_chunk_kib: Option<usize>,
    /// Threads of the direct-read pool.
    #[arg(long)]
    pool_threads: Option<usize>,
    /// Chunk of the engine's cold reads, KiB (default: the engine's).
    #[arg(long)]
    engine_chunk_kib: Option<u64>,
    /// What the engine reads ahead of a reader of old data, KiB (default: the engine's; 0: nothing).
    #[arg(long)]
    engine_ahead_kib: Option<u64>,
    /// Segments of the generated corpus instead of what the workloads need, each 256 MiB.
    #[arg(long, conflicts_with = "segments")]
    corpus_segments: Option<u32>,
}

/// Runs the command line; the process's exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rohrpost-bench: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: Option<Command>) -> Result<ExitCode> {
    match command {
        None => run(&RunArgs::default())?,
        Some(Command::Run(args)) => run(&args)?,
        Some(Command::List) => list(),
        Some(Command::Repair(args)) => repair::run(&args)?,
        Some(Command::Inspect(args)) => return Ok(run_inspect(&args)),
        Some(Command::Flame(args)) => draw_flames(&args)?,
        Some(Command::Figures(args)) => print!("{}", figures::render(&args.dir, &args.paths)?),
        Some(Command::Doctor) => doctor::run(&default_data_dir()),
        Some(Command::Server) => server::main()?,
        Some(Command::Client) => client::main()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Exit code 0: clean, 1: problems found, 2: could not be read.
fn run_inspect(args: &InspectArgs) -> ExitCode {
    let options = inspect::Options { batches: args.batches, json: args.json };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match inspect::run(&args.target, options, &mut out).and_then(|report| {
        out.flush().map_err(inspect::InspectError::Write)?;
        Ok(report)
    }) {
        Ok(report) => ExitCode::from(report.exit_code()),
        Err(error) => {
            eprintln!("rohrpost-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn list() {
    println!("workloads (* in the main job)");
    for workload in Workload::all() {
        let mark = if workload.main { '*' } else { ' ' };
        println!("  {mark} {:<12} {}", workload.name, workload.about);
    }
    println!("\npaths (* in the main job; F fetch, C cold fetch, A append as fast as it goes,");
    println!("T append with readers at the tail, at a rate, beside other loads, and over many partitions)");
    for path in PATHS.iter().filter(|path| path.listed) {
        let mark = if path.main { '*' } else { ' ' };
        let able = [(path.fetch, 'F'), (path.cold, 'C'), (path.append, 'A'), (path.tail, 'T')];
        let able: String = able.iter().map(|(able, letter)| if *able { *letter } else { '-' }).collect();
        println!("  {mark} {:<26} {able} {}", path.name, path.about);
    }
}

/// `rohrpost-bench` under the user's cache directory; a directory on disk where that is tmpfs.
fn default_data_dir() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    let on_disk = |dir: &Path| {
        let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        !matches!(filesystem_of(existing).as_deref(), Some("tmpfs" | "ramfs"))
    };
    [cache, PathBuf::from("/var/tmp"), std::env::temp_dir()]
        .into_iter()
        .find(|dir| on_disk(dir))
        .unwrap_or_else(std::env::temp_dir)
        .join("rohrpost-bench")
}

fn options(args: &RunArgs) -> Result<RunOptions> {
    let workloads = if args.all {
        Workload::all()
    } else if args.workload.is_empty() {
        Workload::all().into_iter().filter(|workload| workload.main).collect()
    } else {
        Workload::select(&args.workload)?
    };
    let paths = if args.paths.is_empty() {
        PATHS.iter().filter(|path| path.listed && (path.main || args.all)).collect()
    } else {
        args.paths.iter().map(|name| paths::find(name)).collect::<Result<Vec<_>>>()?
    };
    paths::engine::check_mask(&args.mask_features)?;
    let rounds = args.rounds.unwrap_or(ROUNDS_DEFAULT);
    if rounds == 0 || args.seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds <= 3600.0)) {
        return Err(BenchError::Usage(
            "--rounds wants at least 1, --seconds more than 0 and at most 3600".to_string(),
        ));
    }
    let cores = sys::allowed_cores();
    let server_core = args.server_core.unwrap_or_else(|| cores.first().copied().unwrap_or(0));
    let other = cores.iter().copied().find(|core| *core != server_core);
    let client_core = args.client_core.or(other).unwrap_or(server_core);
    let data_dir = args.data_dir.clone().unwrap_or_else(default_data_dir);
    let shape = args.corpus_segments.map(|cold_segments| crate::corpus::generate::Shape {
        cold_segments,
        ..crate::corpus::generate::Shape::DEFAULT
    });
    Ok(RunOptions {
        workloads,
        paths,
        paths_named: !args.paths.is_empty(),
        is_main_job: args.workload.is_empty() && args.paths.is_empty() && !args.all,
        rounds,
        seconds: args.seconds,
        segments: args.segments.clone(),
        json: args.json.clone().unwrap_or_else(|| data_dir.join("results.jsonl")),
        data_dir,
        server_core,
        client_core,
        mask_features: args.mask_features.clone(),
        pool_chunk_len: args.pool_chunk_kib.unwrap_or(POOL_CHUNK_KIB_DEFAULT) << 10,
        pool_threads: args.pool_threads.unwrap_or(POOL_THREADS_DEFAULT),
        sample: None,
        cold_reads: ColdReads {
            chunk_len: args.engine_chunk_kib.map(|kib| kib << 10),
            ahead_len: args.engine_ahead_kib.map(|kib| kib << 10),
        },
        shape,
    })
}

fn draw_flames(args: &FlameArgs) -> Result<()> {
    let paths: Vec<_> = [Some(&args.path), args.diff.as_ref()].into_iter().flatten().cloned().collect();
    let options = options(&RunArgs {
        workload: vec![args.workload.clone()],
        paths: paths.clone(),
        rounds: Some(args.rounds),
        seconds: args.seconds,
        data_dir: args.data_dir.clone(),
        ..RunArgs::default()
    })?;
    let mut command = format!("rohrpost-bench flame --workload {} --path {}", args.workload, args.path);
    for (name, value) in [
        ("diff", args.diff.clone()),
        ("rounds", Some(args.rounds.to_string())),
        ("seconds", args.seconds.map(|seconds| seconds.to_string())),
        ("hz", Some(args.hz.to_string())),
    ] {
        command.extend(value.map(|value| format!(" --{name} {value}")));
    }
    flame::run(options, &flame::Settings { out: args.out.clone(), hz: args.hz, command })
}

fn run(args: &RunArgs) -> Result<()> {
    let options = options(args)?;
    if options.pool_threads == 0
        || options.pool_chunk_len < 4096
        || !options.pool_chunk_len.is_multiple_of(4096)
    {
        return Err(BenchError::Usage(
            "--pool-threads wants at least 1, --pool-chunk-kib a multiple of 4".to_string(),
        ));
    }
    println!("data: {}", options.data_dir.display());
    println!(
        "server on core {}, client on core {}, {} congestion control, {} round(s){}",
        options.server_core,
        options.client_core,
        sys::congestion_control(),
        options.rounds,
        if cfg!(debug_assertions) { "; DEBUG BUILD, the numbers mean nothing" } else { "" }
    );
    if options.server_core == options.client_core {
        println!("server and client share a core: the numbers mean little");
    }
    if options.segments.is_none() && options.workloads.iter().any(|w| w.kind == Kind::Fetch) {
        println!("corpus: generated (pass --segments DIR for a partition of your own)");
    }
    let outcome = method::run(&options)?;
    let losing = table::losing_cells(&outcome.summaries);
    if options.paths.iter().any(|path| path.role == Role::Engine) {
        println!("cells in which the engine is shown to be worse than a baseline: {}", losing.len());
        losing.iter().for_each(|line| println!("  {line}"));
    }
    println!("results: {}", options.json.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// clap's own check of the definitions above.
    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Nonsense is a usage error, exit code 2, before anything is written.
    #[test]
    fn nonsense_is_refused() {
        for args in [
            RunArgs { rounds: Some(0), ..RunArgs::default() },
            RunArgs { seconds: Some(f64::NAN), ..RunArgs::default() },
            RunArgs { paths: vec!["nope".into()], ..RunArgs::default() },
            RunArgs { workload: vec!["nope".into()], ..RunArgs::default() },
        ] {
            assert_eq!(options(&args).err().map(|error| error.exit_code()), Some(2));
        }
        let main = options(&RunArgs::default()).unwrap();
        assert_eq!((main.workloads.len(), main.rounds), (6, 5));
        assert!(main.paths.iter().all(|path| path.listed));
    }
}
