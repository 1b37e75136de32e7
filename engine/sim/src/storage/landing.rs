//! Writes that reach the device when nobody waits for them any more: those of a killed process, those that failed, and
//! those in flight when the power went.

use super::{Harm, InFlight, Inode, SECTOR_LEN, Storage};

/// Operations of a new life after which no write of the previous one can still land.
pub(super) const ORPHAN_OPS_MAX: u64 = 256;

impl Storage {
    /// Lets writes of the previous life land: some at any moment, all within [`ORPHAN_OPS_MAX`] operations.
    pub(super) fn land_orphans(&mut self) {
        if self.orphans.is_empty() || !(self.ops > ORPHAN_OPS_MAX || self.prng.one_in(64)) {
            return;
        }
        let count = if self.ops > ORPHAN_OPS_MAX { self.orphans.len() } else { 1 };
        for _ in 0..count {
            let at = self.prng.index(self.orphans.len());
            let write = self.orphans.swap_remove(at);
            self.suffer(Harm::LandedLate);
            self.land_partly(&write);
        }
    }

    /// Lets writes of the previous life to this file land or vanish: what waiting for its lock is for.
    pub(super) fn drain_orphans(&mut self, inode: Inode) {
        let (mine, rest) =
            std::mem::take(&mut self.orphans).into_iter().partition(|write| write.inode == inode);
        self.orphans = rest;
        let mine: Vec<InFlight> = mine;
        for write in mine {
            self.land_partly(&write);
        }
    }

    /// Any subset of a write's sectors lands.
    pub(super) fn land_partly(&mut self, write: &InFlight) {
        self.trace.note("land", &[write.inode.0, write.position, write.bytes.len() as u64]);
        let Some(file) = self.files.get_mut(&write.inode) else { return };
        let whole = self.prng.one_in(3);
        for (at, sector) in write.bytes.chunks(SECTOR_LEN).enumerate() {
            if whole || self.prng.one_in(2) {
                let position = write.position + (at * SECTOR_LEN) as u64;
                file.write(position, sector, !write.direct, &mut self.seq);
            }
        }
    }

    /// The sector that was being written when the power went holds garbage.
    pub(super) fn spoil(&mut self, write: &InFlight) {
        let at = self.prng.index(write.bytes.len().div_ceil(SECTOR_LEN)) as u64;
        let sector = write.position / SECTOR_LEN as u64 + at;
        let garbage = std::array::from_fn(|_| self.prng.next_u64() as u8);
        if let Some(file) = self.files.get_mut(&write.inode) {
            file.spoil(sector, garbage);
        }
    }

    /// All of a write is at stake.
    pub(super) fn land(&mut self, write: &InFlight) {
        if let Some(file) = self.files.get_mut(&write.inode) {
            file.write(write.position, &write.bytes, !write.direct, &mut self.seq);
        }
    }
}
