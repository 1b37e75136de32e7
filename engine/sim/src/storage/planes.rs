//! One simulated file on two planes: what programs see now, and what a power cut certainly leaves.
//!
//! Owns the bytes of both planes and, per 512-byte sector, every version written since the sector was last made
//! durable. Always holds: a sector with pending versions shows the newest of them; a sector without any shows its
//! durable bytes, unless a failed sync has made the page cache and the medium disagree about it. Knows nothing of
//! names, handles or faults.

use std::collections::BTreeMap;

use rohrpost_engine_core::platform::DIRECT_IO_ALIGN;
use rohrpost_engine_core::types::Timestamp;

use super::survival::Survival;
use crate::prng::Prng;

/// What the medium writes atomically, bytes.
pub const SECTOR_LEN: usize = 512;

/// Versions of one sector that are remembered; older ones are forgotten first.
const VERSIONS_MAX: usize = 6;

type Sector = Box<[u8; SECTOR_LEN]>;

/// One content of a sector that is not durable yet.
#[derive(Clone, Debug)]
struct Version {
    seq: u64,
    buffered: bool,
    bytes: Sector,
}

/// A file's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Planes {
    /// As programs read it through the page cache.
    data: Vec<u8>,
    /// As a power cut leaves it at the least.
    durable: Vec<u8>,
    pending: BTreeMap<u64, Vec<Version>>,
    /// Changes of the length that are not durable, oldest first.
    lengths: Vec<(u64, u64)>,
    /// Medium's content of sectors whose write-back failed: the cache shows the new bytes as clean.
    forgotten: BTreeMap<u64, Sector>,
    /// End of the blocks that are reserved for the file.
    pub(super) allocated: u64,
    /// Last change of content.
    pub(super) modified: Timestamp,
}

impl Planes {
    /// An empty file.
    pub(super) fn new(modified: Timestamp) -> Self {
        Self { modified, ..Self::default() }
    }

    /// Length as programs see it.
    pub(super) fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Whether anything would be at stake in a power cut.
    pub(super) fn is_dirty(&self) -> bool {
        !self.pending.is_empty() || !self.lengths.is_empty()
    }

    /// Writes at `position`, extending the file. Draws one sequence number a sector.
    pub(super) fn write(&mut self, position: u64, bytes: &[u8], buffered: bool, seq: &mut u64) {
        if bytes.is_empty() {
            return;
        }
        let end = position + bytes.len() as u64;
        if end > self.len() {
            self.change_len(end, seq);
        }
        self.data[position as usize..end as usize].copy_from_slice(bytes);
        for sector in sectors(position, end) {
            self.push_version(sector, buffered, seq);
        }
    }

    /// Cuts or extends (with zeros) the file.
    pub(super) fn set_len(&mut self, len: u64, seq: &mut u64) {
        let old = self.len();
        if len == old {
            return;
        }
        self.change_len(len, seq);
        if len < old {
            for sector in sectors(len, old) {
                self.push_version(sector, true, seq);
            }
        }
    }

    /// Everything written before `seq` becomes durable.
    pub(super) fn sync(&mut self, seq: u64) {
        if let Some(at) = self.lengths.iter().rposition(|(s, _)| *s <= seq) {
            self.set_durable_len(self.lengths[at].1);
            self.lengths.drain(..=at);
        }
        let dirty: Vec<u64> = self.pending.keys().copied().collect();
        for sector in dirty {
            self.harden_sector(sector, seq);
        }
    }

    /// The sectors of `[position, position + len)` become durable, and so does a length that reaches them.
    pub(super) fn harden(&mut self, position: u64, len: u64) {
        let end = position + len;
        self.lengths.retain(|(_, pending)| *pending >= end);
        if (self.durable.len() as u64) < end {
            self.set_durable_len(end);
            // What was queued before an extension that is durable has reached the journal with it.
            if self.len() == end {
                self.lengths.clear();
            }
        }
        for sector in sectors(position, end) {
            self.harden_sector(sector, u64::MAX);
        }
    }

    /// A sync failed: each buffered sector is either on the medium or will never be, and looks clean either way;
    /// sectors in the device's own cache are either durable or still at stake.
    pub(super) fn fail_sync(&mut self, seq: u64, prng: &mut Prng) {
        if prng.one_in(2)
            && let Some(at) = self.lengths.iter().rposition(|(s, _)| *s <= seq)
        {
            self.set_durable_len(self.lengths[at].1);
            self.lengths.drain(..=at);
        }
        let dirty: Vec<u64> = self.pending.keys().copied().collect();
        for sector in dirty {
            if prng.one_in(2) {
                self.harden_sector(sector, seq);
                continue;
            }
            let versions = self.pending.get_mut(&sector).expect("the key was just listed");
            versions.retain(|version| version.seq > seq || !version.buffered);
            if versions.is_empty() {
                self.pending.remove(&sector);
                let medium = sector_of(&self.durable, sector);
                if medium != sector_of(&self.data, sector) {
                    self.forgotten.insert(sector, medium);
                }
            }
        }
    }

    /// The page cache drops its clean pages: reads see the medium again.
    pub(super) fn drop_cache(&mut self) {
        for (sector, medium) in std::mem::take(&mut self.forgotten) {
            put_sector(&mut self.data, sector, &medium);
        }
    }

    /// Copies from `position`; returns the number of bytes there are. `direct` reads the medium.
    pub(super) fn read(&self, position: u64, buf: &mut [u8], direct: bool) -> usize {
        let end = self.len().min(position + buf.len() as u64);
        if end <= position {
            return 0;
        }
        let len = (end - position) as usize;
        buf[..len].copy_from_slice(&self.data[position as usize..end as usize]);
        if direct {
            for (sector, medium) in &self.forgotten {
                overlay(buf, position, len, sector * SECTOR_LEN as u64, &medium[..]);
            }
        }
        len
    }

    /// Whether `[position, position + len)` survives every power cut as it reads now.
    pub(super) fn is_durable(&self, position: u64, len: u64) -> bool {
        let end = position + len;
        if (self.durable.len() as u64) < end || self.lengths.iter().any(|(_, pending)| *pending < end) {
            return false;
        }
        self.data.get(position as usize..end as usize) == self.durable.get(position as usize..end as usize)
            && sectors(position, end).all(|sector| {
                self.pending.get(&sector).is_none_or(|versions| self.agrees(versions, sector, position, end))
            })
    }

    /// The power goes: what is at stake survives as `survival` says, and that is the file from now on.
    pub(super) fn cut(&mut self, survival: &mut Survival) {
        let candidates: Vec<(u64, u64)> = self.lengths.clone();
        let len = match survival.choose(candidates.iter().map(|(seq, _)| *seq)) {
            Some(at) => candidates[at].1,
            None => self.durable.len() as u64,
        };
        self.durable.resize(len as usize, 0);
        for (sector, versions) in std::mem::take(&mut self.pending) {
            if let Some(at) = survival.choose(versions.iter().map(|version| version.seq)) {
                put_sector(&mut self.durable, sector, &versions[at].bytes);
            }
        }
        self.lengths.clear();
        self.forgotten.clear();
        self.data = self.durable.clone();
    }

    /// The medium holds other bytes than it was given.
    pub(super) fn overwrite(&mut self, position: u64, bytes: &[u8]) {
        for plane in [&mut self.durable, &mut self.data] {
            let end = (position as usize + bytes.len()).min(plane.len());
            let start = (position as usize).min(end);
            plane[start..end].copy_from_slice(&bytes[..end - start]);
        }
    }

    /// The medium holds garbage in a sector, as far as the file reaches.
    pub(super) fn spoil(&mut self, sector: u64, garbage: [u8; SECTOR_LEN]) {
        let garbage = Box::new(garbage);
        put_sector(&mut self.durable, sector, &garbage);
        put_sector(&mut self.data, sector, &garbage);
    }

    /// Whether every version of the sector equals the present one inside `[position, end)`.
    fn agrees(&self, versions: &[Version], sector: u64, position: u64, end: u64) -> bool {
        let start = sector * SECTOR_LEN as u64;
        let (from, to) = (position.max(start), end.min(start + SECTOR_LEN as u64));
        versions.iter().all(|version| {
            version.bytes[(from - start) as usize..(to - start) as usize]
                == self.data[from as usize..to as usize]
        })
    }

    /// The length that survives at the least, and those at stake.
    pub(super) fn lengths_at_stake(&self) -> (u64, impl Iterator<Item = u64> + Clone) {
        (self.durable.len() as u64, self.lengths.iter().map(|(_, len)| *len))
    }

    /// What a sector may hold after a cut, zeros behind the end.
    pub(super) fn contents_at_stake(&self, sector: u64) -> Vec<[u8; SECTOR_LEN]> {
        let versions = self.pending.get(&sector).into_iter().flatten().map(|version| *version.bytes);
        std::iter::once(*sector_of(&self.durable, sector)).chain(versions).collect()
    }

    fn change_len(&mut self, len: u64, seq: &mut u64) {
        *seq += 1;
        let (old, last_page) = (self.len(), len - len % DIRECT_IO_ALIGN);
        if (old + 1..len).contains(&last_page) {
            // Real file systems write back page by page, and the length follows.
            self.lengths.push((*seq, last_page));
        }
        self.data.resize(len as usize, 0);
        self.lengths.push((*seq, len));
    }

    fn push_version(&mut self, sector: u64, buffered: bool, seq: &mut u64) {
        *seq += 1;
        self.forgotten.remove(&sector);
        let versions = self.pending.entry(sector).or_default();
        if versions.len() == VERSIONS_MAX {
            versions.remove(0);
        }
        versions.push(Version { seq: *seq, buffered, bytes: sector_of(&self.data, sector) });
    }

    fn harden_sector(&mut self, sector: u64, seq: u64) {
        let Some(versions) = self.pending.get_mut(&sector) else { return };
        let Some(newest) = versions.iter().rposition(|version| version.seq <= seq) else { return };
        put_sector(&mut self.durable, sector, &versions[newest].bytes);
        versions.drain(..=newest);
        if versions.is_empty() {
            self.pending.remove(&sector);
        }
    }

    fn set_durable_len(&mut self, len: u64) {
        self.durable.resize(len as usize, 0);
    }
}

/// The sectors that `[from, to)` touches.
pub(super) fn sectors(from: u64, to: u64) -> std::ops::Range<u64> {
    if from == to {
        return 0..0;
    }
    from / SECTOR_LEN as u64..to.div_ceil(SECTOR_LEN as u64)
}

/// A sector's bytes, zeros behind the end.
fn sector_of(plane: &[u8], sector: u64) -> Sector {
    let mut bytes = Box::new([0; SECTOR_LEN]);
    let start = (sector as usize * SECTOR_LEN).min(plane.len());
    let end = (start + SECTOR_LEN).min(plane.len());
    bytes[..end - start].copy_from_slice(&plane[start..end]);
    bytes
}

/// Writes a sector as far as the plane reaches.
fn put_sector(plane: &mut [u8], sector: u64, bytes: &Sector) {
    let start = (sector as usize * SECTOR_LEN).min(plane.len());
    let end = (start + SECTOR_LEN).min(plane.len());
    plane[start..end].copy_from_slice(&bytes[..end - start]);
}

/// Lays the bytes at `start` over what was read: `buf[..len]` holds the bytes from `position`.
pub(super) fn overlay(buf: &mut [u8], position: u64, len: usize, start: u64, bytes: &[u8]) {
    let (from, to) = (position.max(start), (position + len as u64).min(start + bytes.len() as u64));
    if from < to {
        buf[(from - position) as usize..(to - position) as usize]
            .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
    }
}
