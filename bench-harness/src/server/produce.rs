//! The producer's record inside a server process: acknowledgements since the last mark.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::record::{Recorded, WindowRecorder};
use crate::sys;

/// What the producer recorded between two marks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Produced {
    /// Acknowledgements: latency from the start of the append (at a fixed rate: from when it should have begun), and
    /// acknowledged bytes; those of a flooded partition as cold bytes, without latencies.
    pub acks: Recorded,
}

/// Acknowledgements, taken by the control thread.
#[derive(Default)]
pub struct Recorder {
    window: Mutex<Option<WindowRecorder>>,
}

impl Recorder {
    /// Turns recording on; a path without a producer never does.
    pub fn start(&self) {
        *self.lock() = Some(WindowRecorder::new(sys::now_ns()));
    }

    /// One acknowledged append of `len` bytes, started at `start_ns`.
    pub fn ack(&self, start_ns: u64, now_ns: u64, len: u64) {
        if let Some(window) = self.lock().as_mut() {
            window.latency(now_ns.saturating_sub(start_ns), now_ns);
            window.bytes(len, 0, now_ns);
        }
    }

    /// An acknowledged append that loads the server and is not what is measured.
    pub fn beside(&self, now_ns: u64, len: u64) {
        if let Some(window) = self.lock().as_mut() {
            window.bytes(0, len, now_ns);
        }
    }

    /// What was recorded since the last call.
    pub fn take(&self) -> Option<Produced> {
        let mut lock = self.lock();
        let window = lock.as_mut()?;
        let now = sys::now_ns();
        window.end(now);
        let acks = window.recorded();
        window.restart(now);
        Some(Produced { acks })
    }

    fn lock(&self) -> MutexGuard<'_, Option<WindowRecorder>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
