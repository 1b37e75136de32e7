//! The Linux side of the rohrpost engine: memory, files, sockets, and the drivers that execute the
//! core's operations.
//!
//! This is the only crate of the workspace with unsafe code. Every block names the invariant it relies
//! on; UNSAFE.md lists them with the tests that hold them. Reading path: [`memory`], [`arena`],
//! [`mod@file`], [`disk`], [`inbox`], [`helper`], [`net`], [`poll`], [`uring`].

pub mod arena;
mod bill;
pub mod cpu;
pub mod disk;
pub mod file;
pub mod helper;
pub mod inbox;
pub mod memory;
pub mod net;
mod pipe;
pub mod poll;
pub mod probe;
mod reference;
pub mod residency;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod uring;

/// Sixteen random bytes from the kernel, for the ids of new topics.
///
/// # Errors
/// The kernel's; only very early at boot.
pub fn random_seed() -> std::io::Result<[u8; 16]> {
    let mut seed = [0; 16];
    let len = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    if len == seed.len() { Ok(seed) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}
