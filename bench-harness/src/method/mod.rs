//! How a run is made: verify every path, then rounds that interleave the paths, each cell in a fresh server
//! process; write every round as it ends; sum up. Nothing is repeated and nothing is dropped: what was odd about
//! a window is a flag in its line.

mod calibrate;
mod memory_group;
mod metrics;
mod page_cache;
mod proc;
mod scratch;
mod verify;
mod window;

use std::collections::HashMap;
use std::path::{Path as FsPath, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::corpus::ServedLog;
use crate::corpus::generate::{self, Shape};
use crate::corpus::plan::FetchPlan;
use crate::error::{BenchError, Result};
use crate::flame::sampler::Order;
use crate::interrupt;
use crate::method::proc::Counters;
use crate::method::scratch::Scratch;
use crate::method::window::Cell;
use crate::paths::{Path, Role};
use crate::results::host::{RunFacts, host_json};
use crate::results::{ResultFile, Round, Summary, skipped_json, summarize, table};
use crate::server::ColdReads;
use crate::sys;
use crate::workload::{Kind, Workload};

/// The workloads that others with cold readers are compared with.
const WITHOUT_COLD: &[&str] = &["backfill-0", "backfill-append-0"];
/// Seed of plans and of the order of paths: a run is repeatable as far as the machine is.
const SEED: u64 = 0x726f_6872;

/// What to run.
pub struct RunOptions {
    /// Workloads, in order.
    pub workloads: Vec<Workload>,
    /// Paths; each workload takes those that can run it.
    pub paths: Vec<&'static Path>,
    /// Whether the paths were asked for by name: then each that a workload cannot use is reported.
    pub paths_named: bool,
    /// Whether this is the main job, in which some workloads leave out some paths.
    pub is_main_job: bool,
    /// Rounds per cell.
    pub rounds: usize,
    /// Window length instead of the workload's own.
    pub seconds: Option<f64>,
    /// A partition directory instead of the default corpus.
    pub segments: Option<PathBuf>,
    /// Where corpus and scratch files live.
    pub data_dir: PathBuf,
    /// Result file.
    pub json: PathBuf,
    /// Core of the server.
    pub server_core: usize,
    /// Core of the client.
    pub client_core: usize,
    /// Kernel features to do without.
    pub mask_features: Vec<String>,
    /// Chunk length of the direct-read pool, bytes.
    pub pool_chunk_len: usize,
    /// Threads of the direct-read pool.
    pub pool_threads: usize,
    /// Samples to take of every server, for pictures.
    pub sample: Option<Order>,
    /// How an engine path reads old data.
    pub cold_reads: ColdReads,
    /// The default corpus, if no `segments` are given.
    pub shape: Option<Shape>,
}

/// What windows share.
struct Env {
    scratch: PathBuf,
    seconds: Option<f64>,
    server_core: usize,
    client_core: usize,
    congestion: String,
    mask_features: Vec<String>,
    pool_chunk_len: usize,
    pool_threads: usize,
    cold_reads: ColdReads,
    sample: Option<Order>,
    device: Option<String>,
    /// Most cold bytes a second seen so far.
    cold_rate_max: f64,
    /// CPU share of a path in a round without cold readers, to be taken off its cold rounds: by kind of load.
    hot_cpu_share: HashMap<(Kind, &'static str, usize), f64>,
    /// Lengths of the engine's writes and how many of each it made last, by workload.
    write_shapes: HashMap<String, Vec<(u64, u64)>>,
}

impl Env {
    fn window_seconds(&self, workload: &Workload) -> f64 {
        self.seconds.unwrap_or(workload.window_seconds)
    }

    fn counters(&self) -> Counters {
        Counters::read(self.server_core, self.client_core, self.device.as_deref())
    }
}

/// What a run came to.
pub struct Outcome {
    /// One per workload and path.
    pub summaries: Vec<Summary>,
    /// Cells that did not run: workload, path, reason.
    pub skipped: Vec<(String, Option<String>, String)>,
}

/// Runs everything and writes the result file; tables go to stdout as workloads end.
///
/// # Errors
/// The first that keeps the run from going on; what was measured until then is in the result file.
pub fn run(options: &RunOptions) -> Result<Outcome> {
    interrupt::install();
    sys::check_core(options.server_core)?;
    sys::check_core(options.client_core)?;
    std::fs::create_dir_all(&options.data_dir).map_err(BenchError::file("create", &options.data_dir))?;
    let scratch = Scratch::create(&options.data_dir)?;
    let corpus = corpus_dir(options)?;
    let log = corpus.as_deref().map(ServedLog::open).transpose()?;
    let device_dir = corpus.as_deref().unwrap_or(&options.data_dir);
    let mut env = Env {
        scratch: scratch.path().to_path_buf(),
        seconds: options.seconds,
        server_core: options.server_core,
        client_core: options.client_core,
        congestion: sys::congestion_control(),
        mask_features: options.mask_features.clone(),
        pool_chunk_len: options.pool_chunk_len,
        pool_threads: options.pool_threads,
        cold_reads: options.cold_reads,
        sample: options.sample.clone(),
        device: proc::device_of(device_dir),
        cold_rate_max: 0.0,
        hot_cpu_share: HashMap::new(),
        write_shapes: HashMap::new(),
    };
    let mut file = ResultFile::create(&options.json)?;
    file.write(&host_json(&RunFacts {
        data_dir: device_dir,
        device: env.device.as_deref(),
        congestion: &env.congestion,
        server_core: env.server_core,
        client_core: env.client_core,
        mask_features: &env.mask_features,
    }))?;
    let mut outcome = Outcome { summaries: Vec::new(), skipped: Vec::new() };
    let progress = progress_bar(options);
    for workload in &options.workloads {
        let runner = Runner { options, log: log.as_ref(), corpus: corpus.as_deref(), progress: &progress };
        runner.workload(&mut env, workload, &mut file, &mut outcome)?;
    }
    progress.finish_and_clear();
    Ok(outcome)
}

/// The partition directory that fetch workloads read, if there are any.
fn corpus_dir(options: &RunOptions) -> Result<Option<PathBuf>> {
    let appended =
        |workload: &Workload| workload.disk_len_max(options.seconds.unwrap_or(workload.window_seconds));
    if let Some(len @ 1..) = options.workloads.iter().map(appended).max() {
        generate::check_free(&options.data_dir, len)?;
    }
    if options.workloads.iter().all(|workload| workload.kind != Kind::Fetch) {
        return Ok(None);
    }
    if let Some(dir) = &options.segments {
        if !dir.is_dir() {
            return Err(BenchError::Usage(format!(
                "--segments {}: no such directory; it wants a Kafka partition directory",
                dir.display()
            )));
        }
        return Ok(Some(dir.clone()));
    }
    let cold = options.workloads.iter().any(Workload::is_cold);
    let shape = options.shape.unwrap_or(if cold { Shape::DEFAULT } else { Shape::HOT });
    let progress = hidden_unless_terminal(ProgressBar::new(shape.total_len()));
    progress.set_style(style("corpus {bar:40} {bytes}/{total_bytes}"));
    let dir = generate::ensure(&options.data_dir, shape, |done, total| {
        progress.set_length(total);
        progress.set_position(done);
    });
    progress.finish_and_clear();
    dir.map(Some)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn hidden_unless_terminal(progress: ProgressBar) -> ProgressBar {
    if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        progress.set_draw_target(ProgressDrawTarget::hidden());
    }
    progress
}

fn progress_bar(options: &RunOptions) -> ProgressBar {
    let fits =
        |workload: &&Workload| options.paths.iter().filter(|p| p.unfit_for(workload).is_none()).count();
    let cells: usize = options.workloads.iter().map(|workload| fits(&workload)).sum();
    let progress = hidden_unless_terminal(ProgressBar::new((cells * (options.rounds + 1)) as u64));
    progress.set_style(style("{bar:40} {pos}/{len} {eta} {msg}"));
    progress
}

struct Runner<'a> {
    options: &'a RunOptions,
    log: Option<&'a ServedLog>,
    corpus: Option<&'a FsPath>,
    progress: &'a ProgressBar,
}

impl Runner<'_> {
    fn workload(
        &self,
        env: &mut Env,
        workload: &Workload,
        file: &mut ResultFile,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut skip = |path: Option<&str>, reason: &str, file: &mut ResultFile| {
            outcome.skipped.push((workload.name.clone(), path.map(str::to_string), reason.to_string()));
            self.say(&format!("skipped {} {}: {reason}", workload.name, path.unwrap_or("(all paths)")));
            file.write(&skipped_json(&workload.name, path, reason))
        };
        let plan = match (workload.kind, self.log) {
            (Kind::Fetch, Some(log)) => FetchPlan::new(log, workload, SEED)?,
            _ => Ok(FetchPlan::default()),
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(reason) => return skip(None, &reason, file),
        };
        let mut paths = Vec::new();
        for path in &self.options.paths {
            let left_out = workload.main_without.iter().any(|name| name == path.name);
            if !self.options.paths_named && path.is_of_other_kind(workload)
                || self.options.is_main_job && left_out
            {
                continue;
            }
            if let Some(reason) = path.unfit_for(workload) {
                skip(Some(path.name), reason, file)?;
                continue;
            }
            let (needed, limit) = (workload.descriptors_needed(), sys::descriptors_max());
            if needed > limit {
                let reason = format!("needs {needed} open files, the limit is {limit}: raise it (ulimit -n)");
                skip(Some(path.name), &reason, file)?;
                continue;
            }
            if path.calibration.is_some() && !calibrate::is_available() {
                skip(Some(path.name), "fio is not installed, or does not run", file)?;
                continue;
            }
            self.progress.set_message(format!("verify {} {}", workload.name, path.name));
            let cell = self.cell(workload, path, &plan);
            match verify::verify(env, &cell) {
                Ok(writes) => {
                    calibrate::note_writes(env, &cell, &writes);
                    paths.push(*path);
                }
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                // A path that cannot start here (no io_uring, no O_DIRECT) is skipped with its reason; one that
                // returned wrong bytes ends the run.
                Err(error @ BenchError::Process { .. }) => skip(Some(path.name), &error.to_string(), file)?,
                Err(error) => return Err(error),
            }
            self.progress.inc(1);
        }
        let rounds = self.rounds(env, workload, &plan, &paths, file)?;
        let summaries = sum_up(&paths, &rounds);
        for summary in &summaries {
            file.write(&summary.to_json())?;
            file.write_hgrm(summary)?;
        }
        self.say(&table::render(workload, &summaries.iter().collect::<Vec<_>>()));
        outcome.summaries.extend(summaries);
        Ok(())
    }

    fn cell<'c>(&'c self, workload: &'c Workload, path: &'static Path, plan: &'c FetchPlan) -> Cell<'c> {
        let is_fetch = workload.kind == Kind::Fetch;
        Cell {
            workload,
            path,
            plan,
            log: self.log.filter(|_| is_fetch),
            segments: self.corpus.filter(|_| is_fetch).map(FsPath::to_path_buf),
        }
    }

    fn rounds(
        &self,
        env: &mut Env,
        workload: &Workload,
        plan: &FetchPlan,
        paths: &[&'static Path],
        file: &mut ResultFile,
    ) -> Result<Vec<Round>> {
        let mut random = fastrand::Rng::with_seed(SEED);
        let mut order = paths.to_vec();
        let mut rounds = Vec::new();
        for number in 0..self.options.rounds {
            random.shuffle(&mut order);
            for path in &order {
                self.progress.set_message(format!("{} {} round {number}", workload.name, path.name));
                let round = window::run(env, &self.cell(workload, path, plan), number)?;
                if WITHOUT_COLD.contains(&workload.name.as_str())
                    && let Some(share) = round.extra.get("server_cpu_share")
                {
                    env.hot_cpu_share.insert((workload.kind, path.name, number), *share);
                }
                file.write(&round.to_json())?;
                file.write(&round.series_json())?;
                rounds.push(round);
                self.progress.inc(1);
            }
        }
        Ok(rounds)
    }

    fn say(&self, text: &str) {
        self.progress.suspend(|| println!("{text}"));
    }
}

fn sum_up(paths: &[&'static Path], rounds: &[Round]) -> Vec<Summary> {
    let of = |path: &Path| rounds.iter().filter(|round| round.path == path.name).collect::<Vec<_>>();
    let baselines: Vec<_> =
        paths.iter().filter(|path| path.role == Role::Baseline).map(|path| (path.name, of(path))).collect();
    let against = |path: &Path| if path.role == Role::Harness { &[][..] } else { &baselines[..] };
    paths.iter().filter_map(|path| summarize(&of(path), against(path))).collect()
}
