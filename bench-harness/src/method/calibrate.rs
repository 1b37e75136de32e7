//! What one plain reader gets from the corpus's files: fio, one job, direct, 1 MiB, depth 1. Rates at which readers
//! catch up are put in relation to it. Delivers nothing to nobody, so there is nothing to verify and no latency.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{BenchError, Result};
use crate::method::Env;
use crate::method::window::Cell;
use crate::record::histogram;
use crate::results::{Metrics, Round};

/// Runs fio over every segment that holds a byte of what is caught up with.
///
/// # Errors
/// `Process` if fio is missing or fails.
pub(super) fn run(env: &Env, cell: &Cell<'_>, round: usize) -> Result<Round> {
    let (Some(log), Some(len)) = (cell.log, cell.workload.catch_up_len()) else {
        return Err(fail("the workload has nothing to catch up with"));
    };
    let mut command = Command::new("fio");
    command.args(["--name=calibrate", "--output-format=json", "--readonly", "--rw=read", "--direct=1"]);
    command.args(["--bs=1M", "--ioengine=psync", "--file_service_type=sequential", "--numjobs=1"]);
    command.arg(format!("--cpus_allowed={}", env.server_core));
    let files: Vec<_> =
        log.file_ranges(log.len() - len..log.len()).into_iter().map(|(at, _)| log.path(at)).collect();
    // fio takes a colon for the end of a name.
    let name = |path: &&std::path::Path| path.to_string_lossy().replace(':', "\\:");
    command.arg(format!("--filename={}", files.iter().map(name).collect::<Vec<_>>().join(":")));
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| fail(&format!("cannot run: {error}")))?;
    let read = parse(&output.stdout)
        .ok_or_else(|| fail(&format!("said: {}", String::from_utf8_lossy(&output.stderr).trim())))?;
    let rate = read.len / 1e9 / read.seconds;
    let metrics = Metrics { catch_up_gb_per_s: Some(rate), cold_gb_per_s: Some(rate), ..Metrics::default() };
    Ok(Round {
        workload: cell.workload.name.clone(),
        path: cell.path.name.to_string(),
        round,
        metrics,
        note: "one job, direct, 1 MiB, depth 1, psync".to_string(),
        flags: Vec::new(),
        extra: BTreeMap::from([("seconds", read.seconds), ("server_cpu_share", read.cpu_share)]),
        latencies: histogram(),
        series: Vec::new(),
    })
}

/// Whether fio can be run here.
pub(super) fn is_available() -> bool {
    let version = Command::new("fio").arg("--version").stdin(Stdio::null()).output();
    version.is_ok_and(|output| output.status.success())
}

fn fail(why: &str) -> BenchError {
    BenchError::Process { who: "fio", why: why.to_string() }
}

struct Read {
    len: f64,
    seconds: f64,
    cpu_share: f64,
}

/// fio may say something before its JSON.
fn parse(output: &[u8]) -> Option<Read> {
    let start = output.iter().position(|byte| *byte == b'{')?;
    let value: Value = serde_json::from_slice(&output[start..]).ok()?;
    let job = value.get("jobs")?.get(0)?;
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_f64);
    let read = job.get("read")?;
    let seconds = number(read, "runtime")? / 1e3;
    let cpu_share = (number(job, "usr_cpu")? + number(job, "sys_cpu")?) / 100.0;
    let len = number(read, "io_bytes")?;
    (seconds > 0.0 && len > 0.0).then_some(Read { len, seconds, cpu_share })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields are found behind a warning, and a job that read nothing is no result.
    #[test]
    fn output_is_understood() {
        let with = |bytes: u64| {
            format!(
                "fio: a warning\n{{\"jobs\": [{{\"usr_cpu\": 1.5, \"sys_cpu\": 8.5, \"read\": {{\"io_bytes\": {bytes}, \
                 \"runtime\": 250}}}}]}}\n"
            )
        };
        let read = parse(with(500_000_000).as_bytes()).unwrap();
        assert_eq!((read.len, read.seconds), (5e8, 0.25));
        assert!((read.cpu_share - 0.1).abs() < 1e-9);
        assert!(parse(with(0).as_bytes()).is_none());
        assert!(parse(b"fio: no such file").is_none());
    }
}
