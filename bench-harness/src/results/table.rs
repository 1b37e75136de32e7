//! The report on the terminal: one table per workload, then every cell in which one of our paths loses.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::paths::{PATHS, Role};
use crate::results::stats::{Interval, coverage};
use crate::results::{Better, Metrics, Summary};
use crate::workload::{Kind, Workload};

/// Which baseline a workload's ratio columns refer to.
fn reference(workload: &Workload) -> &'static str {
    match workload.kind {
        Kind::Fetch => "sendfile_epoll",
        Kind::Append if !workload.has_schedule() => "write_fdatasync",
        Kind::Append => "write_group_fdatasync",
        Kind::Tail => "write_group_fdatasync",
    }
}

/// Columns: heading, field, decimals.
fn columns(workload: &Workload) -> Vec<(&'static str, &'static str, usize)> {
    match workload.kind {
        Kind::Fetch if workload.hot.as_ref().is_some_and(|hot| hot.rate_per_s.is_some()) => {
            let mut columns = vec![
                ("hot p50 us", "p50_us", 0),
                ("hot p99 us", "p99_us", 0),
                ("served/s", "served_per_s", 0),
                ("CPU s/GB", "server_cpu_s_per_gb", 3),
            ];
            if workload.is_cold() {
                columns.push(("cold GB/s", "cold_gb_per_s", 2));
                columns.push(("CPU us/cold MB", "server_cpu_us_per_cold_mb", 0));
            }
            if workload.catch_up_len().is_some() {
                columns.push(("catch-up GB/s", "catch_up_gb_per_s", 2));
            }
            if workload.stalled.is_some() {
                columns.push(("memory grown by", "server_memory_growth_bytes", 0));
            }
            columns
        }
        Kind::Fetch if workload.is_idle() => vec![
            ("CPU share", "idle_cpu_share", 5),
            ("iowait share", "idle_iowait_share", 3),
            ("memory grown by", "server_memory_growth_bytes", 0),
        ],
        Kind::Fetch => vec![
            ("GB/s", "gb_per_s", 2),
            ("responses/s", "responses_per_s", 0),
            ("service p50 us", "p50_us", 0),
            ("p99 us", "p99_us", 0),
            ("CPU s/GB", "server_cpu_s_per_gb", 3),
            ("calls/resp", "kernel_entries_per_response", 2),
        ],
        Kind::Append | Kind::Tail => append_columns(workload),
    }
}

fn append_columns(workload: &Workload) -> Vec<(&'static str, &'static str, usize)> {
    let mut columns = vec![
        ("MB/s in", "mb_per_s", 0),
        ("acks/s", "acks_per_s", 0),
        ("ack p50 us", "p50_us", 0),
        ("p99 us", "p99_us", 0),
    ];
    let is_rated = workload.append.as_ref().is_some_and(|append| append.rate_per_s.is_some());
    if workload.is_lagging() {
        columns.push(("GB/s out", "gb_per_s", 3));
        columns.push(("fetch p50 us", "lag_p50_us", 0));
        columns.push(("p99 us", "lag_p99_us", 0));
    } else if is_rated && workload.kind == Kind::Tail {
        columns.push(("end-to-end p50 us", "e2e_p50_us", 0));
        columns.push(("p99 us", "e2e_p99_us", 0));
    }
    if workload.append.as_ref().is_some_and(|append| append.flood.is_some()) {
        columns.push(("flood MB/s", "flood_mb_per_s", 0));
    }
    if workload.is_cold() {
        columns.push(("cold GB/s", "cold_gb_per_s", 2));
        columns.push(("CPU us/cold MB", "server_cpu_us_per_cold_mb", 0));
    }
    columns.push(("CPU s/GB in", "server_cpu_s_per_gb", 3));
    columns.push(("calls/ack", "kernel_entries_per_response", 2));
    columns
}

/// The fields whose ratios stand beside them.
fn ratio_columns(workload: &Workload) -> [(&'static str, &'static str); 2] {
    match workload.kind {
        Kind::Fetch if workload.hot.as_ref().is_some_and(|hot| hot.rate_per_s.is_some()) => {
            [("p50", "p50_us"), ("CPU", "server_cpu_s_per_gb")]
        }
        Kind::Fetch if workload.is_idle() => [("CPU", "idle_cpu_share"), ("iowait", "idle_iowait_share")],
        Kind::Fetch => [("GB/s", "gb_per_s"), ("CPU", "server_cpu_s_per_gb")],
        _ if workload.is_lagging() => [("GB/s out", "gb_per_s"), ("CPU", "server_cpu_s_per_gb")],
        _ if workload.has_schedule() => [("ack p50", "p50_us"), ("CPU", "server_cpu_s_per_gb")],
        Kind::Append | Kind::Tail => [("MB/s", "mb_per_s"), ("CPU", "server_cpu_s_per_gb")],
    }
}

fn value_of(metrics: &Metrics, field: &str) -> Option<f64> {
    let at = Metrics::FIELDS.iter().position(|(name, _)| *name == field)?;
    metrics.values()[at]
}

fn ratio_text(interval: Option<&Interval>) -> String {
    interval.map_or_else(String::new, |i| {
        let mark = if i.holds_one() { " ~" } else { "" };
        format!("{:.2} [{:.2}-{:.2}]{mark}", i.median, i.low, i.high)
    })
}

/// The table of one workload.
pub fn render(workload: &Workload, summaries: &[&Summary]) -> String {
    let reference = reference(workload);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.load_preset(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    }
    let columns = columns(workload);
    let ratios = ratio_columns(workload);
    let mut header = vec![workload.name.clone()];
    header.extend(columns.iter().map(|(heading, ..)| (*heading).to_string()));
    header.extend(ratios.iter().map(|(heading, _)| format!("{heading} x {reference}")));
    header.push("flags".to_string());
    table.set_header(header);
    for summary in summaries {
        let mut row = vec![summary.path.clone()];
        row.extend(columns.iter().map(|(_, field, decimals)| {
            value_of(&summary.median, field).map_or("-".to_string(), |value| format!("{value:.decimals$}"))
        }));
        let against = summary.ratio.get(reference);
        row.extend(ratios.iter().map(|(_, field)| ratio_text(against.and_then(|fields| fields.get(field)))));
        row.push(summary.flags.join(" "));
        table.add_row(row);
    }
    for at in 1..=columns.len() {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let rounds = summaries.iter().map(|summary| summary.round_count).max().unwrap_or(0);
    format!(
        "{table}\n{} - medians of {rounds} round(s), paired ratios [interval of {:.0} % coverage]; ~ no \
         difference shown\n",
        workload.about,
        coverage(rounds) * 100.0
    )
}

/// One line per field in which one of our paths is shown to be worse than a baseline.
pub fn losing_cells(summaries: &[Summary]) -> Vec<String> {
    let ours = |path: &str| PATHS.iter().any(|row| row.name == path && row.role == Role::Engine);
    let mut lines = Vec::new();
    for summary in summaries.iter().filter(|summary| ours(&summary.path)) {
        for (baseline, fields) in &summary.ratio {
            for (field, interval) in fields {
                let better =
                    Metrics::FIELDS.iter().find(|(name, _)| name == field).map(|(_, better)| *better);
                let loses = match better {
                    Some(Better::More) => interval.high < 1.0,
                    Some(Better::Less) => interval.low > 1.0,
                    _ => false,
                };
                if loses && interval.n > 1 {
                    lines.push(format!(
                        "{} {} {field}: {} of {baseline}",
                        summary.workload,
                        summary.path,
                        ratio_text(Some(interval))
                    ));
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every column names a field that exists.
    #[test]
    fn columns_name_fields() {
        for workload in Workload::all() {
            let fields = columns(&workload).into_iter().map(|(_, field, _)| field);
            for field in fields.chain(ratio_columns(&workload).map(|(_, field)| field)) {
                assert!(Metrics::FIELDS.iter().any(|(name, _)| *name == field), "{field}");
            }
        }
    }

    /// An interval that holds 1 is marked, one that does not is not.
    #[test]
    fn no_difference_is_marked() {
        let interval = |low, high| Interval { median: 1.1, low, high, n: 5 };
        assert_eq!(ratio_text(Some(&interval(0.9, 1.2))), "1.10 [0.90-1.20] ~");
        assert_eq!(ratio_text(Some(&interval(1.05, 1.2))), "1.10 [1.05-1.20]");
        assert_eq!(ratio_text(None), "");
    }
}
