//! The logic of the rohrpost engine: everything that decides, nothing that does I/O.
//!
//! The core is a set of deterministic state machines: events in, operations out, time passed in.
//! A driver (`uring`, `poll` in the Linux crate, `sim` in the simulator) executes the operations.
//! Nothing in this crate reads a clock, a file, a socket, a thread or a random source.
//!
//! Reading path: [`types`], [`platform`], [`ops`], [`log`], [`fetch`], [`service`].

pub mod bill;
pub mod cache;
#[cfg(test)]
mod cache_tests;
mod demand;
pub mod disk;
pub mod error;
pub mod fetch;
pub mod format;
pub mod limits;
pub mod log;
mod memory;
pub mod message;
pub mod ops;
pub mod planted;
pub mod platform;
pub mod service;
pub mod shard;
mod token;
pub mod types;
