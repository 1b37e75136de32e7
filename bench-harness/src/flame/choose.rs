//! Which sampler this machine allows: tried, not guessed.

use std::io::ErrorKind;
use std::process::{Command, Stdio};

use super::sampler::Sampler;

/// The sampler, and what to tell the user about one that was not to be had.
pub(super) fn choose() -> (Sampler, Option<String>) {
    let why = match try_perf(Sampler::Perf) {
        Ok(()) => return (Sampler::Perf, None),
        Err(why) => why,
    };
    let remedy = match &why {
        Refusal::Missing => "install it (Debian: linux-perf) to see kernel frames",
        Refusal::Refused(_) => {
            "run as root, or `sysctl -w kernel.perf_event_paranoid=-1`, to see kernel frames"
        }
    };
    let sampler = match why {
        Refusal::Refused(_) if try_perf(Sampler::PerfUser).is_ok() => Sampler::PerfUser,
        _ => Sampler::Signals,
    };
    let cause = match why {
        Refusal::Missing => "there is no perf here".to_string(),
        Refusal::Refused(said) => format!("perf may not sample the kernel ({said})"),
    };
    (sampler, Some(format!("{cause}: {remedy}. This picture: {}.", sampler.name())))
}

enum Refusal {
    Missing,
    Refused(String),
}

/// Samples a command that does nothing.
fn try_perf(sampler: Sampler) -> Result<(), Refusal> {
    let output = Command::new("perf")
        .args(["record", "--quiet", "-F", "99", "-e", sampler.event(), "-g", "-o", "/dev/null", "--", "true"])
        .stdin(Stdio::null())
        .output();
    match output {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Refusal::Missing),
        Err(error) => Err(Refusal::Refused(error.to_string())),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().find(|line| !line.trim().is_empty() && !line.starts_with("Error"));
            Err(Refusal::Refused(first.unwrap_or("without a reason").trim().to_string()))
        }
    }
}
