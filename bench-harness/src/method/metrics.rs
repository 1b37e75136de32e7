//! From counters to the fields of a round, and to the flags that say what was odd about it.

use std::collections::BTreeMap;

use crate::method::window::Observed;
use crate::record::Recorded;
use crate::results::stats::median;
use crate::results::{Metrics, round_latencies};
use crate::workload::{Kind, Workload};

/// Stolen time, as a share of one core, above which a window says so.
const STEAL_SHARE_MAX: f64 = 0.015;
/// Time of the server's core that was not the server's, above which a window says so.
const FOREIGN_SHARE_MAX: f64 = 0.25;
/// Client CPU above which the client was the limit.
const CLIENT_SHARE_MAX: f64 = 0.95;
/// Share of the appends that were due in the window which must have been acknowledged in it.
const ACKED_SHARE_MIN: f64 = 0.98;
/// Share of the cold range that may be resident before a cold window.
const COLD_RESIDENT_MAX: f64 = 0.01;
/// Share of the hot range that must be resident.
const HOT_RESIDENT_MIN: f64 = 0.99;
/// Cold bytes may exceed what the disk delivered by this factor (partial pages, read-ahead at the ends).
const COLD_BEYOND_DISK_MAX: f64 = 1.05;

/// Cold bytes a second.
pub(super) fn cold_rate(observed: &Observed) -> Option<f64> {
    let seconds = observed.report.seconds;
    (seconds > 0.0 && observed.report.hot.cold_bytes > 0)
        .then(|| observed.report.hot.cold_bytes as f64 / seconds)
}

/// An engine's writes in the window, count and bytes by class of length.
pub(super) fn writes(observed: &Observed) -> Vec<(u64, u64)> {
    let [first, second] = &observed.marks;
    let both = first.writes.iter().zip(&second.writes);
    both.map(|((count, len), (count_then, len_then))| (count_then - count, len_then - len)).collect()
}

/// Whose latencies the round reports.
pub(super) fn latency_record(observed: &Observed) -> &Recorded {
    // A producer that is a client knows; the server of a baseline keeps an empty record then.
    let produced = observed.marks[1].produced.as_ref().map(|produced| &produced.acks);
    observed.report.acks.as_ref().or(produced).unwrap_or(&observed.report.hot)
}

/// The fields, the flags and the further numbers. `control` is the CPU share of the same path in the same round
/// without cold readers.
pub(super) fn derive(
    workload: &Workload,
    uses_page_cache: bool,
    observed: &Observed,
    control: Option<f64>,
) -> (Metrics, Vec<String>, BTreeMap<&'static str, f64>) {
    let [first, second] = &observed.marks;
    let seconds = (second.at_ns - first.at_ns) as f64 / 1e9;
    let cpu_s = (second.cpu_ns - first.cpu_ns) as f64 / 1e9;
    let busy_s = observed.counters[1].server_core_busy_s - observed.counters[0].server_core_busy_s;
    let mut metrics = Metrics::default();
    round_latencies(&mut metrics, &latency_record(observed).histogram());
    let (gb, count) = match workload.kind {
        Kind::Fetch => fetch_fields(workload, observed, &mut metrics),
        Kind::Append | Kind::Tail => append_fields(workload, observed, seconds, &mut metrics),
    };
    let per = |value: f64, by: f64| (by > 0.0).then_some(value / by);
    metrics.server_cpu_s_per_gb = per(cpu_s, gb);
    metrics.server_core_busy_s_per_gb = per(busy_s, gb);
    metrics.server_cpu_us_per_response = per(cpu_s * 1e6, count);
    metrics.kernel_entries_per_response = per((second.kernel_entries - first.kernel_entries) as f64, count);
    metrics.iowq_threads_max = Some(observed.iowq_threads as f64);
    metrics.zc_copied_share = second.zc.map(|(sends, copied)| copied as f64 / sends as f64);
    metrics.disk_read_bytes = difference(observed.counters.map(|c| c.disk_read_len));
    metrics.resident_before = observed.resident_before;
    metrics.resident_after = observed.resident_after;
    let [before, after] = observed.memory;
    metrics.server_memory_growth_bytes = before[0].zip(after[0]).map(|(before, after)| after - before);
    if workload.is_idle() {
        let [first, second] = &observed.counters;
        metrics.idle_cpu_share = Some(cpu_s / seconds);
        metrics.idle_iowait_share =
            Some((second.server_core_iowait_s - first.server_core_iowait_s) / seconds);
    }
    metrics.catch_up_gb_per_s = workload
        .catch_up_len()
        .zip(observed.report.caught_up_s)
        .map(|(len, seconds)| len as f64 / 1e9 / seconds);
    let mut flags = flags(workload, observed, seconds, cpu_s, busy_s, &metrics);
    if !uses_page_cache {
        flags.retain(|flag| !flag.starts_with("hot-"));
    }
    if let Some(rate) = metrics.cold_gb_per_s.filter(|rate| *rate > 0.0) {
        metrics.server_cpu_us_per_cold_mb =
            Some((cpu_s / seconds - control.unwrap_or(0.0)).max(0.0) * 1e3 / rate);
        if control.is_none() {
            flags.push("cold-cpu-includes-hot".to_string());
        }
    }
    let mut extra = extra(observed, seconds, cpu_s, busy_s);
    extra.extend(step_medians(workload, observed));
    (metrics, flags, extra)
}

fn difference(values: [Option<u64>; 2]) -> Option<f64> {
    let [first, second] = values;
    Some(second?.saturating_sub(first?) as f64)
}

/// Returns gigabytes and responses that costs are divided by.
fn fetch_fields(workload: &Workload, observed: &Observed, metrics: &mut Metrics) -> (f64, f64) {
    let report = &observed.report;
    let seconds = report.seconds;
    let bytes = report.hot.bytes + report.hot.cold_bytes;
    let in_window = report.hot.count - report.answered_late - report.unanswered;
    metrics.gb_per_s = Some(bytes as f64 / 1e9 / seconds);
    metrics.responses_per_s = Some(in_window as f64 / seconds);
    if workload.hot.as_ref().is_some_and(|hot| hot.rate_per_s.is_some()) {
        metrics.offered_per_s = Some(report.offered as f64 / seconds);
        metrics.served_per_s = Some(in_window as f64 / seconds);
    }
    if workload.is_cold() {
        metrics.cold_gb_per_s = Some(report.hot.cold_bytes as f64 / 1e9 / seconds);
    }
    (bytes as f64 / 1e9, (in_window + report.cold_responses) as f64)
}

fn append_fields(
    workload: &Workload,
    observed: &Observed,
    seconds: f64,
    metrics: &mut Metrics,
) -> (f64, f64) {
    let acks = latency_record(observed);
    let report = &observed.report;
    metrics.mb_per_s = Some(acks.bytes as f64 / 1e6 / seconds);
    metrics.acks_per_s = Some(acks.count as f64 / seconds);
    if workload.kind == Kind::Tail {
        metrics.gb_per_s = Some(report.hot.bytes as f64 / 1e9 / report.seconds);
        metrics.responses_per_s = Some(report.hot.count as f64 / report.seconds);
    }
    if workload.is_cold() {
        metrics.cold_gb_per_s = Some(report.hot.cold_bytes as f64 / 1e9 / report.seconds);
    }
    if workload.append.as_ref().is_some_and(|append| append.flood.is_some()) {
        metrics.flood_mb_per_s = Some(acks.cold_bytes as f64 / 1e6 / seconds);
    }
    if let Some(rate) = workload.append.as_ref().and_then(|append| append.rate_per_s) {
        metrics.offered_per_s = Some(rate);
        metrics.served_per_s = metrics.acks_per_s;
    }
    [metrics.e2e_p50_us, metrics.e2e_p99_us] = percentiles(&report.end_to_end);
    if workload.is_lagging() {
        [metrics.lag_p50_us, metrics.lag_p99_us] = percentiles(&report.hot);
    }
    ((acks.bytes + acks.cold_bytes) as f64 / 1e9, acks.count as f64)
}

/// Median and 99th percentile of a record of their own.
fn percentiles(recorded: &Recorded) -> [Option<f64>; 2] {
    let mut metrics = Metrics::default();
    round_latencies(&mut metrics, &recorded.histogram());
    [metrics.p50_us, metrics.p99_us]
}

fn flags(
    workload: &Workload,
    observed: &Observed,
    seconds: f64,
    cpu_s: f64,
    busy_s: f64,
    metrics: &Metrics,
) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |raised: bool, name: &str| {
        if raised {
            flags.push(name.to_string());
        }
    };
    let steal_s = observed.counters[1].steal_s - observed.counters[0].steal_s;
    flag(steal_s / seconds > STEAL_SHARE_MAX, "steal");
    flag((busy_s - cpu_s) / seconds > FOREIGN_SHARE_MAX, "foreign-load");
    flag(observed.report.client_cpu_ns as f64 / 1e9 / seconds > CLIENT_SHARE_MAX, "client-bound");
    flag(observed.report.unanswered > 0, "unanswered");
    flag(observed.report.cold_wraps > 0, "cold-wrapped");
    let behind = metrics.offered_per_s.zip(metrics.acks_per_s);
    flag(behind.is_some_and(|(offered, acked)| acked < offered * ACKED_SHARE_MIN), "behind");
    let cold_enough = |share: f64| share <= COLD_RESIDENT_MAX;
    if workload.kind == Kind::Fetch {
        flag(observed.resident_before.is_none_or(|share| share < HOT_RESIDENT_MIN), "hot-not-resident");
        flag(observed.resident_after.is_none_or(|share| share < HOT_RESIDENT_MIN), "hot-evicted");
        let behind = workload.catch_up_len().is_some();
        flag(behind && observed.report.caught_up_s.is_none(), "not-caught-up");
    }
    if workload.is_cold() {
        flag(!observed.cold_resident_before.is_some_and(cold_enough), "not-cold");
        // Readers that are equally far behind may share what the disk delivered.
        let behind = workload.catch_up_len().is_some();
        let sharers = if behind { workload.cold.as_ref().map_or(1, |cold| cold.readers) } else { 1 };
        let cold_bytes = observed.report.hot.cold_bytes as f64 / sharers as f64;
        let beyond = metrics.disk_read_bytes.is_none_or(|read| cold_bytes > read * COLD_BEYOND_DISK_MAX);
        flag(cold_bytes > 0.0 && beyond, "cold-beyond-disk");
    }
    flags
}

/// Hot latency before, during and after cold readers that come and go: medians over the points of the series, so
/// that each point counts alike.
fn step_medians(workload: &Workload, observed: &Observed) -> Vec<(&'static str, f64)> {
    let Some((from, until)) =
        workload.cold.as_ref().and_then(|cold| cold.from_seconds.zip(cold.until_seconds))
    else {
        return Vec::new();
    };
    let (from, until) = ((from * 1e3) as u64, (until * 1e3) as u64);
    let spans = [
        ("step_p50_us_before", 0..from),
        ("step_p50_us_during", from..until),
        ("step_p50_us_after", until..u64::MAX),
    ];
    let points = &observed.report.hot.series;
    let of = |span: &std::ops::Range<u64>| {
        let within = points.iter().filter(|point| span.contains(&(point.t_ms - 1)));
        median(&within.filter_map(|point| point.p50_us).collect::<Vec<_>>())
    };
    spans.iter().filter_map(|(name, span)| Some((*name, of(span)?))).collect()
}

fn extra(observed: &Observed, seconds: f64, cpu_s: f64, busy_s: f64) -> BTreeMap<&'static str, f64> {
    let mut extra = BTreeMap::new();
    let [first, second] = &observed.counters;
    extra.insert("seconds", seconds);
    extra.insert("server_cpu_share", cpu_s / seconds);
    extra.insert("server_core_busy_share", busy_s / seconds);
    extra.insert("client_core_busy_share", (second.client_core_busy_s - first.client_core_busy_s) / seconds);
    extra.insert("client_cpu_share", observed.report.client_cpu_ns as f64 / 1e9 / seconds);
    extra.insert("steal_share", (second.steal_s - first.steal_s) / seconds);
    extra.insert("backed_bytes", observed.backed_len as f64);
    extra.insert("unanswered", observed.report.unanswered as f64);
    extra.insert("answered_late", observed.report.answered_late as f64);
    if let Some(written) = difference([first.disk_write_len, second.disk_write_len]) {
        extra.insert("disk_write_bytes", written);
        let acked = latency_record(observed).bytes as f64;
        if observed.marks[1].produced.is_some() && acked > 0.0 {
            extra.insert("disk_write_per_acked_byte", written / acked);
        }
    }
    let (count, len) = writes(observed).iter().fold((0, 0), |(a, b), (count, len)| (a + count, b + len));
    if count > 0 {
        extra.insert("write_len_mean", len as f64 / count as f64);
        extra.insert("writes_per_s", count as f64 / seconds);
    }
    let names = [
        ["server_resident_bytes_before", "tcp_bytes_before"],
        ["server_resident_bytes_after", "tcp_bytes_after"],
    ];
    for (name, value) in names.into_iter().flatten().zip(observed.memory.into_iter().flatten()) {
        extra.extend(value.map(|value| (name, value)));
    }
    if let Some(share) = observed.cold_resident_before {
        extra.insert("cold_resident_before", share);
    }
    extra
}
