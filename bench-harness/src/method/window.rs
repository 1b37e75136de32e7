//! One measured window: a fresh server process, the page cache in the state the workload wants, a client
//! process, marks of every counter at the window's two ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::client::verify::prime;
use crate::client::{ClientConfig, ClientEvent, ClientReport, Go};
use crate::corpus::ServedLog;
use crate::corpus::plan::FetchPlan;
use crate::error::{BenchError, Result};
use crate::interrupt;
use crate::ipc::Peer;
use crate::method::memory_group::MemoryGroup;
use crate::method::page_cache::{drop_range, free_len_max, resident_share, warm_range};
use crate::method::proc::{Counters, iowq_threads, memory_of};
use crate::method::{Env, calibrate, metrics};
use crate::paths::{Path, Role};
use crate::results::{Metrics, Round};
use crate::server::{Command, Mark, Ready, ServerConfig};
use crate::sys;
use crate::workload::Workload;

/// So often the hot range is asked for before a window, last of all, since it is what readers have asked for before an
/// old one comes: it then lies in a server's own memory as `warm_range` leaves it in the page cache for the others.
const HOT_PASSES: usize = 3;

/// How long a server may take to listen and a client to connect.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to fill a log that the workload wants to find, and to listen.
const FILL_TIMEOUT: Duration = Duration::from_secs(180);
/// From the order to begin until a producer with a rate does.
const BEGIN_DELAY_NS: u64 = 20_000_000;
/// How long a process may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Cold bytes per second for which memory is backed at least: what sendfile reads with one reader on a fast disk.
/// Faster windows raise it for those after them.
const COLD_RATE_MIN: f64 = 2.2e9;
/// How long after memory became free a guest kernel may begin to give it back to the host.
const REPORT_DELAY: Duration = Duration::from_millis(2_300);

/// A workload on the corpus it runs on.
pub(super) struct Cell<'a> {
    pub(super) workload: &'a Workload,
    pub(super) path: &'static Path,
    pub(super) plan: &'a FetchPlan,
    pub(super) log: Option<&'a ServedLog>,
    pub(super) segments: Option<PathBuf>,
}

/// Everything seen in one window.
pub(super) struct Observed {
    pub(super) report: ClientReport,
    pub(super) marks: [Mark; 2],
    pub(super) counters: [Counters; 2],
    pub(super) iowq_threads: u64,
    pub(super) resident_before: Option<f64>,
    pub(super) resident_after: Option<f64>,
    pub(super) cold_resident_before: Option<f64>,
    pub(super) backed_len: u64,
    /// Of the server and of all sockets: before there was a client, and at the window's end.
    pub(super) memory: [[Option<f64>; 2]; 2],
}

/// A running server process.
pub(super) struct Server {
    pub(super) peer: Peer,
    pub(super) ready: Ready,
    scratch: PathBuf,
    writes: bool,
    /// After the process, which must have left it.
    _group: Option<MemoryGroup>,
}

/// What is filled for cold readers lasts as long as the window: with another window, as much less or more.
fn sized(env: &Env, workload: &Workload) -> Workload {
    let mut workload = workload.clone();
    let factor = env.window_seconds(&workload) / workload.window_seconds;
    if let Some(append) = &mut workload.append {
        append.backlog_len = (append.backlog_len as f64 * factor) as u64;
    }
    workload
}

/// The memory a baseline is held to, where the workload wants equal memory. An engine path holds itself to its
/// arena: what it reads and writes goes around the page cache.
fn memory_group(cell: &Cell<'_>) -> Result<Option<MemoryGroup>> {
    let wanted = cell.workload.equal_memory && cell.path.role == Role::Baseline;
    cell.workload.memory_len.filter(|_| wanted).map(MemoryGroup::new).transpose()
}

impl Server {
    pub(super) fn start(env: &Env, cell: &Cell<'_>) -> Result<Self> {
        let scratch = env.scratch.join(format!("{}-{}", cell.workload.name, cell.path.name));
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch).map_err(BenchError::file("create", &scratch))?;
        let config = ServerConfig {
            path: cell.path.name.to_string(),
            workload: sized(env, cell.workload),
            segments: cell.segments.clone(),
            hot_len: cell.plan.hot_len,
            scratch: scratch.clone(),
            core: env.server_core,
            congestion: env.congestion.clone(),
            mask_features: env.mask_features.clone(),
            pool_chunk_len: env.pool_chunk_len,
            pool_threads: env.pool_threads,
            cold_reads: env.cold_reads,
            sample: env.sample.clone(),
        };
        let group = memory_group(cell)?;
        let join = |pid| group.as_ref().map_or(Ok(()), |group| group.join(pid));
        let mut peer = Peer::spawn_with("server", &config, join)?;
        let ready = peer.receive(FILL_TIMEOUT)?;
        Ok(Self { peer, ready, scratch, writes: cell.workload.append.is_some(), _group: group })
    }

    /// Lets a producer with a schedule begin at this monotonic time.
    pub(super) fn begin(&mut self, at_ns: u64) -> Result<()> {
        self.peer.send(&Command::Begin { at_ns })?;
        self.peer.receive::<Mark>(START_TIMEOUT).map(drop)
    }

    pub(super) fn mark(&mut self) -> Result<Mark> {
        self.peer.send(&Command::Mark)?;
        self.peer.receive(START_TIMEOUT)
    }

    /// Stops the producer and waits until nothing acknowledged can be lost.
    pub(super) fn stop(&mut self) -> Result<Mark> {
        self.peer.send(&Command::Stop)?;
        self.peer.receive(START_TIMEOUT)
    }

    /// Ends the process and removes what it wrote.
    pub(super) fn finish(mut self) -> Result<()> {
        let ended = self.peer.finish(END_TIMEOUT);
        let _ = std::fs::remove_dir_all(&self.scratch);
        if self.writes {
            // What is left to write, and the freeing of the blocks, shall not fall into the next window.
            let parent = self.scratch.parent().and_then(|parent| std::fs::File::open(parent).ok());
            let _ = parent.map(rustix::fs::syncfs);
        }
        ended
    }

    /// The directory it writes into.
    pub(super) fn scratch(&self) -> &std::path::Path {
        &self.scratch
    }
}

pub(super) fn client_config(env: &Env, cell: &Cell<'_>, port: u16, seed: u64) -> ClientConfig {
    ClientConfig {
        port,
        workload: cell.workload.clone(),
        plan: cell.plan.clone(),
        filled_end: 0,
        flags: cell.path.request_flags(),
        seed,
        core: env.client_core,
        congestion: env.congestion.clone(),
    }
}

/// Runs one window and turns it into a round.
pub(super) fn run(env: &mut Env, cell: &Cell<'_>, round: usize) -> Result<Round> {
    interrupt::check()?;
    if cell.path.calibration.is_some() {
        return calibrate::run(env, cell, round);
    }
    let mut server = Server::start(env, cell)?;
    let note = server.ready.note.clone();
    let prepared = match cell.workload.append.as_ref().filter(|append| append.backlog_len > 0) {
        Some(append) => {
            prepare_backlog(env, cell, &server.scratch.join(format!("bench-{}", append.partitions)))?
        }
        None => prepare(env, cell, server.ready.port)?,
    };
    let load = cell.workload;
    let has_client = load.hot.is_some() || load.tail.is_some() || load.is_cold();
    let observed = if has_client {
        with_client(env, cell, &mut server, round, prepared)?
    } else {
        without_client(env, cell, &mut server, prepared)?
    };
    server.finish()?;
    calibrate::note_writes(env, cell, &metrics::writes(&observed));
    if let Some(rate) = metrics::cold_rate(&observed) {
        env.cold_rate_max = env.cold_rate_max.max(rate);
    }
    Ok(to_round(env, cell, round, observed, note))
}

struct Prepared {
    resident_before: Option<f64>,
    cold_resident_before: Option<f64>,
    backed_len: u64,
    /// When memory was last freed before the old data was read in.
    freed_at: Instant,
    /// What this server has filled for cold readers, where the workload wants that.
    backlog: Option<ServedLog>,
}

/// Server and page cache as the window wants them but for the old data, which may be in memory until [`settle`].
///
/// A page cache fill into memory that the host has not backed, or has taken back, is not slower by itself: the
/// device writes it without the guest's help. The first guest access to it is what costs (3 to 11 us a page where
/// paging is virtualised), and with sendfile that is the *client's* copy out of the socket: measured with the
/// client at 98 % of its core and the server at 3 %, 0.5 GB/s instead of 1.9. Paths that read into memory of their own
/// never pay it, so sendfile would be slandered. Touching anonymous memory that is then freed does not help
/// reliably. Reading as much old data as the window can through the page cache, and dropping it at the last
/// moment, does: those pages are the next that are handed out.
fn prepare(env: &Env, cell: &Cell<'_>, port: u16) -> Result<Prepared> {
    let mut prepared = Prepared {
        resident_before: None,
        cold_resident_before: None,
        backed_len: 0,
        freed_at: Instant::now(),
        backlog: None,
    };
    let Some(log) = cell.log else { return Ok(prepared) };
    let hot = log.len() - cell.plan.hot_len..log.len();
    let flags = cell.path.request_flags();
    if cell.path.role == Role::Engine {
        prime(cell.path.name, port, flags, &cell.plan.prime_cold)?;
    }
    for _ in 0..HOT_PASSES {
        prime(cell.path.name, port, flags, &cell.plan.prime_hot)?;
    }
    if cell.workload.is_cold() {
        drop_range(log, 0..cell.plan.cold_len)?;
        prepared.freed_at = Instant::now();
        let read_len = cell.workload.catch_up_len().unwrap_or(u64::MAX).min(cell.plan.cold_len);
        prepared.backed_len = backed_len_of(env, cell.workload).min(read_len);
        warm_range(log, 0..prepared.backed_len)?;
    }
    warm_range(log, hot.clone())?;
    prepared.resident_before = resident_share(log, hot);
    Ok(prepared)
}

/// As [`prepare`], where the old data is what this server has filled beside the partitions it appends to.
fn prepare_backlog(env: &Env, cell: &Cell<'_>, dir: &std::path::Path) -> Result<Prepared> {
    let log = ServedLog::open(dir)?;
    drop_range(&log, 0..log.len())?;
    let freed_at = Instant::now();
    let mut backed_len = 0;
    if cell.workload.is_cold() {
        backed_len = backed_len_of(env, cell.workload).min(log.len());
        warm_range(&log, 0..backed_len)?;
    }
    let backlog = Some(log);
    Ok(Prepared { resident_before: None, cold_resident_before: None, backed_len, freed_at, backlog })
}

/// Bytes of page cache that a window's cold readers can fill.
fn backed_len_of(env: &Env, workload: &Workload) -> u64 {
    let rate = (env.cold_rate_max * 1.1).max(COLD_RATE_MIN);
    let seconds = env.window_seconds(workload) + workload.warmup_seconds;
    ((rate * seconds) as u64).min(free_len_max())
}

/// Called when the client is connected and waits: drops the old data. What was freed before has been given back
/// by then, and what is freed now will not be before the window's end.
fn settle(cell: &Cell<'_>, prepared: &mut Prepared) -> Result<()> {
    let corpus = cell.log.map(|log| (log, cell.plan.cold_len));
    let old = prepared.backlog.as_ref().map(|log| (log, log.len())).or(corpus);
    let Some((log, cold_len)) = old.filter(|_| cell.workload.is_cold()) else { return Ok(()) };
    sleep(REPORT_DELAY.saturating_sub(prepared.freed_at.elapsed()).as_secs_f64())?;
    drop_range(log, 0..cold_len)?;
    prepared.cold_resident_before = resident_share(log, 0..cold_len);
    Ok(())
}

fn with_client(
    env: &Env,
    cell: &Cell<'_>,
    server: &mut Server,
    round: usize,
    mut prepared: Prepared,
) -> Result<Observed> {
    let config = ClientConfig {
        filled_end: server.ready.filled_end,
        ..client_config(env, cell, server.ready.port, round as u64)
    };
    let memory_before = memory_of(server.peer.pid());
    let mut client = Peer::spawn("client", &config)?;
    match client.receive(START_TIMEOUT)? {
        ClientEvent::Ready => {}
        other => return Err(out_of_turn(&other)),
    }
    settle(cell, &mut prepared)?;
    let window_seconds = env.window_seconds(cell.workload);
    let begin_ns = sys::now_ns() + BEGIN_DELAY_NS;
    if cell.workload.has_schedule() {
        server.begin(begin_ns)?;
    }
    client.send(&Go { warmup_seconds: cell.workload.warmup_seconds, window_seconds, begin_ns })?;
    let timeout = Duration::from_secs_f64(window_seconds + cell.workload.warmup_seconds) + START_TIMEOUT;
    let mut marks = Vec::with_capacity(2);
    let mut counters = Vec::with_capacity(2);
    let report = loop {
        match client.receive(timeout)? {
            ClientEvent::WindowStart | ClientEvent::WindowEnd => {
                counters.push(env.counters());
                marks.push(server.mark()?);
            }
            ClientEvent::Report(report) => break report,
            other @ ClientEvent::Ready => return Err(out_of_turn(&other)),
        }
    };
    let iowq_threads = iowq_threads(server.peer.pid());
    let memory = [memory_before, memory_of(server.peer.pid())];
    client.finish(END_TIMEOUT)?;
    let resident_after =
        cell.log.and_then(|log| resident_share(log, log.len() - cell.plan.hot_len..log.len()));
    let missing = |_| BenchError::Process { who: "client", why: "reported half a window".to_string() };
    Ok(Observed {
        report,
        marks: marks.try_into().map_err(missing)?,
        counters: counters.try_into().map_err(|_| missing(Vec::new()))?,
        iowq_threads,
        resident_before: prepared.resident_before,
        resident_after,
        cold_resident_before: prepared.cold_resident_before,
        backed_len: prepared.backed_len,
        memory,
    })
}

fn out_of_turn(event: &ClientEvent) -> BenchError {
    BenchError::Process { who: "client", why: format!("said {event:?} out of turn") }
}

fn without_client(env: &Env, cell: &Cell<'_>, server: &mut Server, prepared: Prepared) -> Result<Observed> {
    if cell.workload.has_schedule() {
        server.begin(sys::now_ns())?;
    }
    sleep(cell.workload.warmup_seconds)?;
    let first = (env.counters(), server.mark()?);
    sleep(env.window_seconds(cell.workload))?;
    let second = (env.counters(), server.mark()?);
    Ok(Observed {
        report: ClientReport::default(),
        iowq_threads: iowq_threads(server.peer.pid()),
        marks: [first.1, second.1],
        counters: [first.0, second.0],
        resident_before: prepared.resident_before,
        resident_after: None,
        cold_resident_before: None,
        backed_len: 0,
        memory: [[None; 2]; 2],
    })
}

/// Sleeps in short steps, so that Ctrl-C is heard.
fn sleep(seconds: f64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    loop {
        interrupt::check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

fn to_round(env: &Env, cell: &Cell<'_>, round: usize, observed: Observed, note: String) -> Round {
    let control = env.hot_cpu_share.get(&(cell.workload.kind, cell.path.name, round)).copied();
    let (metrics, flags, extra): (Metrics, Vec<String>, BTreeMap<&'static str, f64>) =
        metrics::derive(cell.workload, cell.path.role == Role::Baseline, &observed, control);
    let recorded = metrics::latency_record(&observed);
    Round {
        workload: cell.workload.name.clone(),
        path: cell.path.name.to_string(),
        round,
        metrics,
        note,
        flags,
        extra,
        latencies: recorded.histogram(),
        series: recorded.series.clone(),
    }
}
