//! Anonymous memory in huge pages.
//!
//! [`AlignedBuffer`] owns one private mapping: zeroed, aligned to 4 KiB, from 2 MiB on to 2 MiB, where
//! transparent huge pages back it if the host allows them (`madvise` or `always`). Direct reads into
//! huge pages cost a third of those into small ones. The mapping is not inherited by `fork`, so a
//! child never makes the kernel copy pages that a device is writing to.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rohrpost_engine_core::types::ByteCount;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Length and alignment of a huge page on the supported machines.
pub const HUGE_PAGE_LEN: usize = 2 << 20;

const PAGE_LEN: usize = 4096;

/// The length of whole pages that hold `len` bytes.
pub(crate) const fn pages_len(len: usize) -> usize {
    len.next_multiple_of(PAGE_LEN)
}

/// Zeroed memory for direct I/O, given back to the system when dropped.
pub struct AlignedBuffer {
    /// [U1] Start of `len` mapped bytes that only this value owns.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: [U1] the mapping has one owner, like a `Vec<u8>`, and is not tied to a thread.
unsafe impl Send for AlignedBuffer {}
// SAFETY: [U1] shared access only reads.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `len` zeroed bytes, rounded up to whole pages. Pages are backed when they are first touched;
    /// see [`Self::populate`].
    ///
    /// # Errors
    /// The system's, mostly `ENOMEM`; `EINVAL` for length 0.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.checked_next_multiple_of(PAGE_LEN).ok_or(rustix::io::Errno::NOMEM)?;
        let huge = len >= HUGE_PAGE_LEN;
        let slack = if huge { HUGE_PAGE_LEN - PAGE_LEN } else { 0 };
        let buffer = Self::map(len, slack)?;
        if huge {
            // A host without transparent huge pages answers EINVAL: small pages are slower, not wrong.
            let _ = buffer.advise(Advice::LinuxHugepage);
        }
        buffer.advise(Advice::LinuxDontFork)?;
        Ok(buffer)
    }

    /// Maps `len + slack` bytes and gives back what lies outside the aligned part.
    fn map(len: usize, slack: usize) -> io::Result<Self> {
        let mapped = len.checked_add(slack).ok_or(rustix::io::Errno::NOMEM)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: [U1] a new anonymous mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), mapped, protection, flags) }?.cast::<u8>();
        let head = if slack == 0 { 0 } else { base.addr().wrapping_neg() % HUGE_PAGE_LEN };
        let tail = slack - head;
        let start = base.wrapping_add(head);
        if head > 0 {
            // SAFETY: [U1] the unaligned head of the mapping made above, named by nobody.
            unsafe { munmap(base.cast(), head) }?;
        }
        if tail > 0 {
            // SAFETY: [U1] the rest behind the aligned part, named by nobody.
            unsafe { munmap(start.wrapping_add(len).cast(), tail) }?;
        }
        let start = NonNull::new(start).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// Backs every page now, 2 MiB at a time, so that no later access faults. Takes 2 to 3 ms per MiB
    /// on a virtual machine whose host has not backed the memory.
    ///
    /// # Errors
    /// `ENOMEM` when a memory limit is met. `EINVAL` does not occur: kernels without
    /// `MADV_POPULATE_WRITE` (before 5.14) are served by touching the pages.
    pub fn populate(&mut self) -> io::Result<()> {
        for from in (0..self.len).step_by(HUGE_PAGE_LEN) {
            let len = HUGE_PAGE_LEN.min(self.len - from);
            let at = self.start.as_ptr().wrapping_add(from).cast();
            // SAFETY: [U1] the range lies in this mapping; populating changes no content.
            match unsafe { madvise(at, len, Advice::LinuxPopulateWrite) } {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL) => self.touch(from, len),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Drops the pages of `[from, from + len)`, a multiple of [`HUGE_PAGE_LEN`] each, and backs the range
    /// with fresh ones. Whoever else refers to the old pages, such as a socket's queue, keeps them and their
    /// bytes.
    ///
    /// # Errors
    /// The system's if it does not let go of the pages, which are then the old ones still: `EINVAL` for
    /// locked memory. That fresh ones are not to be had yet is no error; the next access tries again.
    ///
    /// # Safety
    /// Nobody reads or writes the range meanwhile, or cares for what it held.
    pub(crate) unsafe fn renew(&self, from: usize, len: usize) -> io::Result<()> {
        assert!(
            from.is_multiple_of(HUGE_PAGE_LEN) && len.is_multiple_of(HUGE_PAGE_LEN),
            "U5: part of a page"
        );
        assert!(from + len <= self.len, "U5: {from} + {len} beyond {}", self.len);
        let at = self.start.as_ptr().wrapping_add(from).cast();
        // SAFETY: [U5] the range lies in this mapping, and the caller vouches that nobody names its bytes.
        unsafe { madvise(at, len, Advice::LinuxDontNeed) }?;
        // SAFETY: [U1] the range lies in this mapping; populating changes no content.
        let _ = unsafe { madvise(at, len, Advice::LinuxPopulateWrite) };
        Ok(())
    }

    /// Whether [`Self::renew`] works here: tries it on the last huge page, whose content is lost. Not where memory is
    /// locked.
    pub(crate) fn try_renew(&mut self) -> bool {
        let Some(from) = self.len.checked_sub(HUGE_PAGE_LEN) else { return false };
        // SAFETY: [U5] nobody else names this memory, and its content is given up.
        unsafe { self.renew(from, HUGE_PAGE_LEN) }.is_ok()
    }

    fn touch(&mut self, from: usize, len: usize) {
        for at in (from..from + len).step_by(PAGE_LEN) {
            let byte = std::hint::black_box(self[at]);
            self[at] = byte;
            std::hint::black_box(&mut self[at]);
        }
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: [U1] the range is this mapping; none of the advices used discards its content.
        unsafe { madvise(self.start.as_ptr().cast(), self.len, advice) }
    }

    /// Length in bytes, whole pages.
    pub fn byte_count(&self) -> ByteCount {
        ByteCount::of_usize(self.len)
    }

    /// Address of the first byte, for the arena and for registration with the kernel.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: [U1] mapped and zero-initialised by the kernel; `&self` excludes writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: [U1] as above; `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: [U1] the mapping is owned by this value, and nobody names it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "U1: munmap {unmapped:?}");
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A large buffer is aligned to huge pages, zeroed, and its neighbours survive its end.
    #[test]
    fn large_buffers_are_aligned_and_zeroed() {
        let mut buffers: Vec<_> = (0..4).map(|_| AlignedBuffer::new(3 << 20).unwrap()).collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.start().as_ptr().addr() % HUGE_PAGE_LEN, 0);
            assert_eq!(buffer.len(), 3 << 20);
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(index as u8 + 1);
        }
        buffers.remove(1);
        for (buffer, byte) in buffers.iter().zip([1, 3, 4]) {
            assert!(buffer.iter().all(|&b| b == byte));
        }
    }

    #[test]
    fn small_buffers_are_whole_pages() {
        let mut buffer = AlignedBuffer::new(5000).unwrap();
        assert_eq!(buffer.len(), 8192);
        assert_eq!(buffer.start().as_ptr().addr() % PAGE_LEN, 0);
        buffer.populate().unwrap();
        assert!(buffer.iter().all(|&byte| byte == 0));
    }

    /// Populating backs every page and changes none: the kernel says so itself.
    #[test]
    fn populate_backs_every_page() {
        let mut buffer = AlignedBuffer::new(4 << 20).unwrap();
        buffer[4095] = 7;
        buffer.populate().unwrap();
        assert_eq!(buffer[4095], 7);
        assert_eq!(resident_pages(&buffer), buffer.len() / PAGE_LEN);
        buffer.touch(0, 4 << 20);
        assert_eq!(buffer[4095], 7);
    }

    /// Pages of locked memory cannot be replaced, and that is found out before anything relies on it.
    #[test]
    fn locked_memory_is_not_renewed() {
        let mut buffer = AlignedBuffer::new(2 * HUGE_PAGE_LEN).unwrap();
        buffer.fill(3);
        assert!(buffer.try_renew());
        let (kept, renewed) = buffer.split_at(HUGE_PAGE_LEN);
        assert!(kept.iter().all(|&byte| byte == 3) && renewed.iter().all(|&byte| byte == 0));
        // SAFETY: [U1] the range is this mapping; locking changes no content.
        if unsafe { rustix::mm::mlock(buffer.start.as_ptr().cast(), buffer.len) }.is_ok() {
            assert!(!buffer.try_renew());
        }
    }

    #[test]
    fn absurd_lengths_are_errors() {
        assert!(AlignedBuffer::new(0).is_err());
        assert!(AlignedBuffer::new(usize::MAX).is_err());
        assert!(AlignedBuffer::new(usize::MAX - (8 << 20)).is_err());
    }

    fn resident_pages(buffer: &AlignedBuffer) -> usize {
        let mut pages = vec![0u8; buffer.len() / PAGE_LEN];
        let start = buffer.start().as_ptr().cast();
        // SAFETY: [U4] the vector has one byte per page of the range.
        let result = unsafe { libc::mincore(start, buffer.len(), pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }
}
