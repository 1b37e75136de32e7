//! The server process: one pinned process per window, serving one delivery path.
//!
//! The parent sends [`ServerConfig`], the child answers [`Ready`]; then each [`Command::Mark`] is answered with
//! a [`Mark`] of the counters so far, and the end of stdin ends the process. The control thread is idle
//! inside a window.

mod acks;
pub mod append_log;
pub mod epoll;
pub mod produce;
pub mod producer;
pub mod schedule;
mod send;
pub mod service;
pub mod source;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rohrpost_engine::linux::stats::{DriverStats, Writes};
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

use crate::corpus::ServedLog;
use crate::error::{BenchError, Result};
use crate::flame::sampler::{Order, Sampling};
use crate::ipc;
use crate::paths;
use crate::server::produce::{Produced, Recorder};
use crate::sys;
use crate::workload::Workload;

/// Lengths of an engine path's cold reads, bytes; `None` leaves them to the engine.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ColdReads {
    /// One read.
    pub chunk_len: Option<u64>,
    /// What is read ahead.
    pub ahead_len: Option<u64>,
}

/// What a server process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerConfig {
    /// Name of the delivery path.
    pub path: String,
    /// The load, of which a path uses what concerns it (the producer, sizes).
    pub workload: Workload,
    /// The partition directory to serve, for fetch workloads.
    pub segments: Option<PathBuf>,
    /// Bytes at the end of the log that readers will find hot.
    pub hot_len: u64,
    /// An empty directory of its own, for append and tail workloads.
    pub scratch: PathBuf,
    /// Core to run on.
    pub core: usize,
    /// TCP congestion control.
    pub congestion: String,
    /// Kernel features to do without, by name.
    pub mask_features: Vec<String>,
    /// Chunk length of the direct-read pool, bytes.
    pub pool_chunk_len: usize,
    /// Threads of the direct-read pool.
    pub pool_threads: usize,
    /// How an engine path reads old data.
    pub cold_reads: ColdReads,
    /// Samples to take of this process, from its first mark to its second.
    #[serde(default)]
    pub sample: Option<Order>,
}

/// The server listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// On this port; 0 where nobody connects.
    pub port: u16,
    /// What the path wants the report to say about itself.
    pub note: String,
    /// The end offset of the partition that was filled for cold readers; 0 without one.
    pub filled_end: i64,
}

/// What the parent may ask.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Report the counters and forget what the producer recorded so far.
    Mark,
    /// A producer with a schedule begins at this monotonic time; answered like `Mark`.
    Begin {
        /// Nanoseconds.
        at_ns: u64,
    },
    /// Stop producing, make everything acknowledged durable, report; used before files are verified.
    Stop,
}

/// Counters at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Monotonic time.
    pub at_ns: u64,
    /// CPU of the process with all its threads.
    pub cpu_ns: u64,
    /// Calls into the kernel on the data path.
    pub kernel_entries: u64,
    /// Responses completed.
    pub responses: u64,
    /// Zero-copy sends, and how many of them the kernel copied after all.
    pub zc: Option<(u64, u64)>,
    /// An engine's writes to segments, count and bytes, by the power of two below their length; empty for others.
    pub writes: Vec<(u64, u64)>,
    /// The producer's acknowledgements since the last mark.
    pub produced: Option<Produced>,
}

/// Counters the data path keeps.
#[derive(Debug, Default)]
pub struct Stats {
    /// See [`Mark::kernel_entries`].
    pub kernel_entries: AtomicU64,
    /// See [`Mark::responses`].
    pub responses: AtomicU64,
    /// Zero-copy sends.
    pub zc_sends: AtomicU64,
    /// Zero-copy sends that were copied.
    pub zc_copied: AtomicU64,
    /// Counters of the engine's drivers, whose kernel entries are added.
    pub drivers: OnceLock<Vec<DriverStats>>,
}

impl Stats {
    /// Counts calls into the kernel.
    #[inline]
    pub fn entered(&self, count: u64) {
        // One writer at a time; relaxed add of an uncontended line costs what the ring's own counters do.
        self.kernel_entries.fetch_add(count, Ordering::Relaxed);
    }

    fn all_kernel_entries(&self) -> u64 {
        let drivers = self.drivers.get().into_iter().flatten();
        self.kernel_entries.load(Ordering::Relaxed) + drivers.map(DriverStats::kernel_entries).sum::<u64>()
    }

    fn all_writes(&self) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        for driver in self.drivers.get().into_iter().flatten() {
            let writes = driver.writes();
            all.resize(writes.len(), (0, 0));
            for ((count, len), Writes { count: more, len: longer }) in all.iter_mut().zip(writes) {
                *count += more;
                *len += longer;
            }
        }
        all
    }

    /// Counts one completed response.
    #[inline]
    pub fn responded(&self) {
        self.responses.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a path's `serve` function gets.
pub struct ServerContext {
    /// The configuration.
    pub config: ServerConfig,
    /// Non-blocking, on loopback.
    pub listener: TcpListener,
    /// The log to serve, for fetch workloads.
    pub log: Option<ServedLog>,
    /// The counters.
    pub stats: Arc<Stats>,
    /// The producer's record.
    pub recorder: Arc<Recorder>,
    /// Set when producing must end.
    pub stop: Arc<Stop>,
    /// See [`Ready::filled_end`].
    pub filled_end: i64,
    ready: Option<Ready>,
}

/// When a producer begins and stops, to be looked at or waited for.
#[derive(Debug)]
pub struct Stop {
    flag: AtomicBool,
    /// Readable once producing must end.
    pub event: OwnedFd,
    done: AtomicBool,
    /// 0 until it is known.
    start_ns: AtomicU64,
    is_filled: AtomicBool,
    filled_end: AtomicI64,
}

impl Stop {
    fn new() -> Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(BenchError::system("make an eventfd"))?;
        Ok(Self {
            flag: AtomicBool::new(false),
            event,
            done: AtomicBool::new(false),
            start_ns: AtomicU64::new(0),
            is_filled: AtomicBool::new(false),
            filled_end: AtomicI64::new(0),
        })
    }

    /// When a producer with a schedule begins, once that is known.
    pub fn start_ns(&self) -> Option<u64> {
        Some(self.start_ns.load(Ordering::Acquire)).filter(|at_ns| *at_ns > 0)
    }

    /// Whether the log that the workload wants to find is there.
    pub fn is_filled(&self) -> bool {
        self.is_filled.load(Ordering::Acquire)
    }

    /// Called by the schedule when it is.
    pub fn set_filled(&self) {
        self.is_filled.store(true, Ordering::Release);
    }

    /// The end offset of the partition that was filled.
    pub fn filled_end(&self) -> i64 {
        self.filled_end.load(Ordering::Acquire)
    }

    /// See [`Stop::filled_end`].
    pub fn set_filled_end(&self, end: i64) {
        self.filled_end.store(end, Ordering::Release);
    }

    /// Whether producing must end.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// Called by the path when nothing acknowledged can be lost any more.
    pub fn finished(&self) {
        self.done.store(true, Ordering::Release);
    }

    fn set_and_wait(&self) -> Result<()> {
        self.flag.store(true, Ordering::Release);
        rustix::io::write(&self.event, &1u64.to_ne_bytes()).map_err(BenchError::system("wake the server"))?;
        for _ in 0..10_000 {
            if self.done.load(Ordering::Acquire) {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Err(BenchError::Process { who: "server", why: "did not stop within 10 s".to_string() })
    }
}

impl ServerContext {
    /// Tells the parent that the path is up; to be called exactly once by `serve`.
    ///
    /// # Errors
    /// If the parent is gone.
    pub fn ready(&mut self, note: &str) -> Result<()> {
        let port = self.ready.as_ref().map_or(0, |ready| ready.port);
        self.ready_on(port, note)
    }

    /// As [`ServerContext::ready`], for a path that listens by itself.
    ///
    /// # Errors
    /// If the parent is gone.
    pub fn ready_on(&mut self, port: u16, note: &str) -> Result<()> {
        let mut ready = self.ready.take().ok_or_else(|| BenchError::Process {
            who: "server",
            why: "said twice that it is ready".to_string(),
        })?;
        ready.port = port;
        ready.note = note.to_string();
        ready.filled_end = self.filled_end;
        ipc::child_send(&ready)
    }

    /// The log, for paths that cannot do without.
    ///
    /// # Errors
    /// `Process` if the workload has none: a registry row promises more than the path can do.
    pub fn take_log(&mut self) -> Result<ServedLog> {
        self.log.take().ok_or_else(|| BenchError::Process {
            who: "server",
            why: "this path serves a corpus, and the workload has none".to_string(),
        })
    }
}

/// The body of the hidden `server` subcommand.
///
/// # Errors
/// Whatever kept the path from serving; the parent has been told.
pub fn main() -> Result<()> {
    let config: ServerConfig = ipc::child_start()?;
    serve(config).inspect_err(ipc::child_fail)
}

fn serve(config: ServerConfig) -> Result<()> {
    let row = paths::find(&config.path)?;
    let stats = Arc::new(Stats::default());
    let recorder = Arc::new(Recorder::default());
    let stop = Arc::new(Stop::new()?);
    // Started before pinning: it may use any core.
    let control = (stats.clone(), recorder.clone(), stop.clone());
    let mut samples = Samples { order: config.sample.clone(), path: row.name, sampling: None };
    std::thread::Builder::new()
        .name("control".to_string())
        .spawn(move || control_loop(&control.0, &control.1, &control.2, &mut samples))
        .map_err(BenchError::system("start the control thread"))?;
    sys::pin_to_core(config.core)?;
    sys::raise_priority();
    // A producer that waits for its time must wake when it meant to, whatever it waits in.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let listener = sys::listen(&config.congestion)?;
    listener.set_nonblocking(true).map_err(BenchError::system("make a socket non-blocking"))?;
    let port = listener.local_addr().map_err(BenchError::system("name a socket"))?.port();
    let log = config.segments.as_deref().map(ServedLog::open).transpose()?;
    let ready = Some(Ready { port, note: String::new(), filled_end: 0 });
    let mut context = ServerContext { config, listener, log, stats, recorder, stop, filled_end: 0, ready };
    (row.serve)(&mut context)
}

/// Sampling of this process, if it was asked for.
struct Samples {
    order: Option<Order>,
    path: &'static str,
    sampling: Option<Sampling>,
}

impl Samples {
    /// The first mark starts it, the second ends it.
    fn marked(&mut self) -> Result<()> {
        if let Some(sampling) = self.sampling.take() {
            return sampling.finish();
        }
        if let Some(order) = self.order.take() {
            self.sampling = Some(Sampling::start(&order, self.path)?);
        }
        Ok(())
    }
}

fn control_loop(stats: &Stats, recorder: &Recorder, stop: &Stop, samples: &mut Samples) {
    loop {
        let answer = match ipc::child_receive::<Command>() {
            Ok(Some(Command::Mark)) => samples.marked(),
            Ok(Some(Command::Begin { at_ns })) => {
                stop.start_ns.store(at_ns, Ordering::Release);
                Ok(())
            }
            Ok(Some(Command::Stop)) => stop.set_and_wait(),
            Ok(None) => std::process::exit(0),
            Err(error) => Err(error),
        };
        let sent = match answer {
            Ok(()) => ipc::child_send(&mark(stats, recorder)),
            Err(error) => {
                ipc::child_fail(&error);
                Err(error)
            }
        };
        if sent.is_err() {
            std::process::exit(1);
        }
    }
}

fn mark(stats: &Stats, recorder: &Recorder) -> Mark {
    let zc_sends = stats.zc_sends.load(Ordering::Relaxed);
    Mark {
        at_ns: sys::now_ns(),
        cpu_ns: sys::process_cpu_ns(),
        kernel_entries: stats.all_kernel_entries(),
        responses: stats.responses.load(Ordering::Relaxed),
        zc: (zc_sends > 0).then(|| (zc_sends, stats.zc_copied.load(Ordering::Relaxed))),
        writes: stats.all_writes(),
        produced: recorder.take(),
    }
}
