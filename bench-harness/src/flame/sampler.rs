//! The server's side of a profile: samples of its own stacks from the window's first mark to its second.
//!
//! Always holds: what is sampled is the server process and the kernel working for it, never the client; sampling that
//! cannot start is told to the parent instead of leaving an empty picture.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pprof::{ProfilerGuard, ProfilerGuardBuilder};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::error::{BenchError, Result};

/// How stacks are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// perf, user and kernel frames.
    Perf,
    /// perf, user frames only: what an ordinary user may see.
    PerfUser,
    /// A timer signal inside the process, user frames only: where there is no perf.
    Signals,
}

impl Sampler {
    /// Its name in records and titles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf, kernel frames",
            Self::PerfUser => "perf, user frames only",
            Self::Signals => "timer signal, user frames only",
        }
    }

    /// perf's name of what it samples by: a timer, because virtual machines have no hardware counters.
    pub(super) fn event(self) -> &'static str {
        if self == Self::Perf { "cpu-clock" } else { "cpu-clock:u" }
    }
}

/// What a server process is to sample.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// How.
    pub sampler: Sampler,
    /// Samples per second of CPU.
    pub hz: u32,
    /// Where they go: one file a process, named by the path it serves and its process id.
    pub dir: PathBuf,
}

/// Samples being taken.
pub(crate) enum Sampling {
    Perf(Child),
    Signals { guard: ProfilerGuard<'static>, out: PathBuf },
}

impl Sampling {
    /// Begins to sample this process, which serves `path`.
    pub(crate) fn start(order: &Order, path: &str) -> Result<Self> {
        let out = order.dir.join(format!("{path}.{}", std::process::id()));
        if order.sampler == Sampler::Signals {
            let builder = ProfilerGuardBuilder::default().frequency(order.hz as i32);
            let guard = builder.build().map_err(|error| failed(format!("sampling by signal: {error}")))?;
            return Ok(Self::Signals { guard, out });
        }
        let pid = std::process::id().to_string();
        let hz = order.hz.to_string();
        let child = Command::new("perf")
            .args(["record", "--quiet", "-F", &hz, "-e", order.sampler.event(), "--call-graph", "fp"])
            .args(["-p", &pid, "-o"])
            .arg(&out)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(format!("perf: {error}")))?;
        Ok(Self::Perf(child))
    }

    /// Ends it; the samples are in their file.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::Perf(mut child) => {
                // perf writes its file when it is interrupted, and ends with that signal.
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                let pid = pid.ok_or_else(|| failed("perf has no process id".into()))?;
                kill_process(pid, Signal::INT).map_err(BenchError::system("interrupt perf"))?;
                child.wait().map_err(BenchError::system("wait for perf"))?;
                Ok(())
            }
            Self::Signals { guard, out } => {
                let report = guard.report().build();
                let report = report.map_err(|error| failed(format!("sampling by signal: {error}")))?;
                write_folded(&report, &out)
            }
        }
    }
}

fn failed(why: String) -> BenchError {
    BenchError::Process { who: "server", why }
}

/// One line a stack, outermost first, as all tools for flamegraphs have it.
fn write_folded(report: &pprof::Report, out: &Path) -> Result<()> {
    let mut text = Vec::new();
    for (stack, count) in &report.data {
        let frames = stack.frames.iter().rev().flat_map(|inlined| inlined.iter().rev());
        let names: Vec<_> = frames.map(|symbol| symbol.name().replace(';', ":")).collect();
        // Writing to memory does not fail.
        let _ = writeln!(text, "{};{} {count}", stack.thread_name, names.join(";"));
    }
    let mut file = File::create(out).map_err(BenchError::file("create", out))?;
    file.write_all(&text).map_err(BenchError::file("write", out))
}
