//! Ctrl-C: a flag that every wait looks at, so that children and scratch files are cleaned up on the way out.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{BenchError, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Catches SIGINT, SIGTERM and SIGHUP for the rest of the process. A second signal ends it at once.
pub(crate) fn install() {
    // An error means a handler is there already (tests in one process), which is as good.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
}

/// Fails if a signal has arrived.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err(BenchError::Interrupted) } else { Ok(()) }
}
