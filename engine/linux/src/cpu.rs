//! Cores: which ones this process may use, and pinning a thread to one.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores this thread may run on, ascending. Empty only if the kernel does not say.
pub fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Pins the calling thread to one core.
///
/// # Errors
/// The kernel's, `EINVAL` for a core that is absent or not allowed.
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_an_allowed_core_and_to_no_other() {
        let core = allowed()[0];
        let pinned = std::thread::spawn(move || {
            pin_current_thread(core).unwrap();
            allowed()
        });
        assert_eq!(pinned.join().unwrap(), [core]);
        assert!(pin_current_thread(CpuSet::MAX_CPU).is_err());
        assert!(pin_current_thread(CpuSet::MAX_CPU - 1).is_err());
    }
}
