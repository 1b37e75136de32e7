//! The table of the README, made from the committed result files, so that no figure there is typed by hand.
//!
//! Which rows there are stands in `results/figures`; this module only looks the paired ratios up and marks them: bold
//! for a loss, `~` where the interval holds 1, nothing where a path was not measured.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{BenchError, Result};
use crate::results::{Better, Metrics};

/// One row of `results/figures`.
struct Row<'a> {
    file: &'a str,
    workload: &'a str,
    what: &'a str,
    field: &'a str,
    better: Better,
    baseline: &'a str,
}

/// The `summary` lines of one result file, by workload and path.
type Summaries = BTreeMap<(String, String), Value>;

/// The Markdown table of `dir/figures` over the result files in `dir`, a column for each of `paths`.
///
/// # Errors
/// `File` if `dir/figures` cannot be read, `Usage` for a line of it or of a result file that makes no sense.
pub fn render(dir: &Path, paths: &[String]) -> Result<String> {
    let list = dir.join("figures");
    let text = std::fs::read_to_string(&list).map_err(BenchError::file("read", &list))?;
    let mut files = BTreeMap::new();
    let mut table = format!("| workload | what | {} | against |\n|---|---|", paths.join(" | "));
    table.push_str(&"---|".repeat(paths.len() + 1));
    table.push('\n');
    for row in rows(&text)? {
        if !files.contains_key(row.file) {
            files.insert(row.file, summaries(&dir.join(row.file).with_extension("jsonl"))?);
        }
        let cells: Vec<_> = paths.iter().map(|path| cell(&files[row.file], &row, path)).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            let cells = cells.join(" | ");
            table.push_str(&format!("| {} | {} | {cells} | `{}` |\n", row.workload, row.what, row.baseline));
        }
    }
    Ok(table)
}

fn rows(text: &str) -> Result<Vec<Row<'_>>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let wrong = |why: &str| BenchError::Usage(format!("results/figures: {why}: {line}"));
            let columns: Vec<_> = line.split('|').map(str::trim).collect();
            let [file, workload, what, field, baseline] = columns[..] else {
                return Err(wrong("five columns are wanted"));
            };
            let known = Metrics::FIELDS.iter().find(|(name, _)| *name == field);
            let better = known.map(|(_, better)| *better).filter(|better| *better != Better::Neither);
            let better = better.ok_or_else(|| wrong("no such field, or one without ratios"))?;
            Ok(Row { file, workload, what, field, better, baseline })
        })
        .collect()
}

/// Empty for a file that is not there.
fn summaries(path: &Path) -> Result<Summaries> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(Summaries::new()) };
    let mut summaries = Summaries::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line)
            .map_err(|error| BenchError::Usage(format!("{}: {error}", path.display())))?;
        let name = |key: &str| value[key].as_str().unwrap_or_default().to_string();
        if value["kind"] == "summary" {
            summaries.insert((name("workload"), name("path")), value);
        }
    }
    Ok(summaries)
}

fn cell(summaries: &Summaries, row: &Row<'_>, path: &str) -> String {
    let Some(summary) = summaries.get(&(row.workload.to_string(), path.to_string())) else {
        return String::new();
    };
    let ratio = &summary["ratio"][row.baseline][row.field];
    let numbers = ["median", "low", "high"].map(|key| ratio[key].as_f64());
    let [Some(median), Some(low), Some(high)] = numbers else { return String::new() };
    let range = format!("[{}-{}]", short(low), short(high));
    let is_loss = if row.better == Better::More { high < 1.0 } else { low > 1.0 };
    match (low..=high).contains(&1.0) {
        true => format!("{} {range} ~", short(median)),
        false if is_loss => format!("**{}** {range}", short(median)),
        false => format!("{} {range}", short(median)),
    }
}

/// Three digits.
fn short(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = r#"{"kind":"summary","workload":"w","path":"engine","ratio":{"base":{
        "p50_us":{"median":0.5,"low":0.4,"high":0.6,"n":5},
        "p99_us":{"median":1.5,"low":1.4,"high":1.6,"n":5},
        "gb_per_s":{"median":0.95,"low":0.9,"high":1.1,"n":5},
        "acks_per_s":{"median":12.34,"low":11.0,"high":13.0,"n":5}}}}"#;

    /// Gains, losses and what shows no difference are told apart by the direction of the field; a row that was not
    /// measured is left out.
    #[test]
    fn losses_are_bold_and_ties_are_marked() {
        let dir = tempfile::tempdir().unwrap();
        let line = |field: &str| format!("file | w | {field} | {field} | base\n");
        let rows = ["p50_us", "p99_us", "gb_per_s", "acks_per_s", "mb_per_s"].map(line).concat();
        std::fs::write(dir.path().join("figures"), format!("# a remark\n{rows}")).unwrap();
        std::fs::write(dir.path().join("file.jsonl"), SUMMARY.replace('\n', " ")).unwrap();
        let table = render(dir.path(), &["engine".into(), "other".into()]).unwrap();
        let lines: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| w | p50_us | 0.50 [0.40-0.60] |  | `base` |",
                "| w | p99_us | **1.50** [1.40-1.60] |  | `base` |",
                "| w | gb_per_s | 0.95 [0.90-1.10] ~ |  | `base` |",
                "| w | acks_per_s | 12.3 [11.0-13.0] |  | `base` |",
            ]
        );
    }

    /// The committed list parses: every field has a direction, every workload and baseline exists.
    #[test]
    fn the_committed_rows_are_right() {
        let rows = rows(include_str!("../../results/figures")).unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            crate::workload::Workload::select(&[row.workload.to_string()]).unwrap();
            crate::paths::find(row.baseline).unwrap();
        }
    }

    /// A line that makes no sense is named.
    #[test]
    fn nonsense_is_named() {
        for line in ["a | b | c | p50_us", "a | b | c | nonsense | d", "a | b | c | samples | d"] {
            assert!(rows(line).err().unwrap().to_string().contains(line));
        }
    }
}
