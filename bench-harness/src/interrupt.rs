//! Ctrl-C: a flag that every wait looks at, so that children and scratch files are cleaned up on the way out.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::error::{BenchError, Result};

/// A second signal so soon is the first one again: `timeout` and shells send theirs to a process and to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

static INTERRUPTED: OnceLock<Instant> = OnceLock::new();

/// Catches SIGINT, SIGTERM and SIGHUP for the rest of the process. A second signal, later, ends it at once; what it
/// leaves behind, the next run removes.
pub(crate) fn install() {
    // An error means a handler is there already (tests in one process), which is as good.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.get_or_init(Instant::now).elapsed() > SAME_SIGNAL {
            std::process::exit(130);
        }
    });
}

/// Fails if a signal has arrived.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.get().is_some() { Err(BenchError::Interrupted) } else { Ok(()) }
}
