//! What a run produces: rounds, summaries with paired ratios, series, skipped cells, the host. RESULTS.md has
//! the schema; this module is its only writer.

pub mod figures;
pub mod host;
pub mod stats;
pub mod table;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::error::{BenchError, Result};
use crate::record::{Point, histogram};
use crate::results::stats::{Interval, median, ratio_interval};

/// Samples a pooled p99 needs to be printed.
pub const P99_SAMPLES_MIN: u64 = 10_000;
/// Samples a pooled p99.9 needs to be printed.
pub const P999_SAMPLES_MIN: u64 = 100_000;
/// Samples below which a round has no percentile of that rank at all: fewer than one value lies beyond it.
const ROUND_P99_SAMPLES_MIN: u64 = 100;
const ROUND_P999_SAMPLES_MIN: u64 = 1_000;

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident: $better:ident,)*) => {
        /// The measured fields of a round; `None` where a field does not apply or could not be measured.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct Metrics {
            $($(#[$doc])* pub $name: Option<f64>,)*
        }

        impl Metrics {
            /// The fields' names and which direction is better.
            pub const FIELDS: &'static [(&'static str, Better)] = &[$((stringify!($name), Better::$better)),*];

            /// The values in the order of [`Metrics::FIELDS`].
            pub fn values(&self) -> [Option<f64>; METRIC_COUNT] {
                [$(self.$name),*]
            }

            /// Metrics from values in the order of [`Metrics::FIELDS`].
            pub fn from_values(values: [Option<f64>; METRIC_COUNT]) -> Self {
                let [$($name),*] = values;
                Self { $($name),* }
            }
        }

        const METRIC_COUNT: usize = [$(stringify!($name)),*].len();
    };
}

/// Which direction of a field is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More is better.
    More,
    /// Less is better.
    Less,
    /// The field describes, it does not judge; no ratio is formed.
    Neither,
}

metrics! {
    /// Body bytes delivered, all readers, 1e9 bytes per second.
    gb_per_s: More,
    /// Bytes appended and acknowledged, 1e6 per second.
    mb_per_s: More,
    /// Responses to hot or tail readers per second.
    responses_per_s: More,
    /// Acknowledged appends per second.
    acks_per_s: More,
    /// Bytes appended to the flooded partition and acknowledged, 1e6 per second.
    flood_mb_per_s: More,
    /// Requests per second that the open loop meant to send.
    offered_per_s: Neither,
    /// Requests of these answered within the window, per second.
    served_per_s: More,
    /// Body bytes delivered to cold readers, 1e9 bytes per second.
    cold_gb_per_s: More,
    /// Log bytes per second at which readers that were behind caught up, 1e9 per second; that of the last of them.
    catch_up_gb_per_s: More,
    /// CPU seconds of the server process per 1e9 bytes delivered (fetch) or appended (append, tail).
    server_cpu_s_per_gb: Less,
    /// CPU microseconds of the server process per response (fetch) or acknowledged append.
    server_cpu_us_per_response: Less,
    /// CPU microseconds of the server process per 1e6 cold bytes, beyond what the hot load alone costs.
    server_cpu_us_per_cold_mb: Less,
    /// Seconds the server's core was busy with anything, per 1e9 bytes.
    server_core_busy_s_per_gb: Less,
    /// Median latency of the hot readers (fetch) or of the acknowledgement (append, tail).
    p50_us: Less,
    /// 99th percentile.
    p99_us: Less,
    /// 99.9th percentile.
    p999_us: Less,
    /// Longest.
    max_us: Less,
    /// Median time from an append's intended start to its last byte at a tail reader.
    e2e_p50_us: Less,
    /// 99th percentile of it.
    e2e_p99_us: Less,
    /// Median time of a lagging reader's fetch, from when it was due.
    lag_p50_us: Less,
    /// 99th percentile of it.
    lag_p99_us: Less,
    /// CPU of a server that nobody asks anything, as a share of one core.
    idle_cpu_share: Less,
    /// Share of the time in which its core counted as waiting for a device.
    idle_iowait_share: Less,
    /// Latencies behind the percentiles.
    samples: Neither,
    /// Calls into the kernel on the data path per response or acknowledgement.
    kernel_entries_per_response: Less,
    /// Kernel worker threads of the server's rings.
    iowq_threads_max: Neither,
    /// Share of zero-copy sends that the kernel copied.
    zc_copied_share: Neither,
    /// Bytes the corpus's device read.
    disk_read_bytes: Neither,
    /// Share of the hot range's pages in the page cache before the window.
    resident_before: Neither,
    /// The same after it.
    resident_after: Neither,
    /// Bytes by which the server's resident memory grew from before the first connection to the window's end.
    server_memory_growth_bytes: Neither,
}

/// Fields that are counts and are written without a fraction.
const COUNTS: &[&str] = &["samples", "iowq_threads_max", "disk_read_bytes"];

/// One window.
#[derive(Clone, Debug)]
pub struct Round {
    /// Workload.
    pub workload: String,
    /// Delivery path.
    pub path: String,
    /// From 0; rounds with the same number were taken close in time and are paired.
    pub round: usize,
    /// The fields.
    pub metrics: Metrics,
    /// What the path says about itself.
    pub note: String,
    /// What a reader of the numbers should know about this window.
    pub flags: Vec<String>,
    /// Further numbers, outside the documented set of ratios.
    pub extra: BTreeMap<&'static str, f64>,
    /// All latencies.
    pub latencies: Histogram<u64>,
    /// Twenty points a second.
    pub series: Vec<Point>,
}

/// All rounds of one path in one workload.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Workload.
    pub workload: String,
    /// Delivery path.
    pub path: String,
    /// Medians; percentiles pool all rounds and obey the sample gates.
    pub median: Metrics,
    /// Smallest round.
    pub min: Metrics,
    /// Largest round.
    pub max: Metrics,
    /// By baseline path, by field.
    pub ratio: BTreeMap<String, BTreeMap<&'static str, Interval>>,
    /// Rounds.
    pub round_count: usize,
    /// Every flag of a round, once.
    pub flags: Vec<String>,
    /// Latencies of all rounds.
    pub latencies: Histogram<u64>,
}

/// The latency fields of one round.
pub fn round_latencies(metrics: &mut Metrics, latencies: &Histogram<u64>) {
    let count = latencies.len();
    let at = |q: f64, min: u64| (count >= min).then(|| latencies.value_at_quantile(q) as f64 / 1e3);
    metrics.samples = Some(count as f64);
    metrics.p50_us = at(0.5, 1);
    metrics.p99_us = at(0.99, ROUND_P99_SAMPLES_MIN);
    metrics.p999_us = at(0.999, ROUND_P999_SAMPLES_MIN);
    metrics.max_us = (count > 0).then(|| latencies.max() as f64 / 1e3);
}

/// Sums up the rounds of one path, with ratios to each baseline's rounds.
pub fn summarize(rounds: &[&Round], baselines: &[(&str, Vec<&Round>)]) -> Option<Summary> {
    let first = rounds.first()?;
    let column = |field: usize| rounds.iter().filter_map(move |round| round.metrics.values()[field]);
    let per_field = |pick: &dyn Fn(Vec<f64>) -> Option<f64>| {
        Metrics::from_values(std::array::from_fn(|field| pick(column(field).collect())))
    };
    let mut pooled = histogram();
    for round in rounds {
        // The bounds are equal, so this cannot fail.
        let _ = pooled.add(&round.latencies);
    }
    let mut middle = per_field(&|values| median(&values));
    pool_latencies(&mut middle, &pooled);
    let mut flags: Vec<String> = rounds.iter().flat_map(|round| round.flags.clone()).collect();
    flags.sort();
    flags.dedup();
    let ratio = baselines
        .iter()
        .filter(|(name, _)| *name != first.path)
        .map(|(name, base)| (name.to_string(), ratios(rounds, base)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    Some(Summary {
        workload: first.workload.clone(),
        path: first.path.clone(),
        median: middle,
        min: per_field(&|values| values.into_iter().reduce(f64::min)),
        max: per_field(&|values| values.into_iter().reduce(f64::max)),
        ratio,
        round_count: rounds.len(),
        flags,
        latencies: pooled,
    })
}

/// Percentiles over all rounds, or none where there are too few samples.
pub fn pool_latencies(metrics: &mut Metrics, pooled: &Histogram<u64>) {
    round_latencies(metrics, pooled);
    if pooled.len() < P99_SAMPLES_MIN {
        metrics.p99_us = None;
    }
    if pooled.len() < P999_SAMPLES_MIN {
        metrics.p999_us = None;
    }
}

fn ratios(rounds: &[&Round], base: &[&Round]) -> BTreeMap<&'static str, Interval> {
    let mut by_field = BTreeMap::new();
    for (at, (field, better)) in Metrics::FIELDS.iter().enumerate() {
        if *better == Better::Neither {
            continue;
        }
        let paired: Vec<f64> = rounds
            .iter()
            .filter_map(|round| {
                let other = base.iter().find(|other| other.round == round.round)?;
                let (ours, theirs) = (round.metrics.values()[at]?, other.metrics.values()[at]?);
                (theirs > 0.0).then_some(ours / theirs)
            })
            .collect();
        if let Some(interval) = ratio_interval(&paired) {
            by_field.insert(*field, interval);
        }
    }
    by_field
}

fn number(field: &str, value: Option<f64>) -> Value {
    match value {
        None => Value::Null,
        Some(value) if COUNTS.contains(&field) => json!(value as u64),
        // Six significant digits are more than any window is good for.
        Some(value) => json!(format!("{value:.5e}").parse::<f64>().unwrap_or(value)),
    }
}

fn put_metrics(into: &mut Map<String, Value>, metrics: &Metrics, suffix: &str) {
    for ((field, _), value) in Metrics::FIELDS.iter().zip(metrics.values()) {
        into.insert(format!("{field}{suffix}"), number(field, value));
    }
}

impl Round {
    /// The `round` line.
    pub fn to_json(&self) -> Value {
        let mut line = Map::new();
        line.insert("kind".into(), json!("round"));
        line.insert("workload".into(), json!(self.workload));
        line.insert("path".into(), json!(self.path));
        line.insert("round".into(), json!(self.round));
        put_metrics(&mut line, &self.metrics, "");
        line.insert("note".into(), json!(self.note));
        line.insert("flags".into(), json!(self.flags));
        for (name, value) in &self.extra {
            line.insert((*name).into(), number(name, Some(*value)));
        }
        Value::Object(line)
    }

    /// The `series` line.
    pub fn series_json(&self) -> Value {
        json!({
            "kind": "series", "workload": self.workload, "path": self.path, "round": self.round,
            "points": self.series,
        })
    }
}

impl Summary {
    /// The `summary` line.
    pub fn to_json(&self) -> Value {
        let mut line = Map::new();
        line.insert("kind".into(), json!("summary"));
        line.insert("workload".into(), json!(self.workload));
        line.insert("path".into(), json!(self.path));
        line.insert("rounds".into(), json!(self.round_count));
        put_metrics(&mut line, &self.median, "");
        put_metrics(&mut line, &self.min, "_min");
        put_metrics(&mut line, &self.max, "_max");
        line.insert("ratio".into(), json!(self.ratio));
        line.insert("flags".into(), json!(self.flags));
        Value::Object(line)
    }
}

/// The `skipped` line.
pub fn skipped_json(workload: &str, path: Option<&str>, reason: &str) -> Value {
    json!({"kind": "skipped", "workload": workload, "path": path, "reason": reason})
}

/// The result file, written line by line, so that an interrupted run keeps what it measured.
pub struct ResultFile {
    path: PathBuf,
    file: File,
}

impl ResultFile {
    /// Creates the file, and its directory if need be.
    ///
    /// # Errors
    /// `File`, naming it.
    pub fn create(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(BenchError::file("create", dir))?;
        }
        let file = File::create(path).map_err(BenchError::file("create", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// `File`, naming it.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        writeln!(self.file, "{line}").map_err(BenchError::file("write", &self.path))
    }

    /// Writes a histogram in HdrHistogram's text format into `<file>.hgrm/<workload>.<path>.hgrm`.
    ///
    /// # Errors
    /// `File`, naming it.
    pub fn write_hgrm(&self, summary: &Summary) -> Result<()> {
        if summary.latencies.is_empty() {
            return Ok(());
        }
        let dir = self.path.with_extension("hgrm");
        std::fs::create_dir_all(&dir).map_err(BenchError::file("create", &dir))?;
        let path = dir.join(format!("{}.{}.hgrm", summary.workload, summary.path));
        std::fs::write(&path, stats::hgrm(&summary.latencies)).map_err(BenchError::file("write", &path))
    }
}

#[cfg(test)]
mod tests;
