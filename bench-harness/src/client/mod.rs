//! The load generator: one pinned process, one epoll loop, hot readers open or closed loop, cold readers and
//! tail readers closed loop.
//!
//! Open-loop latency counts from the moment a request should have been sent, so a stalled server is charged for
//! everything it kept waiting; requests of the window that are still unanswered a second after it are counted
//! with the time they have waited, and reported. Nothing is verified here: that happens before a path is timed.

mod conn;
mod load;
mod producer;
mod readers;
pub mod verify;

use serde::{Deserialize, Serialize};

use crate::corpus::plan::FetchPlan;
use crate::error::Result;
use crate::ipc;
use crate::record::Recorded;
use crate::workload::Workload;

/// What a client process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientConfig {
    /// The server's port on loopback.
    pub port: u16,
    /// The load.
    pub workload: Workload,
    /// What to ask for.
    pub plan: FetchPlan,
    /// The end offset of the partition that was filled for cold readers beside appends.
    pub filled_end: i64,
    /// Forced delivery mode, 0 for none.
    pub flags: u16,
    /// Seed of the choice among hot offsets.
    pub seed: u64,
    /// Core to run on.
    pub core: usize,
    /// TCP congestion control.
    pub congestion: String,
}

/// What a client process says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one of each a window")]
pub enum ClientEvent {
    /// Connected; waits for `go`.
    Ready,
    /// The window begins now.
    WindowStart,
    /// The window ends now.
    WindowEnd,
    /// What happened in it.
    Report(ClientReport),
}

/// The parent's permission to start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Go {
    /// Seconds under load before the window.
    pub warmup_seconds: f64,
    /// Seconds measured.
    pub window_seconds: f64,
    /// Monotonic time at which a producer with a rate begins.
    pub begin_ns: u64,
}

/// What happened in the window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClientReport {
    /// Its length as measured.
    pub seconds: f64,
    /// Hot (or tail) readers.
    pub hot: Recorded,
    /// Batches appended at a rate: from their intended time to their last byte at a tail reader.
    pub end_to_end: Recorded,
    /// Acknowledgements of a producer that is a client; `None` without one.
    pub acks: Option<Recorded>,
    /// Requests that should have been sent in the window (open loop).
    pub offered: u64,
    /// Requests of the window answered after it (open loop).
    pub answered_late: u64,
    /// Requests of the window not answered a second after it (open loop).
    pub unanswered: u64,
    /// Cold fetches completed.
    pub cold_responses: u64,
    /// Readers that were behind and have caught up.
    pub caught_up: u64,
    /// When the last of them had, seconds after they began with the window.
    pub caught_up_s: Option<f64>,
    /// Times a cold reader started again at its beginning, where its data is no longer cold.
    pub cold_wraps: u64,
    /// CPU of this process in the window, nanoseconds: near the window's length, the client is the limit.
    pub client_cpu_ns: u64,
}

impl ClientReport {
    /// One of `count` readers that were behind has read up to the end. Says whether it was the last.
    fn reader_caught_up(&mut self, count: usize, after_ns: u64) -> bool {
        self.caught_up += 1;
        let last = self.caught_up == count as u64;
        if last {
            self.caught_up_s = Some(after_ns as f64 / 1e9);
        }
        last
    }
}

/// The body of the hidden `client` subcommand.
///
/// # Errors
/// Whatever broke the load; the parent has been told.
pub fn main() -> Result<()> {
    let config: ClientConfig = ipc::child_start()?;
    load::run(config).inspect_err(ipc::child_fail)
}
