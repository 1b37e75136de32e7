//! The simulator's types behind core's seam.

use rohrpost_engine_core::fetch::{Mode, ModeSet};
use rohrpost_engine_core::platform::Platform;

use crate::disk::{SimDisk, SimFile};
use crate::memory::{SimArena, SimChunk, SimLease};
use crate::slab::SimSlab;

/// Memory, files and disk of the simulator.
pub struct SimPlatform;

/// Received bytes.
pub struct SimRecvBuf(pub Vec<u8>);

impl AsRef<[u8]> for SimRecvBuf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Platform for SimPlatform {
    type Disk = SimDisk;
    type File = SimFile;
    type Arena = SimArena;
    type Slab = SimSlab;
    type Chunk = SimChunk;
    type Lease = SimLease;
    type RecvBuf = SimRecvBuf;

    const MODES: ModeSet = ModeSet::of(Mode::ALL);
}
