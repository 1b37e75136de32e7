//! The types the ring driver works with.

use rohrpost_engine_core::fetch::{Mode, ModeSet};
use rohrpost_engine_core::platform::Platform;

use super::recv::RecvBuf;
use crate::arena::{LinuxArena, LinuxChunk, LinuxLease, LinuxSlab};
use crate::disk::LinuxDisk;
use crate::file::LinuxFile;

/// Memory, files and disk of the ring driver: as of every Linux driver, but for the receive buffers.
#[derive(Clone, Copy, Debug)]
pub struct UringPlatform;

impl Platform for UringPlatform {
    type Disk = LinuxDisk;
    type File = LinuxFile;
    type Arena = LinuxArena;
    type Slab = LinuxSlab;
    type Chunk = LinuxChunk;
    type Lease = LinuxLease;
    type RecvBuf = RecvBuf;

    const MODES: ModeSet = ModeSet::of(Mode::ALL);
}
