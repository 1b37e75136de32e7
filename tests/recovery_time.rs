//! How long a killed engine's log takes to open, cold:   cargo run --release -p rohrpost-tests --bin recovery-time -- DIR GB
//!
//! A process of its own fills a log of that length below DIR, in Kafka's usual segments of 1 GiB, and is killed by
//! SIGKILL while it appends. Then the page cache is dropped (by root; otherwise that is said) and the time is taken from
//! starting an engine to the partition's being open. Every acknowledged batch must be there. In later rounds the log grows
//! by a part of a segment first, so that the segment in which the kill strikes is short once and nearly full once. The log
//! is removed at the end.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use bytes::Bytes;
use clap::Parser;
use rohrpost_engine::format::build::BatchBuilder;
use rohrpost_engine::{Engine, EngineOptions, LogConfig, Timestamp};

const NAME: &str = "recovery-0";
const VALUE_LEN: usize = 64 << 10;
const VALUES_PER_BATCH: usize = 15;
/// Appends under way at a time.
const WINDOW: usize = 16;
/// By how much the log grows from round to round, bytes of values.
const GROWTH_LEN: u64 = 230 << 20;

#[derive(Parser)]
struct Arguments {
    /// Where the log goes; must exist and have room.
    dir: std::path::PathBuf,
    /// Its length in the first round, GB of 10^9 bytes.
    #[arg(default_value_t = 20)]
    gb: u64,
    /// Kills.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Fill until killed: the child's part.
    #[arg(long, hide = true)]
    fill: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = arguments.dir.join("recovery-time");
    let done = if arguments.fill { fill(&root) } else { measure(&arguments, &root) };
    if let Err(error) = done {
        eprintln!("recovery-time: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn config() -> LogConfig {
    LogConfig { retention_ms: None, ..LogConfig::default() }
}

/// Appends for ever, and prints the end of what is acknowledged.
fn fill(root: &Path) -> Outcome {
    let engine = Engine::start(EngineOptions::new(root))?;
    let partition = engine.handle().open_partition_blocking(&NAME.parse()?, config())?;
    let mut builder = BatchBuilder::new();
    for number in 0..VALUES_PER_BATCH {
        builder.record(Timestamp::new(1_700_000_000_000), None, Some(&vec![number as u8 | 0x80; VALUE_LEN]));
    }
    let batch: Bytes = builder.build().into();
    let mut pending = std::collections::VecDeque::new();
    let mut out = std::io::stdout().lock();
    loop {
        pending.push_back(partition.append(batch.clone()));
        if pending.len() == WINDOW
            && let Some(first) = pending.pop_front()
        {
            let acked = first.wait()?;
            writeln!(out, "{}", acked.base_offset.get() + VALUES_PER_BATCH as i64)?;
            out.flush()?;
        }
    }
}

fn measure(arguments: &Arguments, root: &Path) -> Outcome {
    std::fs::create_dir(root)?;
    println!("{}", std::fs::read_to_string("/proc/version")?.split(" (").next().unwrap_or_default());
    let result = (0..arguments.rounds).try_for_each(|round| {
        let acked = fill_and_kill(arguments, arguments.gb * 1_000_000_000 + round * GROWTH_LEN)?;
        open_cold(root, acked)
    });
    std::fs::remove_dir_all(root)?;
    result
}

/// Has a child append until so many bytes of values are acknowledged, and kills it; the end of what it was told.
fn fill_and_kill(arguments: &Arguments, len: u64) -> Result<u64, Box<dyn std::error::Error>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(&arguments.dir)
        .arg("--fill")
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("the child has no output")?);
    let mut acked = 0;
    for line in lines.lines() {
        acked = line?.parse()?;
        if acked * VALUE_LEN as u64 >= len {
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    Ok(acked)
}

fn open_cold(root: &Path, acked: u64) -> Outcome {
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        println!("the page cache is not dropped ({error}): run as root for cold figures");
    }
    let read_before = read_bytes();
    let begun = Instant::now();
    let engine = Engine::start(EngineOptions::new(root))?;
    let started = begun.elapsed();
    let partition = engine.handle().open_partition_blocking(&NAME.parse()?, config())?;
    let opened = begun.elapsed();
    let read = read_bytes().saturating_sub(read_before);
    let end = partition.watermarks().wait()?.high_watermark.get();
    println!(
        "{:.2} GB acknowledged, {:.2} GB in {} segments on disk; opened after {:.3} s ({:.3} s of them to start the \
         engine), {:.3} GB read from the device",
        (acked * VALUE_LEN as u64) as f64 / 1e9,
        segments(root)?.iter().sum::<u64>() as f64 / 1e9,
        segments(root)?.len(),
        opened.as_secs_f64(),
        started.as_secs_f64(),
        read as f64 / 1e9,
    );
    for note in engine.notes() {
        println!("note: {note}");
    }
    engine.shutdown()?;
    if (end as u64) < acked {
        return Err(format!("acknowledged up to {acked}, found up to {end}").into());
    }
    Ok(())
}

/// Lengths of the log's segments.
fn segments(root: &Path) -> std::io::Result<Vec<u64>> {
    let mut lens = Vec::new();
    for entry in std::fs::read_dir(root.join(NAME))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|ending| ending == "log") {
            lens.push(entry.metadata()?.len());
        }
    }
    Ok(lens)
}

/// Bytes that this process has caused to be read from devices.
fn read_bytes() -> u64 {
    let facts = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = facts.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}
