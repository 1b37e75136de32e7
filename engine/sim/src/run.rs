//! Runs seeds and names the ones that fail.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::world::{Outcome, World};

thread_local! {
    /// What the last panic of this thread said, and where.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A seed that found a violation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {story}\nreproduce with: cargo sim -- {seed}")]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What the violated check said.
    pub story: String,
    /// What happened before, where it was kept.
    pub trace: String,
}

/// Runs one seed. With `keep_trace`, a failure carries everything that happened before it.
///
/// # Errors
/// The violation, if there is one.
pub fn run_seed(seed: u64, keep_trace: bool) -> Result<Outcome, Failure> {
    let mut world = World::new(seed, keep_trace);
    catch_unwind(AssertUnwindSafe(|| world.run())).map_err(|_| Failure {
        seed,
        story: LAST_PANIC.with_borrow_mut(std::mem::take),
        trace: world.disk().storage().trace.to_string(),
    })
}

/// Keeps what panics say for [`run_seed`] instead of printing it. For the whole process; meant for programs that do
/// nothing but run seeds.
pub fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        LAST_PANIC.with_borrow_mut(|last| *last = info.to_string());
    }));
}

/// Adds up what several seeds have seen. The hash is that of all hashes in order.
pub fn add(sum: &mut Outcome, one: &Outcome) {
    sum.trace_hash = sum.trace_hash.rotate_left(7) ^ one.trace_hash;
    sum.crash_points += one.crash_points;
    sum.lives += one.lives;
    sum.cut_in_recovery += one.cut_in_recovery;
    sum.acked += one.acked;
    sum.served_len += one.served_len;
    sum.disk_ops += one.disk_ops;
}
