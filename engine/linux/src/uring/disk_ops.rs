//! Writes, reads and syncs in flight.
//!
//! Owns an operation's memory and file from its submission to its completion, and knows which slabs
//! are registered. Chooses the cheapest request that fits: from a registered slab if all pieces lie in
//! one, vectored only if the pieces are not adjacent in memory.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};

use io_uring::{opcode, squeue, types};
use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::ops::{DiskOp, Event, Read, Token, WRITE_EXTENTS_MAX, Write};
use rohrpost_engine_core::platform::{Chunk, Lease};
use rohrpost_engine_core::types::ByteCount;

use super::UringPlatform;
use super::features::Feature;
use super::ring::{Cqe, Ring, RingError};
use super::slab::{Key, Kind, Slab};
use crate::file::LinuxFile;

const PIECES_MAX: usize = WRITE_EXTENTS_MAX + 1;

pub(crate) const NO_IOVEC: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

struct WriteSlot {
    write: Option<Write<UringPlatform>>,
    iovecs: [libc::iovec; PIECES_MAX],
}

impl Default for WriteSlot {
    fn default() -> Self {
        Self { write: None, iovecs: [NO_IOVEC; PIECES_MAX] }
    }
}

#[derive(Default)]
struct SyncSlot(Option<(Token, LinuxFile)>);

#[derive(Default)]
struct ReadSlot(Option<Read<UringPlatform>>);

/// See the module.
pub(super) struct DiskTable {
    writes: Slab<WriteSlot>,
    reads: Slab<ReadSlot>,
    syncs: Slab<SyncSlot>,
    registered: Registered,
    /// Writes and reads that went through registered memory.
    pub(super) fixed_count: u64,
    /// Writes and reads that did not.
    pub(super) plain_count: u64,
}

/// The slabs in the ring's fixed-buffer table, by slab index: where each starts, and its length.
#[derive(Default)]
pub(super) struct Registered(Vec<Option<(usize, usize)>>);

impl Registered {
    /// Room for `slabs_max` slabs.
    pub(super) fn with_capacity(slabs_max: usize) -> Self {
        Self(vec![None; slabs_max])
    }

    /// Notes that a slab is in the table.
    pub(super) fn insert(&mut self, slab_index: u32, start: NonNull<u8>, len: usize) {
        self.0[slab_index as usize] = Some((start.addr().get(), len));
    }

    /// Notes that a slab is not in the table any more.
    pub(super) fn remove(&mut self, slab_index: u32) {
        self.0[slab_index as usize] = None;
    }

    /// Whether a slab is in the table.
    pub(super) fn contains(&self, slab_index: u32) -> bool {
        self.0.get(slab_index as usize).is_some_and(Option::is_some)
    }

    /// The table's entry for memory of slab `slab_index`, if it is there. A slab of another shard may
    /// have the same index, so the address decides.
    fn lookup(&self, slab_index: u32, address: NonNull<u8>) -> Option<u16> {
        let (start, len) = (*self.0.get(slab_index as usize)?)?;
        let address = address.addr().get();
        (address >= start && address - start < len).then_some(slab_index as u16)
    }
}

impl DiskTable {
    /// Tables for `commits_max` writes and `reads_max` reads in flight, extended when exceeded.
    pub(super) fn new(commits_max: usize, reads_max: usize, slabs_max: usize) -> Self {
        Self {
            writes: Slab::with_capacity(Kind::Write, commits_max),
            reads: Slab::with_capacity(Kind::Read, reads_max),
            syncs: Slab::with_capacity(Kind::Sync, commits_max),
            registered: Registered::with_capacity(slabs_max),
            fixed_count: 0,
            plain_count: 0,
        }
    }

    /// Bytes of memory that such tables take.
    pub(super) const fn memory_len(commits_max: usize, reads_max: usize, slabs_max: usize) -> usize {
        Slab::<WriteSlot>::memory_len(commits_max)
            + Slab::<ReadSlot>::memory_len(reads_max)
            + Slab::<SyncSlot>::memory_len(commits_max)
            + table_len::<Option<(usize, usize)>>(slabs_max)
    }

    /// The slabs registered so far.
    pub(super) fn registered_mut(&mut self) -> &mut Registered {
        &mut self.registered
    }

    /// Operations whose completion is still to come.
    pub(super) fn live_count(&self) -> usize {
        self.writes.live_count() + self.reads.live_count() + self.syncs.live_count()
    }

    /// Queues an operation.
    pub(super) fn push(&mut self, ring: &mut Ring, op: DiskOp<UringPlatform>) -> Result<(), RingError> {
        let entry = match op {
            DiskOp::Write(write) => self.write_entry(ring, write),
            DiskOp::Read(read) => self.read_entry(ring, read),
            DiskOp::Fill(_) => unreachable!("the driver gives fills to the connection table"),
            DiskOp::Sync { token, file } => {
                let (key, slot) = self.syncs.take();
                let (_, file) = slot.0.insert((token, file));
                let fsync = opcode::Fsync::new(types::Fd(file.as_fd().as_raw_fd()));
                fsync.flags(types::FsyncFlags::DATASYNC).build().user_data(key.encode())
            }
        };
        // SAFETY: [U20] the slot owns memory, file and iovecs until `complete` takes the only
        // completion that these requests have.
        unsafe { ring.push(&entry) }
    }

    fn write_entry(&mut self, ring: &Ring, write: Write<UringPlatform>) -> squeue::Entry {
        let (key, slot) = self.writes.take();
        let write = slot.write.insert(write);
        let count = gather(write, &mut slot.iovecs);
        let fixed = fixed_index(write, &self.registered);
        let descriptor = types::Fd(write.file.as_fd().as_raw_fd());
        let position = write.position.get();
        let flags = if write.durable { libc::RWF_DSYNC } else { 0 };
        let first = slot.iovecs[0];
        let (base, len) = (first.iov_base.cast::<u8>().cast_const(), first.iov_len as u32);
        let vector = slot.iovecs.as_ptr();
        let vectored_fixed = fixed.filter(|_| ring.features().has(Feature::WritevFixed));
        let entry = match (fixed, vectored_fixed, count) {
            (Some(index), _, 1) => {
                let request = opcode::WriteFixed::new(descriptor, base, len, index);
                request.offset(position).rw_flags(flags).build()
            }
            (_, Some(index), _) => {
                let request = opcode::WritevFixed::new(descriptor, vector, count as u32, index);
                request.offset(position).rw_flags(flags).build()
            }
            (_, _, 1) => opcode::Write::new(descriptor, base, len).offset(position).rw_flags(flags).build(),
            _ => {
                let request = opcode::Writev::new(descriptor, vector, count as u32);
                request.offset(position).rw_flags(flags).build()
            }
        };
        let is_fixed = fixed.is_some() && (count == 1 || vectored_fixed.is_some());
        self.count(is_fixed);
        entry.user_data(key.encode())
    }

    fn read_entry(&mut self, ring: &Ring, read: Read<UringPlatform>) -> squeue::Entry {
        let (key, slot) = self.reads.take();
        let read = slot.0.insert(read);
        assert!(read.from + read.len <= read.chunk.len(), "a read beyond its chunk");
        let address = read.chunk.unfrozen_address(read.from);
        // Without a second descriptor the read goes past the page cache: the same bytes.
        let cached = if read.cached { read.file.buffered_fd().ok() } else { None };
        let descriptor = types::Fd(cached.unwrap_or(read.file.as_fd()).as_raw_fd());
        let (len, position) = (read.len as u32, read.position.get());
        let fixed = self.registered.lookup(read.chunk.slab_index(), address);
        let fixed = fixed.filter(|_| ring.features().has(Feature::FixedBuffers));
        let entry = match fixed {
            Some(index) => {
                opcode::ReadFixed::new(descriptor, address.as_ptr(), len, index).offset(position).build()
            }
            None => opcode::Read::new(descriptor, address.as_ptr(), len).offset(position).build(),
        };
        self.count(fixed.is_some());
        entry.user_data(key.encode())
    }

    fn count(&mut self, fixed: bool) {
        if fixed {
            self.fixed_count += 1;
        } else {
            self.plain_count += 1;
        }
    }

    /// Ends an operation. `None` for a completion that belongs to none.
    pub(super) fn complete(&mut self, key: Key, cqe: Cqe) -> Option<Event<UringPlatform>> {
        let outcome = cqe.outcome();
        Some(match key.kind {
            Kind::Write => {
                let write = self.writes.release(key)?.write.take()?;
                Event::Written { token: write.token, result: outcome.map(ByteCount::of_usize) }
            }
            Kind::Read => {
                let read = self.reads.release(key)?.0.take()?;
                Event::ReadDone { token: read.token, chunk: read.chunk, result: outcome }
            }
            Kind::Sync => {
                let (token, _file) = self.syncs.release(key)?.0.take()?;
                Event::Synced { token, result: outcome.map(|_| ()) }
            }
            _ => return None,
        })
    }
}

/// The fixed buffer that all pieces lie in, if one does.
fn fixed_index(write: &Write<UringPlatform>, registered: &Registered) -> Option<u16> {
    let bounce = write.bounce.as_ref();
    let first = match write.extents.first() {
        Some(lease) => registered.lookup(lease.slab_index(), lease.address()),
        None => bounce.and_then(|chunk| registered.lookup(chunk.slab_index(), chunk.address())),
    }?;
    let same = |slab_index: u32, address| registered.lookup(slab_index, address) == Some(first);
    let extents_fit = write.extents.iter().all(|lease| same(lease.slab_index(), lease.address()));
    let bounce_fits = bounce.is_none_or(|chunk| same(chunk.slab_index(), chunk.address()));
    (extents_fit && bounce_fits).then_some(first)
}

/// Lists the pieces of a write, adjacent ones as one; returns how many.
fn gather(write: &Write<UringPlatform>, iovecs: &mut [libc::iovec; PIECES_MAX]) -> usize {
    let extents = write.extents.iter().map(|lease| (lease.address(), lease.len()));
    let bounce = write.bounce.iter().map(|chunk| (chunk.address(), chunk.len()));
    let mut count = 0;
    let mut total = 0;
    for (address, len) in extents.chain(bounce) {
        total += len;
        let start = address.as_ptr().cast::<libc::c_void>();
        if count > 0 && iovecs[count - 1].iov_base.wrapping_byte_add(iovecs[count - 1].iov_len) == start {
            iovecs[count - 1].iov_len += len;
        } else {
            iovecs[count] = libc::iovec { iov_base: start, iov_len: len };
            count += 1;
        }
    }
    debug_assert_eq!(total as u64, write.len.get(), "a write's pieces add up to its length");
    count
}
