//! The log of one partition: segments on disk, the tail in memory, and what moves between them.

pub mod config;
pub mod step;

pub use config::{Durability, LogConfig, WriteMode};
