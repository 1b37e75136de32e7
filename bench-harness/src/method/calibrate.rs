//! What fio gets from the same device, for what is measured in relation to that: reading what others catch up with,
//! or writing blocks as an append does. Serves nobody, so there is nothing to verify and no latency.
//!
//! A reader is a job, direct, depth 1, with reads as long as its fetches. A writer is one job a partition, one write at a time each, direct,
//! durable by `O_DSYNC`: no index and no roll. Its files are either reserved, so that every write changes their
//! extents, as those of a growing log do, or of a segment's length and written already.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{BenchError, Result};
use crate::method::Env;
use crate::method::window::Cell;
use crate::paths::Calibration;
use crate::record::histogram;
use crate::results::{Metrics, Round};
use crate::workload::{Append, Workload};

/// Direct writes are a multiple of this.
const ALIGN: u64 = 4096;
/// The path whose writes give fio its block lengths.
const SHAPED_LIKE: &str = "engine";

/// Runs fio for one round.
///
/// # Errors
/// `Process` if fio is missing or fails.
pub(super) fn run(env: &Env, cell: &Cell<'_>, round: usize) -> Result<Round> {
    match &cell.workload.append {
        Some(append) => write(env, cell, append, round),
        None => read(env, cell, round),
    }
}

/// One job over every segment that holds a byte of what is caught up with; else for each cold reader a job over those of
/// its share, for as long as a window.
fn read(env: &Env, cell: &Cell<'_>, round: usize) -> Result<Round> {
    let (Some(log), Some(cold)) = (cell.log, &cell.workload.cold) else {
        return Err(fail("the workload has no readers of old data"));
    };
    let mut command = fio(env);
    command.args([
        "--readonly",
        "--rw=read",
        "--file_service_type=sequential",
        "--thread",
        "--group_reporting",
    ]);
    command.arg(format!("--bs={}", cold.max_bytes));
    let ranges: Vec<_> = match cold.behind_len {
        Some(len) => std::iter::once(log.len() - len..log.len()).collect(),
        None => {
            command.arg("--time_based").arg(format!("--runtime={}ms", ms(env.window_seconds(cell.workload))));
            let share = cell.plan.cold_len / cold.readers as u64;
            (0..cold.readers as u64).map(|reader| reader * share..(reader + 1) * share).collect()
        }
    };
    for (job, range) in ranges.iter().enumerate() {
        let files = log.file_ranges(range.clone()).into_iter().map(|(at, _)| name_of(log.path(at)));
        command.arg(format!("--name=reader-{job}"));
        command.arg(format!("--filename={}", files.collect::<Vec<_>>().join(":")));
    }
    let read = output(command, "read")?;
    let rate = read.len / 1e9 / read.seconds;
    let caught_up = cold.behind_len.map(|_| rate);
    let metrics = Metrics { catch_up_gb_per_s: caught_up, cold_gb_per_s: Some(rate), ..Metrics::default() };
    let note = format!("{} job(s), direct, {} KiB, depth 1, psync", ranges.len(), cold.max_bytes >> 10);
    Ok(round_of(cell, round, metrics, note, &read))
}

/// Over files of its own.
fn write(env: &Env, cell: &Cell<'_>, append: &Append, round: usize) -> Result<Round> {
    let dir = env.scratch.join(format!("{}-{}", cell.workload.name, cell.path.name));
    std::fs::create_dir_all(&dir).map_err(BenchError::file("create", &dir))?;
    let shape = shape_of(env, cell.workload, append);
    let mut command = fio(env);
    command.args(["--name=writer", "--rw=write", "--sync=dsync", "--thread", "--group_reporting"]);
    command.arg(format!("--numjobs={}", append.partitions));
    command.arg(format!("--directory={}", name_of(&dir)));
    if cell.path.calibration == Some(Calibration::Overwrite) {
        command.args(["--overwrite=1", "--time_based"]).arg(format!("--size={}", append.segment_len));
    } else {
        let share = cell.workload.disk_len_max(env.window_seconds(cell.workload)) / append.partitions as u64;
        command.arg("--fallocate=posix").arg(format!("--size={}", share.next_multiple_of(ALIGN)));
    }
    command.arg(format!("--bssplit={}", split(&shape)));
    command.arg(format!("--runtime={}ms", ms(env.window_seconds(cell.workload))));
    command.arg(format!("--ramp_time={}ms", ms(cell.workload.warmup_seconds)));
    let written = output(command, "write");
    let _ = std::fs::remove_dir_all(&dir);
    let written = written?;
    let metrics = Metrics { mb_per_s: Some(written.len / 1e6 / written.seconds), ..Metrics::default() };
    let note =
        format!("{} jobs, direct, dsync, depth 1, psync, bssplit {}", append.partitions, split(&shape));
    let mut round = round_of(cell, round, metrics, note, &written);
    round.extra.insert("write_len_mean", written.len / written.count);
    Ok(round)
}

fn ms(seconds: f64) -> u64 {
    (seconds * 1e3) as u64
}

/// Lengths of writes and how many of each.
type Shape = Vec<(u64, u64)>;

/// As the engine's commits came out, or, if it has not run, all that may be in flight of one partition.
fn shape_of(env: &Env, workload: &Workload, append: &Append) -> Shape {
    let full = append.batch_len * append.in_flight / append.partitions;
    env.write_shapes.get(&workload.name).cloned().unwrap_or_else(|| vec![(full as u64, 1)])
}

/// Remembers how long the writes of a path were, where they are what fio is to imitate. `writes` is count and bytes
/// by class of length.
pub(super) fn note_writes(env: &mut Env, cell: &Cell<'_>, writes: &[(u64, u64)]) {
    let shape: Shape =
        writes.iter().filter(|(count, _)| *count > 0).map(|(count, len)| (len / count, *count)).collect();
    if cell.path.name == SHAPED_LIKE && !shape.is_empty() {
        env.write_shapes.insert(cell.workload.name.clone(), shape);
    }
}

/// As fio's `bssplit` wants it: whole blocks, and percentages that make up 100.
fn split(shape: &Shape) -> String {
    let total: u64 = shape.iter().map(|(_, count)| count).sum();
    let (mut parts, mut seen, mut given) = (Vec::new(), 0, 0);
    for (len, count) in shape {
        seen += count;
        let share = seen * 100 / total.max(1) - given;
        given += share;
        if share > 0 {
            parts.push(format!("{}/{share}", len.next_multiple_of(ALIGN)));
        }
    }
    parts.join(":")
}

fn fio(env: &Env) -> Command {
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--direct=1", "--ioengine=psync"]);
    command.arg(format!("--cpus_allowed={}", env.server_core));
    command
}

/// fio takes a colon for the end of a name.
fn name_of(path: &Path) -> String {
    path.to_string_lossy().replace(':', "\\:")
}

/// Whether fio can be run here.
pub(super) fn is_available() -> bool {
    let version = Command::new("fio").arg("--version").stdin(Stdio::null()).output();
    version.is_ok_and(|output| output.status.success())
}

fn fail(why: &str) -> BenchError {
    BenchError::Process { who: "fio", why: why.to_string() }
}

fn round_of(cell: &Cell<'_>, round: usize, metrics: Metrics, note: String, job: &Job) -> Round {
    Round {
        workload: cell.workload.name.clone(),
        path: cell.path.name.to_string(),
        round,
        metrics,
        note,
        flags: Vec::new(),
        extra: BTreeMap::from([("seconds", job.seconds), ("server_cpu_share", job.cpu_share)]),
        latencies: histogram(),
        series: Vec::new(),
    }
}

/// What fio says of its jobs together. The CPU share is that of one of them.
struct Job {
    len: f64,
    count: f64,
    seconds: f64,
    cpu_share: f64,
}

fn output(mut command: Command, direction: &str) -> Result<Job> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| fail(&format!("cannot run: {error}")))?;
    parse(&output.stdout, direction)
        .ok_or_else(|| fail(&format!("said: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// fio may say something before its JSON.
fn parse(output: &[u8], direction: &str) -> Option<Job> {
    let start = output.iter().position(|byte| *byte == b'{')?;
    let value: Value = serde_json::from_slice(&output[start..]).ok()?;
    let job = value.get("jobs")?.get(0)?;
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_f64);
    let done = job.get(direction)?;
    let seconds = number(done, "runtime")? / 1e3;
    let cpu_share = (number(job, "usr_cpu")? + number(job, "sys_cpu")?) / 100.0;
    let (len, count) = (number(done, "io_bytes")?, number(done, "total_ios")?);
    (seconds > 0.0 && len > 0.0).then_some(Job { len, count, seconds, cpu_share })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields are found behind a warning, in the right direction, and a job that moved nothing is no result.
    #[test]
    fn output_is_understood() {
        let with = |bytes: u64| {
            format!(
                "fio: a warning\n{{\"jobs\": [{{\"usr_cpu\": 1.5, \"sys_cpu\": 8.5, \"read\": {{\"io_bytes\": {bytes}, \
                 \"total_ios\": 500, \"runtime\": 250}}, \"write\": {{\"io_bytes\": 0, \"total_ios\": 0, \"runtime\": \
                 0}}}}]}}\n"
            )
        };
        let read = parse(with(500_000_000).as_bytes(), "read").unwrap();
        assert_eq!((read.len, read.count, read.seconds), (5e8, 500.0, 0.25));
        assert!((read.cpu_share - 0.1).abs() < 1e-9);
        assert!(parse(with(500_000_000).as_bytes(), "write").is_none());
        assert!(parse(with(0).as_bytes(), "read").is_none());
        assert!(parse(b"fio: no such file", "read").is_none());
    }

    /// Lengths become whole blocks; shares make up 100, and what rounds to nothing is left out.
    #[test]
    fn shapes_become_splits() {
        assert_eq!(split(&vec![(60_000, 7)]), "61440/100");
        assert_eq!(split(&vec![(16_384, 1), (40_000, 1), (65_536, 1)]), "16384/33:40960/33:65536/34");
        assert_eq!(split(&vec![(4096, 1), (61_440, 999)]), "61440/100");
    }
}
