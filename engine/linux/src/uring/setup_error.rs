//! Why no ring could be made, with what an operator can do about it.

use std::io;

use rohrpost_engine_core::disk::Errno;

use super::features::Reason;
use super::ring::RingSizes;
use crate::file::errno_of_io;

/// io_uring cannot be used here. The `poll` driver always can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// `kernel.io_uring_disabled` forbids it.
    #[error(
        "io_uring is forbidden: kernel.io_uring_disabled is {sysctl}; set it to 0 (sysctl -w \
         kernel.io_uring_disabled=0), or use the poll driver"
    )]
    Disabled {
        /// Its value: 1 = privileged processes and one group only, 2 = nobody.
        sysctl: u32,
    },
    /// The system call is filtered, as container runtimes do by default.
    #[error(
        "io_uring is forbidden: io_uring_setup fails with {errno}, most likely a seccomp filter; allow \
         io_uring_setup, io_uring_enter and io_uring_register in the container's profile, or use the poll driver"
    )]
    Filtered {
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel has no io_uring.
    #[error("this kernel has no io_uring ({errno}); use the poll driver")]
    NotInKernel {
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel's io_uring is older than this driver can use.
    #[error("this kernel's io_uring is too old, 6.1 is needed; use the poll driver")]
    TooOld,
    /// The ring does not fit into the locked-memory limit.
    #[error(
        "no memory for a ring, whose queues take {needed} bytes: the locked-memory limit is {limit} bytes, for all \
         processes of the user; raise it (ulimit -l), grant CAP_IPC_LOCK, lower connections_max, or use the poll driver"
    )]
    LockedMemory {
        /// Bytes that this ring's queues take.
        needed: usize,
        /// `RLIMIT_MEMLOCK` in bytes.
        limit: u64,
    },
    /// Any other answer.
    #[error("io_uring_setup failed: {errno}{}; or use the poll driver", errno.remedy())]
    Other {
        /// The kernel's answer.
        errno: Errno,
    },
}

impl SetupError {
    /// Explains a failed `io_uring_setup` of a ring.
    pub(crate) fn from_io(error: &io::Error, sizes: RingSizes) -> Self {
        let errno = errno_of_io(error);
        match errno.0 {
            libc::EPERM | libc::EACCES => match sysctl_disabled() {
                Some(sysctl) if sysctl > 0 => SetupError::Disabled { sysctl },
                _ => SetupError::Filtered { errno },
            },
            // With the sysctl file there, the kernel has io_uring, and something hides it. Before 6.6 there is no such
            // file, but a filter on this thread shows.
            libc::ENOSYS if sysctl_disabled().is_some() || is_filtered() => SetupError::Filtered { errno },
            libc::ENOSYS => SetupError::NotInKernel { errno },
            libc::ENOMEM => {
                SetupError::LockedMemory { needed: sizes.queues_len(), limit: locked_memory_limit() }
            }
            libc::EINVAL => SetupError::TooOld,
            _ => SetupError::Other { errno },
        }
    }
}

/// `kernel.io_uring_disabled`; `None` before Linux 6.6 or without `/proc`.
fn sysctl_disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Whether system calls of this thread pass a seccomp filter.
fn is_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

/// The soft limit on locked memory, bytes.
pub(crate) fn locked_memory_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: [U24] the call writes one rlimit structure, which this function owns.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    if result == 0 { limit.rlim_cur } else { 0 }
}

/// Why the kernel refuses what it knows.
pub(super) fn reason_of(errno: Errno) -> Reason {
    if errno == Errno::NOMEM {
        Reason::LockedMemory(errno, locked_memory_limit())
    } else {
        Reason::Refused(errno)
    }
}
