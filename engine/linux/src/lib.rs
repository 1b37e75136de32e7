//! The Linux side of the rohrpost engine: memory, files, sockets, and the drivers that execute the
//! core's operations.
//!
//! This is the only crate of the workspace with unsafe code. Every block names the invariant it relies
//! on; UNSAFE.md lists them with the tests that hold them. Reading path: [`memory`], [`arena`],
//! [`file`], [`disk`], [`inbox`], [`helper`], [`net`], [`poll`].

pub mod arena;
pub mod disk;
pub mod file;
pub mod helper;
pub mod inbox;
pub mod memory;
pub mod net;
pub mod poll;
pub mod probe;
pub mod residency;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod uring;
