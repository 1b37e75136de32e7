//! Runs seeds and names the ones that fail.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fault::Lie;
use crate::outcome::Outcome;
use crate::world::World;

thread_local! {
    /// Where the last panic of this thread was, if [`keep_panics_quiet`] was called.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A seed that found a violation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {story}\nreproduce with: cargo sim -- {seed}")]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What the violated check said, and where.
    pub story: String,
    /// What happened before, where it was kept.
    pub trace: String,
}

/// Runs one seed. With `keep_trace`, a failure carries everything that happened before it.
///
/// # Errors
/// The violation, if there is one.
pub fn run_seed(seed: u64, keep_trace: bool) -> Result<Outcome, Box<Failure>> {
    run_world(seed, World::new(seed, keep_trace))
}

/// Runs one seed on a machine that breaks its word: sooner or later a seed must notice.
///
/// # Errors
/// The violation, if this seed noticed.
pub fn run_seed_with_lie(seed: u64, lie: Lie) -> Result<Outcome, Box<Failure>> {
    run_world(seed, World::with_lie(seed, lie))
}

fn run_world(seed: u64, mut world: World) -> Result<Outcome, Box<Failure>> {
    catch_unwind(AssertUnwindSafe(|| world.run())).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
        let place = LAST_PANIC.with_borrow_mut(std::mem::take);
        let trace = world.disk().storage().trace.to_string();
        Box::new(Failure { seed, story: format!("{place}{said}"), trace })
    })
}

/// Keeps panics from being printed as they happen: [`run_seed`] reports them. For the whole process; meant for
/// programs that do nothing but run seeds.
pub fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, |location| format!("{location}: "));
        LAST_PANIC.with_borrow_mut(|last| *last = place);
    }));
}
