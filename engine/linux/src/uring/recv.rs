//! Receive buffers: a fixed number, filled by the kernel, lent to the shard, returned on drop.
//!
//! Owns their memory. Always holds: a buffer is either with the kernel or in the free list, or lent as
//! one [`RecvBuf`], never both. With a buffer ring the kernel picks; without, the driver does.
//!
//! The kernel takes buffers in the order in which they came back, so it goes round all that it has. It gets few at
//! first, which stay in the processor's caches, and more whenever a receive has found none.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rohrpost_engine_core::bill::table_len;
use rohrpost_engine_core::disk::Errno;

use super::ring::Ring;
use crate::memory::AlignedBuffer;

/// Number of the one buffer group a ring has.
pub(crate) const BUFFER_GROUP: u16 = 0;

/// Buffers that the kernel gets at first.
const HANDED_AT_FIRST: u16 = 64;

/// Distance between buffers beyond their length: their first lines, which small requests fill, fall into different
/// sets of the processor's caches.
const SKEW: usize = 64;

const ENTRY_LEN: usize = std::mem::size_of::<BufRingEntry>();

struct Shared {
    memory: AlignedBuffer,
    buffer_len: usize,
    buffer_count: u16,
    /// Buffers in use: all of them, or those that the kernel has been handed.
    handed: Cell<u16>,
    /// Buffers lent out as [`RecvBuf`].
    lent: Cell<u16>,
    /// The ring the kernel takes buffers from; `None` until registered.
    entries: RefCell<Option<AlignedBuffer>>,
    /// Next entry to fill, modulo 2^16 as the kernel counts.
    tail: Cell<u16>,
    /// Buffers at the driver's own disposal: all when there is no ring of them, else those not handed over yet.
    free: RefCell<Vec<u16>>,
}

/// The pool; clones share it.
#[derive(Clone)]
pub(crate) struct RecvPool {
    shared: Rc<Shared>,
}

/// Received bytes; the buffer goes back to the driver when this is dropped.
pub struct RecvBuf {
    /// `None` for the empty buffer that means "end of stream".
    buffer: Option<(Rc<Shared>, u16)>,
    len: usize,
}

impl RecvPool {
    /// `count` buffers (a power of two up to 32,768) of `len` bytes, owned by the driver.
    pub(crate) fn new(count: u16, len: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel's buffer rings have a power of two of entries");
        let memory = AlignedBuffer::new(Self::memory_len(count, len))?;
        let shared = Shared {
            memory,
            buffer_len: len,
            buffer_count: count,
            handed: Cell::new(count),
            lent: Cell::new(0),
            entries: RefCell::new(None),
            tail: Cell::new(0),
            free: RefCell::new((0..count).rev().collect()),
        };
        Ok(Self { shared: Rc::new(shared) })
    }

    /// Bytes of memory that so many buffers of that length take.
    pub(crate) const fn memory_len(count: u16, len: usize) -> usize {
        count as usize * (len + SKEW)
    }

    /// Bytes of the ring through which the kernel gets so many buffers.
    pub(crate) const fn entries_len(count: u16) -> usize {
        count as usize * ENTRY_LEN
    }

    /// Bytes of the table of so many buffers.
    pub(crate) const fn table_len(count: u16) -> usize {
        table_len::<u16>(count as usize)
    }

    /// Hands buffers to the kernel, as a ring of provided buffers.
    pub(crate) fn register(&self, ring: &mut Ring) -> Result<(), Errno> {
        let shared = &*self.shared;
        let len = Self::entries_len(shared.buffer_count);
        let entries = AlignedBuffer::new(len).map_err(|error| crate::file::errno_of_io(&error))?;
        // SAFETY: [U23] freshly mapped, zeroed, page-aligned, and kept in `entries` below; the driver
        // closes its ring before it drops the pool's last clone of its own.
        unsafe { ring.register_buf_ring(entries.start(), shared.buffer_count, BUFFER_GROUP) }?;
        *shared.entries.borrow_mut() = Some(entries);
        shared.handed.set(0);
        shared.hand_over(HANDED_AT_FIRST);
        Ok(())
    }

    /// Hands the kernel as many buffers again as it has, as far as there are any; a receive has found none.
    pub(crate) fn hand_over_more(&self) {
        self.shared.hand_over(self.shared.handed.get());
    }

    /// Length of each buffer.
    pub(crate) fn buffer_len(&self) -> usize {
        self.shared.buffer_len
    }

    /// Buffers in use that are not lent.
    pub(crate) fn free_count(&self) -> usize {
        usize::from(self.shared.handed.get() - self.shared.lent.get())
    }

    /// What the kernel wrote into a buffer it picked.
    pub(crate) fn lend(&self, index: u16, len: usize) -> RecvBuf {
        assert!(index < self.shared.buffer_count, "the kernel names a buffer that it never got");
        assert!(len <= self.shared.buffer_len, "the kernel wrote beyond the buffer");
        self.shared.lent.set(self.shared.lent.get() + 1);
        RecvBuf { buffer: Some((Rc::clone(&self.shared), index)), len }
    }

    /// Fills a buffer of the driver's own with `receive`, which gets the buffer's address and length.
    /// `None` when all are lent.
    pub(crate) fn receive_with(
        &self,
        receive: impl FnOnce(NonNull<u8>, usize) -> Result<usize, Errno>,
    ) -> Option<Result<RecvBuf, Errno>> {
        let index = self.shared.free.borrow_mut().pop()?;
        let result = receive(self.shared.address(index), self.shared.buffer_len);
        if result.is_err() {
            self.shared.give_back(index);
        }
        Some(result.map(|len| self.lend(index, len)))
    }
}

impl Shared {
    fn hand_over(&self, count: u16) {
        for _ in 0..count.min(self.buffer_count - self.handed.get()) {
            let Some(index) = self.free.borrow_mut().pop() else { return };
            self.handed.set(self.handed.get() + 1);
            self.give_back(index);
        }
    }

    fn address(&self, index: u16) -> NonNull<u8> {
        let offset = usize::from(index) * (self.buffer_len + SKEW);
        assert!(offset + self.buffer_len <= self.memory.byte_count().as_usize());
        // SAFETY: [U25] the offset lies inside the mapping, checked above.
        unsafe { self.memory.start().add(offset) }
    }

    fn give_back(&self, index: u16) {
        let mut entries = self.entries.borrow_mut();
        let Some(entries) = entries.as_mut() else {
            self.free.borrow_mut().push(index);
            return;
        };
        let tail = self.tail.get();
        let base = entries.start().cast::<BufRingEntry>();
        let at = usize::from(tail & (self.buffer_count - 1));
        // SAFETY: [U25] `at` is below the number of entries mapped.
        let entry = unsafe { base.add(at) };
        // SAFETY: [U25] the kernel reads entries below the tail only, and this one is not: at most
        // `buffer_count` buffers exist, so the ring is never full when one comes back.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(self.address(index).as_ptr() as u64);
        entry.set_len(self.buffer_len as u32);
        entry.set_bid(index);
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: [U25] the base is the first entry of a mapped ring; only an address is computed.
        let tail_at = unsafe { BufRingEntry::tail(base.as_ptr()) };
        // SAFETY: [U25] the tail is two aligned bytes of the mapping that the kernel only reads.
        let shared_tail = unsafe { AtomicU16::from_ptr(tail_at.cast_mut()) };
        shared_tail.store(self.tail.get(), Ordering::Release);
    }
}

impl RecvBuf {
    /// The end of the stream.
    pub(crate) fn end_of_stream() -> Self {
        Self { buffer: None, len: 0 }
    }
}

impl AsRef<[u8]> for RecvBuf {
    fn as_ref(&self) -> &[u8] {
        let Some((shared, index)) = &self.buffer else { return &[] };
        // SAFETY: [U25] this value alone names the buffer until it is dropped; the kernel filled the
        // first `len` bytes, and the rest of the mapping was zeroed.
        unsafe { std::slice::from_raw_parts(shared.address(*index).as_ptr(), self.len) }
    }
}

impl Drop for RecvBuf {
    fn drop(&mut self) {
        if let Some((shared, index)) = self.buffer.take() {
            shared.lent.set(shared.lent.get() - 1);
            shared.give_back(index);
        }
    }
}

impl fmt::Debug for RecvBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBuf({} bytes)", self.len)
    }
}
