//! `write_fdatasync` and `write_fdatasync_8`: write a batch, fdatasync, acknowledge, with one thread or with one
//! per partition. What a log does that makes every append durable by itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{BenchError, Result};
use crate::server::append_log::{AppendLog, Batches};
use crate::server::produce::Recorder;
use crate::server::{ServerContext, Stats, Stop};
use crate::sys;
use crate::workload::Append;

/// Appends that wait for their turn: when each was begun, and to which partition.
type Queue = VecDeque<(u64, usize)>;

struct Worker {
    logs: Vec<AppendLog>,
    batches: Batches,
    queue: Queue,
    recorder: Arc<Recorder>,
    stats: Arc<Stats>,
    stop: Arc<Stop>,
}

impl Worker {
    /// Appends until it is told to stop. Every acknowledged append makes room for the next one.
    fn run(mut self) -> std::io::Result<()> {
        while !self.stop.is_set() {
            let Some((start_ns, partition)) = self.queue.pop_front() else { return Ok(()) };
            let log = &mut self.logs[partition];
            let written = log.append(self.batches.next_batch())?;
            log.file.sync_data()?;
            self.stats.entered(2);
            self.stats.responses.fetch_add(1, Ordering::Relaxed);
            let now = sys::now_ns();
            self.recorder.ack(start_ns, now, written.len);
            self.queue.push_back((now, partition));
        }
        Ok(())
    }
}

fn worker(context: &ServerContext, append: &Append, partitions: std::ops::Range<usize>) -> Result<Worker> {
    let in_flight = append.in_flight * partitions.len() / append.partitions;
    let seed = partitions.start as u64;
    let logs = partitions
        .map(|partition| {
            let dir = context.config.scratch.join(format!("bench-{partition}"));
            AppendLog::create(&dir, append.segment_len)
        })
        .collect::<Result<Vec<_>>>()?;
    let now = sys::now_ns();
    let queue = (0..in_flight.max(1)).map(|at| (now, at % logs.len())).collect();
    Ok(Worker {
        logs,
        batches: Batches::new(seed, append.batch_len),
        queue,
        recorder: context.recorder.clone(),
        stats: context.stats.clone(),
        stop: context.stop.clone(),
    })
}

fn serve_with(context: &mut ServerContext, threads: usize) -> Result<()> {
    let append = context.config.workload.append.clone().ok_or_else(|| BenchError::Process {
        who: "server",
        why: "this path appends, and the workload does not".to_string(),
    })?;
    let share = append.partitions.div_ceil(threads);
    let workers = (0..append.partitions)
        .step_by(share)
        .map(|from| worker(context, &append, from..(from + share).min(append.partitions)))
        .collect::<Result<Vec<_>>>()?;
    context.recorder.start();
    context.ready(&format!("{} thread(s)", workers.len()))?;
    let handles: Vec<_> = workers.into_iter().map(|worker| std::thread::spawn(|| worker.run())).collect();
    for handle in handles {
        let ended = handle.join().unwrap_or_else(|_| Err(std::io::Error::other("a writer panicked")));
        ended.map_err(BenchError::system("append"))?;
    }
    context.stop.finished();
    wait_for_end()
}

/// The control thread ends the process.
pub(super) fn wait_for_end() -> Result<()> {
    loop {
        std::thread::park();
    }
}

pub(super) fn serve(context: &mut ServerContext) -> Result<()> {
    serve_with(context, 1)
}

pub(super) fn serve_8(context: &mut ServerContext) -> Result<()> {
    serve_with(context, 8)
}
