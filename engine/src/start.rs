//! Starting shards: each on a thread of its own, with its driver, inbox, helper threads and listener.
//!
//! Always holds: a shard whose driver cannot be made ends the start, and with it the shards that run already. Does not
//! choose the driver.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use rohrpost_engine_core::log::LogDir;
use rohrpost_engine_core::log::step::Step;
use rohrpost_engine_core::message::ShardId;
use rohrpost_engine_core::ops::Driver;
use rohrpost_engine_core::service::Service;
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_linux::arena::LinuxArena;
use rohrpost_engine_linux::cpu;
use rohrpost_engine_linux::disk::LinuxDisk;
use rohrpost_engine_linux::helper::{Helper, LinuxPlatform, ShardHelper};
use rohrpost_engine_linux::inbox::Inbox;
use rohrpost_engine_linux::net::Listener;
use rohrpost_engine_linux::poll::{PollConfig, PollDriver, PollPlatform};
use rohrpost_engine_linux::stats::DriverStats;
use rohrpost_engine_linux::uring::{ProbeReport, UringConfig, UringDriver, UringPlatform};

use crate::error::StartError;
use crate::handle::ShardLink;
use crate::options::EngineOptions;
use crate::replies::Waiters;
use crate::runtime::{self, ShardEnd};

/// A shard's thread; what it leaves, or why its driver failed.
pub(crate) type ShardThread = JoinHandle<Result<ShardEnd, String>>;

/// What starting the shards takes.
pub(crate) struct Starter<'a> {
    pub(crate) options: &'a EngineOptions,
    pub(crate) log_dir: &'a Arc<LogDir<LinuxDisk>>,
    pub(crate) listener: Option<Listener>,
}

/// Shards that run. They stop if this is dropped before an engine has taken them over.
#[derive(Default)]
pub(crate) struct Started {
    pub(crate) links: Vec<ShardLink>,
    pub(crate) threads: Vec<ShardThread>,
}

impl Drop for Started {
    fn drop(&mut self) {
        stop_abruptly(&self.links, &mut self.threads);
    }
}

/// Ends every shard as a killed process would, and waits for the threads.
pub(crate) fn stop_abruptly(links: &[ShardLink], threads: &mut Vec<ShardThread>) {
    for link in links {
        link.abandon();
    }
    for thread in threads.drain(..) {
        // A shard that panicked has said so on standard error.
        let _ = thread.join();
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

    /// Starts them on rings.
    pub(crate) fn start_uring<S: Service>(
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

    /// Starts them on epoll.
    pub(crate) fn start_poll<S: Service>(
        &self,
        service: &mut impl FnMut(usize) -> S,
    ) -> Result<Started, StartError> {
        let limits = &self.options.limits;
        let config = PollConfig::new(limits);
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
