//! How an engine is started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_linux::uring::{FeatureMask, UringTuning};

/// Most shards of one engine: more than machines have cores.
pub(crate) const SHARDS_MAX: usize = 1024;

/// Which driver executes the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DriverChoice {
    /// io_uring where the kernel allows it, else `Poll`; which one and why is in
    /// [`crate::Engine::driver`].
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// epoll, `sendfile` and a small pool of blocking threads.
    Poll,
}

/// How an engine is started. Build it with [`EngineOptions::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The log directory: holds one directory per partition, `<topic>-<partition>`. Created if its
    /// parent exists.
    pub data_dir: PathBuf,
    /// Serve what is there without changing anything: no lock, no recovery, no appends.
    pub read_only: bool,
    /// Which driver executes the operations.
    pub driver: DriverChoice,
    /// One shard per entry. `Some(cpu)` pins the shard's thread to that core.
    pub cores: Vec<Option<usize>>,
    /// Sizes of each shard.
    pub limits: ShardLimits,
    /// Where the service listens, on every shard: a connection stays with the shard that accepts it, and may
    /// use every partition. Port 0 takes a free one, see [`crate::Engine::local_addr`].
    pub listen: Option<SocketAddr>,
    /// TCP congestion control of accepted connections, for example `cubic`; `None` leaves the host's.
    pub congestion_control: Option<String>,
    /// Kernel features that the io_uring driver must not use, for tests and measurements.
    pub feature_mask: FeatureMask,
    /// How the io_uring driver waits and submits.
    pub ring: UringTuning,
    /// Threads for steps beside the data path: recovery, new segments, seals.
    pub helper_threads: usize,
    /// Requests of handles that may wait for one shard.
    pub requests_max: usize,
    /// How long to wait for locks that a killed process still holds, milliseconds.
    pub lock_patience_ms: u64,
}

impl EngineOptions {
    /// One unpinned shard over `data_dir`, default limits, io_uring where possible.
    pub fn new(data_dir: impl AsRef<Path>) -> Self {
        Self {
            data_dir: data_dir.as_ref().to_owned(),
            read_only: false,
            driver: DriverChoice::Auto,
            cores: vec![None],
            limits: ShardLimits::default(),
            listen: None,
            congestion_control: None,
            feature_mask: FeatureMask::default(),
            ring: UringTuning::default(),
            helper_threads: 2,
            requests_max: 65_536,
            lock_patience_ms: 10_000,
        }
    }
}
