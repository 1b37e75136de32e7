//! The engine: shards on threads of their own, and the handle to them.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use rohrpost_engine_core::error::PartitionError;
use rohrpost_engine_core::log::step::Step;
use rohrpost_engine_core::log::{LogDir, LogDirOptions};
use rohrpost_engine_core::message::ShardId;
use rohrpost_engine_core::ops::Driver;
use rohrpost_engine_core::service::Service;
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_linux::arena::LinuxArena;
use rohrpost_engine_linux::cpu;
use rohrpost_engine_linux::disk::LinuxDisk;
use rohrpost_engine_linux::file::open_files_max;
use rohrpost_engine_linux::helper::{Helper, LinuxPlatform, ShardHelper};
use rohrpost_engine_linux::inbox::Inbox;
use rohrpost_engine_linux::net::{ListenOptions, Listener};
use rohrpost_engine_linux::poll::{PollConfig, PollDriver, PollPlatform};
use rohrpost_engine_linux::stats::DriverStats;
use rohrpost_engine_linux::uring::{self, ProbeReport, UringConfig, UringDriver, UringPlatform};

use crate::error::{RequestError, StartError};
use crate::handle::{Handle, ShardLink};
use crate::options::{DriverChoice, EngineOptions, SHARDS_MAX};
use crate::replies::{Pending, Waiters};
use crate::runtime::{self, ShardEnd};

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

type ShardThread = JoinHandle<Result<ShardEnd, String>>;

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
        mut options: EngineOptions,
        mut service: impl FnMut(usize) -> S,
    ) -> Result<Self, StartError> {
        check(&options)?;
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

fn stop_abruptly(links: &[ShardLink], threads: &mut Vec<ShardThread>) {
    for link in links {
        link.abandon();
    }
    for thread in threads.drain(..) {
        // A shard that panicked has said so on standard error.
        let _ = thread.join();
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

/// What starting the shards takes.
struct Starter<'a> {
    options: &'a EngineOptions,
    log_dir: &'a Arc<LogDir<LinuxDisk>>,
    listener: Option<Listener>,
}

/// Shards that run. They stop if this is dropped before an engine has taken them over.
#[derive(Default)]
struct Started {
    links: Vec<ShardLink>,
    threads: Vec<ShardThread>,
}

impl Drop for Started {
    fn drop(&mut self) {
        stop_abruptly(&self.links, &mut self.threads);
    }
}

impl Starter<'_> {
    fn helper<P: LinuxPlatform>(&self) -> Result<Arc<Helper<P>>, StartError> {
        let log_dir = Arc::clone(self.log_dir);
        let run = Box::new(move |step: Step<P>| step.run(&log_dir));
        Helper::start(self.options.helper_threads, run)
            .map(Arc::new)
            .map_err(|source| StartError::System { action: "start helper threads".to_owned(), source })
    }

    fn inboxes<P: LinuxPlatform>(&self) -> Result<Vec<Inbox<P>>, StartError> {
        Inbox::for_shards(self.options.cores.len(), self.options.requests_max)
            .map_err(|source| StartError::System { action: "create the shards' inboxes".to_owned(), source })
    }

    /// The listener, for a driver that may fail to start.
    fn listener(&self) -> Result<Option<Listener>, StartError> {
        let listener = self.listener.as_ref().map(Listener::try_clone).transpose();
        listener.map_err(|source| StartError::System { action: "duplicate the listener".to_owned(), source })
    }

    fn start_uring<S: Service>(
        &self,
        report: &ProbeReport,
        service: &mut impl FnMut(usize) -> S,
    ) -> Result<Started, StartError> {
        let config = UringConfig::new(self.options.limits.clone(), report.clone()).tuned(self.options.ring);
        self.start(service, move |ends: Ends<UringPlatform>| {
            let config = config.clone();
            let driver = UringDriver::new(config, ends.listener, ends.inbox, ends.helper, ends.replies);
            let driver = driver.map_err(|error| error.to_string())?;
            let stats = driver.stats();
            Ok((driver, stats))
        })
    }

    fn start_poll<S: Service>(&self, service: &mut impl FnMut(usize) -> S) -> Result<Started, StartError> {
        let limits = &self.options.limits;
        let config = PollConfig { connections_max: limits.connections_max, ..PollConfig::default() };
        self.start(service, move |ends: Ends<PollPlatform>| {
            let driver = PollDriver::new(config, ends.listener, ends.inbox, ends.helper, ends.replies);
            let driver = driver.map_err(|error| error.to_string())?;
            let stats = driver.stats();
            Ok((driver, stats))
        })
    }

    /// Starts every shard; `make` makes its driver, on its thread.
    fn start<D, S, M>(&self, service: &mut impl FnMut(usize) -> S, make: M) -> Result<Started, StartError>
    where
        D: Driver,
        D::Platform: LinuxPlatform,
        S: Service,
        M: Fn(Ends<D::Platform>) -> Result<(D, DriverStats), String> + Clone + Send + 'static,
    {
        let helper = self.helper::<D::Platform>()?;
        let mut started = Started::default();
        let count = self.options.cores.len() as u16;
        for (index, inbox) in self.inboxes()?.into_iter().enumerate() {
            let (waiters, stats) = (Waiters::default(), Arc::new(OnceLock::new()));
            let requests = Arc::new(inbox.mailbox());
            started.links.push(ShardLink { requests, waiters: waiters.clone(), stats: Arc::clone(&stats) });
            let ends = Ends {
                listener: self.listener()?,
                helper: helper.for_shard(inbox.mailbox()),
                inbox,
                replies: Box::new(waiters.clone()),
            };
            let (limits, service, make) = (self.options.limits.clone(), service(index), make.clone());
            let place = Place { index, core: self.options.cores[index], waiters };
            started.threads.push(spawn(place, Arc::clone(&helper), move || {
                let (driver, driver_stats) = make(ends)?;
                let arena = LinuxArena::new(limits.slabs_max());
                let shard = Shard::new(limits, arena, service).among(ShardId(index as u16), count);
                let modes = driver.modes();
                let _ = stats.set(driver_stats.offering(modes));
                Ok((driver, shard.offering(modes)))
            })?);
        }
        Ok(started)
    }
}

/// What a driver is connected to: clients, requests, helper threads, and whoever waits for replies.
struct Ends<P: LinuxPlatform> {
    listener: Option<Listener>,
    inbox: Inbox<P>,
    helper: ShardHelper<P>,
    replies: Box<Waiters>,
}

/// Where a shard runs, and who learns of its end.
struct Place {
    index: usize,
    core: Option<usize>,
    waiters: Waiters,
}

/// Starts a shard's thread and waits until the shard runs. Whoever waits for the shard learns when it ends,
/// for whatever reason. `helper` lives as long as the shard.
fn spawn<D: Driver, S: Service>(
    place: Place,
    helper: Arc<Helper<D::Platform>>,
    make: impl FnOnce() -> Result<(D, Shard<D::Platform, S>), String> + Send + 'static,
) -> Result<ShardThread, StartError>
where
    D::Platform: LinuxPlatform,
{
    struct EndWaiters(Waiters);
    impl Drop for EndWaiters {
        fn drop(&mut self) {
            self.0.end();
        }
    }
    let Place { index, core, waiters } = place;
    let (report, runs) = oneshot::channel();
    let body = move || {
        let end = EndWaiters(waiters);
        let _keep = helper;
        let made = pin(core).and_then(|()| make());
        // Whoever starts shards waits for this.
        let _ = report.send(made.as_ref().map(drop).map_err(Clone::clone));
        let (mut driver, mut shard) = made?;
        runtime::run(&mut driver, &mut shard).map_err(|error| {
            end.0.push_remark(format!("has stopped: {error}"));
            error.to_string()
        })
    };
    let thread = std::thread::Builder::new()
        .name(format!("rp-shard-{index}"))
        .spawn(body)
        .map_err(|source| StartError::System { action: "start a shard's thread".to_owned(), source })?;
    let reason = match runs.recv() {
        Ok(Ok(())) => return Ok(thread),
        Ok(Err(reason)) => reason,
        Err(_) => "its thread panicked".to_owned(),
    };
    let _ = thread.join();
    Err(StartError::Shard { index, reason })
}

fn pin(core: Option<usize>) -> Result<(), String> {
    let Some(core) = core else { return Ok(()) };
    cpu::pin_current_thread(core).map_err(|error| format!("cannot pin to core {core}: {error}"))
}
