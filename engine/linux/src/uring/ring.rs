//! One io_uring instance: set-up, submission, waiting, completions, registered buffers.
//!
//! Owns the ring's descriptor and its shared queues. Always holds: it is used by the thread that made
//! it, and a completion is never lost (`IORING_FEAT_NODROP` is required). Knows nothing of operations:
//! whoever pushes an entry keeps its memory alive until the final completion.

use std::io;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use rohrpost_engine_core::disk::Errno;

use super::features::{Feature, FeatureSet, Missing, Reason};
use super::setup_error::SetupError;
use crate::file::errno_of_io;
use crate::memory::pages_len;

/// `user_data` of the timeout that stands in for `ext_arg`; no operation uses it.
pub(crate) const TIMEOUT_USER_DATA: u64 = u64::MAX;

/// A completion, copied out of the shared queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cqe {
    /// As submitted.
    pub(crate) user_data: u64,
    /// Non-negative: the operation's result; negative: an error number.
    pub(crate) result: i32,
    /// `IORING_CQE_F_*`.
    pub(crate) flags: u32,
}

impl Cqe {
    /// The result as a byte count, or the error.
    pub(crate) fn outcome(self) -> Result<usize, Errno> {
        usize::try_from(self.result).map_err(|_| Errno(-self.result))
    }

    /// Whether further completions of the same request follow.
    pub(crate) fn more(self) -> bool {
        io_uring::cqueue::more(self.flags)
    }

    /// The provided buffer the kernel picked.
    pub(crate) fn buffer(self) -> Option<u16> {
        io_uring::cqueue::buffer_select(self.flags)
    }
}

/// The ring cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("io_uring_enter failed: {0}")]
pub struct RingError(pub Errno);

/// Sizes of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingSizes {
    /// Submission queue entries, a power of two.
    pub(crate) submissions: u32,
    /// Completion queue entries, a power of two, at least as many as submissions.
    pub(crate) completions: u32,
    /// Kernel worker threads per class; applies to this thread's rings.
    pub(crate) workers_max: u32,
    /// Whether the ring tells without a call that completions are to be worked off, for [`Ring::spin`].
    pub(crate) spins: bool,
}

impl RingSizes {
    /// Bytes of the kernel's pages for the queues: a head, the completions and the index array in one mapping, the
    /// submissions in another one.
    pub(crate) const fn queues_len(&self) -> usize {
        const HEAD_LEN: usize = 64;
        let (submissions, completions) = (self.submissions as usize, self.completions as usize);
        let rings = HEAD_LEN + completions * size_of::<cqueue::Entry>() + submissions * size_of::<u32>();
        pages_len(rings) + pages_len(submissions * size_of::<squeue::Entry>())
    }
}

/// One io_uring instance.
pub(crate) struct Ring {
    uring: IoUring,
    features: FeatureSet,
    /// What the timeout request reads, for kernels without `ext_arg`.
    timespec: Box<Timespec>,
    /// Entries of the fixed-buffer table; 0 while there is none.
    buffer_slots: u32,
    /// Calls of `io_uring_enter` so far.
    pub(crate) enter_count: u64,
}

impl Ring {
    /// Makes a ring with as many of the wanted features as the kernel grants; the others are added to
    /// `missing` with the reason.
    pub(crate) fn new(
        sizes: RingSizes,
        wanted: FeatureSet,
        missing: &mut Vec<Missing>,
    ) -> Result<Self, SetupError> {
        let mut features = wanted;
        let uring = loop {
            match build(sizes, features) {
                Ok(uring) => break uring,
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    let Some(feature) = newest_flag(features) else {
                        return Err(SetupError::from_io(&error, sizes));
                    };
                    features = features.without(feature);
                    missing.push(Missing { feature, reason: Reason::NotInKernel(Errno::INVAL) });
                }
                Err(error) => return Err(SetupError::from_io(&error, sizes)),
            }
        };
        if !uring.params().is_feature_nodrop() {
            return Err(SetupError::TooOld);
        }
        let flagged = [
            (Feature::ExtArg, uring.params().is_feature_ext_arg()),
            (Feature::NoIowait, uring.params().is_feature_no_iowait()),
        ];
        for (feature, present) in flagged {
            if features.has(feature) && !present {
                features = features.without(feature);
                missing.push(Missing { feature, reason: Reason::NotInKernel(Errno::INVAL) });
            }
        }
        let mut ring =
            Self { uring, features, timespec: Box::new(Timespec::new()), buffer_slots: 0, enter_count: 0 };
        ring.cap_workers(sizes.workers_max, missing);
        Ok(ring)
    }

    /// What this ring uses.
    pub(crate) fn features(&self) -> FeatureSet {
        self.features
    }

    /// Forgets a feature found wanting after set-up.
    pub(crate) fn drop_feature(&mut self, feature: Feature) {
        self.features = self.features.without(feature);
    }

    fn cap_workers(&mut self, workers_max: u32, missing: &mut Vec<Missing>) {
        let feature = Feature::IowqMaxWorkers;
        if !self.features.has(feature) {
            return;
        }
        let mut limits = [workers_max; 2];
        if let Err(error) = self.uring.submitter().register_iowq_max_workers(&mut limits) {
            self.features = self.features.without(feature);
            missing.push(Missing { feature, reason: Reason::NotInKernel(errno_of_io(&error)) });
        }
    }

    /// Which operation codes the kernel knows; `None` where it does not even know the question.
    pub(crate) fn knows(&self, code: u8) -> Option<bool> {
        let mut probe = io_uring::Probe::new();
        self.uring.submitter().register_probe(&mut probe).ok()?;
        Some(probe.is_supported(code))
    }

    /// Queues one entry. Submits what is queued when there is no room.
    ///
    /// # Safety
    /// Everything the entry points to stays valid, and is not touched in a way the operation forbids,
    /// until the entry's final completion has been taken from this ring. Its descriptor stays open as
    /// long.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), RingError> {
        loop {
            // SAFETY: [U20] the caller vouches for the entry's memory until its final completion.
            let pushed = unsafe { self.uring.submission().push(entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    /// Submits what is queued, without waiting and without working off completions.
    pub(crate) fn submit(&mut self) -> Result<(), RingError> {
        self.enter(0, EnterFlags::empty(), None)
    }

    /// Submits what is queued, lets the kernel work off completions, and waits for `want` of them, at
    /// most for `timeout`.
    pub(crate) fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), RingError> {
        let mut flags = EnterFlags::GETEVENTS;
        if want > 0 && self.features.has(Feature::NoIowait) {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let Some(timeout) = timeout.filter(|_| want > 0) else {
            return self.enter(want, flags, None);
        };
        let timespec = Timespec::from(timeout);
        if self.features.has(Feature::ExtArg) {
            return self.enter(want, flags | EnterFlags::EXT_ARG, Some(timespec));
        }
        *self.timespec = timespec;
        let entry = opcode::Timeout::new(&raw const *self.timespec).count(1).build();
        // SAFETY: [U20] the boxed timespec lives as long as the ring, and the kernel copies it at
        // submission, which is the next call.
        unsafe { self.push(&entry.user_data(TIMEOUT_USER_DATA)) }?;
        self.enter(want, flags, None)
    }

    /// Submits what is queued, then looks for completions without sleeping, at most for `spin`. Whether there are
    /// any.
    pub(crate) fn spin(&mut self, spin: Duration) -> Result<bool, RingError> {
        self.enter(0, EnterFlags::GETEVENTS, None)?;
        let start = Instant::now();
        while self.uring.completion().is_empty() && start.elapsed() < spin {
            if self.uring.submission().taskrun() {
                self.enter(0, EnterFlags::GETEVENTS, None)?;
            }
            std::hint::spin_loop();
        }
        Ok(!self.uring.completion().is_empty())
    }

    fn enter(&mut self, want: u32, flags: EnterFlags, timeout: Option<Timespec>) -> Result<(), RingError> {
        self.enter_count += 1;
        let queued = self.uring.submission().len() as u32;
        let submitter = self.uring.submitter();
        let result = match &timeout {
            Some(timespec) => {
                let args = SubmitArgs::new().timespec(timespec);
                // SAFETY: [U21] the argument matches the EXT_ARG flag and outlives the call.
                unsafe { submitter.enter(queued, want, flags.bits(), Some(&args)) }
            }
            // SAFETY: [U21] without an argument there is nothing to outlive the call.
            None => unsafe { submitter.enter::<libc::sigset_t>(queued, want, flags.bits(), None) },
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is up, a signal came, or completions must be taken first: the caller takes
                // them next and comes back.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(RingError(errno_of_io(&error))),
            },
        }
    }

    /// Moves the completions that have arrived into `into`, as far as its capacity goes.
    pub(crate) fn take_completions(&mut self, into: &mut Vec<Cqe>) {
        let room = into.capacity() - into.len();
        let taken = self.uring.completion().take(room).map(|entry| Cqe {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        });
        into.extend(taken.filter(|cqe| cqe.user_data != TIMEOUT_USER_DATA));
    }

    /// Completions that fit into the shared queue.
    pub(crate) fn completion_capacity(&mut self) -> usize {
        self.uring.completion().capacity()
    }

    /// Whether the kernel had to keep completions back because the queue was full.
    pub(crate) fn has_overflowed(&mut self) -> bool {
        self.uring.submission().cq_overflow()
    }

    /// Makes an empty fixed-buffer table.
    pub(crate) fn register_buffer_table(&mut self, slots: u32) -> Result<(), Errno> {
        self.uring.submitter().register_buffers_sparse(slots).map_err(|error| errno_of_io(&error))?;
        self.buffer_slots = slots;
        Ok(())
    }

    /// Puts memory into the fixed-buffer table; pins its pages.
    ///
    /// # Safety
    /// `[start, start + len)` is one mapping of anonymous memory. It may be unmapped earlier than the
    /// ring is closed only if no later operation names the slot.
    pub(crate) unsafe fn register_buffer(
        &mut self,
        slot: u32,
        start: NonNull<u8>,
        len: usize,
    ) -> Result<(), Errno> {
        if slot >= self.buffer_slots {
            return Err(Errno::INVAL);
        }
        let buffer = [libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len }];
        let submitter = self.uring.submitter();
        // SAFETY: [U22] the caller vouches for the mapping; the kernel pins its pages for itself.
        let result = unsafe { submitter.register_buffers_update(slot, &buffer, None) };
        result.map_err(|error| errno_of_io(&error))
    }

    /// Empties a slot of the fixed-buffer table, which lets go of its pages when the requests that use them
    /// have ended.
    pub(crate) fn clear_buffer(&mut self, slot: u32) {
        let nothing = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }];
        // SAFETY: [U22] an empty entry names no memory.
        let cleared = unsafe { self.uring.submitter().register_buffers_update(slot, &nothing, None) };
        debug_assert!(cleared.is_ok(), "an empty entry needs nothing: {cleared:?}");
    }

    /// Registers a ring of provided buffers.
    ///
    /// # Safety
    /// `[start, start + 16 * entries)` is page-aligned, zeroed, and stays mapped until the ring is
    /// closed.
    pub(crate) unsafe fn register_buf_ring(
        &mut self,
        start: NonNull<u8>,
        entries: u16,
        group: u16,
    ) -> Result<(), Errno> {
        let submitter = self.uring.submitter();
        let start = start.as_ptr() as u64;
        // SAFETY: [U23] the caller vouches for the entries' memory until the ring is closed.
        let result = unsafe { submitter.register_buf_ring_with_flags(start, entries, group, 0) };
        result.map_err(|error| errno_of_io(&error))
    }
}

fn build(sizes: RingSizes, features: FeatureSet) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_submit_all().setup_cqsize(sizes.completions);
    if features.has(Feature::SingleIssuer) {
        builder.setup_single_issuer();
    }
    if features.has(Feature::DeferTaskrun) {
        builder.setup_defer_taskrun();
    } else if features.has(Feature::CoopTaskrun) {
        builder.setup_coop_taskrun();
    }
    if sizes.spins && (features.has(Feature::DeferTaskrun) || features.has(Feature::CoopTaskrun)) {
        builder.setup_taskrun_flag();
    }
    if features.has(Feature::NoSqarray) {
        builder.setup_no_sqarray();
    }
    builder.build(sizes.submissions)
}

/// The set-up flag to give up first: the newest.
fn newest_flag(features: FeatureSet) -> Option<Feature> {
    let by_age = [Feature::NoSqarray, Feature::DeferTaskrun, Feature::SingleIssuer, Feature::CoopTaskrun];
    by_age.into_iter().find(|feature| features.has(*feature))
}
