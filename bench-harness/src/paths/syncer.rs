//! The sync threads of `write_group_fdatasync`: whatever was appended to a partition while its last sync ran becomes
//! durable with the next one. A thread per partition, up to [`THREAD_COUNT_MAX`]; beyond that they share.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{BenchError, Result};
use crate::server::{Stats, Stop};

/// Sync threads at most.
const THREAD_COUNT_MAX: usize = 64;

/// What is asked of one partition.
#[derive(Default)]
struct Wanted {
    /// Files with something in them that is not durable.
    files: Vec<Arc<File>>,
    /// The offset up to which all is to be durable.
    end: i64,
    is_queued: bool,
}

#[derive(Default)]
struct State {
    wanted: Vec<Wanted>,
    queue: VecDeque<usize>,
    /// Partition and the offset up to which it is durable.
    done: Vec<(usize, i64)>,
    error: Option<io::Error>,
}

#[derive(Default)]
struct Syncer {
    state: Mutex<State>,
    work: Condvar,
}

/// All sync threads.
pub(super) struct Syncers {
    syncers: Vec<Arc<Syncer>>,
    signaled: Arc<AtomicBool>,
}

impl Syncers {
    /// Threads for so many partitions. They write to the stop event when something became durable.
    pub(super) fn start(partitions: usize, stop: &Arc<Stop>, stats: &Arc<Stats>) -> Result<Self> {
        let signaled = Arc::new(AtomicBool::new(false));
        let threads = partitions.min(THREAD_COUNT_MAX);
        let mut syncers = Vec::with_capacity(threads);
        for at in 0..threads {
            let syncer = Arc::new(Syncer::default());
            syncer.lock().wanted.resize_with(partitions.div_ceil(threads), Wanted::default);
            let (shared, signaled) = (syncer.clone(), signaled.clone());
            let (stop, stats) = (stop.clone(), stats.clone());
            std::thread::Builder::new()
                .name(format!("sync-{at}"))
                .spawn(move || shared.run((at, threads), &stop, &signaled, &stats))
                .map_err(BenchError::system("start a sync thread"))?;
            syncers.push(syncer);
        }
        Ok(Self { syncers, signaled })
    }

    /// How many threads there are.
    pub(super) fn thread_count(&self) -> usize {
        self.syncers.len()
    }

    fn of(&self, partition: usize) -> (&Syncer, usize) {
        (&self.syncers[partition % self.syncers.len()], partition / self.syncers.len())
    }

    /// A file that is left behind must become durable with the partition's next group.
    pub(super) fn add_file(&self, partition: usize, file: Arc<File>) {
        let (syncer, at) = self.of(partition);
        syncer.lock().wanted[at].files.push(file);
    }

    /// Everything before offset `end` is to become durable.
    pub(super) fn request(&self, partition: usize, end: i64, file: &Arc<File>) {
        let (syncer, at) = self.of(partition);
        let mut state = syncer.lock();
        let wanted = &mut state.wanted[at];
        wanted.end = end;
        if !wanted.files.iter().any(|known| Arc::ptr_eq(known, file)) {
            wanted.files.push(file.clone());
        }
        if !wanted.is_queued {
            wanted.is_queued = true;
            state.queue.push_back(at);
        }
        drop(state);
        syncer.work.notify_one();
    }

    /// Whether something became durable since the last call.
    pub(super) fn take_signal(&self) -> bool {
        self.signaled.swap(false, Ordering::AcqRel)
    }

    /// Appends partition and durable end for everything that became durable.
    pub(super) fn take_done(&self, into: &mut Vec<(usize, i64)>) -> Result<()> {
        for syncer in &self.syncers {
            let mut state = syncer.lock();
            if let Some(error) = state.error.take() {
                return Err(BenchError::system("fdatasync")(error));
            }
            into.append(&mut state.done);
        }
        Ok(())
    }
}

impl Syncer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `place` is the thread's number and how many there are.
    fn run(&self, place: (usize, usize), stop: &Stop, signaled: &AtomicBool, stats: &Stats) {
        let mut files = Vec::new();
        loop {
            let mut state = self.lock();
            let at = loop {
                match state.queue.pop_front() {
                    Some(at) => break at,
                    None => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            let wanted = &mut state.wanted[at];
            wanted.is_queued = false;
            let target = wanted.end;
            std::mem::swap(&mut files, &mut wanted.files);
            drop(state);
            stats.entered(files.len() as u64);
            let synced = files.drain(..).try_for_each(|file: Arc<File>| file.sync_data());
            let mut state = self.lock();
            if let Err(error) = synced {
                // After a failed sync a second one may succeed with the data gone: this log is over.
                state.error = Some(error);
            } else {
                state.done.push((at * place.1 + place.0, target));
            }
            let failed = state.error.is_some();
            drop(state);
            if !signaled.swap(true, Ordering::AcqRel) {
                stats.entered(1);
                let _ = rustix::io::write(&stop.event, &1u64.to_ne_bytes());
            }
            if failed {
                return;
            }
        }
    }
}
