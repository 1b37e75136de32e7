//! The io_uring driver: one ring per shard, on the shard's thread.
//!
//! Disk operations use registered memory where the locked-memory limit allows it, receives use buffers
//! that the kernel picks, sends go from the arena by `SENDMSG`, files by inline `sendfile`. What a
//! kernel lacks is replaced, slower, feature by feature ([`features`]); [`probe()`] finds out and says
//! why. Does not decide anything about order or durability.

mod accept;
mod config;
mod conn;
mod disk_ops;
mod driver;
pub mod features;
mod file_ops;
#[cfg(test)]
mod hostile_tests;
mod net_ops;
mod pipe_ops;
mod platform;
pub mod probe;
mod recv;
mod ring;
pub mod setup_error;
mod slab;
mod socket;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transfer_tests;
mod zero_copy;

pub use config::{UringConfig, UringCounters, UringTuning, bill};
pub use driver::UringDriver;
pub use features::{Feature, FeatureInfo, FeatureMask, FeatureSet, Missing, Reason, UnknownFeature};
pub use platform::UringPlatform;
pub use probe::{ProbeReport, probe};
pub use recv::RecvBuf;
pub use ring::RingError;
pub use setup_error::SetupError;
