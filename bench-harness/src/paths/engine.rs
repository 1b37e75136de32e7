//! `engine`, `engine_poll`, `engine_<mode>`, `engine_direct_splice` and `engine_buffered`: our engine,
//! its server a service on the shard.
//! The rows differ in driver, forced mode, write mode and one idea left out or added, and in nothing else.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rohrpost_engine::linux::uring::{Feature, FeatureMask};
use rohrpost_engine::{
    ByteCount, DriverChoice, DriverInUse, Durability, Engine, EngineOptions, LogConfig, Mode, TopicPartition,
    WriteMode,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{BenchError, Result};
use crate::paths::write_fdatasync::wait_for_end;
use crate::server::ServerContext;
use crate::server::producer::{Producer, Reports};
use crate::server::schedule::Schedule;
use crate::server::service::{BenchService, WIRE_MODES};
use crate::workload::{Append, Kind, Workload};

/// How long `engine_spin` looks before it sleeps: longer than a wake-up takes, and than a client's turn.
const SPIN: Duration = Duration::from_micros(200);

/// Threads that open partitions: as many as the engine's helpers keep busy, and some more.
const OPENERS: usize = 4;

fn failed(why: impl ToString) -> BenchError {
    BenchError::Process { who: "server", why: why.to_string() }
}

/// The number a request forces this mode by.
pub(super) fn flags_of(mode: Mode) -> u16 {
    WIRE_MODES.iter().find(|(_, known)| *known == mode).map_or(0, |(number, _)| *number)
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    serve_with(context, DriverChoice::Uring, WriteMode::Direct)
}

pub(super) fn serve_poll(context: &mut ServerContext) -> Result<()> {
    serve_with(context, DriverChoice::Poll, WriteMode::Direct)
}

pub(super) fn serve_buffered(context: &mut ServerContext) -> Result<()> {
    serve_with(context, DriverChoice::Uring, WriteMode::Buffered)
}

/// The first append of a commit waits 200 us for others.
pub(super) fn serve_linger(context: &mut ServerContext) -> Result<()> {
    serve_tuned(context, DriverChoice::Uring, WriteMode::Direct, |_, config| config.linger_us = 200)
}

/// A copy of the last block beside every commit.
pub(super) fn serve_guarded(context: &mut ServerContext) -> Result<()> {
    serve_tuned(context, DriverChoice::Uring, WriteMode::Direct, |_, config| config.guard_last_block = true)
}

/// Cold ranges through pipes; hot ones as the engine chooses.
pub(super) fn serve_by_splice(context: &mut ServerContext) -> Result<()> {
    serve_tuned(context, DriverChoice::Uring, WriteMode::Direct, |options, _| {
        options.limits.cold_by_splice = true
    })
}

pub(super) fn serve_poll_by_splice(context: &mut ServerContext) -> Result<()> {
    serve_tuned(context, DriverChoice::Poll, WriteMode::Direct, |options, _| {
        options.limits.cold_by_splice = true
    })
}

pub(super) fn serve_unregistered(context: &mut ServerContext) -> Result<()> {
    serve_tuned(context, DriverChoice::Uring, WriteMode::Direct, |options, _| {
        options.feature_mask = options.feature_mask.forbid(Feature::FixedBuffers);
    })
}

pub(super) fn serve_one_enter(context: &mut ServerContext) -> Result<()> {
    serve_tuned(context, DriverChoice::Uring, WriteMode::Direct, |options, _| options.ring.one_enter = true)
}

pub(super) fn serve_spin(context: &mut ServerContext) -> Result<()> {
    serve_tuned(context, DriverChoice::Uring, WriteMode::Direct, |options, _| options.ring.spin = SPIN)
}

/// The engine's log directory, and the partitions to open in it.
fn partitions(context: &ServerContext) -> Result<(std::path::PathBuf, Vec<TopicPartition>)> {
    let Some(segments) = &context.config.segments else {
        let count = context.config.workload.append.as_ref().map_or(0, Append::partition_count);
        let names = (0..count).map(|at| format!("bench-{at}").parse().map_err(failed));
        return Ok((context.config.scratch.clone(), names.collect::<Result<_>>()?));
    };
    let absolute = segments.canonicalize().map_err(BenchError::file("find", segments))?;
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partition = name.parse().map_err(|_| {
        failed(format!("the engine opens partition directories by name: {name} is not <topic>-<number>"))
    })?;
    Ok((absolute.parent().unwrap_or(Path::new("/")).to_path_buf(), vec![partition]))
}

fn mask(names: &[String]) -> Result<FeatureMask> {
    names.join(",").parse().map_err(|error| BenchError::Usage(format!("--mask-features: {error}")))
}

/// Whether every name is a feature that can be masked.
///
/// # Errors
/// `Usage`, listing the names there are.
pub fn check_mask(names: &[String]) -> Result<()> {
    if names.is_empty() { Ok(()) } else { mask(names).map(|_| ()) }
}

fn options(context: &ServerContext, dir: &Path, driver: DriverChoice) -> Result<EngineOptions> {
    let mut options = EngineOptions::new(dir);
    let workload = &context.config.workload;
    options.read_only = workload.kind == Kind::Fetch;
    options.driver = driver;
    options.cores = vec![Some(context.config.core)];
    options.congestion_control = Some(context.config.congestion.clone());
    let is_read = workload.append.as_ref().is_some_and(|append| append.backlog_len > 0);
    if workload.kind != Kind::Append || is_read {
        options.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    }
    if !context.config.mask_features.is_empty() {
        options.feature_mask = mask(&context.config.mask_features)?;
    }
    if let Some(len) = workload.memory_len {
        options.limits.arena_len_max = ByteCount::new(len);
    }
    let cold = context.config.cold_reads;
    options.limits.cold_read_len = cold.chunk_len.map_or(options.limits.cold_read_len, ByteCount::new);
    options.limits.cold_ahead_len = cold.ahead_len.map_or(options.limits.cold_ahead_len, ByteCount::new);
    // Steady state from the first window on, as the baselines touch their memory before they are ready.
    options.limits.arena_len_start = options.limits.arena_len_max;
    Ok(options)
}

fn log_config(workload: &Workload, write_mode: WriteMode) -> LogConfig {
    // The batches carry timestamps of long ago: by age, every sealed segment would be deleted at once.
    let retention_ms = None;
    let mut config =
        LogConfig { durability: Durability::Flushed, write_mode, retention_ms, ..LogConfig::default() };
    if let Some(append) = &workload.append {
        config.segment_len_max = ByteCount::new(append.segment_len);
    }
    config
}

fn serve_with(context: &mut ServerContext, driver: DriverChoice, write_mode: WriteMode) -> Result<()> {
    serve_tuned(context, driver, write_mode, |_, _| {})
}

fn serve_tuned(
    context: &mut ServerContext,
    driver: DriverChoice,
    write_mode: WriteMode,
    tune: fn(&mut EngineOptions, &mut LogConfig),
) -> Result<()> {
    let (dir, names) = partitions(context)?;
    let opened = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicU64::new(0));
    let workload = context.config.workload.clone();
    let reports = Reports {
        recorder: context.recorder.clone(),
        stop: context.stop.clone(),
        stats: context.stats.clone(),
        failed: refused.clone(),
    };
    let schedule = Schedule::new(&workload, context.stop.clone());
    let producer = schedule
        .zip(workload.append.clone())
        .map(|(schedule, append)| Producer::new(append, schedule, reports));
    let produces = producer.is_some();
    let takes_appends = workload.append.as_ref().is_some_and(|append| append.socket);
    let service = BenchService::new(producer, opened.clone(), context.stats.clone());
    let mut service = Some(service.with_appends(takes_appends));
    // One shard, so the closure runs once.
    let make = |_| service.take().expect("an engine of one core makes one service");
    let mut options = options(context, &dir, driver)?;
    let mut config = log_config(&workload, write_mode);
    tune(&mut options, &mut config);
    let engine = Engine::start_with(options, make).map_err(failed)?;
    open_all(&engine, &names, &config)?;
    if opened.load(Ordering::Acquire) != names.len() {
        return Err(failed("the service was not told of every partition"));
    }
    // Only a path that runs sets it, and only once.
    let _ = context.stats.drivers.set(engine.driver_stats());
    // What is measured begins when everything is open.
    let note = match engine.driver() {
        DriverInUse::Uring { missing } if missing.is_empty() => "io_uring".to_string(),
        DriverInUse::Uring { missing } => format!("io_uring without {}", missing.join("; ")),
        DriverInUse::Poll { reason } => format!("poll: {reason}"),
    };
    if produces {
        wait_until_filled(context, &refused)?;
        context.filled_end = context.stop.filled_end();
        context.recorder.start();
    }
    context.ready_on(engine.local_addr().map_or(0, |addr| addr.port()), &note)?;
    if workload.append.is_none() {
        return wait_for_end();
    }
    wait_for_stop(context)?;
    engine.shutdown().map_err(failed)?;
    let refused = refused.load(Ordering::Relaxed);
    if refused > 0 {
        return Err(failed(format!("the engine refused {refused} appends")));
    }
    context.stop.finished();
    wait_for_end()
}

/// Opens the partitions, several at a time: each waits for the device.
fn open_all(engine: &Engine, names: &[TopicPartition], config: &LogConfig) -> Result<()> {
    let share = names.len().div_ceil(OPENERS);
    std::thread::scope(|scope| {
        let openers: Vec<_> = names
            .chunks(share)
            .map(|names| {
                let handle = engine.handle();
                scope.spawn(move || {
                    let mut names = names.iter();
                    names.try_for_each(|name| {
                        handle.open_partition_blocking(name, config.clone()).map(drop).map_err(failed)
                    })
                })
            })
            .collect();
        // A panic of ours goes on in this thread.
        openers
            .into_iter()
            .try_for_each(|opener| opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Waits until the log that the workload wants to find is there.
fn wait_until_filled(context: &ServerContext, refused: &AtomicU64) -> Result<()> {
    while !context.stop.is_filled() {
        if refused.load(Ordering::Relaxed) > 0 {
            return Err(failed("the engine refused an append while the log was filled"));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}

fn wait_for_stop(context: &ServerContext) -> Result<()> {
    let mut fds = [PollFd::new(&context.stop.event, PollFlags::IN)];
    while !context.stop.is_set() {
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(BenchError::system("poll")(error)),
        }
    }
    Ok(())
}
