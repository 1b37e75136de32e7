//! Helper threads: work that blocks and is not on the data path. They run the core's steps, back
//! fresh slabs and replace lent pages, and post what came of it to the inbox of the shard that asked.
//!
//! Always holds: steps of one partition run one at a time, in the order submitted; steps of different
//! partitions overlap. Slabs are made by a thread of their own, so that a long recovery does not keep
//! an append from its memory, and pages are replaced by another, since a slab takes long.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rohrpost_engine_core::log::step::{Step, StepOutput};
use rohrpost_engine_core::ops::Token;
use rohrpost_engine_core::platform::Platform;

use crate::arena::{LinuxArena, LinuxChunk, LinuxLease, LinuxSlab, StalePages};
use crate::disk::LinuxDisk;
use crate::file::{LinuxFile, errno_of_io};
use crate::inbox::{Mailbox, Message};

/// Threads that run steps, unless chosen otherwise.
pub const HELPER_THREADS_DEFAULT: usize = 2;

/// Batches of pages that may wait without allocation: one per slab, for 8 GiB.
const PAGE_BATCHES: usize = 128;

/// The platforms of this crate: they differ in how they receive and what they support.
pub trait LinuxPlatform:
    Platform<
        Disk = LinuxDisk,
        File = LinuxFile,
        Arena = LinuxArena,
        Slab = LinuxSlab,
        Chunk = LinuxChunk,
        Lease = LinuxLease,
    >
{
}

impl<P> LinuxPlatform for P where
    P: Platform<
            Disk = LinuxDisk,
            File = LinuxFile,
            Arena = LinuxArena,
            Slab = LinuxSlab,
            Chunk = LinuxChunk,
            Lease = LinuxLease,
        >
{
}

/// How a step is run: `move |step| step.run(&log_dir)`.
pub type RunStep<P> = Box<dyn Fn(Step<P>) -> StepOutput<P> + Send + Sync>;

/// The threads. Dropping it finishes what was submitted and joins them.
pub struct Helper<P: LinuxPlatform> {
    shared: Arc<Shared<P>>,
    threads: Vec<JoinHandle<()>>,
}

/// One shard's access to the threads.
pub struct ShardHelper<P: LinuxPlatform> {
    shared: Arc<Shared<P>>,
    mailbox: Mailbox<P>,
    /// Index of the shard's next slab.
    slabs: Arc<AtomicU32>,
    /// Bytes of lent pages replaced for the shard so far.
    replaced_len: Arc<AtomicU64>,
}

struct Shared<P: LinuxPlatform> {
    run: RunStep<P>,
    queues: Mutex<Queues<P>>,
    steps_changed: Condvar,
    slabs_changed: Condvar,
    pages_changed: Condvar,
}

struct Queues<P: LinuxPlatform> {
    steps: VecDeque<StepJob<P>>,
    /// Directory names of the partitions whose step is running.
    busy: HashSet<String>,
    slabs: VecDeque<SlabJob<P>>,
    pages: VecDeque<PagesJob<P>>,
    ending: bool,
}

struct StepJob<P: LinuxPlatform> {
    mailbox: Mailbox<P>,
    token: Token,
    partition: String,
    step: Box<Step<P>>,
}

struct PagesJob<P: LinuxPlatform> {
    mailbox: Mailbox<P>,
    pages: StalePages,
    replaced_len: Arc<AtomicU64>,
}

struct SlabJob<P: LinuxPlatform> {
    mailbox: Mailbox<P>,
    slabs: Arc<AtomicU32>,
}

impl<P: LinuxPlatform> Helper<P> {
    /// Starts `threads` threads for steps, at least one, one for slabs, and one for pages.
    ///
    /// # Errors
    /// The system's, when it gives no more threads.
    pub fn start(threads: usize, run: RunStep<P>) -> io::Result<Self> {
        let queues = Queues {
            steps: VecDeque::new(),
            busy: HashSet::new(),
            slabs: VecDeque::new(),
            pages: VecDeque::with_capacity(PAGE_BATCHES),
            ending: false,
        };
        let shared = Arc::new(Shared {
            run,
            queues: Mutex::new(queues),
            steps_changed: Condvar::new(),
            slabs_changed: Condvar::new(),
            pages_changed: Condvar::new(),
        });
        let mut helper = Self { shared, threads: Vec::new() };
        for index in 0..threads.max(1) {
            helper.spawn(format!("rp-step-{index}"), Shared::run_steps)?;
        }
        helper.spawn("rp-slab".to_owned(), Shared::make_slabs)?;
        helper.spawn("rp-pages".to_owned(), Shared::replace_pages)?;
        Ok(helper)
    }

    /// Access for the shard that reads `mailbox`.
    pub fn for_shard(&self, mailbox: Mailbox<P>) -> ShardHelper<P> {
        ShardHelper {
            shared: Arc::clone(&self.shared),
            mailbox,
            slabs: Arc::new(AtomicU32::new(0)),
            replaced_len: Arc::new(AtomicU64::new(0)),
        }
    }

    fn spawn(&mut self, name: String, work: fn(&Shared<P>)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let run = move || {
            let _guard = AbortOnPanic;
            work(&shared);
        };
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }
}

impl<P: LinuxPlatform> Drop for Helper<P> {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.steps_changed.notify_all();
        self.shared.slabs_changed.notify_all();
        self.shared.pages_changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has ended the process already.
            let _ = thread.join();
        }
    }
}

/// A step that panics is our bug. Its shard would wait for the answer forever, and so would everybody
/// who waits for the shard; a stop that recovery handles is better.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl<P: LinuxPlatform> ShardHelper<P> {
    /// Runs a step; its output comes as `StepDone`.
    pub fn submit_step(&self, token: Token, step: Box<Step<P>>) {
        let partition = partition_of(&step);
        let job = StepJob { mailbox: self.mailbox.clone(), token, partition, step };
        self.shared.lock().steps.push_back(job);
        self.shared.steps_changed.notify_one();
    }

    /// Makes a slab with the shard's next index; comes as `Grown` or `GrowFailed`.
    pub fn grow(&self) {
        let job = SlabJob { mailbox: self.mailbox.clone(), slabs: Arc::clone(&self.slabs) };
        self.shared.lock().slabs.push_back(job);
        self.shared.slabs_changed.notify_one();
    }

    /// Has lent pages replaced; the shard is woken when they are.
    pub(crate) fn replace(&self, pages: StalePages) {
        let (mailbox, replaced_len) = (self.mailbox.clone(), Arc::clone(&self.replaced_len));
        self.shared.lock().pages.push_back(PagesJob { mailbox, pages, replaced_len });
        self.shared.pages_changed.notify_one();
    }

    /// Counts the bytes of lent pages replaced for this shard.
    pub(crate) fn replaced_len(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.replaced_len)
    }
}

impl<P: LinuxPlatform> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, Queues<P>> {
        // Nothing panics while it is held, and the queues are whole after every statement.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_steps(&self) {
        while let Some(StepJob { mailbox, token, partition, step }) = self.next_step() {
            let output = Box::new((self.run)(*step));
            // Before the next step of the partition can start, so that outputs keep their order too.
            mailbox.post(Message::StepDone(token, output));
            self.lock().busy.remove(&partition);
            // The partition's next step may have been passed over by a thread that sleeps now.
            self.steps_changed.notify_all();
        }
    }

    /// The first step whose partition is not busy; `None` when everything submitted is taken.
    fn next_step(&self) -> Option<StepJob<P>> {
        let mut queues = self.lock();
        loop {
            let runnable = queues.steps.iter().position(|job| !queues.busy.contains(&job.partition));
            if let Some(job) = runnable.and_then(|at| queues.steps.remove(at)) {
                queues.busy.insert(job.partition.clone());
                return Some(job);
            }
            if queues.ending && queues.steps.is_empty() {
                return None;
            }
            queues = self.steps_changed.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn make_slabs(&self) {
        let next = || self.next(&self.slabs_changed, |queues| queues.slabs.pop_front());
        while let Some(SlabJob { mailbox, slabs }) = next() {
            // Only this thread counts, so an index that could not be used is given to the next try.
            let index = slabs.load(Ordering::Relaxed);
            mailbox.post(match LinuxSlab::allocate(index) {
                Ok(slab) => {
                    slabs.store(index + 1, Ordering::Relaxed);
                    Message::Grown(slab)
                }
                Err(error) => Message::GrowFailed(errno_of_io(&error)),
            });
        }
    }

    fn replace_pages(&self) {
        let next = || self.next(&self.pages_changed, |queues| queues.pages.pop_front());
        while let Some(PagesJob { mailbox, pages, replaced_len }) = next() {
            replaced_len.fetch_add(pages.replace(), Ordering::Relaxed);
            mailbox.post(Message::PagesReplaced);
        }
    }

    /// The next job that `take` finds, waiting for `changed`; `None` when there is none and none will come.
    fn next<T>(&self, changed: &Condvar, take: impl Fn(&mut Queues<P>) -> Option<T>) -> Option<T> {
        let mut queues = self.lock();
        loop {
            if let Some(job) = take(&mut queues) {
                return Some(job);
            }
            if queues.ending {
                return None;
            }
            queues = changed.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The name of the partition's directory, which orders its steps.
fn partition_of<P: LinuxPlatform>(step: &Step<P>) -> String {
    match step {
        Step::Extend { file, .. } | Step::Seal { file, .. } => dir_name_of(file.path()),
        named => named.partition().map(ToString::to_string).unwrap_or_default(),
    }
}

fn dir_name_of(segment: &Path) -> String {
    let dir = segment.parent().and_then(Path::file_name);
    dir.unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "helper_tests.rs"]
mod tests;
