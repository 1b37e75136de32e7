//! The log of one partition: segments on disk, the tail in memory, and what moves between them.

pub(crate) mod append;
mod checkpoints;
mod commit;
pub mod config;
mod creation;
#[cfg(test)]
mod damage_tests;
mod deletion;
mod epochs;
mod files;
#[cfg(test)]
mod flip_tests;
mod found;
#[cfg(test)]
mod golden_tests;
mod guard;
pub(crate) mod guard_file;
#[cfg(test)]
mod guard_tests;
mod identity;
mod inventory;
mod load;
pub mod log_dir;
pub(crate) mod open_files;
mod parking;
pub(crate) mod partition;
mod plan;
mod prepare;
mod recovery;
#[cfg(test)]
mod recovery_random_tests;
#[cfg(test)]
mod reopen_tests;
mod repair;
mod rescan;
mod reserve;
mod root;
mod scan;
pub mod scrub;
pub(crate) mod segment;
mod segments;
pub mod step;
pub(crate) mod tail;
#[cfg(test)]
mod test_support;
mod upkeep;
mod verdict;

pub use config::{Durability, LogConfig, OnDamage, WriteMode};
pub use log_dir::{LogDir, LogDirOptions, OpenError};
