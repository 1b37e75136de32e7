//! Runs seeds and names the ones that fail.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::edits::{Drawn, Edits};
use crate::errors::Blow;
use crate::fault::Lie;
use crate::outcome::Outcome;
use crate::world::World;

/// Characters of a story that tell its kind: the place and the first words.
const KIND_LEN: usize = 90;

thread_local! {
    /// Where the last panic of this thread was, if [`keep_panics_quiet`] was called.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A run: a seed, and how it differs from what the seed alone says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Decides everything that is not said here.
    pub seed: u64,
    /// What is left out.
    pub edits: Edits,
    /// A promise that the machine breaks.
    pub lie: Option<Lie>,
    /// A run of rare moments, see [`Settings::rushed`](crate::settings::Settings::rushed).
    pub rush: bool,
    /// A short run without chance faults, in which the operation with this number (the first is 1) fails.
    pub blow: Option<(u64, Blow)>,
    /// A power cut turns a sector of every write in flight into garbage, which no medium should.
    pub spoil: bool,
    /// Every partition has its last block guarded.
    pub guard: bool,
    /// A failure carries everything that happened before it.
    pub keep_trace: bool,
}

impl Plan {
    /// A seed and nothing else.
    pub fn of(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
}

impl fmt::Display for Plan {
    /// As `cargo sim` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        if self.edits != Edits::default() {
            write!(f, " --without {}", self.edits)?;
        }
        if let Some(lie) = self.lie {
            write!(f, " --lie {lie:?}")?;
        }
        if let Some((op, blow)) = self.blow {
            write!(f, " --blow {op} {blow}")?;
        }
        for (set, word) in [(self.rush, "--rush"), (self.spoil, "--spoil"), (self.guard, "--guard")] {
            if set {
                write!(f, " {word}")?;
            }
        }
        Ok(())
    }
}

/// A run that found a violation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {}: {story}\nreproduce with: cargo sim -- {plan}", plan.seed)]
pub struct Failure {
    /// What was run.
    pub plan: Plan,
    /// What the violated check said, and where.
    pub story: String,
    /// How many decisions it had come to.
    pub drawn: Drawn,
    /// What happened before, where it was kept.
    pub trace: String,
}

impl Failure {
    /// The story without its numbers: the same for runs in which the same check fails.
    pub fn kind(&self) -> String {
        self.story.chars().filter(|c| !c.is_ascii_digit()).take(KIND_LEN).collect()
    }
}

/// Runs one seed. With `keep_trace`, a failure carries everything that happened before it.
///
/// # Errors
/// The violation, if there is one.
pub fn run_seed(seed: u64, keep_trace: bool) -> Result<Outcome, Box<Failure>> {
    run_plan(&Plan { keep_trace, ..Plan::of(seed) })
}

/// Runs one seed on a machine that breaks its word: sooner or later a seed must notice.
///
/// # Errors
/// The violation, if this seed noticed.
pub fn run_seed_with_lie(seed: u64, lie: Lie) -> Result<Outcome, Box<Failure>> {
    run_plan(&Plan { lie: Some(lie), ..Plan::of(seed) })
}

/// Runs a plan.
///
/// # Errors
/// The violation, if there is one.
pub fn run_plan(plan: &Plan) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(plan);
    catch_unwind(AssertUnwindSafe(|| world.run())).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
        let place = LAST_PANIC.with_borrow_mut(std::mem::take);
        let trace = world.disk().storage().trace.to_string();
        let story = format!("{place}{said}");
        Box::new(Failure { plan: plan.clone(), story, drawn: world.drawn(), trace })
    })
}

/// Keeps panics from being printed as they happen: [`run_plan`] reports them. For the whole process; meant for
/// programs that do nothing but run seeds.
pub fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, |location| format!("{location}: "));
        LAST_PANIC.with_borrow_mut(|last| *last = place);
    }));
}
