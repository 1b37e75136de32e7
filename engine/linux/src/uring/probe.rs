//! Finds out what the kernel's io_uring can do here, by doing it.
//!
//! Owns a small ring and its test subjects for the length of the probe. Flags and operation codes that
//! a kernel advertises may still be refused by a limit or a filter, so every feature is tried once;
//! what is not used is reported with its reason.

use std::fmt;
use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::{opcode, squeue, types};
use rohrpost_engine_core::disk::Errno;

use super::features::{Feature, FeatureMask, FeatureSet, Missing, NEEDS, Reason};
use super::recv::{BUFFER_GROUP, RecvPool};
use super::ring::{Cqe, Ring, RingSizes};
use super::setup_error::{SetupError, locked_memory_limit};
use crate::file::errno_of_io;
use crate::memory::AlignedBuffer;
use crate::reference::Reference;

const PATIENCE: Duration = Duration::from_secs(1);

/// What the ring driver will use on this host, and what it will do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// Used.
    pub features: FeatureSet,
    /// Not used, each with the reason.
    pub missing: Vec<Missing>,
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used: Vec<&str> = self.features.iter().map(|feature| feature.info().name).collect();
        write!(f, "io_uring with {}", used.join(", "))?;
        self.missing.iter().try_for_each(|missing| write!(f, "\n  without {missing}"))
    }
}

/// Tries every feature that `mask` leaves. Takes about a millisecond.
///
/// # Errors
/// When no ring can be made at all.
pub fn probe(mask: FeatureMask) -> Result<ProbeReport, SetupError> {
    let wanted = FeatureSet::all().masked(mask);
    let mut missing = Vec::new();
    for feature in Feature::ALL.iter().copied().filter(|feature| !wanted.has(*feature)) {
        let reason = if mask.forbids(feature) { Some(Reason::Masked) } else { needs(feature, wanted) };
        missing.extend(reason.map(|reason| Missing { feature, reason }));
    }
    let sizes = RingSizes { submissions: 8, completions: 16, workers_max: 1, spins: false };
    let mut ring = Ring::new(sizes, wanted, &mut missing)?;
    let mut pool = None;
    for (feature, try_feature) in TRIALS {
        if !ring.features().has(*feature) {
            continue;
        }
        let reason = match needs(*feature, ring.features()) {
            Some(reason) => Err(reason),
            None => try_feature(&mut ring, &mut pool),
        };
        if let Err(reason) = reason {
            ring.drop_feature(*feature);
            missing.push(Missing { feature: *feature, reason });
        }
    }
    Ok(ProbeReport { features: ring.features(), missing })
}

fn needs(feature: Feature, features: FeatureSet) -> Option<Reason> {
    let unmet = NEEDS.iter().find(|(dependent, needed)| *dependent == feature && !features.has(*needed))?;
    Some(Reason::Needs(unmet.1))
}

type Trial = fn(&mut Ring, &mut Option<RecvPool>) -> Result<(), Reason>;

const TRIALS: &[(Feature, Trial)] = &[
    (Feature::FixedBuffers, try_fixed_buffers),
    (Feature::WritevFixed, try_writev_fixed),
    (Feature::BufRing, try_buf_ring),
    (Feature::MultishotRecv, try_multishot_recv),
    (Feature::MultishotAccept, try_multishot_accept),
    (Feature::MultishotPoll, try_multishot_poll),
    (Feature::Splice, try_splice),
    (Feature::SendmsgZc, try_sendmsg_zc),
    (Feature::ZcReport, try_zc_report),
    (Feature::ReferencePipe, try_reference_pipe),
];

fn try_fixed_buffers(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    ring.register_buffer_table(1).map_err(reason_of)?;
    let page = AlignedBuffer::new(4096).map_err(|error| Reason::Refused(errno_of_io(&error)))?;
    // SAFETY: [U22] one page of an anonymous mapping; no operation ever names the slot.
    unsafe { ring.register_buffer(0, page.start(), 4096) }.map_err(reason_of)
}

fn try_writev_fixed(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    known(ring, opcode::WritevFixed::CODE)
}

fn try_buf_ring(ring: &mut Ring, pool: &mut Option<RecvPool>) -> Result<(), Reason> {
    let fresh = RecvPool::new(8, 512).map_err(|error| Reason::Refused(errno_of_io(&error)))?;
    fresh.register(ring).map_err(reason_of)?;
    *pool = Some(fresh);
    Ok(())
}

fn try_multishot_recv(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    let (mut near, far) = UnixStream::pair().map_err(|error| Reason::Refused(errno_of_io(&error)))?;
    near.write_all(&[7]).map_err(|error| Reason::Refused(errno_of_io(&error)))?;
    let entry = opcode::RecvMulti::new(types::Fd(far.as_raw_fd()), BUFFER_GROUP).build();
    let first = run(ring, &entry, far.as_raw_fd())?;
    match first.outcome() {
        Ok(1) if first.more() => Ok(()),
        Ok(_) => Err(Reason::NotInKernel(Errno::INVAL)),
        Err(errno) => Err(reason_of(errno)),
    }
}

/// On something that is no socket: a kernel with the feature says so, one without refuses the flag.
fn try_multishot_accept(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    let subject = eventfd()?;
    let entry = opcode::AcceptMulti::new(types::Fd(subject.as_raw_fd())).build();
    match run(ring, &entry, subject.as_raw_fd())?.outcome() {
        Err(Errno(libc::ENOTSOCK)) => Ok(()),
        Err(errno) => Err(reason_of(errno)),
        Ok(_) => Err(Reason::Refused(Errno::INVAL)),
    }
}

fn try_multishot_poll(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    let subject = eventfd()?;
    let entry = opcode::PollAdd::new(types::Fd(subject.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
    let first = run(ring, &entry, subject.as_raw_fd())?;
    match first.outcome() {
        Ok(_) if first.more() => Ok(()),
        Ok(_) => Err(Reason::NotInKernel(Errno::INVAL)),
        Err(errno) => Err(reason_of(errno)),
    }
}

fn try_splice(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    known(ring, opcode::Splice::CODE)
}

fn try_sendmsg_zc(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    known(ring, opcode::SendMsgZc::CODE)
}

fn known(ring: &Ring, code: u8) -> Result<(), Reason> {
    if ring.knows(code) == Some(true) { Ok(()) } else { Err(Reason::NotInKernel(Errno::INVAL)) }
}

/// On something that is no socket: a kernel with the feature says so, one without refuses the flag.
fn try_zc_report(ring: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    let subject = eventfd()?;
    let request = opcode::SendZc::new(types::Fd(subject.as_raw_fd()), std::ptr::null(), 0);
    let entry = request.zc_flags(super::zero_copy::REPORT_USAGE).build();
    match run(ring, &entry, subject.as_raw_fd())?.outcome() {
        Err(Errno(libc::ENOTSOCK)) => Ok(()),
        Err(errno) => Err(reason_of(errno)),
        Ok(_) => Err(Reason::Refused(Errno::INVAL)),
    }
}

fn try_reference_pipe(_: &mut Ring, _: &mut Option<RecvPool>) -> Result<(), Reason> {
    Reference::open().map(|_| ()).map_err(Reason::Refused)
}

/// An eventfd that is readable from the start.
fn eventfd() -> Result<OwnedFd, Reason> {
    // SAFETY: [U26] no pointer is passed.
    let fd = unsafe { libc::eventfd(1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(Reason::Refused(errno_of_io(&std::io::Error::last_os_error())));
    }
    // SAFETY: [U26] the descriptor is fresh and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Submits one entry, returns its first completion, and ends the request.
fn run(ring: &mut Ring, entry: &squeue::Entry, fd: RawFd) -> Result<Cqe, Reason> {
    const TRIAL: u64 = 1;
    const CANCEL: u64 = 2;
    let lost = Reason::Refused(Errno(libc::ETIMEDOUT));
    let refused = |error: super::ring::RingError| Reason::Refused(error.0);
    // SAFETY: [U20] probe entries point to no memory, and are waited for below.
    unsafe { ring.push(&entry.clone().user_data(TRIAL)) }.map_err(refused)?;
    let mut cqes = Vec::with_capacity(16);
    ring.submit_and_wait(1, Some(PATIENCE)).map_err(refused)?;
    ring.take_completions(&mut cqes);
    let first = cqes.iter().copied().find(|cqe| cqe.user_data == TRIAL);
    if cqes.iter().any(|cqe| cqe.user_data == TRIAL && !cqe.more()) {
        return first.ok_or(lost);
    }
    let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::fd(types::Fd(fd)).all()).build();
    // SAFETY: [U20] the entry points to no memory.
    unsafe { ring.push(&cancel.user_data(CANCEL)) }.map_err(refused)?;
    for _ in 0..4 {
        cqes.clear();
        ring.submit_and_wait(1, Some(PATIENCE)).map_err(refused)?;
        ring.take_completions(&mut cqes);
        if cqes.iter().any(|cqe| cqe.user_data == TRIAL && !cqe.more()) {
            break;
        }
    }
    first.ok_or(lost)
}

fn reason_of(errno: Errno) -> Reason {
    match errno.0 {
        libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP => Reason::NotInKernel(errno),
        libc::ENOMEM => Reason::LockedMemory(errno, locked_memory_limit()),
        _ => Reason::Refused(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the kernel, the report accounts for every feature exactly once.
    #[test]
    fn every_feature_is_used_or_missing_with_a_reason() {
        let Ok(report) = probe(FeatureMask::NONE) else { return crate::testing::skip("no io_uring") };
        for feature in Feature::ALL {
            let missing = report.missing.iter().filter(|missing| missing.feature == *feature).count();
            let used = usize::from(report.features.has(*feature));
            assert_eq!(used + missing, 1, "{feature}: {report}");
        }
    }

    /// A masked feature is not used, is named as masked, and takes its dependents along by name.
    #[test]
    fn masks_are_honoured_and_reported() {
        for feature in Feature::ALL {
            let mask = FeatureMask::NONE.forbid(*feature);
            let Ok(report) = probe(mask) else { return crate::testing::skip("no io_uring") };
            assert!(!report.features.has(*feature));
            let reason = report.missing.iter().find(|missing| missing.feature == *feature);
            assert_eq!(reason.map(|missing| missing.reason), Some(Reason::Masked));
            for (dependent, needed) in NEEDS {
                assert!(!report.features.has(*dependent) || report.features.has(*needed));
            }
        }
    }
}
