//! A log behind a TCP service, with known content: what a reader gets can be compared with what was sent.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use rohrpost_engine::linux::poll::PollPlatform;
use rohrpost_engine::linux::uring::UringPlatform;
use rohrpost_engine::{
    DriverChoice, Engine, EngineOptions, LogConfig, Mode, ModeSet, Offset, Partition, ShardEnd,
};
use rohrpost_engine_core::platform::Platform;
use tempfile::TempDir;

use crate::log::{batch, config, options, split};
use crate::service::{Client, Fetch, OK, Wire};

/// Every way to ask a driver for bytes: as the policy has it, and each of its modes forced.
pub fn modes(driver: DriverChoice) -> Vec<Option<Mode>> {
    let offered = match driver {
        DriverChoice::Poll => PollPlatform::MODES,
        _ => UringPlatform::MODES,
    };
    std::iter::once(None).chain(offered.iter().map(Some)).collect()
}

/// An engine with one partition whose batches are known.
pub struct Log {
    dir: TempDir,
    options: EngineOptions,
    config: LogConfig,
    /// Its batches, in order; each holds two records.
    pub sent: Vec<Bytes>,
    engine: Option<Engine>,
    partition: Option<Partition>,
}

impl Log {
    /// `count` batches of about `len` bytes; the engine restarted, so that memory is cold.
    ///
    /// # Panics
    /// If the engine does not do as it should; so does every function here.
    pub fn new(driver: DriverChoice, count: u64, len: usize) -> Self {
        Self::with(driver, config(), count, len)
    }

    /// As [`Log::new`], with settings.
    pub fn with(driver: DriverChoice, config: LogConfig, count: u64, len: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), driver);
        options.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut log = Self { dir, options, config, sent: Vec::new(), engine: None, partition: None };
        log.start();
        for number in 0..count {
            log.sent.push(batch(number, 2, len + 2 * (number as usize % 50)));
        }
        let partition = log.partition();
        let pending: Vec<_> = log.sent.iter().map(|sent| partition.append(sent.clone())).collect();
        for pending in pending {
            pending.wait().unwrap();
        }
        log.stop();
        log.start();
        log
    }

    /// How it is started, from the next start on.
    pub fn options_mut(&mut self) -> &mut EngineOptions {
        &mut self.options
    }

    /// Starts the engine again.
    pub fn start(&mut self) {
        let engine = Engine::start_with(self.options.clone(), |_| Wire::default()).unwrap();
        let name = "t-0".parse().unwrap();
        self.partition = Some(engine.handle().open_partition_blocking(&name, self.config.clone()).unwrap());
        self.engine = Some(engine);
    }

    /// Stops it in good order.
    pub fn stop(&mut self) -> ShardEnd {
        self.partition = None;
        let ends = self.engine.take().unwrap().shutdown().unwrap();
        ends.into_iter().next().unwrap()
    }

    /// The partition.
    pub fn partition(&self) -> Partition {
        self.partition.clone().unwrap()
    }

    /// One more partition of the same engine.
    pub fn open(&self, name: &str, config: LogConfig) -> Partition {
        let engine = self.engine.as_ref().unwrap();
        engine.handle().open_partition_blocking(&name.parse().unwrap(), config).unwrap()
    }

    /// The partition's directory.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("t-0")
    }

    /// The modes that its driver says it offers.
    pub fn offered(&self) -> ModeSet {
        self.engine.as_ref().unwrap().driver_stats()[0].modes()
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// Where the service listens.
    pub fn address(&self) -> SocketAddr {
        self.engine.as_ref().unwrap().local_addr().unwrap()
    }

    /// Checks that `body` is what the log holds from the batch with `offset` on; returns the next offset.
    pub fn check(&self, body: &[u8], offset: Offset) -> Offset {
        let mut next = Offset::new(offset.get() / 2 * 2);
        let batches = split(body, offset);
        assert!(!batches.is_empty(), "the first batch is whole");
        for stored in batches {
            assert_eq!(stored.base_offset, next);
            assert!(stored.is(&self.sent[next.get() as usize / 2]), "{next} is not what was sent");
            next = stored.next_offset;
        }
        next
    }

    /// Reads everything from `from` to `to`.
    pub fn read(&self, client: &mut Client, from: i64, to: i64, fetch: Fetch) {
        let mut offset = Offset::new(from);
        while offset.get() < to {
            let told = client.fetch(self.partition().id(), Fetch { offset, ..fetch });
            assert_eq!(told.status, OK, "{offset} {fetch:?}");
            offset = self.check(&told.body, offset);
        }
    }
}
