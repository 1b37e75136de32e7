//! `rohrpost-bench flame`: where a path's server process spends its time under a workload.
//!
//! The workload runs as in `run`, rounds and all; each server samples itself in the window. Samples of all rounds are
//! folded into one picture a path, with a record beside it: host, command, sampler, share of unknown frames, and the
//! rounds' own figures (slower by the sampling).

mod choose;
mod draw;
pub mod sampler;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{BenchError, Result};
use crate::method::{self, RunOptions};
use crate::results::ResultFile;
use draw::Folded;
use sampler::{Order, Sampler};

/// Above this share of samples with unknown frames a picture says so: 0 to 1.
pub const UNKNOWN_SHARE_MAX: f64 = 0.05;

/// What to draw beside [`RunOptions`], which hold one workload and one or two paths.
pub struct Settings {
    /// Directory for pictures and records.
    pub out: PathBuf,
    /// Samples per second of CPU.
    pub hz: u32,
    /// The arguments that made it, without directories, for the record.
    pub command: String,
}

/// Removes the samples however the run ends.
struct Samples(PathBuf);

impl Drop for Samples {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs, samples and draws: one picture a path; with two paths a third, of the first as it differs from the second.
///
/// # Errors
/// What kept a path from running or being sampled.
pub fn run(mut options: RunOptions, settings: &Settings) -> Result<()> {
    let (sampler, remark) = choose::choose();
    if let Some(remark) = &remark {
        eprintln!("rohrpost-bench: {remark}");
    }
    let samples = Samples(options.data_dir.join(format!("samples-{}", std::process::id())));
    std::fs::create_dir_all(&samples.0).map_err(BenchError::file("create", &samples.0))?;
    std::fs::create_dir_all(&settings.out).map_err(BenchError::file("create", &settings.out))?;
    options.json = samples.0.join("results.jsonl");
    options.sample = Some(Order { sampler, hz: settings.hz, dir: samples.0.clone() });
    let outcome = method::run(&options)?;
    if let Some((workload, path, why)) = outcome.skipped.first() {
        let path = path.as_deref().unwrap_or("every path");
        return Err(BenchError::Usage(format!("{path} cannot run {workload}: {why}")));
    }
    let lines = read_results(&options.json)?;
    let mut pictures = Vec::new();
    for path in &options.paths {
        let picture = Picture::draw(&options.workloads[0].name, path.name, &lines, sampler, &samples.0)?;
        picture.write(&lines, settings)?;
        pictures.push(picture);
    }
    if let [path, other] = &pictures[..] {
        path.write_difference(other, settings)?;
    }
    Ok(())
}

/// One path's samples.
struct Picture {
    workload: String,
    path: &'static str,
    folded: Folded,
    sampler: Sampler,
    kernel: String,
}

impl Picture {
    fn draw(
        workload: &str,
        path: &'static str,
        lines: &[Value],
        sampler: Sampler,
        dir: &Path,
    ) -> Result<Self> {
        let folded = Folded::read(&samples_of(dir, path)?, sampler)?;
        if folded.samples == 0 {
            let why = format!("{path} was sampled ({}), and there is not one sample", sampler.name());
            return Err(BenchError::Process { who: "server", why });
        }
        let kernel = lines.iter().find_map(|line| line["kernel"].as_str()).unwrap_or("unknown kernel");
        Ok(Self { workload: workload.to_string(), path, folded, sampler, kernel: kernel.to_string() })
    }

    fn subtitle(&self) -> String {
        format!(
            "Linux {}; {}; {} samples, {:.1} % with unknown frames",
            self.kernel,
            self.sampler.name(),
            self.folded.samples,
            self.folded.unknown_share() * 100.0
        )
    }

    fn write(&self, lines: &[Value], settings: &Settings) -> Result<()> {
        let name = format!("{}-{}", self.workload, self.path);
        let title = format!("{}, {}", self.workload, self.path);
        let svg = draw::svg(&self.folded, None, &title, &self.subtitle())?;
        write_file(&settings.out.join(format!("{name}.svg")), &svg)?;
        let mut record = ResultFile::create(&settings.out.join(format!("{name}.jsonl")))?;
        for line in lines.iter().filter(|line| line["kind"] == "host") {
            record.write(line)?;
        }
        record.write(&json!({
            "kind": "flame",
            "workload": self.workload,
            "path": self.path,
            "command": settings.command,
            "sampler": self.sampler.name(),
            "hz": settings.hz,
            "samples": self.folded.samples,
            "unknown_share": self.folded.unknown_share(),
        }))?;
        let is_round = |line: &&Value| line["kind"] == "round" && line["path"] == self.path;
        for line in lines.iter().filter(is_round) {
            record.write(line)?;
        }
        println!("{name}.svg: {}", self.subtitle());
        if self.folded.unknown_share() > UNKNOWN_SHARE_MAX {
            println!("  build with RUSTFLAGS=-Cforce-frame-pointers=yes for fewer unknown frames");
        }
        Ok(())
    }

    fn write_difference(&self, other: &Self, settings: &Settings) -> Result<()> {
        let name = format!("{}-{}-against-{}", self.workload, self.path, other.path);
        let title = format!("{}, {} against {}", self.workload, self.path, other.path);
        let subtitle = format!("red: more than {}; blue: less; shares of CPU time", other.path);
        let svg = draw::svg(&self.folded, Some(&other.folded), &title, &subtitle)?;
        write_file(&settings.out.join(format!("{name}.svg")), &svg)?;
        println!("{name}.svg: {subtitle}");
        Ok(())
    }
}

/// What the path's servers have written.
fn samples_of(dir: &Path, path: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(BenchError::file("read", dir))?;
    let is_of_path = |file: &PathBuf| {
        // NAME.PROCESS: no path has a dot in its name.
        file.file_stem().is_some_and(|stem| stem == path)
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_of_path).collect())
}

fn read_results(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).map_err(BenchError::file("read", path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(BenchError::file("write", path))
}
