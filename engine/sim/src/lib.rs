//! Seeded simulation of disk, memory, clock and faults under the engine's core.
//!
//! One seed decides everything: the workload, when each operation completes and how, when the power goes and what it
//! leaves. The same seed always gives the same run, so a failing seed is a bug report.
//!
//! Reading path: [`storage`] (what a disk is), [`memory`], [`disk`], [`driver`], then [`world`].

mod answers;
pub mod batches;
pub mod campaign;
mod clients;
#[cfg(test)]
mod commit_tests;
pub mod coverage;
mod damage;
pub mod disk;
pub mod driver;
pub mod edits;
pub mod errors;
pub mod fault;
#[cfg(test)]
mod file_wait_tests;
mod history;
mod life;
mod limit;
pub mod memory;
pub mod net;
pub mod oracle;
mod order;
pub mod outcome;
pub mod platform;
pub mod prng;
mod requests;
pub mod run;
pub mod service;
pub mod settings;
pub mod shrink;
pub mod slab;
pub mod storage;
pub mod trace;
mod workload;
pub mod world;
