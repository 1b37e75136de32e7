//! The engine: shards on threads of their own, and the handle to them.

use std::net::SocketAddr;
use std::sync::Arc;

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::error::PartitionError;
use rohrpost_engine_core::log::{LogDir, LogDirOptions};
use rohrpost_engine_core::service::Service;
use rohrpost_engine_linux::cpu;
use rohrpost_engine_linux::disk::LinuxDisk;
use rohrpost_engine_linux::file::open_files_max;
use rohrpost_engine_linux::net::{ListenOptions, Listener};
use rohrpost_engine_linux::probe::HostFacts;
use rohrpost_engine_linux::stats::DriverStats;
use rohrpost_engine_linux::uring::{self, ProbeReport};

use crate::bill::Bill;
use crate::error::{RequestError, StartError};
use crate::handle::{Handle, ShardLink};
use crate::options::{DriverChoice, EngineOptions, SHARDS_MAX};
use crate::replies::Pending;
use crate::runtime::ShardEnd;
use crate::start::{ShardThread, Starter, stop_abruptly};

/// The driver an engine runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverInUse {
    /// io_uring; what the kernel lacks, one line each.
    Uring {
        /// Features not used, each with its effect and the reason.
        missing: Vec<String>,
    },
    /// epoll; why not io_uring.
    Poll {
        /// The reason, for an operator.
        reason: String,
    },
}

/// A running engine. Dropping it stops the shards abruptly, as a killed process would: what was
/// acknowledged is safe, the next start recovers. [`Engine::shutdown`] closes everything cleanly.
pub struct Engine {
    handle: Handle,
    threads: Vec<ShardThread>,
    log_dir: Arc<LogDir<LinuxDisk>>,
    driver: DriverInUse,
    local_addr: Option<SocketAddr>,
    read_only: bool,
}

impl Engine {
    /// Starts an engine that is used through its handle only.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(options: EngineOptions) -> Result<Self, StartError> {
        Self::start_with(options, |_| ())
    }

    /// Starts an engine with a service on every shard; `service` makes the one for each shard's index.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_with<S: Service>(
        options: EngineOptions,
        service: impl FnMut(usize) -> S,
    ) -> Result<Self, StartError> {
        check(&options)?;
        let bill = options.bill();
        Self::start_checked(options, service).map_err(|error| explain(error, &bill))
    }

    fn start_checked<S: Service>(
        mut options: EngineOptions,
        mut service: impl FnMut(usize) -> S,
    ) -> Result<Self, StartError> {
        let allowed = open_files_max(options.cores.len(), options.limits.connections_max);
        options.limits.open_files_max = options.limits.open_files_max.min(allowed);
        let listener = options.listen.map(|addr| listen(&options, addr)).transpose()?;
        let local_addr = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let log_dir = open_log_dir(&options)?;
        let (mut driver, report) = choose_driver(&options)?;
        let starter = Starter { options: &options, log_dir: &log_dir, listener };
        let mut started = match report {
            Some(report) => match starter.start_uring(&report, &mut service) {
                // The probe's ring fitted, a shard's did not.
                Err(StartError::Shard { reason, .. }) if options.driver == DriverChoice::Auto => {
                    driver = DriverInUse::Poll { reason };
                    starter.start_poll(&mut service)?
                }
                started => started?,
            },
            None => starter.start_poll(&mut service)?,
        };
        let handle = Handle::new(std::mem::take(&mut started.links));
        let threads = std::mem::take(&mut started.threads);
        Ok(Self { handle, threads, log_dir, driver, local_addr, read_only: options.read_only })
    }

    /// The way to the engine from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The driver in use, and why.
    pub fn driver(&self) -> &DriverInUse {
        &self.driver
    }

    /// What each shard's driver counts, live. A shard that is just starting is missing.
    pub fn driver_stats(&self) -> Vec<DriverStats> {
        self.handle.shards().iter().filter_map(|link| link.stats.get().cloned()).collect()
    }

    /// Where the service listens.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Partitions found in the log directory, open or not.
    ///
    /// # Errors
    /// The disk's, as a [`PartitionError`].
    pub fn partitions(&self) -> Result<Vec<crate::TopicPartition>, PartitionError> {
        Ok(self.log_dir.partitions()?)
    }

    /// What was noticed about the log directory at the start, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        self.log_dir.notes()
    }

    /// What the shards have noticed since the start, one sentence each: memory that could not be registered
    /// with the kernel, a shard that has stopped and why.
    pub fn remarks(&self) -> Vec<String> {
        let shards = self.handle.shards().iter().enumerate();
        shards
            .flat_map(|(index, link)| {
                let remarks = link.waiters.remarks().into_iter();
                remarks.map(move |remark| format!("shard {index} {remark}"))
            })
            .collect()
    }

    /// Refuses further appends, makes everything accepted durable, closes every partition, and marks
    /// the directory as cleanly stopped, so that the next start scans nothing. Returns what each shard
    /// did.
    ///
    /// # Errors
    /// The first partition that could not be closed cleanly: the next start recovers it.
    pub fn shutdown(mut self) -> Result<Vec<ShardEnd>, RequestError<PartitionError>> {
        let pending: Vec<_> = self.handle.shards().iter().map(ShardLink::shutdown).collect();
        let results: Vec<_> = pending.into_iter().map(Pending::wait).collect();
        let mut ends = Vec::new();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(end)) => ends.push(end),
                Ok(Err(_)) | Err(_) => return Err(RequestError::Stopped),
            }
        }
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        if !self.read_only {
            self.log_dir.close_clean().map_err(PartitionError::Disk).map_err(RequestError::Refused)?;
        }
        Ok(ends)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        stop_abruptly(self.handle.shards(), &mut self.threads);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("driver", &self.driver)
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

/// Says what an engine of this size needs, where it was too much.
fn explain(error: StartError, bill: &Bill) -> StartError {
    const PROCESS_FULL: Option<i32> = Some(Errno::MFILE.0);
    match error {
        StartError::System { action, source } if source.raw_os_error() == PROCESS_FULL => {
            let (needed, most) = (bill.at_start().descriptors, bill.in_use().descriptors);
            let allowed = HostFacts::gather().nofile.soft.unwrap_or(u64::MAX);
            StartError::Descriptors { action, source, needed, most, allowed }
        }
        error => error,
    }
}

fn check(options: &EngineOptions) -> Result<(), StartError> {
    let invalid = |setting, reason: String| Err(StartError::InvalidOption { setting, reason });
    if options.cores.is_empty() {
        return invalid("cores", "is empty; an engine needs at least one shard".to_owned());
    }
    if options.cores.len() > SHARDS_MAX {
        return invalid("cores", format!("names {} shards; at most {SHARDS_MAX}", options.cores.len()));
    }
    for core in options.cores.iter().flatten() {
        if !cpu::allowed().contains(core) {
            let reason = format!("core {core} is absent or not allowed; allowed: {:?}", cpu::allowed());
            return invalid("cores", reason);
        }
    }
    Ok(())
}

fn listen(options: &EngineOptions, addr: SocketAddr) -> Result<Listener, StartError> {
    let listen = ListenOptions { congestion: options.congestion_control.clone(), ..ListenOptions::default() };
    Ok(Listener::bind(addr, &listen)?)
}

fn open_log_dir(options: &EngineOptions) -> Result<Arc<LogDir<LinuxDisk>>, StartError> {
    let disk = LinuxDisk;
    if options.read_only {
        return Ok(LogDir::open_read_only(disk, &options.data_dir)?);
    }
    let seed = rohrpost_engine_linux::random_seed()
        .map_err(|source| StartError::System { action: "read random bytes".to_owned(), source })?;
    let log_options = LogDirOptions { lock_patience_ms: options.lock_patience_ms, topic_id_seed: seed };
    Ok(LogDir::open(disk, &options.data_dir, log_options)?)
}

fn choose_driver(options: &EngineOptions) -> Result<(DriverInUse, Option<ProbeReport>), StartError> {
    if options.driver == DriverChoice::Poll {
        return Ok((DriverInUse::Poll { reason: "chosen by option".to_owned() }, None));
    }
    match uring::probe(options.feature_mask) {
        Ok(report) => {
            let missing = report.missing.iter().map(ToString::to_string).collect();
            Ok((DriverInUse::Uring { missing }, Some(report)))
        }
        Err(error) if options.driver == DriverChoice::Uring => Err(StartError::Uring(error.to_string())),
        Err(error) => Ok((DriverInUse::Poll { reason: error.to_string() }, None)),
    }
}
