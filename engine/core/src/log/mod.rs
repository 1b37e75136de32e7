//! The log of one partition: segments on disk, the tail in memory, and what moves between them.

pub mod config;
mod epochs;
mod files;
mod found;
mod identity;
mod inventory;
pub mod log_dir;
mod recovery;
mod repair;
mod scan;
mod segments;
pub mod step;
mod verdict;

pub use config::{Durability, LogConfig, WriteMode};
pub use log_dir::{LogDir, LogDirOptions, OpenError};
