//! The simulated disk: files on two planes, directory entries as durable objects of their own, direct writes in
//! flight, locks, a capacity, faults by chance, and power cuts and kills at any operation.
//!
//! Owns everything that outlives a process. Always holds: what a completed durable write or a successful sync covered
//! survives every cut; nothing else is promised. A program that writes the same sectors twice at a time, misaligns a
//! direct transfer or uses a file of an earlier life has a bug, and the storage panics with its name.

mod api;
mod damage;
mod entries;
mod fate;
mod landing;
mod names;
mod planes;
mod possible;
mod survival;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use rohrpost_engine_core::disk::{Errno, Lock};
use rohrpost_engine_core::platform::DIRECT_IO_ALIGN;
use rohrpost_engine_core::types::Timestamp;

pub use damage::Damage;
pub use names::Inode;
pub use planes::SECTOR_LEN;
pub use possible::Observed;
pub use survival::Survival;

use crate::coverage::{Coverage, Harm, States};
use crate::edits::Edits;
use crate::errors::Blow;
use crate::fault::{Faults, Lie, OpKind};
use crate::prng::Prng;
use crate::trace::Trace;
use fate::Fate;
use names::{Names, ROOT};
use planes::{Planes, overlay, sectors};

/// Names an open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Description {
    pub(crate) id: u64,
    pub(crate) inode: Inode,
    pub(crate) life: u64,
    pub(crate) direct: bool,
    pub(crate) writable: bool,
}

/// Names a data-path operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pending(pub(crate) u64);

#[derive(Clone, Debug)]
struct InFlight {
    inode: Inode,
    position: u64,
    bytes: Vec<u8>,
    durable: bool,
    direct: bool,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine loses power: the page cache, the device's cache and everything in flight are at stake.
    PowerCut,
    /// The process is killed: the page cache lives on, direct writes in flight may land later.
    Kill,
}

/// A disk and everything on it.
pub struct Storage {
    files: BTreeMap<Inode, Planes>,
    names: Names,
    inode_next: u64,
    seq: u64,
    life: u64,
    description_next: u64,
    open: BTreeMap<u64, Inode>,
    locks: BTreeMap<(Inode, bool), u64>,
    pending_next: u64,
    in_flight: BTreeMap<Pending, InFlight>,
    syncs: BTreeMap<Pending, (Inode, u64)>,
    orphans: Vec<InFlight>,
    /// Operations of this life so far.
    ops: u64,
    end_at: Option<(u64, End)>,
    dark: Option<End>,
    at_stake: bool,
    capacity: u64,
    /// What the machine lies about, if it does.
    pub lie: Option<Lie>,
    /// What is left out of what the seed draws.
    pub edits: Edits,
    /// Faults drawn so far, those left out included.
    pub faults_drawn: u64,
    /// The operation of all lives that fails, and how.
    pub blow: Option<(u64, Blow)>,
    /// Whether that has happened in this life.
    pub struck: bool,
    /// Whether a power cut makes garbage of a sector of every write in flight.
    pub spoil_all: bool,
    /// Power cuts while a write was in flight.
    pub cut_in_write: u64,
    /// Operations of all lives so far.
    ops_total: u64,
    /// What fails, and how often.
    pub faults: Faults,
    /// What has happened so far.
    pub coverage: Coverage,
    /// What the engine is doing.
    pub states: States,
    /// The wall clock, for times of change.
    pub wall: Timestamp,
    /// The record of the run.
    pub trace: Trace,
    prng: Prng,
}

impl Storage {
    /// An empty disk of `capacity` bytes.
    pub fn new(prng: Prng, capacity: u64, trace: Trace) -> Self {
        Self {
            files: BTreeMap::new(),
            names: Names::new(),
            inode_next: 1,
            seq: 0,
            life: 0,
            description_next: 0,
            open: BTreeMap::new(),
            locks: BTreeMap::new(),
            pending_next: 0,
            in_flight: BTreeMap::new(),
            syncs: BTreeMap::new(),
            orphans: Vec::new(),
            ops: 0,
            end_at: None,
            dark: None,
            at_stake: false,
            capacity,
            lie: None,
            edits: Edits::default(),
            faults_drawn: 0,
            blow: None,
            struck: false,
            spoil_all: false,
            cut_in_write: 0,
            ops_total: 0,
            coverage: Coverage::default(),
            states: States::default(),
            faults: Faults::NONE,
            wall: Timestamp::ZERO,
            trace,
            prng,
        }
    }

    /// Operations of this life so far.
    pub const fn ops(&self) -> u64 {
        self.ops
    }

    /// Ends this life in its `op`th operation from now (1 is the next one).
    pub fn end_in(&mut self, op: u64, end: End) {
        self.end_at = Some((self.ops + op, end));
    }

    /// How this life has ended, if it has: every operation fails from then on and changes nothing.
    pub const fn ended(&self) -> Option<End> {
        self.dark
    }

    /// Takes back an end that was planned and has not come.
    pub fn cancel_end(&mut self) {
        self.end_at = None;
    }

    /// Ends this life now, between two operations.
    pub fn end_now(&mut self, end: End) {
        if self.dark.is_none() {
            self.go_dark(end);
        }
    }

    /// Whether something was not durable, or in flight, when the last life ended.
    pub const fn was_at_stake(&self) -> bool {
        self.at_stake
    }

    /// Bytes the disk can hold.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Makes the disk larger or smaller; what is there stays.
    pub const fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// Bytes of blocks in use by files that have a name or are open.
    pub fn used(&self) -> u64 {
        let mut live = self.names.linked();
        live.extend(self.open.values());
        live.iter().filter_map(|inode| self.files.get(inode)).map(|file| file.allocated).sum()
    }

    /// Whether a power cut now could lose or tear anything.
    pub fn is_dirty(&self) -> bool {
        self.names.is_dirty() || !self.in_flight.is_empty() || self.files.values().any(Planes::is_dirty)
    }

    /// Starts the next life: whatever was at stake is decided now.
    ///
    /// # Panics
    /// If the last life has not ended.
    pub fn restart(&mut self) {
        let end = self.dark.take().expect("a life ends before the next one starts");
        self.end_at = None;
        self.life += 1;
        self.ops = 0;
        self.struck = false;
        self.open.clear();
        self.locks.clear();
        self.syncs.clear();
        let in_flight = std::mem::take(&mut self.in_flight);
        match end {
            End::Kill => {
                self.orphans = in_flight.into_values().filter(|_| !self.prng.one_in(3)).collect();
            }
            End::PowerCut => {
                self.orphans.clear();
                let oldest = self.seq.saturating_sub(256);
                for write in in_flight.values() {
                    self.land(write);
                }
                let mut survival = Survival::new(self.prng.fork(), oldest, self.seq);
                self.cut(&mut survival);
                self.cut_in_write += u64::from(!in_flight.is_empty());
                if self.spoil_all {
                    in_flight.values().for_each(|write| self.spoil(write));
                }
            }
        }
    }

    /// Starts the next life from what `survival` leaves, for tests that want one particular cut.
    #[cfg(test)]
    fn restart_with(&mut self, survival: &mut Survival) {
        self.end_now(End::PowerCut);
        self.dark = None;
        self.end_at = None;
        self.life += 1;
        for write in std::mem::take(&mut self.in_flight).values() {
            self.land(write);
        }
        self.open.clear();
        self.locks.clear();
        self.cut(survival);
    }

    /// Whether `[position, position + len)` of a file survives every power cut as it reads now.
    pub fn is_durable(&self, path: &Path, position: u64, len: u64) -> bool {
        let Ok(inode) = self.resolve(path) else { return false };
        self.files.get(&inode).is_some_and(|file| file.is_durable(position, len))
            && self.in_flight.values().all(|write| write.inode != inode || self.repeats(write, position, len))
    }

    /// Reads a file as a program would through the page cache; `None` if there is no such file.
    pub fn peek(&self, path: &Path, position: u64, len: usize) -> Option<Vec<u8>> {
        self.peek_inode(self.resolve(path).ok()?, position, len)
    }

    /// As [`Storage::peek`], for a file that is open.
    pub(crate) fn peek_inode(&self, inode: Inode, position: u64, len: usize) -> Option<Vec<u8>> {
        let file = self.files.get(&inode)?;
        let mut bytes = vec![0; len];
        let count = file.read(position, &mut bytes, false);
        bytes.truncate(count);
        Some(bytes)
    }

    /// Whether the part of a write in flight that lies in `[position, position + len)` changes nothing there.
    fn repeats(&self, write: &InFlight, position: u64, len: u64) -> bool {
        if !write.touches(position, len) {
            return true;
        }
        let write_end = write.position + write.bytes.len() as u64;
        let (from, to) = (position.max(write.position), (position + len).min(write_end));
        let written = &write.bytes[(from - write.position) as usize..(to - write.position) as usize];
        let present = self.peek_inode(write.inode, from, (to - from) as usize);
        present.is_some_and(|present| present == written)
    }

    fn cut(&mut self, survival: &mut Survival) {
        let reached: BTreeSet<Inode> = self.names.cut(survival);
        self.files.retain(|inode, _| reached.contains(inode));
        for file in self.files.values_mut() {
            file.cut(survival);
        }
    }

    fn go_dark(&mut self, end: End) {
        self.at_stake = self.is_dirty();
        self.dark = Some(end);
        self.suffer(if end == End::PowerCut { Harm::PowerCut } else { Harm::Killed });
        self.trace
            .note(if end == End::PowerCut { "power-cut" } else { "kill" }, &[self.ops, self.at_stake.into()]);
    }

    fn file(&mut self, of: Description) -> &mut Planes {
        assert!(of.life == self.life, "a file of an earlier life is used: {of:?} in life {}", self.life);
        self.files.get_mut(&of.inode).expect("an open file keeps its inode")
    }

    /// Reserves blocks up to `end`, if the disk has them.
    fn reserve(&mut self, inode: Inode, end: u64) -> Result<(), Errno> {
        let end = end.next_multiple_of(DIRECT_IO_ALIGN);
        let allocated = self.files[&inode].allocated;
        if end <= allocated {
            return Ok(());
        }
        if self.used() + (end - allocated) > self.capacity {
            self.suffer(Harm::NoSpace);
            return Err(Errno::NOSPC);
        }
        self.files.get_mut(&inode).expect("reserving names a file").allocated = end;
        Ok(())
    }

    fn resolve(&self, path: &Path) -> Result<Inode, Errno> {
        let mut inode = ROOT;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let name = name.to_str().ok_or(Errno::INVAL)?;
                inode = self.names.lookup(inode, name).ok_or(Errno::NOENT)?;
            }
        }
        Ok(inode)
    }

    /// The directory that holds the path's last component, and that component.
    fn resolve_parent<'a>(&self, path: &'a Path) -> Result<(Inode, &'a str), Errno> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(Errno::INVAL)?;
        let parent = self.resolve(path.parent().unwrap_or(Path::new("")))?;
        if self.names.is_directory(parent) { Ok((parent, name)) } else { Err(Errno::NOENT) }
    }

    fn inode_new(&mut self) -> Inode {
        let inode = Inode(self.inode_next);
        self.inode_next += 1;
        inode
    }
}

impl InFlight {
    fn touches(&self, position: u64, len: u64) -> bool {
        position < self.position + self.bytes.len() as u64 && self.position < position + len
    }
}

const fn is_io_lock(lock: Lock) -> bool {
    matches!(lock, Lock::InputOutput)
}
