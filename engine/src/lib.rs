//! rohrpost: an io_uring storage engine for Kafka-style logs.
//!
//! An [`Engine`] owns a log directory in Apache Kafka's format and runs its partitions on shards, one
//! thread and one ring each. Use it through a [`Handle`] from any thread or runtime, or run a
//! [`Service`] on the shards themselves.
//!
//! ```no_run
//! use rohrpost_engine::{Engine, EngineOptions, LogConfig, Offset, ByteCount};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::start(EngineOptions::new("/var/lib/rohrpost"))?;
//! let orders = engine.handle().open_partition_blocking(&"orders-0".parse()?, LogConfig::default())?;
//! # let batch = bytes::Bytes::new();
//! let appended = orders.append(batch).wait()?; // durable when it returns
//! let fetched = orders.fetch(appended.base_offset, ByteCount::mib(1)).wait()?;
//! println!("{} bytes from {:?}", fetched.len(), Offset::ZERO);
//! engine.shutdown()?;
//! # Ok(()) }
//! ```
//!
//! Appends and fetches carry record batches as Kafka's producers make them and its consumers read
//! them (format 2); [`mod@format`] builds and reads them.

pub mod bill;
mod engine;
mod error;
mod handle;
mod options;
mod replies;
mod runtime;
mod start;

pub use engine::{DriverInUse, Engine};
pub use error::{AppendResult, FetchResult, PartitionResult, RequestError, StartError};
pub use handle::{Handle, Partition};
pub use options::{DriverChoice, EngineOptions};
pub use replies::{Fetched, Pending};
pub use runtime::ShardEnd;

pub use rohrpost_engine_core::error::{AppendError, FetchError, PartitionError, PartitionFailure};
pub use rohrpost_engine_core::fetch::{FetchOutcome, FetchRequest, Mode, ModeSet};
pub use rohrpost_engine_core::format;
pub use rohrpost_engine_core::format::names::TopicPartition;
pub use rohrpost_engine_core::limits::ShardLimits;
pub use rohrpost_engine_core::log::{Durability, LogConfig, OnDamage, OpenError, WriteMode};
pub use rohrpost_engine_core::message::{Appended, PartitionId, Watermarks};
pub use rohrpost_engine_core::ops::Now;
pub use rohrpost_engine_core::service;
pub use rohrpost_engine_core::service::Service;
pub use rohrpost_engine_core::shard::ShardStats;
pub use rohrpost_engine_core::types::{ByteCount, LeaderEpoch, Nanos, Offset, Position, Timestamp};
pub use rohrpost_engine_linux as linux;
