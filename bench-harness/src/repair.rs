//! `repair`: what an operator decides about a partition that opening refuses.

use std::path::PathBuf;

use clap::Args;
use rohrpost_engine::{Engine, EngineOptions, LogConfig, OnDamage, TopicPartition, WriteMode};

use crate::error::{BenchError, Result};

/// The command's arguments.
#[derive(Args)]
pub struct RepairArgs {
    /// The log directory; no engine and no broker may have it open.
    dir: PathBuf,
    /// The partition, for example orders-0.
    partition: String,
    /// End the log at the first damage and drop everything behind it, for good. Without this, only say what there is.
    #[arg(long)]
    cut: bool,
    /// For file systems without direct I/O.
    #[arg(long)]
    buffered: bool,
}

/// Opens the partition, cut or as it is, and says what was found and where the log now begins and ends.
///
/// # Errors
/// When the directory or the partition cannot be opened at all.
pub fn run(args: &RepairArgs) -> Result<()> {
    let failed = |why: String| BenchError::Corpus { path: args.dir.join(&args.partition), why };
    let name: TopicPartition = args.partition.parse().map_err(|error| failed(format!("{error}")))?;
    let options = EngineOptions { read_only: !args.cut, ..EngineOptions::new(&args.dir) };
    let on_damage = if args.cut { OnDamage::Cut } else { OnDamage::Serve };
    let write_mode = if args.buffered { WriteMode::Buffered } else { WriteMode::Direct };
    let config = LogConfig { on_damage, write_mode, retention_ms: None, ..LogConfig::default() };
    let engine = Engine::start(options).map_err(|error| failed(error.to_string()))?;
    if !engine.partitions().is_ok_and(|partitions| partitions.contains(&name)) {
        return Err(failed("there is no such partition".to_owned()));
    }
    let opened = engine.handle().open_partition_blocking(&name, config);
    for note in engine.notes() {
        println!("{note}");
    }
    let partition = opened.map_err(|error| failed(error.to_string()))?;
    let marks = partition.watermarks().wait().map_err(|error| failed(error.to_string()))?;
    println!("{name}: offsets {} to {}", marks.log_start_offset, marks.high_watermark);
    engine.shutdown().map(drop).map_err(|error| failed(error.to_string()))
}
