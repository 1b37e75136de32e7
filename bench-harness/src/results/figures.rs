//! The table of the README, made from the committed result files, so that no figure there is typed by hand.
//!
//! Which rows there are stands in `results/figures`; this module only looks the paired ratios up and marks them: bold
//! for a loss, `~` where the interval holds 1, nothing where a path was not measured. A row may compare with another
//! workload instead of another path: the same path with and without what the workload is about. That is no loss.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{BenchError, Result};
use crate::results::stats::{Interval, ratio_interval};
use crate::results::{Better, Metrics};
use crate::workload::Workload;

/// One row of `results/figures`.
struct Row<'a> {
    file: &'a str,
    workload: &'a str,
    what: &'a str,
    field: &'a str,
    better: Better,
    /// A path, or a workload.
    against: &'a str,
}

/// One result file, by workload and path.
#[derive(Default)]
struct Results {
    summaries: BTreeMap<(String, String), Value>,
    /// By number.
    rounds: BTreeMap<(String, String), BTreeMap<u64, Value>>,
}

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
            files.insert(row.file, load(&dir.join(row.file).with_extension("jsonl"))?);
        }
        let cells: Vec<_> = paths.iter().map(|path| cell(&files[row.file], &row, path)).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            let cells = cells.join(" | ");
            table.push_str(&format!("| {} | {} | {cells} | `{}` |\n", row.workload, row.what, row.against));
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
            let [file, workload, what, field, against] = columns[..] else {
                return Err(wrong("five columns are wanted"));
            };
            let known = Metrics::FIELDS.iter().find(|(name, _)| *name == field);
            let better = known.map(|(_, better)| *better).filter(|better| *better != Better::Neither);
            let better = better.ok_or_else(|| wrong("no such field, or one without ratios"))?;
            Ok(Row { file, workload, what, field, better, against })
        })
        .collect()
}

/// Empty for a file that is not there.
fn load(path: &Path) -> Result<Results> {
    let mut results = Results::default();
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(results) };
    for line in text.lines() {
        let value: Value = serde_json::from_str(line)
            .map_err(|error| BenchError::Usage(format!("{}: {error}", path.display())))?;
        let name = |key: &str| value[key].as_str().unwrap_or_default().to_string();
        let key = (name("workload"), name("path"));
        if value["kind"] == "summary" {
            results.summaries.insert(key, value);
        } else if value["kind"] == "round" {
            let number = value["round"].as_u64().unwrap_or_default();
            results.rounds.entry(key).or_default().insert(number, value);
        }
    }
    Ok(results)
}

/// This path's paired ratio to another path, as its summary has it.
fn to_path(results: &Results, row: &Row<'_>, path: &str) -> Option<Interval> {
    let summary = results.summaries.get(&(row.workload.to_string(), path.to_string()))?;
    let ratio = &summary["ratio"][row.against][row.field];
    let number = |key: &str| ratio[key].as_f64();
    let n = ratio["n"].as_u64()? as usize;
    Some(Interval { median: number("median")?, low: number("low")?, high: number("high")?, n })
}

/// This path's ratio to itself in another workload, by rounds.
fn to_workload(results: &Results, row: &Row<'_>, path: &str) -> Option<Interval> {
    let rounds = |workload: &str| results.rounds.get(&(workload.to_string(), path.to_string()));
    let (with, without) = (rounds(row.workload)?, rounds(row.against)?);
    let paired = with.iter().filter_map(|(number, round)| {
        let alone = without.get(number)?[row.field].as_f64().filter(|alone| *alone > 0.0)?;
        Some(round[row.field].as_f64()? / alone)
    });
    ratio_interval(&paired.collect::<Vec<_>>())
}

fn cell(results: &Results, row: &Row<'_>, path: &str) -> String {
    let is_workload = Workload::select(&[row.against.to_string()]).is_ok();
    let ratio = if is_workload { to_workload } else { to_path };
    let Some(Interval { median, low, high, .. }) = ratio(results, row, path) else { return String::new() };
    let range = format!("[{}-{}]", short(low), short(high));
    let is_loss = if row.better == Better::More { high < 1.0 } else { low > 1.0 };
    match (low..=high).contains(&1.0) {
        true => format!("{} {range} ~", short(median)),
        false if is_loss && !is_workload => format!("**{}** {range}", short(median)),
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

    /// A path is held against itself in another workload, round by round; worse than alone is no loss, and a round
    /// that only one of the two has takes no part.
    #[test]
    fn a_path_is_compared_with_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let row = "file | backfill-1 | hot p50 | p50_us | backfill-0";
        std::fs::write(dir.path().join("figures"), row).unwrap();
        let round = |workload: &str, number: u64, p50: f64| {
            format!(
                r#"{{"kind":"round","workload":"{workload}","path":"engine","round":{number},"p50_us":{p50}}}"#
            )
        };
        let rounds = [
            round("backfill-0", 1, 100.0),
            round("backfill-1", 1, 150.0),
            round("backfill-1", 2, 360.0),
            round("backfill-0", 2, 200.0),
            round("backfill-0", 3, 1.0),
        ];
        std::fs::write(dir.path().join("file.jsonl"), rounds.join("\n")).unwrap();
        let table = render(dir.path(), &["engine".into(), "other".into()]).unwrap();
        let expected = "| backfill-1 | hot p50 | 1.65 [1.50-1.80] |  | `backfill-0` |";
        assert_eq!(table.lines().nth(2), Some(expected));
    }

    /// The committed list parses: every field has a direction, every workload exists, and what it is held against.
    #[test]
    fn the_committed_rows_are_right() {
        let rows = rows(include_str!("../../results/figures")).unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            Workload::select(&[row.workload.to_string()]).unwrap();
            let is_workload = Workload::select(&[row.against.to_string()]).is_ok();
            assert!(is_workload != crate::paths::find(row.against).is_ok(), "{}", row.against);
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
